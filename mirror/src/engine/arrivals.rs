// SPDX-License-Identifier: Apache-2.0
//! Chunks that are fetched for this engine: which are wanted, and what becomes of those that come.

use std::time::Duration;

use super::{Digest, Engine, Fetch, FetchFailure};
use crate::buffer::Buffer;
use crate::cache::matches;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::flight::{Failed, Wanted};
use crate::object;
use crate::refusal::Source;
use crate::sync::Arc;
use crate::sync::atomic::Ordering;
use crate::units::index;

impl Engine {
    /// The most urgent chunk that nobody fetches yet; it is the caller's now.
    pub fn next_fetch(&self, guests_only: bool, timeout: Duration) -> Option<Fetch> {
        self.core.flights.next(guests_only, timeout)
    }

    /// As [`Engine::fetched_from`] the chunk store.
    ///
    /// # Errors
    /// As there.
    pub fn fetched(&self, digest: &Digest, object: &[u8]) -> Result<()> {
        self.fetched_from(Source::Store, digest, object)
    }

    /// Takes a fetched chunk object: verified, kept, handed to whoever waits. One that is not what
    /// the digest names is counted and told.
    ///
    /// # Errors
    /// [`crate::error::Error::Corrupt`]: the flight goes on, the caller fetches elsewhere or calls
    /// [`Engine::fetch_failed`].
    pub fn fetched_from(&self, source: Source, digest: &Digest, object: &[u8]) -> Result<()> {
        let Some(wanted) = self.core.flights.wanted(digest) else {
            // Whoever waited has left, or somebody else brought it.
            return Ok(());
        };
        let content = Self::content(&wanted, object).inspect_err(|error| {
            self.core
                .refusals
                .refuse(source, digest, &error.to_string());
        })?;
        self.fetched_object_bytes
            .fetch_add(object.len() as u64, Ordering::Relaxed);
        let cache = &self.core.cache;
        let slab = cache.slab(wanted.chunk_size)?;
        if !cache.insert(slab, digest, &wanted.key, &content) {
            self.uncached.fetch_add(1, Ordering::Relaxed);
        }
        if self.store_away.load(Ordering::Relaxed) && self.store_away.swap(false, Ordering::Relaxed)
        {
            self.core.flights.hasten();
        }
        self.core.flights.land(digest, &Arc::new(content));
        Ok(())
    }

    /// What a source answered was wrong before it was read: too large, say. Counted and told; the
    /// flight goes on, as above.
    pub fn refused(&self, source: Source, digest: &Digest, reason: &str) {
        self.core.refusals.refuse(source, digest, reason);
    }

    /// A chunk that is what was wanted.
    fn content(wanted: &Wanted, object: &[u8]) -> Result<Buffer> {
        let mut content = Buffer::zeroed(index(wanted.chunk_size));
        let header = object::decode_into(object, content.as_mut())?;
        if header.kind != object::KIND_CHUNK || header.raw_len as u64 != wanted.chunk_size {
            return Err(Error::Corrupt(format!(
                "an object of kind {} and {} bytes is no chunk of {}",
                header.kind, header.raw_len, wanted.chunk_size
            )));
        }
        if !matches(&wanted.digest, &wanted.key, content.as_ref()) {
            return Err(Error::Corrupt(
                "the chunk does not match its digest".to_owned(),
            ));
        }
        Ok(content)
    }

    /// The content of a chunk that the host's cache holds, proved by its digest.
    #[must_use]
    pub fn cached(&self, digest: &Digest, chunk_size: u64) -> Option<Buffer> {
        let cache = &self.core.cache;
        cache.content(cache.open_slab(chunk_size)?, digest)
    }

    /// Takes back a chunk that could not be fetched; whether its readers were given an error.
    pub fn fetch_failed(&self, digest: &Digest, failure: FetchFailure, reason: &str) -> bool {
        let name = blake3::Hash::from_bytes(*digest).to_hex();
        let alarm = |what: &str| {
            self.core.events.push(
                Event::new("alarm")
                    .text("what", what)
                    .text("digest", name.as_str())
                    .text("error", reason),
            );
        };
        let failed = self.core.flights.fail(digest, failure);
        match failed {
            // One alarm an outage, not one a chunk.
            Failed::Again
                if failure == FetchFailure::Transport
                    && !self.store_away.swap(true, Ordering::Relaxed) =>
            {
                alarm("a chunk could not be fetched; tried again until it is");
            }
            Failed::Lost => {
                alarm("a chunk does not exist or every copy is bad; its readers get EIO");
            }
            _ => {}
        }
        failed == Failed::Lost
    }
}
