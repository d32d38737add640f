//! Promise 4: bounded everything, also where the fetcher, its tokens or its errors are odd.

#![allow(clippy::unwrap_used)]

use std::{
    error::Error,
    fmt,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use http::{Request, Response};
use tokio::time::{Instant, sleep};
use tower::{Layer, ServiceExt};
use tower_adobe_auth::{
    AdobeAuthLayer, BoxError, ErrorKind, MinLifetime, TokenError, TokenResponse, TokenSource,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A source of tokens that live for `lifetime`, and how many of them there were.
fn counted(lifetime: Duration) -> (TokenSource, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let tokens = TokenSource::from_fetcher(move || {
        count.fetch_add(1, Ordering::SeqCst);
        async move { Ok(TokenResponse::new("token", lifetime)) }
    });
    (tokens, asked)
}

async fn ask_for(tokens: &TokenSource, min_lifetime: Duration) -> Result<(), BoxError> {
    let inner = tower::service_fn(|_: Request<()>| async {
        sleep(Duration::from_millis(10)).await;
        Ok::<_, BoxError>(Response::new(()))
    });
    let request =
        Request::get("https://x.adobe.io/").extension(MinLifetime(min_lifetime)).body(()).unwrap();
    AdobeAuthLayer::new(tokens.clone()).layer(inner).oneshot(request).await.map(drop)
}

#[tokio::test(start_paused = true)]
async fn a_wish_that_no_token_grants_for_long_does_not_cost_a_token_each_time() {
    for wish in [DAY, DAY - Duration::from_millis(5), DAY - Duration::from_secs(60)] {
        let (tokens, asked) = counted(DAY);
        tokens.token().await.unwrap();

        for _ in 0..100 {
            let error = ask_for(&tokens, wish).await.err();
            if let Some(error) = error {
                let error = error.downcast::<TokenError>().unwrap();
                assert_eq!(error.kind(), ErrorKind::Lifetime, "{error}");
            }
        }

        assert_eq!(asked.load(Ordering::SeqCst), 1, "{wish:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn tokens_that_are_dead_on_arrival_are_a_failure_that_is_backed_off_from() {
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let tokens = TokenSource::from_fetcher(move || {
        count.fetch_add(1, Ordering::SeqCst);
        async move {
            sleep(Duration::from_millis(50)).await;
            Ok(TokenResponse::new("token", Duration::from_millis(40)))
        }
    });

    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        let error = tokens.token().await.unwrap_err();
        assert!(error.is_transient());
        sleep(Duration::from_millis(1)).await;
    }

    assert!(asked.load(Ordering::SeqCst) <= 20, "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn an_idle_source_of_tokens_that_live_for_no_time_does_not_spin() {
    let (tokens, asked) = counted(Duration::from_millis(2));
    let _ = tokens.token().await;

    sleep(Duration::from_secs(10)).await;

    assert!(asked.load(Ordering::SeqCst) <= 101, "{asked:?}");
}

#[test]
fn a_backoff_that_would_flood_ims_is_refused() {
    let builder =
        || TokenSource::builder_from_fetcher(|| async { Ok(TokenResponse::new("t", DAY)) });

    let error = builder().backoff_cap(Duration::ZERO).build().unwrap_err();

    assert!(error.to_string().contains("backoff_cap"));
    builder().backoff_cap(Duration::from_millis(10)).build().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_token_without_end_is_one_like_any_other() {
    for refresh_at in [1e-17, 0.5, 1.0 - 1e-16] {
        let tokens = TokenSource::builder_from_fetcher(|| async {
            Ok(TokenResponse::new("token", Duration::MAX))
        })
        .refresh_at(refresh_at)
        .build()
        .unwrap();

        tokens.token().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn invalidate_of_another_sources_token_drops_nothing() {
    let ((one, _), (two, _)) = (counted(DAY), counted(DAY));
    let foreign = one.token().await.unwrap();
    two.token().await.unwrap();

    two.invalidate(&foreign);

    assert!(two.status().is_ready());
}

/// An error that does something when it is dropped.
#[derive(Debug)]
struct OnDrop(fn());

impl fmt::Display for OnDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an error")
    }
}

impl Error for OnDrop {}

impl Drop for OnDrop {
    fn drop(&mut self) {
        (self.0)();
    }
}

fn fails_first_with(on_drop: fn()) -> TokenSource {
    let asked = AtomicUsize::new(0);
    TokenSource::from_fetcher(move || {
        let first = asked.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            if first {
                return Err(TokenError::transient(OnDrop(on_drop)));
            }
            Ok(TokenResponse::new("token", DAY))
        }
    })
}

#[test]
fn an_error_that_asks_the_source_when_it_is_dropped_does_not_deadlock_it() {
    static TOKENS: OnceLock<TokenSource> = OnceLock::new();
    let tokens = fails_first_with(|| {
        let _ = TOKENS.get().unwrap().status();
    });
    let tokens = TOKENS.get_or_init(|| tokens);
    let (done, waits) = mpsc::channel();

    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(tokens.token()).unwrap();
        done.send(()).unwrap();
    });

    waits.recv_timeout(Duration::from_secs(10)).expect("it should not deadlock");
}

#[tokio::test(start_paused = true)]
async fn an_error_that_panics_when_it_is_dropped_does_not_wedge_the_source() {
    let tokens = fails_first_with(|| {
        if !thread::panicking() {
            panic!("dropped");
        }
    });

    for _ in 0..3 {
        let _ = tokens.token().await;
        sleep(Duration::from_secs(120)).await;
    }

    assert!(tokens.token().await.is_ok());
}
