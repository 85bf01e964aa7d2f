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
"""Where the all-in-one keeps its chunks: its engine.

``file`` is a folder; ``s3`` is a bucket of a real object gateway, with a
second conductor before the catalog. An instance keeps the one it began with:
its images lie there.
"""

from __future__ import annotations

import json
import pathlib

from cloud import ceph
from cloud import settings
from cloud.process import Service
from cloud.process import ServiceError

RECORD = pathlib.Path('/var/lib/lazyimage/engine')
FILES = pathlib.Path('/var/lib/lazyimage/repository/chunks')
FOLDER = pathlib.Path('/var/lib/ceph/allinone')
BUCKET = 'lazyimage'
USER = ('lazyimage', 'lazyimage-key', settings.PASSWORD)

CEPH = ceph.Ceph(FOLDER)


def current() -> str:
    """The engine of this instance."""
    try:
        return RECORD.read_text(encoding='ascii')
    except FileNotFoundError:
        return 'file'


def choose(name: str | None) -> None:
    """Begin with an engine; None: go on with what there is.

    :raises ServiceError: the instance has another one
    """
    if name is None:
        return
    if RECORD.exists() and current() != name:
        raise ServiceError(
            f'this all-in-one keeps its chunks in engine "{current()}"; go '
            f'on with ENGINE={current()}, or delete it with make demo-clean'
        )
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(name, encoding='ascii')


def options(prefix: str = '') -> dict[str, str]:
    """What configuration files say of the chunk store."""
    if current() == 'file':
        chosen = {'chunk_store': FILES.as_uri()}
    else:
        chosen = {
            'chunk_store': f's3://{BUCKET}/chunks',
            's3_endpoint': CEPH.endpoint,
            's3_access_key_id': USER[1],
            's3_secret_access_key': USER[2],
        }
    return {prefix + name: value for name, value in chosen.items()}


def services() -> list[Service]:
    """What runs beside the cloud for it."""
    return CEPH.services() if current() == 's3' else []


def prepare() -> None:
    """The gateway's user and bucket; repeating is harmless."""
    if current() == 's3':
        CEPH.add_user(*USER)
        CEPH.add_bucket(BUCKET, *USER[1:])


def stored_bytes() -> int:
    """What the chunks take."""
    if current() == 'file':
        return sum(
            path.stat().st_size for path in FILES.rglob('*') if path.is_file()
        )
    found = CEPH.admin('bucket', 'stats', f'--bucket={BUCKET}')
    usage = json.loads(found)['usage']
    return int(usage.get('rgw.main', {}).get('size', 0))
