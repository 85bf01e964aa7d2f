// SPDX-License-Identifier: Apache-2.0
//! Memory that outlives the process: a file on a tmpfs, mapped as atomic words.
#![allow(unsafe_code)]

use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// A shared mapping of a file that may grow up to what was reserved, without ever moving.
///
/// The reservation is addresses only: words become reachable by [`SharedWords::expose`], once the
/// file has room for them, for a touch past the file's end is SIGBUS.
#[derive(Debug)]
pub struct SharedWords {
    base: NonNull<AtomicU64>,
    reserved_words: usize,
    exposed_words: AtomicUsize,
}

// SAFETY: the mapping belongs to this value alone, is reached only as atomics, and lives until drop.
unsafe impl Send for SharedWords {}
// SAFETY: as above; every access is atomic.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Reserves addresses for `words` words of the file; none is reachable yet.
    ///
    /// # Errors
    /// The system's.
    pub fn reserve(file: &File, words: usize) -> io::Result<Self> {
        let len = words
            .checked_mul(8)
            .filter(|&len| len > 0)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours; the
        // file stays mapped after its descriptor is closed.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_NORESERVE,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base =
            NonNull::new(base.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self {
            base,
            reserved_words: words,
            exposed_words: AtomicUsize::new(0),
        })
    }

    /// Makes the first `words` words reachable; the caller has preallocated them in the file.
    ///
    /// # Errors
    /// EFBIG: more than was reserved.
    pub fn expose(&self, words: usize) -> io::Result<()> {
        if words > self.reserved_words {
            return Err(io::Error::from_raw_os_error(libc::EFBIG));
        }
        self.exposed_words.fetch_max(words, Ordering::AcqRel);
        Ok(())
    }

    /// One word.
    ///
    /// # Panics
    /// It is not exposed.
    #[inline]
    #[must_use]
    pub fn word(&self, index: usize) -> &AtomicU64 {
        let exposed = self.exposed_words.load(Ordering::Acquire);
        assert!(index < exposed, "word {index} of {exposed}");
        // SAFETY: `index` is below `exposed_words`, hence inside the mapping and inside the file,
        // which nobody shrinks while it is attached (we hold its lock); the base is page-aligned.
        unsafe { self.base.add(index).as_ref() }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the range is the one that mmap gave; no reference outlives `self`.
        let result = unsafe { libc::munmap(self.base.as_ptr().cast(), self.reserved_words * 8) };
        debug_assert_eq!(result, 0);
    }
}
