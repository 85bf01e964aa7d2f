// SPDX-License-Identifier: Apache-2.0
//! The FUSE door: every disk is a raw file `<mount>/<instance uuid>/<disk name>`.
//!
//! Our own thin layer over the kernel's protocol. No crate could let a successor serve an inherited
//! descriptor, hand a WRITE's data over page-aligned, or do without allocating.
//!
//! ```text
//!  /dev/fuse ─read─▶ worker + its Slot ─▶ Disk ──Done──▶ worker ─write─▶ /dev/fuse
//!                                          │
//!                                          └─Parked … the disk's thread ─▶ Door ─write─▶ /dev/fuse
//! ```
//!
//! Slots, what is parked, and all else that a successor needs stand in the session memory (`memory`),
//! which outlives this process: `takeover` says what a successor makes of it.
//!
//! # What is chosen, and why
//!
//! * **Every open file is `FOPEN_DIRECT_IO`**, however it was opened. Bytes are in no page cache but
//!   the chunk cache's, so a buffered reader sees at once what another wrote with `O_DIRECT`; a
//!   write of one block is one block; and QEMU's direct writes run in parallel, which the kernel
//!   grants to such files only. The price: no read-ahead by the kernel, no shared `mmap`.
//! * Attributes are kept for a second: `st_blocks` is that honest, and `stat` mostly free. Names
//!   are kept for a minute, since the kernel is told when one goes.
//! * `FALLOC_FL_PUNCH_HOLE` promises zeros, partial blocks included (QEMU writes zeros with it):
//!   only a range of whole blocks is a discard.
//! * A WRITE past the end is EFBIG; ENOSPC would make QEMU pause its guest.
//!
//! # Invariants
//!
//! 1. A request is answered exactly once: by its worker, or through [`crate::disk::Door`].
//! 2. A worker waits for the device and for local I/O, never for another request.
//! 3. What a successor needs (INIT's result, nodes, owners, requests) is in the session memory before
//!    it is answered; handles are empty.
//! 4. Nothing here touches the mount itself while it may be served by nobody, not even by stat(2).

mod abi;
mod channel;
mod data;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing_session;
mod layout;
mod ledger;
mod memory;
mod mount;
mod negotiate;
mod node;
mod nodes;
mod operations;
mod parked;
mod point;
mod request;
mod serve;
mod session;
mod slot;
mod takeover;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod tree;

pub use node::Owner;
pub use serve::{Fuse, Options};
