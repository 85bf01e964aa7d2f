// SPDX-License-Identifier: Apache-2.0
//! Does things at their time, whatever every other thread waits for.
//!
//! One thread of the engine; what it is given must be short and must not wait for I/O. A thing that
//! became pointless finds that out itself: nothing is ever taken back.

use crate::sync::thread::JoinHandle;
use crate::sync::{Arc, Condvar, Mutex, PoisonError};
use std::io;
use std::time::Instant;

use crate::units::lock;

type Task = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Inner {
    due: Vec<(Instant, Task)>,
    stopping: bool,
}

/// What is to be done when.
#[derive(Default)]
pub struct Watchdog {
    inner: Mutex<Inner>,
    changed: Condvar,
}

impl std::fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watchdog({} due)", lock(&self.inner).due.len())
    }
}

impl Watchdog {
    /// Starts the thread; it ends by [`Watchdog::stop`].
    pub fn start(self: &Arc<Self>) -> io::Result<JoinHandle<()>> {
        let watchdog = self.clone();
        crate::sync::thread::Builder::new()
            .name("mirror-watchdog".to_owned())
            .spawn(move || watchdog.run())
    }

    /// Has a thing done at `time`, or a moment later.
    pub fn at(&self, time: Instant, task: impl FnOnce() + Send + 'static) {
        lock(&self.inner).due.push((time, Box::new(task)));
        self.changed.notify_all();
    }

    fn run(&self) {
        let mut inner = lock(&self.inner);
        while !inner.stopping {
            let now = Instant::now();
            if let Some(at) = inner.due.iter().position(|(time, _)| *time <= now) {
                let (_, task) = inner.due.swap_remove(at);
                drop(inner);
                task();
                inner = lock(&self.inner);
                continue;
            }
            let next = inner.due.iter().map(|(time, _)| *time).min();
            inner = match next {
                Some(next) => {
                    let waited = self.changed.wait_timeout(inner, next - now);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                None => self
                    .changed
                    .wait(inner)
                    .unwrap_or_else(PoisonError::into_inner),
            };
        }
        inner.due.clear();
    }

    /// Does nothing more.
    pub fn stop(&self) {
        lock(&self.inner).stopping = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;
    use std::time::Duration;

    #[test]
    fn things_are_done_in_their_order_and_none_too_early() {
        let watchdog = Arc::new(Watchdog::default());
        let thread = watchdog.start().unwrap();
        let (sender, receiver) = mpsc::channel();
        let begun = Instant::now();
        for millis in [40, 20] {
            let sender = sender.clone();
            let time = begun + Duration::from_millis(millis);
            watchdog.at(time, move || sender.send((millis, Instant::now())).unwrap());
        }
        for expected in [20, 40] {
            let (millis, done) = receiver.recv_timeout(Duration::from_secs(5)).unwrap();
            assert_eq!(millis, expected);
            assert!(done >= begun + Duration::from_millis(millis));
        }
        watchdog.at(begun + Duration::from_secs(3600), || ());
        watchdog.stop();
        thread.join().unwrap();
    }
}
