// SPDX-License-Identifier: Apache-2.0
//! The host's engine with its FUSE door.

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::error::os_error;
use super::mirror::Mirror;
use super::value;
use crate::engine::{self, AttachOptions, EngineOptions, FetchFailure, OnFull};
use crate::fuse::{Fuse, Options, Owner};
use crate::sys::shared::{adopt, disown};

/// Requests that are executed at the same time, unless the caller knows better.
const THREADS: usize = 16;

/// The mirrors, the chunk cache and the FUSE session of one host.
#[pyclass(frozen, module = "nova_lazyimage._mirror")]
pub(super) struct Engine {
    inner: Arc<engine::Engine>,
    /// Serves what is attached; a mirror may be attached before there is a mount.
    fuse: Mutex<Option<Arc<Fuse>>>,
    threads: usize,
    /// The digest of the session's id.
    session: [u8; 32],
}

/// Set: the kernel is not asked to resend, as if it could not. For tests, and for a kernel whose
/// resending turns out to be bad.
const WITHOUT_RESEND: &str = "LAZYIMAGE_FUSE_WITHOUT_RESEND";

impl Engine {
    fn door(&self) -> MutexGuard<'_, Option<Arc<Fuse>>> {
        self.fuse.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mounted(&self) -> PyResult<Arc<Fuse>> {
        let mounted = self.door().clone();
        mounted.ok_or_else(|| PyRuntimeError::new_err("not mounted: call mount() first"))
    }

