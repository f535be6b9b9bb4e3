//! Runs seeds: one, or many over all cores.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tidemark_core::node::Node;

use crate::sim::faults::Fired;
use crate::sim::world::{Options, World};

/// How a seed ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What was broken, if anything.
    pub violation: Option<String>,
    /// Hash of everything that happened.
    pub hash: u64,
    /// Things that happened.
    pub steps: u64,
    /// Requests issued.
    pub requests: u64,
    /// The run ended early: no copy was left that may be opened.
    pub hopeless: bool,
    /// How often each fault fired.
    pub fired: Fired,
    /// The last lines of the trace, when asked for.
    pub tail: Vec<String>,
}

thread_local! {
    static LAST_PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Keeps the text of a panic instead of printing it, on every thread. Call once per process.
pub fn quiet_panics() {
    std::panic::set_hook(Box::new(|info| {
        LAST_PANIC.with(|p| *p.borrow_mut() = Some(info.to_string().replace('\n', " ")));
    }));
}

/// What the panic that was just caught said.
pub(super) fn last_panic() -> String {
    LAST_PANIC.with(|p| p.borrow_mut().take()).unwrap_or_else(|| "see above".into())
}

/// Runs one seed. A panic in the core is a violation.
pub fn run_seed(seed: u64, options: Options) -> Outcome {
    if options.members {
        return crate::sim::members::run_seed(seed, options);
    }
    let mut world = World::<Node>::new(seed, options);
    let ended = catch_unwind(AssertUnwindSafe(|| world.run()));
    let panic = ended.err().map(|_| format!("panic: {}", last_panic()));
    Outcome {
        seed,
        violation: panic.or(world.violation.take()),
        hash: world.trace.hash(),
        steps: world.trace.steps(),
        requests: world.client.issued,
        hopeless: world.operator.hopeless,
        fired: world.fired.clone(),
        tail: world.trace.tail(),
    }
}

/// What many seeds gave.
#[derive(Debug, Default)]
pub struct Summary {
    /// Seeds run.
    pub seeds: u64,
    /// Seeds that ended early because no copy was left.
    pub hopeless: u64,
    /// Requests issued.
    pub requests: u64,
    /// Things that happened.
    pub steps: u64,
    /// How often each fault fired.
    pub fired: Fired,
    /// Seeds that broke something, with what.
    pub violations: Vec<(u64, String)>,
}

impl Summary {
    fn add(&mut self, outcome: Outcome) {
        self.seeds += 1;
        self.hopeless += u64::from(outcome.hopeless);
        self.requests += outcome.requests;
        self.steps += outcome.steps;
        self.fired.add(&outcome.fired);
        if let Some(what) = outcome.violation {
            self.violations.push((outcome.seed, what));
        }
    }
}

/// Lets the allocator keep what a seed gives back for the next one: glibc takes the largest mapping that was freed (32 MiB count
/// at most) for the size below which it does not return memory to the kernel, which would clear each page again.
fn keep_freed_memory() {
    drop(std::hint::black_box(Vec::<u8>::with_capacity((32 << 20) - (64 << 10))));
}

/// Runs the seeds `from..to` on `threads` threads; stops early after `max_violations`.
pub fn run_many(seeds: std::ops::Range<u64>, options: Options, threads: usize, max_violations: usize) -> Summary {
    keep_freed_memory();
    let (next, summary) = (AtomicU64::new(seeds.start), Mutex::new(Summary::default()));
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = run_seed(seed, options);
                    let mut all = summary.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                    all.add(outcome);
                    if all.violations.len() >= max_violations {
                        next.store(seeds.end, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let mut summary = summary.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    summary.violations.sort();
    summary
}
