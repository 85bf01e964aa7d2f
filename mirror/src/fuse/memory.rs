// SPDX-License-Identifier: Apache-2.0
//! The session memory: what a successor must know, in a memfd that outlives the agent.
//!
//! Whoever holds the descriptors of `/dev/fuse` and of this memory holds the session. `FORMAT.rst`
//! has every byte, [`super::layout`] where each area is; this says whose it is:
//!
//! | area | kept by | what |
//! | --- | --- | --- |
//! | header | here | INIT's result, whose session this is, counters that only grow |
//! | nodes | [`super::nodes`] | node ids, names, sizes, owners |
//! | ledger | [`super::ledger`] | what interrupts came, what was done and not answered, what may be poison |
//! | parked | [`super::parked`] | requests that wait |
//! | next, data | [`super::data`] | what parked writes still have to write |
//! | slots | [`super::slot`] | requests that workers are in |
//!
//! # Crash
//!
//! Nothing but plain stores, each area's in an order of its own, so that what stands at any moment
//! has one meaning; `super::takeover` has the table. The header is checked as a whole: its sum is
//! written first and its magic last, before INIT is answered, and it never changes again.
//!
//! # The fence
//!
//! A dead process's threads may still be in read(2), filling slots. Each engine therefore opens the
//! memory once more and holds an flock on that: a process's last thread to leave lets go of it. (The
//! descriptor that holders share would hold it for ever.)
//!
//! # Cost
//!
//! All of it is allocated, present and, if the limits allow, locked from the start: some 27 MiB for
//! 16 workers, and 66 MiB more where the kernel cannot resend and parked writes' data must be kept
//! ([`super::data`] takes more when it needs it).

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::abi::init;
use super::data::Room;
use super::layout::{PAGE_WORDS, Shape};
use super::negotiate::Agreed;
use super::slot::{DATA_BYTES_MAX, Slot};
use crate::event::{Event, Events};
use crate::sys::file::{try_lock, unlock};
use crate::sys::shared::{Carver, RequestMemory, Words, memory_file};
use crate::units::index;

const MAGIC: u64 = u64::from_ne_bytes(*b"LZIMSESS");
const FORMAT: u64 = 1;
const WORD_MAGIC: usize = 0;
const WORD_FORMAT: usize = 1;
const WORD_BYTES: usize = 2;
const WORD_SHAPE: usize = 3;
const WORD_BOOT: usize = 7;
const WORD_SESSION: usize = 9;
const WORD_MINOR: usize = 13;
const WORD_FLAGS: usize = 14;
const WORD_SUM: usize = 15;
/// The next node id.
pub const WORD_NEXT_NODE: usize = 16;
/// How many entries each ring of the ledger ever had.
pub const WORD_RINGS: usize = 17;

/// Whose session a memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// The kernel's boot id: descriptors of another boot do not exist.
    pub boot: [u8; 16],
    /// The digest of the session's id.
    pub session: [u8; 32],
}

/// The areas of one session's memory.
#[derive(Debug)]
pub struct Memory {
    file: File,
    fence: File,
    /// Counters, behind what is checked.
    pub header: Words,
    /// See [`super::nodes`].
    pub nodes: Words,
    /// See [`super::ledger`].
    pub interrupts: Words,
    /// See [`super::ledger`].
    pub done: Words,
    /// See [`super::ledger`].
    pub suspects: Words,
    /// See [`super::parked`].
    pub parked: Words,
    /// See [`super::data`]: the page that follows each page.
    pub next: Words,
    /// See [`super::data`]: the pages.
    pub room: Arc<Room>,
}