    fn options(&self) -> Options {
        Options {
            threads: self.threads,
            session: self.session,
            resend: std::env::var_os(WITHOUT_RESEND).is_none(),
        }
    }
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (
        *, cache_directory, cache_bytes, session_id, threads = THREADS,
        fetch_timeout_seconds = 0.0, on_full = "hold", slow_request_seconds = 0.0,
        cache_reserve_bytes = 0, scrub_bytes_per_second = 0
    ))]
    #[allow(clippy::too_many_arguments)] // Python's keywords
    fn new(
        py: Python<'_>,
        cache_directory: PathBuf,
        cache_bytes: u64,
        session_id: String,
        threads: usize,
        fetch_timeout_seconds: f64,
        on_full: &str,
        slow_request_seconds: f64,
        cache_reserve_bytes: u64,
        scrub_bytes_per_second: u64,
    ) -> PyResult<Self> {
        let on_full = match on_full {
            "hold" => OnFull::Hold,
            "error" => OnFull::Error,
            _ => return Err(PyValueError::new_err("on_full is 'hold' or 'error'")),
        };
        let timeout = value::seconds(fetch_timeout_seconds)?;
        let session = *blake3::hash(session_id.as_bytes()).as_bytes();
        let options = EngineOptions {
            cache_directory,
            cache_bytes,
            cache_reserve_bytes,
            scrub_bytes_per_second,
            session_id,
            threads,
            fetch_timeout: (!timeout.is_zero()).then_some(timeout),
            on_full,
        };
        let slow = value::seconds(slow_request_seconds)?;
        let inner = py.detach(|| engine::Engine::open(options))?;
        inner.tell_slower_than(slow);
        Ok(Self {
            inner,
            fuse: Mutex::default(),
            threads,
            session,
        })
    }

    fn mount(&self, py: Python<'_>, path: PathBuf) -> PyResult<()> {
        py.detach(|| {
            let mut door = self.door();
            if door.is_some() {
                return Err(PyRuntimeError::new_err("mounted already"));
            }
            let events = self.inner.events().clone();
            let fuse = Fuse::mount(&path, &self.options(), events).map_err(|error| {
                os_error(
                    error.raw_os_error(),
                    format!("could not mount: {error}"),
                    Some(&path),
                )
            })?;
            *door = Some(Arc::new(fuse));
            Ok(())
        })
    }

    fn unmount(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            let Some(fuse) = self.door().take() else {
                return Ok(());
            };
            fuse.unmount().map_err(|error| {
                let path = fuse.path();
                os_error(
                    error.raw_os_error(),
                    format!("could not unmount: {error}"),
                    Some(path),
                )
            })
        })
    }

    fn session_descriptors(&self) -> PyResult<(RawFd, RawFd)> {
        let fuse = self.mounted()?;
        let (device, memory) = fuse.descriptors();
        Ok((device.as_raw_fd(), memory.as_raw_fd()))
    }

    fn resume(
        &self,
        py: Python<'_>,
        at: PathBuf,
        device_fd: RawFd,
        memory_fd: RawFd,
    ) -> PyResult<()> {
        py.detach(|| {
            let mut door = self.door();
            if door.is_some() {
                return Err(PyRuntimeError::new_err("mounted already"));
            }
            let Some((device, memory)) = adopt(device_fd, memory_fd) else {
                let message = "resume() takes two open descriptors".to_owned();
                return Err(os_error(Some(libc::EBADF), message, Some(&at)));
            };
            let events = self.inner.events().clone();
            match Fuse::resume(&at, &device, &memory, &self.options(), events) {
                Ok(fuse) => {
                    *door = Some(Arc::new(fuse));
                    Ok(())
                }
                Err(error) => {
                    // They stay the caller's.
                    disown([Some(device), Some(memory)]);
                    let message = format!("could not resume the session: {error}");
                    Err(match error.kind() {
                        ErrorKind::InvalidData => PyValueError::new_err(message),
                        _ => os_error(error.raw_os_error(), message, Some(&at)),
                    })
                }
            }
        })
    }

    fn serve(&self, py: Python<'_>) -> PyResult<()> {
        let fuse = self.mounted()?;
        py.detach(|| fuse.serve()).map_err(|error| {
            let message = format!("could not serve the session: {error}");
            os_error(error.raw_os_error(), message, Some(fuse.path()))
        })
    }

    fn abandon_session(&self, py: Python<'_>) -> PyResult<()> {
        self.unmount(py)?;
        py.detach(|| Ok(self.inner.detach_all()?))
    }

    fn hand_over(&self, py: Python<'_>) -> PyResult<()> {
        let fuse = self.mounted()?;
        py.detach(|| {
            let flushed = self.inner.flush_all();
            fuse.begin_hand_over();
            let result = self.inner.hand_over(|| fuse.leave_parked());
            // Even if a flush failed: the successor's will tell its guests.
            fuse.release().map_err(|error| {
                os_error(error.raw_os_error(), error.to_string(), Some(fuse.path()))
            })?;
            Ok(flushed.and(result)?)
        })
    }

    #[allow(clippy::too_many_arguments)] // Python's keywords
    #[pyo3(signature = (
        *, instance, disk, attach_id, directory, live_map, size_bytes, chunk_size_bytes, chunk_key,
        leaves, create, uid, gid, mode
    ))]
    fn attach(
        &self,
        py: Python<'_>,
        instance: String,
        disk: String,
        attach_id: String,
        directory: PathBuf,
        live_map: PathBuf,
        size_bytes: u64,
        chunk_size_bytes: u64,
        chunk_key: &[u8],
        leaves: Vec<(u64, Vec<u8>)>,
        create: bool,
        uid: u32,
        gid: u32,
        mode: u32,
    ) -> PyResult<Mirror> {
        let fuse = self.mounted()?;
        let options = AttachOptions {
            instance: instance.clone(),
            disk: disk.clone(),
            attach_id,
            directory,
            live_map,
            size_bytes,
            chunk_size_bytes,
            chunk_key: value::digest(chunk_key)?,
            leaves,
            create,
        };
        let inner = py.detach(|| {
            let inner = if fuse.is_orphan(&instance, &disk) {
                self.inner.attach_survivor(options)
            } else {
                self.inner.attach(options)
            }?;
            let owner = Owner { uid, gid, mode };
            let added = fuse.add(&instance, &disk, inner.clone(), owner);
            added.map_err(|error| {
                let _ = self.inner.detach(&instance, &disk);
                let path = fuse.path().join(&instance).join(&disk);
                os_error(
                    error.raw_os_error(),
                    format!("could not expose: {error}"),
                    Some(&path),
                )
            })?;
            Ok::<_, PyErr>(inner)
        })?;
        Ok(Mirror::new(inner, fuse, instance, disk))
    }

    fn detach(&self, py: Python<'_>, instance: &str, disk: &str) -> PyResult<()> {
        py.detach(|| {
            if let Some(fuse) = self.door().clone() {
                fuse.remove(instance, disk);
            }
            Ok(self.inner.detach(instance, disk)?)
        })
    }

    fn next_fetch<'py>(
        &self,
        py: Python<'py>,
        guests_only: bool,
        timeout_seconds: f64,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let timeout = value::seconds(timeout_seconds)?;
        let Some(fetch) = py.detach(|| self.inner.next_fetch(guests_only, timeout)) else {
            return Ok(None);
        };
        let dict = PyDict::new(py);
        dict.set_item("digest", PyBytes::new(py, &fetch.digest))?;
        dict.set_item("priority", fetch.priority)?;
        dict.set_item("chunk_size_bytes", fetch.chunk_size_bytes)?;
        Ok(Some(dict))
    }

    #[pyo3(signature = (digest, data, source = "store"))]
    fn fetched(&self, py: Python<'_>, digest: &[u8], data: &[u8], source: &str) -> PyResult<()> {
        let digest = value::digest(digest)?;
        let source = value::source(source)?;
        Ok(py.detach(|| self.inner.fetched_from(source, &digest, data))?)
    }

    fn refused(&self, py: Python<'_>, digest: &[u8], reason: &str, source: &str) -> PyResult<()> {
        let (digest, source) = (value::digest(digest)?, value::source(source)?);
        py.detach(|| self.inner.refused(source, &digest, reason));
        Ok(())
    }

    fn fetch_failed(
        &self,
        py: Python<'_>,
        digest: &[u8],
        kind: &str,
        reason: &str,
    ) -> PyResult<bool> {
        let digest = value::digest(digest)?;
        let failure = match kind {
            "transport" => FetchFailure::Transport,
            "missing" => FetchFailure::Missing,
            "corrupt" => FetchFailure::Corrupt,
            _ => {
                let message = "kind is 'transport', 'missing' or 'corrupt'";
                return Err(PyValueError::new_err(message));
            }
        };
        Ok(py.detach(|| self.inner.fetch_failed(&digest, failure, reason)))
    }

    fn cached<'py>(
        &self,
        py: Python<'py>,
        digest: &[u8],
        chunk_size_bytes: u64,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let digest = value::digest(digest)?;
        let content = py.detach(|| self.inner.cached(&digest, chunk_size_bytes));
        Ok(content.map(|content| PyBytes::new(py, content.as_ref())))
    }

    fn next_event<'py>(
        &self,
        py: Python<'py>,
        timeout_seconds: f64,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let timeout = value::seconds(timeout_seconds)?;
        let event = py.detach(|| self.inner.events().next(timeout));
        event.map(|event| value::event(py, event)).transpose()
    }

    fn requests(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.inner.requests())
    }

    fn close_events(&self) {
        self.inner.events().close();
    }

    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let statistics = py.detach(|| {
            let mut statistics = self.inner.statistics();
            if let Some(fuse) = &*self.door() {
                statistics.push(("fuse_refused_answers", fuse.refused_answers()));
                statistics.push(("fuse_protocol_minor", fuse.protocol_minor().into()));
            }
            statistics
        });
        value::dict(py, statistics)
    }

    fn latencies<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let latencies = py.detach(|| self.inner.latencies());
        value::dicts(py, latencies)
    }

    fn stop(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| {
            let fuse = self.door().clone();
            if let Some(fuse) = fuse {
                fuse.stop();
            }
            Ok(self.inner.stop()?)
        })
    }
}
