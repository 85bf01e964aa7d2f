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
use super::nodes::{Known, Nodes};
use crate::disk::{Disk, Errno};

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
    nodes: Arc<Nodes>,
    record: usize,
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
    kept: Arc<Nodes>,
    directories: BTreeMap<String, Directory>,
    nodes: HashMap<u64, Arc<DiskNode>>,
    names: HashMap<u64, String>,
    /// What a predecessor served and nobody has added yet.
    orphans: HashMap<(String, String), Known>,
}

impl Disks {
    /// Those that a session memory keeps, none of them with a disk behind it yet.
    #[must_use]
    pub fn new(kept: Arc<Nodes>) -> Self {
        let orphans = kept.all().into_iter();
        let orphans = orphans.map(|known| ((known.instance.clone(), known.name.clone()), known));
        Self {
            orphans: orphans.collect(),
            kept,
            directories: BTreeMap::new(),
            nodes: HashMap::new(),
            names: HashMap::new(),
        }
    }

    /// The id of an instance's directory, if it ever had one that may still be known.
    fn directory_id(&self, instance: &str) -> Option<u64> {
        let orphans = || {
            self.orphans
                .values()
                .find(|known| known.instance == instance)
        };
        let found = self.directories.get(instance);
        found
            .map(|found| found.id)
            .or_else(|| orphans().map(|known| known.directory))
    }

    /// Adds a disk's file. One that a predecessor served keeps its id and its owner.
    ///
    /// # Errors
    /// EEXIST: the name is taken; ENOSPC: the session's memory has no room for another disk.
    pub fn add(
        &mut self,
        instance: &str,
        name: &str,
        disk: Arc<dyn Disk>,
        owner: Owner,
    ) -> Result<Arc<DiskNode>, Errno> {
        let taken = |directory: &Directory| directory.disks.contains_key(name);
        if self.directories.get(instance).is_some_and(taken) {
            return Err(libc::EEXIST);
        }
        let (instance, name) = (instance.to_owned(), name.to_owned());
        let found = self.orphans.get(&(instance.clone(), name.clone()));
        let known = if let Some(known) = found {
            known.clone()
        } else {
            let directory = self.directory_id(&instance);
            let mut known = Known {
                record: 0,
                directory: directory.unwrap_or_else(|| self.kept.next_id(FIRST_ID)),
                id: self.kept.next_id(FIRST_ID),
                instance: instance.clone(),
                name: name.clone(),
                size_bytes: disk.size_bytes(),
                owner,
            };
            known.record = self.kept.keep(&known).ok_or(libc::ENOSPC)?;
            known
        };
        self.orphans.remove(&(instance.clone(), name.clone()));
        let now = now();
        let node = Arc::new(DiskNode {
            id: known.id,
            instance: instance.clone(),
            name: name.clone(),
            disk,
            attributes: Mutex::new(Attributes {
                owner: known.owner,
                accessed: now,
                modified: now,
                changed: now,
            }),
            nodes: self.kept.clone(),
            record: known.record,
            written: AtomicBool::new(false),
            opens: AtomicI64::new(0),
        });
        self.nodes.insert(node.id, node.clone());
        self.names.insert(known.directory, instance.clone());
        let directory = self.directories.entry(instance).or_insert(Directory {
            id: known.directory,
            disks: BTreeMap::new(),
        });
        directory.disks.insert(name, node.clone());
        Ok(node)
    }

    /// Whether a predecessor served a disk that nobody has added yet.
    #[must_use]
    pub fn is_orphan(&self, instance: &str, name: &str) -> bool {
        let name = (instance.to_owned(), name.to_owned());
        self.orphans.contains_key(&name)
    }

    /// Forgets a disk that a predecessor served and nobody has added.
    pub fn forget_orphan(&mut self, instance: &str, name: &str) {
        let name = (instance.to_owned(), name.to_owned());
        if let Some(known) = self.orphans.remove(&name) {
            self.kept.forget(known.record);
        }
    }

    /// Takes a disk's file away, and its directory if nothing else is in it.
    pub fn remove(&mut self, instance: &str, name: &str) -> Option<Removed> {
        let directory = self.directories.get_mut(instance)?;
        let parent = directory.id;
        let node = directory.disks.remove(name)?;
        let parent_gone = directory.disks.is_empty();
        self.nodes.remove(&node.id);
        self.kept.forget(node.record);
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
    use super::super::memory::Memory;
    use super::super::memory::tests::SMALL;
    use super::super::testing::Zeros;
    use super::*;

    const OWNER: Owner = Owner {
        uid: 1,
        gid: 2,
        mode: 0o640,
    };

    fn memory() -> Memory {
        Memory::create(SMALL).expect("room").0
    }

    fn disks() -> Disks {
        Disks::new(Arc::new(Nodes::of(&memory())))
    }

    fn disk() -> Arc<dyn Disk> {
        Arc::new(Zeros)
    }

    #[test]
    fn a_name_that_comes_back_is_another_node() {
        let mut disks = disks();
        let first = disks.add("i", "vda", disk(), OWNER).expect("free").id;
        assert_eq!(
            disks.add("i", "vda", disk(), OWNER).err(),
            Some(libc::EEXIST)
        );
        let removed = disks.remove("i", "vda").expect("there");
        assert!(removed.parent_gone && disks.lookup(ROOT, "i").is_none());
        let second = disks.add("i", "vda", disk(), OWNER).expect("free").id;
        assert!(second > first && disks.disk(first).is_none());
    }

    #[test]
    fn a_successor_answers_the_same_ids_and_owners_and_gives_new_ones_out() {
        let memory = memory();
        let mut disks = Disks::new(Arc::new(Nodes::of(&memory)));
        let first = disks.add("i", "vda", disk(), OWNER).expect("free");
        let other = disks.add("i", "vdb", disk(), OWNER).expect("free").id;
        let parent = disks.directory_id("i");
        let owner = Owner { uid: 7, ..OWNER };
        assert!(first.set_owner(owner));
        disks.remove("i", "vdb");

        let mut disks = Disks::new(Arc::new(Nodes::of(&memory)));
        assert!(disks.lookup(ROOT, "i").is_none());
        assert!(disks.is_orphan("i", "vda") && !disks.is_orphan("i", "vdb"));
        let second = disks.add("i", "vdb", disk(), OWNER).expect("free").id;
        assert!(second > other);
        let again = disks.add("i", "vda", disk(), OWNER).expect("free");
        assert_eq!((again.id, again.owner()), (first.id, owner));
        assert_eq!(disks.directory_id("i"), parent);
        assert!(disks.add("i", "vda", disk(), OWNER).is_err());
    }

    #[test]
    fn a_listing_goes_on_where_it_stopped_though_names_vanished() {
        let mut disks = disks();
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
        let mut disks = disks();
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
