// SPDX-License-Identifier: Apache-2.0
//! A small disk of its own for a test, to be filled.
//!
//! A test runs itself again with a mount namespace of its own, where a tmpfs is the disk; where
//! loop devices can be had (as root), once more on a small ext4, which allocates as real disks do.
#![allow(dead_code, reason = "each test uses its part")]
#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "test code")]

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use super::BLOCK;

const EXT4: &str = "truncate -s $((BYTES + 16777216)) \"$MIRROR_SMALL_DISK.img\" && \
    mkfs.ext4 -q -F -m 0 \"$MIRROR_SMALL_DISK.img\" && \
    mount -o loop \"$MIRROR_SMALL_DISK.img\" \"$MIRROR_SMALL_DISK\" && \
    rm \"$MIRROR_SMALL_DISK.img\"";

/// Whether this host lets us have a loop device.
fn has_loop_devices() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let place = tempfile::tempdir().unwrap();
        let mounted = Command::new("unshare")
            .args(["--mount", "sh", "-c", EXT4])
            .env("MIRROR_SMALL_DISK", place.path())
            .env("BYTES", "0")
            .output()
            .is_ok_and(|output| output.status.success());
        if !mounted {
            println!("no loop devices here: on tmpfs only");
            let _ = std::fs::remove_file(place.path().with_extension("img"));
        }
        mounted
    })
}

/// Runs `body` in a directory on a file system of so many bytes.
pub fn on_a_disk_of(bytes: usize, name: &str, body: impl FnOnce(tempfile::TempDir)) {
    if let Ok(place) = std::env::var("MIRROR_SMALL_DISK") {
        return body(tempfile::tempdir_in(place).unwrap());
    }
    let tmpfs = "mount -t tmpfs -o size=$BYTES mirror \"$MIRROR_SMALL_DISK\"";
    run_on(
        bytes,
        name,
        tmpfs,
        &["--user", "--map-root-user", "--mount"],
    );
    if has_loop_devices() {
        run_on(bytes, name, EXT4, &["--mount"]);
    }
}

fn run_on(bytes: usize, name: &str, mount: &str, namespaces: &[&str]) {
    let place = tempfile::tempdir().unwrap();
    let script = format!("{mount} && exec \"$0\" --exact {name} --nocapture");
    let output = Command::new("unshare")
        .args(namespaces)
        .args(["sh", "-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env("BYTES", bytes.to_string())
        .env("MIRROR_SMALL_DISK", place.path())
        .output()
        .expect("util-linux's unshare");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}\n{}\n(needs user namespaces, and O_DIRECT on tmpfs: Linux 6.6)",
        String::from_utf8_lossy(&output.stderr)
    );
}

pub fn fill(directory: &Path) {
    let mut filler = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(directory.join("filler"))
        .unwrap();
    while std::io::Write::write(&mut filler, &[1; BLOCK]).is_ok() {}
}

pub fn free_bytes(directory: &Path) -> usize {
    let file = std::fs::File::open(directory).unwrap();
    usize::try_from(_mirror::sys::file::available_bytes(&file).unwrap()).unwrap()
}

pub fn free(directory: &Path) {
    std::fs::remove_file(directory.join("filler")).unwrap();
}
