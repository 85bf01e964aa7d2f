// SPDX-License-Identifier: Apache-2.0
//! A chunk store in memory, a door that notes answers, and an engine between them.
#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "test code")]
#![allow(clippy::needless_pass_by_value, reason = "test code")]

pub mod small;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use _mirror::disk::{Answer, Disk, Door, Errno, Ticket};
use _mirror::engine::{AttachOptions, Digest, Engine, EngineOptions, Fetch, OnFull};
use _mirror::mirror::Mirror;

pub const CHUNK: usize = 256 << 10;
pub const BLOCK: usize = 4096;
pub const KEY: [u8; 32] = [42; 32];

/// Pseudo-random bytes that a seed names.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

pub fn digest_of(chunk: &[u8]) -> Digest {
    *blake3::keyed_hash(&KEY, chunk).as_bytes()
}

/// A chunk object as the store keeps it.
pub fn object(content: &[u8], compressed: bool) -> Vec<u8> {
    let stored = if compressed {
        zstd::bulk::compress(content, 1).unwrap()
    } else {
        content.to_vec()
    };
    let mut object = b"LZIM\x01".to_vec();
    object.extend([u8::from(compressed), 0, 0]);
    object.extend(u32::try_from(content.len()).unwrap().to_le_bytes());
    object.extend(u32::try_from(stored.len()).unwrap().to_le_bytes());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&object[..16]);
    hasher.update(&stored);
    object.extend(&hasher.finalize().as_bytes()[..8]);
    object.extend([0; 8]);
    object.extend(stored);
    object
}

/// A version in a store: its objects, and its manifest's leaves.
#[derive(Default, Clone)]
pub struct Store {
    pub objects: HashMap<Digest, Vec<u8>>,
}

impl Store {
    pub fn put(&mut self, version: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut leaves: Vec<(u64, Vec<u8>)> = Vec::new();
        for (i, part) in version.chunks(CHUNK).enumerate() {
            let mut chunk = vec![0; CHUNK];
            chunk[..part.len()].copy_from_slice(part);
            if chunk.iter().all(|&byte| byte == 0) {
                continue;
            }
            let digest = digest_of(&chunk);
            self.objects.insert(digest, object(&chunk, i % 2 == 0));
            let leaf = i as u64 / 256;
            if leaves.last().is_none_or(|last| last.0 != leaf) {
                leaves.push((leaf, vec![0; 8192]));
            }
            leaves.last_mut().unwrap().1[i % 256 * 32..][..32].copy_from_slice(&digest);
        }
        leaves
    }

    pub fn serve(&self, engine: &Engine, fetch: &Fetch) {
        engine
            .fetched(&fetch.digest, &self.objects[&fetch.digest])
            .unwrap();
    }

    /// Serves whatever is asked for now.
    pub fn serve_all(&self, engine: &Engine) -> usize {
        let mut count = 0;
        while let Some(fetch) = engine.next_fetch(false, Duration::ZERO) {
            self.serve(engine, &fetch);
            count += 1;
        }
        count
    }
}

type Answers = HashMap<Ticket, Result<Vec<u8>, Errno>>;

/// Notes what it is told.
#[derive(Default)]
pub struct Notes {
    answers: Mutex<Answers>,
    arrived: Condvar,
}

impl Door for Notes {
    fn complete(&self, ticket: Ticket, result: Result<&[u8], Errno>) {
        let result = result.map(<[u8]>::to_vec);
        let old = self.answers.lock().unwrap().insert(ticket, result);
        assert!(old.is_none(), "ticket {ticket} was answered twice");
        self.arrived.notify_all();
    }
}

impl Notes {
    pub fn take(&self, ticket: Ticket) -> Option<Result<Vec<u8>, Errno>> {
        self.answers.lock().unwrap().remove(&ticket)
    }

    pub fn wait(&self, ticket: Ticket) -> Result<Vec<u8>, Errno> {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut answers = self.answers.lock().unwrap();
        loop {
            if let Some(answer) = answers.remove(&ticket) {
                return answer;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "ticket {ticket} was never answered");
            answers = self.arrived.wait_timeout(answers, left).unwrap().0;
        }
    }
}

/// A host with one mirror.
pub struct Host {
    pub directory: tempfile::TempDir,
    pub engine: Arc<Engine>,
    pub mirror: Arc<Mirror>,
    pub store: Store,
    pub notes: Arc<Notes>,
    pub door: Arc<dyn Door>,
    pub leaves: Vec<(u64, Vec<u8>)>,
    pub size: u64,
    pub tickets: Ticket,
    pub cache_bytes: u64,
    pub on_full: OnFull,
}

pub fn directory() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// In memory, where it takes `O_DIRECT` (Linux 6.6): for tests that sync often and prove no disk.
pub fn fast_directory() -> tempfile::TempDir {
    use std::os::unix::fs::OpenOptionsExt;
    let direct = |directory: &std::path::Path| {
        let mut options = std::fs::OpenOptions::new();
        options
            .write(true)
            .create_new(true)
            .custom_flags(libc::O_DIRECT);
        options.open(directory.join("probe")).is_ok()
    };
    tempfile::tempdir_in("/dev/shm")
        .ok()
        .filter(|found| direct(found.path()))
        .unwrap_or_else(directory)
}

