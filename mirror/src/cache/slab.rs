// SPDX-License-Identifier: Apache-2.0
//! The slots of one chunk size: a file, who reads which slot, what each holds.
//!
//! ```text
//!            take            fill             evict
//!  Nothing ───────▶ Filling ───────▶ Present ───────▶ Filling, or Nothing and a hole
//!     ▲                │ failed         │ it does not hold what it should
//!     ├────────────────┘                ▼
//!     └───────────────────────────── Doomed (until nobody reads it)
//! ```
//!
//! # Invariants
//!
//! 1. A word's high half is the slot's generation, its low half counts who reads. A slot is taken
//!    away only in one step from no readers to the next generation, so that no reader ever sees
//!    another chunk's bytes; a hint of an old generation finds nothing.
//! 2. A doomed slot gets its next generation at once, readers or not: nobody new comes, and it is
//!    free when the last one has left.
//! 3. A slot is named by `by_digest` if and only if it is present.
//!
//! # Threads
//!
//! [`Slab::acquire`] takes no lock: one atomic add, one compare. All else is under the slab's lock,
//! except the content's transfer. Slots are written `O_DIRECT` and read through the page cache, so
//! that what one mirror read is warm for the next.

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use zerocopy::FromZeros;

use super::index::{Entry, Index};
use super::lru::{Pools, Victim};
use crate::engine::Digest;
use crate::error::{Error, Result};
use crate::sys::file::{self, Create};
use crate::units::{index, lock};

const REFERENCES: u64 = (1 << 32) - 1;
const GENERATION: u64 = 1 << 32;
/// Slots whose index entries are written at once.
const RUN_SLOTS: u32 = 64;

#[derive(Debug, FromZeros)]
struct Slot {
    /// High half: generation; low half: references.
    word: AtomicU64,
    /// The cache's clock when it was used last.
    used: AtomicU64,
}

/// The slots of one chunk size.
#[derive(Debug)]
pub struct Slab {
    chunk_size: u64,
    direct: File,
    buffered: File,
    index: Index,
    slots: Vec<Slot>,
    /// Counts the chunks that were filled, and touched first, in all slabs.
    clock: Arc<AtomicU64>,
    inner: Mutex<Inner>,
}

/// What a slab's lock protects.
#[derive(Debug, Default)]
pub struct Inner {
    by_digest: HashMap<Digest, u32>,
    /// By slot: what it holds.
    held: Vec<Held>,
    free: Vec<u32>,
    doomed: Vec<u32>,
    pools: Pools,
    keys: Vec<[u8; 32]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Nothing,
    Filling,
    Doomed,
    Present(Present),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Present {
    digest: Digest,
    /// Its place in `keys`.
    key: u32,
    /// Attached mirrors that touched it.
    pins: u32,
    checked: bool,
    /// The stamp in the index.
    noted: u64,
}

impl Inner {
    /// Whether the chunk is there.
    pub fn names(&self, digest: &Digest) -> bool {
        self.by_digest.contains_key(digest)
    }

