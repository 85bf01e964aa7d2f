// SPDX-License-Identifier: Apache-2.0
//! A session memory as a successor finds it: left by an agent that died between any two steps, each a
//! store or an answer, or with any words changed.
//!
//! After a death every request is answered that was not, once, and nothing that was answered is done
//! again, but reads. After a change there is no such promise, but no panic, no loop without end,
//! no access past the disk's end, and no answer that the kernel would refuse.

use std::collections::HashSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use zerocopy::IntoBytes;

use super::abi::{FallocateIn, InHeader, ReadIn, UNIQUE_RESEND, WriteIn, init, op};
use super::fuzzing::{DISK_BYTES, Kernel, check};
use super::layout::{PAGE_WORDS, Shape};
use super::memory::{Identity, Memory};
use super::negotiate::Agreed;
use super::slot::{DATA_BYTES_MAX, PAGE_BYTES};
use crate::disk::Ticket;
use crate::event::Events;
use crate::sys::death;

const SHAPE: Shape = Shape {
    slots: 1,
    nodes: 8,
    parked: 8,
    pages: 8,
};
const IDENTITY: Identity = Identity {
    boot: [1; 16],
    session: [2; 32],
};
const RESENDS: u8 = 1;
const DIES: u8 = 2;
const REQUESTS_MAX: usize = 12;

/// A request of the first life, as the kernel would send it again.
struct Sent {
    unique: Ticket,
    bytes: Vec<u8>,
}

/// What became of the first life.
#[derive(Default)]
struct Past {
    sent: Vec<Sent>,
    answered: HashSet<Ticket>,
}

/// How, after how many steps it dies, the number of requests, requests, changes.
///
/// # Panics
/// A promise is broken.
pub fn session(data: &[u8]) {
    let [how, low, high, count, rest @ ..] = data else {
        return;
    };
    let agreed = Agreed {
        minor: 41,
        flags: if how & RESENDS == 0 {
            0
        } else {
            init::HAS_RESEND
        },
    };
    let cut = rest.len().min(usize::from(*count) % REQUESTS_MAX * 3);
    let (requests, changes) = rest.split_at(cut);
    let (memory, memories) = Memory::create(SHAPE).expect("room");
    memory.believe(SHAPE, &IDENTITY, agreed);
    let file = memory.file().try_clone().expect("a descriptor");
    let mut kernel = Kernel::of(memory, memories, agreed);
    let dies = how & DIES != 0;
    if dies {
        death::after(u64::from(u16::from_le_bytes([*low, *high])) % 512);
    }
    let past = live(&mut kernel, requests);
    death::after(u64::MAX);
    drop(kernel);
    if !dies {
        change(&file, changes);
    }
    let events = Events::default();
    let Ok((memory, memories, agreed)) = Memory::open(&file, &IDENTITY, Duration::ZERO, &events)
    else {
        assert!(!dies, "a whole memory is refused");
        return;
    };
    let mut kernel = Kernel::of(memory, memories, agreed);
    let mut answers = take_over(&mut kernel, &past);
    let parked: Vec<_> = std::mem::take(&mut *kernel.disk.parked());
    for (door, ticket, back) in parked {
        door.complete(ticket, Ok(&vec![1; back]));
    }
    answers.extend(kernel.answers());
    check(&answers, usize::MAX);
    if dies {
        for ticket in kernel.disk.changes() {
            let name = ticket & !UNIQUE_RESEND;
            assert!(!past.answered.contains(&name), "{name} was done twice");
        }
        for sent in &past.sent {
            let name = sent.unique;
            let times = answers
                .iter()
                .filter(|(unique, ..)| unique & !UNIQUE_RESEND == name)
                .count();
            let once = usize::from(!past.answered.contains(&name));
            // One that was answered may be answered again: the kernel knows it no more.
            assert!(
                times == once || once == 0 && times == 1 && !agreed.resends(),
                "request {name} was answered {times} times, once: {once}"
            );
        }
    }
}

/// The first life: each three bytes are a request, or the end of one that is parked.
fn live(kernel: &mut Kernel, requests: &[u8]) -> Past {
    let mut past = Past::default();
    for (number, request) in requests.chunks_exact(3).enumerate() {
        if death::has_come() {
            break;
        }
        let &[what, at, len] = request else {
            unreachable!("three at a time");
        };
        if what & 0x80 != 0 {
            let ended = kernel.disk.parked().pop();
            if let Some((door, ticket, back)) = ended {
                door.running(ticket, true);
                if !death::has_come() {
                    door.complete(ticket, Ok(&vec![1; back]));
                }
            }
        } else {
            let sent = sent(kernel.node, 2 * (number as u64 + 1), what, at, len);
            kernel.serve(&sent.bytes);
            past.sent.push(sent);
        }
        past.answered
            .extend(kernel.answers().iter().map(|(unique, ..)| unique));
    }
    past
}

