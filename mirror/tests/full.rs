// SPDX-License-Identifier: Apache-2.0
//! Full disks: a write is held until there is room, or refused; a COMMIT is given up before a
//! guest's write is. How the cache gives way is told by `cache/full.rs`.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::time::{Duration, Instant};

use _mirror::disk::{Answer, Disk};
use _mirror::engine::OnFull;
use common::small::{fill, free, on_a_disk_of};
use common::{BLOCK, CHUNK, Host, noise};

const MIB: usize = 1 << 20;

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
