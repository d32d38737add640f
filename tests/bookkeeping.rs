//! Failures are recorded against their cause: only failures of IMS start the backoff of IMS. A
//! runtime that ends, a fetcher that panics, or a broken subscriber, recorder or clock fails no other
//! caller.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    env,
    error::Error,
    iter::successors,
    panic::{AssertUnwindSafe, catch_unwind},
    process::Command,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Instant, SystemTime},
};

use tokio::{
    runtime::{Builder, Runtime},
    sync::Semaphore,
    time::{sleep, timeout},
};
use tower_adobe_auth::{ErrorKind, TokenError, TokenResponse, TokenSource};
use tracing::{
    Event, Metadata, Subscriber,
    span::{Attributes, Id, Record},
};

use self::support::{
    DAY, HOUR, Ims, MINUTE, Reply, current_thread, millis, multi_thread, secs, start_refresh,
    watched, within,
};

/// A source whose fetches wait for a permit each.
fn gated() -> (TokenSource, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let tokens = TokenSource::from_fetcher({
        let gate = Arc::clone(&gate);
        move || {
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.unwrap().forget();
                Ok(TokenResponse::new("token", DAY))
            }
        }
    });
    (tokens, gate)
}

/// Calls `tokens.token()` and gives up before a token can come; the runtime ends with the refresh.
fn cancelled_call(runtime: Runtime, tokens: &TokenSource) {
    runtime.block_on(async {
        assert!(timeout(millis(5), tokens.token()).await.is_err(), "no token can have come");
    });
    drop(runtime);
}

// Runtimes that end.

#[test]
fn a_runtime_for_each_call_works_while_ims_is_healthy() {
    let ims = Ims::new(secs(2)).taking(millis(100));
    let tokens = ims.source();

    let (start, mut calls) = (Instant::now(), 0);
    while start.elapsed() < secs(12) {
        let token = current_thread().block_on(tokens.token());
        assert!(token.is_ok(), "call {calls}: {token:?}");
        assert_eq!(tokens.status().consecutive_failures(), 0, "after call {calls}");
        calls += 1;
        thread::sleep(millis(20));
    }
}

#[test]
fn lost_runtimes_are_no_failure_of_ims() {
    for lost in [2, 20] {
        let tokens = Ims::new(DAY).taking(millis(100)).source();
        for _ in 0..lost {
            cancelled_call(current_thread(), &tokens);
        }

        let (token, failures) = current_thread().block_on(watched(&tokens, tokens.token()));

        assert!(token.is_ok(), "after {lost} lost runtimes: {token:?}");
        assert_eq!(failures, 0, "failures of IMS were counted");
    }
}

#[test]
fn lost_multi_thread_runtimes_are_no_failure_of_ims() {
    let tokens = Ims::new(DAY).taking(millis(100)).source();
    for _ in 0..5 {
        cancelled_call(multi_thread(2), &tokens);
    }

    let (token, failures) = multi_thread(2).block_on(watched(&tokens, tokens.token()));

    assert!(token.is_ok(), "{token:?}");
    assert_eq!(failures, 0, "failures of IMS were counted");
}

#[test]
fn a_caller_outlives_each_runtime_that_ends_during_its_wait() {
    let ims = Ims::new(DAY).taking(millis(300));
    let tokens = ims.source();
    // Each of these runtimes may be the one that runs the refresh when it ends.
    let ends = thread::spawn({
        let tokens = tokens.clone();
        move || {
            for _ in 0..5 {
                current_thread().block_on(async {
                    let _ = timeout(millis(50), tokens.token()).await;
                });
            }
        }
    });
    thread::sleep(millis(20));

    let (token, failures) = current_thread().block_on(watched(&tokens, tokens.token()));

    assert!(token.is_ok(), "{token:?}");
    assert_eq!(failures, 0, "failures of IMS were counted");
    ends.join().unwrap();
}

