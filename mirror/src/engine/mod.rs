// SPDX-License-Identifier: Apache-2.0
//! The mirrors and the chunk cache of one host.
//!
//! This module holds an engine's parts and the life of its mirrors; what is fetched for them comes in
//! through `arrivals`, what is counted is told by `statistics`, and how it ends is in `ending`.

mod arrivals;
mod ending;
mod options;
mod statistics;

use crate::sync::atomic::{AtomicBool, AtomicU64};
use crate::sync::thread::JoinHandle;
use crate::sync::{Arc, Condvar, Mutex, PoisonError};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::time::Duration;

pub use options::{AttachOptions, Digest, EngineOptions, Fetch, FetchFailure, OnFull, Statistics};

use crate::base::Leaves;
use crate::cache::{Cache, CacheOptions};
use crate::commit::Pauses;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::event::Events;
use crate::flight::Flights;
use crate::meter::{Latencies, Meter, SlowLog};
use crate::mirror::Mirror;
use crate::pool::Pool;
use crate::refusal::Refusals;
use crate::units::lock;
use crate::watchdog::Watchdog;

/// How often held writes and waits are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Changed pages are flushed at least this often, in ticks (rule 3).
const FLUSH_TICKS: u32 = 4;

type Name = (String, String);

/// The mirrors and the chunk cache of one host.
#[derive(Debug)]
pub struct Engine {
    core: Arc<Core>,
    mirrors: Mutex<HashMap<Name, Arc<Mirror>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    stopped: Mutex<bool>,
    stopping: Condvar,
    fetched_object_bytes: AtomicU64,
    uncached: AtomicU64,
    /// The last fetch did not reach the store, as far as we know.
    store_away: AtomicBool,
}

