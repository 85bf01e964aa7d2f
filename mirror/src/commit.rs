// SPDX-License-Identifier: Apache-2.0
//! A sealed COMMIT: the dirty chunks as they were at the freeze, while the guest keeps writing.
//!
//! ```text
//!              freeze                 publish
//!     Open ──────────────▶ Sealed ──────────────▶ Open     what was frozen is clean
//!                             │       abandon
//!                             └─────────────────▶ Open     what was frozen is dirty again
//! ```
//!
//! # Invariants
//!
//! 1. The freeze swaps the dirty bitmaps while all gates are closed: every write is before it, with
//!    all its bits, or after it.
//! 2. A chunk is protected from the freeze until it is uploaded if it holds a frozen block: the
//!    whole chunk, for what is not dirty in it is uploaded too (rule 18).
//! 3. Before the first change of a protected block its mark is set: *saved* after its old bytes lie
//!    in the saved copies, *base* if it was not local. Who changes it is alone behind its gate.
//! 4. The uploader reads by the live map, then the marks again, and the marks win:
//!
//! ```text
//! uploader                         guest
//! no mark, local: reads the delta
//!                                  saves, marks, then writes
//! no mark yet → what it read is of the freeze;  mark → reads the saved copy instead
//! ```
//!
//! 5. A copy that finds no room gives the COMMIT up, never the write: `given_up` is set before the
//!    write goes on, and the uploader looks at it after it has read.
//!
//! 6. What is frozen is durable before anything of it can be published. Else a power loss after the
//!    publish would take an unflushed block back to the attach base, not local and so not dirty,
//!    while the parent holds its newer content: the next version would differ from the disk.
//!
//! # Crash
//!
//! Saved copies and marks are worth nothing to a successor: it ORs the frozen bits into the dirty
//! ones, which is an abandon. On disk a block stays dirty until the flush after `publish`.
//!
//! # Threads
//!
//! `protects` and `protect` run behind the gates. `exclusive` admits one freeze or end at a time.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use zerocopy::FromZeros;

use crate::buffer::{Buffer, with_bounce};
use crate::disk::Errno;
use crate::engine::Digest;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::flight::{PRIORITY_COMMIT, Waiter};
use crate::live::Bits;
use crate::mirror::Mirror;
use crate::units::{BLOCK_BYTES, index, lock};

/// A mirror's COMMIT, if there is one.
#[derive(Debug)]
pub struct Seal {
    active: AtomicBool,
    /// By chunk: uploaded, no longer protected.
    released: Vec<AtomicU64>,
    /// Why it was given up, or 0.
    given_up: AtomicI32,
    /// Whether a `Sealed` is out; held through a freeze and an end.
    sealed: Mutex<bool>,
}

/// Where a block of the freeze is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Delta,
    Base,
    Saved,
}

impl Seal {
    /// For at most so many chunks; untouched memory costs nothing.
    pub(crate) fn new(chunks_max: u64) -> Self {
        let released = AtomicU64::new_vec_zeroed(index(chunks_max.div_ceil(64)));
        Self {
            active: AtomicBool::new(false),
            released: released.unwrap_or_default(),
            given_up: AtomicI32::new(0),
            sealed: Mutex::new(false),
        }
    }

    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::SeqCst)
    }

    /// Nobody freezes or ends a COMMIT meanwhile.
    pub(crate) fn exclusive(&self) -> MutexGuard<'_, bool> {
        lock(&self.sealed)
    }

    fn is_released(&self, chunk: u64) -> bool {
        self.released
            .get(index(chunk / 64))
            .is_none_or(|word| word.load(Ordering::SeqCst) >> (chunk % 64) & 1 == 1)
    }

    /// The parts of a range that are protected, a chunk each.
    fn protected<'a>(
        &'a self,
        mirror: &'a Mirror,
        blocks: Range<u64>,
    ) -> impl Iterator<Item = Range<u64>> + 'a {
        let chunk_blocks = mirror.chunk_size / BLOCK_BYTES;
        let chunks = if self.is_active() {
            blocks.start / chunk_blocks..blocks.end.div_ceil(chunk_blocks)
        } else {
            0..0
        };
        let frozen = mirror.live.frozen();
        let limit = mirror.blocks();
        chunks
            .filter(move |&chunk| {
                let whole = chunk * chunk_blocks..((chunk + 1) * chunk_blocks).min(limit);
                !self.is_released(chunk)
                    && mirror.live.run_end(frozen, false, whole.start, whole.end) < whole.end
            })
            .map(move |chunk| {
                let from = blocks.start.max(chunk * chunk_blocks);
                from..blocks.end.min((chunk + 1) * chunk_blocks)
            })
    }

    /// Whether a block of the range must be set aside before it changes.
    #[inline]
    pub(crate) fn protects(&self, mirror: &Mirror, blocks: Range<u64>) -> bool {
        self.is_active()
            && self
                .protected(mirror, blocks)
                .any(|part| !is_marked(mirror, part))
    }

    /// Sets a range's blocks aside; the caller is alone there.
    pub(crate) fn protect(&self, mirror: &Mirror, blocks: Range<u64>) {
        let parts: Vec<_> = self.protected(mirror, blocks).collect();
        for part in parts {
            if let Err(error) = save(mirror, part) {
                let errno = error.raw_os_error().unwrap_or(libc::EIO);
                // In this order: who reads checks `given_up` last.
                self.given_up.store(errno, Ordering::SeqCst);
                self.active.store(false, Ordering::SeqCst);
                mirror.core.events.push(
                    Event::new("alarm")
                        .text("what", "COMMIT given up: a block could not be set aside")
                        .text("instance", &mirror.instance)
                        .text("disk", &mirror.disk)
                        .text("error", error.to_string()),
                );
                return;
            }
        }
    }
}