#[test]
fn a_dead_runtimes_context_fails_no_healthy_runtime() {
    let ims = Ims::new(DAY).taking(millis(100));
    let tokens = ims.source();
    let dead = current_thread().handle().clone();
    let over = Arc::new(AtomicBool::new(false));
    let stray = thread::spawn({
        let (tokens, over) = (tokens.clone(), Arc::clone(&over));
        move || {
            let _inside = dead.enter();
            while !over.load(Ordering::SeqCst) {
                let _ = tokens.try_token();
                thread::sleep(millis(20));
            }
        }
    });
    thread::sleep(millis(100));

    let healthy = multi_thread(1);
    let mut failures = 0;
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let (token, counted) = healthy.block_on(watched(&tokens, tokens.token()));
            failures += counted;
            token.map(|token| tokens.invalidate(&token))
        })
        .collect();
    over.store(true, Ordering::SeqCst);
    stray.join().unwrap();

    let succeeded = calls.iter().filter(|call| call.is_ok()).count();
    assert_eq!(succeeded, 20, "{calls:?}");
    assert_eq!(failures, 0, "failures of IMS were counted");
}

#[test]
fn a_runtime_without_timers_fails_no_healthy_runtime() {
    let ims = Ims::new(DAY).taking(millis(100));
    let tokens = ims.source();

    for _ in 0..5 {
        let without_timers = Builder::new_current_thread().build().unwrap();
        // Tokio's timers panic on such a runtime; the call itself cannot succeed.
        let call = AssertUnwindSafe(|| without_timers.block_on(tokens.token()).map(drop));
        let _ = catch_unwind(call);
    }
    let (token, failures) = current_thread().block_on(watched(&tokens, tokens.token()));

    assert!(token.is_ok(), "{token:?}");
    assert_eq!(failures, 0, "failures of IMS were counted");
}

#[test]
fn a_lost_runtime_does_not_hide_an_outage_of_ims() {
    let ims = Ims::new(DAY).taking(millis(20));
    let tokens = ims.source();
    cancelled_call(current_thread(), &tokens);
    ims.respond_with(Reply::Throttled(60));

    let first = current_thread().block_on(tokens.token()).unwrap_err();
    let second = current_thread().block_on(tokens.token()).unwrap_err();

    assert_eq!(first.kind(), ErrorKind::Throttled);
    assert_eq!(second.kind(), ErrorKind::Throttled);
    assert!(second.retry_in().unwrap() > secs(30));
    assert_eq!(tokens.status().consecutive_failures(), 1);
    assert_eq!(ims.asked(), 2, "the second call respects IMS's backoff");
}

// Panics of somebody else.

#[test]
fn a_failed_assertion_elsewhere_is_no_panic_of_the_fetcher() {
    for (failing, waiting) in [
        (current_thread(), current_thread()),
        (current_thread(), multi_thread(1)),
        (multi_thread(1), current_thread()),
    ] {
        let (tokens, gate) = gated();
        // The runtime is dropped while its thread unwinds, as that of each failing test is.
        let fails = thread::spawn({
            let tokens = tokens.clone();
            move || {
                let runtime = failing;
                runtime.block_on(async {
                    let _ = timeout(millis(300), tokens.token()).await;
                    panic!("an assertion failed");
                });
            }
        });
        thread::sleep(millis(100));
        let waits = thread::spawn({
            let tokens = tokens.clone();
            move || waiting.block_on(watched(&tokens, tokens.token()))
        });

        assert!(fails.join().is_err());
        gate.add_permits(1);

        let (token, failures) = waits.join().unwrap();
        assert!(token.is_ok(), "{token:?}");
        assert_eq!(failures, 0, "failures of IMS were counted");
    }
}

// Panics of the fetcher.

#[tokio::test(start_paused = true)]
async fn a_panic_of_the_fetcher_fails_the_waiters_with_its_kind() {
    let ims = Ims::new(DAY);
    ims.respond_with(Reply::Panic);
    let tokens = ims.source();

    let error = tokens.token().await.unwrap_err();

    assert_eq!(error.kind(), ErrorKind::Panicked);
    assert!(error.is_transient());
}

