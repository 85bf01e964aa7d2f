// SPDX-License-Identifier: Apache-2.0
//! One disk of one server: the base version seen through the chunk cache, under a private delta.
//!
//! This module holds a mirror's parts and its life: attach, recovery, growth, end. What a request
//! does is in `access`, what makes it durable in `flush`, what a COMMIT adds in `commit`, who may run
//! beside whom in `gate`.
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

use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::collections::HashMap;

use crate::base::Base;
use crate::cache::Slab;
use crate::commit::Seal;
use crate::core::Core;
use crate::delta::Delta;
use crate::disk::{Answer, Disk, Door, Errno, Ticket};
use crate::diskmap::{DiskMap, Header, Page};
use crate::engine::{AttachOptions, Statistics};
use crate::error::{Error, Result};
use crate::faults::{self, Call};
use crate::flush::Flusher;
use crate::gate::Gates;
use crate::job::{Job, Outcome, Reason, Request, Wait};
use crate::live::{Bits, LiveMap};
use crate::meter::{Begun, Latencies, Meter, Operation};
use crate::pages::Pages;
use crate::recover::{self, Opened};
use crate::sys::file;
use crate::units::{BLOCK_BYTES, PAGE_WORDS, index, lock};

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

    /// `local_bytes`, `dirty_bytes`, `dirty_chunks`, `fetched_bytes` and counters.
    #[must_use]
    pub fn status(&self) -> Statistics {
        let blocks = self.blocks();
        let count = |bits| self.live.count(bits, blocks) * BLOCK_BYTES;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let dirty_chunks = self.chunks_with(&[Bits::Even, Bits::Odd], blocks).len() as u64;
        let oldest_milliseconds = self.waits(1).first().map_or(0, |wait| wait.milliseconds);
        let parked = lock(&self.parked).len() as u64;
        vec![
            ("size_bytes", self.size_bytes()),
            ("local_bytes", count(Bits::Local)),
            (
                "held_bytes",
                self.delta.held_bytes() + self.saved.held_bytes(),
            ),
            (
                "dirty_bytes",
                count(self.live.dirty()) + count(self.live.frozen()),
            ),
            ("dirty_chunks", dirty_chunks),
            ("fetched_bytes", load(&self.counters.fetched_bytes)),
            ("cache_hits", load(&self.counters.cache_hits)),
            ("cache_misses", load(&self.counters.cache_misses)),
            ("parked_total", load(&self.counters.parked)),
            ("parked_now", parked),
            ("flushes_total", load(&self.counters.flushes)),
            ("saved_blocks_total", load(&self.counters.saved_blocks)),
            ("sealed", u64::from(self.seal.is_active())),
            ("reads_total", self.meter.requests(Operation::Read)),
            ("writes_total", self.meter.requests(Operation::Write)),
            ("reads_fetched_total", self.meter.reads_fetched()),
            ("oldest_wait_milliseconds", oldest_milliseconds),
        ]
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

    /// Reads as a guest would, waiting for what must be fetched.
    ///
    /// # Errors
    /// Out of bounds, or as the guest's read would fail.
    pub fn read_wait(self: &Arc<Self>, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let door = Arc::new(Waiting::default());
        let dyn_door: Arc<dyn Door> = door.clone();
        match Disk::read(&**self, &dyn_door, 0, offset, &mut bytes) {
            Answer::Done => Ok(bytes),
            Answer::Failed(errno) => Err(Error::errno("read", self.delta.path(), errno)),
            Answer::Parked => door
                .wait()
                .map_err(|errno| Error::errno("read", self.delta.path(), errno)),
        }
    }

    /// Makes every acknowledged write durable.
    ///
    /// # Errors
    /// A sync failed, now or before.
    pub fn flush_wait(self: &Arc<Self>) -> Result<()> {
        let door = Arc::new(Waiting::default());
        let dyn_door: Arc<dyn Door> = door.clone();
        let result = match Disk::flush(&**self, &dyn_door, 0) {
            Answer::Done => Ok(()),
            Answer::Failed(errno) => Err(errno),
            Answer::Parked => door.wait().map(|_| ()),
        };
        result.map_err(|errno| Error::errno("flush", self.delta.path(), errno))
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

    /// What waits, the oldest first, so many at most.
    #[must_use]
    pub fn waits(&self, count_max: usize) -> Vec<Wait> {
        let mut jobs = self.jobs();
        jobs.sort_unstable_by_key(|job| job.since);
        let waits = jobs.iter().filter_map(|job| job.wait(self.chunk_size));
        waits.take(count_max).collect()
    }

    /// How long its requests took.
    #[must_use]
    pub fn latencies(&self) -> Vec<Latencies> {
        self.meter.latencies()
    }

    /// Retries held writes; ends what waited too long for a chunk.
    pub(crate) fn tick(&self) {
        let held = std::mem::take(&mut *lock(&self.held));
        if held.is_empty() {
            self.full.store(false, Ordering::Relaxed);
        }
        for job in held {
            job.wake();
        }
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

    /// Ends the mirror: nothing new, nothing parked, everything flushed and marked clean.
    pub(crate) fn close(&self) -> Result<()> {
        self.closing.store(true, Ordering::SeqCst);
        for job in self.jobs() {
            job.end_parked(Err(libc::EIO));
        }
        // A write that comes is parked, and ended below.
        self.close_for_ever();
        let flushed = self.flusher.last_round(self);
        for job in self.jobs() {
            job.end_parked(Err(libc::EIO));
        }
        flushed.map_err(|errno| Error::errno("flush", self.delta.path(), errno))?;
        let mut header = lock(&self.header);
        header.clean = true;
        self.disk_map.set_header(&header)?;
        // The disk map says it all now; a live map left behind would only take memory.
        let live = &self.live_path;
        let _ = faults::call(live, "remove", Call::Other, || std::fs::remove_file(live));
        for (file, path) in [
            (self.delta.file(), self.delta.path()),
            (self.disk_map.file(), self.delta.path()),
            (self.saved.file(), self.saved.path()),
        ] {
            file::unlock(file).map_err(|e| Error::io("unlock", path, e))?;
        }
        Ok(())
    }

    /// Makes the mirror quiet for a successor: every write that was executed is flushed, nothing
    /// more is. Parked requests stay parked, the live map stays what is believed, frozen blocks
    /// will be dirty again.
    pub(crate) fn quiesce(&self) -> Result<()> {
        self.close_for_ever();
        let flushed = self.flusher.last_round(self);
        flushed.map_err(|errno| Error::errno("flush", self.delta.path(), errno))
    }

    /// Lets a successor have the files; after [`Mirror::quiesce`].
    pub(crate) fn let_go(&self) {
        for file in [self.delta.file(), self.disk_map.file(), self.saved.file()] {
            let _ = file::unlock(file);
        }
    }

    /// Lets go without a word, as a killed agent would: for tests of recovery.
    #[doc(hidden)]
    pub fn forget_as_if_killed(&self) {
        self.closing.store(true, Ordering::SeqCst);
        for job in self.jobs() {
            job.end_parked(Err(libc::EIO));
        }
        self.close_for_ever();
        for file in [self.delta.file(), self.disk_map.file(), self.saved.file()] {
            let _ = file::unlock(file);
        }
    }

    fn job(&self, door: &Arc<dyn Door>, ticket: Ticket, request: Request) -> Option<Arc<Job>> {
        let me = self.me.upgrade()?;
        let parks = door.parking(ticket, request.data());
        parks.then(|| Job::new(me, door, ticket, request))
    }

    #[inline]
    fn ended_at_once(&self, begun: &Begun, offset: u64, len: u64, outcome: &Outcome) {
        match outcome {
            Outcome::Done => self.end(begun, offset, len, None),
            Outcome::Failed(errno) => self.end(begun, offset, len, Some(*errno)),
            _ => {}
        }
    }

    fn answer(
        &self,
        door: &Arc<dyn Door>,
        ticket: Ticket,
        outcome: Outcome,
        request: impl FnOnce() -> Request,
    ) -> Answer {
        match outcome {
            Outcome::Done => Answer::Done,
            Outcome::Failed(errno) => Answer::Failed(errno),
            outcome => match self.job(door, ticket, request()) {
                Some(job) => {
                    job.settle(outcome);
                    Answer::Parked
                }
                None => Answer::Failed(libc::EIO),
            },
        }
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        // Nobody reads any more, so no hint comes after this: what only this mirror's leaves named
        // is pinned no longer.
        let core = self.core.clone();
        if let Ok(slab) = core.cache.slab(self.chunk_size) {
            self.base.take_hints().for_each(|hint| slab.unpin(hint));
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

impl Disk for Mirror {
    fn size_bytes(&self) -> u64 {
        self.size_bytes()
    }

    fn local_bytes(&self) -> u64 {
        self.delta.held_bytes()
    }

    fn read(&self, door: &Arc<dyn Door>, ticket: Ticket, offset: u64, buf: &mut [u8]) -> Answer {
        let len = buf.len() as u64;
        let begun = self.begin(Operation::Read);
        let outcome = self.attempt_read(offset, buf, &[]);
        self.ended_at_once(&begun, offset, len, &outcome);
        self.answer(door, ticket, outcome, || Request::Read { offset, len })
    }

    fn write(
        &self,
        door: &Arc<dyn Door>,
        ticket: Ticket,
        offset: u64,
        data: &[u8],
        durable: bool,
    ) -> Answer {
        let begun = self.begin(Operation::Write);
        let outcome = self.attempt_write(offset, data, &[]);
        self.ended_at_once(&begun, offset, data.len() as u64, &outcome);
        if durable && matches!(outcome, Outcome::Done) {
            door.written(ticket);
            return self.flush(door, ticket);
        }
        self.answer(door, ticket, outcome, || Request::Write {
            offset,
            data: crate::buffer::Buffer::copy_of(data),
            durable,
        })
    }

    fn flush(&self, door: &Arc<dyn Door>, ticket: Ticket) -> Answer {
        let begun = self.begin(Operation::Flush);
        let answer = self
            .flusher
            .flush(self, || self.job(door, ticket, Request::Flush));
        match answer {
            Answer::Done => self.end(&begun, 0, 0, None),
            Answer::Failed(errno) => self.end(&begun, 0, 0, Some(errno)),
            Answer::Parked => {}
        }
        answer
    }

    fn discard(&self, door: &Arc<dyn Door>, ticket: Ticket, offset: u64, len: u64) -> Answer {
        let begun = self.begin(Operation::Write);
        let outcome = self.attempt_discard(offset, len);
        self.ended_at_once(&begun, offset, len, &outcome);
        self.answer(door, ticket, outcome, || Request::Discard { offset, len })
    }

    fn write_zeroes(&self, door: &Arc<dyn Door>, ticket: Ticket, offset: u64, len: u64) -> Answer {
        let begun = self.begin(Operation::Write);
        let outcome = self.attempt_zero(offset, len, &[]);
        self.ended_at_once(&begun, offset, len, &outcome);
        self.answer(door, ticket, outcome, || Request::Zero { offset, len })
    }

    fn seek(&self, offset: u64, hole: bool) -> Option<u64> {
        self.find(offset, hole)
    }

    fn interrupt(&self, ticket: Ticket) {
        for job in self.jobs() {
            if job.ticket == ticket {
                job.end_parked(Err(libc::EINTR));
            }
        }
    }
}

/// A door of one request, for a thread that may wait.
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    result: Mutex<Option<Result<Vec<u8>, Errno>>>,
    arrived: Condvar,
}

impl Waiting {
    fn wait(&self) -> Result<Vec<u8>, Errno> {
        let mut result = lock(&self.result);
        loop {
            if let Some(result) = result.take() {
                return result;
            }
            result = self
                .arrived
                .wait(result)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Door for Waiting {
    fn complete(&self, _: Ticket, result: Result<&[u8], Errno>) {
        *lock(&self.result) = Some(result.map(<[u8]>::to_vec));
        self.arrived.notify_all();
    }
}

/// The bits of a page, as the disk map keeps them.
pub(crate) fn copy_page(live: &LiveMap, page: u64) -> Page {
    let mut bytes = [0; 4096];
    let (local, dirty) = bytes.split_at_mut(2048);
    for word in 0..PAGE_WORDS {
        let at = index(word) * 8;
        let load = |bits| {
            live.word(bits, page * PAGE_WORDS + word)
                .load(Ordering::SeqCst)
        };
        local[at..at + 8].copy_from_slice(&load(Bits::Local).to_le_bytes());
        let owed = load(Bits::Even) | load(Bits::Odd);
        dirty[at..at + 8].copy_from_slice(&owed.to_le_bytes());
    }
    Page(bytes)
}
