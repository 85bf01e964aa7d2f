// SPDX-License-Identifier: Apache-2.0
//! An engine whose mirrors come and go, and what the tests roll.

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use _mirror::disk::{Answer, Disk, Door, Errno};
use _mirror::engine::{Digest, Engine, EngineOptions, OnFull};
use _mirror::event::{Event, Value};
use _mirror::mirror::Mirror;

use crate::common::{CHUNK, Notes, Store, attach_options, fast_directory};

/// What a test rolls: seeded, so that a failure can be repeated.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self, sides: usize) -> usize {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % sides
    }
}

/// An engine whose mirrors come and go.
pub struct Fleet {
    pub directory: tempfile::TempDir,
    pub engine: Arc<Engine>,
    pub notes: Arc<Notes>,
    pub door: Arc<dyn Door>,
    pub tickets: AtomicU64,
}

pub fn open(directory: &Path, chunks: usize, scrub: u64) -> Arc<Engine> {
    Engine::open(EngineOptions {
        cache_directory: directory.join("cache"),
        cache_bytes: (chunks * CHUNK) as u64,
        cache_reserve_bytes: 0,
        scrub_bytes_per_second: scrub,
        session_id: "session".to_owned(),
        threads: 2,
        fetch_timeout: None,
        on_full: OnFull::Hold,
    })
    .unwrap()
}

impl Fleet {
    pub fn new(chunks: usize) -> Self {
        let directory = fast_directory();
        let notes = Arc::new(Notes::default());
        Self {
            engine: open(directory.path(), chunks, 0),
            directory,
            door: notes.clone(),
            notes,
            tickets: AtomicU64::new(1),
        }
    }

    pub fn open_again(&mut self, chunks: usize, scrub: u64) {
        self.engine = open(self.directory.path(), chunks, scrub);
    }

    pub fn attach(&self, name: &str, leaves: &[(u64, Vec<u8>)], size: usize) -> Arc<Mirror> {
        self.attach_with(name, leaves, size, CHUNK)
    }

    pub fn attach_with(
        &self,
        name: &str,
        leaves: &[(u64, Vec<u8>)],
        size: usize,
        chunk: usize,
    ) -> Arc<Mirror> {
        let place = self.directory.path().join(name);
        let create = !place.exists();
        std::fs::create_dir_all(&place).unwrap();
        let mut options = attach_options(&place, size as u64, leaves, create);
        name.clone_into(&mut options.instance);
        options.chunk_size_bytes = chunk as u64;
        self.engine.attach(options).unwrap()
    }

    pub fn start(&self, mirror: &Mirror, at: usize, len: usize) -> Result<Vec<u8>, u64> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let mut bytes = vec![0; len];
        match mirror.read(&self.door, ticket, at as u64, &mut bytes) {
            Answer::Done => Ok(bytes),
            Answer::Parked => Err(ticket),
            Answer::Failed(errno) => panic!("failed with {errno}"),
        }
    }

    /// While others serve.
    pub fn try_read(&self, mirror: &Mirror, at: usize, len: usize) -> Result<Vec<u8>, Errno> {
        self.start(mirror, at, len)
            .or_else(|ticket| self.notes.wait(ticket))
    }

    /// Reads 99 bytes of a chunk, and whether it had to be fetched.
    pub fn read(&self, store: &Store, mirror: &Mirror, chunk: usize) -> (Vec<u8>, bool) {
        let ticket = match self.start(mirror, chunk * CHUNK + 7, 99) {
            Ok(bytes) => return (bytes, false),
            Err(ticket) => ticket,
        };
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            store.serve_all(&self.engine);
            if let Some(answer) = self.notes.take(ticket) {
                return (answer.unwrap(), true);
            }
            assert!(Instant::now() < deadline, "never answered");
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    pub fn is_fetched(&self, store: &Store, mirror: &Mirror, base: &[u8], chunk: usize) -> bool {
        let (bytes, fetched) = self.read(store, mirror, chunk);
        assert!(bytes == base[chunk * CHUNK + 7..][..99], "chunk {chunk}");
        fetched
    }

    pub fn count(&self, name: &str) -> u64 {
        let all = self.engine.statistics();
        all.iter().find(|(n, _)| *n == name).unwrap().1
    }

    pub fn slab(&self) -> std::path::PathBuf {
        self.directory.path().join(format!("cache/slab-{CHUNK}"))
    }

    pub fn held_bytes(&self) -> u64 {
        self.slab().metadata().unwrap().blocks() * 512
    }

    pub fn flip(&self, content: &[u8]) {
        let slab = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.slab())
            .unwrap();
        let mut bytes = vec![0; CHUNK];
        for at in (0..slab.metadata().unwrap().len()).step_by(CHUNK) {
            slab.read_exact_at(&mut bytes, at).unwrap();
            if bytes == content {
                bytes[CHUNK / 2] ^= 4;
                return slab.write_all_at(&bytes, at).unwrap();
            }
        }
        panic!("the chunk is in no slot");
    }
}

pub fn text(event: &Event, name: &str) -> String {
    match event.fields.iter().find(|(n, _)| *n == name) {
        Some((_, Value::Text(text))) => text.clone(),
        other => panic!("no text {name}: {other:?}"),
    }
}

pub fn hex(digest: &Digest) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

/// Ends the others when a thread panics, too.
pub struct StopAtEnd<'a>(pub &'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
