// SPDX-License-Identifier: Apache-2.0
//! What the uploader reads: a chunk as it was at the freeze, while the guest changes it.
//!
//! Where each block is, is looked up twice: before its bytes are read and after. A mark that came in
//! between wins (invariant 4 of the parent module). Runs on threads that may wait.

use crate::sync::atomic::Ordering;
use crate::sync::{Arc, Condvar, Mutex, PoisonError};
use std::ops::Range;
use std::time::Duration;

use super::Sealed;
use crate::buffer::Buffer;
use crate::disk::Errno;
use crate::engine::Digest;
use crate::error::{Error, Result};
use crate::flight::{PRIORITY_COMMIT, Waiter};
use crate::live::Bits;
use crate::units::{BLOCK_BYTES, index, lock};

/// Where a block of the freeze is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Delta,
    Base,
    Saved,
}

/// Waits for one chunk, on a thread that may.
#[derive(Debug, Default)]
struct Arrival {
    chunk: Mutex<Option<Result<Arc<Buffer>, Errno>>>,
    arrived: Condvar,
}

impl Waiter for Arrival {
    fn arrived(self: Arc<Self>, _: &Digest, chunk: Result<&Arc<Buffer>, Errno>) {
        *lock(&self.chunk) = Some(chunk.cloned());
        self.arrived.notify_all();
    }

    fn is_waiting(&self) -> bool {
        lock(&self.chunk).is_none()
    }
}

impl Sealed {
    /// The chunk as it was at the freeze, whole, zero-padded; waits for what must be fetched.
    ///
    /// # Errors
    /// ENOSPC: given up, a block could not be set aside. ENOENT: not one of [`Sealed::chunks`].
    pub fn read(&self, chunk: u64) -> Result<Vec<u8>> {
        let fail = |errno| {
            Err(Error::errno(
                "read for a COMMIT",
                self.mirror.delta.path(),
                errno,
            ))
        };
        if self.chunks.binary_search(&chunk).is_err() || self.mirror.seal.is_released(chunk) {
            return fail(libc::ENOENT);
        }
        let mut base = None;
        loop {
            let content = self.compose(chunk, base.as_ref());
            match self.mirror.seal.given_up.load(Ordering::SeqCst) {
                0 => {}
                errno => return fail(errno),
            }
            // After reading: from its end on nothing protects what is read.
            if self.has_ended() {
                return fail(libc::EIO);
            }
            match content {
                Ok(Some(content)) => return Ok(content.as_ref().to_vec()),
                Ok(None) => match self.fetch(chunk) {
                    Ok(content) => base = Some(content),
                    Err(errno) => return fail(errno),
                },
                Err(error) => {
                    return Err(Error::io(
                        "read for a COMMIT",
                        self.mirror.delta.path(),
                        error,
                    ));
                }
            }
        }
    }

    fn source(&self, block: u64) -> Source {
        let live = &self.mirror.live;
        if live.get(Bits::Saved, block) {
            Source::Saved
        } else if live.get(Bits::Base, block) {
            Source::Base
        } else if live.get(Bits::Local, block) {
            // A mark that came before the local bit would have been missed above.
            if live.get(Bits::Base, block) {
                Source::Base
            } else {
                Source::Delta
            }
        } else {
            Source::Base
        }
    }

