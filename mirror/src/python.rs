// SPDX-License-Identifier: Apache-2.0
//! The engine as Python sees it: `nova_lazyimage/_mirror.pyi` is the contract.
//!
//! Every call lets go of the GIL (`py.detach`) before it touches the engine: its locks may be held
//! by a thread that waits for a disk, and no thread of the engine ever needs the GIL.

#![allow(clippy::needless_pass_by_value)] // Python's arguments arrive owned

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::exceptions::{
    PyBlockingIOError, PyOSError, PyRuntimeError, PyTimeoutError, PyValueError,
};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyTuple};

use crate::commit;
use crate::disk::Disk;
use crate::engine::{self, AttachOptions, EngineOptions, FetchFailure, OnFull, Statistics};
use crate::error::Error;
use crate::event::{Events, Value};
use crate::fuse::{Fuse, Options, Owner};
use crate::job::Wait;
use crate::meter::{self, Latencies};
use crate::mirror;
use crate::object;
use crate::passthrough::Passthrough;
use crate::refusal::Source;
use crate::sys::shared::{adopt, disown};

pyo3::create_exception!(
    _mirror,
    ChunkCorrupt,
    PyValueError,
    "Not what its digest names."
);

/// Requests that are executed at the same time, unless the caller knows better.
const THREADS: usize = 16;

fn os_error(errno: Option<i32>, message: String, path: Option<&Path>) -> PyErr {
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
            Error::Invalid(_) => PyValueError::new_err(message),
            Error::Corrupt(_) => ChunkCorrupt::new_err(message),
            Error::Thawed => PyTimeoutError::new_err((libc::ETIMEDOUT, message)),
            Error::AlreadySealed => PyBlockingIOError::new_err((libc::EAGAIN, message)),
        }
    }
}

fn seconds(timeout_seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(timeout_seconds.max(0.0))
        .map_err(|error| PyValueError::new_err(error.to_string()))
}

fn digest(bytes: &[u8]) -> PyResult<engine::Digest> {
    bytes
        .try_into()
        .map_err(|_| PyValueError::new_err("a digest has 32 bytes"))
}

fn dict(py: Python<'_>, statistics: Statistics) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in statistics {
        dict.set_item(name, value)?;
    }
    Ok(dict)
}

/// Histograms; the bounds and their unit are the module's.
fn dicts(py: Python<'_>, latencies: Vec<Latencies>) -> PyResult<Vec<Bound<'_, PyDict>>> {
    let fill = |one: Latencies| {
        let dict = PyDict::new(py);
        dict.set_item("operation", one.operation)?;
        dict.set_item("source", one.source)?;
        dict.set_item("counts", one.counts)?;
        dict.set_item("microseconds", one.microseconds)?;
        Ok(dict)
    };
    latencies.into_iter().map(fill).collect()
}

/// The mirrors, the chunk cache and the FUSE session of one host.
#[pyclass(frozen, module = "nova_lazyimage._mirror")]
struct Engine {
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
        let timeout = seconds(fetch_timeout_seconds)?;
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
        let slow = seconds(slow_request_seconds)?;
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
            fuse.begin_hand_over();
            let result = self.inner.hand_over(|| fuse.leave_parked());
            // Even if a flush failed: the successor's will tell its guests.
            fuse.release().map_err(|error| {
                os_error(error.raw_os_error(), error.to_string(), Some(fuse.path()))
            })?;
            Ok(result?)
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
            chunk_key: digest(chunk_key)?,
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
        Ok(Mirror {
            inner,
            fuse,
            instance,
            disk,
        })
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
        let timeout = seconds(timeout_seconds)?;
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
        let digest = self::digest(digest)?;
        let source = Source::named(source)
            .ok_or_else(|| PyValueError::new_err("source is 'store' or 'peer'"))?;
        Ok(py.detach(|| self.inner.fetched_from(source, &digest, data))?)
    }

    fn fetch_failed(
        &self,
        py: Python<'_>,
        digest: &[u8],
        kind: &str,
        reason: &str,
    ) -> PyResult<()> {
        let digest = self::digest(digest)?;
        let failure = match kind {
            "transport" => FetchFailure::Transport,
            "missing" => FetchFailure::Missing,
            "corrupt" => FetchFailure::Corrupt,
            _ => {
                let message = "kind is 'transport', 'missing' or 'corrupt'";
                return Err(PyValueError::new_err(message));
            }
        };
        py.detach(|| self.inner.fetch_failed(&digest, failure, reason));
        Ok(())
    }

    fn next_event<'py>(
        &self,
        py: Python<'py>,
        timeout_seconds: f64,
    ) -> PyResult<Option<Bound<'py, PyDict>>> {
        let timeout = seconds(timeout_seconds)?;
        let Some(event) = py.detach(|| self.inner.events().next(timeout)) else {
            return Ok(None);
        };
        let dict = PyDict::new(py);
        dict.set_item("kind", event.kind)?;
        for (name, value) in event.fields {
            match value {
                Value::Text(text) => dict.set_item(name, text)?,
                Value::Number(number) => dict.set_item(name, number)?,
            }
        }
        Ok(Some(dict))
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
        dict(py, statistics)
    }

    fn latencies<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let latencies = py.detach(|| self.inner.latencies());
        dicts(py, latencies)
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

