// SPDX-License-Identifier: Apache-2.0
//! The log of one directory's steps, and the faults that a test asked for there.
//!
//! A call is in the log twice, when it begins and when it is over: what lies in between may be on
//! disk, in part or not at all. A step of the live map is there once, when it was done.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::ThreadId;

use super::Call;

/// `std`'s, whatever stands in the place of the engine's locks (`crate::sync`).
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the test of a wheel looks for.
#[used]
static MARK: &str = "lazyimage: faults can be provoked in this build";

static WATCHES: Mutex<Vec<Weak<Watch>>> = Mutex::new(Vec::new());

thread_local! {
    /// The thread is within a test's own action: its steps cause no more of them.
    static WITHIN: Cell<bool> = const { Cell::new(false) };
}

/// What a call does to its file, with its bytes.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "as in Call")]
pub enum Change {
    Create,
    Write(u64, Arc<[u8]>),
    Punch(u64, u64),
    Resize(u64),
    Allocate(u64),
    Sync,
    Other,
}

/// One line of the log.
#[derive(Debug, Clone)]
#[expect(missing_docs, reason = "as the names say")]
pub enum Entry {
    /// A call begins; `file` is below the watched directory, `name` is *file*`.`*verb*.
    Begin {
        id: u64,
        thread: ThreadId,
        name: String,
        file: PathBuf,
        change: Change,
    },
    /// It is over.
    End { id: u64, done: bool },
    /// The live map changed.
    Step { name: String },
    /// The test's own.
    Mark,
}

/// How a call fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which.
    pub name: String,
    /// The first one is 1.
    pub nth: u64,
    /// With what.
    pub errno: i32,
    /// All later ones fail as well, until [`Watch::mend`].
    pub lasting: bool,
    /// A write leaves the first half of its bytes.
    pub half: bool,
}

type Action = Arc<dyn Fn(&str) + Send + Sync>;

#[derive(Default)]
struct Inner {
    log: Vec<Entry>,
    ids: u64,
    counts: HashMap<String, u64>,
    failure: Option<Failure>,
    failed: u64,
    action: Option<Action>,
    passed: u64,
    die_after: Option<u64>,
}

/// Watches the files below a directory.
pub struct Watch {
    root: PathBuf,
    inner: Mutex<Inner>,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Watch({})", self.root.display())
    }
}

fn name_of(root: &Path, path: &Path, verb: &str) -> String {
    let file = path.file_name().unwrap_or_default().to_string_lossy();
    if path == root {
        return format!("parent.{verb}");
    }
    format!("{file}.{verb}")
}

impl Watch {
    /// Watches until it is dropped.
    #[must_use]
    pub fn new(root: &Path) -> Arc<Self> {
        let watch = Arc::new(Self {
            root: root.to_owned(),
            inner: Mutex::default(),
        });
        let mut watches = lock(&WATCHES);
        watches.retain(|watch| watch.strong_count() > 0);
        watches.push(Arc::downgrade(&watch));
        watch
    }

    pub(super) fn of(path: &Path) -> Option<Arc<Self>> {
        lock(&WATCHES)
            .iter()
            .filter_map(Weak::upgrade)
            .find(|watch| path.starts_with(&watch.root))
    }

    /// The log so far.
    #[must_use]
    pub fn log(&self) -> Vec<Entry> {
        lock(&self.inner).log.clone()
    }

    /// Notes something of the test's; answers where in the log.
    pub fn mark(&self) -> usize {
        let mut inner = lock(&self.inner);
        inner.log.push(Entry::Mark);
        inner.log.len() - 1
    }

    /// How often each call was made.
    #[must_use]
    pub fn counts(&self) -> HashMap<String, u64> {
        lock(&self.inner).counts.clone()
    }

    /// How many steps were done, and how many failed as asked.
    #[must_use]
    pub fn passed(&self) -> (u64, u64) {
        let inner = lock(&self.inner);
        (inner.passed, inner.failed)
    }

