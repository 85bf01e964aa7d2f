// SPDX-License-Identifier: Apache-2.0
//! Memory that a successor maps again: a memfd, its words, and the buffers that requests are read into.
//!
//! [`Carver`] hands every byte of a mapping out once, as [`Words`] (atomics, shared) or as a
//! [`RequestMemory`] (one owner), so that neither can alias the other.
#![allow(unsafe_code)]

use super::death;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The unit of carving, and of the kernel.
pub const PAGE_BYTES: usize = 4096;
const WORD_BYTES: usize = size_of::<AtomicU64>();

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// A memfd of `len` bytes of zeros, all but a `hole` of them allocated: no later touch lacks memory.
/// Sealed against every change of size: no later touch finds the end of the file.
///
/// # Errors
/// The system's: there is no room.
pub fn memory_file(name: &CStr, len: usize, hole: &Range<usize>) -> io::Result<File> {
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    // SAFETY: a NUL-terminated string that outlives the call.
    let fd = check(unsafe { libc::memfd_create(name.as_ptr(), flags) })?;
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(len as u64)?;
    for part in [0..hole.start, hole.end..len] {
        if !part.is_empty() {
            super::file::preallocate(&file, part.start as u64, part.len() as u64)?;
        }
    }
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: the descriptor is open; no memory is handed over.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
    Ok(file)
}

/// Whether a file is sealed as [`memory_file`] seals it.
#[must_use]
pub fn is_sealed(file: &File) -> bool {
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
    // SAFETY: the descriptor is open; no memory is handed over.
    let found = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    found >= 0 && found & seals == seals
}

/// Whether a descriptor is `/dev/fuse`, and whether its connection lives.
///
/// # Errors
/// ENODEV: it is something else; ENOTCONN: the connection has ended, or never began.
pub fn check_fuse(device: &File) -> io::Result<()> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    const FUSE: u64 = 0x0a_e5; // 10:229, linux/miscdevice.h
    let meta = device.metadata()?;
    if !meta.file_type().is_char_device() || meta.rdev() != FUSE {
        return Err(io::Error::from_raw_os_error(libc::ENODEV));
    }
    let mut poll = libc::pollfd {
        fd: device.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one `pollfd`, alive during the call.
    check(unsafe { libc::poll(&raw mut poll, 1, 0) })?;
    if poll.revents & (libc::POLLERR | libc::POLLHUP | libc::POLLNVAL) != 0 {
        return Err(io::Error::from_raw_os_error(libc::ENOTCONN));
    }
    Ok(())
}

/// Descriptors that somebody gave us, as files; `None` if one is not open or both are one.
#[must_use]
pub fn adopt(first: RawFd, second: RawFd) -> Option<(File, File)> {
    let mut files = [None, None];
    if first == second {
        return None;
    }
    for (fd, file) in [first, second].into_iter().zip(&mut files) {
        // SAFETY: takes no pointers; it fails if the descriptor is not open.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            disown(files);
            return None;
        }
        // SAFETY: the descriptor is open, and the caller's contract gives it to us.
        *file = Some(File::from(unsafe { OwnedFd::from_raw_fd(fd) }));
    }
    let [first, second] = files;
    first.zip(second)
}

/// Gives descriptors back to whom they belong: they stay open.
pub fn disown(files: impl IntoIterator<Item = Option<File>>) {
    use std::os::fd::IntoRawFd;
    for file in files.into_iter().flatten() {
        let _ = file.into_raw_fd();
    }
}

