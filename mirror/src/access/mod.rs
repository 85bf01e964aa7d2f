// SPDX-License-Identifier: Apache-2.0
//! One attempt at a request: all of it now, or nothing that shows and what it lacks.
//!
//! Per block: local → the delta; else the base's chunk, from the cache or from what came for the
//! job; else a hole. The order of a write (rule 1): dirty bit, data, local bit, answer. `gate` says
//! who may run beside whom. Trying again is harmless: a dirty bit too many costs a comparison, and
//! data without its local bit is not there.
//!
//! The way of a read whose blocks are local, or cached, and of a write of local blocks: no lock, no
//! allocation, one system call a run.
//!
//! Here is what all of them share; `read`, `write` and `erase` (discards and zeros) are the attempts.

use std::io;
use std::ops::Range;

use crate::base::BaseChunk;
use crate::disk::Errno;
use crate::flight::{PRIORITY_GUEST, Wanted};
use crate::gate;
use crate::job::{Chunks, Job, Outcome};
use crate::live::Bits;
use crate::mirror::Mirror;
use crate::units::BLOCK_BYTES;

mod erase;
mod read;
#[cfg(all(test, not(feature = "shuttle")))]
mod tests;
mod write;

/// Why an attempt stopped.
#[derive(Debug, Clone, Copy)]
enum Stop {
    /// It needs chunks.
    Missing,
    /// The disk has no room.
    Full,
    /// It failed.
    Failed(Errno),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT) => Self::Full,
            errno => Self::Failed(errno.unwrap_or(libc::EIO)),
        }
    }
}

/// The gates that a request has for itself; it opens them when it goes.
struct Alone<'a> {
    mirror: &'a Mirror,
    mask: u64,
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        Job::wake_all(self.mirror.gates.open(self.mask));
    }
}

fn floor(offset: u64) -> u64 {
    offset / BLOCK_BYTES * BLOCK_BYTES
}

fn ceil(offset: u64) -> u64 {
    offset.next_multiple_of(BLOCK_BYTES)
}

fn is_edge(offset: u64) -> bool {
    offset % BLOCK_BYTES != 0
}

impl Mirror {
    /// Bounds, and whether the mirror still serves.
    #[inline]
    fn admit(&self, offset: u64, len: u64) -> Result<u64, Outcome> {
        if self.is_closing() {
            return Err(Outcome::Failed(libc::EIO));
        }
        match offset.checked_add(len) {
            Some(end) if end <= self.size_bytes() => Ok(end),
            _ => Err(Outcome::Failed(libc::EINVAL)),
        }
    }

    /// What is asked for of a chunk.
    pub(crate) fn wanted(&self, chunk: &BaseChunk<'_>, priority: u8) -> Wanted {
        Wanted {
            digest: *chunk.digest,
            key: self.key,
            chunk_size: self.chunk_size,
            priority,
            fetched_bytes: self.counters.fetched_bytes.clone(),
        }
    }

    fn outcome(&self, stop: Stop, ranges: &[Range<u64>], chunks: &Chunks) -> Outcome {
        match stop {
            Stop::Failed(errno) => Outcome::Failed(errno),
            Stop::Full => Outcome::Full,
            Stop::Missing if self.misses_ended() => Outcome::Failed(libc::EIO),
            Stop::Missing => Outcome::Missing(self.missing(ranges, chunks)),
        }
    }

    /// The chunks that byte ranges need and that are neither cached nor at hand.
    fn missing(&self, ranges: &[Range<u64>], chunks: &Chunks) -> Vec<Wanted> {
        let mut wanted: Vec<Wanted> = Vec::new();
        let slab = self.slab();
        for range in ranges {
            for chunk in range.start / self.chunk_size..range.end.div_ceil(self.chunk_size) {
                let from = (chunk * self.chunk_size).max(floor(range.start)) / BLOCK_BYTES;
                let to = ((chunk + 1) * self.chunk_size).min(ceil(range.end)) / BLOCK_BYTES;
                if self.live.all(Bits::Local, from..to) {
                    continue;
                }
                let Some(found) = self.base.chunk(chunk) else {
                    continue;
                };
                let known = chunks.iter().any(|(digest, _)| digest == found.digest)
                    || wanted.iter().any(|wanted| wanted.digest == *found.digest)
                    || slab.contains(found.digest);
                if !known {
                    wanted.push(self.wanted(&found, PRIORITY_GUEST));
                }
            }
        }
        wanted
    }

    /// The partial blocks of a byte range; a last one that ends with the disk is whole.
    fn edges(&self, offset: u64, end: u64) -> Vec<Range<u64>> {
        let mut edges = Vec::new();
        if is_edge(offset) {
            edges.push(floor(offset)..ceil(offset + 1));
        }
        if is_edge(end) && end != self.size_bytes() && (edges.is_empty() || floor(end) > offset) {
            edges.push(floor(end)..ceil(end));
        }
        edges
    }

    /// Runs `work` with its gates closed, its edges at hand and its blocks set aside for a COMMIT.
    fn alone(
        &self,
        blocks: &Range<u64>,
        edges: &[Range<u64>],
        chunks: &Chunks,
        work: impl FnOnce() -> Result<(), Stop>,
    ) -> Outcome {
        // Chunks are waited for outside; `work` looks again.
        if !self.at_hand(edges, chunks) {
            return self.outcome(Stop::Missing, edges, chunks);
        }
        let mask = gate::mask(blocks);
        if !self.gates.try_close(mask) {
            return Outcome::Closed(mask);
        }
        let _alone = Alone { mirror: self, mask };
        self.seal.protect(self, blocks.clone());
        match work() {
            Ok(()) => Outcome::Done,
            Err(stop) => self.outcome(stop, edges, chunks),
        }
    }

    fn at_hand(&self, edges: &[Range<u64>], chunks: &Chunks) -> bool {
        let mut byte = [0];
        edges.iter().all(|edge| {
            self.live.get(Bits::Local, edge.start / BLOCK_BYTES)
                || self
                    .base
                    .chunk(edge.start / self.chunk_size)
                    .is_none_or(|found| {
                        self.read_base(&found, edge.start % self.chunk_size, &mut byte, chunks)
                    })
        })
    }
}
