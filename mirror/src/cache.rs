// SPDX-License-Identifier: Apache-2.0
//! The chunk cache of one host: chunks by digest, in slots of a slab file per chunk size.
//!
//! # Invariants
//!
//! 1. A slot is present only after its whole content, verified by its digest, has been written.
//! 2. A reader holds a reference while it reads; only slots without one are evicted. Taking a slot
//!    raises its generation, so that a hint to what it held before finds nothing.
//! 3. The index on disk names a slot after its content is written, and forgets it before the next
//!    content is.
//! 4. The bytes of slots in use never exceed the bound. No room is no error: the chunk is served
//!    from memory.
//!
//! # Crash
//!
//! Nothing here is synced: what the index names is believed at once only after an orderly stop in
//! the same boot; else each slot is checked against its digest before its first use (rule 29).
//!
//! # Threads
//!
//! [`Slab::acquire`] takes no lock: one atomic add, one compare. All else is under the slab's lock,
//! except the content's transfer. Slots are written `O_DIRECT` and read through the page cache, so
//! that what one mirror read is warm for the next.

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Mutex, OnceLock};
use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use zerocopy::FromZeros;

use crate::buffer::Buffer;
use crate::cacheindex::CacheIndex;
use crate::engine::Digest;
use crate::error::{Error, Result};
use crate::sys::file::{self, Create};
use crate::units::{index, lock};

/// The least and the largest chunk size, as powers of two.
const SHIFT_MIN: u32 = 12;
const SHIFT_MAX: u32 = 22;
const REFERENCES: u64 = (1 << 32) - 1;
const GENERATION: u64 = 1 << 32;

/// The cache.
#[derive(Debug)]
pub struct Cache {
    directory: PathBuf,
    bytes_max: u64,
    used_bytes: AtomicU64,
    slabs: [OnceLock<Slab>; (SHIFT_MAX - SHIFT_MIN + 1) as usize],
    opening: Mutex<()>,
    fence: File,
    /// Chunks that left for others.
    pub evicted: AtomicU64,
    /// Slots that did not hold what the index said.
    pub refused: AtomicU64,
}

/// The slots of one chunk size.
#[derive(Debug)]
pub struct Slab {
    chunk_size: usize,
    direct: File,
    buffered: File,
    index: CacheIndex,
    /// High half: generation, never 0; low half: references.
    slots: Vec<AtomicU64>,
    recent: Vec<AtomicBool>,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    by_digest: HashMap<Digest, u32>,
    /// By slot: what it holds.
    held: Vec<Held>,
    free: Vec<u32>,
    hand: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    Nothing,
    Filling,
    Present { digest: Digest, verified: bool },
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
        let at = u64::from(self.slot) * self.slab.chunk_size as u64 + offset;
        self.slab.buffered.read_exact_at(bytes, at)
    }
}

impl Drop for SlotRef<'_> {
    fn drop(&mut self) {
        self.slab.slots[self.slot as usize].fetch_sub(1, Ordering::Release);
    }
}

/// Whether `content` is the chunk of that name.
#[must_use]
pub fn matches(digest: &Digest, key: &[u8; 32], content: &[u8]) -> bool {
    blake3::keyed_hash(key, content) == blake3::Hash::from_bytes(*digest)
}

