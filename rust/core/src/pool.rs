//! A persistent pool of threads for short parallel loops.
//!
//! The items of a loop are shared out evenly among the caller and as many helpers as it may use. Each claims those
//! of its own share one after the other, then those of the others: a thread that loses its core holds back one item,
//! not its share, and one that does not finds again what an earlier loop over the same data left in its caches.
//! Helpers spin briefly for the next loop, then sleep; an idle pool uses no CPU. Many threads may run loops at once, a
//! loop may start another, and after `fork` the child gets a pool of its own.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{catch_unwind, resume_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::known::known;
use crate::memory;

/// More threads than this in one call are refused.
pub const MAX_THREADS: usize = 1024;

/// How long a helper looks out for the next loop before it sleeps.
const SPIN: Duration = Duration::from_micros(50);

/// Threads used when a call does not say: `TRITPRESS_NUM_THREADS` as it was at the first such call (empty is as
/// if it were not set), else what the system offers.
fn default_threads() -> Result<usize> {
    static DEFAULT: OnceLock<std::result::Result<usize, String>> = OnceLock::new();
    let default = known(&DEFAULT, || {
        let told = std::env::var_os("TRITPRESS_NUM_THREADS").unwrap_or_default();
        let told = told.to_string_lossy();
        match told.trim().parse() {
            Ok(n @ 1..=MAX_THREADS) => Ok(n),
            _ if told.trim().is_empty() => Ok(thread::available_parallelism().map_or(1, |n| n.get())),
            _ => Err(format!("TRITPRESS_NUM_THREADS must be a number from 1 to {MAX_THREADS}, not '{told}'")),
        }
    });
    default.clone().map_err(Error::Option)
}

/// The thread count of a call. Errors: 0, more than [`MAX_THREADS`], an unusable `TRITPRESS_NUM_THREADS`.
pub fn resolve_threads(threads: Option<usize>) -> Result<usize> {
    match threads {
        Some(n) if (1..=MAX_THREADS).contains(&n) => Ok(n),
        Some(n) => Err(Error::option(format!("threads must be from 1 to {MAX_THREADS}, not {n}"))),
        None => default_threads(),
    }
}

/// The body of a loop, its lifetime erased: see the safety note in [`Pool::run`].
struct Body(*const (dyn Fn(usize) + Sync));

// SAFETY: the pointee is `Sync`, and `Pool::run` keeps it alive until no helper can reach it.
unsafe impl Send for Body {}
// SAFETY: as above; only shared calls are made through it.
unsafe impl Sync for Body {}

/// Items that one thread claims first, each on a cache line of its own.
#[repr(align(64))]
struct Share {
    next: AtomicUsize,
    end: usize,
}

