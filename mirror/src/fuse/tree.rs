// SPDX-License-Identifier: Apache-2.0
//! What stands below the mount: `<instance uuid>/<disk name>`, two levels.
//!
//! # Invariants
//!
//! 1. A node id is never given out twice in a session: a late request for a disk that is gone
//!    cannot reach another, and the kernel's FORGETs need no counting.
//! 2. Everything a successor needs to go on answering for a node is in [`Disks`] and
//!    [`Attributes`], and is there before the kernel hears of it.
//!
//! # Threads
//!
//! Under the session's read-write lock; a request clones the `Arc` it needs and lets go at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use super::abi::{Attr, ROOT, SetattrIn, set};
use crate::disk::Disk;

/// Smaller ids are the root's and READDIR's positions of `.` and `..`.
const FIRST_ID: u64 = 16;
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
    /// Written since its times were last asked for: a write must not read the clock.
    written: AtomicBool,
    /// Files of it that were opened in this process and not closed.
    pub opens: AtomicI64,
}

impl DiskNode {
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
        attributes.owner != before
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
        Attr {
            ino: self.id,
            size: self.disk.size_bytes(),
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

/// A name as READDIR lists it.
#[derive(Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its node, and its position: names appear in the order of their making.
    pub id: u64,
    /// The name.
    pub name: String,
    /// A directory; else a disk.
    pub directory: bool,
}

/// What a node id or a name stands for.
pub enum Found {
    /// The root or an instance.
    Directory(u64),
    /// A disk.
    Disk(Arc<DiskNode>),
}

struct Directory {
    id: u64,
    disks: BTreeMap<String, Arc<DiskNode>>,
}

/// What [`Disks::remove`] took away.
pub struct Removed {
    /// The disk.
    pub node: Arc<DiskNode>,
    /// The directory that it was in.
    pub parent: u64,
    /// That directory went with it.
    pub parent_gone: bool,
}

/// Every node of a session.
pub struct Disks {
    next_id: u64,
    directories: BTreeMap<String, Directory>,
    nodes: HashMap<u64, Arc<DiskNode>>,
    names: HashMap<u64, String>,
}

impl Default for Disks {
    fn default() -> Self {
        Self {
            next_id: FIRST_ID,
            directories: BTreeMap::new(),
            nodes: HashMap::new(),
            names: HashMap::new(),
        }
    }
}

impl Disks {
    fn new_id(&mut self) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    /// Adds a disk's file; `None` if the name is taken.
    pub fn add(
        &mut self,
        instance: &str,
        name: &str,
        disk: Arc<dyn Disk>,
        owner: Owner,
    ) -> Option<Arc<DiskNode>> {
        if let Some(directory) = self.directories.get(instance) {
            if directory.disks.contains_key(name) {
                return None;
            }
        } else {
            let id = self.new_id();
            let directory = Directory {
                id,
                disks: BTreeMap::new(),
            };
            self.directories.insert(instance.to_owned(), directory);
            self.names.insert(id, instance.to_owned());
        }
        let now = now();
        let node = Arc::new(DiskNode {
            id: self.new_id(),
            instance: instance.to_owned(),
            name: name.to_owned(),
            disk,
            attributes: Mutex::new(Attributes {
                owner,
                accessed: now,
                modified: now,
                changed: now,
            }),
            written: AtomicBool::new(false),
            opens: AtomicI64::new(0),
        });
        self.nodes.insert(node.id, node.clone());
        let directory = self.directories.get_mut(instance)?;
        directory.disks.insert(name.to_owned(), node.clone());
        Some(node)
    }

    /// Takes a disk's file away, and its directory if nothing else is in it.
    pub fn remove(&mut self, instance: &str, name: &str) -> Option<Removed> {
        let directory = self.directories.get_mut(instance)?;
        let parent = directory.id;
        let node = directory.disks.remove(name)?;
        let parent_gone = directory.disks.is_empty();
        self.nodes.remove(&node.id);
        if parent_gone {
            self.directories.remove(instance);
            self.names.remove(&parent);
        }
        Some(Removed {
            node,
            parent,
            parent_gone,
        })
    }

