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
"""The mirror engine as Python sees it (built from ``mirror/``).

Every call lets go of the GIL while it works or waits. Failures of the
operating system are OSError with errno and path; a wrong argument is
ValueError; an object that does not match its digest is ChunkCorrupt.
"""

from collections.abc import Sequence
from typing import Any, TypedDict, final

class ChunkCorrupt(ValueError): ...

class Fetch(TypedDict):
    digest: bytes
    priority: int  # 0 a guest waits; higher may wait longer
    chunk_size_bytes: int

class Latencies(TypedDict):
    """A histogram of how long requests took.

    Of the requests that were answered at once one in 16 is timed, and counts
    as 16; of the others, and of flushes, each is.
    """

    operation: str  # read | write | flush
    source: str  # delta (or a hole) | cache | fetch
    counts: list[int]  # up to each bound, each once; the last took longer
    microseconds: int  # of all together

class Wait(TypedDict):
    operation: str
    offset: int
    bytes: int
    chunk: int  # the index of the chunk that it begins in
    reason: str  # chunks | gate | room | flush
    milliseconds: int

LATENCY_BOUNDS_MICROSECONDS: tuple[int, ...]

@final
class Engine:
    """The mirrors, the chunk cache and the FUSE session of one host."""

    def __new__(
        cls,
        *,
        cache_directory: str,
        cache_bytes: int,
        session_id: str,
        threads: int = ...,
        fetch_timeout_seconds: float = ...,
        on_full: str = ...,
        slow_request_seconds: float = ...,
        cache_reserve_bytes: int = ...,
        scrub_bytes_per_second: int = ...,
    ) -> Engine:
        """Open (or make) the chunk cache; nothing is served yet.

        :param threads: requests that are executed at the same time
        :param fetch_timeout_seconds: how long a guest waits for a chunk
            before EIO; 0: for ever
        :param on_full: ``hold`` (a write waits for room) or ``error``
        :param slow_request_seconds: what takes at least this long is told as
            an event ``slow``; 0: none
        :param cache_reserve_bytes: what the cache leaves free of its file
            system
        :param scrub_bytes_per_second: how fast cached chunks are checked; 0:
            not at all
        """
    def mount(self, path: str) -> None:
        """Mount the FUSE door and serve it (CAP_SYS_ADMIN, or fusermount3).

        A mount of ours there whose server is dead is taken away first.

        :raises OSError: EBUSY: another process serves it; TimeoutError: it
            waits for whoever keeps its descriptor
        """
    def unmount(self) -> None:
        """Take the mount away; what is under way in it fails in its caller."""
    def session_descriptors(self) -> tuple[int, int]:
        """/dev/fuse and the session's memory, for who outlives this process.

        Both are the engine's and close-on-exec: duplicate them (SCM_RIGHTS,
        the service manager's store). With them a successor resumes.

        :raises RuntimeError: not mounted
        """
    def resume(self, at: str, device_fd: int, memory_fd: int) -> None:
        """Take over the session that a dead or stopped engine left.

        Nothing is served before :meth:`serve`; meanwhile the disks are
        attached as ever. One that the session knew keeps its node id, and the
        owner and mode in the session's memory, not those passed to
        :meth:`attach`; if its live map is gone and its disk map is not clean,
        attaching it raises OSError ESTALE: abandon the session.

        :param at: where it is mounted
        :param device_fd: the engine's from now on, unless this raises
        :param memory_fd: the same
        :raises ValueError: no session memory of this boot and session id in a
            format known here, or a torn one
        :raises OSError: ENOTCONN: the mount's connection has ended; EBUSY:
            another process still serves it after a minute
        """
    def serve(self) -> None:
        """Finish what the predecessor left, then serve; after ``resume``.

        A disk of the session that is not attached by now fails requests with
        EIO until it is. Without effect when it is served already.
        """
    def abandon_session(self) -> None:
        """End the session: its requests fail in their callers, the mount goes.

        The mirrors attached so far are closed in order. ``mount`` makes a new
        session, on which everything must be attached anew.
        """
    def hand_over(self) -> None:
        """Stop for a successor: the mount and what waits in it stay.

        Flushes every mirror; then guests wait: takes no more requests,
        finishes those that are not parked, lets go of the files. Neither this
        engine's end nor ``unmount`` touches the mount afterwards. Live maps
        stay. A flush that failed raises when all of that is done.
        """
    def attach(
        self,
        *,
        instance: str,
        disk: str,
        attach_id: str,
        directory: str,
        live_map: str,
        size_bytes: int,
        chunk_size_bytes: int,
        chunk_key: bytes,
        leaves: Sequence[tuple[int, bytes]],
        create: bool,
        uid: int,
        gid: int,
        mode: int,
    ) -> Mirror:
        """Open a mirror's files, recover them, expose it below the mount.

        :param directory: holds ``delta``, ``map`` and ``saved``
        :param live_map: path of the live map on a tmpfs
        :param leaves: (leaf index, 256 digests of 32 bytes; a hole is zeros)
            of the attach base's manifest; an absent leaf is all holes
        :param create: make new files; else open and recover
        """
    def detach(self, instance: str, disk: str) -> None:
        """Stop serving it: parked requests end with EIO, files are closed."""
    def next_fetch(
        self, guests_only: bool, timeout_seconds: float
    ) -> Fetch | None:
        """The most urgent chunk that nobody fetches yet; it is now ours."""
    def fetched(self, digest: bytes, data: bytes, source: str = ...) -> None:
        """Hand in a fetched chunk object (its header and stored bytes).

        :param source: ``store`` or ``peer``: what a refusal is counted for
        :raises ChunkCorrupt: not what the digest names: counted, an alarm
            raised; the flight goes on and the caller fetches elsewhere or
            calls ``fetch_failed``
        """
    def refused(self, digest: bytes, reason: str, source: str) -> None:
        """Count and tell, as :meth:`fetched` does, what was not even read."""
    def fetch_failed(self, digest: bytes, kind: str, reason: str) -> bool:
        """Whether its readers were given an error: it is tried no more.

        :param kind: ``transport`` (try later), ``missing``, ``corrupt``
        """
    def cached(self, digest: bytes, chunk_size_bytes: int) -> bytes | None:
        """The content of a chunk in the host's cache, proved by its digest."""
    def next_event(self, timeout_seconds: float) -> dict[str, Any] | None:
        """What the host must know.

        Its kind is ``owner`` | ``alarm`` | ``log`` | ``slow``.
        """
    def requests(self) -> int:
        """What guests have asked for so far; cheap."""
    def close_events(self) -> None:
        """``next_event`` never waits again; what is queued is still told."""
    def statistics(self) -> dict[str, Any]: ...
    def latencies(self) -> list[Latencies]:
        """Of all mirrors, those that are gone included."""
    def stop(self) -> None:
        """Take no more requests, finish, flush every mirror, mark clean."""

