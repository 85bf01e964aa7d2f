// SPDX-License-Identifier: Apache-2.0
//! Power loss: every image that it may leave of a run is recovered and compared with what was
//! flushed.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use _mirror::engine::Engine;
use _mirror::faults::{Entry, Watch};

use crate::common::{BLOCK, fast_directory};
use crate::image::{Choice, Images, Replay};
use crate::model::{Content, Model};
use crate::world::{Guest, Random, Shared, Step, World, assert_dirty, engine, options, read_runs};

/// Calls that may all be undecided at once and whose every choice is looked at.
const WINDOW: usize = 8;

/// Recovers images.
pub struct Recovery {
    directory: Arc<tempfile::TempDir>,
    engine: Arc<Engine>,
    pub images: usize,
}

impl Recovery {
    pub fn new() -> Self {
        let directory = Arc::new(fast_directory());
        Self {
            engine: engine(directory.path()),
            directory,
            images: 0,
        }
    }

    /// Attaches an image as after a boot, checks it, and answers what it holds.
    pub fn check(&mut self, images: &Images, model: &Model, at: usize) -> Content {
        self.images += 1;
        let place: PathBuf = self.directory.path().join(self.images.to_string());
        images.write(&place);
        let size = match model.growth {
            // Cut short: the journal may name the one or the other.
            Some((old, begin, over)) if over.is_none_or(|over| at < over) => {
                if at < begin || self.images % 2 == 0 {
                    old
                } else {
                    old + crate::world::GROWTH
                }
            }
            _ => model.size,
        };
        let mut options = options(&place, size, false);
        options.instance = self.images.to_string();
        let mirror = self.engine.attach(options).unwrap();
        let disk = read_runs(&self.engine, &mirror).unwrap();
        model.check(&disk, size, model.power_lost(at));
        let sealed = mirror.freeze().unwrap();
        assert_dirty(&model.owed(&disk, at), sealed.chunks());
        drop(sealed);
        self.engine
            .detach(&self.images.to_string(), "disk")
            .unwrap();
        std::fs::remove_dir_all(&place).unwrap();
        disk
    }
}

/// What choices to look at: all of a window, or some of them, and tears.
fn choices(replay: &Replay, fresh: bool, random: &mut Random) -> Vec<Vec<Choice>> {
    let count = replay.pending.len();
    let window = count.min(WINDOW);
    let mut found = Vec::new();
    for subset in 0..1_usize << window {
        // The newest call is in all of them: without it the image was looked at before.
        if fresh && subset >> (window - 1) & 1 == 0 {
            continue;
        }
        let choice = |call: usize| match call.checked_sub(count - window) {
            Some(bit) if subset >> bit & 1 == 0 => Choice::Nothing,
            _ => Choice::All,
        };
        found.push((0..count).map(choice).collect());
    }
    if fresh {
        // The newest alone in part, whatever else is there.
        for _ in 0..3 {
            let mut choices = replay.any(random);
            choices[count - 1] = Choice::Torn(random.next());
            found.push(choices);
        }
    }
    let samples = if count > WINDOW { 32 } else { 3 };
    found.extend((0..samples).map(|_| replay.any(random)));
    found
}

/// Looks at every image that a power loss may leave of a run.
pub fn check_all(
    recovery: &mut Recovery,
    start: Option<&Images>,
    log: &[Entry],
    model: &Model,
    random: &mut Random,
) {
    // A disk that is still being made is another test's.
    let made = if start.is_some() {
        0
    } else {
        log.iter()
            .position(|entry| matches!(entry, Entry::Mark))
            .unwrap()
    };
    let mut replay = Replay::new(start.unwrap_or(&Images::default()));
    let mut seen = None;
    for (at, entry) in log.iter().enumerate() {
        let fresh = replay.take(at, entry);
        let bound = (model.power_lost(at).flushed, model.parents.len());
        let tighter = matches!(entry, Entry::Mark) && seen.is_some_and(|seen| seen != bound);
        if at >= made && (fresh || tighter) {
            for choices in choices(&replay, fresh, random) {
                recovery.check(&replay.image(&choices), model, at);
            }
        }
        seen = Some(bound);
    }
}

type Next = Box<dyn FnMut() -> Option<(Guest, u64)> + Send>;

