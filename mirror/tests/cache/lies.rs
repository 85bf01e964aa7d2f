// SPDX-License-Identifier: Apache-2.0
//! Stores that lie.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use _mirror::engine::{Digest, Fetch, FetchFailure};
use _mirror::event::Value;

use crate::common::{CHUNK, Store, digest_of, noise, object};
use crate::fleet::{Dice, Fleet, text};

/// What a store may answer instead of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    None,
    OtherBody,
    FlippedBit,
    Truncated,
    TooLong,
    Bomb,
    HiddenBomb,
    HeaderOfAnother,
    Empty,
    NotFound,
    Away,
}

const LIES: [Lie; 11] = [
    Lie::None,
    Lie::OtherBody,
    Lie::FlippedBit,
    Lie::Truncated,
    Lie::TooLong,
    Lie::Bomb,
    Lie::HiddenBomb,
    Lie::HeaderOfAnother,
    Lie::Empty,
    Lie::NotFound,
    Lie::Away,
];

/// Far more zeros than a chunk has, in an object whose header says that they are a chunk; the
/// frame's own header, too, if it is hidden.
fn bomb(hidden: bool) -> Vec<u8> {
    let size = u32::try_from(64 << 20).unwrap();
    let mut object = object(&vec![0; size as usize], true);
    let told = u32::try_from(CHUNK).unwrap().to_le_bytes();
    object[8..12].copy_from_slice(&told);
    if hidden {
        // Its last field: behind magic, descriptor and window's size, if it has one.
        let frame = &mut object[32..];
        let at = (4..10)
            .find(|&at| frame[at..at + 4] == size.to_le_bytes())
            .unwrap();
        frame[at..at + 4].copy_from_slice(&told);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&object[..16]).update(&object[32..]);
    object[16..24].copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    object
}

fn lied(store: &Store, digest: &Digest, lie: Lie, bombs: &[Vec<u8>; 2], roll: usize) -> Vec<u8> {
    let right = &store.objects[digest];
    let other = store.objects.iter().find(|(d, _)| *d != digest).unwrap().1;
    match lie {
        Lie::OtherBody => other.clone(),
        Lie::FlippedBit => {
            let mut wrong = right.clone();
            wrong[roll % right.len()] ^= 1 << (roll % 8);
            wrong
        }
        Lie::Truncated => right[..roll % right.len()].to_vec(),
        Lie::TooLong => [right.as_slice(), &[0; 512]].concat(),
        Lie::Bomb => bombs[0].clone(),
        Lie::HiddenBomb => bombs[1].clone(),
        Lie::HeaderOfAnother => [&right[..32], &other[32..]].concat(),
        Lie::Empty => Vec::new(),
        Lie::None | Lie::NotFound | Lie::Away => right.clone(),
    }
}

#[test]
fn a_store_that_lies_is_refused_counted_told_and_never_served() {
    const CHUNKS: usize = 24;
    let fleet = Fleet::new(6);
    let base = noise(13, CHUNKS * CHUNK);
    let mut store = Store::default();
    let leaves = store.put(&base);
    let mirror = fleet.attach("server", &leaves, base.len());
    let bombs = [bomb(false), bomb(true)];
    let seed = std::env::var("LAZYIMAGE_SEED").map_or(20_26, |seed| seed.parse().unwrap());
    println!("LAZYIMAGE_SEED={seed}");
    let mut dice = Dice(seed);
    let mut told = HashSet::new();
    let mut refused = 0_u64;
    let mut lost = 0;
    // Definite answers in a row, by chunk: the second ends the wait.
    let mut definite: HashMap<Digest, usize> = HashMap::new();
    let mut alarms = 0;
    for round in 0..12 {
        // Many at once: each lie costs a pause before the next look.
        let mut waiting = HashMap::new();
        for chunk in (0..CHUNKS).filter(|chunk| (chunk + round) % 2 == 0) {
            let at = chunk * CHUNK + dice.roll(CHUNK - 100);
            match fleet.start(&mirror, at, 100) {
                Ok(bytes) => assert!(bytes == base[at..at + 100], "round {round}"),
                Err(ticket) => drop(waiting.insert(ticket, (chunk, at))),
            }
        }
        while !waiting.is_empty() {
            let fetch = fleet.engine.next_fetch(true, Duration::from_millis(5));
            if let Some(Fetch { digest, .. }) = fetch {
                let lie = LIES[dice.roll(LIES.len())];
                told.insert(lie as usize);
                let failure = match lie {
                    Lie::Away => Some(FetchFailure::Transport),
                    Lie::NotFound => Some(FetchFailure::Missing),
                    lie => {
                        let object = lied(&store, &digest, lie, &bombs, dice.roll(1 << 30));
                        let result = fleet.engine.fetched(&digest, &object);
                        assert_eq!(result.is_ok(), lie == Lie::None, "{lie:?}: {result:?}");
                        refused += u64::from(result.is_err());
                        result.is_err().then_some(FetchFailure::Corrupt)
                    }
                };
                if let Some(failure) = failure {
                    if failure != FetchFailure::Transport {
                        *definite.entry(digest).or_default() += 1;
                    }
                    fleet.engine.fetch_failed(&digest, failure, "told to");
                }
            }
            waiting.retain(|&ticket, &mut (chunk, at)| {
                let Some(answer) = fleet.notes.take(ticket) else {
                    return true;
                };
                let count = definite.remove(&digest_of(&base[chunk * CHUNK..][..CHUNK]));
                match answer {
                    Ok(bytes) => {
                        assert!(bytes == base[at..at + 100], "round {round}");
                        assert!(count.unwrap_or(0) < 2, "round {round}");
                    }
                    Err(errno) => {
                        assert_eq!((errno, count), (libc::EIO, Some(2)), "round {round}");
                        lost += 1;
                    }
                }
                false
            });
            while let Some(event) = fleet.engine.events().next(Duration::ZERO) {
                let source = event.fields.iter().find(|(name, _)| *name == "source");
                if source.is_some_and(|(_, value)| *value == Value::Text("store".to_owned())) {
                    alarms += 1;
                    assert_eq!(text(&event, "digest").len(), 64);
                }
            }
        }
    }
    assert_eq!(told.len(), LIES.len(), "a lie was not told");
    assert_eq!(fleet.count("store_refused_total"), refused);
    assert_eq!(fleet.count("fetches_lost_total"), lost);
    assert!(lost > 0 && refused > 50, "{lost} lost, {refused} refused");
    assert!((1..=10).contains(&alarms), "{alarms} alarms a minute");
}
