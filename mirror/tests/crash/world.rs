// SPDX-License-Identifier: Apache-2.0
//! One disk with its engine, what it should hold, and the log of what is done to its files.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use _mirror::commit::{Held, Sealed};
use _mirror::disk::{Answer, Disk, Door, Errno, Ticket};
use _mirror::engine::{AttachOptions, Engine, OnFull};
use _mirror::error::Error;
use _mirror::faults::Watch;
use _mirror::mirror::Mirror;

use crate::common::{BLOCK, CHUNK, Store, attach_options, digest_of, noise, object, open_engine};
use crate::model::{Content, Crash, Model, Op, SECTOR, SECTORS};

/// Three pages of the map, the last chunk and the last block in part.
pub const SIZE: usize = (129 << 20) + 5 * BLOCK + 1234;
/// How much it grows: past a page of the map.
pub const GROWTH: usize = (64 << 20) + 2 * BLOCK + 100;
/// The chunks of the base that are no holes.
const BASE: [u64; 3] = [0, 255, 516];

/// The blocks that are written and looked at: base and hole, the ends of a chunk, of a page of the
/// map, of the disk.
pub fn runs(size: usize) -> Vec<Range<u64>> {
    let end = size.div_ceil(BLOCK) as u64;
    let mut runs = vec![0..6, 62..67, 16381..16388, 33024..end.min(33033)];
    if size > SIZE {
        runs.push(end - 3..end);
    }
    runs
}

/// Numbers that a seed names.
#[derive(Debug, Clone)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % n as u64).unwrap()
    }
}

/// What a guest does.
#[derive(Debug, Clone)]
pub enum Guest {
    Write(usize, usize, bool),
    Discard(usize, usize),
    Zero(usize, usize),
    Flush,
}

/// What is done to a disk.
#[derive(Debug, Clone)]
pub enum Step {
    Guest(Guest),
    Freeze,
    /// The disk stands still: writes wait until it is sealed or thawed.
    Hold,
    Seal,
    Thaw,
    /// Held for longer than was allowed: a seal is refused.
    Expire,
    /// Held, flushed and sealed, with whatever comes in between.
    Apart,
    Upload,
    Publish,
    Abandon,
    Grow,
    /// An orderly stop, and attached again.
    Stop,
    /// The agent dies and its live map stays; attached again.
    Kill,
}

impl Guest {
    /// Somewhere in the runs.
    pub fn random(random: &mut Random, size: usize) -> Self {
        let runs = runs(size);
        let run = runs[random.below(runs.len())].clone();
        let from = usize::try_from(run.start).unwrap() * BLOCK;
        let end = (usize::try_from(run.end).unwrap() * BLOCK).min(size);
        let mut at = from + random.below(end - from);
        let mut len = 1 + random.below(3 * BLOCK);
        if random.below(3) > 0 {
            at -= at % BLOCK;
            len = len.next_multiple_of(BLOCK);
        }
        len = len.min(end - at);
        match random.below(12) {
            0..6 => Self::Write(at, len, false),
            6 => Self::Write(at, len, true),
            7 => Self::Discard(at, len),
            8 => Self::Zero(at, len),
            _ => Self::Flush,
        }
    }

    fn range(&self) -> Range<usize> {
        match *self {
            Self::Write(at, len, _) | Self::Discard(at, len) | Self::Zero(at, len) => at..at + len,
            Self::Flush => 0..0,
        }
    }
}

/// What the requests of one disk share: the door of its requests.
pub struct Shared {
    pub watch: Arc<Watch>,
    model: Mutex<Model>,
}

impl Door for Shared {
    fn complete(&self, ticket: Ticket, result: Result<&[u8], Errno>) {
        let mut model = self.model();
        let at = self.watch.mark();
        model.end(usize::try_from(ticket).unwrap(), at, result.map(|_| ()));
    }
}

