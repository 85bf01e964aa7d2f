// SPDX-License-Identifier: Apache-2.0
//! The ordered flush, and who may share one.
//!
//! copy the changed pages → sync the delta → write the copies → sync the disk map → answer (rule 2).
//!
//! # Invariants
//!
//! 1. One round at a time. Who asks during a round gets the next one: its writes may have come after
//!    this round's sync. All who ask meanwhile share it.
//! 2. A page is taken from the changed set only by a round, so a later round that finds it unchanged
//!    begins after the round that wrote it has ended.
//! 3. A failed sync or page write fails every later flush: the kernel reports it once and forgets
//!    the pages, so a later success would be a lie. It stands in the live map, for a successor's
//!    would be one, too; a mirror that is recovered from its disk map holds what was flushed.
//!
//! # Crash, threads
//!
//! A kill between any two steps leaves the disk map behind the data, never ahead; the live map is
//! untouched by all this (`CRASHES.rst`, every step of it). The first who asks runs the round on its own thread, as on a raw file.

use crate::sync::atomic::Ordering;
use crate::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::disk::{Answer, Errno};
use crate::diskmap::Page;
use crate::event::Event;
use crate::faults;
use crate::job::{Job, Reason};
use crate::live::{Bits, LiveMap};
use crate::mirror::Mirror;
use crate::units::{PAGE_WORDS, index, lock};

#[derive(Debug, Default)]
struct State {
    running: bool,
    waiting: Vec<Arc<Job>>,
}

/// A mirror's flushes.
#[derive(Debug, Default)]
pub struct Flusher {
    state: Mutex<State>,
    ended: Condvar,
}

impl Flusher {
    /// Flushes now, or parks a job for the next round.
    pub fn flush(&self, mirror: &Mirror, job: impl FnOnce() -> Option<Arc<Job>>) -> Answer {
        if mirror.is_closing() {
            return Answer::Failed(libc::EIO);
        }
        {
            let mut state = lock(&self.state);
            if state.running {
                let Some(job) = job() else {
                    return Answer::Failed(libc::EIO);
                };
                job.park(Reason::Flush);
                state.waiting.push(job);
                return Answer::Parked;
            }
            state.running = true;
        }
        let result = Self::round(mirror, false);
        self.end_round(mirror);
        match result {
            Ok(()) => Answer::Done,
            Err(errno) => Answer::Failed(errno),
        }
    }

    fn end_round(&self, mirror: &Mirror) {
        let jobs = {
            let mut state = lock(&self.state);
            if state.waiting.is_empty() {
                state.running = false;
                self.ended.notify_all();
                return;
            }
            std::mem::take(&mut state.waiting)
        };
        let Some(first) = jobs.first() else {
            return;
        };
        // Not here: who ran this round wants its own answer.
        let mirror_of_jobs = first.mirror.clone();
        mirror.core.pool.run(Box::new(move || {
            let flusher = &mirror_of_jobs.flusher;
            let result = Self::round(&mirror_of_jobs, false);
            for job in jobs {
                job.end_parked(result);
            }
            flusher.end_round(&mirror_of_jobs);
        }));
    }

    /// Waits until no round is under way.
    pub fn wait_for_round(&self) {
        let mut state = lock(&self.state);
        while state.running {
            state = self
                .ended
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The last flush of an orderly stop, with the pages where only dirty bits changed.
    pub fn last_round(&self, mirror: &Mirror) -> Result<(), Errno> {
        let mut state = lock(&self.state);
        while state.running {
            state = self
                .ended
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.running = true;
        drop(state);
        let result = Self::round(mirror, true);
        lock(&self.state).running = false;
        result
    }

    fn round(mirror: &Mirror, stale: bool) -> Result<(), Errno> {
        match mirror.live.failed() {
            0 => {}
            errno => return Err(errno),
        }
        let steps = || {
            let pages: Vec<_> = mirror.pages.take(stale);
            let copies: Vec<_> = pages
                .iter()
                .map(|&page| copy_page(&mirror.live, page))
                .collect();
            faults::step(mirror.delta.path(), "copied");
            mirror.delta.sync()?;
            for (&page, copy) in pages.iter().zip(&copies) {
                mirror.disk_map.write(page, copy)?;
            }
            if !pages.is_empty() {
                mirror.disk_map.sync()?;
            }
            Ok(())
        };
        mirror.counters.flushes.fetch_add(1, Ordering::Relaxed);
        steps().map_err(|error: std::io::Error| mirror.sync_failed(&error))
    }
}

impl Mirror {
    /// A sync of what the guest wrote has failed: from now on every flush does.
    pub(crate) fn sync_failed(&self, error: &std::io::Error) -> Errno {
        let errno = error.raw_os_error().unwrap_or(libc::EIO);
        self.live.fail(errno);
        self.core.events.push(
            Event::new("alarm")
                .text("what", "flush failed; every later one will")
                .text("instance", &self.instance)
                .text("disk", &self.disk)
                .text("error", error.to_string()),
        );
        errno
    }

    /// Flushes for a running job whose write is done.
    pub(crate) fn flush_job(&self, job: &Arc<Job>) {
        let answer = self.flusher.flush(self, || Some(job.clone()));
        match answer {
            Answer::Done => job.settle(crate::job::Outcome::Done),
            Answer::Failed(errno) => job.settle(crate::job::Outcome::Failed(errno)),
            Answer::Parked => {}
        }
    }

    /// Flushes if a page changed since the last time (rule 3).
    pub(crate) fn flush_in_background(self: &Arc<Self>) {
        if !self.pages.any_changed() || self.is_closing() {
            return;
        }
        let mirror = self.clone();
        self.core.pool.run(Box::new(move || {
            let idle = {
                let mut state = lock(&mirror.flusher.state);
                !std::mem::replace(&mut state.running, true)
            };
            if idle {
                // A failure sticks and has raised its alarm.
                let _ = Flusher::round(&mirror, false);
                mirror.flusher.end_round(&mirror);
            }
        }));
    }
}

/// The bits of a page, as the disk map keeps them.
fn copy_page(live: &LiveMap, page: u64) -> Page {
    let mut bytes = [0; 4096];
    let (local, dirty) = bytes.split_at_mut(2048);
    for word in 0..PAGE_WORDS {
        let at = index(word) * 8;
        let load = |bits| {
            live.word(bits, page * PAGE_WORDS + word)
                .load(Ordering::SeqCst)
        };
        local[at..at + 8].copy_from_slice(&load(Bits::Local).to_le_bytes());
        let owed = load(Bits::Even) | load(Bits::Odd);
        dirty[at..at + 8].copy_from_slice(&owed.to_le_bytes());
    }
    Page(bytes)
}
