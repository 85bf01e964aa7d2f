// SPDX-License-Identifier: Apache-2.0
//! A request that could not be answered at once.
//!
//! ```text
//!   attempt fails      what it waits for is there        done, failed
//!  ────────────▶ Parked ───────────────────────▶ Running ───────────▶ Ended
//!                  ▲ │                             │
//!                  │ │ interrupt, end of misses,   │ it must wait for something else
//!                  │ │ time is up, detach          │
//!                  │ └──────────────▶ Ended        │
//!                  └───────────────────────────────┘
//! ```
//!
//! Whoever moves it to Ended, and nobody else, answers the door: exactly once. It goes back to
//! Parked *before* it is handed to what will wake it, so that no wake is lost; a wake too many
//! finds it running or ended and does nothing.

use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};
use crate::sync::{Arc, Mutex};
use std::time::Instant;

use crate::buffer::Buffer;
use crate::disk::{Door, Errno, Ticket};
use crate::engine::{Digest, OnFull};
use crate::event::Event;
use crate::flight::{Waiter, Wanted};
use crate::meter::{Ended, Operation};
use crate::mirror::Mirror;
use crate::pool::Task;
use crate::units::{index, lock};

const PARKED: u8 = 0;
const RUNNING: u8 = 1;
const ENDED: u8 = 2;

/// What was asked for.
#[derive(Debug)]
pub enum Request {
    /// Bytes.
    Read {
        /// From here.
        offset: u64,
        /// So many.
        len: u64,
    },
    /// Bytes to keep.
    Write {
        /// From here.
        offset: u64,
        /// A copy.
        data: Buffer,
        /// With a flush behind it.
        durable: bool,
    },
    /// Let go of a range.
    Discard {
        /// From here.
        offset: u64,
        /// So many.
        len: u64,
    },
    /// Zeros.
    Zero {
        /// From here.
        offset: u64,
        /// So many.
        len: u64,
    },
    /// Durability; it waits for a flush to join and is never run.
    Flush,
}

impl Request {
    /// What it counts as, and where.
    fn kind(&self) -> (Operation, u64, u64) {
        match *self {
            Self::Read { offset, len } => (Operation::Read, offset, len),
            Self::Write {
                offset, ref data, ..
            } => (Operation::Write, offset, data.as_ref().len() as u64),
            Self::Discard { offset, len } | Self::Zero { offset, len } => {
                (Operation::Write, offset, len)
            }
            Self::Flush => (Operation::Flush, 0, 0),
        }
    }

    /// What a write has to write.
    pub fn data(&self) -> &[u8] {
        match self {
            Self::Write { data, .. } => data.as_ref(),
            _ => &[],
        }
    }
}

/// Who waits, and for what.
#[derive(Debug, Clone)]
pub struct Wait {
    /// What was asked for.
    pub operation: &'static str,
    /// From here.
    pub offset: u64,
    /// So many.
    pub bytes: u64,
    /// The chunk that it begins in.
    pub chunk: u64,
    /// `chunks`, `gate` (another request, or a COMMIT's freeze), `room` or `flush`.
    pub reason: &'static str,
    /// For so long.
    pub milliseconds: u64,
}

/// How an attempt ended.
#[derive(Debug)]
pub enum Outcome {
    /// Done.
    Done,
    /// Refused or failed.
    Failed(Errno),
    /// It needs these chunks first.
    Missing(Vec<Wanted>),
    /// Somebody is alone in there.
    Closed(u64),
    /// The disk has no room.
    Full,
}

/// What a parked job waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Reason {
    /// Chunks.
    Fetch = 0,
    /// A gate.
    Gate = 1,
    /// Room.
    Full = 2,
    /// A flush.
    Flush = 3,
}

/// Chunks that came for a job, until it ends: eviction cannot take them.
pub type Chunks = [(Digest, Arc<Buffer>)];

