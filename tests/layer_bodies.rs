//! Bodies that cannot be cloned, as gRPC clients have them: the layer never looks inside, and asks
//! for `Clone` only where a request may be sent twice.

#![allow(clippy::unwrap_used)]

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    marker::PhantomData,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use tokio::{
    sync::{Semaphore, mpsc},
    time::sleep,
};
use tokio_test::{assert_pending, assert_ready, task};
use tower::{Layer, Service, ServiceExt};
use tower_adobe_auth::{
    AdobeAuth, AdobeAuthLayer, BoxError, NoReplay, ReplayUnauthorized, TokenResponse, TokenSource,
};
use tower_test::mock::{self, Handle, Mock};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const GRPC: &str = "https://grpc.adobe.io/firefly.v1.Images/Generate";

/// As tonic has it: boxed, neither `Clone` nor `Sync`.
type Body = UnsyncBoxBody<Bytes, BoxError>;
type Req = Request<Body>;
type Res = Response<Body>;
type Frames = mpsc::UnboundedSender<Frame<Bytes>>;

/// A body whose frames come one by one, and where they are put in.
fn streaming() -> (Frames, Body) {
    let (frames, mut receiver) = mpsc::unbounded_channel();
    let frames_out = stream::poll_fn(move |cx| receiver.poll_recv(cx)).map(Ok::<_, BoxError>);
    (frames, UnsyncBoxBody::new(StreamBody::new(frames_out)))
}

fn empty() -> Body {
    UnsyncBoxBody::new(Empty::new().map_err(|never: Infallible| match never {}))
}

fn call(body: Body) -> Req {
    Request::post(GRPC)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

fn source() -> TokenSource {
    TokenSource::from_fetcher(|| async {
        sleep(Duration::from_secs(1)).await;
        Ok(TokenResponse::new("token-1", DAY))
    })
}

fn mocked() -> (AdobeAuth<Mock<Req, Res>>, Handle<Req, Res>) {
    let (inner, handle) = mock::pair();
    (AdobeAuthLayer::new(source()).layer(inner), handle)
}

fn trailers(status: &'static str) -> HeaderMap {
    HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())])
}

/// Puts frames into `frames` one at a time: each comes out of `body` at once, and nothing before.
fn assert_passes_frame_by_frame(frames: Frames, mut body: Body) {
    for data in ["one", "two"] {
        let mut next = task::spawn(body.frame());
        assert_pending!(next.poll());
        frames.send(Frame::data(Bytes::from(data))).unwrap();
        assert!(next.is_woken());
        assert_eq!(assert_ready!(next.poll()).unwrap().unwrap().into_data().unwrap(), data);
    }
    frames.send(Frame::trailers(trailers("0"))).unwrap();
    drop(frames);
    let last = assert_ready!(task::spawn(body.frame()).poll()).unwrap().unwrap();
    assert_eq!(last.into_trailers().unwrap(), trailers("0"));
    assert!(assert_ready!(task::spawn(body.frame()).poll()).is_none());
}

#[tokio::test(start_paused = true)]
async fn a_streaming_body_passes_frame_by_frame_with_its_trailers_both_ways() {
    let (client, mut api) = mocked();
    let (request_frames, body) = streaming();

    // The first waits for its token, the second has it at once.
    let response = tokio::spawn(client.clone().oneshot(call(body)));
    let (request, reply) = api.next_request().await.unwrap();
    assert_eq!(request.headers()["authorization"], "Bearer token-1");
    assert_eq!(request.headers()["te"], "trailers");
    assert_eq!(request.headers()["content-type"], "application/grpc");
    assert_passes_frame_by_frame(request_frames, request.into_body());
    let (response_frames, body) = streaming();
    reply.send_response(Response::new(body));
    assert_passes_frame_by_frame(response_frames, response.await.unwrap().unwrap().into_body());

    let (request_frames, body) = streaming();
    let _response = tokio::spawn(client.oneshot(call(body)));
    let (request, _reply) = api.next_request().await.unwrap();
    assert_passes_frame_by_frame(request_frames, request.into_body());
}

#[tokio::test(start_paused = true)]
async fn a_body_is_not_touched_while_its_request_waits_for_a_token() {
    let polled = std::sync::Arc::new(Semaphore::new(0));
    let count = std::sync::Arc::clone(&polled);
    let frames = stream::poll_fn(move |_| {
        count.add_permits(1);
        std::task::Poll::Ready(None::<Result<Frame<Bytes>, BoxError>>)
    });
    let (client, mut api) = mocked();

    let _response = tokio::spawn(client.oneshot(call(UnsyncBoxBody::new(StreamBody::new(frames)))));
    let (request, _reply) = api.next_request().await.unwrap();

    assert_eq!(polled.available_permits(), 0);
    request.into_body().collect().await.unwrap();
    assert_eq!(polled.available_permits(), 1, "the probe works");
}

#[tokio::test(start_paused = true)]
async fn a_401_with_trailers_reaches_the_caller_whole() {
    let (client, mut api) = mocked();
    let response = tokio::spawn(client.oneshot(call(empty())));

    let (_, reply) = api.next_request().await.unwrap();
    let refusal = Full::new(Bytes::from("refused"))
        .map_err(|never: Infallible| match never {})
        .with_trailers(ready(Some(Ok(trailers("16")))));
    let mut refusal = Response::new(UnsyncBoxBody::new(refusal));
    *refusal.status_mut() = StatusCode::UNAUTHORIZED;
    reply.send_response(refusal);

    let response = response.await.unwrap().unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers(), Some(&trailers("16")));
    assert_eq!(body.to_bytes(), "refused");
}

/// Takes requests of any body, so that only the layer decides what it wraps.
#[derive(Clone)]
struct Any;

impl<B> Service<Request<B>> for Any {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = Ready<Result<Response<()>, Infallible>>;

    fn poll_ready(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Infallible>> {
        std::task::Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<B>) -> Self::Future {
        ready(Ok(Response::new(())))
    }
}

/// Whether `S` takes `Req`, found out without failing to compile where it does not: the function of
/// the type itself goes before that of the trait, where its bound holds.
struct Takes<S, Req>(PhantomData<(S, Req)>);

impl<S: Service<Req>, Req> Takes<S, Req> {
    fn it() -> bool {
        true
    }
}

trait Otherwise {
    fn it() -> bool {
        false
    }
}

impl<S, Req> Otherwise for Takes<S, Req> {}

#[test]
fn only_replay_asks_for_a_body_that_can_be_cloned() {
    type Plain = AdobeAuth<Any, NoReplay>;
    type Replaying = AdobeAuth<Any, ReplayUnauthorized>;

    assert!(Takes::<Plain, Request<Body>>::it());
    assert!(Takes::<Plain, Request<Full<Bytes>>>::it());
    assert!(Takes::<Replaying, Request<Full<Bytes>>>::it());
    assert!(!Takes::<Replaying, Request<Body>>::it());
}

#[test]
fn the_future_of_a_request_whose_body_is_not_sync_can_be_spawned() {
    fn is_send<T: Future + Send>(_: &T) {}
    let (inner, _handle) = mock::pair::<Req, Res>();
    let client = AdobeAuthLayer::new(source()).layer(inner);

    is_send(&client.oneshot(call(empty())));
}
