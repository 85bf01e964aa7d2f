// SPDX-License-Identifier: Apache-2.0
//! Getting a `/dev/fuse` that is mounted somewhere.
//!
//! With `CAP_SYS_ADMIN` by mount(2); else, for developers, by fusermount3, which sends the
//! descriptor over a socket: its standard input here, so that no other child can inherit it.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::sys::fuse as sys;

const KIND: &str = "fuse.lazyimage";
const SOURCE: &str = "lazyimage";
/// A server that lives answers at once; one that is stopped, or starved, takes its time.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);

/// Mounts at `at`, a directory; a mount of ours there whose server is dead is taken away first.
///
/// # Errors
/// EBUSY if another process serves a mount there; ETIMEDOUT if a mount there waits for whoever has
/// its descriptor: a look at it did not return in time; EINVAL if the host ends slow FUSE requests
/// (`fs.fuse.default_request_timeout`): a disk whose store is away must wait.
pub fn mount(at: &Path) -> io::Result<File> {
    refuse_request_timeout()?;
    clear(at)?;
    let device = File::options().read(true).write(true).open("/dev/fuse");
    match device.and_then(|device| by_mount(device, at)) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => by_fusermount(at),
        result => result,
    }
}

/// Takes the mount away: lazily, so that open files do not keep it.
///
/// # Errors
/// What the system says; none if nothing is mounted there any more.
pub fn unmount(at: &Path) -> io::Result<()> {
    match sys::unmount(at, false) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            let command = Command::new("fusermount3")
                .args(["-u", "-z", "--"])
                .arg(at)
                .output()?;
            if command.status.success() {
                return Ok(());
            }
            Err(io::Error::other(
                String::from_utf8_lossy(&command.stderr).into_owned(),
            ))
        }
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        result => result,
    }
}

/// Ends the connection: every request under way fails in its caller.
pub fn abort(at: &Path) {
    // EBUSY says that open files keep the mount; the connection is ended all the same. Without
    // the privilege the last descriptor's closing does it.
    let _ = sys::unmount(at, true);
}

/// Whether this kernel resends what was read and not answered: since 6.9. INIT says it for sure, but
/// the session's memory must be there by then.
#[must_use]
pub fn kernel_resends() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    let mut number = || numbers.next().and_then(|text| text.parse::<u32>().ok());
    (number(), number()) >= (Some(6), Some(9))
}

fn by_mount(device: File, at: &Path) -> io::Result<File> {
    let (uid, gid) = sys::user_and_group();
    let fd = device.as_raw_fd();
    let data = format!(
        "fd={fd},rootmode=40755,user_id={uid},group_id={gid},allow_other,default_permissions"
    );
    let source = CString::new(SOURCE)?;
    let kind = CString::new(KIND)?;
    let data = CString::new(data)?;
    sys::mount(&source, &kind, at, &data)?;
    Ok(device)
}

fn by_fusermount(at: &Path) -> io::Result<File> {
    let mut options = format!("fsname={SOURCE},subtype=lazyimage,default_permissions,nosuid,nodev");
    if allow_other_is_allowed() {
        options.push_str(",allow_other");
    }
    let (ours, theirs) = UnixStream::pair()?;
    let child = Command::new("fusermount3")
        .args(["-o", &options, "--"])
        .arg(at)
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(OwnedFd::from(theirs)))
        .stderr(Stdio::piped())
        .spawn()?;
    let received = sys::receive_descriptor(&ours);
    let ended = child.wait_with_output()?;
    received.map(File::from).map_err(|_| {
        let said = String::from_utf8_lossy(&ended.stderr);
        io::Error::new(io::ErrorKind::PermissionDenied, said.trim().to_owned())
    })
}

fn allow_other_is_allowed() -> bool {
    let (uid, _) = sys::user_and_group();
    let configured = || {
        let text = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
        text.lines().any(|line| line.trim() == "user_allow_other")
    };
    uid == 0 || configured()
}

fn refuse_request_timeout() -> io::Result<()> {
    let path = "/proc/sys/fs/fuse/default_request_timeout";
    match fs::read_to_string(path) {
        Ok(text) if text.trim() != "0" => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "sysctl fs.fuse.default_request_timeout must be 0: it would end the whole mount when \
             one request waits for a store that is away",
        )),
        _ => Ok(()),
    }
}

/// Reads the table of mounts rather than touch the mount: its server may be dead, or be us.
fn clear(at: &Path) -> io::Result<()> {
    let path = resolved(at)?;
    while mounted(&fs::read_to_string("/proc/self/mountinfo")?, &path) {
        if look(at)? != Some(libc::ENOTCONN) {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        unmount(at)?;
    }
    Ok(())
}

/// The errno of statfs(2) there, from a thread that may wait for ever: a mount whose descriptor is
/// kept, and served by nobody, answers nothing, and nothing else tells it from a dead one. The
/// request lies unread, so the thread still dies with the process.
fn look(at: &Path) -> io::Result<Option<i32>> {
    let path = at.to_owned();
    let (send, receive) = mpsc::channel();
    thread::Builder::new()
        .name("look".to_owned())
        .spawn(move || {
            let _ = send.send(sys::statfs_error(&path));
        })?;
    receive
        .recv_timeout(LOOK_PATIENCE)
        .map_err(|_| io::Error::from_raw_os_error(libc::ETIMEDOUT))
}

/// The path as the table shows it; of the last component no link is followed, since it may be a
/// dead mount.
fn resolved(at: &Path) -> io::Result<String> {
    let absolute = std::path::absolute(at)?;
    let resolved = match (absolute.parent(), absolute.file_name()) {
        (Some(parent), Some(name)) => parent.canonicalize()?.join(name),
        _ => absolute,
    };
    Ok(resolved.to_string_lossy().into_owned())
}

/// Whether a mount of ours stands at `at` according to mountinfo (proc(5)).
fn mounted(table: &str, at: &str) -> bool {
    let escaped = at
        .replace('\\', "\\134")
        .replace(' ', "\\040")
        .replace('\t', "\\011");
    table.lines().any(|line| {
        let (mount, rest) = line.split_once(" - ").unwrap_or((line, ""));
        mount.split(' ').nth(4) == Some(&escaped) && rest.split(' ').next() == Some(KIND)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_mount_of_ours_at_that_very_path_counts() {
        let table = "33 1 8:1 / / rw - ext4 /dev/vda rw\n\
                     64 33 0:50 / /mnt/a\\040b rw,nosuid shared:1 - fuse.lazyimage lazyimage rw\n";
        assert!(mounted(table, "/mnt/a b"));
        assert!(!mounted(table, "/mnt/a"));
        assert!(!mounted(table, "/"));
    }
}
