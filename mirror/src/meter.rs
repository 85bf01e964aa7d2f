// SPDX-License-Identifier: Apache-2.0
//! How long requests take and where their bytes came from, at next to no cost.
//!
//! # What is exact
//!
//! Every request is counted: one relaxed addition, all that the fastest ones pay. Of those that are
//! answered at once, one in [`SAMPLE`] is timed and counts as so many; what was parked, and every
//! flush, is timed itself. Where the bytes came from is looked up only for what is timed. Slow
//! requests are all found: whoever looks for them reads a clock that costs a few nanoseconds and
//! ticks every few milliseconds, at both ends of each request.
//!
//! # Threads
//!
//! Any; counters are independent of each other, so a reader may see one without the other.

use crate::sync::Mutex;
use crate::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::disk::Errno;
use crate::event::Event;
use crate::live::Bits;
use crate::mirror::Mirror;
use crate::sys::clock::coarse_milliseconds;
use crate::units::{BLOCK_BYTES, lock};

/// Of the requests that are answered at once, one in so many is timed.
pub const SAMPLE: u64 = 16;
/// The first bound of a histogram; each further one is twice the one before.
const BOUND_FIRST_MICROSECONDS: u64 = 16;
/// Bounds; what took longer than the last (67 s) is counted behind it.
const BOUNDS: usize = 23;
/// Slow requests that are told within [`SLOW_WINDOW`] at most.
const SLOW_EVENTS_MAX: u64 = 32;
const SLOW_WINDOW: Duration = Duration::from_secs(10);

/// What a guest asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Bytes.
    Read = 0,
    /// Bytes to keep; a discard or zeroing likewise.
    Write = 1,
    /// Durability.
    Flush = 2,
}

impl Operation {
    /// As metrics and logs name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Flush => "flush",
        }
    }
}

/// The slowest place that a request had to go to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The delta, or a hole.
    Delta,
    /// The host's chunk cache.
    Cache,
    /// A fetch.
    Fetch,
}

impl Source {
    /// As metrics and logs name it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Delta => "delta",
            Self::Cache => "cache",
            Self::Fetch => "fetch",
        }
    }
}

/// What is told apart.
const SERIES: [(Operation, Source); 6] = [
    (Operation::Read, Source::Delta),
    (Operation::Read, Source::Cache),
    (Operation::Read, Source::Fetch),
    (Operation::Write, Source::Delta),
    (Operation::Write, Source::Fetch),
    (Operation::Flush, Source::Delta),
];

#[derive(Debug, Default)]
struct Histogram {
    counts: [AtomicU64; BOUNDS + 1],
    microseconds: AtomicU64,
}

fn bucket(microseconds: u64) -> usize {
    let first = BOUND_FIRST_MICROSECONDS.ilog2();
    let above = microseconds.saturating_sub(1).max(1).ilog2() + 1;
    (above.saturating_sub(first) as usize).min(BOUNDS)
}

/// A histogram as it was read.
#[derive(Debug, Clone)]
pub struct Latencies {
    /// What was asked for.
    pub operation: &'static str,
    /// Where the bytes came from.
    pub source: &'static str,
    /// Requests up to each bound of [`bounds`], each counted once; the last took longer.
    pub counts: Vec<u64>,
    /// All of them together.
    pub microseconds: u64,
}

/// The bounds of every histogram, in microseconds.
pub fn bounds() -> impl Iterator<Item = u64> {
    (0..BOUNDS).map(|n| BOUND_FIRST_MICROSECONDS << n)
}

/// Counts and histograms of one mirror, or of all.
#[derive(Debug, Default)]
pub struct Meter {
    requests: [AtomicU64; 3],
    histograms: [Histogram; SERIES.len()],
}

impl Meter {
    /// Counts a request; whether it is one to time.
    #[inline]
    fn count(&self, operation: Operation) -> bool {
        let before = self.requests[operation as usize].fetch_add(1, Ordering::Relaxed);
        before % SAMPLE == 0 || operation == Operation::Flush
    }

    /// Requests so far.
    pub fn requests(&self, operation: Operation) -> u64 {
        self.requests[operation as usize].load(Ordering::Relaxed)
    }

