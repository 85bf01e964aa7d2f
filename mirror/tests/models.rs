// SPDX-License-Identifier: Apache-2.0
//! The concurrent core under a model checker: the engine itself, its locks, waits and atomics in
//! shuttle's hands, on real files in memory. Each model is a race that a comment of the code tells;
//! shuttle tries orders of its steps (see `sync::explore`).
//!
//! `cargo test --features shuttle models`: these, and the smaller ones of `gate` and `pages`.

#![allow(clippy::unwrap_used, reason = "test code")]

use std::collections::HashMap;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use _mirror::disk::{Answer, Disk, Door, Errno, Ticket};
use _mirror::engine::{AttachOptions, Digest, Engine, EngineOptions, OnFull};
use _mirror::mirror::Mirror;
use _mirror::sync::atomic::focus;
use _mirror::sync::thread::{self, JoinHandle};
use _mirror::sync::{Condvar, Mutex, explore};

const BLOCK: usize = 4096;
const CHUNK: usize = 2 * BLOCK;
const KEY: [u8; 32] = [42; 32];
const LONG: Duration = Duration::from_secs(3600);

/// Notes answers; who waits for one waits in shuttle's hands.
#[derive(Default)]
struct Notes {
    answers: Mutex<HashMap<Ticket, Result<Vec<u8>, Errno>>>,
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

/// A guest of one mirror: calls that wait.
#[derive(Clone)]
struct Guest {
    mirror: Arc<Mirror>,
    notes: Arc<Notes>,
    door: Arc<dyn Door>,
    tickets: Arc<AtomicU64>,
}

impl Guest {
    fn finish(&self, ticket: Ticket, answer: &Answer) -> Result<Vec<u8>, Errno> {
        match answer {
            Answer::Done => Ok(Vec::new()),
            Answer::Failed(errno) => Err(*errno),
            Answer::Parked => {
                let mut answers = self.notes.answers.lock().unwrap();
                loop {
                    if let Some(answer) = answers.remove(&ticket) {
                        return answer;
                    }
                    answers = self.notes.arrived.wait(answers).unwrap();
                }
            }
        }
    }

    fn read(&self, at: usize, len: usize) -> Result<Vec<u8>, Errno> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let mut bytes = vec![0; len];
        let answer = self.mirror.read(&self.door, ticket, at as u64, &mut bytes);
        match answer {
            Answer::Done => Ok(bytes),
            answer => self.finish(ticket, &answer),
        }
    }

    fn write(&self, at: usize, data: &[u8], durable: bool) -> Result<(), Errno> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let answer = self
            .mirror
            .write(&self.door, ticket, at as u64, data, durable);
        self.finish(ticket, &answer).map(|_| ())
    }

    fn discard(&self, at: usize, len: usize) -> Result<(), Errno> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let answer = self
            .mirror
            .discard(&self.door, ticket, at as u64, len as u64);
        self.finish(ticket, &answer).map(|_| ())
    }

    fn flush(&self) -> Result<(), Errno> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let answer = self.mirror.flush(&self.door, ticket);
        self.finish(ticket, &answer).map(|_| ())
    }
}

/// A host with one mirror; its store is a thread.
struct Host {
    directory: tempfile::TempDir,
    engine: Arc<Engine>,
    guest: Guest,
    store: Option<JoinHandle<()>>,
}

fn chunk(value: u8) -> Vec<u8> {
    vec![value; CHUNK]
}

fn object(content: &[u8]) -> Vec<u8> {
    let mut object = b"LZIM\x01\0\0\0".to_vec();
    let len = u32::try_from(content.len()).unwrap().to_le_bytes();
    object.extend(len);
    object.extend(len);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&object[..16]);
    hasher.update(content);
    object.extend(&hasher.finalize().as_bytes()[..8]);
    object.extend([0; 8]);
    object.extend(content);
    object
}

