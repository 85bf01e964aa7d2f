// SPDX-License-Identifier: Apache-2.0
//! Requests as the kernel would send them, answers as it would read them; no mount.

use std::io::{Read, Seek, Write};
use std::sync::Arc;

use zerocopy::{FromBytes, IntoBytes};

use super::abi::{
    AttrOut, FallocateIn, InHeader, InterruptIn, OutHeader, ROOT, ReadIn, SetattrIn, WriteIn,
    WriteOut, op, set,
};
use super::memory::tests::SMALL;
use super::memory::{Memory, slots};
use super::negotiate::Agreed;
use super::node::Owner;
use super::session::{Place, Session};
use super::slot::DATA_BYTES_MAX;
use super::testing::{Parking, Zeros};
use crate::disk::Disk;
use crate::event::Events;

const OWNER: Owner = Owner {
    uid: 0,
    gid: 0,
    mode: 0o644,
};

struct Kernel {
    session: Session,
    place: Place,
    node: u64,
}

impl Kernel {
    fn with(disk: Arc<dyn Disk>) -> Self {
        let device = tempfile::tempfile().expect("a temporary file");
        let agreed = Agreed {
            minor: 41,
            flags: 0,
        };
        let (memory, memories) = Memory::create(SMALL).expect("room");
        let session = Session::new(device, agreed, memory, Arc::new(Events::default()));
        let place = session.place(slots(memories).remove(0));
        let node = session
            .disks_mut()
            .add("i", "disk", disk, OWNER)
            .expect("free")
            .id;
        Self {
            session,
            place,
            node,
        }
    }

    fn header(&self, opcode: u32, len: usize) -> InHeader {
        InHeader {
            len: u32::try_from(40 + len).expect("small"),
            opcode,
            unique: 4,
            nodeid: self.node,
            uid: 0,
            gid: 0,
            pid: 0,
            extensions: 0,
        }
    }

    /// The answers to a request: each header's error, and the bytes behind the last one.
    fn ask(&mut self, opcode: u32, body: &[u8]) -> (Vec<i32>, Vec<u8>) {
        let header = self.header(opcode, body.len());
        self.send(&[header.as_bytes(), body].concat())
    }

    fn send(&mut self, bytes: &[u8]) -> (Vec<i32>, Vec<u8>) {
        let mut device = self.session.channel.device();
        for part in [bytes, b""] {
            device.rewind().expect("a file");
            device.set_len(0).expect("a file");
            device.write_all(part).expect("room");
            device.rewind().expect("a file");
            if !part.is_empty() {
                self.place.slot.receive(device).expect("whole");
            }
        }
        self.session.serve(&mut self.place, bytes.len());
        self.answers()
    }

    fn answers(&self) -> (Vec<i32>, Vec<u8>) {
        let mut device = self.session.channel.device();
        let mut bytes = Vec::new();
        device.rewind().expect("a file");
        device.read_to_end(&mut bytes).expect("a file");
        let (mut errors, mut body, mut rest) = (Vec::new(), Vec::new(), bytes.as_slice());
        while !rest.is_empty() {
            let (header, after) = OutHeader::read_from_prefix(rest).expect("a header");
            assert_eq!(header.unique, 4);
            let (this, after) = after.split_at(header.len as usize - 16);
            errors.push(header.error);
            body = this.to_vec();
            rest = after;
        }
        (errors, body)
    }
}

#[test]
fn an_operation_that_nobody_knows_is_not_implemented() {
    let mut kernel = Kernel::with(Arc::new(Zeros));
    for opcode in [0, 7, 25, 40, 44, 52, 4096, u32::MAX] {
        assert_eq!(kernel.ask(opcode, b"").0, [-libc::ENOSYS], "{opcode}");
    }
}

#[test]
fn an_ioctl_is_no_terminals_and_never_unimplemented() {
    let mut kernel = Kernel::with(Arc::new(Zeros));
    assert_eq!(kernel.ask(op::IOCTL, &[0; 32]).0, [-libc::ENOTTY]);
}

#[test]
fn arguments_that_are_cut_off_are_an_error_of_that_request() {
    let mut kernel = Kernel::with(Arc::new(Zeros));
    for opcode in [
        op::READ,
        op::WRITE,
        op::SETATTR,
        op::FALLOCATE,
        op::LSEEK,
        op::LOOKUP,
    ] {
        assert_eq!(kernel.ask(opcode, b"").0, [-libc::EINVAL], "{opcode}");
    }
}

#[test]
fn a_write_whose_data_is_cut_off_is_refused() {
    let mut kernel = Kernel::with(Arc::new(Zeros));
    let write = WriteIn {
        size: 512,
        ..WriteIn::default()
    };
    let body = [write.as_bytes(), &[0; 511]].concat();
    assert_eq!(kernel.ask(op::WRITE, &body).0, [-libc::EINVAL]);
}

