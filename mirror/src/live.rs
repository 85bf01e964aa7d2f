// SPDX-License-Identifier: Apache-2.0
//! The live map: the blocks' bits in memory that outlives the agent (`FORMAT.rst` has every byte).
//!
//! # Invariants
//!
//! 1. A local bit is set after its block's data is in the delta and never cleared.
//! 2. A dirty bit is set before its block's data is written.
//! 3. `generation` names the open dirty bitmap, its low bit; the other one is frozen during a
//!    COMMIT and all clear otherwise. It changes only while the mirror's gates are closed.
//! 4. Saved and base marks are set while the block's gate is closed, before the first write that
//!    follows a freeze, and cleared when nothing is protected.
//! 5. Every word that is reachable has its memory: a full tmpfs fails attach or growth, not a store.
//!
//! # Crash
//!
//! The agent's death loses nothing: plain stores, in the order above, stay where they are. The next
//! agent believes them if boot, attachment and nonce match (the nonce stands in the disk map and
//! names the one live map that was made for it), and ORs the frozen bits into the dirty ones. Any
//! mismatch, or a map half made (its magic is written last): it is made anew from the disk map.
//!
//! # Threads
//!
//! Every bit is an atomic; readers take no lock.

use crate::sync::atomic::{AtomicU64, Ordering};
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::faults::{self, Call};
use crate::sys::file::{self, Create};
use crate::sys::mem::SharedWords;
use crate::units::{PAGE_BLOCKS, PAGE_WORDS, index};

const MAGIC: u64 = u64::from_le_bytes(*b"LZIMLIVE");
const FORMAT: u64 = 1;
const HEADER_BYTES: u64 = 4096;
const HEADER_WORDS: u64 = HEADER_BYTES / 8;
const BITMAPS: u64 = 5;
const SEGMENT_WORDS: u64 = BITMAPS * PAGE_WORDS;
// Words of the header.
const WORD_MAGIC: usize = 0;
const WORD_FORMAT: usize = 1;
const WORD_GENERATION: usize = 2;
const WORD_FAILED: usize = 3;
const WORD_BOOT: usize = 4;
const WORD_NONCE: usize = 6;
const WORD_ATTACH: usize = 8;
const WORD_SESSION: usize = 12;

/// One of the bitmaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Bits {
    /// The delta holds the block.
    Local = 0,
    /// Changed since the parent, in even generations.
    Even = 1,
    /// The same in odd ones.
    Odd = 2,
    /// The block at the freeze lies in the saved copies.
    Saved = 3,
    /// The block at the freeze is the attach base's.
    Base = 4,
}

impl Bits {
    /// For the crash table: which of the two dirty bitmaps it is says nothing there.
    fn name(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Even | Self::Odd => "dirty",
            Self::Saved => "saved",
            Self::Base => "base",
        }
    }
}

/// What a live map is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The kernel's boot id.
    pub boot: [u8; 16],
    /// Drawn when the live map is made, and noted in the disk map.
    pub nonce: [u8; 16],
    /// The digest of the attachment's id.
    pub attach: [u8; 32],
    /// The digest of the FUSE session's id.
    pub session: [u8; 32],
}

/// The bits of one mirror.
#[derive(Debug)]
pub struct LiveMap {
    words: SharedWords,
    file: File,
    path: PathBuf,
}

fn pages_of(blocks: u64) -> u64 {
    blocks.div_ceil(PAGE_BLOCKS).max(1)
}

