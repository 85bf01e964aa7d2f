// SPDX-License-Identifier: Apache-2.0
//! The chunk cache of one host: chunks by digest, in slots of a slab file per chunk size.
//!
//! This module opens and closes it; `room` keeps the bound and moves chunks in and out, `check` lets
//! nothing wrong be served, `slab` has the slots and who reads them, `lru` who leaves first, `index`
//! what is on disk, `keeper` what goes on beside: the disk's free space, the scrub, the notes of
//! recency.
//!
//! # Invariants
//!
//! 1. A slot is present only after its whole content, verified by its digest, has been written.
//! 2. A reader holds a reference while it reads; only slots without one are evicted.
//! 3. The index on disk names a slot after its content is written, and forgets it before the next
//!    content is.
//! 4. The bytes of slots in use, of all chunk sizes, never exceed the bound, and every other byte of
//!    a slab is a hole. No room is no error: the chunk is served from memory.
//! 5. A slot that does not hold what it should is never served: condemned, counted, told.
//!
//! # Crash
//!
//! | what | found at the next open | so |
//! | --- | --- | --- |
//! | killed before a slot was named | a free slot with content | its space is given back |
//! | killed after an entry was cleared | likewise | likewise |
//! | killed at any other point | entries of an unclean index | each is checked before its first use |
//! | power lost | entries and contents, old and new | each is checked before its first use |
//! | orderly stop, same boot | a clean index | what was checked is believed |
//!
//! Nothing here is synced but at an orderly stop (rule 29). How recently a chunk was used is in its
//! entry, as of its filling, of a minute ago, or of the stop.
//!
//! # Threads
//!
//! Locks are leaves; two slabs are never locked at once.

mod check;
mod index;
mod keeper;
mod lru;
mod room;
mod slab;

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Condvar, Mutex, OnceLock};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::engine::Statistics;
use crate::error::{Error, Result};
use crate::refusal::{Refusals, Source};
use crate::sys::file::{self, Create};
use crate::units::lock;

pub use check::matches;
#[cfg(any(test, feature = "fuzzing"))]
pub use index::mend;
pub use slab::{Slab, SlotRef};

/// The least and the largest chunk size, as powers of two.
const SHIFT_MIN: u32 = 12;
const SHIFT_MAX: u32 = 22;
/// Slots that may be checked at once.
const CHECKS: usize = 16;

/// How to open a [`Cache`].
#[derive(Debug, Clone)]
pub struct CacheOptions {
    /// Holds slabs and indexes.
    pub directory: PathBuf,
    /// The bytes that it may hold.
    pub bytes_max: u64,
    /// The bytes of its file system that it leaves free.
    pub reserve_bytes: u64,
    /// How fast the scrub reads; 0: there is none.
    pub scrub_bytes_per_second: u64,
}

/// What a cache counts.
#[derive(Debug, Default)]
struct Counters {
    filled: AtomicU64,
    evicted: AtomicU64,
    shed_bytes: AtomicU64,
    checked: AtomicU64,
    scrubbed_bytes: AtomicU64,
}

/// The cache.
#[derive(Debug)]
pub struct Cache {
    options: CacheOptions,
    device: u64,
    used_bytes: AtomicU64,
    /// The file system lacks room: nothing new is taken of it.
    low: AtomicBool,
    /// Held while a chunk is shed.
    shedding: Mutex<()>,
    slabs: [OnceLock<Slab>; (SHIFT_MAX - SHIFT_MIN + 1) as usize],
    opening: Mutex<()>,
    fence: File,
    clock: Arc<AtomicU64>,
    checking: [Mutex<()>; CHECKS],
    refusals: Arc<Refusals>,
    counters: Counters,
    stopped: Mutex<bool>,
    stopping: Condvar,
}

