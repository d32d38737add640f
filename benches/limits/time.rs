//! The time of a call.
//!
//! The two sides of a row are measured in turn, in many short rounds. The ratio is that of the
//! medians: a round in which the machine did something else does not count.

use std::{
    hint::{black_box, spin_loop},
    num::NonZero,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use http::{Request, Response, Uri};
use tower::{BoxError, Service};

use crate::{
    subjects::{
        Api, FIREFLY, STORAGE, Stack, by_hand, constant, drive, ours, ours_with_key, quiet_runtime,
        request, tokens, two_constants,
    },
    table::{head, row},
};

const ROUNDS: usize = 2_000;
/// With more threads than cores each round waits for its turn on a core.
const CROWDED_ROUNDS: usize = 300;
const CALLS: usize = 64;
/// A round counts if another thread was in the same round for this part of its time.
const MEETING: f64 = 0.5;
const TRIES: usize = 5;

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The nanoseconds of one call on each side.
#[derive(Clone, Copy)]
pub(crate) struct Times {
    pub(crate) ours: f64,
    pub(crate) theirs: f64,
    /// The part of the rounds that counted, on the side where fewer did.
    pub(crate) met: f64,
}

impl Times {
    fn ratio(self) -> f64 {
        self.ours / self.theirs
    }

    fn text(self) -> String {
        format!("{:.1} / {:.1} ns = {:.2} ×", self.ours, self.theirs, self.ratio())
    }
}

/// Lets all threads go at once. A barrier that puts them to sleep wakes one long after another,
/// and their rounds, which take some microseconds, would not meet. A thread that yields while it
/// spins would let the scheduler keep them all on one core, where they never meet either.
struct Start {
    threads: usize,
    arrived: AtomicUsize,
}

impl Start {
    fn wait(&self) {
        let ticket = self.arrived.fetch_add(1, Ordering::AcqRel);
        let all = (ticket / self.threads + 1) * self.threads;
        while self.arrived.load(Ordering::Acquire) < all {
            spin_loop();
        }
    }
}

/// From when to when one round of one thread went on.
#[derive(Clone, Copy)]
struct Span {
    begun: Instant,
    ended: Instant,
}

impl Span {
    fn length(self) -> Duration {
        self.ended - self.begun
    }

    fn meets(self, other: Self) -> bool {
        let both =
            self.ended.min(other.ended).saturating_duration_since(self.begun.max(other.begun));
        both.as_secs_f64() >= MEETING * self.length().as_secs_f64()
    }
}

/// One round, with requests made before.
#[inline(never)]
fn round<S, F>(
    service: &mut S,
    uri: &Uri,
    start: &Start,
    call: impl Fn(&mut S, Request<()>) -> F,
) -> Span
where
    F: Future<Output = Result<Response<()>, BoxError>>,
{
    let requests: Vec<_> = (0..CALLS).map(|_| request(uri)).collect();
    start.wait();
    let begun = Instant::now();
    for request in requests {
        assert!(black_box(drive(call(service, request))).is_ok());
    }
    Span { begun, ended: Instant::now() }
}

/// The median of the rounds in which threads met, and which part of all these were.
fn summary(threads: &[Vec<Span>]) -> (f64, f64) {
    let mut counted = Vec::new();
    for (number, rounds) in threads.iter().enumerate() {
        for (at, round) in rounds.iter().enumerate() {
            let mut others = threads.iter().enumerate().filter(|(other, _)| *other != number);
            if threads.len() == 1 || others.any(|(_, rounds)| round.meets(rounds[at])) {
                counted.push(round.length().as_secs_f64() * 1e9 / CALLS as f64);
            }
        }
    }
    let all: usize = threads.iter().map(Vec::len).sum();
    let part = counted.len() as f64 / all as f64;
    if counted.is_empty() { (f64::NAN, 0.0) } else { (median(counted), part) }
}

fn measure(ours: &impl Stack, theirs: &impl Stack, uri: &str, threads: usize) -> Times {
    measure_as(
        ours,
        theirs,
        uri,
        threads,
        |s, request| s.call(request),
        |s, request| s.call(request),
    )
}

/// Measures anew where threads did not meet, as on a core that they had to share. What the times
/// were has no say in that.
fn until_met(measure: impl Fn() -> Times) -> Times {
    let mut tries = 0;
    loop {
        let times = measure();
        tries += 1;
        if times.met >= MEETING || tries == TRIES {
            return times;
        }
    }
}

/// Both sides in turn, each called in its own way.
fn measure_as<A: Stack, B: Stack>(
    ours: &A,
    theirs: &B,
    uri: &str,
    threads: usize,
    call_ours: impl Fn(&mut A, Request<()>) -> A::Future + Copy + Send + 'static,
    call_theirs: impl Fn(&mut B, Request<()>) -> B::Future + Copy + Send + 'static,
) -> Times {
    until_met(|| {
        let start = Arc::new(Start { threads, arrived: AtomicUsize::new(0) });
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let rounds = if threads > cores { CROWDED_ROUNDS } else { ROUNDS };
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let (mut ours, mut theirs) = (ours.clone(), theirs.clone());
                // Its own text: the count of references to one URI would be contended.
                let uri: Uri = uri.parse().unwrap();
                let start = Arc::clone(&start);
                thread::spawn(move || {
                    let rounds = (0..rounds).map(|_| {
                        let ours = round(&mut ours, &uri, &start, call_ours);
                        (ours, round(&mut theirs, &uri, &start, call_theirs))
                    });
                    rounds.unzip::<_, _, Vec<_>, Vec<_>>()
                })
            })
            .collect();
        let sides = workers.into_iter().map(|worker| worker.join().unwrap());
        let (ours, theirs): (Vec<_>, Vec<_>) = sides.unzip();
        let ((ours, a), (theirs, b)) = (summary(&ours), summary(&theirs));
        Times { ours, theirs, met: a.min(b) }
    })
}

/// Ours and the constant header on so many threads.
pub(crate) fn against_constant(threads: usize) -> Times {
    let runtime = quiet_runtime();
    measure(&ours(&tokens(&runtime)), &constant(), FIREFLY, threads)
}

/// A row, if its rounds met: threads that ran one after the other contend for nothing.
fn row_if_met(measure: &str, times: Times) {
    if times.met >= MEETING {
        row(measure, &times.text());
    } else {
        let met = 100.0 * times.met;
        row(measure, &format!("not measured: threads met in {met:.0} % of rounds"));
    }
}

pub(crate) fn run() {
    let runtime = quiet_runtime();
    let tokens = tokens(&runtime);
    let (bare, keyed) = (ours(&tokens), ours_with_key(&tokens));

    head("time of a call, this layer / another one");
    for (threads, name) in [(1, "one thread"), (2, "two threads")] {
        let times = measure(&bare, &constant(), FIREFLY, threads);
        row_if_met(&format!("{name}, constant header"), times);
        let times = measure(&keyed, &two_constants(), FIREFLY, threads);
        row_if_met(&format!("{name}, with x-api-key, two constant headers"), times);
        let times = measure(&bare, &by_hand(), FIREFLY, threads);
        row_if_met(&format!("{name}, a mutex by hand"), times);
    }
    let times = measure_as(
        &bare,
        &constant(),
        FIREFLY,
        1,
        |s, request| s.clone().call(request),
        |s, request| s.clone().call(request),
    );
    row_if_met("a clone for each request, constant header likewise", times);
    row_if_met("a host that is not allowed, bare service", measure(&bare, &Api, STORAGE, 1));
}
