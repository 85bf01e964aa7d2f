// SPDX-License-Identifier: Apache-2.0
//! What each request does.
//!
//! An operation answers by itself or returns the errno to answer with. READ, WRITE, FSYNC and
//! FALLOCATE go to the disk and may park; everything else is answered from memory at once, so that
//! no `stat` waits for a store.

use std::sync::Arc;

use zerocopy::IntoBytes;

use super::abi::{
    Attr, AttrOut, Dirent, EntryOut, FOPEN_DIRECT_IO, FOPEN_PARALLEL_DIRECT_WRITES, FallocateIn,
    InHeader, InterruptIn, LseekIn, LseekOut, OpenOut, ReadIn, SetattrIn, StatfsOut, UNIQUE_RESEND,
    WRITE_PREFIX, WriteIn, op, set,
};
use super::ledger::{FLUSH_OWED, Settled};
use super::node::{DiskNode, directory_attr};
use super::parked::opcode_and_size;
use super::point;
use super::request::{Malformed, arguments, begin, name};
use super::session::{Place, Session};
use super::tree::Found;
use crate::disk::{Answer, Errno};

/// How long the kernel may believe `st_size`, `st_blocks` and the owner (writes and SETATTR through
/// the mount end it, and growth is notified).
const ATTR_VALID_SECONDS: u64 = 1;
/// How long it may believe that a name is there (its end is notified).
const ENTRY_VALID_SECONDS: u64 = 60;
const BLOCK_BYTES: u64 = 4096;
/// More than any request has that is neither READ nor WRITE and says something: SETATTR, or a name.
const RARE_BYTES_MAX: usize = 1280;
/// What offsets and lengths under `O_DIRECT` are multiples of, as on a raw file. QEMU tries: where
/// any byte will do it takes 4096, and then refuses to write to a disk of 4096 × n + 512 bytes.
const SECTOR_BYTES: u64 = 512;

fn check_alignment(flags: i32, offset: u64, len: u32) -> Result<(), Errno> {
    let direct = flags & libc::O_DIRECT != 0;
    if direct && (offset | u64::from(len)) % SECTOR_BYTES != 0 {
        return Err(libc::EINVAL);
    }
    Ok(())
}

impl From<Malformed> for Errno {
    fn from(_: Malformed) -> Self {
        libc::EINVAL
    }
}

impl Session {
    /// Serves the request of `len` bytes that stands in a slot.
    pub(super) fn serve(&self, place: &mut Place, len: usize) {
        let head = place.slot.marks().head();
        let Ok((header, rest)) = begin(&head, len) else {
            self.alarm(format!(
                "a FUSE request of {len} bytes makes no sense; it is left unanswered"
            ));
            return;
        };
        let known = if header.unique & UNIQUE_RESEND == 0 {
            None
        } else {
            self.known(&header)
        };
        let result = match (known, header.opcode) {
            (Some(settled), _) => self.finish_settled(&header, place, settled),
            (None, op::READ) => self.read(&header, rest, place),
            (None, op::WRITE) => self.write(&header, rest, place, len),
            (None, _) => {
                let mut whole = [0; RARE_BYTES_MAX];
                let request = place.slot.request(len, &mut whole);
                let rest = &request[size_of::<InHeader>().min(request.len())..];
                self.rare(&header, rest, place)
            }
        };
        if let Err(errno) = result {
            place.slot.marks().settle(header.unique, -i64::from(errno));
            self.channel.error(header.unique, errno);
        }
    }

    /// Answers a request that was executed before, or all but its flush.
    pub(super) fn finish_settled(
        &self,
        header: &InHeader,
        place: &Place,
        settled: Settled,
    ) -> Result<(), Errno> {
        let marks = place.slot.marks();
        let size = opcode_and_size(&marks.head()).1;
        match (header.opcode, settled) {
            (_, FLUSH_OWED) => {
                let node = self.disk_or_eio(header)?;
                marks.settle(header.unique, FLUSH_OWED);
                match node.disk.flush(&place.door, header.unique) {
                    Answer::Done => self.channel.written(header.unique, size),
                    Answer::Failed(errno) => return Err(errno),
                    Answer::Parked => self.parked(&node.disk, header.unique),
                }
            }
            (_, error) if error < 0 => {
                return Err(i32::try_from(-error).unwrap_or(libc::EIO));
            }
            (op::WRITE, _) => self.channel.written(header.unique, size),
            (op::SETATTR, _) => return self.getattr(header),
            (op::OPEN, _) => self.opened(header),
            _ => self.channel.done(header.unique),
        }
        Ok(())
    }

