// SPDX-License-Identifier: Apache-2.0
//! Who goes and who stays when there is no room for all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use _mirror::engine::Digest;
use _mirror::mirror::Mirror;

use crate::common::{CHUNK, Store, digest_of, noise, object};
use crate::fleet::{Fleet, StopAtEnd};

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
fn a_pin_goes_with_the_last_mirror_that_touched_the_chunk() {
    let fleet = Fleet::new(8);
    let base = noise(14, 12 * CHUNK);
    let mut store = Store::default();
    let leaves = store.put(&base);
    let fetched = |mirror: &Arc<Mirror>, chunk| fleet.is_fetched(&store, mirror, &base, chunk);
    let pinned = || fleet.count("cache_pinned_bytes") / CHUNK as u64;
    // One leaf, shared; 0 is touched by the first alone, 1 by both, 2 by the second.
    let first = fleet.attach("first", &leaves, base.len());
    let second = fleet.attach("second", &leaves, base.len());
    assert!(fetched(&first, 0) && fetched(&first, 1) && fetched(&second, 2));
    for _ in 0..2 {
        assert!(!fetched(&first, 1) && !fetched(&second, 1));
    }
    assert_eq!(pinned(), 3);
    drop(first);
    fleet.engine.detach("first", "disk").unwrap();
    assert_eq!(pinned(), 2, "nobody that is here touched 0");
    // A mirror that comes again is pinned to nothing that it has not read since.
    let first = fleet.attach("first", &leaves, base.len());
    assert_eq!(pinned(), 2);
    assert!(!fetched(&first, 0));
    assert_eq!(pinned(), 3);
    drop(second);
    fleet.engine.detach("second", "disk").unwrap();
    assert_eq!(pinned(), 1);
    // Evicted and fetched again, into another slot: one pin a chunk, whoever else had touched it.
    let second = fleet.attach("second", &leaves, base.len());
    for _ in 0..3 {
        for chunk in 0..12 {
            fetched(&first, chunk);
            fetched(&second, chunk);
        }
    }
    assert_eq!(pinned(), 8);
    drop(first);
    fleet.engine.detach("first", "disk").unwrap();
    assert_eq!(pinned(), 8, "the second touched them, too");
    drop(second);
    fleet.engine.detach("second", "disk").unwrap();
    assert_eq!(pinned(), 0);
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
