// SPDX-License-Identifier: Apache-2.0
//! What parked writes still have to write, in pages of the session memory, where nobody resends it.
//!
//! The pages of one write are a chain: its record names the first, `next` each one's follower, plus
//! one; 0 ends it. A chain is whole before a record names it, and no page is another's before that
//! record is free.
//!
//! # Room
//!
//! 64 MiB are there from the start. More, up to 1 GiB in all, is taken from the host when a write
//! needs it and given back when nothing is kept any more: a disk that is held for a COMMIT parks all
//! that its guests write, and a queue of theirs is easily more than 64 MiB. To take no more requests
//! instead would make every disk of the host wait for the store (rule 9).
//!
//! # What a predecessor left
//!
//! A chain ends at the first page that is not one or is another chain's, whatever the words say, and
//! what is too short for its write is not kept.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::layout::PAGE_WORDS;
use super::memory::Memory;
use super::slot::DATA_BYTES_MAX;
use crate::sys::file::{preallocate, punch};
use crate::sys::shared::{PAGE_BYTES, Words};

/// Pages that are there from the start.
pub const PAGES_AT_FIRST: usize = 64 << 20 >> 12;
/// Pages that may be there.
pub const PAGES_MAX: usize = 1 << 30 >> 12;
/// Pages that are taken at once, if no more are needed.
const STEP: usize = 16 << 20 >> 12;

/// The part of a memory that is taken when it is needed.
#[derive(Debug)]
pub struct Room {
    file: File,
    offset: usize,
    pages: Words,
}

impl Room {
    /// The pages of `file` from `offset` on.
    #[must_use]
    pub fn new(file: File, offset: usize, pages: Words) -> Self {
        Self {
            file,
            offset,
            pages,
        }
    }

    fn bytes(&self, pages: &Range<usize>) -> (u64, u64) {
        let offset = self.offset + pages.start * PAGE_BYTES;
        (offset as u64, (pages.len() * PAGE_BYTES) as u64)
    }

    fn take(&self, pages: &Range<usize>) -> io::Result<()> {
        let (offset, len) = self.bytes(pages);
        preallocate(&self.file, offset, len)?;
        self.pages
            .make_present(pages.start * PAGE_WORDS..pages.end * PAGE_WORDS);
        Ok(())
    }

    fn give_back(&self, pages: &Range<usize>) {
        let (offset, len) = self.bytes(pages);
        // Else it stays taken.
        let _ = punch(&self.file, offset, len);
    }
}

/// The pages of one session, under the lock of `parked`.
#[derive(Debug)]
pub struct Data {
    next: Words,
    room: Arc<Room>,
    free: Vec<usize>,
    used: Vec<bool>,
    kept: usize,
    /// Pages that are there: those from the start, and what has been taken.
    there: usize,
}

impl Data {
    /// Those of a memory; the chains that begin at `firsts` stay.
    #[must_use]
    pub fn of(memory: &Memory, firsts: &[u64]) -> Self {
        let mut data = Self {
            next: memory.next.clone(),
            room: memory.room.clone(),
            free: Vec::new(),
            used: vec![false; memory.next.len()],
            kept: 0,
            there: 0,
        };
        for &first in firsts {
            let mut page = first;
            while let Some(this) = data.page(page).filter(|&this| !data.used[this]) {
                data.used[this] = true;
                data.kept += 1;
                page = data.next.get(this);
            }
        }
        let (first, all) = (data.at_first(), data.used.len());
        let highest = data.used.iter().rposition(|&used| used);
        let there = highest.map_or(0, |page| page + 1).max(first);
        data.there = first + (there - first).next_multiple_of(STEP).min(all - first);
        let taken = data.there == first || data.room.take(&(first..data.there)).is_ok();
        let usable = if taken { data.there } else { first };
        data.free = (0..usable).rev().filter(|&page| !data.used[page]).collect();
        data
    }

    fn at_first(&self) -> usize {
        PAGES_AT_FIRST.min(self.used.len())
    }

    fn page(&self, page: u64) -> Option<usize> {
        let page = usize::try_from(page).ok()?.checked_sub(1)?;
        (page < self.used.len()).then_some(page)
    }

    /// Copies bytes to free pages; answers the first, plus one.
    pub fn keep(&mut self, bytes: &[u8]) -> Option<u64> {
        let count = bytes.len().div_ceil(PAGE_BYTES);
        if self.free.len() < count {
            self.grow(count - self.free.len());
        }
        if self.free.len() < count {
            return None;
        }
        let mut following = 0;
        for part in bytes.chunks(PAGE_BYTES).rev() {
            let page = self.free.pop()?;
            self.room.pages.put(page * PAGE_WORDS, part);
            self.next.set(page, following);
            self.used[page] = true;
            self.kept += 1;
            following = page as u64 + 1;
        }
        Some(following)
    }

