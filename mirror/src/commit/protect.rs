// SPDX-License-Identifier: Apache-2.0
//! Copy before write: what a frozen chunk held is set aside before a guest changes it.
//!
//! Called behind the gates, by whoever is about to change blocks. What it leaves is a mark for every
//! block of a protected chunk that has changed since the freeze: *saved*, its old bytes lie in the
//! saved copies, or *base*, it was not local then. Invariants 2, 3 and 5 of the parent module.

use crate::sync::atomic::Ordering;
use std::ops::Range;

use super::Seal;
use crate::buffer::with_bounce;
use crate::event::Event;
use crate::live::Bits;
use crate::mirror::Mirror;
use crate::units::{BLOCK_BYTES, index};

impl Seal {
    pub(super) fn is_released(&self, chunk: u64) -> bool {
        self.released
            .get(index(chunk / 64))
            .is_none_or(|word| word.load(Ordering::SeqCst) >> (chunk % 64) & 1 == 1)
    }

    /// The parts of a range that are protected, a chunk each.
    fn protected<'a>(
        &'a self,
        mirror: &'a Mirror,
        blocks: Range<u64>,
    ) -> impl Iterator<Item = Range<u64>> + 'a {
        let chunk_blocks = mirror.chunk_size / BLOCK_BYTES;
        let chunks = if self.is_active() {
            blocks.start / chunk_blocks..blocks.end.div_ceil(chunk_blocks)
        } else {
            0..0
        };
        let frozen = mirror.live.frozen();
        let limit = mirror.blocks();
        chunks
            .filter(move |&chunk| {
                let whole = chunk * chunk_blocks..((chunk + 1) * chunk_blocks).min(limit);
                !self.is_released(chunk)
                    && mirror.live.run_end(frozen, false, whole.start, whole.end) < whole.end
            })
            .map(move |chunk| {
                let from = blocks.start.max(chunk * chunk_blocks);
                from..blocks.end.min((chunk + 1) * chunk_blocks)
            })
    }

    /// Whether a block of the range must be set aside before it changes.
    #[inline]
    pub(crate) fn protects(&self, mirror: &Mirror, blocks: Range<u64>) -> bool {
        self.is_active()
            && self
                .protected(mirror, blocks)
                .any(|part| !is_marked(mirror, part))
    }

    /// Sets a range's blocks aside; the caller is alone there.
    pub(crate) fn protect(&self, mirror: &Mirror, blocks: Range<u64>) {
        let parts: Vec<_> = self.protected(mirror, blocks).collect();
        for part in parts {
            if let Err(error) = save(mirror, part) {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                // In this order: who reads checks `given_up` last.
                self.given_up.store(errno, Ordering::SeqCst);
                self.active.store(false, Ordering::SeqCst);
                mirror.core.events.push(
                    Event::new("alarm")
                        .text("what", "COMMIT given up: a block could not be set aside")
                        .text("instance", &mirror.instance)
                        .text("disk", &mirror.disk)
                        .text("error", error.to_string()),
                );
                return;
            }
        }
    }
}

fn is_marked(mirror: &Mirror, blocks: Range<u64>) -> bool {
    let mut at = blocks.start;
    while at < blocks.end {
        let to = mirror.live.run_end(Bits::Saved, true, at, blocks.end);
        let to = mirror.live.run_end(Bits::Base, true, to, blocks.end);
        if to == at {
            return false;
        }
        at = to;
    }
    true
}

/// Saves and marks the blocks that have no mark yet.
fn save(mirror: &Mirror, blocks: Range<u64>) -> std::io::Result<()> {
    let live = &mirror.live;
    let mut at = blocks.start;
    while at < blocks.end {
        let marked = live.get(Bits::Saved, at) || live.get(Bits::Base, at);
        let local = live.get(Bits::Local, at);
        let mut to = at + 1;
        while to < blocks.end
            && (live.get(Bits::Saved, to) || live.get(Bits::Base, to)) == marked
            && live.get(Bits::Local, to) == local
        {
            to += 1;
        }
        if !marked && local {
            let (offset, len) = (at * BLOCK_BYTES, index((to - at) * BLOCK_BYTES));
            with_bounce(len, |bytes| {
                mirror.delta.read(offset, bytes)?;
                let (bytes, saved) = (&*bytes, &mirror.saved);
                // The cache goes before a COMMIT is given up (rule 41).
                let write = || saved.write(offset, bytes);
                let cache = &mirror.core.cache;
                cache.making_way(saved.device(), len as u64, write)
            })?;
            live.set(Bits::Saved, at..to);
            mirror
                .counters
                .saved_blocks
                .fetch_add(to - at, Ordering::Relaxed);
        } else if !marked {
            live.set(Bits::Base, at..to);
        }
        at = to;
    }
    Ok(())
}
