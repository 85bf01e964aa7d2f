// SPDX-License-Identifier: Apache-2.0
//! The engine's threads: they execute what was parked, and nothing of theirs waits for a network.

use crate::sync::thread::JoinHandle;
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::collections::VecDeque;
use std::io;

use crate::units::lock;

/// One thing to do.
pub type Task = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Inner {
    queue: VecDeque<Task>,
    sleeping: usize,
    stopping: bool,
}

/// Threads and their queue, whose length the parked requests bound.
#[derive(Default)]
pub struct Pool {
    inner: Mutex<Inner>,
    arrived: Condvar,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} queued)", lock(&self.inner).queue.len())
    }
}

impl Pool {
    /// Starts the threads; they end by [`Pool::stop`].
    pub fn start(self: &Arc<Self>, threads: usize) -> io::Result<Vec<JoinHandle<()>>> {
        (0..threads.max(1))
            .map(|n| {
                let pool = self.clone();
                crate::sync::thread::Builder::new()
                    .name(format!("mirror-{n}"))
                    .spawn(move || while pool.work() {})
            })
            .collect()
    }

    /// Locked, for tests of who never asks for it.
    #[cfg(all(test, not(feature = "shuttle")))]
    pub(crate) fn locked(&self) -> impl Sized + '_ {
        lock(&self.inner)
    }

    /// Queues a task; after the stop it is run here and now.
    pub fn run(&self, task: Task) {
        self.run_all(std::iter::once(task));
    }

    /// Queues tasks under one lock and wakes one thread, which wakes the next: so whoever opens a
    /// gate is not overtaken, task by task, by those that he wakes.
    pub fn run_all(&self, tasks: impl Iterator<Item = Task>) {
        let mut inner = lock(&self.inner);
        if inner.stopping {
            drop(inner);
            tasks.for_each(|task| task());
            return;
        }
        inner.queue.extend(tasks);
        self.wake_one(inner);
    }

    /// Wakes a thread if there is something to do and one that sleeps.
    fn wake_one(&self, inner: MutexGuard<'_, Inner>) {
        let wakes = inner.sleeping > 0 && !inner.queue.is_empty();
        drop(inner);
        if wakes {
            self.arrived.notify_one();
        }
    }

    fn work(&self) -> bool {
        let mut inner = lock(&self.inner);
        loop {
            if let Some(task) = inner.queue.pop_front() {
                self.wake_one(inner);
                task();
                return true;
            }
            if inner.stopping {
                return false;
            }
            inner.sleeping += 1;
            inner = self
                .arrived
                .wait(inner)
                .unwrap_or_else(PoisonError::into_inner);
            inner.sleeping -= 1;
        }
    }

    /// Lets the threads end once the queue is empty.
    pub fn stop(&self) {
        lock(&self.inner).stopping = true;
        self.arrived.notify_all();
    }
}
