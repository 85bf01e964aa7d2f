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
"""What must be right in our own file and those of Nova and Glance.

Read as text: neither service has to be importable where the check runs.
"""

import configparser

from nova_lazyimage.agent import checks
from nova_lazyimage.conductor import signing


def read(paths: list[str]) -> configparser.RawConfigParser:
    """Files of oslo.config, later ones first in say.

    :raises OSError: one cannot be read
    """
    parser = configparser.RawConfigParser(
        strict=False,
        default_section='\0',
        allow_no_value=True,
        delimiters=('=',),
        comment_prefixes=('#', ';'),
        interpolation=None,
    )
    for path in paths:
        with open(path) as file:
            parser.read_file(file)
    return parser


def _truth(value: str | None, default: bool) -> bool:
    if value is None:
        return default
    return value.strip().lower() in ('1', 'true', 'on', 'yes')


def _get(
    parser: configparser.RawConfigParser, group: str, name: str
) -> str | None:
    value = parser.get(group, name, fallback=None)
    return value.strip() if value is not None else None


def of_nova(
    parser: configparser.RawConfigParser, mount_root: str, socket: str
) -> list[checks.Finding]:
    """What is wrong in nova.conf of nova-compute."""

    def option(
        group: str, name: str, wanted: str, good: bool, why: str
    ) -> checks.Finding:
        value = _get(parser, group, name)
        shown = 'not set' if value is None else f'"{value}"'
        return checks.judge(
            good,
            'nova.conf',
            f'[{group}] {name} is {shown}; set it to "{wanted}": {why}',
            option=f'[{group}] {name}',
        )

    def text(group: str, name: str, default: str = '') -> str:
        value = _get(parser, group, name)
        return default if value is None else value

    driver = text('DEFAULT', 'compute_driver')
    snapshot_format = text('libvirt', 'snapshot_image_format', 'raw')
    return [
        option(
            'DEFAULT',
            'compute_driver',
            'lazyimage.LazyLibvirtDriver',
            driver.endswith('lazyimage.LazyLibvirtDriver'),
            'otherwise no disk is lazy',
        ),
        option(
            'libvirt',
            'images_type',
            'raw',
            text('libvirt', 'images_type', 'default') == 'raw',
            'disks beside the lazy ones must be raw',
        ),
        option(
            'DEFAULT',
            'use_cow_images',
            'False',
            not _truth(_get(parser, 'DEFAULT', 'use_cow_images'), True),
            'disks beside the lazy ones must be raw',
        ),
        option(
            'DEFAULT',
            'force_raw_images',
            'True',
            _truth(_get(parser, 'DEFAULT', 'force_raw_images'), True),
            'images that are copied must become raw',
        ),
        option(
            'libvirt',
            'snapshot_image_format',
            'raw',
            snapshot_format == 'raw',
            'a snapshot in another format is a full copy',
        ),
        option(
            'service_user',
            'send_service_user_token',
            'True',
            _truth(
                _get(parser, 'service_user', 'send_service_user_token'), False
            ),
            'Glance takes a location only with a service token, and a '
            'snapshot fails without',
        ),
        option(
            'service_user',
            'auth_type',
            'password',
            bool(text('service_user', 'auth_type')),
            'the service token needs credentials of a user with the role '
            '"service"',
        ),
        option(
            'lazyimage',
            'mount_root',
            mount_root,
            text('lazyimage', 'mount_root', mount_root) == mount_root,
            'the agent mounts there',
        ),
        option(
            'lazyimage',
            'agent_socket',
            socket,
            text('lazyimage', 'agent_socket', socket) == socket,
            'the agent listens there',
        ),
    ]


