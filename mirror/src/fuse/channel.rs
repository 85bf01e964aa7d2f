// SPDX-License-Identifier: Apache-2.0
//! `/dev/fuse`: where answers and notifications are written, by any thread.
//!
//! Each is one write(2), which the kernel takes whole or not at all; no lock is needed. Reads and
//! plain requests that were parked need only their ticket to be answered. A parked WRITE's answer
//! also carries its length, which the disk does not know: [`ParkedWrites`] keeps it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSlice, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use zerocopy::{Immutable, IntoBytes};

use super::abi::{
    NOTIFY_INVAL_ENTRY, NOTIFY_INVAL_INODE, NotifyInvalEntryOut, NotifyInvalInodeOut, WriteOut,
};
use super::slot::header;
use crate::disk::{Door, Errno, Ticket};

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
        let _ = self.checked((&self.device).write(answer));
    }

    /// Answers with bytes.
    pub fn bytes(&self, unique: u64, bytes: &[u8]) {
        let header = header(unique, 0, bytes.len());
        let parts = [IoSlice::new(header.as_bytes()), IoSlice::new(bytes)];
        let _ = self.checked((&self.device).write_vectored(&parts));
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

/// The door of all requests but WRITE.
#[derive(Debug)]
pub struct PlainDoor(pub Arc<Channel>);

impl Door for PlainDoor {
    fn complete(&self, ticket: Ticket, result: Result<&[u8], Errno>) {
        match result {
            Ok(bytes) => self.0.bytes(ticket, bytes),
            Err(errno) => self.0.error(ticket, errno),
        }
    }
}

/// The door of WRITE.
///
/// The disk may end a parked WRITE before the thread that served it knows that it was parked: who
/// comes second answers. So nothing is noted for writes that do not park, nearly all of them.
#[derive(Debug)]
pub struct ParkedWrites {
    channel: Arc<Channel>,
    met: Mutex<HashMap<Ticket, Met>>,
}

#[derive(Debug)]
enum Met {
    Served(u32),
    Completed(Result<(), Errno>),
}

impl ParkedWrites {
    /// None yet.
    #[must_use]
    pub fn new(channel: Arc<Channel>) -> Self {
        Self {
            channel,
            met: Mutex::default(),
        }
    }

    /// The WRITE of `len` bytes was parked.
    pub fn parked(&self, ticket: Ticket, len: u32) {
        if let Some(Met::Completed(result)) = self.meet(ticket, Met::Served(len)) {
            self.answer(ticket, len, result);
        }
    }

    /// The other side's note, if it came first.
    fn meet(&self, ticket: Ticket, ours: Met) -> Option<Met> {
        let mut met = self.met.lock().unwrap_or_else(PoisonError::into_inner);
        let theirs = met.remove(&ticket);
        if theirs.is_none() {
            met.insert(ticket, ours);
        }
        theirs
    }

    fn answer(&self, ticket: Ticket, len: u32, result: Result<(), Errno>) {
        match result {
            Ok(()) => self.channel.written(ticket, len),
            Err(errno) => self.channel.error(ticket, errno),
        }
    }
}

impl Door for ParkedWrites {
    fn complete(&self, ticket: Ticket, result: Result<&[u8], Errno>) {
        let result = result.map(|_| ());
        if let Some(Met::Served(len)) = self.meet(ticket, Met::Completed(result)) {
            self.answer(ticket, len, result);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek};

    use super::*;

    fn answers(channel: &Channel) -> Vec<u8> {
        let mut file = channel.device();
        let mut bytes = Vec::new();
        file.rewind().expect("a file");
        file.read_to_end(&mut bytes).expect("a file");
        bytes
    }

    #[test]
    fn a_parked_write_is_answered_once_with_its_length_whoever_comes_first() {
        for disk_first in [false, true] {
            let file = tempfile::tempfile().expect("a temporary file");
            let channel = Arc::new(Channel::new(file));
            let writes = ParkedWrites::new(channel.clone());
            if disk_first {
                writes.complete(6, Ok(b""));
                assert_eq!(answers(&channel), b"");
                writes.parked(6, 4096);
            } else {
                writes.parked(6, 4096);
                assert_eq!(answers(&channel), b"");
                writes.complete(6, Ok(b""));
            }
            let expected = [
                header(6, 0, 8).as_bytes(),
                WriteOut {
                    size: 4096,
                    padding: 0,
                }
                .as_bytes(),
            ]
            .concat();
            assert_eq!(answers(&channel), expected);
        }
    }

    #[test]
    fn a_parked_write_that_fails_answers_its_errno() {
        let channel = Arc::new(Channel::new(
            tempfile::tempfile().expect("a temporary file"),
        ));
        let writes = ParkedWrites::new(channel.clone());
        writes.parked(8, 512);
        writes.complete(8, Err(libc::ENOSPC));
        assert_eq!(answers(&channel), header(8, -libc::ENOSPC, 0).as_bytes());
    }
}
