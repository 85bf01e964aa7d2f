// SPDX-License-Identifier: Apache-2.0
//! One disk of one server: the base version seen through the chunk cache, under a private delta.
//!
//! This module holds a mirror's parts and its life: attach, recovery, growth; its end is in `ending`.
//! How a request comes in is in `requests`, what it does in `access`, what makes it durable in
//! `flush`, what a COMMIT adds in `commit`, who may run beside whom in `gate`.
//!
//! # Crash
//!
//! | what | found at the next attach | so |
//! | --- | --- | --- |
//! | agent killed, any point | live map of this boot, attachment and nonce | every acknowledged write is there; frozen blocks are dirty again |
//! | power lost | disk map, not clean | every flushed write is there; every local block is dirty |
//! | orderly stop | disk map, clean | dirty bits are exact |
//! | killed while attaching | live map without magic, or of another nonce | disk map, as it was: nothing was written yet |
//!
//! `CRASHES.rst` goes through every step; `tests/crash` proves it.
//!
//! # Threads
//!
//! Doors call from any number of threads; what must wait becomes a [`Job`] and owns none. Locks are
//! leaves: nobody takes a second one while it holds one of these.

mod ending;
mod requests;
mod status;

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Mutex, Weak};
use std::collections::HashMap;

use crate::base::Base;
use crate::cache::Slab;
use crate::commit::Seal;
use crate::core::Core;
use crate::delta::Delta;
use crate::diskmap::{DiskMap, Header};
use crate::engine::AttachOptions;
use crate::error::{Error, Result};
use crate::flush::Flusher;
use crate::gate::Gates;
use crate::job::{Job, Reason};
use crate::live::{Bits, LiveMap};
use crate::meter::Meter;
use crate::pages::Pages;
use crate::recover::{self, Opened};
use crate::units::{BLOCK_BYTES, lock};

/// A disk may grow to this, or to four times its size at attach, without a new attachment.
const GROWTH_BYTES: u64 = 1 << 40;
/// What a mirror counts.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub parked: AtomicU64,
    pub cache_hits: AtomicU64,
    pub cache_misses: AtomicU64,
    pub fetched_bytes: Arc<AtomicU64>,
    pub flushes: AtomicU64,
    pub saved_blocks: AtomicU64,
}

/// One disk of one server. Doors reach it as a [`Disk`].
#[derive(Debug)]
pub struct Mirror {
    me: Weak<Self>,
    pub(crate) core: Arc<Core>,
    pub(crate) instance: String,
    pub(crate) disk: String,
    size_bytes: AtomicU64,
    pub(crate) chunk_size: u64,
    pub(crate) key: [u8; 32],
    pub(crate) base: Base,
    pub(crate) delta: Delta,
    pub(crate) saved: Delta,
    pub(crate) live: LiveMap,
    pub(crate) pages: Pages,
    pub(crate) disk_map: DiskMap,
    header: Mutex<Header>,
    live_path: std::path::PathBuf,
    pub(crate) gates: Gates<Arc<Job>>,
    pub(crate) parked: Mutex<HashMap<u64, Arc<Job>>>,
    pub(crate) held: Mutex<Vec<Arc<Job>>>,
    /// A write is held for want of room; the alarm was raised.
    pub(crate) full: AtomicBool,
    pub(crate) flusher: Flusher,
    pub(crate) seal: Seal,
    pub(crate) counters: Counters,
    pub(crate) meter: Meter,
    misses_ended: AtomicBool,
    closing: AtomicBool,
}

impl Mirror {
    pub(crate) fn attach(
        core: &Arc<Core>,
        options: AttachOptions,
        survivor: bool,
    ) -> Result<Arc<Self>> {
        // Refuses sizes that are none.
        core.cache.slab(options.chunk_size_bytes)?;
        if options.size_bytes == 0 || options.size_bytes > i64::MAX as u64 / 8 {
            return Err(Error::Invalid(format!(
                "size {} is out of bounds",
                options.size_bytes
            )));
        }
        let blocks = options.size_bytes.div_ceil(BLOCK_BYTES);
        let blocks_max = (GROWTH_BYTES / BLOCK_BYTES).max(blocks * 4);
        let chunk_count = options.size_bytes.div_ceil(options.chunk_size_bytes);
        let base = Base::new(
            &core.leaves,
            &options.leaves,
            chunk_count,
            options.chunk_size_bytes,
        )?;
        let Opened {
            delta,
            saved,
            disk_map,
            live,
            pages,
            header,
        } = recover::open(core, &options, blocks_max, survivor)?;

        Ok(Arc::new_cyclic(|me| Self {
            me: me.clone(),
            core: core.clone(),
            instance: options.instance,
            disk: options.disk,
            size_bytes: AtomicU64::new(options.size_bytes),
            chunk_size: options.chunk_size_bytes,
            key: options.chunk_key,
            base,
            delta,
            saved,
            live,
            pages,
            disk_map,
            header: Mutex::new(header),
            live_path: options.live_map,
            gates: Gates::default(),
            parked: Mutex::default(),
            held: Mutex::default(),
            full: AtomicBool::new(false),
            flusher: Flusher::default(),
            seal: Seal::new(blocks_max * BLOCK_BYTES / options.chunk_size_bytes + 1),
            counters: Counters::default(),
            meter: Meter::default(),
            misses_ended: AtomicBool::new(false),
            closing: AtomicBool::new(false),
        }))
    }

