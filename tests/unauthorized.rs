//! The effects of a 401, on the request that got it and on the token. Against a mock of the inner
//! service, on a paused clock.

#![allow(clippy::unwrap_used)]

use std::{
    future::Ready,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::TryFutureExt;
use http::{Request, Response, StatusCode, header::WWW_AUTHENTICATE};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, ServiceExt};
use tower_adobe_auth::{
    AcquireTimeout, AdobeAuth, AdobeAuthLayer, BoxError, ReplayUnauthorized, Replayed, TokenError,
    TokenResponse, TokenSource,
};
use tower_test::mock::{self, Handle, Mock, SendResponse};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const FIREFLY: &str = "https://firefly-api.adobe.io/v3/images/generate";

type Req = Request<&'static str>;
type Res = Response<&'static str>;

#[derive(Clone, Default)]
struct Ims {
    asked: Arc<AtomicUsize>,
    down: Arc<AtomicBool>,
}

impl Ims {
    fn source(&self) -> TokenSource {
        let ims = self.clone();
        TokenSource::from_fetcher(move || {
            let ims = ims.clone();
            async move {
                let number = ims.asked.fetch_add(1, Ordering::SeqCst) + 1;
                sleep(Duration::from_millis(100)).await;
                if ims.down.load(Ordering::SeqCst) {
                    return Err(TokenError::transient("down"));
                }
                Ok(TokenResponse::new(format!("token-{number}"), DAY))
            }
        })
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn request() -> Req {
    Request::post(FIREFLY).body("a prompt").unwrap()
}

fn status(status: StatusCode) -> Res {
    let mut response = Response::new("");
    *response.status_mut() = status;
    response
}

fn bearer(request: &Req) -> &str {
    request.headers()["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap()
}

fn send<R>(client: &AdobeAuth<Mock<Req, Res>, R>) -> JoinHandle<Result<Res, BoxError>>
where
    AdobeAuth<Mock<Req, Res>, R>: Service<Req, Response = Res, Error = BoxError> + Clone + Send,
    <AdobeAuth<Mock<Req, Res>, R> as Service<Req>>::Future: Send,
    R: 'static,
{
    tokio::spawn(client.clone().oneshot(request()))
}

async fn next(handle: &mut Handle<Req, Res>) -> (Req, SendResponse<Res>) {
    handle.next_request().await.unwrap()
}

fn replaying(
    tokens: &TokenSource,
) -> (AdobeAuth<Mock<Req, Res>, ReplayUnauthorized>, Handle<Req, Res>) {
    let (inner, handle) = mock::pair();
    (AdobeAuthLayer::new(tokens.clone()).replay_unauthorized().layer(inner), handle)
}

fn passing(tokens: &TokenSource) -> (AdobeAuth<Mock<Req, Res>>, Handle<Req, Res>) {
    let (inner, handle) = mock::pair();
    (AdobeAuthLayer::new(tokens.clone()).layer(inner), handle)
}

#[tokio::test(start_paused = true)]
async fn replays_a_401_once_with_a_new_token() {
    let ims = Ims::default();
    let (client, mut handle) = replaying(&ims.source());

    let response = send(&client);
    let (first, reply) = next(&mut handle).await;
    assert_eq!(bearer(&first), "token-1");
    reply.send_response(status(StatusCode::UNAUTHORIZED));
    let (second, reply) = next(&mut handle).await;
    assert_eq!((bearer(&second), *second.body()), ("token-2", "a prompt"));
    assert_eq!(second.headers().get_all("authorization").iter().count(), 1);
    reply.send_response(status(StatusCode::OK));

    let response = response.await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.extensions().get(), Some(&Replayed));
    assert_eq!(ims.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_second_401_goes_to_the_caller_as_it_is() {
    let ims = Ims::default();
    let (client, mut handle) = replaying(&ims.source());

    let response = send(&client);
    for _ in 0..2 {
        next(&mut handle).await.1.send_response(status(StatusCode::UNAUTHORIZED));
    }

    let response = response.await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(response.extensions().get(), Some(&Replayed));
    assert_pending!(task::spawn(handle.next_request()).poll());
}

#[tokio::test(start_paused = true)]
async fn without_replay_the_caller_gets_the_401_and_the_next_request_a_new_token() {
    let ims = Ims::default();
    let (client, mut handle) = passing(&ims.source());

    let refused = send(&client);
    next(&mut handle).await.1.send_response(status(StatusCode::UNAUTHORIZED));
    let refused = refused.await.unwrap().unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert!(refused.extensions().get::<Replayed>().is_none());

    let _response = send(&client);
    assert_eq!(bearer(&next(&mut handle).await.0), "token-2");
    assert_eq!(ims.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_401s_make_one_token_request_and_late_ones_none() {
    let ims = Ims::default();
    let tokens = ims.source();
    tokens.token().await.unwrap();
    let (client, mut handle) = replaying(&tokens);
    let responses: Vec<_> = (0..1_000).map(|_| send(&client)).collect();
    let mut replies = Vec::new();
    for _ in 0..1_000 {
        let (request, reply) = next(&mut handle).await;
        assert_eq!(bearer(&request), "token-1");
        replies.push(reply);
    }

    let late = replies.split_off(990);
    for reply in replies {
        reply.send_response(status(StatusCode::UNAUTHORIZED));
    }
    for _ in 0..990 {
        let (request, reply) = next(&mut handle).await;
        assert_eq!(bearer(&request), "token-2");
        reply.send_response(status(StatusCode::OK));
    }
    for reply in late {
        reply.send_response(status(StatusCode::UNAUTHORIZED));
        let (request, reply) = next(&mut handle).await;
        assert_eq!(bearer(&request), "token-2");
        reply.send_response(status(StatusCode::OK));
    }

    for response in responses {
        assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::OK);
    }
    assert_eq!(ims.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_suspect_token_serves_on_if_its_replacement_cannot_be_had() {
    let ims = Ims::default();
    let tokens = ims.source();
    tokens.token().await.unwrap();
    let (client, mut handle) = replaying(&tokens);
    ims.down.store(true, Ordering::SeqCst);

    let refused = send(&client);
    next(&mut handle).await.1.send_response(status(StatusCode::UNAUTHORIZED));
    let refused = refused.await.unwrap().unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert!(refused.extensions().get::<Replayed>().is_none(), "it was not sent twice");

    for _ in 0..100 {
        let response = send(&client);
        let (request, reply) = next(&mut handle).await;
        assert_eq!(bearer(&request), "token-1");
        reply.send_response(status(StatusCode::OK));
        assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::OK);
    }

    ims.down.store(false, Ordering::SeqCst);
    sleep(Duration::from_secs(120)).await;
    let _response = send(&client);
    assert_ne!(bearer(&next(&mut handle).await.0), "token-1");
}

#[tokio::test(start_paused = true)]
async fn an_api_that_always_answers_401_does_not_cost_a_token_each_time() {
    let ims = Ims::default();
    let (client, mut handle) = replaying(&ims.source());
    let api = tokio::spawn(async move {
        let mut requests = 0;
        while let Some((_, reply)) = handle.next_request().await {
            requests += 1;
            reply.send_response(status(StatusCode::UNAUTHORIZED));
        }
        requests
    });

    for _ in 0..1_000 {
        let response = send(&client).await.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        sleep(Duration::from_millis(10)).await;
    }

    assert!(ims.asked() <= 3, "{}", ims.asked());
    drop(client);
    assert!(api.await.unwrap() <= 1_002);
}

#[tokio::test(start_paused = true)]
async fn no_other_status_costs_a_token_or_is_replayed() {
    let ims = Ims::default();
    let (client, mut handle) = replaying(&ims.source());
    for code in [400, 403, 407, 429, 500, 503] {
        let response = send(&client);
        let (request, reply) = next(&mut handle).await;
        assert_eq!(bearer(&request), "token-1");
        reply.send_response(status(StatusCode::from_u16(code).unwrap()));
        assert_eq!(response.await.unwrap().unwrap().status(), code);
    }

    assert_eq!(ims.asked(), 1);
    assert_pending!(task::spawn(handle.next_request()).poll());
}

#[tokio::test(start_paused = true)]
async fn a_challenge_that_names_the_scope_says_nothing_about_the_token() {
    let ims = Ims::default();
    let (client, mut handle) = replaying(&ims.source());
    let response = send(&client);
    let mut refusal = status(StatusCode::UNAUTHORIZED);
    let challenge = r#"Bearer realm="x", error="insufficient_scope", scope="firefly_api""#;
    refusal.headers_mut().insert(WWW_AUTHENTICATE, challenge.parse().unwrap());

    next(&mut handle).await.1.send_response(refusal);

    assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::UNAUTHORIZED);
    assert_eq!(ims.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_401_of_a_host_that_is_not_allowed_says_nothing_about_our_token() {
    let ims = Ims::default();
    let tokens = ims.source();
    tokens.token().await.unwrap();
    let (client, mut handle) = replaying(&tokens);

    let request = Request::get("https://storage.example/").body("").unwrap();
    let response = tokio::spawn(client.oneshot(request));
    next(&mut handle).await.1.send_response(status(StatusCode::UNAUTHORIZED));

    assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::UNAUTHORIZED);
    assert_eq!(ims.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn waits_for_readiness_before_the_replay() {
    let ims = Ims::default();
    let tokens = ims.source();
    tokens.token().await.unwrap();
    let (mut client, mut handle) = replaying(&tokens);
    handle.allow(1);

    let response = tokio::spawn(client.ready().await.unwrap().call(request()));
    let (_, reply) = next(&mut handle).await;
    reply.send_response(status(StatusCode::UNAUTHORIZED));
    sleep(Duration::from_secs(1)).await;
    assert_eq!(ims.asked(), 2);
    assert_pending!(task::spawn(handle.next_request()).poll());

    handle.allow(1);
    let (second, reply) = next(&mut handle).await;
    assert_eq!(bearer(&second), "token-2");
    reply.send_response(status(StatusCode::OK));
    assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waited_for_its_token_is_replayed_too() {
    let ims = Ims::default();
    let (client, mut handle) = replaying(&ims.source());

    // No token yet: this one waits first.
    let response = send(&client);
    next(&mut handle).await.1.send_response(status(StatusCode::UNAUTHORIZED));
    next(&mut handle).await.1.send_response(status(StatusCode::OK));

    assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn dropping_a_request_that_waits_for_its_replay_is_safe() {
    let ims = Ims::default();
    let tokens = ims.source();
    tokens.token().await.unwrap();
    let (client, mut handle) = replaying(&tokens);
    let response = send(&client);
    next(&mut handle).await.1.send_response(status(StatusCode::UNAUTHORIZED));
    sleep(Duration::from_millis(50)).await;

    response.abort();
    sleep(Duration::from_secs(1)).await;

    assert_eq!(tokens.try_token().unwrap().generation(), 2);
    assert_eq!(ims.asked(), 2);
    assert!(assert_ready!(task::spawn(async { tokens.token().await }).poll()).is_ok());
}

/// An API with a limited number of places. A response keeps its place until its body is dropped, as
/// with a limited number of connections. The API refuses `token-1`.
struct Places {
    free: Arc<Semaphore>,
    waiting: Option<Pin<Box<dyn Future<Output = OwnedSemaphorePermit> + Send>>>,
    ready: Option<OwnedSemaphorePermit>,
}

impl Places {
    fn new(count: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(count)), waiting: None, ready: None }
    }
}

impl Clone for Places {
    fn clone(&self) -> Self {
        Self { free: Arc::clone(&self.free), waiting: None, ready: None }
    }
}

impl Service<Req> for Places {
    type Response = Response<OwnedSemaphorePermit>;
    type Error = BoxError;
    type Future = Ready<Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        if self.ready.is_none() {
            let free = Arc::clone(&self.free);
            let wait = async move { free.acquire_owned().await.unwrap() };
            let waiting = self.waiting.get_or_insert_with(|| Box::pin(wait));
            self.ready = Some(ready!(waiting.as_mut().poll(cx)));
            self.waiting = None;
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let mut response = Response::new(self.ready.take().expect("called without being ready"));
        if bearer(&request) == "token-1" {
            *response.status_mut() = StatusCode::UNAUTHORIZED;
        }
        std::future::ready(Ok(response))
    }
}

/// Sends a request. Returns the status, and whether the request was replayed; drops the body.
fn status_of(
    client: AdobeAuth<Places, ReplayUnauthorized>,
) -> impl Future<Output = Result<(StatusCode, bool), BoxError>> + Send {
    let replayed = |response: &Response<_>| response.extensions().get::<Replayed>().is_some();
    client.oneshot(request()).map_ok(move |response| (response.status(), replayed(&response)))
}

#[tokio::test(start_paused = true)]
async fn a_replay_gets_the_place_that_its_refusal_occupied() {
    let tokens = Ims::default().source();
    tokens.token().await.unwrap();
    let client = AdobeAuthLayer::new(tokens).replay_unauthorized().layer(Places::new(1));

    let response = timeout(DAY, client.oneshot(request())).await.expect("no deadlock").unwrap();

    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn concurrent_refusals_are_replayed_with_few_places() {
    for (places, requests) in [(1, 2), (3, 3), (3, 50), (7, 5)] {
        let ims = Ims::default();
        let tokens = ims.source();
        tokens.token().await.unwrap();
        let api = Places::new(places);
        let client = AdobeAuthLayer::new(tokens).replay_unauthorized().layer(api.clone());

        let responses: Vec<_> =
            (0..requests).map(|_| tokio::spawn(status_of(client.clone()))).collect();
        for response in responses {
            let response = timeout(DAY, response).await.expect("no deadlock").unwrap().unwrap();
            assert_eq!(response.0, StatusCode::OK, "{places} places, {requests} requests");
        }

        assert_eq!(ims.asked(), 2);
        assert_eq!(api.free.available_permits(), places);
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_that_cannot_be_replayed_give_their_places_back() {
    let ims = Ims::default();
    let tokens = ims.source();
    tokens.token().await.unwrap();
    ims.down.store(true, Ordering::SeqCst);
    let api = Places::new(2);
    let client = AdobeAuthLayer::new(tokens).replay_unauthorized().layer(api.clone());

    let responses: Vec<_> = (0..6).map(|_| tokio::spawn(status_of(client.clone()))).collect();
    for response in responses {
        let response = timeout(DAY, response).await.expect("no deadlock").unwrap().unwrap();
        assert_eq!(response, (StatusCode::UNAUTHORIZED, false));
    }

    assert_eq!(api.free.available_permits(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_readiness_error_before_the_replay_is_the_callers() {
    let ims = Ims::default();
    let tokens = ims.source();
    tokens.token().await.unwrap();
    let (mut client, mut handle) = replaying(&tokens);
    handle.allow(1);

    let response = tokio::spawn(client.ready().await.unwrap().call(request()));
    next(&mut handle).await.1.send_response(status(StatusCode::UNAUTHORIZED));
    sleep(Duration::from_secs(1)).await;
    handle.send_error("the service broke");

    assert_eq!(response.await.unwrap().unwrap_err().to_string(), "the service broke");
}

fn request_within(limit: Duration) -> Req {
    let mut request = request();
    request.extensions_mut().insert(AcquireTimeout(limit));
    request
}

#[tokio::test(start_paused = true)]
async fn a_replay_shares_the_deadline_of_its_request() {
    let ims = Ims::default();
    let tokens = ims.source();
    let (client, mut handle) = replaying(&tokens);
    let start = Instant::now();

    // The first token takes 100 ms, and so would the second.
    let response = tokio::spawn(client.oneshot(request_within(Duration::from_millis(150))));
    next(&mut handle).await.1.send_response(status(StatusCode::UNAUTHORIZED));
    let response = response.await.unwrap().unwrap();

    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert!(response.extensions().get::<Replayed>().is_none());
    assert!(start.elapsed() < Duration::from_millis(160), "{:?}", start.elapsed());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(tokens.try_token().unwrap().generation(), 2, "the refresh went on");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_after_the_deadline_is_returned_immediately() {
    let ims = Ims::default();
    let tokens = ims.source();
    tokens.token().await.unwrap();
    let (client, mut handle) = replaying(&tokens);

    let response = tokio::spawn(client.oneshot(request_within(Duration::from_secs(1))));
    let (_, reply) = next(&mut handle).await;
    sleep(Duration::from_secs(5)).await;
    let start = Instant::now();
    reply.send_response(status(StatusCode::UNAUTHORIZED));

    assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::UNAUTHORIZED);
    assert!(start.elapsed() < Duration::from_millis(10), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_cached_token_is_used_for_a_replay_after_the_deadline() {
    let tokens = Ims::default().source();
    tokens.token().await.unwrap();
    let (client, mut handle) = replaying(&tokens);

    let response = tokio::spawn(client.oneshot(request_within(Duration::from_secs(1))));
    let (_, reply) = next(&mut handle).await;
    sleep(Duration::from_secs(5)).await;
    tokens.refresh().await.unwrap();
    reply.send_response(status(StatusCode::UNAUTHORIZED));
    let (second, reply) = next(&mut handle).await;
    assert_eq!(bearer(&second), "token-2");
    reply.send_response(status(StatusCode::OK));

    assert_eq!(response.await.unwrap().unwrap().status(), StatusCode::OK);
}
