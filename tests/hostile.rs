//! Hostile surroundings of a token source: runtimes that lag or have no timers, wakers and tracing
//! subscribers that panic, a fetcher whose credentials seem to change all the time, and a wall
//! clock that jumps. Most tests run in real time, because their runtimes block or have no timers.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    future::pending,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Wake, Waker},
    thread,
    time::{Duration, Instant, SystemTime},
};

use futures_util::FutureExt;
use tokio::{
    runtime::Builder,
    task::yield_now,
    time::{sleep, timeout},
};
use tower::Layer;
use tower_adobe_auth::{
    AdobeAuthLayer, ErrorKind, FetchToken, TokenError, TokenResponse, TokenSource,
};
use tracing::{Event, Metadata, Subscriber, span};

use self::support::{
    DAY, FIREFLY, HOUR, Ims, api, current_thread, get, millis, multi_thread, secs, within,
};

// Runtimes that lag.

/// Blocks the thread of its runtime for 600 ms at each poll, until `stop` is set.
async fn keep_busy(stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::SeqCst) {
        thread::sleep(millis(600));
        yield_now().await;
    }
}

#[test]
fn a_caller_on_a_busy_runtime_still_times_out() {
    let tokens = TokenSource::builder_from_fetcher(|| async {
        pending::<()>().await;
        unreachable!()
    })
    .acquire_timeout(secs(1))
    .build()
    .unwrap();

    let token = within(secs(10), move || {
        current_thread().block_on(async move {
            tokio::spawn(keep_busy(Arc::default()));
            tokens.token().await.map(drop)
        })
    });

    assert!(token.is_err());
}

#[test]
fn a_hung_fetch_on_a_busy_runtime_wedges_no_other_runtime() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let tokens = TokenSource::builder_from_fetcher(move || {
        let number = counter.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            if number == 1 {
                pending::<()>().await;
            }
            Ok(TokenResponse::new(format!("token-{number}"), DAY))
        }
    })
    .attempt_timeout(secs(1))
    .acquire_timeout(secs(20))
    .build()
    .unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let busy = thread::spawn({
        let (tokens, stop) = (tokens.clone(), Arc::clone(&stop));
        move || {
            current_thread().block_on(async move {
                tokens.warm_up();
                keep_busy(stop).await;
            });
        }
    });
    thread::sleep(millis(100));

    let token = current_thread().block_on(tokens.token());

    stop.store(true, Ordering::SeqCst);
    busy.join().unwrap();
    assert!(token.is_ok(), "{token:?} after {} requests", asked.load(Ordering::SeqCst));
}

// Threads and runtimes without timers.

/// Fetches one token; each later fetch hangs.
fn fetch_once() -> impl FetchToken {
    let asked = AtomicUsize::new(0);
    move || {
        let number = asked.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            if number > 1 {
                pending::<()>().await;
            }
            Ok(TokenResponse::new(format!("token-{number}"), DAY))
        }
    }
}

#[test]
fn a_suspect_token_is_given_where_no_timer_runs() {
    let tokens = TokenSource::from_fetcher(fetch_once());
    let driven = multi_thread(1);
    driven.block_on(async {
        let client = AdobeAuthLayer::new(tokens.clone()).layer(api(|_| 401));
        assert_eq!(get(&client, FIREFLY).await.ok(), 401);
        assert!(tokens.status().is_refreshing());
        assert!(tokens.status().is_ready());
    });

    let outside = tokens.token().now_or_never();
    let bare = Builder::new_current_thread().build().unwrap();
    let without_timers = bare.block_on(tokens.token());

    assert!(matches!(outside, Some(Ok(_))), "{outside:?}");
    assert!(without_timers.is_ok(), "{without_timers:?}");
}

#[test]
fn a_runtime_without_timers_takes_no_renewal_away() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let tokens = TokenSource::from_fetcher(move || {
        counter.fetch_add(1, Ordering::SeqCst);
        async move {
            sleep(millis(10)).await;
            Ok(TokenResponse::new("token", secs(4)))
        }
    });
    let bare = Builder::new_current_thread().build().unwrap();
    bare.block_on(async {
        let _ = tokens.try_token();
        for _ in 0..10 {
            yield_now().await;
        }
    });

    // The background task runs here, not on the runtime that cannot wait.
    let service = multi_thread(1);
    service.block_on(async { tokens.token().await.unwrap() });
    thread::sleep(secs(5));

    let asked = asked.load(Ordering::SeqCst);
    assert!(tokens.status().is_ready(), "{:?} after {asked} requests", tokens.status());
}

// Code of the application that panics.

/// A waker that panics the first time it is woken.
struct Bomb(AtomicBool);

impl Wake for Bomb {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.0.swap(false, Ordering::SeqCst) {
            panic!("the waker is broken");
        }
    }
}

#[test]
fn a_panicking_waker_leaves_no_flight_without_a_task() {
    let tokens = TokenSource::from_fetcher(|| async { Ok(TokenResponse::new("token", DAY)) });
    let mut changes = tokens.subscribe();
    let waker = Waker::from(Arc::new(Bomb(AtomicBool::new(true))));
    let mut changed = pin!(changes.changed());
    assert!(changed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());

    multi_thread(1).block_on(async {
        let first = tokio::spawn({
            let tokens = tokens.clone();
            async move { tokens.token().await.map(drop) }
        });
        let first = first.await;
        let second = timeout(secs(20), tokens.token()).await;

        assert!(matches!(second, Ok(Ok(_))), "{second:?}; {:?}", tokens.status());
        first.unwrap().unwrap();
    });
}

