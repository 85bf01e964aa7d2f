// SPDX-License-Identifier: Apache-2.0
//! Three rings in the session memory: interrupts, what was done, what may be poison.
//!
//! A ring forgets its oldest entry; no entry is worth more than the moments it bridges, and uniques
//! are never used again, so one too many harms nobody. A pair's value is stored before its name.
//!
//! * *Interrupts* may be served before the request that they end has parked.
//! * *Done*: requests that the dead agent executed, and perhaps did not answer, where the kernel
//!   resends them. The slots that knew it are needed for others.
//! * *Suspects*: requests that were in progress at a death, and at how many. A READ, WRITE or
//!   FALLOCATE that was so at [`DEATHS`] is ended with EIO, or it would kill every successor.

use std::sync::atomic::Ordering;

use super::abi::UNIQUE_RESEND;
use super::memory::{Memory, WORD_RINGS};
use crate::disk::Ticket;
use crate::sys::shared::Words;

/// A request that was in progress at so many deaths kills no further agent.
pub const DEATHS: u64 = 3;

/// How a request ended that has not been answered: a WRITE's length or 0, a negative errno, or
/// one of the two below.
pub type Settled = i64;
/// It is a parked request now.
pub const MOVED: Settled = i64::MIN;
/// A WRITE whose data is written; the flush that it asks for is not done.
pub const FLUSH_OWED: Settled = i64::MIN + 1;

/// As a word of the memory holds it.
#[inline]
#[must_use]
pub fn pack(settled: Settled) -> u64 {
    u64::from_ne_bytes(settled.to_ne_bytes())
}

/// From a word of the memory.
#[inline]
#[must_use]
pub fn unpack(word: u64) -> Settled {
    i64::from_ne_bytes(word.to_ne_bytes())
}

/// The rings.
#[derive(Debug)]
pub struct Ledger {
    header: Words,
    interrupts: Words,
    done: Words,
    suspects: Words,
}

impl Ledger {
    /// Those of a memory.
    #[must_use]
    pub fn of(memory: &Memory) -> Self {
        Self {
            header: memory.header.clone(),
            interrupts: memory.interrupts.clone(),
            done: memory.done.clone(),
            suspects: memory.suspects.clone(),
        }
    }

    fn next(&self, ring: usize, entries: usize) -> usize {
        let count = self.header.word(WORD_RINGS + ring);
        let at = count.fetch_add(1, Ordering::SeqCst) % entries as u64;
        usize::try_from(at).unwrap_or(0)
    }

    /// Remembers an INTERRUPT.
    pub fn interrupt(&self, ticket: Ticket) {
        let at = self.next(0, self.interrupts.len());
        self.interrupts.set(at, ticket);
    }

    /// Whether one came for this request.
    #[must_use]
    pub fn is_interrupted(&self, ticket: Ticket) -> bool {
        (0..self.interrupts.len()).any(|at| self.interrupts.get(at) == ticket)
    }

    /// Remembers how a request ended.
    pub fn settle(&self, ticket: Ticket, settled: Settled) {
        let at = self.next(1, self.done.len() / 2) * 2;
        self.done.set(at, 0);
        self.done.set(at + 1, pack(settled));
        self.done.set(at, ticket & !UNIQUE_RESEND);
    }

    /// How a request ended, if it is remembered.
    #[must_use]
    pub fn settled(&self, ticket: Ticket) -> Option<Settled> {
        let at = Self::find(&self.done, ticket)?;
        Some(unpack(self.done.get(at + 1)))
    }

    /// Notes that a request was in progress at one more death; answers at how many.
    pub fn suspect(&self, ticket: Ticket) -> u64 {
        let (at, before) = match Self::find(&self.suspects, ticket) {
            Some(at) => (at, self.suspects.get(at + 1)),
            None => (self.next(2, self.suspects.len() / 2) * 2, 0),
        };
        self.suspects.set(at + 1, before + 1);
        self.suspects.set(at, ticket & !UNIQUE_RESEND);
        before + 1
    }

    /// Whether a request was in progress at too many deaths.
    #[must_use]
    pub fn is_poison(&self, ticket: Ticket) -> bool {
        Self::find(&self.suspects, ticket).is_some_and(|at| self.suspects.get(at + 1) >= DEATHS)
    }

    fn find(pairs: &Words, ticket: Ticket) -> Option<usize> {
        let name = ticket & !UNIQUE_RESEND;
        (0..pairs.len())
            .step_by(2)
            .find(|&at| pairs.get(at) == name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::{DONE, INTERRUPTS};
    use super::super::memory::tests::SMALL;
    use super::*;

    fn ledger() -> Ledger {
        Ledger::of(&Memory::create(SMALL).expect("room").0)
    }

    #[test]
    fn a_resent_request_is_known_by_its_first_name() {
        let ledger = ledger();
        ledger.settle(8, -5);
        ledger.settle(10, 4096);
        assert_eq!(ledger.settled(8 | UNIQUE_RESEND), Some(-5));
        assert_eq!(ledger.settled(10), Some(4096));
        assert_eq!(ledger.settled(12), None);
    }

    #[test]
    fn the_oldest_are_forgotten_and_no_others() {
        let ledger = ledger();
        for ticket in 1..=INTERRUPTS as u64 + 1 {
            ledger.interrupt(ticket);
        }
        assert!(!ledger.is_interrupted(1));
        assert!((2..=INTERRUPTS as u64 + 1).all(|ticket| ledger.is_interrupted(ticket)));
        for ticket in 1..=DONE as u64 + 1 {
            ledger.settle(ticket, 0);
        }
        assert_eq!(ledger.settled(1), None);
        assert_eq!(ledger.settled(2), Some(0));
    }

    #[test]
    fn the_third_death_makes_it_poison() {
        let ledger = ledger();
        for deaths in 1..=DEATHS {
            assert!(!ledger.is_poison(6));
            assert_eq!(ledger.suspect(6 | UNIQUE_RESEND), deaths);
        }
        assert!(ledger.is_poison(6) && ledger.is_poison(6 | UNIQUE_RESEND));
        assert!(!ledger.is_poison(8));
    }
}
