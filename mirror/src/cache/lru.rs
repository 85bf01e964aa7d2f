// SPDX-License-Identifier: Apache-2.0
//! Which present slot leaves first.
//!
//! Least recently used, nearly: each slot has a stamp of its last use, and the victim is the oldest
//! of a sample of [`SAMPLE`] slots; a pool no larger than that is searched as a whole. An exact
//! order would cost every read a lock; a stamp costs it one store, and only if the clock went on
//! (it counts fills and first touches: between two fills nobody is evicted, so order does not
//! matter much). A sample costs the same however large the cache is, where a clock's hand sweeps it all
//! when everything was read lately.
//!
//! What attached mirrors touched is in a pool of its own, the *pinned*: it goes when nothing else
//! is left. A preference, no promise (contract 30).
//!
//! Plain data under the slab's lock, but for the stamps.

/// Slots that are compared for one eviction: the victim is among the oldest 1/64, as a rule.
const SAMPLE: usize = 64;
const NOWHERE: u32 = u32::MAX;

/// The present slots, pinned and not.
#[derive(Debug, Default)]
pub struct Pools {
    loose: Vec<u32>,
    pinned: Vec<u32>,
    /// By slot: where it stands in its pool, and in which.
    places: Vec<(u32, bool)>,
    seed: u64,
}

/// Who leaves, and how dear it is: lesser goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Victim {
    /// An attached mirror touched it.
    pub pinned: bool,
    /// Its stamp.
    pub used: u64,
    /// Which.
    pub slot: u32,
}

impl Pools {
    fn pool(&mut self, pinned: bool) -> &mut Vec<u32> {
        if pinned {
            &mut self.pinned
        } else {
            &mut self.loose
        }
    }

    /// Takes a slot in; it is in no pool.
    pub fn insert(&mut self, slot: u32, pinned: bool) {
        let at = slot as usize;
        if self.places.len() <= at {
            self.places.resize(at + 1, (NOWHERE, false));
        }
        let pool = self.pool(pinned);
        let place = u32::try_from(pool.len()).unwrap_or(NOWHERE);
        pool.push(slot);
        self.places[at] = (place, pinned);
    }

    /// Takes a slot out; one that is in no pool is fine.
    pub fn remove(&mut self, slot: u32) {
        let Some(&(place, pinned)) = self.places.get(slot as usize) else {
            return;
        };
        if place == NOWHERE {
            return;
        }
        let pool = self.pool(pinned);
        pool.swap_remove(place as usize);
        if let Some(&moved) = pool.get(place as usize) {
            self.places[moved as usize].0 = place;
        }
        self.places[slot as usize].0 = NOWHERE;
    }

    /// Slots that are pinned.
    pub fn pinned_count(&self) -> usize {
        self.pinned.len()
    }

    /// The oldest free slot of a sample, loose before pinned. `stamp`: `None` if somebody reads it.
    pub fn victim(&mut self, stamp: impl Fn(u32) -> Option<u64>) -> Option<Victim> {
        for pinned in [false, true] {
            // From anywhere on: neighbours in a pool were not chosen by age, only by accident.
            self.seed = self
                .seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let mut seed = self.seed;
            let pool = self.pool(pinned);
            let len = pool.len();
            let picks = (0..len.min(SAMPLE)).map(|nth| {
                if len <= SAMPLE {
                    return pool[nth];
                }
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                pool[crate::units::index(seed % len as u64)]
            });
            let found = picks
                .filter_map(|slot| stamp(slot).map(|used| Victim { pinned, used, slot }))
                .min();
            // A large pool of which the whole sample is being read: look at all of it.
            let found = found.or_else(|| {
                pool.iter()
                    .find_map(|&slot| stamp(slot).map(|used| Victim { pinned, used, slot }))
                    .filter(|_| len > SAMPLE)
            });
            if found.is_some() {
                return found;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes_first_and_what_is_pinned_last() {
        let mut pools = Pools::default();
        let stamps = [5_u64, 3, 9, 1];
        for slot in 0..4 {
            pools.insert(slot, slot == 3);
        }
        let mut order = Vec::new();
        while let Some(victim) = pools.victim(|slot| Some(stamps[slot as usize])) {
            order.push(victim.slot);
            pools.remove(victim.slot);
        }
        assert_eq!(order, [1, 0, 2, 3]);
    }

    #[test]
    fn what_is_read_stays() {
        let mut pools = Pools::default();
        for slot in 0..500 {
            pools.insert(slot, false);
        }
        let victim = pools.victim(|slot| (slot == 321).then_some(1)).unwrap();
        assert_eq!(victim.slot, 321);
        assert_eq!(pools.victim(|_| None), None);
    }

    #[test]
    fn a_sample_of_a_large_pool_finds_old_ones() {
        let mut pools = Pools::default();
        for slot in 0..10_000 {
            pools.insert(slot, false);
        }
        let mut ranks = Vec::new();
        for _ in 0..1000 {
            let victim = pools.victim(|slot| Some(u64::from(slot))).unwrap();
            ranks.push(victim.slot);
        }
        ranks.sort_unstable();
        assert!(ranks[500] < 300, "median rank {} of 10,000", ranks[500]);
        assert!(ranks[990] < 1500, "99th rank {} of 10,000", ranks[990]);
    }

    #[test]
    fn pools_keep_their_books() {
        let mut pools = Pools::default();
        for slot in 0..100 {
            pools.insert(slot, slot % 3 == 0);
        }
        for slot in (0..100).step_by(2) {
            pools.remove(slot);
            pools.remove(slot);
        }
        for slot in (0..100).step_by(4) {
            pools.insert(slot, true);
        }
        let mut left: Vec<u32> = Vec::new();
        while let Some(victim) = pools.victim(|_| Some(0)) {
            pools.remove(victim.slot);
            left.push(victim.slot);
        }
        left.sort_unstable();
        let expected: Vec<u32> = (0..100).filter(|s| s % 2 == 1 || s % 4 == 0).collect();
        assert_eq!(left, expected);
    }
}
