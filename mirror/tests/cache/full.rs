// SPDX-License-Identifier: Apache-2.0
//! A full disk: the cache goes before a write or a COMMIT of any mirror suffers.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use _mirror::disk::{Answer, Disk};
use _mirror::engine::{Engine, EngineOptions, OnFull};

use crate::common::small::{fill, free, free_bytes, on_a_disk_of};
use crate::common::{self, BLOCK, CHUNK, Host, noise};
use crate::fleet::{Dice, StopAtEnd};

const MIB: usize = 1 << 20;

/// A host whose cache leaves room free, or lies elsewhere.
fn host_with(directory: tempfile::TempDir, cache: &Path, chunks: usize, reserve: usize) -> Host {
    host_that(directory, cache, chunks, reserve, OnFull::Error)
}

fn host_that(
    directory: tempfile::TempDir,
    cache: &Path,
    chunks: usize,
    reserve: usize,
    on_full: OnFull,
) -> Host {
    let mut host = Host::with(
        directory,
        &noise(1, 8 * CHUNK),
        // More than a file system of these tests holds, for each of three writers.
        64 * MIB as u64,
        2 * CHUNK as u64,
        on_full,
    );
    host.engine.stop().unwrap();
    host.engine = Engine::open(EngineOptions {
        cache_directory: cache.to_owned(),
        cache_bytes: (chunks * CHUNK) as u64,
        cache_reserve_bytes: reserve as u64,
        scrub_bytes_per_second: 0,
        session_id: "session".to_owned(),
        threads: 2,
        fetch_timeout: None,
        on_full,
    })
    .unwrap();
    let options = common::attach_options(
        host.directory.path(),
        host.size,
        &host.leaves.clone(),
        false,
    );
    host.mirror = host.engine.attach(options).unwrap();
    host
}

#[test]
fn the_reserve_is_given_back_by_the_cache() {
    on_a_disk_of(
        16 * MIB,
        "full::the_reserve_is_given_back_by_the_cache",
        |directory| {
            let cache = directory.path().join("cache");
            let mut host = host_with(directory, &cache, 8, 6 * MIB);
            let base = noise(1, 8 * CHUNK);
            assert_eq!(host.read(0, 8 * CHUNK).unwrap(), base);
            assert_eq!(host.count("cache_pinned_bytes"), 8 * CHUNK as u64);
            let filler = host.directory.path().join("filler");
            let free = free_bytes(host.directory.path());
            std::fs::write(filler, vec![1; free - 5 * MIB]).unwrap();
            let deadline = Instant::now() + Duration::from_secs(10);
            while free_bytes(host.directory.path()) < 6 * MIB {
                assert!(Instant::now() < deadline, "the reserve is not given back");
                std::thread::sleep(Duration::from_millis(20));
            }
            // No more than it took, and no growth meanwhile.
            assert_eq!(host.count("cache_bytes"), 4 * CHUNK as u64);
            assert_eq!(host.count("cache_shed_bytes_total"), 4 * CHUNK as u64);
            assert_eq!(host.read(0, 8 * CHUNK).unwrap(), base);
            assert!(host.count("cache_bytes") <= 4 * CHUNK as u64);
            assert_eq!(host.count("cache_low"), 1);
            std::fs::remove_file(host.directory.path().join("filler")).unwrap();
            let deadline = Instant::now() + Duration::from_secs(10);
            while host.count("cache_low") == 1 {
                assert!(Instant::now() < deadline, "the cache does not grow again");
                std::thread::sleep(Duration::from_millis(20));
            }
            assert_eq!(host.read(0, 8 * CHUNK).unwrap(), base);
            assert_eq!(host.count("cache_bytes"), 8 * CHUNK as u64);
        },
    );
}

