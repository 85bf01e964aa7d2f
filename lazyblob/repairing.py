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
"""Repair: what is damaged or missing is put back from where it still is.

A survey says what is wrong; a *plan* says for each object which sources claim
to have it; executing it reads from them, proves the content by its digest,
and replaces the object. The plan asks and changes nothing, so that it can be
shown instead of executed.

A node that is lost hides what is below it, so the survey takes it from the
sources, proved, and goes on; all that is wrong is in one plan.

Order: replace, then the store's sync, then off the list of bad digests, a
batch after the other. Crash: at any point some objects are back and the rest
is as it was; the next run finds that out and goes on. A session stands
meanwhile, so that nothing that was put back is collected before its version
is looked at.

A source that lies, fails, or lost it since is passed over; what no source
gives stays bad, and what that costs is told: versions and ranges.

Threads: one calls; a few carry.
"""

import concurrent.futures
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from lazyblob import damage
from lazyblob import exceptions
from lazyblob import sessions
from lazyblob import survey
from lazyblob import verifying
from lazyblob import wanted
from lazyblob.catalog import api
from lazyblob.chunk_store import base

LOG = logging.getLogger(__name__)
_BATCH = 64


class Source(Protocol):
    """Somewhere that may have an object."""

    @property
    def label(self) -> str:
        """For people."""

    def has(self, asked: wanted.Wanted) -> bool:
        """Whether it says that it has it. :raises StoreError:"""

    def content(self, asked: wanted.Wanted) -> bytes:
        """The content, proved.

        :raises NotFound: it has it not
        :raises ChunkCorrupt: what it has is something else
        :raises StoreError: it does not answer
        """


class StoreSource:
    """Another chunk store."""

    def __init__(self, store: base.ChunkStore, label: str = '') -> None:
        self._store = store
        self.label = label or store.url

    def has(self, asked: wanted.Wanted) -> bool:
        return self._store.has(asked.name)

    def content(self, asked: wanted.Wanted) -> bytes:
        return asked.content_of(asked.read(self._store))


@dataclasses.dataclass(frozen=True)
class Mend:
    """One object, and who may have it, in the order to ask them."""

    fault: damage.Fault
    sources: tuple[Source, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """What can be put back, and what nobody has."""

    mends: tuple[Mend, ...]
    lost: tuple[damage.Fault, ...]


@dataclasses.dataclass
class Outcome:
    """What became of it.

    :ivar mended: digests of what was put back, or would be
    :ivar lost: what was not, and why
    """

    report: verifying.Report
    mended: list[bytes] = dataclasses.field(default_factory=list)
    lost: verifying.Faults = dataclasses.field(default_factory=dict)


def make_plan(
    faults: Sequence[damage.Fault], sources: Sequence[Source]
) -> Plan:
    """Ask the sources; nothing is read and nothing changed."""
    mends, lost = [], []
    for fault in faults:
        found, refused = [], [fault.reason]
        for source in sources:
            try:
                if source.has(fault.wanted):
                    found.append(source)
            except (exceptions.StoreError, exceptions.NotFound) as exc:
                what = f'"{source.label}" is passed over: {exc}'
                LOG.warning('"%s": %s', fault.wanted.name.hex(), what)
                refused.append(what)
        if found:
            mends.append(Mend(fault, tuple(found)))
        else:
            reason = '; '.join(refused)
            lost.append(dataclasses.replace(fault, reason=reason))
    return Plan(tuple(mends), tuple(lost))


def _content(
    asked: wanted.Wanted, sources: Sequence[Source]
) -> tuple[bytes | None, str]:
    """From the first that has it; else what the last one said."""
    why = 'no source has it'
    for source in sources:
        try:
            return source.content(asked), source.label
        except (exceptions.StoreError, exceptions.NotFound) as exc:
            why = f'"{source.label}": {exc}'
    return None, why


def execute(
    plan: Plan,
    store: base.ChunkStore,
    catalog: api.Catalog,
    outcome: Outcome,
    *,
    threads: int,
    progress: verifying.Progress | None = None,
) -> None:
    """Put back what the plan says.

    :param outcome: filled in
    :raises StoreError: the store does not take it: begin again later
    """

    def mend(mend: Mend) -> str:
        """'', or why not."""
        asked = mend.fault.wanted
        content, source = _content(asked, mend.sources)
        if content is None:
            return source
        store.replace(asked.name, *asked.packed(content))
        LOG.info('"%s" is back, from "%s"', asked.name.hex(), source)
        return ''

    with concurrent.futures.ThreadPoolExecutor(
        threads, thread_name_prefix='repair'
    ) as pool:
        for at in range(0, len(plan.mends), _BATCH):
            batch = plan.mends[at : at + _BATCH]
            mended = []
            for each, why in zip(batch, pool.map(mend, batch), strict=True):
                fault = each.fault
                if why:
                    outcome.lost[fault.wanted.name] = dataclasses.replace(
                        fault, reason=f'{fault.reason}; {why}'
                    )
                else:
                    mended.append(fault.wanted.name)
            store.sync(mended)
            if mended:
                catalog.forget_bad([name.hex() for name in mended])
            outcome.mended += mended
            if progress is not None:
                progress('repairing', at + len(batch), len(plan.mends))


def repair(
    store: base.ChunkStore,
    catalog: api.Catalog,
    make_survey: Callable[[verifying.Rescue], survey.Survey],
    sources: Sequence[Source],
    *,
    is_dry: bool = False,
    threads: int = 4,
    progress: verifying.Progress | None = None,
) -> Outcome:
    """Look, plan, and put back unless it is dry.

    :param make_survey: with where lost nodes come from
    """

    def rescue(asked: wanted.Wanted) -> bytes | None:
        return _content(asked, sources)[0]

    with contextlib.ExitStack() as stack:
        if not is_dry:
            stack.enter_context(sessions.Session(catalog))
        outcome = Outcome(make_survey(rescue).run())
        plan = make_plan(list(outcome.report.faults.values()), sources)
        outcome.lost = {fault.wanted.name: fault for fault in plan.lost}
        if is_dry:
            outcome.mended = [m.fault.wanted.name for m in plan.mends]
        else:
            execute(
                plan,
                store,
                catalog,
                outcome,
                threads=threads,
                progress=progress,
            )
        return outcome