/// One disk of one server.
#[pyclass(frozen, module = "nova_lazyimage._mirror")]
struct Mirror {
    inner: Arc<mirror::Mirror>,
    fuse: Arc<Fuse>,
    instance: String,
    disk: String,
}

#[pymethods]
impl Mirror {
    #[getter]
    fn size_bytes(&self, py: Python<'_>) -> u64 {
        py.detach(|| self.inner.size_bytes())
    }

    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let status = py.detach(|| self.inner.status());
        dict(py, status)
    }

    fn latencies<'py>(&self, py: Python<'py>) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let latencies = py.detach(|| self.inner.latencies());
        dicts(py, latencies)
    }

    fn waits<'py>(&self, py: Python<'py>, count_max: usize) -> PyResult<Vec<Bound<'py, PyDict>>> {
        let waits = py.detach(|| self.inner.waits(count_max));
        let fill = |wait: Wait| {
            let dict = PyDict::new(py);
            dict.set_item("operation", wait.operation)?;
            dict.set_item("offset", wait.offset)?;
            dict.set_item("bytes", wait.bytes)?;
            dict.set_item("chunk", wait.chunk)?;
            dict.set_item("reason", wait.reason)?;
            dict.set_item("milliseconds", wait.milliseconds)?;
            Ok(dict)
        };
        waits.into_iter().map(fill).collect()
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
        Ok(Sealed { inner })
    }

    fn hold(&self, py: Python<'_>, limit_seconds: f64) -> PyResult<Held> {
        let limit = seconds(limit_seconds)?;
        let inner = py.detach(|| self.inner.hold(limit))?;
        Ok(Held { inner })
    }
}

/// A disk that stands still.
#[pyclass(frozen, module = "nova_lazyimage._mirror")]
struct Held {
    inner: commit::Held,
}

#[pymethods]
impl Held {
    #[getter]
    fn is_held(&self, py: Python<'_>) -> bool {
        py.detach(|| self.inner.is_held())
    }

    fn seal(&self, py: Python<'_>) -> PyResult<Sealed> {
        let inner = py.detach(|| self.inner.seal())?;
        Ok(Sealed { inner })
    }

    fn thaw(&self, py: Python<'_>) -> bool {
        py.detach(|| self.inner.thaw())
    }
}

/// The dirty chunks as they were at a freeze.
#[pyclass(frozen, module = "nova_lazyimage._mirror")]
struct Sealed {
    inner: commit::Sealed,
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

/// Serve one plain file as `<mount>/passthrough/<its name>` until the mount is taken away or a
/// signal's handler raises.
#[pyfunction]
fn passthrough(py: Python<'_>, mount: PathBuf, path: PathBuf, threads: usize) -> PyResult<()> {
    let failed = |error: std::io::Error| os_error(error.raw_os_error(), error.to_string(), None);
    let fuse = py.detach(|| {
        let disk = Arc::new(Passthrough::open(&path)?);
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let options = Options {
            threads,
            session: [0; 32],
            resend: true,
        };
        let fuse = Fuse::mount(&mount, &options, Arc::new(Events::default()))?;
        let (uid, gid) = crate::sys::fuse::user_and_group();
        let owner = Owner {
            uid,
            gid,
            mode: 0o644,
        };
        fuse.add("passthrough", &name, disk as Arc<dyn Disk>, owner)?;
        Ok(fuse)
    });
    let fuse = fuse.map_err(failed)?;
    loop {
        if py.detach(|| fuse.wait(Duration::from_millis(100))) {
            return Ok(());
        }
        if let Err(raised) = py.check_signals() {
            py.detach(|| fuse.unmount()).map_err(failed)?;
            return Err(raised);
        }
    }
}

/// The content of a chunk object; no digest is checked.
#[pyfunction]
fn decode_object<'py>(
    py: Python<'py>,
    data: &[u8],
    size_bytes_max: usize,
) -> PyResult<Bound<'py, PyBytes>> {
    let bytes = py.detach(|| object::decode(data, size_bytes_max))?;
    Ok(PyBytes::new(py, &bytes))
}

/// `nova_lazyimage._mirror`.
#[pymodule]
#[pyo3(name = "_mirror")]
fn names(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("ChunkCorrupt", module.py().get_type::<ChunkCorrupt>())?;
    let bounds: Vec<u64> = meter::bounds().collect();
    module.add(
        "LATENCY_BOUNDS_MICROSECONDS",
        PyTuple::new(module.py(), bounds)?,
    )?;
    module.add_class::<Engine>()?;
    module.add_class::<Mirror>()?;
    module.add_class::<Held>()?;
    module.add_class::<Sealed>()?;
    module.add_function(wrap_pyfunction!(passthrough, module)?)?;
    module.add_function(wrap_pyfunction!(decode_object, module)?)?;
    Ok(())
}
