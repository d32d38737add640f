//! What is measured: an API that answers at once, and the layers around it.

// Each bench uses a part of these.
#![allow(dead_code)]

use std::{
    future::ready,
    hint::black_box,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, Uri, header::AUTHORIZATION};
use tokio::{runtime::Runtime, sync::Mutex};
use tower::{BoxError, Layer, Service, filter::AsyncFilterLayer};
use tower_adobe_auth::{AdobeAuth, AdobeAuthLayer, TokenResponse, TokenSource};
use tower_http::{
    auth::{AddAuthorization, AddAuthorizationLayer},
    set_header::{SetRequestHeader, SetRequestHeaderLayer},
};

pub(crate) const FIREFLY: &str = "https://firefly-api.adobe.io/v3/images/generate";
pub(crate) const STORAGE: &str = "https://bucket.s3-accelerate.amazonaws.com/out.png";
pub(crate) const CLIENT_ID: &str = "0123456789abcdef0123456789abcdef";
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

/// As long as the tokens of Adobe IMS are.
pub(crate) fn secret() -> String {
    "x".repeat(1_500)
}

/// Answers at once, but as a client does: the response does not exist when the call is made, and
/// neither the call nor the poll is inlined into the layer around it.
#[derive(Clone)]
pub(crate) struct Api;

pub(crate) struct Answer;

impl Service<Request<()>> for Api {
    type Response = Response<()>;
    type Error = BoxError;
    type Future = Answer;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    #[inline(never)]
    fn call(&mut self, request: Request<()>) -> Answer {
        black_box(&request);
        Answer
    }
}

impl Future for Answer {
    type Output = Result<Response<()>, BoxError>;

    #[inline(never)]
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Ok(Response::new(())))
    }
}

/// A service that can be measured.
pub(crate) trait Stack:
    Service<Request<()>, Response = Response<()>, Error = BoxError, Future: Send>
    + Clone
    + Send
    + 'static
{
}

impl<S> Stack for S where
    S: Service<Request<()>, Response = Response<()>, Error = BoxError, Future: Send>
        + Clone
        + Send
        + 'static
{
}

/// A source with a token in hand that is good for a day.
pub(crate) fn tokens(runtime: &Runtime) -> TokenSource {
    let tokens = TokenSource::from_fetcher(|| {
        ready(Ok(TokenResponse::new(secret(), DAY).with_client_id(CLIENT_ID)))
    });
    runtime.block_on(tokens.token()).unwrap();
    tokens
}

/// The runtime of a source whose token is good for the whole bench: nothing else is to run.
pub(crate) fn quiet_runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

pub(crate) fn ours(tokens: &TokenSource) -> AdobeAuth<Api> {
    AdobeAuthLayer::new(tokens.clone()).without_api_key().layer(Api)
}

pub(crate) fn ours_with_key(tokens: &TokenSource) -> AdobeAuth<Api> {
    AdobeAuthLayer::new(tokens.clone()).layer(Api)
}

/// One header that never changes: no expiry, no rule of hosts, no refresh.
pub(crate) fn constant() -> AddAuthorization<Api> {
    AddAuthorizationLayer::bearer(&secret()).layer(Api)
}

pub(crate) fn two_constants() -> AddAuthorization<SetRequestHeader<Api, HeaderValue>> {
    let key = HeaderValue::from_maybe_shared(Bytes::from(CLIENT_ID.to_owned())).unwrap();
    let key = SetRequestHeaderLayer::overriding(HeaderName::from_static("x-api-key"), key);
    AddAuthorizationLayer::bearer(&secret()).layer(key.layer(Api))
}

/// What is written by hand: a token behind a mutex, and a header formatted for each request.
pub(crate) fn by_hand() -> impl Stack {
    let cached = Arc::new(Mutex::new(Some((secret(), Instant::now() + DAY))));
    let filter = AsyncFilterLayer::new(move |mut request: Request<()>| {
        let cached = Arc::clone(&cached);
        async move {
            let cached = cached.lock().await;
            let (token, until) = cached.as_ref().unwrap();
            assert!(Instant::now() < *until);
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))?;
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
            Ok::<_, BoxError>(request)
        }
    });
    filter.layer(Api)
}

#[inline(never)]
pub(crate) fn request(uri: &Uri) -> Request<()> {
    let mut request = Request::new(());
    *request.uri_mut() = uri.clone();
    request
}

/// Polls until there is an answer: a lock that another thread holds for nanoseconds is worth no
/// sleep. Always inlined, so that what is counted does not hang on who else calls it.
#[inline(always)]
pub(crate) fn drive<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    let mut cx = Context::from_waker(Waker::noop());
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut cx) {
            return output;
        }
    }
}
