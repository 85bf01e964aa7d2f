// SPDX-License-Identifier: Apache-2.0
//! Which pages of the disk map a flush must write.
//!
//! A writer whose block is not local yet announces the page ([`Pages::begin`]) before it sets a bit
//! there and takes that back ([`Pages::end`]) after it. A flush takes the changed pages and marks
//! again those that have a writer announced:
//!
//! ```text
//! writer A           flush 1              writer B, same block    flush 2
//! begin (marks)
//!                    takes the mark,
//!                    sees A, marks again,
//!                    copies: bit clear
//! sets the bit
//!                                         finds the bit set,
//!                                         writes, is answered
//!                                                                 must copy the bit for B,
//! end                                                             and does: marked by flush 1
//! ```
//!
//! A mark alone, set before the bit, is lost in that race: flush 1 would have taken it, and B's
//! acknowledged, flushed write would be gone after a power loss.
//!
//! Dirty bits on disk matter only after an orderly stop, so pages where only they changed are noted
//! apart (`stale`) and written then: rewriting local blocks costs a flush nothing.

use crate::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::ops::Range;

use zerocopy::FromZeros;

use crate::error::Result;
use crate::units::{PAGE_BLOCKS, index};

/// The pages of one disk map.
#[derive(Debug)]
pub struct Pages {
    changed: Vec<AtomicU64>,
    stale: Vec<AtomicU64>,
    writers: Vec<AtomicU32>,
}

fn mark(set: &[AtomicU64], page: u64) {
    let word = &set[index(page / 64)];
    let bit = 1 << (page % 64);
    if word.load(Ordering::SeqCst) & bit == 0 {
        word.fetch_or(bit, Ordering::SeqCst);
    }
}

fn pages_of(blocks: Range<u64>) -> Range<u64> {
    blocks.start / PAGE_BLOCKS..blocks.end.div_ceil(PAGE_BLOCKS)
}

impl Pages {
    /// For a disk that grows to at most `blocks_max`; untouched memory costs nothing.
    pub fn new(blocks_max: u64) -> Result<Self> {
        let pages = index(blocks_max.div_ceil(PAGE_BLOCKS).max(1));
        let memory = |_| crate::error::Error::Invalid("no memory for a mirror's pages".to_owned());
        Ok(Self {
            changed: AtomicU64::new_vec_zeroed(pages.div_ceil(64)).map_err(memory)?,
            stale: AtomicU64::new_vec_zeroed(pages.div_ceil(64)).map_err(memory)?,
            writers: AtomicU32::new_vec_zeroed(pages).map_err(memory)?,
        })
    }

    /// Announces a writer that will set local bits in a range.
    #[inline]
    pub fn begin(&self, blocks: Range<u64>) {
        for page in pages_of(blocks) {
            self.writers[index(page)].fetch_add(1, Ordering::SeqCst);
            mark(&self.changed, page);
        }
    }

    /// It has set them, or failed.
    #[inline]
    pub fn end(&self, blocks: Range<u64>) {
        for page in pages_of(blocks) {
            self.writers[index(page)].fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Notes that dirty bits of a range changed.
    #[inline]
    pub fn touch(&self, blocks: Range<u64>) {
        for page in pages_of(blocks) {
            mark(&self.stale, page);
        }
    }

    /// Marks every page of a disk: a successor knows of none that is written.
    pub fn mark_all(&self, blocks: u64) {
        for page in pages_of(0..blocks) {
            mark(&self.changed, page);
        }
    }

    /// Whether a flush would write anything.
    pub fn any_changed(&self) -> bool {
        self.changed
            .iter()
            .any(|word| word.load(Ordering::SeqCst) != 0)
    }

    /// Takes the pages that a flush must copy now; `stale` ones too at an orderly stop.
    pub fn take(&self, stale: bool) -> Vec<u64> {
        let mut pages = Vec::new();
        for (i, word) in self.changed.iter().enumerate() {
            let mut bits = 0;
            if word.load(Ordering::SeqCst) != 0 {
                bits |= word.swap(0, Ordering::SeqCst);
            }
            if stale {
                bits |= self.stale[i].swap(0, Ordering::SeqCst);
            }
            while bits != 0 {
                let page = i as u64 * 64 + u64::from(bits.trailing_zeros());
                bits &= bits - 1;
                if self.writers[index(page)].load(Ordering::SeqCst) > 0 {
                    mark(&self.changed, page);
                }
                pages.push(page);
            }
        }
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_with_a_writer_stays_changed() {
        let pages = Pages::new(PAGE_BLOCKS * 100).unwrap();
        pages.begin(PAGE_BLOCKS * 70..PAGE_BLOCKS * 70 + 1);
        assert_eq!(pages.take(false), [70]);
        assert_eq!(pages.take(false), [70]);
        pages.end(PAGE_BLOCKS * 70..PAGE_BLOCKS * 70 + 1);
        assert_eq!(pages.take(false), [70]);
        assert!(pages.take(false).is_empty());
    }

    #[test]
    fn dirty_bits_alone_wait_for_the_orderly_stop() {
        let pages = Pages::new(PAGE_BLOCKS * 2).unwrap();
        pages.touch(5..9);
        assert!(pages.take(false).is_empty());
        assert_eq!(pages.take(true), [0]);
    }
}

#[cfg(all(test, feature = "shuttle"))]
mod models {
    use super::*;
    use crate::sync::{Arc, explore, thread};

    /// The race that the module's header tells: `bit` is the block's in the live map, `copy` what
    /// is on disk.
    #[test]
    fn models_a_flush_misses_no_bit_that_was_set_before_it() {
        explore(|| {
            let pages = Arc::new(Pages::new(PAGE_BLOCKS).unwrap());
            let bit = Arc::new(AtomicU64::new(0));
            let copy = Arc::new(AtomicU64::new(0));
            let write = {
                let (pages, bit) = (pages.clone(), bit.clone());
                move || {
                    if bit.load(Ordering::SeqCst) == 0 {
                        pages.begin(0..1);
                        bit.store(1, Ordering::SeqCst);
                        pages.end(0..1);
                    }
                }
            };
            // One at a time, as the flusher sees to.
            let flushing = Arc::new(crate::sync::Mutex::new(()));
            let flush = {
                let (bit, copy) = (bit.clone(), copy.clone());
                move || {
                    let _one = flushing.lock().unwrap();
                    for _ in pages.take(false) {
                        copy.store(bit.load(Ordering::SeqCst), Ordering::SeqCst);
                    }
                }
            };
            let first = thread::spawn(write.clone());
            let other = thread::spawn(flush.clone());
            write();
            flush();
            assert_eq!(copy.load(Ordering::SeqCst), 1, "flushed, and not on disk");
            first.join().unwrap();
            other.join().unwrap();
        });
    }
}
