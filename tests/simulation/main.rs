//! Promises 1 to 6, by simulation: a month of virtual time for each seed, many callers, an IMS that
//! slows down, hangs, fails, throttles and answers nonsense, APIs that refuse tokens, clocks that
//! jump, stand and run backwards, a process that stands still, runtimes that end or are not driven,
//! and foreign code that panics.
//!
//! Everything runs on one thread and in paused time, so that a seed always tells the same story.
//! The checks are reckoned here anew, from what callers, APIs and IMS can see. After each step:
//! - no caller has failed or waited beyond the suspect grace while a usable token was cached,
//! - at most one token request is in progress,
//! - each token request has a reason, and those without a natural bound are within their budget
//!   (derived in `promises.rs`),
//! - no dead token was sent.
//!
//! A failure names its seed: `SIMULATION_SEED=42` runs that one alone, `SIMULATION_SEEDS=3000` runs
//! so many, and `SIMULATION_ONLY=Standstills,Refusals` allows only these adversities.

#![allow(clippy::unwrap_used)]

mod adversity;
mod api;
mod callers;
mod credentials;
mod driver;
mod foreign;
mod ims;
mod moment;
mod promises;
mod runtimes;
mod world;

use std::{
    any::Any,
    collections::BTreeMap,
    env,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use driver::{Report, SPAN, run};

const DEFAULT_SEEDS: u64 = 300;

/// Runs a seed on a thread that is named after it: a panic that aborts the process names it too.
fn run_apart(seed: u64) -> Result<Report, String> {
    let thread = thread::Builder::new().name(format!("seed {seed}"));
    let outcome = thread.spawn(move || run(seed)).unwrap().join();
    outcome.unwrap_or_else(|panic| Err(format!("the simulation panicked: {}", text(&*panic))))
}

fn text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("")
}

fn number(variable: &str) -> Option<u64> {
    let text = env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text}")))
}

#[test]
fn no_seed_breaks_a_promise() {
    let (first, end) = match number("SIMULATION_SEED") {
        Some(seed) => (seed, seed + 1),
        None => (0, number("SIMULATION_SEEDS").unwrap_or(DEFAULT_SEEDS)),
    };
    let next = AtomicU64::new(first);
    let total = Mutex::new(BTreeMap::<&str, u64>::new());
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return None;
            }
            match run_apart(seed) {
                Ok(report) => {
                    let mut total = total.lock().unwrap();
                    report.tally.iter().for_each(|(what, n)| *total.entry(what).or_default() += n);
                }
                Err(violation) => {
                    next.store(end, Ordering::Relaxed);
                    return Some((seed, violation));
                }
            }
        }
    };
    let failed = thread::scope(|scope| {
        let cores = thread::available_parallelism().map_or(1, Into::into);
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        workers.into_iter().filter_map(|worker| worker.join().unwrap()).min()
    });
    if let Some((seed, violation)) = failed {
        panic!(
            "seed {seed}: {violation}\nagain: SIMULATION_SEED={seed} cargo test --test simulation"
        );
    }

    let total = total.into_inner().unwrap();
    println!("{} seeds of {SPAN:?}: {total:#?}", end - first);
    if end - first >= 20 && env::var_os("SIMULATION_ONLY").is_none() {
        for what in HAPPENS {
            assert!(total.contains_key(what), "never happened: {what}");
        }
    }
}

/// Everything that some seed must have seen.
const HAPPENS: [&str; 45] = [
    "immediately",
    "waited",
    "cancelled",
    "replayed",
    "error",
    "acquire timeout",
    "token",
    "timeout",
    "rejection",
    "dead on arrival",
    "nonsense",
    "retry after",
    "status 429 or 5xx",
    "broken connection",
    "panic",
    "machine sleeps",
    "clock set",
    "clock stands",
    "clock runs backwards",
    "clock runs",
    "clock panics",
    "invalidated",
    "refresh",
    "refused",
    "revoked",
    "refusals in a row",
    "evidence against the origin",
    "answered with 401",
    "standstill",
    "refresh on another runtime",
    "request on the other runtime",
    "runtime driven",
    "runtime ends",
    "lost on the other runtime",
    "token of an older request",
    "provider panics",
    "provider fails",
    "provider hangs",
    "changed panics",
    "new secret",
    "credentials changed",
    "bad changed()",
    "subscriber panics",
    "foreign code panics",
    "shutdown",
];

#[test]
fn a_seed_tells_the_same_story_twice() {
    for seed in [1, 2, 3] {
        let (one, two) = (run_apart(seed).unwrap(), run_apart(seed).unwrap());

        assert_eq!(one.tally, two.tally, "seed {seed}");
        assert_eq!(one.log, two.log, "seed {seed}");
    }
    assert_ne!(run_apart(1).unwrap().log, run_apart(2).unwrap().log);
}
