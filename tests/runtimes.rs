//! A source belongs to no runtime: it is made, used and dropped on any, or outside of all, and its
//! background work ends with it.

#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use futures_util::{FutureExt, future::join_all};
use tokio::{
    runtime::{Builder, Runtime},
    sync::Semaphore,
    time::timeout,
};
use tower_adobe_auth::{AccessToken, ErrorKind, TokenError, TokenResponse, TokenSource};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// More than any test needs: what is not there by then never comes.
const AGES: Duration = Duration::from_secs(10);

fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

fn multi_thread() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// What can be seen of a fetcher from outside. The fetcher holds the only lasting reference to it,
/// so that it is gone when the source is.
struct Probe {
    lifetime: Duration,
    /// A flight takes one permit each.
    gate: Semaphore,
    /// How many flights there have been.
    flights: AtomicUsize,
    /// How many of their futures have not been dropped.
    under_way: Arc<AtomicUsize>,
}

/// One flight, until its future is dropped.
struct UnderWay(Arc<AtomicUsize>);

impl UnderWay {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Probe {
    fn new(lifetime: Duration, permits: usize) -> Arc<Self> {
        Arc::new(Self {
            lifetime,
            gate: Semaphore::new(permits),
            flights: AtomicUsize::new(0),
            under_way: Arc::default(),
        })
    }

    fn fetcher(
        self: Arc<Self>,
    ) -> impl Fn() -> futures_util::future::BoxFuture<'static, Result<TokenResponse, TokenError>>
    + Send
    + Sync
    + use<> {
        move || {
            let probe = Arc::clone(&self);
            let under_way = UnderWay::new(&probe.under_way);
            let flight = probe.flights.fetch_add(1, Ordering::SeqCst) + 1;
            Box::pin(async move {
                let _under_way = under_way;
                probe.gate.acquire().await.unwrap().forget();
                Ok(TokenResponse::new(format!("token-{flight}"), probe.lifetime))
            })
        }
    }
}

/// A source whose tokens live for `lifetime`, made wherever this is called.
fn open(lifetime: Duration) -> TokenSource {
    TokenSource::from_fetcher(Probe::new(lifetime, Semaphore::MAX_PERMITS).fetcher())
}

/// A source whose flights never end by themselves, and what can be seen of them.
fn gated() -> (TokenSource, Weak<Probe>, Arc<AtomicUsize>) {
    let probe = Probe::new(DAY, 0);
    let (weak, under_way) = (Arc::downgrade(&probe), Arc::clone(&probe.under_way));
    (TokenSource::from_fetcher(probe.fetcher()), weak, under_way)
}

/// Polls `tokens.token()` once, on the runtime whose context this is called in.
fn start_a_flight(tokens: &TokenSource) {
    assert!(tokens.token().now_or_never().is_none(), "the gate is shut");
}

/// Lets `runtime` run until `condition` holds, for `limit` at most.
fn holds_within(runtime: &Runtime, limit: Duration, condition: impl Fn() -> bool) -> bool {
    runtime.block_on(async {
        let start = Instant::now();
        while !condition() && start.elapsed() < limit {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        condition()
    })
}

fn alive(runtime: &Runtime) -> usize {
    runtime.metrics().num_alive_tasks()
}

/// Waits, without asking for it, until there is another token than `token`.
async fn renewed(tokens: &TokenSource, token: &AccessToken) {
    let mut changes = tokens.subscribe();
    let wait = async {
        while tokens.status().valid_until().is_none_or(|until| until <= token.expires_at()) {
            changes.changed().await.unwrap();
        }
    };
    timeout(AGES, wait).await.expect("the token should have been renewed long ago");
}

#[test]
fn a_source_made_outside_a_runtime_works_on_either_kind() {
    for runtime in [current_thread(), multi_thread()] {
        let tokens = open(DAY);

        assert!(!tokens.status().is_ready());
        let token = runtime.block_on(tokens.token()).unwrap();

        assert_eq!(token.expose_secret(), "token-1");
        // What is in hand is had outside as well.
        assert_eq!(tokens.try_token().unwrap().generation(), 1);
        assert_eq!(tokens.token().now_or_never().unwrap().unwrap().generation(), 1);
    }
}

#[test]
fn outside_a_runtime_nothing_panics() {
    let tokens = open(DAY);
    let _changes = tokens.subscribe();

    tokens.warm_up();
    assert!(tokens.try_token().is_none());
    let error = tokens.token().now_or_never().unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NoRuntime);
    assert!(!tokens.status().is_ready() && !tokens.status().is_refreshing());

    let token = current_thread().block_on(tokens.token()).unwrap();
    tokens.invalidate(&token);
    assert!(tokens.try_token().is_none());
    drop(tokens.clone());
    drop(tokens);
}

#[test]
fn outside_a_runtime_a_refresh_is_an_error_not_a_panic() {
    let tokens = open(DAY);

    let error = tokens.refresh().now_or_never().unwrap().unwrap_err();

    assert_eq!(error.kind(), ErrorKind::NoRuntime);
}

#[test]
fn outside_a_runtime_a_flight_that_runs_on_one_is_joined_without_a_panic() {
    let (tokens, probe, _) = gated();
    let runtime = multi_thread();
    runtime.block_on(async { start_a_flight(&tokens) });

    let waiter = thread::spawn({
        let tokens = tokens.clone();
        move || tokens.token().now_or_never()
    });
    // It may wait, or say that it cannot wait here.
    if let Some(outcome) = waiter.join().expect("it should not panic") {
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::NoRuntime);
    }

