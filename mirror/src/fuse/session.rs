// SPDX-License-Identifier: Apache-2.0
//! The state of one FUSE session: all that a successor would have to know.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use zerocopy::FromBytes;

use super::abi::{InitIn, InitInExtension, op};
use super::channel::{Channel, ParkedWrites, PlainDoor};
use super::negotiate::{Agreed, negotiate};
use super::request::{arguments, split};
use super::slot::Slot;
use super::tree::{DiskNode, Disks, Owner};
use crate::disk::{Disk, Door, Ticket};
use crate::event::{Event, Events};

/// Interrupts that are remembered: an INTERRUPT may be served before its request has parked, by
/// microseconds, and no more requests can be that far than there are workers.
const INTERRUPTS_MAX: usize = 1024;

/// One session.
pub struct Session {
    pub(super) channel: Arc<Channel>,
    /// INIT's result.
    pub(super) agreed: Agreed,
    disks: RwLock<Disks>,
    pub(super) plain: Arc<dyn Door>,
    pub(super) writes: Arc<ParkedWrites>,
    /// The same, as the disk takes it.
    pub(super) writes_door: Arc<dyn Door>,
    interrupted: Mutex<VecDeque<Ticket>>,
    events: Arc<Events>,
}

impl Session {
    /// Opens a session on a fresh descriptor by answering the kernel's INIT.
    ///
    /// # Errors
    /// The kernel is too old, or the mount went away meanwhile.
    pub fn open(device: File, events: Arc<Events>) -> io::Result<Self> {
        let channel = Channel::new(device);
        let agreed = handshake(&channel)?;
        Ok(Self::resumed(channel, agreed, events))
    }

    /// The session on `channel`, on whose INIT `agreed` was agreed before.
    pub(super) fn resumed(channel: Channel, agreed: Agreed, events: Arc<Events>) -> Self {
        let channel = Arc::new(channel);
        let writes = Arc::new(ParkedWrites::new(channel.clone()));
        Self {
            plain: Arc::new(PlainDoor(channel.clone())),
            writes_door: writes.clone(),
            writes,
            channel,
            agreed,
            disks: RwLock::default(),
            interrupted: Mutex::default(),
            events,
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
        let mut interrupted = self.interrupted();
        if interrupted.len() == INTERRUPTS_MAX {
            interrupted.pop_front();
        }
        interrupted.push_back(ticket);
        drop(interrupted);
        let disks: Vec<_> = self.disks().all().cloned().collect();
        for node in disks {
            node.disk.interrupt(ticket);
        }
    }

    /// To be called for each request that parked: its INTERRUPT may have overtaken it.
    pub(super) fn parked(&self, disk: &Arc<dyn Disk>, ticket: Ticket) {
        let overtaken = self.interrupted().contains(&ticket);
        if overtaken {
            disk.interrupt(ticket);
        }
    }

    fn interrupted(&self) -> std::sync::MutexGuard<'_, VecDeque<Ticket>> {
        self.interrupted
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
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

    /// Tells the operator.
    pub(super) fn alarm(&self, message: impl Into<String>) {
        self.events
            .push(Event::new("alarm").text("message", message));
    }
}

fn handshake(channel: &Channel) -> io::Result<Agreed> {
    let refused = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut slot = Slot::default();
    let len = channel.device().read(slot.request_mut())?;
    let (header, rest) =
        split(slot.request(len)).map_err(|_| refused("a FUSE request is cut off"))?;
    if header.opcode != op::INIT {
        return Err(refused("the first FUSE request is not INIT"));
    }
    let (offer, rest) = arguments::<InitIn>(rest).map_err(|_| refused("INIT is cut off"))?;
    let more = InitInExtension::read_from_prefix(rest)
        .map(|(more, _)| more)
        .unwrap_or_default();
    match negotiate(&offer, more) {
        Ok((agreed, answer)) => {
            channel.message(header.unique, &answer);
            Ok(agreed)
        }
        Err(error) => {
            channel.error(header.unique, libc::EPROTO);
            Err(io::Error::new(io::ErrorKind::Unsupported, error))
        }
    }
}
