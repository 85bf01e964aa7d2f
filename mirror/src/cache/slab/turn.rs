// SPDX-License-Identifier: Apache-2.0
//! How a slot goes from one chunk to the next: taken, filled, shown, evicted, condemned, freed.
//!
//! What takes `inner` is called with the slab's lock held; [`Slab::write`] without it, for nobody
//! else knows the slot yet.

use crate::sync::atomic::Ordering;
use std::io;
use std::os::unix::fs::FileExt;

use super::books::{Held, Inner, Present};
use super::reference::SlotRef;
use super::{GENERATION, REFERENCES, Slab};
use crate::cache::index::Entry;
use crate::cache::lru::Victim;
use crate::engine::Digest;
use crate::sys::file;

impl Slab {
    /// A free slot to fill, if the slab has one.
    pub fn take(&self, inner: &mut Inner) -> Option<u32> {
        let slot = inner.free.pop().or_else(|| {
            let next = inner.held.len();
            if next >= self.slots.len() {
                return None;
            }
            inner.held.push(Held::Nothing);
            self.slots[next].word.store(GENERATION, Ordering::Release);
            u32::try_from(next).ok()
        })?;
        inner.held[slot as usize] = Held::Filling;
        Some(slot)
    }

    /// Who would leave first.
    pub fn victim(&self, inner: &mut Inner) -> Option<Victim> {
        inner.pools.victim(|slot| {
            let slot = &self.slots[slot as usize];
            let free = slot.word.load(Ordering::Relaxed) & REFERENCES == 0;
            free.then(|| slot.used.load(Ordering::Relaxed))
        })
    }

    /// Takes a present slot away from its chunk; `false`: somebody reads it. It is Filling then.
    pub fn evict(&self, inner: &mut Inner, slot: u32) -> bool {
        if inner.present(slot).is_none() {
            return false;
        }
        let word = &self.slots[slot as usize].word;
        let old = word.load(Ordering::Acquire);
        let next = (old & !REFERENCES).wrapping_add(GENERATION);
        if old & REFERENCES != 0
            || word
                .compare_exchange(old, next, Ordering::AcqRel, Ordering::Relaxed)
                .is_err()
        {
            return false;
        }
        inner.drop_name(slot);
        inner.held[slot as usize] = Held::Filling;
        self.index.clear(slot);
        true
    }

    /// Gives a slot that nobody holds any more back to the file system.
    pub fn free(&self, inner: &mut Inner, slot: u32) {
        let at = u64::from(slot) * self.chunk_size;
        // If this fails the space comes back when the slot is used again.
        let _ = file::punch(&self.direct, at, self.chunk_size);
        inner.held[slot as usize] = Held::Nothing;
        inner.free.push(slot);
    }

    /// Forgets a slot that does not hold what it should; `false`: it was no longer there.
    pub fn condemn(&self, slot: &SlotRef<'_>, digest: &Digest) -> bool {
        let mut inner = self.lock();
        if inner.by_digest.get(digest) != Some(&slot.slot) {
            return false;
        }
        inner.drop_name(slot.slot);
        inner.held[slot.slot as usize] = Held::Doomed;
        inner.doomed.push(slot.slot);
        self.slots[slot.slot as usize]
            .word
            .fetch_add(GENERATION, Ordering::AcqRel);
        self.index.clear(slot.slot);
        true
    }

    /// Frees what was condemned and is no longer read; how many bytes.
    pub fn reap(&self, inner: &mut Inner) -> u64 {
        if inner.doomed.is_empty() {
            return 0;
        }
        let (free, doomed) = std::mem::take(&mut inner.doomed)
            .into_iter()
            .partition::<Vec<_>, _>(|&slot| {
                self.slots[slot as usize].word.load(Ordering::Acquire) & REFERENCES == 0
            });
        inner.doomed = doomed;
        for &slot in &free {
            self.free(inner, slot);
        }
        free.len() as u64 * self.chunk_size
    }

    /// Writes the content of a slot that is being filled, and its name; nobody sees it yet.
    pub fn write(
        &self,
        slot: u32,
        content: &[u8],
        digest: &Digest,
        key: &[u8; 32],
    ) -> io::Result<()> {
        let at = u64::from(slot) * self.chunk_size;
        self.direct.write_all_at(content, at)?;
        let entry = Entry {
            digest: *digest,
            key: *key,
            used: self.clock.load(Ordering::Relaxed),
            checked: true,
        };
        self.index.set(slot, &entry)
    }

    /// Shows a slot that was filled; `false`: another slot was faster, this one is given back.
    pub fn publish(&self, inner: &mut Inner, slot: u32, digest: &Digest, key: &[u8; 32]) -> bool {
        if inner.by_digest.contains_key(digest) {
            self.index.clear(slot);
            self.free(inner, slot);
            return false;
        }
        let now = self.clock.fetch_add(1, Ordering::Relaxed) + 1;
        self.slots[slot as usize].used.store(now, Ordering::Relaxed);
        let key = inner.key(key);
        let present = Present {
            digest: *digest,
            key,
            pins: 0,
            checked: true,
            noted: now,
        };
        inner.add(slot, present);
        true
    }
}
