// SPDX-License-Identifier: Apache-2.0
//! What the engine adds to a system call: 4 KiB at random places of a local and of a cached disk,
//! against `pread` and `pwrite` of the plain files, in turns. `engine_speed DIRECTORY`.

#![allow(clippy::unwrap_used, reason = "a measurement")]

use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::Arc;
use std::time::{Duration, Instant};

use _mirror::disk::{Answer, Disk, Door, Errno, Ticket};
use _mirror::engine::{AttachOptions, Engine, EngineOptions, OnFull};

const SIZE: usize = 256 << 20;
const CHUNK: usize = 512 << 10;
const OPERATIONS: usize = 20_000;
const ROUNDS: usize = 7;

struct Nobody;
impl Door for Nobody {
    fn complete(&self, _: Ticket, _: Result<&[u8], Errno>) {}
}

#[repr(align(4096))]
struct Page([u8; 4096]);

fn measure(mut work: impl FnMut(u64)) -> f64 {
    let mut seed = 7_u64;
    let begun = Instant::now();
    for _ in 0..OPERATIONS {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        work((seed >> 20) % (SIZE as u64 / 4096) * 4096);
    }
    begun.elapsed().as_secs_f64() * 1e9 / f64::from(u32::try_from(OPERATIONS).unwrap())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let directory = std::path::PathBuf::from(std::env::args().nth(1).expect("a directory"));
    let key = [1; 32];
    let mut leaves = vec![(0, vec![0; 8192]), (1, vec![0; 8192])];
    let mut objects = std::collections::HashMap::new();
    for chunk in 0..SIZE / CHUNK {
        let content: Vec<u8> = (chunk as u64 + 1).to_le_bytes().repeat(CHUNK / 8);
        let digest = *blake3::keyed_hash(&key, &content).as_bytes();
        leaves[chunk / 256].1[chunk % 256 * 32..][..32].copy_from_slice(&digest);
        let stored = zstd::bulk::compress(&content, 1).unwrap();
        let mut object = b"LZIM\x01\x01\0\0".to_vec();
        object.extend(u32::try_from(CHUNK).unwrap().to_le_bytes());
        object.extend(u32::try_from(stored.len()).unwrap().to_le_bytes());
        let mut hasher = blake3::Hasher::new();
        hasher.update(&object).update(&stored);
        object.extend(&hasher.finalize().as_bytes()[..8]);
        object.extend([0; 8]);
        object.extend(stored);
        objects.insert(digest, object);
    }
    let engine = Engine::open(EngineOptions {
        cache_directory: directory.join("cache"),
        cache_bytes: 1 << 30,
        cache_reserve_bytes: 0,
        scrub_bytes_per_second: 0,
        session_id: String::new(),
        threads: 2,
        fetch_timeout: None,
        on_full: OnFull::Hold,
    })
    .unwrap();
    let attach = |disk: &str| {
        engine
            .attach(AttachOptions {
                instance: "i".to_owned(),
                disk: disk.to_owned(),
                attach_id: disk.to_owned(),
                directory: directory.join(disk),
                live_map: directory.join(format!("{disk}.live")),
                size_bytes: SIZE as u64,
                chunk_size_bytes: CHUNK as u64,
                chunk_key: key,
                leaves: leaves.clone(),
                create: true,
            })
            .unwrap()
    };
    let (local, cached) = (attach("local"), attach("cached"));
    let door: Arc<dyn Door> = Arc::new(Nobody);
    let mut page = Box::new(Page([5; 4096]));
    for at in (0..SIZE as u64).step_by(4096) {
        assert_eq!(local.write(&door, 0, at, &page.0, false), Answer::Done);
    }
    for chunk in 0..SIZE / CHUNK {
        let _ = cached.read(&door, 0, (chunk * CHUNK) as u64, &mut page.0);
        while let Some(fetch) = engine.next_fetch(false, Duration::ZERO) {
            engine
                .fetched(&fetch.digest, &objects[&fetch.digest])
                .unwrap();
        }
    }
    for at in (0..SIZE as u64).step_by(4096) {
        assert_eq!(cached.read(&door, 0, at, &mut page.0), Answer::Done);
    }
    let open = |name: &str, flags| {
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(directory.join(name))
            .unwrap()
    };
    let delta = open("local/delta", libc::O_DIRECT);
    let slab = open(&format!("cache/slab-{CHUNK}"), 0);
    let mut figures = vec![Vec::new(); 6];
    for _ in 0..ROUNDS {
        figures[0].push(measure(|at| delta.read_exact_at(&mut page.0, at).unwrap()));
        figures[1].push(measure(|at| {
            assert_eq!(local.read(&door, 0, at, &mut page.0), Answer::Done);
        }));
        figures[2].push(measure(|at| delta.write_all_at(&page.0, at).unwrap()));
        figures[3].push(measure(|at| {
            assert_eq!(local.write(&door, 0, at, &page.0, false), Answer::Done);
        }));
        figures[4].push(measure(|at| slab.read_exact_at(&mut page.0, at).unwrap()));
        figures[5].push(measure(|at| {
            assert_eq!(cached.read(&door, 0, at, &mut page.0), Answer::Done);
        }));
    }
    let names = ["read the delta", "write the delta", "read the cache"];
    for (name, pair) in names.iter().zip(figures.chunks(2)) {
        let (plain, engine) = (median(pair[0].clone()), median(pair[1].clone()));
        println!(
            "{name:16} plain {plain:8.0} ns   engine {engine:8.0} ns   ratio {:.3}",
            plain / engine
        );
    }
    engine.stop().unwrap();
}