impl Slab {
    fn open(
        directory: &Path,
        chunk_size: u64,
        bytes_max: u64,
        generation: u32,
    ) -> Result<(Self, u64)> {
        let path = directory.join(format!("slab-{chunk_size}"));
        let direct =
            file::open(&path, Create::Maybe, true).map_err(|e| Error::io("open", &path, e))?;
        let buffered =
            file::open(&path, Create::Maybe, false).map_err(|e| Error::io("open", &path, e))?;
        let slots_max = u32::try_from(bytes_max / chunk_size).unwrap_or(u32::MAX - 1);
        let (index, found) = CacheIndex::open(
            &directory.join(format!("index-{chunk_size}")),
            chunk_size,
            slots_max,
        )?;
        let memory = |_| Error::Invalid("no memory for the chunk cache's slots".to_owned());
        let slots = AtomicU64::new_vec_zeroed(slots_max as usize).map_err(memory)?;
        let recent = AtomicBool::new_vec_zeroed(slots_max as usize).map_err(memory)?;
        let mut inner = Inner::default();
        for (slot, digest) in found.slots {
            while inner.held.len() < slot as usize {
                inner
                    .free
                    .push(u32::try_from(inner.held.len()).unwrap_or(0));
                inner.held.push(Held::Nothing);
            }
            // Two slots of one digest: a death between an eviction and its index write.
            if inner.by_digest.contains_key(&digest) {
                inner.free.push(slot);
                inner.held.push(Held::Nothing);
                continue;
            }
            inner.by_digest.insert(digest, slot);
            inner.held.push(Held::Present {
                digest,
                verified: found.trusted,
            });
        }
        for slot in &slots[..inner.held.len()] {
            slot.store(u64::from(generation.max(1)) * GENERATION, Ordering::Relaxed);
        }
        let used = inner.by_digest.len() as u64 * chunk_size;
        let slab = Self {
            chunk_size: index_of(chunk_size),
            direct,
            buffered,
            index,
            slots,
            recent,
            inner: Mutex::new(inner),
        };
        Ok((slab, used))
    }

    /// A reference by hint, without a lock; `None` if the guess is old.
    #[inline]
    pub fn acquire(&self, hint: u64) -> Option<SlotRef<'_>> {
        let number = hint & REFERENCES;
        if number == 0 {
            return None;
        }
        let slot = u32::try_from(number - 1).ok()?;
        let word = self.slots.get(slot as usize)?;
        if word.fetch_add(1, Ordering::AcqRel) / GENERATION != hint / GENERATION {
            word.fetch_sub(1, Ordering::Release);
            return None;
        }
        let recent = &self.recent[slot as usize];
        if !recent.load(Ordering::Relaxed) {
            recent.store(true, Ordering::Relaxed);
        }
        Some(SlotRef {
            slab: self,
            slot,
            hint,
        })
    }

    /// Whether the chunk is there, verified or not.
    pub fn contains(&self, digest: &Digest) -> bool {
        lock(&self.inner).by_digest.contains_key(digest)
    }

    fn hint(&self, slot: u32) -> u64 {
        let generation = self.slots[slot as usize].load(Ordering::Acquire) / GENERATION;
        generation * GENERATION + u64::from(slot) + 1
    }

    /// Forgets a slot that has no reference; the caller holds the lock.
    fn forget(&self, inner: &mut Inner, slot: u32) -> bool {
        let word = &self.slots[slot as usize];
        let old = word.load(Ordering::Acquire);
        let next = (old / GENERATION + 1) % GENERATION;
        if old & REFERENCES != 0
            || word
                .compare_exchange(
                    old,
                    next.max(1) * GENERATION,
                    Ordering::AcqRel,
                    Ordering::Relaxed,
                )
                .is_err()
        {
            return false;
        }
        if let Held::Present { digest, .. } = inner.held[slot as usize] {
            inner.by_digest.remove(&digest);
        }
        inner.held[slot as usize] = Held::Nothing;
        // If this fails the slot is named twice: found at the next start, by its digest.
        let _ = self.index.clear(slot);
        true
    }

    /// Evicts one slot that was not read lately (a clock's hand); it is the caller's then.
    fn evict(&self, inner: &mut Inner) -> Option<u32> {
        for _ in 0..2 * inner.held.len() {
            let slot = inner.hand;
            inner.hand = (slot + 1) % inner.held.len();
            if !matches!(inner.held[slot], Held::Present { .. })
                || self.recent[slot].swap(false, Ordering::Relaxed)
            {
                continue;
            }
            let slot = u32::try_from(slot).ok()?;
            if self.forget(inner, slot) {
                return Some(slot);
            }
        }
        None
    }

    fn punch(&self, slot: u32) {
        let at = u64::from(slot) * self.chunk_size as u64;
        // The space comes back when the slot is used again.
        let _ = file::punch(&self.direct, at, self.chunk_size as u64);
    }
}

fn index_of(chunk_size: u64) -> usize {
    index(chunk_size)
}

