//! 100,000 callers that wait for the same first token: the heap of each, and how soon all continue.

use std::{
    future::ready,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use allocation_counter::measure;
use http::Uri;
use tokio::{
    runtime::Builder,
    sync::{Notify, Semaphore, watch},
    task::yield_now,
    time::sleep,
};
use tower::ServiceExt;
use tower_adobe_auth::{TokenResponse, TokenSource};

use crate::{
    subjects::{Api, DAY, FIREFLY, Stack, ours, quiet_runtime, request, secret},
    table::{head, row},
};

const HERD: usize = 100_000;

/// Holds the one flight until it is opened, and counts the flights.
struct Gate {
    open: Semaphore,
    fetches: AtomicUsize,
}

impl Gate {
    fn new() -> Arc<Self> {
        Arc::new(Self { open: Semaphore::new(0), fetches: AtomicUsize::new(0) })
    }

    fn tokens(self: &Arc<Self>) -> TokenSource {
        let gate = Arc::clone(self);
        TokenSource::from_fetcher(move || {
            let gate = Arc::clone(&gate);
            async move {
                gate.fetches.fetch_add(1, Ordering::Relaxed);
                gate.open.acquire().await.unwrap().forget();
                Ok(TokenResponse::new(secret(), DAY))
            }
        })
    }
}

/// How many callers wait, and how many have their answer.
struct Herd {
    size: usize,
    waiting: AtomicUsize,
    done: AtomicUsize,
    all_done: Notify,
}

impl Herd {
    fn new(size: usize) -> Arc<Self> {
        let (waiting, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(Self { size, waiting, done, all_done: Notify::new() })
    }

    /// One caller: waits until `ready`, and then makes its call.
    async fn call(self: Arc<Self>, ready: impl Future<Output = ()>, service: impl Stack, uri: Uri) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        ready.await;
        service.oneshot(request(&uri)).await.unwrap();
        if self.done.fetch_add(1, Ordering::AcqRel) + 1 == self.size {
            self.all_done.notify_one();
        }
    }

    /// Until each caller has been polled once.
    async fn all_wait(&self) {
        while self.waiting.load(Ordering::Relaxed) < self.size {
            yield_now().await;
        }
    }
}

/// From the answer of the one flight to the last of so many callers that has its response.
pub(crate) fn awake(waiters: usize) -> Duration {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (gate, herd) = (Gate::new(), Herd::new(waiters));
    let service = ours(&gate.tokens());
    let uri: Uri = FIREFLY.parse().unwrap();
    runtime.block_on(async {
        for _ in 0..waiters {
            tokio::spawn(Arc::clone(&herd).call(ready(()), service.clone(), uri.clone()));
        }
        herd.all_wait().await;
        // The last to be counted may still be on its way into its wait.
        sleep(Duration::from_millis(50)).await;
        assert_eq!(herd.done.load(Ordering::Acquire), 0, "nobody waited");

        let opened = Instant::now();
        // More than one flight would be let through, and counted.
        gate.open.add_permits(2);
        herd.all_done.notified().await;
        let took = opened.elapsed();

        assert_eq!(gate.fetches.load(Ordering::Relaxed), 1, "one flight");
        took
    })
}

/// The bytes of heap of one waiter.
pub(crate) struct Heap {
    /// With its task and its request.
    pub(crate) all: f64,
    /// The same where the wait is on a `tokio::sync::watch`, and without the layer.
    pub(crate) baseline: f64,
}

impl Heap {
    pub(crate) fn ours(&self) -> f64 {
        self.all - self.baseline
    }
}

/// The heap of so many waiters, on one thread, where it can be counted to the byte.
pub(crate) fn heap(waiters: usize) -> Heap {
    let gate = Gate::new();
    let service = ours(&gate.tokens());
    let all = bytes(waiters, || ready(()), &service);
    assert_eq!(gate.fetches.load(Ordering::Relaxed), 1, "one flight");

    let (_open, closed) = watch::channel(());
    let wait = || {
        let mut closed = closed.clone();
        async move { closed.changed().await.unwrap() }
    };
    Heap { all, baseline: bytes(waiters, wait, &Api) }
}

fn bytes<W>(waiters: usize, wait: impl Fn() -> W, service: &impl Stack) -> f64
where
    W: Future<Output = ()> + Send + 'static,
{
    let runtime = quiet_runtime();
    let herd = Herd::new(waiters);
    let uri: Uri = FIREFLY.parse().unwrap();
    let used = measure(|| {
        runtime.block_on(async {
            for _ in 0..waiters {
                tokio::spawn(Arc::clone(&herd).call(wait(), service.clone(), uri.clone()));
            }
            herd.all_wait().await;
            yield_now().await;
        });
    });
    assert_eq!(herd.done.load(Ordering::Acquire), 0, "nobody waited");
    used.bytes_current as f64 / waiters as f64
}

pub(crate) fn run() {
    head("100,000 callers on one cold flight");
    let mut times: Vec<_> = (0..5).map(|_| awake(HERD)).collect();
    times.sort();
    let (median, longest) = (times[2], times[4]);
    row(
        "from the response of IMS to the last caller's response",
        &format!("median {median:.0?}, longest {longest:.0?} of 5"),
    );
    let heap = heap(HERD);
    row("heap of a waiter, without its task and its request", &format!("{:.0} bytes", heap.ours()));
    row("  its task and its request", &format!("{:.0} bytes", heap.baseline));
    row("  all together", &format!("{:.0} bytes", heap.all));
}
