// SPDX-License-Identifier: Apache-2.0
//! A plain file behind the same door: what FUSE alone costs (`bench/`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use pyo3::prelude::*;

use super::error::os_error;
use crate::disk::Disk;
use crate::event::Events;
use crate::fuse::{Fuse, Options, Owner};
use crate::passthrough::Passthrough;

/// Serve one plain file as `<mount>/passthrough/<its name>` until the mount is taken away or a
/// signal's handler raises.
#[pyfunction]
pub(super) fn passthrough(
    py: Python<'_>,
    mount: PathBuf,
    path: PathBuf,
    threads: usize,
) -> PyResult<()> {
    let failed = |error: std::io::Error| os_error(error.raw_os_error(), error.to_string(), None);
    let fuse = py.detach(|| {
        let disk = Arc::new(Passthrough::open(&path)?);
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let options = Options {
            threads,
            session: [0; 32],
            resend: true,
        };
        let fuse = Fuse::mount(&mount, &options, Arc::new(Events::default()))?;
        let (uid, gid) = crate::sys::fuse::user_and_group();
        let owner = Owner {
            uid,
            gid,
            mode: 0o644,
        };
        fuse.add("passthrough", &name, disk as Arc<dyn Disk>, owner)?;
        Ok(fuse)
    });
    let fuse = fuse.map_err(failed)?;
    loop {
        if py.detach(|| fuse.wait(Duration::from_millis(100))) {
            return Ok(());
        }
        if let Err(raised) = py.check_signals() {
            py.detach(|| fuse.unmount()).map_err(failed)?;
            return Err(raised);
        }
    }
}