impl Cache {
    /// Opens the directory; one engine at a time.
    pub fn open(directory: &Path, bytes_max: u64) -> Result<Self> {
        std::fs::create_dir_all(directory).map_err(|e| Error::io("create", directory, e))?;
        let path = directory.join("lock");
        let fence =
            file::open(&path, Create::Maybe, false).map_err(|e| Error::io("open", &path, e))?;
        // A dead engine's requests may pin its lock for a moment.
        let mut patience = 100;
        while !file::try_lock(&fence).map_err(|e| Error::io("lock", &path, e))? {
            patience -= 1;
            if patience == 0 {
                return Err(Error::errno(
                    "lock (another engine has it)",
                    &path,
                    libc::EBUSY,
                ));
            }
            crate::sync::thread::sleep(std::time::Duration::from_millis(50));
        }
        let cache = Self {
            directory: directory.to_owned(),
            bytes_max,
            used_bytes: AtomicU64::new(0),
            slabs: Default::default(),
            opening: Mutex::new(()),
            fence,
            evicted: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        // What earlier runs left counts against the bound.
        for shift in SHIFT_MIN..=SHIFT_MAX {
            if directory.join(format!("index-{}", 1_u64 << shift)).exists() {
                cache.slab(1 << shift)?;
            }
        }
        while cache.used_bytes() > bytes_max && cache.shed_one() {}
        Ok(cache)
    }

    /// The bytes of slots in use.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    /// The slots of a chunk size.
    pub fn slab(&self, chunk_size: u64) -> Result<&Slab> {
        let shift = chunk_size.trailing_zeros();
        if !chunk_size.is_power_of_two() || !(SHIFT_MIN..=SHIFT_MAX).contains(&shift) {
            return Err(Error::Invalid(format!(
                "chunk size {chunk_size} is no power of two from 4 KiB to 4 MiB"
            )));
        }
        let cell = &self.slabs[(shift - SHIFT_MIN) as usize];
        if let Some(slab) = cell.get() {
            return Ok(slab);
        }
        let _one = lock(&self.opening);
        if let Some(slab) = cell.get() {
            return Ok(slab);
        }
        let (slab, used) = Slab::open(&self.directory, chunk_size, self.bytes_max, 1)?;
        self.used_bytes.fetch_add(used, Ordering::Relaxed);
        Ok(cell.get_or_init(|| slab))
    }

    /// A reference by digest; a slot that an unclean stop left is checked first.
    pub fn lookup<'a>(
        &self,
        slab: &'a Slab,
        digest: &Digest,
        key: &[u8; 32],
    ) -> Option<SlotRef<'a>> {
        let (reference, verified) = {
            let inner = lock(&slab.inner);
            let slot = *inner.by_digest.get(digest)?;
            let verified = matches!(
                inner.held[slot as usize],
                Held::Present { verified: true, .. }
            );
            (slab.acquire(slab.hint(slot))?, verified)
        };
        if verified {
            return Some(reference);
        }
        let mut content = Buffer::zeroed(slab.chunk_size);
        let good =
            reference.read(0, content.as_mut()).is_ok() && matches(digest, key, content.as_ref());
        let slot = reference.slot;
        let mut inner = lock(&slab.inner);
        if good {
            if let Held::Present { verified, .. } = &mut inner.held[slot as usize] {
                *verified = true;
            }
            return Some(reference);
        }
        self.refused.fetch_add(1, Ordering::Relaxed);
        drop(reference);
        if inner.by_digest.get(digest) == Some(&slot) && slab.forget(&mut inner, slot) {
            inner.free.push(slot);
            self.used_bytes
                .fetch_sub(slab.chunk_size as u64, Ordering::Relaxed);
        }
        None
    }

    /// Forgets a chunk whose slot cannot be read.
    pub fn remove(&self, slab: &Slab, digest: &Digest) {
        let mut inner = lock(&slab.inner);
        if let Some(&slot) = inner.by_digest.get(digest) {
            if slab.forget(&mut inner, slot) {
                inner.free.push(slot);
                self.used_bytes
                    .fetch_sub(slab.chunk_size as u64, Ordering::Relaxed);
            }
        }
    }

    /// Keeps a verified chunk; `false`: no room, or the disk refuses.
    pub fn insert(&self, slab: &Slab, digest: &Digest, content: &Buffer) -> bool {
        let Some(slot) = self.take_slot(slab, digest) else {
            return slab.contains(digest);
        };
        let at = u64::from(slot) * slab.chunk_size as u64;
        let written = slab
            .direct
            .write_all_at(content.as_ref(), at)
            .and_then(|()| slab.index.set(slot, digest));
        let mut inner = lock(&slab.inner);
        if written.is_err() {
            inner.held[slot as usize] = Held::Nothing;
            inner.free.push(slot);
            slab.punch(slot);
            self.used_bytes
                .fetch_sub(slab.chunk_size as u64, Ordering::Relaxed);
            return false;
        }
        inner.held[slot as usize] = Held::Present {
            digest: *digest,
            verified: true,
        };
        inner.by_digest.insert(*digest, slot);
        slab.recent[slot as usize].store(true, Ordering::Relaxed);
        true
    }

    /// A slot to fill; `None` if there is none or the chunk is there already.
    fn take_slot(&self, slab: &Slab, digest: &Digest) -> Option<u32> {
        let size = slab.chunk_size as u64;
        loop {
            let used = self.used_bytes.load(Ordering::Relaxed);
            let fits = used + size <= self.bytes_max;
            {
                let mut inner = lock(&slab.inner);
                if inner.by_digest.contains_key(digest) {
                    return None;
                }
                let slot = if fits {
                    let exchange = self.used_bytes.compare_exchange(
                        used,
                        used + size,
                        Ordering::Relaxed,
                        Ordering::Relaxed,
                    );
                    if exchange.is_err() {
                        continue;
                    }
                    inner.free.pop().or_else(|| {
                        let next = inner.held.len();
                        if next >= slab.slots.len() {
                            return None;
                        }
                        inner.held.push(Held::Nothing);
                        slab.slots[next].store(GENERATION, Ordering::Release);
                        u32::try_from(next).ok()
                    })
                } else {
                    let slot = slab.evict(&mut inner);
                    self.evicted
                        .fetch_add(u64::from(slot.is_some()), Ordering::Relaxed);
                    slot
                };
                if let Some(slot) = slot {
                    inner.held[slot as usize] = Held::Filling;
                    return Some(slot);
                }
                if fits {
                    self.used_bytes.fetch_sub(size, Ordering::Relaxed);
                    return None;
                }
            }
            if !self.shed_one() {
                return None;
            }
        }
    }

    /// Gives one slot's space back to the file system, whatever its size.
    pub fn shed_one(&self) -> bool {
        for slab in self.slabs.iter().rev().filter_map(OnceLock::get) {
            let mut inner = lock(&slab.inner);
            if let Some(slot) = slab.evict(&mut inner) {
                slab.punch(slot);
                inner.free.push(slot);
                self.used_bytes
                    .fetch_sub(slab.chunk_size as u64, Ordering::Relaxed);
                self.evicted.fetch_add(1, Ordering::Relaxed);
                return true;
            }
        }
        false
    }

    /// Gives back about `bytes`; `false` if there was nothing to give.
    pub fn shed(&self, bytes: u64) -> bool {
        let goal = self.used_bytes().saturating_sub(bytes.max(1));
        let mut any = false;
        while self.used_bytes() > goal && self.shed_one() {
            any = true;
        }
        any
    }

    /// An orderly stop: what the indexes name may be believed.
    pub fn close(&self) -> Result<()> {
        for slab in self.slabs.iter().filter_map(OnceLock::get) {
            // Slots not checked since the last start keep the index unclean: none was promised.
            let verified = {
                let inner = lock(&slab.inner);
                inner.held.iter().all(|held| {
                    !matches!(
                        held,
                        Held::Filling
                            | Held::Present {
                                verified: false,
                                ..
                            }
                    )
                })
            };
            if verified {
                slab.index.set_clean()?;
            }
        }
        file::unlock(&self.fence).map_err(|e| Error::io("unlock", &self.directory.join("lock"), e))
    }

    /// Lets go of the lock and nothing else: for tests of recovery.
    #[doc(hidden)]
    pub fn forget_as_if_killed(&self) {
        let _ = file::unlock(&self.fence);
    }
}
