// SPDX-License-Identifier: Apache-2.0
//! The delta and the disk map as a power loss may leave them.
//!
//! A call is durable once a sync of its file began after its end and was done. Until then it is on
//! disk, or not, or in part: sector by sector of a write, block by block of a punched hole, all or
//! nothing of what the file system's journal holds (a length, allocated space). Two calls on one
//! sector keep their order there, as in any disk's cache, so that every order of the disk's writes
//! is one of these choices. What a failed sync covered stays undecided for ever.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use _mirror::faults::{Change, Entry};

use crate::common::BLOCK;
use crate::model::SECTOR;
use crate::world::Random;

const FILES: [&str; 2] = ["mirror/delta", "mirror/map"];

/// One file: a sector with the call that wrote it; what is absent is a hole.
#[derive(Debug, Clone, Default)]
struct FileImage {
    len: u64,
    sectors: BTreeMap<u64, (u64, [u8; SECTOR])>,
}

/// What lies on disk.
#[derive(Debug, Clone, Default)]
pub struct Images(BTreeMap<PathBuf, FileImage>);

/// A call that is not durable.
#[derive(Debug, Clone)]
pub struct Pending {
    id: u64,
    file: PathBuf,
    change: Change,
    ended: Option<usize>,
    doomed: bool,
}

/// How much of a pending call is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    Nothing,
    All,
    /// Some of its sectors: a seed says which.
    Torn(u64),
}

impl FileImage {
    fn put(&mut self, id: u64, sector: u64, bytes: &[u8; SECTOR]) {
        let entry = self.sectors.entry(sector).or_insert((id, *bytes));
        if entry.0 <= id {
            *entry = (id, *bytes);
        }
    }

    fn apply(&mut self, id: u64, change: &Change, choice: Choice) {
        let mut random = Random(match choice {
            Choice::Torn(seed) => seed,
            _ => 0,
        });
        let mut keep = || !matches!(choice, Choice::Torn(_)) || random.below(2) == 0;
        match change {
            Change::Write(offset, bytes) => {
                for (sector, part) in (offset / SECTOR as u64..).zip(bytes.chunks_exact(SECTOR)) {
                    // A header is one sector, and whole.
                    if bytes.len() == SECTOR || keep() {
                        self.put(id, sector, part.try_into().unwrap());
                    }
                }
                self.len = self.len.max(offset + bytes.len() as u64);
            }
            Change::Punch(offset, len) => {
                for block in offset / BLOCK as u64..(offset + len) / BLOCK as u64 {
                    let sectors = (BLOCK / SECTOR) as u64;
                    if keep() {
                        for sector in block * sectors..(block + 1) * sectors {
                            self.put(id, sector, &[0; SECTOR]);
                        }
                    }
                }
            }
            // The delta and the map only grow.
            Change::Resize(len) | Change::Allocate(len) => self.len = self.len.max(*len),
            Change::Create | Change::Sync | Change::Other => {}
        }
    }
}

impl Images {
    pub fn apply(&mut self, pending: &Pending, choice: Choice) {
        if choice != Choice::Nothing {
            let file = self.0.entry(pending.file.clone()).or_default();
            file.apply(pending.id, &pending.change, choice);
        }
    }

    /// A new beginning: its calls are counted from 1 again.
    pub fn settled(mut self) -> Self {
        for file in self.0.values_mut() {
            for entry in file.sectors.values_mut() {
                entry.0 = 0;
            }
        }
        self
    }

    /// Makes the files below a directory.
    pub fn write(&self, directory: &Path) {
        let _ = std::fs::remove_dir_all(directory.join("mirror"));
        std::fs::create_dir_all(directory.join("mirror")).unwrap();
        for (name, image) in &self.0 {
            let file = std::fs::File::create(directory.join(name)).unwrap();
            let mut run: (u64, Vec<u8>) = (0, Vec::new());
            for (&sector, (_, bytes)) in &image.sectors {
                let at = sector * SECTOR as u64;
                if run.0 + run.1.len() as u64 != at {
                    file.write_all_at(&run.1, run.0).unwrap();
                    run = (at, Vec::new());
                }
                run.1.extend(bytes);
            }
            file.write_all_at(&run.1, run.0).unwrap();
            file.set_len(image.len).unwrap();
        }
        // Worth nothing, whatever it holds.
        std::fs::write(directory.join("mirror/saved"), [0xa5; BLOCK]).unwrap();
    }
}

/// Walks a log.
#[derive(Debug, Default)]
pub struct Replay {
    pub durable: Images,
    pub pending: Vec<Pending>,
    syncs: HashMap<u64, (PathBuf, usize)>,
}

impl Replay {
    pub fn new(start: &Images) -> Self {
        Self {
            durable: start.clone(),
            ..Self::default()
        }
    }

    /// Takes an entry; `true` if it began a change.
    pub fn take(&mut self, at: usize, entry: &Entry) -> bool {
        match entry {
            Entry::Begin {
                id, file, change, ..
            } if FILES.iter().any(|name| file == Path::new(name)) => {
                match change {
                    Change::Other | Change::Create => return false,
                    Change::Sync => {
                        self.syncs.insert(*id, (file.clone(), at));
                        return false;
                    }
                    _ => {}
                }
                self.pending.push(Pending {
                    id: *id,
                    file: file.clone(),
                    change: change.clone(),
                    ended: None,
                    doomed: false,
                });
                true
            }
            Entry::End { id, done } => {
                if let Some((file, begin)) = self.syncs.remove(id) {
                    self.synced(&file, begin, *done);
                } else if let Some(nth) = self.pending.iter().position(|call| call.id == *id) {
                    let call = &mut self.pending[nth];
                    call.ended = Some(at);
                    match &mut call.change {
                        _ if *done => {}
                        // What failed has left its first half, or nothing.
                        Change::Write(_, bytes) => {
                            *bytes = bytes[..bytes.len() / 2 / SECTOR * SECTOR].into();
                        }
                        _ => drop(self.pending.remove(nth)),
                    }
                }
                false
            }
            _ => false,
        }
    }

    fn synced(&mut self, file: &Path, begin: usize, done: bool) {
        for mut call in std::mem::take(&mut self.pending) {
            let covered = call.file == file && call.ended.is_some_and(|end| end < begin);
            if covered && done && !call.doomed {
                self.durable.apply(&call, Choice::All);
            } else {
                call.doomed |= covered && !done;
                self.pending.push(call);
            }
        }
    }

    /// The image of some choices, one for each pending call.
    pub fn image(&self, choices: &[Choice]) -> Images {
        let mut images = self.durable.clone();
        for (call, &choice) in self.pending.iter().zip(choices) {
            images.apply(call, choice);
        }
        images
    }

    /// Choices at random.
    pub fn any(&self, random: &mut Random) -> Vec<Choice> {
        let all = random.below(4);
        self.pending
            .iter()
            .map(|_| match (all, random.below(3)) {
                (0 | 2.., 0) | (1, 1..) => Choice::All,
                (2.., 1) => Choice::Torn(random.next()),
                _ => Choice::Nothing,
            })
            .collect()
    }
}
