// SPDX-License-Identifier: Apache-2.0
//! What is written to the index beside fillings: when each slot was used, and the orderly stop.

use crate::sync::atomic::Ordering;
use std::ops::Range;

use super::Slab;
use super::books::Inner;
use crate::cache::index::Entry;
use crate::error::Result;
use crate::units::index;

/// Slots whose index entries are written at once.
const RUN_SLOTS: u32 = 64;

impl Slab {
    /// Writes to the index when each slot was used, if it was since the last time.
    pub fn note_uses(&self) {
        let mut from = 0;
        loop {
            let mut inner = self.lock();
            let count = u32::try_from(inner.held.len()).unwrap_or(u32::MAX);
            if from >= count {
                return;
            }
            let to = count.min(from + RUN_SLOTS);
            self.note_run(&mut inner, from..to, false);
            from = to;
        }
    }

    /// Writes the present slots of a run to the index: those that changed, or all.
    fn note_run(&self, inner: &mut Inner, run: Range<u32>, all: bool) {
        let mut entries = Vec::new();
        for slot in run.clone() {
            let used = self.slots[slot as usize].used.load(Ordering::Relaxed);
            let Some(present) = inner.present(slot) else {
                entries.push(None);
                continue;
            };
            let changed = all || present.noted != used;
            present.noted = used;
            let (digest, key, checked) = (present.digest, present.key, present.checked);
            let key = inner.keys[key as usize];
            let entry = Entry {
                digest,
                key,
                used,
                checked,
            };
            entries.push(Some((entry, changed)));
        }
        // Slots that are being filled are named by who fills them: runs leave them out.
        let mut first = 0;
        while first < entries.len() {
            let len = entries[first..].iter().take_while(|e| e.is_some()).count();
            let part = &entries[first..first + len];
            if part.iter().flatten().any(|(_, changed)| *changed) {
                let start = run.start + u32::try_from(first).unwrap_or(0);
                let end = start + u32::try_from(len).unwrap_or(0);
                // A failure keeps the index from ever being marked clean.
                let _ = self.index.set_run(start..end, |slot| {
                    part[index(u64::from(slot - start))].map(|(entry, _)| entry)
                });
            }
            first += len + 1;
        }
    }

    /// An orderly stop: the index says what is there, and what of it was checked.
    pub fn close(&self) -> Result<()> {
        {
            let mut inner = self.lock();
            self.reap(&mut inner);
            let count = u32::try_from(inner.held.len()).unwrap_or(u32::MAX);
            self.note_run(&mut inner, 0..count, true);
        }
        self.index.set_clean()
    }
}
