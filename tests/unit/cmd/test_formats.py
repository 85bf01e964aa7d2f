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
"""What ``import`` takes in and ``export`` writes, by real QEMU programs."""

import io
import itertools
import os
import pathlib
import random
import struct
import subprocess
import sys
import tempfile

import pytest

from nova_lazyimage.cmd import inspection
from nova_lazyimage.cmd import qemu_img

DATA = b''.join(
    bytes(1 << 19) if index % 3 else random.Random(index).randbytes(1 << 19)
    for index in range(9)
)
COMMAND = [sys.executable, '-m', 'nova_lazyimage.cmd.lazyimage']


def qemu(*arguments):
    subprocess.run(['qemu-img', *map(str, arguments)], check=True)


@pytest.fixture
def raw(tmp_path):
    path = tmp_path / 'content.raw'
    path.write_bytes(DATA)
    return path


@pytest.fixture
def image(raw, tmp_path):
    """Make an image of a format, with options of qemu-img's."""

    def make(name, *options):
        path = tmp_path / f'disk.{name}'
        driver = inspection.DRIVERS[name]
        qemu('convert', '-f', 'raw', '-O', driver, *options, raw, path)
        return path

    return make


def content(run, name, tmp_path):
    path = tmp_path / f'{name}.out'
    assert run('export', name, path) == (0, '', '')
    return path.read_bytes()


class TestImport:
    @pytest.mark.parametrize('given', ['', 'auto'])
    @pytest.mark.parametrize('name', inspection.DRIVERS)
    def test_every_format_is_stored_as_its_content(
        self, made, answer, image, tmp_path, name, given
    ):
        told = answer(
            made(
                *('import', image(name), '--name', 'x', '--json'),
                *('--format', given or name),
            )
        )
        # A VHD's geometry rounds up.
        found = content(made, 'x', tmp_path)
        assert found.rstrip(b'\0') == DATA.rstrip(b'\0')
        assert len(DATA) <= len(found) == told['size_bytes']
        assert told['hole_bytes'] >= DATA.count(bytes(1 << 19)) << 19

    @pytest.mark.parametrize(
        ('name', 'options'),
        [
            ('qcow2', ['-c']),
            ('qcow2', ['-o', 'compat=0.10']),
            ('qcow2', ['-o', 'cluster_size=2M,compression_type=zstd', '-c']),
            ('vmdk', ['-o', 'subformat=streamOptimized']),
        ],
    )
    def test_so_are_compressed_and_old_ones(
        self, made, image, tmp_path, name, options
    ):
        path = image(name, *options)
        assert made('import', path, '--name', 'x', '--format', name)[0] == 0
        assert content(made, 'x', tmp_path) == DATA

    def test_no_temporary_copy_is_made(self, image, tmp_path, monkeypatch):
        monkeypatch.setattr(tempfile, 'tempdir', str(tmp_path / 't'))
        (tmp_path / 't').mkdir()
        with qemu_img.content(str(image('qcow2')), 'qcow2') as (size, pieces):
            for _ in pieces:
                (folder,) = (tmp_path / 't').iterdir()
                assert [each.name for each in folder.iterdir()] == ['nbd']
        assert size == len(DATA)
        assert list((tmp_path / 't').iterdir()) == []

    def test_holes_are_not_read(self, made, answer, tmp_path):
        path = tmp_path / 'sparse.qcow2'
        qemu('create', '-q', '-f', 'qcow2', path, '8T')
        told = answer(
            made(
                *('import', path, '--name', 'x', '--format', 'qcow2'),
                '--json',
            )
        )
        assert told['hole_bytes'] == told['size_bytes'] == 8 << 40

    def test_what_looks_like_another_format_is_not_taken_for_raw(
        self, made, image, refused
    ):
        """Bytes that may be a guest's are never converted on the quiet."""
        for name in inspection.DRIVERS:
            path = image(name)
            if name == 'vhd' and path.read_bytes()[:8] != b'conectix':
                continue
            why = refused(made('import', path, '--name', name))
            assert f'--format {name}' in why and '--format raw' in why
        path = image('qcow2')
        assert made('import', path, '--name', 'r', '--format', 'raw')[0] == 0

    def test_a_format_that_it_is_not_is_refused(
        self, made, image, raw, refused
    ):
        for path, given, found in (
            (image('vmdk'), 'qcow2', 'vmdk'),
            (raw, 'qcow2', 'raw'),
            (raw, 'vdi', 'raw'),
        ):
            why = refused(
                made('import', path, '--name', 'x', '--format', given)
            )
            assert f'no {given} image' in why and found in why
        assert made('import', raw, '--name', 'x', '--format', 'auto')[0] == 0

    def test_without_qemu_one_is_told_so(
        self, made, image, raw, refused, tmp_path, monkeypatch
    ):
        path = image('qcow2')
        monkeypatch.setenv('PATH', str(tmp_path))
        arguments = ['import', path, '--name', 'x', '--format', 'qcow2']
        assert 'qemu-utils' in refused(made(*arguments))
        assert made('import', raw, '--name', 'x')[0] == 0


