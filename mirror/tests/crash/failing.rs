// SPDX-License-Identifier: Apache-2.0
//! Each call of a run fails once, its n-th for all n: with ENOSPC it finds no room until there is
//! some, with EIO the disk is bad, and a write leaves its first half.

use std::collections::BTreeMap;
use std::sync::Arc;

use _mirror::faults::Failure;

use crate::common::{BLOCK, fast_directory};
use crate::image::{Choice, Replay};
use crate::power::Recovery;
use crate::world::{Guest, Random, Step, World};

/// Everything but ends.
fn script() -> Vec<Step> {
    use Guest::{Discard, Flush, Write, Zero};
    const B: usize = BLOCK;
    let guest = Step::Guest;
    vec![
        guest(Write(0, 2 * B, false)),
        guest(Write(16381 * B, 6 * B, false)),
        guest(Flush),
        guest(Write(2 * B + 700, B, false)),
        guest(Discard(B, B)),
        guest(Zero(16382 * B + 100, 2 * B)),
        guest(Flush),
        guest(Write(0, B, true)),
        Step::Freeze,
        guest(Write(0, B, false)),
        guest(Write(16385 * B, B, false)),
        guest(Discard(16381 * B, B)),
        guest(Flush),
        Step::Upload,
        guest(Write(3 * B, B, false)),
        Step::Publish,
        Step::Grow,
        guest(Write(33028 * B, 3 * B, false)),
        guest(Write(0, B, false)),
        Step::Hold,
        Step::Seal,
        guest(Write(0, 4 * B, false)),
        Step::Publish,
        guest(Write(0, B, false)),
        guest(Flush),
        guest(Write(64 * B, B, false)),
    ]
}

fn is_flush(step: &Step) -> bool {
    matches!(
        step,
        Step::Freeze | Step::Seal | Step::Guest(Guest::Flush | Guest::Write(_, _, true))
    )
}

/// What a step may answer after this failure; `stuck`: a sync of the disk failed before.
fn may_answer(failure: &Failure, step: &Step, stuck: bool, result: Result<(), i32>) -> bool {
    let Err(errno) = result else {
        return !(stuck && is_flush(step));
    };
    let of_commit = matches!(
        step,
        Step::Freeze | Step::Hold | Step::Seal | Step::Upload | Step::Publish
    );
    errno == failure.errno
        && match failure.name.as_str() {
            // Held until there is room, or the guest is told.
            "delta.write" | "delta.punch" => {
                errno == libc::EIO && matches!(step, Step::Guest(_)) && !is_flush(step)
                    || matches!(step, Step::Guest(Guest::Write(_, _, true)))
            }
            "delta.read" => errno == libc::EIO && (matches!(step, Step::Guest(_)) || of_commit),
            // A COMMIT is given up, never a guest's write.
            "saved.write" | "saved.read" | "saved.arrived" | "saved.resize" => of_commit,
            "saved.punch" => false,
            "delta.sync" | "map.sync" => is_flush(step) || matches!(step, Step::Grow),
            "map.page" => is_flush(step),
            "delta.resize" | "map.extend" | "live.extend" | "map.header" => {
                matches!(step, Step::Grow)
            }
            name => panic!("{name} is not expected to fail"),
        }
}

fn run_with(failure: &Failure, recovery: &mut Recovery) {
    println!("{failure:?}");
    let mut world = World::new(Arc::new(fast_directory()), failure.nth << 8);
    let watch = world.shared.watch.clone();
    watch.fail(failure.clone());
    let mut stuck = false;
    for step in script() {
        let result = world.run(&step);
        assert!(
            may_answer(failure, &step, stuck, result),
            "{failure:?}: {step:?} answered {result:?}, stuck: {stuck}"
        );
        if result.is_err() && is_flush(&step) {
            let syncs = ["delta.sync", "map.page", "map.sync"];
            stuck |= syncs.contains(&failure.name.as_str());
        }
        if result.is_err() && matches!(step, Step::Grow) {
            watch.mend();
            stuck |= failure.name == "delta.sync";
            world.run(&Step::Grow).unwrap();
        }
        if failure.name != "delta.read" {
            world.check();
        }
    }
    assert!(watch.passed().1 > 0, "{failure:?}: nothing failed");
    watch.mend();
    world.settle();
    world.check();
    // What stuck sticks, and everything else works again.
    assert_eq!(world.run(&Step::Guest(Guest::Flush)).is_err(), stuck);
    world.run(&Step::Abandon).unwrap();
    world.run(&Step::Kill).unwrap();
    let durable = Step::Guest(Guest::Write(5 * BLOCK, BLOCK, true));
    if stuck {
        // For a successor, too.
        assert_eq!(world.run(&durable), Err(failure.errno));
    } else {
        world.check_with_dirt();
        world.run(&durable).unwrap();
    }
    world.check();
    world.end();
    let at = watch.log().len();
    let model = world.shared.model().clone();

    let mut replay = Replay::default();
    for (at, entry) in watch.log()[..at].iter().enumerate() {
        replay.take(at, entry);
    }
    let none = vec![Choice::Nothing; replay.pending.len()];
    recovery.check(&replay.image(&none), &model, at);
    let mut random = Random(failure.nth);
    for _ in 0..3 {
        recovery.check(&replay.image(&replay.any(&mut random)), &model, at);
    }
}

#[test]
fn each_call_that_fails_loses_nothing_that_was_flushed() {
    let mut world = World::new(Arc::new(fast_directory()), 0);
    let before = world.shared.watch.counts();
    for step in script() {
        world.run(&step).unwrap();
        world.check();
    }
    let counts: BTreeMap<String, u64> = world.shared.watch.counts().into_iter().collect();
    let mut recovery = Recovery::new();
    let mut runs = 0;
    for (name, count) in counts {
        // The attachment's own calls are over when counting begins.
        let count = count - before.get(&name).copied().unwrap_or(0);
        // Reads of the test are too many; of each kind of reader the first ones will do.
        let count = if name == "delta.read" {
            count.min(9)
        } else {
            count
        };
        for nth in 1..=count {
            for errno in [libc::EIO, libc::ENOSPC] {
                if errno == libc::ENOSPC && name.contains(".read") {
                    continue;
                }
                runs += 1;
                let failure = Failure {
                    name: name.clone(),
                    nth,
                    errno,
                    lasting: errno == libc::ENOSPC,
                    half: true,
                };
                run_with(&failure, &mut recovery);
            }
        }
    }
    println!("{runs} runs, {} images", recovery.images);
    assert!(runs > 100, "only {runs} runs");
}
