//! Promise 1: at any moment a source has at most one token request under way.

#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{sync::Semaphore, task::JoinSet, time::Instant};
use tokio_test::{assert_pending, assert_ready, task};
use tower_adobe_auth::{ErrorKind, TokenError, TokenResponse, TokenSource};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A source whose flights wait for a permit each, and a count of them.
fn gated() -> (TokenSource, Arc<AtomicUsize>, Arc<Semaphore>) {
    let flights = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new(Semaphore::new(0));
    let tokens = {
        let (flights, gate) = (Arc::clone(&flights), Arc::clone(&gate));
        TokenSource::from_fetcher(move || {
            let flight = flights.fetch_add(1, Ordering::SeqCst) + 1;
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.unwrap().forget();
                Ok(TokenResponse::new(format!("token-{flight}"), DAY))
            }
        })
    };
    (tokens, flights, gate)
}

/// Lets every task that can run do so, without letting time pass.
async fn settle() {
    for _ in 0..32 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn concurrent_callers_share_one_flight() {
    let (tokens, flights, gate) = gated();
    let mut callers = JoinSet::new();
    for _ in 0..1_000 {
        let tokens = tokens.clone();
        callers.spawn(async move { tokens.token().await.unwrap() });
    }
    settle().await;

    gate.add_permits(1);
    let answers = callers.join_all().await;

    assert_eq!(answers.len(), 1_000);
    assert!(answers.iter().all(|token| token.expose_secret() == "token-1"));
    assert_eq!(flights.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn callers_on_many_threads_share_one_flight() {
    let (tokens, flights, gate) = gated();
    let callers: Vec<_> = (0..1_000)
        .map(|_| {
            let tokens = tokens.clone();
            tokio::spawn(async move { tokens.token().await.unwrap().generation() })
        })
        .collect();

    gate.add_permits(1);

    for generation in join_all(callers).await {
        assert_eq!(generation.unwrap(), 1);
    }
    assert_eq!(flights.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn dropping_the_first_caller_does_not_cancel_the_flight() {
    let (tokens, flights, gate) = gated();
    let first = tokio::spawn({
        let tokens = tokens.clone();
        async move { tokens.token().await }
    });
    settle().await;
    let second = tokio::spawn({
        let tokens = tokens.clone();
        async move { tokens.token().await }
    });
    settle().await;

    first.abort();
    settle().await;
    gate.add_permits(1);

    assert_eq!(second.await.unwrap().unwrap().expose_secret(), "token-1");
    assert_eq!(flights.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_flight_that_nobody_waits_for_any_more_serves_the_next_caller() {
    let (tokens, flights, gate) = gated();
    let only = tokio::spawn({
        let tokens = tokens.clone();
        async move { tokens.token().await }
    });
    settle().await;

    only.abort();
    gate.add_permits(1);
    settle().await;

    assert_eq!(tokens.try_token().unwrap().expose_secret(), "token-1");
    assert_eq!(flights.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_failed_flight_is_shared_and_the_next_call_tries_again() {
    let flights = Arc::new(AtomicUsize::new(0));
    let tokens = TokenSource::from_fetcher({
        let flights = Arc::clone(&flights);
        move || {
            let flight = flights.fetch_add(1, Ordering::SeqCst) + 1;
            async move {
                tokio::time::sleep(Duration::from_millis(100)).await;
                if flight == 1 {
                    return Err(TokenError::permanent("no such client"));
                }
                Ok(TokenResponse::new("token", DAY))
            }
        }
    });

    let callers = join_all((0..100).map(|_| tokens.token())).await;
    for error in callers.into_iter().map(Result::unwrap_err) {
        assert_eq!(error.kind(), ErrorKind::Fetch);
        assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "no such client");
    }
    assert_eq!(flights.load(Ordering::SeqCst), 1);

    let remembered = tokens.token().await.unwrap_err();
    assert_eq!(flights.load(Ordering::SeqCst), 1);
    tokio::time::sleep(remembered.retry_in().unwrap()).await;

    assert_eq!(tokens.token().await.unwrap().expose_secret(), "token");
    assert_eq!(flights.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_panicking_fetch_wakes_its_waiters() {
    let flights = Arc::new(AtomicUsize::new(0));
    let tokens = TokenSource::from_fetcher({
        let flights = Arc::clone(&flights);
        move || {
            let flight = flights.fetch_add(1, Ordering::SeqCst) + 1;
            async move {
                tokio::task::yield_now().await;
                assert_ne!(flight, 1, "the first fetch panics");
                Ok(TokenResponse::new("token", DAY))
            }
        }
    });

    let callers = join_all((0..10).map(|_| tokens.token())).await;
    for error in callers.into_iter().map(Result::unwrap_err) {
        assert_eq!(error.kind(), ErrorKind::Panicked);
        assert!(error.is_transient());
    }

    assert_eq!(tokens.token().await.unwrap().expose_secret(), "token");
    assert_eq!(flights.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_panics_before_its_first_await_wakes_its_waiters() {
    let tokens = TokenSource::from_fetcher(|| -> std::future::Ready<_> {
        panic!("before there is a future")
    });

    assert_eq!(tokens.token().await.unwrap_err().kind(), ErrorKind::Panicked);
}

#[test]
fn recovers_from_the_loss_of_the_runtime_it_was_refreshing_on() {
    let (tokens, flights, gate) = gated();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();

    let first = runtime();
    first.block_on(async {
        tokio::select! {
            biased;
            _ = tokens.token() => unreachable!("the gate is shut"),
            () = settle() => {}
        }
    });
    drop(first);
    gate.add_permits(1);

    let token = runtime().block_on(tokens.token()).unwrap();
    assert_eq!(token.expose_secret(), "token-2");
    assert_eq!(flights.load(Ordering::SeqCst), 2);
}

#[test]
fn a_waiter_on_another_runtime_survives_the_loss_of_the_one_that_fetches() {
    let (tokens, flights, gate) = gated();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());

    first.block_on(async {
        tokio::select! {
            biased;
            _ = tokens.token() => unreachable!("the gate is shut"),
            () = settle() => {}
        }
    });
    let mut waiter = task::spawn(tokens.token());
    {
        let _inside = second.enter();
        assert_pending!(waiter.poll());
    }
    drop(first);
    gate.add_permits(1);

    assert_eq!(second.block_on(waiter).unwrap().expose_secret(), "token-2");
    assert_eq!(flights.load(Ordering::SeqCst), 2);
}

#[test]
fn outside_a_runtime_is_an_error_not_a_panic() {
    let (tokens, flights, _gate) = gated();

    let error = assert_ready!(task::spawn(tokens.token()).poll()).unwrap_err();

    assert_eq!(error.kind(), ErrorKind::NoRuntime);
    let refresh = assert_ready!(task::spawn(tokens.refresh()).poll()).unwrap_err();
    assert_eq!(refresh.kind(), ErrorKind::NoRuntime);
    assert!(tokens.try_token().is_none());
    assert_eq!(flights.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_never_ends_is_given_up_and_the_next_flight_succeeds() {
    let flights = Arc::new(AtomicUsize::new(0));
    let tokens = TokenSource::from_fetcher({
        let flights = Arc::clone(&flights);
        move || {
            let flight = flights.fetch_add(1, Ordering::SeqCst) + 1;
            async move {
                if flight == 1 {
                    std::future::pending::<()>().await;
                }
                Ok(TokenResponse::new("token", DAY))
            }
        }
    });
    let start = Instant::now();

    let error = tokens.token().await.unwrap_err();

    assert_eq!(start.elapsed().as_secs(), 30);
    assert!(error.is_transient(), "{error}");
    tokio::time::sleep(error.retry_in().unwrap_or(Duration::from_secs(1))).await;
    assert_eq!(tokens.token().await.unwrap().expose_secret(), "token");
}
