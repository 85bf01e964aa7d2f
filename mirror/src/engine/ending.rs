// SPDX-License-Identifier: Apache-2.0
//! The ends of an engine: for good, for a successor, and as a kill would.

use super::Engine;
use crate::error::Result;
use crate::units::lock;

impl Engine {
    /// Ends every mirror and the engine's threads; the doors take no more requests by then.
    ///
    /// # Errors
    /// The first mirror that could not be flushed; the others are ended all the same.
    pub fn stop(&self) -> Result<()> {
        if std::mem::replace(&mut *lock(&self.stopped), true) {
            return Ok(());
        }
        self.stopping.notify_all();
        let result = self.detach_all();
        self.core.flights.close();
        self.end_threads();
        result.and(self.core.cache.close())
    }

    /// Flushes every mirror while it is served: what a hand-over would else do while guests wait.
    ///
    /// # Errors
    /// The first mirror that could not be flushed.
    pub fn flush_all(&self) -> Result<()> {
        let mirrors: Vec<_> = lock(&self.mirrors).values().cloned().collect();
        let mut result = Ok(());
        for mirror in mirrors {
            result = result.and(mirror.flush_wait());
        }
        result
    }

    /// Ends for a successor: every mirror is quiet, parked requests stay parked. What was written
    /// since [`Engine::flush_all`] stands in deltas and live maps, as after a death.
    /// `unanswered` is called when nothing is executed any more: from then on the door must let
    /// what is completed be, for the successor completes it.
    ///
    /// # Errors
    /// The chunk cache could not be closed; the mirrors are handed over all the same.
    pub fn hand_over(&self, unanswered: impl FnOnce()) -> Result<()> {
        if std::mem::replace(&mut *lock(&self.stopped), true) {
            return Ok(());
        }
        self.stopping.notify_all();
        let mirrors = std::mem::take(&mut *lock(&self.mirrors));
        for mirror in mirrors.values() {
            mirror.quiesce();
        }
        // What the threads are in, they finish: reads, and writes that wait for gates again.
        self.end_threads();
        unanswered();
        self.core.flights.close();
        for mirror in mirrors.values() {
            mirror.let_go();
        }
        self.core.cache.close()
    }

    /// Closes every mirror and goes on: their session is over.
    ///
    /// # Errors
    /// The first mirror that could not be flushed; the others are closed all the same.
    pub fn detach_all(&self) -> Result<()> {
        let mirrors = std::mem::take(&mut *lock(&self.mirrors));
        let mut result = Ok(());
        for mirror in mirrors.values() {
            let closed = mirror.close();
            if result.is_ok() {
                result = closed;
            }
        }
        result
    }

    /// Lets go of everything without a word, as a kill would: for tests of recovery.
    #[doc(hidden)]
    pub fn forget_as_if_killed(&self) {
        *lock(&self.stopped) = true;
        self.stopping.notify_all();
        for mirror in std::mem::take(&mut *lock(&self.mirrors)).values() {
            mirror.forget_as_if_killed();
        }
        self.core.flights.close();
        self.end_threads();
        self.core.cache.forget_as_if_killed();
    }

    fn end_threads(&self) {
        self.core.cache.stop_keeper();
        self.core.pool.stop();
        self.core.watchdog.stop();
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            // The clock may be the one that drops the engine.
            if thread.thread().id() != crate::sync::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}
