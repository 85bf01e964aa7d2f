// SPDX-License-Identifier: Apache-2.0
//! The chunk cache under pressure: who goes, who stays, what a restart keeps, what rots, who lies.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::collections::{HashMap, HashSet};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use _mirror::disk::{Answer, Disk, Door, Errno};
use _mirror::engine::{Digest, Engine, EngineOptions, Fetch, FetchFailure, OnFull};
use _mirror::event::{Event, Value};
use _mirror::mirror::Mirror;
use common::{CHUNK, Notes, Store, attach_options, digest_of, fast_directory, noise, object};
use rand_like::Dice;

/// What a test rolls: seeded, so that a failure can be repeated.
mod rand_like {
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
}

/// An engine whose mirrors come and go.
struct Fleet {
    directory: tempfile::TempDir,
    engine: Arc<Engine>,
    notes: Arc<Notes>,
    door: Arc<dyn Door>,
    tickets: AtomicU64,
}

fn open(directory: &Path, chunks: usize, scrub: u64) -> Arc<Engine> {
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
    fn new(chunks: usize) -> Self {
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

    fn open_again(&mut self, chunks: usize, scrub: u64) {
        self.engine = open(self.directory.path(), chunks, scrub);
    }

    fn attach(&self, name: &str, leaves: &[(u64, Vec<u8>)], size: usize) -> Arc<Mirror> {
        self.attach_with(name, leaves, size, CHUNK)
    }

    fn attach_with(
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

    fn start(&self, mirror: &Mirror, at: usize, len: usize) -> Result<Vec<u8>, u64> {
        let ticket = self.tickets.fetch_add(1, Ordering::Relaxed);
        let mut bytes = vec![0; len];
        match mirror.read(&self.door, ticket, at as u64, &mut bytes) {
            Answer::Done => Ok(bytes),
            Answer::Parked => Err(ticket),
            Answer::Failed(errno) => panic!("failed with {errno}"),
        }
    }

    /// While others serve.
    fn try_read(&self, mirror: &Mirror, at: usize, len: usize) -> Result<Vec<u8>, Errno> {
        self.start(mirror, at, len)
            .or_else(|ticket| self.notes.wait(ticket))
    }

    /// Reads 99 bytes of a chunk, and whether it had to be fetched.
    fn read(&self, store: &Store, mirror: &Mirror, chunk: usize) -> (Vec<u8>, bool) {
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

    fn is_fetched(&self, store: &Store, mirror: &Mirror, base: &[u8], chunk: usize) -> bool {
        let (bytes, fetched) = self.read(store, mirror, chunk);
        assert!(bytes == base[chunk * CHUNK + 7..][..99], "chunk {chunk}");
        fetched
    }

    fn count(&self, name: &str) -> u64 {
        let all = self.engine.statistics();
        all.iter().find(|(n, _)| *n == name).unwrap().1
    }

    fn slab(&self) -> std::path::PathBuf {
        self.directory.path().join(format!("cache/slab-{CHUNK}"))
    }

    fn held_bytes(&self) -> u64 {
        self.slab().metadata().unwrap().blocks() * 512
    }

    fn flip(&self, content: &[u8]) {
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

fn text(event: &Event, name: &str) -> String {
    match event.fields.iter().find(|(n, _)| *n == name) {
        Some((_, Value::Text(text))) => text.clone(),
        other => panic!("no text {name}: {other:?}"),
    }
}

fn hex(digest: &Digest) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

/// Ends the others when a thread panics, too.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn thirty_mirrors_of_one_image_fetch_each_chunk_once() {
    const CHUNKS: usize = 12;
    let fleet = Fleet::new(CHUNKS);
    let base = noise(3, CHUNKS * CHUNK);
    let mut store = Store::default();
    let leaves = store.put(&base);
    let mirrors: Vec<_> = (0..30)
        .map(|n| fleet.attach(&format!("server-{n}"), &leaves, base.len()))
        .collect();
    let stop = AtomicBool::new(false);
    let served = Mutex::new(HashMap::<Digest, usize>::new());
    std::thread::scope(|scope| {
        let (fleet, base, store, stop, served) = (&fleet, &base, &store, &stop, &served);
        for _ in 0..3 {
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let fetch = fleet.engine.next_fetch(false, Duration::from_millis(20));
                    if let Some(fetch) = fetch {
                        *served.lock().unwrap().entry(fetch.digest).or_default() += 1;
                        std::thread::sleep(Duration::from_millis(2));
                        store.serve(&fleet.engine, &fetch);
                    }
                }
            });
        }
        let readers: Vec<_> = mirrors
            .iter()
            .enumerate()
            .map(|(n, mirror)| {
                scope.spawn(move || {
                    for i in 0..CHUNKS {
                        // All of them together, then each its own way.
                        let chunk = if i < 4 { i } else { (i * 7 + n) % CHUNKS };
                        let at = chunk * CHUNK + n * 512;
                        let found = fleet.try_read(mirror, at, 4096).unwrap();
                        assert!(found == base[at..at + 4096], "mirror {n}, chunk {chunk}");
                    }
                    for chunk in 0..CHUNKS {
                        fleet.try_read(mirror, chunk * CHUNK, 1).unwrap();
                    }
                })
            })
            .collect();
        let _ending = StopAtEnd(stop);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    let served = served.into_inner().unwrap();
    assert_eq!(served.len(), CHUNKS);
    assert!(served.values().all(|&count| count == 1), "{served:?}");
    assert_eq!(fleet.count("fetches_total"), CHUNKS as u64);
}

#[test]
fn the_chunk_that_was_used_longest_ago_goes_first() {
    let fleet = Fleet::new(3);
    let base = noise(4, 5 * CHUNK);
    let mut store = Store::default();
    let leaves = store.put(&base);
    let mirror = fleet.attach("server", &leaves, base.len());
    let fetched = |chunk| fleet.is_fetched(&store, &mirror, &base, chunk);
    for chunk in 0..3 {
        assert!(fetched(chunk));
    }
    assert!(!fetched(0));
    assert!(fetched(3), "takes the place of 1");
    assert!(!fetched(0) && !fetched(2) && !fetched(3));
    assert!(fetched(1), "takes the place of 0");
    assert!(fetched(0));
    assert_eq!(fleet.count("cache_evicted_total"), 3);
}

#[test]
fn what_attached_mirrors_touched_goes_last_and_goes_all_the_same() {
    let fleet = Fleet::new(4);
    let base = noise(5, 10 * CHUNK);
    let mut store = Store::default();
    // Another version, so another leaf, of which all chunks but the last are the same.
    let mut newer = base.clone();
    newer[9 * CHUNK..].fill(1);
    let first = fleet.attach("first", &store.put(&base), base.len());
    let second = fleet.attach("second", &store.put(&newer), base.len());
    let fetched = |mirror: &Arc<Mirror>, chunk| fleet.is_fetched(&store, mirror, &base, chunk);
    for chunk in [0, 1] {
        assert!(fetched(&first, chunk));
        // Shared: both have it.
        assert!(!fetched(&second, chunk));
    }
    assert!(fetched(&second, 2) && fetched(&second, 3));
    assert_eq!(fleet.count("cache_pinned_bytes"), 4 * CHUNK as u64);
    drop(second);
    fleet.engine.detach("second", "disk").unwrap();
    assert_eq!(fleet.count("cache_pinned_bytes"), 2 * CHUNK as u64);
    // Younger than the pinned ones, and gone before them.
    assert!(fetched(&first, 4) && fetched(&first, 5));
    assert!(!fetched(&first, 0) && !fetched(&first, 1));
    // A pin is a wish: the bound comes first.
    for chunk in 6..10 {
        assert!(fetched(&first, chunk));
        assert!(fleet.count("cache_bytes") <= 4 * CHUNK as u64);
    }
    assert!(fetched(&first, 0));
    drop(first);
    fleet.engine.detach("first", "disk").unwrap();
    assert_eq!(fleet.count("cache_pinned_bytes"), 0);
}

#[test]
fn a_lower_bound_keeps_what_was_used_last_and_gives_the_rest_back() {
    for orderly in [true, false] {
        let mut fleet = Fleet::new(8);
        let base = noise(6, 8 * CHUNK);
        let mut store = Store::default();
        let leaves = store.put(&base);
        let mirror = fleet.attach("server", &leaves, base.len());
        for chunk in [0, 1, 2, 3, 7, 6, 5, 4] {
            assert!(fleet.is_fetched(&store, &mirror, &base, chunk));
        }
        let kept = if orderly { [2, 0] } else { [5, 4] };
        if orderly {
            for chunk in kept {
                assert!(!fleet.is_fetched(&store, &mirror, &base, chunk));
            }
            fleet.engine.stop().unwrap();
        } else {
            // What was noted at the filling is known after a kill.
            fleet.engine.forget_as_if_killed();
        }
        drop(mirror);
        fleet.open_again(2, 0);
        assert_eq!(fleet.count("cache_bytes"), 2 * CHUNK as u64);
        assert!(fleet.held_bytes() <= 2 * CHUNK as u64);
        let mirror = fleet.attach("server", &leaves, base.len());
        for chunk in kept {
            assert!(!fleet.is_fetched(&store, &mirror, &base, chunk), "{chunk}");
        }
        assert!(fleet.is_fetched(&store, &mirror, &base, 1));
        assert!(fleet.held_bytes() <= 2 * CHUNK as u64);
    }
}

#[test]
fn slabs_hold_nothing_that_no_index_names() {
    let mut fleet = Fleet::new(8);
    let base = noise(7, 6 * CHUNK);
    let mut store = Store::default();
    let leaves = store.put(&base);
    let mirror = fleet.attach("server", &leaves, base.len());
    for chunk in 0..6 {
        assert!(fleet.is_fetched(&store, &mirror, &base, chunk));
    }
    fleet.engine.forget_as_if_killed();
    drop(mirror);
    // The first, two in the midst and the last entry, as a death between two writes leaves them.
    let index = fleet.directory.path().join(format!("cache/index-{CHUNK}"));
    let file = std::fs::OpenOptions::new().write(true).open(index).unwrap();
    for slot in [0, 2, 3, 5] {
        file.write_all_at(&[0; 128], 4096 + slot * 128).unwrap();
    }
    fleet.open_again(8, 0);
    assert_eq!(fleet.count("cache_bytes"), 2 * CHUNK as u64);
    assert_eq!(fleet.held_bytes(), 2 * CHUNK as u64);
    let mirror = fleet.attach("server", &leaves, base.len());
    let fetched = (0..6)
        .filter(|&chunk| fleet.is_fetched(&store, &mirror, &base, chunk))
        .count();
    assert_eq!(fetched, 4);
    assert_eq!(fleet.held_bytes(), 6 * CHUNK as u64);
    fleet.engine.stop().unwrap();
    drop(mirror);
    // An index that is not ours takes its slab along.
    std::fs::write(
        fleet.directory.path().join(format!("cache/index-{CHUNK}")),
        b"of another format",
    )
    .unwrap();
    fleet.open_again(8, 0);
    assert_eq!((fleet.count("cache_bytes"), fleet.held_bytes()), (0, 0));
}

#[test]
fn chunks_of_all_sizes_share_one_bound_and_one_order() {
    const SMALL: usize = CHUNK / 4;
    let fleet = Fleet::new(2);
    let mut store = Store::default();
    let base = noise(8, 2 * CHUNK);
    let large = fleet.attach("large", &store.put(&base), base.len());
    let other = noise(9, 4 * SMALL);
    let mut digests = vec![0; 8192];
    for (n, chunk) in other.chunks(SMALL).enumerate() {
        digests[n * 32..][..32].copy_from_slice(&digest_of(chunk));
        store.objects.insert(digest_of(chunk), object(chunk, false));
    }
    let small = fleet.attach_with("small", &[(0, digests)], other.len(), SMALL);
    let read_small = |n: usize| {
        let ticket = match fleet.start(&small, n * SMALL, 50) {
            Ok(bytes) => {
                return (bytes == other[n * SMALL..][..50])
                    .then_some(false)
                    .unwrap();
            }
            Err(ticket) => ticket,
        };
        store.serve_all(&fleet.engine);
        assert!(fleet.notes.wait(ticket).unwrap() == other[n * SMALL..][..50]);
        true
    };
    assert!(fleet.is_fetched(&store, &large, &base, 0));
    assert!(fleet.is_fetched(&store, &large, &base, 1));
    assert!(!fleet.is_fetched(&store, &large, &base, 0));
    // The oldest is of the other size; four of these have its room.
    for n in 0..4 {
        assert!(read_small(n));
        assert!(fleet.count("cache_bytes") <= 2 * CHUNK as u64);
    }
    assert!(fleet.is_fetched(&store, &large, &base, 1));
    assert!(fleet.count("cache_bytes") <= 2 * CHUNK as u64);
    assert!(
        (0..4).all(|n| !read_small(n)),
        "younger than the other large one"
    );
    assert!(fleet.is_fetched(&store, &large, &base, 0));
}

#[test]
fn after_a_kill_each_chunk_is_checked_once_however_many_read_it() {
    let mut fleet = Fleet::new(8);
    let base = noise(10, 4 * CHUNK);
    let mut store = Store::default();
    let leaves = store.put(&base);
    let mirror = fleet.attach("server", &leaves, base.len());
    for chunk in 0..4 {
        assert!(fleet.is_fetched(&store, &mirror, &base, chunk));
    }
    fleet.engine.forget_as_if_killed();
    drop(mirror);
    fleet.open_again(8, 0);
    let mirrors: Vec<_> = (0..8)
        .map(|n| fleet.attach(&format!("again-{n}"), &leaves, base.len()))
        .collect();
    std::thread::scope(|scope| {
        for mirror in &mirrors {
            let (fleet, base) = (&fleet, &base);
            scope.spawn(move || {
                for chunk in 0..4 {
                    let at = chunk * CHUNK;
                    assert!(fleet.try_read(mirror, at, 9).unwrap() == base[at..at + 9]);
                }
            });
        }
    });
    assert_eq!(fleet.count("cache_checked_total"), 4);
    assert_eq!(fleet.count("fetches_total"), 0);
    drop(mirrors);
    fleet.engine.stop().unwrap();
    // An orderly stop: what was checked is believed.
    fleet.open_again(8, 0);
    let mirror = fleet.attach("server", &leaves, base.len());
    for chunk in 0..4 {
        assert!(!fleet.is_fetched(&store, &mirror, &base, chunk));
    }
    assert_eq!(fleet.count("cache_checked_total"), 0);
}

#[test]
fn what_was_not_checked_before_an_orderly_stop_is_checked_after_it() {
    let mut fleet = Fleet::new(8);
    let base = noise(11, 2 * CHUNK);
    let mut store = Store::default();
    let leaves = store.put(&base);
    let mirror = fleet.attach("server", &leaves, base.len());
    for chunk in 0..2 {
        assert!(fleet.is_fetched(&store, &mirror, &base, chunk));
    }
    fleet.engine.forget_as_if_killed();
    drop(mirror);
    fleet.flip(&base[CHUNK..]);
    fleet.open_again(8, 0);
    let mirror = fleet.attach("server", &leaves, base.len());
    assert!(!fleet.is_fetched(&store, &mirror, &base, 0));
    fleet.engine.stop().unwrap();
    drop(mirror);
    fleet.open_again(8, 0);
    let mirror = fleet.attach("server", &leaves, base.len());
    assert!(!fleet.is_fetched(&store, &mirror, &base, 0));
    assert!(fleet.is_fetched(&store, &mirror, &base, 1), "it is rotten");
    assert_eq!(fleet.count("cache_checked_total"), 0);
    assert_eq!(fleet.count("cache_refused_total"), 1);
}

#[test]
fn the_scrub_finds_what_rots_and_tells_it() {
    let mut fleet = Fleet::new(8);
    fleet.engine.stop().unwrap();
    fleet.open_again(8, 1 << 30);
    let base = noise(12, 4 * CHUNK);
    let mut store = Store::default();
    let leaves = store.put(&base);
    let mirror = fleet.attach("server", &leaves, base.len());
    for chunk in 0..4 {
        assert!(fleet.is_fetched(&store, &mirror, &base, chunk));
    }
    let rotten = &base[2 * CHUNK..3 * CHUNK];
    fleet.flip(rotten);
    let event = fleet.engine.events().next(Duration::from_secs(10)).unwrap();
    assert_eq!(event.kind, "alarm");
    assert_eq!(text(&event, "source"), "cache");
    assert_eq!(text(&event, "digest"), hex(&digest_of(rotten)));
    assert_eq!(fleet.count("cache_refused_total"), 1);
    for chunk in 0..4 {
        let fetched = fleet.is_fetched(&store, &mirror, &base, chunk);
        assert_eq!(fetched, chunk == 2, "chunk {chunk}");
    }
    assert!(fleet.count("cache_scrubbed_bytes_total") >= 4 * CHUNK as u64);
}

/// What a store may answer instead of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    None,
    OtherBody,
    FlippedBit,
    Truncated,
    TooLong,
    Bomb,
    HeaderOfAnother,
    Empty,
    NotFound,
    Away,
}

const LIES: [Lie; 10] = [
    Lie::None,
    Lie::OtherBody,
    Lie::FlippedBit,
    Lie::Truncated,
    Lie::TooLong,
    Lie::Bomb,
    Lie::HeaderOfAnother,
    Lie::Empty,
    Lie::NotFound,
    Lie::Away,
];

/// Far more zeros than a chunk has, in an object whose header says that they are a chunk.
fn bomb() -> Vec<u8> {
    let mut object = object(&vec![0; 64 << 20], true);
    object[8..12].copy_from_slice(&u32::try_from(CHUNK).unwrap().to_le_bytes());
    let mut hasher = blake3::Hasher::new();
    hasher.update(&object[..16]).update(&object[32..]);
    object[16..24].copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    object
}

fn lied(store: &Store, digest: &Digest, lie: Lie, bomb: &[u8], roll: usize) -> Vec<u8> {
    let right = &store.objects[digest];
    let other = store.objects.iter().find(|(d, _)| *d != digest).unwrap().1;
    match lie {
        Lie::OtherBody => other.clone(),
        Lie::FlippedBit => {
            let mut wrong = right.clone();
            wrong[roll % right.len()] ^= 1 << (roll % 8);
            wrong
        }
        Lie::Truncated => right[..roll % right.len()].to_vec(),
        Lie::TooLong => [right.as_slice(), &[0; 512]].concat(),
        Lie::Bomb => bomb.to_vec(),
        Lie::HeaderOfAnother => [&right[..32], &other[32..]].concat(),
        Lie::Empty => Vec::new(),
        Lie::None | Lie::NotFound | Lie::Away => right.clone(),
    }
}

#[test]
fn a_store_that_lies_is_refused_counted_told_and_never_served() {
    const CHUNKS: usize = 24;
    let fleet = Fleet::new(6);
    let base = noise(13, CHUNKS * CHUNK);
    let mut store = Store::default();
    let leaves = store.put(&base);
    let mirror = fleet.attach("server", &leaves, base.len());
    let bomb = bomb();
    let seed = std::env::var("LAZYIMAGE_SEED").map_or(20_26, |seed| seed.parse().unwrap());
    println!("LAZYIMAGE_SEED={seed}");
    let mut dice = Dice(seed);
    let mut told = HashSet::new();
    let mut refused = 0_u64;
    let mut lost = 0;
    // Definite answers in a row, by chunk: the second ends the wait.
    let mut definite: HashMap<Digest, usize> = HashMap::new();
    let mut alarms = 0;
    for round in 0..12 {
        // Many at once: each lie costs a pause before the next look.
        let mut waiting = HashMap::new();
        for chunk in (0..CHUNKS).filter(|chunk| (chunk + round) % 2 == 0) {
            let at = chunk * CHUNK + dice.roll(CHUNK - 100);
            match fleet.start(&mirror, at, 100) {
                Ok(bytes) => assert!(bytes == base[at..at + 100], "round {round}"),
                Err(ticket) => drop(waiting.insert(ticket, (chunk, at))),
            }
        }
        while !waiting.is_empty() {
            let fetch = fleet.engine.next_fetch(true, Duration::from_millis(5));
            if let Some(Fetch { digest, .. }) = fetch {
                let lie = LIES[dice.roll(LIES.len())];
                told.insert(lie as usize);
                let failure = match lie {
                    Lie::Away => Some(FetchFailure::Transport),
                    Lie::NotFound => Some(FetchFailure::Missing),
                    lie => {
                        let object = lied(&store, &digest, lie, &bomb, dice.roll(1 << 30));
                        let result = fleet.engine.fetched(&digest, &object);
                        assert_eq!(result.is_ok(), lie == Lie::None, "{lie:?}: {result:?}");
                        refused += u64::from(result.is_err());
                        result.is_err().then_some(FetchFailure::Corrupt)
                    }
                };
                if let Some(failure) = failure {
                    if failure != FetchFailure::Transport {
                        *definite.entry(digest).or_default() += 1;
                    }
                    fleet.engine.fetch_failed(&digest, failure, "told to");
                }
            }
            waiting.retain(|&ticket, &mut (chunk, at)| {
                let Some(answer) = fleet.notes.take(ticket) else {
                    return true;
                };
                let count = definite.remove(&digest_of(&base[chunk * CHUNK..][..CHUNK]));
                match answer {
                    Ok(bytes) => {
                        assert!(bytes == base[at..at + 100], "round {round}");
                        assert!(count.unwrap_or(0) < 2, "round {round}");
                    }
                    Err(errno) => {
                        assert_eq!((errno, count), (libc::EIO, Some(2)), "round {round}");
                        lost += 1;
                    }
                }
                false
            });
            while let Some(event) = fleet.engine.events().next(Duration::ZERO) {
                let source = event.fields.iter().find(|(name, _)| *name == "source");
                if source.is_some_and(|(_, value)| *value == Value::Text("store".to_owned())) {
                    alarms += 1;
                    assert_eq!(text(&event, "digest").len(), 64);
                }
            }
        }
    }
    assert_eq!(told.len(), LIES.len(), "a lie was not told");
    assert_eq!(fleet.count("store_refused_total"), refused);
    assert_eq!(fleet.count("fetches_lost_total"), lost);
    assert!(lost > 0 && refused > 50, "{lost} lost, {refused} refused");
    assert!((1..=10).contains(&alarms), "{alarms} alarms a minute");
}

/// How long the stress goes on.
fn duration() -> Duration {
    let seconds = std::env::var("LAZYIMAGE_SOAK_SECONDS").map_or(1.5, |s| s.parse().unwrap());
    Duration::from_secs_f64(seconds)
}

#[test]
fn eviction_under_readers_never_shows_another_chunks_bytes() {
    const CHUNKS: usize = 24;
    const READERS: u64 = 4;
    // Room for four of some sixty different chunks; the scrub reads along.
    let mut fleet = Fleet::new(4);
    fleet.engine.stop().unwrap();
    fleet.open_again(4, 1 << 24);
    let shared = noise(20, CHUNKS * CHUNK);
    let mut store = Store::default();
    let images: Vec<_> = (0..3)
        .map(|image: u64| {
            let mut content = shared.clone();
            let own = noise(21 + image, CHUNKS / 2 * CHUNK);
            content[CHUNKS / 2 * CHUNK..].copy_from_slice(&own);
            let leaves = store.put(&content);
            (content, leaves)
        })
        .collect();
    let stop = AtomicBool::new(false);
    let reads = AtomicU64::new(0);
    let until = Instant::now() + duration();
    std::thread::scope(|scope| {
        let (fleet, store, images, stop, reads) = (&fleet, &store, &images, &stop, &reads);
        for _ in 0..2 {
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if let Some(fetch) = fleet.engine.next_fetch(false, Duration::from_millis(20)) {
                        store.serve(&fleet.engine, &fetch);
                    }
                }
            });
        }
        let readers: Vec<_> = (0..READERS)
            .map(|reader| {
                scope.spawn(move || {
                    let mut dice = Dice(reader + 1);
                    while Instant::now() < until {
                        // A mirror's life: pins come and go with it.
                        let (content, leaves) = &images[dice.roll(images.len())];
                        let name = format!("server-{reader}");
                        let mirror = fleet.attach(&name, leaves, content.len());
                        for _ in 0..60 {
                            // A hot chunk or any; often across a border.
                            let any = dice.roll(CHUNKS - 1);
                            let chunk =
                                [any, usize::try_from(reader).unwrap() % 3, any][dice.roll(3)];
                            let at = chunk * CHUNK + dice.roll(CHUNK);
                            let len = 1 + dice.roll(CHUNK.min(40_000));
                            let found = fleet.try_read(&mirror, at, len).unwrap();
                            assert!(found == content[at..at + len], "{name} at {at}");
                            reads.fetch_add(1, Ordering::Relaxed);
                        }
                        drop(mirror);
                        fleet.engine.detach(&name, "disk").unwrap();
                    }
                })
            })
            .collect();
        let _ending = StopAtEnd(stop);
        for reader in readers {
            reader.join().unwrap();
        }
    });
    let evicted = fleet.count("cache_evicted_total");
    println!(
        "{} reads, {evicted} evictions",
        reads.load(Ordering::Relaxed)
    );
    assert!(evicted > 100, "too few to prove anything");
    assert_eq!(fleet.count("cache_pinned_bytes"), 0);
    assert_eq!(fleet.count("cache_refused_total"), 0);
    assert!(fleet.count("cache_bytes") <= 4 * CHUNK as u64);
    assert!(fleet.held_bytes() <= 4 * CHUNK as u64);
}
