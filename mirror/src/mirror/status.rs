// SPDX-License-Identifier: Apache-2.0
//! What is told of a mirror: its counters, who waits, how long its requests took.

use super::Mirror;
use crate::engine::Statistics;
use crate::job::Wait;
use crate::live::Bits;
use crate::meter::{Latencies, Operation};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::units::{BLOCK_BYTES, lock};

impl Mirror {
    /// `local_bytes`, `dirty_bytes`, `dirty_chunks`, `fetched_bytes` and counters.
    #[must_use]
    pub fn status(&self) -> Statistics {
        let blocks = self.blocks();
        let count = |bits| self.live.count(bits, blocks) * BLOCK_BYTES;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let dirty_chunks = self.chunks_with(&[Bits::Even, Bits::Odd], blocks).len() as u64;
        let oldest_milliseconds = self.waits(1).first().map_or(0, |wait| wait.milliseconds);
        let parked = lock(&self.parked).len() as u64;
        vec![
            ("size_bytes", self.size_bytes()),
            ("local_bytes", count(Bits::Local)),
            (
                "held_bytes",
                self.delta.held_bytes() + self.saved.held_bytes(),
            ),
            (
                "dirty_bytes",
                count(self.live.dirty()) + count(self.live.frozen()),
            ),
            ("dirty_chunks", dirty_chunks),
            ("fetched_bytes", load(&self.counters.fetched_bytes)),
            ("cache_hits", load(&self.counters.cache_hits)),
            ("cache_misses", load(&self.counters.cache_misses)),
            ("parked_total", load(&self.counters.parked)),
            ("parked_now", parked),
            ("flushes_total", load(&self.counters.flushes)),
            ("saved_blocks_total", load(&self.counters.saved_blocks)),
            ("sealed", u64::from(self.seal.is_active())),
            ("reads_total", self.meter.requests(Operation::Read)),
            ("writes_total", self.meter.requests(Operation::Write)),
            ("reads_fetched_total", self.meter.reads_fetched()),
            ("oldest_wait_milliseconds", oldest_milliseconds),
        ]
    }

    /// What waits, the oldest first, so many at most.
    #[must_use]
    pub fn waits(&self, count_max: usize) -> Vec<Wait> {
        let mut jobs = self.jobs();
        jobs.sort_unstable_by_key(|job| job.since);
        let waits = jobs.iter().filter_map(|job| job.wait(self.chunk_size));
        waits.take(count_max).collect()
    }

    /// How long its requests took.
    #[must_use]
    pub fn latencies(&self) -> Vec<Latencies> {
        self.meter.latencies()
    }
}
