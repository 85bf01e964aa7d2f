// SPDX-License-Identifier: Apache-2.0
//! The cache's index on disk: which slot holds which chunk (`FORMAT.rst` has every byte).
//!
//! An entry is a hint with a checksum: the cache checks contents against digests whenever the last
//! stop was not orderly or the machine was started since, so nothing here is ever synced but the
//! header. An index that is not ours to read is emptied: a cache may always be lost.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::boot;
use crate::engine::Digest;
use crate::error::{Error, Result};
use crate::sys::file::{self, Create};

const MAGIC: &[u8; 8] = b"LZIMCIDX";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 4096;
const CHECKED_BYTES: usize = 48;
const ENTRY_BYTES: usize = 64;
const PRESENT: u32 = 1;

/// The index of one slab.
#[derive(Debug)]
pub struct CacheIndex {
    file: File,
    path: PathBuf,
    chunk_size: u64,
    boot: [u8; 16],
}

/// What an index named when it was opened.
#[derive(Debug)]
pub struct Found {
    /// The last stop was orderly and in this boot.
    pub trusted: bool,
    /// Slots and chunks, ascending.
    pub slots: Vec<(u32, Digest)>,
}

fn checksum(bytes: &[u8]) -> [u8; 8] {
    let mut sum = [0; 8];
    sum.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    sum
}

fn encode(slot: u32, digest: &Digest) -> [u8; ENTRY_BYTES] {
    let mut entry = [0; ENTRY_BYTES];
    entry[..32].copy_from_slice(digest);
    entry[32..36].copy_from_slice(&PRESENT.to_le_bytes());
    entry[36..40].copy_from_slice(&slot.to_le_bytes());
    let sum = checksum(&entry[..40]);
    entry[40..48].copy_from_slice(&sum);
    entry
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
        let mut entry = encode(slot, &whole);
        if digest[0] % 2 == 1 {
            entry[32 + usize::from(digest[0] / 8)] ^= 1;
        }
        index.extend(entry);
    }
    *bytes = index;
}

impl CacheIndex {
    /// Opens or makes an index and takes away its clean mark.
    pub fn open(path: &Path, chunk_size: u64, slots_max: u32) -> Result<(Self, Found)> {
        let file =
            file::open(path, Create::Maybe, false).map_err(|e| Error::io("open", path, e))?;
        let index = Self {
            file,
            path: path.to_owned(),
            chunk_size,
            boot: boot::id()?,
        };
        let found = index
            .load(slots_max)
            .map_err(|e| Error::io("read", path, e))?;
        index.set_header(false)?;
        Ok((index, found))
    }

    fn load(&self, slots_max: u32) -> io::Result<Found> {
        let mut found = Found {
            trusted: false,
            slots: Vec::new(),
        };
        let bytes = std::fs::read(&self.path)?;
        let ours = bytes.len() >= HEADER_BYTES
            && bytes[..8] == *MAGIC
            && bytes[8..12] == FORMAT.to_le_bytes()
            && bytes[16..24] == self.chunk_size.to_le_bytes()
            && bytes[CHECKED_BYTES..CHECKED_BYTES + 8] == checksum(&bytes[..CHECKED_BYTES]);
        if !ours {
            self.file.set_len(0)?;
            return Ok(found);
        }
        found.trusted = bytes[12..16] == 1_u32.to_le_bytes() && bytes[24..40] == self.boot;
        let entries = bytes[HEADER_BYTES..].chunks_exact(ENTRY_BYTES);
        for (slot, entry) in (0..slots_max).zip(entries) {
            let mut digest = [0; 32];
            digest.copy_from_slice(&entry[..32]);
            if entry == encode(slot, &digest) {
                found.slots.push((slot, digest));
            }
        }
        Ok(found)
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

    /// Names a slot's chunk.
    pub fn set(&self, slot: u32, digest: &Digest) -> io::Result<()> {
        self.file
            .write_all_at(&encode(slot, digest), Self::at(slot))
    }

    /// Forgets a slot.
    pub fn clear(&self, slot: u32) -> io::Result<()> {
        self.file.write_all_at(&[0; ENTRY_BYTES], Self::at(slot))
    }

    /// Marks an orderly stop, after all entries.
    pub fn set_clean(&self) -> Result<()> {
        self.file
            .sync_data()
            .map_err(|e| Error::io("sync", &self.path, e))?;
        self.set_header(true)
    }

    fn at(slot: u32) -> u64 {
        HEADER_BYTES as u64 + u64::from(slot) * ENTRY_BYTES as u64
    }
}