/// Locks a file; a dead engine's requests may pin its lock for a moment.
fn fence(file: &File, path: &Path) -> Result<()> {
    let mut patience = 100;
    while !file::try_lock(file).map_err(|e| Error::io("lock", path, e))? {
        patience -= 1;
        if patience == 0 {
            let remedy = "stop that process, or give each agent a cache of its own";
            return Err(Error::locked(path, file, remedy));
        }
        crate::sync::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

impl Cache {
    /// Opens the directory; one engine at a time.
    pub fn open(options: CacheOptions, refusals: Arc<Refusals>) -> Result<Self> {
        let directory = &options.directory;
        std::fs::create_dir_all(directory).map_err(|e| Error::io("create", directory, e))?;
        let device = std::fs::metadata(directory)
            .map_err(|e| Error::io("stat", directory, e))?
            .dev();
        let path = directory.join("lock");
        let file =
            file::open(&path, Create::Maybe, false).map_err(|e| Error::io("open", &path, e))?;
        fence(&file, &path)?;
        let cache = Self {
            device,
            used_bytes: AtomicU64::new(0),
            low: AtomicBool::new(false),
            shedding: Mutex::new(()),
            slabs: Default::default(),
            opening: Mutex::new(()),
            fence: file,
            clock: Arc::new(AtomicU64::new(1)),
            checking: Default::default(),
            refusals,
            counters: Counters::default(),
            stopped: Mutex::new(false),
            stopping: Condvar::new(),
            options,
        };
        // What earlier runs left counts against the bound.
        for shift in SHIFT_MIN..=SHIFT_MAX {
            let size = 1_u64 << shift;
            let named = |kind| cache.options.directory.join(format!("{kind}-{size}"));
            if named("index").exists() || named("slab").exists() {
                cache.slab(size)?;
            }
        }
        while cache.used_bytes() > cache.options.bytes_max && cache.evict_one().is_some() {}
        cache.relieve();
        Ok(cache)
    }

    /// The bytes of slots in use.
    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }

    fn open_slabs(&self) -> impl Iterator<Item = &Slab> {
        self.slabs.iter().filter_map(OnceLock::get)
    }

    /// What it holds and has done, for the engine's statistics.
    pub fn statistics(&self) -> Statistics {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let pinned = self.open_slabs().map(Slab::pinned_bytes).sum();
        vec![
            ("cache_bytes", self.used_bytes()),
            ("cache_bytes_max", self.options.bytes_max),
            ("cache_pinned_bytes", pinned),
            ("cache_low", u64::from(self.low.load(Ordering::Relaxed))),
            ("cache_filled_total", load(&self.counters.filled)),
            ("cache_evicted_total", load(&self.counters.evicted)),
            ("cache_shed_bytes_total", load(&self.counters.shed_bytes)),
            ("cache_checked_total", load(&self.counters.checked)),
            (
                "cache_scrubbed_bytes_total",
                load(&self.counters.scrubbed_bytes),
            ),
            ("cache_refused_total", self.refusals.count(Source::Cache)),
        ]
    }

    /// The slots of a chunk size.
    pub fn slab(&self, chunk_size: u64) -> Result<&Slab> {
        let shift = chunk_size.trailing_zeros();
        if !chunk_size.is_power_of_two() || !(SHIFT_MIN..=SHIFT_MAX).contains(&shift) {
            return Err(Error::Invalid(format!(
                "chunk size {chunk_size} is no power of two from 4 KiB to 4 MiB"
            )));
        }
        let cell = &self.slabs[(shift - SHIFT_MIN) as usize];
        if let Some(slab) = cell.get() {
            return Ok(slab);
        }
        let _one = lock(&self.opening);
        if let Some(slab) = cell.get() {
            return Ok(slab);
        }
        let options = &self.options;
        let slab = Slab::open(
            &options.directory,
            chunk_size,
            options.bytes_max,
            &self.clock,
        )?;
        self.used_bytes
            .fetch_add(slab.used_bytes(), Ordering::Relaxed);
        Ok(cell.get_or_init(|| slab))
    }

    /// The slots of a chunk size, if there are any.
    pub fn open_slab(&self, chunk_size: u64) -> Option<&Slab> {
        self.open_slabs()
            .find(|slab| slab.chunk_size() == chunk_size)
    }

    /// An orderly stop: what the indexes name may be believed.
    pub fn close(&self) -> Result<()> {
        let mut result = Ok(());
        for slab in self.open_slabs() {
            result = result.and(slab.close());
        }
        self.unlock().and(result)
    }

    fn unlock(&self) -> Result<()> {
        let files = self.open_slabs().map(Slab::fence_file).chain([&self.fence]);
        let mut result = Ok(());
        for file in files {
            let unlocked = file::unlock(file);
            result =
                result.and(unlocked.map_err(|e| Error::io("unlock", &self.options.directory, e)));
        }
        result
    }

    /// Lets go of the locks and nothing else: for tests of recovery.
    #[doc(hidden)]
    pub fn forget_as_if_killed(&self) {
        let _ = self.unlock();
    }
}