impl LiveMap {
    /// Makes a map of zeros that nobody believes before [`LiveMap::believe`].
    pub fn create(path: &Path, blocks: u64, blocks_max: u64) -> Result<Self> {
        let call = || std::fs::remove_file(path);
        match faults::call(path, "remove", Call::Other, call) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::io("replace", path, error));
            }
            _ => {}
        }
        let file =
            file::open(path, Create::New, false).map_err(|e| Error::io("create", path, e))?;
        Self::map(path, file, blocks, blocks_max)
    }

    /// Opens a map if it was made for `identity`, its session aside, and covers `blocks`.
    pub fn open(
        path: &Path,
        identity: &Identity,
        blocks: u64,
        blocks_max: u64,
    ) -> Result<Option<Self>> {
        let file = match file::open(path, Create::Never, false) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io("open", path, error)),
        };
        let mut header = [0; index(HEADER_BYTES)];
        if file.read_exact_at(&mut header, 0).is_err() {
            return Ok(None);
        }
        let word = |at: usize| &header[at * 8..at * 8 + 8];
        let believed = word(WORD_MAGIC) == MAGIC.to_le_bytes()
            && word(WORD_FORMAT) == FORMAT.to_le_bytes()
            && header[WORD_BOOT * 8..][..16] == identity.boot
            && header[WORD_NONCE * 8..][..16] == identity.nonce
            && header[WORD_ATTACH * 8..][..32] == identity.attach;
        let len = HEADER_BYTES + pages_of(blocks) * SEGMENT_WORDS * 8;
        if !believed || file.metadata().map_or(0, |meta| meta.len()) < len {
            return Ok(None);
        }
        Self::map(path, file, blocks, blocks_max).map(Some)
    }

    fn map(path: &Path, file: File, blocks: u64, blocks_max: u64) -> Result<Self> {
        let words = HEADER_WORDS + pages_of(blocks_max.max(blocks)) * SEGMENT_WORDS;
        let words =
            SharedWords::reserve(&file, index(words)).map_err(|e| Error::io("map", path, e))?;
        let map = Self {
            words,
            file,
            path: path.to_owned(),
        };
        map.extend(blocks)?;
        Ok(map)
    }

    /// Makes the bits of `blocks` blocks reachable; new ones are zero.
    pub fn extend(&self, blocks: u64) -> Result<()> {
        let words = HEADER_WORDS + pages_of(blocks) * SEGMENT_WORDS;
        let grow = || {
            faults::call(&self.path, "extend", Call::Other, || {
                file::preallocate(&self.file, 0, words * 8)
            })?;
            self.words.expose(index(words))
        };
        grow().map_err(|e| Error::io("extend", &self.path, e))
    }

    /// Writes the header, its magic last: from now on the map is the truth of this boot.
    pub fn believe(&self, identity: &Identity) {
        let put = |at: usize, bytes: &[u8]| {
            for (i, eight) in bytes.chunks_exact(8).enumerate() {
                let mut word = [0; 8];
                word.copy_from_slice(eight);
                self.words
                    .word(at + i)
                    .store(u64::from_le_bytes(word), Ordering::SeqCst);
            }
        };
        put(WORD_FORMAT, &FORMAT.to_le_bytes());
        put(WORD_BOOT, &identity.boot);
        put(WORD_NONCE, &identity.nonce);
        put(WORD_ATTACH, &identity.attach);
        put(WORD_SESSION, &identity.session);
        faults::step(&self.path, "named");
        put(WORD_MAGIC, &MAGIC.to_le_bytes());
        faults::step(&self.path, "believed");
    }

    /// The errno of a sync that failed, for successors too; 0: none has.
    pub fn failed(&self) -> i32 {
        let errno = self.words.word(WORD_FAILED).load(Ordering::SeqCst);
        i32::try_from(errno).unwrap_or(libc::EIO)
    }

    /// Notes that a sync failed.
    pub fn fail(&self, errno: i32) {
        let word = self.words.word(WORD_FAILED);
        word.store(u64::from(errno.unsigned_abs()), Ordering::SeqCst);
        faults::step(&self.path, "failed");
    }

    /// The bitmap that writes mark.
    #[inline]
    pub fn dirty(&self) -> Bits {
        if self.words.word(WORD_GENERATION).load(Ordering::SeqCst) % 2 == 0 {
            Bits::Even
        } else {
            Bits::Odd
        }
    }

    /// The other one.
    #[inline]
    pub fn frozen(&self) -> Bits {
        match self.dirty() {
            Bits::Even => Bits::Odd,
            _ => Bits::Even,
        }
    }

    /// Swaps the two; the caller has closed the gates.
    pub fn swap(&self) {
        self.words
            .word(WORD_GENERATION)
            .fetch_add(1, Ordering::SeqCst);
        faults::step(&self.path, "swap");
    }

    /// The word that holds 64 blocks' bits from block `64 * word` on.
    #[inline]
    pub fn word(&self, bits: Bits, word: u64) -> &AtomicU64 {
        let page = word / PAGE_WORDS;
        let at = HEADER_WORDS + page * SEGMENT_WORDS + bits as u64 * PAGE_WORDS + word % PAGE_WORDS;
        self.words.word(index(at))
    }

    /// One block's bit.
    #[inline]
    pub fn get(&self, bits: Bits, block: u64) -> bool {
        self.word(bits, block / 64).load(Ordering::Acquire) >> (block % 64) & 1 == 1
    }

    /// Sets the bits of a range; answers whether any was clear.
    #[inline]
    pub fn set(&self, bits: Bits, blocks: Range<u64>) -> bool {
        let mut any = false;
        for (word, mask) in masks(blocks) {
            let word = self.word(bits, word);
            // A look first: a bit that is set already costs no exclusive cache line.
            if word.load(Ordering::Acquire) & mask != mask {
                any |= word.fetch_or(mask, Ordering::SeqCst) & mask != mask;
                faults::step(&self.path, bits.name());
            }
        }
        any
    }

    /// Whether all bits of a range are set.
    #[inline]
    pub fn all(&self, bits: Bits, blocks: Range<u64>) -> bool {
        masks(blocks)
            .all(|(word, mask)| self.word(bits, word).load(Ordering::Acquire) & mask == mask)
    }

    /// The first block from `from` on whose bit is not `value`, at most `to`. It may be `from`
    /// itself: bits change under one's eyes, and who looked at one before must not assume it.
    #[inline]
    pub fn run_end(&self, bits: Bits, value: bool, from: u64, to: u64) -> u64 {
        for (word, mask) in masks(from..to) {
            let found = self.word(bits, word).load(Ordering::Acquire);
            let other = mask & if value { !found } else { found };
            if other != 0 {
                return word * 64 + u64::from(other.trailing_zeros());
            }
        }
        to
    }

    /// How many bits of the first `blocks` are set.
    pub fn count(&self, bits: Bits, blocks: u64) -> u64 {
        masks(0..blocks)
            .map(|(word, mask)| self.word(bits, word).load(Ordering::Relaxed) & mask)
            .map(|word| u64::from(word.count_ones()))
            .sum()
    }

    /// Clears a whole bitmap.
    pub fn clear(&self, bits: Bits, blocks: u64) {
        for (word, _) in masks(0..blocks) {
            let word = self.word(bits, word);
            if word.load(Ordering::Relaxed) != 0 {
                word.store(0, Ordering::SeqCst);
                faults::step(&self.path, "clear");
            }
        }
    }

    /// Moves every bit of `from` into `to`; a kill in between leaves it in both or in one.
    pub fn merge(&self, from: Bits, to: Bits, blocks: u64) {
        for (word, _) in masks(0..blocks) {
            let from = self.word(from, word);
            let bits = from.load(Ordering::SeqCst);
            if bits != 0 {
                self.word(to, word).fetch_or(bits, Ordering::SeqCst);
                faults::step(&self.path, "merge");
                from.store(0, Ordering::SeqCst);
            }
        }
    }
}

