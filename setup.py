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
"""What pyproject.toml cannot say: a ``.pth`` at the wheel's root.

``nova_lazyimage.pth`` has to lie beside the packages, in a wheel as in a
``pip install -e``, and setuptools knows no option for it. Nothing but
``cmdclass`` is passed here: with ``pbr=True``, or with
``[tool.setuptools.cmdclass]`` in pyproject.toml, pbr drops setuptools-rust's
commands and the wheel is built without the extension and without an error.

The version is git's, by pbr: of the last tag, else 0.0.1 with the number of
commits, in a shallow clone too. A tree without git's history (an archive)
has none to give, where pbr would end the build; it counts as 0.0.1.dev0.
"""

import os
import pathlib
import shutil
import subprocess

import setuptools
from setuptools.command import build_py
from setuptools.command import editable_wheel

PTH = pathlib.Path(__file__).resolve().with_name('nova_lazyimage.pth')


def has_history(tree):
    try:
        return not subprocess.run(
            ['git', 'rev-parse', '--verify', '--quiet', 'HEAD'],
            cwd=tree,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ).returncode
    except OSError:
        return False


if not (PTH.with_name('PKG-INFO').exists() or has_history(PTH.parent)):
    os.environ.setdefault('PBR_VERSION', '0.0.1.dev0')


class BuildWithPth(build_py.build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            shutil.copy(PTH, self.build_lib)

    def get_outputs(self, *args, **kwargs):
        outputs = super().get_outputs(*args, **kwargs)
        if not self.editable_mode:
            outputs.append(str(pathlib.Path(self.build_lib, PTH.name)))
        return outputs


class EditableWithPth(editable_wheel.editable_wheel):
    # Files put into ``unpacked_wheel`` are installed as they are; build_py's
    # own output is replaced by links to the checkout.
    def _configure_build(self, name, unpacked_wheel, *args, **kwargs):
        super()._configure_build(name, unpacked_wheel, *args, **kwargs)
        shutil.copy(PTH, unpacked_wheel)


setuptools.setup(
    cmdclass={'build_py': BuildWithPth, 'editable_wheel': EditableWithPth}
)
