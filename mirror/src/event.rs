// SPDX-License-Identifier: Apache-2.0
//! What the host must know: a bounded queue from the data path to whoever listens.
//!
//! The data path never waits for a listener: a full queue drops the newest event and counts it, and
//! the next event that fits carries the count as `dropped`.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Events that wait at most.
const EVENTS_MAX: usize = 1024;

/// A value of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A count, a size, an id.
    Number(u64),
}

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// `owner`, `alarm`, `log` or `slow`.
    pub kind: &'static str,
    /// What it was, and about which mirror, in the order to print.
    pub fields: Vec<(&'static str, Value)>,
}

impl Event {
    /// An event without fields.
    #[must_use]
    pub fn new(kind: &'static str) -> Self {
        Self {
            kind,
            fields: Vec::new(),
        }
    }

    /// With a field of text.
    #[must_use]
    pub fn text(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.push((name, Value::Text(value.into())));
        self
    }

    /// With a number.
    #[must_use]
    pub fn number(mut self, name: &'static str, value: u64) -> Self {
        self.fields.push((name, Value::Number(value)));
        self
    }
}

/// The queue.
#[derive(Debug, Default)]
pub struct Events {
    inner: Mutex<Inner>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    waiting: VecDeque<Event>,
    dropped: u64,
    closed: bool,
}

impl Events {
    /// Hands an event over; never waits for a listener.
    pub fn push(&self, mut event: Event) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.waiting.len() >= EVENTS_MAX {
            inner.dropped += 1;
            return;
        }
        let dropped = std::mem::take(&mut inner.dropped);
        if dropped > 0 {
            event = event.number("dropped", dropped);
        }
        inner.waiting.push_back(event);
        self.arrived.notify_one();
    }

    /// Nobody waits any more, now or later; what is queued is still told.
    pub fn close(&self) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.closed = true;
        self.arrived.notify_all();
    }

    /// The oldest event, waiting for one at most `timeout`.
    pub fn next(&self, timeout: Duration) -> Option<Event> {
        let deadline = Instant::now() + timeout;
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if let Some(event) = inner.waiting.pop_front() {
                return Some(event);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || inner.closed {
                return None;
            }
            inner = self
                .arrived
                .wait_timeout(inner, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}
