// SPDX-License-Identifier: Apache-2.0
//! Claims on ranges of a disk: many who change whole blocks at once, or one who must be alone.
//!
//! # The contract of concurrency
//!
//! *Reads* pass no gate. A block that is local stays local, so what a read finds in the delta is
//! what a raw disk would have shown: an old or a new value of a write under way.
//!
//! *Shared*: writes and discards of whole blocks. Two that overlap end in either order, as on a raw
//! disk: both set the dirty bits first and the local bits last, and no bit is ever taken back.
//!
//! *Alone*: a write of part of a block, the first change of a block that a COMMIT protects, and the
//! swap of a freeze. Why:
//!
//! ```text
//! A writes 512 bytes of block b      B writes the whole of b
//! reads b from the base
//!                                    dirty, data, local; answered
//! writes b: base, with A's 512 bytes
//!                                    its acknowledged bytes are gone
//! ```
//!
//! The same with B a discard, or with A setting the block aside for a COMMIT.
//!
//! A claim covers local input and output only: who needs a chunk fetched, or room on a full disk,
//! waits *before* it claims and looks again afterwards. So no claim waits for the network, and a
//! request that met a closed gate is parked no longer than a disk takes.
//!
//! # How
//!
//! The disk's mebibytes are dealt to 64 gates. A gate is one word: closed bit and number of those inside.
//! Passing it is one atomic add, leaving another: no lock unless it is closed. False neighbours wait
//! for one another a disk's moment, never longer (above).

use crate::sync::atomic::{AtomicU32, Ordering};
use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::collections::VecDeque;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::units::lock;

const GATES: u64 = 64;
const REGION_BLOCKS: u64 = 256;
const CLOSED: u32 = 1 << 31;

/// The gates of one mirror; `J` is what waits at them.
#[derive(Debug)]
pub struct Gates<J> {
    words: Vec<Word>,
    inner: Mutex<Inner<J>>,
    changed: Condvar,
}

/// A cache line of its own.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Word(AtomicU32);

#[derive(Debug)]
struct Inner<J> {
    closed: u64,
    /// When somebody last left a closed gate, or opened one.
    left: Option<Instant>,
    waiting: VecDeque<(u64, J)>,
}

/// The gates that a range of blocks passes, as bits.
#[inline]
pub fn mask(blocks: &Range<u64>) -> u64 {
    if blocks.is_empty() {
        return 0;
    }
    let (first, last) = (
        blocks.start / REGION_BLOCKS,
        (blocks.end - 1) / REGION_BLOCKS,
    );
    if last - first >= GATES - 1 {
        return u64::MAX;
    }
    let count = last - first + 1;
    (u64::MAX >> (GATES - count)).rotate_left(u32::try_from(first % GATES).unwrap_or(0))
}

/// The parts of a range of blocks that pass one gate each.
pub fn pieces(blocks: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    let Range { mut start, end } = blocks.clone();
    std::iter::from_fn(move || {
        let from = start;
        start = end.min((from / REGION_BLOCKS + 1) * REGION_BLOCKS);
        (from < end).then_some(from..start)
    })
}

fn gates(mask: u64) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        let gate = left.trailing_zeros() as usize;
        left &= left.wrapping_sub(1);
        (gate < 64).then_some(gate)
    })
}

impl<J> Default for Gates<J> {
    fn default() -> Self {
        Self {
            words: (0..GATES).map(|_| Word::default()).collect(),
            inner: Mutex::new(Inner {
                closed: 0,
                left: None,
                waiting: VecDeque::new(),
            }),
            changed: Condvar::new(),
        }
    }
}

/// Inside some gates, with others.
#[derive(Debug)]
pub struct Shared<'a, J> {
    gates: &'a Gates<J>,
    mask: u64,
}

impl<J> Drop for Shared<'_, J> {
    #[inline]
    fn drop(&mut self) {
        self.gates.leave(self.mask);
    }
}

