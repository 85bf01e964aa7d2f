// SPDX-License-Identifier: Apache-2.0
//! Named points at which tests kill the agent: between two steps of a take-over's contract.
//!
//! `LAZYIMAGE_KILL_AT=name` ends the process by SIGKILL when it comes to the point of that name,
//! `name:3` when it comes there for the third time. `LAZYIMAGE_STALL_AT` stops the thread there for
//! ever, so that a test can do what it likes before it kills. Without them a point costs one load.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::sys::shared::kill_this_process;

const KILL: &str = "LAZYIMAGE_KILL_AT";
const STALL: &str = "LAZYIMAGE_STALL_AT";

/// Visits that are left before it happens; 0: no point is armed, or it has happened.
static LEFT: AtomicU32 = AtomicU32::new(0);
static ARMED: OnceLock<(String, bool)> = OnceLock::new();

/// Reads the environment; before the first request.
pub fn arm() {
    for (variable, kills) in [(KILL, true), (STALL, false)] {
        if let Ok(value) = std::env::var(variable) {
            let (name, count) = value.split_once(':').unwrap_or((&value, "1"));
            if ARMED.set((name.to_owned(), kills)).is_ok() {
                LEFT.store(count.parse().unwrap_or(1), Ordering::SeqCst);
            }
        }
    }
}

/// Here is a point of that name.
#[inline]
pub fn reached(name: &str) {
    if LEFT.load(Ordering::Relaxed) > 0 {
        visit(name);
    }
}

#[cold]
fn visit(name: &str) {
    let Some((_, kills)) = ARMED.get().filter(|(armed, _)| armed == name) else {
        return;
    };
    let one_less = |left: u32| left.checked_sub(1);
    let left = LEFT.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_less);
    if left == Ok(1) && *kills {
        kill_this_process();
    }
    while left == Ok(1) {
        std::thread::sleep(Duration::from_secs(1));
    }
}
