// SPDX-License-Identifier: Apache-2.0
//! The attach base: which chunk lies where, where the cache had it last, and who touched it.
//!
//! Immutable but for the hints and marks, so readers take no lock. A hint is a guess that the cache
//! checks.
//!
//! A leaf takes 11 KiB, a full disk of 100 GB some 9 MiB of them. Mirrors of versions that share
//! leaves share them here too, hints included: a host's thirtieth mirror of an image costs nothing
//! but a bit a chunk, for what it touched itself.
//!
//! # Pins
//!
//! 1. A leaf counts for each chunk the mirrors that touched it (their bits say which they are). With
//!    one or more, the leaf has exactly one pin on the slot that its hint names, if that is still
//!    the chunk's; with none it has no pin. So a chunk loses its pin when the last mirror that
//!    touched it goes, whoever else shares the leaf.
//! 2. Counts and hints change under the slab's lock, one with the other; bits are set there, too.

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, Weak};
use std::collections::HashMap;

use crate::cache::{Slab, SlotRef};
use crate::engine::Digest;
use crate::error::{Error, Result};
use crate::units::{index, lock};

/// Digests in a leaf of the manifest.
const LEAF_CHUNKS: u64 = 256;
const DIGEST_BYTES: usize = 32;
const LEAF_WORDS: usize = 4;

#[derive(Debug)]
struct Leaf {
    digests: Vec<u8>,
    hints: Vec<AtomicU64>,
    /// By chunk: mirrors that touched it.
    touchers: Vec<AtomicU32>,
}

/// A leaf as one mirror sees it.
#[derive(Debug)]
struct Part {
    leaf: Arc<Leaf>,
    /// By chunk: this mirror touched it.
    touched: [AtomicU64; LEAF_WORDS],
}

/// The leaves that any mirror holds, by content and chunk size (a hint names a slot of one size).
#[derive(Debug, Default)]
pub struct Leaves(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    by_name: HashMap<[u8; 32], Weak<Leaf>>,
    /// Dead entries are looked for when there are so many.
    look_at: usize,
}

impl Leaves {
    fn share(&self, digests: &[u8], chunk_size: u64) -> Arc<Leaf> {
        let mut hasher = blake3::Hasher::new();
        let name = hasher.update(&chunk_size.to_le_bytes()).update(digests);
        let name = *name.finalize().as_bytes();
        let mut held = lock(&self.0);
        if let Some(leaf) = held.by_name.get(&name).and_then(Weak::upgrade) {
            return leaf;
        }
        if held.by_name.len() >= held.look_at {
            held.by_name.retain(|_, leaf| leaf.strong_count() > 0);
            held.look_at = 64.max(2 * held.by_name.len());
        }
        let leaf = Arc::new(Leaf {
            digests: digests.to_vec(),
            hints: (0..LEAF_CHUNKS).map(|_| AtomicU64::new(0)).collect(),
            touchers: (0..LEAF_CHUNKS).map(|_| AtomicU32::new(0)).collect(),
        });
        held.by_name.insert(name, Arc::downgrade(&leaf));
        leaf
    }
}

/// The attach base's manifest.
#[derive(Debug)]
pub struct Base {
    leaves: Vec<Option<Part>>,
}

/// A chunk of the base that is no hole.
#[derive(Debug, Clone, Copy)]
pub struct BaseChunk<'a> {
    /// Its name.
    pub digest: &'a Digest,
    part: &'a Part,
    at: usize,
}

impl BaseChunk<'_> {
    /// Where the cache had it: a guess.
    #[inline]
    pub fn hint(&self) -> u64 {
        self.part.leaf.hints[self.at].load(Ordering::Relaxed)
    }

    /// Whether this mirror touched it before.
    #[inline]
    pub fn is_touched(&self) -> bool {
        self.part.touched[self.at / 64].load(Ordering::Relaxed) & (1 << (self.at % 64)) != 0
    }

    /// This mirror touches it: the next read finds the slot without a lock, and evictions know that
    /// it is wanted.
    pub fn touch(&self, slab: &Slab, slot: &SlotRef<'_>) {
        let mut inner = slab.lock();
        let leaf = &self.part.leaf;
        let old = leaf.hints[self.at].swap(slot.hint, Ordering::Relaxed);
        let bit = 1 << (self.at % 64);
        let is_new = self.part.touched[self.at / 64].fetch_or(bit, Ordering::Relaxed) & bit == 0;
        let before = leaf.touchers[self.at].fetch_add(u32::from(is_new), Ordering::Relaxed);
        if before == 0 || old != slot.hint {
            slab.pin(&mut inner, slot.hint);
            if before > 0 {
                slab.unpin(&mut inner, old);
            }
        }
    }
}

