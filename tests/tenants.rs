//! One client, many Adobe organizations.

#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use tower_adobe_auth::{
    AdobeAuthLayer, BoxError, Credentials, ErrorKind, TokenResponse, TokenSource, TokenSources,
};

/// Sources whose tokens are called after their tenants, and how often one was fetched.
fn sources() -> (TokenSources<String>, Arc<AtomicUsize>) {
    let fetched = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&fetched);
    let sources = TokenSources::new(move |tenant: &String| {
        let (tenant, count) = (tenant.clone(), Arc::clone(&count));
        Ok(TokenSource::from_fetcher(move || {
            count.fetch_add(1, Ordering::SeqCst);
            let response =
                TokenResponse::new(format!("token-of-{tenant}"), Duration::from_secs(86_400))
                    .with_client_id(format!("client-of-{tenant}"))
                    .with_org_id(format!("{tenant}@AdobeOrg"));
            async move { Ok(response) }
        }))
    });
    (sources, fetched)
}

fn key(tenant: &str) -> String {
    tenant.to_owned()
}

#[tokio::test]
async fn a_request_has_the_token_of_the_tenant_that_it_names() {
    let (sources, fetched) = sources();
    let echo = service_fn(|request: Request<()>| async move {
        let header = |name| request.headers()[name].to_str().unwrap().to_owned();
        let shown = [header("authorization"), header("x-api-key"), header("x-gw-ims-org-id")];
        Ok::<_, BoxError>(Response::new(shown))
    });
    let default = TokenSource::from_fetcher(|| async { unreachable!("nobody asks for it") });
    let client = AdobeAuthLayer::new(default).layer(echo);

    for tenant in ["a", "b", "a", "b", "a"] {
        let request = Request::get("https://firefly-api.adobe.io/v3/models")
            .extension(sources.get(&key(tenant)).unwrap())
            .body(())
            .unwrap();
        let shown = client.clone().oneshot(request).await.unwrap().into_body();
        assert_eq!(
            shown,
            [
                format!("Bearer token-of-{tenant}"),
                format!("client-of-{tenant}"),
                format!("{tenant}@AdobeOrg")
            ]
        );
    }

    assert_eq!(fetched.load(Ordering::SeqCst), 2);
    assert_eq!(sources.len(), 2);
}

