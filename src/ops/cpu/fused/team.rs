//! A team of threads for work of microseconds.
//!
//! A denoising step is some hundred parallel loops, most of them shorter than it takes to wake a thread. So the threads
//! of a team keep looking for the next loop for a moment before they sleep, and a loop costs well under a microsecond.
//! Nobody waits for a thread that sleeps or was descheduled: whoever is awake takes the tasks.

use std::cell::UnsafeCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread looks for work before it sleeps: longer than the solver's arithmetic between two calls.
const PATIENCE: Duration = Duration::from_micros(200);
/// Looks between two glances at the clock.
const LOOKS: u32 = 64;

/// Threads that share the tasks of one loop after another.
///
/// What a task computes may not depend on who runs it, nor when: then no result depends on the number of threads.
#[derive(Debug)]
pub struct Team {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// The number of the last loop.
    number: u32,
}

#[derive(Debug)]
struct Shared {
    /// Each thread's share of the loop; the first is that of the caller of [`Team::run`].
    shares: Vec<Share>,
    /// Each thread's count of tasks that it has run in this loop, kept apart so that counting disturbs nobody.
    done: Vec<Done>,
    panicked: AtomicBool,
    asleep: AtomicUsize,
    closed: AtomicBool,
}

/// Some tasks of a loop. Its thread takes them one by one, then helps the others with theirs.
#[repr(align(128))]
struct Share {
    /// The number of the loop in the upper half, the tasks that nobody has taken yet in the lower: one word, so that a
    /// thread that comes late cannot take a task of one loop for a task of another.
    ticket: AtomicU64,
    /// Written by [`Team::run`] before it opens the share, read by whoever has taken a task of it.
    work: UnsafeCell<Option<Work>>,
}

/// A loop's closure, its lifetime erased, and the first task of the share.
#[derive(Clone, Copy)]
struct Work {
    call: *const (dyn Fn(usize) + Sync),
    first: usize,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Done(AtomicUsize);

// SAFETY: `work` is written only while the share is empty, and read only by the holder of one of its tasks. The closure
// that it points to is `Sync`, and is called only while `Team::run` waits for it.
unsafe impl Sync for Share {}
// SAFETY: as above.
unsafe impl Send for Share {}

impl std::fmt::Debug for Share {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Share").field(&self.ticket).finish()
    }
}

impl Team {
    /// A team of `threads`, the caller of [`Self::run`] included; 0 is taken as 1. With `pin`, each of the others is
    /// bound to a core of its own, where the system permits it.
    pub fn new(threads: usize, pin: bool) -> Self {
        let share = || Share { ticket: AtomicU64::new(0), work: UnsafeCell::new(None) };
        let shared = Arc::new(Shared {
            shares: (0..threads.max(1)).map(|_| share()).collect(),
            done: (0..threads.max(1)).map(|_| Done::default()).collect(),
            panicked: AtomicBool::new(false),
            asleep: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
        });
        let cores = if pin { core_affinity::get_core_ids().unwrap_or_default() } else { Vec::new() };
        let threads: Vec<_> = (1..threads)
            .map_while(|rank| {
                let (shared, core) = (shared.clone(), cores.get(rank % cores.len().max(1)).copied());
                let thread = std::thread::Builder::new().name(format!("accordion-team-{rank}"));
                // A thread that the system refuses is one fewer: the others can do its share.
                thread.spawn(move || shared.serve(rank, core)).ok()
            })
            .collect();
        Self { shared, threads, number: 0 }
    }

