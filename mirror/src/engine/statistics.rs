// SPDX-License-Identifier: Apache-2.0
//! The counters of an engine, those of mirrors that are gone included.

use super::{Engine, Statistics};
use crate::meter::Operation;
use crate::mirror::Mirror;
use crate::refusal::Source;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::units::lock;

impl Engine {
    /// What guests have asked for so far, of all kinds: whether they are busy.
    #[must_use]
    pub fn requests(&self) -> u64 {
        let mirrors = lock(&self.mirrors);
        let meters = mirrors.values().map(|mirror| &mirror.meter);
        let kinds = [Operation::Read, Operation::Write, Operation::Flush];
        meters
            .chain([&self.core.meter])
            .map(|meter| kinds.iter().map(|&kind| meter.requests(kind)).sum::<u64>())
            .sum()
    }

    /// Counters.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let (mirrors, requests): (Vec<_>, _) = {
            let mirrors = lock(&self.mirrors);
            let all = |operation| {
                let each = mirrors.values().map(|one| one.meter.requests(operation));
                self.core.meter.requests(operation) + each.sum::<u64>()
            };
            let requests = [Operation::Read, Operation::Write, Operation::Flush].map(all);
            (mirrors.values().cloned().collect(), requests)
        };
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let sum = |count: &dyn Fn(&Mirror) -> u64| mirrors.iter().map(|mirror| count(mirror)).sum();
        let core = &self.core;
        let waits: Vec<_> = mirrors
            .iter()
            .flat_map(|mirror| mirror.waits(usize::MAX))
            .collect();
        let waiting = |reason| waits.iter().filter(|wait| wait.reason == reason).count() as u64;
        let mut all = core.cache.statistics();
        all.extend([
            ("mirrors", mirrors.len() as u64),
            (
                "cache_hits_total",
                load(&core.past_hits) + sum(&|mirror| load(&mirror.counters.cache_hits)),
            ),
            (
                "cache_misses_total",
                load(&core.past_misses) + sum(&|mirror| load(&mirror.counters.cache_misses)),
            ),
            ("peer_refused_total", core.refusals.count(Source::Peer)),
            ("store_refused_total", core.refusals.count(Source::Store)),
            ("uncached_total", load(&self.uncached)),
            ("fetches_total", load(&core.flights.landed)),
            ("fetches_repeated_total", load(&core.flights.repeated)),
            ("fetches_lost_total", load(&core.flights.lost)),
            ("fetches_now", core.flights.count() as u64),
            (
                "fetched_object_bytes_total",
                load(&self.fetched_object_bytes),
            ),
            ("reads_total", requests[0]),
            ("writes_total", requests[1]),
            ("flushes_total", requests[2]),
            ("slow_requests_total", load(&core.slow.total)),
            ("waiting_chunks_now", waiting("chunks")),
            ("waiting_room_now", waiting("room")),
            (
                "oldest_wait_milliseconds",
                waits
                    .iter()
                    .map(|wait| wait.milliseconds)
                    .max()
                    .unwrap_or(0),
            ),
            (
                "parked_now",
                sum(&|mirror| lock(&mirror.parked).len() as u64),
            ),
        ]);
        all.extend(core.pauses.statistics());
        all
    }
}
