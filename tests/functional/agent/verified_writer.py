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
"""Writes and reads a disk without end, and knows what it must read.

``verified_writer.py PATH REPORT [THREADS]`` runs until it is told to end by a
byte on its standard input (or its end), though not before it has done a few
operations, and then writes a report: operations, the longest ones, and
whatever went wrong. Standard library only, for it also runs in guests.

Each thread has blocks of its own, every so manieth one, so that neighbours in
a chunk belong to different threads. Every block that was written says which
it is and how often it was written; one that was not is the image's, as it was
at the first look. Reads and writes are O_DIRECT; some are two blocks, some
are followed by a flush, some discard.
"""

import collections
import ctypes
import json
import mmap
import os
import random
import struct
import sys
import threading
import time

BLOCK_BYTES = 4096
LONG_SECONDS = 0.02
# Of each thread: who is told to end early was a load all the same.
STEPS_MIN = 24
STAMP = struct.Struct('<4sIQQ')
PUNCH_KEEP_SIZE = 3

_LIBC = ctypes.CDLL(None, use_errno=True)


def punch(descriptor, offset, length):
    if _LIBC.fallocate(
        descriptor,
        PUNCH_KEEP_SIZE,
        ctypes.c_longlong(offset),
        ctypes.c_longlong(length),
    ):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class Writer(threading.Thread):
    """One thread and the blocks that are its own."""

    def __init__(self, path, index, count, stop, seed):
        super().__init__(name=f'writer-{index}')
        self.descriptor = os.open(path, os.O_RDWR | os.O_DIRECT)
        size = os.fstat(self.descriptor).st_size
        self.blocks = range(index, size // BLOCK_BYTES, count)
        self.stop = stop
        self.random = random.Random(seed)
        self.buffer = mmap.mmap(-1, BLOCK_BYTES)
        self.known = {}
        self.serial = 0
        self.counts = collections.Counter()
        self.long = []
        self.error = ''

    def run(self):
        try:
            steps = 0
            while steps < STEPS_MIN or not self.stop.is_set():
                self.step()
                steps += 1
            for block in list(self.known):
                self.check(block)
        except BaseException as exc:
            self.error = f'{self.name}: {type(exc).__name__}: {exc}'
            self.stop.set()

    def timed(self, what, call, *arguments):
        begun = time.time()
        clock = time.monotonic()
        found = call(*arguments)
        seconds = time.monotonic() - clock
        self.counts[what] += 1
        if seconds > LONG_SECONDS:
            self.long.append((begun, seconds, what))
        return found

    def step(self):
        block = self.random.choice(self.blocks)
        chance = self.random.random()
        if chance < 0.45:
            self.write(block)
        elif chance < 0.93:
            self.check(block)
        elif chance < 0.97:
            self.timed('flush', os.fdatasync, self.descriptor)
        else:
            offset = block * BLOCK_BYTES
            self.timed('discard', punch, self.descriptor, offset, BLOCK_BYTES)
            self.known[block] = bytes(BLOCK_BYTES)

    def write(self, block):
        self.serial += 1
        stamp = STAMP.pack(b'lazy', os.getpid(), block, self.serial)
        data = (stamp * (BLOCK_BYTES // len(stamp) + 1))[:BLOCK_BYTES]
        self.buffer[:] = data
        offset = block * BLOCK_BYTES
        done = self.timed(
            'write', os.pwrite, self.descriptor, self.buffer, offset
        )
        if done != BLOCK_BYTES:
            raise OSError(f'a short write of {done} bytes')
        self.known[block] = data

    def check(self, block):
        offset = block * BLOCK_BYTES
        done = self.timed(
            'read', os.preadv, self.descriptor, [self.buffer], offset
        )
        if done != BLOCK_BYTES:
            raise OSError(f'a short read of {done} bytes')
        found = self.buffer[:]
        if self.known.setdefault(block, found) != found:
            raise AssertionError(
                f'block {block}: read {STAMP.unpack_from(found)}, wanted '
                f'{STAMP.unpack_from(self.known[block])}'
            )


def main():
    path, report = sys.argv[1:3]
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 4
    seed = int(os.environ.get('WRITER_SEED', '1'))
    stop = threading.Event()
    writers = [
        Writer(path, index, count, stop, seed + index)
        for index in range(count)
    ]
    for writer in writers:
        writer.start()

    def wait():
        os.read(0, 1)
        stop.set()

    threading.Thread(target=wait, daemon=True).start()
    for writer in writers:
        writer.join()
    counts = collections.Counter()
    for writer in writers:
        counts += writer.counts
    with open(f'{report}.new', 'w') as file:
        json.dump(
            {
                'operations': dict(counts),
                'long': sorted(long for w in writers for long in w.long),
                'errors': [w.error for w in writers if w.error],
            },
            file,
        )
    os.replace(f'{report}.new', report)


if __name__ == '__main__':
    main()
