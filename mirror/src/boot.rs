// SPDX-License-Identifier: Apache-2.0
//! Names that tell one life of the machine, or of a map, from the next.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};

/// The kernel's name of this boot.
pub fn id() -> Result<[u8; 16]> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16)
        .map(u128::to_be_bytes)
        .map_err(|_| Error::Invalid(format!("\"{}\" holds no boot id", path.display())))
}

/// A name that nothing else has.
pub fn nonce() -> Result<[u8; 16]> {
    let path = Path::new("/dev/urandom");
    let mut nonce = [0; 16];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut nonce))
        .map_err(|e| Error::io("read", path, e))?;
    Ok(nonce)
}