fn sent(node: u64, unique: Ticket, what: u8, at: u8, len: u8) -> Sent {
    let offset = u64::from(at) * 512 % (DISK_BYTES - 64 * 512);
    let size = (u32::from(len) % 40 + 1) * 512;
    let (opcode, body) = match what % 4 {
        0 => {
            let wanted = ReadIn {
                offset,
                size,
                ..ReadIn::default()
            };
            (op::READ, wanted.as_bytes().to_vec())
        }
        1 => {
            let wanted = WriteIn {
                offset,
                size,
                ..WriteIn::default()
            };
            let data = vec![len; size as usize];
            (op::WRITE, [wanted.as_bytes(), &data].concat())
        }
        2 => (op::FSYNC, vec![0; 16]),
        _ => {
            let wanted = FallocateIn {
                offset,
                length: size.into(),
                mode: 3,
                ..FallocateIn::default()
            };
            (op::FALLOCATE, wanted.as_bytes().to_vec())
        }
    };
    let header = InHeader {
        len: u32::try_from(size_of::<InHeader>() + body.len()).unwrap_or(0),
        opcode,
        unique,
        nodeid: node,
        uid: 0,
        gid: 0,
        pid: 0,
        extensions: 0,
    };
    let bytes = [header.as_bytes(), &body].concat();
    Sent { unique, bytes }
}

/// What a successor does, and the kernel with it.
fn take_over(kernel: &mut Kernel, past: &Past) -> Vec<(u64, i32, usize)> {
    if !kernel.session.agreed.resends() {
        kernel.session.finish_slot(&mut kernel.place);
        let inherited = kernel.session.parked.standing();
        kernel.session.finish_parked(&mut kernel.place, &inherited);
        return kernel.answers();
    }
    kernel.session.note_all(std::slice::from_ref(&kernel.place));
    let mut answers = kernel.answers();
    for sent in &past.sent {
        if !past.answered.contains(&sent.unique) {
            let mut bytes = sent.bytes.clone();
            let name = (sent.unique | UNIQUE_RESEND).to_ne_bytes();
            bytes[8..16].copy_from_slice(&name);
            kernel.serve(&bytes);
            answers.extend(kernel.answers());
        }
    }
    answers
}

/// Changes words: area, two bytes of its word's number, a value of which many mean something.
fn change(file: &File, changes: &[u8]) {
    for change in changes.chunks_exact(4) {
        let &[area, low, high, value] = change else {
            unreachable!("four at a time");
        };
        let mut starts = vec![(0, 24)];
        let mut at = PAGE_WORDS;
        for words in SHAPE.areas() {
            starts.push((at, words));
            at += words.next_multiple_of(PAGE_WORDS);
        }
        // The end of a slot's page: settled, and the request.
        starts.push((at, 2));
        starts.push((at + PAGE_WORDS - 10, 10));
        let (start, words) = starts[usize::from(area) % starts.len()];
        let word = start + usize::from(u16::from_le_bytes([low, high])) % words.max(1);
        let number = u64::from(value);
        let values = [
            number >> 3,
            (number >> 3) * 512,
            u64::MAX - (number >> 3),
            1 << (number >> 3),
            1 << 63 | number >> 3,
            (DATA_BYTES_MAX as u64) + (number >> 3) - 16,
            number << 32 | 0x68,
            (number >> 3) << 32 | 0x28,
        ];
        let value = values[usize::from(value % 8)].to_ne_bytes();
        let offset = word as u64 * 8;
        debug_assert!(offset < (SHAPE.slots_at() + PAGE_BYTES) as u64);
        file.write_all_at(&value, offset).expect("a memory");
    }
}

/// Lives of a few requests, ended at any store or with a few words changed.
pub fn seeds() -> Vec<Vec<u8>> {
    // Parks: reads and writes whose block is the last of four.
    let requests = [
        [1, 3, 20],
        [0, 3, 1],
        [1, 0, 2],
        [3, 3, 7],
        [2, 0, 0],
        [0x80, 0, 0],
        [1, 7, 39],
    ];
    let count = u8::try_from(requests.len()).unwrap_or(0);
    let life = requests.concat();
    let mut seeds = Vec::new();
    for how in [0, RESENDS] {
        for stores in [8_u8, 40, 60, 90, 120] {
            seeds.push([&[how | DIES, stores, 0, count][..], &life].concat());
        }
        let changes = [5, 3, 0, 0, 6, 0, 0, 8, 5, 2, 0, 6, 9, 0, 0, 7];
        seeds.push([&[how, 0, 0, count][..], &life, &changes].concat());
    }
    // Found by the fuzzer: a request whose name is 0, the last node id of all, and a death right
    // behind an answer, before its record was free.
    seeds.push(vec![0, 15, 249, 1, 0, 0, 0, 39, 1, 15, 0, 4]);
    seeds.push(vec![
        0, 0, 1, 2, 2, 0, 0, 9, 15, 0, 11, 0, 0, 0, 1, 2, 2, 0, 0, 0, 1, 2, 232,
    ]);
    seeds.push(vec![
        106, 45, 0, 239, 0, 253, 255, 255, 246, 15, 0, 11, 1, 211, 13, 0, 7, 39, 226, 226, 226,
        226, 0, 2, 3, 0, 0, 0, 0, 0, 211, 211, 211, 96, 211, 211, 0, 2, 232,
    ]);
    seeds
}