    /// Takes over what a mirror counted that is going.
    pub fn absorb(&self, gone: &Self) {
        for (mine, theirs) in self.requests.iter().zip(&gone.requests) {
            mine.fetch_add(theirs.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }

    fn note(&self, operation: Operation, source: Source, microseconds: u64, weight: u64) {
        // A write never reads the cache for long: what it filled in was at hand.
        let source = match (operation, source) {
            (Operation::Write, Source::Cache) | (Operation::Flush, _) => Source::Delta,
            _ => source,
        };
        let series = SERIES.iter().position(|&one| one == (operation, source));
        if let Some(histogram) = series.map(|at| &self.histograms[at]) {
            histogram.counts[bucket(microseconds)].fetch_add(weight, Ordering::Relaxed);
            histogram
                .microseconds
                .fetch_add(microseconds.saturating_mul(weight), Ordering::Relaxed);
        }
    }

    /// Every histogram.
    #[must_use]
    pub fn latencies(&self) -> Vec<Latencies> {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SERIES
            .iter()
            .zip(&self.histograms)
            .map(|(&(operation, source), histogram)| Latencies {
                operation: operation.name(),
                source: source.name(),
                counts: histogram.counts.iter().map(load).collect(),
                microseconds: load(&histogram.microseconds),
            })
            .collect()
    }

    /// Reads that had to wait for a fetch.
    pub fn reads_fetched(&self) -> u64 {
        let series = &self.histograms[2];
        series
            .counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
            .sum()
    }
}

/// Tells of slow requests, a bounded number at a time.
#[derive(Debug, Default)]
pub struct SlowLog {
    /// 0: nobody wants to know.
    threshold_milliseconds: AtomicU64,
    /// When the window began, events in it, events kept back since the last.
    window: Mutex<Option<(Instant, u64, u64)>>,
    /// Slow requests so far.
    pub total: AtomicU64,
}

impl SlowLog {
    /// Tell of what takes at least this long; zero: of nothing.
    pub fn set_threshold(&self, threshold: Duration) {
        let milliseconds = u64::try_from(threshold.as_millis()).unwrap_or(u64::MAX);
        self.threshold_milliseconds
            .store(milliseconds, Ordering::Relaxed);
    }

    #[inline]
    fn threshold(&self) -> u64 {
        self.threshold_milliseconds.load(Ordering::Relaxed)
    }

    /// Whether one more may be told now, and how many were not since the last.
    fn admit(&self) -> Option<u64> {
        let mut window = lock(&self.window);
        let (begun, told, kept_back) = window.get_or_insert((Instant::now(), 0, 0));
        if begun.elapsed() > SLOW_WINDOW {
            *begun = Instant::now();
            *told = 0;
        }
        if *told >= SLOW_EVENTS_MAX {
            *kept_back += 1;
            return None;
        }
        *told += 1;
        Some(std::mem::take(kept_back))
    }
}

/// When a request came, as far as anybody wants to know.
#[derive(Debug)]
pub(crate) struct Begun {
    operation: Operation,
    milliseconds: u64,
    exact: Option<Instant>,
}

/// A request that has ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ended {
    pub operation: Operation,
    pub offset: u64,
    pub len: u64,
    pub took: Duration,
    /// It was parked for chunks.
    pub fetched: bool,
    pub errno: Option<Errno>,
}

impl Mirror {
    /// A request comes.
    #[inline]
    pub(crate) fn begin(&self, operation: Operation) -> Begun {
        let exact = self.meter.count(operation).then(Instant::now);
        let wanted = self.core.slow.threshold() != 0;
        Begun {
            operation,
            milliseconds: if wanted { coarse_milliseconds() } else { 0 },
            exact,
        }
    }

    /// It was answered at once.
    #[inline]
    pub(crate) fn end(&self, begun: &Begun, offset: u64, len: u64, errno: Option<Errno>) {
        let threshold = self.core.slow.threshold();
        let is_slow =
            threshold != 0 && coarse_milliseconds().saturating_sub(begun.milliseconds) >= threshold;
        if begun.exact.is_some() || is_slow {
            self.end_timed(begun, offset, len, errno);
        }
    }

