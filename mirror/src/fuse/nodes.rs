// SPDX-License-Identifier: Apache-2.0
//! The disks' node ids, names, sizes, owners and modes in the session memory.
//!
//! A record's state is stored last when it is made and first when it goes; the counter of node ids
//! before either. An owner is two words: the one that does not count is written, then the selector.
//! So a death at any store leaves the old or the new, and an id that was answered is never used
//! again.
//!
//! How many files of a disk are open stands in one word with the name of the request that changed it
//! last, and the next change waits until that request is settled in its slot. So at a death one
//! request at most was counted and not settled, and its repetition finds its own name there.

use std::sync::{Mutex, PoisonError};

use super::layout::NODE_WORDS;
use super::memory::{Memory, WORD_NEXT_NODE};
use super::node::Owner;
use super::point;
use crate::sys::shared::Words;

const NAME_BYTES: usize = 256;
const NAME_WORDS: usize = NAME_BYTES / 8;
const WORD_STATE: usize = 0;
const WORD_ID: usize = 1;
const WORD_DIRECTORY: usize = 2;
const WORD_SIZE: usize = 3;
const WORD_SELECTOR: usize = 4;
const WORD_OWNERS: usize = 5;
const WORD_LENGTHS: usize = 9;
const WORD_INSTANCE: usize = 10;
const WORD_DISK: usize = WORD_INSTANCE + NAME_WORDS;
const WORD_OPENS: usize = WORD_DISK + NAME_WORDS;
const _: () = assert!(WORD_OPENS < NODE_WORDS);
/// Below the count: the request's name.
const OPENS_SHIFT: u32 = 44;
const OPENS_NAME: u64 = (1 << OPENS_SHIFT) - 1;
const OPENS_MAX: u64 = u64::MAX >> OPENS_SHIFT;

/// A disk as the session knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// Its record.
    pub record: usize,
    /// Its node id.
    pub id: u64,
    /// Its directory's.
    pub directory: u64,
    /// The directory's name.
    pub instance: String,
    /// Its name.
    pub name: String,
    /// The size that was answered last.
    pub size_bytes: u64,
    /// Whom it belongs to.
    pub owner: Owner,
}

/// The records.
#[derive(Debug)]
pub struct Nodes {
    header: Words,
    words: Words,
    free: Mutex<Vec<usize>>,
    opening: Mutex<()>,
}

impl Nodes {
    /// Those of a memory; what stands there stays.
    #[must_use]
    pub fn of(memory: &Memory) -> Self {
        let words = memory.nodes.clone();
        let records = words.len() / NODE_WORDS;
        let free = (0..records).rev();
        let free = free.filter(|record| words.get(record * NODE_WORDS + WORD_STATE) == 0);
        Self {
            free: Mutex::new(free.collect()),
            opening: Mutex::new(()),
            header: memory.header.clone(),
            words,
        }
    }

    /// The next node id, at least `first`; `None`: none is left.
    #[must_use]
    pub fn next_id(&self, first: u64) -> Option<u64> {
        let id = self.header.get(WORD_NEXT_NODE).max(first);
        self.header.set(WORD_NEXT_NODE, id.checked_add(1)?);
        Some(id)
    }

    /// Keeps a disk; answers its record, `None` if there is no room.
    #[must_use]
    pub fn keep(&self, known: &Known) -> Option<usize> {
        let record = self.free().pop()?;
        let set = |word, value| self.words.set(record * NODE_WORDS + word, value);
        let put = |word, bytes: &[u8]| self.words.put(record * NODE_WORDS + word, bytes);
        set(WORD_ID, known.id);
        set(WORD_DIRECTORY, known.directory);
        set(WORD_SIZE, known.size_bytes);
        set(WORD_OPENS, 0);
        set(
            WORD_LENGTHS,
            known.instance.len() as u64 | (known.name.len() as u64) << 32,
        );
        put(WORD_INSTANCE, known.instance.as_bytes());
        put(WORD_DISK, known.name.as_bytes());
        self.set_owner(record, known.owner);
        set(WORD_STATE, 1);
        Some(record)
    }

    /// Forgets a disk.
    pub fn forget(&self, record: usize) {
        self.words.set(record * NODE_WORDS + WORD_STATE, 0);
        self.free().push(record);
    }

    /// Counts that the request `unique` opens or closes a file of a disk: once, however often it is
    /// executed. `settle` settles it.
    pub fn count(&self, record: usize, unique: u64, opens: bool, settle: impl FnOnce()) {
        let _one = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let at = record * NODE_WORDS + WORD_OPENS;
        let (before, name) = (self.words.get(at), unique & OPENS_NAME);
        if before & OPENS_NAME != name {
            let count = before >> OPENS_SHIFT;
            let count = if opens {
                (count + 1).min(OPENS_MAX)
            } else {
                count.saturating_sub(1)
            };
            self.words.set(at, count << OPENS_SHIFT | name);
        }
        point::reached("counted");
        settle();
    }

    /// How many files of a disk are open.
    #[must_use]
    pub fn opens(&self, record: usize) -> u64 {
        self.words.get(record * NODE_WORDS + WORD_OPENS) >> OPENS_SHIFT
    }

