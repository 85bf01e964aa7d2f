// SPDX-License-Identifier: Apache-2.0
//! How a request comes in: tried at once on its door's thread, and parked as a job if it must wait.

use super::Mirror;
use crate::disk::{Answer, Disk, Door, Errno, Ticket};
use crate::error::{Error, Result};
use crate::job::{Job, Outcome, Request};
use crate::meter::{Begun, Operation};
use crate::sync::{Arc, Condvar, Mutex, PoisonError};
use crate::units::lock;

impl Mirror {
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
struct Waiting {
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
