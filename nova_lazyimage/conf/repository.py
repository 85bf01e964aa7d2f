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
"""``[repository]``: where the chunks and the catalog are."""

from oslo_config import cfg

from lazyblob import conf as store_conf

GROUP = cfg.OptGroup('repository', title='The blob repository')

OPTIONS = [
    cfg.StrOpt(
        'chunk_store',
        default='file:///var/lib/lazyimage/repository/chunks',
        help="""
URL of the chunk store, which every agent, glance-api and the commands reach.
``file:///path`` is a folder that all of them have mounted, ``file:///a,/b``
are folders on several disks, ``s3://bucket/prefix`` is a bucket of an object
gateway, which the options ``s3_*`` tell of.

Related options: ``[repository] catalog``, ``[repository] s3_endpoint``.
""",
    ),
    cfg.StrOpt(
        'catalog',
        default='rpc://',
        secret=True,
        help="""
URL of the catalog. ``rpc://`` asks the conductor over ``[DEFAULT]
transport_url``: compute nodes hold no database credentials.
``sqlite:////path`` is for one machine without a conductor. The conductor
itself reads ``[conductor] catalog``.

Related options: ``[DEFAULT] transport_url``, ``[conductor] catalog``.
""",
    ),
    *store_conf.s3_options(),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Make ``conf.repository`` readable."""
    conf.register_group(GROUP)
    conf.register_opts(OPTIONS, group=GROUP)


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """For the generator of the sample file."""
    return [(GROUP, OPTIONS)]
