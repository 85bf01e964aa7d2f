// SPDX-License-Identifier: Apache-2.0
//! The memory of one request: received into, executed in and answered from, without a copy.
//!
//! ```text
//!   0                          4016        4080 4096                        4096 + 1 MiB
//!   ├──── unused ──────────────┤           ├────┤
//!                              ├─ request header, arguments ─┤─ a WRITE's data ─────┤   received
//!                                          ├ answer's header ┤─ a READ's data ──────┤   answered
//! ```
//!
//! Data stands at a page's start either way, so that `O_DIRECT` takes it as it is, and right behind
//! its header, so that one read(2) receives and one write(2) answers. A request that parks leaves
//! nothing here: its slot takes the next one.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::abi::{OutHeader, WRITE_PREFIX};

/// The largest READ or WRITE: what the kernel takes by default (`fs.fuse.max_pages_limit`).
pub const DATA_BYTES_MAX: usize = 256 * PAGE_BYTES;
/// The kernel's unit of `max_pages`.
pub const PAGE_BYTES: usize = 4096;

#[derive(Clone, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; PAGE_BYTES]);

/// One request's memory.
pub struct Slot {
    pages: Box<[Page]>,
}

impl Default for Slot {
    fn default() -> Self {
        let pages = 1 + DATA_BYTES_MAX / PAGE_BYTES;
        Self {
            pages: vec![Page([0; PAGE_BYTES]); pages].into_boxed_slice(),
        }
    }
}

impl Slot {
    /// Where a request is received.
    pub fn request_mut(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_bytes()[PAGE_BYTES - WRITE_PREFIX..]
    }

    /// The request's first `len` bytes.
    #[must_use]
    pub fn request(&self, len: usize) -> &[u8] {
        &self.pages.as_bytes()[PAGE_BYTES - WRITE_PREFIX..][..len]
    }

    /// A WRITE's data, or where a READ's goes.
    pub fn data_mut(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_bytes()[PAGE_BYTES..]
    }

    /// An answer of the first `len` bytes of data.
    pub fn answer(&mut self, unique: u64, len: usize) -> &[u8] {
        let start = PAGE_BYTES - size_of::<OutHeader>();
        let bytes = &mut self.pages.as_mut_bytes()[start..PAGE_BYTES + len];
        let header = header(unique, 0, len);
        bytes[..size_of::<OutHeader>()].copy_from_slice(header.as_bytes());
        bytes
    }
}

/// An answer's header: `error` is 0 or a negative errno, `len` the bytes behind it.
#[must_use]
pub fn header(unique: u64, error: i32, len: usize) -> OutHeader {
    let len = size_of::<OutHeader>() + len;
    OutHeader {
        len: u32::try_from(len).unwrap_or(u32::MAX),
        error,
        unique,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_stands_at_a_page_whether_received_or_answered() {
        let mut slot = Slot::default();
        let data = slot.data_mut().as_ptr() as usize;
        assert_eq!(data % PAGE_BYTES, 0);
        assert_eq!(slot.request_mut().as_ptr() as usize + WRITE_PREFIX, data);
        assert_eq!(slot.answer(1, 9).as_ptr() as usize + 16, data);
    }

    #[test]
    fn an_answer_is_its_header_and_its_data() {
        let mut slot = Slot::default();
        slot.data_mut()[..3].copy_from_slice(b"abc");
        let answer = slot.answer(7, 3).to_vec();
        let (header, data) = OutHeader::read_from_prefix(&answer).expect("long enough");
        assert_eq!((header.len, header.error, header.unique), (19, 0, 7));
        assert_eq!(data, b"abc");
    }
}
