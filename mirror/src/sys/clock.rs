// SPDX-License-Identifier: Apache-2.0
//! A clock that is nearly free and ticks every few milliseconds.
#![allow(unsafe_code)]

/// Milliseconds of the monotonic clock as of the kernel's last tick; 0 where there is none.
#[inline]
#[must_use]
pub fn coarse_milliseconds() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the kernel (its vDSO) writes one timespec, which is ours and lives until it returns.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &raw mut now) };
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}