    #[cold]
    fn end_timed(&self, begun: &Begun, offset: u64, len: u64, errno: Option<Errno>) {
        let coarse = coarse_milliseconds().saturating_sub(begun.milliseconds);
        let took = begun
            .exact
            .map_or(Duration::from_millis(coarse), |exact| exact.elapsed());
        let weight = match begun.operation {
            _ if begun.exact.is_none() => 0,
            Operation::Flush => 1,
            _ => SAMPLE,
        };
        let ended = Ended {
            operation: begun.operation,
            offset,
            len,
            took,
            fetched: false,
            errno,
        };
        self.note(&ended, weight);
    }

    /// A request that was timed has ended, and counts as so many.
    pub(crate) fn note(&self, ended: &Ended, weight: u64) {
        let source = if ended.fetched {
            Source::Fetch
        } else {
            self.source_of(ended.offset, ended.len)
        };
        let microseconds = u64::try_from(ended.took.as_micros()).unwrap_or(u64::MAX);
        if weight != 0 && ended.errno.is_none() {
            for meter in [&self.meter, &self.core.meter] {
                meter.note(ended.operation, source, microseconds, weight);
            }
        }
        let threshold = self.core.slow.threshold();
        if threshold != 0 && microseconds / 1000 >= threshold {
            self.tell_slow(ended, source, microseconds);
        }
    }

    fn source_of(&self, offset: u64, len: u64) -> Source {
        let end = (offset + len.max(1)).div_ceil(BLOCK_BYTES);
        let local = self.live.all(Bits::Local, offset / BLOCK_BYTES..end);
        if local || self.base.chunk(offset / self.chunk_size).is_none() {
            Source::Delta
        } else {
            Source::Cache
        }
    }

    fn tell_slow(&self, ended: &Ended, source: Source, microseconds: u64) {
        let slow = &self.core.slow;
        slow.total.fetch_add(1, Ordering::Relaxed);
        let Some(kept_back) = slow.admit() else {
            return;
        };
        let chunk = ended.offset / self.chunk_size;
        let mut event = Event::new("slow")
            .text("instance", &self.instance)
            .text("disk", &self.disk)
            .text("operation", ended.operation.name())
            .number("offset", ended.offset)
            .number("bytes", ended.len)
            .number("chunk", chunk)
            .text("source", source.name())
            .number("microseconds", microseconds);
        if source != Source::Delta {
            if let Some(found) = self.base.chunk(chunk) {
                let digest = blake3::Hash::from_bytes(*found.digest);
                event = event.text("digest", digest.to_hex().as_str());
            }
        }
        if let Some(errno) = ended.errno {
            event = event.number("errno", u64::from(errno.unsigned_abs()));
        }
        if kept_back > 0 {
            event = event.number("not_told", kept_back);
        }
        self.core.events.push(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bound_is_the_last_of_its_bucket() {
        for (n, bound) in bounds().enumerate() {
            assert_eq!(bucket(bound), n);
            assert_eq!(bucket(bound + 1), n + 1);
        }
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(u64::MAX), BOUNDS);
    }

    #[test]
    fn one_request_in_a_sample_is_timed_and_every_flush() {
        let meter = Meter::default();
        let timed = (0..4 * SAMPLE).filter(|_| meter.count(Operation::Read));
        assert_eq!(timed.count(), 4);
        assert_eq!(meter.requests(Operation::Read), 4 * SAMPLE);
        assert!((0..5).all(|_| meter.count(Operation::Flush)));
    }

    #[test]
    fn a_flood_of_slow_requests_is_told_in_part_and_the_rest_counted() {
        let slow = SlowLog::default();
        let told = (0..100).filter(|_| slow.admit().is_some());
        assert_eq!(told.count() as u64, SLOW_EVENTS_MAX);
        lock(&slow.window).as_mut().unwrap().0 -= 2 * SLOW_WINDOW;
        assert_eq!(slow.admit(), Some(100 - SLOW_EVENTS_MAX));
    }
}
