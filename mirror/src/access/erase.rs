// SPDX-License-Identifier: Apache-2.0
//! Discards and zeros: holes of the delta, whose edges are written.

use std::ops::Range;

use super::{Stop, ceil, floor};
use crate::gate;
use crate::job::{Chunks, Outcome};
use crate::live::Bits;
use crate::mirror::Mirror;
use crate::units::{BLOCK_BYTES, index};

impl Mirror {
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
        self.change(blocks, |_| {
            self.delta.punch(blocks.start * BLOCK_BYTES, len)
        })
    }
}
