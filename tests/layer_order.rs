//! What the place of the layer among tower's own layers decides: `docs/order-of-layers.md` names
//! these tests.

#![allow(clippy::unwrap_used)]

use std::{
    convert::Infallible,
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::join_all};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper_util::{client::legacy::Client as HyperClient, rt::TokioExecutor};
use tokio::{
    task::JoinHandle,
    time::{Instant, Sleep, sleep, timeout},
};
use tokio_test::task;
use tower::{
    Layer, Service, ServiceBuilder, ServiceExt,
    balance::p2c::Balance,
    buffer::Buffer,
    discover::ServiceList,
    limit::{ConcurrencyLimit, GlobalConcurrencyLimitLayer},
    load::Constant,
    load_shed::error::Overloaded,
    retry::{Policy, Retry, RetryLayer},
    timeout::error::Elapsed,
};
use tower_adobe_auth::{
    AdobeAuthLayer, BoxError, Credentials, Environment, ErrorKind, Replayed, TokenError,
    TokenResponse, TokenSource, mock::MockIms,
};
use tower_test::mock::{self, Handle, Mock, SendResponse};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const SECOND: Duration = Duration::from_secs(1);
const FIREFLY: &str = "https://firefly-api.adobe.io/v3/images/generate";
const STORAGE: &str = "https://storage.example/in.png";

type Req = Request<&'static str>;
type Res = Response<&'static str>;

/// What stands for IMS, and counts what it is asked.
#[derive(Clone)]
struct Ims {
    asked: Arc<AtomicUsize>,
    takes: Duration,
    life: Duration,
}

impl Ims {
    fn new() -> Self {
        Self { asked: Arc::default(), takes: Duration::ZERO, life: DAY }
    }

    fn taking(takes: Duration) -> Self {
        Self { takes, ..Self::new() }
    }

    fn source(&self) -> TokenSource {
        let ims = self.clone();
        TokenSource::from_fetcher(move || {
            let ims = ims.clone();
            async move {
                let number = ims.asked.fetch_add(1, Ordering::SeqCst) + 1;
                sleep(ims.takes).await;
                Ok(TokenResponse::new(format!("token-{number}"), ims.life))
            }
        })
    }

