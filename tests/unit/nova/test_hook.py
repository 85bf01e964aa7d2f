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
"""The hook: one name, nothing loaded, nothing escapes."""

import importlib.machinery
import pathlib
import subprocess
import sys

import nova_lazyimage_hook

ROOT = pathlib.Path(nova_lazyimage_hook.__file__).parent


def run(code):
    return subprocess.run(
        [sys.executable, '-S', '-c', code],
        cwd=ROOT,
        env={},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_it_answers_one_name_only():
    finder = nova_lazyimage_hook.Finder
    for name in ('nova', 'nova.virt', 'nova.virt.lazyimage.driver', 'lazy'):
        assert finder.find_spec(name) is None
    spec = finder.find_spec('nova.virt.lazyimage')
    assert pathlib.Path(spec.origin).name == 'shim.py'


def test_it_loads_nothing_until_that_name_is_asked_for():
    loaded = run(
        'import sys; before = set(sys.modules);'
        'sys.path.insert(0, "."); import nova_lazyimage_hook;'
        'print(sorted(set(sys.modules) - before))'
    )
    assert loaded.strip() == "['nova_lazyimage_hook']"


def test_a_second_import_adds_no_second_finder():
    before = list(sys.meta_path)
    nova_lazyimage_hook.install()
    assert sys.meta_path == before


def test_no_exception_escapes(monkeypatch):
    def broken(*args):
        raise RuntimeError('half removed')

    monkeypatch.setattr('importlib.util.find_spec', broken)
    assert nova_lazyimage_hook.Finder.find_spec('nova.virt.lazyimage') is None


def test_the_pth_file_imports_the_hook_and_nothing_else():
    text = (ROOT / 'nova_lazyimage.pth').read_text()
    assert text == 'import nova_lazyimage_hook\n'


def test_nova_loads_the_driver_by_its_name():
    nova_lazyimage_hook.install()
    from oslo_utils import importutils

    found = importutils.import_class('nova.virt.lazyimage.LazyLibvirtDriver')
    from nova.virt import driver

    assert issubclass(found, driver.ComputeDriver)


def test_nova_compute_loads_nothing_but_its_own_and_the_library():
    """Contract 36."""
    loaded = subprocess.run(
        [
            sys.executable,
            '-W',
            'ignore',
            '-c',
            'import sys; sys.path.insert(0, ".");'
            'import nova.cmd.compute, nova.virt.libvirt.driver;'
            'before = set(sys.modules);'
            'import nova_lazyimage.driver;'
            'new = {n.split(".")[0] for n in set(sys.modules) - before};'
            'print(*sorted(new - sys.stdlib_module_names))',
        ],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert loaded.split() == ['nova_lazyimage']


def test_the_shim_is_a_module_that_can_be_found():
    spec = importlib.machinery.PathFinder.find_spec(
        'nova_lazyimage.shim', [str(ROOT / 'nova_lazyimage')]
    )
    assert spec is None or spec.origin
