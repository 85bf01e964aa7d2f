// SPDX-License-Identifier: Apache-2.0
//! Chunks on their way: one flight each, however many wait.
//!
//! ```text
//!            join                 next               fetched
//!   (none) ───────▶ Queued ──────────────▶ Taken ──────────────▶ (none), waiters get the chunk
//!                     ▲  ▲                  │  │
//!                     │  └── transport ─────┘  │ missing, corrupt
//!                     │      after a pause     ├──── first time ──▶ Queued (the re-check)
//!                     └────────────────────────┘──── second ──────▶ (none), waiters get EIO
//! ```
//!
//! # Invariants
//!
//! 1. A digest has at most one flight, and none is started for a chunk that is cached: the cache is
//!    asked again under this lock, and a chunk is cached before its flight ends.
//! 2. A transport failure never ends a flight; a waiter whose time is up leaves by itself.
//! 3. Who joins raises the flight's priority at once.
//! 4. A flight that nobody waits for any more is dropped when its turn comes.
//!
//! # Crash, threads
//!
//! Nothing survives the process and nothing must: a request that was parked is sent again. One lock,
//! never held while a chunk is decoded, written, or handed over.

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Condvar, Mutex, PoisonError};
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use crate::buffer::Buffer;
use crate::disk::Errno;
use crate::engine::{Digest, Fetch, FetchFailure};
use crate::units::lock;

/// A guest waits.
pub const PRIORITY_GUEST: u8 = 0;
/// A COMMIT completes its chunks.
pub const PRIORITY_COMMIT: u8 = 3;

const BACK_OFF_FIRST: Duration = Duration::from_millis(100);
const BACK_OFF_DOUBLINGS_MAX: u32 = 6;
const RECHECK_AFTER: Duration = Duration::from_millis(200);

/// Somebody who waits for chunks.
pub trait Waiter: Send + Sync {
    /// The chunk is here, or never will be. Called without the table's lock.
    fn arrived(self: Arc<Self>, digest: &Digest, chunk: Result<&Arc<Buffer>, Errno>);
    /// Whether it still waits.
    fn is_waiting(&self) -> bool;
}

/// What a waiter needs.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// Which chunk.
    pub digest: Digest,
    /// How its digest is keyed.
    pub key: [u8; 32],
    /// How large it is.
    pub chunk_size: u64,
    /// How urgent it is.
    pub priority: u8,
    /// Counts the bytes for whoever asked first.
    pub fetched_bytes: Arc<AtomicU64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Queued,
    Taken,
}

struct Flight {
    wanted: Wanted,
    state: State,
    /// Orders flights of one priority, and names its place in the queue.
    turn: u64,
    not_before: Option<Instant>,
    failures: u32,
    refusals: u32,
    waiters: Vec<Arc<dyn Waiter>>,
}

#[derive(Default)]
struct Inner {
    flights: HashMap<Digest, Flight>,
    /// (priority, turn, digest) of what may be taken now.
    queue: BTreeSet<(u8, u64, Digest)>,
    /// (when, turn, digest) of what must rest first.
    resting: BTreeSet<(Instant, u64, Digest)>,
    turns: u64,
    closed: bool,
}

/// The table.
#[derive(Default)]
pub struct Flights {
    inner: Mutex<Inner>,
    queued: Condvar,
    /// Flights that brought their chunk.
    pub landed: AtomicU64,
    /// Fetches that failed and are repeated.
    pub repeated: AtomicU64,
    /// Flights that ended without a chunk.
    pub lost: AtomicU64,
}

impl std::fmt::Debug for Flights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Flights({})", lock(&self.inner).flights.len())
    }
}

/// How a failure was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// It will be tried again.
    Again,
    /// Its waiters got EIO.
    Lost,
    /// There is no such flight any more.
    Unknown,
}

impl Inner {
    fn enqueue(&mut self, digest: &Digest) {
        let Some(flight) = self.flights.get_mut(digest) else {
            return;
        };
        flight.state = State::Queued;
        match flight.not_before {
            Some(when) => self.resting.insert((when, flight.turn, *digest)),
            None => self
                .queue
                .insert((flight.wanted.priority, flight.turn, *digest)),
        };
    }

    fn wake_rested(&mut self) {
        let now = Instant::now();
        while let Some(&(when, turn, digest)) = self.resting.first() {
            if when > now {
                break;
            }
            self.resting.remove(&(when, turn, digest));
            if let Some(flight) = self.flights.get_mut(&digest) {
                flight.not_before = None;
                self.queue.insert((flight.wanted.priority, turn, digest));
            }
        }
    }
}