@final
class Mirror:
    @property
    def size_bytes(self) -> int: ...
    def status(self) -> dict[str, Any]:
        """local_bytes, dirty_bytes, dirty_chunks, fetched_bytes, counters."""
    def latencies(self) -> list[Latencies]: ...
    def waits(self, count_max: int) -> list[Wait]:
        """What waits, the oldest first."""
    def read(self, offset: int, length: int) -> bytes:
        """Read as a guest would, waiting for what must be fetched."""
    def flush(self) -> None: ...
    @property
    def is_open(self) -> bool:
        """Whether a file of it was opened, and not closed, through FUSE."""
    def reserve(self, size_bytes: int) -> None:
        """Make its files large enough, durably; the guest sees nothing."""
    def grow(self, size_bytes: int) -> None:
        """Show the guest a larger disk, whose size the journal has."""
    def set_owner(self, uid: int, gid: int, mode: int) -> None: ...
    def end_misses(self) -> None:
        """Parked and new misses end with EIO (contract 40) until allowed."""
    def allow_misses(self) -> None: ...
    def freeze(self) -> Sealed:
        """Seal the dirty blocks for a COMMIT; the guest waits a moment.

        :raises BlockingIOError: a COMMIT of this mirror is sealed already
        """
    def hold(self, limit_seconds: float) -> Held:
        """Let the disk stand still: writes wait until it is sealed or thawed.

        :param limit_seconds: then it is thawed, whatever the caller does
        :raises BlockingIOError: a COMMIT of this mirror is held or sealed
        :raises TimeoutError: a write under way took longer than that
        """

@final
class Held:
    """A disk that stands still; let go of, it is thawed."""

    @property
    def is_held(self) -> bool: ...
    def seal(self) -> Sealed:
        """Seal what was dirty at the freeze; the guest goes on.

        :raises TimeoutError: it was thawed, by whomever
        """
    def thaw(self) -> bool:
        """Let the guest go on; answers whether it was held until now."""

@final
class Sealed:
    @property
    def size_bytes(self) -> int: ...
    @property
    def pause_seconds(self) -> tuple[float, float]:
        """How long writes waited; how much longer than for those under way."""
    @property
    def chunks(self) -> list[int]:
        """Indexes of the chunks that hold a dirty block, ascending."""
    def read(self, chunk: int) -> bytes:
        """The chunk as it was at the freeze, whole, zero-padded.

        :raises OSError: ENOSPC: given up, a block could not be set aside
        """
    def uploaded(self, chunk: int) -> None:
        """This chunk needs no protection any more."""
    def publish(self) -> None:
        """The version stands: what was frozen is clean."""
    def abandon(self) -> None:
        """What was frozen is dirty again."""

def passthrough(mount: str, path: str, threads: int) -> None:
    """Serve one plain file through the same FUSE layer (for ``bench/``).

    It is ``<mount>/passthrough/<its name>``, until the mount is taken away or
    a signal's handler raises.
    """

def decode_object(data: bytes, size_bytes_max: int) -> bytes:
    """The content of a chunk object; no digest is checked (for tests)."""
