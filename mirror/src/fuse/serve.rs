// SPDX-License-Identifier: Apache-2.0
//! The door from outside: mount it, put disks in, take them out, stop.
//!
//! # Threads
//!
//! `Options::threads` workers, each with a slot of its own, all reading the one descriptor (cloned
//! descriptors die with their process and would take their requests along). A stop ends their
//! read(2) by a signal: the data path pays nothing for it.
//!
//! The first of them holds a [`FirstPlace`] in the kernel's queue: a client that has one request at a
//! time meets the thread that has just served it, not one of sixteen in turn, each cold.
//!
//! # Lives
//!
//! Mounted or resumed, served, then one of: *unmounted* (the connection ends), *handed over* (mount
//! and descriptors stay, for a successor), dropped (as by a death: a successor may resume it as long
//! as somebody holds the descriptors).

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, Condvar, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::layout::Shape;
use super::memory::{Identity, Memory, slots};
use super::node::Owner;
use super::session::{Place, Session, handshake};
use super::{mount, point};
use crate::boot;
use crate::disk::Disk;
use crate::event::Events;
use crate::sys::fuse::{FirstPlace, Waker, become_io_flusher};
use crate::sys::shared::check_fuse;

/// How long a successor waits for the last thread of its predecessor.
const PATIENCE: Duration = Duration::from_secs(60);

/// Workers that hold a first place: a second one would take turns with it.
const FIRST: usize = 1;

/// How to serve.
#[derive(Debug, Clone)]
pub struct Options {
    /// Requests that are executed at the same time.
    pub threads: usize,
    /// The digest of the session's id: only who knows it resumes the session.
    pub session: [u8; 32],
    /// Let the kernel resend what a dead agent did not answer, if it can.
    pub resend: bool,
}

impl Options {
    fn identity(&self) -> io::Result<Identity> {
        let boot = boot::id().map_err(io::Error::other)?;
        Ok(Identity {
            boot,
            session: self.session,
        })
    }
}

/// A mounted session. Dropped, it is stopped; the mount lives as long as its descriptors.
pub struct Fuse {
    at: PathBuf,
    session: Arc<Session>,
    running: Arc<Running>,
    /// Until they are served.
    places: Mutex<Option<Vec<Place>>>,
    threads: usize,
    /// A predecessor served it.
    resumed: bool,
    handed_over: AtomicBool,
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
    /// See [`mount::mount`]; the kernel is older than 5.4; there is no memory for the session; no
    /// thread could be started.
    pub fn mount(at: &Path, options: &Options, events: Arc<Events>) -> io::Result<Self> {
        point::arm();
        let identity = options.identity()?;
        let threads = options.threads.max(1);
        // Larger than it may turn out to be needed: INIT comes later.
        let shape = Shape::of(threads, options.resend && mount::kernel_resends());
        let (memory, memories) = Memory::create(shape)?;
        let device = mount::mount(at)?;
        let mut slots = slots(memories);
        let believe = |agreed| memory.believe(shape, &identity, agreed);
        let agreed = match handshake(&device, &mut slots[0], options.resend, believe) {
            Ok(agreed) => agreed,
            Err(error) => {
                let _ = mount::unmount(at);
                return Err(error);
            }
        };
        let session = Session::new(device, agreed, memory, events);
        let places = slots.into_iter().map(|slot| session.place(slot)).collect();
        let fuse = Self::of(at, session, places, threads, false);
        fuse.serve().inspect_err(|_| {
            let _ = fuse.unmount();
        })?;
        Ok(fuse)
    }

    /// Takes over a predecessor's session, mounted at `at`; nothing is served before
    /// [`Fuse::serve`].
    ///
    /// # Errors
    /// See [`Memory::open`]; ENOTCONN: the connection has ended; ENODEV: that is no `/dev/fuse`.
    pub fn resume(
        at: &Path,
        device: &File,
        memory: &File,
        options: &Options,
        events: Arc<Events>,
    ) -> io::Result<Self> {
        point::arm();
        check_fuse(device)?;
        let opened = Memory::open(memory, &options.identity()?, PATIENCE, &events);
        let (memory, memories, agreed) = opened?;
        let session = Session::new(device.try_clone()?, agreed, memory, events);
        let places: Vec<_> = slots(memories)
            .into_iter()
            .map(|slot| session.place(slot))
            .collect();
        let threads = options.threads.clamp(1, places.len());
        Ok(Self::of(at, session, places, threads, true))
    }

    fn of(at: &Path, session: Session, places: Vec<Place>, threads: usize, resumed: bool) -> Self {
        Self {
            at: at.to_owned(),
            session: Arc::new(session),
            running: Arc::default(),
            places: Mutex::new(Some(places)),
            threads,
            resumed,
            handed_over: AtomicBool::new(false),
            workers: Mutex::default(),
        }
    }

