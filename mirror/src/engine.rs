// SPDX-License-Identifier: Apache-2.0
//! The mirrors and the chunk cache of one host.

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::thread::JoinHandle;
use crate::sync::{Arc, Condvar, Mutex, PoisonError};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::PathBuf;
use std::time::Duration;

use crate::base::Leaves;
use crate::buffer::Buffer;
use crate::cache::{Cache, CacheOptions, matches};
use crate::commit::Pauses;
use crate::core::Core;
use crate::error::{Error, Result};
use crate::event::{Event, Events};
use crate::flight::{Failed, Flights, Wanted};
use crate::meter::{Latencies, Meter, Operation, SlowLog};
use crate::mirror::Mirror;
use crate::object;
use crate::pool::Pool;
use crate::refusal::{Refusals, Source};
use crate::units::{index, lock};
use crate::watchdog::Watchdog;

/// Names a chunk: the keyed BLAKE3 hash of its whole, zero-padded content.
pub type Digest = [u8; 32];

/// What to do with a write for which the disk has no room (contract 41).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// Park it, raise an alarm, try again every second.
    Hold,
    /// Answer ENOSPC.
    Error,
}

/// How to open an [`Engine`].
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Holds slabs and indexes of the chunk cache.
    pub cache_directory: PathBuf,
    /// The bytes that the chunk cache may hold.
    pub cache_bytes: u64,
    /// The bytes of the cache's file system that it leaves free, and gives back if they are not.
    pub cache_reserve_bytes: u64,
    /// How fast cached chunks are checked in the background; 0: not at all.
    pub scrub_bytes_per_second: u64,
    /// The FUSE session's id, noted in every live map.
    pub session_id: String,
    /// Threads that execute requests which were parked.
    pub threads: usize,
    /// How long a guest waits for a chunk before EIO; `None`: for ever.
    pub fetch_timeout: Option<Duration>,
    /// What a full disk does to a write.
    pub on_full: OnFull,
}

/// How to open a [`Mirror`].
#[derive(Debug, Clone)]
pub struct AttachOptions {
    /// The server's UUID.
    pub instance: String,
    /// The disk's name.
    pub disk: String,
    /// Names this attachment for the live map.
    pub attach_id: String,
    /// Holds `delta`, `map` and `saved`.
    pub directory: PathBuf,
    /// The live map, on a tmpfs.
    pub live_map: PathBuf,
    /// The size that the guest sees.
    pub size_bytes: u64,
    /// The blob's chunk size.
    pub chunk_size_bytes: u64,
    /// The key of its chunks' digests.
    pub chunk_key: [u8; 32],
    /// (leaf index, 256 digests of 32 bytes; a hole is zeros); an absent leaf is all holes.
    pub leaves: Vec<(u64, Vec<u8>)>,
    /// Make new files; else open and recover.
    pub create: bool,
}

/// A chunk that somebody must fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    /// Which.
    pub digest: Digest,
    /// 0: a guest waits; higher may wait longer.
    pub priority: u8,
    /// How large the chunk is.
    pub chunk_size_bytes: u64,
}

/// Why a fetch did not bring a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchFailure {
    /// The store was not reached, or asked for patience: tried again later.
    Transport,
    /// Every tier says that it does not exist.
    Missing,
    /// Every copy is bad.
    Corrupt,
}

