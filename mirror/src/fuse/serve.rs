// SPDX-License-Identifier: Apache-2.0
//! The door from outside: mount it, put disks in, take them out, stop.
//!
//! # Threads
//!
//! `Options::threads` workers, each with a slot of its own, all reading the one descriptor (cloned
//! descriptors die with their process and would take their requests along). A stop ends their
//! read(2) by a signal: the data path pays nothing for it.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::mount;
use super::session::Session;
use super::slot::Slot;
use super::tree::Owner;
use crate::disk::Disk;
use crate::event::Events;
use crate::sys::fuse::{Waker, become_io_flusher};

/// How to serve.
#[derive(Debug, Clone)]
pub struct Options {
    /// Requests that are executed at the same time.
    pub threads: usize,
}

/// A mounted, served session. Dropped, it is stopped and unmounted.
pub struct Fuse {
    at: PathBuf,
    session: Arc<Session>,
    running: Arc<Running>,
    workers: Mutex<Vec<(Waker, JoinHandle<()>)>>,
}

#[derive(Default)]
struct Running {
    stopping: AtomicBool,
    workers: Mutex<usize>,
    ended: Condvar,
}

impl Fuse {
    /// Mounts at `at` and serves.
    ///
    /// # Errors
    /// See [`mount::mount`]; the kernel is older than 5.4; no thread could be started.
    pub fn mount(at: &Path, options: &Options, events: Arc<Events>) -> io::Result<Self> {
        let device = mount::mount(at)?;
        let opened = Session::open(device, events);
        let session = match opened {
            Ok(session) => Arc::new(session),
            Err(error) => {
                let _ = mount::unmount(at);
                return Err(error);
            }
        };
        let fuse = Self {
            at: at.to_owned(),
            session,
            running: Arc::default(),
            workers: Mutex::default(),
        };
        fuse.start(options.threads.max(1))?;
        Ok(fuse)
    }

    fn start(&self, threads: usize) -> io::Result<()> {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        for number in 0..threads {
            let (session, running) = (self.session.clone(), self.running.clone());
            let (send, receive) = mpsc::channel();
            *running.count() += 1;
            let worker = thread::Builder::new()
                .name(format!("fuse-{number}"))
                .spawn(move || {
                    let _ = send.send(Waker::current());
                    work(&session, &running);
                    *running.count() -= 1;
                    running.ended.notify_all();
                });
            let worker = worker.inspect_err(|_| *self.running.count() -= 1)?;
            let waker = receive.recv().map_err(io::Error::other)?;
            workers.push((waker, worker));
        }
        Ok(())
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Answers that the kernel refused: anything but 0 is a bug.
    #[must_use]
    pub fn refused_answers(&self) -> u64 {
        self.session.channel.refused()
    }

    /// The protocol's minor version that was agreed on.
    #[must_use]
    pub fn protocol_minor(&self) -> u32 {
        self.session.agreed.minor
    }

    /// Exposes a disk as `<mount>/<instance>/<name>`.
    ///
    /// # Errors
    /// EEXIST if that is taken, EINVAL for a name that no file can have.
    pub fn add(
        &self,
        instance: &str,
        name: &str,
        disk: Arc<dyn Disk>,
        owner: Owner,
    ) -> io::Result<()> {
        for part in [instance, name] {
            let fits = !part.is_empty() && part.len() <= 255;
            if !fits || part == "." || part == ".." || part.contains(['/', '\0']) {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
        }
        let added = self.session.disks_mut().add(instance, name, disk, owner);
        added
            .map(|_| ())
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EEXIST))
    }

