// SPDX-License-Identifier: Apache-2.0
//! Chunk objects: what is right is read, whatever is off is refused before it is decompressed.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use _mirror::error::Error;
use _mirror::object::{HEADER_BYTES, decode};
use common::{CHUNK, noise, object};
use proptest::prelude::*;

fn refused(object: &[u8]) -> bool {
    matches!(decode(object, CHUNK), Err(Error::Corrupt(_)))
}

/// The object with bytes replaced and its checksum made right again.
fn forged(object: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut forged = object.to_vec();
    forged[at..at + bytes.len()].copy_from_slice(bytes);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&forged[..16]);
    hasher.update(&forged[HEADER_BYTES..]);
    forged[16..24].copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    forged
}

#[test]
fn stored_and_compressed_contents_are_read_back() {
    for content in [noise(1, CHUNK), vec![7; CHUNK], vec![1]] {
        for compressed in [false, true] {
            assert_eq!(
                decode(&object(&content, compressed), CHUNK).unwrap(),
                content
            );
        }
    }
}

#[test]
fn a_content_larger_than_asked_for_is_refused() {
    let bomb = object(&vec![0; CHUNK + 1], true);
    assert!(bomb.len() < 1000);
    assert!(refused(&bomb));
    // One that says it is small and is not.
    assert!(refused(&forged(&bomb, 8, &100_u32.to_le_bytes())));
    // And one that says it is larger than it is.
    assert!(refused(&forged(
        &object(&[1; 100], true),
        8,
        &101_u32.to_le_bytes()
    )));
}

#[test]
fn what_a_reader_does_not_know_is_refused() {
    let good = object(&noise(1, 1000), false);
    assert!(!refused(&forged(&good, 0, b"LZIM")));
    for (at, bytes) in [
        (0, &b"LZIN"[..]),
        (4, &[2]),
        (5, &[2]),
        (6, &[3]),
        (7, &[2]),
        (24, &[1]),
        (31, &[1]),
    ] {
        assert!(refused(&forged(&good, at, bytes)), "byte {at}");
    }
}

#[test]
fn what_is_cut_off_or_goes_on_is_refused() {
    for compressed in [false, true] {
        let good = object(&vec![3; 1000], compressed);
        for len in 0..good.len() {
            assert!(refused(&good[..len]), "{len} bytes");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(refused(&longer));
    }
}

#[test]
fn two_zstd_frames_or_bytes_behind_one_are_refused() {
    let mut stored = zstd::bulk::compress(&[3; 1000], 1).unwrap();
    stored.extend(b"trailing");
    let mut object = object(&[3; 1000], true);
    object.truncate(HEADER_BYTES);
    object.extend(&stored);
    let len = u32::try_from(stored.len()).unwrap();
    assert!(refused(&forged(&object, 12, &len.to_le_bytes())));
}

#[test]
fn an_object_without_content_is_refused() {
    assert!(refused(&object(&[], false)));
    assert!(refused(&object(&[], true)));
}

/// The objects that Python reads and refuses are read and refused here.
#[test]
fn golden_objects_are_read_for_ever() {
    let golden =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/unit/lazyblob/golden");
    let mut count = 0;
    for line in std::fs::read_to_string(golden.join("digests.txt"))
        .unwrap()
        .lines()
    {
        let words: Vec<&str> = line.split(' ').collect();
        let [name, kind, scope, digest, len] = words[..] else {
            continue;
        };
        if name == "#" {
            continue;
        }
        let object = std::fs::read(golden.join(format!("{name}.object"))).unwrap();
        let content = std::fs::read(golden.join(format!("{name}.content"))).unwrap();
        assert_eq!(decode(&object, CHUNK).unwrap(), content, "{name}");
        assert_eq!(content.len().to_string(), len);
        assert_eq!(object[6].to_string(), kind);
        let what = ["chunk", "node", "descriptor"][usize::from(object[6])];
        let key = blake3::derive_key(&format!("lazyimage 2026 {what} v1"), scope.as_bytes());
        assert_eq!(
            blake3::keyed_hash(&key, &content).to_hex().as_str(),
            digest,
            "{name}"
        );
        count += 1;
    }
    assert!(count >= 8);
    let mut count = 0;
    for entry in std::fs::read_dir(golden.join("refused")).unwrap() {
        let path = entry.unwrap().path();
        let object = std::fs::read(&path).unwrap();
        // A kind that is known but not expected is the caller's to refuse.
        let wrong_kind = decode(&object, 4096).is_ok() && object[6] != 0;
        assert!(
            wrong_kind || decode(&object, 4096).is_err(),
            "{}",
            path.display()
        );
        count += 1;
    }
    assert!(count >= 19);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_changed_byte_is_noticed(at in 0_usize..1032, bit in 0..8_u32, compressed in any::<bool>()) {
        let mut bytes = object(&noise(2, 1000), compressed);
        let at = at % bytes.len();
        bytes[at] ^= 1_u8 << bit;
        prop_assert!(refused(&bytes));
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), sealed in any::<bool>()) {
        let mut bytes = bytes;
        if sealed && bytes.len() > HEADER_BYTES {
            bytes[..6].copy_from_slice(b"LZIM\x01\x01");
            let stored = u32::try_from(bytes.len() - HEADER_BYTES).unwrap();
            bytes = forged(&bytes, 12, &stored.to_le_bytes());
        }
        let _ = decode(&bytes, CHUNK);
    }
}