impl Host {
    /// Chunk `i` of the base is `i + 1` in every byte.
    fn new(chunks: u8, cache_bytes: usize, with_store: bool) -> Self {
        focus(false);
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let engine = Engine::open(EngineOptions {
            cache_directory: directory.path().join("cache"),
            cache_bytes: cache_bytes as u64,
            cache_reserve_bytes: 0,
            scrub_bytes_per_second: 0,
            session_id: "session".to_owned(),
            threads: 1,
            fetch_timeout: None,
            on_full: OnFull::Error,
        })
        .unwrap();
        let mut objects: HashMap<Digest, Vec<u8>> = HashMap::new();
        let mut leaf = vec![0; 8192];
        for i in 0..chunks {
            let content = chunk(i + 1);
            let digest = *blake3::keyed_hash(&KEY, &content).as_bytes();
            leaf[usize::from(i) * 32..][..32].copy_from_slice(&digest);
            objects.insert(digest, object(&content));
        }
        let mirror = engine
            .attach(attach_options(directory.path(), chunks, leaf))
            .unwrap();
        let store = with_store.then(|| {
            let engine = engine.clone();
            thread::spawn(move || {
                while let Some(fetch) = engine.next_fetch(false, LONG) {
                    engine
                        .fetched(&fetch.digest, &objects[&fetch.digest])
                        .unwrap();
                }
            })
        });
        let notes = Arc::new(Notes::default());
        focus(true);
        let guest = Guest {
            mirror,
            door: notes.clone(),
            notes,
            tickets: Arc::default(),
        };
        Self {
            directory,
            engine,
            guest,
            store,
        }
    }

    fn count(&self, name: &str) -> u64 {
        let all = self.engine.statistics();
        all.into_iter()
            .find_map(|(found, value)| (found == name).then_some(value))
            .unwrap()
    }

    fn spawn(&self, work: impl FnOnce(Guest) + Send + 'static) -> JoinHandle<()> {
        let guest = self.guest.clone();
        thread::spawn(move || work(guest))
    }

    fn stop(self) {
        focus(false);
        self.engine.stop().unwrap();
        if let Some(store) = self.store {
            store.join().unwrap();
        }
    }
}

fn attach_options(directory: &Path, chunks: u8, leaf: Vec<u8>) -> AttachOptions {
    AttachOptions {
        instance: "instance".to_owned(),
        disk: "disk".to_owned(),
        attach_id: "attachment".to_owned(),
        directory: directory.join("mirror"),
        live_map: directory.join("live"),
        size_bytes: u64::from(chunks) * CHUNK as u64,
        chunk_size_bytes: CHUNK as u64,
        chunk_key: KEY,
        leaves: vec![(0, leaf)],
        create: true,
    }
}

fn join(threads: impl IntoIterator<Item = JoinHandle<()>>) {
    for thread in threads {
        thread.join().unwrap();
    }
}

/// `flight`, invariant 1.
#[test]
fn a_chunk_is_fetched_once_however_many_want_it() {
    explore(|| {
        let host = Host::new(1, 4 * CHUNK, true);
        let reader = |at: usize| {
            host.spawn(move |guest| assert_eq!(guest.read(at, 512).unwrap(), chunk(1)[..512]))
        };
        join([reader(0), reader(BLOCK), reader(512)]);
        assert_eq!(host.count("fetches_total"), 1);
        assert_eq!(host.count("fetches_now"), 0);
        host.stop();
    });
}

/// `gate`, the race that its header tells.
#[test]
fn no_write_into_a_block_undoes_another() {
    explore(|| {
        let host = Host::new(1, 4 * CHUNK, true);
        let part = |at: usize, value: u8| {
            host.spawn(move |guest| guest.write(at, &[value; 512], false).unwrap())
        };
        let whole = host.spawn(|guest| guest.write(BLOCK, &[9; BLOCK], false).unwrap());
        join([part(0, 7), part(512, 8), part(BLOCK + 512, 7), whole]);
        let found = host.guest.read(0, CHUNK).unwrap();
        assert_eq!(found[..512], [7; 512]);
        assert_eq!(found[512..1024], [8; 512]);
        assert_eq!(found[1024..BLOCK], [1; BLOCK - 1024]);
        // The part came before the whole, or after it.
        let block = &found[BLOCK..];
        assert!(block[512..1024] == [9; 512] || block[512..1024] == [7; 512]);
        assert_eq!(block[..512], [9; 512]);
        assert_eq!(block[1024..], [9; BLOCK - 1024]);
        host.stop();
    });
}

