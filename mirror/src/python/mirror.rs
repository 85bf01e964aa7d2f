// SPDX-License-Identifier: Apache-2.0
//! One disk, behind the door that exposes it.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::commit::{Held, Sealed};
use super::error::os_error;
use super::value;
use crate::fuse::{Fuse, Owner};
use crate::mirror;

/// One disk of one server.
#[pyclass(frozen, module = "nova_lazyimage._mirror")]
pub(super) struct Mirror {
    inner: Arc<mirror::Mirror>,
    fuse: Arc<Fuse>,
    instance: String,
    disk: String,
}

impl Mirror {
    pub(super) fn new(
        inner: Arc<mirror::Mirror>,
        fuse: Arc<Fuse>,
        instance: String,
        disk: String,
    ) -> Self {
        Self {
            inner,
            fuse,
            instance,
            disk,
        }
    }
}

#[pymethods]
impl Mirror {
    #[getter]
    fn size_bytes(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.inner.size_bytes())
    }

    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let status = py.detach(|| self.inner.status());
        value::dict(py, status)
    }

    fn latencies<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let latencies = py.detach(|| self.inner.latencies());
        value::dicts(py, latencies)
    }

    fn waits<'py>(&self, py: Python<'py>, count_max: usize) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let waits = py.detach(|| self.inner.waits(count_max));
        value::waits(py, waits)
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        offset: u64,
        length: usize,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = py.detach(|| self.inner.read_wait(offset, length))?;
        Ok(PyBytes::new(py, &bytes))
    }

    fn flush(&self, py: Python<'_>) -> PyResult<()> {
        Ok(py.detach(|| self.inner.flush_wait())?)
    }

    #[getter]
    fn is_open(&self, py: Python<'_>) -> bool {
        py.detach(|| self.fuse.is_open(&self.instance, &self.disk))
    }

    fn reserve(&self, py: Python<'_>, size_bytes: u64) -> PyResult<()> {
        Ok(py.detach(|| self.inner.reserve(size_bytes))?)
    }

    fn grow(&self, py: Python<'_>, size_bytes: u64) -> PyResult<()> {
        py.detach(|| {
            self.inner.grow(size_bytes)?;
            self.fuse.grown(&self.instance, &self.disk);
            Ok(())
        })
    }

    fn set_owner(&self, py: Python<'_>, uid: u32, gid: u32, mode: u32) -> PyResult<()> {
        let owner = Owner { uid, gid, mode };
        py.detach(|| self.fuse.set_owner(&self.instance, &self.disk, owner))
            .map_err(|error| {
                let path = self.fuse.path().join(&self.instance).join(&self.disk);
                os_error(error.raw_os_error(), error.to_string(), Some(&path))
            })
    }

    fn end_misses(&self, py: Python<'_>) {
        py.detach(|| self.inner.end_misses());
    }

    fn allow_misses(&self, py: Python<'_>) {
        py.detach(|| self.inner.allow_misses());
    }

    fn freeze(&self, py: Python<'_>) -> PyResult<Sealed> {
        let inner = py.detach(|| self.inner.freeze())?;
        Ok(inner.into())
    }

    fn hold(&self, py: Python<'_>, limit_seconds: f64) -> PyResult<Held> {
        let limit = value::seconds(limit_seconds)?;
        let inner = py.detach(|| self.inner.hold(limit))?;
        Ok(inner.into())
    }
}
