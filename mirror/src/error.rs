// SPDX-License-Identifier: Apache-2.0
//! The engine's one public error: a small kind to match on, a context for people, a cause below.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::fence;

/// What the engine answers with.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// How a call of the engine failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused; Python sees `OSError` with errno and path.
    #[error("could not {operation} \"{}\": {source}", path.display())]
    Io {
        /// The verb: `open`, `flush` …
        operation: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's own words.
        source: io::Error,
    },
    /// Another process has the file; Python sees `OSError` EBUSY.
    #[error("could not lock \"{}\": {holder} has it; {remedy}", path.display())]
    Locked {
        /// The file.
        path: PathBuf,
        /// Whoever has it.
        holder: String,
        /// What to do.
        remedy: &'static str,
    },
    /// An argument or a file's content makes no sense; Python sees `ValueError`.
    #[error("{0}")]
    Invalid(String),
    /// An object that does not match its digest or its own header; Python sees `ChunkCorrupt`.
    #[error("{0}")]
    Corrupt(String),
    /// A COMMIT of this mirror is held or sealed already; Python sees `BlockingIOError`.
    #[error("a COMMIT of this mirror is held or sealed already; wait until it has ended")]
    AlreadySealed,
    /// The freeze holds no more; Python sees `TimeoutError`.
    #[error("the freeze has ended: its time was up, or it was thawed or sealed; freeze again")]
    Thawed,
}

impl Error {
    pub(crate) fn io(operation: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io {
            operation,
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn errno(operation: &'static str, path: &Path, errno: i32) -> Self {
        Self::io(operation, path, io::Error::from_raw_os_error(errno))
    }

    pub(crate) fn locked(path: &Path, file: &File, remedy: &'static str) -> Self {
        let holder = match fence::holder(file) {
            holder if holder.is_empty() => "another process".to_owned(),
            holder => holder,
        };
        Self::Locked {
            path: path.to_owned(),
            holder,
            remedy,
        }
    }

    /// The errno that says it best.
    #[must_use]
    pub fn raw_os_error(&self) -> i32 {
        match self {
            Self::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            Self::Locked { .. } => libc::EBUSY,
            Self::Invalid(_) => libc::EINVAL,
            Self::Corrupt(_) => libc::EIO,
            Self::AlreadySealed => libc::EAGAIN,
            Self::Thawed => libc::ETIMEDOUT,
        }
    }
}