#[test]
fn a_full_disk_recycles_the_cache() {
    on_a_disk_of(
        4 * MIB,
        "full::a_full_disk_recycles_the_cache",
        |directory| {
            let cache = directory.path().join("cache");
            let mut host = host_with(directory, &cache, 4, 0);
            let base = noise(1, 8 * CHUNK);
            host.read(0, 2 * CHUNK).unwrap();
            fill(host.directory.path());
            for chunk in 2..8 {
                let at = chunk * CHUNK;
                assert_eq!(host.read(at, 100).unwrap(), base[at..at + 100]);
                assert_eq!(host.count("cache_bytes"), 2 * CHUNK as u64);
            }
            let fetched = host.count("fetches_total");
            host.read(7 * CHUNK, 100).unwrap();
            assert_eq!(host.count("fetches_total"), fetched);
            assert_eq!(host.count("uncached_total"), 0);
        },
    );
}

#[test]
fn a_cache_on_another_disk_is_not_shed_in_vain() {
    on_a_disk_of(
        4 * MIB,
        "full::a_cache_on_another_disk_is_not_shed_in_vain",
        |directory| {
            let elsewhere = common::directory();
            let mut host = host_with(directory, elsewhere.path(), 4, 0);
            host.read(0, 2 * CHUNK).unwrap();
            assert_eq!(host.count("cache_bytes"), 2 * CHUNK as u64);
            fill(host.directory.path());
            assert_eq!(host.write(4 * CHUNK, &[5; BLOCK]), Err(libc::ENOSPC));
            assert_eq!(host.count("cache_bytes"), 2 * CHUNK as u64);
            assert_eq!(host.count("cache_low"), 0);
        },
    );
}

#[test]
fn many_writers_take_all_of_the_cache_before_one_of_them_fails() {
    on_a_disk_of(
        4 * MIB,
        "full::many_writers_take_all_of_the_cache_before_one_of_them_fails",
        |directory| {
            let cache = directory.path().join("cache");
            let mut host = host_with(directory, &cache, 8, 0);
            host.read(0, 8 * CHUNK).unwrap();
            let cached = host.count("cache_bytes");
            assert_eq!(cached, 8 * CHUNK as u64);
            fill(host.directory.path());
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let host = &host;
                    let (mirror, door) = (&host.mirror, &host.door);
                    scope.spawn(move || {
                        // All that the cache held, but for what a file system needs itself.
                        for block in 0..(8 * CHUNK / BLOCK - 32) / 4 {
                            let at = ((block * 4 + thread) * BLOCK) as u64;
                            // Parked: behind another; one that found no room would have failed.
                            let ticket = at + 1;
                            let answer = mirror.write(door, ticket, at, &[7; BLOCK], false);
                            if answer == Answer::Parked {
                                host.notes.wait(ticket).unwrap();
                            } else {
                                assert_eq!(answer, Answer::Done, "block {block}");
                            }
                        }
                    });
                }
            });
            assert!(host.count("cache_bytes") < CHUNK as u64);
        },
    );
}

#[test]
fn the_cache_goes_before_a_commit_is_given_up() {
    on_a_disk_of(
        4 * MIB,
        "full::the_cache_goes_before_a_commit_is_given_up",
        |directory| {
            let cache = directory.path().join("cache");
            let mut host = host_with(directory, &cache, 2, 0);
            host.read(0, 2 * CHUNK).unwrap();
            host.write(0, &[1; BLOCK]).unwrap();
            let sealed = host.mirror.freeze().unwrap();
            fill(host.directory.path());
            host.write(0, &[2; BLOCK]).unwrap();
            assert!(host.count("cache_bytes") < 2 * CHUNK as u64);
            let content = host.read_sealed(&sealed, 0).unwrap();
            assert_eq!(content[..BLOCK], [1; BLOCK]);
            sealed.publish();
            assert_eq!(host.read(0, BLOCK).unwrap(), [2; BLOCK]);
        },
    );
}

