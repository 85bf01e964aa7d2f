// SPDX-License-Identifier: Apache-2.0
//! Page-aligned memory, as `O_DIRECT` wants it.

use std::cell::RefCell;

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use crate::units::{BLOCK_BYTES, index};

#[derive(FromBytes, IntoBytes, Immutable)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// Page-aligned bytes, zeros at first.
#[derive(Default)]
pub struct Buffer {
    pages: Vec<Page>,
    len: usize,
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} bytes)", self.len)
    }
}

impl Buffer {
    /// `len` zeros.
    ///
    /// # Panics
    /// There is no memory.
    #[must_use]
    pub fn zeroed(len: usize) -> Self {
        let pages = Page::new_vec_zeroed(len.div_ceil(size_of::<Page>()));
        Self {
            pages: pages.expect("memory for a buffer"),
            len,
        }
    }

    /// A copy of `bytes`.
    #[must_use]
    pub fn copy_of(bytes: &[u8]) -> Self {
        let mut buffer = Self::zeroed(bytes.len());
        buffer.as_mut().copy_from_slice(bytes);
        buffer
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.pages.as_bytes()[..self.len]
    }
}

impl AsMut<[u8]> for Buffer {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut self.pages.as_mut_bytes()[..self.len]
    }
}

/// Whether `O_DIRECT` takes this memory as it is.
#[inline]
#[must_use]
pub fn is_aligned(bytes: &[u8]) -> bool {
    let block = index(BLOCK_BYTES);
    bytes.as_ptr().addr() % block == 0 && bytes.len() % block == 0
}

/// What a thread keeps for requests that are not aligned; longer ones allocate.
const BOUNCE_BYTES: usize = 1 << 20;

thread_local! {
    static BOUNCE: RefCell<Buffer> = RefCell::default();
}

/// Lends `len` aligned bytes of any content, the thread's own if they suffice.
pub fn with_bounce<T>(len: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    if len > BOUNCE_BYTES {
        return work(Buffer::zeroed(len).as_mut());
    }
    BOUNCE.with(|bounce| match bounce.try_borrow_mut() {
        Ok(mut bounce) => {
            if bounce.len < len {
                *bounce = Buffer::zeroed(BOUNCE_BYTES);
            }
            work(&mut bounce.as_mut()[..len])
        }
        // Nested use: rare, and correct.
        Err(_) => work(Buffer::zeroed(len).as_mut()),
    })
}
