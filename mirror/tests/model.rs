// SPDX-License-Identifier: Apache-2.0
//! Random operations against a model that is an array of bytes: a read returns the last write or
//! the base, under any order of reads, writes, discards, fetches, COMMITs, kills and power losses,
//! and a published version is the disk at its freeze.

#![allow(clippy::unwrap_used, reason = "test code")]
#![allow(clippy::needless_pass_by_value, clippy::too_many_lines)]
#![allow(clippy::match_same_arms, clippy::semicolon_if_nothing_returned)]

mod common;

use std::ops::Range;
use std::time::Duration;

use _mirror::commit::Sealed;
use _mirror::disk::{Answer, Disk, Errno, Ticket};
use _mirror::engine::{Fetch, FetchFailure, OnFull};
use common::{BLOCK, CHUNK, Host, fast_directory, noise};
use proptest::prelude::*;

const SIZE: usize = 4 * CHUNK + 5 * BLOCK + 1234;

#[derive(Debug, Clone)]
enum Step {
    Read(usize, usize),
    Write(usize, usize, u8),
    Discard(usize, usize),
    Zero(usize, usize),
    Flush,
    /// Fetch what is asked for, and bring the chunks in this order or not at all.
    Fetch(usize),
    Bring(usize),
    Fail(usize),
    Finish,
    Freeze,
    Upload(usize),
    Publish,
    Abandon,
    Grow(usize),
    Restart,
    Kill,
    PowerLoss,
}

fn offset() -> impl Strategy<Value = usize> {
    prop_oneof![
        // Places where blocks, chunks, pages and the disk end, and a few bytes around them.
        (0..5_usize, -2..=2_i64, -600..600_i64).prop_map(|(chunk, block, byte)| {
            let at = i64::try_from(chunk * CHUNK).unwrap() + block * 4096 + byte;
            usize::try_from(at.max(0)).unwrap()
        }),
        (0..SIZE / BLOCK).prop_map(|block| block * BLOCK),
        0..SIZE,
    ]
}

fn length() -> impl Strategy<Value = usize> {
    prop_oneof![
        3 => 1..600_usize,
        4 => (1..9_usize).prop_map(|blocks| blocks * BLOCK),
        2 => 1..3 * BLOCK,
        1 => 1..2 * CHUNK,
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => (offset(), length()).prop_map(|(at, len)| Step::Read(at, len)),
        16 => (offset(), length(), any::<u8>()).prop_map(|(at, len, n)| Step::Write(at, len, n)),
        4 => (offset(), length()).prop_map(|(at, len)| Step::Discard(at, len)),
        4 => (offset(), length()).prop_map(|(at, len)| Step::Zero(at, len)),
        3 => Just(Step::Flush),
        6 => (1..4_usize).prop_map(Step::Fetch),
        6 => (0..4_usize).prop_map(Step::Bring),
        1 => (0..4_usize).prop_map(Step::Fail),
        3 => Just(Step::Finish),
        4 => Just(Step::Freeze),
        6 => (0..5_usize).prop_map(Step::Upload),
        3 => Just(Step::Publish),
        1 => Just(Step::Abandon),
        1 => (1..CHUNK).prop_map(Step::Grow),
        1 => Just(Step::Restart),
        2 => Just(Step::Kill),
        1 => Just(Step::PowerLoss),
    ]
}

/// A request that was parked, and what it does when it is done.
struct Pending {
    ticket: Ticket,
    range: Range<usize>,
    effect: Effect,
}

enum Effect {
    /// A read and what it must return.
    Expect(Vec<u8>),
    /// A write and what it leaves.
    Leave(Vec<u8>),
    /// A flush, of the disk as it was.
    Durable(Vec<u8>),
}

/// A COMMIT under way: the disk at its freeze, chunks to upload, the version in the making.
struct Commit {
    sealed: Sealed,
    frozen: Vec<u8>,
    left: Vec<u64>,
    version: Vec<u8>,
}

struct World {
    host: Host,
    disk: Vec<u8>,
    /// The disk at the last flush that was answered.
    flushed: Vec<u8>,
    /// What the repository has.
    version: Vec<u8>,
    pending: Vec<Pending>,
    taken: Vec<Fetch>,
    sealed: Option<Commit>,
}

impl World {
    fn new() -> Self {
        let mut base = noise(3, SIZE - 2 * BLOCK);
        base[CHUNK..2 * CHUNK].fill(0);
        base.resize(SIZE, 0);
        Self {
            host: Host::with(fast_directory(), &base, SIZE as u64, 64 << 20, OnFull::Hold),
            disk: base.clone(),
            flushed: base.clone(),
            version: base,
            pending: Vec::new(),
            taken: Vec::new(),
            sealed: None,
        }
    }

    /// The bytes of a request that fit the disk.
    fn clip(&self, at: usize, len: usize) -> Range<usize> {
        let at = at.min(self.disk.len() - 1);
        at..(at + len).min(self.disk.len())
    }

