// SPDX-License-Identifier: Apache-2.0
//! Opening a mirror's files: the fence, and which of its two maps to believe.
//!
//! | files | live map | taken |
//! | --- | --- | --- |
//! | to be made | – | empty maps; a failure takes away what was made |
//! | there | of this boot, attachment, nonce, and long enough | the live map; frozen bits are dirty again |
//! | there | gone or another's | the disk map; not clean: every local block is dirty |
//! | there, served in a session that survived | gone or another's, disk map not clean | refused, ESTALE: guests would travel back in time |
//!
//! `CRASHES.rst` has the steps, and what a crash between two of them leaves.
//!
//! *Clean* is durably gone before this returns, so before anything can be written.

use crate::sync::atomic::Ordering;
use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::boot;
use crate::core::Core;
use crate::delta::Delta;
use crate::diskmap::{DiskMap, Header, Page};
use crate::engine::AttachOptions;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::faults::{self, Call};
use crate::fence;
use crate::live::{Bits, Identity, LiveMap};
use crate::pages::Pages;
use crate::sys::file::{self, Create};
use crate::units::{BLOCK_BYTES, PAGE_WORDS};

/// How long attach waits for a dead process's requests, unless guests wait for the disk already.
const FENCE_PATIENCE: Duration = Duration::from_secs(60);
const FENCE_ALARM: Duration = Duration::from_secs(2);
const FENCE_PAUSE: Duration = Duration::from_millis(20);
/// At first: a process that was killed takes its time to go, but not much.
const FENCE_PAUSE_SHORT: Duration = Duration::from_millis(1);

/// A mirror's files, fenced and recovered.
#[derive(Debug)]
pub struct Opened {
    /// The guest's blocks.
    pub delta: Delta,
    /// What a COMMIT sets aside.
    pub saved: Delta,
    /// The bits on disk.
    pub disk_map: DiskMap,
    /// The bits in memory.
    pub live: LiveMap,
    /// What the next flush must write.
    pub pages: Pages,
    /// The disk map's header as it is on disk now.
    pub header: Header,
}

fn fence(
    core: &Core,
    options: &AttachOptions,
    survivor: bool,
    file: &File,
    path: &Path,
) -> Result<()> {
    let begun = Instant::now();
    let mut alarmed = false;
    while !file::try_lock(file).map_err(|e| Error::io("lock", path, e))? {
        let waited = begun.elapsed();
        if waited > FENCE_ALARM && !alarmed {
            alarmed = true;
            core.events.push(
                Event::new("alarm")
                    .text("what", "waiting for another process's requests")
                    .text("instance", &options.instance)
                    .text("disk", &options.disk)
                    .text("path", path.to_string_lossy())
                    .text("holder", fence::holder(file)),
            );
        }
        if waited > FENCE_PATIENCE && !survivor {
            return Err(Error::locked(path, file, "stop that process"));
        }
        crate::sync::thread::sleep(if waited < FENCE_PAUSE * 5 {
            FENCE_PAUSE_SHORT
        } else {
            FENCE_PAUSE
        });
    }
    Ok(())
}

/// Opens, fences and recovers; or makes the files, and takes them away if that fails.
/// `survivor`: a predecessor served it in the session that is being taken over.
pub fn open(
    core: &Core,
    options: &AttachOptions,
    blocks_max: u64,
    survivor: bool,
) -> Result<Opened> {
    if !options.create {
        return open_files(core, options, blocks_max, survivor);
    }
    let directory = &options.directory;
    std::fs::create_dir_all(directory).map_err(|e| Error::io("create", directory, e))?;
    let names = ["delta", "map", "saved"].map(|name| directory.join(name));
    if let Some(path) = names.iter().find(|path| path.exists()) {
        return Err(Error::errno("create", path, libc::EEXIST));
    }
    open_files(core, options, blocks_max, survivor).inspect_err(|_| {
        for path in names.iter().chain([&options.live_map]) {
            let _ = std::fs::remove_file(path);
        }
    })
}

