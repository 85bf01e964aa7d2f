// SPDX-License-Identifier: Apache-2.0
//! The FUSE protocol's messages, as `linux/fuse.h` lays them out (protocol 7.41).
//!
//! Only what this door sends or understands. All integers are in the host's byte order; every
//! structure has the kernel's size, which `tests` pin. What is an `int` to the caller is signed here.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The protocol that we speak.
pub const MAJOR: u32 = 7;
/// The newest minor version whose messages are known here.
pub const MINOR: u32 = 41;
/// The oldest that is served (Linux 5.4): INIT's long answer, 64-bit LSEEK, `max_pages`.
pub const MINOR_MIN: u32 = 31;
/// The node id of the mount's root.
pub const ROOT: u64 = 1;

/// What a request asks for.
pub mod op {
    #![allow(missing_docs)]
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const IOCTL: u32 = 39;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const TMPFILE: u32 = 51;
}

/// INIT's flags; those from bit 32 on travel in `flags2`.
pub mod init {
    #![allow(missing_docs)]
    pub const ASYNC_READ: u64 = 1;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const INIT_EXT: u64 = 1 << 30;
    pub const HAS_RESEND: u64 = 1 << 39;
}

/// OPEN's answer: every read and write comes to the door.
pub const FOPEN_DIRECT_IO: u32 = 1;
/// OPEN's answer: direct writes to one inode need not queue behind each other.
pub const FOPEN_PARALLEL_DIRECT_WRITES: u32 = 1 << 6;

/// SETATTR's `valid`.
pub mod set {
    #![allow(missing_docs)]
    pub const MODE: u32 = 1;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
}

/// A notification that an inode's attributes are stale.
pub const NOTIFY_INVAL_INODE: i32 = 2;
/// A notification that a name is gone.
pub const NOTIFY_INVAL_ENTRY: i32 = 3;

/// Asks the kernel to send again what was read and not answered.
pub const NOTIFY_RESEND: i32 = 7;
/// In the name of a request that is sent again.
pub const UNIQUE_RESEND: u64 = 1 << 63;

/// In front of every request.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct InHeader {
    /// Of the whole request.
    pub len: u32,
    /// One of [`op`].
    pub opcode: u32,
    /// Names the request; all 64 bits are the kernel's business.
    pub unique: u64,
    /// What it is about.
    pub nodeid: u64,
    /// The caller.
    pub uid: u32,
    /// The caller.
    pub gid: u32,
    /// The caller.
    pub pid: u32,
    /// Extensions behind the request (never negotiated), and padding.
    pub extensions: u32,
}

/// In front of every answer and notification.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct OutHeader {
    /// Of the whole answer.
    pub len: u32,
    /// A negative errno, or 0; a notification's code.
    pub error: i32,
    /// The request's; 0 in a notification.
    pub unique: u64,
}

macro_rules! message {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
        #[repr(C)]
        #[allow(missing_docs)]
        pub struct $name { $(pub $field: $type),* }
    };
}

