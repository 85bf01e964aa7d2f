// SPDX-License-Identifier: Apache-2.0
//! See `src/fuzzing.rs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| _mirror::fuzzing::session(data));