fn open_files(
    core: &Core,
    options: &AttachOptions,
    blocks_max: u64,
    survivor: bool,
) -> Result<Opened> {
    let directory = &options.directory;
    let create = if options.create {
        Create::New
    } else {
        Create::Never
    };
    let delta = Delta::open(&directory.join("delta"), create, true)?;
    fence(core, options, survivor, delta.file(), delta.path())?;
    let map_path = directory.join("map");
    let disk_map = DiskMap::open(&map_path, create)?;
    fence(core, options, survivor, disk_map.file(), &map_path)?;
    let saved = Delta::open(&directory.join("saved"), Create::Maybe, false)?;
    fence(core, options, survivor, saved.file(), saved.path())?;
    saved
        .clear(0)
        .map_err(|e| Error::io("clear", saved.path(), e))?;

    let mut identity = Identity {
        boot: boot::id()?,
        nonce: [0; 16],
        attach: *blake3::hash(options.attach_id.as_bytes()).as_bytes(),
        session: core.session,
    };
    let found = if options.create {
        None
    } else {
        Some(disk_map.header()?)
    };
    if let Some(found) = &found {
        check_header(found, options, &identity, &map_path)?;
        identity.nonce = found.nonce;
    }
    // Growth that a crash cut short is completed here.
    delta.extend(options.size_bytes)?;
    disk_map.extend(options.size_bytes)?;

    let blocks = options.size_bytes.div_ceil(BLOCK_BYTES);
    let pages = Pages::new(blocks_max)?;
    if !found.is_some_and(|header| header.clean) {
        // Rule 5, and: dirty bits that are made from local ones are not on disk yet.
        pages.mark_all(blocks);
    }
    let live = recover(
        options,
        &disk_map,
        found.as_ref(),
        &mut identity,
        blocks_max,
        survivor,
    )?;
    let header = Header {
        clean: false,
        size_bytes: found
            .map_or(0, |found| found.size_bytes)
            .max(options.size_bytes),
        chunk_size_bytes: options.chunk_size_bytes,
        attach: identity.attach,
        nonce: identity.nonce,
    };
    delta.sync().map_err(|e| {
        // If this live map stands, a predecessor's writes were in it.
        live.fail(e.raw_os_error().unwrap_or(libc::EIO));
        Error::io("sync", delta.path(), e)
    })?;
    disk_map.set_header(&header)?;
    sync_directory(directory)?;
    if let (true, Some(parent)) = (options.create, directory.parent()) {
        // The folder's own name, too: it is new.
        sync_directory(parent)?;
    }
    live.believe(&identity);
    Ok(Opened {
        delta,
        saved,
        disk_map,
        live,
        pages,
        header,
    })
}

fn sync_directory(path: &Path) -> Result<()> {
    faults::call(path, "sync", Call::Sync, || File::open(path)?.sync_all())
        .map_err(|e| Error::io("sync", path, e))
}

fn check_header(
    found: &Header,
    options: &AttachOptions,
    identity: &Identity,
    path: &Path,
) -> Result<()> {
    let path = path.display();
    if found.attach != identity.attach {
        return Err(Error::Invalid(format!(
            "\"{path}\" belongs to another attachment than \"{}\"",
            options.attach_id
        )));
    }
    if found.chunk_size_bytes != options.chunk_size_bytes {
        return Err(Error::Invalid(format!(
            "\"{path}\" has chunks of {} bytes, not {}",
            found.chunk_size_bytes, options.chunk_size_bytes
        )));
    }
    Ok(())
}

/// The live map that survived, or a new one, with a new nonce, from the disk map.
fn recover(
    options: &AttachOptions,
    disk_map: &DiskMap,
    found: Option<&Header>,
    identity: &mut Identity,
    blocks_max: u64,
    survivor: bool,
) -> Result<LiveMap> {
    let blocks = options.size_bytes.div_ceil(BLOCK_BYTES);
    let Some(found) = found else {
        identity.nonce = boot::nonce()?;
        return LiveMap::create(&options.live_map, blocks, blocks_max);
    };
    let found_blocks = found.size_bytes.div_ceil(BLOCK_BYTES);
    if let Some(live) = LiveMap::open(&options.live_map, identity, found_blocks, blocks_max)? {
        live.extend(blocks)?;
        // Rule 17: what was frozen is dirty again.
        let blocks = blocks.max(found_blocks);
        live.merge(live.frozen(), live.dirty(), blocks);
        live.clear(Bits::Saved, blocks);
        live.clear(Bits::Base, blocks);
        return Ok(live);
    }
    if survivor && !found.clean {
        return Err(Error::errno(
            "go on by the live map, which is gone while its session survived:",
            &options.live_map,
            libc::ESTALE,
        ));
    }
    identity.nonce = boot::nonce()?;
    let live = LiveMap::create(&options.live_map, blocks.max(found_blocks), blocks_max)?;
    let words = found_blocks.div_ceil(64);
    for page in 0..words.div_ceil(PAGE_WORDS) {
        let Page(bytes) = disk_map.read(page)?;
        let (local, dirty) = bytes.split_at(bytes.len() / 2);
        let dirty = if found.clean { dirty } else { local };
        for (bits, bytes) in [(Bits::Local, local), (live.dirty(), dirty)] {
            for (word, eight) in (page * PAGE_WORDS..words).zip(bytes.chunks_exact(8)) {
                let mut value = [0; 8];
                value.copy_from_slice(eight);
                live.word(bits, word)
                    .store(u64::from_le_bytes(value), Ordering::SeqCst);
            }
        }
    }
    Ok(live)
}
