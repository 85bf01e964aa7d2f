// SPDX-License-Identifier: Apache-2.0
//! Who holds a file's lock: what an alarm or a refusal names, so that somebody can act (rule 15).
//!
//! The lock of a process that was killed lives as long as its last request, so a holder may be dead.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

/// The process that holds the flock of a file, as `/proc/locks` tells it; "" if it holds no more.
pub fn holder(file: &File) -> String {
    let Ok(meta) = file.metadata() else {
        return String::new();
    };
    let table = fs::read_to_string("/proc/locks").unwrap_or_default();
    pid_in(&table, meta.ino()).map(describe).unwrap_or_default()
}

/// `1: FLOCK  ADVISORY  WRITE 1234 08:01:56 0 EOF`, and `1: -> FLOCK …` for who waits (proc(5)). The
/// device's number is not compared: some file systems tell stat(2) another one.
fn pid_in(table: &str, inode: u64) -> Option<&str> {
    let end = format!(":{inode}");
    table.lines().find_map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            [_, "FLOCK", _, _, pid, file, ..] if file.ends_with(&end) => Some(pid),
            _ => None,
        }
    })
}

fn describe(pid: &str) -> String {
    if pid.parse::<u32>().map_or(true, |number| number == 0) {
        return "a process of another PID namespace".to_owned();
    }
    match fs::read_to_string(format!("/proc/{pid}/comm")) {
        Ok(name) => format!("pid {pid} ({})", name.trim()),
        Err(_) => format!("pid {pid}, dead but for its last requests"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::file::try_lock;

    #[test]
    fn who_holds_a_lock_is_named_and_who_waits_is_not() {
        let table = "1: -> FLOCK  ADVISORY  WRITE 7 08:01:56 0 EOF\n\
                     2: POSIX  ADVISORY  WRITE 8 08:01:56 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 9 08:01:156 0 EOF\n\
                     4: FLOCK  ADVISORY  WRITE 10 08:01:56 0 EOF\n";
        assert_eq!(pid_in(table, 56), Some("10"));
        assert_eq!(pid_in(table, 5), None);
    }

    #[test]
    #[cfg_attr(miri, ignore)] // /proc/locks
    fn the_holder_of_a_real_lock_is_this_process() {
        let file = tempfile::tempfile().expect("a file");
        assert_eq!(holder(&file), "");
        assert!(try_lock(&file).expect("a lock"));
        let pid = std::process::id();
        assert!(holder(&file).starts_with(&format!("pid {pid} (")));
    }
}
