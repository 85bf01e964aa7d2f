// SPDX-License-Identifier: Apache-2.0
//! How large the areas of the session memory are, and in which order they stand.

use std::ops::Range;

use super::data::{PAGES_AT_FIRST, PAGES_MAX};
use super::slot::{DATA_BYTES_MAX, PAGE_BYTES};

/// Words of a page, at whose multiples areas begin.
pub const PAGE_WORDS: usize = PAGE_BYTES / 8;
/// Words of a node's record.
pub const NODE_WORDS: usize = 80;
/// Words of a parked request's record.
pub const PARKED_WORDS: usize = 16;
/// Interrupts that are remembered: one may be served before its request has parked, by
/// microseconds, and no more requests can be that far than there are workers.
pub const INTERRUPTS: usize = 1024;
/// Requests that were done and perhaps not answered: more than workers and deaths in a row.
pub const DONE: usize = 4096;
/// Requests that were in progress at a death.
pub const SUSPECTS: usize = 1024;

/// How much there is of what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Workers.
    pub slots: usize,
    /// Disks.
    pub nodes: usize,
    /// Requests that may wait: the kernel's `max_background` is 65,535.
    pub parked: usize,
    /// Pages there may be for the data of writes that wait, where nobody resends them.
    pub pages: usize,
}

impl Shape {
    /// For so many workers.
    #[must_use]
    pub fn of(slots: usize, resends: bool) -> Self {
        Self {
            slots,
            nodes: 4096,
            parked: 65_536,
            pages: if resends { 0 } else { PAGES_MAX },
        }
    }

    /// The areas behind the header, in words.
    pub fn areas(&self) -> [usize; 7] {
        [
            self.nodes * NODE_WORDS,
            INTERRUPTS,
            DONE * 2,
            SUSPECTS * 2,
            self.parked * PARKED_WORDS,
            self.pages,
            self.pages * PAGE_WORDS,
        ]
    }

    /// Where the slots begin, behind all areas.
    pub fn slots_at(&self) -> usize {
        let areas = self.areas().map(|words| words.next_multiple_of(PAGE_WORDS));
        (PAGE_WORDS + areas.iter().sum::<usize>()) * 8
    }

    /// Of the pages, those that are allocated from the start.
    pub fn pages_at_first(&self) -> usize {
        self.pages.min(PAGES_AT_FIRST)
    }

    /// Where the pages stand, the last area.
    pub fn pages_at(&self) -> usize {
        self.slots_at() - self.pages * PAGE_BYTES
    }

    /// What is not allocated from the start.
    pub fn hole(&self) -> Range<usize> {
        self.pages_at() + self.pages_at_first() * PAGE_BYTES..self.slots_at()
    }

    /// All of it.
    pub fn bytes(&self) -> usize {
        self.slots_at() + self.slots * (PAGE_BYTES + DATA_BYTES_MAX)
    }

    /// As the header has it.
    pub fn words(&self) -> [u64; 4] {
        [self.slots, self.nodes, self.parked, self.pages].map(|count| count as u64)
    }
}