def overlay(folder):
    qemu(
        'create',
        '-q',
        '-f',
        'qcow2',
        '-F',
        'raw',
        '-b',
        '/etc/passwd',
        folder / 'x',
    )


def data_file(folder):
    qemu(
        'create',
        '-q',
        '-f',
        'qcow2',
        '-o',
        f'data_file={folder}/secret,data_file_raw=on',
        folder / 'x',
        '1M',
    )


def encrypted(folder):
    qemu(
        'create',
        '-q',
        '-f',
        'qcow2',
        '--object',
        'secret,id=s,data=p',
        '-o',
        'encrypt.format=luks,encrypt.key-secret=s',
        folder / 'x',
        '1M',
    )


def flat_vmdk(folder):
    """Text that names the file with the content."""
    qemu(
        *('create', '-q', '-f', 'vmdk', '-o', 'subformat=monolithicFlat'),
        *(folder / 'x', '1M'),
    )


def vmdk_of_elsewhere(folder):
    """As CVE-2024-32498 has it: the extent is another file."""
    path = folder / 'x'
    qemu('create', '-q', '-f', 'vmdk', path, '1M')
    data = path.read_bytes()
    at = data.index(b'RW ')
    line = b'RW 2048 FLAT "/etc/passwd" 0\n'
    path.write_bytes(data[:at] + line + data[at + len(line) :])


def unknown_feature(folder):
    path = folder / 'x'
    qemu('create', '-q', '-f', 'qcow2', path, '1M')
    patch(path, 72, struct.pack('>Q', 1 << 40))


def differencing(folder):
    path = folder / 'x'
    qemu('create', '-q', '-f', 'vpc', path, '1M')
    patch(path, 60, struct.pack('>I', 4))


def patch(path, offset, data):
    with path.open('r+b') as file:
        file.seek(offset)
        file.write(data)


