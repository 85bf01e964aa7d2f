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
"""One of Glance's stores in a process of its own, as glance-api has it.

``python -m bench.storing file|blob FOLDER upload|download IMAGE COUNT [sync]``
brings up the store by glance_store's own configuration, uploads a file so many
times at once (and syncs) or downloads what was uploaded last, and prints as
JSON how long that took, the processor time, and the process's memory before
and at its peak.

A download goes into a socket that another process drains, as a response does.
"""

import concurrent.futures
import json
import logging
import os
import pathlib
import resource
import socket
import subprocess
import sys
import time
import types
import uuid
from typing import Any

import glance_store
from glance_store import location as locations
from oslo_config import cfg

CONTEXT = types.SimpleNamespace(project_id='bench', is_admin=True)
STORES = ('file', 'blob')
LAST = 'last.json'


def options(kind: str, folder: pathlib.Path) -> dict[str, str]:
    """What an operator writes into the store's group."""
    if kind == 'file':
        return {'filesystem_store_datadir': str(folder / 'images')}
    from lazyblob import repository

    chunk_store, catalog = repository.urls_of(folder.as_uri())
    return {
        'blob_store_chunk_store': chunk_store,
        'blob_store_catalog': catalog,
    }


def open_store(kind: str, folder: pathlib.Path) -> Any:
    conf = cfg.CONF
    conf([], default_config_files=[])
    conf.register_opt(cfg.DictOpt('enabled_backends'))
    conf.set_override('enabled_backends', {'bench': kind})
    glance_store.register_store_opts(conf)
    conf.set_override('default_backend', 'bench', group='glance_store')
    for name, value in options(kind, folder).items():
        conf.set_override(name, value, group='bench')
    glance_store.create_multi_stores(conf)
    return glance_store.get_store_from_store_identifier('bench')


def kib(field: str) -> int:
    """Of this process, as the kernel says."""
    for line in pathlib.Path('/proc/self/status').read_text().splitlines():
        name, _, value = line.partition(':')
        if name == field:
            return int(value.split()[0])
    raise LookupError(field)


def upload(store: Any, image: pathlib.Path) -> str:
    with image.open('rb') as source:
        url: str = store.add(
            str(uuid.uuid4()),
            source,
            image.stat().st_size,
            'sha512',
            context=CONTEXT,
        )[0]
    return url


def download(store: Any, url: str) -> int:
    location = locations.get_location_from_uri_and_backend(
        url, 'bench', conf=cfg.CONF
    )
    ours, theirs = socket.socketpair()
    with theirs:
        drain = subprocess.Popen(
            ['cat'], stdin=theirs.fileno(), stdout=subprocess.DEVNULL
        )
    size_bytes = 0
    with ours:
        for piece in store.get(location, context=CONTEXT)[0]:
            ours.sendall(piece)
            size_bytes += len(piece)
    if drain.wait():
        raise RuntimeError('nobody drained the download')
    return size_bytes


def main(arguments: list[str]) -> None:
    kind, action = arguments[0], arguments[2]
    folder, image = pathlib.Path(arguments[1]), pathlib.Path(arguments[3])
    count = int(arguments[4])
    logging.basicConfig(level=logging.WARNING)
    store = open_store(kind, folder)
    # It connects when it is first used; that is no upload's.
    assert store.url_prefix or kind == 'file'
    last = folder / LAST
    with open('/proc/self/clear_refs', 'w', encoding='ascii') as refs:
        refs.write('5')
    before_kib = kib('VmRSS')
    begun = time.monotonic()
    if action == 'upload':
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            urls = list(pool.map(upload, [store] * count, [image] * count))
        if arguments[5:] == ['sync']:
            os.sync()
        last.write_text(json.dumps(urls))
    else:
        urls = json.loads(last.read_text())
        for url in urls[:count]:
            if download(store, url) != image.stat().st_size:
                raise RuntimeError('a download has another size')
    seconds = time.monotonic() - begun
    used = resource.getrusage(resource.RUSAGE_SELF)
    json.dump(
        {
            'seconds': seconds,
            'cpu_seconds': used.ru_utime + used.ru_stime,
            'before_kib': before_kib,
            'peak_kib': kib('VmHWM'),
        },
        sys.stdout,
    )
    sys.stdout.flush()
    # Not to wait for whatever a store may have running.
    os._exit(0)


if __name__ == '__main__':
    main(sys.argv[1:])