def of_signatures(
    parser: configparser.RawConfigParser,
) -> list[checks.Finding]:
    """Whether answers of the conductor are signed and checked (contract 34).

    Warnings: until every host is told the keys nothing else can be.
    """
    found = []
    default = 'rpc://' if parser.has_section('repository') else ''
    catalog = _get(parser, 'repository', 'catalog') or default
    if catalog.startswith('rpc:'):
        text = _get(parser, 'conductor', 'public_keys') or ''
        keys = [key.strip() for key in text.split(',') if key.strip()]
        wrong = [key for key in keys if not signing.is_public_key(key)]
        option = '[conductor] public_keys'
        found.append(
            checks.judge(
                bool(keys),
                'lazyimage.conf',
                f'{option} is not set; set it to the conductors\' public '
                'keys: whatever answers on the message bus is believed',
                checks.Level.WARNING,
                option,
            )
        )
        found += [
            checks.judge(
                False,
                'lazyimage.conf',
                f'{option} has "{key[:60]}", which is no public key; write '
                'what "lazyimage-conductor --new-signing-key" has made',
                option=option,
            )
            for key in wrong
        ]
    if _get(parser, 'conductor', 'catalog'):
        option = '[conductor] signing_key'
        found.append(
            checks.judge(
                bool(_get(parser, 'conductor', 'signing_key')),
                'lazyimage.conf',
                f'{option} is not set; set it to a file made by '
                '"lazyimage-conductor --new-signing-key": whoever can speak '
                'on the message bus can answer in the conductor\'s name',
                checks.Level.WARNING,
                option,
            )
        )
    return found


def of_glance(
    parser: configparser.RawConfigParser, store_ids: list[str]
) -> list[checks.Finding]:
    """What is wrong in glance-api.conf (contract 32)."""
    backends = _backends(parser)
    found = [
        checks.judge(
            backends.get(store_id) == 'blob',
            'glance-api.conf',
            f'[DEFAULT] enabled_backends does not list "{store_id}:blob"; '
            'add it, or correct [lazyimage] glance_stores in nova.conf',
            option='[DEFAULT] enabled_backends',
        )
        for store_id in store_ids
    ]
    for name, default, wanted, why in (
        (
            'do_secure_hash',
            True,
            False,
            'Glance would read every snapshot in full',
        ),
        (
            'show_multiple_locations',
            False,
            False,
            'a tenant could copy the location of a public image into its own',
        ),
        (
            'show_image_direct_url',
            False,
            False,
            'a tenant could read the locations of public images',
        ),
    ):
        value = _truth(_get(parser, 'DEFAULT', name), default)
        found.append(
            checks.judge(
                value == wanted,
                'glance-api.conf',
                f'[DEFAULT] {name} is {value}; set it to {wanted}: {why}',
                option=f'[DEFAULT] {name}',
            )
        )
    name = 'blob_store_conductor_public_keys'
    found += [
        checks.judge(
            bool(_get(parser, store_id, name)),
            'glance-api.conf',
            f'[{store_id}] {name} is not set; set it to the conductors\' '
            'public keys: whatever answers on the message bus is believed',
            checks.Level.WARNING,
            f'[{store_id}] {name}',
        )
        for store_id in store_ids
        if (_get(parser, store_id, 'blob_store_catalog') or '').startswith(
            'rpc:'
        )
    ]
    roles = (
        _get(parser, 'keystone_authtoken', 'service_token_roles') or 'service'
    )
    found.append(
        checks.judge(
            'service' in [role.strip() for role in roles.split(',')],
            'glance-api.conf',
            f'[keystone_authtoken] service_token_roles is "{roles}"; add '
            '"service": Nova\'s service token carries that role',
            option='[keystone_authtoken] service_token_roles',
        )
    )
    found.append(
        checks.judge(
            _truth(
                _get(
                    parser,
                    'keystone_authtoken',
                    'service_token_roles_required',
                ),
                False,
            ),
            'glance-api.conf',
            '[keystone_authtoken] service_token_roles_required is not True; '
            'set it: otherwise any valid token passes for a service\'s',
            checks.Level.WARNING,
            '[keystone_authtoken] service_token_roles_required',
        )
    )
    return found


def blob_stores(parser: configparser.RawConfigParser) -> list[str]:
    """The stores of a glance-api that keep blobs; else the usual name."""
    found = [
        name for name, kind in _backends(parser).items() if kind == 'blob'
    ]
    return found or ['blob1']


def _backends(parser: configparser.RawConfigParser) -> dict[str, str]:
    text = _get(parser, 'DEFAULT', 'enabled_backends') or ''
    pairs = [entry.strip().partition(':') for entry in text.split(',')]
    return {name: kind for name, _, kind in pairs}
