// SPDX-License-Identifier: Apache-2.0
//! Every parser of bytes that are not ours, fed with any bytes: what `fuzz/` runs for hours and
//! `cargo test` for a moment. Built with the feature `fuzzing` and for tests only.
//!
//! A target takes bytes, makes of them what it needs, and panics if a promise is broken. A first
//! byte says whether lengths and checksums are to be mended: with a fuzzer's luck alone nothing
//! would ever pass them, and what lies behind would not be tried.

use crate::sync::Arc;
use std::fs;
use std::path::{Path, PathBuf};

use crate::disk::{Answer, Disk, Door, Errno, Ticket};
use crate::engine::{AttachOptions, Engine, EngineOptions, OnFull};
use crate::refusal::Refusals;
use crate::{cache, diskmap, object};

pub use crate::fuse::fuzzing::requests;
pub use crate::fuse::fuzzing_session::session;

const CHUNK_BYTES: u64 = 4096;
const DISK_BYTES: u64 = 40 * 4096 - 512;
const KEY: [u8; 32] = [42; 32];
const MENDED: u8 = 1;

/// Where a target's files are: in memory.
struct Place(PathBuf);

impl Place {
    fn new() -> Self {
        use std::sync::atomic::{AtomicU64, Ordering};
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("mirror-fuzz-{}-{number}", std::process::id());
        let path = Path::new("/dev/shm").join(name);
        fs::create_dir_all(&path).expect("room in /dev/shm");
        Self(path)
    }

