// SPDX-License-Identifier: Apache-2.0
//! What the engine's failures are in Python.

use std::path::Path;

use pyo3::exceptions::{PyBlockingIOError, PyOSError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;

use crate::error::Error;

pyo3::create_exception!(
    _mirror,
    ChunkCorrupt,
    PyValueError,
    "Not what its digest names."
);

pub(super) fn os_error(errno: Option<i32>, message: String, path: Option<&Path>) -> PyErr {
    match (errno, path) {
        (Some(errno), Some(path)) => PyOSError::new_err((errno, message, path.to_owned())),
        (Some(errno), None) => PyOSError::new_err((errno, message)),
        (None, _) => PyOSError::new_err(message),
    }
}

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Io { path, source, .. } => os_error(source.raw_os_error(), message, Some(&path)),
            Error::Locked { path, .. } => os_error(Some(libc::EBUSY), message, Some(&path)),
            Error::Invalid(_) => PyValueError::new_err(message),
            Error::Corrupt(_) => ChunkCorrupt::new_err(message),
            Error::Thawed => PyTimeoutError::new_err((libc::ETIMEDOUT, message)),
            Error::AlreadySealed => PyBlockingIOError::new_err((libc::EAGAIN, message)),
        }
    }
}