impl Engine {
    /// Opens (or makes) the chunk cache and starts the engine's threads.
    ///
    /// # Errors
    /// The cache's directory cannot be used, or another engine holds it.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "options are written for one call"
    )]
    pub fn open(options: EngineOptions) -> Result<Arc<Self>> {
        let events = Arc::new(Events::default());
        let refusals = Arc::new(Refusals::new(events.clone()));
        let cache = CacheOptions {
            directory: options.cache_directory.clone(),
            bytes_max: options.cache_bytes,
            reserve_bytes: options.cache_reserve_bytes,
            scrub_bytes_per_second: options.scrub_bytes_per_second,
        };
        let core = Arc::new(Core {
            cache: Cache::open(cache, refusals.clone())?,
            flights: Flights::default(),
            leaves: Leaves::default(),
            pool: Arc::new(Pool::default()),
            watchdog: Arc::new(Watchdog::default()),
            pauses: Pauses::default(),
            meter: Meter::default(),
            slow: SlowLog::default(),
            events,
            refusals,
            past_hits: AtomicU64::new(0),
            past_misses: AtomicU64::new(0),
            session: *blake3::hash(options.session_id.as_bytes()).as_bytes(),
            fetch_timeout: options.fetch_timeout,
            on_full: options.on_full,
        });
        let path = &options.cache_directory;
        let mut threads = core
            .pool
            .start(options.threads)
            .map_err(|e| Error::io("start threads for", path, e))?;
        let watchdog = core.watchdog.start();
        threads.push(watchdog.map_err(|e| Error::io("start threads for", path, e))?);
        let engine = Arc::new(Self {
            core,
            mirrors: Mutex::default(),
            threads: Mutex::default(),
            stopped: Mutex::new(false),
            stopping: Condvar::new(),
            fetched_object_bytes: AtomicU64::new(0),
            uncached: AtomicU64::new(0),
            store_away: AtomicBool::new(false),
        });
        // Weak: an engine that is dropped without a stop ends its clock, too.
        let clock = Arc::downgrade(&engine);
        let thread = crate::sync::thread::Builder::new()
            .name("mirror-clock".to_owned())
            .spawn(move || {
                let mut ticks = 0_u32;
                while clock.upgrade().is_some_and(|engine| engine.tick(ticks)) {
                    ticks = ticks.wrapping_add(1);
                }
            })
            .map_err(|e| Error::io("start threads for", path, e))?;
        threads.push(thread);
        let keeper = Cache::start_keeper(&engine.core);
        threads.push(keeper.map_err(|e| Error::io("start threads for", path, e))?);
        *lock(&engine.threads) = threads;
        Ok(engine)
    }

    /// Waits for a tick and does its work; `false` after the stop.
    fn tick(&self, ticks: u32) -> bool {
        let stopped = lock(&self.stopped);
        if *stopped {
            return false;
        }
        let waited = self.stopping.wait_timeout(stopped, TICK);
        if *waited.unwrap_or_else(PoisonError::into_inner).0 {
            return false;
        }
        let mirrors: Vec<_> = lock(&self.mirrors).values().cloned().collect();
        for mirror in mirrors {
            mirror.tick();
            if ticks % FLUSH_TICKS == FLUSH_TICKS - 1 {
                mirror.flush_in_background();
            }
        }
        true
    }

    /// Opens a mirror's files and recovers them.
    ///
    /// # Errors
    /// See [`crate::error::Error`]: files, sizes, a live map without room.
    pub fn attach(self: &Arc<Self>, options: AttachOptions) -> Result<Arc<Mirror>> {
        self.attach_as(options, false)
    }

    /// Opens the files of a mirror that a predecessor served in the session that is taken over: its
    /// live map is needed, however long its requests have to be waited for.
    ///
    /// # Errors
    /// As [`Engine::attach`]; ESTALE: the live map is gone and the disk map is not clean.
    pub fn attach_survivor(self: &Arc<Self>, options: AttachOptions) -> Result<Arc<Mirror>> {
        self.attach_as(options, true)
    }

    fn attach_as(self: &Arc<Self>, options: AttachOptions, survivor: bool) -> Result<Arc<Mirror>> {
        let name = (options.instance.clone(), options.disk.clone());
        let taken = || {
            Error::errno(
                "attach (it is attached already)",
                &options.directory.clone(),
                libc::EEXIST,
            )
        };
        if lock(&self.mirrors).contains_key(&name) {
            return Err(taken());
        }
        let refused = taken();
        // Not under the lock: a fence may take its time. It also keeps a second one out.
        let mirror = Mirror::attach(&self.core, options, survivor)?;
        match lock(&self.mirrors).entry(name) {
            Entry::Occupied(_) => Err(refused),
            Entry::Vacant(entry) => Ok(entry.insert(mirror).clone()),
        }
    }

    /// An attached mirror.
    #[must_use]
    pub fn mirror(&self, instance: &str, disk: &str) -> Option<Arc<Mirror>> {
        lock(&self.mirrors)
            .get(&(instance.to_owned(), disk.to_owned()))
            .cloned()
    }

    /// Ends a mirror: parked requests end with EIO, it is flushed and marked clean, its files are
    /// closed. The door has hidden it before.
    ///
    /// # Errors
    /// It is not attached, or its last flush failed.
    pub fn detach(&self, instance: &str, disk: &str) -> Result<()> {
        let gone = {
            let mut mirrors = lock(&self.mirrors);
            let gone = mirrors.remove(&(instance.to_owned(), disk.to_owned()));
            if let Some(mirror) = &gone {
                self.core.meter.absorb(&mirror.meter);
            }
            gone
        };
        match gone {
            Some(mirror) => mirror.close(),
            None => Err(Error::Invalid(format!(
                "\"{instance}/{disk}\" is not attached"
            ))),
        }
    }

    /// Where doors and mirrors say what the host must know.
    #[must_use]
    pub fn events(&self) -> &Arc<Events> {
        &self.core.events
    }

    /// How long the requests of all mirrors took, those that are gone included.
    #[must_use]
    pub fn latencies(&self) -> Vec<Latencies> {
        self.core.meter.latencies()
    }

    /// Tell of each request that takes at least this long, as an event `slow`; zero: of none.
    pub fn tell_slower_than(&self, threshold: Duration) {
        self.core.slow.set_threshold(threshold);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}