    /// A source with the first token in hand.
    async fn warm(&self) -> TokenSource {
        let tokens = self.source();
        tokens.token().await.unwrap();
        tokens
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// Repeats what was answered with 401 or 503, up to so many times, after a pause.
#[derive(Clone, Copy)]
struct Again {
    times: usize,
    pause: Duration,
}

fn again(times: usize) -> Again {
    Again { times, pause: Duration::ZERO }
}

impl<E> Policy<Req, Res, E> for Again {
    type Future = Sleep;

    fn retry(&mut self, _: &mut Req, result: &mut Result<Res, E>) -> Option<Self::Future> {
        let response = result.as_ref().ok()?;
        let refused = response.status() == StatusCode::UNAUTHORIZED
            && response.extensions().get::<Replayed>().is_none();
        if !refused && response.status() != StatusCode::SERVICE_UNAVAILABLE {
            return None;
        }
        self.times = self.times.checked_sub(1)?;
        Some(sleep(self.pause))
    }

    fn clone_request(&mut self, request: &Req) -> Option<Req> {
        Some(request.clone())
    }
}

fn get(uri: &str) -> Req {
    Request::get(uri).body("").unwrap()
}

fn status(status: StatusCode) -> Res {
    let mut response = Response::new("");
    *response.status_mut() = status;
    response
}

fn bearer(request: &Req) -> &str {
    request.headers()["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap()
}

/// No test waits for longer, by its own clock.
const BOUND: Duration = Duration::from_secs(60 * 60);

/// Sends a request in a task of its own.
fn send<S>(service: &S, request: Req) -> JoinHandle<Result<Res, BoxError>>
where
    S: Service<Req, Response = Res, Error = BoxError> + Clone + Send + 'static,
    S::Future: Send,
{
    let response = timeout(BOUND, service.clone().oneshot(request));
    tokio::spawn(response.map(|response| response.expect("an answer in time")))
}

async fn next(api: &mut Handle<Req, Res>) -> (Req, SendResponse<Res>) {
    timeout(BOUND, api.next_request()).await.expect("a request in time").unwrap()
}

/// Waits until all tasks wait for something.
async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

fn is_idle(api: &mut Handle<Req, Res>) -> bool {
    task::spawn(api.next_request()).poll().is_pending()
}

// Timeouts.

#[tokio::test(start_paused = true)]
async fn a_total_timeout_outside_the_layer_covers_the_wait_for_a_token() {
    let (inner, mut api) = mock::pair();
    let client = ServiceBuilder::new()
        .timeout(5 * SECOND)
        .layer(AdobeAuthLayer::new(Ims::taking(8 * SECOND).source()))
        .service(inner);
    let start = Instant::now();

    let error = send(&client, get(FIREFLY)).await.unwrap().unwrap_err();

    assert!(error.is::<Elapsed>(), "{error}");
    assert_eq!(start.elapsed().as_secs(), 5);
    assert!(is_idle(&mut api), "the request was not sent");
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_one_try_inside_the_layer_does_not_count_the_wait_for_a_token() {
    let (inner, mut api) = mock::pair();
    let client = ServiceBuilder::new()
        .layer(AdobeAuthLayer::new(Ims::taking(8 * SECOND).source()))
        .timeout(5 * SECOND)
        .service(inner);
    let start = Instant::now();

    let response = send(&client, get(FIREFLY));
    let (_, reply) = next(&mut api).await;
    assert_eq!(start.elapsed().as_secs(), 8);
    sleep(3 * SECOND).await;
    reply.send_response(status(StatusCode::OK));
    assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(start.elapsed().as_secs(), 11);

    let (response, start) = (send(&client, get(FIREFLY)), Instant::now());
    let (_request, _never) = next(&mut api).await;
    assert!(response.await.unwrap().unwrap_err().is::<Elapsed>());
    assert_eq!(start.elapsed().as_secs(), 5);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_of_one_try_inside_the_layer_starts_anew_for_the_replay() {
    let (inner, mut api) = mock::pair();
    let client = ServiceBuilder::new()
        .layer(AdobeAuthLayer::new(Ims::taking(4 * SECOND).warm().await).replay_unauthorized())
        .timeout(5 * SECOND)
        .service(inner);
    let start = Instant::now();

    let response = send(&client, get(FIREFLY));
    for code in [StatusCode::UNAUTHORIZED, StatusCode::OK] {
        let (_, reply) = next(&mut api).await;
        sleep(4 * SECOND).await;
        reply.send_response(status(code));
    }

    assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(start.elapsed().as_secs(), 12, "a try, a token, a try");
}

// Retries.

#[tokio::test(start_paused = true)]
async fn a_retry_outside_the_layer_authorizes_each_attempt_anew() {
    let ims = Ims::new();
    let tokens = ims.warm().await;
    let (inner, mut api) = mock::pair();
    let client = ServiceBuilder::new()
        .layer(RetryLayer::new(again(2)))
        .layer(AdobeAuthLayer::new(tokens.clone()))
        .service(inner);

    let response = send(&client, get(FIREFLY));
    let (first, reply) = next(&mut api).await;
    tokens.refresh().await.unwrap();
    reply.send_response(status(StatusCode::SERVICE_UNAVAILABLE));
    let (second, reply) = next(&mut api).await;
    reply.send_response(status(StatusCode::UNAUTHORIZED));
    let (third, reply) = next(&mut api).await;
    reply.send_response(status(StatusCode::OK));

    assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(bearer(&first), "token-1");
    assert_eq!(bearer(&second), "token-2", "it was renewed between the attempts");
    assert_eq!(bearer(&third), "token-3", "the API refused the second");
    assert_eq!(ims.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_retry_inside_the_layer_repeats_the_same_token() {
    let ims = Ims::new();
    let (inner, mut api) = mock::pair();
    let client = ServiceBuilder::new()
        .layer(AdobeAuthLayer::new(ims.warm().await))
        .layer(RetryLayer::new(again(2)))
        .service(inner);

    let response = send(&client, get(FIREFLY));
    for _ in 0..3 {
        let (request, reply) = next(&mut api).await;
        assert_eq!(bearer(&request), "token-1", "refused, and sent again all the same");
        reply.send_response(status(StatusCode::UNAUTHORIZED));
    }

    assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::UNAUTHORIZED);
    settle().await;
    assert_eq!(ims.asked(), 2, "the layer hears of the last answer only");
}

#[tokio::test(start_paused = true)]
async fn a_retry_inside_the_layer_sends_a_token_that_has_ended_meanwhile() {
    let ims = Ims { life: 60 * SECOND, ..Ims::new() };
    let tokens = ims.warm().await;
    let policy = Again { times: 1, pause: 120 * SECOND };
    let (inner, mut api) = mock::pair();
    let inside = AdobeAuthLayer::new(tokens.clone()).layer(Retry::new(policy, inner.clone()));
    let outside = Retry::new(policy, AdobeAuthLayer::new(tokens.clone()).layer(inner));

    let _response = send(&inside, get(FIREFLY));
    let (first, reply) = next(&mut api).await;
    reply.send_response(status(StatusCode::SERVICE_UNAVAILABLE));
    let (second, _reply) = next(&mut api).await;
    assert_eq!(bearer(&first), bearer(&second));
    assert_ne!(bearer(&second), tokens.token().await.unwrap().expose_secret());

    let _response = send(&outside, get(FIREFLY));
    let (first, reply) = next(&mut api).await;
    reply.send_response(status(StatusCode::SERVICE_UNAVAILABLE));
    let (second, _reply) = next(&mut api).await;
    assert_ne!(bearer(&first), bearer(&second));
    assert_eq!(bearer(&second), tokens.token().await.unwrap().expose_secret());
}

#[tokio::test(start_paused = true)]
async fn a_retry_outside_the_layer_need_not_repeat_a_401_that_was_replayed() {
    let ims = Ims::new();
    let (inner, mut api) = mock::pair();
    let client = ServiceBuilder::new()
        .layer(RetryLayer::new(again(10)))
        .layer(AdobeAuthLayer::new(ims.warm().await).replay_unauthorized())
        .service(inner);

    let response = send(&client, get(FIREFLY));
    for token in ["token-1", "token-2"] {
        let (request, reply) = next(&mut api).await;
        assert_eq!(bearer(&request), token);
        reply.send_response(status(StatusCode::UNAUTHORIZED));
    }

    assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::UNAUTHORIZED);
    assert!(is_idle(&mut api));
}

// Limits.

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_its_replay_holds_no_place_of_a_limit_inside() {
    let (inner, mut api) = mock::pair();
    let limited = ConcurrencyLimit::new(inner, 1);
    let client = AdobeAuthLayer::new(Ims::taking(8 * SECOND).warm().await)
        .replay_unauthorized()
        .layer(limited.clone());

    let refused = send(&client, get(FIREFLY));
    next(&mut api).await.1.send_response(status(StatusCode::UNAUTHORIZED));
    // Eight seconds without a token: the only place is free for somebody else.
    let other = send(&limited, get(STORAGE));
    let (request, reply) = timeout(SECOND, next(&mut api)).await.unwrap();
    assert_eq!(request.uri(), STORAGE);
    reply.send_response(status(StatusCode::OK));
    other.await.unwrap().unwrap();
    next(&mut api).await.1.send_response(status(StatusCode::OK));

    assert_eq!(refused.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_a_token_holds_its_place_of_a_limit_outside() {
    let (inner, mut api) = mock::pair();
    let client = ServiceBuilder::new()
        .concurrency_limit(1)
        .layer(AdobeAuthLayer::new(Ims::taking(8 * SECOND).source()))
        .service(inner);
    let start = Instant::now();

    let waiting = send(&client, get(FIREFLY));
    settle().await;
    let _other = send(&client, get(STORAGE));
    let (request, reply) = next(&mut api).await;
    assert_eq!(request.uri(), FIREFLY, "the other one needs no token, and waits all the same");
    assert_eq!(start.elapsed().as_secs(), 8);
    reply.send_response(status(StatusCode::OK));

    waiting.await.unwrap().unwrap();
    assert_eq!(next(&mut api).await.0.uri(), STORAGE);
}

/// An IMS in the same process, for tests on the paused clock.
async fn ims_in_memory(_: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, Infallible> {
    let token = r#"{"access_token":"token-1","token_type":"bearer","expires_in":86399}"#;
    let answer = Response::builder().header("content-type", "application/json");
    Ok(answer.body(Full::from(token)).unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_place_outside_the_layer_that_ims_needs_too_is_an_error_in_time_and_no_hang() {
    let limit = GlobalConcurrencyLimitLayer::new(1);
    let ims = limit.layer(tower::service_fn(ims_in_memory));
    let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
        .map_ims(|builder| builder.transport(ims))
        .acquire_timeout(5 * SECOND)
        .build()
        .unwrap();
    let (inner, mut api) = mock::pair();
    let client = limit.layer(AdobeAuthLayer::new(tokens).layer(inner));
    let start = Instant::now();

    let error = send(&client, get(FIREFLY)).await.unwrap().unwrap_err();
    assert_eq!(error.downcast_ref::<TokenError>().unwrap().kind(), ErrorKind::AcquireTimeout);
    assert_eq!(start.elapsed().as_secs(), 5);

    // The place is free now, and the token request goes on.
    let response = send(&client, get(FIREFLY));
    next(&mut api).await.1.send_response(status(StatusCode::OK));
    assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_limit_of_one_inside_the_layer_that_ims_shares_does_not_deadlock() {
    let ims = MockIms::start().await;
    let hyper = HyperClient::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let limited = ConcurrencyLimit::new(hyper, 1);
    let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
        .environment(Environment::custom(ims.url()).unwrap())
        .map_ims(|builder| builder.transport(limited.clone()))
        .build()
        .unwrap();
    let client = AdobeAuthLayer::new(tokens)
        .allow_host("127.0.0.1")
        .replay_unauthorized()
        .layer(limited.clone());
    let burst = || {
        let answers = (0..20).map(|_| {
            let request = Request::get(ims.api_url()).body(Full::default()).unwrap();
            tokio::spawn(client.clone().oneshot(request))
        });
        timeout(30 * SECOND, join_all(answers))
    };

    // A cold start, and then a token that is revoked: both times IMS needs the only place.
    for token_requests in [1, 2] {
        for answer in burst().await.unwrap() {
            assert_eq!(answer.unwrap().unwrap().status(), StatusCode::OK);
        }
        assert_eq!(ims.token_requests(), token_requests);
        ims.revoke_all();
    }
}

// Buffers.

#[tokio::test(start_paused = true)]
async fn a_buffer_outside_the_layer_is_not_held_up_by_a_request_that_waits_for_a_token() {
    let (inner, mut api) = mock::pair();
    let layer = AdobeAuthLayer::new(Ims::taking(8 * SECOND).source()).replay_unauthorized();
    let client = Buffer::new(layer.layer(inner), 1);

    let waiting = send(&client, get(FIREFLY));
    settle().await;
    let _other = send(&client, get(STORAGE));
    let (request, reply) = timeout(SECOND, next(&mut api)).await.unwrap();
    assert_eq!(request.uri(), STORAGE);
    reply.send_response(status(StatusCode::OK));
    for (token, code) in [("token-1", StatusCode::UNAUTHORIZED), ("token-2", StatusCode::OK)] {
        let (request, reply) = next(&mut api).await;
        assert_eq!(bearer(&request), token);
        reply.send_response(status(code));
    }

    assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_for_a_token_holds_no_place_in_a_buffer_inside() {
    let (inner, mut api) = mock::pair();
    let buffer = Buffer::new(inner, 1);
    let layer = AdobeAuthLayer::new(Ims::taking(8 * SECOND).source()).replay_unauthorized();
    let client = layer.layer(buffer.clone());

    let waiting = send(&client, get(FIREFLY));
    settle().await;
    let _other = send(&buffer, get(STORAGE));
    let (request, reply) = timeout(SECOND, next(&mut api)).await.unwrap();
    assert_eq!(request.uri(), STORAGE);
    reply.send_response(status(StatusCode::OK));
    for (token, code) in [("token-1", StatusCode::UNAUTHORIZED), ("token-2", StatusCode::OK)] {
        let (request, reply) = next(&mut api).await;
        assert_eq!(bearer(&request), token);
        reply.send_response(status(code));
    }

    assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::OK);
}

// Shedding.

#[tokio::test(start_paused = true)]
async fn a_request_that_is_shed_outside_the_layer_costs_no_token_request() {
    let ims = Ims::new();
    let tokens = ims.source();
    let (inner, mut api) = mock::pair();
    let client = ServiceBuilder::new()
        .load_shed()
        .concurrency_limit(1)
        .layer(AdobeAuthLayer::new(tokens.clone()))
        .service(inner);

    let _busy = send(&client, get(STORAGE));
    let (_request, _reply) = next(&mut api).await;
    let error = send(&client, get(FIREFLY)).await.unwrap().unwrap_err();

    assert!(error.is::<Overloaded>(), "{error}");
    assert!(error.downcast_ref::<TokenError>().is_none());
    assert_eq!(ims.asked(), 0);
    assert!(tokens.status().last_error().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_shed_inside_the_layer_says_nothing_about_the_token() {
    let ims = Ims::new();
    let tokens = ims.warm().await;
    let (inner, mut api) = mock::pair();
    let client = ServiceBuilder::new()
        .layer(AdobeAuthLayer::new(tokens.clone()).replay_unauthorized())
        .load_shed()
        .concurrency_limit(1)
        .service(inner);

    let busy = send(&client, get(FIREFLY));
    let (_, reply) = next(&mut api).await;
    for _ in 0..100 {
        let error = send(&client, get(FIREFLY)).await.unwrap().unwrap_err();
        assert!(error.is::<Overloaded>(), "{error}");
    }
    reply.send_response(status(StatusCode::OK));

    busy.await.unwrap().unwrap();
    let after = send(&client, get(FIREFLY));
    let (request, reply) = next(&mut api).await;
    assert_eq!(bearer(&request), "token-1");
    reply.send_response(status(StatusCode::OK));
    assert_eq!(after.await.unwrap().unwrap().status(), StatusCode::OK);
    assert_eq!(ims.asked(), 1);
    assert!(tokens.status().last_error().is_none());
}

#[tokio::test(start_paused = true)]
async fn without_a_token_a_request_waits_for_one_before_it_is_shed_inside_the_layer() {
    let ims = Ims::taking(8 * SECOND);
    let (inner, mut api) = mock::pair();
    let limited = ConcurrencyLimit::new(inner, 1);
    let client = ServiceBuilder::new()
        .layer(AdobeAuthLayer::new(ims.source()))
        .load_shed()
        .service(limited.clone());
    let start = Instant::now();

    let _busy = send(&limited, get(STORAGE));
    let (_request, _reply) = next(&mut api).await;
    let shed = join_all((0..10).map(|_| send(&client, get(FIREFLY)))).await;

    for error in shed {
        assert!(error.unwrap().unwrap_err().is::<Overloaded>());
    }
    assert_eq!((start.elapsed().as_secs(), ims.asked()), (8, 1));
}

// Balancing.

fn balanced<const N: usize>() -> (Balanced, [Handle<Req, Res>; N]) {
    let mut services = Vec::new();
    let handles = std::array::from_fn(|_| {
        let (service, handle) = mock::pair();
        services.push(Constant::new(service, 1));
        handle
    });
    // A balancer cannot be cloned, a buffer can.
    (Buffer::new(Balance::new(ServiceList::new::<Req>(services)), 64), handles)
}

type Balanced = Buffer<Req, <Balance<Endpoints, Req> as Service<Req>>::Future>;
type Endpoints = ServiceList<Vec<Constant<Mock<Req, Res>, usize>>>;

/// Answers what comes, and counts it.
fn answer(mut api: Handle<Req, Res>, count: Arc<AtomicUsize>) {
    tokio::spawn(async move {
        while let Some((request, reply)) = api.next_request().await {
            assert_eq!(bearer(&request), "token-1");
            count.fetch_add(1, Ordering::SeqCst);
            reply.send_response(status(StatusCode::OK));
        }
    });
}

#[tokio::test(start_paused = true)]
async fn each_request_is_authorized_whichever_endpoint_a_balancer_inside_chooses() {
    let ims = Ims::taking(SECOND);
    let (balanced, handles) = balanced::<3>();
    let client = AdobeAuthLayer::new(ims.source()).layer(balanced);
    let counts: Vec<Arc<AtomicUsize>> = handles.iter().map(|_| Arc::default()).collect();
    for (handle, count) in handles.into_iter().zip(&counts) {
        answer(handle, Arc::clone(count));
    }

    for response in join_all((0..300).map(|_| send(&client, get(FIREFLY)))).await {
        assert_eq!(response.unwrap().unwrap().status(), StatusCode::OK);
    }

    let counts: Vec<_> = counts.iter().map(|count| count.load(Ordering::SeqCst)).collect();
    assert_eq!(counts.iter().sum::<usize>(), 300);
    assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    assert_eq!(ims.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_endpoint_of_a_balancer_inside_that_is_not_ready_gets_no_request() {
    let (balanced, [mut busy, mut free]) = balanced::<2>();
    busy.allow(0);
    free.allow(11);
    let client = AdobeAuthLayer::new(Ims::new().source()).replay_unauthorized().layer(balanced);

    let refused = send(&client, get(FIREFLY));
    next(&mut free).await.1.send_response(status(StatusCode::UNAUTHORIZED));
    next(&mut free).await.1.send_response(status(StatusCode::OK));
    assert_eq!(refused.await.unwrap().unwrap().status(), StatusCode::OK);
    for _ in 0..9 {
        let response = send(&client, get(FIREFLY));
        next(&mut free).await.1.send_response(status(StatusCode::OK));
        assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::OK);
    }

    // Nobody is ready now: the next one waits, and goes to the first that is.
    let last = send(&client, get(FIREFLY));
    settle().await;
    assert!(is_idle(&mut busy) && is_idle(&mut free));
    busy.allow(1);
    let (request, reply) = next(&mut busy).await;
    assert_eq!(bearer(&request), "token-2");
    reply.send_response(status(StatusCode::OK));
    assert_eq!(last.await.unwrap().unwrap().status(), StatusCode::OK);
}

// The page.

#[test]
fn every_test_that_the_page_on_the_order_of_layers_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = fs::read_to_string(root.join("docs/order-of-layers.md")).unwrap();
    let mut tests = String::new();
    for file in fs::read_dir(root.join("tests")).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            tests += &fs::read_to_string(path).unwrap();
        }
    }

    // A sentence in snake case: no name of code has so many words.
    let names = page.split('`').filter(|text| text.matches('_').count() >= 4);
    let names: Vec<_> = names.filter(|text| !text.contains([' ', '\n'])).collect();

    assert!(names.len() >= 30, "the names were not found: {names:?}");
    for name in names {
        assert!(tests.contains(&format!("fn {name}()")), "there is no test {name}");
    }
}