fn refused(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

impl Memory {
    /// Makes a memory and its slots; nobody believes it before [`Memory::believe`].
    ///
    /// # Errors
    /// There is no room.
    pub fn create(shape: Shape) -> io::Result<(Self, Vec<RequestMemory>)> {
        let file = memory_file(c"lazyimage-session", shape.bytes(), &shape.hole())?;
        let fence = reopened(&file)?;
        if !try_lock(&fence)? {
            return Err(refused("a new session memory is in use"));
        }
        Self::map(file, fence, shape)
    }

    fn map(file: File, fence: File, shape: Shape) -> io::Result<(Self, Vec<RequestMemory>)> {
        let mut carver = Carver::map(&file, shape.bytes())?;
        let header = carver.words(PAGE_WORDS);
        let [nodes, interrupts, done, suspects, parked, next, pages] = shape.areas();
        let [nodes, interrupts, done, suspects, parked, next] =
            [nodes, interrupts, done, suspects, parked, next].map(|words| carver.words(words));
        let pages = carver.absent_words(pages);
        pages.make_present(0..shape.pages_at_first() * PAGE_WORDS);
        let slots = (0..shape.slots)
            .map(|_| carver.request_memory(DATA_BYTES_MAX))
            .collect();
        let room = Room::new(file.try_clone()?, shape.pages_at(), pages);
        let memory = Self {
            file,
            fence,
            header,
            nodes,
            interrupts,
            done,
            suspects,
            parked,
            next,
            room: Arc::new(room),
        };
        Ok((memory, slots))
    }

    /// Writes the header: from now on a successor may take the session over.
    pub fn believe(&self, shape: Shape, identity: &Identity, agreed: Agreed) {
        let header = &self.header;
        header.set(WORD_FORMAT, FORMAT);
        header.set(WORD_BYTES, shape.bytes() as u64);
        for (at, count) in (WORD_SHAPE..).zip(shape.words()) {
            header.set(at, count);
        }
        header.put(WORD_BOOT, &identity.boot);
        header.put(WORD_SESSION, &identity.session);
        header.set(WORD_MINOR, agreed.minor.into());
        header.set(WORD_FLAGS, agreed.flags);
        header.put(WORD_SUM, &sum(header));
        header.set(WORD_MAGIC, MAGIC);
    }

    /// Opens a predecessor's memory, once the last of its threads is gone.
    ///
    /// # Errors
    /// `InvalidData`: not a memory of this format, boot and session, or a torn one; EBUSY: another
    /// process serves it and goes on doing so.
    pub fn open(
        file: &File,
        identity: &Identity,
        patience: Duration,
        events: &Events,
    ) -> io::Result<(Self, Vec<RequestMemory>, Agreed)> {
        let (shape, agreed) = checked(file, identity)?;
        let fence = fenced(file, patience, events)?;
        let (memory, slots) = Self::map(file.try_clone()?, fence, shape)?;
        Ok((memory, slots, agreed))
    }

    /// Lets go of the fence: nobody here serves any more.
    ///
    /// # Errors
    /// The system's.
    pub fn release(&self) -> io::Result<()> {
        unlock(&self.fence)
    }

    /// To be handed to whoever outlives this process.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.file
    }
}

impl Agreed {
    /// Whether the kernel sends again what its server did not answer.
    #[must_use]
    pub fn resends(&self) -> bool {
        self.flags & init::HAS_RESEND != 0
    }
}

/// The first bytes of the digest of all that the header says.
fn sum(header: &Words) -> [u8; 8] {
    let mut bytes = [0; (WORD_SUM - WORD_FORMAT) * 8];
    header.copy(WORD_FORMAT, &mut bytes);
    let mut sum = [0; 8];
    sum.copy_from_slice(&blake3::hash(&bytes).as_bytes()[..8]);
    sum
}

/// What a memory's header says, if all of it may be believed.
fn checked(file: &File, identity: &Identity) -> io::Result<(Shape, Agreed)> {
    let bytes = file.metadata()?.len();
    let words = Carver::map(file, index(bytes))
        .map_err(|_| refused("the descriptor is no session memory"))?
        .words(PAGE_WORDS);
    if words.get(WORD_MAGIC) != MAGIC {
        return Err(refused(
            "the session memory is not whole: it has no header yet",
        ));
    }
    if words.get(WORD_FORMAT) != FORMAT {
        let format = words.get(WORD_FORMAT);
        return Err(refused(&format!(
            "the session memory has format {format}; {FORMAT} is known here"
        )));
    }
    let mut found = Identity {
        boot: [0; 16],
        session: [0; 32],
    };
    words.copy(WORD_BOOT, &mut found.boot);
    words.copy(WORD_SESSION, &mut found.session);
    let count = |at| usize::try_from(words.get(WORD_SHAPE + at)).unwrap_or(usize::MAX);
    let shape = Shape {
        slots: count(0),
        nodes: count(1),
        parked: count(2),
        pages: count(3),
    };
    let mut noted = [0; 8];
    words.copy(WORD_SUM, &mut noted);
    let whole = noted == sum(&words)
        && shape.words().iter().all(|&count| count < 1 << 24)
        && shape.bytes() as u64 == bytes
        && words.get(WORD_BYTES) == bytes;
    if !whole {
        return Err(refused("the header of the session memory is torn"));
    }
    if found.boot != identity.boot {
        return Err(refused("the session memory is of another boot"));
    }
    if found.session != identity.session {
        return Err(refused("the session memory is another session's"));
    }
    let agreed = Agreed {
        minor: u32::try_from(words.get(WORD_MINOR)).unwrap_or(0),
        flags: words.get(WORD_FLAGS),
    };
    Ok((shape, agreed))
}

