// SPDX-License-Identifier: Apache-2.0
//! Readers, evictions, the scrub and mirrors that come and go, all at once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::{CHUNK, Store, noise};
use crate::fleet::{Dice, Fleet, StopAtEnd};

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
