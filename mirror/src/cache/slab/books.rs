// SPDX-License-Identifier: Apache-2.0
//! What a slab's lock protects: which slot holds what, and by which name it is found.
//!
//! Plain data: whoever changes it holds the lock.

use std::collections::HashMap;

use crate::cache::lru::Pools;
use crate::engine::Digest;

/// What a slab's lock protects.
#[derive(Debug, Default)]
pub struct Inner {
    pub(super) by_digest: HashMap<Digest, u32>,
    /// By slot: what it holds.
    pub(super) held: Vec<Held>,
    pub(super) free: Vec<u32>,
    pub(super) doomed: Vec<u32>,
    pub(super) pools: Pools,
    pub(super) keys: Vec<[u8; 32]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Held {
    Nothing,
    Filling,
    Doomed,
    Present(Present),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Present {
    pub(super) digest: Digest,
    /// Its place in `keys`.
    pub(super) key: u32,
    /// Attached mirrors that touched it.
    pub(super) pins: u32,
    pub(super) checked: bool,
    /// The stamp in the index.
    pub(super) noted: u64,
}

impl Inner {
    /// Whether the chunk is there.
    pub fn names(&self, digest: &Digest) -> bool {
        self.by_digest.contains_key(digest)
    }

    pub(super) fn key(&mut self, key: &[u8; 32]) -> u32 {
        let at = self.keys.iter().position(|known| known == key);
        let at = at.unwrap_or_else(|| {
            self.keys.push(*key);
            self.keys.len() - 1
        });
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    pub(super) fn present(&mut self, slot: u32) -> Option<&mut Present> {
        match self.held.get_mut(slot as usize) {
            Some(Held::Present(present)) => Some(present),
            _ => None,
        }
    }

    pub(super) fn add(&mut self, slot: u32, present: Present) {
        self.by_digest.insert(present.digest, slot);
        self.held[slot as usize] = Held::Present(present);
        self.pools.insert(slot, present.pins > 0);
    }

    pub(super) fn drop_name(&mut self, slot: u32) {
        if let Held::Present(present) = self.held[slot as usize] {
            self.by_digest.remove(&present.digest);
            self.pools.remove(slot);
        }
    }
}
