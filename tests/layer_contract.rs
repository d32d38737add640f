//! The service's contract, against a mock of the inner service: readiness, the instance that is
//! called, what goes into a request, and what a dropped future leaves behind.

#![allow(clippy::unwrap_used)]

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, header::AUTHORIZATION};
use tokio::{
    sync::Semaphore,
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_test::{assert_pending, assert_ready, assert_ready_ok, task};
use tower::{Layer, Service, ServiceExt};
use tower_adobe_auth::{
    AcquireTimeout, AdobeAuth, AdobeAuthLayer, BoxError, ErrorKind, InsecureUri, MinLifetime,
    NoAuthorization, TokenError, TokenResponse, TokenSource,
};
use tower_test::mock::{self, Handle, Mock};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const FIREFLY: &str = "https://firefly-api.adobe.io/v3/images/generate?x=1";

type Req = Request<&'static str>;
type Res = Response<&'static str>;

/// A source with a token in hand.
async fn warm() -> TokenSource {
    let tokens = TokenSource::from_fetcher(|| async {
        Ok(TokenResponse::new("token-1", DAY).with_client_id("my-id").with_org_id("my@AdobeOrg"))
    });
    tokens.token().await.unwrap();
    tokens
}

/// A source that has to wait for a permit.
fn gated(gate: &Arc<Semaphore>) -> TokenSource {
    let gate = Arc::clone(gate);
    TokenSource::from_fetcher(move || {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            Ok(TokenResponse::new("token-1", DAY))
        }
    })
}

fn mocked(layer: &AdobeAuthLayer) -> (AdobeAuth<Mock<Req, Res>>, Handle<Req, Res>) {
    let (inner, handle) = mock::pair();
    (layer.layer(inner), handle)
}

fn get(uri: &str) -> Req {
    Request::get(uri).body("body").unwrap()
}

async fn settle() {
    for _ in 0..32 {
        tokio::task::yield_now().await;
    }
}

/// Sends `request` through `layer` and returns it as the inner service got it.
async fn through(layer: &AdobeAuthLayer, request: Req) -> Req {
    let (service, mut handle) = mocked(layer);
    let response = tokio::spawn(service.oneshot(request));
    let (request, send) = handle.next_request().await.unwrap();
    send.send_response(Response::new("hello"));
    assert_eq!(*response.await.unwrap().unwrap().body(), "hello");
    request
}

fn header<'a>(request: &'a Req, name: &str) -> Option<&'a str> {
    request.headers().get(name).map(|value| value.to_str().unwrap())
}

#[tokio::test(start_paused = true)]
async fn an_allowed_request_gets_the_token_the_api_key_and_the_organization() {
    let layer = AdobeAuthLayer::new(warm().await);

    let request = through(&layer, get(FIREFLY)).await;

    assert_eq!(header(&request, "authorization"), Some("Bearer token-1"));
    assert_eq!(header(&request, "x-api-key"), Some("my-id"));
    assert_eq!(header(&request, "x-gw-ims-org-id"), Some("my@AdobeOrg"));
    assert!(request.headers()[AUTHORIZATION].is_sensitive());
    assert_eq!(*request.body(), "body");
}

#[tokio::test(start_paused = true)]
async fn authorization_replaces_the_callers_and_the_others_do_not() {
    let layer = AdobeAuthLayer::new(warm().await);
    let mut request = get(FIREFLY);
    request.headers_mut().append(AUTHORIZATION, "Basic one".parse().unwrap());
    request.headers_mut().append(AUTHORIZATION, "Basic two".parse().unwrap());
    request.headers_mut().insert("x-api-key", "another-id".parse().unwrap());
    request.headers_mut().insert("x-gw-ims-org-id", "another@AdobeOrg".parse().unwrap());

    let request = through(&layer, request).await;

    let authorization: Vec<_> = request.headers().get_all(AUTHORIZATION).iter().collect();
    assert_eq!(authorization, ["Bearer token-1"]);
    assert_eq!(header(&request, "x-api-key"), Some("another-id"));
    assert_eq!(header(&request, "x-gw-ims-org-id"), Some("another@AdobeOrg"));
}