fn is_marked(mirror: &Mirror, blocks: Range<u64>) -> bool {
    let mut at = blocks.start;
    while at < blocks.end {
        let to = mirror.live.run_end(Bits::Saved, true, at, blocks.end);
        let to = mirror.live.run_end(Bits::Base, true, to, blocks.end);
        if to == at {
            return false;
        }
        at = to;
    }
    true
}

/// Saves and marks the blocks that have no mark yet.
fn save(mirror: &Mirror, blocks: Range<u64>) -> std::io::Result<()> {
    let live = &mirror.live;
    let mut at = blocks.start;
    while at < blocks.end {
        let marked = live.get(Bits::Saved, at) || live.get(Bits::Base, at);
        let local = live.get(Bits::Local, at);
        let mut to = at + 1;
        while to < blocks.end
            && (live.get(Bits::Saved, to) || live.get(Bits::Base, to)) == marked
            && live.get(Bits::Local, to) == local
        {
            to += 1;
        }
        if !marked && local {
            let (offset, len) = (at * BLOCK_BYTES, index((to - at) * BLOCK_BYTES));
            with_bounce(len, |bytes| {
                mirror.delta.read(offset, bytes)?;
                mirror.saved.write(offset, bytes)
            })?;
            live.set(Bits::Saved, at..to);
            mirror
                .counters
                .saved_blocks
                .fetch_add(to - at, Ordering::Relaxed);
        } else if !marked {
            live.set(Bits::Base, at..to);
        }
        at = to;
    }
    Ok(())
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

/// The dirty chunks of one mirror as they were at its freeze. Dropped without
/// [`Sealed::publish`], it is abandoned.
#[derive(Debug)]
pub struct Sealed {
    mirror: Arc<Mirror>,
    size_bytes: u64,
    chunks: Vec<u64>,
    ended: AtomicBool,
    bandwidth: Mutex<Bandwidth>,
}

#[derive(Debug)]
struct Bandwidth {
    bytes_per_second: u64,
    free_at: Instant,
}

impl Mirror {
    /// Seals the dirty blocks for a COMMIT and makes them durable; the guest's writes wait for the
    /// former only.
    ///
    /// # Errors
    /// [`Error::AlreadySealed`]; EIO: the mirror ends, or a flush failed.
    pub fn freeze(self: &Arc<Self>) -> Result<Sealed> {
        let mut sealed = self.seal.exclusive();
        if self.is_closing() {
            return Err(Error::errno("freeze", self.delta.path(), libc::EIO));
        }
        if *sealed {
            return Err(Error::AlreadySealed);
        }
        let prepare = || self.saved.clear(self.size_bytes());
        prepare().map_err(|e| Error::io("clear", self.saved.path(), e))?;
        self.gates.close_all();
        let size_bytes = self.size_bytes();
        self.live.swap();
        self.seal.given_up.store(0, Ordering::SeqCst);
        self.seal.active.store(true, Ordering::SeqCst);
        self.open_gates();
        *sealed = true;
        drop(sealed);
        let blocks = size_bytes.div_ceil(BLOCK_BYTES);
        let sealed = Sealed {
            chunks: self.chunks_with(&[self.live.frozen()], blocks),
            mirror: self.clone(),
            size_bytes,
            ended: AtomicBool::new(false),
            bandwidth: Mutex::new(Bandwidth {
                bytes_per_second: 0,
                free_at: Instant::now(),
            }),
        };
        // Invariant 6; a failure drops, so abandons, what was sealed.
        self.flush_wait()?;
        Ok(sealed)
    }

    fn open_gates(&self) {
        for job in self.gates.open(u64::MAX) {
            job.wake();
        }
    }
}

impl Sealed {
    /// The disk's size at the freeze.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Indexes of the chunks that hold a dirty block, ascending.
    #[must_use]
    pub fn chunks(&self) -> &[u64] {
        &self.chunks
    }

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
        self.wait_for_bandwidth();
        let mut base = None;
        loop {
            if self.ended.load(Ordering::SeqCst) || self.mirror.is_closing() {
                return fail(libc::EIO);
            }
            let content = self.compose(chunk, base.as_ref());
            match self.mirror.seal.given_up.load(Ordering::SeqCst) {
                0 => {}
                errno => return fail(errno),
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
                if self.ended.load(Ordering::SeqCst) || mirror.is_closing() {
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

    /// This chunk needs no protection any more.
    pub fn uploaded(&self, chunk: u64) {
        if self.ended.load(Ordering::SeqCst) || self.chunks.binary_search(&chunk).is_err() {
            return;
        }
        let mirror = &self.mirror;
        if let Some(word) = mirror.seal.released.get(index(chunk / 64)) {
            word.fetch_or(1 << (chunk % 64), Ordering::SeqCst);
        }
        // A writer that saves at this moment leaves a few blocks until the end.
        let _ = mirror
            .saved
            .punch(chunk * mirror.chunk_size, mirror.chunk_size);
    }

    /// The version stands: what was frozen is clean. A second end of any kind changes nothing.
    pub fn publish(&self) {
        self.end(true);
    }

    /// What was frozen is dirty again.
    pub fn abandon(&self) {
        self.end(false);
    }

    fn end(&self, published: bool) {
        let mirror = &self.mirror;
        let mut sealed = mirror.seal.exclusive();
        if self.ended.swap(true, Ordering::SeqCst) || mirror.is_closing() {
            // A mirror that ends has written frozen blocks as dirty.
            return;
        }
        let seal = &mirror.seal;
        mirror.gates.close_all();
        seal.active.store(false, Ordering::SeqCst);
        mirror.open_gates();
        // Nobody looks at marks or frozen bits any more.
        let blocks = mirror.blocks();
        let (frozen, dirty) = (mirror.live.frozen(), mirror.live.dirty());
        if published && seal.given_up.load(Ordering::SeqCst) == 0 {
            mirror.live.clear(frozen, blocks);
        } else {
            mirror.live.merge(frozen, dirty, blocks);
        }
        mirror.live.clear(Bits::Saved, blocks);
        mirror.live.clear(Bits::Base, blocks);
        let chunk_blocks = mirror.chunk_size / BLOCK_BYTES;
        for &chunk in &self.chunks {
            mirror
                .pages
                .touch(chunk * chunk_blocks..(chunk + 1) * chunk_blocks);
            if let Some(word) = seal.released.get(index(chunk / 64)) {
                word.fetch_and(!(1 << (chunk % 64)), Ordering::SeqCst);
            }
        }
        // Its space comes back at the next freeze otherwise.
        let _ = mirror.saved.clear(0);
        *sealed = false;
    }

    /// Limits how fast [`Sealed::read`] answers; 0: not at all.
    pub fn set_bandwidth(&self, bytes_per_second: u64) {
        lock(&self.bandwidth).bytes_per_second = bytes_per_second;
    }

    fn wait_for_bandwidth(&self) {
        let now = Instant::now();
        let pause = {
            let mut bandwidth = lock(&self.bandwidth);
            if bandwidth.bytes_per_second == 0 {
                return;
            }
            let start = bandwidth.free_at.max(now);
            let micros =
                self.mirror.chunk_size.saturating_mul(1_000_000) / bandwidth.bytes_per_second;
            bandwidth.free_at = start + Duration::from_micros(micros);
            start - now
        };
        std::thread::sleep(pause);
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        self.abandon();
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
