// SPDX-License-Identifier: Apache-2.0
//! The freeze: one instant at which a disk stands still, by itself or together with other disks.
//!
//! # A held freeze
//!
//! From the return of [`Mirror::hold`] to [`Held::seal`] all gates are closed: writes, discards and
//! zeroings that were under way have ended, new ones are parked (rule 9) and own no thread; reads
//! and flushes go on. So disks that are held at the same time, on whatever hosts, show one instant,
//! at which each may then be sealed. Nothing is swapped or saved before the seal: a thaw has nothing
//! to undo, and an agent that dies leaves nothing of a hold.
//!
//! Guests wait meanwhile, so no hold outlives its limit, counted from its first closed gate, the
//! wait for writes under way included: the engine's watchdog opens the gates, whoever forgot, hangs
//! or waits for a lock of Python's. A seal that comes later is refused ([`Error::Thawed`]); what it
//! would have sealed is no longer the instant that its group agreed on.
//!
//! # What a freeze costs
//!
//! The oldest write under way, one swap of a word, and the wake of who was parked; nothing depends
//! on the size of the disk or on what is dirty (invariant 7). [`Pauses`] counts how long the gates
//! were closed, each [`Sealed`] knows its own [`Pause`].

use crate::sync::Arc;
use crate::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Seal, Sealed, Stage};
use crate::engine::Statistics;
use crate::error::{Error, Result};
use crate::job::Job;
use crate::mirror::Mirror;

/// How long a freeze kept the gates closed.
#[derive(Debug, Clone, Copy)]
pub struct Pause {
    /// From the first closed gate to the last woken request.
    pub total: Duration,
    /// What of that followed the end of the oldest write that was under way.
    pub overhead: Duration,
}

/// When a pause began, and when the last write under way ended.
#[derive(Debug, Clone, Copy)]
struct Begun {
    since: Instant,
    empty: Instant,
}

/// How long freezes kept gates closed, as a histogram of microseconds.
#[derive(Debug, Default)]
pub struct Pauses {
    counts: [AtomicU64; BOUNDS.len()],
    sum_micros: AtomicU64,
}

/// Upper bounds; names that Python's metrics know.
const BOUNDS: [(&str, u64); 12] = [
    ("freeze_pauses_le_100us", 100),
    ("freeze_pauses_le_250us", 250),
    ("freeze_pauses_le_500us", 500),
    ("freeze_pauses_le_1000us", 1000),
    ("freeze_pauses_le_2500us", 2500),
    ("freeze_pauses_le_5000us", 5000),
    ("freeze_pauses_le_10000us", 10_000),
    ("freeze_pauses_le_25000us", 25_000),
    ("freeze_pauses_le_100000us", 100_000),
    ("freeze_pauses_le_1000000us", 1_000_000),
    ("freeze_pauses_le_10000000us", 10_000_000),
    ("freeze_pauses_total", u64::MAX),
];

