//! A service remembers the host and the token that it saw last. What it remembers never outlives
//! what is so.

#![allow(clippy::unwrap_used)]

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use http::{HeaderValue, Request, Response, header::AUTHORIZATION};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_adobe_auth::{
    AdobeAuthLayer, BoxError, NoAuthorization, TokenError, TokenResponse, TokenSource,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const FIREFLY: &str = "https://firefly-api.adobe.io/v3/images/generate";

/// The `Authorization` that the inner service got.
type Seen = Response<Option<HeaderValue>>;

fn service(
    tokens: &TokenSource,
) -> impl Service<Request<()>, Response = Seen, Error = BoxError> + use<> {
    let inner = service_fn(|request: Request<()>| async move {
        Ok::<_, Infallible>(Response::new(request.headers().get(AUTHORIZATION).cloned()))
    });
    AdobeAuthLayer::new(tokens.clone()).layer(inner)
}

/// `token-1`, `token-2` and so on.
fn count() -> impl Fn() -> std::future::Ready<Result<TokenResponse, TokenError>> {
    let fetched = AtomicUsize::new(0);
    move || {
        let number = fetched.fetch_add(1, Ordering::SeqCst) + 1;
        std::future::ready(Ok(TokenResponse::new(format!("token-{number}"), DAY)))
    }
}

fn get(uri: &str) -> Request<()> {
    Request::get(uri).body(()).unwrap()
}

async fn send<S>(service: &mut S, request: Request<()>) -> Option<String>
where
    S: Service<Request<()>, Response = Seen, Error = BoxError>,
{
    let response = service.ready().await.unwrap().call(request).await.unwrap();
    response.into_body().map(|value| value.to_str().unwrap().to_owned())
}

fn bearer(number: usize) -> Option<String> {
    Some(format!("Bearer token-{number}"))
}

#[tokio::test]
async fn a_new_token_is_sent_by_a_service_that_knows_the_old_one() {
    let tokens = TokenSource::from_fetcher(count());
    let mut service = service(&tokens);
    for _ in 0..3 {
        assert_eq!(send(&mut service, get(FIREFLY)).await, bearer(1));
    }

    tokens.refresh().await.unwrap();

    for _ in 0..3 {
        assert_eq!(send(&mut service, get(FIREFLY)).await, bearer(2));
    }
}

#[tokio::test]
async fn an_invalidated_token_is_sent_by_no_service_that_knows_it() {
    let tokens = TokenSource::from_fetcher(count());
    let mut services = [service(&tokens), service(&tokens), service(&tokens)];
    for service in &mut services {
        for _ in 0..3 {
            send(service, get(FIREFLY)).await;
        }
    }

    tokens.invalidate(&tokens.token().await.unwrap());

    for service in &mut services {
        assert_eq!(send(service, get(FIREFLY)).await, bearer(2));
    }
}

#[tokio::test]
async fn another_source_is_not_answered_from_memory() {
    let (tokens, other) = (TokenSource::from_fetcher(count()), TokenSource::from_fetcher(count()));
    other.token().await.unwrap();
    other.refresh().await.unwrap();
    let mut service = service(&tokens);
    for _ in 0..3 {
        assert_eq!(send(&mut service, get(FIREFLY)).await, bearer(1));
    }
    let mut request = get(FIREFLY);
    request.extensions_mut().insert(other);

    assert_eq!(send(&mut service, request).await, bearer(2));
    assert_eq!(send(&mut service, get(FIREFLY)).await, bearer(1));
}

#[tokio::test]
async fn a_request_that_opts_out_is_not_remembered_as_its_host() {
    let tokens = TokenSource::from_fetcher(count());
    let mut service = service(&tokens);
    let mut request = get(FIREFLY);
    request.extensions_mut().insert(NoAuthorization);

    assert_eq!(send(&mut service, request.clone()).await, None);
    assert_eq!(send(&mut service, get(FIREFLY)).await, bearer(1));
    assert_eq!(send(&mut service, request).await, None);
}

#[tokio::test]
async fn each_request_is_judged_by_its_own_scheme_host_and_port() {
    let tokens = TokenSource::from_fetcher(count());
    let mut service = service(&tokens);
    let ours = "https://firefly-api.adobe.io/";

    for other in [
        "https://firefly-api.adobe.io.evil.com/",
        "https://firefly-api.adobe.i/",
        "ftp://firefly-api.adobe.io/",
        "https://bucket.s3.amazonaws.com/",
    ] {
        assert_eq!(send(&mut service, get(ours)).await, bearer(1));
        assert_eq!(send(&mut service, get(other)).await, None, "{other}");
    }
    assert_eq!(send(&mut service, get(ours)).await, bearer(1));
    let insecure = get("http://firefly-api.adobe.io/");
    assert!(service.ready().await.unwrap().call(insecure).await.is_err());
}

#[tokio::test]
async fn a_token_that_ends_is_withdrawn_from_memory() {
    // The wall clock is set ahead, as after a sleep of the machine.
    let ahead = Arc::new(AtomicUsize::new(0));
    let clock = Arc::clone(&ahead);
    let tokens = TokenSource::builder_from_fetcher(count())
        .wall_clock(move || {
            let secs = u64::try_from(clock.load(Ordering::SeqCst)).unwrap();
            SystemTime::UNIX_EPOCH + DAY * 20_000 + Duration::from_secs(secs)
        })
        .build()
        .unwrap();
    let mut service = service(&tokens);
    for _ in 0..3 {
        assert_eq!(send(&mut service, get(FIREFLY)).await, bearer(1));
    }

    ahead.store(86_400, Ordering::SeqCst);

    assert_eq!(send(&mut service, get(FIREFLY)).await, bearer(2));
}

#[tokio::test]
async fn a_service_never_sends_an_older_token_than_its_thread_has_seen() {
    let tokens = TokenSource::builder_from_fetcher(count()).refresh_on_demand().build().unwrap();
    tokens.token().await.unwrap();
    let mut service = service(&tokens);
    let runtime = tokio::runtime::Handle::current();
    let reader = tokens.clone();
    let until = std::time::Instant::now() + Duration::from_secs(2);

    let reads = thread::spawn(move || {
        let mut reads = 0_u64;
        while std::time::Instant::now() < until {
            let Some(seen) = reader.try_token() else { continue };
            let sent = runtime.block_on(send(&mut service, get(FIREFLY))).unwrap();
            let sent: u64 = sent.trim_start_matches("Bearer token-").parse().unwrap();
            assert!(sent >= seen.generation(), "{sent} after {}", seen.generation());
            reads += 1;
        }
        reads
    });
    while !reads.is_finished() {
        tokens.refresh().await.unwrap();
    }

    assert!(reads.join().unwrap() > 1_000);
}

/// Tokio's clock is paused after requests have been made on the running one, as tests do that talk
/// to a server first. (A release build notices within a tick of the coarse clock.)
#[cfg(debug_assertions)]
#[tokio::test]
async fn a_clock_that_is_paused_later_and_moved_on_ends_the_token() {
    let tokens = TokenSource::builder_from_fetcher(count()).refresh_on_demand().build().unwrap();
    let mut service = service(&tokens);
    for _ in 0..3 {
        assert_eq!(send(&mut service, get(FIREFLY)).await, bearer(1));
    }

    tokio::time::pause();
    tokio::time::advance(2 * DAY).await;

    assert_eq!(send(&mut service, get(FIREFLY)).await, bearer(2));
}

/// On the system's own clocks, and on the coarse one in a release build: no token is sent past its
/// end, when none comes after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_no_token_is_sent_past_its_end() {
    let life = Duration::from_secs(5);
    let asked = AtomicUsize::new(0);
    let tokens = TokenSource::builder_from_fetcher(move || {
        let first = asked.fetch_add(1, Ordering::SeqCst) == 0;
        std::future::ready(if first {
            Ok(TokenResponse::new("token-1", life))
        } else {
            Err(TokenError::transient("IMS is down"))
        })
    })
    .backoff_cap(Duration::from_millis(100))
    .build()
    .unwrap();
    let ends = tokens.token().await.unwrap().expires_at();

    let threads: Vec<_> = (0..2)
        .map(|_| {
            let mut service = service(&tokens);
            let runtime = tokio::runtime::Handle::current();
            thread::spawn(move || {
                let mut sent = 0_u64;
                loop {
                    let response = runtime.block_on(async {
                        service.ready().await.unwrap().call(get(FIREFLY)).await
                    });
                    match response {
                        Ok(_) => sent += 1,
                        Err(error) => {
                            assert!(error.downcast_ref::<TokenError>().is_some(), "{error}");
                            return sent;
                        }
                    }
                    assert!(SystemTime::now() < ends, "sent past its end");
                }
            })
        })
        .collect();
    let join = || threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    let sent: u64 = tokio::task::block_in_place(join);

    assert!(sent > 1_000, "{sent}");
    assert!(SystemTime::now() > ends - Duration::from_secs(1), "it was withdrawn far too early");
}
