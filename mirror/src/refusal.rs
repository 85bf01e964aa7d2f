// SPDX-License-Identifier: Apache-2.0
//! Chunks that are not what their digest names: counted by where they came from, and told.
//!
//! A refused chunk is never served: it is fetched elsewhere or again. The host must hear of it all
//! the same, with the digest, for a disk or a store that begins to rot does not stop at one. Of a
//! source that has gone wrong as a whole only the first few a minute are told; the count goes on.

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::engine::Digest;
use crate::event::{Event, Events};
use crate::units::lock;

const TOLD_MAX: u32 = 10;
const TOLD_WITHIN: Duration = Duration::from_secs(60);

/// Where a chunk came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// This host's cache.
    Cache = 0,
    /// Another host's.
    Peer = 1,
    /// The chunk store.
    Store = 2,
}

impl Source {
    /// Its name in events, metrics and Python.
    #[must_use]
    pub fn name(self) -> &'static str {
        ["cache", "peer", "store"][self as usize]
    }

    /// By its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Cache, Self::Peer, Self::Store]
            .into_iter()
            .find(|source| source.name() == name)
    }
}

#[derive(Debug, Default, Clone, Copy)]
struct Told {
    since: Option<Instant>,
    count: u32,
}

/// Who was refused, and how often.
#[derive(Debug)]
pub struct Refusals {
    events: Arc<Events>,
    counts: [AtomicU64; 3],
    told: Mutex<[Told; 3]>,
}

impl Refusals {
    /// None yet.
    #[must_use]
    pub fn new(events: Arc<Events>) -> Self {
        Self {
            events,
            counts: Default::default(),
            told: Mutex::default(),
        }
    }

    /// One more.
    pub fn refuse(&self, source: Source, digest: &Digest, reason: &str) {
        let total = self.counts[source as usize].fetch_add(1, Ordering::Relaxed) + 1;
        {
            let told = &mut lock(&self.told)[source as usize];
            if told.since.is_none_or(|since| since.elapsed() > TOLD_WITHIN) {
                *told = Told {
                    since: Some(Instant::now()),
                    count: 0,
                };
            }
            told.count += 1;
            if told.count > TOLD_MAX {
                return;
            }
        }
        self.events.push(
            Event::new("alarm")
                .text("what", "a chunk was refused and is fetched again")
                .text("source", source.name())
                .text(
                    "digest",
                    blake3::Hash::from_bytes(*digest).to_hex().as_str(),
                )
                .text("error", reason)
                .number("refused", total),
        );
    }

    /// How many of a source.
    #[must_use]
    pub fn count(&self, source: Source) -> u64 {
        self.counts[source as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rotten_store_is_told_of_a_few_times_and_counted_always() {
        let events = Arc::new(Events::default());
        let refusals = Refusals::new(events.clone());
        for _ in 0..100 {
            refusals.refuse(Source::Store, &[1; 32], "wrong");
        }
        refusals.refuse(Source::Cache, &[2; 32], "rotten");
        let mut told = 0;
        while events.next(Duration::ZERO).is_some() {
            told += 1;
        }
        assert_eq!(told, TOLD_MAX + 1);
        assert_eq!(refusals.count(Source::Store), 100);
        assert_eq!(refusals.count(Source::Cache), 1);
        assert_eq!(Source::named("peer"), Some(Source::Peer));
        assert_eq!(Source::named("nobody"), None);
    }
}
