// SPDX-License-Identifier: Apache-2.0
//! System calls on files that std lacks.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// How to come by a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Create {
    /// It must not exist.
    New,
    /// It must exist.
    Never,
    /// Either.
    Maybe,
}

/// Opens a file for reading and writing; `direct` past the page cache.
///
/// # Errors
/// The system's.
pub fn open(path: &Path, create: Create, direct: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match create {
        Create::New => options.create_new(true),
        Create::Never => &mut options,
        Create::Maybe => options.create(true),
    };
    if direct {
        options.custom_flags(libc::O_DIRECT);
    }
    options.open(path)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn fallocate(file: &File, mode: libc::c_int, offset: u64, len: u64) -> io::Result<()> {
    let too_large = |_| io::Error::from_raw_os_error(libc::EFBIG);
    let offset = libc::off64_t::try_from(offset).map_err(too_large)?;
    let len = libc::off64_t::try_from(len).map_err(too_large)?;
    loop {
        // SAFETY: the descriptor is open as long as `file` is borrowed; no memory is handed over.
        match check(unsafe { libc::fallocate64(file.as_raw_fd(), mode, offset, len) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Takes the space of a range, extending the file, so that no later write of it lacks room.
///
/// # Errors
/// The system's.
pub fn preallocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    fallocate(file, 0, offset, len)
}

/// Makes a range a hole, which reads as zeros; the size stays.
///
/// # Errors
/// The system's.
pub fn punch(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    fallocate(file, mode, offset, len)
}

/// Whether the page cache's writes of a range that have begun arrive; begins none, waits for those.
/// One that failed since the file was opened or last asked is an error, wherever it was.
///
/// # Errors
/// The system's.
pub fn written_back(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let too_large = |_| io::Error::from_raw_os_error(libc::EFBIG);
    let offset = libc::off64_t::try_from(offset).map_err(too_large)?;
    let len = libc::off64_t::try_from(len).map_err(too_large)?;
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE;
    // SAFETY: the descriptor is open as long as `file` is borrowed; no memory is handed over.
    check(unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, flags) })
}

/// Takes the file's exclusive lock if nobody else has it. It belongs to the open file, which
/// requests under way pin, the dead process's included: that makes it a fence.
///
/// # Errors
/// The system's.
pub fn try_lock(file: &File) -> io::Result<bool> {
    // SAFETY: the descriptor is open as long as `file` is borrowed.
    match check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) }) {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EWOULDBLOCK) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Lets go of the lock.
///
/// # Errors
/// The system's.
pub fn unlock(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open as long as `file` is borrowed.
    check(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_UN) })
}

/// Whether the file lies on NFS, where locks do not fence and `O_DIRECT` is another's promise.
///
/// # Errors
/// The system's.
pub fn is_on_nfs(file: &File) -> io::Result<bool> {
    const NFS_SUPER_MAGIC: libc::__fsword_t = 0x6969;
    let mut answer = std::mem::MaybeUninit::<libc::statfs>::uninit();
    // SAFETY: the descriptor is open and `answer` has room for what the call writes.
    check(unsafe { libc::fstatfs(file.as_raw_fd(), answer.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it has filled `answer`.
    Ok(unsafe { answer.assume_init() }.f_type == NFS_SUPER_MAGIC)
}

/// The next offset of data, or of a hole, at or after `offset`; `None` past the last.
///
/// # Errors
/// The system's.
pub fn seek(file: &File, offset: u64, hole: bool) -> io::Result<Option<u64>> {
    let whence = if hole {
        libc::SEEK_HOLE
    } else {
        libc::SEEK_DATA
    };
    let Ok(offset) = libc::off64_t::try_from(offset) else {
        return Ok(None);
    };
    // SAFETY: the descriptor is open; its position, which nobody else uses, is all that changes.
    let found = unsafe { libc::lseek64(file.as_raw_fd(), offset, whence) };
    if let Ok(found) = u64::try_from(found) {
        return Ok(Some(found));
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
        error => Err(error),
    }
}

/// The bytes that may still be written to the file system of a file.
///
/// # Errors
/// The system's.
pub fn available_bytes(file: &File) -> io::Result<u64> {
    let mut answer = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the descriptor is open and `answer` has room for what the call writes.
    check(unsafe { libc::fstatvfs(file.as_raw_fd(), answer.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it has filled `answer`.
    let answer = unsafe { answer.assume_init() };
    Ok(answer.f_bavail.saturating_mul(answer.f_frsize))
}
