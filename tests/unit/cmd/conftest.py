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
"""``lazyimage`` in this process, on a repository of the test's own."""

import json
import random

import pytest

from nova_lazyimage.cmd import console
from nova_lazyimage.cmd import lazyimage

CHUNK = 524288
DATA = random.Random(1).randbytes(CHUNK) + bytes(3 * CHUNK) + b'tail'


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a command; answers its exit status, output and errors."""
    url = (tmp_path / 'repository').as_uri()
    monkeypatch.setenv(console.ENVIRONMENT, url)

    def running(*arguments):
        status = lazyimage.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return running


@pytest.fixture
def made(run, tmp_path):
    """A repository with one image, ``debian``, whose file is disk.raw."""
    path = tmp_path / 'disk.raw'
    path.write_bytes(DATA)
    assert run('init')[0] == 0
    assert run('import', path, '--name', 'debian')[0] == 0
    return run


@pytest.fixture
def answer():
    """What a command that succeeded told a program."""

    def answering(result):
        status, out, err = result
        assert (status, err) == (0, '')
        return json.loads(out)

    return answering


@pytest.fixture
def refused():
    """The one line that says why a command did nothing."""

    def refusing(result):
        status, out, err = result
        assert (status, out) == (1, '')
        assert err.startswith('lazyimage: ')
        assert err.count('\n') == 1
        return err

    return refusing