    probe.upgrade().unwrap().gate.add_permits(1);
    assert_eq!(runtime.block_on(tokens.token()).unwrap().expose_secret(), "token-1");
}

#[test]
fn a_source_made_on_a_runtime_that_has_ended_works_on_the_next() {
    for (first, second) in [
        (current_thread(), current_thread()),
        (current_thread(), multi_thread()),
        (multi_thread(), current_thread()),
    ] {
        let tokens = first.block_on(async {
            let tokens = open(DAY);
            tokens.token().await.unwrap();
            tokens
        });
        drop(first);

        let token = second.block_on(tokens.token()).unwrap();
        assert_eq!(token.expose_secret(), "token-1");
        assert_eq!(second.block_on(tokens.refresh()).unwrap().expose_secret(), "token-2");
    }
}

#[test]
fn the_context_of_a_runtime_that_has_ended_is_an_error_not_a_panic() {
    let tokens = open(DAY);
    let ended = current_thread();
    let handle = ended.handle().clone();
    drop(ended);

    let error = {
        let _inside = handle.enter();
        tokens.token().now_or_never().unwrap().unwrap_err()
    };

    assert_eq!(error.kind(), ErrorKind::RuntimeLost);
    assert!(error.is_transient());
    let token = current_thread().block_on(async {
        tokio::time::sleep(error.retry_in().unwrap_or_default()).await;
        tokens.token().await
    });
    assert_eq!(token.unwrap().generation(), 1);
}

#[test]
fn twenty_runtimes_in_turn_each_get_valid_tokens_and_renewal_in_the_background() {
    let tokens = open(Duration::from_millis(200));

    for round in 0..20 {
        let runtime = if round % 2 == 0 { current_thread() } else { multi_thread() };
        // The token of the runtime before has ended: this one has to fetch its own.
        thread::sleep(Duration::from_millis(210));

        runtime.block_on(async {
            let before = SystemTime::now();
            let token = tokens.token().await.unwrap();
            assert!(token.expires_at() > before);
            renewed(&tokens, &token).await;
        });
    }
}

#[test]
fn a_caller_who_finds_a_token_in_hand_revives_the_renewal_too() {
    let tokens = open(Duration::from_millis(500));
    let first = current_thread();
    let token = first.block_on(tokens.token()).unwrap();
    drop(first);

    current_thread().block_on(async {
        assert_eq!(tokens.token().await.unwrap().generation(), token.generation());
        renewed(&tokens, &token).await;
    });
}

