// SPDX-License-Identifier: Apache-2.0
//! The attach base: which chunk lies where, and where the cache had it last.
//!
//! Immutable but for the hints, so readers take no lock. A hint is a guess that the cache checks.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::engine::Digest;
use crate::error::{Error, Result};
use crate::units::index;

/// Digests in a leaf of the manifest.
const LEAF_CHUNKS: u64 = 256;
const DIGEST_BYTES: usize = 32;

#[derive(Debug)]
struct Leaf {
    digests: Vec<u8>,
    hints: Vec<AtomicU64>,
}

/// The attach base's manifest.
#[derive(Debug)]
pub struct Base {
    leaves: Vec<Option<Box<Leaf>>>,
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

    /// Notes where the cache has it.
    pub fn set_hint(&self, hint: u64) {
        self.hint.store(hint, Ordering::Relaxed);
    }
}

impl Base {
    /// From (leaf index, digests); chunks past `chunk_count` must be holes.
    pub fn new(leaves: &[(u64, Vec<u8>)], chunk_count: u64) -> Result<Self> {
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
            *slot = Some(Box::new(Leaf {
                digests: digests.clone(),
                hints: (0..LEAF_CHUNKS).map(|_| AtomicU64::new(0)).collect(),
            }));
        }
        Ok(base)
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
        let base = Base::new(&[(1, digests.clone())], 300).unwrap();
        assert!(base.chunk(1).is_none());
        assert!(base.chunk(256).is_none());
        assert_eq!(base.chunk(257).unwrap().digest, &[5; 32]);
        assert!(base.chunk(100_000).is_none());
        assert!(Base::new(&[(1, digests.clone())], 257).is_err());
        assert!(Base::new(&[(0, vec![0; 8191])], 300).is_err());
        assert!(Base::new(&[(0, digests.clone()), (0, digests)], 300).is_err());
    }
}