impl<J> Gates<J> {
    /// Passes the gates; `None` if one is closed.
    #[inline]
    pub fn pass(&self, mask: u64) -> Option<Shared<'_, J>> {
        let mut passed = 0;
        for gate in gates(mask) {
            passed |= 1 << gate;
            if self.words[gate].0.fetch_add(1, Ordering::SeqCst) & CLOSED != 0 {
                self.leave(passed);
                return None;
            }
        }
        Some(Shared { gates: self, mask })
    }

    #[inline]
    fn leave(&self, mask: u64) {
        let mut last = false;
        for gate in gates(mask) {
            last |= self.words[gate].0.fetch_sub(1, Ordering::SeqCst) == CLOSED | 1;
        }
        if last {
            lock(&self.inner).left = Some(Instant::now());
            self.changed.notify_all();
        }
    }

    /// Parks at gates that are closed; gives the waiter back if they are open by now.
    pub fn park(&self, mask: u64, waiter: J) -> Option<J> {
        let mut inner = lock(&self.inner);
        if inner.closed & mask == 0 {
            return Some(waiter);
        }
        inner.waiting.push_back((mask, waiter));
        None
    }

    /// Closes gates that nobody else has closed, and waits until those inside have left.
    pub fn try_close(&self, mask: u64) -> bool {
        let mut inner = lock(&self.inner);
        if inner.closed & mask != 0 {
            return false;
        }
        self.shut(&mut inner, mask);
        while !self.are_empty(mask) {
            inner = self.wait(inner);
        }
        true
    }

    /// Closes all, waiting for other closers too: for threads that may, one at a time. Answers when
    /// the last of those inside had left, if it had to wait for any.
    ///
    /// # Errors
    /// Not all were empty in time: all are as they were, and these may try again.
    pub fn close_all(&self, until: Option<Instant>) -> Result<Option<Instant>, Vec<J>> {
        let mut inner = lock(&self.inner);
        inner.left = None;
        let mut mine = 0;
        // Hold what is free, so that a stream of claims cannot starve a freeze. Nobody else waits
        // for a gate while it holds another, and the caller sees to it that only one does this.
        loop {
            let free = !inner.closed;
            if free != 0 {
                self.shut(&mut inner, free);
                mine |= free;
            }
            if mine == u64::MAX && self.are_empty(mine) {
                return Ok(inner.left);
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            inner = match left {
                Some(Duration::ZERO) => break,
                Some(left) => {
                    let waited = self.changed.wait_timeout(inner, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.wait(inner),
            };
        }
        drop(inner);
        Err(self.open(mine))
    }

    /// Locked, for tests of who never asks for it.
    #[cfg(all(test, not(feature = "shuttle")))]
    pub(crate) fn locked(&self) -> impl Sized + '_ {
        lock(&self.inner)
    }

    fn shut(&self, inner: &mut Inner<J>, mask: u64) {
        inner.closed |= mask;
        for gate in gates(mask) {
            self.words[gate].0.fetch_or(CLOSED, Ordering::SeqCst);
        }
    }

    fn are_empty(&self, mask: u64) -> bool {
        gates(mask).all(|gate| self.words[gate].0.load(Ordering::SeqCst) == CLOSED)
    }

    fn wait<'a>(&self, inner: MutexGuard<'a, Inner<J>>) -> MutexGuard<'a, Inner<J>> {
        let waited = self.changed.wait(inner);
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens gates that the caller closed; answers who may try again.
    pub fn open(&self, mask: u64) -> Vec<J> {
        let mut inner = lock(&self.inner);
        inner.closed &= !mask;
        inner.left = Some(Instant::now());
        for gate in gates(mask) {
            self.words[gate].0.fetch_and(!CLOSED, Ordering::SeqCst);
        }
        self.changed.notify_all();
        let closed = inner.closed;
        let mut woken = Vec::new();
        let mut still = VecDeque::new();
        for (mask, waiter) in inner.waiting.drain(..) {
            if mask & closed == 0 {
                woken.push(waiter);
            } else {
                still.push_back((mask, waiter));
            }
        }
        inner.waiting = still;
        woken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_range_passes_the_gates_of_its_mebibytes() {
        assert_eq!(mask(&(0..1)), 1);
        assert_eq!(mask(&(255..257)), 3);
        assert_eq!(mask(&(63 * 256..65 * 256)), 1 << 63 | 1);
        assert_eq!(mask(&(0..63 * 256)), u64::MAX >> 1);
        assert_eq!(mask(&(5..64 * 256)), u64::MAX);
        assert_eq!(mask(&(5..5)), 0);
    }

    #[test]
    fn pieces_are_the_range_and_pass_one_gate_each() {
        for range in [0..0, 7..8, 0..256, 3..256, 255..257, 100..16_500] {
            let parts: Vec<_> = pieces(&range).collect();
            assert!(parts.iter().all(|part| mask(part).is_power_of_two()));
            assert_eq!(
                parts.into_iter().flatten().collect::<Vec<_>>(),
                range.collect::<Vec<_>>()
            );
        }
    }

    #[test]
    fn who_meets_a_closed_gate_is_parked_and_woken() {
        let gates = Gates::<u8>::default();
        assert!(gates.try_close(3));
        assert!(gates.pass(2).is_none());
        assert!(gates.pass(4).is_some());
        assert!(!gates.try_close(6));
        assert_eq!(gates.park(2, 7), None);
        assert_eq!(gates.park(4, 8), Some(8));
        assert_eq!(gates.open(3), [7]);
        assert!(gates.pass(3).is_some());
    }

    #[test]
    fn who_closes_all_gives_up_in_time_and_leaves_the_gates_as_they_were() {
        let gates = Gates::<u8>::default();
        let soon = || Some(Instant::now() + Duration::from_millis(20));
        let inside = gates.pass(1).unwrap();
        assert_eq!(gates.close_all(soon()), Err(vec![]));
        drop(gates.pass(3).unwrap());
        assert!(gates.try_close(2));
        drop(inside);
        assert_eq!(gates.close_all(soon()), Err(vec![]));
        assert!(gates.pass(2).is_none(), "that one was somebody else's");
        assert!(gates.open(2).is_empty());
        assert_eq!(gates.close_all(soon()), Ok(None), "nobody was inside");
        assert!(gates.pass(1).is_none());
    }

    #[test]
    fn alone_means_alone() {
        let gates = Arc::new(Gates::<()>::default());
        let alone = Arc::new(AtomicU32::new(0));
        let threads: Vec<_> = (0..4)
            .map(|n| {
                let (gates, alone) = (gates.clone(), alone.clone());
                std::thread::spawn(move || {
                    for round in 0..2000_u32 {
                        if n == 0 && round % 100 == 0 {
                            gates.close_all(None).unwrap();
                            assert_eq!(alone.swap(9, Ordering::SeqCst), 0);
                            alone.store(0, Ordering::SeqCst);
                            gates.open(u64::MAX);
                        } else if n < 2 {
                            if gates.try_close(5) {
                                assert_eq!(alone.swap(9, Ordering::SeqCst), 0);
                                alone.store(0, Ordering::SeqCst);
                                gates.open(5);
                            }
                        } else if let Some(_shared) = gates.pass(1) {
                            assert_eq!(alone.load(Ordering::SeqCst), 0);
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
    }
}

#[cfg(all(test, feature = "shuttle"))]
mod models {
    use super::*;
    use crate::sync::{Arc, explore, thread};

    /// Who was woken, by number.
    #[derive(Default)]
    struct Woken(Mutex<Vec<usize>>, Condvar);

    impl Woken {
        fn wake(&self, who: Vec<usize>) {
            lock(&self.0).extend(who);
            self.1.notify_all();
        }

        fn wait(&self, who: usize) {
            let mut woken = lock(&self.0);
            while !woken.contains(&who) {
                woken = self.1.wait(woken).unwrap_or_else(PoisonError::into_inner);
            }
            woken.retain(|other| *other != who);
        }
    }

    /// Writers of whole blocks, writers of parts, and a freeze; nobody sleeps for ever.
    #[test]
    fn models_alone_means_alone_and_everyone_parked_is_woken() {
        explore(|| {
            let gates = Arc::new(Gates::<usize>::default());
            let woken = Arc::new(Woken::default());
            let inside = Arc::new(AtomicU32::new(0));
            let threads: Vec<_> = (0..3)
                .map(|who| {
                    let (gates, woken, inside) = (gates.clone(), woken.clone(), inside.clone());
                    thread::spawn(move || {
                        let mut left = 2;
                        while left > 0 {
                            let mask = if who == 0 { 1 } else { 3 };
                            let done = if who == 2 {
                                let closed = gates.try_close(mask);
                                if closed {
                                    assert_eq!(inside.swap(100, Ordering::SeqCst), 0);
                                    assert_eq!(inside.swap(0, Ordering::SeqCst), 100);
                                    woken.wake(gates.open(mask));
                                }
                                closed
                            } else if let Some(_shared) = gates.pass(mask) {
                                assert!(inside.fetch_add(1, Ordering::SeqCst) < 100);
                                inside.fetch_sub(1, Ordering::SeqCst);
                                true
                            } else {
                                false
                            };
                            if done {
                                left -= 1;
                            } else if gates.park(mask, who).is_none() {
                                woken.wait(who);
                            }
                        }
                    })
                })
                .collect();
            assert!(gates.close_all(None).is_ok());
            assert_eq!(inside.load(Ordering::SeqCst), 0);
            woken.wake(gates.open(u64::MAX));
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }
}