struct Job {
    body: Body,
    shares: Vec<Share>,
    /// Helpers that may still join; changed under the queue's lock only.
    places: AtomicUsize,
    /// Helpers inside; raised under the queue's lock only.
    inside: AtomicUsize,
    /// Who waits for them.
    caller: Thread,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl Job {
    /// Claim items until there are none, those of share `own` first.
    fn work(&self, own: usize) {
        // SAFETY: whoever is here is the caller of `Pool::run` or is counted in `inside`, which `run` waits for.
        let body = unsafe { &*self.body.0 };
        for at in 0..self.shares.len() {
            let share = &self.shares[(own + at) % self.shares.len()];
            loop {
                let item = share.next.fetch_add(1, Ordering::Relaxed);
                if item >= share.end {
                    break;
                }
                body(item);
            }
        }
    }

    /// Nothing is claimed any more.
    fn end(&self) {
        for share in &self.shares {
            share.next.store(share.end, Ordering::Relaxed);
        }
    }
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Arc<Job>>,
    helpers: usize,
    asleep: usize,
}

struct Pool {
    process: u32,
    queue: Mutex<Queue>,
    wake: Condvar,
    /// Raised with every new job; what spinning helpers watch.
    epoch: AtomicU32,
}

impl Pool {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// The pool of this process. A forked child finds its parent's pool, whose threads it does not have and
    /// whose lock may be held by one of them, and leaves it for a new one.
    fn get() -> &'static Pool {
        static CURRENT: AtomicPtr<Pool> = AtomicPtr::new(std::ptr::null_mut());
        let process = std::process::id();
        loop {
            let seen = CURRENT.load(Ordering::Acquire);
            if !seen.is_null() {
                // SAFETY: only pointers from `Box::leak` below are stored, and they are never freed.
                let pool: &'static Pool = unsafe { &*seen };
                if pool.process == process {
                    return pool;
                }
            }
            let fresh: &'static mut Pool = Box::leak(Box::new(Pool {
                process,
                queue: Mutex::default(),
                wake: Condvar::new(),
                epoch: AtomicU32::new(0),
            }));
            let _ = CURRENT.compare_exchange(seen, fresh, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// The life of helper `number`, which begins with the share after the caller's that has its number.
    fn helper(&'static self, number: usize) {
        let mut seen = self.epoch.load(Ordering::Acquire);
        loop {
            let mut queue = self.lock();
            let job = queue.jobs.iter().find(|job| job.places.load(Ordering::Relaxed) > 0).cloned();
            if let Some(job) = job {
                job.places.fetch_sub(1, Ordering::Relaxed);
                job.inside.fetch_add(1, Ordering::Relaxed);
                drop(queue);
                if let Err(panic) = catch_unwind(AssertUnwindSafe(|| job.work(number + 1))) {
                    job.end();
                    *job.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = Some(panic);
                }
                if job.inside.fetch_sub(1, Ordering::Release) == 1 {
                    job.caller.unpark(); // no call of the system unless it sleeps
                }
                continue;
            }
            if self.epoch.load(Ordering::Acquire) == seen {
                drop(queue);
                if self.spin(seen) {
                    seen = self.epoch.load(Ordering::Acquire);
                    continue;
                }
                queue = self.lock();
                while self.epoch.load(Ordering::Acquire) == seen {
                    queue.asleep += 1;
                    queue = self.wake.wait(queue).unwrap_or_else(|poisoned| poisoned.into_inner());
                    queue.asleep -= 1;
                }
            }
            drop(queue);
            seen = self.epoch.load(Ordering::Acquire);
        }
    }

    /// Watch for a new job for a short while; false when none came.
    fn spin(&self, seen: u32) -> bool {
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                if self.epoch.load(Ordering::Acquire) != seen {
                    return true;
                }
                std::hint::spin_loop();
            }
            if start.elapsed() > SPIN {
                return false;
            }
        }
    }

    fn run(&'static self, helpers: usize, count: usize, body: &(dyn Fn(usize) + Sync)) {
        // SAFETY: the lifetime is erased so that the helpers can hold the body. It cannot dangle: before this
        // function returns or unwinds, `Leave` takes the job off the queue under the lock, after which no
        // helper can join, and waits until those inside have left.
        let body =
            unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(body) };
        let job = Arc::new(Job {
            body: Body(body),
            shares: (0..=helpers)
                .map(|i| Share {
                    next: AtomicUsize::new(count * i / (helpers + 1)),
                    end: count * (i + 1) / (helpers + 1),
                })
                .collect(),
            places: AtomicUsize::new(helpers),
            inside: AtomicUsize::new(0),
            caller: thread::current(),
            panic: Mutex::new(None),
        });
        let wake = {
            let mut queue = self.lock();
            while queue.helpers < helpers {
                let number = queue.helpers;
                let name = format!("tritpress-{number}");
                let spawned = thread::Builder::new().name(name).spawn(move || self.helper(number));
                if spawned.is_err() {
                    break; // no more threads to be had: the caller does the work
                }
                queue.helpers += 1;
            }
            queue.jobs.push_back(job.clone());
            self.epoch.fetch_add(1, Ordering::Release);
            queue.asleep.min(helpers)
        };
        for _ in 0..wake {
            self.wake.notify_one();
        }
        let leave = Leave { pool: self, job: &job };
        job.work(0);
        drop(leave);
        let panic = job.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

