// SPDX-License-Identifier: Apache-2.0
//! The memory of one worker's request: received into, executed in and answered from, without a copy.
//!
//! ```text
//!   0   2 words           4016        4080 4096                        4096 + 1 MiB
//!   ├─ settled: name, how ┤           ├────┤
//!                         ├─ request header, arguments ─┤─ a WRITE's data ─────┤   received
//!                                     ├ answer's header ┤─ a READ's data ──────┤   answered
//! ```
//!
//! Data stands at a page's start either way, so that `O_DIRECT` takes it as it is, and right behind
//! its header, so that one read(2) receives and one write(2) answers.
//!
//! # What stands there when its process dies
//!
//! | header's length | *settled* names it | the slot is | because |
//! | --- | --- | --- | --- |
//! | 0 | – | free | it is cleared before each read(2), and the kernel copies a request whole or not at all |
//! | not 0 | no | received | it may be executed |
//! | not 0 | yes, with a result | executed | it must only be answered |
//! | not 0 | yes, *moved* | free | a parked request's record holds it |
//!
//! So the price on the hot path is a store before each read(2) and two after each WRITE. READs are
//! never settled: repeating one harms nobody. An answer's header covers arguments that a READ no
//! longer needs (its lock owner and flags).
//!
//! Between the return of a WRITE's last system call and the store that settles it, a death makes the
//! successor write the same bytes again, before it reads any new request. Who never has two
//! overlapping requests under way at once cannot notice.

use std::fs::File;
use std::io;

use zerocopy::{FromBytes, IntoBytes};

use super::abi::{InHeader, OutHeader, WRITE_PREFIX};
use super::ledger::{Settled, pack, unpack};
pub use crate::sys::shared::PAGE_BYTES;
use crate::sys::shared::{RequestMemory, Words};

/// The largest READ or WRITE: what the kernel takes by default (`fs.fuse.max_pages_limit`).
pub const DATA_BYTES_MAX: usize = 256 * PAGE_BYTES;

const WORD_NAME: usize = 0;
const WORD_RESULT: usize = 1;
const WORD_REQUEST: usize = (PAGE_BYTES - WRITE_PREFIX) / 8;
const WORD_ANSWER: usize = (PAGE_BYTES - size_of::<OutHeader>()) / 8;
const WORD_LAST: usize = PAGE_BYTES / 8 - 1;

/// A request's header and first arguments.
pub type Head = [u8; WRITE_PREFIX];

/// One request's memory.
#[derive(Debug)]
pub struct Slot {
    memory: RequestMemory,
    marks: Marks,
}

/// The part of a slot that others than its worker may look at, and mark.
#[derive(Debug, Clone)]
pub struct Marks(Words);

impl Marks {
    /// Notes how the request ended, before it is answered.
    #[inline]
    pub fn settle(&self, unique: u64, settled: Settled) {
        self.0.set(WORD_RESULT, pack(settled));
        self.0.set(WORD_NAME, unique);
    }

    /// How the request ended.
    #[must_use]
    pub fn settled(&self, unique: u64) -> Option<Settled> {
        (self.0.get(WORD_NAME) == unique).then(|| unpack(self.0.get(WORD_RESULT)))
    }

    /// The request's header and first arguments; what a shorter one does not have is of old.
    #[inline]
    #[must_use]
    pub fn head(&self) -> Head {
        let mut head = [0; WRITE_PREFIX];
        self.0.copy(WORD_REQUEST, &mut head);
        head
    }
}

impl Slot {
    /// In that memory; what stands there stays.
    #[must_use]
    pub fn new(memory: RequestMemory) -> Self {
        let marks = Marks(memory.words().clone());
        Self { memory, marks }
    }

    /// Its header and how it ended.
    #[inline]
    #[must_use]
    pub fn marks(&self) -> &Marks {
        &self.marks
    }

    /// Receives the next request; answers its length.
    ///
    /// # Errors
    /// The system's.
    #[inline]
    pub fn receive(&mut self, device: &File) -> io::Result<usize> {
        self.clear();
        self.memory.read(device, WORD_REQUEST)
    }

    /// Forgets its request.
    #[inline]
    pub fn clear(&self) {
        self.memory.words().set(WORD_REQUEST, 0);
    }

    /// The request that stands here, settled or not, and its length.
    #[must_use]
    pub fn standing(&self) -> Option<(InHeader, usize)> {
        let head = self.marks.head();
        let (header, _) = InHeader::read_from_prefix(&head).ok()?;
        let len = header.len as usize;
        let whole = len >= size_of::<InHeader>() && len <= WRITE_PREFIX + DATA_BYTES_MAX;
        // An answer to no name would be a notification.
        (whole && header.unique != 0).then_some((header, len))
    }

