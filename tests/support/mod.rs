//! Helpers shared by the tests of the token source: an IMS and an API without sockets, and runtimes.

// Each test file uses some of them.
#![allow(dead_code, unreachable_pub)]

use std::{
    collections::VecDeque,
    future::{Future, pending},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{Request, Response};
use http_body_util::Full;
use tokio::{
    runtime::{Builder, Runtime},
    time::{Instant, sleep},
};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_adobe_auth::{
    AcquireTimeout, AdobeAuth, AdobeAuthLayer, BoxError, Credentials, ImsClientBuilder, TokenError,
    TokenSource, TokenSourceBuilder,
};

pub const DAY: Duration = Duration::from_secs(24 * 60 * 60);
pub const HOUR: Duration = Duration::from_secs(60 * 60);
pub const MINUTE: Duration = Duration::from_secs(60);

/// How long a request may wait for the replacement of a suspect token, with a little slack.
pub const SUSPECT_GRACE: Duration = Duration::from_millis(2_100);

pub const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub const fn millis(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

pub fn current_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

pub fn multi_thread(worker_threads: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(worker_threads).enable_all().build().unwrap()
}

/// A wall clock that moves with the paused one. Two token requests would otherwise fall into one
/// millisecond of the real clock, and could not be ordered.
pub fn wall_clock() -> impl Fn() -> SystemTime + Send + Sync + 'static {
    thread_local! {
        static START: (Instant, SystemTime) = (Instant::now(), SystemTime::now());
    }
    let (monotonic, wall) = START.with(|start| *start);
    move || wall + monotonic.elapsed()
}

/// The response of an [`Ims`] to one token request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    Token,
    /// 503 without `Retry-After`.
    Unavailable,
    /// 429 with `Retry-After` in seconds.
    Throttled(u64),
    /// 400 `invalid_client`.
    Rejected,
    /// 200 with an HTML page, as a captive portal sends.
    Html,
    /// The connection breaks.
    Disconnect,
    /// No response at all.
    Hang,
    /// The code that sends the request panics.
    Panic,
}

impl Reply {
    /// All failures of IMS that an API's 401 can meet.
    pub const FAILURES: [Self; 6] = [
        Self::Unavailable,
        Self::Throttled(30),
        Self::Rejected,
        Self::Html,
        Self::Disconnect,
        Self::Hang,
    ];
}

/// An IMS without sockets, so that a paused clock reaches it. Its tokens are `token-1`, `token-2`, …
/// after the number of their request.
#[derive(Clone)]
pub struct Ims(Arc<Inner>);

struct Inner {
    lifetime: Duration,
    asked_at: Mutex<Vec<Instant>>,
    behavior: Mutex<Behavior>,
}

struct Behavior {
    delay: Duration,
    reply: Reply,
    next: VecDeque<Reply>,
}

impl Ims {
    /// A healthy IMS that responds immediately; `lifetime` is in whole seconds.
    pub fn new(lifetime: Duration) -> Self {
        let behavior =
            Behavior { delay: Duration::ZERO, reply: Reply::Token, next: VecDeque::new() };
        Self(Arc::new(Inner {
            lifetime,
            asked_at: Mutex::default(),
            behavior: Mutex::new(behavior),
        }))
    }

    /// Each response takes `delay` from now on.
    pub fn taking(self, delay: Duration) -> Self {
        self.set_delay(delay);
        self
    }

    pub fn set_delay(&self, delay: Duration) {
        self.0.behavior.lock().unwrap().delay = delay;
    }

    /// Responds with `reply` from now on.
    pub fn respond_with(&self, reply: Reply) {
        let mut behavior = self.0.behavior.lock().unwrap();
        behavior.reply = reply;
        behavior.next.clear();
    }

    /// Responds with these first.
    pub fn respond_next(&self, replies: impl IntoIterator<Item = Reply>) {
        self.0.behavior.lock().unwrap().next.extend(replies);
    }

