// SPDX-License-Identifier: Apache-2.0
//! Reads, and where data and holes are: the delta, the cache, what came for the job, or zeros.

use std::io;

use super::{Stop, ceil, floor, is_edge};
use crate::base::BaseChunk;
use crate::buffer::{is_aligned, with_bounce};
use crate::cache::SlotRef;
use crate::job::{Chunks, Outcome};
use crate::live::Bits;
use crate::mirror::Mirror;
use crate::sync::atomic::Ordering;
use crate::sys::file;
use crate::units::{BLOCK_BYTES, index};

impl Mirror {
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

    pub(super) fn read_blocks(
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

    /// Reads from a chunk of the base; `false`: it is not here.
    #[inline]
    pub(super) fn read_base(
        &self,
        chunk: &BaseChunk<'_>,
        offset: u64,
        bytes: &mut [u8],
        chunks: &Chunks,
    ) -> bool {
        let slab = self.slab();
        if let Some(slot) = slab.acquire(chunk.hint()) {
            if slot.read(offset, bytes).is_ok() {
                if !chunk.is_touched() {
                    self.touched(chunk, &slot);
                }
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

    #[cold]
    fn touched(&self, chunk: &BaseChunk<'_>, slot: &SlotRef<'_>) {
        chunk.touch(self.slab(), slot);
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
