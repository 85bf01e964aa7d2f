// SPDX-License-Identifier: Apache-2.0
//! Chunk objects: what a chunk store keeps, as `lazyblob/FORMAT.rst` defines it.
//!
//! ```text
//!  0  magic "LZIM"        4  version 1      5  codec: 0 stored, 1 zstd
//!  6  kind: 0 chunk, 1 manifest node, 2 descriptor
//!  7  flags: dedupe scope, 0 repository, 1 project
//!  8  raw length u32     12  stored length u32
//! 16  first 8 bytes of BLAKE3(bytes 0..16, stored bytes)
//! 24  reserved, zero     32  stored bytes
//! ```
//!
//! Little-endian. A reader refuses whatever it does not know, trailing bytes included, before it
//! decompresses, and never writes past the size that it asked for: the bytes come from a network.

use zstd::zstd_safe;

use crate::error::{Error, Result};

/// The header's length.
pub const HEADER_BYTES: usize = 32;
const MAGIC: &[u8; 4] = b"LZIM";
const VERSION: u8 = 1;
const CODEC_STORED: u8 = 0;
const CODEC_ZSTD: u8 = 1;
const KIND_MAX: u8 = 2;
const FLAGS_MAX: u8 = 1;
/// A chunk.
pub const KIND_CHUNK: u8 = 0;

/// A header that was believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// 0 chunk, 1 manifest node, 2 descriptor.
    pub kind: u8,
    /// The content's length.
    pub raw_len: usize,
    codec: u8,
}

fn corrupt<T>(what: impl Into<String>) -> Result<T> {
    Err(Error::Corrupt(format!(
        "not a chunk object: {}",
        what.into()
    )))
}

fn word(bytes: &[u8], at: usize) -> usize {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word) as usize
}

/// Checks everything but the content.
///
/// # Errors
/// [`Error::Corrupt`] with the first thing that is wrong.
pub fn check(object: &[u8], size_bytes_max: usize) -> Result<Header> {
    if object.len() < HEADER_BYTES {
        return corrupt(format!("{} bytes, shorter than its header", object.len()));
    }
    let (header, stored) = object.split_at(HEADER_BYTES);
    if &header[..4] != MAGIC {
        return corrupt("wrong magic");
    }
    if header[4] != VERSION {
        return corrupt(format!("version {}", header[4]));
    }
    let (codec, kind, flags) = (header[5], header[6], header[7]);
    if codec > CODEC_ZSTD || kind > KIND_MAX || flags > FLAGS_MAX {
        return corrupt(format!("codec {codec}, kind {kind}, flags {flags}"));
    }
    if header[24..].iter().any(|&byte| byte != 0) {
        return corrupt("reserved bytes are not zero");
    }
    let (raw_len, stored_len) = (word(header, 8), word(header, 12));
    if stored_len != stored.len() {
        return corrupt(format!(
            "{} stored bytes where its header says {stored_len}",
            stored.len()
        ));
    }
    if raw_len == 0 {
        return corrupt("no content");
    }
    if raw_len > size_bytes_max {
        return corrupt(format!(
            "{raw_len} bytes where at most {size_bytes_max} fit"
        ));
    }
    if codec == CODEC_STORED && raw_len != stored_len {
        return corrupt(format!("stored plainly, but {raw_len} is not {stored_len}"));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header[..16]);
    hasher.update(stored);
    if hasher.finalize().as_bytes()[..8] != header[16..24] {
        return corrupt("wrong checksum");
    }
    if codec == CODEC_ZSTD {
        check_frame(stored, raw_len)?;
    }
    Ok(Header {
        kind,
        raw_len,
        codec,
    })
}

/// One frame, of the promised size, and nothing behind it.
fn check_frame(stored: &[u8], raw_len: usize) -> Result<()> {
    match zstd_safe::get_frame_content_size(stored) {
        Ok(Some(len)) if len == raw_len as u64 => {}
        Ok(Some(len)) => return corrupt(format!("a frame of {len} bytes, not {raw_len}")),
        _ => return corrupt("a frame that does not tell its size"),
    }
    match zstd_safe::find_frame_compressed_size(stored) {
        Ok(len) if len == stored.len() => Ok(()),
        Ok(_) => corrupt("bytes behind the frame"),
        Err(_) => corrupt("a frame that is cut off"),
    }
}

/// Makes of any bytes an object whose lengths and checksum agree, as far as they go (`fuzzing`).
#[cfg(any(test, feature = "fuzzing"))]
pub fn mend(object: &mut [u8]) {
    if object.len() < HEADER_BYTES {
        return;
    }
    let (header, stored) = object.split_at_mut(HEADER_BYTES);
    let len = |len: u64| u32::try_from(len).unwrap_or(0).to_le_bytes();
    header[..4].copy_from_slice(MAGIC);
    header[4] = VERSION;
    header[5] %= CODEC_ZSTD + 1;
    header[6] %= KIND_MAX + 1;
    header[7] %= FLAGS_MAX + 1;
    header[12..16].copy_from_slice(&len(stored.len() as u64));
    if header[5] == CODEC_STORED {
        header.copy_within(12..16, 8);
    } else if let Ok(Some(raw_len)) = zstd_safe::get_frame_content_size(stored) {
        header[8..12].copy_from_slice(&len(raw_len));
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&header[..16]);
    hasher.update(stored);
    header[16..24].copy_from_slice(&hasher.finalize().as_bytes()[..8]);
    header[24..].fill(0);
}

/// Decodes an object into the front of `content`; answers its header.
///
/// # Errors
/// [`Error::Corrupt`]: anything is off, or the content does not fit.
pub fn decode_into(object: &[u8], content: &mut [u8]) -> Result<Header> {
    let header = check(object, content.len())?;
    let stored = &object[HEADER_BYTES..];
    let content = &mut content[..header.raw_len];
    if header.codec == CODEC_STORED {
        content.copy_from_slice(stored);
        return Ok(header);
    }
    match zstd::bulk::decompress_to_buffer(stored, content) {
        Ok(len) if len == header.raw_len => Ok(header),
        Ok(len) => corrupt(format!("{len} bytes, not the {} promised", header.raw_len)),
        Err(error) => corrupt(format!("zstd: {error}")),
    }
}

/// The content of an object of any kind; no digest is checked.
///
/// # Errors
/// As [`decode_into`].
pub fn decode(object: &[u8], size_bytes_max: usize) -> Result<Vec<u8>> {
    let header = check(object, size_bytes_max)?;
    let mut content = vec![0; header.raw_len];
    decode_into(object, &mut content)?;
    Ok(content)
}
