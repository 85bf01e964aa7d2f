// SPDX-License-Identifier: Apache-2.0
//! One mirror's promises, one a test.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::time::{Duration, Instant};

use _mirror::disk::{Answer, Disk};
use _mirror::engine::{FetchFailure, OnFull};
use _mirror::error::Error;
use common::{BLOCK, CHUNK, Host, attach_options, directory, noise, object, open_engine};

fn base() -> Vec<u8> {
    let mut base = noise(1, 5 * CHUNK + 3 * BLOCK + 100);
    base[CHUNK..2 * CHUNK].fill(0);
    base
}

fn host() -> Host {
    let base = base();
    Host::new(&base, base.len() as u64)
}

#[test]
fn the_base_is_read_through_one_fetch_a_chunk() {
    let mut host = host();
    let base = base();
    assert_eq!(host.read(0, base.len()).unwrap(), base);
    assert_eq!(host.count("fetches_total"), 5);
    assert_eq!(host.count("fetched_bytes"), 5 * CHUNK as u64);
    assert_eq!(
        host.read(100, 3 * CHUNK).unwrap(),
        base[100..100 + 3 * CHUNK]
    );
    assert_eq!(host.count("fetches_total"), 5);
    assert_eq!(host.count("parked_total"), 1);
}

#[test]
fn a_hole_of_the_base_is_zeros_and_never_fetched() {
    let mut host = host();
    assert_eq!(host.read(CHUNK, CHUNK).unwrap(), vec![0; CHUNK]);
    assert_eq!(host.count("parked_total"), 0);
}

#[test]
fn a_whole_block_is_written_and_read_back_without_a_fetch() {
    let mut host = host();
    let data = noise(2, 2 * BLOCK);
    host.write(3 * BLOCK, &data).unwrap();
    assert_eq!(host.read(3 * BLOCK, 2 * BLOCK).unwrap(), data);
    assert_eq!(host.count("parked_total"), 0);
    assert_eq!(host.count("dirty_bytes"), 2 * BLOCK as u64);
}

#[test]
fn a_part_of_a_block_is_completed_from_the_base() {
    let mut host = host();
    let mut expected = base();
    host.write(5000, b"hello").unwrap();
    expected[5000..5005].copy_from_slice(b"hello");
    let len = expected.len();
    host.write(len - 7, b"the end").unwrap();
    expected[len - 7..].copy_from_slice(b"the end");
    assert_eq!(host.read(0, expected.len()).unwrap(), expected);
}

#[test]
fn the_last_block_of_the_disk_is_whole_when_it_ends_with_the_disk() {
    let mut host = host();
    let len = base().len();
    let tail = len / BLOCK * BLOCK;
    host.write(tail, &vec![7; len - tail]).unwrap();
    assert_eq!(host.count("parked_total"), 0);
    assert_eq!(host.read(tail, len - tail).unwrap(), vec![7; len - tail]);
}

#[test]
fn a_discard_takes_whole_blocks_and_a_zeroing_every_byte() {
    let mut host = host();
    let mut expected = base();
    host.discard(1000, 3 * BLOCK).unwrap();
    expected[BLOCK..3 * BLOCK].fill(0);
    host.zero(2 * CHUNK + 1000, 2 * BLOCK).unwrap();
    expected[2 * CHUNK + 1000..][..2 * BLOCK].fill(0);
    host.zero(3 * CHUNK + 10, 20).unwrap();
    expected[3 * CHUNK + 10..][..20].fill(0);
    assert_eq!(host.read(0, expected.len()).unwrap(), expected);
}

#[test]
fn a_discard_over_a_hole_changes_nothing() {
    let mut host = host();
    host.discard(CHUNK, CHUNK).unwrap();
    host.zero(CHUNK + 10, 5000).unwrap();
    assert_eq!(host.count("dirty_bytes"), 0);
    assert_eq!(host.count("local_bytes"), 0);
}

