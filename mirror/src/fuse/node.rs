// SPDX-License-Identifier: Apache-2.0
//! One disk's file: its id, its owner, mode and times, and what is behind it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::abi::{Attr, SetattrIn, set};
use super::nodes::{Known, Nodes};
use crate::disk::Disk;

const DIRECTORY_MODE: u32 = libc::S_IFDIR | 0o755;
const PERMISSIONS: u32 = 0o7777;

/// Whom a disk's file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// Seconds and nanoseconds since the epoch.
type Time = (u64, u32);

fn now() -> Time {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    (since.as_secs(), since.subsec_nanos())
}

#[derive(Debug, Clone, Copy)]
struct Attributes {
    owner: Owner,
    accessed: Time,
    modified: Time,
    changed: Time,
}

/// A disk's file.
pub struct DiskNode {
    /// The node id.
    pub id: u64,
    /// The directory that it is in.
    pub instance: String,
    /// Its name there.
    pub name: String,
    /// What is behind it.
    pub disk: Arc<dyn Disk>,
    attributes: Mutex<Attributes>,
    nodes: Arc<Nodes>,
    record: usize,
    /// Written since its times were last asked for: a write must not read the clock.
    written: AtomicBool,
}

impl DiskNode {
    /// The file of a disk that the session's memory knows.
    #[must_use]
    pub fn new(known: &Known, disk: Arc<dyn Disk>, nodes: Arc<Nodes>) -> Self {
        let now = now();
        Self {
            id: known.id,
            instance: known.instance.clone(),
            name: known.name.clone(),
            disk,
            attributes: Mutex::new(Attributes {
                owner: known.owner,
                accessed: now,
                modified: now,
                changed: now,
            }),
            nodes,
            record: known.record,
            written: AtomicBool::new(false),
        }
    }

    /// Its record in the session's memory.
    #[must_use]
    pub fn record(&self) -> usize {
        self.record
    }

    /// How many files of it are open, whoever served when they were opened.
    #[must_use]
    pub fn opens(&self) -> u64 {
        self.nodes.opens(self.record)
    }

    /// Notes a write.
    pub fn touch(&self) {
        if !self.written.load(Ordering::Relaxed) {
            self.written.store(true, Ordering::Relaxed);
        }
    }

    /// Whom it belongs to.
    #[must_use]
    pub fn owner(&self) -> Owner {
        self.lock().owner
    }

    /// Gives it to somebody; `true` if that is a change.
    pub fn set_owner(&self, owner: Owner) -> bool {
        let mut attributes = self.lock();
        let changed = attributes.owner != owner;
        attributes.owner = owner;
        if changed {
            attributes.changed = now();
            self.nodes.set_owner(self.record, owner);
        }
        changed
    }

    /// Owner, mode and times as SETATTR wants them; `true` if the owner or mode changed.
    pub fn change(&self, wanted: &SetattrIn) -> bool {
        let now = now();
        let has = |bit| wanted.valid & bit != 0;
        let mut attributes = self.lock();
        let before = attributes.owner;
        if has(set::UID) {
            attributes.owner.uid = wanted.uid;
        }
        if has(set::GID) {
            attributes.owner.gid = wanted.gid;
        }
        if has(set::MODE) {
            attributes.owner.mode = wanted.mode & PERMISSIONS;
        }
        if has(set::ATIME_NOW) {
            attributes.accessed = now;
        } else if has(set::ATIME) {
            attributes.accessed = (wanted.atime, wanted.atimensec);
        }
        if has(set::MTIME_NOW) {
            attributes.modified = now;
        } else if has(set::MTIME) {
            attributes.modified = (wanted.mtime, wanted.mtimensec);
        }
        if has(set::MTIME | set::MTIME_NOW) {
            self.written.store(false, Ordering::Relaxed);
        }
        attributes.changed = now;
        let changed = attributes.owner != before;
        if changed {
            self.nodes.set_owner(self.record, attributes.owner);
        }
        changed
    }

    /// What stat(2) shows. Waits for nothing.
    #[must_use]
    pub fn attr(&self) -> Attr {
        let mut attributes = self.lock();
        if self.written.swap(false, Ordering::Relaxed) {
            attributes.modified = now();
            attributes.changed = attributes.modified;
        }
        let Attributes {
            owner,
            accessed,
            modified,
            changed,
        } = *attributes;
        drop(attributes);
        let size = self.disk.size_bytes();
        self.nodes.set_size(self.record, size);
        Attr {
            ino: self.id,
            size,
            blocks: self.disk.local_bytes().div_ceil(512),
            atime: accessed.0,
            mtime: modified.0,
            ctime: changed.0,
            atimensec: accessed.1,
            mtimensec: modified.1,
            ctimensec: changed.1,
            mode: libc::S_IFREG | owner.mode & PERMISSIONS,
            nlink: 1,
            uid: owner.uid,
            gid: owner.gid,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Attributes> {
        self.attributes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// What stat(2) shows of a directory.
#[must_use]
pub fn directory_attr(id: u64) -> Attr {
    Attr {
        ino: id,
        mode: DIRECTORY_MODE,
        nlink: 2,
        blksize: 4096,
        ..Attr::default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::Memory;
    use super::super::memory::tests::SMALL;
    use super::super::testing::Zeros;
    use super::*;

    const OWNER: Owner = Owner {
        uid: 1,
        gid: 2,
        mode: 0o640,
    };

    #[test]
    fn chown_and_chmod_change_what_they_name_and_nothing_else() {
        let (memory, _) = Memory::create(SMALL).expect("room");
        let nodes = Arc::new(Nodes::of(&memory));
        let mut known = Known {
            record: 0,
            id: 17,
            directory: 16,
            instance: "i".to_owned(),
            name: "vda".to_owned(),
            size_bytes: 0,
            owner: OWNER,
        };
        known.record = nodes.keep(&known).expect("room");
        let node = DiskNode::new(&known, Arc::new(Zeros), nodes);
        let wanted = SetattrIn {
            valid: set::UID,
            uid: 64055,
            gid: 9,
            ..SetattrIn::default()
        };
        assert!(node.change(&wanted));
        assert_eq!(
            node.owner(),
            Owner {
                uid: 64055,
                ..OWNER
            }
        );
        assert!(!node.change(&wanted));
        let wanted = SetattrIn {
            valid: set::MODE,
            mode: libc::S_IFREG | 0o600,
            ..SetattrIn::default()
        };
        assert!(node.change(&wanted));
        assert_eq!(node.attr().mode, libc::S_IFREG | 0o600);
    }
}
