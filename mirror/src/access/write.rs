// SPDX-License-Identifier: Apache-2.0
//! Writes: whole blocks beside others, parts of blocks alone.

use std::io;
use std::ops::Range;

use super::{Stop, ceil, floor, is_edge};
use crate::buffer::{Buffer, is_aligned, with_bounce};
use crate::gate;
use crate::job::{Chunks, Outcome};
use crate::live::Bits;
use crate::mirror::Mirror;
use crate::units::{BLOCK_BYTES, index};

impl Mirror {
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

    /// Writes bytes of any alignment, the rest of their blocks filled in first.
    pub(super) fn fill_and_put(
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
        self.change(blocks, |is_new| {
            let write = |bytes: &[u8]| {
                if is_new {
                    self.delta.write_new(offset, bytes)
                } else {
                    self.delta.write(offset, bytes)
                }
            };
            if is_aligned(data) {
                return write(data);
            }
            with_bounce(data.len(), |aligned| {
                aligned.copy_from_slice(data);
                write(aligned)
            })
        })
    }

    /// Marks blocks around a change of the delta, in the order of rule 1. It is told whether any
    /// of them is not local yet, and so may be a hole there.
    pub(super) fn change(
        &self,
        blocks: &Range<u64>,
        change: impl Fn(bool) -> io::Result<()>,
    ) -> Result<(), Stop> {
        if self.live.set(self.live.dirty(), blocks.clone()) {
            self.pages.touch(blocks.clone());
        }
        let is_new = !self.live.all(Bits::Local, blocks.clone());
        let retry = || {
            let wanted = (blocks.end - blocks.start) * BLOCK_BYTES;
            self.core
                .cache
                .making_way(self.delta.device(), wanted, || change(is_new))
        };
        if !is_new {
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
}
