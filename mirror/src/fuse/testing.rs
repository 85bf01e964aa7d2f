// SPDX-License-Identifier: Apache-2.0
//! Disks for the tests of the door.

use std::sync::{Arc, Mutex};

use crate::disk::{Answer, Disk, Door, Errno, Ticket};

/// A MiB of zeros that takes everything and keeps nothing.
pub struct Zeros;

impl Disk for Zeros {
    fn size_bytes(&self) -> u64 {
        1 << 20
    }

    fn local_bytes(&self) -> u64 {
        0
    }

    fn read(&self, _: &Arc<dyn Door>, _: Ticket, _: u64, buf: &mut [u8]) -> Answer {
        buf.fill(0);
        Answer::Done
    }

    fn write(&self, _: &Arc<dyn Door>, _: Ticket, _: u64, _: &[u8], _: bool) -> Answer {
        Answer::Done
    }

    fn flush(&self, _: &Arc<dyn Door>, _: Ticket) -> Answer {
        Answer::Done
    }

    fn discard(&self, _: &Arc<dyn Door>, _: Ticket, _: u64, _: u64) -> Answer {
        Answer::Done
    }

    fn write_zeroes(&self, _: &Arc<dyn Door>, _: Ticket, _: u64, _: u64) -> Answer {
        Answer::Done
    }

    fn seek(&self, offset: u64, hole: bool) -> Option<u64> {
        (!hole).then_some(offset)
    }

    fn interrupt(&self, _: Ticket) {}
}

/// Parks every read and write until it is told how it ends.
pub struct Parking {
    size_bytes: u64,
    parked: Mutex<Option<(Arc<dyn Door>, Ticket)>>,
}

impl Parking {
    /// A disk of that size.
    pub fn of(size_bytes: u64) -> Arc<Self> {
        let parked = Mutex::default();
        Arc::new(Self { size_bytes, parked })
    }

    /// Ends what is parked.
    pub fn complete(&self, result: Result<&[u8], Errno>) {
        let parked = self.parked.lock().expect("no panics").take();
        let (door, ticket) = parked.expect("something is parked");
        door.complete(ticket, result);
    }

    fn park(&self, door: &Arc<dyn Door>, ticket: Ticket, data: &[u8]) -> Answer {
        if !door.parking(ticket, data) {
            return Answer::Failed(libc::EIO);
        }
        *self.parked.lock().expect("no panics") = Some((door.clone(), ticket));
        Answer::Parked
    }
}

impl Disk for Parking {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn local_bytes(&self) -> u64 {
        0
    }

    fn read(&self, door: &Arc<dyn Door>, ticket: Ticket, _: u64, _: &mut [u8]) -> Answer {
        self.park(door, ticket, &[])
    }

    fn write(&self, door: &Arc<dyn Door>, ticket: Ticket, _: u64, data: &[u8], _: bool) -> Answer {
        self.park(door, ticket, data)
    }

    fn flush(&self, door: &Arc<dyn Door>, ticket: Ticket) -> Answer {
        self.park(door, ticket, &[])
    }

    fn discard(&self, door: &Arc<dyn Door>, ticket: Ticket, _: u64, _: u64) -> Answer {
        self.park(door, ticket, &[])
    }

    fn write_zeroes(&self, door: &Arc<dyn Door>, ticket: Ticket, _: u64, _: u64) -> Answer {
        self.park(door, ticket, &[])
    }

    fn seek(&self, _: u64, _: bool) -> Option<u64> {
        None
    }

    fn interrupt(&self, ticket: Ticket) {
        let mut parked = self.parked.lock().expect("no panics");
        if parked.as_ref().is_some_and(|(_, other)| *other == ticket) {
            let door = parked.take().map(|(door, _)| door);
            drop(parked);
            if let Some(door) = door {
                door.complete(ticket, Err(libc::EINTR));
            }
        }
    }
}