/// A request under way.
pub struct Job {
    /// Names it in its mirror.
    pub id: u64,
    /// Its disk.
    pub mirror: Arc<Mirror>,
    /// Its name at its door.
    pub ticket: Ticket,
    /// When it came.
    pub since: Instant,
    door: Arc<dyn Door>,
    request: Request,
    state: AtomicU8,
    reason: AtomicU8,
    /// It has waited for chunks.
    fetched: AtomicBool,
    missing: AtomicUsize,
    chunks: Mutex<Vec<(Digest, Arc<Buffer>)>>,
}

impl std::fmt::Debug for Job {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Job({}, {:?})", self.ticket, self.request)
    }
}

impl Job {
    /// A running job, known to its mirror.
    pub fn new(
        mirror: Arc<Mirror>,
        door: &Arc<dyn Door>,
        ticket: Ticket,
        request: Request,
    ) -> Arc<Self> {
        static IDS: AtomicU64 = AtomicU64::new(0);
        let job = Arc::new(Self {
            id: IDS.fetch_add(1, Ordering::Relaxed),
            mirror,
            ticket,
            since: Instant::now(),
            door: door.clone(),
            request,
            state: AtomicU8::new(RUNNING),
            reason: AtomicU8::new(Reason::Gate as u8),
            fetched: AtomicBool::new(false),
            missing: AtomicUsize::new(0),
            chunks: Mutex::default(),
        });
        job.mirror.counters.parked.fetch_add(1, Ordering::Relaxed);
        lock(&job.mirror.parked).insert(job.id, job.clone());
        job
    }

    /// Whether it waits for this.
    pub fn waits_for(&self, reason: Reason) -> bool {
        self.state.load(Ordering::SeqCst) == PARKED
            && self.reason.load(Ordering::SeqCst) == reason as u8
    }

    fn step(&self, from: u8, to: u8) -> bool {
        self.state
            .compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
    }

    fn answer(&self, result: Result<&[u8], Errno>) {
        lock(&self.mirror.parked).remove(&self.id);
        lock(&self.chunks).clear();
        self.door.complete(self.ticket, result);
        let (operation, offset, len) = self.request.kind();
        let ended = Ended {
            operation,
            offset,
            len,
            took: self.since.elapsed(),
            fetched: self.fetched.load(Ordering::Relaxed),
            errno: result.err(),
        };
        self.mirror.note(&ended, 1);
    }