#[test]
fn a_read_larger_than_was_agreed_is_refused() {
    let disk = Parking::of(1 << 40);
    let mut kernel = Kernel::with(disk);
    let size = u32::try_from(DATA_BYTES_MAX + 1).expect("small");
    let read = ReadIn {
        size,
        ..ReadIn::default()
    };
    assert_eq!(kernel.ask(op::READ, read.as_bytes()).0, [-libc::EINVAL]);
}

#[test]
fn a_direct_request_of_less_than_a_sector_is_refused_as_by_a_raw_file() {
    let mut kernel = Kernel::with(Arc::new(Zeros));
    for (flags, offset, size, errno) in [
        (libc::O_DIRECT, 0, 1, libc::EINVAL),
        (libc::O_DIRECT, 511, 512, libc::EINVAL),
        (libc::O_DIRECT, 512, 1536, 0),
        (0, 511, 3, 0),
    ] {
        let read = ReadIn {
            offset,
            size,
            flags,
            ..ReadIn::default()
        };
        assert_eq!(kernel.ask(op::READ, read.as_bytes()).0, [-errno]);
        let write = WriteIn {
            offset,
            size,
            flags,
            ..WriteIn::default()
        };
        let body = [write.as_bytes(), &vec![0; size as usize]].concat();
        assert_eq!(kernel.ask(op::WRITE, &body).0, [-errno]);
    }
}

#[test]
fn offsets_that_overflow_are_too_large() {
    let mut kernel = Kernel::with(Arc::new(Zeros));
    let write = WriteIn {
        offset: u64::MAX - 1,
        size: 2,
        ..WriteIn::default()
    };
    let body = [write.as_bytes(), b"ab"].concat();
    assert_eq!(kernel.ask(op::WRITE, &body).0, [-libc::EFBIG]);
    let zero = FallocateIn {
        offset: u64::MAX - 1,
        length: 4096,
        mode: libc::FALLOC_FL_ZERO_RANGE,
        ..FallocateIn::default()
    };
    assert_eq!(kernel.ask(op::FALLOCATE, zero.as_bytes()).0, [-libc::EFBIG]);
}

#[test]
fn a_request_that_makes_no_sense_is_left_alone() {
    let mut kernel = Kernel::with(Arc::new(Zeros));
    assert_eq!(kernel.send(&[0; 39]).0, [0_i32; 0]);
    let mut header = kernel.header(op::READ, 0);
    header.len = 41;
    assert_eq!(kernel.send(header.as_bytes()).0, [0_i32; 0]);
}

#[test]
fn a_disk_that_is_gone_answers_with_an_error_and_no_other_disk() {
    let mut kernel = Kernel::with(Arc::new(Zeros));
    drop(kernel.session.disks_mut().remove("i", "disk"));
    kernel
        .session
        .disks_mut()
        .add("i", "disk", Arc::new(Zeros), OWNER)
        .expect("free");
    assert_eq!(
        kernel.ask(op::READ, ReadIn::default().as_bytes()).0,
        [-libc::EIO]
    );
    assert_eq!(kernel.ask(op::GETATTR, &[0; 16]).0, [-libc::ESTALE]);
}

#[test]
fn an_interrupt_and_a_forget_have_no_answer() {
    let mut kernel = Kernel::with(Arc::new(Zeros));
    let interrupt = InterruptIn { unique: 2 };
    assert_eq!(
        kernel.ask(op::INTERRUPT, interrupt.as_bytes()).0,
        [0_i32; 0]
    );
    assert_eq!(kernel.ask(op::FORGET, &[0; 8]).0, [0_i32; 0]);
    assert_eq!(kernel.ask(op::BATCH_FORGET, &[0; 24]).0, [0_i32; 0]);
}

#[test]
fn a_parked_read_is_answered_by_its_disk_and_not_before() {
    let disk = Parking::of(1 << 20);
    let mut kernel = Kernel::with(disk.clone());
    let read = ReadIn {
        size: 3,
        ..ReadIn::default()
    };
    assert_eq!(kernel.ask(op::READ, read.as_bytes()).0, [0_i32; 0]);
    disk.complete(Ok(b"abc"));
    assert_eq!(kernel.answers(), (vec![0], b"abc".to_vec()));
}