message!(
    /// The kernel's offer.
    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32 }
);
message!(
    /// The rest of the offer, from protocol 7.36 on.
    InitInExtension { flags2: u32, unused: [u32; 11] }
);
message!(
    /// What is agreed on.
    InitOut {
        major: u32,
        minor: u32,
        max_readahead: u32,
        flags: u32,
        max_background: u16,
        congestion_threshold: u16,
        max_write: u32,
        time_gran: u32,
        max_pages: u16,
        map_alignment: u16,
        flags2: u32,
        max_stack_depth: u32,
        request_timeout: u16,
        unused: [u16; 11],
    }
);
message!(
    /// What stat(2) shows.
    Attr {
        ino: u64,
        size: u64,
        blocks: u64,
        atime: u64,
        mtime: u64,
        ctime: u64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        nlink: u32,
        uid: u32,
        gid: u32,
        rdev: u32,
        blksize: u32,
        flags: u32,
    }
);
message!(
    /// LOOKUP's answer.
    EntryOut {
        nodeid: u64,
        generation: u64,
        entry_valid: u64,
        attr_valid: u64,
        entry_valid_nsec: u32,
        attr_valid_nsec: u32,
        attr: Attr,
    }
);
message!(
    /// The answer of GETATTR and SETATTR.
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
);
message!(
    /// chmod, chown, truncate, utimes.
    SetattrIn {
        valid: u32,
        padding: u32,
        fh: u64,
        size: u64,
        lock_owner: u64,
        atime: u64,
        mtime: u64,
        ctime: u64,
        atimensec: u32,
        mtimensec: u32,
        ctimensec: u32,
        mode: u32,
        unused4: u32,
        uid: u32,
        gid: u32,
        unused5: u32,
    }
);
message!(
    /// A handle; ours carries no state.
    OpenOut { fh: u64, open_flags: u32, backing_id: i32 }
);
message!(
    /// READ and READDIR.
    ReadIn {
        fh: u64,
        offset: u64,
        size: u32,
        read_flags: u32,
        lock_owner: u64,
        flags: i32,
        padding: u32,
    }
);
message!(
    /// WRITE; its data follows.
    WriteIn {
        fh: u64,
        offset: u64,
        size: u32,
        write_flags: u32,
        lock_owner: u64,
        flags: i32,
        padding: u32,
    }
);
message!(
    /// How much was written.
    WriteOut { size: u32, padding: u32 }
);
message!(
    /// STATFS's answer.
    StatfsOut {
        blocks: u64,
        bfree: u64,
        bavail: u64,
        files: u64,
        ffree: u64,
        bsize: u32,
        namelen: u32,
        frsize: u32,
        padding: u32,
        spare: [u32; 6],
    }
);
message!(
    /// Which request is to end early.
    InterruptIn { unique: u64 }
);
message!(
    /// fallocate(2).
    FallocateIn { fh: u64, offset: u64, length: u64, mode: i32, padding: u32 }
);
message!(
    /// `SEEK_DATA`, `SEEK_HOLE`.
    LseekIn { fh: u64, offset: u64, whence: i32, padding: u32 }
);
message!(
    /// Where to.
    LseekOut { offset: u64 }
);
message!(
    /// One name of READDIR's answer; the name follows, padded to 8 bytes.
    Dirent { ino: u64, off: u64, namelen: u32, kind: u32 }
);
message!(
    /// [`NOTIFY_INVAL_INODE`]; a negative offset: attributes only.
    NotifyInvalInodeOut { ino: u64, off: i64, len: i64 }
);
message!(
    /// [`NOTIFY_INVAL_ENTRY`]; the name and a zero byte follow.
    NotifyInvalEntryOut { parent: u64, namelen: u32, flags: u32 }
);

/// The bytes in front of a WRITE's data.
pub const WRITE_PREFIX: usize = size_of::<InHeader>() + size_of::<WriteIn>();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_has_the_kernels_size() {
        let sizes = [
            (size_of::<InHeader>(), 40),
            (size_of::<OutHeader>(), 16),
            (size_of::<InitIn>() + size_of::<InitInExtension>(), 64),
            (size_of::<InitOut>(), 64),
            (size_of::<Attr>(), 88),
            (size_of::<EntryOut>(), 128),
            (size_of::<AttrOut>(), 104),
            (size_of::<SetattrIn>(), 88),
            (size_of::<OpenOut>(), 16),
            (size_of::<ReadIn>(), 40),
            (size_of::<WriteIn>(), 40),
            (size_of::<WriteOut>(), 8),
            (size_of::<StatfsOut>(), 80),
            (size_of::<FallocateIn>(), 32),
            (size_of::<LseekIn>(), 24),
            (size_of::<Dirent>(), 24),
            (size_of::<NotifyInvalInodeOut>(), 24),
            (size_of::<NotifyInvalEntryOut>(), 16),
        ];
        for (ours, kernels) in sizes {
            assert_eq!(ours, kernels);
        }
        assert_eq!(WRITE_PREFIX, 80);
    }
}