class TestUnsafe:
    @pytest.mark.parametrize(
        ('make', 'name', 'reason'),
        [
            (overlay, 'qcow2', 'backing file'),
            (data_file, 'qcow2', 'another file'),
            (encrypted, 'qcow2', 'encrypted'),
            (unknown_feature, 'qcow2', 'not known to be safe'),
            (flat_vmdk, 'vmdk', 'other files'),
            (vmdk_of_elsewhere, 'vmdk', 'other files'),
            (differencing, 'vhd', 'parent'),
        ],
    )
    def test_what_points_elsewhere_is_refused_before_qemu_opens_it(
        self, made, refused, tmp_path, monkeypatch, make, name, reason
    ):
        make(tmp_path)
        path = tmp_path / 'x'
        monkeypatch.setenv('PATH', '')  # No program of QEMU's is found.
        for given in (name, 'auto'):
            command = ['import', path, '--name', 'x', '--format', given]
            why = refused(made(*command))
            assert reason in why and f'"{path}"' in why
            assert 'qemu-img convert' in why

    @pytest.mark.parametrize(
        ('head', 'name'), [(b'QED\0', 'qed'), (b'LUKS\xba\xbe', 'luks')]
    )
    def test_what_is_never_converted_is_told(
        self, made, refused, tmp_path, head, name
    ):
        path = tmp_path / 'x'
        path.write_bytes(head.ljust(8192, b'\1'))
        why = refused(made('import', path, '--name', 'x', '--format', 'auto'))
        assert f'{name} image' in why and str(path) in why

    def test_what_looks_like_two_is_refused(self, made, refused, tmp_path):
        path = tmp_path / 'x'
        head = bytearray(b'QFI\xfb'.ljust(8192, b'\0'))
        head[0x40:0x44] = struct.pack('<I', 0xBEDA107F)
        path.write_bytes(head)
        why = refused(made('import', path, '--name', 'x', '--format', 'auto'))
        assert 'qcow2 and vdi' in why

    @pytest.mark.parametrize('name', inspection.DRIVERS)
    def test_an_image_that_was_cut_short_is_refused(
        self, made, refused, image, name
    ):
        """QEMU would read zeros there, and say nothing."""
        path = image(name)
        os.truncate(path, path.stat().st_size * 2 // 3)
        command = ['import', path, '--name', 'x', '--format', name]
        refused(made(*command))
        assert 'no blob' in refused(made('show', 'x'))

    def test_an_image_whose_tables_are_gone_is_refused(
        self, made, refused, image
    ):
        path = image('qcow2')
        patch(path, 40, struct.pack('>Q', 1 << 40))
        command = ['import', path, '--name', 'x', '--format', 'qcow2']
        assert 'damaged or cut short' in refused(made(*command))

    def test_any_flipped_byte_of_a_head_is_harmless(
        self, image, tmp_path, rng
    ):
        """Refused, or converted: nothing hangs and nothing else is raised."""
        from lazyblob import exceptions

        path = image('qcow2')
        whole = path.read_bytes()
        for _ in range(60):
            at = rng.randrange(112)
            path.write_bytes(
                whole[:at] + bytes([rng.randrange(256)]) + whole[at + 1 :]
            )
            try:
                inspection.check(str(path), 'qcow2')
                with qemu_img.content(str(path), 'qcow2') as (_, pieces):
                    for _ in itertools.islice(pieces, 100):
                        pass
            except exceptions.LazyBlobError:
                pass


class TestPipes:
    def test_raw_bytes_come_by_pipe(self, made, raw, tmp_path):
        done = subprocess.run(
            f'cat {raw} | {" ".join(COMMAND)} import - --name piped',
            shell=True,
            capture_output=True,
        )
        assert done.returncode == 0, done.stderr
        assert content(made, 'piped', tmp_path) == DATA

    def test_other_formats_do_not(self, made, image):
        path = image('qcow2')
        for more, reason in (
            ('', 'looks like a qcow2'),
            ('--format qcow2', 'regular file'),
            ('--format auto', 'regular file'),
        ):
            done = subprocess.run(
                f'cat {path} | {" ".join(COMMAND)} import - --name x {more}',
                shell=True,
                capture_output=True,
                text=True,
            )
            assert done.returncode == 1
            assert reason in done.stderr
            assert done.stderr.count('\n') == 1

    def test_a_short_head_is_raw(self):
        for head in (b'', b'x', b'QFI', bytes(100)):
            assert inspection.detect(io.BytesIO(head), 'x') == 'raw'


class TestExport:
    @pytest.mark.parametrize('more', [[], ['-c']])
    @pytest.mark.parametrize('size', [len(DATA), len(DATA) + 512 * 3, 512])
    def test_a_qcow2_has_the_content_and_is_sound(
        self, made, tmp_path, size, more
    ):
        raw = tmp_path / 'content.raw'
        raw.write_bytes((DATA + random.Random(1).randbytes(5000))[:size])
        made('import', raw, '--name', 'x')
        path = tmp_path / 'out.qcow2'
        command = ['export', 'x', path, '--format', 'qcow2', *more]
        assert made(*command) == (0, '', '')
        qemu('compare', '-q', '-f', 'qcow2', '-F', 'raw', path, raw)
        qemu('check', '-q', path)
        assert sorted(each.name for each in tmp_path.iterdir()) == [
            'content.raw',
            'disk.raw',
            'out.qcow2',
            'repository',
        ]

    def test_a_compressed_one_is_small_and_holes_take_nothing(
        self, made, tmp_path
    ):
        raw = tmp_path / 'text.raw'
        raw.write_bytes(b'all the same ' * 300_000)
        os.truncate(raw, 1 << 40)
        for chunk_size in ('4096', '524288'):
            name = f'x{chunk_size}'
            made('import', raw, '--name', name, '--chunk-size', chunk_size)
            path = tmp_path / f'{name}.qcow2'
            command = ['export', name, path, '--format', 'qcow2', '-c']
            assert made(*command) == (0, '', '')
            assert path.stat().st_size < 1 << 20
            qemu('check', '-q', path)

    def test_what_fails_leaves_no_file(self, made, refused, tmp_path):
        out = tmp_path / 'out'
        for more in ([], ['--format', 'qcow2']):
            why = refused(made('export', 'debian', '/nix/x', *more))
            assert '/nix/x' in why
        lose_a_chunk(tmp_path)
        for more in ([], ['--format', 'qcow2'], ['--format', 'qcow2', '-c']):
            refused(made('export', 'debian', out, *more))
            assert not [p for p in tmp_path.iterdir() if 'out' in p.name]

    def test_what_is_no_file_is_not_replaced(self, made, refused):
        why = refused(made('export', 'debian', '/dev/null', '--force'))
        assert 'regular file' in why
        assert pathlib.Path('/dev/null').is_char_device()

    @pytest.mark.parametrize(
        ('arguments', 'reason'),
        [
            (['-', '--format', 'qcow2'], 'standard output'),
            (['-', '--json'], '--json'),
            (['x', '-c'], '--format qcow2'),
        ],
    )
    def test_what_contradicts_itself_is_refused(
        self, made, refused, arguments, reason
    ):
        assert reason in refused(made('export', 'debian', *arguments))

    def test_a_reader_that_goes_away_ends_it(self, made):
        done = subprocess.run(
            f'{" ".join(COMMAND)} export debian - | head -c 1000 | wc -c',
            shell=True,
            capture_output=True,
            text=True,
        )
        assert done.stdout.strip() == '1000'
        assert done.stderr == ''


def lose_a_chunk(folder):
    chunks = folder / 'repository' / 'chunks'
    max(
        (path for path in chunks.rglob('*') if path.is_file()),
        key=lambda path: path.stat().st_size,
    ).unlink()
