//! Revoked tokens and rotated secrets, over real sockets: neither costs a request.

#![cfg(feature = "reqwest")]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use futures_util::future::join_all;
use http::{Method, StatusCode};
use tower::{Layer, ServiceExt};
use tower_adobe_auth::{
    AdobeAuth, AdobeAuthLayer, Credentials, Environment, Replayed, ReplayUnauthorized, TokenSource,
    mock::MockIms,
};

type Client = AdobeAuth<reqwest::Client, ReplayUnauthorized>;

fn source(ims: &MockIms, credentials: Credentials) -> TokenSource {
    TokenSource::builder(credentials)
        .environment(Environment::custom(ims.url()).unwrap())
        .build()
        .unwrap()
}

fn client(tokens: &TokenSource) -> Client {
    AdobeAuthLayer::new(tokens.clone())
        .allow_host("127.0.0.1")
        .replay_unauthorized()
        .layer(reqwest::Client::new())
}

fn credentials() -> Credentials {
    Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET)
}

async fn post(client: &Client, ims: &MockIms) -> reqwest::Response {
    let mut request = reqwest::Request::new(Method::POST, ims.api_url().parse().unwrap());
    *request.body_mut() = Some("a prompt".into());
    client.clone().oneshot(request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_revoked_under_a_hundred_callers_cost_none_of_them_a_request() {
    let ims = MockIms::start().await;
    let tokens = source(&ims, credentials());
    let client = client(&tokens);
    tokens.token().await.unwrap();
    ims.set_delay(Duration::from_millis(50));

    ims.revoke_all();
    let answers = join_all((0..100).map(|_| post(&client, &ims))).await;

    assert!(answers.iter().all(|answer| answer.status() == StatusCode::OK));
    assert!(answers.iter().any(|answer| answer.extensions().get::<Replayed>().is_some()));
    assert_eq!(ims.token_requests(), 2, "the first token and its replacement");
}

#[tokio::test]
async fn a_streaming_body_is_passed_on_with_its_401_and_its_token_is_replaced() {
    let ims = MockIms::start().await;
    let tokens = source(&ims, credentials());
    let client = client(&tokens);
    tokens.token().await.unwrap();
    ims.revoke_all();
    let mut request = reqwest::Request::new(Method::POST, ims.api_url().parse().unwrap());
    *request.body_mut() = Some(reqwest::Body::wrap(http_body_util::Full::<bytes::Bytes>::from("x")));

    let answer = client.clone().oneshot(request).await.unwrap();

    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(post(&client, &ims).await.status(), StatusCode::OK);
    assert_eq!(ims.token_requests(), 2);
}

#[tokio::test]
async fn one_401_while_ims_is_down_does_not_take_the_service_down() {
    let ims = MockIms::start().await;
    let tokens = source(&ims, credentials());
    let client = client(&tokens);
    tokens.token().await.unwrap();
    ims.go_down();
    ims.api_respond_next([401]);

    assert_eq!(post(&client, &ims).await.status(), StatusCode::UNAUTHORIZED);

    for _ in 0..20 {
        assert_eq!(post(&client, &ims).await.status(), StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_that_answers_401_to_everything_costs_three_token_requests_at_most() {
    let ims = MockIms::start().await;
    let tokens = source(&ims, credentials());
    let client = client(&tokens);
    ims.api_respond_with(401);

    for _ in 0..100 {
        let answers = join_all((0..10).map(|_| post(&client, &ims))).await;
        assert!(answers.iter().all(|answer| answer.status() == StatusCode::UNAUTHORIZED));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    assert!(ims.token_requests() <= 3, "{}", ims.token_requests());
}

#[tokio::test]
async fn the_first_secret_removed_while_traffic_runs_costs_one_refused_token_request() {
    let ims = MockIms::start().await;
    ims.set_secrets(MockIms::CLIENT_ID, ["old-secret", "new-secret"]);
    let credentials =
        Credentials::new(MockIms::CLIENT_ID, "old-secret").with_next_secret("new-secret");
    let tokens = source(&ims, credentials);
    let client = client(&tokens);
    assert_eq!(post(&client, &ims).await.status(), StatusCode::OK);

    ims.set_secrets(MockIms::CLIENT_ID, ["new-secret"]);
    for _ in 0..3 {
        tokens.refresh().await.unwrap();
        assert_eq!(post(&client, &ims).await.status(), StatusCode::OK);
    }

    assert_eq!(ims.refused_requests(), 1);
    assert_eq!(ims.tokens_issued(), 4);
}

#[tokio::test]
async fn two_secrets_that_are_both_refused_are_one_error() {
    let ims = MockIms::start().await;
    let credentials = Credentials::new(MockIms::CLIENT_ID, "one").with_next_secret("two");

    let error = source(&ims, credentials).token().await.unwrap_err();

    assert_eq!(error.oauth_error(), Some("invalid_client"));
    assert_eq!(ims.token_requests(), 2);
}

#[cfg(feature = "reqwest-middleware")]
#[tokio::test]
async fn the_middleware_of_reqwest_middleware_replays_too() {
    use tower_adobe_auth::AdobeAuthMiddleware;

    let ims = MockIms::start().await;
    let tokens = source(&ims, credentials());
    tokens.token().await.unwrap();
    let layer = AdobeAuthLayer::new(tokens).allow_host("127.0.0.1").replay_unauthorized();
    let client = reqwest_middleware::ClientBuilder::new(reqwest::Client::new())
        .with(AdobeAuthMiddleware::from(layer))
        .build();
    ims.revoke_all();

    let answer = client.post(ims.api_url()).body("a prompt").send().await.unwrap();

    assert_eq!(answer.status(), StatusCode::OK);
    assert!(answer.extensions().get::<Replayed>().is_some());
    assert_eq!(ims.token_requests(), 2);
}