/// Another thread's requests, in the middle of the disk's own steps, when `when` names one.
pub fn intrude(world: &World, mut when: impl FnMut() -> Option<Guest> + Send + 'static) {
    let (hand_over, receive) = mpsc::sync_channel::<(Guest, u64, mpsc::Sender<()>)>(0);
    let shared: Arc<Shared> = world.shared.clone();
    let mirror = Arc::downgrade(&world.mirror);
    std::thread::Builder::new()
        .name("intruder".to_owned())
        .spawn(move || {
            while let Ok((guest, seed, done)) = receive.recv() {
                let Some(mirror) = mirror.upgrade() else {
                    return;
                };
                shared.issue(&mirror, &guest, seed);
                let _ = done.send(());
            }
        })
        .unwrap();
    let mut seed = 1 << 40;
    let next: Mutex<Next> = Mutex::new(Box::new(move || {
        seed += 1;
        when().map(|guest| (guest, seed))
    }));
    world.shared.watch.act(move |_| {
        if std::thread::current().name() == Some("intruder") {
            return;
        }
        let Some((guest, seed)) = (next.lock().unwrap())() else {
            return;
        };
        // It may have to wait for the very step that it came at.
        let (done, over) = mpsc::channel();
        if hand_over.try_send((guest, seed, done)).is_ok() {
            let _ = over.recv_timeout(Duration::from_millis(1));
        }
    });
}

/// One of everything, with a write in everything's way.
pub fn script() -> Vec<Step> {
    use Guest::{Discard, Flush, Write, Zero};
    const B: usize = 4096;
    let end = crate::world::SIZE;
    let guest = Step::Guest;
    vec![
        guest(Write(0, 2 * B, false)),
        guest(Write(16381 * B, 6 * B, false)),
        guest(Write(62 * B, B, true)),
        guest(Write(2 * B + 700, B, false)),
        guest(Write(3 * B, B, false)),
        guest(Flush),
        guest(Write(3 * B, B, false)),
        guest(Discard(B, 2 * B)),
        guest(Zero(16383 * B + 100, B)),
        guest(Write(end - 3000, 3000, false)),
        Step::Freeze,
        guest(Write(3 * B, B, false)),
        guest(Write(4 * B, B, false)),
        guest(Discard(16382 * B, B)),
        guest(Flush),
        Step::Upload,
        guest(Write(16385 * B + 5, 10, false)),
        guest(Zero(0, B)),
        Step::Publish,
        guest(Write(5 * B, B, false)),
        Step::Kill,
        guest(Write(5 * B, B, false)),
        guest(Flush),
        guest(Write(64 * B, B, false)),
        Step::Kill,
        guest(Flush),
        guest(Write(66 * B, B, false)),
        Step::Grow,
        guest(Write(end - 50, 4000, false)),
        guest(Write(end + crate::world::GROWTH - 5000, 5000, false)),
        guest(Write(3 * B, B, false)),
        Step::Stop,
        guest(Write(3 * B, B, false)),
        guest(Flush),
        Step::Freeze,
        guest(Write(3 * B, 2 * B, false)),
        Step::Abandon,
        guest(Write(0, B, false)),
        Step::Freeze,
        Step::Publish,
        guest(Write(65 * B, B, false)),
        guest(Flush),
        Step::Hold,
        guest(Flush),
        Step::Thaw,
        Step::Expire,
        Step::Hold,
        guest(Flush),
        Step::Seal,
        guest(Write(65 * B, B, false)),
        Step::Publish,
        Step::Hold,
        guest(Flush),
        Step::Kill,
        Step::Hold,
        Step::Stop,
        guest(Write(65 * B, B, false)),
        guest(Discard(65 * B, B)),
        guest(Flush),
        Step::Stop,
        guest(Flush),
    ]
}

fn random_step(random: &mut Random, size: usize) -> Step {
    match random.below(24) {
        0..16 => Step::Guest(Guest::random(random, size)),
        16 => Step::Guest(Guest::Flush),
        17 if random.below(2) == 0 => Step::Freeze,
        17 => Step::Apart,
        18 => Step::Upload,
        19 => Step::Publish,
        20 => Step::Abandon,
        21 => Step::Grow,
        22 => Step::Kill,
        _ => Step::Stop,
    }
}

/// How long a run of `make soak` takes; `None` for every change.
pub fn soak() -> Option<Duration> {
    std::env::var("LAZYIMAGE_SOAK").ok()?;
    let seconds = std::env::var("LAZYIMAGE_SOAK_SECONDS").ok();
    let seconds = seconds.and_then(|n| n.parse().ok()).unwrap_or(600);
    Some(Duration::from_secs(seconds))
}

