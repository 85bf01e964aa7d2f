// SPDX-License-Identifier: Apache-2.0
//! The bound, and who goes when it is reached: room for new chunks, and for everybody else.

use crate::sync::atomic::Ordering;
use crate::units::lock;
use std::io;

use super::{Cache, Slab};
use crate::buffer::Buffer;
use crate::engine::Digest;

/// What is shed at once for a large write.
const SHED_MAX: u64 = 64 << 20;
/// How often an eviction looks for another slot when a reader was faster.
const EVICTIONS: usize = 64;

fn is_full(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

impl Cache {
    /// Keeps a verified chunk; `false`: no room, or the disk refuses.
    pub fn insert(&self, slab: &Slab, digest: &Digest, key: &[u8; 32], content: &Buffer) -> bool {
        // Once more if the file system turns out to be full: then in the place of another chunk.
        for _ in 0..2 {
            let Some(slot) = self.take_slot(slab, digest) else {
                return slab.contains(digest);
            };
            let written = slab.write(slot, content.as_ref(), digest, key);
            let mut inner = slab.lock();
            let Err(error) = written else {
                if !slab.publish(&mut inner, slot, digest, key) {
                    self.release(slab.chunk_size());
                }
                self.counters.filled.fetch_add(1, Ordering::Relaxed);
                return true;
            };
            slab.free(&mut inner, slot);
            self.release(slab.chunk_size());
            if !is_full(&error) || self.low.swap(true, Ordering::Relaxed) {
                return false;
            }
        }
        false
    }

    pub(super) fn release(&self, bytes: u64) {
        self.used_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes bytes of the bound.
    fn reserve(&self, bytes: u64) -> bool {
        if self.low.load(Ordering::Relaxed) {
            return false;
        }
        let used = &self.used_bytes;
        loop {
            let old = used.load(Ordering::Relaxed);
            let new = old.saturating_add(bytes);
            if new > self.options.bytes_max {
                return false;
            }
            let exchanged = used.compare_exchange(old, new, Ordering::Relaxed, Ordering::Relaxed);
            if exchanged.is_ok() {
                return true;
            }
        }
    }

    /// A slot to fill; `None` if there is none or the chunk is there already.
    fn take_slot(&self, slab: &Slab, digest: &Digest) -> Option<u32> {
        let size = slab.chunk_size();
        loop {
            {
                let mut inner = slab.lock();
                self.release(slab.reap(&mut inner));
                if inner.names(digest) {
                    return None;
                }
                if self.reserve(size) {
                    let slot = slab.take(&mut inner);
                    if slot.is_none() {
                        self.release(size);
                    }
                    return slot;
                }
            }
            let (from, slot) = self.evict()?;
            self.counters.evicted.fetch_add(1, Ordering::Relaxed);
            if std::ptr::eq(from, slab) {
                return Some(slot);
            }
            self.give_back(from, slot);
            if self.low.load(Ordering::Relaxed) {
                // Its room is the file system's now.
                return None;
            }
        }
    }

    /// Takes a slot from the chunk that was used longest ago, in whichever slab.
    fn evict(&self) -> Option<(&Slab, u32)> {
        for _ in 0..EVICTIONS {
            let (victim, slab) = self
                .open_slabs()
                .filter_map(|slab| Some((slab.victim(&mut slab.lock())?, slab)))
                .min_by_key(|(victim, _)| *victim)?;
            if slab.evict(&mut slab.lock(), victim.slot) {
                return Some((slab, victim.slot));
            }
        }
        None
    }

    fn give_back(&self, slab: &Slab, slot: u32) {
        slab.free(&mut slab.lock(), slot);
        self.release(slab.chunk_size());
    }

    /// Gives the space of one chunk back to the file system; how many bytes.
    pub(super) fn evict_one(&self) -> Option<u64> {
        let (slab, slot) = self.evict()?;
        self.give_back(slab, slot);
        Some(slab.chunk_size())
    }

    /// Gives back about `bytes`, whatever is pinned; `false` if there was nothing to give.
    pub fn shed(&self, bytes: u64) -> bool {
        let mut shed = self.shed_some(|| {
            let reaped = self.open_slabs().map(|slab| slab.reap(&mut slab.lock()));
            let reaped = reaped.sum();
            self.release(reaped);
            reaped
        });
        while shed < bytes.max(1) {
            match self.shed_some(|| self.evict_one().unwrap_or(0)) {
                0 => break,
                more => shed += more,
            }
        }
        shed > 0
    }

    /// One at a time: whoever finds nothing to give, sees here all that others gave.
    fn shed_some(&self, give: impl FnOnce() -> u64) -> u64 {
        let _alone = lock(&self.shedding);
        let shed = give();
        self.counters.shed_bytes.fetch_add(shed, Ordering::Relaxed);
        shed
    }

    /// Gives way to a write that found no room on a file system; `false` if it cannot help: it lies
    /// on another one, or is empty, and was when the write began.
    ///
    /// `before`: the bytes that had been shed by then.
    fn give_way(&self, device: u64, bytes: u64, before: u64) -> bool {
        if device != self.device {
            return false;
        }
        // Nothing new until the keeper has seen that there is room again.
        self.low.store(true, Ordering::Relaxed);
        self.shed(bytes) || self.counters.shed_bytes.load(Ordering::Relaxed) != before
    }

    /// Does what may need room on a file system; while there is none, as long as there are chunks
    /// to shed (rule 41).
    pub fn making_way(
        &self,
        device: u64,
        bytes: u64,
        work: impl Fn() -> io::Result<()>,
    ) -> io::Result<()> {
        loop {
            let before = self.counters.shed_bytes.load(Ordering::Relaxed);
            match work() {
                Err(error)
                    if is_full(&error) && self.give_way(device, bytes.min(SHED_MAX), before) => {}
                result => return result,
            }
        }
    }
}
