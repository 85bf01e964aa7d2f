// SPDX-License-Identifier: Apache-2.0
//! Requests of any bytes, as no kernel would send them: each gets one answer that the kernel would
//! take, or none where the protocol has none, and no disk is asked past its end.

use std::io::{Read, Seek, Write};
use std::sync::{Arc, Mutex, PoisonError};

use zerocopy::{FromBytes, IntoBytes};

use super::abi::{InHeader, OutHeader, ReadIn, WriteIn, op};
use super::layout::Shape;
use super::memory::{Memory, slots};
use super::negotiate::Agreed;
use super::node::Owner;
use super::session::{Place, Session};
use super::slot::DATA_BYTES_MAX;
use crate::disk::{Answer, Disk, Door, Ticket};
use crate::event::Events;
use crate::sys::shared::RequestMemory;

pub(super) const DISK_BYTES: u64 = (1 << 20) + 512;
pub(super) const OWNER: Owner = Owner {
    uid: 0,
    gid: 0,
    mode: 0o644,
};

/// What waits for its end.
pub(super) type Parked = Vec<(Arc<dyn Door>, Ticket, usize)>;

/// A disk that checks what it is asked, and does, refuses or parks it as the offset says.
#[derive(Default)]
pub(super) struct Picky {
    parked: Mutex<Parked>,
    changes: Mutex<Vec<Ticket>>,
}

impl Picky {
    fn asked(
        &self,
        door: &Arc<dyn Door>,
        ticket: Ticket,
        at: u64,
        len: u64,
        back: usize,
        data: &[u8],
    ) -> Answer {
        assert!(len > 0 && at.checked_add(len).is_some_and(|end| end <= DISK_BYTES));
        if back == 0 {
            let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
            changes.push(ticket);
        }
        match at / 512 % 4 {
            0 | 1 => Answer::Done,
            2 => Answer::Failed(libc::EIO),
            _ => {
                if !door.parking(ticket, data) {
                    return Answer::Failed(libc::EIO);
                }
                self.parked().push((door.clone(), ticket, back));
                Answer::Parked
            }
        }
    }

    /// What it was asked to change, in this order.
    pub(super) fn changes(&self) -> Vec<Ticket> {
        let changes = self.changes.lock();
        changes.unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn parked(&self) -> std::sync::MutexGuard<'_, Parked> {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Disk for Picky {
    fn size_bytes(&self) -> u64 {
        DISK_BYTES
    }

    fn local_bytes(&self) -> u64 {
        4096
    }

    fn read(&self, door: &Arc<dyn Door>, ticket: Ticket, offset: u64, buf: &mut [u8]) -> Answer {
        self.asked(door, ticket, offset, buf.len() as u64, buf.len(), &[])
    }

    fn write(
        &self,
        door: &Arc<dyn Door>,
        ticket: Ticket,
        offset: u64,
        data: &[u8],
        _: bool,
    ) -> Answer {
        self.asked(door, ticket, offset, data.len() as u64, 0, data)
    }

    fn flush(&self, _: &Arc<dyn Door>, _: Ticket) -> Answer {
        Answer::Done
    }

    fn discard(&self, door: &Arc<dyn Door>, ticket: Ticket, offset: u64, len: u64) -> Answer {
        self.asked(door, ticket, offset, len, 0, &[])
    }

    fn write_zeroes(&self, door: &Arc<dyn Door>, ticket: Ticket, offset: u64, len: u64) -> Answer {
        self.asked(door, ticket, offset, len, 0, &[])
    }

    fn seek(&self, offset: u64, hole: bool) -> Option<u64> {
        assert!(offset < DISK_BYTES);
        (!hole).then_some(offset)
    }

    fn interrupt(&self, ticket: Ticket) {
        let found = {
            let mut parked = self.parked();
            let at = parked.iter().position(|(_, other, _)| *other == ticket);
            at.map(|at| parked.remove(at))
        };
        if let Some((door, ticket, _)) = found {
            door.complete(ticket, Err(libc::EINTR));
        }
    }
}

/// The kernel's side of a session, over a file.
pub(super) struct Kernel {
    pub(super) session: Session,
    pub(super) place: Place,
    pub(super) disk: Arc<Picky>,
    pub(super) node: u64,
}

impl Kernel {
    fn new() -> Self {
        let agreed = Agreed {
            minor: 41,
            flags: 0,
        };
        let shape = Shape {
            slots: 1,
            nodes: 8,
            parked: 4096,
            pages: 0,
        };
        let (memory, memories) = Memory::create(shape).expect("room");
        Self::of(memory, memories, agreed)
    }

