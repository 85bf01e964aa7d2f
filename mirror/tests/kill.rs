// SPDX-License-Identifier: Apache-2.0
//! `kill -9` of a process that writes: every write that it was told is done is there afterwards,
//! and none is half there.
//!
//! The test starts itself as a child that overwrites random runs of blocks with stamps, and notes
//! each acknowledged stamp in a file that outlives it (a write to a pipe or a file is the kernel's
//! once it returns). The parent kills it at random moments, opens the mirror again and compares.

#![allow(clippy::unwrap_used, reason = "test code")]

mod common;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use _mirror::disk::{Answer, Disk, Door};
use _mirror::engine::OnFull;
use common::{BLOCK, Host, Notes, Store, attach_options, directory, noise, open_engine};

const BLOCKS: u64 = 2048;
const SIZE: u64 = BLOCKS * BLOCK as u64;
const WRITERS: u64 = 3;

fn base() -> Vec<u8> {
    noise(5, 2048 * BLOCK)
}

fn stamp(block: u64, round: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(BLOCK);
    while bytes.len() < BLOCK {
        bytes.extend(block.to_le_bytes());
        bytes.extend(round.to_le_bytes());
    }
    bytes
}

/// The child: each writer owns every third block, writes stamps for ever, and says what is done.
fn write_until_killed(directory: &std::path::Path, first_round: u64) {
    let engine = open_engine(directory, 64 << 20, OnFull::Hold);
    let mut store = Store::default();
    let leaves = store.put(&base());
    let mirror = engine
        .attach(attach_options(directory, SIZE, &leaves, false))
        .unwrap();
    let notes = Arc::new(Notes::default());
    let fetching = engine.clone();
    std::thread::spawn(move || {
        loop {
            if let Some(fetch) = fetching.next_fetch(false, Duration::from_secs(1)) {
                store.serve(&fetching, &fetch);
            }
        }
    });
    let freezing = mirror.clone();
    std::thread::spawn(move || {
        loop {
            // A COMMIT under way at the kill must change nothing.
            let sealed = freezing.freeze().unwrap();
            for &chunk in sealed.chunks() {
                sealed.read(chunk).unwrap();
                sealed.uploaded(chunk);
            }
            sealed.publish();
        }
    });
    let writers: Vec<_> = (0..WRITERS)
        .map(|writer| {
            let (mirror, notes) = (mirror.clone(), notes.clone());
            std::thread::spawn(move || {
                let door: Arc<dyn Door> = notes.clone();
                for round in first_round.. {
                    let block = (round.wrapping_mul(2_654_435_761) >> 7) % (BLOCKS / WRITERS)
                        * WRITERS
                        + writer;
                    let bytes = stamp(block, round);
                    // Every fourth in two parts, which have to be filled in.
                    let cut = if round % 4 == 0 { 1000 } else { 0 };
                    let parts = [0..cut, cut..BLOCK];
                    for part in parts.into_iter().filter(|part| !part.is_empty()) {
                        let at = block * BLOCK as u64 + part.start as u64;
                        let ticket = round * WRITERS + writer;
                        match mirror.write(&door, ticket, at, &bytes[part], false) {
                            Answer::Done => {}
                            Answer::Parked => drop(notes.wait(ticket).unwrap()),
                            Answer::Failed(errno) => panic!("{errno}"),
                        }
                    }
                    let line = format!("{block} {round}\n");
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            })
        })
        .collect();
    for writer in writers {
        writer.join().unwrap();
    }
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    if let Ok(directory) = std::env::var("MIRROR_KILL_CHILD") {
        let round = std::env::var("MIRROR_KILL_ROUND").unwrap().parse().unwrap();
        return write_until_killed(directory.as_ref(), round);
    }
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    let mut host = Host::with(directory(), &base(), SIZE, 64 << 20, OnFull::Hold);
    host.engine.stop().unwrap();
    let mut acknowledged: HashMap<u64, u64> = HashMap::new();
    let mut next_round = 1;
    for kill in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "what_was_acknowledged_survives_kill_9",
                "--nocapture",
                "--quiet",
            ])
            .env("MIRROR_KILL_CHILD", host.directory.path())
            .env("MIRROR_KILL_ROUND", next_round.to_string())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // It runs for at least some writes, then until a moment that nobody chose.
        let mut answered = 0;
        let deadline =
            Instant::now() + Duration::from_millis(100 + u64::from(noise(seed + kill, 1)[0]) * 2);
        let mut killed = false;
        while let Some(Ok(line)) = lines.next() {
            let mut words = line.split(' ').map(str::parse::<u64>);
            if let (Some(Ok(block)), Some(Ok(round))) = (words.next(), words.next()) {
                acknowledged
                    .entry(block)
                    .and_modify(|old| *old = round.max(*old))
                    .or_insert(round);
                next_round = next_round.max(round + 1);
                answered += 1;
            }
            if !killed && answered > 50 && Instant::now() > deadline {
                child.kill().unwrap();
                killed = true;
            }
        }
        child.wait().unwrap();
        assert!(killed && answered > 50, "the child ended by itself");

        host.open_again();
        let found = host.read(0, base().len()).unwrap();
        let base = base();
        for block in 0..BLOCKS {
            let at = usize::try_from(block).unwrap() * BLOCK;
            let content = &found[at..at + BLOCK];
            let mut round = [0; 8];
            round.copy_from_slice(&content[BLOCK - 8..]);
            let round = u64::from_le_bytes(round);
            let known = acknowledged.get(&block).copied();
            let is_base = content == &base[at..at + BLOCK];
            assert!(
                !(is_base && known.is_some()),
                "block {block} lost all its writes"
            );
            if is_base {
                continue;
            }
            // The last one may have been done and not said; a write in two parts, half done.
            let head = stamp(block, known.unwrap_or(0));
            let whole = content == stamp(block, round);
            let half =
                content[1000..] == head[1000..] || content[1000..] == base[at + 1000..at + BLOCK];
            assert!(
                whole && known.is_none_or(|known| round >= known) || half,
                "block {block}: round {round}, acknowledged {known:?}"
            );
            if whole {
                acknowledged.insert(block, round);
            }
        }
        // Whatever was frozen is dirty, and everything local has been since the last publish.
        assert!(host.count("local_bytes") >= acknowledged.len() as u64 * BLOCK as u64);
        host.engine.forget_as_if_killed();
    }
    assert!(
        acknowledged.len() > 100,
        "only {} blocks were written",
        acknowledged.len()
    );
}
