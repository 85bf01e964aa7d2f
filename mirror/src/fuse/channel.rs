// SPDX-License-Identifier: Apache-2.0
//! `/dev/fuse`: where answers and notifications are written, by any thread.
//!
//! Each is one write(2), which the kernel takes whole or not at all; no lock is needed.

use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use zerocopy::{Immutable, IntoBytes};

use super::abi::{
    NOTIFY_INVAL_ENTRY, NOTIFY_INVAL_INODE, NOTIFY_RESEND, NotifyInvalEntryOut,
    NotifyInvalInodeOut, WriteOut,
};
use super::slot::{Slot, header};
use crate::disk::Errno;
use crate::sys::death;

/// The open `/dev/fuse` of one session.
#[derive(Debug)]
pub struct Channel {
    device: File,
    /// Answers that the kernel did not take, other than for want of the request.
    refused: AtomicU64,
}

impl Channel {
    /// A session's device.
    #[must_use]
    pub fn new(device: File) -> Self {
        Self {
            device,
            refused: AtomicU64::new(0),
        }
    }

    /// To receive requests from.
    #[must_use]
    pub fn device(&self) -> &File {
        &self.device
    }

    /// How many answers the kernel refused: anything but 0 is a bug here.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// Writes an answer that is laid out already.
    pub fn whole(&self, answer: &[u8]) {
        if death::spares_a_step() {
            let _ = self.checked((&self.device).write(answer));
        }
    }

    /// Answers with the first `len` bytes of a slot's data.
    pub fn data(&self, slot: &mut Slot, unique: u64, len: usize) {
        let _ = self.checked(slot.answer(&self.device, unique, len));
    }

    /// Answers with bytes.
    pub fn bytes(&self, unique: u64, bytes: &[u8]) {
        let header = header(unique, 0, bytes.len());
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(bytes)];
        if death::spares_a_step() {
            let _ = self.checked((&self.device).write_vectored(&parts));
        }
    }

    /// Answers with a message.
    pub fn message<T: IntoBytes + Immutable>(&self, unique: u64, message: &T) {
        self.bytes(unique, message.as_bytes());
    }

    /// Answers a request that is done and has nothing to say.
    pub fn done(&self, unique: u64) {
        self.whole(header(unique, 0, 0).as_bytes());
    }

    /// Answers with an errno.
    pub fn error(&self, unique: u64, errno: Errno) {
        self.whole(header(unique, -errno, 0).as_bytes());
    }

    /// Answers a WRITE.
    pub fn written(&self, unique: u64, len: u32) {
        self.message(
            unique,
            &WriteOut {
                size: len,
                padding: 0,
            },
        );
    }

    /// Makes the kernel ask again for the attributes of `node`.
    ///
    /// # Errors
    /// What the kernel says, unless it does not know the node.
    pub fn attributes_changed(&self, node: u64) -> io::Result<()> {
        let message = NotifyInvalInodeOut {
            ino: node,
            off: -1,
            len: 0,
        };
        self.notify(NOTIFY_INVAL_INODE, &[message.as_bytes()])
    }

    /// Makes the kernel forget that `name` is in `parent`. Waits for a LOOKUP in that directory:
    /// not to be called by a thread that serves requests.
    ///
    /// # Errors
    /// What the kernel says, unless it does not know the name.
    pub fn name_gone(&self, parent: u64, name: &str) -> io::Result<()> {
        let namelen = u32::try_from(name.len()).unwrap_or(u32::MAX);
        let message = NotifyInvalEntryOut {
            parent,
            namelen,
            flags: 0,
        };
        let parts = [message.as_bytes(), name.as_bytes(), b"\0"];
        self.notify(NOTIFY_INVAL_ENTRY, &parts)
    }

    /// Makes the kernel send again whatever was read and not answered.
    ///
    /// # Errors
    /// What the kernel says: before Linux 6.9 it knows no such thing.
    pub fn resend(&self) -> io::Result<()> {
        self.notify(NOTIFY_RESEND, &[])
    }

    fn notify(&self, code: i32, parts: &[&[u8]]) -> io::Result<()> {
        let body = parts.concat();
        let header = header(0, code, body.len());
        self.checked((&self.device).write(&[header.as_bytes(), &body].concat()))
    }

    /// ENOENT: the request was ended (its process was killed, the connection aborted) or the kernel
    /// has forgotten the node. ENODEV, ENOTCONN: the mount is gone. All of them need no answer.
    fn checked(&self, result: io::Result<usize>) -> io::Result<()> {
        match result {
            Ok(_) => Ok(()),
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENOENT | libc::ENODEV | libc::ENOTCONN | libc::ECONNABORTED)
                ) =>
            {
                Ok(())
            }
            Err(error) => {
                self.refused.fetch_add(1, Ordering::Relaxed);
                Err(error)
            }
        }
    }
}
