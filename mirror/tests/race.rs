// SPDX-License-Identifier: Apache-2.0
//! Many threads on one mirror, while COMMIT follows COMMIT: nobody loses a write to a neighbour in
//! the same block, and every version lies between what was done before its freeze and after it.

#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    clippy::similar_names,
    reason = "test code"
)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use _mirror::disk::{Answer, Disk, Door, Ticket};
use _mirror::engine::OnFull;
use _mirror::mirror::Mirror;
use common::{BLOCK, CHUNK, Host, Notes, fast_directory, noise};

const THREADS: usize = 4;
const SECTOR: usize = 512;
/// The first chunk's sectors are dealt to the threads one by one, the second's blocks likewise.
const SIZE: usize = 4 * CHUNK;

struct Guest {
    mirror: Arc<Mirror>,
    notes: Arc<Notes>,
    door: Arc<dyn Door>,
    tickets: AtomicU64,
}

impl Guest {
    fn finish(&self, ticket: Ticket, answer: &Answer) -> Vec<u8> {
        match answer {
            Answer::Done => Vec::new(),
            Answer::Failed(errno) => panic!("failed with {errno}"),
            Answer::Parked => self.notes.wait(ticket).unwrap(),
        }
    }

    fn ticket(&self) -> Ticket {
        self.tickets.fetch_add(1, Ordering::Relaxed)
    }

    fn write(&self, at: usize, data: &[u8]) {
        let ticket = self.ticket();
        let durable = ticket % 64 == 0;
        let answer = self
            .mirror
            .write(&self.door, ticket, at as u64, data, durable);
        self.finish(ticket, &answer);
    }

    fn read(&self, at: usize, len: usize) -> Vec<u8> {
        let ticket = self.ticket();
        let mut buf = vec![0; len];
        let answer = self.mirror.read(&self.door, ticket, at as u64, &mut buf);
        if answer == Answer::Done {
            buf
        } else {
            self.finish(ticket, &answer)
        }
    }

    fn erase(&self, at: usize, len: usize, exact: bool) {
        let ticket = self.ticket();
        let (at, len) = (at as u64, len as u64);
        let answer = if exact {
            self.mirror.write_zeroes(&self.door, ticket, at, len)
        } else {
            self.mirror.discard(&self.door, ticket, at, len)
        };
        self.finish(ticket, &answer);
    }
}

fn stamp(round: u64, len: usize) -> Vec<u8> {
    round.to_le_bytes().repeat(len / 8)
}

fn value(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[..8]);
    assert!(
        bytes == stamp(u64::from_le_bytes(word), bytes.len()),
        "a torn sector"
    );
    u64::from_le_bytes(word)
}

/// Per place: the last round that was begun, and that was answered.
#[derive(Default)]
struct Place {
    begun: AtomicU64,
    done: AtomicU64,
}

