// SPDX-License-Identifier: Apache-2.0
//! What a disk may hold after a crash, sector by sector: the last content that was flushed, or any
//! that was written there since.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::common::BLOCK;

pub const SECTOR: usize = 512;
pub const SECTORS: u64 = (BLOCK / SECTOR) as u64;

/// The bytes of one sector.
pub type Bytes = Arc<[u8; SECTOR]>;
/// A disk, or a version: those of its sectors that the tests touch.
pub type Content = BTreeMap<u64, Bytes>;

/// A request: positions are those of the log.
#[derive(Debug, Clone)]
pub struct Op {
    pub what: String,
    pub bytes: Range<usize>,
    pub begin: usize,
    pub over: Option<usize>,
    pub result: Result<(), i32>,
    /// What was over before it began is durable when it is done.
    pub flushes: bool,
}

/// An end, in positions of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crash {
    /// All that was over by then is there.
    pub flushed: usize,
    /// Writes that flush themselves and were answered by then are there, too.
    pub answered: usize,
    /// What began by then may be there.
    pub at: usize,
}

#[derive(Debug, Clone)]
struct Version {
    op: usize,
    bytes: Bytes,
}

/// A disk, who wrote what when, and what the repository holds.
#[derive(Debug, Clone)]
pub struct Model {
    pub size: usize,
    /// Before it grew, and when that began and was over.
    pub growth: Option<(usize, usize, Option<usize>)>,
    base: Content,
    versions: BTreeMap<u64, Vec<Version>>,
    pub ops: Vec<Op>,
    /// The parent, from a position on.
    pub parents: Vec<(usize, Content)>,
}

pub fn zeros() -> Bytes {
    Arc::new([0; SECTOR])
}

impl Model {
    pub fn new(size: usize, base: Content, parent: Content) -> Self {
        Self {
            size,
            growth: None,
            base,
            versions: BTreeMap::new(),
            ops: Vec::new(),
            parents: vec![(0, parent)],
        }
    }

    /// Whether a request that is under way touches a block of the range.
    pub fn is_busy(&self, range: &Range<usize>) -> bool {
        self.ops.iter().any(|op| {
            op.over.is_none()
                && op.bytes.start / BLOCK < range.end.div_ceil(BLOCK)
                && range.start / BLOCK < op.bytes.end.div_ceil(BLOCK)
        })
    }

    /// The newest content of a sector.
    pub fn newest(&self, sector: u64) -> Bytes {
        let newest = self
            .versions
            .get(&sector)
            .and_then(|versions| versions.last());
        match newest {
            Some(version) => version.bytes.clone(),
            None => self.base.get(&sector).cloned().unwrap_or_else(zeros),
        }
    }

    pub fn begin(&mut self, op: Op) -> usize {
        self.ops.push(op);
        self.ops.len() - 1
    }

    /// An operation leaves these bytes at `at`.
    pub fn leave(&mut self, op: usize, at: usize, data: &[u8]) {
        let mut from = at;
        while from < at + data.len() {
            let sector = (from / SECTOR) as u64;
            let to = (at + data.len()).min((from / SECTOR + 1) * SECTOR);
            let mut bytes = *self.newest(sector);
            bytes[from % SECTOR..from % SECTOR + to - from]
                .copy_from_slice(&data[from - at..to - at]);
            let bytes = Arc::new(bytes);
            self.versions
                .entry(sector)
                .or_default()
                .push(Version { op, bytes });
            from = to;
        }
    }

    pub fn end(&mut self, op: usize, at: usize, result: Result<(), i32>) {
        assert!(self.ops[op].over.is_none(), "operation {op} ended twice");
        self.ops[op].over = Some(at);
        self.ops[op].result = result;
    }

    /// Power lost at a position.
    pub fn power_lost(&self, at: usize) -> Crash {
        Crash {
            flushed: self.flushed(at),
            answered: at,
            at,
        }
    }

    /// Where the last flush began that was done by `at`.
    fn flushed(&self, at: usize) -> usize {
        let done = |op: &&Op| op.flushes && op.result.is_ok() && op.over.is_some_and(|o| o <= at);
        self.ops
            .iter()
            .filter(done)
            .map(|op| op.begin)
            .max()
            .unwrap_or(0)
    }

    /// What a sector may hold after a crash.
    pub fn may_hold(&self, sector: u64, crash: Crash, bytes: &[u8]) -> bool {
        let none = Vec::new();
        let versions = self.versions.get(&sector).unwrap_or(&none);
        let is_durable = |version: &Version| {
            let op = &self.ops[version.op];
            // A durable write is flushed with its own answer.
            let by = if op.flushes {
                crash.answered
            } else {
                crash.flushed
            };
            op.result.is_ok() && op.over.is_some_and(|over| over <= by)
        };
        let floor = versions.iter().rposition(is_durable);
        let base = self.base.get(&sector).cloned().unwrap_or_else(zeros);
        let begun = |version: &&Version| self.ops[version.op].begin <= crash.at;
        let same = |content: &Bytes| content[..bytes.len()] == *bytes;
        (floor.is_none() && same(&base))
            || versions[floor.unwrap_or(0)..]
                .iter()
                .filter(begun)
                .any(|version| same(&version.bytes))
    }

    /// Checks a disk that was read after a crash.
    pub fn check(&self, disk: &Content, size: usize, crash: Crash) {
        for (&sector, bytes) in disk {
            let from = usize::try_from(sector).unwrap() * SECTOR;
            let len = SECTOR.min(size.saturating_sub(from));
            if !self.may_hold(sector, crash, &bytes[..len]) {
                self.explain(sector, crash, &bytes[..]);
            }
        }
    }

    /// Forgets the failed requests of which a disk at rest shows nothing.
    pub fn resolve(&mut self, disk: &Content) {
        for (sector, versions) in &mut self.versions {
            while let Some(last) = versions.last() {
                let failed = self.ops[last.op].result.is_err();
                let shown = disk.get(sector).is_none_or(|bytes| *bytes == last.bytes);
                if !failed || shown {
                    break;
                }
                versions.pop();
            }
        }
    }

    fn explain(&self, sector: u64, crash: Crash, bytes: &[u8]) -> ! {
        let base = self.base.get(&sector).cloned().unwrap_or_else(zeros);
        let mut found = if base[..] == *bytes {
            "the base"
        } else {
            "foreign"
        }
        .to_owned();
        let mut told = String::new();
        for version in self.versions.get(&sector).into_iter().flatten() {
            let op = &self.ops[version.op];
            if version.bytes[..] == *bytes {
                found.clone_from(&op.what);
            }
            let line = format!(
                "\n  {} from {} to {:?}: {:?}",
                op.what, op.begin, op.over, op.result
            );
            told.push_str(&line);
        }
        panic!(
            "sector {sector} (block {}) holds {found}, {crash:?}; written:{told}",
            sector / SECTORS
        );
    }

    /// The parent at a position.
    pub fn parent(&self, at: usize) -> &Content {
        let (_, parent) = self
            .parents
            .iter()
            .rev()
            .find(|(from, _)| *from <= at)
            .unwrap();
        parent
    }

    /// The chunks where a disk differs from the parent: they must be dirty.
    pub fn owed(&self, disk: &Content, at: usize) -> Vec<u64> {
        let parent = self.parent(at);
        let mut chunks: Vec<u64> = disk
            .iter()
            .filter(|(sector, bytes)| parent.get(sector).unwrap_or(&zeros()) != *bytes)
            .map(|(sector, _)| sector * SECTOR as u64 / crate::common::CHUNK as u64)
            .collect();
        chunks.dedup();
        chunks
    }
}
