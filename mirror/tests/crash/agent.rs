// SPDX-License-Identifier: Apache-2.0
//! The agent's death between any two steps: a child runs the script and ends itself after its n-th
//! step; the parent knows what was answered, attaches the files that were left, compares, and goes
//! on with the script.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use _mirror::faults::{Entry, Watch};

use crate::common::fast_directory;
use crate::model::{Content, Model};
use crate::power::{script, soak};
use crate::world::{GROWTH, Random, SIZE, Step, World, base, engine, options, read_runs, runs};

const ME: &str = "agent::death_after_each_step_loses_nothing_that_was_answered";

/// The child.
fn run_until_it_dies(directory: &Path, steps: u64) {
    let directory = Arc::new(tempfile::tempdir_in(directory).unwrap());
    println!("in {}", directory.path().display());
    let watch = Watch::new(directory.path());
    watch.die_after(steps);
    let mut world = World::with(directory, watch, new_model(), 0, true);
    world.talks = true;
    println!("attached");
    for (nth, step) in script().iter().enumerate() {
        world.run(step).unwrap();
        println!("done {nth}");
    }
}

fn new_model() -> Model {
    let content = base().2.clone();
    Model::new(SIZE, content.clone(), content)
}

/// What the script does to a disk, without one.
fn pretend(world: &World, step: &Step, over: bool, seed: &mut u64, frozen: &mut Option<Content>) {
    match step {
        Step::Guest(guest) => {
            *seed += 1;
            let (op, _) = world.shared.note(guest, *seed).unwrap();
            if over {
                world.shared.end(op, Ok(()));
            }
        }
        Step::Freeze | Step::Hold => {
            let model = world.shared.model();
            let sectors = runs(model.size).into_iter().flatten();
            let sectors = sectors.flat_map(|block| block * 8..block * 8 + 8);
            *frozen = Some(sectors.map(|at| (at, model.newest(at))).collect());
        }
        Step::Grow if over => world.shared.model().size = SIZE + GROWTH,
        Step::Abandon | Step::Thaw | Step::Kill | Step::Stop => *frozen = None,
        _ => {}
    }
}

/// Ends a child after so many steps and looks at what it left; `false`: it was done before.
fn kill_after(steps: u64) -> bool {
    let place = fast_directory();
    // No core files.
    let mut child = Command::new("sh")
        .args(["-c", "ulimit -c 0; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args([ME, "--exact", "--nocapture", "--quiet"])
        .env("MIRROR_CRASH_CHILD", place.path())
        .env("MIRROR_CRASH_STEPS", steps.to_string())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let said: Vec<String> = lines.map(Result::unwrap).collect();
    let ended_well = child.wait().unwrap().success();
    let done = said.iter().filter(|line| line.starts_with("done")).count();
    let published = said.iter().filter(|line| *line == "published").count();
    let directory = std::fs::read_dir(place.path()).unwrap().next().unwrap();
    let path = directory.unwrap().path();
    if ended_well {
        return false;
    }
    if !said.iter().any(|line| line == "attached") {
        assert_pristine(&path);
        return true;
    }

    let script = script();
    let directory = Arc::new(tempfile::Builder::new().tempdir_in(place.path()).unwrap());
    std::fs::remove_dir(directory.path()).unwrap();
    std::fs::rename(&path, directory.path()).unwrap();
    let watch = Watch::new(directory.path());
    let mut model = new_model();
    let grown = script.iter().position(|step| matches!(step, Step::Grow));
    // Cut short, the journal may name the old size or the new one.
    if grown.is_some_and(|at| at < done || at == done && steps % 2 == 0) {
        model.size += GROWTH;
    }
    let mut world = World::with(directory, watch, model, 0, false);
    world.shared.model().size = SIZE;
    let (mut seed, mut frozen, mut versions) = (0, None, 0);
    for (nth, step) in script.iter().enumerate().take(done + 1) {
        if matches!(step, Step::Publish) && versions < published {
            versions += 1;
            let version = frozen.take().unwrap();
            let at = world.shared.watch.mark();
            world.shared.model().parents.push((at, version));
        }
        pretend(&world, step, nth < done, &mut seed, &mut frozen);
    }
    world.shared.model().size = usize::try_from(world.mirror.size_bytes()).unwrap();
    world.seed = seed;
    let what = format!("killed after step {steps}, in {:?}", script.get(done));
    println!("{what}");
    world.check_with_dirt();
    world.give_up_requests();
    world.check();
    // A growth that may not have been is asked for again, as a client does.
    let next = done + usize::from(!matches!(script.get(done), Some(Step::Grow)));
    for step in script.iter().skip(next) {
        world.run(step).unwrap();
    }
    world.check_with_dirt();
    world.engine.stop().unwrap();
    true
}

/// Nobody was told that it is attached: what is there is as new, or refused, and gives way.
fn assert_pristine(path: &Path) {
    let engine = engine(&path.join("again"));
    if let Ok(mirror) = engine.attach(options(path, SIZE, false)) {
        let disk = read_runs(&engine, &mirror).unwrap();
        assert!(disk.iter().all(|(sector, bytes)| {
            base()
                .2
                .get(sector)
                .map_or(bytes[..] == [0; 512], |base| base == bytes)
        }));
        engine.detach("instance", "disk").unwrap();
    }
    // The agent takes back what it had begun.
    let _ = std::fs::remove_dir_all(path.join("mirror"));
    let _ = std::fs::remove_file(path.join("live"));
    engine.attach(options(path, SIZE, true)).unwrap();
    engine.stop().unwrap();
}

/// One step of each name in each request of the script, the last one there is.
fn named_steps() -> Vec<u64> {
    let mut world = World::new(Arc::new(fast_directory()), 0);
    let (mut chosen, mut from, mut passed) = (Vec::new(), 0, 0);
    let mut within = std::iter::once(None).chain(script().into_iter().map(Some));
    loop {
        match within.next() {
            None => return chosen,
            Some(None) => {}
            Some(Some(step)) => world.run(&step).unwrap(),
        }
        let log = world.shared.watch.log();
        let mut last = std::collections::BTreeMap::new();
        let mut names = std::collections::HashMap::new();
        for entry in &log[from..] {
            match entry {
                Entry::Begin { id, name, .. } => drop(names.insert(*id, name.clone())),
                Entry::End { id, .. } => {
                    passed += 1;
                    last.insert(names[id].clone(), passed);
                }
                Entry::Step { name } => {
                    passed += 1;
                    last.insert(name.clone(), passed);
                }
                Entry::Mark => {}
            }
        }
        from = log.len();
        chosen.extend(last.into_values());
    }
}

#[test]
fn death_after_each_step_loses_nothing_that_was_answered() {
    if let Ok(directory) = std::env::var("MIRROR_CRASH_CHILD") {
        let steps = std::env::var("MIRROR_CRASH_STEPS").unwrap();
        return run_until_it_dies(directory.as_ref(), steps.parse().unwrap());
    }
    let named = named_steps();
    let all = *named.iter().max().unwrap();
    let mut random = Random(u64::from(std::process::id()));
    let steps: Vec<u64> = if soak().is_some() {
        (1..=all).collect()
    } else {
        let few = (0..20).map(|_| 1 + random.next() % all);
        named.into_iter().chain(few).collect()
    };
    let killed = steps.iter().filter(|&&steps| kill_after(steps)).count();
    println!("{killed} of {} killed, {all} steps", steps.len());
    assert!(killed + 3 > steps.len() && killed > 100);
}