    fn engine(&self) -> Arc<Engine> {
        Engine::open(EngineOptions {
            cache_directory: self.0.join("cache"),
            cache_bytes: 8 * CHUNK_BYTES,
            cache_reserve_bytes: 0,
            scrub_bytes_per_second: 0,
            session_id: "session".to_owned(),
            threads: 1,
            fetch_timeout: None,
            on_full: OnFull::Error,
        })
        .expect("a cache is never refused for what is in it")
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A file that goes with its descriptor.
pub(crate) fn unnamed_file() -> fs::File {
    let place = Place::new();
    let mut options = fs::File::options();
    let options = options.read(true).write(true).create_new(true);
    options.open(place.0.join("file")).expect("room")
}

/// A chunk object of any bytes: refused, or decoded to what it says, and nothing written past that.
///
/// # Panics
/// A promise is broken.
pub fn chunk_object(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else {
        return;
    };
    let size_max = [16, 4096, 1 << 16, 1 << 18][usize::from(how >> 1) % 4];
    let mut bytes = rest.to_vec();
    if how & MENDED != 0 {
        object::mend(&mut bytes);
    }
    let decoded = object::decode(&bytes, size_max);
    let mut buffer = vec![0xa5; size_max];
    let again = object::decode_into(&bytes, &mut buffer);
    assert_eq!(decoded.is_ok(), again.is_ok());
    if let (Ok(content), Ok(header)) = (decoded, again) {
        assert_eq!(content.len(), header.raw_len);
        assert!(!content.is_empty() && content.len() <= size_max);
        assert!(buffer[..header.raw_len] == content);
        assert!(buffer[header.raw_len..].iter().all(|&byte| byte == 0xa5));
    }
}

/// An index of the chunk cache of any bytes: it never fails, and what it names is believed only if
/// the slot holds it.
///
/// # Panics
/// A promise is broken.
pub fn cache_index(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else {
        return;
    };
    let place = Place::new();
    let directory = place.0.join("cache");
    fs::create_dir_all(&directory).expect("room");
    let mut index = rest.to_vec();
    if how & MENDED != 0 {
        cache::mend(&mut index, CHUNK_BYTES);
    }
    // One slot's content is a chunk's.
    let content = vec![how; usize::try_from(CHUNK_BYTES).expect("small")];
    let digest = *blake3::keyed_hash(&KEY, &content).as_bytes();
    fs::write(directory.join("index-4096"), &index).expect("room");
    fs::write(directory.join("slab-4096"), &content).expect("room");
    let options = cache::CacheOptions {
        directory,
        bytes_max: 8 * CHUNK_BYTES,
        reserve_bytes: 0,
        scrub_bytes_per_second: 0,
    };
    let refusals = Arc::new(Refusals::new(Arc::default()));
    let cache = cache::Cache::open(options, refusals).expect("never refused");
    assert!(cache.used_bytes() <= 8 * CHUNK_BYTES);
    let slab = cache.slab(CHUNK_BYTES).expect("open");
    let named = index.get(4096..).unwrap_or_default().chunks_exact(128);
    let mut digests: Vec<_> = named.filter_map(|e| e[..32].try_into().ok()).collect();
    digests.push(digest);
    for digest in digests {
        let Some(slot) = cache.lookup(slab, &digest, &KEY) else {
            continue;
        };
        // An index that says of itself that it is clean, of this boot, is believed.
        let mut found = vec![0; content.len()];
        if slot.read(0, &mut found).is_ok() && index.get(12) != Some(&1) {
            assert!(cache::matches(&digest, &KEY, &found));
        }
    }
    cache.close().expect("closed");
}

/// A disk map and a live map of any bytes: refused, or attached, read, written, flushed and closed.
///
/// # Panics
/// A promise is broken.
pub fn maps(data: &[u8]) {
    let [how, split, rest @ ..] = data else {
        return;
    };
    let place = Place::new();
    let engine = place.engine();
    let directory = place.0.join("mirror");
    fs::create_dir_all(&directory).expect("room");
    let options = AttachOptions {
        instance: "instance".to_owned(),
        disk: "disk".to_owned(),
        attach_id: "attachment".to_owned(),
        directory: directory.clone(),
        live_map: place.0.join("live"),
        size_bytes: DISK_BYTES,
        chunk_size_bytes: CHUNK_BYTES,
        chunk_key: KEY,
        leaves: Vec::new(),
        create: false,
    };
    let cut = rest.len() * usize::from(*split) / 256;
    let (map, live) = rest.split_at(cut);
    let mut map = map.to_vec();
    let mut live = live.to_vec();
    if how & MENDED != 0 {
        diskmap::mend(&mut map, CHUNK_BYTES, "attachment");
        crate::live::mend(&mut live, &map, "attachment");
    }
    fs::write(directory.join("delta"), b"").expect("room");
    fs::write(directory.join("map"), &map).expect("room");
    if how & 2 != 0 {
        fs::write(&options.live_map, &live).expect("room");
    }
    if let Ok(mirror) = engine.attach(options) {
        let len = usize::try_from(DISK_BYTES).expect("small");
        let mut disk = mirror
            .read_wait(0, len)
            .expect("all of it is local or a hole");
        assert!(disk.iter().all(|&byte| byte == 0));
        let door: Arc<dyn Door> = Arc::new(Nobody);
        for (at, data) in [(4096_u64, &[7; 4096][..]), (DISK_BYTES - 700, &[8; 700])] {
            let answer = mirror.write(&door, 1, at, data, false);
            assert_eq!(answer, Answer::Done);
            let from = usize::try_from(at).expect("small");
            disk[from..from + data.len()].copy_from_slice(data);
        }
        assert!(mirror.read_wait(0, disk.len()).expect("read") == disk);
        if let Ok(sealed) = mirror.freeze() {
            for &chunk in sealed.chunks() {
                let found = sealed.read(chunk).expect("nothing must be fetched");
                let from = usize::try_from(chunk * CHUNK_BYTES).expect("small");
                let wanted = &disk[from..disk.len().min(from + 4096)];
                assert!(found[..wanted.len()] == *wanted);
            }
            sealed.publish();
        }
        let _ = mirror.status();
        // A live map may say that a sync failed: then no flush succeeds any more.
        let flushed = mirror.flush_wait().is_ok();
        assert_eq!(engine.detach("instance", "disk").is_ok(), flushed);
    }
    engine.stop().expect("stopped");
}

/// A door whose requests never park.
struct Nobody;

impl Door for Nobody {
    fn complete(&self, _: Ticket, _: Result<&[u8], Errno>) {
        unreachable!("nothing parks without a base");
    }
}

/// A target's name, what it does, and what it starts from.
pub type Target = (&'static str, fn(&[u8]), Vec<Vec<u8>>);

/// All targets.
#[must_use]
pub fn targets() -> Vec<Target> {
    let stored = [&[MENDED | 2 << 1; 33][..], &[0; 100]].concat();
    let frame = zstd::bulk::compress(&[7; 3000], 1).unwrap_or_default();
    let packed = [&[MENDED | 2 << 1, 0, 0, 0, 0, 0, 1][..], &[0; 26], &frame].concat();
    let content = vec![MENDED; 4096];
    let digest = *blake3::keyed_hash(&KEY, &content).as_bytes();
    let named = [&[MENDED][..], &digest, &[2; 32]].concat();
    let map = [&[MENDED | 2, 128][..], &[0x55; 64], &[0x0f; 64]].concat();
    vec![
        ("chunk_object", chunk_object, vec![stored, packed]),
        ("cache_index", cache_index, vec![named]),
        ("maps", maps, vec![map]),
        ("requests", requests, crate::fuse::fuzzing::seeds()),
        ("session", session, crate::fuse::fuzzing_session::seeds()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seeds with a few bytes changed, and bytes of any kind; all from a number.
    fn input(seeds: &[Vec<u8>], number: u64) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&number.to_le_bytes());
        let mut xof = hasher.finalize_xof();
        let mut dice = [0; 64];
        xof.fill(&mut dice);
        if number % 4 != 0 {
            let mut bytes = seeds[usize::from(dice[0]) % seeds.len()].clone();
            for change in dice[4..].chunks(3).take(usize::from(dice[1] % 20)) {
                let at = usize::from(u16::from_le_bytes([change[0], change[1]])) % bytes.len();
                bytes[at] = change[2];
            }
            return bytes;
        }
        let mut bytes =
            vec![0; usize::from(u16::from_le_bytes([dice[0], dice[1]])) >> (dice[2] % 12)];
        xof.fill(&mut bytes);
        bytes
    }

    fn run(name: &str, count: u64) {
        let times = std::env::var("MIRROR_CASES").ok();
        let times = times.and_then(|n| n.parse().ok()).unwrap_or(24);
        let targets = targets();
        let found = targets.into_iter().find(|(other, ..)| *other == name);
        let (_, target, seeds) = found.expect("a target");
        for seed in &seeds {
            target(seed);
        }
        for number in 0..count * times {
            target(&input(&seeds, number));
        }
    }

    #[test]
    fn no_chunk_object_is_believed_against_its_header() {
        run("chunk_object", 400);
    }

    #[test]
    fn no_cache_index_stops_the_cache_or_passes_wrong_bytes() {
        run("cache_index", 10);
    }

    #[test]
    fn no_maps_stop_the_engine() {
        run("maps", 6);
    }

    #[test]
    fn no_request_stops_the_door_or_goes_without_its_answer() {
        run("requests", 40);
    }

    #[test]
    fn no_session_memory_stops_a_successor_or_loses_a_request() {
        run("session", 6);
    }

    /// `cargo test --lib fuzzing -- --ignored` makes what `cargo fuzz` starts from.
    #[test]
    #[ignore = "writes files"]
    fn seeds_are_written_for_the_fuzzer() {
        for (name, _, seeds) in targets() {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("fuzz/corpus")
                .join(name);
            fs::create_dir_all(&folder).expect("room");
            for (number, seed) in seeds.iter().enumerate() {
                fs::write(folder.join(format!("seed-{number}")), seed).expect("room");
            }
        }
    }
}
