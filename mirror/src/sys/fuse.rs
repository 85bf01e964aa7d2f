// SPDX-License-Identifier: Apache-2.0
//! Mounting, and waking threads that wait in `read(2)`.
//!
//! Reading and answering requests needs nothing from here: `std::fs::File` does it.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Once;
use std::{mem, ptr};

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Mounts a FUSE file system at `at`; `data` names the descriptor of `/dev/fuse`.
///
/// # Errors
/// What mount(2) says; EPERM without `CAP_SYS_ADMIN`.
pub fn mount(source: &CStr, kind: &CStr, at: &Path, data: &CStr) -> io::Result<()> {
    let at = c_path(at)?;
    let flags = libc::MS_NOSUID | libc::MS_NODEV;
    // SAFETY: four NUL-terminated strings that outlive the call, which keeps none of them.
    check(unsafe {
        libc::mount(
            source.as_ptr(),
            at.as_ptr(),
            kind.as_ptr(),
            flags,
            data.as_ptr().cast(),
        )
    })
}

/// Unmounts what is at `at`: lazily, or by ending its connection first (`force`).
///
/// # Errors
/// What umount2(2) says; EINVAL if nothing is mounted there.
pub fn unmount(at: &Path, force: bool) -> io::Result<()> {
    let at = c_path(at)?;
    let how = if force {
        libc::MNT_FORCE
    } else {
        libc::MNT_DETACH
    };
    // SAFETY: a NUL-terminated string that outlives the call.
    check(unsafe { libc::umount2(at.as_ptr(), how | libc::UMOUNT_NOFOLLOW) })
}

/// The errno of statfs(2) on `at`, `None` if it answers.
#[must_use]
pub fn statfs_error(at: &Path) -> Option<i32> {
    let at = c_path(at).ok()?;
    // SAFETY: all-zero is a valid `statfs`, plain old data.
    let mut out: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: a NUL-terminated string and a buffer of the right type, both outliving the call.
    if unsafe { libc::statfs(at.as_ptr(), &raw mut out) } == 0 {
        return None;
    }
    io::Error::last_os_error().raw_os_error()
}

/// Receives the one descriptor that fusermount3 sends over `socket`, close-on-exec.
///
/// # Errors
/// `UnexpectedEof` if it ended without sending one.
pub fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    const SPACE: usize = 64;
    #[repr(align(8))]
    struct Control([u8; SPACE]);
    let mut byte = 0_u8;
    let mut control = Control([0; SPACE]);
    let mut part = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    // SAFETY: all-zero is a valid `msghdr`.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = SPACE as _;
    // SAFETY: `message` points at live buffers of the stated lengths.
    let got =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    if got < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `message` was filled by a recvmsg that succeeded; its control buffer is alive and
    // aligned for `cmsghdr`.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() };
    match header {
        Some(header)
            if header.cmsg_level == libc::SOL_SOCKET && header.cmsg_type == libc::SCM_RIGHTS =>
        {
            // SAFETY: an SCM_RIGHTS message carries at least one int behind its header, and that
            // descriptor is new and nobody else's.
            unsafe {
                let mut fd = [0; size_of::<libc::c_int>()];
                libc::CMSG_DATA(ptr::from_ref(header)).copy_to(fd.as_mut_ptr(), fd.len());
                Ok(OwnedFd::from_raw_fd(libc::c_int::from_ne_bytes(fd)))
            }
        }
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

/// A thread as [`Waker::wake`] names it.
#[derive(Debug, Clone, Copy)]
pub struct Waker {
    process: libc::pid_t,
    thread: libc::pid_t,
}

extern "C" fn nothing(_signal: libc::c_int) {}

/// The signal that ends a blocked read: real-time, so that no library claims it by habit.
fn wake_signal() -> libc::c_int {
    libc::SIGRTMIN() + 6
}

impl Waker {
    /// The calling thread.
    #[must_use]
    pub fn current() -> Self {
        static HANDLER: Once = Once::new();
        HANDLER.call_once(|| {
            // SAFETY: all-zero is a valid `sigaction`: no flags (so that read(2) is *not*
            // restarted) and an empty mask.
            let mut action: libc::sigaction = unsafe { mem::zeroed() };
            action.sa_sigaction = nothing as extern "C" fn(libc::c_int) as usize;
            // SAFETY: a valid action whose handler does nothing and is thus safe at any point.
            unsafe { libc::sigaction(wake_signal(), &raw const action, ptr::null_mut()) };
        });
        // SAFETY: neither call takes an argument nor fails.
        unsafe {
            Self {
                process: libc::getpid(),
                thread: libc::gettid(),
            }
        }
    }

    /// Makes a system call that the thread waits in end with EINTR. A thread on its way into the
    /// call misses it: repeat until the thread has seen why it was woken.
    pub fn wake(self) {
        // SAFETY: takes no pointers; the signal's handler does nothing. A thread that is gone gives
        // ESRCH, which is what its waker wants to hear.
        unsafe { libc::syscall(libc::SYS_tgkill, self.process, self.thread, wake_signal()) };
    }
}

/// A first place in the queue of those who wait for a device, for as long as it lives.
///
/// Who waits in read(2) queues up behind the others each time, so that threads take turns, each cold.
/// An exclusive epoll keeps its place: its owner is woken whenever it waits, and the next in the
/// queue if it does not.
#[derive(Debug)]
pub struct FirstPlace(OwnedFd);

impl FirstPlace {
    /// Behind those that are taken already.
    ///
    /// # Errors
    /// The system's; EPERM: nobody waits for such a file.
    pub fn of(device: &File) -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is new and nobody else's.
        let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut event = libc::epoll_event {
            events: (libc::EPOLLIN | libc::EPOLLEXCLUSIVE).unsigned_abs(),
            u64: 0,
        };
        let (at, device) = (epoll.as_raw_fd(), device.as_raw_fd());
        // SAFETY: both descriptors are open; the event is alive during the call.
        check(unsafe { libc::epoll_ctl(at, libc::EPOLL_CTL_ADD, device, &raw mut event) })?;
        Ok(Self(epoll))
    }

    /// Waits until there is something to read, which another may take first.
    ///
    /// # Errors
    /// EINTR.
    pub fn wait(&self) -> io::Result<()> {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        // SAFETY: room for one event, alive during the call.
        let ready = unsafe { libc::epoll_wait(self.0.as_raw_fd(), &raw mut event, 1, -1) };
        if ready < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Tells the kernel that the calling thread writes back other processes' memory: reclaim on its
/// behalf must not wait for the mount that it serves. Needs `CAP_SYS_RESOURCE`; without it nothing
/// happens.
pub fn become_io_flusher() {
    const PR_SET_IO_FLUSHER: libc::c_int = 57; // linux/prctl.h
    // SAFETY: takes no pointers.
    unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
}

/// The real user and group of this process.
#[must_use]
pub fn user_and_group() -> (u32, u32) {
    // SAFETY: neither call takes an argument nor fails.
    unsafe { (libc::getuid(), libc::getgid()) }
}
