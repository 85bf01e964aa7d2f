// SPDX-License-Identifier: Apache-2.0
//! The cache's index on disk: which slot holds which chunk (`FORMAT.rst` has every byte).
//!
//! An entry is a hint with a checksum: the cache checks contents against digests whenever the last
//! stop was not orderly or the machine was started since, so nothing here is ever synced but at an
//! orderly stop. An index that is not ours to read is emptied: a cache may always be lost.
//!
//! # Invariants
//!
//! 1. An index is marked clean only if every change of it since it was opened has succeeded: an
//!    entry that could not be cleared may name a slot that holds another chunk by now.
//! 2. A clean index tells of each entry whether it was checked since its content was written.
//!
//! # Threads
//!
//! The slab's lock is held by whoever clears or copies entries; [`Index::set`] needs none, for its
//! slot is the caller's alone.

use crate::sync::atomic::{AtomicBool, Ordering};
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::boot;
use crate::engine::Digest;
use crate::error::{Error, Result};
use crate::sys::file::{self, Create};
use crate::units::index;

const MAGIC: &[u8; 8] = b"LZIMCIDX";
const FORMAT: u32 = 2;
const HEADER_BYTES: usize = 4096;
const CHECKED_BYTES: usize = 48;
const ENTRY_BYTES: usize = 128;
const ENTRY_CHECKED_BYTES: usize = 80;
const PRESENT: u32 = 1;
const UNCHECKED: u32 = 2;

/// The index of one slab.
#[derive(Debug)]
pub struct Index {
    file: File,
    path: PathBuf,
    chunk_size: u64,
    boot: [u8; 16],
    /// A change failed: what the file says is not what we meant.
    broken: AtomicBool,
}

/// What one slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its chunk.
    pub digest: Digest,
    /// How its digest is keyed.
    pub key: [u8; 32],
    /// When it was used last, by the cache's clock.
    pub used: u64,
    /// Its content was checked since it was written, in a life that ended in order.
    pub checked: bool,
}

fn checksum(bytes: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    sum
}

fn encode(slot: u32, entry: &Entry) -> [u8; ENTRY_BYTES] {
    let state = PRESENT | if entry.checked { 0 } else { UNCHECKED };
    let mut bytes = [0; ENTRY_BYTES];
    bytes[..32].copy_from_slice(&entry.digest);
    bytes[32..64].copy_from_slice(&entry.key);
    bytes[64..68].copy_from_slice(&state.to_le_bytes());
    bytes[68..72].copy_from_slice(&slot.to_le_bytes());
    bytes[72..80].copy_from_slice(&entry.used.to_le_bytes());
    let sum = checksum(&bytes[..ENTRY_CHECKED_BYTES]);
    bytes[80..88].copy_from_slice(&sum);
    bytes
}

fn decode(slot: u32, bytes: &[u8]) -> Option<Entry> {
    let bytes: &[u8; ENTRY_BYTES] = bytes.try_into().ok()?;
    let entry = Entry {
        digest: *bytes.first_chunk()?,
        key: *bytes[32..].first_chunk()?,
        used: u64::from_le_bytes(*bytes[72..].first_chunk()?),
        checked: bytes[64..68] == PRESENT.to_le_bytes(),
    };
    // Whatever is not exactly what we write is nothing.
    (encode(slot, &entry) == *bytes).then_some(entry)
}