/// Ends this process as the kernel would: for tests that kill at a named point.
pub fn kill_this_process() {
    // SAFETY: takes no pointers.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is reached through `Words` (atomics) and `RequestMemory` (one owner) only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is the one that mmap gave; everything that points into it holds an Arc.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A mapping, handed out from front to back.
#[derive(Debug)]
pub struct Carver {
    mapping: Arc<Mapping>,
    at: usize,
}

impl Carver {
    /// Maps `len` bytes of a sealed file.
    ///
    /// # Errors
    /// The system's; EINVAL: the file is not sealed, or not `len` bytes long.
    pub fn map(file: &File, len: usize) -> io::Result<Self> {
        let whole = file.metadata()?.len() == len as u64 && len > 0 && len % PAGE_BYTES == 0;
        if !whole || !is_sealed(file) {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base =
            NonNull::new(base.cast()).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        Ok(Self {
            mapping: Arc::new(Mapping { base, len }),
            at: 0,
        })
    }

    fn take(&mut self, len: usize) -> NonNull<u8> {
        let len = len.next_multiple_of(PAGE_BYTES);
        assert!(len <= self.mapping.len - self.at, "carved past the end");
        // SAFETY: `at` is inside the mapping, by the line above.
        let taken = unsafe { self.mapping.base.add(self.at) };
        self.at += len;
        taken
    }

    /// The next `len` words, present; the rest of their last page is nobody's.
    pub fn words(&mut self, len: usize) -> Words {
        let words = self.absent_words(len);
        words.make_present(0..len);
        words
    }

    /// The next `len` words, which need not be allocated before [`Words::make_present`].
    pub fn absent_words(&mut self, len: usize) -> Words {
        let base = self.take(len * WORD_BYTES).cast();
        Words {
            _mapping: self.mapping.clone(),
            base,
            len,
        }
    }

    /// The next page and `data_bytes` behind it.
    pub fn request_memory(&mut self, data_bytes: usize) -> RequestMemory {
        let words = self.words(PAGE_BYTES / WORD_BYTES);
        let data = self.words(data_bytes / WORD_BYTES).base.cast();
        RequestMemory {
            words,
            data,
            data_bytes,
        }
    }
}

/// A run of shared words.
#[derive(Debug, Clone)]
pub struct Words {
    _mapping: Arc<Mapping>,
    base: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the words are reached as atomics only, and live as long as the mapping that it holds.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// How many.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Makes the pages of a run of words present and, if the limits allow, locked. It matters: when
    /// a process that is being killed has to fault while the kernel copies a request to it, that
    /// request fails in its caller.
    ///
    /// # Panics
    /// There are not so many.
    pub fn make_present(&self, words: Range<usize>) {
        if words.is_empty() {
            return;
        }
        let (first, last) = (self.word(words.start), self.word(words.end - 1));
        let start: *const AtomicU64 = first;
        let len = std::ptr::from_ref(last).addr() - start.addr() + WORD_BYTES;
        // SAFETY: the range is mapped; a refusal (limits) is no harm.
        unsafe { libc::mlock(start.cast(), len) };
        for word in words.step_by(PAGE_BYTES / WORD_BYTES) {
            // A write that changes nothing maps the page for writing.
            self.word(word).fetch_or(0, Ordering::Relaxed);
        }
    }

    /// One.
    ///
    /// # Panics
    /// There are not so many.
    #[inline]
    #[must_use]
    pub fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.len, "word {index} of {}", self.len);
        // SAFETY: inside the mapping, whose file is sealed at its length; page-aligned base.
        unsafe { self.base.add(index).as_ref() }
    }

    /// Its value.
    #[inline]
    #[must_use]
    pub fn get(&self, index: usize) -> u64 {
        self.word(index).load(Ordering::Acquire)
    }

    /// Stores behind every store before it.
    #[inline]
    pub fn set(&self, index: usize, value: u64) {
        let word = self.word(index);
        if death::spares_a_step() {
            word.store(value, Ordering::Release);
        }
    }

    /// Stores bytes from a word on; the last word is filled up with zeros.
    pub fn put(&self, index: usize, bytes: &[u8]) {
        for (at, part) in (index..).zip(bytes.chunks(WORD_BYTES)) {
            let mut word = [0; WORD_BYTES];
            word[..part.len()].copy_from_slice(part);
            let target = self.word(at);
            if death::spares_a_step() {
                target.store(u64::from_ne_bytes(word), Ordering::Relaxed);
            }
        }
    }

    /// Loads bytes from a word on.
    #[inline]
    pub fn copy(&self, index: usize, bytes: &mut [u8]) {
        for (at, part) in (index..).zip(bytes.chunks_mut(WORD_BYTES)) {
            let word = self.word(at).load(Ordering::Relaxed).to_ne_bytes();
            part.copy_from_slice(&word[..part.len()]);
        }
    }
}