    /// Makes a call fail; counting begins anew.
    pub fn fail(&self, failure: Failure) {
        let mut inner = lock(&self.inner);
        inner.counts.clear();
        inner.failure = Some(failure);
    }

    /// Nothing fails from now on.
    pub fn mend(&self) {
        lock(&self.inner).failure = None;
    }

    /// Does something before and after every call and after every step; what that does causes no more of it.
    pub fn act(&self, action: impl Fn(&str) + Send + Sync + 'static) {
        lock(&self.inner).action = Some(Arc::new(action));
    }

    /// Acts no more.
    pub fn rest(&self) {
        lock(&self.inner).action = None;
    }

    /// Ends the process as soon as so many more steps are done.
    pub fn die_after(&self, steps: u64) {
        let mut inner = lock(&self.inner);
        inner.die_after = Some(inner.passed + steps);
    }

    fn act_at(&self, name: &str) {
        let action = lock(&self.inner).action.clone();
        if let Some(action) = action.filter(|_| !WITHIN.get()) {
            WITHIN.set(true);
            action(name);
            WITHIN.set(false);
        }
    }

    fn pass(inner: &mut Inner) {
        inner.passed += 1;
        if inner.die_after.is_some_and(|last| inner.passed >= last) {
            // Under the lock, so that nobody passes any more. No destructor runs.
            std::process::abort();
        }
    }

    pub(super) fn step(&self, path: &Path, verb: &str) {
        let name = name_of(&self.root, path, verb);
        {
            let mut inner = lock(&self.inner);
            inner.log.push(Entry::Step { name: name.clone() });
            Self::pass(&mut inner);
        }
        self.act_at(&name);
    }

    pub(super) fn call<T>(
        &self,
        path: &Path,
        verb: &str,
        call: Call<'_>,
        work: impl FnOnce() -> io::Result<T>,
    ) -> io::Result<T> {
        let name = name_of(&self.root, path, verb);
        self.act_at(&name);
        let (id, failure) = self.begin(path, &name, call);
        let result = match failure {
            Some(failure) => {
                if let (true, Call::Write(offset, bytes)) = (failure.half, call) {
                    leave_half(path, offset, bytes);
                }
                Err(io::Error::from_raw_os_error(failure.errno))
            }
            None => work(),
        };
        {
            let mut inner = lock(&self.inner);
            let done = result.is_ok();
            inner.log.push(Entry::End { id, done });
            Self::pass(&mut inner);
        }
        self.act_at(&name);
        result
    }

    fn begin(&self, path: &Path, name: &str, call: Call<'_>) -> (u64, Option<Failure>) {
        let mut inner = lock(&self.inner);
        inner.ids += 1;
        let id = inner.ids;
        let count = inner.counts.entry(name.to_owned()).or_default();
        *count += 1;
        let count = *count;
        let failure = inner.failure.clone().filter(|failure| {
            failure.name == name && (count == failure.nth || failure.lasting && count > failure.nth)
        });
        inner.failed += u64::from(failure.is_some());
        inner.log.push(Entry::Begin {
            id,
            thread: std::thread::current().id(),
            name: name.to_owned(),
            file: path.strip_prefix(&self.root).unwrap_or(path).to_owned(),
            change: match call {
                Call::Create => Change::Create,
                Call::Write(offset, bytes) => Change::Write(offset, bytes.into()),
                Call::Punch(offset, len) => Change::Punch(offset, len),
                Call::Resize(len) => Change::Resize(len),
                Call::Allocate(len) => Change::Allocate(len),
                Call::Sync => Change::Sync,
                Call::Other => Change::Other,
            },
        });
        (id, failure)
    }
}

/// Half of a write's whole sectors, past the descriptor of whoever made it.
fn leave_half(path: &Path, offset: u64, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    let half = &bytes[..bytes.len() / 1024 * 512];
    if let Ok(file) = std::fs::OpenOptions::new().write(true).open(path) {
        // Best effort: a test that needs it looks at what it finds.
        let _ = file.write_all_at(half, offset);
    }
}
