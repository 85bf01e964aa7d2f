// SPDX-License-Identifier: Apache-2.0
//! The engine as Python sees it: `nova_lazyimage/_mirror.pyi` is the contract.
//!
//! Every call lets go of the GIL (`py.detach`) before it touches the engine: its locks may be held
//! by a thread that waits for a disk, and no thread of the engine ever needs the GIL.
//!
//! One module a class; `error` and `value` translate for all of them.

#![allow(clippy::needless_pass_by_value)] // Python's arguments arrive owned

mod commit;
mod engine;
mod error;
mod mirror;
mod passthrough;
mod value;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyTuple};

use crate::{meter, object};

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
    module.add(
        "ChunkCorrupt",
        module.py().get_type::<error::ChunkCorrupt>(),
    )?;
    let bounds: Vec<u64> = meter::bounds().collect();
    module.add(
        "LATENCY_BOUNDS_MICROSECONDS",
        PyTuple::new(module.py(), bounds)?,
    )?;
    module.add_class::<engine::Engine>()?;
    module.add_class::<mirror::Mirror>()?;
    module.add_class::<commit::Held>()?;
    module.add_class::<commit::Sealed>()?;
    module.add_function(wrap_pyfunction!(passthrough::passthrough, module)?)?;
    module.add_function(wrap_pyfunction!(decode_object, module)?)?;
    Ok(())
}
