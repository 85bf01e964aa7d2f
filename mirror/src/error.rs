// SPDX-License-Identifier: Apache-2.0
//! The engine's one public error: a small kind to match on, a context for people, a cause below.

use std::io;
use std::path::{Path, PathBuf};

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

    /// The errno that says it best.
    #[must_use]
    pub fn raw_os_error(&self) -> i32 {
        match self {
            Self::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
            Self::Invalid(_) => libc::EINVAL,
            Self::Corrupt(_) => libc::EIO,
            Self::AlreadySealed => libc::EAGAIN,
            Self::Thawed => libc::ETIMEDOUT,
        }
    }
}