    /// What it waits for, if it does.
    pub fn wait(&self, chunk_size: u64) -> Option<Wait> {
        const REASONS: [(Reason, &str); 4] = [
            (Reason::Fetch, "chunks"),
            (Reason::Gate, "gate"),
            (Reason::Full, "room"),
            (Reason::Flush, "flush"),
        ];
        let (_, reason) = REASONS.iter().find(|&&(one, _)| self.waits_for(one))?;
        let (operation, offset, bytes) = self.request.kind();
        Some(Wait {
            operation: operation.name(),
            offset,
            bytes,
            chunk: offset / chunk_size,
            reason,
            milliseconds: u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX),
        })
    }

    /// Ends it if it still waits.
    pub fn end_parked(&self, result: Result<(), Errno>) -> bool {
        let won = self.step(PARKED, ENDED);
        if won {
            self.answer(result.map(|()| &[][..]));
        }
        won
    }

    fn end_running(&self, result: Result<&[u8], Errno>) {
        if self.step(RUNNING, ENDED) {
            self.answer(result);
        }
    }

    /// Queues it to be run.
    pub fn wake(self: &Arc<Self>) {
        self.mirror.core.pool.run(self.clone().task());
    }

    /// Queues what waited at one mirror's gates.
    pub fn wake_all(jobs: Vec<Arc<Self>>) {
        let Some(mirror) = jobs.first().map(|job| job.mirror.clone()) else {
            return;
        };
        let tasks = jobs.into_iter().map(Self::task);
        mirror.core.pool.run_all(tasks);
    }

    fn task(self: Arc<Self>) -> Task {
        Box::new(move || self.run())
    }

    fn run(self: Arc<Self>) {
        if !self.step(PARKED, RUNNING) {
            return;
        }
        self.door.running(self.ticket, true);
        let chunks = lock(&self.chunks).clone();
        let mirror = &self.mirror;
        let outcome = match &self.request {
            Request::Read { offset, len } => {
                let mut buffer = Buffer::zeroed(index(*len));
                match mirror.attempt_read(*offset, buffer.as_mut(), &chunks) {
                    Outcome::Done => return self.end_running(Ok(buffer.as_ref())),
                    outcome => outcome,
                }
            }
            Request::Write {
                offset,
                data,
                durable,
            } => match mirror.attempt_write(*offset, data.as_ref(), &chunks) {
                Outcome::Done if *durable => {
                    self.door.written(self.ticket);
                    return mirror.flush_job(&self);
                }
                outcome => outcome,
            },
            Request::Discard { offset, len } => mirror.attempt_discard(*offset, *len),
            Request::Zero { offset, len } => mirror.attempt_zero(*offset, *len, &chunks),
            Request::Flush => return mirror.flush_job(&self),
        };
        self.settle(outcome);
    }

    /// Answers a running job, or parks it for what it needs.
    pub fn settle(self: &Arc<Self>, outcome: Outcome) {
        match outcome {
            Outcome::Done => self.end_running(Ok(&[])),
            Outcome::Failed(errno) => self.end_running(Err(errno)),
            Outcome::Missing(wanted) => self.park_for_chunks(wanted),
            Outcome::Closed(mask) => {
                self.park(Reason::Gate);
                if let Some(job) = self.mirror.gates.park(mask, self.clone()) {
                    job.wake();
                }
                self.leave_if_ending();
            }
            Outcome::Full => self.park_for_room(),
        }
    }

    /// Back to where it can be woken and ended; the caller then hands it to what wakes it.
    pub fn park(&self, reason: Reason) {
        self.reason.store(reason as u8, Ordering::SeqCst);
        self.door.running(self.ticket, false);
        self.step(RUNNING, PARKED);
    }

    /// Ends a parked job whose mirror began to end while it was parking.
    fn leave_if_ending(&self) {
        let misses = self.waits_for(Reason::Fetch) || self.waits_for(Reason::Full);
        if self.mirror.is_closing() || misses && self.mirror.misses_ended() {
            self.end_parked(Err(libc::EIO));
        }
    }

    fn park_for_chunks(self: &Arc<Self>, wanted: Vec<Wanted>) {
        // One more than chunks, so that it is not woken while it is still joining flights.
        self.missing.store(wanted.len() + 1, Ordering::SeqCst);
        self.fetched.store(true, Ordering::Relaxed);
        self.park(Reason::Fetch);
        let core = &self.mirror.core;
        for wanted in wanted {
            let slab = self.mirror.slab();
            let digest = wanted.digest;
            let waiter: Arc<dyn Waiter> = self.clone();
            if !core.flights.join(wanted, waiter, || slab.contains(&digest)) {
                self.one_less();
            }
        }
        self.one_less();
        self.leave_if_ending();
    }

    fn one_less(self: &Arc<Self>) {
        if self.missing.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.wake();
        }
    }

    fn park_for_room(self: &Arc<Self>) {
        let mirror = &self.mirror;
        if mirror.core.on_full == OnFull::Error {
            return self.end_running(Err(libc::ENOSPC));
        }
        self.park(Reason::Full);
        lock(&mirror.held).push(self.clone());
        if !mirror.full.swap(true, Ordering::Relaxed) {
            mirror.core.events.push(
                Event::new("alarm")
                    .text("what", "disk full")
                    .text("instance", &mirror.instance)
                    .text("disk", &mirror.disk),
            );
        }
        self.leave_if_ending();
    }
}

impl Waiter for Job {
    fn arrived(self: Arc<Self>, digest: &Digest, chunk: Result<&Arc<Buffer>, Errno>) {
        match chunk {
            Ok(chunk) => {
                lock(&self.chunks).push((*digest, chunk.clone()));
                self.one_less();
            }
            Err(errno) => {
                self.end_parked(Err(errno));
            }
        }
    }

    fn is_waiting(&self) -> bool {
        self.waits_for(Reason::Fetch)
    }
}