/// Ends a job on every way out of `Pool::run`, unwinding included.
struct Leave<'a> {
    pool: &'static Pool,
    job: &'a Arc<Job>,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.job.end();
        self.pool.lock().jobs.retain(|job| !Arc::ptr_eq(job, self.job));
        let mut turns = 0u32;
        while self.job.inside.load(Ordering::Acquire) > 0 {
            turns += 1;
            match turns {
                ..2_000 => std::hint::spin_loop(),
                2_000..2_100 => thread::yield_now(), // a helper may need this very core to finish its item
                _ => thread::park(), // the last helper wakes it, and one that has left will not sleep
            }
        }
    }
}

/// Call `body(0..count)` on up to `threads` threads, in no particular order. A panic in `body` is passed on.
pub fn run(threads: usize, count: usize, body: impl Fn(usize) + Sync) {
    let helpers = threads.min(count).saturating_sub(1);
    if helpers == 0 {
        (0..count).for_each(body);
    } else {
        Pool::get().run(helpers, count, &body);
    }
}

/// A base pointer that may cross threads; see [`chunks_mut`].
struct Base<T>(*mut T);
// SAFETY: `chunks_mut` hands every element to exactly one thread.
unsafe impl<T: Send> Sync for Base<T> {}

/// Cut `out` into chunks of `size` elements and call `body(index, chunk)` for each, on up to `threads` threads.
pub fn chunks_mut<T: Send>(
    out: &mut [T],
    size: usize,
    threads: usize,
    body: impl Fn(usize, &mut [T]) + Sync,
) {
    let (len, size) = (out.len(), size.max(1));
    let base = Base(out.as_mut_ptr());
    let base = &base;
    run(threads, len.div_ceil(size), |index| {
        let start = index * size;
        let stop = (start + size).min(len);
        // SAFETY: start..stop lies in `out`, which is borrowed mutably for the whole call, and ranges of
        // different items do not overlap; every item is claimed once.
        let chunk = unsafe { std::slice::from_raw_parts_mut(base.0.add(start), stop - start) };
        body(index, chunk);
    });
}

/// Call `body(row, out_row)` for every row of `width` elements; rows are handed out in blocks that are worth
/// a thread's while (`cost` is the work of one row in elements).
pub fn rows_mut<T: Send>(
    out: &mut [T],
    width: usize,
    cost: usize,
    threads: usize,
    body: impl Fn(usize, &mut [T]) + Sync,
) {
    if width == 0 {
        return;
    }
    let block = (65_536 / cost.max(1)).max(1);
    chunks_mut(out, width * block, threads, |index, chunk| {
        for (i, row) in chunk.chunks_mut(width).enumerate() {
            body(index * block + i, row);
        }
    });
}

/// Some columns of a new array, written from its first row to its last; see [`by_columns`].
pub struct Columns<'a, T> {
    base: &'a Base<T>,
    rows: usize,
    width: usize,
    first: usize,
    count: usize,
    /// Where the next elements go.
    row: usize,
    at: usize,
}

impl<T: Copy> Columns<'_, T> {
    /// Write the next elements of the row at hand; the row after it begins when its `count` are there.
    pub fn push(&mut self, values: &[T]) {
        assert!(self.row < self.rows && self.at + values.len() <= self.count);
        // SAFETY: inside the columns of a row that is there; nobody else has these columns.
        unsafe {
            let to = self.base.0.add(self.row * self.width + self.first + self.at);
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len());
        }
        self.at += values.len();
        if self.at == self.count {
            (self.row, self.at) = (self.row + 1, 0);
        }
    }
}

