// SPDX-License-Identifier: Apache-2.0
//! INIT: what kernel and door agree on, once in a session's life.
//!
//! Asked for is what the data path needs; what is *not* asked for matters as much: POSIX and flock
//! locks (the kernel keeps them, and they outlive us), the write-back cache and `O_TRUNC` at open
//! (every byte and size is the disk's), `NO_OPEN` (OPEN's answer carries the direct-I/O flags).

use super::abi::{InitIn, InitInExtension, InitOut, MAJOR, MINOR, MINOR_MIN, init};
use super::slot::{DATA_BYTES_MAX, PAGE_BYTES};

const WANTED: u64 = init::ASYNC_READ
    | init::BIG_WRITES
    | init::ASYNC_DIO
    | init::PARALLEL_DIROPS
    | init::MAX_PAGES
    | init::INIT_EXT
    | init::HAS_RESEND;

/// Beyond it `io_submit(2)` on *any* file of the mount blocks its caller, QEMU's event loop: as
/// many as the protocol can say. Kernels take it only from who has `CAP_SYS_ADMIN` when INIT is answered.
const MAX_BACKGROUND: u16 = u16::MAX;

/// What was agreed on: part of the session's state, a successor needs it and gets no second INIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Agreed {
    /// The protocol's minor version.
    pub minor: u32,
    /// Flags that both sides know, `flags2` above bit 32.
    pub flags: u64,
}

/// The kernel speaks another protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel speaks FUSE {0}.{1}; 7.31 (Linux 5.4) is the oldest that works")]
pub struct TooOld(u32, u32);

#[allow(clippy::cast_possible_truncation)] // halves of 64 bits, and constants that fit
fn halves(flags: u64) -> (u32, u32) {
    (flags as u32, (flags >> 32) as u32)
}

/// Answers the kernel's offer; without `resend` as if it knew nothing of that.
///
/// # Errors
/// [`TooOld`].
#[allow(clippy::cast_possible_truncation)] // constants that fit
pub fn negotiate(
    offer: &InitIn,
    more: InitInExtension,
    resend: bool,
) -> Result<(Agreed, InitOut), TooOld> {
    if offer.major != MAJOR || offer.minor < MINOR_MIN {
        return Err(TooOld(offer.major, offer.minor));
    }
    let mut offered = u64::from(offer.flags);
    if offered & init::INIT_EXT != 0 {
        offered |= u64::from(more.flags2) << 32;
    }
    let agreed = Agreed {
        minor: offer.minor.min(MINOR),
        flags: offered
            & if resend {
                WANTED
            } else {
                WANTED & !init::HAS_RESEND
            },
    };
    let (flags, flags2) = halves(agreed.flags);
    let answer = InitOut {
        major: MAJOR,
        minor: agreed.minor,
        max_readahead: offer.max_readahead,
        flags,
        flags2,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write: DATA_BYTES_MAX as u32,
        time_gran: 1,
        max_pages: (DATA_BYTES_MAX / PAGE_BYTES) as u16,
        ..InitOut::default()
    };
    Ok((agreed, answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_that_the_kernel_does_not_know_are_not_asked_for() {
        let offer = InitIn {
            major: 7,
            minor: 34,
            max_readahead: 1,
            flags: 1 | 1 << 22,
        };
        let more = InitInExtension {
            flags2: u32::MAX,
            ..InitInExtension::default()
        };
        let (agreed, answer) = negotiate(&offer, more, true).expect("new enough");
        assert_eq!(agreed.flags, init::ASYNC_READ | init::MAX_PAGES);
        assert_eq!((answer.minor, answer.flags2), (34, 0));
    }

    #[test]
    fn a_new_kernel_is_asked_to_resend_and_never_for_remote_locks() {
        let offer = InitIn {
            major: 7,
            minor: 99,
            max_readahead: 1,
            flags: u32::MAX,
        };
        let more = InitInExtension {
            flags2: u32::MAX,
            ..InitInExtension::default()
        };
        let (agreed, answer) = negotiate(&offer, more, true).expect("new enough");
        assert_eq!(answer.minor, MINOR);
        assert_ne!(agreed.flags & init::HAS_RESEND, 0);
        assert_eq!(agreed.flags & (1 << 1 | 1 << 10), 0);
        assert_eq!(answer.max_background, 65535);
    }

    #[test]
    fn a_kernel_before_5_4_is_refused_by_name() {
        let offer = InitIn {
            major: 7,
            minor: 30,
            ..InitIn::default()
        };
        let error = negotiate(&offer, InitInExtension::default(), true).expect_err("too old");
        assert!(error.to_string().contains("7.30"));
    }
}
