// SPDX-License-Identifier: Apache-2.0
//! Requests that wait, in the session memory: they own no worker, and outlive the agent.
//!
//! # A record's life
//!
//! | step | state | a successor without RESEND | with it |
//! | --- | --- | --- | --- |
//! | data and request are copied from the slot | free | finds it in its slot | gets it again |
//! | state is stored | parked | executes it | gets it again |
//! | the slot is marked *moved*; only now may the disk complete it | parked | executes it, ignores the slot | gets it again |
//! | executed, its result stored | parked | executes it: it was not answered | gets it again |
//! | state is stored | executed | answers it | answers it when it comes |
//! | answered | executed | answers it: the kernel says ENOENT | does not get it |
//! | state is stored | free | – | – |
//!
//! A WRITE with `O_DSYNC` whose data is written and whose flush is parked, or runs, *owes a flush*:
//! its data is not written twice.
//!
//! # When it is full
//!
//! There is a record for each request that the kernel lets wait (`max_background`) and room for a
//! GiB of data if the host has it (`data`), none where the kernel resends. A write that finds no room
//! for its data waits all the same, *unkept*: if the agent dies before it is done, and the kernel
//! does not resend, it ends with EIO. A request that finds no record is refused with EIO. Either
//! raises an alarm.
//!
//! # Threads
//!
//! One lock, taken by requests that park only.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use zerocopy::FromBytes;

use super::abi::{InHeader, WRITE_PREFIX, WriteIn, op};
use super::channel::Channel;
use super::data::Data;
use super::layout::PARKED_WORDS;
use super::ledger::{FLUSH_OWED, MOVED, Settled, pack, unpack};
use super::memory::Memory;
use super::slot::{Head, Marks};
use crate::disk::{Door, Errno, Ticket};
use crate::event::{Event, Events};
use crate::sys::shared::Words;

const FREE: u64 = 0;
const PARKED: u64 = 1;
const EXECUTED: u64 = 2;

const WORD_STATE: usize = 0;
const WORD_RESULT: usize = 1;
/// The data's length, bits of [`UNKEPT`] and [`RUNNING`].
const WORD_DATA: usize = 2;
/// The first page of the data, plus one.
const WORD_PAGE: usize = 3;
const WORD_HEAD: usize = 4;
const _: () = assert!(WORD_HEAD + WRITE_PREFIX / 8 <= PARKED_WORDS);

const UNKEPT: u64 = 1 << 32;
/// It is being executed, by a thread of the disk or for a dead predecessor.
const RUNNING: u64 = 1 << 33;

/// The records of one session.
#[derive(Debug)]
pub struct Parked {
    channel: Arc<Channel>,
    events: Arc<Events>,
    records: Words,
    resends: bool,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    by_ticket: HashMap<Ticket, usize>,
    free: Vec<usize>,
    data: Data,
    unkept: u64,
    /// Handed over: nothing is completed any more.
    closed: bool,
}

/// A record as a successor finds it.
#[derive(Debug)]
pub struct Found {
    /// Where.
    pub record: usize,
    /// Its first bytes.
    pub head: Head,
    /// A WRITE's data.
    pub data: Vec<u8>,
    /// How it ended, if it was executed; a flush may be owed.
    pub settled: Option<Settled>,
    /// Its data was not kept.
    pub unkept: bool,
    /// It was being executed.
    pub running: bool,
}

impl Found {
    /// Its header.
    #[must_use]
    pub fn header(&self) -> Option<InHeader> {
        InHeader::read_from_prefix(&self.head)
            .ok()
            .map(|(header, _)| header)
    }
}

impl Parked {
    /// Those of a memory; what stands there stays.
    #[must_use]
    pub fn of(memory: &Memory, resends: bool, channel: Arc<Channel>, events: Arc<Events>) -> Self {
        let records = memory.parked.clone();
        let mut by_ticket = HashMap::new();
        let (mut free, mut firsts) = (Vec::new(), Vec::new());
        for record in (0..records.len() / PARKED_WORDS).rev() {
            let at = record * PARKED_WORDS;
            let mut head = [0; WRITE_PREFIX];
            records.copy(at + WORD_HEAD, &mut head);
            let header = InHeader::read_from_prefix(&head);
            // One without a name is nobody's, and so is a second one of a name.
            match header {
                Ok((header, _))
                    if records.get(at + WORD_STATE) != FREE
                        && header.unique != 0
                        && !by_ticket.contains_key(&header.unique) =>
                {
                    by_ticket.insert(header.unique, record);
                    firsts.push(records.get(at + WORD_PAGE));
                }
                _ => {
                    records.set(at + WORD_STATE, FREE);
                    free.push(record);
                }
            }
        }
        let inner = Inner {
            by_ticket,
            free,
            data: Data::of(memory, &firsts),
            unkept: 0,
            closed: false,
        };
        Self {
            channel,
            events,
            records,
            resends,
            inner: Mutex::new(inner),
        }
    }

