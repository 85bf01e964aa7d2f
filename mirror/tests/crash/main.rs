// SPDX-License-Identifier: Apache-2.0
//! Nothing lost: the crash table (`CRASHES.rst`) step by step.

#![allow(clippy::unwrap_used, reason = "test code")]

#[path = "../common/mod.rs"]
mod common;
mod image;
mod model;
mod power;
mod world;

/// `tools/test/wheel` looks for this text in what is delivered.
#[test]
fn a_build_with_faults_says_so() {
    let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
    let mark = b"faults can be provoked in this build";
    assert!(program.windows(mark.len()).any(|part| part == mark));
}