    fn rare(&self, header: &InHeader, rest: &[u8], place: &Place) -> Result<(), Errno> {
        match header.opcode {
            op::LOOKUP => self.lookup(header, rest),
            op::GETATTR => self.getattr(header),
            op::SETATTR => self.setattr(header, rest, place),
            op::OPEN => self.open_file(header, place),
            op::FSYNC => self.fsync(header, place),
            op::FALLOCATE => self.fallocate(header, rest, place),
            op::LSEEK => self.lseek(header, rest),
            op::STATFS => {
                self.statfs(header);
                Ok(())
            }
            op::OPENDIR => {
                self.channel.message(header.unique, &OpenOut::default());
                Ok(())
            }
            op::READDIR => self.readdir(header, rest),
            op::RELEASE => {
                self.disks().count(header.nodeid, header.unique, false, || {
                    place.slot.marks().settle(header.unique, 0);
                });
                self.channel.done(header.unique);
                Ok(())
            }
            op::RELEASEDIR | op::FSYNCDIR | op::DESTROY => {
                self.channel.done(header.unique);
                Ok(())
            }
            op::INTERRUPT => {
                // Has no answer of its own.
                if let Ok((wanted, _)) = arguments::<InterruptIn>(rest) {
                    self.interrupt(wanted.unique);
                }
                Ok(())
            }
            // Have no answer; node ids are never given out again, so nothing is counted.
            op::FORGET | op::BATCH_FORGET => Ok(()),
            op::CREATE
            | op::MKNOD
            | op::MKDIR
            | op::UNLINK
            | op::RMDIR
            | op::RENAME
            | op::RENAME2
            | op::LINK
            | op::SYMLINK
            | op::TMPFILE => Err(libc::EPERM),
            // ENOSYS would do harm: the kernel would never ask again, or libvirt would be told a lie.
            op::IOCTL => Err(libc::ENOTTY),
            // The kernel remembers it and does without: FLUSH, extended attributes, locks, …
            _ => Err(libc::ENOSYS),
        }
    }

    /// A request to a disk that is gone: its files are open, but nothing is behind them.
    fn disk_or_eio(&self, header: &InHeader) -> Result<Arc<DiskNode>, Errno> {
        self.disk(header.nodeid).ok_or(libc::EIO)
    }

    fn read(&self, header: &InHeader, rest: &[u8], place: &mut Place) -> Result<(), Errno> {
        let (wanted, _) = arguments::<ReadIn>(rest)?;
        check_alignment(wanted.flags, wanted.offset, wanted.size)?;
        let node = self.disk_or_eio(header)?;
        let left = node.disk.size_bytes().saturating_sub(wanted.offset);
        let len = usize::try_from(left)
            .unwrap_or(usize::MAX)
            .min(wanted.size as usize);
        let buf = place.slot.data_mut().get_mut(..len).ok_or(libc::EINVAL)?;
        if len == 0 {
            self.channel.done(header.unique);
            return Ok(());
        }
        let door = &place.door;
        match node.disk.read(door, header.unique, wanted.offset, buf) {
            Answer::Done => self.channel.data(&mut place.slot, header.unique, len),
            Answer::Failed(errno) => return Err(errno),
            Answer::Parked => self.parked(&node.disk, header.unique),
        }
        Ok(())
    }