/// Ends the others when this thread panics, too.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn neighbours_keep_their_writes_and_versions_their_moment() {
    let mut base = stamp(0, SIZE);
    base[2 * CHUNK..3 * CHUNK].copy_from_slice(&noise(4, CHUNK));
    // No hole: zeros are one, so the base's round is a whole one.
    base[..2 * CHUNK].copy_from_slice(&stamp(1, 2 * CHUNK));
    let host = Host::with(fast_directory(), &base, SIZE as u64, 64 << 20, OnFull::Hold);
    let guest = Guest {
        mirror: host.mirror.clone(),
        notes: host.notes.clone(),
        door: host.door.clone(),
        tickets: AtomicU64::new(0),
    };
    let sectors = CHUNK / SECTOR;
    let blocks = CHUNK / BLOCK;
    let places: Vec<Place> = (0..sectors + blocks)
        .map(|_| Place {
            begun: AtomicU64::new(1),
            done: AtomicU64::new(1),
        })
        .collect();
    let span = |place: usize| {
        if place < sectors {
            place * SECTOR..(place + 1) * SECTOR
        } else {
            let at = CHUNK + (place - sectors) * BLOCK;
            at..at + BLOCK
        }
    };
    let stop = AtomicBool::new(false);
    let (guest, places, stop) = (&guest, &places[..], &stop);
    let (mut commits, mut writes) = (0, 0);

    std::thread::scope(|scope| {
        let (store, engine) = (&host.store, &host.engine);
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                if let Some(fetch) = engine.next_fetch(false, Duration::from_millis(50)) {
                    store.serve(engine, &fetch);
                }
            }
        });
        let writers: Vec<_> = (0..THREADS)
            .map(|thread| {
                scope.spawn(move || {
                    let mut seed = thread as u64 + 1;
                    let mut mine = noise(4, CHUNK);
                    let mut count = 0_u64;
                    while !stop.load(Ordering::Relaxed) {
                        seed = seed
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        let pick = usize::try_from(seed >> 33).unwrap();
                        // A sector, or a block, of its own among others' in the same blocks.
                        let place = pick / THREADS * THREADS % places.len() + thread;
                        let round = places[place].begun.fetch_add(1, Ordering::SeqCst) + 1;
                        guest.write(span(place).start, &stamp(round, span(place).len()));
                        places[place].done.store(round, Ordering::SeqCst);
                        let other = pick / 7 / THREADS * THREADS % places.len() + thread;
                        let found = value(&guest.read(span(other).start, span(other).len()));
                        assert_eq!(
                            found,
                            places[other].done.load(Ordering::SeqCst),
                            "place {other}"
                        );
                        // A quarter of the third chunk is its own: anything goes.
                        let from = thread * CHUNK / THREADS;
                        let at = from + pick % (CHUNK / THREADS - 3 * BLOCK);
                        let len = 1 + pick / 3 % (2 * BLOCK);
                        match pick % 3 {
                            0 => {
                                guest.write(2 * CHUNK + at, &noise(seed, len));
                                mine[at..at + len].copy_from_slice(&noise(seed, len));
                            }
                            1 => {
                                guest.erase(2 * CHUNK + at, len, true);
                                mine[at..at + len].fill(0);
                            }
                            _ => {
                                guest.erase(2 * CHUNK + at, len, false);
                                let (a, b) =
                                    (at.next_multiple_of(BLOCK), (at + len) / BLOCK * BLOCK);
                                if a < b {
                                    mine[a..b].fill(0);
                                }
                            }
                        }
                        let found = guest.read(2 * CHUNK + at, len);
                        assert!(found == mine[at..at + len], "thread {thread} at {at}");
                        count += 1;
                    }
                    count
                })
            })
            .collect();

        let ending = StopAtEnd(stop);
        let mut version = base.clone();
        let deadline = Instant::now() + Duration::from_secs(4);
        while Instant::now() < deadline {
            let before: Vec<u64> = places
                .iter()
                .map(|place| place.done.load(Ordering::SeqCst))
                .collect();
            let sealed = host.mirror.freeze().unwrap();
            let after: Vec<u64> = places
                .iter()
                .map(|place| place.begun.load(Ordering::SeqCst))
                .collect();
            let publish = commits % 4 != 3;
            let mut next = version.clone();
            for &chunk in sealed.chunks() {
                let at = usize::try_from(chunk).unwrap() * CHUNK;
                next[at..at + CHUNK].copy_from_slice(&sealed.read(chunk).unwrap());
                // Twice the same, however many wrote meanwhile.
                assert!(
                    sealed.read(chunk).unwrap() == next[at..at + CHUNK],
                    "chunk {chunk} changed"
                );
                if chunk != 0 || commits % 2 == 0 {
                    sealed.uploaded(chunk);
                }
            }
            for place in 0..places.len() {
                let found = value(&next[span(place)]);
                assert!(
                    (before[place]..=after[place]).contains(&found),
                    "place {place}: {found} not in {}..={}",
                    before[place],
                    after[place]
                );
            }
            if publish {
                sealed.publish();
                version = next;
            } else {
                sealed.abandon();
            }
            commits += 1;
        }
        drop(ending);
        writes = writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .sum();
    });
    println!(
        "{writes} rounds, {commits} commits, {} blocks saved",
        host.count("saved_blocks_total")
    );
    assert!(
        writes > 200 && commits > 5,
        "{writes} rounds, {commits} commits: too few to prove anything"
    );
}
