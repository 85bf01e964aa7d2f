// SPDX-License-Identifier: Apache-2.0
//! Where tests see, fail and cut short what a mirror does to its files and to its live map.
//!
//! Every such step passes [`call`] or [`step`] and so has a name: *file*`.`*verb*, `delta.sync`. The
//! names are those of the crash table (`CRASHES.rst`). Without the feature `faults` both are nothing;
//! with it a test that watches a directory ([`Watch`]) gets the steps in their order with all their
//! bytes, may do something at one, make one fail, or end the process at one.

use std::io;
use std::path::Path;

#[cfg(feature = "faults")]
mod watch;
#[cfg(feature = "faults")]
pub use watch::{Change, Entry, Failure, Watch};

/// What a call does to its file.
#[derive(Debug, Clone, Copy)]
pub enum Call<'a> {
    /// Brings it into being, unless it is there.
    Create,
    /// Bytes, from an offset on.
    Write(u64, &'a [u8]),
    /// Zeros: offset and length.
    Punch(u64, u64),
    /// Its length.
    Resize(u64),
    /// At least this length.
    Allocate(u64),
    /// Makes durable what calls that have returned did.
    Sync,
    /// Nothing that a power loss could show.
    Other,
}

/// Runs a call on the file at `path`.
#[cfg(not(feature = "faults"))]
#[inline(always)]
#[allow(clippy::inline_always, reason = "it must be as if it were not there")]
pub(crate) fn call<T>(
    _: &Path,
    _: &'static str,
    _: Call<'_>,
    work: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    work()
}

/// A step of the live map at `path`, or beside it, was done.
#[cfg(not(feature = "faults"))]
#[inline(always)]
#[allow(clippy::inline_always, reason = "it must be as if it were not there")]
pub(crate) fn step(_: &Path, _: &'static str) {}

/// Runs a call on the file at `path`, as whoever watches it wants.
#[cfg(feature = "faults")]
pub(crate) fn call<T>(
    path: &Path,
    verb: &'static str,
    call: Call<'_>,
    work: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    match Watch::of(path) {
        Some(watch) => watch.call(path, verb, call, work),
        None => work(),
    }
}

/// A step of the live map at `path`, or beside it, was done.
#[cfg(feature = "faults")]
pub(crate) fn step(path: &Path, verb: &'static str) {
    if let Some(watch) = Watch::of(path) {
        watch.step(path, verb);
    }
}
