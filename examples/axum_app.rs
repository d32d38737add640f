//! An axum app that holds the authorized client in its state, calls an Adobe API from a handler,
//! and tells at `/readyz` whether its requests get a token at once.
//!
//! It asks itself, prints the answers and ends; with `--serve` it stays.
//!
//! ```sh
//! cargo run --example axum_app
//! ```

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::get,
};
use reqwest::{Client, Method, Request};
use tokio::net::TcpListener;
use tower::{Layer, Service, ServiceExt};
use tower_adobe_auth::{
    AdobeAuth, AdobeAuthLayer, BoxError, Credentials, Environment, TokenError, TokenSource,
    mock::MockIms,
};

#[derive(Clone)]
struct App {
    adobe: AdobeAuth<Client>,
    tokens: TokenSource,
    api: String,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let ims = MockIms::start().await;
    let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
        .environment(Environment::custom(ims.url())?)
        .build()?;
    // Nobody sends requests to a service that is not ready, so the first token cannot wait for one.
    tokens.warm_up();
    let layer = AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1");
    let policy = layer.allowed_hosts().redirect_policy();
    let adobe = layer.layer(Client::builder().redirect(policy).no_proxy().build()?);
    let app = Router::new()
        .route("/images", get(images))
        .route("/readyz", get(readyz))
        .with_state(App { adobe, tokens, api: ims.api_url().to_owned() });

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    println!("listening on {url}");
    let server = tokio::spawn(axum::serve(listener, app).into_future());
    if std::env::args().any(|argument| argument == "--serve") {
        return Ok(server.await??);
    }

    let caller = Client::builder().no_proxy().build()?;
    for path in ["/readyz", "/images", "/readyz"] {
        let response = caller.get(format!("{url}{path}")).send().await?;
        println!("GET {path}: {} {}", response.status(), response.text().await?);
    }
    Ok(())
}

/// Calls the Adobe API and passes its answer on.
async fn images(State(mut app): State<App>) -> Result<Response, Failure> {
    let url = format!("{}/v3/images", app.api).parse().map_err(BoxError::from)?;
    let response = app.adobe.ready().await?.call(Request::new(Method::GET, url)).await?;
    let (status, body) = (response.status(), response.bytes().await.map_err(BoxError::from)?);
    Ok((status, body).into_response())
}

/// Ready is who has a valid token. Asking for one here would make the probe wait for IMS.
async fn readyz(State(app): State<App>) -> Response {
    let status = app.tokens.status();
    match (status.is_ready(), status.last_error()) {
        (true, _) => (StatusCode::OK, "ready").into_response(),
        (false, None) => (StatusCode::SERVICE_UNAVAILABLE, "no token yet").into_response(),
        (false, Some(error)) => {
            (StatusCode::SERVICE_UNAVAILABLE, error.to_string()).into_response()
        }
    }
}

struct Failure(BoxError);

impl From<BoxError> for Failure {
    fn from(error: BoxError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        // What can pass is 503: our callers may try again. Anything else is a broken gateway.
        let status = match self.0.downcast_ref::<TokenError>() {
            Some(error) if error.is_transient() => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::BAD_GATEWAY,
        };
        (status, self.0.to_string()).into_response()
    }
}
