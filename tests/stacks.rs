//! The whole way on real sockets, in each stack that our users have.

#![cfg(feature = "reqwest")]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper_util::{client::legacy::Client as HyperClient, rt::TokioExecutor};
use tower::{Layer, Service, ServiceBuilder, ServiceExt};
use tower_adobe_auth::{
    AccessToken, AdobeAuth, AdobeAuthLayer, BoxError, Credentials, Environment, TokenSource,
    mock::MockIms,
};

fn source(ims: &MockIms) -> TokenSource {
    TokenSource::builder(Credentials::new("client-id", "client-secret"))
        .environment(Environment::custom(ims.url()).unwrap())
        .build()
        .unwrap()
}

async fn get(client: AdobeAuth<reqwest::Client>, url: String) -> StatusCode {
    let request = reqwest::Request::new(Method::GET, url.parse().unwrap());
    client.oneshot(request).await.unwrap().status()
}

/// The snippet of the README and of the crate's docs, with a port that is free.
#[tokio::test]
async fn the_public_face_works_as_written() -> Result<(), BoxError> {
    let ims = MockIms::start().await;

    let credentials = Credentials::new("client-id", "client-secret").with_scopes([
        "openid",
        "AdobeID",
        "firefly_api",
        "ff_apis",
    ]);
    let tokens: TokenSource =
        TokenSource::builder(credentials).environment(Environment::custom(ims.url())?).build()?;
    let token: AccessToken = tokens.token().await?;
    let mut client = ServiceBuilder::new()
        .layer(AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1"))
        .service(reqwest::Client::new());

    let life = token.expires_at().duration_since(std::time::SystemTime::now())?;
    assert!(life > Duration::from_secs(86_300) && life < Duration::from_secs(86_400), "{life:?}");
    assert_eq!(token.expose_secret().split('.').count(), 3);
    let request = reqwest::Request::new(Method::GET, ims.api_url().parse()?);
    assert_eq!(client.ready().await?.call(request).await?.status(), StatusCode::OK);
    assert_eq!(ims.token_requests(), 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_requests_on_a_cold_start_make_one_token_request() {
    let ims = MockIms::start().await;
    ims.set_delay(Duration::from_millis(50));
    let client =
        AdobeAuthLayer::new(source(&ims)).allow_host("127.0.0.1").layer(reqwest::Client::new());

    let requests = (0..1_000).map(|_| tokio::spawn(get(client.clone(), ims.api_url().to_owned())));
    let answers = join_all(requests).await;

    assert!(answers.into_iter().all(|status| status.unwrap() == StatusCode::OK));
    assert_eq!((ims.token_requests(), ims.api_requests()), (1, 1_000));
}

#[tokio::test]
async fn hyper_util_with_ims_reached_by_the_same_kind_of_client() {
    let ims = MockIms::start().await;
    let hyper = HyperClient::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
        .environment(Environment::custom(ims.url()).unwrap())
        .map_ims(|ims| ims.transport(hyper.clone()))
        .build()
        .unwrap();
    let client = AdobeAuthLayer::new(tokens).allow_host("127.0.0.1").layer(hyper);

    let request = Request::get(ims.api_url()).body(Full::default()).unwrap();
    let response = client.oneshot(request).await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(ims.token_requests(), 1);
}

#[tokio::test]
async fn a_pre_signed_url_through_the_same_client_sees_no_token() {
    let ims = MockIms::start().await;
    // `localhost` is not allowed here, `127.0.0.1` is.
    let client =
        AdobeAuthLayer::new(source(&ims)).allow_host("127.0.0.1").layer(reqwest::Client::new());
    let storage = ims.api_url().replace("127.0.0.1", "localhost") + "/storage/out.png";

    assert_eq!(get(client.clone(), storage.clone()).await, StatusCode::OK);
    let with_token = storage.replace("localhost", "127.0.0.1");
    assert_eq!(get(client, with_token).await, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn an_axum_app_calls_adobe_from_a_handler_and_tells_whether_it_is_ready() {
    use axum::{Router, extract::State, routing};

    #[derive(Clone)]
    struct App {
        adobe: AdobeAuth<reqwest::Client>,
        tokens: TokenSource,
        api: String,
    }
    let ims = MockIms::start().await;
    let tokens = source(&ims);
    let adobe =
        AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1").layer(reqwest::Client::new());
    let state = App { adobe, tokens: tokens.clone(), api: ims.api_url().to_owned() };
    let app = Router::new()
        .route(
            "/images",
            routing::get(|State(app): State<App>| async move { get(app.adobe, app.api).await }),
        )
        .route(
            "/readyz",
            routing::get(|State(app): State<App>| async move {
                if app.tokens.status().is_ready() {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                }
            }),
        )
        .with_state(state);
    let ask = |path: &str| {
        let request = Request::get(path).body(axum::body::Body::empty()).unwrap();
        let app = app.clone();
        async move { app.oneshot(request).await.unwrap().status() }
    };

    assert_eq!(ask("/readyz").await, StatusCode::SERVICE_UNAVAILABLE);
    let mut changes = tokens.subscribe();
    tokens.warm_up();
    while !changes.changed().await.unwrap().is_ready() {}
    assert_eq!(ask("/readyz").await, StatusCode::OK);
    assert_eq!(ask("/images").await, StatusCode::OK);
    assert_eq!(ims.token_requests(), 1);
}

#[cfg(feature = "reqwest-middleware")]
mod reqwest_middleware {
    use ::reqwest_middleware::ClientBuilder;
    use tower_adobe_auth::{AdobeAuthMiddleware, ErrorKind, NoAuthorization, TokenError};

    use super::*;

    #[tokio::test]
    async fn a_middleware_does_what_the_layer_does() {
        let ims = MockIms::start().await;
        let layer = AdobeAuthLayer::new(source(&ims)).allow_host("127.0.0.1");
        let client = ClientBuilder::new(reqwest::Client::new())
            .with(AdobeAuthMiddleware::from(layer))
            .build();

        let response = client.get(ims.api_url()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);

        let request = client.get(ims.api_url()).with_extension(NoAuthorization);
        assert_eq!(request.send().await.unwrap().status(), StatusCode::FORBIDDEN);
        assert_eq!(ims.token_requests(), 1);
    }

    #[tokio::test]
    async fn the_middlewares_error_is_found_by_downcast() {
        let ims = MockIms::start().await;
        ims.respond_with(tower_adobe_auth::mock::Answer::invalid_client());
        let layer = AdobeAuthLayer::new(source(&ims)).allow_host("127.0.0.1");
        let client = ClientBuilder::new(reqwest::Client::new())
            .with(AdobeAuthMiddleware::from(layer))
            .build();

        let error = client.get(ims.api_url()).send().await.unwrap_err();

        let ::reqwest_middleware::Error::Middleware(error) = error else { panic!("{error}") };
        assert_eq!(error.downcast_ref::<TokenError>().unwrap().kind(), ErrorKind::Rejected);
    }
}