#[test]
fn many_runtimes_at_once_share_one_flight() {
    let (tokens, probe, _) = gated();

    let callers: Vec<_> = (0..8)
        .map(|_| {
            let tokens = tokens.clone();
            thread::spawn(move || {
                let callers = join_all((0..50).map(|_| tokens.token()));
                let tokens = current_thread().block_on(callers);
                tokens.into_iter().all(|token| token.unwrap().expose_secret() == "token-1")
            })
        })
        .collect();
    // One of the eight runs the flight until it lands; the others may end before it.
    probe.upgrade().unwrap().gate.add_permits(1);

    assert!(callers.into_iter().all(|caller| caller.join().unwrap()));
}

#[test]
fn dropped_inside_a_runtime_all_background_work_ends_within_a_second() {
    for runtime in [current_thread(), multi_thread()] {
        let probe = Probe::new(DAY, Semaphore::MAX_PERMITS);
        let weak = Arc::downgrade(&probe);
        let tokens = TokenSource::from_fetcher(probe.fetcher());
        runtime.block_on(tokens.token()).unwrap();
        // The flight has landed, and may take a moment to be gone.
        let kept_warm = || alive(&runtime) == 1;
        assert!(holds_within(&runtime, AGES, kept_warm), "one task is left, the keeper");

        runtime.block_on(async move { drop(tokens) });

        let ended = || alive(&runtime) == 0 && weak.upgrade().is_none();
        assert!(holds_within(&runtime, Duration::from_secs(1), ended));
    }
}

#[test]
fn dropped_outside_a_runtime_all_background_work_ends_within_a_second() {
    for runtime in [current_thread(), multi_thread()] {
        let probe = Probe::new(DAY, Semaphore::MAX_PERMITS);
        let weak = Arc::downgrade(&probe);
        let tokens = TokenSource::from_fetcher(probe.fetcher());
        runtime.block_on(tokens.token()).unwrap();

        drop(tokens);

        let ended = || alive(&runtime) == 0 && weak.upgrade().is_none();
        assert!(holds_within(&runtime, Duration::from_secs(1), ended));
    }
}

#[test]
fn dropped_while_a_flight_is_under_way_the_flight_ends_within_a_second() {
    for (runtime, inside) in [
        (current_thread(), true),
        (current_thread(), false),
        (multi_thread(), true),
        (multi_thread(), false),
    ] {
        let (tokens, weak, under_way) = gated();
        runtime.block_on(async { start_a_flight(&tokens) });
        let flying = || under_way.load(Ordering::SeqCst) == 1;
        assert!(holds_within(&runtime, AGES, flying));
        assert_eq!(alive(&runtime), 2, "the flight, and the one that keeps the token warm");

        if inside {
            runtime.block_on(async move { drop(tokens) });
        } else {
            drop(tokens);
        }

        let ended = || under_way.load(Ordering::SeqCst) == 0 && weak.upgrade().is_none();
        assert!(holds_within(&runtime, Duration::from_secs(1), ended));
        assert!(holds_within(&runtime, Duration::from_secs(1), || alive(&runtime) == 0));
    }
}

#[test]
fn dropped_while_it_backs_off_all_background_work_ends_within_a_second() {
    let runtime = current_thread();
    let witness = Arc::new(());
    let weak = Arc::downgrade(&witness);
    let tokens = TokenSource::from_fetcher(move || {
        let witness = Arc::clone(&witness);
        async move {
            let _witness = witness;
            Err(TokenError::transient("down"))
        }
    });
    runtime.block_on(tokens.token()).unwrap_err();
    assert!(alive(&runtime) >= 1);

    drop(tokens);

    let ended = || alive(&runtime) == 0 && weak.upgrade().is_none();
    assert!(holds_within(&runtime, Duration::from_secs(1), ended));
}

