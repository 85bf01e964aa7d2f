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
"""``[agent]``: the daemon that serves the mirrors of one host."""

import socket

from oslo_config import cfg

GROUP = cfg.OptGroup('agent', title='The agent of a compute node')

GIB = 1024**3

OPTIONS = [
    cfg.StrOpt(
        'host',
        default=socket.gethostname(),
        sample_default='<host name>',
        help="""
Name of this host: the same as ``[DEFAULT] host`` in its nova.conf. Sessions
of writers carry it in the catalog.
""",
    ),
    cfg.StrOpt(
        'user',
        default='lazyimage',
        help="""
The user as whom the agent serves. Started as root it mounts first and then
becomes this user for good; started as anybody else it stays who it is.
""",
    ),
    cfg.StrOpt(
        'state_directory',
        default='/var/lib/lazyimage',
        help="""
Folder of deltas, chunk cache, journal, manifests and tombstones. A local file
system: one agent owns it, and a second one refuses to start.
""",
    ),
    cfg.StrOpt(
        'run_directory',
        default='/run/lazyimage',
        help="""
Folder of the socket and the live maps. A tmpfs: what lies there outlives the
agent and not the host. Of two agents that are told to use one folder the
second refuses to start; so it is with ``mount_root`` and ``socket``.
""",
    ),
    cfg.StrOpt(
        'mount_root',
        default='/var/lib/lazyimage/mnt',
        help="""
Where the mirrors are mounted: ``<mount_root>/<instance uuid>/<disk name>``.

Related options: ``[lazyimage] mount_root`` in nova.conf, the same path.
""",
    ),
    cfg.StrOpt(
        'socket',
        default='/run/lazyimage/agent.sock',
        help="""
Unix socket of the HTTP interface, mode 0660.

Related options: ``[lazyimage] agent_socket`` in nova.conf, the same path.
""",
    ),
    cfg.StrOpt(
        'socket_group',
        default='nova',
        help="""
Group whose members may use the socket, beside root and the agent's own user,
and may leave tombstones in ``<state_directory>/released``: that of
nova-compute. Empty: nobody else.
""",
    ),
    cfg.StrOpt(
        'metrics_address',
        default='',
        help="""
``host:port`` where Prometheus reads ``/metrics`` without the socket. Empty:
on the socket only. The figures name servers: choose an address of the
management network.
""",
    ),
    cfg.IntOpt(
        'cache_bytes',
        default=10 * GIB,
        min=64 * 1024**2,
        help="""
Size bound of the host's chunk cache, in bytes, of all chunk sizes together.
Raise it where many images are booted on one host; a lower value takes effect
at the next start.

Related options: ``cache_directory``, ``cache_reserve_bytes``.
""",
    ),
    cfg.StrOpt(
        'cache_directory',
        default='',
        help="""
Folder of the chunk cache, on a local file system that can punch holes. Empty:
``<state_directory>/cache``. On a disk of its own the cache takes no room from
the deltas, and gives them none when they have none.
""",
    ),
    cfg.IntOpt(
        'cache_reserve_bytes',
        default=GIB,
        min=0,
        help="""
Bytes that the chunk cache leaves free on its file system. When less is free,
whoever took it, chunks are dropped within a second until there is as much
again, whatever ``cache_bytes`` allows.

Related options: ``on_full``, what happens to a write when even an empty cache
leaves no room.
""",
    ),
    cfg.IntOpt(
        'cache_scrub_bytes_per_second',
        default=1024**2,
        min=0,
        help="""
How fast cached chunks are read and checked in the background, to find what
rots on the disk before a guest reads it. At the default a cache of 10 GiB is
gone through in three hours. 0: never.
""",
    ),
    cfg.IntOpt(
        'engine_threads',
        default=0,
        min=0,
        max=256,
        help="""
Threads that serve guests' requests; they never wait for the network.
0: chosen by the number of processors.
""",
    ),
    cfg.IntOpt(
        'fetch_threads',
        default=8,
        min=1,
        max=256,
        help="""
Chunks that are fetched at the same time. Raise it for a store of high
latency.

Related options: ``guest_fetch_threads``, which of these are reserved.
""",
    ),
    cfg.IntOpt(
        'guest_fetch_threads',
        default=4,
        min=1,
        max=256,
        help="""
How many of ``fetch_threads`` fetch only what a guest waits for, so that
background work never holds one up. At most ``fetch_threads``.
""",
    ),
    cfg.IntOpt(
        'upload_threads',
        default=2,
        min=1,
        max=64,
        help="""
Chunks that COMMITs of this host upload at the same time. Each takes a core
while it compresses, at a low priority. Raise it for a store of high latency,
as ``s3://`` is: there each mostly waits.

Related options: ``upload_share_percent``, ``upload_bytes_per_second``.
""",
    ),
    cfg.IntOpt(
        'upload_share_percent',
        default=15,
        min=1,
        max=100,
        help="""
How much of its time each of ``upload_threads`` works while guests of this
host read and write; it pauses for the rest. Raise it where COMMITs take too
long, lower it where guests feel them. While guests are idle it works all the
time, as it does with 100.

Related options: ``upload_threads``, ``upload_bytes_per_second``.
""",
    ),
    cfg.IntOpt(
        'upload_bytes_per_second',
        default=0,
        min=0,
        help="""
How much of their disks all COMMITs of this host together read, compress and
upload a second, in bytes before compression. 0: as much as
``upload_threads`` can. Lower it where COMMITs take too much of a disk or a
network that guests share; a COMMIT takes longer then, and guests pay for
copies before their writes as long as it runs.

Related options: ``upload_threads``, ``upload_share_percent``.
""",
    ),
    cfg.IntOpt(
        'fetch_timeout_seconds',
        default=0,
        min=0,
        help="""
How long a read waits for a store that does not answer before it ends with
EIO. 0: for ever, as a disk path that is down does. Guests rarely survive an
EIO of their root disk.
""",
    ),
    cfg.IntOpt(
        'store_alarm_seconds',
        default=5,
        min=1,
        help="""
A store that refuses is away at once; one that does not answer is taken to be
away when no fetch has ended for so long and one has been under way as long.
""",
    ),
    cfg.FloatOpt(
        'slow_request_seconds',
        default=1.0,
        min=0.0,
        help="""
Requests of guests that take at least so long are logged, with their disk,
chunk, source and time, a few dozen within ten seconds at most, and counted.
Below 0.01 the clock that finds them is too coarse. 0: none is.
""",
    ),
    cfg.StrOpt(
        'on_full',
        default='hold',
        choices=[
            ('hold', 'hold the write, raise an alarm, go on with new space'),
            ('error', 'answer ENOSPC'),
        ],
        help="""
What happens to a guest's write when the state directory has no room left.
""",
    ),
]


def register_opts(conf: cfg.ConfigOpts) -> None:
    """Make ``conf.agent`` readable."""
    conf.register_group(GROUP)
    conf.register_opts(OPTIONS, group=GROUP)


def list_opts() -> list[tuple[cfg.OptGroup, list[cfg.Opt]]]:
    """For the generator of the sample file."""
    return [(GROUP, OPTIONS)]
