// SPDX-License-Identifier: Apache-2.0
//! Freezes that are held: writes wait and nothing else does, a thaw undoes nothing, the watchdog
//! ends what nobody ended, and disks that are held together show one instant.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use _mirror::disk::{Answer, Disk, Door};
use _mirror::engine::OnFull;
use _mirror::error::Error;
use _mirror::mirror::Mirror;
use common::{BLOCK, CHUNK, Host, Notes, attach_options, fast_directory, noise};

const LONG: Duration = Duration::from_secs(60);

fn host() -> Host {
    let base = noise(1, 2 * CHUNK);
    let size = base.len() as u64;
    Host::with(fast_directory(), &base, size, 64 << 20, OnFull::Hold)
}

#[test]
fn while_a_disk_is_held_writes_wait_and_reads_and_flushes_do_not() {
    let mut host = host();
    let before = noise(2, BLOCK);
    host.write(0, &before).unwrap();
    let held = host.mirror.hold(LONG).unwrap();
    let (mirror, door) = (host.mirror.clone(), host.door.clone());
    let len = BLOCK as u64;
    let write = host.ticket();
    assert_eq!(
        mirror.write(&door, write, 0, &noise(3, BLOCK), false),
        Answer::Parked
    );
    let zero = host.ticket();
    assert_eq!(mirror.write_zeroes(&door, zero, len, 100), Answer::Parked);
    let discard = host.ticket();
    assert_eq!(mirror.discard(&door, discard, 2 * len, len), Answer::Parked);
    assert!(host.read(0, BLOCK).unwrap() == before);
    host.flush().unwrap();
    assert!(matches!(host.mirror.freeze(), Err(Error::AlreadySealed)));
    assert!(matches!(host.mirror.hold(LONG), Err(Error::AlreadySealed)));
    std::thread::sleep(Duration::from_millis(50));
    for ticket in [write, zero, discard] {
        assert!(host.notes.take(ticket).is_none(), "{ticket} did not wait");
    }

    let sealed = held.seal().unwrap();
    assert!(!held.is_held());
    for ticket in [write, zero, discard] {
        host.finish(ticket, Answer::Parked).unwrap();
    }
    assert!(host.read(0, BLOCK).unwrap() == noise(3, BLOCK));
    let version = host.read_sealed(&sealed, 0).unwrap();
    let mut expected = noise(1, CHUNK);
    expected[..BLOCK].copy_from_slice(&before);
    assert!(version == expected, "the version is the disk at its freeze");
    assert!(matches!(held.seal(), Err(Error::Thawed)), "sealed already");
    assert!(!held.thaw());
    assert!(sealed.read(0).is_ok(), "a late thaw touches no seal");
}

#[test]
fn a_thaw_lets_the_guest_go_on_and_nothing_has_happened() {
    let mut host = host();
    host.write(0, &noise(2, BLOCK)).unwrap();
    let dirty = host.count("dirty_bytes");
    let held = host.mirror.hold(LONG).unwrap();
    let (mirror, door, ticket) = (host.mirror.clone(), host.door.clone(), host.ticket());
    let answer = mirror.write(&door, ticket, 0, &noise(3, BLOCK), false);
    assert_eq!(answer, Answer::Parked);
    assert!(held.thaw());
    host.finish(ticket, answer).unwrap();
    assert!(matches!(held.seal(), Err(Error::Thawed)));
    assert_eq!(host.count("dirty_bytes"), dirty);
    assert_eq!(host.count("saved_blocks_total"), 0);
    drop(host.mirror.hold(LONG).unwrap());
    let sealed = host.mirror.freeze().unwrap();
    assert_eq!(sealed.chunks(), [0]);
}

