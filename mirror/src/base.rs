// SPDX-License-Identifier: Apache-2.0
//! The attach base: which chunk lies where, and where the cache had it last.
//!
//! Immutable but for the hints, so readers take no lock. A hint is a guess that the cache checks.
//!
//! A leaf takes 10 KiB, a full disk of 100 GB some 8 MiB of them. Mirrors of versions that share
//! leaves share them here too, hints included: a host's thirtieth mirror of an image costs nothing.

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, Weak};
use std::collections::HashMap;

use crate::engine::Digest;
use crate::error::{Error, Result};
use crate::units::{index, lock};

/// Digests in a leaf of the manifest.
const LEAF_CHUNKS: u64 = 256;
const DIGEST_BYTES: usize = 32;

#[derive(Debug)]
struct Leaf {
    digests: Vec<u8>,
    hints: Vec<AtomicU64>,
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
        });
        held.by_name.insert(name, Arc::downgrade(&leaf));
        leaf
    }
}

/// The attach base's manifest.
#[derive(Debug)]
pub struct Base {
    leaves: Vec<Option<Arc<Leaf>>>,
}

/// A chunk of the base that is no hole.
#[derive(Debug, Clone, Copy)]
pub struct BaseChunk<'a> {
    /// Its name.
    pub digest: &'a Digest,
    /// Where the cache had it.
    pub hint: &'a AtomicU64,
}

impl BaseChunk<'_> {
    /// The guess.
    #[inline]
    pub fn hint(&self) -> u64 {
        self.hint.load(Ordering::Relaxed)
    }

    /// Notes where the cache has it; `false` if that was known.
    pub fn set_hint(&self, hint: u64) -> bool {
        self.hint.swap(hint, Ordering::Relaxed) != hint
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
            *slot = Some(held.share(digests, chunk_size));
        }
        Ok(base)
    }

    /// Lets go of the leaves; the hints of those that no other mirror holds. Exactly one of the
    /// mirrors that let go at once is the last.
    pub fn take_hints(&mut self) -> impl Iterator<Item = u64> {
        let leaves = self.leaves.drain(..).flatten();
        leaves
            .filter_map(Arc::into_inner)
            .flat_map(|leaf| leaf.hints)
            .map(|hint| hint.load(Ordering::Relaxed))
            .filter(|&hint| hint != 0)
    }

    /// A chunk; `None` is a hole.
    #[inline]
    pub fn chunk(&self, chunk: u64) -> Option<BaseChunk<'_>> {
        let leaf = self.leaves.get(index(chunk / LEAF_CHUNKS))?.as_ref()?;
        let at = index(chunk % LEAF_CHUNKS);
        let digest = leaf.digests[at * DIGEST_BYTES..].first_chunk::<DIGEST_BYTES>()?;
        if *digest == [0; DIGEST_BYTES] {
            return None;
        }
        Some(BaseChunk {
            digest,
            hint: &leaf.hints[at],
        })
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
        a.chunk(3).unwrap().set_hint(7);
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