#[tokio::test(start_paused = true)]
async fn the_api_key_can_be_turned_off() {
    let layer = AdobeAuthLayer::new(warm().await).without_api_key();

    let request = through(&layer, get(FIREFLY)).await;

    assert_eq!(header(&request, "x-api-key"), None);
    assert_eq!(header(&request, "authorization"), Some("Bearer token-1"));
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_not_allowed_is_passed_through_untouched() {
    let layer = AdobeAuthLayer::new(warm().await);
    for uri in [
        "https://bucket.s3-accelerate.amazonaws.com/out.png?X-Amz-Signature=1",
        "https://evil-adobe.io/",
        "https://adobe.io.evil.com/",
        "https://adobe.io@evil.com/",
        "http://127.0.0.1:8080/",
        "/no-host-at-all",
    ] {
        let mut request = get(uri);
        request.headers_mut().insert(AUTHORIZATION, "Basic own".parse().unwrap());

        let request = through(&layer, request).await;

        assert_eq!(header(&request, "authorization"), Some("Basic own"), "{uri}");
        assert_eq!(request.headers().len(), 1, "{uri}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_can_be_allowed_and_a_loopback_host_may_then_be_plain() {
    let layer = AdobeAuthLayer::new(warm().await)
        .allow_host("127.0.0.1")
        .allow_host("[::1]:8080")
        .allow_subdomains_of("adobeaemcloud.com");
    for (uri, allowed) in [
        ("http://127.0.0.1:8080/", true),
        ("http://127.0.0.2:8080/", false),
        ("http://[::1]:8080/", true),
        ("http://[::1]:8081/", false),
        ("https://author-p1.adobeaemcloud.com/", true),
        ("https://FIREFLY-API.ADOBE.IO./", true),
    ] {
        let request = through(&layer, get(uri)).await;

        assert_eq!(header(&request, "authorization").is_some(), allowed, "{uri}");
    }
}

#[tokio::test(start_paused = true)]
async fn plain_http_to_an_allowed_host_is_an_error_that_names_the_uri_without_its_query() {
    let (mut service, mut handle) = mocked(&AdobeAuthLayer::new(warm().await));

    let request = get("http://user:password@firefly-api.adobe.io/v3?secret=1");
    let error = service.ready().await.unwrap().call(request).await.unwrap_err();

    let insecure = error.downcast_ref::<InsecureUri>().unwrap();
    assert_eq!(insecure.uri(), "http://firefly-api.adobe.io/v3");
    assert!(!error.to_string().contains("secret") && !error.to_string().contains("password"));
    assert_pending!(task::spawn(handle.next_request()).poll());
}

#[tokio::test(start_paused = true)]
async fn a_request_can_opt_out_or_name_another_source() {
    let layer = AdobeAuthLayer::new(warm().await);
    let other = TokenSource::from_fetcher(|| async { Ok(TokenResponse::new("other", DAY)) });

    let mut request = get(FIREFLY);
    request.extensions_mut().insert(NoAuthorization);
    assert_eq!(header(&through(&layer, request).await, "authorization"), None);

    let mut request = get(FIREFLY);
    request.extensions_mut().insert(other);
    let request = through(&layer, request).await;
    assert_eq!(header(&request, "authorization"), Some("Bearer other"));
    assert_eq!(header(&request, "x-api-key"), None);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_asks_for_more_life_than_a_token_has_gets_an_error_and_costs_none() {
    let (mut service, _handle) = mocked(&AdobeAuthLayer::new(warm().await));
    let mut request = get(FIREFLY);
    request.extensions_mut().insert(MinLifetime(2 * DAY));

    let error = service.ready().await.unwrap().call(request).await.unwrap_err();

    assert_eq!(error.downcast_ref::<TokenError>().unwrap().kind(), ErrorKind::Lifetime);
}

#[tokio::test(start_paused = true)]
async fn readiness_is_the_inner_services() {
    let (service, mut handle) = mocked(&AdobeAuthLayer::new(warm().await));
    let mut service = task::spawn(service);
    handle.allow(0);

    assert_pending!(service.enter(|cx, mut service| service.poll_ready(cx)));
    handle.allow(1);
    assert!(service.is_woken());
    assert_ready_ok!(service.enter(|cx, mut service| service.poll_ready(cx)));

    handle.send_error("broken");
    let error = assert_ready!(service.enter(|cx, mut service| {
        let _sent = service.call(get(FIREFLY));
        service.poll_ready(cx)
    }))
    .unwrap_err();
    assert_eq!(error.to_string(), "broken");
}

#[tokio::test(start_paused = true)]
async fn with_a_token_in_hand_the_inner_service_is_called_at_once() {
    let (mut service, mut handle) = mocked(&AdobeAuthLayer::new(warm().await));

    let response = service.ready().await.unwrap().call(get(FIREFLY));

    // The response future was not polled yet.
    let (request, _send) = assert_ready!(task::spawn(handle.next_request()).poll()).unwrap();
    assert_eq!(header(&request, "authorization"), Some("Bearer token-1"));
    drop(response);
}

/// A service whose instances have to be polled ready, each on its own, before they are called.
#[derive(Debug)]
struct Fussy {
    ready: bool,
    called: Arc<AtomicUsize>,
}

impl Clone for Fussy {
    fn clone(&self) -> Self {
        Self { ready: false, called: Arc::clone(&self.called) }
    }
}

impl Service<Req> for Fussy {
    type Response = Res;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Res, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Req) -> Self::Future {
        assert!(std::mem::take(&mut self.ready), "called without being ready");
        self.called.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok(Response::new("")))
    }
}

#[tokio::test(start_paused = true)]
async fn calls_the_service_that_was_polled_ready() {
    let called = Arc::new(AtomicUsize::new(0));
    let fussy = Fussy { ready: false, called: Arc::clone(&called) };

    let mut fresh = AdobeAuthLayer::new(warm().await).layer(fussy.clone());
    for uri in [FIREFLY, "https://elsewhere.example/", FIREFLY] {
        fresh.ready().await.unwrap().call(get(uri)).await.unwrap();
    }
    assert_eq!(called.load(Ordering::SeqCst), 3);

    let gate = Arc::new(Semaphore::new(0));
    let mut cold = AdobeAuthLayer::new(gated(&gate)).layer(fussy);
    let first = cold.ready().await.unwrap().call(get(FIREFLY));
    let second = cold.ready().await.unwrap().call(get(FIREFLY));
    gate.add_permits(1);
    first.await.unwrap();
    second.await.unwrap();
    assert_eq!(called.load(Ordering::SeqCst), 5);
}

#[tokio::test(start_paused = true)]
async fn without_a_token_the_response_future_waits_for_one() {
    let gate = Arc::new(Semaphore::new(0));
    let (mut service, mut handle) = mocked(&AdobeAuthLayer::new(gated(&gate)));
    let mut response = task::spawn(service.ready().await.unwrap().call(get(FIREFLY)));
    let mut next = task::spawn(handle.next_request());

    assert_pending!(response.poll());
    settle().await;
    assert_pending!(next.poll());

    gate.add_permits(1);
    settle().await;
    assert!(response.is_woken());
    assert_pending!(response.poll());
    let (request, send) = assert_ready!(next.poll()).unwrap();
    assert_eq!(header(&request, "authorization"), Some("Bearer token-1"));
    send.send_response(Response::new("hello"));
    assert_eq!(*assert_ready_ok!(response.poll()).body(), "hello");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_a_token_occupies_no_place_in_the_inner_service() {
    let gate = Arc::new(Semaphore::new(0));
    let limited = tower::limit::ConcurrencyLimit::new(
        tower::service_fn(|_: Req| async { Ok::<_, BoxError>(Response::new("")) }),
        1,
    );
    let mut service = AdobeAuthLayer::new(gated(&gate)).layer(limited.clone());
    let mut waiting = task::spawn(service.ready().await.unwrap().call(get(FIREFLY)));
    assert_pending!(waiting.poll());

    // The only place is free for somebody else: the token request, say.
    limited.oneshot(get("https://ims.example/")).await.unwrap();
    gate.add_permits(1);

    waiting.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn dropping_a_response_future_is_safe_at_any_moment() {
    let gate = Arc::new(Semaphore::new(0));
    let (mut service, mut handle) = mocked(&AdobeAuthLayer::new(gated(&gate)));

    let unpolled = service.ready().await.unwrap().call(get(FIREFLY));
    drop(unpolled);
    let mut waiting = task::spawn(service.ready().await.unwrap().call(get(FIREFLY)));
    assert_pending!(waiting.poll());
    drop(waiting);
    gate.add_permits(1);
    settle().await;
    let sent = service.ready().await.unwrap().call(get(FIREFLY));
    let (request, send) = handle.next_request().await.unwrap();
    drop(sent);
    send.send_response(Response::new("unheard"));

    assert_eq!(header(&request, "authorization"), Some("Bearer token-1"));
    let last = service.ready().await.unwrap().call(get(FIREFLY));
    let (_, send) = handle.next_request().await.unwrap();
    send.send_response(Response::new("heard"));
    assert_eq!(*last.await.unwrap().body(), "heard");
}

#[tokio::test(start_paused = true)]
async fn a_token_that_cannot_be_had_is_an_error_and_the_request_is_not_sent() {
    let tokens =
        TokenSource::from_fetcher(|| async { Err(TokenError::permanent("the vault is sealed")) });
    let (mut service, mut handle) = mocked(&AdobeAuthLayer::new(tokens));

    let error = service.ready().await.unwrap().call(get(FIREFLY)).await.unwrap_err();

    let error = error.downcast_ref::<TokenError>().unwrap();
    assert_eq!(error.kind(), ErrorKind::Fetch);
    assert!(!error.is_transient());
    assert_pending!(task::spawn(handle.next_request()).poll());
}

#[tokio::test(start_paused = true)]
async fn the_host_header_decides_where_the_uri_has_no_authority() {
    let layer = AdobeAuthLayer::new(warm().await);
    let with_host = |hosts: &[&str]| {
        let mut request = get("/v3/images");
        for host in hosts {
            request.headers_mut().append("host", host.parse().unwrap());
        }
        request
    };

    let request = through(&layer, with_host(&["firefly-api.adobe.io:443"])).await;
    assert_eq!(header(&request, "authorization"), Some("Bearer token-1"));

    for hosts in [&["evil.example"][..], &["adobe.io", "evil.example"], &["adobe.io@evil.com"]] {
        let request = through(&layer, with_host(hosts)).await;
        assert_eq!(header(&request, "authorization"), None, "{hosts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_ends_while_the_inner_service_is_not_ready_is_not_sent() {
    let asked = Arc::new(AtomicUsize::new(0));
    let tokens = TokenSource::from_fetcher(move || {
        let number = asked.fetch_add(1, Ordering::SeqCst) + 1;
        async move { Ok(TokenResponse::new(format!("token-{number}"), Duration::from_secs(10))) }
    });
    let (mut service, mut handle) = mocked(&AdobeAuthLayer::new(tokens.clone()));
    handle.allow(1);
    service.ready().await.unwrap();
    handle.allow(0);

    let response = tokio::spawn(service.call(get(FIREFLY)));
    sleep(Duration::from_secs(60)).await;
    handle.allow(1);
    let (request, _send) = handle.next_request().await.unwrap();

    // The token may have become due at the very moment at which it was sent.
    let number = |text: &str| text.rsplit('-').next().unwrap().parse::<usize>().unwrap();
    let sent = number(header(&request, "authorization").unwrap());
    let cached = number(tokens.try_token().unwrap().expose_secret());
    assert!(sent > 1 && (cached - 1..=cached).contains(&sent), "{sent} of {cached}");
    response.abort();
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_through_a_proxy_sees_no_token() {
    let layer = AdobeAuthLayer::new(warm().await);
    let request = Request::connect("firefly-api.adobe.io:443").body("body").unwrap();

    assert_eq!(header(&through(&layer, request).await, "authorization"), None);
}

/// A service of which each instance takes twelve seconds to become ready. Counts its calls.
#[derive(Default)]
struct Slow {
    becoming_ready: Option<Pin<Box<Sleep>>>,
    called: Arc<AtomicUsize>,
}

impl Clone for Slow {
    fn clone(&self) -> Self {
        Self { becoming_ready: None, called: Arc::clone(&self.called) }
    }
}

impl Service<Req> for Slow {
    type Response = Res;
    type Error = BoxError;
    type Future = std::future::Ready<Result<Res, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        let sleep = || Box::pin(sleep(Duration::from_secs(12)));
        self.becoming_ready.get_or_insert_with(sleep).as_mut().poll(cx).map(Ok)
    }

    fn call(&mut self, _: Req) -> Self::Future {
        self.becoming_ready = None;
        self.called.fetch_add(1, Ordering::SeqCst);
        std::future::ready(Ok(Response::new("")))
    }
}

/// A source of tokens that take 900 ms and live for `lifetime`, and how many were requested.
fn requested(lifetime: Duration) -> (TokenSource, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let fetcher = move || {
        counter.fetch_add(1, Ordering::SeqCst);
        async move {
            sleep(Duration::from_millis(900)).await;
            Ok(TokenResponse::new("token", lifetime))
        }
    };
    let tokens = TokenSource::builder_from_fetcher(fetcher).refresh_on_demand().build().unwrap();
    (tokens, count)
}

fn within(limit: Duration) -> Req {
    let mut request = get(FIREFLY);
    request.extensions_mut().insert(AcquireTimeout(limit));
    request
}

#[tokio::test(start_paused = true)]
async fn one_deadline_bounds_all_waits_of_a_request() {
    let (tokens, count) = requested(Duration::from_secs(10));
    let slow = Slow::default();
    let service = AdobeAuthLayer::new(tokens).layer(slow.clone());
    let start = Instant::now();

    let request = within(Duration::from_secs(1));
    let answer = timeout(Duration::from_secs(600), service.oneshot(request)).await;

    let error = answer.expect("the request ends").unwrap_err();
    let error = error.downcast_ref::<TokenError>().unwrap();
    assert_eq!(error.kind(), ErrorKind::AcquireTimeout);
    // Twelve seconds before the call, the first token, and twelve seconds in which it expired.
    assert!(start.elapsed() < Duration::from_secs(26), "{:?}", start.elapsed());
    assert_eq!(slow.called.load(Ordering::SeqCst), 0);
    assert!(count.load(Ordering::SeqCst) <= 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_expires_during_readiness_is_never_sent() {
    let slow = Slow::default();
    let service = AdobeAuthLayer::new(requested(Duration::from_secs(10)).0).layer(slow.clone());

    // Readiness always takes longer than a token lives, so that only the deadline ends this.
    let answer = service.oneshot(within(Duration::from_secs(60))).await;

    assert!(answer.is_err());
    assert_eq!(slow.called.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn a_valid_token_is_sent_after_the_deadline() {
    let (tokens, count) = requested(DAY);
    let slow = Slow::default();
    let service = AdobeAuthLayer::new(tokens).layer(slow.clone());

    service.oneshot(within(Duration::from_secs(1))).await.unwrap();

    assert_eq!(slow.called.load(Ordering::SeqCst), 1);
    assert_eq!(count.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn the_deadline_counts_from_the_call_and_not_from_the_first_poll() {
    let gate = Arc::new(Semaphore::new(0));
    let (mut service, _handle) = mocked(&AdobeAuthLayer::new(gated(&gate)));

    let response = service.ready().await.unwrap().call(within(Duration::from_secs(1)));
    sleep(Duration::from_secs(5)).await;
    let error = timeout(Duration::from_millis(10), response).await.unwrap().unwrap_err();

    let error = error.downcast_ref::<TokenError>().unwrap();
    assert_eq!(error.kind(), ErrorKind::AcquireTimeout);
}

#[tokio::test(start_paused = true)]
async fn an_invalidated_token_is_not_sent_after_readiness() {
    let (tokens, count) = requested(DAY);
    let service = AdobeAuthLayer::new(tokens.clone()).layer(Slow::default());

    let response = tokio::spawn(service.oneshot(get(FIREFLY)));
    // The service is ready, the token has come, and the service is not ready again.
    sleep(Duration::from_secs(15)).await;
    tokens.invalidate(&tokens.try_token().unwrap());
    response.await.unwrap().unwrap();

    assert_eq!(count.load(Ordering::SeqCst), 2);
}