    fn apply(&mut self, range: Range<usize>, effect: Effect, answer: Result<Vec<u8>, Errno>) {
        let bytes = answer.unwrap_or_else(|errno| panic!("{range:?} failed with {errno}"));
        match effect {
            Effect::Expect(expected) => assert!(bytes == expected, "read {range:?}"),
            Effect::Leave(data) => self.disk[range].copy_from_slice(&data),
            Effect::Durable(disk) => self.flushed = disk,
        }
    }

    /// Applies what was answered meanwhile.
    fn collect(&mut self) {
        for i in (0..self.pending.len()).rev() {
            if let Some(answer) = self.host.notes.take(self.pending[i].ticket) {
                let Pending { range, effect, .. } = self.pending.swap_remove(i);
                self.apply(range, effect, answer);
            }
        }
    }

    /// Brings every chunk until nothing is parked.
    fn finish(&mut self) {
        for fetch in std::mem::take(&mut self.taken) {
            self.host.store.serve(&self.host.engine, &fetch);
        }
        for _ in 0..10_000 {
            self.collect();
            if self.pending.is_empty() {
                return;
            }
            while let Some(fetch) = self
                .host
                .engine
                .next_fetch(false, Duration::from_micros(200))
            {
                self.host.store.serve(&self.host.engine, &fetch);
            }
        }
        panic!("{} requests were never answered", self.pending.len());
    }

    /// A request's order with those under way is free where they overlap: wait for them first.
    fn settle(&mut self, range: &Range<usize>) {
        self.collect();
        let overlaps = |p: &Pending| p.range.start < range.end && range.start < p.range.end;
        if self.pending.iter().any(overlaps) {
            self.finish();
        }
    }

    fn issue(
        &mut self,
        range: Range<usize>,
        effect: Effect,
        issue: impl FnOnce(&Host, Ticket) -> Answer,
    ) {
        let ticket = self.host.ticket();
        match issue(&self.host, ticket) {
            Answer::Done => self.apply(range, effect, Ok(Vec::new())),
            Answer::Failed(errno) => panic!("{range:?} failed with {errno}"),
            Answer::Parked => self.pending.push(Pending {
                ticket,
                range,
                effect,
            }),
        }
    }

    fn leave(
        &mut self,
        at: usize,
        len: usize,
        data: &[u8],
        issue: impl FnOnce(&Host, Ticket, u64, u64, &[u8]) -> Answer,
    ) {
        let range = self.clip(at, len);
        self.settle(&range);
        let data = &data[..range.len()];
        let (at, len) = (range.start as u64, range.len() as u64);
        self.issue(range, Effect::Leave(data.to_vec()), |host, ticket| {
            issue(host, ticket, at, len, data)
        });
    }

    /// After an end of any kind: what was not answered yet did not happen, or did with its answer.
    fn ended(&mut self) {
        for Pending {
            ticket,
            range,
            effect,
        } in std::mem::take(&mut self.pending)
        {
            match self.host.notes.wait(ticket) {
                Ok(bytes) => self.apply(range, effect, Ok(bytes)),
                Err(errno) => assert_eq!(errno, libc::EIO),
            }
        }
        self.taken.clear();
        self.sealed = None;
        self.host.size = self.disk.len() as u64;
    }

    fn whole(&mut self) -> Vec<u8> {
        self.finish();
        self.host.read(0, self.disk.len()).unwrap()
    }

    fn check(&mut self) {
        let found = self.whole();
        if let Some(at) = (0..found.len()).find(|&i| found[i] != self.disk[i]) {
            panic!(
                "byte {at} (block {}, chunk {}) differs",
                at / BLOCK,
                at / CHUNK
            );
        }
    }