#[test]
fn a_clone_keeps_the_background_work_alive_and_a_subscriber_does_not() {
    let runtime = current_thread();
    let probe = Probe::new(Duration::from_millis(200), Semaphore::MAX_PERMITS);
    let weak = Arc::downgrade(&probe);
    let tokens = TokenSource::from_fetcher(probe.fetcher());
    let clone = tokens.clone();
    let mut changes = tokens.subscribe();
    let token = runtime.block_on(tokens.token()).unwrap();

    drop(tokens);
    runtime.block_on(renewed(&clone, &token));
    drop(clone);

    let ended = || alive(&runtime) == 0 && weak.upgrade().is_none();
    assert!(holds_within(&runtime, Duration::from_secs(1), ended));
    runtime.block_on(async { while changes.changed().await.is_some() {} });
}

#[test]
fn a_runtime_that_ends_takes_the_flight_along_and_leaks_nothing() {
    for runtime in [current_thread(), multi_thread()] {
        let (tokens, weak, under_way) = gated();
        runtime.block_on(async { start_a_flight(&tokens) });
        assert!(holds_within(&runtime, AGES, || under_way.load(Ordering::SeqCst) == 1));

        drop(runtime);

        assert_eq!(under_way.load(Ordering::SeqCst), 0);
        assert!(!tokens.status().is_refreshing());
        assert_eq!(tokens.status().last_error().unwrap().kind(), ErrorKind::RuntimeLost);
        drop(tokens);
        assert!(weak.upgrade().is_none());
    }
}

#[test]
fn the_last_handle_may_die_with_its_runtime() {
    let (tokens, weak, under_way) = gated();
    let runtime = current_thread();
    runtime.spawn(async move { tokens.token().await });
    assert!(holds_within(&runtime, AGES, || under_way.load(Ordering::SeqCst) == 1));

    drop(runtime);

    assert_eq!(under_way.load(Ordering::SeqCst), 0);
    assert!(weak.upgrade().is_none());
}

/// A runtime that stands still, with a flight on it that is under way.
fn stands_still(tokens: &TokenSource) -> Runtime {
    let runtime = current_thread();
    runtime.block_on(async { start_a_flight(tokens) });
    assert!(tokens.status().is_refreshing());
    runtime
}

#[test]
fn a_runtime_that_stands_still_holds_up_callers_elsewhere_no_longer_than_their_timeout() {
    let limit = Duration::from_millis(200);
    let probe = Probe::new(DAY, 0);
    let gate = Arc::downgrade(&probe);
    let tokens =
        TokenSource::builder_from_fetcher(probe.fetcher()).acquire_timeout(limit).build().unwrap();
    let still = stands_still(&tokens);
    gate.upgrade().unwrap().gate.add_permits(Semaphore::MAX_PERMITS);
    let runtime = multi_thread();

    let start = Instant::now();
    let callers = runtime.block_on(join_all((0..100).map(|_| tokens.token())));
    let waited = start.elapsed();

    for error in callers.into_iter().map(Result::unwrap_err) {
        assert_eq!(error.kind(), ErrorKind::AcquireTimeout);
        assert!(error.is_transient());
    }
    assert!(waited >= limit && waited < AGES, "{waited:?}");

    // Its end sets the others free.
    drop(still);
    assert_eq!(runtime.block_on(tokens.token()).unwrap().generation(), 1);
}

#[test]
fn a_runtime_that_stands_still_for_a_while_brings_the_token_when_it_goes_on() {
    let (tokens, probe, _) = gated();
    let still = stands_still(&tokens);
    probe.upgrade().unwrap().gate.add_permits(1);
    let runtime = multi_thread();

    let elsewhere = runtime.spawn({
        let tokens = tokens.clone();
        async move { tokens.token().await }
    });
    still.block_on(tokens.token()).unwrap();

    assert_eq!(runtime.block_on(elsewhere).unwrap().unwrap().expose_secret(), "token-1");
}