impl Base {
    /// From (leaf index, digests); chunks past `chunk_count` must be holes.
    pub fn new(
        held: &Leaves,
        leaves: &[(u64, Vec<u8>)],
        chunk_count: u64,
        chunk_size: u64,
    ) -> Result<Self> {
        let leaf_count = chunk_count.div_ceil(LEAF_CHUNKS);
        let mut base = Self { leaves: Vec::new() };
        base.leaves.resize_with(index(leaf_count), || None);
        for &(leaf, ref digests) in leaves {
            if digests.len() != index(LEAF_CHUNKS) * DIGEST_BYTES {
                return Err(Error::Invalid(format!(
                    "leaf {leaf} has {} bytes, not 8192",
                    digests.len()
                )));
            }
            let room = chunk_count
                .saturating_sub(leaf * LEAF_CHUNKS)
                .min(LEAF_CHUNKS);
            if digests[index(room) * DIGEST_BYTES..]
                .iter()
                .any(|&byte| byte != 0)
            {
                return Err(Error::Invalid(format!(
                    "leaf {leaf} has chunks past the end of the disk"
                )));
            }
            let Some(slot) = base.leaves.get_mut(index(leaf)) else {
                continue;
            };
            if slot.is_some() {
                return Err(Error::Invalid(format!("leaf {leaf} is given twice")));
            }
            *slot = Some(Part {
                leaf: held.share(digests, chunk_size),
                touched: Default::default(),
            });
        }
        Ok(base)
    }

    /// Lets go of the leaves: what nobody else touched is pinned no longer.
    pub fn let_go(&mut self, slab: &Slab) {
        for Part { leaf, touched } in self.leaves.drain(..).flatten() {
            let touched = touched.map(|word| word.load(Ordering::Relaxed));
            if touched == [0; LEAF_WORDS] {
                continue;
            }
            let mut inner = slab.lock();
            for (at, (hint, touchers)) in leaf.hints.iter().zip(&leaf.touchers).enumerate() {
                if touched[at / 64] & (1 << (at % 64)) != 0
                    && touchers.fetch_sub(1, Ordering::Relaxed) == 1
                {
                    slab.unpin(&mut inner, hint.load(Ordering::Relaxed));
                }
            }
        }
    }

    /// A chunk; `None` is a hole.
    #[inline]
    pub fn chunk(&self, chunk: u64) -> Option<BaseChunk<'_>> {
        let part = self.leaves.get(index(chunk / LEAF_CHUNKS))?.as_ref()?;
        let at = index(chunk % LEAF_CHUNKS);
        let digest = part.leaf.digests[at * DIGEST_BYTES..].first_chunk::<DIGEST_BYTES>()?;
        if *digest == [0; DIGEST_BYTES] {
            return None;
        }
        Some(BaseChunk { digest, part, at })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_leaves_and_zero_digests_are_holes() {
        let mut digests = vec![0; 8192];
        digests[32..64].fill(5);
        let held = Leaves::default();
        let new = |leaves: &[_], count| Base::new(&held, leaves, count, 1 << 19);
        let base = new(&[(1, digests.clone())], 300).unwrap();
        assert!(base.chunk(1).is_none());
        assert!(base.chunk(256).is_none());
        assert_eq!(base.chunk(257).unwrap().digest, &[5; 32]);
        assert!(base.chunk(100_000).is_none());
        assert!(new(&[(1, digests.clone())], 257).is_err());
        assert!(new(&[(0, vec![0; 8191])], 300).is_err());
        assert!(new(&[(0, digests.clone()), (0, digests)], 300).is_err());
    }

    #[test]
    fn equal_leaves_of_one_chunk_size_are_one_and_go_with_their_last_mirror() {
        let held = Leaves::default();
        let leaf = |byte: u8| vec![(0, [byte; 8192].to_vec())];
        let new = |byte, size| Base::new(&held, &leaf(byte), 256, size).unwrap();
        let (a, b) = (new(1, 1 << 19), new(1, 1 << 19));
        let set = |base: &Base, hint| {
            let leaf = &base.leaves[0].as_ref().unwrap().leaf;
            leaf.hints[3].store(hint, Ordering::Relaxed);
        };
        set(&a, 7);
        assert_eq!(b.chunk(3).unwrap().hint(), 7);
        assert_eq!(new(1, 1 << 18).chunk(3).unwrap().hint(), 0);
        assert_eq!(new(2, 1 << 19).chunk(3).unwrap().hint(), 0);
        drop((a, b));
        assert_eq!(new(1, 1 << 19).chunk(3).unwrap().hint(), 0);
        for turn in 0..200_u64 {
            drop(Base::new(&held, &leaf(3), 256, 1 << (12 + turn % 10)).unwrap());
            drop(new(u8::try_from(turn).unwrap(), 4096));
        }
        assert!(lock(&held.0).by_name.len() <= 65);
    }
}
