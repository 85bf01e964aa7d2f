// SPDX-License-Identifier: Apache-2.0
//! What a COMMIT holds of a disk, while it stands still and while it is uploaded.

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::commit;

/// A disk that stands still.
#[pyclass(frozen, module = "nova_lazyimage._mirror")]
pub(super) struct Held {
    inner: commit::Held,
}

impl From<commit::Held> for Held {
    fn from(inner: commit::Held) -> Self {
        Self { inner }
    }
}

#[pymethods]
impl Held {
    #[getter]
    fn is_held(&self, py: Python<'_>) -> bool {
        py.detach(|| self.inner.is_held())
    }

    fn seal(&self, py: Python<'_>) -> PyResult<Sealed> {
        let inner = py.detach(|| self.inner.seal())?;
        Ok(inner.into())
    }

    fn thaw(&self, py: Python<'_>) -> bool {
        py.detach(|| self.inner.thaw())
    }
}

/// The dirty chunks as they were at a freeze.
#[pyclass(frozen, module = "nova_lazyimage._mirror")]
pub(super) struct Sealed {
    inner: commit::Sealed,
}

impl From<commit::Sealed> for Sealed {
    fn from(inner: commit::Sealed) -> Self {
        Self { inner }
    }
}

#[pymethods]
impl Sealed {
    #[getter]
    fn size_bytes(&self) -> u64 {
        self.inner.size_bytes()
    }

    #[getter]
    fn pause_seconds(&self) -> (f64, f64) {
        let pause = self.inner.pause();
        (pause.total.as_secs_f64(), pause.overhead.as_secs_f64())
    }

    #[getter]
    fn chunks(&self, py: Python<'_>) -> Vec<u64> {
        py.detach(|| self.inner.chunks().to_vec())
    }

    fn read<'py>(&self, py: Python<'py>, chunk: u64) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| self.inner.read(chunk))?;
        Ok(PyBytes::new(py, &bytes))
    }

    fn uploaded(&self, py: Python<'_>, chunk: u64) {
        py.detach(|| self.inner.uploaded(chunk));
    }

    fn publish(&self, py: Python<'_>) {
        py.detach(|| self.inner.publish());
    }

    fn abandon(&self, py: Python<'_>) {
        py.detach(|| self.inner.abandon());
    }
}