/// The memory's slots, ready to receive.
pub fn slots(memories: Vec<RequestMemory>) -> Vec<Slot> {
    memories.into_iter().map(Slot::new).collect()
}

/// The same memory, opened anew.
fn reopened(file: &File) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    File::options().read(true).write(true).open(path)
}

fn fenced(file: &File, patience: Duration, events: &Events) -> io::Result<File> {
    const ALARM_AFTER: Duration = Duration::from_secs(2);
    let fence = reopened(file)?;
    let begun = Instant::now();
    let mut alarmed = false;
    while !try_lock(&fence)? {
        if begun.elapsed() > patience {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        if begun.elapsed() > ALARM_AFTER && !alarmed {
            alarmed = true;
            let what = "waiting for another process that serves the session";
            events.push(
                Event::new("alarm")
                    .text("what", what)
                    .text("holder", crate::fence::holder(&fence)),
            );
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(fence)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Enough for a test.
    pub const SMALL: Shape = Shape {
        slots: 2,
        nodes: 8,
        parked: 8,
        pages: 4,
    };
    const IDENTITY: Identity = Identity {
        boot: [1; 16],
        session: [2; 32],
    };
    const AGREED: Agreed = Agreed {
        minor: 41,
        flags: init::MAX_PAGES,
    };

    fn made() -> File {
        let (memory, _) = Memory::create(SMALL).expect("room");
        memory.believe(SMALL, &IDENTITY, AGREED);
        memory.file().try_clone().expect("a descriptor")
    }

    fn open(file: &File, identity: &Identity) -> io::Result<Agreed> {
        let events = Events::default();
        let opened = Memory::open(file, identity, Duration::ZERO, &events);
        opened.map(|(_, slots, agreed)| {
            assert_eq!(slots.len(), SMALL.slots);
            agreed
        })
    }

    #[test]
    fn what_was_agreed_is_read_back() {
        assert_eq!(open(&made(), &IDENTITY).expect("whole"), AGREED);
    }

    #[test]
    fn any_flipped_byte_of_the_header_is_refused() {
        use std::os::unix::fs::FileExt;
        for at in 0..(WORD_SUM + 1) as u64 * 8 {
            let file = made();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("a memory");
            file.write_all_at(&[byte[0] ^ 0x10], at).expect("a memory");
            let refused = open(&file, &IDENTITY).expect_err("it is torn");
            assert_eq!(refused.kind(), io::ErrorKind::InvalidData, "byte {at}");
        }
    }

    #[test]
    fn a_memory_of_another_boot_or_session_is_refused_by_name() {
        let mut other = IDENTITY;
        other.boot[3] ^= 1;
        let error = open(&made(), &other).expect_err("another boot");
        assert!(error.to_string().contains("boot"));
        let mut other = IDENTITY;
        other.session[3] ^= 1;
        let error = open(&made(), &other).expect_err("another session");
        assert!(error.to_string().contains("session's"));
    }

    #[test]
    fn a_memory_that_is_served_is_busy() {
        let (memory, _) = Memory::create(SMALL).expect("room");
        memory.believe(SMALL, &IDENTITY, AGREED);
        let file = memory.file().try_clone().expect("a descriptor");
        let busy = open(&file, &IDENTITY);
        assert_eq!(busy.expect_err("served").raw_os_error(), Some(libc::EBUSY));
        drop(memory);
        assert!(open(&file, &IDENTITY).is_ok());
    }
}