    fn key(&mut self, key: &[u8; 32]) -> u32 {
        let at = self.keys.iter().position(|known| known == key);
        let at = at.unwrap_or_else(|| {
            self.keys.push(*key);
            self.keys.len() - 1
        });
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    fn present(&mut self, slot: u32) -> Option<&mut Present> {
        match self.held.get_mut(slot as usize) {
            Some(Held::Present(present)) => Some(present),
            _ => None,
        }
    }

    fn add(&mut self, slot: u32, present: Present) {
        self.by_digest.insert(present.digest, slot);
        self.held[slot as usize] = Held::Present(present);
        self.pools.insert(slot, present.pins > 0);
    }

    fn drop_name(&mut self, slot: u32) {
        if let Held::Present(present) = self.held[slot as usize] {
            self.by_digest.remove(&present.digest);
            self.pools.remove(slot);
        }
    }
}

/// A reference to a present slot: it stays while this lives.
#[derive(Debug)]
pub struct SlotRef<'a> {
    slab: &'a Slab,
    slot: u32,
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
    /// Opens or makes the files. What the index does not name gives its space back.
    pub fn open(
        directory: &Path,
        chunk_size: u64,
        bytes_max: u64,
        clock: &Arc<AtomicU64>,
    ) -> Result<Self> {
        let path = directory.join(format!("slab-{chunk_size}"));
        let direct =
            file::open(&path, Create::Maybe, true).map_err(|e| Error::io("open", &path, e))?;
        let buffered =
            file::open(&path, Create::Maybe, false).map_err(|e| Error::io("open", &path, e))?;
        // Pinned by a dead engine's write that is still under way (contract 15).
        super::fence(&direct, &path)?;
        let (index, found) =
            Index::open(&directory.join(format!("index-{chunk_size}")), chunk_size)?;
        // A bound that was lowered leaves chunks in high slots: they stay until they are evicted.
        let named = found.last().map_or(0, |&(slot, _)| slot + 1);
        let slots_max = u32::try_from(bytes_max / chunk_size).unwrap_or(u32::MAX - 1);
        let slots = Slot::new_vec_zeroed(slots_max.max(named) as usize)
            .map_err(|_| Error::Invalid("no memory for the chunk cache's slots".to_owned()))?;
        let mut inner = Inner {
            held: vec![Held::Nothing; named as usize],
            ..Inner::default()
        };
        for (slot, entry) in found {
            // Two slots of one digest: a death between an eviction and its index write.
            if inner.by_digest.contains_key(&entry.digest) {
                continue;
            }
            let key = inner.key(&entry.key);
            let present = Present {
                digest: entry.digest,
                key,
                pins: 0,
                checked: entry.checked,
                noted: entry.used,
            };
            inner.add(slot, present);
            slots[slot as usize]
                .used
                .store(entry.used, Ordering::Relaxed);
            clock.fetch_max(entry.used.saturating_add(1), Ordering::Relaxed);
        }
        for slot in (0..named).rev() {
            slots[slot as usize]
                .word
                .store(GENERATION, Ordering::Relaxed);
            if inner.held[slot as usize] == Held::Nothing {
                inner.free.push(slot);
            }
        }
        let slab = Self {
            chunk_size,
            direct,
            buffered,
            index,
            slots,
            clock: clock.clone(),
            inner: Mutex::default(),
        };
        slab.give_back(&inner)
            .map_err(|e| Error::io("trim", &path, e))?;
        *lock(&slab.inner) = inner;
        Ok(slab)
    }

    /// Makes holes of what no slot holds: chunks whose index entries a death took away.
    fn give_back(&self, inner: &Inner) -> io::Result<()> {
        let count = inner.held.len() as u64;
        if self.direct.metadata()?.len() > count * self.chunk_size {
            self.direct.set_len(count * self.chunk_size)?;
        }
        let held = inner.by_digest.len() as u64 * self.chunk_size;
        if self.direct.metadata()?.blocks() * 512 <= held {
            return Ok(());
        }
        let mut free = inner.free.clone();
        free.sort_unstable();
        for run in free.chunk_by(|a, b| a + 1 == *b) {
            let at = u64::from(run[0]) * self.chunk_size;
            file::punch(&self.direct, at, run.len() as u64 * self.chunk_size)?;
        }
        Ok(())
    }

    /// The bytes of a chunk.
    pub fn chunk_size(&self) -> u64 {
        self.chunk_size
    }

    /// The bytes of slots in use.
    pub fn used_bytes(&self) -> u64 {
        let inner = self.lock();
        (inner.held.len() - inner.free.len()) as u64 * self.chunk_size
    }

    /// The bytes of slots that attached mirrors touched.
    pub fn pinned_bytes(&self) -> u64 {
        self.lock().pools.pinned_count() as u64 * self.chunk_size
    }

    /// The slab's lock.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    /// The slab's lock for the fence's end.
    pub fn fence_file(&self) -> &File {
        &self.direct
    }

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