/// Keeps a file system full, whoever gives room back, until told to stop.
fn keep_full(directory: &Path, stop: &AtomicBool) {
    let mut filler = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(directory.join("filler"))
        .unwrap();
    while !stop.load(Ordering::Relaxed) {
        if std::io::Write::write(&mut filler, &[1; 4 * BLOCK]).is_err() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Writes whole blocks, each once, all of them its own, until told to stop; how many. A write that
/// is held is waited for.
fn write_on(host: &Host, writer: u64, writers: u64, stop: &AtomicBool) -> u64 {
    let data = [u8::try_from(writer).unwrap(); BLOCK];
    for nth in 0.. {
        if stop.load(Ordering::Relaxed) {
            return nth;
        }
        let ticket = writer << 32 | nth;
        let at = block_of(nth, writer, writers);
        assert!(at < host.size, "a disk that is never full");
        match host.mirror.write(&host.door, ticket, at, &data, false) {
            Answer::Done => {}
            Answer::Failed(errno) => panic!("write: {errno}"),
            Answer::Parked => loop {
                if let Some(answer) = host.notes.take(ticket) {
                    break drop(answer.unwrap());
                }
                std::thread::sleep(Duration::from_millis(1));
            },
        }
    }
    unreachable!()
}

/// Behind the base.
fn block_of(nth: u64, writer: u64, writers: u64) -> u64 {
    8 * CHUNK as u64 + (nth * writers + writer) * BLOCK as u64
}

#[test]
fn the_cache_goes_before_a_write_is_held_whoever_else_fills_the_disk() {
    const NAME: &str = "full::the_cache_goes_before_a_write_is_held_whoever_else_fills_the_disk";
    const WRITERS: u64 = 3;
    on_a_disk_of(16 * MIB, NAME, |directory| {
        let cache = directory.path().join("cache");
        let mut host = host_that(directory, &cache, 8, 0, OnFull::Hold);
        let base = noise(1, 8 * CHUNK);
        host.read(0, 8 * CHUNK).unwrap();
        assert_eq!(host.count("cache_bytes"), 8 * CHUNK as u64);
        let stops: [AtomicBool; 3] = Default::default();
        let (host, base, [filling, writing, reading]) = (&host, &base, &stops);
        let place = host.directory.path();
        fill(place);
        let counts: Vec<u64> = std::thread::scope(|scope| {
            let [stop_filling, stop_writing, stop_reading] =
                [filling, writing, reading].map(StopAtEnd);
            scope.spawn(move || keep_full(place, filling));
            scope.spawn(move || {
                while !reading.load(Ordering::Relaxed) {
                    let fetch = host.engine.next_fetch(false, Duration::from_millis(20));
                    if let Some(fetch) = fetch {
                        host.store.serve(&host.engine, &fetch);
                    }
                }
            });
            let reader = scope.spawn(move || {
                let mut dice = Dice(7);
                while !writing.load(Ordering::Relaxed) {
                    let at = dice.roll(8 * CHUNK - 999);
                    let mut bytes = vec![0; 999];
                    match host.mirror.read(&host.door, 1, at as u64, &mut bytes) {
                        Answer::Done => {}
                        Answer::Parked => bytes = host.notes.wait(1).unwrap(),
                        Answer::Failed(errno) => panic!("read: {errno}"),
                    }
                    assert!(bytes == base[at..at + 999], "at {at}");
                }
            });
            let writers: Vec<_> = (1..=WRITERS)
                .map(|writer| scope.spawn(move || write_on(host, writer, WRITERS, writing)))
                .collect();
            // Whoever of them gets what the cache gave, it gives until nothing is left.
            let deadline = Instant::now() + Duration::from_secs(20);
            while host.count("cache_bytes") > 0 {
                assert!(
                    Instant::now() < deadline,
                    "writes wait and the cache does not go"
                );
                std::thread::sleep(Duration::from_millis(5));
            }
            drop((stop_writing, stop_filling));
            // Those that are held are done with this room.
            std::thread::sleep(Duration::from_millis(50));
            free(place);
            reader.join().unwrap();
            drop(stop_reading);
            writers.into_iter().map(|w| w.join().unwrap()).collect()
        });
        assert!(
            counts.iter().sum::<u64>() > 8,
            "{counts:?} blocks prove nothing"
        );
        for (writer, count) in (1_u8..).zip(counts) {
            for nth in 0..count {
                let mut bytes = vec![0; BLOCK];
                let at = block_of(nth, u64::from(writer), WRITERS);
                let answer = host.mirror.read(&host.door, 1, at, &mut bytes);
                assert_eq!(answer, Answer::Done);
                assert_eq!(bytes, [writer; BLOCK], "writer {writer}, block {nth}");
            }
        }
    });
}