pub fn open_engine(directory: &std::path::Path, cache_bytes: u64, on_full: OnFull) -> Arc<Engine> {
    Engine::open(EngineOptions {
        cache_directory: directory.join("cache"),
        cache_bytes,
        cache_reserve_bytes: 0,
        scrub_bytes_per_second: 0,
        session_id: "session".to_owned(),
        threads: 2,
        fetch_timeout: None,
        on_full,
    })
    .unwrap()
}

pub fn attach_options(
    directory: &std::path::Path,
    size: u64,
    leaves: &[(u64, Vec<u8>)],
    create: bool,
) -> AttachOptions {
    AttachOptions {
        instance: "instance".to_owned(),
        disk: "disk".to_owned(),
        attach_id: "attachment".to_owned(),
        directory: directory.join("mirror"),
        live_map: directory.join("live"),
        size_bytes: size,
        chunk_size_bytes: CHUNK as u64,
        chunk_key: KEY,
        leaves: leaves.to_vec(),
        create,
    }
}

impl Host {
    pub fn new(base: &[u8], size: u64) -> Self {
        Self::with(directory(), base, size, 64 << 20, OnFull::Hold)
    }

    pub fn with(
        directory: tempfile::TempDir,
        base: &[u8],
        size: u64,
        cache_bytes: u64,
        on_full: OnFull,
    ) -> Self {
        let mut store = Store::default();
        let leaves = store.put(base);
        let engine = open_engine(directory.path(), cache_bytes, on_full);
        let mirror = engine
            .attach(attach_options(directory.path(), size, &leaves, true))
            .unwrap();
        let notes = Arc::new(Notes::default());
        Self {
            directory,
            engine,
            mirror,
            store,
            door: notes.clone(),
            notes,
            leaves,
            size,
            tickets: 0,
            cache_bytes,
            on_full,
        }
    }

    pub fn live_map(&self) -> PathBuf {
        self.directory.path().join("live")
    }

    pub fn open_again(&mut self) {
        self.engine = open_engine(self.directory.path(), self.cache_bytes, self.on_full);
        let options = attach_options(self.directory.path(), self.size, &self.leaves, false);
        self.mirror = self.engine.attach(options).unwrap();
    }

    pub fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        self.tickets
    }

    /// Serves fetches until a request is answered.
    pub fn finish(&self, ticket: Ticket, answer: Answer) -> Result<Vec<u8>, Errno> {
        match answer {
            Answer::Done => Ok(Vec::new()),
            Answer::Failed(errno) => Err(errno),
            Answer::Parked => {
                let deadline = Instant::now() + Duration::from_secs(20);
                loop {
                    self.store.serve_all(&self.engine);
                    if let Some(answer) = self.notes.take(ticket) {
                        return answer;
                    }
                    assert!(
                        Instant::now() < deadline,
                        "ticket {ticket} was never answered"
                    );
                    std::thread::sleep(Duration::from_micros(200));
                }
            }
        }
    }

    pub fn read(&mut self, offset: usize, len: usize) -> Result<Vec<u8>, Errno> {
        let ticket = self.ticket();
        let mut buf = vec![0; len];
        match self
            .mirror
            .read(&self.door, ticket, offset as u64, &mut buf)
        {
            Answer::Done => Ok(buf),
            answer => self.finish(ticket, answer),
        }
    }

    pub fn write(&mut self, offset: usize, data: &[u8]) -> Result<(), Errno> {
        let ticket = self.ticket();
        let answer = self
            .mirror
            .write(&self.door, ticket, offset as u64, data, false);
        self.finish(ticket, answer).map(|_| ())
    }

    pub fn discard(&mut self, offset: usize, len: usize) -> Result<(), Errno> {
        let ticket = self.ticket();
        let answer = self
            .mirror
            .discard(&self.door, ticket, offset as u64, len as u64);
        self.finish(ticket, answer).map(|_| ())
    }

    pub fn zero(&mut self, offset: usize, len: usize) -> Result<(), Errno> {
        let ticket = self.ticket();
        let answer = self
            .mirror
            .write_zeroes(&self.door, ticket, offset as u64, len as u64);
        self.finish(ticket, answer).map(|_| ())
    }

    pub fn flush(&mut self) -> Result<(), Errno> {
        let ticket = self.ticket();
        let answer = self.mirror.flush(&self.door, ticket);
        self.finish(ticket, answer).map(|_| ())
    }

    /// What a status or the statistics say.
    pub fn count(&self, name: &str) -> u64 {
        let all = self
            .mirror
            .status()
            .into_iter()
            .chain(self.engine.statistics());
        all.into_iter()
            .find(|(n, _)| *n == name)
            .map(|(_, value)| value)
            .unwrap()
    }

    /// Reads a sealed chunk while the store serves.
    pub fn read_sealed(
        &self,
        sealed: &_mirror::commit::Sealed,
        chunk: u64,
    ) -> _mirror::error::Result<Vec<u8>> {
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| sealed.read(chunk));
            while !reader.is_finished() {
                self.store.serve_all(&self.engine);
                std::thread::sleep(Duration::from_micros(200));
            }
            reader.join().unwrap()
        })
    }
}
