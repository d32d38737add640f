//! The slowest call in a thousand, during a refresh and without one.

use std::{
    hint::black_box,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use http::Uri;
use tokio::time::sleep;
use tower::Service;
use tower_adobe_auth::{AdobeAuth, TokenResponse, TokenSource};

use crate::{
    subjects::{Api, DAY, FIREFLY, drive, ours, request, secret},
    table::{head, row},
};

const WINDOW: Duration = Duration::from_millis(50);
const WINDOWS: usize = 30;
const THREADS: usize = 2;
const CALLS: usize = 64;
/// A call that takes longer than this many nanoseconds counts as one that takes so long.
const LONGEST: usize = 1_000_000;

const WITHOUT: usize = 0;
const WITH: usize = 1;
const OVER: usize = 2;

/// How many calls took so many nanoseconds.
struct Histogram(Vec<u64>);

impl Histogram {
    fn new() -> Self {
        Self(vec![0; LONGEST + 1])
    }

    fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine += theirs);
    }

    /// What all but one in a thousand calls stay within.
    fn p999(&self) -> usize {
        let all: u64 = self.0.iter().sum();
        let mut seen = 0;
        let within = |count: &u64| {
            seen += count;
            seen * 1_000 >= all * 999
        };
        self.0.iter().position(within).unwrap()
    }
}

/// Calls without a pause until it is over, each timed to its end.
fn load(mut service: AdobeAuth<Api>, window: &AtomicUsize) -> [Histogram; 2] {
    let uri: Uri = FIREFLY.parse().unwrap();
    let mut times = [Histogram::new(), Histogram::new()];
    loop {
        let requests: Vec<_> = (0..CALLS).map(|_| request(&uri)).collect();
        let now = window.load(Ordering::Relaxed);
        if now == OVER {
            return times;
        }
        for request in requests {
            let begun = Instant::now();
            assert!(black_box(drive(service.call(request))).is_ok());
            let took = usize::try_from(begun.elapsed().as_nanos()).unwrap();
            times[now].0[took.min(LONGEST)] += 1;
        }
    }
}

pub(crate) fn run() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let tokens = TokenSource::from_fetcher(|| async {
        sleep(WINDOW).await;
        Ok(TokenResponse::new(secret(), DAY))
    });
    runtime.block_on(tokens.token()).unwrap();
    let window = Arc::new(AtomicUsize::new(WITHOUT));
    let workers: Vec<_> = (0..THREADS)
        .map(|_| {
            let (service, window) = (ours(&tokens), Arc::clone(&window));
            thread::spawn(move || load(service, &window))
        })
        .collect();

    for _ in 0..WINDOWS {
        thread::sleep(WINDOW);
        window.store(WITH, Ordering::Relaxed);
        runtime.block_on(tokens.refresh()).unwrap();
        window.store(WITHOUT, Ordering::Relaxed);
    }
    window.store(OVER, Ordering::Relaxed);

    let mut times = [Histogram::new(), Histogram::new()];
    for worker in workers {
        let more = worker.join().unwrap();
        times.iter_mut().zip(&more).for_each(|(all, more)| all.add(more));
    }
    let (with, without) = (times[WITH].p999(), times[WITHOUT].p999());
    let ratio = with as f64 / without as f64;
    head("the slowest call in a thousand (p99.9), two threads");
    row("during a refresh / without one", &format!("{with} / {without} ns = {ratio:.2} ×"));
}