#[tokio::test(start_paused = true)]
async fn a_panicking_fetcher_is_retried_every_10_s() {
    let ims = Ims::new(DAY);
    ims.respond_with(Reply::Panic);
    let tokens = ims.source();

    let start = tokio::time::Instant::now();
    while start.elapsed() < HOUR {
        tokens.token().await.unwrap_err();
        sleep(secs(1)).await;
    }
    ims.respond_with(Reply::Token);
    let well = tokio::time::Instant::now();
    while tokens.token().await.is_err() {
        sleep(secs(1)).await;
    }

    // A caller comes each second, so a pause of 10 s ends up to a second later.
    assert!(well.elapsed() <= secs(11), "{:?}", well.elapsed());
    let asked_at = ims.asked_at();
    let longest = asked_at.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(longest <= secs(11), "{longest:?}");
    // The pauses are short at the beginning, and ten seconds later.
    assert!(asked_at.len() < 1_200, "{} attempts in an hour", asked_at.len());
}

#[tokio::test(start_paused = true)]
async fn a_panicking_refresh_leaves_the_cached_token() {
    let ims = Ims::new(DAY);
    let tokens = ims.source();
    tokens.token().await.unwrap();
    ims.respond_with(Reply::Panic);

    let start = tokio::time::Instant::now();
    while start.elapsed() < DAY - 2 * MINUTE {
        let token = tokens.try_token().expect("the token is valid");
        assert_eq!(token.expose_secret(), "token-1");
        sleep(MINUTE).await;
    }
    ims.respond_with(Reply::Token);
    sleep(secs(61)).await;

    assert_ne!(tokens.token().await.unwrap().expose_secret(), "token-1");
}

// Subscribers that panic.

/// A place where a subscriber is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hook {
    NewSpan,
    Enter,
    Exit,
    Event,
    Record,
    Close,
}

impl Hook {
    const ALL: [Self; 6] =
        [Self::NewSpan, Self::Enter, Self::Exit, Self::Event, Self::Record, Self::Close];
}

/// A subscriber that panics at `hook` as often as it is armed for.
struct Panicky {
    hook: Hook,
    armed: Arc<AtomicUsize>,
    /// Panics only where a refresh records its outcome.
    only_outcome: bool,
}

impl Panicky {
    fn at(hook: Hook) -> (Self, Arc<AtomicUsize>) {
        let armed = Arc::new(AtomicUsize::new(0));
        (Self { hook, armed: Arc::clone(&armed), only_outcome: false }, armed)
    }

    fn called(&self, hook: Hook) {
        // A second panic while unwinding would abort the process, whatever the source does.
        if hook != self.hook || thread::panicking() {
            return;
        }
        let take = |left: usize| left.checked_sub(1);
        if self.armed.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
            panic!("a broken layer");
        }
    }
}

