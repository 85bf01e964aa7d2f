// SPDX-License-Identifier: Apache-2.0
//! The chunk cache under pressure: who goes, who stays, what a restart keeps, what rots, who lies.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "../common/mod.rs"]
mod common;
mod fleet;
mod full;
mod lies;
mod pressure;
mod restart;
mod stress;
