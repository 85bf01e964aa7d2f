# Licensed under the Apache License, Version 2.0 (the "License"); you may
# not use this file except in compliance with the License. You may obtain
# a copy of the License at
#
#      http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS, WITHOUT
# WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied. See the
# License for the specific language governing permissions and limitations
# under the License.
"""How Sphinx builds the documentation."""

import importlib.metadata
import pathlib
import sys

# Python 3.12 has no distutils; the theme imports what setuptools provides.
import setuptools  # noqa: F401

sys.path.append(str(pathlib.Path(__file__).resolve().parents[2]))

# The directive show-options only logs that a namespace cannot be loaded.
for name in ('lazyimage', 'lazyimage.glance', 'lazyimage.nova'):
    (found,) = importlib.metadata.entry_points(
        group='oslo.config.opts', name=name
    )
    found.load()

project = 'lazyimage'
copyright = 'lazyimage contributors'
extensions = [
    'openstackdocstheme',
    'oslo_config.sphinxconfiggen',
    'oslo_config.sphinxext',
    'reno.sphinxext',
    'sphinxarg.ext',
]
openstackdocs_auto_name = False
openstackdocs_auto_version = False
openstackdocs_pdf_link = False
openstackdocs_repo_name = ''
version = release = ''

config_generator_config_file = [
    (
        '../../etc/lazyimage/lazyimage-config-generator.conf',
        '_static/lazyimage',
    ),
]

html_theme = 'openstackdocs'
htmlhelp_basename = 'lazyimagedoc'
nitpicky = False
pygments_style = 'native'

PROGRAMS = {
    'lazyimage': 'images as blobs: import, clone, attach, commit, export',
    'lazyimage-agent': 'serve the lazily mirrored disks of one host',
    'lazyimage-conductor': 'own the catalog and answer for it',
    'lazyimage-holder': 'keep an agent\'s disks while it is dead',
    'lazyimage-status': 'say what is wrong with an installation',
}
COMMAND = """\
{line}
{title}
{line}

.. argparse::
   :ref: nova_lazyimage.cmd.lazyimage.parser
   :prog: lazyimage
   :path: {name}

Where the repository is, and the exit status: **lazyimage**\\ (1).
"""


def write_commands() -> dict[str, str]:
    """A page for each sub-command, of its parser; what each is for."""
    from nova_lazyimage.cmd import lazyimage

    folder = pathlib.Path(__file__).with_name('cli') / 'commands'
    folder.mkdir(exist_ok=True)
    found = lazyimage.commands()
    for name in found:
        title = f'lazyimage {name}'
        page = COMMAND.format(name=name, title=title, line='=' * len(title))
        path = folder / f'{name}.rst'
        # Sphinx reads again what is newer.
        if not path.exists() or path.read_text() != page:
            path.write_text(page)
    return found


man_pages = [
    (f'cli/{name}', name, summary, 'lazyimage contributors', 1)
    for name, summary in PROGRAMS.items()
] + [
    (
        f'cli/commands/{name}',
        f'lazyimage-{name}',
        summary,
        'lazyimage contributors',
        1,
    )
    for name, summary in write_commands().items()
]
