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

use crate::sync::atomic::Ordering;
use std::io;
use std::ops::Range;

use crate::base::BaseChunk;
use crate::buffer::{Buffer, is_aligned, with_bounce};
use crate::cache::SlotRef;
use crate::disk::Errno;
use crate::flight::{PRIORITY_GUEST, Wanted};
use crate::gate;
use crate::job::{Chunks, Outcome};
use crate::live::Bits;
use crate::mirror::Mirror;
use crate::sys::file;
use crate::units::{BLOCK_BYTES, index};

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
        for job in self.mirror.gates.open(self.mask) {
            job.wake();
        }
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

    /// Reads from a chunk of the base; `false`: it is not here.
    #[inline]
    fn read_base(
        &self,
        chunk: &BaseChunk<'_>,
        offset: u64,
        bytes: &mut [u8],
        chunks: &Chunks,
    ) -> bool {
        let slab = self.slab();
        if let Some(slot) = slab.acquire(chunk.hint()) {
            if slot.read(offset, bytes).is_ok() {
                self.counters.cache_hits.fetch_add(1, Ordering::Relaxed);
                return true;
            }
        }
        self.read_base_slowly(chunk, offset, bytes, chunks)
    }

    #[cold]
    fn read_base_slowly(
        &self,
        chunk: &BaseChunk<'_>,
        offset: u64,
        bytes: &mut [u8],
        chunks: &Chunks,
    ) -> bool {
        let (cache, slab) = (&self.core.cache, self.slab());
        if let Some((_, content)) = chunks.iter().find(|(digest, _)| digest == chunk.digest) {
            let from = index(offset);
            bytes.copy_from_slice(&content.as_ref().as_ref()[from..from + bytes.len()]);
            if let Some((slot, true)) = slab.find(chunk.digest) {
                self.touched(chunk, &slot);
            }
            return true;
        }
        let Some(slot) = cache.lookup(slab, chunk.digest, &self.key) else {
            self.counters.cache_misses.fetch_add(1, Ordering::Relaxed);
            return false;
        };
        if let Err(error) = slot.read(offset, bytes) {
            // A bad sector of the cache's disk: the store still has the chunk.
            cache.refuse(slab, &slot, chunk.digest, &error.to_string());
            return false;
        }
        self.touched(chunk, &slot);
        self.counters.cache_hits.fetch_add(1, Ordering::Relaxed);
        true
    }

    /// The next read finds the slot without a lock, and evictions know whose it is.
    fn touched(&self, chunk: &BaseChunk<'_>, slot: &SlotRef<'_>) {
        if chunk.set_hint(slot.hint) {
            self.slab().pin(slot);
        }
    }

    fn read_delta(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        if !is_edge(offset) && is_aligned(bytes) {
            return self.delta.read(offset, bytes);
        }
        let from = floor(offset);
        let span = ceil(offset + bytes.len() as u64) - from;
        with_bounce(index(span), |blocks| {
            self.delta.read(from, blocks)?;
            let skip = index(offset - from);
            bytes.copy_from_slice(&blocks[skip..skip + bytes.len()]);
            Ok(())
        })
    }

    pub(crate) fn attempt_read(&self, offset: u64, buf: &mut [u8], chunks: &Chunks) -> Outcome {
        let end = match self.admit(offset, buf.len() as u64) {
            Ok(end) => end,
            Err(outcome) => return outcome,
        };
        match self.read_blocks(offset, end, buf, chunks) {
            Ok(()) => Outcome::Done,
            Err(stop) => self.outcome(stop, std::slice::from_ref(&(offset..end)), chunks),
        }
    }

    fn read_blocks(
        &self,
        offset: u64,
        end: u64,
        buf: &mut [u8],
        chunks: &Chunks,
    ) -> Result<(), Stop> {
        let mut at = offset;
        while at < end {
            let block = at / BLOCK_BYTES;
            let local = self.live.get(Bits::Local, block);
            let chunk = at / self.chunk_size;
            let limit = if local {
                end
            } else {
                end.min((chunk + 1) * self.chunk_size)
            };
            // A block that became local since is looked at again: its neighbours may be so for long.
            let run = self
                .live
                .run_end(Bits::Local, local, block, limit.div_ceil(BLOCK_BYTES));
            let to = limit.min(run * BLOCK_BYTES).max(at);
            let bytes = &mut buf[index(at - offset)..index(to - offset)];
            if local {
                self.read_delta(at, bytes)?;
            } else if let Some(found) = self.base.chunk(chunk) {
                if !self.read_base(&found, at % self.chunk_size, bytes, chunks) {
                    return Err(Stop::Missing);
                }
            } else {
                bytes.fill(0);
            }
            at = to;
        }
        Ok(())
    }

    pub(crate) fn attempt_write(&self, offset: u64, data: &[u8], chunks: &Chunks) -> Outcome {
        let end = match self.admit(offset, data.len() as u64) {
            Ok(end) => end,
            Err(outcome) => return outcome,
        };
        let blocks = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        let gates = gate::mask(&blocks);
        if !is_edge(offset) && !is_edge(end) {
            let Some(_shared) = self.gates.pass(gates) else {
                return Outcome::Closed(gates);
            };
            if !self.seal.protects(self, blocks.clone()) {
                return match self.put(&blocks, data) {
                    Ok(()) => Outcome::Done,
                    Err(stop) => self.outcome(stop, &[], chunks),
                };
            }
        }
        self.alone(&blocks, &self.edges(offset, end), chunks, || {
            self.fill_and_put(offset, end, data, chunks)
        })
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

    /// Writes bytes of any alignment, the rest of their blocks filled in first.
    fn fill_and_put(
        &self,
        offset: u64,
        end: u64,
        data: &[u8],
        chunks: &Chunks,
    ) -> Result<(), Stop> {
        let (from, to) = (floor(offset), ceil(end));
        let block = index(BLOCK_BYTES);
        let blocks = from / BLOCK_BYTES..to / BLOCK_BYTES;
        if from == offset && to == end {
            return self.put(&blocks, data);
        }
        let mut whole = Buffer::zeroed(index(to - from));
        let bytes = whole.as_mut();
        if is_edge(offset) {
            self.read_blocks(from, from + BLOCK_BYTES, &mut bytes[..block], chunks)?;
        }
        if is_edge(end) && (blocks.end - blocks.start > 1 || !is_edge(offset)) {
            // Past the end of the disk this reads zeros, as the block must hold there.
            let last = bytes.len() - block;
            if end != self.size_bytes() {
                self.read_blocks(to - BLOCK_BYTES, to, &mut bytes[last..], chunks)?;
            }
        }
        let skip = index(offset - from);
        bytes[skip..skip + data.len()].copy_from_slice(data);
        self.put(&blocks, bytes)
    }

    /// Rule 1: dirty, data, local. The caller has passed, or closed, the gates.
    fn put(&self, blocks: &Range<u64>, data: &[u8]) -> Result<(), Stop> {
        let offset = blocks.start * BLOCK_BYTES;
        self.change(blocks, || {
            if is_aligned(data) {
                return self.delta.write(offset, data);
            }
            with_bounce(data.len(), |aligned| {
                aligned.copy_from_slice(data);
                self.delta.write(offset, aligned)
            })
        })
    }

    /// Marks blocks around a change of the delta, in the order of rule 1.
    fn change(&self, blocks: &Range<u64>, change: impl Fn() -> io::Result<()>) -> Result<(), Stop> {
        if self.live.set(self.live.dirty(), blocks.clone()) {
            self.pages.touch(blocks.clone());
        }
        let retry = || {
            let wanted = (blocks.end - blocks.start) * BLOCK_BYTES;
            self.core
                .cache
                .making_way(self.delta.device(), wanted, &change)
        };
        if self.live.all(Bits::Local, blocks.clone()) {
            return Ok(retry()?);
        }
        self.pages.begin(blocks.clone());
        let result = retry();
        if result.is_ok() {
            self.live.set(Bits::Local, blocks.clone());
        }
        self.pages.end(blocks.clone());
        Ok(result?)
    }

    pub(crate) fn attempt_discard(&self, offset: u64, len: u64) -> Outcome {
        let end = match self.admit(offset, len) {
            Ok(end) => end,
            Err(outcome) => return outcome,
        };
        let end = if end == self.size_bytes() {
            ceil(end)
        } else {
            floor(end)
        };
        self.erase_whole(ceil(offset) / BLOCK_BYTES..end / BLOCK_BYTES)
    }

    fn erase_whole(&self, blocks: Range<u64>) -> Outcome {
        if blocks.is_empty() {
            return Outcome::Done;
        }
        if let Err(outcome) = self.set_aside(&blocks) {
            return outcome;
        }
        let gates = gate::mask(&blocks);
        let Some(_shared) = self.gates.pass(gates) else {
            return Outcome::Closed(gates);
        };
        if self.seal.protects(self, blocks.clone()) {
            // Sealed since: it is tried again at once.
            return Outcome::Closed(gates);
        }
        match self.erase(&blocks) {
            Ok(()) => Outcome::Done,
            Err(stop) => self.outcome(stop, &[], &[]),
        }
    }

    /// Sets blocks aside for a COMMIT, a gate's at a time: they may be the whole disk, and writes
    /// elsewhere must not wait for so many copies. What was set aside stays so for the next attempt.
    fn set_aside(&self, blocks: &Range<u64>) -> Result<(), Outcome> {
        if !self.seal.is_active() {
            return Ok(());
        }
        for piece in gate::pieces(blocks) {
            if self.seal.protects(self, piece.clone()) {
                match self.alone(&piece, &[], &[], || Ok(())) {
                    Outcome::Done => {}
                    outcome => return Err(outcome),
                }
            }
        }
        Ok(())
    }

    /// Makes whole blocks zeros: local and a hole, or left alone over a hole of the base (rule 7).
    fn erase(&self, blocks: &Range<u64>) -> Result<(), Stop> {
        let chunk_blocks = self.chunk_size / BLOCK_BYTES;
        let mut pending: Range<u64> = 0..0;
        let mut at = blocks.start;
        while at < blocks.end {
            let chunk = at / chunk_blocks;
            let limit = blocks.end.min((chunk + 1) * chunk_blocks);
            let local = self.live.get(Bits::Local, at);
            let to = self.live.run_end(Bits::Local, local, at, limit).max(at);
            if local || self.base.chunk(chunk).is_some() {
                if pending.end != at {
                    self.erase_run(&pending)?;
                    pending = at..at;
                }
                pending.end = to;
            }
            at = to;
        }
        self.erase_run(&pending)
    }

    fn erase_run(&self, blocks: &Range<u64>) -> Result<(), Stop> {
        if blocks.is_empty() {
            return Ok(());
        }
        let len = (blocks.end - blocks.start) * BLOCK_BYTES;
        self.change(blocks, || self.delta.punch(blocks.start * BLOCK_BYTES, len))
    }

    pub(crate) fn attempt_zero(&self, offset: u64, len: u64, chunks: &Chunks) -> Outcome {
        let end = match self.admit(offset, len) {
            Ok(end) => end,
            Err(outcome) => return outcome,
        };
        if len == 0 {
            return Outcome::Done;
        }
        let edges = self.edges(offset, end);
        let past = if end == self.size_bytes() {
            ceil(end)
        } else {
            floor(end)
        };
        let whole = ceil(offset) / BLOCK_BYTES..past / BLOCK_BYTES;
        if edges.is_empty() {
            return self.erase_whole(whole);
        }
        if let Err(outcome) = self.set_aside(&whole) {
            return outcome;
        }
        let blocks = offset / BLOCK_BYTES..end.div_ceil(BLOCK_BYTES);
        self.alone(&blocks, &edges, chunks, || {
            const ZEROS: [u8; index(BLOCK_BYTES)] = [0; index(BLOCK_BYTES)];
            for edge in &edges {
                let is_local = self.live.get(Bits::Local, edge.start / BLOCK_BYTES);
                if is_local || self.base.chunk(edge.start / self.chunk_size).is_some() {
                    let (from, to) = (offset.max(edge.start), end.min(edge.end));
                    self.fill_and_put(from, to, &ZEROS[..index(to - from)], chunks)?;
                }
            }
            if whole.is_empty() {
                Ok(())
            } else {
                self.erase(&whole)
            }
        })
    }

    /// The next data, or hole, at or after `offset`.
    pub(crate) fn find(&self, offset: u64, hole: bool) -> Option<u64> {
        let size = self.size_bytes();
        let mut at = offset;
        while at < size {
            let block = at / BLOCK_BYTES;
            let chunk = at / self.chunk_size;
            let local = self.live.get(Bits::Local, block);
            let limit = size.min((chunk + 1) * self.chunk_size);
            let run = self
                .live
                .run_end(Bits::Local, local, block, limit.div_ceil(BLOCK_BYTES));
            let to = limit.min(run * BLOCK_BYTES).max(at);
            if to == at {
                continue;
            }
            if local {
                match file::seek(self.delta.file(), at, hole) {
                    Ok(Some(found)) if found < to => return Some(found),
                    Ok(_) => {}
                    // Who cannot tell says data.
                    Err(_) if hole => {}
                    Err(_) => return Some(at),
                }
            } else if self.base.chunk(chunk).is_none() == hole {
                return Some(at);
            }
            at = to;
        }
        // The end of the disk is a hole.
        (hole && offset < size).then_some(size)
    }
}
