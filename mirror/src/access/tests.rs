// SPDX-License-Identifier: Apache-2.0
//! What is local never waits for what is missing.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crate::disk::{Answer, Disk, Door, Errno, Ticket};
use crate::engine::{AttachOptions, Engine, EngineOptions, OnFull};
use crate::mirror::Mirror;
use crate::sync::Arc;
use crate::units::lock;

const BLOCK: usize = 4096;
const CHUNK: usize = 4 * BLOCK;
const CHUNKS: usize = 128;
const MISSES: usize = 64;

/// Counts answers of what was parked.
#[derive(Default)]
struct Count(AtomicU64);

impl Door for Count {
    fn complete(&self, _: Ticket, _: Result<&[u8], Errno>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn engine(at: &Path) -> Arc<Engine> {
    Engine::open(EngineOptions {
        cache_directory: at.join("cache"),
        cache_bytes: 1 << 20,
        cache_reserve_bytes: 0,
        scrub_bytes_per_second: 0,
        session_id: "session".to_owned(),
        threads: 1,
        fetch_timeout: None,
        on_full: OnFull::Error,
    })
    .expect("room")
}

/// A disk of chunks that nobody has, but those past the misses, which are written.
fn mirror(engine: &Arc<Engine>, at: &Path) -> Arc<Mirror> {
    let mut leaf = vec![0; 8192];
    for (chunk, digest) in leaf.chunks_mut(32).take(CHUNKS).enumerate() {
        digest.fill(u8::try_from(chunk + 1).expect("small"));
    }
    let mirror = engine.attach(AttachOptions {
        instance: "instance".to_owned(),
        disk: "disk".to_owned(),
        attach_id: "attachment".to_owned(),
        directory: at.join("mirror"),
        live_map: at.join("live"),
        size_bytes: (CHUNKS * CHUNK) as u64,
        chunk_size_bytes: CHUNK as u64,
        chunk_key: [42; 32],
        leaves: vec![(0, leaf)],
        create: true,
    });
    mirror.expect("room")
}

/// While the store is away, all threads stand still and every lock of theirs is taken: what is
/// local is read and written all the same, so it asks for none of them.
#[test]
fn local_requests_need_no_thread_and_no_lock_that_a_miss_needs() {
    let directory = tempfile::tempdir_in("/dev/shm").expect("room");
    let engine = engine(directory.path());
    let mirror = mirror(&engine, directory.path());
    let count = Arc::new(Count::default());
    let door: Arc<dyn Door> = count.clone();
    let local = (MISSES * CHUNK) as u64;
    for block in 0..16 {
        let at = local + (block * BLOCK) as u64;
        let answer = mirror.write(&door, 1, at, &[1; BLOCK], false);
        assert_eq!(answer, Answer::Done);
    }
    for chunk in 0..MISSES {
        let (ticket, at) = (chunk as u64 + 2, (chunk * CHUNK) as u64);
        let answer = if chunk % 2 == 0 {
            mirror.read(&door, ticket, at, &mut [0; BLOCK])
        } else {
            mirror.write(&door, ticket, at + 1, &[2; 9], false)
        };
        assert_eq!(answer, Answer::Parked);
    }
    let core = &mirror.core;
    // A thread that held one of these for the length of a fetch would be seen here.
    let locked = (
        core.flights.locked(),
        core.pool.locked(),
        mirror.gates.locked(),
        lock(&mirror.parked),
        lock(&mirror.held),
    );
    let (send, receive) = mpsc::channel();
    let guest = {
        let mirror = mirror.clone();
        std::thread::spawn(move || {
            let mut found = [0; BLOCK];
            for turn in 0..2000_usize {
                let at = local + (turn % 16 * BLOCK) as u64;
                let value = u8::try_from(turn % 251).expect("small");
                let answer = mirror.write(&door, 1, at, &[value; BLOCK], false);
                assert_eq!(answer, Answer::Done);
                assert_eq!(mirror.read(&door, 1, at, &mut found), Answer::Done);
                assert_eq!(found, [value; BLOCK]);
            }
            send.send(()).expect("somebody waits");
        })
    };
    let done = receive.recv_timeout(Duration::from_secs(20));
    drop(locked);
    done.expect("local requests waited for a lock");
    guest.join().expect("no panic");
    assert_eq!(count.0.load(Ordering::SeqCst), 0, "a miss was answered");
    mirror.end_misses();
    assert_eq!(count.0.load(Ordering::SeqCst), MISSES as u64);
    engine.stop().expect("stopped");
}
