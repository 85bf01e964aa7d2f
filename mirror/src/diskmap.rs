// SPDX-License-Identifier: Apache-2.0
//! The disk map: the bits that survive a power loss (`FORMAT.rst` has every byte).
//!
//! # Invariants
//!
//! 1. It is never ahead of the data: a page is written after the delta's sync that follows its copy.
//! 2. *Clean* is written last at an orderly stop, after both syncs, and durably removed at attach,
//!    before anything can be written. While it is not set, dirty bits here mean nothing.
//! 3. Its space is taken at creation and at growth: a flush never lacks room for it.
//!
//! # Crash
//!
//! | power lost | found |
//! | --- | --- |
//! | before a page's write | the previous page: the blocks since are as before them |
//! | within it | any mix of old and new sectors: bits are independent, and local ones only get set |
//! | within the header's write | one sector: the old header or the new one |
//!
//! Written by one flush at a time (`flush`), read at attach only; never mapped.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::faults::{self, Call};
use crate::sys::file::{self, Create};
use crate::units::{BLOCK_BYTES, PAGE_BLOCKS, index};

const MAGIC: &[u8; 8] = b"LZIMMAP\0";
const FORMAT: u32 = 1;
const HEADER_BYTES: usize = 512;
const PAGE_BYTES: u64 = 4096;
const CHECKED_BYTES: usize = 96;

/// The fields of its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The last orderly stop was the last use.
    pub clean: bool,
    /// The disk's size when it was last attached or grown.
    pub size_bytes: u64,
    /// The blob's chunk size.
    pub chunk_size_bytes: u64,
    /// The digest of the attachment's id.
    pub attach: [u8; 32],
    /// Names the live map that was made for it.
    pub nonce: [u8; 16],
}

impl Header {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[12..16].copy_from_slice(&u32::from(self.clean).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.size_bytes.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.chunk_size_bytes.to_le_bytes());
        bytes[32..64].copy_from_slice(&self.attach);
        bytes[64..80].copy_from_slice(&self.nonce);
        let checksum = blake3::hash(&bytes[..CHECKED_BYTES]);
        bytes[CHECKED_BYTES..CHECKED_BYTES + 8].copy_from_slice(&checksum.as_bytes()[..8]);
        bytes
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> std::result::Result<Self, &'static str> {
        fn field<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
            let mut field = [0; N];
            field.copy_from_slice(&bytes[at..at + N]);
            field
        }
        if &bytes[..8] != MAGIC {
            return Err("wrong magic");
        }
        if u32::from_le_bytes(field(bytes, 8)) != FORMAT {
            return Err("unknown format");
        }
        if blake3::hash(&bytes[..CHECKED_BYTES]).as_bytes()[..8] != bytes[CHECKED_BYTES..][..8] {
            return Err("wrong checksum");
        }
        let flags = u32::from_le_bytes(field(bytes, 12));
        if flags > 1 || bytes[80..CHECKED_BYTES].iter().any(|&b| b != 0) {
            return Err("reserved bits are set");
        }
        Ok(Self {
            clean: flags == 1,
            size_bytes: u64::from_le_bytes(field(bytes, 16)),
            chunk_size_bytes: u64::from_le_bytes(field(bytes, 24)),
            attach: field(bytes, 32),
            nonce: field(bytes, 64),
        })
    }
}

/// Makes of any bytes a disk map of this attachment: its header, and one page (`fuzzing`). Sizes are
/// small ones, or none that any disk could have.
#[cfg(any(test, feature = "fuzzing"))]
pub fn mend(bytes: &mut Vec<u8>, chunk_size_bytes: u64, attach_id: &str) {
    let mut field = [0; 16];
    for (to, from) in field.iter_mut().zip(bytes.iter()) {
        *to = *from;
    }
    let size_bytes = u64::from_le_bytes([
        field[0], field[1], field[2], field[3], field[4], field[5], field[6], field[7],
    ]);
    let header = Header {
        clean: field[8] % 2 == 1,
        size_bytes: if field[9] % 8 == 0 {
            size_bytes | 1 << 63
        } else {
            size_bytes % (64 << 20)
        },
        chunk_size_bytes,
        attach: *blake3::hash(attach_id.as_bytes()).as_bytes(),
        nonce: field,
    };
    let mut map = header.encode().to_vec();
    map.resize(index(PAGE_BYTES), 0);
    map.extend(bytes.iter().chain(&[0]).cycle().take(index(PAGE_BYTES)));
    *bytes = map;
}