    /// Whether a request waits here.
    #[must_use]
    pub fn holds(&self, ticket: Ticket) -> bool {
        lock(&self.inner).by_ticket.contains_key(&ticket)
    }

    /// The records that stand here, oldest request first.
    #[must_use]
    pub fn standing(&self) -> Vec<usize> {
        let mut found: Vec<_> = {
            let inner = lock(&self.inner);
            inner.by_ticket.iter().map(|(&t, &r)| (t, r)).collect()
        };
        found.sort_unstable();
        found.into_iter().map(|(_, record)| record).collect()
    }

    /// What stands in a record.
    #[must_use]
    pub fn read(&self, record: usize) -> Found {
        let at = record * PARKED_WORDS;
        let get = |word| self.records.get(at + word);
        let mut head = [0; WRITE_PREFIX];
        self.records.copy(at + WORD_HEAD, &mut head);
        let result = unpack(get(WORD_RESULT));
        let settled = match get(WORD_STATE) {
            EXECUTED => Some(result),
            _ if result == FLUSH_OWED => Some(FLUSH_OWED),
            _ => None,
        };
        let bits = get(WORD_DATA);
        let len = usize::try_from(bits & u64::from(u32::MAX)).unwrap_or(usize::MAX);
        let data = lock(&self.inner).data.read(get(WORD_PAGE), len);
        Found {
            record,
            head,
            unkept: bits & UNKEPT != 0 || data.is_none(),
            data: data.unwrap_or_default(),
            settled,
            running: bits & RUNNING != 0,
        }
    }

    /// Moves a request here from its slot. `false`: there is no record left.
    #[must_use]
    fn park(&self, marks: &Marks, ticket: Ticket, data: &[u8]) -> bool {
        let mut inner = lock(&self.inner);
        if let Some(&record) = inner.by_ticket.get(&ticket) {
            // A successor's, which stands here already: it waits again.
            self.mark(record, RUNNING, false);
            return true;
        }
        let Some(record) = inner.free.pop() else {
            return false;
        };
        let at = record * PARKED_WORDS;
        let owes_flush = marks.settled(ticket) == Some(FLUSH_OWED);
        let keeps = !self.resends && !owes_flush && !data.is_empty();
        let (page, unkept) = if keeps {
            match inner.data.keep(data) {
                Some(page) => (page, 0),
                None => (0, UNKEPT),
            }
        } else {
            (0, 0)
        };
        if unkept != 0 {
            inner.unkept += 1;
            if inner.unkept == 1 {
                self.alarm("no room to keep parked writes; those beyond fail if the agent dies");
            }
        }
        let len = if page == 0 { 0 } else { data.len() as u64 };
        let result = if owes_flush { FLUSH_OWED } else { 0 };
        let set = |word, value| self.records.set(at + word, value);
        set(WORD_RESULT, pack(result));
        set(WORD_DATA, len | unkept);
        set(WORD_PAGE, page);
        self.records.put(at + WORD_HEAD, &marks.head());
        set(WORD_STATE, PARKED);
        inner.by_ticket.insert(ticket, record);
        marks.settle(ticket, MOVED);
        true
    }

    fn mark(&self, record: usize, bit: u64, on: bool) {
        let at = record * PARKED_WORDS + WORD_DATA;
        let bits = self.records.get(at);
        let bits = if on { bits | bit } else { bits & !bit };
        self.records.set(at, bits);
    }

    /// Notes whether a record's request is being executed: a death then is perhaps its doing.
    pub fn running(&self, ticket: Ticket, running: bool) {
        if let Some(&record) = lock(&self.inner).by_ticket.get(&ticket) {
            self.mark(record, RUNNING, running);
        }
    }

    /// Notes that all but the flush of a WRITE is done; `false` if it does not stand here.
    fn owes_flush(&self, ticket: Ticket) -> bool {
        let inner = lock(&self.inner);
        let Some(&record) = inner.by_ticket.get(&ticket) else {
            return false;
        };
        let at = record * PARKED_WORDS + WORD_RESULT;
        self.records.set(at, pack(FLUSH_OWED));
        true
    }