#[test]
fn a_discard_beside_a_write_of_part_leaves_zeros_or_that_part() {
    explore(|| {
        let host = Host::new(1, 4 * CHUNK, true);
        let part = host.spawn(|guest| guest.write(512, &[7; 512], false).unwrap());
        let gone = host.spawn(|guest| guest.discard(0, BLOCK).unwrap());
        join([part, gone]);
        let found = host.guest.read(0, BLOCK).unwrap();
        let zeros = found.iter().all(|&byte| byte == 0);
        let part = found[512..1024] == [7; 512]
            && found[..512] == [0; 512]
            && found[1024..].iter().all(|&byte| byte == 0);
        assert!(zeros || part, "{:?}", &found[510..514]);
        host.stop();
    });
}

/// `commit`, invariants 1 to 4: marks before changes, and marks win.
#[test]
fn a_version_is_the_disk_at_its_freeze() {
    explore(|| {
        let host = Host::new(1, 4 * CHUNK, true);
        // Block 0 is local and dirty, block 1 the base's.
        focus(false);
        host.guest.write(0, &[2; BLOCK], false).unwrap();
        focus(true);
        let step = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let steps = step.clone();
        let writer = host.spawn(move |guest| {
            for (n, (block, value)) in [(0, 3), (1, 3), (0, 4)].into_iter().enumerate() {
                let n = n as u64 + 1;
                steps[0].store(n, Ordering::SeqCst);
                guest.write(block * BLOCK, &[value; BLOCK], false).unwrap();
                steps[1].store(n, Ordering::SeqCst);
            }
        });
        // The disk after so many of the writes.
        let disks = [[2, 1], [3, 1], [3, 3], [4, 3]];
        let before = step[1].load(Ordering::SeqCst);
        let sealed = host.guest.mirror.freeze().unwrap();
        let after = step[0].load(Ordering::SeqCst);
        assert_eq!(sealed.chunks(), [0]);
        let version = sealed.read(0).unwrap();
        let found = [version[0], version[BLOCK]];
        let possible = &disks[usize::try_from(before).unwrap()..=usize::try_from(after).unwrap()];
        assert!(
            possible.contains(&found),
            "{found:?} is none of {possible:?}"
        );
        for block in version.chunks(BLOCK) {
            assert!(block.iter().all(|&byte| byte == block[0]), "a torn block");
        }
        assert_eq!(sealed.read(0).unwrap(), version, "it changed");
        sealed.uploaded(0);
        sealed.publish();
        writer.join().unwrap();
        // What came after the freeze is in the next version.
        let sealed = host.guest.mirror.freeze().unwrap();
        assert_eq!(sealed.chunks().len(), usize::from(found != disks[3]));
        if found != disks[3] {
            let next = sealed.read(0).unwrap();
            assert_eq!([next[0], next[BLOCK]], disks[3]);
        }
        drop(sealed);
        host.stop();
    });
}

/// `gate`: a freeze waits for the write under way, which is in the version or dirty for the next.
#[test]
fn a_freeze_waits_for_the_write_under_way() {
    explore(|| {
        let host = Host::new(1, 4 * CHUNK, false);
        focus(false);
        host.guest.write(0, &[2; CHUNK], false).unwrap();
        focus(true);
        let writer = host.spawn(|guest| guest.write(0, &[3; BLOCK], false).unwrap());
        let sealed = host.guest.mirror.freeze().unwrap();
        let version = sealed.read(0).unwrap();
        writer.join().unwrap();
        assert_eq!(sealed.read(0).unwrap()[0], version[0], "it landed behind");
        sealed.uploaded(0);
        sealed.publish();
        let sealed = host.guest.mirror.freeze().unwrap();
        assert_eq!(sealed.chunks().is_empty(), version[0] == 3);
        drop(sealed);
        host.stop();
    });
}

