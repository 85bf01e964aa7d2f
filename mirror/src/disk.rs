// SPDX-License-Identifier: Apache-2.0
//! What a door (FUSE today, vhost-user-blk later) sees of a disk, and a disk of its door.
//!
//! A door turns its protocol's requests into calls of [`Disk`]; the disk knows no protocol. Every
//! call returns at once: with the answer, or with [`Answer::Parked`], after which the disk calls
//! [`Door::complete`] with the request's ticket, exactly once, from a thread of its own. A parked
//! request therefore holds no thread of the door.
//!
//! Offsets and lengths are bytes and need no alignment: the disk cuts them into whole blocks. No
//! request reaches past [`Disk::size_bytes`]: the door clips reads and refuses writes there.

use std::sync::Arc;

/// A request's name between its door and the disk: unique among the requests under way.
pub type Ticket = u64;

/// An errno, as the door's protocol will carry it.
pub type Errno = i32;

/// How a request ended at once, or that it did not.
#[derive(Debug, PartialEq, Eq)]
#[must_use]
pub enum Answer {
    /// Done; a read filled its whole buffer, a write took all of its data.
    Done,
    /// Refused or failed.
    Failed(Errno),
    /// The disk ends it later by [`Door::complete`].
    Parked,
}

/// Where the answers of parked requests go.
pub trait Door: Send + Sync {
    /// Ends the parked request `ticket`: `Ok` with a read's bytes (empty for any other request),
    /// or an errno. Called exactly once for each [`Answer::Parked`]; must not block for long.
    fn complete(&self, ticket: Ticket, result: Result<&[u8], Errno>);

    /// The request is about to park: the disk calls this once, on the thread that called it, before
    /// anybody could complete it. `data` is what a write still has to write. `false`: there is no
    /// room for it, and the disk answers EIO at once.
    fn parking(&self, ticket: Ticket, data: &[u8]) -> bool {
        let _ = (ticket, data);
        true
    }

    /// The data of a durable write stands; its flush follows. Whoever has to finish it for a dead
    /// agent only flushes.
    fn written(&self, ticket: Ticket) {
        let _ = ticket;
    }

    /// The parked request begins to be executed, or waits again.
    fn running(&self, ticket: Ticket, running: bool) {
        let _ = (ticket, running);
    }
}

/// One disk, as a door serves it.
pub trait Disk: Send + Sync {
    /// The size that the guest sees.
    fn size_bytes(&self) -> u64;

    /// The bytes that this host holds for this disk alone (`st_blocks` × 512).
    fn local_bytes(&self) -> u64;

    /// Reads `buf.len()` bytes at `offset`. If it parks, `buf` is free again when this returns.
    fn read(&self, door: &Arc<dyn Door>, ticket: Ticket, offset: u64, buf: &mut [u8]) -> Answer;

    /// Writes `data` at `offset`; `durable` asks for a flush behind it (`O_DSYNC`). If it parks, the
    /// disk has copied what it still needs of `data`.
    fn write(
        &self,
        door: &Arc<dyn Door>,
        ticket: Ticket,
        offset: u64,
        data: &[u8],
        durable: bool,
    ) -> Answer;

    /// Makes every acknowledged write durable.
    fn flush(&self, door: &Arc<dyn Door>, ticket: Ticket) -> Answer;

    /// Lets go of a range: it reads as zeros or as before at its partial blocks.
    fn discard(&self, door: &Arc<dyn Door>, ticket: Ticket, offset: u64, len: u64) -> Answer;

    /// Makes a range read as zeros, its partial blocks included.
    fn write_zeroes(&self, door: &Arc<dyn Door>, ticket: Ticket, offset: u64, len: u64) -> Answer;

    /// The next offset at or after `offset` that is data (`hole == false`) or a hole, never waiting:
    /// what would need a fetch to know is data. `None` past the last.
    fn seek(&self, offset: u64, hole: bool) -> Option<u64>;

    /// Ends a parked request early, with EINTR, if it still waits (FUSE's INTERRUPT).
    fn interrupt(&self, ticket: Ticket);
}
