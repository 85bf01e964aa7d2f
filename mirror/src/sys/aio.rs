// SPDX-License-Identifier: Apache-2.0
//! Writes past the page cache that hold the file's lock only while they are handed to the disk.
//!
//! ext4 holds a file's lock from the beginning of a write(2) into a hole until the disk has
//! answered; every other direct request to the file, reads too, waits so long. The same write by
//! `io_submit(2)` lets go of it once the disk has it. The caller waits here in both cases.
//!
//! # Crash
//!
//! As of a write(2): a request that is under way when its process is killed pins the open file, and
//! so the flock that fences it (contract 15).
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::mem::{self, MaybeUninit};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::ptr;

const PWRITE: u16 = 1;

/// The kernel's `struct io_event`.
#[repr(C)]
struct Ended {
    data: u64,
    request: u64,
    result: i64,
    result2: i64,
}

/// A thread's own queue of one request.
struct Queue(libc::c_ulong);

thread_local! {
    // None: the system gives no more of them.
    static QUEUE: Option<Queue> = Queue::new().ok();
}

/// Writes all of `bytes`, which are aligned as `O_DIRECT` wants them.
///
/// # Errors
/// The system's.
pub fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    let written = QUEUE.with(|queue| match queue {
        Some(queue) => queue.write(file, bytes, offset),
        None => Ok(0),
    })?;
    // What is left, if any: a disk that has become full tells why.
    file.write_all_at(&bytes[written..], offset + written as u64)
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

impl Queue {
    fn new() -> io::Result<Self> {
        let mut context: libc::c_ulong = 0;
        // SAFETY: the call writes one word, which is alive and zero as it has to be.
        check(unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) })?;
        Ok(Self(context))
    }

    /// How many bytes were written; 0 if the system does not take the request.
    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<usize> {
        let too_large = |_: std::num::TryFromIntError| io::Error::from_raw_os_error(libc::EFBIG);
        // SAFETY: all-zero is a valid `iocb`, plain old data.
        let mut request: libc::iocb = unsafe { mem::zeroed() };
        request.aio_lio_opcode = PWRITE;
        request.aio_fildes = u32::try_from(file.as_raw_fd()).map_err(too_large)?;
        request.aio_buf = bytes.as_ptr() as u64;
        request.aio_nbytes = bytes.len() as u64;
        request.aio_offset = i64::try_from(offset).map_err(too_large)?;
        let mut requests = [&raw mut request];
        // SAFETY: one request that outlives the call, on a descriptor that is open as long as
        // `file` is borrowed; its bytes are borrowed until `wait` says that the kernel is done.
        let taken = unsafe { libc::syscall(libc::SYS_io_submit, self.0, 1, requests.as_mut_ptr()) };
        if taken != 1 {
            // Let write(2) try, and tell.
            return Ok(0);
        }
        let result = self.wait();
        usize::try_from(result)
            .map_err(|_| io::Error::from_raw_os_error(i32::try_from(-result).unwrap_or(libc::EIO)))
    }

    /// The result of the request under way. It never returns before the kernel is done with it.
    fn wait(&self) -> i64 {
        let mut ended = MaybeUninit::<Ended>::uninit();
        loop {
            // SAFETY: room for the one event that is asked for; no time-out.
            let count = check(unsafe {
                libc::syscall(
                    libc::SYS_io_getevents,
                    self.0,
                    1,
                    1,
                    ended.as_mut_ptr(),
                    ptr::null_mut::<libc::timespec>(),
                )
            });
            match count {
                // SAFETY: the kernel has filled it.
                Ok(1) => return unsafe { ended.assume_init() }.result,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The kernel may write from these bytes still: to go on would be to lie.
                Err(error) => panic!("io_getevents: {error}"),
            }
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: no request is under way; the context is not used again.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buffer::Buffer;
    use crate::sys::file::{self, Create};

    #[test]
    fn what_was_written_is_there_and_an_error_is_told() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let file = file::open(&folder.path().join("file"), Create::New, true).unwrap();
        let mut bytes = Buffer::zeroed(8192);
        bytes.as_mut().fill(7);
        write_all_at(&file, bytes.as_ref(), 1 << 20).unwrap();
        let mut found = Buffer::zeroed(8192);
        file.read_exact_at(found.as_mut(), 1 << 20).unwrap();
        assert_eq!(found.as_ref(), bytes.as_ref());
        let unaligned = write_all_at(&file, &bytes.as_ref()[1..4097], 0).unwrap_err();
        assert_eq!(unaligned.raw_os_error(), Some(libc::EINVAL));
        let read_only = File::open(folder.path().join("file")).unwrap();
        let refused = write_all_at(&read_only, bytes.as_ref(), 0).unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EBADF));
    }
}
