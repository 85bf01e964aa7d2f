// SPDX-License-Identifier: Apache-2.0
//! Full disks: a write is held until there is room, or refused; the cache goes first; a COMMIT is
//! given up before a guest's write is.
//!
//! Each test runs itself again with a mount namespace of its own, where a tmpfs is the disk; where
//! loop devices can be had (as root), once more on a small ext4, which allocates as real disks do.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use _mirror::disk::{Answer, Disk};
use _mirror::engine::{Engine, EngineOptions, OnFull};
use common::{BLOCK, CHUNK, Host, noise};

const MIB: usize = 1 << 20;

const EXT4: &str = "truncate -s $((BYTES + 16777216)) \"$MIRROR_SMALL_DISK.img\" && \
    mkfs.ext4 -q -F -m 0 \"$MIRROR_SMALL_DISK.img\" && \
    mount -o loop \"$MIRROR_SMALL_DISK.img\" \"$MIRROR_SMALL_DISK\" && \
    rm \"$MIRROR_SMALL_DISK.img\"";

/// Whether this host lets us have a loop device.
fn has_loop_devices() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let place = tempfile::tempdir().unwrap();
        let mounted = Command::new("unshare")
            .args(["--mount", "sh", "-c", EXT4])
            .env("MIRROR_SMALL_DISK", place.path())
            .env("BYTES", "0")
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            println!("no loop devices here: on tmpfs only");
            let _ = std::fs::remove_file(place.path().with_extension("img"));
        }
        mounted
    })
}

/// Runs `body` in a directory on a file system of so many bytes.
fn on_a_disk_of(bytes: usize, name: &str, body: impl FnOnce(tempfile::TempDir)) {
    if let Ok(place) = std::env::var("MIRROR_SMALL_DISK") {
        return body(tempfile::tempdir_in(place).unwrap());
    }
    let tmpfs = "mount -t tmpfs -o size=$BYTES mirror \"$MIRROR_SMALL_DISK\"";
    run_on(
        bytes,
        name,
        tmpfs,
        &["--user", "--map-root-user", "--mount"],
    );
    if has_loop_devices() {
        run_on(bytes, name, EXT4, &["--mount"]);
    }
}