impl Shared {
    pub fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap()
    }

    /// Notes that something begins.
    pub fn begin(&self, what: String, bytes: Range<usize>, flushes: bool) -> usize {
        let mut model = self.model();
        let begin = self.watch.mark();
        model.begin(Op {
            what,
            bytes,
            begin,
            over: None,
            result: Ok(()),
            flushes,
        })
    }

    pub fn end(&self, op: usize, result: Result<(), i32>) {
        let mut model = self.model();
        let at = self.watch.mark();
        model.end(op, at, result);
    }

    /// A guest's request; `None`: one that it overlaps is under way.
    pub fn issue(self: &Arc<Self>, mirror: &Mirror, guest: &Guest, seed: u64) -> Option<usize> {
        let (op, data) = self.note(guest, seed)?;
        let range = guest.range();
        let door: Arc<dyn Door> = self.clone();
        let (at, len, ticket) = (range.start as u64, range.len() as u64, op as u64);
        let answer = match guest {
            Guest::Write(_, _, durable) => mirror.write(&door, ticket, at, &data, *durable),
            Guest::Discard(..) => mirror.discard(&door, ticket, at, len),
            Guest::Zero(..) => mirror.write_zeroes(&door, ticket, at, len),
            Guest::Flush => mirror.flush(&door, ticket),
        };
        match answer {
            Answer::Done => self.end(op, Ok(())),
            Answer::Failed(errno) => self.end(op, Err(errno)),
            Answer::Parked => {}
        }
        Some(op)
    }

    /// A guest's request begins; `None`: one that it overlaps is under way.
    pub fn note(&self, guest: &Guest, seed: u64) -> Option<(usize, Vec<u8>)> {
        let range = guest.range();
        let mut model = self.model();
        if model.is_busy(&range) {
            return None;
        }
        let size = model.size;
        let begin = self.watch.mark();
        let op = model.begin(Op {
            what: format!("{guest:?}"),
            bytes: range.clone(),
            begin,
            over: None,
            result: Ok(()),
            flushes: matches!(guest, Guest::Flush | Guest::Write(_, _, true)),
        });
        let data = match guest {
            Guest::Write(_, len, _) => noise(seed, *len),
            _ => vec![0; range.len()],
        };
        let mut left = range.clone();
        if let Guest::Discard(..) = guest {
            // Parts of blocks are left alone.
            left = range.start.next_multiple_of(BLOCK)..range.end / BLOCK * BLOCK;
            if range.end == size {
                left.end = size;
            }
        }
        if left.start < left.end {
            model.leave(op, left.start, &data[..left.len()]);
        }
        Some((op, data))
    }
}

/// Longer than any test.
const HOLD: Duration = Duration::from_secs(100);

struct Commit {
    sealed: Sealed,
    begin: usize,
    left: Vec<u64>,
    version: Content,
}

/// One disk, its engine, and what it should hold.
pub struct World {
    pub directory: Arc<tempfile::TempDir>,
    pub engine: Arc<Engine>,
    pub mirror: Arc<Mirror>,
    pub shared: Arc<Shared>,
    pub seed: u64,
    /// Says on standard output when a version is published.
    pub talks: bool,
    /// With the operation that it was.
    held: Option<(Held, usize)>,
    commit: Option<Commit>,
}

type Base = (Store, Vec<(u64, Vec<u8>)>, Content);

/// The base version: its store, its leaves, what the runs hold of it.
pub fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(make_base)
}

fn make_base() -> Base {
    let mut store = Store::default();
    let mut leaves: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let mut content = Content::new();
    for chunk in BASE {
        let from = usize::try_from(chunk).unwrap() * CHUNK;
        // Not resized: that takes a debug build longer than all else, in every process that dies.
        let mut bytes = vec![0; CHUNK];
        let len = CHUNK.min(SIZE - from);
        bytes[..len].copy_from_slice(&noise(chunk, len));
        let digest = digest_of(&bytes);
        store.objects.insert(digest, object(&bytes, false));
        let leaf = leaves.entry(chunk / 256).or_insert_with(|| vec![0; 8192]);
        leaf[usize::try_from(chunk % 256).unwrap() * 32..][..32].copy_from_slice(&digest);
        for block in runs(SIZE).into_iter().flatten() {
            if block / (CHUNK / BLOCK) as u64 == chunk {
                let at = usize::try_from(block).unwrap() * BLOCK - from;
                put(&mut content, block * SECTORS, &bytes[at..at + BLOCK]);
            }
        }
    }
    (store, leaves.into_iter().collect(), content)
}