    fn grow(&mut self, lacking: usize) {
        let end = self.used.len().min(self.there + lacking.max(STEP));
        let more = self.there..end;
        if !more.is_empty() && self.room.take(&more).is_ok() {
            self.there = end;
            self.free.extend(more.rev());
        }
    }

    /// The `len` bytes that a chain holds; `None`: it does not hold so many.
    #[must_use]
    pub fn read(&self, first: u64, len: usize) -> Option<Vec<u8>> {
        if len > DATA_BYTES_MAX {
            return None;
        }
        let mut bytes = vec![0; len];
        let mut page = first;
        for part in bytes.chunks_mut(PAGE_BYTES) {
            let this = self.page(page).filter(|&this| self.used[this])?;
            self.room.pages.copy(this * PAGE_WORDS, part);
            page = self.next.get(this);
        }
        Some(bytes)
    }

    /// Frees a chain; its record is free already.
    pub fn give_back(&mut self, first: u64) {
        let mut page = first;
        while let Some(this) = self.page(page).filter(|&this| self.used[this]) {
            page = self.next.get(this);
            self.used[this] = false;
            self.kept -= 1;
            self.free.push(this);
        }
        let first = self.at_first();
        if self.kept == 0 && self.there > first {
            self.room.give_back(&(first..self.there));
            self.there = first;
            self.free = (0..first).rev().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::super::layout::Shape;
    use super::super::memory::tests::SMALL;
    use super::*;

    const LARGE: Shape = Shape {
        pages: PAGES_AT_FIRST + STEP + 3,
        ..SMALL
    };

    fn memory(shape: Shape) -> Memory {
        Memory::create(shape).expect("room").0
    }

    #[test]
    fn what_is_kept_is_read_and_its_room_is_the_next_ones() {
        let memory = memory(SMALL);
        let mut data = Data::of(&memory, &[]);
        let bytes: Vec<u8> = (0..5000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let first = data.keep(&bytes).expect("room");
        assert_eq!(data.read(first, 5000).expect("kept"), bytes);
        assert_eq!(data.read(first, 8193), None);
        let second = data.keep(&bytes).expect("room");
        assert_eq!(data.keep(&[1]), None);
        data.give_back(first);
        assert!(data.keep(&bytes).is_some());
        assert_eq!(data.read(second, 5000).expect("kept"), bytes);
        // A successor finds the same.
        let mut data = Data::of(&memory, &[second]);
        assert_eq!(data.read(second, 5000).expect("kept"), bytes);
        assert!(data.keep(&bytes).is_some() && data.keep(&[1]).is_none());
    }

    #[test]
    fn room_is_taken_when_it_is_needed_and_given_back_when_it_is_not() {
        let memory = memory(LARGE);
        let taken = || memory.file().metadata().expect("a memory").blocks() * 512;
        let before = taken();
        let mut data = Data::of(&memory, &[]);
        let bytes = vec![7; PAGE_BYTES * 256];
        let mut firsts: Vec<u64> = Vec::new();
        while let Some(first) = data.keep(&bytes) {
            firsts.push(first);
        }
        assert_eq!(firsts.len(), LARGE.pages / 256);
        assert!(taken() > before + (STEP * PAGE_BYTES) as u64 - 1);
        // A successor keeps what is there, and takes nothing of it for free.
        let mut data = Data::of(&memory, &firsts);
        assert!(data.keep(&vec![1; 4 * PAGE_BYTES]).is_none());
        for &first in &firsts {
            assert_eq!(data.read(first, bytes.len()).expect("kept"), bytes);
            data.give_back(first);
        }
        assert_eq!(taken(), before);
        assert!(data.keep(&bytes).is_some());
    }

    #[test]
    fn no_chain_goes_on_for_ever_or_into_another() {
        let memory = memory(SMALL);
        let mut data = Data::of(&memory, &[]);
        let first = data.keep(&[1; 2 * PAGE_BYTES]).expect("room");
        let second = data.keep(&[2; PAGE_BYTES]).expect("room");
        let at = |page: u64| usize::try_from(page - 1).expect("small");
        // The second goes on with the first, which goes on with itself.
        memory.next.set(at(second), first);
        let tail = memory.next.get(at(first));
        memory.next.set(at(tail), first);
        let mut data = Data::of(&memory, &[first, second, u64::MAX, 0]);
        data.give_back(first);
        data.give_back(second);
        let mut all: Vec<_> = data.free.clone();
        all.sort_unstable();
        assert_eq!(all, [0, 1, 2, 3]);
    }
}
