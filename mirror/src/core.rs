// SPDX-License-Identifier: Apache-2.0
//! What all mirrors of an engine share.

use crate::sync::Arc;
use crate::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::base::Leaves;
use crate::cache::Cache;
use crate::commit::Pauses;
use crate::engine::OnFull;
use crate::event::Events;
use crate::flight::Flights;
use crate::meter::{Meter, SlowLog};
use crate::pool::Pool;
use crate::refusal::Refusals;
use crate::watchdog::Watchdog;

/// What all mirrors of an engine share.
#[derive(Debug)]
pub struct Core {
    /// The host's chunks.
    pub cache: Cache,
    /// Those on their way.
    pub flights: Flights,
    /// The manifests' leaves that mirrors share.
    pub leaves: Leaves,
    /// Executes what was parked.
    pub pool: Arc<Pool>,
    /// Thaws what is held too long.
    pub watchdog: Arc<Watchdog>,
    /// What freezes cost guests.
    pub pauses: Pauses,
    /// Requests of all mirrors, those that are gone included.
    pub meter: Meter,
    /// Tells of slow ones.
    pub slow: SlowLog,
    /// Tells the host.
    pub events: Arc<Events>,
    /// Chunks that were not what they should be.
    pub refusals: Arc<Refusals>,
    /// Cache hits of mirrors that are gone.
    pub past_hits: AtomicU64,
    /// Likewise misses.
    pub past_misses: AtomicU64,
    /// The digest of the FUSE session's id.
    pub session: [u8; 32],
    /// How long a guest waits for a chunk.
    pub fetch_timeout: Option<Duration>,
    /// What a full disk does to a write.
    pub on_full: OnFull,
}