#[tokio::test]
async fn what_cannot_be_made_is_an_error_and_is_tried_again() {
    let tries = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tries);
    let sources = TokenSources::new(move |_: &String| {
        if count.fetch_add(1, Ordering::SeqCst) == 0 {
            // Empty: an error of the configuration.
            return Err(Credentials::from_console_json("{}").unwrap_err());
        }
        Ok(TokenSource::from_fetcher(|| async {
            Ok(TokenResponse::new("a-token", Duration::from_secs(60)))
        }))
    });

    assert!(sources.get(&key("a")).is_err());
    assert!(sources.is_empty());
    assert!(sources.get(&key("a")).is_ok());
    assert_eq!(tries.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn one_more_than_fit_takes_the_place_of_the_one_not_asked_for_longest() {
    let (sources, fetched) = sources();
    let sources = sources.with_capacity(2);
    for tenant in ["a", "b", "a", "c"] {
        sources.get(&key(tenant)).unwrap().token().await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert_eq!((sources.len(), fetched.load(Ordering::SeqCst)), (2, 3));

    sources.get(&key("a")).unwrap().token().await.unwrap();
    assert_eq!(fetched.load(Ordering::SeqCst), 3);
    sources.get(&key("b")).unwrap().token().await.unwrap();

    assert_eq!((sources.len(), fetched.load(Ordering::SeqCst)), (2, 4));
}

#[tokio::test(start_paused = true)]
async fn an_idle_source_is_dropped_also_when_nobody_asks_any_more() {
    let (sources, fetched) = sources();
    let sources = sources.with_idle_timeout(Duration::from_secs(600));
    let mut changes = {
        let tokens = sources.get(&key("idle")).unwrap();
        tokens.token().await.unwrap();
        tokens.subscribe()
    };
    tokio::time::sleep(Duration::from_secs(300)).await;
    sources.get(&key("used")).unwrap();

    tokio::time::sleep(Duration::from_secs(301)).await;
    assert_eq!(sources.len(), 1);
    while changes.changed().await.is_some() {}
    tokio::time::sleep(Duration::from_secs(301)).await;
    assert!(sources.is_empty());

    // The one who drops what is idle has ended, and begins again.
    sources.get(&key("idle")).unwrap();
    tokio::time::sleep(Duration::from_secs(601)).await;
    assert!(sources.is_empty());
    tokio::time::sleep(Duration::from_secs(3 * 86_400)).await;
    assert_eq!(fetched.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_somebody_holds_is_not_idle() {
    let (sources, fetched) = sources();
    let sources = sources.with_idle_timeout(Duration::from_secs(600));
    let held = sources.get(&key("a")).unwrap();
    held.token().await.unwrap();

    tokio::time::sleep(Duration::from_secs(6_000)).await;
    sources.get(&key("a")).unwrap().token().await.unwrap();
    assert_eq!(fetched.load(Ordering::SeqCst), 1);

    drop(held);
    tokio::time::sleep(Duration::from_secs(1_201)).await;
    assert!(sources.is_empty());
}

#[test]
fn sources_outlive_the_runtime_that_dropped_what_was_idle() {
    let (sources, _) = sources();
    let sources = sources.with_idle_timeout(Duration::from_secs(600));
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
    };
    drop(sources.get(&key("before")).unwrap());
    runtime().block_on(async { drop(sources.get(&key("a")).unwrap()) });

    runtime().block_on(async {
        drop(sources.get(&key("b")).unwrap());
        tokio::time::sleep(Duration::from_secs(86_400)).await;
    });

    assert!(sources.is_empty(), "{sources:?}");
}

#[test]
fn who_finds_a_source_that_was_made_outside_of_a_runtime_sees_to_it_that_the_idle_are_dropped() {
    let (sources, _) = sources();
    let sources = sources.with_idle_timeout(Duration::from_secs(600));
    drop(sources.get(&key("before")).unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();

    runtime.block_on(async {
        drop(sources.get(&key("before")).unwrap());
        tokio::time::sleep(Duration::from_secs(86_400)).await;
    });

    assert!(sources.is_empty(), "{sources:?}");
}

#[test]
fn shutdown_of_sources_that_stand_still_takes_as_long_as_that_of_one() {
    let sources = TokenSources::new(|_: &usize| {
        TokenSource::builder_from_fetcher(|| async {
            Ok(TokenResponse::new("a-token", Duration::from_secs(86_400)))
        })
        .acquire_timeout(Duration::from_secs(30))
        .build()
    });
    let runtime = |paused| {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(paused)
            .build()
            .unwrap()
    };
    let still = runtime(false);
    still.block_on(async {
        for tenant in 0..10 {
            sources.get(&tenant).unwrap().token().await.unwrap();
        }
    });

    runtime(true).block_on(async {
        let start = tokio::time::Instant::now();
        let error = sources.shutdown().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AcquireTimeout);
        assert!(start.elapsed() < Duration::from_secs(31), "{:?}", start.elapsed());
    });
}

#[tokio::test]
async fn a_make_that_panics_or_asks_the_sources_themselves_harms_nobody() {
    let (inner, _) = sources();
    let shared = Arc::new(std::sync::OnceLock::<TokenSources<String>>::new());
    let again = Arc::clone(&shared);
    let tries = AtomicUsize::new(0);
    let sources = TokenSources::new(move |tenant: &String| {
        assert!(tries.fetch_add(1, Ordering::SeqCst) > 0, "as asked");
        match tenant.strip_prefix("again-") {
            Some(other) => again.get().unwrap().get(&other.to_owned()),
            None => inner.get(tenant),
        }
    });
    shared.set(sources.clone()).unwrap();

    let panicking = sources.clone();
    let panicked = std::thread::spawn(move || panicking.get(&key("a"))).join();
    let token = sources.get(&key("again-a")).unwrap().token().await.unwrap();

    assert!(panicked.is_err());
    assert_eq!(token.expose_secret(), "token-of-a");
    assert_eq!(sources.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_place_for_many_tenants_at_once_holds_one_source_and_mixes_up_no_tokens() {
    let (sources, _) = sources();
    let sources = sources.with_capacity(1).with_idle_timeout(Duration::ZERO);

    let calls = (0..400).map(|number| {
        let sources = sources.clone();
        tokio::spawn(async move {
            let tenant = format!("{}", number % 7);
            let source = sources.get(&tenant).unwrap();
            assert!(sources.len() <= 1);
            let token = source.token().await.unwrap();
            assert_eq!(token.expose_secret(), format!("token-of-{tenant}"));
        })
    });
    for call in futures_util::future::join_all(calls).await {
        call.unwrap();
    }
    tokio::time::timeout(Duration::from_secs(5), async {
        while !sources.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn shutdown_ends_all_sources_and_forgets_them() {
    let (sources, _) = sources();
    let (a, b) = (sources.get(&key("a")).unwrap(), sources.get(&key("b")).unwrap());
    a.token().await.unwrap();

    sources.shutdown().await.unwrap();

    assert!(sources.is_empty());
    assert_eq!(b.token().await.unwrap_err().kind(), ErrorKind::Shutdown);
    assert_eq!(a.refresh().await.unwrap_err().kind(), ErrorKind::Shutdown);
    assert!(sources.get(&key("a")).unwrap().token().await.is_ok());
}

#[tokio::test]
async fn a_source_that_was_shut_down_by_itself_makes_place_for_a_new_one() {
    let (sources, fetched) = sources();
    let sources = sources.with_capacity(2);
    let before = sources.get(&key("a")).unwrap();
    let other = sources.get(&key("b")).unwrap();
    before.token().await.unwrap();

    before.shutdown().await.unwrap();
    let after = sources.get(&key("a")).unwrap();
    after.refresh().await.unwrap();

    assert_eq!((sources.len(), fetched.load(Ordering::SeqCst)), (2, 2));
    assert!(sources.get(&key("a")).unwrap().try_token().is_some());
    // It has taken its own place, and not that of another.
    other.token().await.unwrap();
    assert!(sources.get(&key("b")).unwrap().try_token().is_some());
    assert_eq!(fetched.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn sources_of_which_all_are_shut_down_when_they_are_made_are_no_loop() {
    let (inner, _) = sources();
    let made = inner.get(&key("a")).unwrap();
    made.shutdown().await.unwrap();
    let sources = TokenSources::new(move |_: &String| Ok(made.clone()));

    for _ in 0..3 {
        let error = sources.get(&key("a")).unwrap().token().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Shutdown);
    }

    assert_eq!(sources.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_at_once_get_the_same_source() {
    let (sources, fetched) = sources();

    let calls = (0..200).map(|number| {
        let sources = sources.clone();
        tokio::spawn(async move {
            sources.get(&key(["a", "b"][number % 2])).unwrap().token().await.unwrap()
        })
    });
    futures_util::future::join_all(calls).await;

    assert_eq!(fetched.load(Ordering::SeqCst), 2);
}