    /// The request of `len` bytes as one piece, cut off where `whole` is full: for requests that
    /// are rare and short.
    #[must_use]
    pub fn request<'a>(&self, len: usize, whole: &'a mut [u8]) -> &'a [u8] {
        let len = len.min(whole.len()).min(WRITE_PREFIX + DATA_BYTES_MAX);
        let whole = &mut whole[..len];
        let head = self.marks.head();
        let cut = len.min(WRITE_PREFIX);
        whole[..cut].copy_from_slice(&head[..cut]);
        whole[cut..].copy_from_slice(&self.data()[..len - cut]);
        whole
    }

    /// A WRITE's data.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        self.memory.data()
    }

    /// Where a READ's data goes.
    pub fn data_mut(&mut self) -> &mut [u8] {
        self.memory.data_mut()
    }

    /// Answers with the first `len` bytes of data.
    ///
    /// # Errors
    /// The system's.
    #[inline]
    pub fn answer(&mut self, device: &File, unique: u64, len: usize) -> io::Result<usize> {
        let header = header(unique, 0, len);
        self.memory.words().put(WORD_ANSWER, header.as_bytes());
        self.memory.write(device, WORD_ANSWER, len)
    }

    /// Puts a request here, as if it had been received.
    pub fn put(&mut self, head: &Head, data: &[u8]) {
        self.clear();
        self.memory.data_mut()[..data.len()].copy_from_slice(data);
        let words = self.memory.words();
        let (len, rest) = head.split_at(8);
        words.put(WORD_REQUEST + 1, rest);
        // Last, for a death in between leaves a free slot.
        let mut word = [0; 8];
        word.copy_from_slice(len);
        words.set(WORD_REQUEST, u64::from_ne_bytes(word));
    }

    /// Takes away what an answer's header may have covered of a READ: flags by which one could be
    /// refused.
    pub fn forget_flags(&self) {
        self.memory.words().set(WORD_LAST, 0);
    }
}

/// An answer's header: `error` is 0 or a negative errno, `len` the bytes behind it.
#[must_use]
pub fn header(unique: u64, error: i32, len: usize) -> OutHeader {
    let len = size_of::<OutHeader>() + len;
    OutHeader {
        len: u32::try_from(len).unwrap_or(u32::MAX),
        error,
        unique,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, Write};

    use super::super::ledger::MOVED;
    use super::super::memory::tests::SMALL;
    use super::super::memory::{Memory, slots};
    use super::*;

    fn slot() -> Slot {
        let (_, memories) = Memory::create(SMALL).expect("room");
        slots(memories).remove(0)
    }

    fn file(bytes: &[u8]) -> File {
        let mut file = tempfile::tempfile().expect("a temporary file");
        file.write_all(bytes).expect("room");
        file.rewind().expect("a file");
        file
    }

    fn request(unique: u64, len: usize) -> Vec<u8> {
        let header = InHeader {
            len: u32::try_from(len).expect("small"),
            opcode: 16,
            unique,
            nodeid: 1,
            uid: 0,
            gid: 0,
            pid: 0,
            extensions: 0,
        };
        let mut bytes = header.as_bytes().to_vec();
        bytes.resize(len, 7);
        bytes
    }

    #[test]
    fn data_stands_at_a_page_whether_received_or_answered() {
        let mut slot = slot();
        assert_eq!(slot.data_mut().as_ptr().addr() % PAGE_BYTES, 0);
        let bytes = request(2, WRITE_PREFIX + 5);
        assert_eq!(slot.receive(&file(&bytes)).expect("whole"), bytes.len());
        assert_eq!(&slot.data()[..5], [7; 5]);
        assert_eq!(slot.marks().head(), bytes[..WRITE_PREFIX]);
        let mut whole = [0; 256];
        assert_eq!(slot.request(bytes.len(), &mut whole), bytes);
        let mut short = [0; 50];
        assert_eq!(slot.request(bytes.len(), &mut short), &bytes[..50]);
    }

    #[test]
    fn an_answer_is_its_header_and_its_data() {
        let mut slot = slot();
        slot.data_mut()[..3].copy_from_slice(b"abc");
        let mut answered = file(b"");
        slot.answer(&answered, 7, 3).expect("room");
        answered.rewind().expect("a file");
        let mut answer = Vec::new();
        answered.read_to_end(&mut answer).expect("a file");
        let (header, data) = OutHeader::read_from_prefix(&answer).expect("long enough");
        assert_eq!((header.len, header.error, header.unique), (19, 0, 7));
        assert_eq!(data, b"abc");
    }

    #[test]
    fn a_slot_is_free_received_executed_or_moved() {
        let mut slot = slot();
        assert!(slot.standing().is_none());
        slot.receive(&file(&request(6, 90))).expect("whole");
        let (header, len) = slot.standing().expect("received");
        assert_eq!((header.unique, len), (6, 90));
        assert_eq!(slot.marks().settled(6), None);
        slot.marks().settle(6, 10);
        assert_eq!(slot.marks().settled(6), Some(10));
        // What was settled says nothing of the next request, however that one ends.
        slot.receive(&file(&request(8, 90))).expect("whole");
        assert_eq!(slot.marks().settled(8), None);
        slot.marks().settle(8, MOVED);
        assert_eq!(slot.marks().settled(8), Some(MOVED));
    }

    #[test]
    fn a_read_that_was_cut_short_before_it_began_leaves_a_free_slot() {
        let mut slot = slot();
        slot.receive(&file(&request(6, 90))).expect("whole");
        assert_eq!(slot.receive(&file(b"")).expect("nothing"), 0);
        assert!(slot.standing().is_none());
    }
}
