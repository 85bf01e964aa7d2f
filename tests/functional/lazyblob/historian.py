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
"""One writer of a random history, in a process of its own.

Writes down what it is about to do before it does it, and what came of it
after, a line of JSON each: the test that started it judges from these lines.
Ids are never used twice, so that a line names one thing for ever.
"""

import contextlib
import json
import os
import pathlib
import random
import sys
import time

from lazyblob import exceptions
from lazyblob import repository

CHUNK = 4096
CHUNKS = 12
# On a busy machine, too, a run is to prove something.
STEPS_MIN = 45
#: What others may have done meanwhile.
PASSED_BY = (exceptions.NotFound, exceptions.Conflict, exceptions.Forbidden)


def content(names):
    return b''.join(map(chunk, names))


def chunk(name):
    if name is None:
        return bytes(CHUNK)
    return random.Random(name).randbytes(CHUNK)


class Historian:
    def __init__(self, urls, journal, seed):
        self.repo = repository.connect(*urls)
        self.journal = os.open(
            journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644
        )
        self.folder = pathlib.Path(journal).parent
        self.chance = random.Random(seed)
        self.count = 0

    def note(self, **fields):
        os.write(self.journal, json.dumps(fields).encode() + b'\n')

    def new_id(self):
        self.count += 1
        return f'{os.getpid()}-{time.time_ns()}-{self.count}'

    def step(self):
        act = self.chance.choices(
            ['create', 'clone', 'commit', 'read', 'verify', 'delete', 'drop'],
            [2, 3, 8, 4, 2, 2, 2],
        )[0]
        blobs = self.repo.catalog.list_blobs()
        operation = self.new_id()
        try:
            if act == 'create' or len(blobs) < 3:
                outcome = self.create(operation)
            else:
                # All of them at the same few, so that they meet.
                few = {'delete': blobs[:1], 'commit': blobs[-4:]}
                blob = self.chance.choice(few.get(act, blobs))
                outcome = getattr(self, act)(operation, blob)
        except PASSED_BY as exc:
            self.note(id=operation, end=type(exc).__name__)
        else:
            self.note(id=operation, end='done', **(outcome or {}))

    def choose(self, blob):
        versions = self.repo.catalog.versions(blob.id)
        if not versions:
            raise exceptions.NotFound('its creator has not published it yet')
        return self.chance.choice(versions)

    def create(self, operation):
        names = [
            self.chance.choice([None, self.chance.randrange(50)])
            for _ in range(CHUNKS)
        ]
        self.note(id=operation, act='create', blob=operation, names=names)
        # Another may find it and delete it before it has its version.
        version = self.repo.create(
            [content(names)], blob_id=operation, chunk_size_bytes=CHUNK
        )
        return {'number': version.number}

    def clone(self, operation, blob):
        version = self.repo.catalog.version(blob.id)
        self.note(
            id=operation,
            act='clone',
            blob=operation,
            source=[blob.id, version.number],
        )
        self.repo.clone(blob.id, version.number, blob_id=operation)

    def commit(self, operation, blob):
        parent = self.repo.catalog.version(blob.id)
        changes = {
            self.chance.randrange(CHUNKS): self.chance.randrange(1 << 30)
            for _ in range(self.chance.randrange(1, 4))
        }
        self.note(
            id=operation,
            act='commit',
            blob=blob.id,
            parent=parent.number,
            changes=[[index, name] for index, name in changes.items()],
        )
        manifest = self.repo.manifest(parent.root)
        with self.repo.commit(
            blob, manifest, size_bytes=parent.size_bytes
        ) as target:
            for index, name in changes.items():
                target.put(index, chunk(name))
            version = target.publish(
                blob.id,
                epoch=blob.epoch,
                parent=parent.number,
                commit_id=operation,
                root=target.finish(),
                size_bytes=parent.size_bytes,
            )
        return {'number': version.number}

    def read(self, operation, blob):
        version = self.choose(blob)
        self.note(id=operation, act='read')
        # By its root: what exists when it is opened is read to its end.
        data = b''.join(self.repo.reader(version.root).stream())
        return {
            'blob': blob.id,
            'number': version.number,
            'first': data[: CHUNK * CHUNKS].hex()[:64],
            'size': len(data),
        }

    def verify(self, operation, blob):
        number = self.choose(blob).number
        self.note(id=operation, act='verify')
        report = self.repo.verify(blob.id, number)
        return {'is_sound': report.is_sound}

    def delete(self, operation, blob):
        self.note(id=operation, act='delete', blob=blob.id)
        self.repo.delete(blob.id)

    def drop(self, operation, blob):
        number = self.choose(blob).number
        self.note(id=operation, act='drop', blob=blob.id, number=number)
        self.repo.catalog.delete_version(blob.id, number)


def main():
    chunk_store, catalog, journal, seed, seconds = sys.argv[1:]
    historian = Historian((chunk_store, catalog), journal, seed)
    until = time.monotonic() + float(seconds)
    steps = 0
    while time.monotonic() < until or steps < STEPS_MIN:
        historian.step()
        steps += 1
    with contextlib.closing(historian.repo):
        historian.note(id='', end='finished')


if __name__ == '__main__':
    main()