    fn write(
        &self,
        header: &InHeader,
        rest: &[u8],
        place: &Place,
        len: usize,
    ) -> Result<(), Errno> {
        let (wanted, _) = arguments::<WriteIn>(rest)?;
        // What was received of it, and no more than it says.
        let received = len - WRITE_PREFIX;
        let data = place.slot.data().get(..received).ok_or(libc::EINVAL)?;
        let data = data.get(..wanted.size as usize).ok_or(libc::EINVAL)?;
        check_alignment(wanted.flags, wanted.offset, wanted.size)?;
        let node = self.disk_or_eio(header)?;
        let end = wanted
            .offset
            .checked_add(wanted.size.into())
            .ok_or(libc::EFBIG)?;
        if end > node.disk.size_bytes() {
            return Err(libc::EFBIG);
        }
        if data.is_empty() {
            self.channel.written(header.unique, 0);
            return Ok(());
        }
        // O_SYNC contains O_DSYNC's bit. No FSYNC follows such a write.
        let durable = wanted.flags & libc::O_DSYNC != 0;
        node.touch();
        let (door, unique) = (&place.door, header.unique);
        match node.disk.write(door, unique, wanted.offset, data, durable) {
            Answer::Done => {
                point::reached("write-unsettled");
                place.slot.marks().settle(unique, wanted.size.into());
                point::reached("write-executed");
                self.channel.written(unique, wanted.size);
                point::reached("write-answered");
            }
            Answer::Failed(errno) => return Err(errno),
            Answer::Parked => self.parked(&node.disk, unique),
        }
        Ok(())
    }

    fn fsync(&self, header: &InHeader, place: &Place) -> Result<(), Errno> {
        let node = self.disk_or_eio(header)?;
        let answer = node.disk.flush(&place.door, header.unique);
        self.finish(header, &node, &answer)
    }

    fn fallocate(&self, header: &InHeader, rest: &[u8], place: &Place) -> Result<(), Errno> {
        const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
        const ZERO_KEEP: i32 = libc::FALLOC_FL_ZERO_RANGE | libc::FALLOC_FL_KEEP_SIZE;
        let (wanted, _) = arguments::<FallocateIn>(rest)?;
        let node = self.disk_or_eio(header)?;
        let size = node.disk.size_bytes();
        let end = wanted
            .offset
            .checked_add(wanted.length)
            .ok_or(libc::EFBIG)?;
        let mode = wanted.mode;
        match mode {
            PUNCH | ZERO_KEEP => {}
            ZERO if end <= size => {}
            ZERO => return Err(libc::EFBIG),
            _ => return Err(libc::EOPNOTSUPP),
        }
        let end = end.min(size);
        if wanted.offset >= end {
            self.channel.done(header.unique);
            return Ok(());
        }
        let (door, offset, len) = (&place.door, wanted.offset, end - wanted.offset);
        node.touch();
        let whole = offset % BLOCK_BYTES == 0 && len % BLOCK_BYTES == 0;
        let answer = if mode == PUNCH && whole {
            node.disk.discard(door, header.unique, offset, len)
        } else {
            node.disk.write_zeroes(door, header.unique, offset, len)
        };
        if answer == Answer::Done {
            place.slot.marks().settle(header.unique, 0);
        }
        self.finish(header, &node, &answer)
    }

    /// The end of a request that has nothing to say but that it is done.
    fn finish(&self, header: &InHeader, node: &DiskNode, answer: &Answer) -> Result<(), Errno> {
        match answer {
            Answer::Done => self.channel.done(header.unique),
            Answer::Failed(errno) => return Err(*errno),
            Answer::Parked => self.parked(&node.disk, header.unique),
        }
        Ok(())
    }

    fn lseek(&self, header: &InHeader, rest: &[u8]) -> Result<(), Errno> {
        let (wanted, _) = arguments::<LseekIn>(rest)?;
        let node = self.disk_or_eio(header)?;
        let hole = match wanted.whence {
            libc::SEEK_DATA => false,
            libc::SEEK_HOLE => true,
            _ => return Err(libc::EINVAL),
        };
        let size = node.disk.size_bytes();
        if wanted.offset >= size {
            return Err(libc::ENXIO);
        }
        // Every file ends with a hole.
        let end = if hole { Some(size) } else { None };
        let offset = node
            .disk
            .seek(wanted.offset, hole)
            .or(end)
            .ok_or(libc::ENXIO)?;
        self.channel.message(
            header.unique,
            &LseekOut {
                offset: offset.min(size),
            },
        );
        Ok(())
    }

    fn lookup(&self, header: &InHeader, rest: &[u8]) -> Result<(), Errno> {
        let name = name(rest)?.to_str().ok_or(libc::ENOENT)?;
        let found = self
            .disks()
            .lookup(header.nodeid, name)
            .ok_or(libc::ENOENT)?;
        let attr = attr(&found);
        let answer = EntryOut {
            nodeid: attr.ino,
            entry_valid: ENTRY_VALID_SECONDS,
            attr_valid: ATTR_VALID_SECONDS,
            attr,
            ..EntryOut::default()
        };
        self.channel.message(header.unique, &answer);
        Ok(())
    }