/// A new array [rows, width], made by `body(part, columns)` for every `size` columns on up to `threads` threads.
/// Memory is written once. Errors: no memory. Panics unless `body` writes all elements of its columns.
pub fn by_columns<T: Copy + Send>(
    rows: usize,
    width: usize,
    size: usize,
    threads: usize,
    body: impl Fn(usize, &mut Columns<'_, T>) + Sync,
) -> Result<Vec<T>> {
    let total = memory::area(rows, width)?;
    let mut out = memory::room(total)?;
    let base = Base(out.as_mut_ptr());
    write_columns(&base, rows, width, size, threads, body);
    // SAFETY: every part wrote all elements of its columns, and together they are all columns.
    unsafe { out.set_len(total) };
    Ok(out)
}

/// As [`by_columns`] into an array that is there, [rows, width].
pub fn columns_mut<T: Copy + Send>(
    out: &mut [T],
    width: usize,
    size: usize,
    threads: usize,
    body: impl Fn(usize, &mut Columns<'_, T>) + Sync,
) {
    if !out.is_empty() {
        assert!(out.len().is_multiple_of(width));
        write_columns(&Base(out.as_mut_ptr()), out.len() / width, width, size, threads, body);
    }
}

/// The array at `base` has room for `rows` x `width` elements, of which nobody else knows.
fn write_columns<T: Copy + Send>(
    base: &Base<T>,
    rows: usize,
    width: usize,
    size: usize,
    threads: usize,
    body: impl Fn(usize, &mut Columns<'_, T>) + Sync,
) {
    let size = size.max(1);
    if rows * width > 0 {
        run(threads, width.div_ceil(size), |part| {
            let first = part * size;
            let count = size.min(width - first);
            let mut columns = Columns { base, rows, width, first, count, row: 0, at: 0 };
            body(part, &mut columns);
            assert_eq!(columns.row, rows, "not all of the columns were written");
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn every_item_runs_once_for_any_thread_count() {
        for threads in [1, 2, 3, 7] {
            for count in [0, 1, 2, 5, 1000] {
                let mut seen = vec![0u32; count];
                chunks_mut(&mut seen, 1, threads, |_, one| one[0] += 1);
                assert!(seen.iter().all(|&n| n == 1), "{threads} threads, {count} items");
            }
        }
    }

    #[test]
    fn many_threads_may_use_it_at_once_and_loops_may_nest() {
        let total = AtomicU64::new(0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        run(3, 10, |_| {
                            run(2, 4, |i| {
                                total.fetch_add(i as u64, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 8 * 200 * 10 * 6);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for _ in 0..20 {
            let caught = catch_unwind(|| run(4, 64, |i| assert!(i != 33, "item 33")));
            assert!(caught.is_err());
        }
        let sum = AtomicU64::new(0);
        run(4, 100, |i| {
            sum.fetch_add(i as u64, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 4950);
    }

    #[test]
    fn arrays_are_made_by_columns() {
        for (rows, width, size, threads) in
            [(3, 10, 4, 2), (1, 1, 1, 1), (5, 8, 8, 3), (0, 4, 2, 1), (4, 0, 2, 1)]
        {
            let made = by_columns(rows, width, size, threads, |part, columns| {
                for row in 0..rows {
                    for at in part * size..width.min((part + 1) * size) {
                        columns.push(&[row * width + at]);
                    }
                }
            });
            let made = made.unwrap();
            assert_eq!(made, (0..rows * width).collect::<Vec<_>>());
            let mut there = vec![0; rows * width];
            columns_mut(&mut there, width, size, threads, |part, columns| {
                for row in 0..rows {
                    for at in part * size..width.min((part + 1) * size) {
                        columns.push(&[row * width + at]);
                    }
                }
            });
            assert_eq!(made, there);
        }
        assert!(catch_unwind(|| by_columns(2, 4, 2, 2, |_, columns| columns.push(&[0, 0]))).is_err());
        assert!(catch_unwind(|| by_columns(1, 2, 2, 1, |_, columns| columns.push(&[0, 0, 0]))).is_err());
    }

    #[test]
    fn thread_counts_are_checked() {
        assert!(resolve_threads(Some(0)).is_err());
        assert!(resolve_threads(Some(MAX_THREADS + 1)).is_err());
        assert_eq!(resolve_threads(Some(3)).unwrap(), 3);
    }
}