    /// The slots of its chunk size.
    pub(crate) fn slab(&self) -> &Slab {
        match self.core.cache.slab(self.chunk_size) {
            Ok(slab) => slab,
            Err(error) => unreachable!("attach opened the slab: {error}"),
        }
    }

    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::SeqCst)
    }

    pub(crate) fn misses_ended(&self) -> bool {
        self.misses_ended.load(Ordering::SeqCst)
    }

    /// Blocks of the disk, a last partial one included.
    pub(crate) fn blocks(&self) -> u64 {
        self.size_bytes().div_ceil(BLOCK_BYTES)
    }

    /// The size that the guest sees.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes.load(Ordering::SeqCst)
    }

    /// The chunks with a bit in one of the bitmaps.
    pub(crate) fn chunks_with(&self, bitmaps: &[Bits], blocks: u64) -> Vec<u64> {
        let chunk_blocks = self.chunk_size / BLOCK_BYTES;
        let next = |bits, at: u64| self.live.run_end(bits, false, at.min(blocks), blocks);
        // Each bitmap is walked once: one that is clear to its end is not looked through again.
        let mut ahead: Vec<u64> = bitmaps.iter().map(|&bits| next(bits, 0)).collect();
        let mut chunks = Vec::new();
        while let Some(&block) = ahead.iter().min().filter(|&&block| block < blocks) {
            chunks.push(block / chunk_blocks);
            let at = (block / chunk_blocks + 1) * chunk_blocks;
            for (found, &bits) in ahead.iter_mut().zip(bitmaps) {
                if *found < at {
                    *found = next(bits, at);
                }
            }
        }
        chunks
    }

    /// Makes delta and maps large enough for a disk of this size, durably; nothing shows. The caller
    /// then journals the size (rule 8).
    ///
    /// # Errors
    /// Shrinking, or no room for the maps.
    pub fn reserve(&self, size_bytes: u64) -> Result<()> {
        let mut header = lock(&self.header);
        if size_bytes < self.size_bytes() {
            return Err(Error::Invalid(format!(
                "a disk of {} bytes does not shrink to {size_bytes}",
                self.size_bytes()
            )));
        }
        self.delta.extend(size_bytes)?;
        self.disk_map.extend(size_bytes)?;
        self.live.extend(size_bytes.div_ceil(BLOCK_BYTES))?;
        self.delta.sync().map_err(|e| {
            // The guest's writes were in it: a flush that succeeds now would hide that.
            self.sync_failed(&e);
            Error::io("sync", self.delta.path(), e)
        })?;
        header.size_bytes = header.size_bytes.max(size_bytes);
        self.disk_map.set_header(&header)
    }

    /// Makes the disk larger; the caller has journalled the size and then tells its door.
    ///
    /// # Errors
    /// As [`Mirror::reserve`].
    pub fn grow(&self, size_bytes: u64) -> Result<()> {
        self.reserve(size_bytes)?;
        self.size_bytes.store(size_bytes, Ordering::SeqCst);
        Ok(())
    }

    /// Parked and new misses, and writes held on a full disk, end with EIO (contract 40) until
    /// allowed again: a process that waits for one does not even die.
    pub fn end_misses(&self) {
        self.misses_ended.store(true, Ordering::SeqCst);
        for job in self.jobs() {
            if job.waits_for(Reason::Fetch) || job.waits_for(Reason::Full) {
                job.end_parked(Err(libc::EIO));
            }
        }
    }

    /// Misses wait again.
    pub fn allow_misses(&self) {
        self.misses_ended.store(false, Ordering::SeqCst);
    }

    pub(crate) fn jobs(&self) -> Vec<Arc<Job>> {
        lock(&self.parked).values().cloned().collect()
    }

    /// Retries held writes; ends what waited too long for a chunk.
    pub(crate) fn tick(&self) {
        let held = std::mem::take(&mut *lock(&self.held));
        if held.is_empty() {
            self.full.store(false, Ordering::Relaxed);
        }
        Job::wake_all(held);
        if let Some(timeout) = self.core.fetch_timeout {
            for job in self.jobs() {
                if job.waits_for(Reason::Fetch) && job.since.elapsed() > timeout {
                    job.end_parked(Err(libc::EIO));
                }
            }
        }
    }

    /// Tries held writes again now: for tests of full disks.
    #[cfg(feature = "faults")]
    #[doc(hidden)]
    pub fn retry_held(&self) {
        self.tick();
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // Nobody reads any more, so it touches nothing after this.
        let core = self.core.clone();
        if let Ok(slab) = core.cache.slab(self.chunk_size) {
            self.base.let_go(slab);
        }
        let counters = &self.counters;
        for (past, mine) in [
            (&self.core.past_hits, &counters.cache_hits),
            (&self.core.past_misses, &counters.cache_misses),
        ] {
            past.fetch_add(mine.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}
