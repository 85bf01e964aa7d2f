// SPDX-License-Identifier: Apache-2.0
//! Whether a slot holds what it should: checked by digest before it is believed, refused if not.

use crate::sync::atomic::Ordering;

use super::{CHECKS, Cache, Slab, SlotRef};
use crate::buffer::Buffer;
use crate::engine::Digest;
use crate::refusal::Source;
use crate::units::{index, lock};

/// Whether `content` is the chunk of that name.
#[must_use]
pub fn matches(digest: &Digest, key: &[u8; 32], content: &[u8]) -> bool {
    blake3::keyed_hash(key, content) == blake3::Hash::from_bytes(*digest)
}

impl Cache {
    /// A reference by digest; a slot that an unclean stop left is checked first.
    pub fn lookup<'a>(
        &self,
        slab: &'a Slab,
        digest: &Digest,
        key: &[u8; 32],
    ) -> Option<SlotRef<'a>> {
        let (slot, checked) = slab.find(digest)?;
        if checked {
            return Some(slot);
        }
        // Thirty mirrors that come back after a kill read the same chunks: one checks, all believe.
        let _one = lock(&self.checking[slot.slot() as usize % CHECKS]);
        let (again, checked) = slab.find(digest)?;
        (checked || self.check(slab, &again, digest, key, false)).then_some(again)
    }

    /// The content of a cached chunk, proved, for whoever repairs a store; no use of it is counted.
    pub fn content(&self, slab: &Slab, digest: &Digest) -> Option<Buffer> {
        let (slot, key) = slab.find_keyed(digest)?;
        let mut content = Buffer::zeroed(index(slab.chunk_size()));
        let wrong = match slot.read(0, content.as_mut()) {
            Ok(()) if matches(digest, &key, content.as_ref()) => return Some(content),
            Ok(()) => "it does not match its digest".to_owned(),
            Err(error) => error.to_string(),
        };
        self.refuse(slab, &slot, digest, &wrong);
        None
    }

    /// Reads a slot and compares; one that is wrong is refused.
    pub(super) fn check(
        &self,
        slab: &Slab,
        slot: &SlotRef<'_>,
        digest: &Digest,
        key: &[u8; 32],
        direct: bool,
    ) -> bool {
        let mut content = Buffer::zeroed(index(slab.chunk_size()));
        let read = if direct {
            slot.read_direct(content.as_mut())
        } else {
            slot.read(0, content.as_mut())
        };
        let wrong = match read {
            Err(error) => error.to_string(),
            Ok(()) if matches(digest, key, content.as_ref()) => {
                slab.set_checked(slot);
                self.counters.checked.fetch_add(1, Ordering::Relaxed);
                return true;
            }
            Ok(()) => "it does not match its digest".to_owned(),
        };
        self.refuse(slab, slot, digest, &wrong);
        false
    }

    /// Never again serves a slot that does not hold its chunk.
    pub fn refuse(&self, slab: &Slab, slot: &SlotRef<'_>, digest: &Digest, reason: &str) {
        if slab.condemn(slot, digest) {
            self.refusals.refuse(Source::Cache, digest, reason);
        }
    }

    /// Forgets a chunk whose slot cannot be read.
    pub fn remove(&self, slab: &Slab, digest: &Digest) {
        if let Some((slot, _)) = slab.find(digest) {
            self.refuse(slab, &slot, digest, "it cannot be read");
        }
    }
}
