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

man_pages = [
    (f'cli/{name}', name, summary, 'lazyimage contributors', 1)
    for name, summary in {
        'lazyimage': 'images as blobs: import, clone, attach, commit, export',
        'lazyimage-agent': 'serve the lazily mirrored disks of one host',
        'lazyimage-conductor': 'own the catalog and answer for it',
        'lazyimage-holder': 'keep an agent\'s disks while it is dead',
        'lazyimage-status': 'say what is wrong with an installation',
    }.items()
]