/// A subscriber that panics when a span is cloned.
struct BrokenSubscriber;

impl Subscriber for BrokenSubscriber {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn event(&self, _: &Event<'_>) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}

    fn clone_span(&self, _: &span::Id) -> span::Id {
        panic!("the subscriber is broken")
    }
}

#[test]
fn a_subscriber_that_panics_in_clone_span_fails_no_caller() {
    let tokens = TokenSource::from_fetcher(|| async { Ok(TokenResponse::new("token", HOUR)) });
    let runtime = current_thread();

    let token = tracing::subscriber::with_default(BrokenSubscriber, || {
        runtime.block_on(tokens.token()).map(drop)
    });

    assert!(token.is_ok(), "{token:?}");
}

// Credentials that change, or seem to.

/// A fetcher whose `changed` completes each time `interval` has passed.
struct Ticking {
    asked: Arc<AtomicUsize>,
    interval: Duration,
}

impl FetchToken for Ticking {
    async fn fetch_token(&self) -> Result<TokenResponse, TokenError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Ok(TokenResponse::new("token", DAY))
    }

    async fn changed(&self) {
        sleep(self.interval).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_ticking_changed_costs_few_tokens() {
    for interval in [millis(500), millis(2_100), secs(3), secs(10)] {
        let asked = Arc::new(AtomicUsize::new(0));
        let tokens = TokenSource::from_fetcher(Ticking { asked: Arc::clone(&asked), interval });
        tokens.token().await.unwrap();

        sleep(HOUR).await;

        let asked = asked.load(Ordering::SeqCst);
        assert!(asked < 100, "{asked} requests in an hour, at a change every {interval:?}");
    }
}

/// A fetcher that counts how often `changed` is started. Its tokens live for four seconds.
struct Watched {
    started: Arc<AtomicUsize>,
}

impl FetchToken for Watched {
    async fn fetch_token(&self) -> Result<TokenResponse, TokenError> {
        Ok(TokenResponse::new("token", secs(4)))
    }

    async fn changed(&self) {
        self.started.fetch_add(1, Ordering::SeqCst);
        sleep(HOUR).await;
    }
}

#[test]
fn changed_is_not_restarted_between_block_ons() {
    let started = Arc::new(AtomicUsize::new(0));
    let tokens = TokenSource::from_fetcher(Watched { started: Arc::clone(&started) });
    let runtime = current_thread();

    for _ in 0..4 {
        runtime.block_on(async {
            tokens.token().await.unwrap();
            sleep(millis(1_200)).await;
        });
        // The runtime is not driven meanwhile.
        thread::sleep(millis(3_500));
    }

    assert_eq!(started.load(Ordering::SeqCst), 1);
}

// Calls at unexpected times.

#[tokio::test(start_paused = true)]
async fn an_invalidated_idle_source_recovers() {
    let ims = Ims::new(DAY);
    let tokens = ims.source();
    let token = tokens.token().await.unwrap();

    tokens.invalidate(&token);
    sleep(DAY).await;

    let asked = ims.asked();
    assert!(tokens.status().is_ready(), "{:?} after {asked} requests", tokens.status());
}

#[tokio::test]
async fn an_invalidate_of_nothing_is_no_change() {
    let ims = Ims::new(DAY);
    let tokens = ims.source();
    let old = tokens.token().await.unwrap();
    tokens.refresh().await.unwrap();
    let mut changes = tokens.subscribe();

    tokens.invalidate(&old);

    assert!(timeout(millis(50), changes.changed()).await.is_err());
}

#[test]
fn callers_after_a_shutdown_fail_immediately() {
    let tokens = TokenSource::builder_from_fetcher(|| async {
        pending::<()>().await;
        unreachable!()
    })
    .acquire_timeout(secs(3))
    .build()
    .unwrap();
    // This runtime is kept and not driven any more, with a refresh in progress.
    let kept = current_thread();
    kept.block_on(async { tokens.warm_up() });

    current_thread().block_on(async {
        let _ = tokens.shutdown().await;
        let start = Instant::now();
        let error = tokens.token().await.unwrap_err();

        assert!(start.elapsed() < millis(500), "{:?} {error:?}", start.elapsed());
        assert_eq!(error.kind(), ErrorKind::Shutdown);
    });
}

// A wall clock that jumps.

#[tokio::test]
async fn a_wall_jump_during_a_flight_makes_no_task_spin() {
    let readings = Arc::new(AtomicUsize::new(0));
    let offset = Arc::new(AtomicU64::new(0));
    let wall_clock = {
        let (readings, offset) = (Arc::clone(&readings), Arc::clone(&offset));
        move || {
            readings.fetch_add(1, Ordering::SeqCst);
            SystemTime::now() + secs(offset.load(Ordering::SeqCst))
        }
    };
    let tokens =
        TokenSource::builder_from_fetcher(fetch_once()).wall_clock(wall_clock).build().unwrap();
    let token = tokens.token().await.unwrap();
    // The second fetch hangs.
    assert!(tokens.refresh().now_or_never().is_none());
    sleep(millis(200)).await;

    offset.store(3_600, Ordering::SeqCst);
    // A change, after which the background task computes its next wake-up.
    tokens.invalidate(&token);
    sleep(millis(100)).await;
    let before = readings.load(Ordering::SeqCst);
    sleep(secs(2)).await;

    let readings = readings.load(Ordering::SeqCst) - before;
    assert!(readings < 20, "{readings} readings of the clock in two seconds");
}
