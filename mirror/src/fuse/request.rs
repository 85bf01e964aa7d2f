// SPDX-License-Identifier: Apache-2.0
//! Taking a request apart. The kernel is trusted to be honest, not to be free of bugs: a length
//! that does not fit is an error of that request, never a panic.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::abi::InHeader;

/// A request whose lengths contradict each other.
#[derive(Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Shorter than a header, or than its header says: it cannot even be answered.
    Header,
    /// Its arguments are missing or cut off.
    Arguments,
}

/// Splits a request into its header and the rest.
///
/// # Errors
/// [`Malformed::Header`].
pub fn split(bytes: &[u8]) -> Result<(InHeader, &[u8]), Malformed> {
    let (header, rest) = InHeader::read_from_prefix(bytes).map_err(|_| Malformed::Header)?;
    if header.len as usize == bytes.len() {
        Ok((header, rest))
    } else {
        Err(Malformed::Header)
    }
}

/// The header of a request of `len` bytes, and its first arguments, of which `head` holds what fits.
///
/// # Errors
/// [`Malformed::Header`].
pub fn begin(head: &[u8], len: usize) -> Result<(InHeader, &[u8]), Malformed> {
    let head = &head[..len.min(head.len())];
    let (header, rest) = InHeader::read_from_prefix(head).map_err(|_| Malformed::Header)?;
    if header.len as usize == len {
        Ok((header, rest))
    } else {
        Err(Malformed::Header)
    }
}

/// The arguments at the start of `rest`, and what follows them.
///
/// # Errors
/// [`Malformed::Arguments`].
pub fn arguments<T: FromBytes + KnownLayout + Immutable>(
    rest: &[u8],
) -> Result<(T, &[u8]), Malformed> {
    T::read_from_prefix(rest).map_err(|_| Malformed::Arguments)
}

/// A name, which ends at its zero byte.
///
/// # Errors
/// [`Malformed::Arguments`] without one, or if it is empty.
pub fn name(rest: &[u8]) -> Result<&OsStr, Malformed> {
    match rest.iter().position(|byte| *byte == 0) {
        None | Some(0) => Err(Malformed::Arguments),
        Some(end) => Ok(OsStr::from_bytes(&rest[..end])),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zerocopy::IntoBytes;

    use super::super::abi::{ReadIn, op};
    use super::*;

    fn request(len: u32, rest: &[u8]) -> Vec<u8> {
        let header = InHeader {
            len,
            opcode: op::READ,
            unique: 2,
            nodeid: 1,
            uid: 0,
            gid: 0,
            pid: 0,
            extensions: 0,
        };
        [header.as_bytes(), rest].concat()
    }

    #[test]
    fn a_whole_request_is_header_and_arguments() {
        let read = ReadIn {
            offset: 4096,
            size: 512,
            ..ReadIn::default()
        };
        let bytes = request(80, read.as_bytes());
        let (header, rest) = split(&bytes).expect("whole");
        assert_eq!(header.opcode, op::READ);
        let (got, rest) = arguments::<ReadIn>(rest).expect("whole");
        assert_eq!((got.offset, got.size, rest.len()), (4096, 512, 0));
    }

    #[test]
    fn a_header_that_is_short_or_lies_about_its_length_is_refused() {
        let bytes = request(40, b"");
        assert_eq!(split(&bytes[..39]).err(), Some(Malformed::Header));
        for len in [0, 39, 41, u32::MAX] {
            assert_eq!(split(&request(len, b"")).err(), Some(Malformed::Header));
        }
    }

    #[test]
    fn arguments_that_are_cut_off_are_refused() {
        let bytes = request(79, &[0; 39]);
        let (_, rest) = split(&bytes).expect("the header is whole");
        assert_eq!(arguments::<ReadIn>(rest).err(), Some(Malformed::Arguments));
    }

    #[test]
    fn a_name_without_its_zero_byte_or_without_a_letter_is_refused() {
        assert_eq!(name(b"disk\0rest"), Ok(OsStr::new("disk")));
        assert_eq!(name(b"disk"), Err(Malformed::Arguments));
        assert_eq!(name(b"\0"), Err(Malformed::Arguments));
        assert_eq!(name(b""), Err(Malformed::Arguments));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok((_, rest)) = split(&bytes) {
                let _ = arguments::<ReadIn>(rest);
                let _ = name(rest);
            }
        }
    }
}
