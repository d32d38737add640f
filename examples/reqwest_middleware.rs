//! A client built with reqwest-middleware, with tracing, retry and authorization in their order:
//! what was added first is outermost.
//!
//! The API answers 503 once and 401 once. What is logged is printed, and each span that ends.
//!
//! ```sh
//! cargo run --example reqwest_middleware --features reqwest-middleware
//! ```

use std::time::Duration;

use reqwest::{Client, Response};
use reqwest_middleware::{ClientBuilder, Error};
use reqwest_retry::{
    DefaultRetryableStrategy, RetryTransientMiddleware, Retryable, RetryableStrategy,
    policies::ExponentialBackoff,
};
use reqwest_tracing::TracingMiddleware;
use tower_adobe_auth::{
    AdobeAuthLayer, AdobeAuthMiddleware, BoxError, Credentials, Environment, TokenError,
    TokenSource, mock::MockIms,
};
use tracing_subscriber::fmt::format::FmtSpan;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_span_events(FmtSpan::CLOSE)
        .with_ansi(false)
        .without_time()
        .init();
    let ims = MockIms::start().await;

    let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
        .environment(Environment::custom(ims.url())?)
        .build()?;
    let layer = AdobeAuthLayer::new(tokens).allow_host("127.0.0.1").replay_unauthorized();
    let http = Client::builder()
        .redirect(layer.allowed_hosts().redirect_policy())
        // One try of the API: the wait for a token is not in it.
        .timeout(Duration::from_secs(5))
        .no_proxy()
        .build()?;
    let backoff = ExponentialBackoff::builder()
        .retry_bounds(Duration::from_millis(10), Duration::from_millis(100))
        .build_with_max_retries(3);
    let client = ClientBuilder::new(http)
        // One span for what the caller sees as one request.
        .with(TracingMiddleware::default())
        // Outside the authorization: each attempt gets the token of its time.
        .with(RetryTransientMiddleware::new_with_policy_and_strategy(backoff, Transient))
        .with(AdobeAuthMiddleware::from(layer))
        .build();

    ims.api_respond_next([503, 401]);
    let request = client.get(format!("{}/v3/images", ims.api_url())).send();
    // All of it: the wait for a token, all attempts, the pauses between them.
    let response = tokio::time::timeout(Duration::from_secs(30), request).await??;

    println!("the caller gets: {}", response.status());
    println!("{}", response.text().await?);
    println!("API requests: {}, token requests: {}", ims.api_requests(), ims.token_requests());
    Ok(())
}

/// The default strategy takes every error of a middleware for final. One about the token knows
/// better.
struct Transient;

impl RetryableStrategy for Transient {
    fn handle(&self, result: &Result<Response, Error>) -> Option<Retryable> {
        if let Err(Error::Middleware(error)) = result {
            if error.downcast_ref().is_some_and(TokenError::is_transient) {
                return Some(Retryable::Transient);
            }
        }
        DefaultRetryableStrategy.handle(result)
    }
}