#[test]
fn seek_tells_data_from_holes_without_waiting() {
    let mut host = host();
    assert_eq!(host.mirror.seek(0, true), Some(CHUNK as u64));
    assert_eq!(
        host.mirror.seek(CHUNK as u64 + 5, false),
        Some(2 * CHUNK as u64)
    );
    host.write(CHUNK + BLOCK, &vec![1; BLOCK]).unwrap();
    assert_eq!(
        host.mirror.seek(CHUNK as u64, false),
        Some((CHUNK + BLOCK) as u64)
    );
    let len = base().len() as u64;
    assert_eq!(host.mirror.seek(len - 1, true), Some(len));
    assert_eq!(host.mirror.seek(len, true), None);
    assert_eq!(host.mirror.seek(len, false), None);
}

#[test]
fn a_parked_read_is_interrupted() {
    let mut host = host();
    let ticket = host.ticket();
    let answer = host.mirror.read(&host.door, ticket, 0, &mut [0; 10]);
    assert_eq!(answer, Answer::Parked);
    host.mirror.interrupt(ticket);
    assert_eq!(host.notes.wait(ticket), Err(libc::EINTR));
    // Nobody waits any more: nobody is asked to fetch.
    assert_eq!(host.engine.next_fetch(false, Duration::ZERO), None);
}

#[test]
fn ended_misses_are_eio_and_local_blocks_still_answer() {
    let mut host = host();
    host.write(0, &vec![3; BLOCK]).unwrap();
    let ticket = host.ticket();
    let answer = host.mirror.write(&host.door, ticket, 5000, b"x", false);
    assert_eq!(answer, Answer::Parked);
    host.mirror.end_misses();
    assert_eq!(host.notes.wait(ticket), Err(libc::EIO));
    assert_eq!(host.read(2 * CHUNK, 10), Err(libc::EIO));
    assert_eq!(host.read(0, BLOCK), Ok(vec![3; BLOCK]));
    host.mirror.allow_misses();
    assert_eq!(host.read(2 * CHUNK, 10).unwrap(), base()[2 * CHUNK..][..10]);
}

#[test]
fn two_readers_of_a_chunk_share_its_fetch() {
    let mut host = host();
    let tickets = [host.ticket(), host.ticket()];
    for ticket in tickets {
        assert_eq!(
            host.mirror.read(&host.door, ticket, 5, &mut [0; 10]),
            Answer::Parked
        );
    }
    assert_eq!(host.store.serve_all(&host.engine), 1);
    for ticket in tickets {
        assert_eq!(host.notes.wait(ticket).unwrap(), base()[5..15]);
    }
}

#[test]
fn a_chunk_that_does_not_match_is_refused_and_the_right_one_taken() {
    let mut host = host();
    let ticket = host.ticket();
    assert_eq!(
        host.mirror.read(&host.door, ticket, 0, &mut [0; 10]),
        Answer::Parked
    );
    let fetch = host.engine.next_fetch(true, Duration::ZERO).unwrap();
    let wrong = object(&noise(99, CHUNK), false);
    assert!(matches!(
        host.engine.fetched(&fetch.digest, &wrong),
        Err(Error::Corrupt(_))
    ));
    let short = object(&noise(99, CHUNK / 2), false);
    assert!(matches!(
        host.engine.fetched(&fetch.digest, &short),
        Err(Error::Corrupt(_))
    ));
    assert_eq!(host.notes.take(ticket), None);
    host.store.serve(&host.engine, &fetch);
    assert_eq!(host.notes.wait(ticket).unwrap(), base()[..10]);
}

#[test]
fn a_missing_chunk_is_eio_for_its_range_alone_after_one_recheck() {
    let mut host = host();
    let ticket = host.ticket();
    assert_eq!(
        host.mirror.read(&host.door, ticket, 0, &mut [0; 10]),
        Answer::Parked
    );
    for look in 0..2 {
        let fetch = host
            .engine
            .next_fetch(true, Duration::from_secs(5))
            .unwrap();
        assert_eq!(host.notes.take(ticket), None);
        let lost = host
            .engine
            .fetch_failed(&fetch.digest, FetchFailure::Missing, "not found");
        assert_eq!(lost, look == 1);
    }
    assert_eq!(host.notes.wait(ticket), Err(libc::EIO));
    assert_eq!(host.read(2 * CHUNK, 9).unwrap(), base()[2 * CHUNK..][..9]);
    let event = host.engine.events().next(Duration::ZERO).unwrap();
    assert_eq!(event.kind, "alarm");
}

