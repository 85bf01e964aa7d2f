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
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Make ``conf.conductor`` readable."""
    conf.register_group(GROUP)
    conf.register_opts([*OPTIONS, *CLIENT_OPTIONS], group=GROUP)


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """For the generator of the sample file."""
    return [(GROUP, [*OPTIONS, *CLIENT_OPTIONS])]
