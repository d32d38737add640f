//! The end of a source's background work.

#![allow(clippy::unwrap_used)]

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tower_adobe_auth::{ErrorKind, TokenResponse, TokenSource};

/// Alive as long as the future that holds it.
struct Alive(Arc<AtomicUsize>);

impl Alive {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn day() -> TokenResponse {
    TokenResponse::new("a-token", Duration::from_secs(86_400))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flight_under_way_has_ended_when_shutdown_says_so() {
    let alive = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&alive);
    let tokens = TokenSource::from_fetcher(move || {
        let alive = Alive::new(&count);
        async move {
            let _alive = alive;
            pending().await
        }
    });
    let waiter = tokio::spawn({
        let tokens = tokens.clone();
        async move { tokens.token().await }
    });
    while alive.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }

    tokens.shutdown().await.unwrap();

    assert_eq!(alive.load(Ordering::SeqCst), 0);
    let error = waiter.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Shutdown);
    assert!(!error.is_transient());
}

#[tokio::test(start_paused = true)]
async fn after_shutdown_a_valid_token_is_given_out_and_no_new_one_is_fetched() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let tokens = TokenSource::from_fetcher(move || {
        count.fetch_add(1, Ordering::SeqCst);
        async { Ok(day()) }
    });
    tokens.token().await.unwrap();

    tokens.shutdown().await.unwrap();
    let with_token = tokens.token().await;
    let refreshed = tokens.refresh().await;
    tokio::time::sleep(Duration::from_secs(23 * 3_600 + 1_800)).await;
    let due = tokens.token().await;
    tokio::time::sleep(Duration::from_secs(3_600)).await;
    let ended = tokens.token().await;

    assert!(with_token.is_ok() && due.is_ok());
    assert_eq!(refreshed.unwrap_err().kind(), ErrorKind::Shutdown);
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::Shutdown);
    assert_eq!(tokens.try_token().map(|_| ()), None);
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn shutdown_of_a_source_that_never_began_ends_at_once_and_again() {
    let tokens = TokenSource::from_fetcher(|| async { Ok(day()) });

    tokens.shutdown().await.unwrap();
    tokens.clone().shutdown().await.unwrap();

    assert_eq!(tokens.token().await.unwrap_err().kind(), ErrorKind::Shutdown);
    assert!(tokens.subscribe().changed().await.is_none());
}

#[test]
fn the_work_of_a_runtime_that_is_gone_has_ended() {
    let tokens = TokenSource::from_fetcher(|| async { Ok(day()) });
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    first.block_on(tokens.token()).unwrap();
    drop(first);

    runtime().block_on(tokens.shutdown()).unwrap();
}

#[test]
fn work_on_a_runtime_that_stands_still_is_an_error_within_the_limit() {
    let tokens = TokenSource::builder_from_fetcher(|| async { Ok(day()) })
        .acquire_timeout(Duration::from_millis(50))
        .build()
        .unwrap();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let still = runtime();
    still.block_on(tokens.token()).unwrap();

    let error = runtime().block_on(tokens.shutdown()).unwrap_err();

    assert_eq!(error.kind(), ErrorKind::AcquireTimeout);
    still.block_on(tokens.shutdown()).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_under_way_after_shutdown_also_when_a_caller_came_at_the_same_time() {
    for round in 0..2_000 {
        let alive = Arc::new(AtomicUsize::new(0));
        let fetcher = Alive::new(&alive);
        let tokens = TokenSource::from_fetcher(move || {
            let _ = &fetcher;
            async { Ok(day()) }
        });
        let here = tokio::runtime::Handle::current();
        let caller = {
            let (tokens, here) = (tokens.clone(), here.clone());
            let start = Arc::new(std::sync::Barrier::new(2));
            let starts = Arc::clone(&start);
            let thread = std::thread::spawn(move || {
                let _inside = here.enter();
                starts.wait();
                let _ = tokens.try_token();
            });
            start.wait();
            thread
        };
        for _ in 0..round % 500 {
            std::hint::spin_loop();
        }

        tokens.shutdown().await.unwrap();

        let refreshing = tokens.status().is_refreshing();
        // Only now: with the runtime's threads blocked nothing would end.
        caller.join().unwrap();
        assert!(!refreshing, "round {round}");
        assert!(!tokens.status().is_refreshing(), "round {round}");
        drop(tokens);
        assert_eq!(alive.load(Ordering::SeqCst), 0, "round {round}");
    }
}
