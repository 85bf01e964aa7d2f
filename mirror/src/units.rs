// SPDX-License-Identifier: Apache-2.0
//! Blocks, their arithmetic, and locks that outlive a panic.

use crate::sync::{Mutex, MutexGuard, PoisonError};

/// The unit of the maps and of every access to the delta.
pub const BLOCK_BYTES: u64 = 4096;
/// Blocks that one page of the disk map covers (64 MiB of disk).
pub const PAGE_BLOCKS: u64 = 16384;
/// Words of one bitmap in a page.
pub const PAGE_WORDS: u64 = PAGE_BLOCKS / 64;

const _: () = assert!(usize::BITS == 64, "offsets are u64 and must fit a usize");

/// A u64 as an index: the crate builds for 64-bit machines only.
#[inline]
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "usize has 64 bits, asserted above"
)]
pub const fn index(n: u64) -> usize {
    n as usize
}

/// Locks; a panic elsewhere aborts the process in a release, so poison says nothing new.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
