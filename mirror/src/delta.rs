// SPDX-License-Identifier: Apache-2.0
//! Sparse files of blocks at their disk offsets: the delta, and the copies that a COMMIT sets aside.
//!
//! The delta by `O_DIRECT` only, every reader included (page cache and direct I/O never mix), so
//! offsets, lengths and memory are whole blocks. The copies by the page cache only: they are worth
//! nothing after their COMMIT, which most often ends before the kernel has written them back. What
//! it does write back may fail, and it says so once, to whoever asks ([`Delta::arrived`]).
//!
//! An flock fences the dead process's requests (contract 15). No thread rule: the kernel orders
//! overlapping requests as on any raw file.

use crate::sync::atomic::{AtomicU32, Ordering};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::faults::{self, Call};
use crate::sys::aio;
use crate::sys::file::{self, Create};
use crate::units::BLOCK_BYTES;

/// A sparse file of blocks.
#[derive(Debug)]
pub struct Delta {
    file: File,
    path: PathBuf,
    device: u64,
    new_writers: AtomicU32,
}

impl Delta {
    /// Opens the file, unfenced; `direct` past the page cache.
    pub fn open(path: &Path, create: Create, direct: bool) -> Result<Self> {
        let file = faults::call(path, "open", Call::Create, || {
            file::open(path, create, direct)
        })
        .map_err(|e| Error::io("open", path, e))?;
        if file::is_on_nfs(&file).map_err(|e| Error::io("stat", path, e))? {
            return Err(Error::errno("fence on NFS", path, libc::EOPNOTSUPP));
        }
        let device = file
            .metadata()
            .map_err(|e| Error::io("stat", path, e))?
            .dev();
        Ok(Self {
            file,
            path: path.to_owned(),
            device,
            new_writers: AtomicU32::new(0),
        })
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file system that it lies on.
    pub fn device(&self) -> u64 {
        self.device
    }

    /// The open file, to lock and to sync.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Gives the file room for a disk of `size_bytes`, rounded up to whole blocks; never less.
    pub fn extend(&self, size_bytes: u64) -> Result<()> {
        let wanted = size_bytes.next_multiple_of(BLOCK_BYTES);
        let extend = || {
            if self.file.metadata()?.len() < wanted {
                self.set_len(wanted)?;
            }
            Ok(())
        };
        extend().map_err(|e| Error::io("extend", &self.path, e))
    }

    /// Reads whole blocks.
    #[inline]
    pub fn read(&self, offset: u64, blocks: &mut [u8]) -> io::Result<()> {
        debug_assert!(offset % BLOCK_BYTES == 0 && crate::buffer::is_aligned(blocks));
        faults::call(&self.path, "read", Call::Other, || {
            self.file.read_exact_at(blocks, offset)
        })
    }

    /// Writes whole blocks.
    #[inline]
    pub fn write(&self, offset: u64, blocks: &[u8]) -> io::Result<()> {
        debug_assert!(offset % BLOCK_BYTES == 0 && crate::buffer::is_aligned(blocks));
        let call = Call::Write(offset, blocks);
        faults::call(&self.path, "write", call, || {
            self.file.write_all_at(blocks, offset)
        })
    }

    /// The same for blocks that may be a hole now. By itself it is fastest by write(2); beside
    /// others of its kind, which would all wait for its lock, it goes by [`aio`]: 2.5 times as many
    /// at depth 32 (bench `touch`).
    pub fn write_new(&self, offset: u64, blocks: &[u8]) -> io::Result<()> {
        debug_assert!(offset % BLOCK_BYTES == 0 && crate::buffer::is_aligned(blocks));
        let is_alone = self.new_writers.fetch_add(1, Ordering::Relaxed) == 0;
        let call = Call::Write(offset, blocks);
        let result = faults::call(&self.path, "write", call, || {
            if is_alone {
                self.file.write_all_at(blocks, offset)
            } else {
                aio::write_all_at(&self.file, blocks, offset)
            }
        });
        self.new_writers.fetch_sub(1, Ordering::Relaxed);
        result
    }

    /// Makes whole blocks a hole.
    pub fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        debug_assert!(offset % BLOCK_BYTES == 0 && len % BLOCK_BYTES == 0);
        faults::call(&self.path, "punch", Call::Punch(offset, len), || {
            file::punch(&self.file, offset, len)
        })
    }

    /// Makes every write that has returned durable.
    pub fn sync(&self) -> io::Result<()> {
        faults::call(&self.path, "sync", Call::Sync, || self.file.sync_data())
    }

    /// Whether every page of a range that was written back by now has arrived: what was read before
    /// is what was written. An error is told once, of whatever range.
    pub fn arrived(&self, offset: u64, len: u64) -> io::Result<()> {
        faults::call(&self.path, "arrived", Call::Other, || {
            file::written_back(&self.file, offset, len)
        })
    }

    /// The bytes that the file system holds for it.
    pub fn held_bytes(&self) -> u64 {
        self.file.metadata().map_or(0, |m| m.blocks() * 512)
    }

    /// Drops everything.
    pub fn clear(&self, size_bytes: u64) -> io::Result<()> {
        self.set_len(0)?;
        self.set_len(size_bytes.next_multiple_of(BLOCK_BYTES))
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        faults::call(&self.path, "resize", Call::Resize(bytes), || {
            self.file.set_len(bytes)
        })
    }
}