#[test]
fn a_cache_without_room_serves_from_memory() {
    let base = base();
    let mut host = Host::with(directory(), &base, base.len() as u64, 0, OnFull::Hold);
    assert_eq!(host.read(0, base.len()).unwrap(), base);
    assert_eq!(host.count("cache_bytes"), 0);
    assert_eq!(host.count("uncached_total"), 5);
}

#[test]
fn a_full_cache_evicts_and_stays_below_its_bound() {
    let base = noise(7, 12 * CHUNK);
    let mut host = Host::with(
        directory(),
        &base,
        base.len() as u64,
        3 * CHUNK as u64,
        OnFull::Hold,
    );
    for round in 0..3 {
        for chunk in 0..12 {
            let at = (chunk * 7 + round) % 12 * CHUNK + 11;
            assert_eq!(host.read(at, 100).unwrap(), base[at..at + 100]);
            assert!(host.count("cache_bytes") <= 3 * CHUNK as u64);
        }
    }
    assert!(host.count("cache_evicted_total") > 20);
}

#[test]
fn a_clean_restart_keeps_cache_data_and_dirty_bits() {
    let mut host = host();
    let mut expected = base();
    host.read(0, expected.len()).unwrap();
    host.write(BLOCK, &vec![9; BLOCK]).unwrap();
    expected[BLOCK..2 * BLOCK].fill(9);
    let sealed = host.mirror.freeze().unwrap();
    sealed.publish();
    drop(sealed);
    host.write(2 * CHUNK, &vec![8; BLOCK]).unwrap();
    expected[2 * CHUNK..][..BLOCK].fill(8);
    host.engine.stop().unwrap();
    assert!(!host.live_map().exists());
    host.open_again();
    assert_eq!(host.read(0, expected.len()).unwrap(), expected);
    assert_eq!(host.count("fetches_total"), 0);
    assert_eq!(host.count("local_bytes"), 2 * BLOCK as u64);
    assert_eq!(host.count("dirty_bytes"), BLOCK as u64);
}

#[test]
fn after_power_loss_flushed_writes_stand_and_every_local_block_is_dirty() {
    let mut host = host();
    host.write(BLOCK, &vec![9; BLOCK]).unwrap();
    host.mirror.freeze().unwrap().publish();
    host.flush().unwrap();
    assert_eq!(host.count("dirty_bytes"), 0);
    host.write(5 * BLOCK, &vec![8; BLOCK]).unwrap();
    host.engine.forget_as_if_killed();
    std::fs::remove_file(host.live_map()).unwrap();
    host.open_again();
    assert_eq!(host.read(BLOCK, BLOCK).unwrap(), vec![9; BLOCK]);
    assert_eq!(
        host.read(5 * BLOCK, BLOCK).unwrap(),
        base()[5 * BLOCK..6 * BLOCK]
    );
    assert_eq!(host.count("dirty_bytes"), BLOCK as u64);
}

#[test]
fn what_no_guest_flushes_is_flushed_within_seconds() {
    let mut host = host();
    let map = host.directory.path().join("mirror/map");
    let before = std::fs::read(&map).unwrap();
    host.write(5 * BLOCK, &vec![8; BLOCK]).unwrap();
    // Five by the rule; a busy machine has more.
    let deadline = Instant::now() + Duration::from_secs(30);
    while std::fs::read(&map).unwrap() == before {
        assert!(Instant::now() < deadline, "nobody flushes it");
        std::thread::sleep(Duration::from_millis(50));
    }
    host.engine.forget_as_if_killed();
    std::fs::remove_file(host.live_map()).unwrap();
    host.open_again();
    assert_eq!(host.read(5 * BLOCK, BLOCK).unwrap(), vec![8; BLOCK]);
}

