// SPDX-License-Identifier: Apache-2.0
//! A COMMIT in the engine: the dirty chunks as they were at the freeze, while the guest goes on.
//!
//! ```text
//!       hold            seal             publish
//! Open ──────▶ Held ──────────▶ Sealed ──────────▶ Open     what was frozen is clean
//!               │                  │     abandon
//!               │ thaw,            └─────────────▶ Open     what was frozen is dirty again
//!               │ time is up
//!               └─────────────▶ Open                        nothing has happened
//! ```
//!
//! `freeze` is hold and seal in one. What a held freeze is: see `freeze`. What the guest's changes
//! cost meanwhile: `protect`. What the uploader reads: `read`.
//!
//! # Invariants
//!
//! 1. The seal swaps the dirty bitmaps while all gates are closed: every write is before it, with
//!    all its bits, or after it.
//! 2. A chunk is protected from the seal until it is uploaded if it holds a frozen block: the
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
//! 7. Nothing whose cost grows with the disk, or with what is dirty, is done while a gate is closed
//!    for all: maps are searched, merged and cleared behind open gates.
//!
//! # Crash
//!
//! | killed | found by the successor |
//! | --- | --- |
//! | while held | nothing of it: the bits were not touched, parked writes were not answered |
//! | sealed, anywhere | the frozen bits, and adds them to the dirty ones: an abandon |
//! | in `publish`, before the frozen bits are cleared | the same: blocks of the new parent are dirty once more, and recognised by digest |
//! | in `abandon`, between two words | each word's bits in one map or in both |
//!
//! Saved copies and marks are worth nothing to a successor, which drops them. On disk a block stays
//! dirty until the flush after `publish`.
//!
//! # Threads
//!
//! `protects` and `protect` run behind the gates. `exclusive` admits one hold, seal or end at a time.

mod freeze;
mod protect;
mod read;

use crate::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard};

use zerocopy::FromZeros;

pub use freeze::{Held, Pause, Pauses};

use crate::error::Result;
use crate::live::Bits;
use crate::mirror::Mirror;
use crate::units::{BLOCK_BYTES, index, lock};

/// How far a mirror's COMMIT is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// There is none.
    Open,
    /// The gates are closed for a `Held`.
    Held,
    /// A `Sealed` is out.
    Sealed,
    /// The mirror ends; the gates stay closed.
    Ended,
}

/// A mirror's COMMIT, if there is one.
#[derive(Debug)]
pub struct Seal {
    active: AtomicBool,
    /// By chunk: uploaded, no longer protected.
    released: Vec<AtomicU64>,
    /// Why it was given up, or 0.
    given_up: AtomicI32,
    /// Held through a freeze and an end.
    stage: Mutex<Stage>,
    /// The number of the hold in effect, or 0; it changes with the stage.
    held: AtomicU64,
    holds: AtomicU64,
}

impl Seal {
    /// For at most so many chunks; untouched memory costs nothing.
    pub(crate) fn new(chunks_max: u64) -> Self {
        let released = AtomicU64::new_vec_zeroed(index(chunks_max.div_ceil(64)));
        Self {
            active: AtomicBool::new(false),
            released: released.unwrap_or_default(),
            given_up: AtomicI32::new(0),
            stage: Mutex::new(Stage::Open),
            held: AtomicU64::new(0),
            holds: AtomicU64::new(0),
        }
    }

    #[inline]
    pub(crate) fn is_active(&self) -> bool {
        self.active.load(Ordering::SeqCst)
    }

    /// Nobody holds, seals or ends a COMMIT meanwhile.
    fn exclusive(&self) -> MutexGuard<'_, Stage> {
        lock(&self.stage)
    }
}

/// The dirty chunks of one mirror as they were at its freeze. Dropped without
/// [`Sealed::publish`], it is abandoned.
#[derive(Debug)]
pub struct Sealed {
    mirror: Arc<Mirror>,
    size_bytes: u64,
    chunks: Vec<u64>,
    pause: Pause,
    ended: AtomicBool,
}

impl Sealed {
    /// Lists what is frozen, and makes it durable (invariant 6).
    fn new(mirror: &Arc<Mirror>, size_bytes: u64, pause: Pause) -> Result<Self> {
        let blocks = size_bytes.div_ceil(BLOCK_BYTES);
        let sealed = Self {
            chunks: mirror.chunks_with(&[mirror.live.frozen()], blocks),
            mirror: mirror.clone(),
            size_bytes,
            pause,
            ended: AtomicBool::new(false),
        };
        // A failure drops, so abandons, what was sealed.
        mirror.flush_wait()?;
        Ok(sealed)
    }

    /// The disk's size at the freeze.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// How long guests' writes waited for the freeze.
    #[must_use]
    pub fn pause(&self) -> Pause {
        self.pause
    }

    /// Indexes of the chunks that hold a dirty block, ascending.
    #[must_use]
    pub fn chunks(&self) -> &[u64] {
        &self.chunks
    }

    fn has_ended(&self) -> bool {
        self.ended.load(Ordering::SeqCst) || self.mirror.is_closing()
    }

    /// This chunk needs no protection any more.
    pub fn uploaded(&self, chunk: u64) {
        if self.has_ended() || self.chunks.binary_search(&chunk).is_err() {
            return;
        }
        let mirror = &self.mirror;
        if let Some(word) = mirror.seal.released.get(index(chunk / 64)) {
            word.fetch_or(1 << (chunk % 64), Ordering::SeqCst);
        }
        let chunk_blocks = mirror.chunk_size / BLOCK_BYTES;
        let (first, end) = (chunk * chunk_blocks, (chunk + 1) * chunk_blocks);
        let end = end.min(mirror.blocks());
        if mirror.live.run_end(Bits::Saved, false, first, end) < end {
            // A writer that saves at this moment leaves a few blocks until the end.
            let _ = mirror
                .saved
                .punch(chunk * mirror.chunk_size, mirror.chunk_size);
        }
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
        let mut stage = mirror.seal.exclusive();
        if self.ended.swap(true, Ordering::SeqCst) || mirror.is_closing() {
            // A mirror that ends has written frozen blocks as dirty.
            return;
        }
        let seal = &mirror.seal;
        mirror.pass_by_all(|| seal.active.store(false, Ordering::SeqCst));
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
        *stage = Stage::Open;
    }
}

impl Drop for Sealed {
    fn drop(&mut self) {
        self.abandon();
    }
}