/// A page of words and the data behind it: one read(2) fills both.
#[derive(Debug)]
pub struct RequestMemory {
    words: Words,
    data: NonNull<u8>,
    data_bytes: usize,
}

// SAFETY: the data has one owner, this value; the words are atomics.
unsafe impl Send for RequestMemory {}
// SAFETY: a shared reference gives shared references of the data only.
unsafe impl Sync for RequestMemory {}

impl RequestMemory {
    /// The page.
    #[must_use]
    pub fn words(&self) -> &Words {
        &self.words
    }

    /// The data.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        // SAFETY: the range is mapped and this value's alone; no `&mut` of it exists beside `&self`.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr(), self.data_bytes) }
    }

    /// The data.
    pub fn data_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; `&mut self` makes it the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr(), self.data_bytes) }
    }

    fn part(&self, word: usize, behind: usize) -> (*mut libc::c_void, usize) {
        assert!(word < self.words.len && behind <= self.data_bytes);
        // SAFETY: inside the page of words.
        let start = unsafe { self.words.base.add(word) };
        let len = (self.words.len - word) * WORD_BYTES + behind;
        (start.as_ptr().cast(), len)
    }

    /// One read(2) into the words from `word` on and the data behind them.
    ///
    /// # Errors
    /// The system's.
    #[inline]
    pub fn read(&mut self, file: &File, word: usize) -> io::Result<usize> {
        let (start, len) = self.part(word, self.data_bytes);
        // SAFETY: the range is mapped, and the data's only owner is borrowed for the call.
        let got = unsafe { libc::read(file.as_raw_fd(), start, len) };
        usize::try_from(got).map_err(|_| io::Error::last_os_error())
    }

    /// One write(2) of the words from `word` on and `len` bytes of data.
    ///
    /// # Errors
    /// The system's.
    #[inline]
    pub fn write(&self, file: &File, word: usize, len: usize) -> io::Result<usize> {
        let (start, len) = self.part(word, len);
        if !death::spares_a_step() {
            return Ok(len);
        }
        // SAFETY: the range is mapped; nobody changes the data while it is borrowed.
        let put = unsafe { libc::write(file.as_raw_fd(), start, len) };
        usize::try_from(put).map_err(|_| io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_memory_is_mapped_again_with_what_was_stored() {
        let file = memory_file(c"test", 4 * PAGE_BYTES, &(0..0)).expect("memory");
        let mut carver = Carver::map(&file, 4 * PAGE_BYTES).expect("mapped");
        carver.words(3).put(1, b"nine byte");
        let mut memory = carver.request_memory(8192);
        memory.data_mut()[8191] = 7;
        drop((carver, memory));
        let mut carver = Carver::map(&file, 4 * PAGE_BYTES).expect("mapped");
        let words = carver.words(3);
        let mut bytes = [0; 9];
        words.copy(1, &mut bytes);
        assert_eq!(&bytes, b"nine byte");
        assert_eq!(carver.request_memory(8192).data()[8191], 7);
    }

    #[test]
    fn a_file_that_could_still_shrink_or_is_shorter_is_refused() {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(4096).expect("room");
        assert!(Carver::map(&file, 4096).is_err());
        let file = memory_file(c"test", 4096, &(0..0)).expect("memory");
        assert!(Carver::map(&file, 8192).is_err());
        assert!(file.set_len(0).is_err());
    }

    #[test]
    fn a_device_that_is_another_is_refused() {
        let null = File::open("/dev/null").expect("there");
        let refused = check_fuse(&null).expect_err("it is not FUSE");
        assert_eq!(refused.raw_os_error(), Some(libc::ENODEV));
    }
}