    /// Hides a disk and waits until no worker is in it; what is parked there is the disk's to end.
    /// `None` if there is none of that name.
    pub fn remove(&self, instance: &str, name: &str) -> Option<Arc<dyn Disk>> {
        let removed = self.session.disks_mut().remove(instance, name)?;
        let parent = removed.parent;
        let node = Arc::downgrade(&removed.node);
        let disk = removed.node.disk.clone();
        let names = [
            (parent, name, true),
            (super::abi::ROOT, instance, removed.parent_gone),
        ];
        drop(removed);
        for (parent, name, _) in names.into_iter().filter(|&(.., gone)| gone) {
            if let Err(error) = self.session.channel.name_gone(parent, name) {
                let message = format!("the kernel keeps the name \"{instance}/{name}\": {error}");
                self.session.alarm(message);
            }
        }
        while node.strong_count() > 0 {
            thread::sleep(Duration::from_millis(1));
        }
        Some(disk)
    }

    /// Whether somebody has a disk's file open, as far as this process saw it opened.
    pub fn is_open(&self, instance: &str, name: &str) -> bool {
        let disks = self.session.disks();
        disks
            .named(instance, name)
            .is_some_and(|node| node.opens.load(Ordering::Relaxed) > 0)
    }

    /// A disk grew: who asks for its size hears it at once.
    pub fn grown(&self, instance: &str, name: &str) {
        let id = self
            .session
            .disks()
            .named(instance, name)
            .map(|node| node.id);
        if let Some(Err(error)) = id.map(|id| self.session.channel.attributes_changed(id)) {
            self.session.alarm(format!(
                "the kernel keeps the old size of \"{instance}/{name}\": {error}"
            ));
        }
    }

    /// Gives a disk's file to somebody. No event tells of it: the caller knows.
    ///
    /// # Errors
    /// ENOENT.
    pub fn set_owner(&self, instance: &str, name: &str, owner: Owner) -> io::Result<()> {
        let node = self.session.disks().named(instance, name).cloned();
        let node = node.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))?;
        if node.set_owner(owner) {
            self.session.channel.attributes_changed(node.id)?;
        }
        Ok(())
    }

    /// Waits until nobody serves any more: stopped, or the mount was taken away. `false` if that
    /// took longer than `timeout`.
    #[must_use]
    pub fn wait(&self, timeout: Duration) -> bool {
        let (workers, result) = self
            .running
            .ended
            .wait_timeout_while(self.running.count(), timeout, |workers| *workers > 0)
            .unwrap_or_else(PoisonError::into_inner);
        drop(workers);
        !result.timed_out()
    }

    /// Takes no more requests and finishes those that workers are in; the mount stays, and what it
    /// is asked waits in the kernel.
    pub fn stop(&self) {
        self.running.stopping.store(true, Ordering::SeqCst);
        let workers: Vec<_> = {
            let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
            workers.drain(..).collect()
        };
        for (waker, worker) in workers {
            while !worker.is_finished() {
                waker.wake();
                thread::sleep(Duration::from_millis(1));
            }
            let _ = worker.join();
        }
    }

    /// Stops, takes the mount away and ends its connection.
    ///
    /// # Errors
    /// The mount could not be taken away.
    pub fn unmount(&self) -> io::Result<()> {
        self.stop();
        mount::abort(&self.at);
        mount::unmount(&self.at)
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        let _ = self.unmount();
    }
}

impl Running {
    fn count(&self) -> std::sync::MutexGuard<'_, usize> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn work(session: &Session, running: &Running) {
    become_io_flusher();
    let mut slot = Slot::default();
    let mut device = session.channel.device();
    while !running.stopping.load(Ordering::SeqCst) {
        match device.read(slot.request_mut()) {
            Ok(len) => session.serve(&mut slot, len),
            Err(error) => match error.raw_os_error() {
                // Woken; or the request was taken back before it was read.
                Some(libc::EINTR | libc::ENOENT | libc::EAGAIN) => {}
                // Unmounted or aborted. Whoever did it knows, unless it was not us.
                Some(libc::ENODEV | libc::ECONNABORTED) => {
                    if !running.stopping.swap(true, Ordering::SeqCst) {
                        session.alarm("the FUSE mount was taken away from outside");
                    }
                }
                _ => {
                    session.alarm(format!("cannot read requests from /dev/fuse: {error}"));
                    thread::sleep(Duration::from_millis(100));
                }
            },
        }
    }
}
