//! What a 401 does: to the request that got it, and to the token. Against a mock of the inner
//! service, on a paused clock.

#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response, StatusCode, header::WWW_AUTHENTICATE};
use tokio::{task::JoinHandle, time::sleep};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, ServiceExt};
use tower_adobe_auth::{
    AdobeAuth, AdobeAuthLayer, BoxError, ReplayUnauthorized, Replayed, TokenError, TokenResponse,
    TokenSource,
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
