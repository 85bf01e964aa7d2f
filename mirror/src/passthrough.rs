// SPDX-License-Identifier: Apache-2.0
//! A disk that is one plain file: what the FUSE layer costs by itself, for `bench/` and tests.
//!
//! Whole blocks go to the file with `O_DIRECT`, as the engine's do; anything else through the page
//! cache, which the kernel keeps in step. It never parks.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use crate::disk::{Answer, Disk, Door, Ticket};
use crate::sys;

const ALIGNMENT: usize = 4096;

/// One plain file.
#[derive(Debug)]
pub struct Passthrough {
    direct: File,
    cached: File,
    size_bytes: u64,
}

fn answer(result: io::Result<()>) -> Answer {
    match result {
        Ok(()) => Answer::Done,
        Err(error) => Answer::Failed(error.raw_os_error().unwrap_or(libc::EIO)),
    }
}

impl Passthrough {
    /// Opens the file; its size stays what it is now.
    ///
    /// # Errors
    /// What the system says; EINVAL where `O_DIRECT` is not supported.
    pub fn open(path: &Path) -> io::Result<Self> {
        let cached = File::options().read(true).write(true).open(path)?;
        let mut options = File::options();
        let direct = options
            .read(true)
            .write(true)
            .custom_flags(libc::O_DIRECT)
            .open(path)?;
        let size_bytes = cached.metadata()?.len();
        Ok(Self {
            direct,
            cached,
            size_bytes,
        })
    }

    fn file(&self, offset: u64, bytes: &[u8]) -> &File {
        let aligned = offset % ALIGNMENT as u64 == 0
            && bytes.len() % ALIGNMENT == 0
            && bytes.as_ptr() as usize % ALIGNMENT == 0;
        if aligned { &self.direct } else { &self.cached }
    }
}

impl Disk for Passthrough {
    fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    fn local_bytes(&self) -> u64 {
        self.cached
            .metadata()
            .map_or(0, |found| found.blocks() * 512)
    }

    fn read(&self, _: &Arc<dyn Door>, _: Ticket, offset: u64, buf: &mut [u8]) -> Answer {
        answer(self.file(offset, buf).read_exact_at(buf, offset))
    }

    fn write(
        &self,
        _: &Arc<dyn Door>,
        _: Ticket,
        offset: u64,
        data: &[u8],
        durable: bool,
    ) -> Answer {
        let written = self.file(offset, data).write_all_at(data, offset);
        let durable = |()| {
            if durable {
                self.cached.sync_data()
            } else {
                Ok(())
            }
        };
        answer(written.and_then(durable))
    }

    fn flush(&self, _: &Arc<dyn Door>, _: Ticket) -> Answer {
        answer(self.cached.sync_data())
    }

    fn discard(&self, _: &Arc<dyn Door>, _: Ticket, offset: u64, len: u64) -> Answer {
        answer(sys::file::punch(&self.cached, offset, len))
    }

    fn write_zeroes(&self, _: &Arc<dyn Door>, _: Ticket, offset: u64, len: u64) -> Answer {
        answer(sys::file::punch(&self.cached, offset, len))
    }

    fn seek(&self, offset: u64, hole: bool) -> Option<u64> {
        sys::file::seek(&self.cached, offset, hole).unwrap_or(Some(offset))
    }

    fn interrupt(&self, _: Ticket) {}
}