#[test]
fn after_a_kill_acknowledged_writes_stand_and_a_frozen_block_is_dirty_again() {
    let mut host = host();
    host.write(BLOCK, &vec![9; BLOCK]).unwrap();
    let sealed = host.mirror.freeze().unwrap();
    host.write(BLOCK, &vec![8; BLOCK]).unwrap();
    host.write(5 * BLOCK, &vec![7; BLOCK]).unwrap();
    host.engine.forget_as_if_killed();
    drop(sealed);
    host.open_again();
    assert_eq!(host.read(BLOCK, BLOCK).unwrap(), vec![8; BLOCK]);
    assert_eq!(host.read(5 * BLOCK, BLOCK).unwrap(), vec![7; BLOCK]);
    assert_eq!(host.count("dirty_bytes"), 2 * BLOCK as u64);
    assert_eq!(host.mirror.freeze().unwrap().chunks(), [0]);
}

#[test]
fn a_live_map_of_another_attachment_is_not_believed() {
    let mut host = host();
    host.write(BLOCK, &vec![9; BLOCK]).unwrap();
    let stolen = std::fs::read(host.live_map()).unwrap();
    host.engine.stop().unwrap();
    host.open_again();
    host.write(BLOCK, &vec![8; BLOCK]).unwrap();
    host.write(7 * BLOCK, &vec![8; BLOCK]).unwrap();
    host.flush().unwrap();
    host.engine.forget_as_if_killed();
    // An older live map of the same mirror: right boot, right attachment, wrong nonce.
    std::fs::write(host.live_map(), stolen).unwrap();
    host.open_again();
    assert_eq!(host.read(7 * BLOCK, BLOCK).unwrap(), vec![8; BLOCK]);
}

#[test]
fn a_chunk_that_rotted_while_the_agent_was_dead_is_fetched_again() {
    let mut host = host();
    host.read(0, BLOCK).unwrap();
    host.engine.forget_as_if_killed();
    let slab = host.directory.path().join(format!("cache/slab-{CHUNK}"));
    std::os::unix::fs::FileExt::write_all_at(
        &std::fs::OpenOptions::new().write(true).open(slab).unwrap(),
        b"rot",
        100,
    )
    .unwrap();
    host.open_again();
    assert_eq!(host.read(0, BLOCK).unwrap(), base()[..BLOCK]);
    assert_eq!(host.count("cache_refused_total"), 1);
    assert_eq!(host.count("fetches_total"), 1);
}

#[test]
fn a_frozen_disk_is_read_as_it_was_while_the_guest_writes() {
    let mut host = host();
    let mut frozen = base();
    host.write(BLOCK, &vec![9; 2 * BLOCK]).unwrap();
    frozen[BLOCK..3 * BLOCK].fill(9);
    let sealed = host.mirror.freeze().unwrap();
    assert_eq!(sealed.chunks(), [0]);
    assert!(matches!(host.mirror.freeze(), Err(Error::AlreadySealed)));
    host.write(0, &vec![1; 2 * BLOCK]).unwrap();
    host.discard(2 * BLOCK, 2 * BLOCK).unwrap();
    host.write(5 * BLOCK + 5, b"partly").unwrap();
    host.write(3 * CHUNK, &vec![1; BLOCK]).unwrap();
    assert_eq!(host.read_sealed(&sealed, 0).unwrap(), frozen[..CHUNK]);
    assert!(sealed.read(3).is_err());
    sealed.uploaded(0);
    host.write(6 * BLOCK, &vec![2; BLOCK]).unwrap();
    sealed.publish();
    // What was written since is dirty, and nothing else.
    let again = host.mirror.freeze().unwrap();
    assert_eq!(again.chunks(), [0, 3]);
    assert_eq!(host.count("saved_blocks_total"), 2);
}

#[test]
fn what_is_near_a_changed_block_is_set_aside_along_with_it() {
    let mut host = host();
    // The first two windows of chunk 0, a block of the base aside, and one in the third.
    let mut frozen = base();
    for (from, to) in [(0, 5), (6, 32), (40, 41)] {
        host.write(from * BLOCK, &vec![9; (to - from) * BLOCK])
            .unwrap();
        frozen[from * BLOCK..to * BLOCK].fill(9);
    }
    let sealed = host.mirror.freeze().unwrap();
    host.write(3 * BLOCK, &vec![1; BLOCK]).unwrap();
    assert_eq!(host.count("saved_blocks_total"), 15);
    for block in [0, 4, 5, 15] {
        host.write(block * BLOCK, &vec![2; BLOCK]).unwrap();
    }
    assert_eq!(
        host.count("saved_blocks_total"),
        15,
        "nothing is copied twice"
    );
    // A block of the base is not copied, and nothing near it for its sake.
    host.write(33 * BLOCK, &vec![3; BLOCK]).unwrap();
    assert_eq!(host.count("saved_blocks_total"), 15);
    host.write(30 * BLOCK + 5, b"over two windows").unwrap();
    host.discard(31 * BLOCK, 3 * BLOCK).unwrap();
    assert_eq!(host.count("saved_blocks_total"), 31);
    assert_eq!(host.read_sealed(&sealed, 0).unwrap(), frozen[..CHUNK]);
}