    /// The next present slot at or after one, its digest and its key: what the scrub reads.
    pub fn find_from(&self, slot: u32) -> Option<(SlotRef<'_>, Digest, [u8; 32])> {
        let mut inner = self.lock();
        let count = u32::try_from(inner.held.len()).ok()?;
        let (slot, present) =
            (slot..count).find_map(|slot| inner.present(slot).map(|found| (slot, *found)))?;
        let key = *inner.keys.get(present.key as usize)?;
        Some((self.acquire_unused(self.hint(slot))?, present.digest, key))
    }

    fn hint(&self, slot: u32) -> u64 {
        let generation = self.slots[slot as usize].word.load(Ordering::Acquire) / GENERATION;
        generation * GENERATION + u64::from(slot) + 1
    }

    /// The slot holds what it should.
    pub fn set_checked(&self, slot: &SlotRef<'_>) {
        if let Some(present) = self.lock().present(slot.slot) {
            present.checked = true;
        }
    }

    /// An attached mirror touched it; it says so once, and takes it back by [`Slab::unpin`].
    pub fn pin(&self, slot: &SlotRef<'_>) {
        self.change_pins(slot.slot, |pins| pins.saturating_add(1));
        // Who reads it next is younger than who brought it.
        self.clock.fetch_add(1, Ordering::Relaxed);
    }

    /// The mirror that touched it is gone.
    pub fn unpin(&self, hint: u64) {
        // The reference keeps the slot what it was, or shows that it is that no longer.
        if let Some(slot) = self.acquire_unused(hint) {
            self.change_pins(slot.slot, |pins| pins.saturating_sub(1));
        }
    }

    fn change_pins(&self, slot: u32, change: impl FnOnce(u32) -> u32) {
        let mut inner = self.lock();
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

    /// Writes to the index when each slot was used, if it was since the last time.
    pub fn note_uses(&self) {
        let mut from = 0;
        loop {
            let mut inner = self.lock();
            let count = u32::try_from(inner.held.len()).unwrap_or(u32::MAX);
            if from >= count {
                return;
            }
            let to = count.min(from + RUN_SLOTS);
            self.note_run(&mut inner, from..to, false);
            from = to;
        }
    }

    /// Writes the present slots of a run to the index: those that changed, or all.
    fn note_run(&self, inner: &mut Inner, run: std::ops::Range<u32>, all: bool) {
        let mut entries = Vec::new();
        for slot in run.clone() {
            let used = self.slots[slot as usize].used.load(Ordering::Relaxed);
            let Some(present) = inner.present(slot) else {
                entries.push(None);
                continue;
            };
            let changed = all || present.noted != used;
            present.noted = used;
            let (digest, key, checked) = (present.digest, present.key, present.checked);
            let key = inner.keys[key as usize];
            let entry = Entry {
                digest,
                key,
                used,
                checked,
            };
            entries.push(Some((entry, changed)));
        }
        // Slots that are being filled are named by who fills them: runs leave them out.
        let mut first = 0;
        while first < entries.len() {
            let len = entries[first..].iter().take_while(|e| e.is_some()).count();
            let part = &entries[first..first + len];
            if part.iter().flatten().any(|(_, changed)| *changed) {
                let start = run.start + u32::try_from(first).unwrap_or(0);
                let end = start + u32::try_from(len).unwrap_or(0);
                // A failure keeps the index from ever being marked clean.
                let _ = self.index.set_run(start..end, |slot| {
                    part[index(u64::from(slot - start))].map(|(entry, _)| entry)
                });
            }
            first += len + 1;
        }
    }

    /// An orderly stop: the index says what is there, and what of it was checked.
    pub fn close(&self) -> Result<()> {
        {
            let mut inner = self.lock();
            self.reap(&mut inner);
            let count = u32::try_from(inner.held.len()).unwrap_or(u32::MAX);
            self.note_run(&mut inner, 0..count, true);
        }
        self.index.set_clean()
    }
}