#[test]
fn power_lost_at_every_step_of_a_life() {
    let mut recovery = Recovery::new();
    let mut world = World::new(Arc::new(fast_directory()), 0);
    for step in script() {
        world.run(&step).unwrap();
        world.settle();
        world.check();
    }
    world.check_with_dirt();
    let model = world.shared.model().clone();
    let log = world.shared.watch.log();
    assert!(model.parents.len() == 4 && model.growth.is_some());
    let mut random = Random(1);
    check_all(&mut recovery, None, &log, &model, &mut random);
    println!("{} images", recovery.images);
    assert!(recovery.images > 400, "only {} images", recovery.images);
}

/// Some steps of a life with two guests, the images of all its moments, and one of them to go on.
fn live(
    recovery: &mut Recovery,
    world: &mut World,
    start: Option<&Images>,
    random: &mut Random,
) -> (Images, Model) {
    for _ in 0..12 {
        let size = world.shared.model().size;
        let mut other = Random(random.next());
        intrude(world, move || {
            (other.below(8) == 0).then(|| Guest::random(&mut other, size))
        });
        let step = random_step(random, size);
        // A stop refuses what comes too late; an errno of anything else shows in the content.
        let _ = world.run(&step);
        world.shared.watch.rest();
        world.settle();
        world.check();
    }
    world.end();
    let model = world.shared.model().clone();
    let log = world.shared.watch.log();
    check_all(recovery, start, &log, &model, random);

    let mut replay = Replay::new(start.unwrap_or(&Images::default()));
    for (at, entry) in log.iter().enumerate() {
        replay.take(at, entry);
    }
    let last = replay.image(&replay.any(random));
    let disk = recovery.check(&last, &model, log.len());
    let parent = model.parent(log.len()).clone();
    (last.settled(), Model::new(model.size, disk, parent))
}

#[test]
fn power_lost_at_any_step_of_any_lives() {
    let first = u64::from(std::process::id()) << 20;
    let mut recovery = Recovery::new();
    let begun = Instant::now();
    for seed in first.. {
        if soak().map_or(seed >= first + 10, |long| begun.elapsed() > long) {
            break;
        }
        println!("seed {seed}");
        let mut random = Random(seed);
        let mut world = World::new(Arc::new(fast_directory()), random.next() >> 1);
        let (mut image, mut model) = live(&mut recovery, &mut world, None, &mut random);
        for _ in 0..2 {
            drop(world);
            let directory = Arc::new(fast_directory());
            image.write(directory.path());
            let watch = Watch::new(directory.path());
            world = World::with(directory, watch, model, random.next() >> 1, false);
            (image, model) = live(&mut recovery, &mut world, Some(&image), &mut random);
        }
    }
    println!("{} images", recovery.images);
    assert!(recovery.images > 1000, "only {} images", recovery.images);
}

/// A request of another thread at each step of some, and all images after a flush that follows.
fn at_every_step(steps: &[Guest], intruder: &Guest) {
    let mut recovery = Recovery::new();
    for nth in 0.. {
        let mut world = World::new(Arc::new(fast_directory()), nth << 8);
        let (left, reached) = (Arc::new(Mutex::new(nth)), Arc::new(Mutex::new(false)));
        let (count, seen, guest) = (left.clone(), reached.clone(), intruder.clone());
        intrude(&world, move || {
            let mut left = count.lock().unwrap();
            let now = *left == 0 && !std::mem::replace(&mut *seen.lock().unwrap(), *left == 0);
            *left = left.saturating_sub(1);
            now.then(|| guest.clone())
        });
        for guest in steps {
            world.run(&Step::Guest(guest.clone())).unwrap();
        }
        world.shared.watch.rest();
        world.settle();
        world.run(&Step::Guest(Guest::Flush)).unwrap();
        world.end();
        let (log, model) = (world.shared.watch.log(), world.shared.model().clone());
        check_all(&mut recovery, None, &log, &model, &mut Random(nth));
        if !*reached.lock().unwrap() {
            assert!(nth > 3, "the steps were not seen");
            break;
        }
    }
}

#[test]
fn power_lost_after_a_write_at_any_step_of_a_flush() {
    let steps = [Guest::Write(0, BLOCK, false), Guest::Flush];
    at_every_step(&steps, &Guest::Write(BLOCK, BLOCK, false));
}

#[test]
fn power_lost_after_a_flush_at_any_step_of_a_write() {
    at_every_step(&[Guest::Write(0, BLOCK, false)], &Guest::Flush);
    at_every_step(&[Guest::Write(700, 2 * BLOCK, false)], &Guest::Flush);
    at_every_step(&[Guest::Discard(0, BLOCK)], &Guest::Flush);
}