#[test]
fn a_renewal_on_a_runtime_that_stands_still_takes_nothing_from_the_token_in_hand() {
    let probe = Probe::new(DAY, 1);
    let tokens = TokenSource::from_fetcher(probe.fetcher());
    let still = current_thread();
    still.block_on(tokens.token()).unwrap();
    still.block_on(async { assert!(tokens.refresh().now_or_never().is_none()) });

    let callers = current_thread().block_on(join_all((0..100).map(|_| tokens.token())));

    assert!(callers.into_iter().all(|token| token.unwrap().generation() == 1));
    drop(still);
}

#[test]
fn a_flight_whose_time_is_long_over_is_superseded() {
    let probe = Probe::new(DAY, 0);
    let gate = Arc::downgrade(&probe);
    let tokens = TokenSource::builder_from_fetcher(probe.fetcher())
        .acquire_timeout(Duration::from_millis(100))
        .attempt_timeout(Duration::from_millis(100))
        .attempts(1)
        .build()
        .unwrap();
    let still = stands_still(&tokens);
    gate.upgrade().unwrap().gate.add_permits(Semaphore::MAX_PERMITS);

    // Its one attempt should have ended after 100 ms; this is as long as twenty of them.
    thread::sleep(Duration::from_secs(2));
    let token = current_thread().block_on(tokens.token());

    assert_eq!(token.unwrap().generation(), 1);
    drop(still);
}

#[cfg(feature = "reqwest")]
mod over_sockets {
    use http::{Method, StatusCode};
    use tower::{Layer, ServiceExt};
    use tower_adobe_auth::{
        AdobeAuthLayer, Credentials, Environment,
        mock::{Answer, MockIms},
    };

    use super::*;

    fn source(ims: &MockIms) -> TokenSource {
        TokenSource::builder(Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET))
            .environment(Environment::custom(ims.url()).unwrap())
            .build()
            .unwrap()
    }

    #[test]
    fn each_of_ten_runtimes_in_turn_calls_the_api_with_a_living_token() {
        let ims = MockIms::start_blocking();
        ims.set_token_lifetime(Duration::from_secs(1));
        let layer = AdobeAuthLayer::new(source(&ims)).allow_host("127.0.0.1");

        for round in 0..10 {
            let runtime = if round % 2 == 0 { current_thread() } else { multi_thread() };
            let end = Instant::now() + Duration::from_millis(200);
            runtime.block_on(async {
                // A client of this runtime: its connections end with it.
                let client = layer.layer(reqwest::Client::new());
                while Instant::now() < end {
                    let request =
                        reqwest::Request::new(Method::GET, ims.api_url().parse().unwrap());
                    let response = client.clone().oneshot(request).await.unwrap();
                    assert_eq!(response.status(), StatusCode::OK);
                }
            });
        }

        assert_eq!(ims.api_unauthorized(), 0);
        assert!(ims.token_requests() >= 2);
    }

    #[test]
    fn a_flight_that_stood_still_for_longer_than_its_token_lives_is_flown_again() {
        let ims = MockIms::start_blocking();
        ims.set_token_lifetime(Duration::from_secs(1));
        let tokens = source(&ims);
        let runtime = current_thread();
        runtime.block_on(async { start_a_flight(&tokens) });
        assert!(holds_within(&runtime, AGES, || ims.token_requests() == 1));

        thread::sleep(Duration::from_millis(1_500));
        let before = SystemTime::now();
        let token = runtime.block_on(tokens.token()).unwrap();

        assert!(token.expires_at() > before);
    }

    #[test]
    fn a_flight_cut_off_by_the_end_of_its_runtime_is_flown_again_on_the_next() {
        let ims = MockIms::start_blocking();
        ims.respond_next([Answer::hang()]);
        let tokens = source(&ims);
        let first = current_thread();
        first.block_on(async { start_a_flight(&tokens) });
        assert!(holds_within(&first, AGES, || ims.token_requests() == 1));

        drop(first);

        assert_eq!(multi_thread().block_on(tokens.token()).unwrap().generation(), 1);
        assert_eq!(ims.token_requests(), 2);
    }
}