/// Makes of any bytes a live map that belongs to a disk map (`fuzzing`).
#[cfg(any(test, feature = "fuzzing"))]
pub fn mend(bytes: &mut Vec<u8>, disk_map: &[u8], attach_id: &str) {
    let len = index(HEADER_BYTES + SEGMENT_WORDS * 8);
    let mut map: Vec<u8> = bytes
        .iter()
        .chain(&[0])
        .cycle()
        .take(len)
        .copied()
        .collect();
    let mut put = |at: usize, field: &[u8]| map[at * 8..][..field.len()].copy_from_slice(field);
    put(WORD_MAGIC, &MAGIC.to_le_bytes());
    put(WORD_FORMAT, &FORMAT.to_le_bytes());
    put(WORD_BOOT, &crate::boot::id().unwrap_or_default());
    put(WORD_NONCE, disk_map.get(64..80).unwrap_or_default());
    put(WORD_ATTACH, blake3::hash(attach_id.as_bytes()).as_bytes());
    *bytes = map;
}

/// The words that a range of blocks touches, with the bits of the range in each.
#[inline]
fn masks(blocks: Range<u64>) -> impl Iterator<Item = (u64, u64)> {
    let Range { start, end } = blocks;
    let words = if start < end {
        start / 64..(end - 1) / 64 + 1
    } else {
        0..0
    };
    words.map(move |word| {
        let low = start.saturating_sub(word * 64).min(63);
        let high = (end - word * 64).min(64);
        (word, (u64::MAX << low) & (u64::MAX >> (64 - high)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_cover_exactly_their_range() {
        for start in 0..130 {
            for end in start..200 {
                let blocks: Vec<u64> = masks(start..end)
                    .flat_map(|(word, mask)| {
                        (0..64)
                            .filter(move |bit| mask >> bit & 1 == 1)
                            .map(move |bit| word * 64 + bit)
                    })
                    .collect();
                assert_eq!(blocks, (start..end).collect::<Vec<_>>());
            }
        }
    }
}
