// SPDX-License-Identifier: Apache-2.0
//! Copy before write: what a frozen chunk held is set aside before a guest changes it.
//!
//! Called behind the gates, by whoever is about to change blocks. What it leaves is a mark for every
//! block of a protected chunk that has changed since the freeze: *saved*, its old bytes lie in the
//! saved copies, or *base*, it was not local then. Invariants 2, 3 and 5 of the parent module.
//!
//! What is near is set aside along with it: a disk reads [`WINDOW_BLOCKS`] in hardly more time than
//! one, and a guest that writes here and there comes back to most windows while a COMMIT goes on.
//! The copies go to the page cache (`delta`), so the guest waits for one read and no write.

use crate::sync::atomic::Ordering;
use std::ops::Range;

use super::Seal;
use crate::buffer::with_bounce;
use crate::event::Event;
use crate::live::Bits;
use crate::mirror::Mirror;
use crate::units::{BLOCK_BYTES, index};

/// What is set aside at once: 64 KiB, aligned, so that it lies behind the gate of each of its blocks.
const WINDOW_BLOCKS: u64 = 16;

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
            if let Err(error) = save(mirror, &part) {
                self.give_up(mirror, &error);
                return;
            }
        }
    }

    /// The COMMIT fails; the guest goes on.
    pub(super) fn give_up(&self, mirror: &Mirror, error: &std::io::Error) {
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

/// Saves and marks the blocks of a chunk that have no mark yet, and what is near them.
fn save(mirror: &Mirror, blocks: &Range<u64>) -> std::io::Result<()> {
    let live = &mirror.live;
    let must_save = |block| live.get(Bits::Local, block) && !is_marked(mirror, block..block + 1);
    let window = window(mirror, blocks);
    if window != *blocks && blocks.clone().any(must_save) {
        // A disk with no room for the window may have some for what must be.
        if save_within(mirror, &window, blocks).is_ok() {
            return Ok(());
        }
    }
    save_within(mirror, blocks, blocks)
}

/// The windows of some blocks, no further than their chunk and the disk.
fn window(mirror: &Mirror, blocks: &Range<u64>) -> Range<u64> {
    let chunk_blocks = mirror.chunk_size / BLOCK_BYTES;
    let chunk = blocks.start / chunk_blocks;
    let start = blocks.start / WINDOW_BLOCKS * WINDOW_BLOCKS;
    let end = blocks.end.next_multiple_of(WINDOW_BLOCKS);
    let limit = ((chunk + 1) * chunk_blocks).min(mirror.blocks());
    start.max(chunk * chunk_blocks)..end.min(limit)
}

/// Saves what is local of a window and has no mark; marks the rest of the blocks.
fn save_within(mirror: &Mirror, window: &Range<u64>, blocks: &Range<u64>) -> std::io::Result<()> {
    let live = &mirror.live;
    let mut at = window.start;
    while at < window.end {
        let marked = live.get(Bits::Saved, at) || live.get(Bits::Base, at);
        let local = live.get(Bits::Local, at);
        let mut to = at + 1;
        while to < window.end
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
            let (from, to) = (at.max(blocks.start), to.min(blocks.end));
            live.set(Bits::Base, from..to.max(from));
        }
        at = to;
    }
    Ok(())
}
