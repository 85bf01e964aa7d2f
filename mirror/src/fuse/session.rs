// SPDX-License-Identifier: Apache-2.0
//! The state of one FUSE session: all that a successor would have to know.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use zerocopy::FromBytes;

use super::abi::{InitIn, InitInExtension, op};
use super::channel::Channel;
use super::ledger::Ledger;
use super::memory::Memory;
use super::negotiate::{Agreed, negotiate};
use super::node::{DiskNode, Owner};
use super::nodes::Nodes;
use super::parked::{Parked, SlotDoor};
use super::request::{arguments, split};
use super::slot::Slot;
use super::tree::Disks;
use crate::disk::{Disk, Door, Ticket};
use crate::event::{Event, Events};

/// One session.
pub struct Session {
    pub(super) channel: Arc<Channel>,
    /// INIT's result.
    pub(super) agreed: Agreed,
    pub(super) memory: Memory,
    pub(super) ledger: Ledger,
    pub(super) parked: Arc<Parked>,
    disks: RwLock<Disks>,
    events: Arc<Events>,
}

/// Where a worker serves one request at a time.
pub struct Place {
    /// The request's memory.
    pub slot: Slot,
    /// The door that knows it.
    pub door: Arc<dyn Door>,
    /// The request that parked last.
    parked: Arc<AtomicU64>,
}

impl Place {
    /// The request that parked last here.
    pub fn parked_last(&self) -> Ticket {
        self.parked.load(Ordering::Relaxed)
    }
}

impl Session {
    /// The session on `channel`, on whose INIT `agreed` was agreed, with all that stands in `memory`.
    pub fn new(device: File, agreed: Agreed, memory: Memory, events: Arc<Events>) -> Self {
        let channel = Arc::new(Channel::new(device));
        let parked = Parked::of(&memory, agreed.resends(), channel.clone(), events.clone());
        Self {
            channel,
            agreed,
            ledger: Ledger::of(&memory),
            parked: Arc::new(parked),
            disks: RwLock::new(Disks::new(Arc::new(Nodes::of(&memory)))),
            memory,
            events,
        }
    }

    /// A place for a worker.
    pub fn place(&self, slot: Slot) -> Place {
        let parked = Arc::new(AtomicU64::new(0));
        let door = SlotDoor {
            marks: slot.marks().clone(),
            parked: self.parked.clone(),
            last: parked.clone(),
        };
        Place {
            slot,
            door: Arc::new(door),
            parked,
        }
    }

    pub(super) fn disks(&self) -> RwLockReadGuard<'_, Disks> {
        self.disks.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn disks_mut(&self) -> RwLockWriteGuard<'_, Disks> {
        self.disks.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The disk of a node id, if it is still attached.
    pub(super) fn disk(&self, id: u64) -> Option<Arc<DiskNode>> {
        self.disks().disk(id).cloned()
    }

    /// Ends a parked request early. Whose it is the kernel does not say, so every disk is asked.
    pub(super) fn interrupt(&self, ticket: Ticket) {
        self.ledger.interrupt(ticket);
        let disks: Vec<_> = self.disks().all().cloned().collect();
        for node in disks {
            node.disk.interrupt(ticket);
        }
    }

    /// To be called for each request that parked: its INTERRUPT may have overtaken it.
    pub(super) fn parked(&self, disk: &Arc<dyn Disk>, ticket: Ticket) {
        if self.ledger.is_interrupted(ticket) {
            disk.interrupt(ticket);
        }
    }

    /// A disk's owner or mode was changed through the mount: the host is to note it.
    pub(super) fn owner_changed(&self, node: &DiskNode) {
        let Owner { uid, gid, mode } = node.owner();
        self.events.push(
            Event::new("owner")
                .text("instance", &node.instance)
                .text("disk", &node.name)
                .number("uid", uid.into())
                .number("gid", gid.into())
                .number("mode", mode.into()),
        );
    }

    /// Tells the host.
    pub(super) fn tell(&self, event: Event) {
        self.events.push(event);
    }

    /// Tells the operator.
    pub(super) fn alarm(&self, message: impl Into<String>) {
        self.events
            .push(Event::new("alarm").text("message", message));
    }
}

/// Answers the kernel's INIT; `keep` notes what was agreed before that is answered.
///
/// # Errors
/// The kernel is too old, or the mount went away meanwhile.
pub fn handshake(
    device: &File,
    slot: &mut Slot,
    resend: bool,
    keep: impl FnOnce(Agreed),
) -> io::Result<Agreed> {
    let refused = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let channel = Channel::new(device.try_clone()?);
    let len = slot.receive(device)?;
    let mut whole = [0; 256];
    let request = slot.request(len, &mut whole);
    let (header, rest) = split(request).map_err(|_| refused("a FUSE request is cut off"))?;
    slot.clear();
    if header.opcode != op::INIT {
        return Err(refused("the first FUSE request is not INIT"));
    }
    let (offer, rest) = arguments::<InitIn>(rest).map_err(|_| refused("INIT is cut off"))?;
    let more = InitInExtension::read_from_prefix(rest)
        .map(|(more, _)| more)
        .unwrap_or_default();
    match negotiate(&offer, more, resend) {
        Ok((agreed, answer)) => {
            keep(agreed);
            channel.message(header.unique, &answer);
            Ok(agreed)
        }
        Err(error) => {
            channel.error(header.unique, libc::EPROTO);
            Err(io::Error::new(io::ErrorKind::Unsupported, error))
        }
    }
}