impl Flights {
    /// Locked, for tests of who never asks for it.
    #[cfg(all(test, not(feature = "shuttle")))]
    pub(crate) fn locked(&self) -> impl Sized + '_ {
        lock(&self.inner)
    }

    /// Waits for a chunk. `is_cached` is asked under the lock if there is no flight yet; `false` is
    /// answered when it says yes: there is nothing to wait for.
    pub fn join(
        &self,
        wanted: Wanted,
        waiter: Arc<dyn Waiter>,
        is_cached: impl FnOnce() -> bool,
    ) -> bool {
        let mut inner = lock(&self.inner);
        let digest = wanted.digest;
        if let Some(flight) = inner.flights.get_mut(&digest) {
            flight.waiters.push(waiter);
            let old = flight.wanted.priority;
            if wanted.priority < old {
                flight.wanted.priority = wanted.priority;
                let turn = flight.turn;
                if inner.queue.remove(&(old, turn, digest)) {
                    inner.queue.insert((wanted.priority, turn, digest));
                    self.queued.notify_all();
                }
            }
            return true;
        }
        if is_cached() {
            return false;
        }
        inner.turns += 1;
        let turn = inner.turns;
        let flight = Flight {
            wanted,
            state: State::Queued,
            turn,
            not_before: None,
            failures: 0,
            refusals: 0,
            waiters: vec![waiter],
        };
        inner.flights.insert(digest, flight);
        inner.enqueue(&digest);
        // Not one: who wakes may serve guests only, or have timed out.
        self.queued.notify_all();
        true
    }

    /// The most urgent chunk that nobody fetches yet.
    pub fn next(&self, guests_only: bool, timeout: Duration) -> Option<Fetch> {
        let deadline = Instant::now() + timeout;
        let mut inner = lock(&self.inner);
        loop {
            if inner.closed {
                return None;
            }
            inner.wake_rested();
            while let Some(&(priority, turn, digest)) = inner.queue.first() {
                if guests_only && priority > PRIORITY_GUEST {
                    break;
                }
                inner.queue.remove(&(priority, turn, digest));
                let Some(flight) = inner.flights.get_mut(&digest) else {
                    continue;
                };
                flight.waiters.retain(|waiter| waiter.is_waiting());
                if flight.waiters.is_empty() {
                    inner.flights.remove(&digest);
                    continue;
                }
                flight.state = State::Taken;
                return Some(Fetch {
                    digest,
                    priority,
                    chunk_size_bytes: flight.wanted.chunk_size,
                });
            }
            let now = Instant::now();
            if now >= deadline {
                return None;
            }
            let until = inner
                .resting
                .first()
                .map_or(deadline, |first| first.0.min(deadline));
            inner = self
                .queued
                .wait_timeout(inner, until.saturating_duration_since(now))
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// What is wanted of a chunk; `None` if nobody waits any more.
    pub fn wanted(&self, digest: &Digest) -> Option<Wanted> {
        lock(&self.inner)
            .flights
            .get(digest)
            .map(|flight| flight.wanted.clone())
    }

    /// The store answers again: nothing rests longer than at its first failure.
    pub fn hasten(&self) {
        let mut inner = lock(&self.inner);
        let soon = Instant::now() + BACK_OFF_FIRST;
        let late: Vec<_> = inner
            .resting
            .iter()
            .filter(|resting| resting.0 > soon)
            .copied()
            .collect();
        for (when, turn, digest) in late {
            inner.resting.remove(&(when, turn, digest));
            inner.resting.insert((soon, turn, digest));
            if let Some(flight) = inner.flights.get_mut(&digest) {
                flight.not_before = Some(soon);
                flight.failures = 1;
            }
        }
        self.queued.notify_all();
    }

    /// Ends a flight: its chunk is verified and, if there was room, cached.
    pub fn land(&self, digest: &Digest, chunk: &Arc<Buffer>) {
        let Some(flight) = self.remove(digest) else {
            return;
        };
        self.landed.fetch_add(1, Ordering::Relaxed);
        flight
            .wanted
            .fetched_bytes
            .fetch_add(flight.wanted.chunk_size, Ordering::Relaxed);
        for waiter in flight.waiters {
            waiter.arrived(digest, Ok(chunk));
        }
    }

    fn remove(&self, digest: &Digest) -> Option<Flight> {
        let mut inner = lock(&self.inner);
        let flight = inner.flights.remove(digest)?;
        inner
            .queue
            .remove(&(flight.wanted.priority, flight.turn, *digest));
        if let Some(when) = flight.not_before {
            inner.resting.remove(&(when, flight.turn, *digest));
        }
        Some(flight)
    }

    /// Takes a flight back that brought nothing.
    pub fn fail(&self, digest: &Digest, failure: FetchFailure) -> Failed {
        {
            let mut inner = lock(&self.inner);
            let Some(flight) = inner.flights.get_mut(digest) else {
                return Failed::Unknown;
            };
            if flight.state != State::Taken {
                return Failed::Unknown;
            }
            let pause = if failure == FetchFailure::Transport {
                flight.failures += 1;
                Some(BACK_OFF_FIRST * (1 << (flight.failures - 1).min(BACK_OFF_DOUBLINGS_MAX)))
            } else {
                flight.refusals += 1;
                (flight.refusals == 1).then_some(RECHECK_AFTER)
            };
            if let Some(pause) = pause {
                // Spread by turn, so that a store that comes back is not met by all at once.
                let spread =
                    pause.mul_f64(f64::from(u8::try_from(flight.turn % 32).unwrap_or(0)) / 128.0);
                flight.not_before = Some(Instant::now() + pause + spread);
                inner.enqueue(digest);
                self.queued.notify_all();
                self.repeated.fetch_add(1, Ordering::Relaxed);
                return Failed::Again;
            }
        }
        let Some(flight) = self.remove(digest) else {
            return Failed::Unknown;
        };
        self.lost.fetch_add(1, Ordering::Relaxed);
        for waiter in flight.waiters {
            waiter.arrived(digest, Err(libc::EIO));
        }
        Failed::Lost
    }

    /// Chunks that somebody waits for.
    pub fn count(&self) -> usize {
        lock(&self.inner).flights.len()
    }

    /// Ends the table: nothing is handed out any more.
    pub fn close(&self) {
        let flights = {
            let mut inner = lock(&self.inner);
            inner.closed = true;
            self.queued.notify_all();
            std::mem::take(&mut inner.flights)
        };
        for (digest, flight) in flights {
            for waiter in flight.waiters {
                waiter.arrived(&digest, Err(libc::EIO));
            }
        }
    }
}

#[cfg(test)]
mod tests;
