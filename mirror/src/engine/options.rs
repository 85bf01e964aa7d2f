// SPDX-License-Identifier: Apache-2.0
//! What an engine and its mirrors are opened with, and the names that every part shares.

use std::path::PathBuf;
use std::time::Duration;

/// Names a chunk: the keyed BLAKE3 hash of its whole, zero-padded content.
pub type Digest = [u8; 32];

/// What to do with a write for which the disk has no room (contract 41).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFull {
    /// Park it, raise an alarm, try again every second.
    Hold,
    /// Answer ENOSPC.
    Error,
}

/// How to open an [`Engine`].
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Holds slabs and indexes of the chunk cache.
    pub cache_directory: PathBuf,
    /// The bytes that the chunk cache may hold.
    pub cache_bytes: u64,
    /// The bytes of the cache's file system that it leaves free, and gives back if they are not.
    pub cache_reserve_bytes: u64,
    /// How fast cached chunks are checked in the background; 0: not at all.
    pub scrub_bytes_per_second: u64,
    /// The FUSE session's id, noted in every live map.
    pub session_id: String,
    /// Threads that execute requests which were parked.
    pub threads: usize,
    /// How long a guest waits for a chunk before EIO; `None`: for ever.
    pub fetch_timeout: Option<Duration>,
    /// What a full disk does to a write.
    pub on_full: OnFull,
}

/// How to open a [`Mirror`].
#[derive(Debug, Clone)]
pub struct AttachOptions {
    /// The server's UUID.
    pub instance: String,
    /// The disk's name.
    pub disk: String,
    /// Names this attachment for the live map.
    pub attach_id: String,
    /// Holds `delta`, `map` and `saved`.
    pub directory: PathBuf,
    /// The live map, on a tmpfs.
    pub live_map: PathBuf,
    /// The size that the guest sees.
    pub size_bytes: u64,
    /// The blob's chunk size.
    pub chunk_size_bytes: u64,
    /// The key of its chunks' digests.
    pub chunk_key: [u8; 32],
    /// (leaf index, 256 digests of 32 bytes; a hole is zeros); an absent leaf is all holes.
    pub leaves: Vec<(u64, Vec<u8>)>,
    /// Make new files; else open and recover.
    pub create: bool,
}

/// A chunk that somebody must fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fetch {
    /// Which.
    pub digest: Digest,
    /// 0: a guest waits; higher may wait longer.
    pub priority: u8,
    /// How large the chunk is.
    pub chunk_size_bytes: u64,
}

/// Why a fetch did not bring a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchFailure {
    /// The store was not reached, or asked for patience: tried again later.
    Transport,
    /// Every tier says that it does not exist.
    Missing,
    /// Every copy is bad.
    Corrupt,
}

/// Counters of an engine; each only grows, except those that name a state.
pub type Statistics = Vec<(&'static str, u64)>;
