// SPDX-License-Identifier: Apache-2.0
//! Who reads a slot: references, by hint without a lock or by digest, and the pins of mirrors.

use crate::sync::atomic::Ordering;
use std::io;
use std::os::unix::fs::FileExt;

use super::books::Inner;
use super::{GENERATION, REFERENCES, Slab};
use crate::engine::Digest;

/// A reference to a present slot: it stays while this lives.
#[derive(Debug)]
pub struct SlotRef<'a> {
    slab: &'a Slab,
    pub(super) slot: u32,
    /// What to remember for the next [`Slab::acquire`].
    pub hint: u64,
}

impl SlotRef<'_> {
    /// Reads from the chunk.
    #[inline]
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let at = u64::from(self.slot) * self.slab.chunk_size + offset;
        self.slab.buffered.read_exact_at(bytes, at)
    }

    /// Reads what the disk holds, past the page cache; aligned.
    pub fn read_direct(&self, bytes: &mut [u8]) -> io::Result<()> {
        let at = u64::from(self.slot) * self.slab.chunk_size;
        self.slab.direct.read_exact_at(bytes, at)
    }

    /// Its number.
    pub fn slot(&self) -> u32 {
        self.slot
    }
}

impl Drop for SlotRef<'_> {
    fn drop(&mut self) {
        self.slab.slots[self.slot as usize]
            .word
            .fetch_sub(1, Ordering::Release);
    }
}

impl Slab {
    /// A reference by hint, without a lock; `None` if the guess is old.
    #[inline]
    pub fn acquire(&self, hint: u64) -> Option<SlotRef<'_>> {
        let found = self.acquire_unused(hint)?;
        let (used, now) = (
            &self.slots[found.slot as usize].used,
            self.clock.load(Ordering::Relaxed),
        );
        if used.load(Ordering::Relaxed) != now {
            used.store(now, Ordering::Relaxed);
        }
        Some(found)
    }

    /// As [`Slab::acquire`], and it does not count as a use.
    #[inline]
    pub fn acquire_unused(&self, hint: u64) -> Option<SlotRef<'_>> {
        let number = hint & REFERENCES;
        if number == 0 {
            return None;
        }
        let slot = u32::try_from(number - 1).ok()?;
        let word = &self.slots.get(slot as usize)?.word;
        if word.fetch_add(1, Ordering::AcqRel) / GENERATION != hint / GENERATION {
            word.fetch_sub(1, Ordering::Release);
            return None;
        }
        Some(SlotRef {
            slab: self,
            slot,
            hint,
        })
    }

    /// Whether the chunk is there, checked or not.
    pub fn contains(&self, digest: &Digest) -> bool {
        self.lock().by_digest.contains_key(digest)
    }

    /// A reference by digest, and whether its content was checked.
    pub fn find(&self, digest: &Digest) -> Option<(SlotRef<'_>, bool)> {
        let mut inner = self.lock();
        let slot = *inner.by_digest.get(digest)?;
        let checked = inner.present(slot)?.checked;
        Some((self.acquire(self.hint(slot))?, checked))
    }

    /// A reference by digest and the digest's key; no use of it is counted.
    pub fn find_keyed(&self, digest: &Digest) -> Option<(SlotRef<'_>, [u8; 32])> {
        let mut inner = self.lock();
        let slot = *inner.by_digest.get(digest)?;
        let present = *inner.present(slot)?;
        let key = *inner.keys.get(present.key as usize)?;
        Some((self.acquire_unused(self.hint(slot))?, key))
    }

    /// The next present slot at or after one, its digest and its key: what the scrub reads.
    pub fn find_from(&self, slot: u32) -> Option<(SlotRef<'_>, Digest, [u8; 32])> {
        let mut inner = self.lock();
        let count = u32::try_from(inner.held.len()).ok()?;
        let (slot, present) =
            (slot..count).find_map(|slot| inner.present(slot).map(|found| (slot, *found)))?;
        let key = *inner.keys.get(present.key as usize)?;
        Some((self.acquire_unused(self.hint(slot))?, present.digest, key))
    }

    pub(super) fn hint(&self, slot: u32) -> u64 {
        let generation = self.slots[slot as usize].word.load(Ordering::Acquire) / GENERATION;
        generation * GENERATION + u64::from(slot) + 1
    }

    /// The slot holds what it should.
    pub fn set_checked(&self, slot: &SlotRef<'_>) {
        if let Some(present) = self.lock().present(slot.slot) {
            present.checked = true;
        }
    }

    /// Who shares a leaf of a manifest touched it; the leaf says so once, and takes it back by
    /// [`Slab::unpin`].
    pub fn pin(&self, inner: &mut Inner, hint: u64) {
        self.change_pins(inner, hint, |pins| pins.saturating_add(1));
        // Who reads it next is younger than who brought it.
        self.clock.fetch_add(1, Ordering::Relaxed);
    }

    /// The mirrors that touched it are gone, or the chunk is elsewhere.
    pub fn unpin(&self, inner: &mut Inner, hint: u64) {
        self.change_pins(inner, hint, |pins| pins.saturating_sub(1));
    }

    /// With the lock held no slot goes to another chunk: one whose generation is the hint's is it.
    fn change_pins(&self, inner: &mut Inner, hint: u64, change: impl FnOnce(u32) -> u32) {
        let slot = (hint & REFERENCES).checked_sub(1);
        let Some(slot) = slot.and_then(|slot| u32::try_from(slot).ok()) else {
            return;
        };
        if slot as usize >= inner.held.len() || self.hint(slot) != hint {
            return;
        }
        let Some(present) = inner.present(slot) else {
            return;
        };
        let was = present.pins > 0;
        present.pins = change(present.pins);
        let is = present.pins > 0;
        if was != is {
            inner.pools.remove(slot);
            inner.pools.insert(slot, is);
        }
    }
}