    /// Notes how a record's request ended, as a slot tells it.
    pub fn settle(&self, ticket: Ticket, settled: Settled) {
        if let Some(&record) = lock(&self.inner).by_ticket.get(&ticket) {
            let at = record * PARKED_WORDS;
            self.records.set(at + WORD_RESULT, pack(settled));
            if settled != FLUSH_OWED {
                self.records.set(at + WORD_STATE, EXECUTED);
            }
        }
    }

    /// Frees a record, whatever stood there.
    pub fn free(&self, record: usize) {
        let mut inner = lock(&self.inner);
        inner.by_ticket.retain(|_, &mut other| other != record);
        self.give_back(&mut inner, record);
    }

    fn give_back(&self, inner: &mut Inner, record: usize) {
        let at = record * PARKED_WORDS;
        let first = self.records.get(at + WORD_PAGE);
        if self.records.get(at + WORD_DATA) & UNKEPT != 0 {
            inner.unkept = inner.unkept.saturating_sub(1);
        }
        self.records.set(at + WORD_STATE, FREE);
        // Behind the state: pages of a record that stands are never another's.
        self.records.set(at + WORD_PAGE, 0);
        inner.data.give_back(first);
        inner.free.push(record);
    }

    /// Completes nothing any more: what waits is a successor's.
    pub fn close(&self) {
        lock(&self.inner).closed = true;
    }

    fn complete(&self, ticket: Ticket, result: Result<&[u8], Errno>) {
        let record = {
            let mut inner = lock(&self.inner);
            if inner.closed {
                return;
            }
            inner.by_ticket.remove(&ticket)
        };
        let Some(record) = record else {
            return;
        };
        let at = record * PARKED_WORDS;
        let mut head = [0; WRITE_PREFIX];
        self.records.copy(at + WORD_HEAD, &mut head);
        let (opcode, written) = opcode_and_size(&head);
        if opcode != op::READ {
            let settled = match result {
                Ok(_) => i64::from(written),
                Err(errno) => -i64::from(errno),
            };
            self.records.set(at + WORD_RESULT, pack(settled));
            self.records.set(at + WORD_STATE, EXECUTED);
            super::point::reached("parked-executed");
        }
        match result {
            Err(errno) => self.channel.error(ticket, errno),
            Ok(_) if opcode == op::WRITE => self.channel.written(ticket, written),
            Ok(bytes) => self.channel.bytes(ticket, bytes),
        }
        self.give_back(&mut lock(&self.inner), record);
    }

    fn alarm(&self, what: &str) {
        self.events.push(Event::new("alarm").text("what", what));
    }
}

/// The doors' locks are std's also where the engine's are a model checker's.
fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a request asks for, and a WRITE's length.
#[must_use]
pub fn opcode_and_size(head: &Head) -> (u32, u32) {
    let Ok((header, rest)) = InHeader::read_from_prefix(head) else {
        return (0, 0);
    };
    let size = WriteIn::read_from_prefix(rest).map_or(0, |(write, _)| write.size);
    let size = if header.opcode == op::WRITE { size } else { 0 };
    (header.opcode, size)
}

/// The door of one worker: it knows the slot that the request stands in.
#[derive(Debug)]
pub struct SlotDoor {
    /// The worker's slot.
    pub marks: Marks,
    /// Where its requests go to wait.
    pub parked: Arc<Parked>,
    /// The request that parked last.
    pub last: Arc<AtomicU64>,
}

impl Door for SlotDoor {
    fn complete(&self, ticket: Ticket, result: Result<&[u8], Errno>) {
        self.parked.complete(ticket, result);
    }

    fn parking(&self, ticket: Ticket, data: &[u8]) -> bool {
        let parks = self.parked.park(&self.marks, ticket, data);
        if parks {
            self.last.store(ticket, Ordering::Relaxed);
        } else {
            self.parked
                .alarm("no room to park another request; it is refused");
        }
        parks
    }

    fn written(&self, ticket: Ticket) {
        // The slot may hold another request by now.
        if !self.parked.owes_flush(ticket) && unique(&self.marks.head()) == ticket {
            self.marks.settle(ticket, FLUSH_OWED);
        }
        super::point::reached("write-before-flush");
    }

    fn running(&self, ticket: Ticket, running: bool) {
        self.parked.running(ticket, running);
        if running {
            super::point::reached("parked-running");
        }
    }
}

fn unique(head: &Head) -> u64 {
    InHeader::read_from_prefix(head).map_or(0, |(header, _)| header.unique)
}
