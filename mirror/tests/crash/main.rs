// SPDX-License-Identifier: Apache-2.0
//! Nothing lost: the crash table (`CRASHES.rst`) step by step.
//!
//! These tests were seen to fail, one by one, of: a flush that writes the map before it syncs the
//! delta, or syncs either not at all, or copies the pages after the sync, or is answered by a round
//! that began before it; a page whose writer is not announced; the local bit before the data, the
//! dirty bit after it; *clean* written before the last flush or left at attach, the pages of dirty
//! bits not written before it; a successor that takes pages for written; dirty bits believed without
//! *clean*; frozen bits not merged; a freeze without its flush; a discard that does not punch; a
//! header that is not synced, or names a size before the files have it; a failed sync that does not
//! stick, of a flush or a growth, or not for a successor.

#![allow(clippy::unwrap_used, reason = "test code")]

mod agent;
#[path = "../common/mod.rs"]
mod common;
mod failing;
mod image;
mod model;
mod power;
mod table;
mod world;

/// `tools/test/wheel` looks for this text in what is delivered.
#[test]
fn a_build_with_faults_says_so() {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let mark = b"faults can be provoked in this build";
    assert!(program.windows(mark.len()).any(|part| part == mark));
}