    /// On a memory that may be a predecessor's, with one disk.
    pub(super) fn of(memory: Memory, memories: Vec<RequestMemory>, agreed: Agreed) -> Self {
        let device = crate::fuzzing::unnamed_file();
        let session = Session::new(device, agreed, memory, Arc::new(Events::default()));
        let place = session.place(slots(memories).remove(0));
        let disk = Arc::new(Picky::default());
        // A memory that is full of nonsense has no room for another.
        let added = session.disks_mut().add("i", "disk", disk.clone(), OWNER);
        let node = added.map_or(0, |node| node.id);
        Self {
            session,
            place,
            disk,
            node,
        }
    }

    pub(super) fn serve(&mut self, request: &[u8]) {
        let mut device = self.session.channel.device();
        device.rewind().expect("a file");
        device.write_all(request).expect("room");
        device.rewind().expect("a file");
        let len = self.place.slot.receive(device).expect("whole");
        assert_eq!(len, request.len());
        device.set_len(0).expect("a file");
        device.rewind().expect("a file");
        self.session.serve(&mut self.place, len);
    }

    /// Answers since the last call: name, error, length of what follows.
    pub(super) fn answers(&self) -> Vec<(u64, i32, usize)> {
        let mut device = self.session.channel.device();
        let mut bytes = Vec::new();
        device.rewind().expect("a file");
        device.read_to_end(&mut bytes).expect("a file");
        device.set_len(0).expect("a file");
        device.rewind().expect("a file");
        let (mut answers, mut rest) = (Vec::new(), bytes.as_slice());
        while !rest.is_empty() {
            let (header, after) = OutHeader::read_from_prefix(rest).expect("a whole header");
            let len = header.len as usize - size_of::<OutHeader>();
            answers.push((header.unique, header.error, len));
            rest = after.get(len..).expect("as long as it says");
        }
        answers
    }
}

/// Requests one after another: how, opcode, length, body.
///
/// # Panics
/// A promise is broken.
pub fn requests(mut data: &[u8]) {
    let mut kernel = Kernel::new();
    let mut unique = 0;
    while let [how, opcode, low, high, rest @ ..] = data {
        unique += 2;
        let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (body, after) = rest.split_at(len);
        data = after;
        let (request, opcode) = request(&kernel, *how, *opcode, unique, body);
        let before = kernel.disk.parked().len();
        kernel.serve(&request);
        let parked = kernel.disk.parked().len();
        let answers = kernel.answers();
        check(&answers, request.len());
        let silent = matches!(opcode, op::FORGET | op::BATCH_FORGET);
        match opcode {
            // It may end another one.
            op::INTERRUPT => assert!(answers.len() <= 1),
            _ if silent || how & 3 == 3 => assert!(answers.is_empty(), "{opcode}"),
            _ if parked > before => assert!(answers.is_empty(), "{opcode}"),
            _ => assert!(answers.len() == 1 && answers[0].0 == unique, "{opcode}"),
        }
        // What parked ends before the next one, mostly.
        if how & 0x40 == 0 || parked > 8 {
            let ended = std::mem::take(&mut *kernel.disk.parked());
            let tickets: Vec<_> = ended.iter().map(|(_, ticket, _)| *ticket).collect();
            for (door, ticket, back) in ended {
                let bytes = vec![1; back];
                let result = if how & 0x20 == 0 {
                    Ok(&bytes[..])
                } else {
                    Err(libc::EIO)
                };
                door.complete(ticket, result);
            }
            let answers = kernel.answers();
            check(&answers, usize::MAX);
            let answered: Vec<_> = answers.iter().map(|(unique, ..)| *unique).collect();
            assert_eq!(answered, tickets);
        }
    }
}

/// A request's bytes; how much of it makes sense, `how` says.
fn request(kernel: &Kernel, how: u8, opcode: u8, unique: u64, body: &[u8]) -> (Vec<u8>, u32) {
    let opcode = u32::from(opcode) % 56;
    let mut body = body.to_vec();
    if how & 0x10 != 0 && body.len() >= size_of::<ReadIn>() {
        // Near the disk's bytes, or no READ or WRITE would ever reach it.
        let offset = u64::from_le_bytes(body[8..16].try_into().unwrap_or_default());
        body[8..16].copy_from_slice(&(offset % (DISK_BYTES + 4096)).to_le_bytes());
        let size = u32::from_le_bytes(body[16..20].try_into().unwrap_or_default());
        let room = body.len() - size_of::<WriteIn>();
        let size = if opcode == op::WRITE {
            u32::try_from(room).unwrap_or(0)
        } else {
            size % 8192
        };
        body[16..20].copy_from_slice(&size.to_le_bytes());
    }
    let len = size_of::<InHeader>() + body.len();
    let header = InHeader {
        // One that lies about its length is not answered.
        len: u32::try_from(len + usize::from(how & 3 == 3)).unwrap_or(u32::MAX),
        opcode,
        unique,
        nodeid: match how >> 2 & 3 {
            0 => 1,
            1 => u64::from(how),
            _ => kernel.node,
        },
        uid: 0,
        gid: 0,
        pid: 0,
        extensions: 0,
    };
    ([header.as_bytes(), &body].concat(), opcode)
}

/// What the kernel would refuse of an answer.
pub(super) fn check(answers: &[(u64, i32, usize)], request_len: usize) {
    for (unique, error, len) in answers {
        assert!(*unique > 0, "a notification, of {request_len} bytes");
        assert!((-511..=0).contains(error), "errno {error}");
        assert!(*error == 0 || *len == 0, "an error with {len} bytes");
        assert!(*len <= DATA_BYTES_MAX);
    }
}

/// One request after another that makes sense.
pub fn seeds() -> Vec<Vec<u8>> {
    let one = |how: u8, opcode: u32, body: &[u8]| {
        let len = u16::try_from(body.len()).unwrap_or(0).to_le_bytes();
        let opcode = u8::try_from(opcode).unwrap_or(0);
        [&[how, opcode, len[0], len[1]], body].concat()
    };
    let on_disk = 2 << 2;
    let all = [
        one(0, op::LOOKUP, b"i\0"),
        one(on_disk, op::OPEN, &[0; 8]),
        one(on_disk | 0x10, op::READ, &[1; 40]),
        one(on_disk | 0x10, op::WRITE, &[2; 600]),
        one(on_disk | 0x10 | 0x40, op::READ, &[6; 40]),
        one(on_disk, op::INTERRUPT, &[10, 0, 0, 0, 0, 0, 0, 0]),
        one(on_disk, op::FALLOCATE, &[0; 32]),
        one(on_disk, op::LSEEK, &[0; 24]),
        one(on_disk, op::SETATTR, &[0; 88]),
        one(on_disk, op::GETATTR, &[0; 16]),
        one(0, op::READDIR, &[0; 40]),
        one(0, op::STATFS, b""),
        one(0, op::FORGET, &[0; 8]),
    ];
    let mut seeds = vec![all.concat()];
    seeds.extend(all);
    seeds
}
