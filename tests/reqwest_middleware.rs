//! `AdobeAuthMiddleware` in clients built with reqwest-middleware: alone it does what the layer
//! does, and beside `reqwest-retry` and `reqwest-tracing` its place decides.

#![cfg(feature = "reqwest-middleware")]
#![allow(clippy::unwrap_used)]

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::join_all;
use http::Extensions;
use reqwest::{Body, Client, Request, Response, StatusCode};
use reqwest_middleware::{ClientBuilder, Error, Middleware, Next, Result};
use reqwest_retry::{
    Jitter, RetryError, RetryTransientMiddleware, Retryable, RetryableStrategy,
    default_on_request_failure, default_on_request_success, policies::ExponentialBackoff,
};
use reqwest_tracing::{SpanBackendWithUrl, TracingMiddleware};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::Semaphore,
    time::{sleep, timeout},
};
use tower_adobe_auth::{
    AcquireTimeout, AdobeAuthLayer, AdobeAuthMiddleware, Credentials, Environment, ErrorKind,
    InsecureUri, MinLifetime, NoAuthorization, ReplayUnauthorized, Replayed, TokenError,
    TokenResponse, TokenSource,
    mock::{Answer, MockIms},
};
use tracing_subscriber::fmt::{MakeWriter, format::FmtSpan};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const BOUND: Duration = Duration::from_secs(30);

fn source(ims: &MockIms) -> TokenSource {
    TokenSource::builder(Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET))
        .environment(Environment::custom(ims.url()).unwrap())
        .attempts(1)
        .backoff_cap(Duration::from_millis(10))
        .build()
        .unwrap()
}

fn passing(tokens: &TokenSource) -> AdobeAuthMiddleware {
    AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1").into()
}

fn replaying(tokens: &TokenSource) -> AdobeAuthMiddleware<ReplayUnauthorized> {
    AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1").replay_unauthorized().into()
}

fn builder() -> ClientBuilder {
    ClientBuilder::new(Client::builder().no_proxy().build().unwrap())
}

/// The innermost middleware: notes the token of each try.
#[derive(Clone, Default)]
struct Tries(Arc<Mutex<Vec<String>>>);

impl Tries {
    fn tokens(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

#[async_trait::async_trait]
impl Middleware for Tries {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response> {
        tracing::debug!(headers = ?request.headers(), "a try");
        let token = request.headers().get("authorization");
        let token = token.map_or("", |token| token.to_str().unwrap());
        self.0.lock().unwrap().push(token.trim_start_matches("Bearer ").to_owned());
        next.run(request, extensions).await
    }
}

async fn token(tokens: &TokenSource) -> String {
    tokens.token().await.unwrap().expose_secret().to_owned()
}

fn token_error(error: &Error) -> &TokenError {
    let Error::Middleware(error) = error else { panic!("{error}") };
    error.downcast_ref().unwrap()
}

// Alone: what the layer does.

#[tokio::test]
async fn a_request_can_name_another_source_and_its_401_is_that_sources() {
    let ims = MockIms::start().await;
    let (own, other) = (source(&ims), source(&ims));
    let (first, tries) = (token(&other).await, Tries::default());
    let client = builder().with(replaying(&own)).with(tries.clone()).build();
    ims.revoke_all();

    let request = client.get(ims.api_url()).with_extension(other.clone());
    let response = request.send().await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.extensions().get(), Some(&Replayed));
    assert_eq!(tries.tokens(), [first, token(&other).await]);
    assert!(!own.status().is_ready(), "nobody asked this one");
}

#[tokio::test]
async fn a_replay_keeps_to_its_source_whatever_is_done_to_the_extensions_inside() {
    /// Takes the source out on its way.
    struct Takes;

    #[async_trait::async_trait]
    impl Middleware for Takes {
        async fn handle(
            &self,
            request: Request,
            extensions: &mut Extensions,
            next: Next<'_>,
        ) -> Result<Response> {
            extensions.remove::<TokenSource>();
            next.run(request, extensions).await
        }
    }

    let ims = MockIms::start().await;
    let (own, other) = (source(&ims), source(&ims));
    let (first, tries) = (token(&other).await, Tries::default());
    let client = builder().with(replaying(&own)).with(Takes).with(tries.clone()).build();
    ims.revoke_all();
    token(&own).await;

    let request = client.get(ims.api_url()).with_extension(other.clone());
    assert_eq!(request.send().await.unwrap().status(), StatusCode::OK);

    assert_eq!(tries.tokens(), [first, token(&other).await]);
}

#[tokio::test]
async fn the_first_answer_is_let_go_before_the_request_is_sent_again() {
    let ims = MockIms::start().await;
    let tokens = source(&ims);
    let client = builder().with(replaying(&tokens)).build();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    // A server with one place. Its 401 does not end before the client goes.
    let server = tokio::spawn(async move {
        for answer in [
            "HTTP/1.1 401 Unauthorized\r\ntransfer-encoding: chunked\r\n\r\n3\r\n...\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        ] {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(connection.read_u8().await.unwrap());
            }
            connection.write_all(answer.as_bytes()).await.unwrap();
            if answer.contains("401") {
                while connection.read(&mut [0; 64]).await.is_ok_and(|length| length > 0) {}
            }
        }
    });

