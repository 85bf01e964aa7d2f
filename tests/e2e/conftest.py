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
"""A real cloud for the tests, and who watches it.

The all-in-one's lazy flavour comes up once for all tests. It stays up if it
was up already, or with ``LAZYIMAGE_E2E_KEEP`` set. Time-outs of our parts are
short, so that what is absent is told within seconds.

*Logs.* An error or a traceback in a log of nova-compute, the agent, the
conductor or Glance fails the test during which it was written, as does a
warning of our loggers, unless the test expects it::

    @pytest.mark.expect_errors('The agent cannot do its work')

After a failure all logs are kept in ``/var/cache/lazyimage/logs/e2e``, which
is ``shared/logs/e2e`` of the cache folder outside the root.
"""

import contextlib
import os
import pathlib
import shutil
import sys

import pytest

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE.parents[1] / 'tools/allinone'), str(HERE)]

import parts  # noqa: E402
from cloud import bringup  # noqa: E402
from cloud import configuration  # noqa: E402
from cloud import guest  # noqa: E402
from cloud import settings  # noqa: E402
from cloud import tenant as tenants  # noqa: E402

KEPT_LOGS = settings.SHARED / 'logs/e2e'
ORDER = (
    'test_boot_and_snapshot',
    'test_images',
    'test_quiesce',
    'test_lifecycle',
    'test_faults',
    'test_takeover',
    'test_moves',
    'test_nothing_left',
)
ADDED = {
    '/etc/nova/nova-compute.conf': '[DEFAULT]\n'
    'default_ephemeral_format = ext4\n'
    '[glance]\n'
    'num_retries = 0\n'
    '[lazyimage]\n'
    'agent_timeout_seconds = 6\n'
    'snapshot_timeout_seconds = 30\n',
    '/etc/lazyimage/lazyimage.conf': '[conductor]\ntimeout_seconds = 6\n',
}


def pytest_configure(config):
    config.addinivalue_line(
        'markers', 'expect_errors(pattern, ...): logs may say so'
    )


def pytest_collection_modifyitems(items):
    """What looks at the remains comes last."""

    def place(item):
        name = item.path.stem
        return ORDER.index(name) if name in ORDER else -1

    ours = [item for item in items if HERE in item.path.parents]
    others = [item for item in items if HERE not in item.path.parents]
    items[:] = others + sorted(ours, key=place)


@contextlib.contextmanager
def short_timeouts():
    """The configuration is written with our additions."""
    write = configuration.write

    def writing(path, text, *arguments, **keywords):
        text += ADDED.get(str(path), '')
        write(path, text, *arguments, **keywords)

    configuration.write = writing
    try:
        yield
    finally:
        configuration.write = write


@pytest.fixture(scope='session')
def logs():
    """What the services say, from before they start."""
    return parts.Logs()


@pytest.fixture(scope='session')
def cloud(request, logs):
    """The services; ``cloud['lazyimage-agent'].kill()`` and the like."""
    if not settings.OPENSTACK.exists():
        pytest.fail(
            'the end-to-end tests run in the all-in-one\'s root: make test '
            'STAGES=e2e',
            pytrace=False,
        )
    cloud = bringup.Cloud('lazy')
    was_up = cloud['nova-compute'].pid() is not None
    if not was_up:
        with short_timeouts():
            cloud.up()
    yield cloud
    if request.session.testsfailed:
        keep_logs()
    if not was_up and not os.environ.get('LAZYIMAGE_E2E_KEEP'):
        cloud.down()


def keep_logs():
    shutil.rmtree(KEPT_LOGS, ignore_errors=True)
    KEPT_LOGS.mkdir(parents=True)
    for source in (settings.LOG, pathlib.Path('/var/log/libvirt/qemu')):
        shutil.copytree(source, KEPT_LOGS / source.name)
    print(f'\nThe logs are kept in {KEPT_LOGS}')


@pytest.fixture(autouse=True)
def nothing_unexpected(request, logs):
    """Errors in the logs fail the test that they belong to."""
    patterns = [
        pattern
        for mark in request.node.iter_markers('expect_errors')
        for pattern in mark.args
    ]
    logs.expect(patterns)
    yield
    found = logs.problems()
    if found:
        text = '\n\n'.join(found)
        pytest.fail(f'unexpected in the logs:\n{text}', pytrace=False)


@pytest.fixture(scope='session')
def admin(cloud):
    return tenants.Tenant('admin')


@pytest.fixture(scope='session')
def demo(cloud, admin):
    """The ordinary user whom the tests are about."""
    parts.need_flavor(
        admin,
        {
            'name': 'disks',
            'ram': 192,
            'vcpus': 1,
            'disk': 1,
            'OS-FLV-EXT-DATA:ephemeral': 1,
            'swap': 64,
        },
    )
    return tenants.Tenant('demo')


@pytest.fixture(scope='session')
def other(cloud):
    """A user of another project."""
    return tenants.Tenant('other')


@pytest.fixture(scope='session')
def guest_image():
    """The file that the images are made from."""
    return guest.image('small')


@pytest.fixture(scope='session')
def base(demo, guest_image):
    """The image that stays to the end."""
    return demo.upload(guest_image, 'base')


@pytest.fixture(scope='session')
def lively(demo, base):
    """A server that goes through most; ephemeral and swap disks beside."""
    server = demo.boot('lively', base['id'], 'disks', parts.COUNT_DISKS)
    return parts.Guest(demo, server)