/// Adds bytes to a content, from a sector on.
pub fn put(content: &mut Content, sector: u64, bytes: &[u8]) {
    for (sector, part) in (sector..).zip(bytes.chunks(SECTOR)) {
        let mut whole = [0; SECTOR];
        whole[..part.len()].copy_from_slice(part);
        content.insert(sector, Arc::new(whole));
    }
}

pub fn options(directory: &Path, size: usize, create: bool) -> AttachOptions {
    attach_options(directory, size as u64, &base().1, create)
}

/// An engine that has the base's chunks in its cache.
pub fn engine(directory: &Path) -> Arc<Engine> {
    open_engine(directory, 64 << 20, OnFull::Hold)
}

struct Nobody;

impl Door for Nobody {
    fn complete(&self, _: Ticket, _: Result<&[u8], Errno>) {}
}

/// Reads the runs of a disk, bringing chunks as they are wanted.
pub fn read_runs(engine: &Engine, mirror: &Mirror) -> Result<Content, Errno> {
    let door: Arc<dyn Door> = Arc::new(Nobody);
    let size = usize::try_from(mirror.size_bytes()).unwrap();
    let mut content = Content::new();
    for run in runs(size) {
        let from = usize::try_from(run.start).unwrap() * BLOCK;
        let to = (usize::try_from(run.end).unwrap() * BLOCK).min(size);
        let mut bytes = vec![0; to - from];
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            match mirror.read(&door, u64::MAX, from as u64, &mut bytes) {
                Answer::Done => break,
                Answer::Failed(errno) => return Err(errno),
                Answer::Parked => {}
            }
            assert!(Instant::now() < deadline, "a read was never answered");
            base().0.serve_all(engine);
            std::thread::sleep(Duration::from_micros(100));
        }
        put(&mut content, run.start * SECTORS, &bytes);
    }
    Ok(content)
}

impl World {
    /// A new disk; `directory` outlives it.
    pub fn new(directory: Arc<tempfile::TempDir>, seed: u64) -> Self {
        let watch = Watch::new(directory.path());
        let content = base().2.clone();
        let model = Model::new(SIZE, content.clone(), content);
        Self::with(directory, watch, model, seed, true)
    }

    /// A disk whose files are there.
    pub fn with(
        directory: Arc<tempfile::TempDir>,
        watch: Arc<Watch>,
        model: Model,
        seed: u64,
        create: bool,
    ) -> Self {
        let engine = engine(directory.path());
        let mirror = engine
            .attach(options(directory.path(), model.size, create))
            .unwrap();
        let shared = Arc::new(Shared {
            watch,
            model: Mutex::new(model),
        });
        let world = Self {
            directory,
            engine,
            mirror,
            shared,
            seed,
            talks: false,
            held: None,
            commit: None,
        };
        // From now on nothing waits for a chunk unless the cache was shed.
        read_runs(&world.engine, &world.mirror).unwrap();
        world
    }

