// SPDX-License-Identifier: Apache-2.0
//! The data path of lazyimage: chunk cache, private deltas, and their FUSE door.
//!
//! A door (`fuse`) turns its protocol's requests into calls of a [`disk::Disk`]; only `python` knows
//! `PyO3` and only `sys` holds `unsafe`.

mod access;
mod base;
mod boot;
mod buffer;
mod cache;
pub mod commit;
mod core;
mod delta;
pub mod disk;
mod diskmap;
pub mod engine;
pub mod error;
pub mod event;
#[doc(hidden)]
pub mod faults;
mod fence;
mod flight;
mod flush;
pub mod fuse;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod job;
mod live;
pub mod meter;
pub mod mirror;
pub mod object;
mod pages;
pub mod passthrough;
mod pool;
#[cfg(feature = "python")]
mod python;
mod recover;
pub mod refusal;
#[doc(hidden)]
pub mod sync;
pub mod sys;
mod units;
mod watchdog;
