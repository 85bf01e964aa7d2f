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
"""``[conductor]``: the service that owns the catalog."""

from oslo_config import cfg

GROUP = cfg.OptGroup('conductor', title='The conductor')

OPTIONS = [
    cfg.StrOpt(
        'catalog',
        default='',
        secret=True,
        help="""
URL of the catalog's database, for the conductor alone:
``mysql+pymysql://lazyimage:password@host/lazyimage`` or ``sqlite:////path``.
Made by ``lazyimage init``. It must not be ``rpc://``, which is the conductor.

Related options: ``[repository] catalog``, which agents use.
""",
    ),
    cfg.StrOpt(
        'signing_key',
        default='',
        help="""
File of the private key by which this conductor signs its answers, made by
``lazyimage-conductor --new-signing-key FILE``; its user must be able to read
it, and nobody on a compute node. Empty: answers are not signed, and whoever
can speak on the message bus can answer in the conductor's name. Conductors
may share one key or have one each.

Related options: ``public_keys``, which agents and glance-api need; set it
when every conductor signs.
""",
    ),
    cfg.IntOpt(
        'threads',
        default=16,
        min=1,
        max=1024,
        help="""
Requests that one conductor answers at the same time. Start more conductors to
use more processors: they need not know of one another.
""",
    ),
]

# What those who ask the conductor need to know of it.
CLIENT_OPTIONS = [
    cfg.IntOpt(
        'timeout_seconds',
        default=30,
        min=1,
        help="""
How long an agent waits for the conductor's answer before it says that the
catalog is away.
""",
    ),
    cfg.ListOpt(
        'public_keys',
        default=[],
        help="""
The conductors' public keys, separated by commas: what
``lazyimage-conductor --new-signing-key FILE`` has put into ``FILE.pub``. An
agent takes only answers that one of them has signed, so that a compute node
that has fallen cannot make another one boot from its bytes. To change a key,
add the new one here on every host, then give it to the conductors, then
remove the old one. Empty: every answer is believed.

Related options: ``signing_key``, the conductors' own.
``blob_store_conductor_public_keys`` is the same for glance-api.
""",
    ),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Make ``conf.conductor`` readable."""
    conf.register_group(GROUP)
    conf.register_opts([*OPTIONS, *CLIENT_OPTIONS], group=GROUP)


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """For the generator of the sample file."""
    return [(GROUP, [*OPTIONS, *CLIENT_OPTIONS])]