/// Counters of an engine; each only grows, except those that name a state.
pub type Statistics = Vec<(&'static str, u64)>;

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

    /// The most urgent chunk that nobody fetches yet; it is the caller's now.
    pub fn next_fetch(&self, guests_only: bool, timeout: Duration) -> Option<Fetch> {
        self.core.flights.next(guests_only, timeout)
    }

    /// As [`Engine::fetched_from`] the chunk store.
    ///
    /// # Errors
    /// As there.
    pub fn fetched(&self, digest: &Digest, object: &[u8]) -> Result<()> {
        self.fetched_from(Source::Store, digest, object)
    }

    /// Takes a fetched chunk object: verified, kept, handed to whoever waits. One that is not what
    /// the digest names is counted and told.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`]: the flight goes on, the caller fetches elsewhere or calls
    /// [`Engine::fetch_failed`].
    pub fn fetched_from(&self, source: Source, digest: &Digest, object: &[u8]) -> Result<()> {
        let Some(wanted) = self.core.flights.wanted(digest) else {
            // Whoever waited has left, or somebody else brought it.
            return Ok(());
        };
        let content = Self::content(&wanted, object).inspect_err(|error| {
            self.core
                .refusals
                .refuse(source, digest, &error.to_string());
        })?;
        self.fetched_object_bytes
            .fetch_add(object.len() as u64, Ordering::Relaxed);
        let cache = &self.core.cache;
        let slab = cache.slab(wanted.chunk_size)?;
        if !cache.insert(slab, digest, &wanted.key, &content) {
            self.uncached.fetch_add(1, Ordering::Relaxed);
        }
        if self.store_away.load(Ordering::Relaxed) && self.store_away.swap(false, Ordering::Relaxed)
        {
            self.core.flights.hasten();
        }
        self.core.flights.land(digest, &Arc::new(content));
        Ok(())
    }

    /// A chunk that is what was wanted.
    fn content(wanted: &Wanted, object: &[u8]) -> Result<Buffer> {
        let mut content = Buffer::zeroed(index(wanted.chunk_size));
        let header = object::decode_into(object, content.as_mut())?;
        if header.kind != object::KIND_CHUNK || header.raw_len as u64 != wanted.chunk_size {
            return Err(Error::Corrupt(format!(
                "an object of kind {} and {} bytes is no chunk of {}",
                header.kind, header.raw_len, wanted.chunk_size
            )));
        }
        if !matches(&wanted.digest, &wanted.key, content.as_ref()) {
            return Err(Error::Corrupt(
                "the chunk does not match its digest".to_owned(),
            ));
        }
        Ok(content)
    }

    /// Takes back a chunk that could not be fetched.
    pub fn fetch_failed(&self, digest: &Digest, failure: FetchFailure, reason: &str) {
        let name = blake3::Hash::from_bytes(*digest).to_hex();
        let alarm = |what: &str| {
            self.core.events.push(
                Event::new("alarm")
                    .text("what", what)
                    .text("digest", name.as_str())
                    .text("error", reason),
            );
        };
        match self.core.flights.fail(digest, failure) {
            // One alarm an outage, not one a chunk.
            Failed::Again
                if failure == FetchFailure::Transport
                    && !self.store_away.swap(true, Ordering::Relaxed) =>
            {
                alarm("a chunk could not be fetched; tried again until it is");
            }
            Failed::Lost => {
                alarm("a chunk does not exist or every copy is bad; its readers get EIO");
            }
            _ => {}
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

    /// Counters.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let (mirrors, requests): (Vec<_>, _) = {
            let mirrors = lock(&self.mirrors);
            let all = |operation| {
                let each = mirrors.values().map(|one| one.meter.requests(operation));
                self.core.meter.requests(operation) + each.sum::<u64>()
            };
            let requests = [Operation::Read, Operation::Write, Operation::Flush].map(all);
            (mirrors.values().cloned().collect(), requests)
        };
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let sum = |count: &dyn Fn(&Mirror) -> u64| mirrors.iter().map(|mirror| count(mirror)).sum();
        let core = &self.core;
        let waits: Vec<_> = mirrors
            .iter()
            .flat_map(|mirror| mirror.waits(usize::MAX))
            .collect();
        let waiting = |reason| waits.iter().filter(|wait| wait.reason == reason).count() as u64;
        let mut all = core.cache.statistics();
        all.extend([
            ("mirrors", mirrors.len() as u64),
            (
                "cache_hits_total",
                load(&core.past_hits) + sum(&|mirror| load(&mirror.counters.cache_hits)),
            ),
            (
                "cache_misses_total",
                load(&core.past_misses) + sum(&|mirror| load(&mirror.counters.cache_misses)),
            ),
            ("peer_refused_total", core.refusals.count(Source::Peer)),
            ("store_refused_total", core.refusals.count(Source::Store)),
            ("uncached_total", load(&self.uncached)),
            ("fetches_total", load(&core.flights.landed)),
            ("fetches_repeated_total", load(&core.flights.repeated)),
            ("fetches_lost_total", load(&core.flights.lost)),
            ("fetches_now", core.flights.count() as u64),
            (
                "fetched_object_bytes_total",
                load(&self.fetched_object_bytes),
            ),
            ("reads_total", requests[0]),
            ("writes_total", requests[1]),
            ("flushes_total", requests[2]),
            ("slow_requests_total", load(&core.slow.total)),
            ("waiting_chunks_now", waiting("chunks")),
            ("waiting_room_now", waiting("room")),
            (
                "oldest_wait_milliseconds",
                waits
                    .iter()
                    .map(|wait| wait.milliseconds)
                    .max()
                    .unwrap_or(0),
            ),
            (
                "parked_now",
                sum(&|mirror| lock(&mirror.parked).len() as u64),
            ),
        ]);
        all.extend(core.pauses.statistics());
        all
    }

    /// Ends every mirror and the engine's threads; the doors take no more requests by then.
    ///
    /// # Errors
    /// The first mirror that could not be flushed; the others are ended all the same.
    pub fn stop(&self) -> Result<()> {
        if std::mem::replace(&mut *lock(&self.stopped), true) {
            return Ok(());
        }
        self.stopping.notify_all();
        let result = self.detach_all();
        self.core.flights.close();
        self.end_threads();
        result.and(self.core.cache.close())
    }

    /// Ends for a successor: every mirror is quiet and flushed, parked requests stay parked.
    /// `unanswered` is called when nothing is executed any more: from then on the door must let
    /// what is completed be, for the successor completes it.
    ///
    /// # Errors
    /// The first mirror that could not be flushed; the others are handed over all the same.
    pub fn hand_over(&self, unanswered: impl FnOnce()) -> Result<()> {
        if std::mem::replace(&mut *lock(&self.stopped), true) {
            return Ok(());
        }
        self.stopping.notify_all();
        let mirrors = std::mem::take(&mut *lock(&self.mirrors));
        let mut result = Ok(());
        for mirror in mirrors.values() {
            let quiet = mirror.quiesce();
            if result.is_ok() {
                result = quiet;
            }
        }
        // What the threads are in, they finish: reads, and writes that wait for gates again.
        self.end_threads();
        unanswered();
        self.core.flights.close();
        for mirror in mirrors.values() {
            mirror.let_go();
        }
        result.and(self.core.cache.close())
    }

    /// Closes every mirror and goes on: their session is over.
    ///
    /// # Errors
    /// The first mirror that could not be flushed; the others are closed all the same.
    pub fn detach_all(&self) -> Result<()> {
        let mirrors = std::mem::take(&mut *lock(&self.mirrors));
        let mut result = Ok(());
        for mirror in mirrors.values() {
            let closed = mirror.close();
            if result.is_ok() {
                result = closed;
            }
        }
        result
    }

    /// Lets go of everything without a word, as a kill would: for tests of recovery.
    #[doc(hidden)]
    pub fn forget_as_if_killed(&self) {
        *lock(&self.stopped) = true;
        self.stopping.notify_all();
        for mirror in std::mem::take(&mut *lock(&self.mirrors)).values() {
            mirror.forget_as_if_killed();
        }
        self.core.flights.close();
        self.end_threads();
        self.core.cache.forget_as_if_killed();
    }

    fn end_threads(&self) {
        self.core.cache.stop_keeper();
        self.core.pool.stop();
        self.core.watchdog.stop();
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            // The clock may be the one that drops the engine.
            if thread.thread().id() != crate::sync::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}
