// SPDX-License-Identifier: Apache-2.0
//! The crash table names every step, in the order in which it is done.

use std::sync::Arc;

use _mirror::faults::Entry;

use crate::common::{BLOCK, fast_directory};
use crate::world::{Guest, Step, World};

/// What was done since a position of the log; repetitions once.
fn steps_since(world: &World, from: usize) -> Vec<String> {
    let log = world.shared.watch.log();
    let name_of = |wanted: &u64| {
        log.iter().find_map(|entry| match entry {
            Entry::Begin { id, name, .. } if id == wanted => Some(name.clone()),
            _ => None,
        })
    };
    let mut steps: Vec<String> = log[from..]
        .iter()
        .filter_map(|entry| match entry {
            Entry::End { id, .. } => name_of(id),
            Entry::Step { name } => Some(name.clone()),
            _ => None,
        })
        .filter(|name| !name.contains(".read"))
        .collect();
    steps.dedup();
    steps
}

fn traces() -> Vec<(&'static str, Vec<String>)> {
    use Guest::{Discard, Flush, Write};
    const B: usize = BLOCK;
    let mut world = World::new(Arc::new(fast_directory()), 0);
    let mut traces = vec![("Attach: a new disk", steps_since(&world, 0))];
    let run = |world: &mut World, step: Step| {
        let from = world.shared.watch.log().len();
        world.run(&step).unwrap();
        steps_since(world, from)
    };
    let guest = Step::Guest;
    for (title, step) in [
        ("Write, first", guest(Write(0, B, false))),
        ("", guest(Flush)),
        ("Discard", guest(Discard(40 * B, B))),
        ("Flush", guest(Flush)),
        ("Flush of nothing new", guest(Flush)),
        ("Freeze", Step::Freeze),
        ("Write of a frozen block", guest(Write(0, B, false))),
        ("Write beside one", guest(Write(B, B, false))),
        ("Upload", Step::Upload),
        ("Publish", Step::Publish),
        ("", guest(Flush)),
        ("Write, again", guest(Write(0, B, false))),
        ("", Step::Freeze),
        ("", guest(Write(0, B, false))),
        ("Abandon", Step::Abandon),
        ("Hold", Step::Hold),
        ("Seal", Step::Seal),
        ("", Step::Abandon),
        ("Growth", Step::Grow),
        ("", guest(Flush)),
    ] {
        let trace = run(&mut world, step);
        if !title.is_empty() {
            traces.push((title, trace));
        }
    }
    let mut stop = run(&mut world, Step::Stop);
    let end = stop.iter().position(|name| name == "live.remove").unwrap() + 1;
    let attach = stop.split_off(end);
    traces.push(("Stop", stop));
    traces.push(("Attach: after a stop", attach));
    world.run(&guest(Write(0, B, false))).unwrap();
    world.run(&Step::Freeze).unwrap();
    world.run(&guest(Write(0, B, false))).unwrap();
    traces.push(("Attach: the live map stands", run(&mut world, Step::Kill)));
    world.engine.forget_as_if_killed();
    std::fs::remove_file(world.directory.path().join("live")).unwrap();
    let from = world.shared.watch.log().len();
    world.attach_again();
    traces.push(("Attach: the live map is gone", steps_since(&world, from)));
    traces
}

/// The steps under each title of the page.
fn written() -> Vec<(String, Vec<String>)> {
    let page = include_str!("../../CRASHES.rst");
    let mut tables: Vec<(String, Vec<String>)> = Vec::new();
    let mut above = "";
    for line in page.lines() {
        if line.starts_with("---") {
            tables.push((above.to_owned(), Vec::new()));
        }
        if let Some(step) = line
            .strip_prefix("``")
            .and_then(|row| row.split("``").next())
        {
            if let Some((_, steps)) = tables.last_mut() {
                steps.push(step.to_owned());
            }
        }
        above = line;
    }
    tables
}

#[test]
fn the_crash_table_names_every_step_in_order() {
    let mut written = written();
    for (title, trace) in traces() {
        let at = written.iter().position(|(found, _)| found == title);
        let (_, steps) = written.remove(at.unwrap_or_else(|| panic!("no table \"{title}\"")));
        assert_eq!(trace, steps, "{title}");
    }
    assert_eq!(written, [], "tables of nothing");
}