/// One page's bits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page(pub [u8; index(PAGE_BYTES)]);

/// The file.
#[derive(Debug)]
pub struct DiskMap {
    file: File,
    path: PathBuf,
}

fn len_for(size_bytes: u64) -> u64 {
    PAGE_BYTES * (1 + size_bytes.div_ceil(BLOCK_BYTES * PAGE_BLOCKS).max(1))
}

impl DiskMap {
    /// Opens the file, or makes an empty one that has no header yet.
    pub fn open(path: &Path, create: Create) -> Result<Self> {
        let file = faults::call(path, "open", Call::Create, || {
            file::open(path, create, false)
        })
        .map_err(|e| Error::io("open", path, e))?;
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// The open file, to lock.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Its header; refused if it is not one that we wrote.
    pub fn header(&self) -> Result<Header> {
        let mut bytes = [0; HEADER_BYTES];
        self.read_at(&mut bytes, 0)
            .map_err(|e| Error::io("read", &self.path, e))?;
        Header::decode(&bytes).map_err(|what| {
            Error::Invalid(format!(
                "\"{}\" is no disk map: {what}",
                self.path.display()
            ))
        })
    }

    /// Takes the space for a disk of this size; new pages are zeros.
    pub fn extend(&self, size_bytes: u64) -> Result<()> {
        let len = len_for(size_bytes);
        let call = Call::Allocate(len);
        faults::call(&self.path, "extend", call, || {
            file::preallocate(&self.file, 0, len)
        })
        .map_err(|e| Error::io("extend", &self.path, e))
    }

    /// Writes the header durably, with everything before it.
    pub fn set_header(&self, header: &Header) -> Result<()> {
        let write = || {
            self.sync()?;
            let bytes = header.encode();
            faults::call(&self.path, "header", Call::Write(0, &bytes), || {
                self.file.write_all_at(&bytes, 0)
            })?;
            faults::call(&self.path, "sync", Call::Sync, || self.file.sync_all())
        };
        write().map_err(|e| Error::io("write", &self.path, e))
    }

    /// Reads a page.
    pub fn read(&self, page: u64) -> Result<Page> {
        let mut bytes = [0; index(PAGE_BYTES)];
        self.read_at(&mut bytes, PAGE_BYTES * (1 + page))
            .map_err(|e| Error::io("read", &self.path, e))?;
        Ok(Page(bytes))
    }

    fn read_at(&self, bytes: &mut [u8], offset: u64) -> io::Result<()> {
        faults::call(&self.path, "read", Call::Other, || {
            self.file.read_exact_at(bytes, offset)
        })
    }

    /// Writes a page; durable after [`DiskMap::sync`].
    pub fn write(&self, page: u64, content: &Page) -> io::Result<()> {
        let offset = PAGE_BYTES * (1 + page);
        faults::call(&self.path, "page", Call::Write(offset, &content.0), || {
            self.file.write_all_at(&content.0, offset)
        })
    }

    /// Makes the written pages durable.
    pub fn sync(&self) -> io::Result<()> {
        faults::call(&self.path, "sync", Call::Sync, || self.file.sync_data())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_back_and_any_flipped_byte_refused() {
        let header = Header {
            clean: true,
            size_bytes: 1 << 40,
            chunk_size_bytes: 1 << 19,
            attach: [7; 32],
            nonce: [9; 16],
        };
        let bytes = header.encode();
        assert_eq!(Header::decode(&bytes), Ok(header));
        for at in 0..CHECKED_BYTES + 8 {
            let mut bytes = bytes;
            bytes[at] ^= 0x40;
            assert!(Header::decode(&bytes).is_err(), "byte {at}");
        }
    }
}