fn run_on(bytes: usize, name: &str, mount: &str, namespaces: &[&str]) {
    let place = tempfile::tempdir().unwrap();
    let script = format!("{mount} && exec \"$0\" --exact {name} --nocapture");
    let output = Command::new("unshare")
        .args(namespaces)
        .args(["sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env("BYTES", bytes.to_string())
        .env("MIRROR_SMALL_DISK", place.path())
        .output()
        .expect("util-linux's unshare");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{}\n(needs user namespaces, and O_DIRECT on tmpfs: Linux 6.6)",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn fill(directory: &Path) {
    let mut filler = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(directory.join("filler"))
        .unwrap();
    while std::io::Write::write(&mut filler, &[1; BLOCK]).is_ok() {}
}

fn free_bytes(directory: &Path) -> usize {
    let file = std::fs::File::open(directory).unwrap();
    usize::try_from(_mirror::sys::file::available_bytes(&file).unwrap()).unwrap()
}

fn free(directory: &Path) {
    std::fs::remove_file(directory.join("filler")).unwrap();
}

fn host(directory: tempfile::TempDir, on_full: OnFull) -> Host {
    Host::with(
        directory,
        &noise(1, 8 * CHUNK),
        8 * MIB as u64,
        2 * CHUNK as u64,
        on_full,
    )
}

#[test]
fn a_write_is_held_until_there_is_room() {
    on_a_disk_of(
        4 * MIB,
        "a_write_is_held_until_there_is_room",
        |directory| {
            let mut host = host(directory, OnFull::Hold);
            host.write(0, &[1; BLOCK]).unwrap();
            fill(host.directory.path());
            let ticket = host.ticket();
            let answer = host
                .mirror
                .write(&host.door, ticket, BLOCK as u64, &[2; BLOCK], true);
            assert_eq!(answer, Answer::Parked);
            let event = host.engine.events().next(Duration::from_secs(1)).unwrap();
            assert_eq!(event.kind, "alarm");
            std::thread::sleep(Duration::from_millis(2500));
            assert_eq!(host.notes.take(ticket), None);
            // Others go on: local blocks have their room.
            host.write(0, &[3; BLOCK]).unwrap();
            assert_eq!(
                host.read(BLOCK, BLOCK).unwrap(),
                noise(1, 2 * BLOCK)[BLOCK..]
            );
            free(host.directory.path());
            host.notes.wait(ticket).unwrap();
            assert_eq!(host.read(BLOCK, BLOCK).unwrap(), [2; BLOCK]);
            assert_eq!(
                host.engine.events().next(Duration::ZERO),
                None,
                "one alarm for one full disk"
            );
        },
    );
}

#[test]
fn a_held_write_ends_with_its_mirrors_misses() {
    on_a_disk_of(
        4 * MIB,
        "a_held_write_ends_with_its_mirrors_misses",
        |directory| {
            let mut host = host(directory, OnFull::Hold);
            fill(host.directory.path());
            let ticket = host.ticket();
            let answer = host.mirror.write(&host.door, ticket, 0, &[2; BLOCK], false);
            assert_eq!(answer, Answer::Parked);
            host.mirror.end_misses();
            assert_eq!(host.notes.wait(ticket), Err(libc::EIO));
        },
    );
}

#[test]
fn a_write_is_refused_if_so_configured() {
    on_a_disk_of(
        4 * MIB,
        "a_write_is_refused_if_so_configured",
        |directory| {
            let mut host = host(directory, OnFull::Error);
            fill(host.directory.path());
            assert_eq!(host.write(0, &[2; BLOCK]), Err(libc::ENOSPC));
            free(host.directory.path());
            assert_eq!(host.write(0, &[2; BLOCK]), Ok(()));
        },
    );
}

#[test]
fn the_cache_gives_its_room_to_the_guest() {
    on_a_disk_of(
        4 * MIB,
        "the_cache_gives_its_room_to_the_guest",
        |directory| {
            let mut host = host(directory, OnFull::Error);
            host.read(0, 2 * CHUNK).unwrap();
            assert_eq!(host.count("cache_bytes"), 2 * CHUNK as u64);
            fill(host.directory.path());
            host.write(4 * CHUNK, &vec![5; CHUNK]).unwrap();
            assert!(host.count("cache_bytes") < 2 * CHUNK as u64);
        },
    );
}

#[test]
fn a_commit_is_given_up_and_works_once_there_is_room() {
    on_a_disk_of(
        4 * MIB,
        "a_commit_is_given_up_and_works_once_there_is_room",
        |directory| {
            let mut host = host(directory, OnFull::Hold);
            host.write(0, &[1; 2 * BLOCK]).unwrap();
            let sealed = host.mirror.freeze().unwrap();
            fill(host.directory.path());
            host.write(0, &[2; BLOCK]).unwrap();
            let error = sealed.read(0).unwrap_err();
            assert_eq!(error.raw_os_error(), libc::ENOSPC);
            // Even a careless caller cannot make it clean.
            sealed.publish();
            assert_eq!(host.count("dirty_bytes"), 2 * BLOCK as u64);
            free(host.directory.path());
            let sealed = host.mirror.freeze().unwrap();
            host.write(0, &[3; BLOCK]).unwrap();
            let content = host.read_sealed(&sealed, 0).unwrap();
            assert_eq!(content[..BLOCK], [2; BLOCK]);
            assert_eq!(content[BLOCK..2 * BLOCK], [1; BLOCK]);
            sealed.publish();
        },
    );
}

#[test]
fn a_commit_and_a_flush_go_on_while_a_write_is_held() {
    on_a_disk_of(
        4 * MIB,
        "a_commit_and_a_flush_go_on_while_a_write_is_held",
        |directory| {
            let mut host = host(directory, OnFull::Hold);
            host.write(0, &[1; BLOCK]).unwrap();
            let sealed = host.mirror.freeze().unwrap();
            fill(host.directory.path());
            // A block of the frozen chunk that was not local: nothing to set aside, no room to go to.
            let ticket = host.ticket();
            let at = 5 * BLOCK;
            let answer = host
                .mirror
                .write(&host.door, ticket, at as u64, &[2; BLOCK], false);
            assert_eq!(answer, Answer::Parked);
            host.flush().unwrap();
            let content = host.read_sealed(&sealed, 0).unwrap();
            assert_eq!(content[..BLOCK], [1; BLOCK]);
            assert_eq!(content[at..at + BLOCK], noise(1, CHUNK)[at..at + BLOCK]);
            sealed.uploaded(0);
            sealed.publish();
            assert_eq!(host.notes.take(ticket), None);
            free(host.directory.path());
            host.notes.wait(ticket).unwrap();
            assert_eq!(host.read(at, BLOCK).unwrap(), [2; BLOCK]);
            // What was written since the freeze is dirty.
            assert_eq!(host.count("dirty_bytes"), BLOCK as u64);
            host.flush().unwrap();
        },
    );
}

#[test]
fn an_attach_without_room_for_its_maps_fails_and_leaves_nothing() {
    on_a_disk_of(
        MIB,
        "an_attach_without_room_for_its_maps_fails_and_leaves_nothing",
        |directory| {
            let engine = common::open_engine(&directory.path().join("c"), 0, OnFull::Hold);
            let mut options = common::attach_options(directory.path(), 1 << 40, &[], true);
            let begun = Instant::now();
            let error = engine.attach(options.clone()).unwrap_err();
            assert_eq!(error.raw_os_error(), libc::ENOSPC);
            assert!(begun.elapsed() < Duration::from_secs(5));
            assert_eq!(std::fs::read_dir(&options.directory).unwrap().count(), 0);
            assert!(!options.live_map.exists());
            options.size_bytes = 1 << 20;
            engine.attach(options).unwrap();
        },
    );
}

/// A host whose cache leaves room free, or lies elsewhere.
fn host_with(directory: tempfile::TempDir, cache: &Path, chunks: usize, reserve: usize) -> Host {
    let mut host = host(directory, OnFull::Error);
    host.engine.stop().unwrap();
    host.engine = Engine::open(EngineOptions {
        cache_directory: cache.to_owned(),
        cache_bytes: (chunks * CHUNK) as u64,
        cache_reserve_bytes: reserve as u64,
        scrub_bytes_per_second: 0,
        session_id: "session".to_owned(),
        threads: 2,
        fetch_timeout: None,
        on_full: OnFull::Error,
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
        "the_reserve_is_given_back_by_the_cache",
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
    on_a_disk_of(4 * MIB, "a_full_disk_recycles_the_cache", |directory| {
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
    });
}

#[test]
fn a_cache_on_another_disk_is_not_shed_in_vain() {
    on_a_disk_of(
        4 * MIB,
        "a_cache_on_another_disk_is_not_shed_in_vain",
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
        "many_writers_take_all_of_the_cache_before_one_of_them_fails",
        |directory| {
            let cache = directory.path().join("cache");
            let mut host = host_with(directory, &cache, 8, 0);
            host.read(0, 8 * CHUNK).unwrap();
            let cached = host.count("cache_bytes");
            assert_eq!(cached, 8 * CHUNK as u64);
            fill(host.directory.path());
            std::thread::scope(|scope| {
                for thread in 0..4 {
                    let (mirror, door) = (&host.mirror, &host.door);
                    scope.spawn(move || {
                        // All that the cache held, but for what a file system needs itself.
                        for block in 0..(8 * CHUNK / BLOCK - 32) / 4 {
                            let at = ((block * 4 + thread) * BLOCK) as u64;
                            let answer = mirror.write(door, 0, at, &[7; BLOCK], false);
                            assert_eq!(answer, Answer::Done, "block {block}");
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
        "the_cache_goes_before_a_commit_is_given_up",
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
