// SPDX-License-Identifier: Apache-2.0
//! The three ends of a mirror: for good, for a successor, and as a kill would.

use super::Mirror;
use crate::error::{Error, Result};
use crate::faults::{self, Call};
use crate::sync::atomic::Ordering;
use crate::sys::file;
use crate::units::lock;

impl Mirror {
    /// Ends the mirror: nothing new, nothing parked, everything flushed and marked clean.
    pub(crate) fn close(&self) -> Result<()> {
        self.closing.store(true, Ordering::SeqCst);
        for job in self.jobs() {
            job.end_parked(Err(libc::EIO));
        }
        // A write that comes is parked, and ended below.
        self.close_for_ever();
        let flushed = self.flusher.last_round(self);
        for job in self.jobs() {
            job.end_parked(Err(libc::EIO));
        }
        flushed.map_err(|errno| Error::errno("flush", self.delta.path(), errno))?;
        let mut header = lock(&self.header);
        header.clean = true;
        self.disk_map.set_header(&header)?;
        // The disk map says it all now; a live map left behind would only take memory.
        let live = &self.live_path;
        let _ = faults::call(live, "remove", Call::Other, || std::fs::remove_file(live));
        for (file, path) in [
            (self.delta.file(), self.delta.path()),
            (self.disk_map.file(), self.delta.path()),
            (self.saved.file(), self.saved.path()),
        ] {
            file::unlock(file).map_err(|e| Error::io("unlock", path, e))?;
        }
        Ok(())
    }

    /// Makes the mirror quiet for a successor: nothing more is executed. Parked requests stay
    /// parked, the live map stays what is believed, frozen blocks will be dirty again. Nothing is
    /// flushed: guests wait by now ([`crate::engine::Engine::flush_all`] came before), and to the
    /// successor every page is changed.
    pub(crate) fn quiesce(&self) {
        self.close_for_ever();
        self.flusher.wait_for_round();
    }

    /// Lets a successor have the files; after [`Mirror::quiesce`].
    pub(crate) fn let_go(&self) {
        for file in [self.delta.file(), self.disk_map.file(), self.saved.file()] {
            let _ = file::unlock(file);
        }
    }

    /// Lets go without a word, as a killed agent would: for tests of recovery.
    #[doc(hidden)]
    pub fn forget_as_if_killed(&self) {
        self.closing.store(true, Ordering::SeqCst);
        for job in self.jobs() {
            job.end_parked(Err(libc::EIO));
        }
        self.close_for_ever();
        for file in [self.delta.file(), self.disk_map.file(), self.saved.file()] {
            let _ = file::unlock(file);
        }
    }
}
