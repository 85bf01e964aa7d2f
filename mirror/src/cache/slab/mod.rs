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
//!
//! Here is how it is opened; `books` is what the lock protects, `reference` who reads, `turn` how a
//! slot changes hands, `notes` what the index is told of uses.

mod books;
mod notes;
mod reference;
mod turn;

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use zerocopy::FromZeros;

use self::books::{Held, Inner, Present};
pub use self::reference::SlotRef;
use super::index::Index;
use crate::error::{Error, Result};
use crate::sys::file::{self, Create};
use crate::units::lock;

const REFERENCES: u64 = (1 << 32) - 1;
const GENERATION: u64 = 1 << 32;

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
}
