// SPDX-License-Identifier: Apache-2.0
//! What goes on beside the cache's use, in one thread of its own.
//!
//! * Every second: if its file system has less room than the reserve, chunks go, pinned ones too,
//!   until there is; so whoever else writes there, deltas first, finds room before it has to ask.
//! * The scrub: reads slots past the page cache, at a bounded rate, and checks them. It finds what
//!   rots on a disk before a guest does, mostly.
//! * Every minute: notes in the indexes when chunks were used, so that the order survives a kill.
//!
//! A thread of its own, for a cache's disk that hangs must not stop the engine's clock.

use crate::sync::atomic::Ordering;
use crate::sync::thread::{Builder, JoinHandle};
use crate::sync::{Arc, PoisonError};
use std::io;
use std::time::Duration;

use super::Cache;
use crate::core::Core;
use crate::sys::file;
use crate::units::lock;

const TICK: Duration = Duration::from_secs(1);
const NOTE_TICKS: u32 = 60;

/// Where the scrub is: a slab, a slot.
#[derive(Debug, Default)]
struct Cursor {
    slab: usize,
    slot: u32,
    budget_bytes: u64,
}

/// Starts the thread; [`Cache::stop_keeper`] ends it.
pub fn start(core: Arc<Core>) -> io::Result<JoinHandle<()>> {
    Builder::new()
        .name("mirror-cache".to_owned())
        .spawn(move || {
            let mut cursor = Cursor::default();
            let mut ticks = 0_u32;
            while core.cache.tick() {
                ticks = ticks.wrapping_add(1);
                core.cache.relieve();
                core.cache.scrub(&mut cursor);
                if ticks % NOTE_TICKS == 0 {
                    core.cache.open_slabs().for_each(super::Slab::note_uses);
                }
            }
        })
}

impl Cache {
    /// Starts what goes on beside.
    pub fn start_keeper(core: &Arc<Core>) -> io::Result<JoinHandle<()>> {
        start(core.clone())
    }

    /// Ends it; its thread is joined by whoever started it.
    pub fn stop_keeper(&self) {
        *lock(&self.stopped) = true;
        self.stopping.notify_all();
    }

    fn is_stopped(&self) -> bool {
        *lock(&self.stopped)
    }

    fn tick(&self) -> bool {
        let stopped = lock(&self.stopped);
        if *stopped {
            return false;
        }
        let waited = self.stopping.wait_timeout(stopped, TICK);
        !*waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Sheds until the reserve is free again.
    pub(super) fn relieve(&self) {
        // A file system that does not tell is not pressed.
        let Ok(free) = file::available_bytes(&self.fence) else {
            return;
        };
        let lacking = self.options.reserve_bytes.saturating_sub(free);
        if lacking > 0 {
            self.low.store(true, Ordering::Relaxed);
            self.shed(lacking);
        } else {
            // Room for one of the largest chunks, or what is shed now would be filled at once.
            let again = free >= self.options.reserve_bytes + (1 << super::SHIFT_MAX);
            if again {
                self.low.store(false, Ordering::Relaxed);
            }
        }
    }

    /// Checks slots for a second's worth of bytes.
    fn scrub(&self, cursor: &mut Cursor) {
        let rate = self.options.scrub_bytes_per_second;
        if rate == 0 {
            return;
        }
        let largest = 1 << super::SHIFT_MAX;
        cursor.budget_bytes = (cursor.budget_bytes + rate).min(rate.max(largest));
        let mut wraps = 0;
        while wraps < 2 && !self.is_stopped() {
            let Some(slab) = self.open_slabs().nth(cursor.slab) else {
                *cursor = Cursor {
                    budget_bytes: cursor.budget_bytes,
                    ..Cursor::default()
                };
                wraps += 1;
                continue;
            };
            if cursor.budget_bytes < slab.chunk_size() {
                return;
            }
            let Some((slot, digest, key)) = slab.find_from(cursor.slot) else {
                cursor.slab += 1;
                cursor.slot = 0;
                continue;
            };
            cursor.slot = slot.slot() + 1;
            cursor.budget_bytes -= slab.chunk_size();
            self.counters
                .scrubbed_bytes
                .fetch_add(slab.chunk_size(), Ordering::Relaxed);
            self.check(slab, &slot, &digest, &key, true);
        }
    }
}
