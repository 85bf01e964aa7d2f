// SPDX-License-Identifier: Apache-2.0
//! What a restart keeps, what it checks, and what rots.

use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::common::{CHUNK, Store, digest_of, noise};
use crate::fleet::{Fleet, hex, text};

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

#[test]
fn a_cached_chunk_is_handed_out_by_its_digest_if_it_still_is_that() {
    let mut fleet = Fleet::new(8);
    let base = noise(14, 3 * CHUNK);
    let mut store = Store::default();
    let leaves = store.put(&base);
    let mirror = fleet.attach("server", &leaves, base.len());
    for chunk in 0..2 {
        assert!(fleet.is_fetched(&store, &mirror, &base, chunk));
    }
    let size = CHUNK as u64;
    let content = |chunk: usize| &base[chunk * CHUNK..][..CHUNK];
    let cached = |fleet: &Fleet, chunk: usize| {
        let found = fleet.engine.cached(&digest_of(content(chunk)), size);
        found.map(|found| found.as_ref() == content(chunk))
    };
    assert_eq!(cached(&fleet, 0), Some(true));
    assert_eq!(cached(&fleet, 2), None);
    let digest = digest_of(content(0));
    assert!(fleet.engine.cached(&digest, 2 * size).is_none());
    assert!(fleet.engine.cached(&digest, 3).is_none());
    // Its key is known after a restart, too; what rots is refused, and told.
    fleet.engine.forget_as_if_killed();
    drop(mirror);
    fleet.open_again(8, 0);
    fleet.flip(content(1));
    assert_eq!(cached(&fleet, 0), Some(true));
    assert_eq!(cached(&fleet, 1), None);
    assert_eq!(fleet.count("cache_refused_total"), 1);
}
