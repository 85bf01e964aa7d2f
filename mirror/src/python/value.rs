// SPDX-License-Identifier: Apache-2.0
//! Arguments and answers that are more than a number.

use std::time::Duration;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::engine::{self, Statistics};
use crate::event::{Event, Value};
use crate::job::Wait;
use crate::meter::Latencies;
use crate::refusal::Source;

pub(super) fn seconds(timeout_seconds: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(timeout_seconds.max(0.0))
        .map_err(|error| PyValueError::new_err(error.to_string()))
}

pub(super) fn digest(bytes: &[u8]) -> PyResult<engine::Digest> {
    bytes
        .try_into()
        .map_err(|_| PyValueError::new_err("a digest has 32 bytes"))
}

pub(super) fn source(name: &str) -> PyResult<Source> {
    Source::named(name).ok_or_else(|| PyValueError::new_err("source is 'store' or 'peer'"))
}

pub(super) fn dict(py: Python<'_>, statistics: Statistics) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    for (name, value) in statistics {
        dict.set_item(name, value)?;
    }
    Ok(dict)
}

/// Histograms; the bounds and their unit are the module's.
pub(super) fn dicts(py: Python<'_>, latencies: Vec<Latencies>) -> PyResult<Vec<Bound<'_, PyDict>>> {
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

/// What waits, each as `Wait` of the stub.
pub(super) fn waits(py: Python<'_>, waits: Vec<Wait>) -> PyResult<Vec<Bound<'_, PyDict>>> {
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

/// An event: its kind among its fields.
pub(super) fn event(py: Python<'_>, event: Event) -> PyResult<Bound<'_, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("kind", event.kind)?;
    for (name, value) in event.fields {
        match value {
            Value::Text(text) => dict.set_item(name, text)?,
            Value::Number(number) => dict.set_item(name, number)?,
        }
    }
    Ok(dict)
}