    let response = timeout(BOUND, client.get(url).send()).await.unwrap().unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    server.await.unwrap();
}

#[tokio::test]
async fn a_request_can_opt_out_bound_its_wait_and_ask_for_life() {
    let ims = MockIms::start().await;
    let tokens = source(&ims);
    let client = builder().with(passing(&tokens)).build();
    ims.respond_with(Answer::hang());

    let request = client.get(ims.api_url()).with_extension(NoAuthorization);
    assert_eq!(request.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    assert_eq!(ims.token_requests(), 0);

    let limit = AcquireTimeout(Duration::from_millis(50));
    let request = client.get(ims.api_url()).with_extension(limit);
    let error = timeout(BOUND, request.send()).await.unwrap().unwrap_err();
    assert_eq!(token_error(&error).kind(), ErrorKind::AcquireTimeout);

    let wish = MinLifetime(2 * DAY);
    let long = TokenSource::from_fetcher(|| async { Ok(TokenResponse::new("token", DAY)) });
    long.token().await.unwrap();
    let request = client.get(ims.api_url()).with_extension(wish).with_extension(long);
    let error = request.send().await.unwrap_err();
    assert_eq!(token_error(&error).kind(), ErrorKind::Lifetime);

    let error = client.get("http://x.adobe.io/").send().await.unwrap_err();
    let Error::Middleware(error) = error else { panic!("{error}") };
    assert!(error.is::<InsecureUri>());
    assert_eq!(ims.api_requests(), 1, "of all these only the first was sent");
}

#[tokio::test]
async fn the_wait_for_a_replay_is_bounded_by_the_requests_own_limit_and_ends_with_the_401() {
    let ims = MockIms::start().await;
    let tokens = source(&ims);
    token(&tokens).await;
    let client = builder().with(replaying(&tokens)).build();
    ims.respond_with(Answer::hang());
    ims.revoke_all();

    let limit = AcquireTimeout(Duration::from_millis(50));
    let request = client.get(ims.api_url()).with_extension(limit);
    let response = timeout(BOUND, request.send()).await.unwrap().unwrap();

    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert!(response.extensions().get::<Replayed>().is_none());
    assert_eq!(ims.api_requests(), 1);
}

/// The innermost middleware in place of a server: refuses each request after a pause.
struct Refuses;

#[async_trait::async_trait]
impl Middleware for Refuses {
    async fn handle(&self, _: Request, _: &mut Extensions, _: Next<'_>) -> Result<Response> {
        sleep(Duration::from_millis(10)).await;
        Ok(http::Response::builder().status(401).body("").unwrap().into())
    }
}

#[tokio::test(start_paused = true)]
async fn a_replay_shares_the_deadline_of_its_request() {
    let tokens = TokenSource::from_fetcher(|| async {
        sleep(Duration::from_millis(100)).await;
        Ok(TokenResponse::new("token", DAY))
    });
    let (tries, start) = (Tries::default(), tokio::time::Instant::now());
    let client = builder().with(replaying(&tokens)).with(tries.clone()).with(Refuses).build();

    // The first token takes 100 ms, and so would the second.
    let limit = AcquireTimeout(Duration::from_millis(150));
    let request = client.get("https://firefly-api.adobe.io/").with_extension(limit);
    let response = request.send().await.unwrap();

    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert!(response.extensions().get::<Replayed>().is_none());
    assert_eq!(tries.tokens().len(), 1);
    assert!(start.elapsed() < Duration::from_millis(160), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_request_that_is_dropped_while_it_waits_leaves_the_token_request_to_the_others() {
    let ims = MockIms::start().await;
    let tokens = source(&ims);
    let client = builder().with(replaying(&tokens)).build();
    ims.set_delay(Duration::from_millis(200));
    let drop_when_asked = async |token_requests| {
        let waiting = tokio::spawn(client.get(ims.api_url()).send());
        while ims.token_requests() < token_requests {
            sleep(Duration::from_millis(1)).await;
        }
        waiting.abort();
        assert!(waiting.await.unwrap_err().is_cancelled());
    };

    // First while it waits for its first token, then while it waits to be sent again.
    for token_requests in [1, 2] {
        timeout(BOUND, drop_when_asked(token_requests)).await.unwrap();
        let response = client.get(ims.api_url()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(ims.token_requests(), token_requests);
        ims.revoke_all();
    }
}

#[tokio::test]
async fn a_request_that_waits_for_a_token_holds_no_place_of_a_limit_inside() {
    /// Lets one request through at a time.
    struct Limit(Arc<Semaphore>);

    #[async_trait::async_trait]
    impl Middleware for Limit {
        async fn handle(
            &self,
            request: Request,
            extensions: &mut Extensions,
            next: Next<'_>,
        ) -> Result<Response> {
            let _place = self.0.acquire().await.unwrap();
            next.run(request, extensions).await
        }
    }

    let ims = MockIms::start().await;
    let places = Arc::new(Semaphore::new(1));
    let client = builder().with(replaying(&source(&ims))).with(Limit(places.clone())).build();
    ims.set_delay(Duration::from_millis(500));

    for token_requests in [1, 2] {
        let waiting = tokio::spawn(client.get(ims.api_url()).send());
        let asked = async {
            while ims.token_requests() < token_requests {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(BOUND, asked).await.unwrap();
        assert_eq!(places.available_permits(), 1);
        assert_eq!(waiting.await.unwrap().unwrap().status(), StatusCode::OK);
        ims.revoke_all();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_callers_whose_token_was_revoked_share_one_token_request() {
    let ims = MockIms::start().await;
    let tokens = source(&ims);
    token(&tokens).await;
    let client = builder().with(replaying(&tokens)).build();
    ims.set_delay(Duration::from_millis(50));
    ims.revoke_all();

    let calls = (0..20).map(|_| client.post(ims.api_url()).body("a prompt").send());
    let answers = join_all(calls.map(tokio::spawn)).await;

    for answer in answers {
        assert_eq!(answer.unwrap().unwrap().status(), StatusCode::OK);
    }
    assert_eq!(ims.token_requests(), 2, "the first token and its replacement");
}

/// A body that cannot be cloned, as a stream is.
fn stream() -> Body {
    let body = Body::wrap(http_body_util::Full::new(bytes::Bytes::from("a stream")));
    let mut request = Request::new(reqwest::Method::POST, "http://127.0.0.1/".parse().unwrap());
    *request.body_mut() = Some(body);
    assert!(request.try_clone().is_none());
    request.body_mut().take().unwrap()
}

#[tokio::test]
async fn a_body_that_cannot_be_cloned_is_sent_once_and_its_401_returned() {
    let ims = MockIms::start().await;
    let tokens = source(&ims);
    token(&tokens).await;
    let client = builder().with(replaying(&tokens)).build();
    ims.revoke_all();

    let refused = client.post(ims.api_url()).body(stream()).send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert!(refused.extensions().get::<Replayed>().is_none());
    assert_eq!(ims.api_requests(), 1);

    let next = client.post(ims.api_url()).body(stream()).send().await.unwrap();
    assert_eq!(next.status(), StatusCode::OK, "it has the new token");
}

// Beside a retry.

/// Repeats what the default strategy does, a 401 that was not replayed, and what is transient about
/// the token.
struct Strategy;

impl RetryableStrategy for Strategy {
    fn handle(&self, result: &Result<Response>) -> Option<Retryable> {
        match result {
            Ok(response) if response.status() == StatusCode::UNAUTHORIZED => {
                let replayed = response.extensions().get::<Replayed>().is_some();
                Some(if replayed { Retryable::Fatal } else { Retryable::Transient })
            }
            Ok(response) => default_on_request_success(response),
            Err(error @ Error::Middleware(inner)) => match inner.downcast_ref::<TokenError>() {
                Some(error) if error.is_transient() => Some(Retryable::Transient),
                _ => default_on_request_failure(error),
            },
            Err(error) => default_on_request_failure(error),
        }
    }
}

fn retry(times: u32) -> RetryTransientMiddleware<ExponentialBackoff, Strategy> {
    let policy = ExponentialBackoff::builder()
        .retry_bounds(Duration::from_millis(20), Duration::from_millis(50))
        .jitter(Jitter::None)
        .build_with_max_retries(times);
    RetryTransientMiddleware::new_with_policy_and_strategy(policy, Strategy)
}

/// Between two attempts the token is revoked, and the source gets another.
struct Revokes {
    ims: Arc<MockIms>,
    tokens: TokenSource,
}

#[async_trait::async_trait]
impl Middleware for Revokes {
    async fn handle(
        &self,
        request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response> {
        let response = next.run(request, extensions).await?;
        if response.status() == StatusCode::SERVICE_UNAVAILABLE {
            self.ims.revoke_all();
            self.tokens.refresh().await.unwrap();
        }
        Ok(response)
    }
}

#[tokio::test]
async fn with_the_retry_outside_each_attempt_has_the_current_token() {
    let ims = Arc::new(MockIms::start().await);
    let (tokens, tries) = (source(&ims), Tries::default());
    let first = token(&tokens).await;
    let client = builder()
        .with(retry(3))
        .with(passing(&tokens))
        .with(Revokes { ims: ims.clone(), tokens: tokens.clone() })
        .with(tries.clone())
        .build();
    ims.api_respond_next([503]);

    let response = client.get(ims.api_url()).send().await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(tries.tokens(), [first, token(&tokens).await]);
    assert_eq!(ims.api_unauthorized(), 0);
}

#[tokio::test]
async fn with_the_retry_outside_a_401_is_repeated_with_a_new_token() {
    let ims = MockIms::start().await;
    let (tokens, tries) = (source(&ims), Tries::default());
    let first = token(&tokens).await;
    let client = builder().with(retry(3)).with(passing(&tokens)).with(tries.clone()).build();
    ims.revoke_all();

    let response = client.get(ims.api_url()).send().await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(tries.tokens(), [first, token(&tokens).await]);
    assert_eq!(ims.token_requests(), 2);
}

#[tokio::test]
async fn with_the_retry_inside_a_401_is_repeated_with_the_same_token() {
    let ims = MockIms::start().await;
    let (tokens, tries) = (source(&ims), Tries::default());
    let first = token(&tokens).await;
    let client = builder().with(passing(&tokens)).with(retry(3)).with(tries.clone()).build();
    ims.revoke_all();

    let response = client.get(ims.api_url()).send().await.unwrap();

    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(tries.tokens(), vec![first; 4]);
}

#[tokio::test]
async fn a_retry_outside_repeats_no_401_that_was_replayed() {
    let ims = MockIms::start().await;
    let (tokens, tries) = (source(&ims), Tries::default());
    let client = builder().with(retry(3)).with(replaying(&tokens)).with(tries.clone()).build();
    ims.api_respond_with(401);

    let response = client.get(ims.api_url()).send().await.unwrap();

    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(response.extensions().get(), Some(&Replayed));
    assert_eq!(tries.tokens().len(), 2);
}

#[tokio::test]
async fn a_strategy_that_asks_the_token_error_outlives_a_short_outage_of_ims() {
    let ims = MockIms::start().await;
    let client = builder().with(retry(20)).with(passing(&source(&ims))).build();
    ims.respond_next([Answer::unavailable(), Answer::unavailable()]);

    let response = client.get(ims.api_url()).send().await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!((ims.token_requests(), ims.api_requests()), (3, 1));
}

#[tokio::test]
async fn the_default_strategy_takes_every_error_about_the_token_for_final() {
    let ims = MockIms::start().await;
    let policy = ExponentialBackoff::builder().build_with_max_retries(3);
    let client = builder()
        .with(RetryTransientMiddleware::new_with_policy(policy))
        .with(passing(&source(&ims)))
        .build();
    ims.respond_next([Answer::unavailable()]);

    let error = client.get(ims.api_url()).send().await.unwrap_err();

    // A retry wraps the error: the way to ours is one step longer.
    let Error::Middleware(error) = error else { panic!("{error}") };
    let Some(RetryError::Error(error)) = error.downcast_ref() else { panic!("{error}") };
    assert!(token_error(error).is_transient());
    assert_eq!(ims.api_requests(), 0);
}

#[tokio::test]
async fn a_retry_sends_no_body_that_cannot_be_cloned() {
    let ims = MockIms::start().await;
    let client = builder().with(retry(3)).with(replaying(&source(&ims))).build();

    let error = client.post(ims.api_url()).body(stream()).send().await.unwrap_err();

    assert!(error.to_string().contains("not cloneable"), "{error}");
    assert_eq!((ims.token_requests(), ims.api_requests()), (0, 0));
}

// Beside tracing.

/// Everything that is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn no_span_or_event_of_the_tracing_middleware_shows_a_token() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_span_events(FmtSpan::FULL)
        .with_ansi(false)
        .with_writer(log.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    let ims = MockIms::start().await;
    let (tokens, tries) = (source(&ims), Tries::default());
    // Where it belongs, and where it sees the headers.
    let client = builder()
        .with(TracingMiddleware::<SpanBackendWithUrl>::new())
        .with(retry(1))
        .with(replaying(&tokens))
        .with(TracingMiddleware::<SpanBackendWithUrl>::new())
        .with(tries.clone())
        .build();

    let get = || client.get(format!("{}/v3/images", ims.api_url())).send();
    assert_eq!(get().await.unwrap().status(), StatusCode::OK);
    ims.revoke_all();
    assert_eq!(get().await.unwrap().status(), StatusCode::OK);
    ims.api_respond_next([503]);
    assert_eq!(get().await.unwrap().status(), StatusCode::OK);
    ims.api_respond_with(401);
    assert_eq!(get().await.unwrap().status(), StatusCode::UNAUTHORIZED);
    let stranger = TokenSource::builder(Credentials::new(MockIms::CLIENT_ID, "not-the-secret"))
        .environment(Environment::custom(ims.url()).unwrap())
        .build()
        .unwrap();
    client.get(ims.api_url()).with_extension(stranger).send().await.unwrap_err();

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for shown in
        ["http.request.method=GET", "url.full=", "authorization\": Sensitive", "invalid_client"]
    {
        assert!(log.contains(shown), "{shown} was not captured");
    }
    assert!(log.contains("http.response.status_code=401"));
    for token in tries.tokens() {
        let parts: Vec<_> = token.split('.').collect();
        assert_eq!(parts.len(), 3, "it is a JWT");
        assert!(parts.iter().all(|part| !log.contains(part)), "{log}");
    }
    for secret in [MockIms::CLIENT_SECRET, "not-the-secret"] {
        assert!(!log.contains(secret), "{log}");
    }
    assert!(tries.tokens().len() >= 7);
}