    /// The disk of a node id.
    #[must_use]
    pub fn disk(&self, id: u64) -> Option<&Arc<DiskNode>> {
        self.nodes.get(&id)
    }

    /// The disk of a name.
    #[must_use]
    pub fn named(&self, instance: &str, name: &str) -> Option<&Arc<DiskNode>> {
        self.directories.get(instance)?.disks.get(name)
    }

    /// All disks.
    pub fn all(&self) -> impl Iterator<Item = &Arc<DiskNode>> {
        self.nodes.values()
    }

    /// What a node id stands for.
    #[must_use]
    pub fn node(&self, id: u64) -> Option<Found> {
        if id == ROOT || self.names.contains_key(&id) {
            return Some(Found::Directory(id));
        }
        Some(Found::Disk(self.disk(id)?.clone()))
    }

    /// What a name in a directory stands for.
    #[must_use]
    pub fn lookup(&self, parent: u64, name: &str) -> Option<Found> {
        if parent == ROOT {
            return Some(Found::Directory(self.directories.get(name)?.id));
        }
        let instance = self.names.get(&parent)?;
        Some(Found::Disk(self.named(instance, name)?.clone()))
    }

    /// The names in a directory after position `after`.
    #[must_use]
    pub fn list(&self, id: u64, after: u64) -> Vec<Listed> {
        let mut listed: Vec<_> = if id == ROOT {
            let one = |(name, directory): (&String, &Directory)| Listed {
                id: directory.id,
                name: name.clone(),
                directory: true,
            };
            self.directories.iter().map(one).collect()
        } else {
            let directory = self
                .names
                .get(&id)
                .and_then(|name| self.directories.get(name));
            let one = |node: &Arc<DiskNode>| Listed {
                id: node.id,
                name: node.name.clone(),
                directory: false,
            };
            directory
                .map(|found| found.disks.values().map(one).collect())
                .unwrap_or_default()
        };
        listed.retain(|entry| entry.id > after);
        listed.sort_by_key(|entry| entry.id);
        listed
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Zeros;
    use super::*;

    const OWNER: Owner = Owner {
        uid: 1,
        gid: 2,
        mode: 0o640,
    };

    fn disk() -> Arc<dyn Disk> {
        Arc::new(Zeros)
    }

    #[test]
    fn a_name_that_comes_back_is_another_node() {
        let mut disks = Disks::default();
        let first = disks.add("i", "vda", disk(), OWNER).expect("free").id;
        assert!(disks.add("i", "vda", disk(), OWNER).is_none());
        let removed = disks.remove("i", "vda").expect("there");
        assert!(removed.parent_gone && disks.lookup(ROOT, "i").is_none());
        let second = disks.add("i", "vda", disk(), OWNER).expect("free").id;
        assert!(second > first && disks.disk(first).is_none());
    }

    #[test]
    fn a_listing_goes_on_where_it_stopped_though_names_vanished() {
        let mut disks = Disks::default();
        for name in ["c", "b", "a"] {
            disks.add("i", name, disk(), OWNER).expect("free");
        }
        let Some(Found::Directory(parent)) = disks.lookup(ROOT, "i") else {
            panic!("no directory");
        };
        let names = |listed: Vec<Listed>| -> Vec<String> {
            listed.into_iter().map(|entry| entry.name).collect()
        };
        let first = disks.list(parent, 0).remove(0);
        assert_eq!(first.name, "c");
        disks.remove("i", "c");
        assert_eq!(names(disks.list(parent, first.id)), ["b", "a"]);
    }

    #[test]
    fn chown_and_chmod_change_what_they_name_and_nothing_else() {
        let mut disks = Disks::default();
        let node = disks.add("i", "vda", disk(), OWNER).expect("free");
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