    /// The number of token requests.
    pub fn asked(&self) -> usize {
        self.0.asked_at.lock().unwrap().len()
    }

    /// The times of the token requests, on Tokio's clock.
    pub fn asked_at(&self) -> Vec<Instant> {
        self.0.asked_at.lock().unwrap().clone()
    }

    pub fn source(&self) -> TokenSource {
        self.builder().build().unwrap()
    }

    pub fn builder(&self) -> TokenSourceBuilder<ImsClientBuilder> {
        let transport = self.transport();
        TokenSource::builder(Credentials::new("client-id", "client-secret"))
            .map_ims(|ims| ims.transport(transport))
    }

    pub fn transport(
        &self,
    ) -> impl Service<
        Request<Full<Bytes>>,
        Response = Response<Full<Bytes>>,
        Error = BoxError,
        Future: Send,
    > + Clone
    + Send
    + Sync
    + use<> {
        let ims = self.clone();
        service_fn(move |_: Request<Full<Bytes>>| {
            let ims = ims.clone();
            async move { ims.respond().await }
        })
    }

    async fn respond(self) -> Result<Response<Full<Bytes>>, BoxError> {
        let number = {
            let mut asked_at = self.0.asked_at.lock().unwrap();
            asked_at.push(Instant::now());
            asked_at.len()
        };
        let (reply, delay) = {
            let mut behavior = self.0.behavior.lock().unwrap();
            (behavior.next.pop_front().unwrap_or(behavior.reply), behavior.delay)
        };
        if !delay.is_zero() {
            sleep(delay).await;
        }
        let lifetime = self.0.lifetime.as_secs();
        let (status, body) = match reply {
            Reply::Token => {
                (200, format!(r#"{{"access_token":"token-{number}","expires_in":{lifetime}}}"#))
            }
            Reply::Unavailable => (503, "Service Unavailable".to_owned()),
            Reply::Throttled(_) => (429, "Too Many Requests".to_owned()),
            Reply::Rejected => (400, r#"{"error":"invalid_client"}"#.to_owned()),
            Reply::Html => (200, "<html>Welcome to our network</html>".to_owned()),
            Reply::Disconnect => return Err("connection reset by peer".into()),
            Reply::Hang => return pending().await,
            Reply::Panic => panic!("the transport is broken"),
        };
        let mut response = Response::builder().status(status);
        if let Reply::Throttled(seconds) = reply {
            response = response.header("retry-after", seconds);
        }
        Ok(response.body(Full::from(body))?)
    }
}

/// The bearer token of a request.
pub fn bearer(request: &Request<()>) -> &str {
    request.headers()["authorization"].to_str().unwrap().strip_prefix("Bearer ").unwrap()
}

/// An API, or a layer around one.
pub trait Api:
    Service<Request<()>, Response = Response<()>, Error = BoxError, Future: Send> + Clone + Send
{
}

impl<S> Api for S where
    S: Service<Request<()>, Response = Response<()>, Error = BoxError, Future: Send> + Clone + Send
{
}

/// An API that answers immediately with the status that `judge` finds for each request.
pub fn api(judge: impl Fn(&Request<()>) -> u16 + Send + Sync + 'static) -> impl Api {
    slow_api(Duration::ZERO, judge)
}

/// The same, with answers that take `delay`.
pub fn slow_api(
    delay: Duration,
    judge: impl Fn(&Request<()>) -> u16 + Send + Sync + 'static,
) -> impl Api {
    let judge = Arc::new(judge);
    service_fn(move |request: Request<()>| {
        let status = judge(&request);
        async move {
            if !delay.is_zero() {
                sleep(delay).await;
            }
            Ok(Response::builder().status(status).body(())?)
        }
    })
}

/// An API that refuses `refusals` requests with 401 and accepts all that follow.
pub fn api_refusing_first(refusals: usize) -> impl Api {
    let left = AtomicUsize::new(refusals);
    api(move |_| {
        let take = |left: usize| left.checked_sub(1);
        let refuses = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok();
        if refuses { 401 } else { 200 }
    })
}

pub const FIREFLY: &str = "https://firefly-api.adobe.io/";
pub const PHOTOSHOP: &str = "https://image.adobe.io/";

/// The status of the response to one request, and how long it took.
pub struct Outcome {
    pub status: Result<u16, BoxError>,
    pub took: Duration,
}

impl Outcome {
    /// The status of the response.
    #[track_caller]
    pub fn ok(&self) -> u16 {
        *self.status.as_ref().expect("the request should get a token")
    }

    /// The token error that the layer failed with.
    #[track_caller]
    pub fn token_error(&self) -> &TokenError {
        self.status.as_ref().unwrap_err().downcast_ref().unwrap()
    }
}

async fn send<C: Api>(client: C, request: Request<()>) -> Outcome {
    let start = Instant::now();
    let response = client.oneshot(request).await;
    Outcome { status: response.map(|response| response.status().as_u16()), took: start.elapsed() }
}

/// Sends a GET request for `url` through the layer.
pub async fn get<C: Api>(client: &C, url: &str) -> Outcome {
    send(client.clone(), Request::get(url).body(()).unwrap()).await
}

/// The same, waiting for a token no longer than `limit`.
pub async fn get_within<C: Api>(client: &C, url: &str, limit: Duration) -> Outcome {
    let request = Request::get(url).extension(AcquireTimeout(limit)).body(()).unwrap();
    send(client.clone(), request).await
}

/// The same, many times concurrently.
pub async fn get_many<C: Api>(client: &C, url: &str, requests: usize) -> Vec<Outcome> {
    futures_util::future::join_all((0..requests).map(|_| get(client, url))).await
}

/// How many requests failed without a response.
pub fn failed(outcomes: &[Outcome]) -> usize {
    outcomes.iter().filter(|outcome| outcome.status.is_err()).count()
}

/// The longest time that a request took.
pub fn longest(outcomes: &[Outcome]) -> Duration {
    outcomes.iter().map(|outcome| outcome.took).max().unwrap_or_default()
}

/// A client of a source whose cached token an API has refused once, so that it is suspect.
pub async fn suspect(tokens: &TokenSource) -> AdobeAuth<impl Api + use<>> {
    tokens.token().await.unwrap();
    let client = AdobeAuthLayer::new(tokens.clone()).layer(api_refusing_first(1));
    assert_eq!(get(&client, FIREFLY).await.ok(), 401);
    client
}

/// Waits for `calls`, and returns with its output the highest number of consecutive failures of IMS
/// that the source reported until then.
pub async fn watched<T>(tokens: &TokenSource, calls: impl Future<Output = T>) -> (T, u32) {
    let mut changes = tokens.subscribe();
    let mut failures = tokens.status().consecutive_failures();
    let mut calls = pin!(calls);
    loop {
        tokio::select! {
            biased;
            Some(status) = changes.changed() => {
                failures = failures.max(status.consecutive_failures());
            }
            output = &mut calls => return (output, failures),
        }
    }
}

/// Polls `tokens.token()` once and drops it, so that a refresh is in progress on the runtime whose
/// context this is called in.
pub fn start_refresh(tokens: &TokenSource) {
    assert!(tokens.token().now_or_never().is_none(), "a refresh should be in progress");
}

/// Waits until `condition` holds; panics after 20 seconds.
pub async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            sleep(millis(2)).await;
        }
    };
    tokio::time::timeout(secs(20), wait).await.expect("it should have happened long ago");
}

/// Runs `check` on a thread of its own, and fails if it takes longer than `limit`.
#[track_caller]
pub fn within<T: Send + 'static>(limit: Duration, check: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, result) = std::sync::mpsc::channel();
    let checking = thread::spawn(move || {
        let _ = done.send(check());
    });
    match result.recv_timeout(limit) {
        Ok(value) => value,
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("not over within {limit:?}"),
        Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
            std::panic::resume_unwind(checking.join().unwrap_err())
        }
    }
}