#[test]
fn an_abandoned_commit_leaves_its_blocks_dirty() {
    let mut host = host();
    host.write(BLOCK, &vec![9; BLOCK]).unwrap();
    drop(host.mirror.freeze().unwrap());
    assert_eq!(host.count("dirty_bytes"), BLOCK as u64);
    assert_eq!(host.mirror.freeze().unwrap().chunks(), [0]);
}

#[test]
fn a_freeze_never_waits_for_a_fetch() {
    let mut host = host();
    let ticket = host.ticket();
    assert_eq!(
        host.mirror.write(&host.door, ticket, 10, b"parked", false),
        Answer::Parked
    );
    let sealed = host.mirror.freeze().unwrap();
    assert!(sealed.chunks().is_empty());
    host.store.serve_all(&host.engine);
    host.notes.wait(ticket).unwrap();
    sealed.publish();
    assert_eq!(host.count("dirty_chunks"), 1);
}

#[test]
fn a_disk_grows_and_its_new_part_is_zeros() {
    let mut host = host();
    let mut expected = base();
    let old = expected.len();
    host.write(old - 10, b"0123456789").unwrap();
    expected[old - 10..].copy_from_slice(b"0123456789");
    let size = 70 << 20;
    assert!(host.mirror.grow(10).is_err());
    host.mirror.grow(size).unwrap();
    host.size = size;
    expected.resize(1 << 21, 0);
    assert_eq!(host.read(0, 1 << 21).unwrap(), expected);
    let at = (69 << 20) + 5;
    host.write(at, b"far").unwrap();
    host.engine.forget_as_if_killed();
    host.open_again();
    assert_eq!(
        host.read(at - 5, 16).unwrap(),
        b"\0\0\0\0\0far\0\0\0\0\0\0\0\0"
    );
    host.flush().unwrap();
    host.engine.forget_as_if_killed();
    std::fs::remove_file(host.live_map()).unwrap();
    host.open_again();
    assert_eq!(host.read(at, 3).unwrap(), b"far");
}

#[test]
fn a_disk_that_is_attached_is_not_attached_twice() {
    let mut host = host();
    host.write(0, &vec![1; BLOCK]).unwrap();
    let again = attach_options(host.directory.path(), host.size, &host.leaves, false);
    assert!(host.engine.attach(again).is_err());
}

#[test]
fn wrong_arguments_are_refused_before_anything_is_made() {
    let directory = directory();
    let engine = open_engine(directory.path(), 1 << 20, OnFull::Hold);
    let options = || attach_options(directory.path(), 1 << 20, &[], true);
    let mut wrong = options();
    wrong.chunk_size_bytes = 300_000;
    assert!(matches!(engine.attach(wrong), Err(Error::Invalid(_))));
    let mut wrong = options();
    wrong.size_bytes = 0;
    assert!(matches!(engine.attach(wrong), Err(Error::Invalid(_))));
    let mut wrong = options();
    wrong.leaves = vec![(0, vec![1; 8192])];
    assert!(matches!(engine.attach(wrong), Err(Error::Invalid(_))));
    assert!(!directory.path().join("mirror").exists());
    let mut wrong = options();
    engine.attach(options()).unwrap();
    engine.detach("instance", "disk").unwrap();
    wrong.create = false;
    wrong.attach_id = "another".to_owned();
    assert!(matches!(engine.attach(wrong), Err(Error::Invalid(_))));
    assert!(engine.detach("instance", "disk").is_err());
}