#[test]
fn a_parked_write_is_answered_with_its_length() {
    let disk = Parking::of(1 << 20);
    let mut kernel = Kernel::with(disk.clone());
    let write = WriteIn {
        size: 3,
        ..WriteIn::default()
    };
    let body = [write.as_bytes(), b"abc"].concat();
    assert_eq!(kernel.ask(op::WRITE, &body).0, [0_i32; 0]);
    disk.complete(Ok(b""));
    let (errors, body) = kernel.answers();
    let answer = WriteOut::read_from_bytes(&body).expect("a write's answer");
    assert_eq!((errors, answer.size), (vec![0], 3));
}

/// Where nobody resends: what a successor answers to a parked write of so many pages.
fn after_a_death(pages: usize) -> Vec<i32> {
    let mut kernel = Kernel::with(Parking::of(1 << 20));
    let len = pages * 4096;
    let write = WriteIn {
        size: u32::try_from(len).expect("small"),
        ..WriteIn::default()
    };
    let body = [write.as_bytes(), &vec![7; len]].concat();
    assert!(kernel.ask(op::WRITE, &body).0.is_empty());
    let Kernel { session, place, .. } = kernel;
    let (device, agreed) = (session.channel.device().try_clone(), session.agreed);
    let events = Arc::new(Events::default());
    let session = Session::new(device.expect("open"), agreed, session.memory, events);
    let disk = Parking::of(1 << 20);
    let added = session.disks_mut().add("i", "disk", disk, OWNER);
    let mut place = session.place(place.slot);
    place.slot.clear();
    session.finish_parked(&mut place, &session.parked.standing());
    let node = added.expect("free").id;
    let kernel = Kernel {
        session,
        place,
        node,
    };
    kernel.answers().0
}

#[test]
fn a_write_whose_data_found_no_room_ends_with_eio_at_a_death() {
    assert!(after_a_death(SMALL.pages).is_empty(), "it waits again");
    assert_eq!(after_a_death(SMALL.pages + 1), [-libc::EIO]);
}

#[test]
fn an_interrupt_ends_its_request_whichever_is_served_first() {
    for interrupt_first in [false, true] {
        let disk = Parking::of(1 << 20);
        let mut kernel = Kernel::with(disk.clone());
        let read = ReadIn {
            size: 3,
            ..ReadIn::default()
        };
        let interrupt = InterruptIn { unique: 4 };
        if interrupt_first {
            assert_eq!(
                kernel.ask(op::INTERRUPT, interrupt.as_bytes()).0,
                [0_i32; 0]
            );
            assert_eq!(kernel.ask(op::READ, read.as_bytes()).0, [-libc::EINTR]);
        } else {
            assert_eq!(kernel.ask(op::READ, read.as_bytes()).0, [0_i32; 0]);
            assert_eq!(
                kernel.ask(op::INTERRUPT, interrupt.as_bytes()).0,
                [-libc::EINTR]
            );
        }
    }
}

#[test]
fn truncating_is_refused_before_anything_else_is_changed() {
    let mut kernel = Kernel::with(Arc::new(Zeros));
    let mut wanted = SetattrIn {
        valid: set::SIZE | set::UID,
        uid: 7,
        size: 1,
        ..SetattrIn::default()
    };
    assert_eq!(kernel.ask(op::SETATTR, wanted.as_bytes()).0, [-libc::EPERM]);
    wanted.size = 1 << 20;
    let node = kernel.session.disk(kernel.node).expect("there");
    assert_eq!(node.owner().uid, 0);
    let (errors, body) = kernel.ask(op::SETATTR, wanted.as_bytes());
    let answer = AttrOut::read_from_bytes(&body).expect("attributes");
    assert_eq!((errors, answer.attr.uid), (vec![0], 7));
}

#[test]
fn a_directory_is_listed_in_pieces_that_fit() {
    let mut kernel = Kernel::with(Arc::new(Zeros));
    for name in ["a", "bb", "ccc"] {
        kernel
            .session
            .disks_mut()
            .add(name, "disk", Arc::new(Zeros), OWNER)
            .expect("free");
    }
    kernel.node = ROOT;
    let (mut names, mut offset) = (Vec::new(), 0);
    loop {
        let read = ReadIn {
            offset,
            size: 64,
            ..ReadIn::default()
        };
        let (errors, mut body) = kernel.ask(op::READDIR, read.as_bytes());
        assert_eq!(errors, [0]);
        if body.is_empty() {
            break;
        }
        while !body.is_empty() {
            let (entry, rest) = super::abi::Dirent::read_from_prefix(&body).expect("an entry");
            let len = entry.namelen as usize;
            names.push(String::from_utf8_lossy(&rest[..len]).into_owned());
            offset = entry.off;
            body = body.split_off((24 + len).next_multiple_of(8));
        }
    }
    assert_eq!(names, [".", "..", "i", "a", "bb", "ccc"]);
}
