// SPDX-License-Identifier: Apache-2.0
//! What threads share: `std`'s, or a model checker's in its place.
//!
//! Normal builds re-export `std` and pay nothing. With the feature `shuttle`, for `tests/models.rs`
//! alone, every lock, wait and atomic access is a point at which another thread may go on; shuttle
//! chooses, and repeats a choice that failed. All threads then run on one of the system's, so orders
//! are explored and weak memory is not: what must not be reordered is `SeqCst` or says why.

#[cfg(not(feature = "shuttle"))]
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, Weak, atomic};
#[cfg(not(feature = "shuttle"))]
pub use std::thread;

#[cfg(feature = "shuttle")]
pub use shuttle::sync::{Condvar, Mutex, MutexGuard};
#[cfg(feature = "shuttle")]
pub use shuttle::thread;
// Neither waits for another thread.
#[cfg(feature = "shuttle")]
pub use std::sync::{Arc, OnceLock, PoisonError, Weak};

/// `std`'s atomics with a point in front of each access; of their size, for they lie in mapped files.
#[cfg(feature = "shuttle")]
pub mod atomic {
    #![expect(missing_docs, reason = "as std's")]

    pub use std::sync::atomic::Ordering;

    thread_local! {
        // Of the system's thread: one runs all of a model's.
        static FOCUSED: std::cell::Cell<bool> = const { std::cell::Cell::new(true) };
    }

    /// Whether accesses are points: a model spends none on what comes before and after it.
    pub fn focus(on: bool) {
        FOCUSED.set(on);
    }

    fn point(order: Ordering) {
        // Counters order nothing.
        if order != Ordering::Relaxed && FOCUSED.get() {
            shuttle::sync::atomic::AtomicBool::new(false).load(Ordering::SeqCst);
        }
    }

    macro_rules! atomic {
        ($name:ident, $value:ty, $($method:ident),*) => {
            #[derive(Debug, Default, zerocopy::FromZeros)]
            #[repr(transparent)]
            pub struct $name(std::sync::atomic::$name);

            impl $name {
                #[must_use]
                pub const fn new(value: $value) -> Self {
                    Self(std::sync::atomic::$name::new(value))
                }

                pub fn load(&self, order: Ordering) -> $value {
                    point(order);
                    self.0.load(order)
                }

                pub fn store(&self, value: $value, order: Ordering) {
                    point(order);
                    self.0.store(value, order);
                }

                pub fn compare_exchange(
                    &self,
                    old: $value,
                    new: $value,
                    success: Ordering,
                    failure: Ordering,
                ) -> Result<$value, $value> {
                    point(success);
                    self.0.compare_exchange(old, new, success, failure)
                }

                $(
                    pub fn $method(&self, value: $value, order: Ordering) -> $value {
                        point(order);
                        self.0.$method(value, order)
                    }
                )*
            }
        };
    }

    atomic!(AtomicBool, bool, swap, fetch_or, fetch_and);
    atomic!(AtomicU8, u8, swap);
    atomic!(AtomicI32, i32, swap);
    atomic!(
        AtomicU32, u32, swap, fetch_add, fetch_sub, fetch_or, fetch_and
    );
    atomic!(
        AtomicU64, u64, swap, fetch_add, fetch_sub, fetch_or, fetch_and, fetch_max
    );
    atomic!(AtomicUsize, usize, swap, fetch_add, fetch_sub, fetch_max);
}

/// Runs a model in many orders of its steps: at random, and by few, well-placed preemptions (PCT).
/// `MIRROR_SCHEDULES` says how many of each; a failure prints its schedule, which `MIRROR_REPLAY`
/// repeats, as far as hash tables' orders allow.
#[cfg(feature = "shuttle")]
pub fn explore(model: impl Fn() + Send + Sync + 'static) {
    use shuttle::scheduler::{PctScheduler, RandomScheduler};
    let setting = |name: &str| std::env::var(name).ok();
    if let Some(schedule) = setting("MIRROR_REPLAY") {
        return shuttle::replay(model, &schedule);
    }
    let count = setting("MIRROR_SCHEDULES").and_then(|n| n.parse().ok());
    let count = count.unwrap_or(30);
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 20;
    let model = Arc::new(model);
    let again = model.clone();
    shuttle::Runner::new(RandomScheduler::new(count), config.clone()).run(move || again());
    shuttle::Runner::new(PctScheduler::new(3, count), config).run(move || model());
}