/// `pages`, the race that its header tells.
#[test]
fn a_flushed_write_is_in_the_disk_map_whoever_made_the_block_local() {
    explore(|| {
        let host = Host::new(1, 4 * CHUNK, true);
        let map = host.directory.path().join("mirror/map");
        let is_local = move || {
            let mut byte = [0];
            let file = std::fs::File::open(&map).unwrap();
            file.read_exact_at(&mut byte, 4096).unwrap();
            byte[0] & 1 == 1
        };
        let first = host.spawn(|guest| guest.write(0, &[2; BLOCK], false).unwrap());
        let flush = host.spawn(|guest| guest.flush().unwrap());
        let second = host.spawn(move |guest| {
            guest.write(0, &[3; BLOCK], true).unwrap();
            assert!(is_local(), "a power loss now would take it");
        });
        join([first, flush, second]);
        host.stop();
    });
}

/// `cache`, invariant 2.
#[test]
fn a_slot_is_never_read_as_what_it_held_before() {
    explore(|| {
        // Room for one chunk: each read evicts what the other wants.
        let host = Host::new(2, CHUNK, true);
        let reader = |i: u8| {
            host.spawn(move |guest| {
                for _ in 0..3 {
                    let found = guest.read(usize::from(i) * CHUNK, 512).unwrap();
                    assert_eq!(found, chunk(i + 1)[..512]);
                }
            })
        };
        join([reader(0), reader(1), reader(0)]);
        host.stop();
    });
}

/// `job`: whoever moves it to its end answers, and nobody is forgotten.
#[test]
fn every_request_is_answered_once_though_the_mirror_ends() {
    explore(|| {
        let host = Host::new(1, 4 * CHUNK, false);
        let read = host.spawn(|guest| assert_eq!(guest.read(BLOCK, 512), Err(libc::EIO)));
        let write = host.spawn(|guest| {
            assert_eq!(guest.write(BLOCK + 1, &[7; 9], false), Err(libc::EIO));
        });
        let whole = host.spawn(|guest| match guest.write(0, &[7; BLOCK], true) {
            Ok(()) | Err(libc::EIO) => {}
            Err(errno) => panic!("errno {errno}"),
        });
        host.engine.detach("instance", "disk").unwrap();
        join([read, write, whole]);
        host.stop();
    });
}

/// `job`: who parks while its mirror ends looks again once it has parked. Two steps of one request
/// must enclose all of the end, so nothing else is under way.
#[test]
fn who_parks_behind_the_end_of_its_mirror_is_ended() {
    explore(|| {
        let host = Host::new(1, 4 * CHUNK, false);
        let read = host.spawn(|guest| assert_eq!(guest.read(0, 512), Err(libc::EIO)));
        host.guest.mirror.end_misses();
        join([read]);
        assert_eq!(host.count("parked_now"), 0);
        host.stop();
    });
}

/// `flight`, invariant 4, and a chunk that lands while its waiters leave.
#[test]
fn misses_that_are_ended_leave_nothing_behind() {
    explore(|| {
        let host = Host::new(1, 4 * CHUNK, true);
        let read = host.spawn(|guest| match guest.read(0, 512) {
            Ok(found) => assert_eq!(found, chunk(1)[..512]),
            Err(errno) => assert_eq!(errno, libc::EIO),
        });
        host.guest.mirror.end_misses();
        host.guest.mirror.allow_misses();
        join([read]);
        assert_eq!(host.guest.read(0, 512).unwrap(), chunk(1)[..512]);
        assert_eq!(host.count("parked_now"), 0);
        host.stop();
    });
}