impl Pauses {
    fn note(&self, pause: Duration) {
        let micros = u64::try_from(pause.as_micros()).unwrap_or(u64::MAX);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
        for ((_, bound), count) in BOUNDS.iter().zip(&self.counts) {
            if micros <= *bound {
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Each bound's count, what is below it included, and the sum.
    pub(crate) fn statistics(&self) -> Statistics {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = BOUNDS.iter().zip(&self.counts);
        counts
            .map(|((name, _), count)| (*name, load(count)))
            .chain([("freeze_pauses_microseconds_total", load(&self.sum_micros))])
            .collect()
    }
}

/// A disk that stands still. Dropped, it is thawed.
#[derive(Debug)]
pub struct Held {
    mirror: Arc<Mirror>,
    number: u64,
    begun: Begun,
    size_bytes: u64,
}

impl Mirror {
    /// Seals the dirty blocks for a COMMIT and makes them durable; the guest's writes wait for the
    /// former only.
    ///
    /// # Errors
    /// [`Error::AlreadySealed`]; EIO: the mirror ends, or a flush failed.
    pub fn freeze(self: &Arc<Self>) -> Result<Sealed> {
        let mut stage = self.seal.exclusive();
        self.prepare(*stage)?;
        let begun = self.close_gates();
        let size_bytes = self.size_bytes();
        self.swap();
        let pause = self.end_pause(begun);
        *stage = Stage::Sealed;
        drop(stage);
        Sealed::new(self, size_bytes, pause)
    }

    /// Makes the disk stand still until it is sealed or thawed, at most for `limit`.
    ///
    /// # Errors
    /// [`Error::AlreadySealed`]: or held; [`Error::Thawed`]: a write under way took longer than
    /// `limit`; EIO: the mirror ends.
    pub fn hold(self: &Arc<Self>, limit: Duration) -> Result<Held> {
        let mut stage = self.seal.exclusive();
        self.prepare(*stage)?;
        let since = Instant::now();
        let until = since + limit;
        let empty = match self.gates.close_all(Some(until)) {
            Ok(left) => left.unwrap_or(since),
            Err(jobs) => {
                Job::wake_all(jobs);
                self.core.pauses.note(since.elapsed());
                return Err(Error::Thawed);
            }
        };
        let begun = Begun { since, empty };
        let number = self.seal.holds.fetch_add(1, Ordering::SeqCst) + 1;
        self.seal.held.store(number, Ordering::SeqCst);
        *stage = Stage::Held;
        let held = Held {
            mirror: self.clone(),
            number,
            begun,
            size_bytes: self.size_bytes(),
        };
        drop(stage);
        let mirror = Arc::downgrade(self);
        self.core.watchdog.at(until, move || {
            if let Some(mirror) = mirror.upgrade() {
                mirror.thaw(number, begun);
            }
        });
        Ok(held)
    }

    /// What can be done before a gate closes.
    fn prepare(&self, stage: Stage) -> Result<()> {
        match stage {
            _ if self.is_closing() => Err(Error::errno("freeze", self.delta.path(), libc::EIO)),
            Stage::Open => self
                .saved
                .clear(self.size_bytes())
                .map_err(|e| Error::io("clear", self.saved.path(), e)),
            _ => Err(Error::AlreadySealed),
        }
    }

    /// Everything dirty is frozen from here on; all gates are closed.
    fn swap(&self) {
        self.live.swap();
        self.seal.given_up.store(0, Ordering::SeqCst);
        self.seal.active.store(true, Ordering::SeqCst);
    }

    fn end_pause(&self, begun: Begun) -> Pause {
        self.open_gates();
        let pause = Pause {
            total: begun.since.elapsed(),
            overhead: begun.empty.elapsed(),
        };
        self.core.pauses.note(pause.total);
        pause
    }

    fn open_gates(&self) {
        Job::wake_all(self.gates.open(u64::MAX));
    }

    fn close_gates(&self) -> Begun {
        let since = Instant::now();
        // Without a limit it never gives up.
        let left = self.gates.close_all(None).unwrap_or_default();
        let empty = left.unwrap_or(since);
        Begun { since, empty }
    }

    /// Does something that is over in a moment while nobody is inside a gate.
    pub(super) fn pass_by_all(&self, work: impl FnOnce()) {
        self.close_gates();
        work();
        self.open_gates();
    }

    fn thaw(&self, number: u64, begun: Begun) -> bool {
        // A look first: the watchdog must not wait for a freeze that followed.
        if self.seal.held.load(Ordering::SeqCst) != number {
            return false;
        }
        let mut stage = self.seal.exclusive();
        let is_held = self.seal.end_hold(number);
        if is_held {
            *stage = Stage::Open;
            self.end_pause(begun);
        }
        is_held
    }

    /// Closes the gates for ever: a write that still runs leaves first.
    pub(crate) fn close_for_ever(&self) {
        let mut stage = self.seal.exclusive();
        if *stage == Stage::Held {
            self.seal.held.store(0, Ordering::SeqCst);
        } else {
            self.close_gates();
        }
        *stage = Stage::Ended;
    }
}

impl Seal {
    /// Whether this hold was in effect; its caller has the stage for itself and opens the gates.
    fn end_hold(&self, number: u64) -> bool {
        self.held
            .compare_exchange(number, 0, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }
}

impl Held {
    /// Whether it holds, or has been sealed, thawed or ended by the watchdog.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.mirror.seal.held.load(Ordering::SeqCst) == self.number
    }

    /// Seals what was dirty when the disk was frozen; the guest goes on.
    ///
    /// # Errors
    /// [`Error::Thawed`]: it holds no more; EIO: a flush failed.
    pub fn seal(&self) -> Result<Sealed> {
        let mirror = &self.mirror;
        let mut stage = mirror.seal.exclusive();
        if !mirror.seal.end_hold(self.number) {
            return Err(Error::Thawed);
        }
        mirror.swap();
        let pause = mirror.end_pause(self.begun);
        *stage = Stage::Sealed;
        drop(stage);
        Sealed::new(mirror, self.size_bytes, pause)
    }

    /// The guest goes on, and nothing has happened; answers whether it was held until now.
    #[expect(clippy::must_use_candidate, reason = "few care")]
    pub fn thaw(&self) -> bool {
        self.mirror.thaw(self.number, self.begun)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.thaw();
    }
}
