// SPDX-License-Identifier: Apache-2.0
//! What stands below the mount: `<instance uuid>/<disk name>`, two levels.
//!
//! # Invariants
//!
//! 1. A node id is never given out twice in a session: a late request for a disk that is gone
//!    cannot reach another, and the kernel's FORGETs need no counting.
//! 2. Everything a successor needs to go on answering for a node is in [`Nodes`] and is there before the kernel hears of it.
//!
//! # Threads
//!
//! Under the session's read-write lock; a request clones the `Arc` it needs and lets go at once.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::abi::ROOT;
use super::node::{DiskNode, Owner};
use super::nodes::{Known, Nodes};
use crate::disk::{Disk, Errno, Ticket};

/// Smaller ids are the root's and READDIR's positions of `.` and `..`.
const FIRST_ID: u64 = 16;

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
            let next = || self.kept.next_id(FIRST_ID).ok_or(libc::ENOSPC);
            let directory = self.directory_id(&instance);
            let mut known = Known {
                record: 0,
                directory: directory.map_or_else(next, Ok)?,
                id: next()?,
                instance: instance.clone(),
                name: name.clone(),
                size_bytes: disk.size_bytes(),
                owner,
            };
            known.record = self.kept.keep(&known).ok_or(libc::ENOSPC)?;
            known
        };
        self.orphans.remove(&(instance.clone(), name.clone()));
        let node = Arc::new(DiskNode::new(&known, disk, self.kept.clone()));
        self.nodes.insert(node.id, node.clone());
        self.names.insert(known.directory, instance.clone());
        let directory = self.directories.entry(instance).or_insert(Directory {
            id: known.directory,
            disks: BTreeMap::new(),
        });
        directory.disks.insert(name, node.clone());
        Ok(node)
    }

    /// Counts an open or a close of a disk, of one that nobody has added again yet, too: see
    /// [`Nodes::count`].
    pub fn count(&self, id: u64, unique: Ticket, opens: bool, settle: impl FnOnce()) {
        let orphan = || self.orphans.values().find(|known| known.id == id);
        let record = match self.nodes.get(&id) {
            Some(node) => Some(node.record()),
            None => orphan().map(|known| known.record),
        };
        if let Some(record) = record {
            self.kept.count(record, unique, opens, settle);
        }
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
        self.kept.forget(node.record());
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
}