/// Makes of any bytes an index: a header in front, then entries, every second of them whole
/// (`fuzzing`). The first byte says whether it is clean; none is of this boot.
#[cfg(any(test, feature = "fuzzing"))]
pub fn mend(bytes: &mut Vec<u8>, chunk_size: u64) {
    let clean = bytes.first().is_some_and(|byte| byte % 2 == 1);
    let mut index = vec![0; HEADER_BYTES];
    index[..8].copy_from_slice(MAGIC);
    index[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    index[12..16].copy_from_slice(&u32::from(clean).to_le_bytes());
    index[16..24].copy_from_slice(&chunk_size.to_le_bytes());
    let sum = checksum(&index[..CHECKED_BYTES]);
    index[CHECKED_BYTES..CHECKED_BYTES + 8].copy_from_slice(&sum);
    for (slot, digest) in (0..).zip(bytes.chunks(32)) {
        let mut whole = [0; 32];
        whole[..digest.len()].copy_from_slice(digest);
        let mut entry = encode(
            slot,
            &Entry {
                digest: whole,
                key: [digest[0]; 32],
                used: u64::from(digest[0]) << 56,
                checked: digest[0] % 4 < 2,
            },
        );
        if digest[0] % 2 == 1 {
            entry[64 + usize::from(digest[0] / 8)] ^= 1;
        }
        index.extend(entry);
    }
    *bytes = index;
}

impl Index {
    /// Opens or makes an index and takes away its clean mark; also what it named, slots ascending.
    /// Nothing of it is checked unless the last stop was orderly and in this boot.
    pub fn open(path: &Path, chunk_size: u64) -> Result<(Self, Vec<(u32, Entry)>)> {
        let file =
            file::open(path, Create::Maybe, false).map_err(|e| Error::io("open", path, e))?;
        let index = Self {
            file,
            path: path.to_owned(),
            chunk_size,
            boot: boot::id()?,
            broken: AtomicBool::new(false),
        };
        let found = index.load().map_err(|e| Error::io("read", path, e))?;
        index.set_header(false)?;
        Ok((index, found))
    }

    fn load(&self) -> io::Result<Vec<(u32, Entry)>> {
        let bytes = std::fs::read(&self.path)?;
        let ours = bytes.len() >= HEADER_BYTES
            && bytes[..8] == *MAGIC
            && bytes[8..12] == FORMAT.to_le_bytes()
            && bytes[16..24] == self.chunk_size.to_le_bytes()
            && bytes[CHECKED_BYTES..CHECKED_BYTES + 8] == checksum(&bytes[..CHECKED_BYTES]);
        if !ours {
            self.file.set_len(0)?;
            return Ok(Vec::new());
        }
        let trusted = bytes[12..16] == 1_u32.to_le_bytes() && bytes[24..40] == self.boot;
        let entries = bytes[HEADER_BYTES..].chunks_exact(ENTRY_BYTES);
        let found = (0..u32::MAX).zip(entries).filter_map(|(slot, bytes)| {
            let entry = decode(slot, bytes)?;
            let checked = entry.checked && trusted;
            Some((slot, Entry { checked, ..entry }))
        });
        Ok(found.collect())
    }

    fn set_header(&self, clean: bool) -> Result<()> {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..16].copy_from_slice(&u32::from(clean).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.chunk_size.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.boot);
        let sum = checksum(&bytes[..CHECKED_BYTES]);
        bytes[CHECKED_BYTES..CHECKED_BYTES + 8].copy_from_slice(&sum);
        self.file
            .write_all_at(&bytes, 0)
            .and_then(|()| self.file.sync_all())
            .map_err(|e| Error::io("write", &self.path, e))
    }

    fn write(&self, bytes: &[u8], slot: u32) -> io::Result<()> {
        let at = HEADER_BYTES as u64 + u64::from(slot) * ENTRY_BYTES as u64;
        let written = self.file.write_all_at(bytes, at);
        if written.is_err() {
            self.broken.store(true, Ordering::SeqCst);
        }
        written
    }

    /// Names a slot's chunk.
    pub fn set(&self, slot: u32, entry: &Entry) -> io::Result<()> {
        self.write(&encode(slot, entry), slot)
    }

    /// Forgets a slot.
    pub fn clear(&self, slot: u32) {
        // If this fails the index is never marked clean: the entry will be found out by its digest.
        let _ = self.write(&[0; ENTRY_BYTES], slot);
    }

    /// Names a run of slots anew, in one write.
    pub fn set_run(
        &self,
        slots: Range<u32>,
        entry: impl Fn(u32) -> Option<Entry>,
    ) -> io::Result<()> {
        let mut bytes = Vec::with_capacity(index(u64::from(slots.end - slots.start)) * ENTRY_BYTES);
        for slot in slots.clone() {
            bytes.extend(entry(slot).map_or([0; ENTRY_BYTES], |entry| encode(slot, &entry)));
        }
        self.write(&bytes, slots.start)
    }

    /// Marks an orderly stop, after all entries.
    pub fn set_clean(&self) -> Result<()> {
        if self.broken.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.file
            .sync_data()
            .map_err(|e| Error::io("sync", &self.path, e))?;
        self.set_header(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_read_back_and_any_flipped_bit_is_an_empty_slot() {
        let entry = Entry {
            digest: [3; 32],
            key: [4; 32],
            used: 77,
            checked: false,
        };
        let bytes = encode(9, &entry);
        assert_eq!(decode(9, &bytes), Some(entry));
        assert_eq!(decode(8, &bytes), None);
        for bit in 0..ENTRY_BYTES * 8 {
            let mut bytes = bytes;
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(9, &bytes), None, "bit {bit}");
        }
    }
}
