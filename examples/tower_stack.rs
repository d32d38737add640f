//! The layers of a client in their order, and what each of them does when the API answers 503 once
//! and 401 once: total timeout, trace, retry, authorization, timeout of one try, client.
//!
//! ```sh
//! cargo run --example tower_stack
//! ```

use std::{
    future::{Ready, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tower::{Service, ServiceBuilder, ServiceExt, retry::Policy};
use tower_adobe_auth::{
    AdobeAuthLayer, BoxError, Credentials, Environment, Replayed, TokenError, TokenSource,
    mock::MockIms,
};
use tower_http::trace::TraceLayer;

type Body = Full<Bytes>;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let ims = MockIms::start().await;
    let hyper = Client::builder(TokioExecutor::new()).build_http::<Body>();
    let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
        .environment(Environment::custom(ims.url())?)
        .map_ims(|ims| ims.transport(hyper.clone()))
        .build()?;

    let mut client = ServiceBuilder::new()
        // Covers everything beneath: the wait for a token, all attempts, the pauses between them.
        .timeout(Duration::from_secs(30))
        // One span for what the caller sees as one request.
        .layer(TraceLayer::new_for_http().on_request(|request: &Request<Body>, _: &_| {
            println!("  trace: {} {}", request.method(), request.uri().path());
        }))
        // Outside the authorization: each attempt gets the token of its time.
        .retry(Transient { attempts: 3 })
        .layer(AdobeAuthLayer::new(tokens).allow_host("127.0.0.1").replay_unauthorized())
        // One try of the API, without the wait for a token.
        .timeout(Duration::from_secs(5))
        .map_response(|response: Response<_>| {
            println!("  one try: {}", response.status());
            response
        })
        .service(hyper);

    for (title, statuses) in [
        ("all is well", &[][..]),
        ("the API answers 503 once", &[503]),
        ("the API answers 401 once", &[401]),
        ("503, then 401", &[503, 401]),
    ] {
        println!("{title}");
        ims.api_respond_next(statuses.iter().copied());
        let request = Request::get(format!("{}/v3/images", ims.api_url())).body(Body::default())?;
        let response = client.ready().await?.call(request).await?;
        println!("  the caller gets: {}", response.status());
    }
    println!("API requests: {}, token requests: {}", ims.api_requests(), ims.token_requests());
    Ok(())
}

/// Repeats what can pass. A service of your own pauses between attempts, and has a budget.
#[derive(Clone)]
struct Transient {
    attempts: usize,
}

impl<B> Policy<Request<Body>, Response<B>, BoxError> for Transient {
    type Future = Ready<()>;

    fn retry(
        &mut self,
        _: &mut Request<Body>,
        result: &mut Result<Response<B>, BoxError>,
    ) -> Option<Ready<()>> {
        let again = match result {
            Ok(response) if response.extensions().get::<Replayed>().is_some() => false,
            Ok(response) => response.status() == StatusCode::SERVICE_UNAVAILABLE,
            Err(error) => error.downcast_ref().is_some_and(TokenError::is_transient),
        };
        self.attempts -= 1;
        (again && self.attempts > 0).then(|| ready(()))
    }

    fn clone_request(&mut self, request: &Request<Body>) -> Option<Request<Body>> {
        Some(request.clone())
    }
}