    fn upload(&mut self, nth: usize) {
        let Some(commit) = &mut self.sealed else {
            return;
        };
        if commit.left.is_empty() {
            return;
        }
        let chunk = commit.left.remove(nth % commit.left.len());
        let content = self.host.read_sealed(&commit.sealed, chunk).unwrap();
        let from = usize::try_from(chunk).unwrap() * CHUNK;
        let frozen = &commit.frozen[from..];
        let len = frozen.len().min(CHUNK);
        assert!(content[..len] == frozen[..len], "sealed chunk {chunk}");
        assert!(content[len..].iter().all(|&byte| byte == 0));
        commit.version[from..from + len].copy_from_slice(&content[..len]);
        commit.sealed.uploaded(chunk);
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Read(at, len) => {
                let range = self.clip(at, len);
                self.settle(&range);
                let expected = self.disk[range.clone()].to_vec();
                let mut buf = vec![0xee; range.len()];
                let ticket = self.host.ticket();
                let host = &self.host;
                match host
                    .mirror
                    .read(&host.door, ticket, range.start as u64, &mut buf)
                {
                    Answer::Done => assert!(buf == expected, "read {range:?}"),
                    Answer::Failed(errno) => panic!("read {range:?} failed with {errno}"),
                    Answer::Parked => {
                        let effect = Effect::Expect(expected);
                        self.pending.push(Pending {
                            ticket,
                            range,
                            effect,
                        });
                    }
                }
            }
            Step::Write(at, len, n) => self.leave(
                at,
                len,
                &noise(u64::from(n), len),
                |host, ticket, at, _, data| {
                    host.mirror.write(&host.door, ticket, at, data, n % 16 == 0)
                },
            ),
            Step::Zero(at, len) => {
                self.leave(at, len, &vec![0; len], |host, ticket, at, len, _| {
                    host.mirror.write_zeroes(&host.door, ticket, at, len)
                })
            }
            Step::Discard(at, len) => {
                let range = self.clip(at, len);
                self.settle(&range);
                let mut data = self.disk[range.clone()].to_vec();
                let end = if range.end == self.disk.len() {
                    range.end
                } else {
                    range.end / BLOCK * BLOCK
                };
                let from = range.start.next_multiple_of(BLOCK);
                if from < end {
                    data[from - range.start..end - range.start].fill(0);
                }
                let (at, len) = (range.start as u64, range.len() as u64);
                self.issue(range, Effect::Leave(data), |host, ticket| {
                    host.mirror.discard(&host.door, ticket, at, len)
                });
            }
            Step::Flush => {
                self.collect();
                let effect = Effect::Durable(self.disk.clone());
                self.issue(0..0, effect, |host, ticket| {
                    host.mirror.flush(&host.door, ticket)
                });
            }
            Step::Fetch(count) => {
                for _ in 0..count {
                    self.taken
                        .extend(self.host.engine.next_fetch(false, Duration::ZERO));
                }
            }
            Step::Bring(nth) if !self.taken.is_empty() => {
                let fetch = self.taken.remove(nth % self.taken.len());
                self.host.store.serve(&self.host.engine, &fetch);
            }
            Step::Fail(nth) if !self.taken.is_empty() => {
                let fetch = self.taken.remove(nth % self.taken.len());
                self.host
                    .engine
                    .fetch_failed(&fetch.digest, FetchFailure::Transport, "away");
            }
            Step::Bring(_) | Step::Fail(_) => {}
            Step::Finish => self.finish(),
            Step::Freeze if self.sealed.is_none() => {
                self.finish();
                let sealed = self.host.mirror.freeze().unwrap();
                self.sealed = Some(Commit {
                    left: sealed.chunks().to_vec(),
                    sealed,
                    frozen: self.disk.clone(),
                    version: self.version.clone(),
                });
                // What a version will hold must not be lost by the disk.
                self.flushed.clone_from(&self.disk);
            }
            Step::Freeze => {}
            Step::Upload(nth) => {
                // Its fetches must not wait for those that this test holds.
                self.finish();
                self.upload(nth);
            }
            Step::Publish => {
                self.finish();
                while self
                    .sealed
                    .as_ref()
                    .is_some_and(|commit| !commit.left.is_empty())
                {
                    self.upload(0);
                }
                if let Some(commit) = self.sealed.take() {
                    commit.sealed.publish();
                    assert!(
                        commit.version[..commit.frozen.len()] == commit.frozen,
                        "the version is the frozen disk"
                    );
                    self.version = commit.version;
                    self.version.resize(self.disk.len(), 0);
                }
            }
            Step::Abandon => {
                if let Some(commit) = self.sealed.take() {
                    commit.sealed.abandon();
                }
            }
            Step::Grow(bytes) if self.disk.len() < 2 * SIZE => {
                // A write that was parked knew the old end of the disk.
                self.finish();
                let size = self.disk.len() + bytes;
                self.host.mirror.grow(size as u64).unwrap();
                self.disk.resize(size, 0);
                self.flushed.resize(size, 0);
                self.version.resize(size, 0);
            }
            Step::Grow(_) => {}
            Step::Restart => {
                self.host.engine.stop().unwrap();
                self.ended();
                self.flushed.clone_from(&self.disk);
                self.host.open_again();
                self.check();
            }
            Step::Kill => {
                self.host.engine.forget_as_if_killed();
                self.ended();
                self.host.open_again();
                self.check();
            }
            Step::PowerLoss => {
                self.host.engine.forget_as_if_killed();
                self.ended();
                std::fs::remove_file(self.host.live_map()).unwrap();
                self.host.open_again();
                let found = self.whole();
                for (i, block) in found.chunks(BLOCK).enumerate() {
                    let range = i * BLOCK..i * BLOCK + block.len();
                    let last = block == &self.disk[range.clone()];
                    assert!(
                        last || block == &self.flushed[range],
                        "block {i} after power loss"
                    );
                }
                self.disk = found;
                self.flushed.clone_from(&self.disk);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("MIRROR_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(24),
        max_shrink_iters: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_disk_is_an_array_of_bytes(steps in prop::collection::vec(step(), 1..120)) {
        let mut world = World::new();
        for step in steps {
            world.run(step);
        }
        world.check();
        world.run(Step::Publish);
        world.run(Step::Freeze);
        world.run(Step::Publish);
        assert!(world.version == world.disk, "all that changed was published");
    }
}