    /// The number of its threads, the caller of [`Self::run`] included.
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `work` with each of `0..tasks` once, in any order, on any thread, and returns when all calls have.
    ///
    /// # Panics
    /// If a task panicked, after the others are done.
    pub fn run(&mut self, tasks: usize, work: impl Fn(usize) + Sync) {
        if self.threads.is_empty() || tasks <= 1 {
            return (0..tasks).for_each(work);
        }
        assert!(u32::try_from(tasks).is_ok(), "{tasks} tasks in one loop");
        let shared = &*self.shared;
        let call: *const (dyn Fn(usize) + Sync + '_) = &work;
        // SAFETY: only the lifetime changes, and this call does not return before the last task is done.
        let call: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(call) };
        self.number = self.number.wrapping_add(1);
        shared.done.iter().for_each(|done| done.0.store(0, Ordering::Relaxed));
        let threads = self.threads();
        // The caller's own share last: the others can begin meanwhile.
        for (rank, share) in shared.shares.iter().enumerate().take(threads).rev() {
            let (first, end) = (rank * tasks / threads, (rank + 1) * tasks / threads);
            // SAFETY: no task is open now, so nobody reads the cell.
            unsafe { *share.work.get() = Some(Work { call, first }) };
            share.ticket.store(u64::from(self.number) << 32 | (end - first) as u64, Ordering::SeqCst);
        }
        if shared.asleep.load(Ordering::SeqCst) > 0 {
            self.threads.iter().for_each(|thread| thread.thread().unpark());
        }
        shared.work(0);
        let done = || shared.done.iter().map(|done| done.0.load(Ordering::Acquire)).sum::<usize>();
        let mut looks = 0;
        while done() < tasks {
            std::hint::spin_loop();
            looks += 1;
            // The thread that holds the last task may have lost its core to another process, perhaps this one.
            if looks % (16 * LOOKS) == 0 {
                std::thread::yield_now();
            }
        }
        assert!(!shared.panicked.swap(false, Ordering::Relaxed), "a task of the team panicked");
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // It catches every panic of a task, so it has none of its own.
            let _ = thread.join();
        }
    }
}

impl Share {
    fn is_open(&self) -> bool {
        self.ticket.load(Ordering::SeqCst) & u64::from(u32::MAX) > 0
    }

    /// Takes a task and runs it; `None` when there is none, else whether it went well.
    fn take(&self) -> Option<bool> {
        let mut ticket = self.ticket.load(Ordering::Acquire);
        let left = loop {
            let left = ticket & u64::from(u32::MAX);
            if left == 0 {
                return None;
            }
            match self.ticket.compare_exchange_weak(ticket, ticket - 1, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => break left as usize,
                Err(now) => ticket = now,
            }
        };
        // SAFETY: the loop is not over before this task is counted as done, and until then `run` neither writes the cell
        // nor lets the closure go.
        let (call, first) = unsafe {
            let work = (*self.work.get()).expect("a share with open tasks has work");
            (&*work.call, work.first)
        };
        Some(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| call(first + left - 1))).is_ok())
    }
}

impl Shared {
    /// Runs tasks until none is left: those of the thread's own share, then those of the others.
    fn work(&self, rank: usize) {
        let mut ran = 0;
        for share in self.shares[rank..].iter().chain(&self.shares[..rank]) {
            while let Some(well) = share.take() {
                ran += 1;
                if !well {
                    self.panicked.store(true, Ordering::Relaxed);
                }
            }
        }
        if ran > 0 {
            self.done[rank].0.fetch_add(ran, Ordering::Release);
        }
    }

    /// The life of a thread.
    fn serve(&self, rank: usize, core: Option<core_affinity::CoreId>) {
        core.map(core_affinity::set_for_current);
        let share = &self.shares[rank];
        while !self.closed.load(Ordering::SeqCst) {
            self.work(rank);
            if !watch(share) {
                self.asleep.fetch_add(1, Ordering::SeqCst);
                // Whoever opens the share after this look sees that somebody is asleep.
                if !share.is_open() && !self.closed.load(Ordering::SeqCst) {
                    std::thread::park();
                }
                self.asleep.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }
}

/// Looks for work for a moment; whether there was some.
fn watch(share: &Share) -> bool {
    let start = Instant::now();
    loop {
        for _ in 0..LOOKS {
            if share.is_open() {
                return true;
            }
            std::hint::spin_loop();
        }
        if start.elapsed() > PATIENCE {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_in_loops_of_any_length() {
        for threads in [1, 2, 5] {
            let mut team = Team::new(threads, false);
            assert_eq!(team.threads(), threads);
            for round in 0..2000 {
                let tasks = round % 37;
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                team.run(tasks, |task| {
                    counts[task].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn a_team_that_fell_asleep_wakes_for_the_next_loop() {
        let mut team = Team::new(3, true);
        for _ in 0..3 {
            while team.shared.asleep.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            let sum = AtomicUsize::new(0);
            team.run(1000, |task| {
                sum.fetch_add(task, Ordering::Relaxed);
            });
            assert_eq!(sum.into_inner(), 499_500);
        }
    }

    #[test]
    fn a_panic_in_a_task_is_the_caller_s_and_the_team_goes_on() {
        let mut team = Team::new(2, false);
        let panics = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            team.run(8, |task| assert!(task != 3, "task three"));
        }));
        assert!(panics.is_err());
        let done = AtomicUsize::new(0);
        team.run(8, |_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.into_inner(), 8);
    }
}