    /// Whom a disk belongs to from now on.
    pub fn set_owner(&self, record: usize, owner: Owner) {
        let at = record * NODE_WORDS;
        let other = 1 - self.words.get(at + WORD_SELECTOR) % 2;
        let pair = at + WORD_OWNERS + usize::from(other == 1) * 2;
        let both = u64::from(owner.uid) | u64::from(owner.gid) << 32;
        self.words.set(pair, both);
        self.words.set(pair + 1, owner.mode.into());
        self.words.set(at + WORD_SELECTOR, other);
    }

    /// How large a disk is from now on.
    pub fn set_size(&self, record: usize, size_bytes: u64) {
        self.words.set(record * NODE_WORDS + WORD_SIZE, size_bytes);
    }

    /// Every disk.
    #[must_use]
    pub fn all(&self) -> Vec<Known> {
        let records = 0..self.words.len() / NODE_WORDS;
        records.filter_map(|record| self.read(record)).collect()
    }

    fn read(&self, record: usize) -> Option<Known> {
        let at = record * NODE_WORDS;
        let get = |word| self.words.get(at + word);
        if get(WORD_STATE) == 0 {
            return None;
        }
        let [instance, name] = [(WORD_INSTANCE, 0), (WORD_DISK, 32)].map(|(word, shift)| {
            let len = usize::try_from(get(WORD_LENGTHS) >> shift & 0xffff).unwrap_or(0);
            let mut bytes = vec![0; len.min(NAME_BYTES)];
            self.words.copy(at + word, &mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let pair = WORD_OWNERS + usize::from(get(WORD_SELECTOR) % 2 == 1) * 2;
        let both = get(pair);
        let half = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or(0);
        Some(Known {
            record,
            id: get(WORD_ID),
            directory: get(WORD_DIRECTORY),
            instance,
            name,
            size_bytes: get(WORD_SIZE),
            owner: Owner {
                uid: half(both),
                gid: half(both >> 32),
                mode: half(get(pair + 1)),
            },
        })
    }

    fn free(&self) -> std::sync::MutexGuard<'_, Vec<usize>> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::memory::tests::SMALL;
    use super::*;

    fn known(name: &str) -> Known {
        Known {
            record: 0,
            id: 17,
            directory: 16,
            instance: "i".repeat(255),
            name: name.to_owned(),
            size_bytes: 4096,
            owner: Owner {
                uid: u32::MAX,
                gid: 108,
                mode: 0o640,
            },
        }
    }

    #[test]
    fn what_is_kept_is_read_back_and_changes() {
        let (memory, _) = Memory::create(SMALL).expect("room");
        let nodes = Nodes::of(&memory);
        let mut disk = known("vda");
        disk.record = nodes.keep(&disk).expect("room");
        assert_eq!(nodes.all(), std::slice::from_ref(&disk));
        for uid in [1, 2, 3] {
            disk.owner.uid = uid;
            nodes.set_owner(disk.record, disk.owner);
            assert_eq!(Nodes::of(&memory).all(), std::slice::from_ref(&disk));
        }
        nodes.set_size(disk.record, 8192);
        assert_eq!(nodes.all()[0].size_bytes, 8192);
        nodes.forget(disk.record);
        assert_eq!(nodes.all(), []);
    }

    #[test]
    fn an_open_file_is_counted_once_however_often_its_request_is_executed() {
        let (memory, _) = Memory::create(SMALL).expect("room");
        let nodes = Nodes::of(&memory);
        let disk = nodes.keep(&known("vda")).expect("room");
        let resent = |unique: u64| unique | 1 << 63;
        for (unique, opens, count) in [
            (2, true, 1),
            (4, true, 2),
            (resent(4), true, 2),
            (6, false, 1),
            (resent(6), false, 1),
            (8, false, 0),
            (10, false, 0),
        ] {
            let mut settled = false;
            // Each by another process.
            Nodes::of(&memory).count(disk, unique, opens, || settled = true);
            assert!(settled);
            assert_eq!(nodes.opens(disk), count, "after {unique}");
        }
        nodes.count(disk, 12, true, || ());
        nodes.forget(disk);
        assert_eq!(nodes.keep(&known("vdb")), Some(disk));
        assert_eq!(nodes.opens(disk), 0, "another disk is not open");
    }

    #[test]
    fn a_successor_never_gives_an_id_out_again() {
        let (memory, _) = Memory::create(SMALL).expect("room");
        assert_eq!(Nodes::of(&memory).next_id(16), Some(16));
        assert_eq!(Nodes::of(&memory).next_id(16), Some(17));
        assert_eq!(Nodes::of(&memory).next_id(u64::MAX), None);
    }

    #[test]
    fn a_full_table_refuses_and_a_successor_finds_what_is_free() {
        let (memory, _) = Memory::create(SMALL).expect("room");
        let nodes = Nodes::of(&memory);
        for _ in 0..SMALL.nodes {
            assert!(nodes.keep(&known("vda")).is_some());
        }
        assert!(nodes.keep(&known("vda")).is_none());
        nodes.forget(3);
        assert_eq!(Nodes::of(&memory).keep(&known("vdb")), Some(3));
        assert!(Nodes::of(&memory).keep(&known("vdb")).is_none());
    }
}