    /// Finishes what a predecessor left, then serves; nothing if it is served.
    ///
    /// # Errors
    /// No thread could be started; the kernel refuses to resend.
    pub fn serve(&self) -> io::Result<()> {
        let mut waiting = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(places) = waiting.take() else {
            return Ok(());
        };
        drop(waiting);
        let finishes = self.resumed && !self.session.agreed.resends();
        if self.resumed && !finishes {
            self.session.note_all(&places);
            self.session.channel.resend()?;
        }
        let mut dealt: Vec<Vec<Place>> = (0..self.threads).map(|_| Vec::new()).collect();
        for (number, place) in places.into_iter().enumerate() {
            dealt[number % self.threads].push(place);
        }
        let barrier = finishes.then(|| Arc::new(Barrier::new(self.threads)));
        let mut inherited = finishes.then(|| self.session.parked.standing());
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, places) in dealt.into_iter().enumerate() {
            let (session, running) = (self.session.clone(), self.running.clone());
            let barrier = barrier.clone();
            let inherited = inherited.take();
            // Without one it is as good a worker.
            let place = || FirstPlace::of(session.channel.device()).ok();
            let first = (number < FIRST).then(place).flatten();
            let (send, receive) = mpsc::channel();
            *running.count() += 1;
            let worker = thread::Builder::new()
                .name(format!("fuse-{number}"))
                .spawn(move || {
                    let _ = send.send(Waker::current());
                    become_io_flusher();
                    let mut places = places;
                    if let Some(barrier) = barrier {
                        finish(&session, &mut places, &barrier, inherited.as_deref());
                    }
                    work(&session, &running, &mut places[0], first.as_ref());
                    *running.count() -= 1;
                    running.ended.notify_all();
                });
            let worker = worker.inspect_err(|_| *self.running.count() -= 1)?;
            let waker = receive.recv().map_err(io::Error::other)?;
            workers.push((waker, worker));
        }
        Ok(())
    }

    /// The descriptors by which a successor resumes: `/dev/fuse` and the session's memory.
    #[must_use]
    pub fn descriptors(&self) -> (&File, &File) {
        (self.session.channel.device(), self.session.memory.file())
    }

    /// Whether a predecessor served this disk and nobody has added it yet: its live map, if it is
    /// not clean, is all that tells what the guest was told.
    #[must_use]
    pub fn is_orphan(&self, instance: &str, name: &str) -> bool {
        self.session.disks().is_orphan(instance, name)
    }

    /// Takes no more requests, for good: mount and descriptors are a successor's.
    pub fn begin_hand_over(&self) {
        self.handed_over.store(true, Ordering::SeqCst);
        self.stop();
    }

    /// Completes nothing any more: what is parked by now is the successor's.
    pub fn leave_parked(&self) {
        self.session.parked.close();
    }

    /// Lets the successor begin, though this process lives on; last of all.
    ///
    /// # Errors
    /// The system's.
    pub fn release(&self) -> io::Result<()> {
        self.session.memory.release()
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
    /// EEXIST if that is taken, EINVAL for a name that no file can have, ENOSPC: the session's memory
    /// has no room for another disk.
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
        added.map(|_| ()).map_err(io::Error::from_raw_os_error)
    }

    /// Hides a disk and waits until no worker is in it; what is parked there is the disk's to end.
    /// `None` if there is none of that name.
    pub fn remove(&self, instance: &str, name: &str) -> Option<Arc<dyn Disk>> {
        let removed = {
            let mut disks = self.session.disks_mut();
            disks.forget_orphan(instance, name);
            disks.remove(instance, name)?
        };
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

    /// Whether somebody has a disk's file open, whoever served when it was opened.
    pub fn is_open(&self, instance: &str, name: &str) -> bool {
        let disks = self.session.disks();
        disks
            .named(instance, name)
            .is_some_and(|node| node.opens() > 0)
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
        // All at once: guests may wait for this.
        while workers.iter().any(|(_, worker)| !worker.is_finished()) {
            for (waker, _) in workers.iter().filter(|(_, worker)| !worker.is_finished()) {
                waker.wake();
            }
            thread::sleep(Duration::from_micros(500));
        }
        for (_, worker) in workers {
            let _ = worker.join();
        }
    }

    /// Stops, takes the mount away and ends its connection; nothing after
    /// [`Fuse::begin_hand_over`].
    ///
    /// # Errors
    /// The mount could not be taken away.
    pub fn unmount(&self) -> io::Result<()> {
        self.stop();
        if self.handed_over.load(Ordering::SeqCst) {
            return Ok(());
        }
        mount::abort(&self.at);
        mount::unmount(&self.at)
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Running {
    fn count(&self) -> std::sync::MutexGuard<'_, usize> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Finishes what stands in a worker's slots, and, once all have, what is parked. New requests wait
/// for the slots: one that overlaps must not be overtaken by an older one.
fn finish(session: &Session, places: &mut [Place], barrier: &Barrier, inherited: Option<&[usize]>) {
    for place in places.iter_mut() {
        session.finish_slot(place);
    }
    barrier.wait();
    if let Some(inherited) = inherited {
        session.finish_parked(&mut places[0], inherited);
    }
}

fn work(session: &Session, running: &Running, place: &mut Place, first: Option<&FirstPlace>) {
    let device = session.channel.device();
    while !running.stopping.load(Ordering::SeqCst) {
        if let Some(first) = first {
            // What was answered must not look as if it were under way while we wait.
            place.slot.clear();
            if first.wait().is_err() {
                continue;
            }
        }
        match place.slot.receive(device) {
            Ok(len) => {
                point::reached("received");
                session.serve(place, len);
            }
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