impl Subscriber for Panicky {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("tower_adobe_auth")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        self.called(Hook::NewSpan);
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, values: &Record<'_>) {
        if !self.only_outcome || format!("{values:?}").contains("outcome") {
            self.called(Hook::Record);
        }
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, _: &Event<'_>) {
        self.called(Hook::Event);
    }

    fn enter(&self, _: &Id) {
        self.called(Hook::Enter);
    }

    fn exit(&self, _: &Id) {
        self.called(Hook::Exit);
    }

    fn try_close(&self, _: Id) -> bool {
        self.called(Hook::Close);
        true
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_where_the_outcome_is_recorded_keeps_the_token() {
    let (mut subscriber, armed) = Panicky::at(Hook::Record);
    subscriber.only_outcome = true;
    let _default = tracing::subscriber::set_default(subscriber);
    let ims = Ims::new(DAY).taking(millis(100));
    let tokens = ims.source();
    tokens.token().await.unwrap();
    armed.store(1, Ordering::SeqCst);

    // One call a minute, up to ten minutes before the first token's end.
    for _ in 0..23 * 60 + 50 {
        sleep(MINUTE).await;
        tokens.try_token().unwrap();
    }

    assert_eq!(armed.load(Ordering::SeqCst), 0, "it has panicked");
    assert_eq!(tokens.try_token().unwrap().expose_secret(), "token-2");
    assert!(!tokens.status().is_refreshing());
    assert_eq!(ims.asked(), 2, "the token that came is kept");
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_once_stops_no_refresh() {
    for hook in Hook::ALL {
        let (subscriber, armed) = Panicky::at(hook);
        let _default = tracing::subscriber::set_default(subscriber);
        let ims = Ims::new(DAY).taking(millis(100));
        let tokens = ims.source();
        tokens.token().await.unwrap();
        // An attempt that fails first makes each hook be called.
        ims.respond_next([Reply::Unavailable]);
        armed.store(1, Ordering::SeqCst);

        for _ in 0..23 * 60 + 50 {
            sleep(MINUTE).await;
            assert!(tokens.try_token().is_some(), "with {hook:?}");
        }

        assert_eq!(armed.load(Ordering::SeqCst), 0, "it has panicked at {hook:?}");
        let token = tokens.try_token().unwrap();
        assert_ne!(token.expose_secret(), "token-1", "refreshed, with {hook:?}");
        assert!(!tokens.status().is_refreshing(), "with {hook:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_once_fails_no_first_caller() {
    for hook in Hook::ALL {
        let (subscriber, armed) = Panicky::at(hook);
        let _default = tracing::subscriber::set_default(subscriber);
        let ims = Ims::new(DAY).taking(millis(100));
        ims.respond_next([Reply::Unavailable]);
        let tokens = ims.source();
        armed.store(1, Ordering::SeqCst);

        let calls: Vec<_> = (0..10)
            .map(|_| {
                let tokens = tokens.clone();
                tokio::spawn(async move { tokens.token().await.map(drop) })
            })
            .collect();

        for call in calls {
            let outcome = call.await;
            assert!(matches!(outcome, Ok(Ok(()))), "{outcome:?}, with {hook:?}");
        }
        assert_eq!(armed.load(Ordering::SeqCst), 0, "it has panicked at {hook:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_that_panics_for_an_hour_ends_no_renewal() {
    for hook in Hook::ALL {
        let (subscriber, armed) = Panicky::at(hook);
        let _default = tracing::subscriber::set_default(subscriber);
        let ims = Ims::new(DAY).taking(millis(100));
        let tokens = ims.source();
        tokens.token().await.unwrap();

        // The token is due for refresh after 23 hours at the latest.
        for minute in 0..23 * 60 + 50 {
            let is_broken = (22 * 60 + 30..23 * 60 + 30).contains(&minute);
            armed.store(if is_broken { usize::MAX } else { 0 }, Ordering::SeqCst);
            sleep(MINUTE).await;
            assert!(tokens.try_token().is_some(), "with {hook:?}");
        }

        let token = tokens.try_token().unwrap();
        assert_ne!(token.expose_secret(), "token-1", "refreshed, with {hook:?}");
        assert!(ims.asked() <= 100, "{} token requests, with {hook:?}", ims.asked());
    }
}

// Recorders that panic.

#[cfg(feature = "metrics")]
mod recorders {
    use metrics::{
        Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Recorder,
        SharedString, Unit,
    };

    use super::*;

    /// A recorder whose every handle panics as often as it is armed for.
    #[derive(Clone, Default)]
    struct Panicky(Arc<Handles>);

    #[derive(Default)]
    struct Handles {
        armed: AtomicUsize,
    }

    impl Handles {
        fn called(&self) {
            let take = |left: usize| left.checked_sub(1);
            let armed = self.armed.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok();
            if armed && !thread::panicking() {
                panic!("a broken recorder");
            }
        }
    }

    impl CounterFn for Handles {
        fn increment(&self, _: u64) {
            self.called();
        }

        fn absolute(&self, _: u64) {
            self.called();
        }
    }

    impl GaugeFn for Handles {
        fn increment(&self, _: f64) {
            self.called();
        }

        fn decrement(&self, _: f64) {
            self.called();
        }

        fn set(&self, _: f64) {
            self.called();
        }
    }

    impl HistogramFn for Handles {
        fn record(&self, _: f64) {
            self.called();
        }
    }

    impl Recorder for Panicky {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn register_counter(&self, _: &Key, _: &metrics::Metadata<'_>) -> Counter {
            Counter::from_arc(Arc::clone(&self.0))
        }

        fn register_gauge(&self, _: &Key, _: &metrics::Metadata<'_>) -> Gauge {
            Gauge::from_arc(Arc::clone(&self.0))
        }

        fn register_histogram(&self, _: &Key, _: &metrics::Metadata<'_>) -> Histogram {
            Histogram::from_arc(Arc::clone(&self.0))
        }
    }

    /// A warm source whose handles are those of a broken recorder.
    async fn recorded(ims: &Ims) -> (TokenSource, Panicky) {
        let recorder = Panicky::default();
        let tokens = metrics::with_local_recorder(&recorder, || ims.source());
        tokens.token().await.unwrap();
        (tokens, recorder)
    }

    #[tokio::test(start_paused = true)]
    async fn a_recorder_that_panics_once_stops_no_refresh() {
        // The n-th call of a handle panics, wherever that is.
        for panics in 1..=10 {
            let ims = Ims::new(DAY).taking(millis(100));
            let (tokens, recorder) = recorded(&ims).await;
            recorder.0.armed.store(panics, Ordering::SeqCst);

            for _ in 0..23 * 60 + 50 {
                sleep(MINUTE).await;
                assert!(tokens.try_token().is_some(), "with {panics} panics");
            }

            assert_eq!(recorder.0.armed.load(Ordering::SeqCst), 0, "it has panicked");
            assert_ne!(tokens.try_token().unwrap().expose_secret(), "token-1", "{panics} panics");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_recorder_that_always_panics_stops_no_refresh() {
        let ims = Ims::new(DAY).taking(millis(100));
        let (tokens, recorder) = recorded(&ims).await;
        recorder.0.armed.store(usize::MAX, Ordering::SeqCst);

        let start = tokio::time::Instant::now();
        while start.elapsed() < 3 * DAY {
            sleep(MINUTE).await;
            assert!(tokens.try_token().is_some(), "after {:?}", start.elapsed());
        }

        assert!(ims.asked() <= 5, "{} token requests", ims.asked());
    }
}

// Clocks that panic.

/// The environment variable that makes a test the child process of itself.
const CHILD: &str = "TOWER_ADOBE_AUTH_BROKEN_CLOCK";

/// Runs a test of this file in a process of its own, because a panic while unwinding aborts it.
#[track_caller]
fn passes_in_a_child(test: &str) {
    let output = Command::new(env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    let end: Vec<_> = stderr.lines().rev().take(20).collect();
    assert!(output.status.success(), "{}: {end:#?}", output.status);
}

fn is_child() -> bool {
    env::var_os(CHILD).is_some()
}

fn paused() -> Runtime {
    Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// A source whose wall clock panics at its calls number `first` to `first + panics - 1`, counted from
/// when the source was built.
fn with_a_clock_that_panics(first: usize, panics: usize) -> (TokenSource, Ims) {
    let ims = Ims::new(MINUTE).taking(millis(10));
    let calls = Arc::new(AtomicUsize::new(0));
    let clock = {
        let calls = Arc::clone(&calls);
        move || {
            let call = calls.fetch_add(1, Ordering::SeqCst);
            assert!(call < first + 1_000 || call - first - 1_000 >= panics, "a broken clock");
            SystemTime::now()
        }
    };
    let tokens = ims.builder().wall_clock(clock).build().unwrap();
    calls.store(1_000, Ordering::SeqCst);
    (tokens, ims)
}

#[test]
fn a_clock_that_breaks_during_a_refresh_aborts_nothing() {
    if !is_child() {
        return passes_in_a_child("a_clock_that_breaks_during_a_refresh_aborts_nothing");
    }
    let broken = Arc::new(AtomicBool::new(false));
    let fetch = {
        let broken = Arc::clone(&broken);
        move || {
            broken.store(true, Ordering::SeqCst);
            async { Ok(TokenResponse::new("token", DAY)) }
        }
    };
    let tokens = TokenSource::builder_from_fetcher(fetch)
        .wall_clock(move || {
            assert!(!broken.load(Ordering::SeqCst), "a broken clock");
            SystemTime::now()
        })
        .build()
        .unwrap();

    let call = AssertUnwindSafe(|| current_thread().block_on(tokens.token()).map(drop));

    let _ = catch_unwind(call);
}

#[test]
fn a_clock_that_panics_once_anywhere_leaves_the_source_working() {
    if !is_child() {
        return passes_in_a_child("a_clock_that_panics_once_anywhere_leaves_the_source_working");
    }
    for call in 0..60 {
        let (tokens, _ims) = with_a_clock_that_panics(call, 1);

        // Through two lives of the token, each call on a task of its own that may panic.
        let mut last = None;
        paused().block_on(async {
            for _ in 0..150 {
                let tokens = tokens.clone();
                let outcome = tokio::spawn(async move { tokens.token().await.map(drop) });
                last = Some(outcome.await);
                sleep(secs(1)).await;
            }
        });

        assert!(matches!(last, Some(Ok(Ok(())))), "a panic at call {call}: {last:?}");
    }
}

#[test]
fn a_clock_that_panics_from_then_on_aborts_nothing() {
    if !is_child() {
        return passes_in_a_child("a_clock_that_panics_from_then_on_aborts_nothing");
    }
    for call in 0..60 {
        // The panic may come out of each call, and out of the end of the source.
        let life = AssertUnwindSafe(|| {
            let (tokens, _ims) = with_a_clock_that_panics(call, usize::MAX);
            paused().block_on(async {
                for _ in 0..100 {
                    let tokens = tokens.clone();
                    let _ = tokio::spawn(async move { tokens.token().await.map(drop) }).await;
                    sleep(secs(1)).await;
                }
            });
        });
        let _ = catch_unwind(life);
    }
}

// The errors themselves.

#[tokio::test(start_paused = true)]
async fn a_fetcher_that_asks_its_own_source_builds_no_chain() {
    static SOURCE: OnceLock<TokenSource> = OnceLock::new();
    let fetch = || async {
        let error = SOURCE.get().unwrap().token().await.unwrap_err();
        Err::<TokenResponse, _>(TokenError::transient(error))
    };
    let tokens = SOURCE.get_or_init(|| {
        TokenSource::builder_from_fetcher(fetch).acquire_timeout(secs(5)).build().unwrap()
    });

    for _ in 0..200 {
        let _ = tokens.token().await;
        sleep(secs(30)).await;
    }

    let status = tokens.status();
    let first = status.last_error().map(|error| error as &dyn Error);
    let links = successors(first, |error| (*error).source()).count();
    assert!((1..20).contains(&links), "{links} links");
    assert!(format!("{:?}", status.last_error()).len() < 8_192);
}

#[test]
fn a_cancelled_call_on_a_shared_source_fails_no_later_test() {
    let (tokens, gate) = gated();
    let (started, starts) = mpsc::channel();
    let cancelled = thread::spawn({
        let tokens = tokens.clone();
        move || {
            current_thread().block_on(async {
                start_refresh(&tokens);
                started.send(()).unwrap();
                sleep(millis(50)).await;
            });
        }
    });
    starts.recv().unwrap();

    let call = within(secs(20), {
        let tokens = tokens.clone();
        move || {
            gate.add_permits(Semaphore::MAX_PERMITS);
            current_thread().block_on(tokens.token()).map(drop)
        }
    });

    assert!(call.is_ok(), "{call:?}");
    cancelled.join().unwrap();
}