#[test]
fn a_freeze_that_nobody_ends_ends_by_itself_and_its_seal_is_refused() {
    let mut host = host();
    let limit = Duration::from_millis(200);
    let begun = Instant::now();
    let held = host.mirror.hold(limit).unwrap();
    let (mirror, door, ticket) = (host.mirror.clone(), host.door.clone(), host.ticket());
    let answer = mirror.write(&door, ticket, 0, &noise(3, BLOCK), false);
    assert_eq!(answer, Answer::Parked);
    host.notes.wait(ticket).unwrap();
    let waited = begun.elapsed();
    assert!(
        limit <= waited && waited < 5 * limit,
        "thawed after {waited:?}"
    );
    assert!(!held.is_held());
    assert!(matches!(held.seal(), Err(Error::Thawed)));
    // The old hold's end is not the new one's.
    let next = host.mirror.hold(LONG).unwrap();
    assert!(matches!(held.seal(), Err(Error::Thawed)));
    drop(held);
    assert!(next.is_held());
    assert_eq!(host.count("freeze_pauses_total"), 1);
    assert_eq!(host.count("freeze_pauses_le_100000us"), 0);
    assert_eq!(host.count("freeze_pauses_le_10000000us"), 1);
}

#[test]
fn a_held_disk_ends_at_once_and_what_waits_fails() {
    let mut host = host();
    let held = host.mirror.hold(LONG).unwrap();
    let (mirror, door, ticket) = (host.mirror.clone(), host.door.clone(), host.ticket());
    let answer = mirror.write(&door, ticket, 0, &noise(3, BLOCK), false);
    assert_eq!(answer, Answer::Parked);
    host.engine.stop().unwrap();
    assert_eq!(host.notes.wait(ticket), Err(libc::EIO));
    assert!(matches!(held.seal(), Err(Error::Thawed)));
    host.open_again();
    assert!(host.read(0, BLOCK).unwrap() == noise(1, BLOCK));
}

#[test]
fn an_agent_that_dies_leaves_nothing_of_a_hold() {
    let mut host = host();
    host.write(0, &noise(2, BLOCK)).unwrap();
    let held = host.mirror.hold(LONG).unwrap();
    host.engine.forget_as_if_killed();
    host.open_again();
    drop(held);
    host.write(0, &noise(3, BLOCK)).unwrap();
    assert_eq!(host.mirror.freeze().unwrap().chunks(), [0]);
}

fn number(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[..8]);
    u64::from_le_bytes(word)
}

/// A guest writes each number to one disk and then to the other: whoever looks at both at one
/// instant finds the first at most one ahead, and never behind.
#[test]
fn disks_that_are_held_together_show_one_instant() {
    let host = host();
    let mut options = attach_options(host.directory.path(), CHUNK as u64, &[], true);
    options.disk = "other".to_owned();
    options.directory = host.directory.path().join("other");
    options.live_map = host.directory.path().join("other.live");
    let other = host.engine.attach(options).unwrap();
    let notes = Arc::new(Notes::default());
    let door: Arc<dyn Door> = notes.clone();
    let tickets = AtomicU64::new(1);
    let write = |mirror: &Arc<Mirror>, number: u64| {
        let block = number.to_le_bytes().repeat(BLOCK / 8);
        let ticket = tickets.fetch_add(1, Ordering::Relaxed);
        if mirror.write(&door, ticket, 0, &block, false) == Answer::Parked {
            notes.wait(ticket).unwrap();
        }
    };
    let stop = AtomicBool::new(false);
    let mut rounds = 0;
    let mut last = 0;
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                write(&host.mirror, n);
                write(&other, n);
            }
            n
        });
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until {
            let first = host.mirror.hold(LONG).unwrap();
            let second = other.hold(LONG).unwrap();
            let sealed = [first.seal().unwrap(), second.seal().unwrap()];
            if sealed.iter().all(|sealed| sealed.chunks() == [0]) {
                let [a, b] = sealed
                    .each_ref()
                    .map(|sealed| number(&host.read_sealed(sealed, 0).unwrap()));
                if a != b && a != b + 1 {
                    stop.store(true, Ordering::Relaxed);
                    panic!("one disk at {a}, the other at {b}");
                }
                rounds += 1;
                last = a;
            }
            for sealed in sealed {
                sealed.publish();
            }
        }
        stop.store(true, Ordering::Relaxed);
        assert!(writer.join().unwrap() >= last);
    });
    assert!(
        rounds > 20 && last > 20,
        "{rounds} rounds to {last}: too few"
    );
}
