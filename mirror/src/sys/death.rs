// SPDX-License-Identifier: Apache-2.0
//! The death of a process between two steps, for fuzzing: a store or an answer is one, and later ones
//! of its thread are none. Normal builds have nothing of it.

#[cfg(any(test, feature = "fuzzing"))]
thread_local! {
    static LEFT: std::cell::Cell<u64> = const { std::cell::Cell::new(u64::MAX) };
}

/// Comes after so many steps.
#[cfg(any(test, feature = "fuzzing"))]
pub fn after(steps: u64) {
    LEFT.set(steps);
}

/// Whether it has come.
#[cfg(any(test, feature = "fuzzing"))]
#[must_use]
pub fn has_come() -> bool {
    LEFT.get() == 0
}

/// Whether the next step is one.
#[inline]
#[must_use]
pub fn spares_a_step() -> bool {
    #[cfg(any(test, feature = "fuzzing"))]
    {
        let left = LEFT.get();
        LEFT.set(left.saturating_sub(1));
        left > 0
    }
    #[cfg(not(any(test, feature = "fuzzing")))]
    true
}