    fn find(&self, header: &InHeader) -> Result<Found, Errno> {
        self.disks().node(header.nodeid).ok_or(libc::ESTALE)
    }

    fn getattr(&self, header: &InHeader) -> Result<(), Errno> {
        let found = self.find(header)?;
        self.attributes(header, attr(&found));
        Ok(())
    }

    fn attributes(&self, header: &InHeader, attr: Attr) {
        let answer = AttrOut {
            attr_valid: ATTR_VALID_SECONDS,
            attr,
            ..AttrOut::default()
        };
        self.channel.message(header.unique, &answer);
    }

    fn setattr(&self, header: &InHeader, rest: &[u8], place: &Place) -> Result<(), Errno> {
        let (wanted, _) = arguments::<SetattrIn>(rest)?;
        let Found::Disk(node) = self.find(header)? else {
            return Err(libc::EPERM);
        };
        // A disk grows through the agent, which makes its maps larger first, and never shrinks.
        if wanted.valid & set::SIZE != 0 && wanted.size != node.disk.size_bytes() {
            return Err(libc::EPERM);
        }
        if node.change(&wanted) {
            self.owner_changed(&node);
        }
        place.slot.marks().settle(header.unique, 0);
        self.attributes(header, node.attr());
        Ok(())
    }

    fn open_file(&self, header: &InHeader, place: &Place) -> Result<(), Errno> {
        let disks = self.disks();
        disks.disk(header.nodeid).ok_or(libc::ESTALE)?;
        disks.count(header.nodeid, header.unique, true, || {
            place.slot.marks().settle(header.unique, 0);
        });
        drop(disks);
        self.opened(header);
        Ok(())
    }

    fn opened(&self, header: &InHeader) {
        let answer = OpenOut {
            open_flags: FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES,
            ..OpenOut::default()
        };
        self.channel.message(header.unique, &answer);
    }

    fn statfs(&self, header: &InHeader) {
        // "Used" is what is local: no tool that watches for full file systems is alarmed.
        let disks = self.disks();
        let blocks = |bytes: u64| bytes.div_ceil(BLOCK_BYTES);
        let (mut size, mut used, mut files) = (0, 0, 0);
        for node in disks.all() {
            size += blocks(node.disk.size_bytes());
            used += blocks(node.disk.local_bytes());
            files += 1;
        }
        drop(disks);
        let free = u64::saturating_sub(size, used);
        let answer = StatfsOut {
            blocks: size,
            bfree: free,
            bavail: free,
            files,
            bsize: 4096,
            frsize: 4096,
            namelen: 255,
            ..StatfsOut::default()
        };
        self.channel.message(header.unique, &answer);
    }

    fn readdir(&self, header: &InHeader, rest: &[u8]) -> Result<(), Errno> {
        let (wanted, _) = arguments::<ReadIn>(rest)?;
        let dots = [(1, "."), (2, "..")];
        let listed = self.disks().list(header.nodeid, wanted.offset);
        let dots = dots
            .into_iter()
            .filter(|(position, _)| *position > wanted.offset)
            .map(|(position, name)| (header.nodeid, position, name, true));
        let names = listed
            .iter()
            .map(|entry| (entry.id, entry.id, entry.name.as_str(), entry.directory));
        let mut answer = Vec::new();
        for (ino, off, name, directory) in dots.chain(names) {
            let kind = if directory {
                libc::S_IFDIR
            } else {
                libc::S_IFREG
            } >> 12;
            let namelen = u32::try_from(name.len()).map_err(|_| libc::ENAMETOOLONG)?;
            let padded = (size_of::<Dirent>() + name.len()).next_multiple_of(8);
            if answer.len() + padded > wanted.size as usize {
                break;
            }
            let end = answer.len() + padded;
            answer.extend_from_slice(
                Dirent {
                    ino,
                    off,
                    namelen,
                    kind,
                }
                .as_bytes(),
            );
            answer.extend_from_slice(name.as_bytes());
            answer.resize(end, 0);
        }
        self.channel.bytes(header.unique, &answer);
        Ok(())
    }
}

fn attr(found: &Found) -> Attr {
    match found {
        Found::Directory(id) => directory_attr(*id),
        Found::Disk(node) => node.attr(),
    }
}
