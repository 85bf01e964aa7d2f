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
"""Reads a block of many chunks of each file given, all at the same time.

A process of its own, for one whose read waits in FUSE does not die. The reads
are submitted as QEMU does it (``io_submit``, O_DIRECT), and none is waited
for: ``parked.py SIZE FIRST CHUNKS COUNT PATH...`` reads 4 KiB of COUNT chunks
of SIZE bytes of each file, beginning with another chunk in each, all of them
among the CHUNKS from FIRST on. It prints lines of JSON:
when all are submitted, the chunks by path; then for every file whose reads
have ended its path, the results, and a digest of the bytes in that order.
"""

import ctypes
import hashlib
import json
import mmap
import os
import struct
import sys

BLOCK = 4096
SETUP, GETEVENTS, SUBMIT = 206, 208, 209  # x86-64
EVENT = struct.Struct('<QQqq')

libc = ctypes.CDLL(None, use_errno=True)


def call(number, *arguments):
    done = libc.syscall(ctypes.c_long(number), *arguments)
    if done < 0:
        raise OSError(ctypes.get_errno(), f'system call {number}')
    return done


def main():
    size, first, chunks, count = map(int, sys.argv[1:5])
    paths = sys.argv[5:]
    total = len(paths) * count
    memory = mmap.mmap(-1, total * BLOCK)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    context = ctypes.c_ulong(0)
    call(SETUP, ctypes.c_uint(total), ctypes.byref(context))
    files = [os.open(path, os.O_RDONLY | os.O_DIRECT) for path in paths]
    blocks = (ctypes.c_char * (64 * total))()
    pointers = (ctypes.c_void_p * total)()
    asked = {}
    for number, descriptor in enumerate(files):
        # Another part of the disk for each file, all of it for all.
        asked[paths[number]] = [
            first + (number * 2 + n) % chunks for n in range(count)
        ]
        for n, chunk in enumerate(asked[paths[number]]):
            at = number * count + n
            struct.pack_into(
                '<QIIHhIQQqQII',
                blocks,
                64 * at,
                *(at, 0, 0, 0, 0, descriptor),
                *(start + at * BLOCK, BLOCK, chunk * size, 0, 0, 0),
            )
            pointers[at] = ctypes.addressof(blocks) + 64 * at
    submitted = 0
    while submitted < total:
        submitted += call(
            SUBMIT,
            context,
            ctypes.c_long(total - submitted),
            ctypes.byref(pointers, 8 * submitted),
        )
    print(json.dumps(asked), flush=True)
    results = [[None] * count for _ in paths]
    events = (ctypes.c_char * (EVENT.size * 64))()
    left = total
    while left:
        got = call(
            GETEVENTS,
            context,
            ctypes.c_long(1),
            ctypes.c_long(64),
            events,
            ctypes.c_void_p(None),
        )
        left -= got
        for n in range(got):
            at, _, result, _ = EVENT.unpack_from(events, n * EVENT.size)
            number, n = divmod(at, count)
            results[number][n] = result
            if None not in results[number]:
                at = number * count * BLOCK
                data = memory[at : at + count * BLOCK]
                os.close(files[number])
                answer = {
                    'path': paths[number],
                    'results': results[number],
                    'digest': hashlib.sha256(data).hexdigest(),
                }
                print(json.dumps(answer), flush=True)
    sys.stdout.close()
    # The memory is exported to ctypes, so no orderly end.
    os._exit(0)


if __name__ == '__main__':
    main()