    /// Waits for a request, bringing what it needs.
    pub fn wait(&self, op: usize) -> Result<(), i32> {
        let begun = Instant::now();
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            {
                let model = self.shared.model();
                if model.ops[op].over.is_some() {
                    return model.ops[op].result;
                }
                assert!(
                    Instant::now() < deadline,
                    "{} was never answered",
                    model.ops[op].what
                );
            }
            if base().0.serve_all(&self.engine) == 0 {
                std::thread::sleep(Duration::from_micros(100));
            }
            if begun.elapsed() > Duration::from_millis(3) {
                // Held for want of room: now there is some.
                self.shared.watch.mend();
                self.mirror.retry_held();
            }
        }
    }

    /// Waits for all.
    pub fn settle(&self) {
        let count = self.shared.model().ops.len();
        for op in 0..count {
            let _ = self.wait(op);
        }
    }

    /// Issues a guest's request once nothing that it overlaps is under way.
    pub fn issue(&mut self, guest: &Guest) -> usize {
        self.seed += 1;
        loop {
            if let Some(op) = self.shared.issue(&self.mirror, guest, self.seed) {
                return op;
            }
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn whole(&self, what: &str, flushes: bool) -> usize {
        self.shared.begin(what.to_owned(), 0..0, flushes)
    }

    /// Does a step and waits for its end; an error is the disk's.
    pub fn run(&mut self, step: &Step) -> Result<(), i32> {
        match step {
            Step::Guest(guest) => {
                let op = self.issue(guest);
                self.wait(op)
            }
            Step::Freeze if self.is_open() => {
                let begin = self.whole("freeze", true);
                let sealed = self.mirror.freeze();
                self.sealed(begin, begin, sealed)
            }
            Step::Hold if self.is_open() => {
                let begin = self.whole("hold", false);
                let held = self.mirror.hold(HOLD);
                let result = over(&held);
                self.shared.end(begin, result);
                self.held = held.ok().map(|held| (held, begin));
                result
            }
            Step::Seal => match self.held.take() {
                Some((held, instant)) => {
                    let begin = self.whole("seal", true);
                    self.sealed(begin, instant, held.seal())
                }
                None => Ok(()),
            },
            Step::Thaw => {
                if let Some((held, _)) = self.held.take() {
                    assert!(held.thaw());
                }
                Ok(())
            }
            Step::Expire if self.is_open() => {
                let Ok(held) = self.mirror.hold(Duration::from_millis(2)) else {
                    return Ok(());
                };
                while held.is_held() {
                    std::thread::sleep(Duration::from_micros(100));
                }
                assert!(matches!(held.seal(), Err(Error::Thawed)));
                Ok(())
            }
            Step::Freeze | Step::Hold | Step::Expire => Ok(()),
            Step::Apart => {
                self.run(&Step::Hold)?;
                let flushed = self.run(&Step::Guest(Guest::Flush));
                flushed.and(self.run(&Step::Seal))
            }
            Step::Upload => self.upload(),
            Step::Publish => {
                while self.commit.as_ref().is_some_and(|c| !c.left.is_empty()) {
                    self.upload()?;
                }
                if let Some(commit) = self.commit.take() {
                    self.publish(commit);
                }
                Ok(())
            }
            Step::Abandon => {
                if let Some(commit) = self.commit.take() {
                    commit.sealed.abandon();
                }
                Ok(())
            }
            Step::Grow => self.grow(),
            Step::Stop => {
                // What is under way ends with an error, or is done.
                let begin = self.whole("stop", true);
                let stopped = self.engine.stop().map_err(|e| e.raw_os_error());
                self.shared.end(begin, stopped);
                self.attach_again();
                stopped
            }
            Step::Kill => {
                self.engine.forget_as_if_killed();
                self.attach_again();
                Ok(())
            }
        }
    }

    fn is_open(&self) -> bool {
        self.commit.is_none() && self.held.is_none()
    }

    /// A seal is over; what it sealed is the disk as it was at `instant`.
    fn sealed(
        &mut self,
        op: usize,
        instant: usize,
        sealed: Result<Sealed, Error>,
    ) -> Result<(), i32> {
        let result = over(&sealed);
        self.shared.end(op, result);
        if let Ok(sealed) = sealed {
            let version = self.shared.model().parents.last().unwrap().1.clone();
            self.commit = Some(Commit {
                left: sealed.chunks().to_vec(),
                sealed,
                begin: instant,
                version,
            });
        }
        result
    }

    fn upload(&mut self) -> Result<(), i32> {
        let Some(commit) = &mut self.commit else {
            return Ok(());
        };
        let Some(chunk) = commit.left.pop() else {
            return Ok(());
        };
        let (sealed, engine) = (&commit.sealed, &self.engine);
        let read = std::thread::scope(|scope| {
            let reader = scope.spawn(|| sealed.read(chunk));
            while !reader.is_finished() {
                base().0.serve_all(engine);
                std::thread::sleep(Duration::from_micros(50));
            }
            reader.join().unwrap()
        });
        let bytes = match read {
            Ok(bytes) => bytes,
            Err(error) => {
                self.commit.take().unwrap().sealed.abandon();
                return Err(error.raw_os_error());
            }
        };
        let size = usize::try_from(commit.sealed.size_bytes()).unwrap();
        for block in runs(size).into_iter().flatten() {
            if block / (CHUNK / BLOCK) as u64 == chunk {
                let at = usize::try_from(block).unwrap() * BLOCK
                    - usize::try_from(chunk).unwrap() * CHUNK;
                put(&mut commit.version, block * SECTORS, &bytes[at..at + BLOCK]);
            }
        }
        commit.sealed.uploaded(chunk);
        Ok(())
    }

    fn publish(&self, commit: Commit) {
        {
            let mut model = self.shared.model();
            let freeze = model.ops[commit.begin].clone();
            // A version is the disk at its freeze: what was over by then, or began before it ended.
            let size = usize::try_from(commit.sealed.size_bytes()).unwrap();
            let crash = Crash {
                flushed: freeze.begin,
                answered: freeze.begin,
                at: freeze.over.unwrap_or(usize::MAX),
            };
            model.check(&commit.version, size, crash);
            let at = self.shared.watch.mark();
            model.parents.push((at, commit.version));
        }
        if self.talks {
            println!("published");
        }
        commit.sealed.publish();
    }

    fn grow(&mut self) -> Result<(), i32> {
        let old = self.shared.model().size;
        if old != SIZE {
            return Ok(());
        }
        // A request that knows the old end of the disk ends first.
        self.settle();
        let begin = self.shared.watch.mark();
        self.shared.model().growth = Some((old, begin, None));
        let result = self.mirror.grow((old + GROWTH) as u64);
        let at = self.shared.watch.mark();
        let mut model = self.shared.model();
        if result.is_ok() {
            model.size = old + GROWTH;
            model.growth = Some((old, begin, Some(at)));
        }
        result.map_err(|e| e.raw_os_error())
    }

    /// The agent dies and has no successor.
    pub fn end(&mut self) {
        self.engine.forget_as_if_killed();
        self.held = None;
        if let Some(commit) = self.commit.take() {
            commit.sealed.abandon();
        }
    }

    /// What was under way at an end has no answer.
    pub fn give_up_requests(&self) {
        let mut model = self.shared.model();
        let at = self.shared.watch.mark();
        for op in 0..model.ops.len() {
            if model.ops[op].over.is_none() {
                model.end(op, at, Err(libc::EIO));
            }
        }
    }

    /// Attaches the same files again, whatever became of the live map.
    pub fn attach_again(&mut self) {
        self.held = None;
        if let Some(commit) = self.commit.take() {
            commit.sealed.abandon();
        }
        self.give_up_requests();
        let size = self.shared.model().size;
        self.engine = engine(self.directory.path());
        self.mirror = self
            .engine
            .attach(options(self.directory.path(), size, false))
            .unwrap();
        read_runs(&self.engine, &self.mirror).unwrap();
    }

    /// Everything that was answered is there, and what differs from the parent is dirty.
    pub fn check(&self) {
        // The other guest may have been slow to begin: what was answered before the reads is there.
        let before = self.shared.watch.mark();
        let disk = read_runs(&self.engine, &self.mirror).unwrap();
        let at = self.shared.watch.mark();
        let mut model = self.shared.model();
        let crash = Crash {
            flushed: before,
            answered: before,
            at,
        };
        model.check(&disk, model.size, crash);
        model.resolve(&disk);
    }

    /// As [`World::check`], and freezes to see the dirty chunks.
    pub fn check_with_dirt(&mut self) {
        self.check();
        let disk = read_runs(&self.engine, &self.mirror).unwrap();
        let owed = {
            let model = self.shared.model();
            model.owed(&disk, usize::MAX)
        };
        let begin = self.whole("freeze", true);
        let sealed = self.mirror.freeze().unwrap();
        self.shared.end(begin, Ok(()));
        assert_dirty(&owed, sealed.chunks());
        sealed.abandon();
    }
}

fn over<T>(done: &Result<T, Error>) -> Result<(), i32> {
    done.as_ref().map(|_| ()).map_err(Error::raw_os_error)
}

pub fn assert_dirty(owed: &[u64], dirty: &[u64]) {
    for chunk in owed {
        assert!(
            dirty.contains(chunk),
            "chunk {chunk} differs from the parent and is not dirty; dirty: {dirty:?}"
        );
    }
}
