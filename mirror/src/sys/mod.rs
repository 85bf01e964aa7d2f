// SPDX-License-Identifier: Apache-2.0
//! The system calls that `std` does not offer: the only module with `unsafe`.
//!
//! Everything here returns owned descriptors and `io::Result`; each block says why it is sound.

#![allow(unsafe_code)]

pub mod aio;
pub mod clock;
pub mod death;
pub mod file;
pub mod fuse;
pub mod mem;
pub mod shared;