    /// `None`: it needs the base's chunk.
    fn compose(&self, chunk: u64, base: Option<&Arc<Buffer>>) -> std::io::Result<Option<Buffer>> {
        let mirror = &self.mirror;
        let chunk_blocks = mirror.chunk_size / BLOCK_BYTES;
        let first = chunk * chunk_blocks;
        let blocks = first..(first + chunk_blocks).min(self.size_bytes.div_ceil(BLOCK_BYTES));
        let sources: Vec<Source> = blocks.clone().map(|block| self.source(block)).collect();
        let is_hole = mirror.base.chunk(chunk).is_none();
        if sources.contains(&Source::Base) && !is_hole && base.is_none() {
            return Ok(None);
        }
        let mut content = Buffer::zeroed(index(mirror.chunk_size));
        let bytes = content.as_mut();
        if let Some(base) = base {
            bytes.copy_from_slice(base.as_ref().as_ref());
        }
        let in_chunk =
            |run: &Range<usize>| run.start * index(BLOCK_BYTES)..run.end * index(BLOCK_BYTES);
        for (run, source) in runs(&sources) {
            let offset = (first + run.start as u64) * BLOCK_BYTES;
            match source {
                Source::Delta => mirror.delta.read(offset, &mut bytes[in_chunk(&run)])?,
                Source::Saved => mirror.saved.read(offset, &mut bytes[in_chunk(&run)])?,
                Source::Base => {}
            }
        }
        // Invariant 4: what was read from the delta and has a mark by now was perhaps changed.
        let again: Vec<Source> = blocks.clone().map(|block| self.source(block)).collect();
        let moved: Vec<bool> = sources
            .iter()
            .zip(&again)
            .map(|(old, new)| old != new)
            .collect();
        for (run, moved) in runs(&moved) {
            if !moved {
                continue;
            }
            for at in run {
                let offset = (first + at as u64) * BLOCK_BYTES;
                let block = &mut bytes[in_chunk(&(at..at + 1))];
                match (again[at], base) {
                    (Source::Saved, _) => mirror.saved.read(offset, block)?,
                    (Source::Base, Some(base)) => {
                        block.copy_from_slice(&base.as_ref().as_ref()[in_chunk(&(at..at + 1))]);
                    }
                    (Source::Base, None) if is_hole => block.fill(0),
                    (Source::Base, None) => return Ok(None),
                    // Marks never go while it is sealed, and without a mark nothing changed.
                    (Source::Delta, _) => mirror.delta.read(offset, block)?,
                }
            }
        }
        if sources
            .iter()
            .chain(&again)
            .any(|&from| from == Source::Saved)
        {
            // A copy whose write-back failed may have been read from the disk as it was before.
            let offset = chunk * mirror.chunk_size;
            if let Err(error) = mirror.saved.arrived(offset, mirror.chunk_size) {
                // Told once, and perhaps of another chunk.
                if !self.has_ended() {
                    mirror.seal.give_up(mirror, &error);
                }
                return Err(error);
            }
        }
        let end = self
            .size_bytes
            .saturating_sub(chunk * mirror.chunk_size)
            .min(mirror.chunk_size);
        bytes[index(end)..].fill(0);
        Ok(Some(content))
    }

    /// The base's chunk, from the cache or the network.
    fn fetch(&self, chunk: u64) -> Result<Arc<Buffer>, Errno> {
        let mirror = &self.mirror;
        let Some(found) = mirror.base.chunk(chunk) else {
            return Ok(Arc::new(Buffer::zeroed(index(mirror.chunk_size))));
        };
        let (core, slab) = (&mirror.core, mirror.slab());
        loop {
            if let Some(slot) = core.cache.lookup(slab, found.digest, &mirror.key) {
                let mut content = Buffer::zeroed(index(mirror.chunk_size));
                if slot.read(0, content.as_mut()).is_ok() {
                    return Ok(Arc::new(content));
                }
                drop(slot);
                core.cache.remove(slab, found.digest);
            }
            let arrival = Arc::new(Arrival::default());
            let wanted = mirror.wanted(&found, PRIORITY_COMMIT);
            let joined = core
                .flights
                .join(wanted, arrival.clone(), || slab.contains(found.digest));
            if !joined {
                continue;
            }
            let mut chunk = lock(&arrival.chunk);
            loop {
                if let Some(chunk) = chunk.take() {
                    return chunk;
                }
                if self.has_ended() {
                    return Err(libc::EIO);
                }
                chunk = arrival
                    .arrived
                    .wait_timeout(chunk, Duration::from_millis(200))
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
        }
    }
}

/// Runs of equal items.
fn runs<T: PartialEq + Copy>(items: &[T]) -> Vec<(Range<usize>, T)> {
    let mut runs: Vec<(Range<usize>, T)> = Vec::new();
    for (at, &item) in items.iter().enumerate() {
        match runs.last_mut() {
            Some((run, last)) if *last == item => run.end = at + 1,
            _ => runs.push((at..at + 1, item)),
        }
    }
    runs
}
