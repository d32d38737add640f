//! Revoked tokens and rotated secrets, over real sockets: neither costs a request.

#![cfg(feature = "reqwest")]
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use futures_util::future::join_all;
use http::{Method, StatusCode};
use tower::{Layer, ServiceExt};
use tower_adobe_auth::{
    AdobeAuth, AdobeAuthLayer, BoxError, Credentials, Environment, FileCredentials,
    ProvideCredentials, ReplayUnauthorized, Replayed, TokenSource, mock::MockIms,
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
    *request.body_mut() =
        Some(reqwest::Body::wrap(http_body_util::Full::<bytes::Bytes>::from("x")));

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

/// A Console JSON file, replaced as Kubernetes and careful programs do: at once.
struct Secrets {
    folder: tempfile::TempDir,
}

impl Secrets {
    fn new(secret: &str) -> Self {
        let secrets = Self { folder: tempfile::tempdir().unwrap() };
        secrets.replace(&Self::json(secret));
        secrets
    }

    fn json(secret: &str) -> String {
        format!(
            r#"{{"CLIENT_ID": "client-id", "CLIENT_SECRETS": ["{secret}"], "SCOPES": ["openid"]}}"#
        )
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("credentials.json")
    }

    fn replace(&self, text: &str) {
        let new = self.folder.path().join("new");
        std::fs::write(&new, text).unwrap();
        std::fs::rename(new, self.path()).unwrap();
    }

    fn source(&self, ims: &MockIms) -> TokenSource {
        let file = FileCredentials::open(self.path())
            .unwrap()
            .with_poll_interval(Duration::from_millis(20));
        TokenSource::builder_from_provider(file)
            .environment(Environment::custom(ims.url()).unwrap())
            .backoff_cap(Duration::from_millis(100))
            .build()
            .unwrap()
    }
}

/// Waits for the token of this generation, while requests go on.
async fn generation(tokens: &TokenSource, client: &Client, ims: &MockIms, generation: u64) {
    let limit = Duration::from_secs(20);
    let renewed = async {
        while tokens.try_token().unwrap().generation() < generation {
            assert_eq!(post(client, ims).await.status(), StatusCode::OK);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(limit, renewed).await.expect("the token should be renewed");
}

#[tokio::test]
async fn a_credentials_file_that_is_replaced_leads_to_a_new_token_beside_the_traffic() {
    let ims = MockIms::start().await;
    ims.set_secrets(MockIms::CLIENT_ID, ["one", "two"]);
    let secrets = Secrets::new("one");
    let tokens = secrets.source(&ims);
    let client = client(&tokens);
    assert_eq!(post(&client, &ims).await.status(), StatusCode::OK);

    secrets.replace(&Secrets::json("two"));
    generation(&tokens, &client, &ims, 2).await;

    assert_eq!(ims.last_token_request().unwrap().form("client_secret"), Some("two"));
    assert_eq!(ims.refused_requests(), 0);
}

#[tokio::test]
async fn a_credentials_file_that_is_garbage_or_gone_costs_nothing_and_is_taken_when_good_again() {
    let ims = MockIms::start().await;
    ims.set_secrets(MockIms::CLIENT_ID, ["one", "two"]);
    let secrets = Secrets::new("one");
    let tokens = secrets.source(&ims);
    let client = client(&tokens);
    assert_eq!(post(&client, &ims).await.status(), StatusCode::OK);

    secrets.replace(r#"{"CLIENT_ID": "client-id", "CLIENT_SEC"#);
    tokens.refresh().await.unwrap();
    assert_eq!(post(&client, &ims).await.status(), StatusCode::OK);
    std::fs::remove_file(secrets.path()).unwrap();
    tokens.refresh().await.unwrap();
    assert_eq!(post(&client, &ims).await.status(), StatusCode::OK);

    secrets.replace(&Secrets::json("two"));
    generation(&tokens, &client, &ims, 4).await;
    assert_eq!(ims.last_token_request().unwrap().form("client_secret"), Some("two"));
}

#[tokio::test]
async fn what_else_changes_in_a_credentials_file_costs_no_token() {
    let ims = MockIms::start().await;
    let secrets = Secrets::new(MockIms::CLIENT_SECRET);
    let tokens = secrets.source(&ims);
    tokens.token().await.unwrap();

    let text = Secrets::json(MockIms::CLIENT_SECRET).replace('}', r#", "NOTE": "mine"}"#);
    secrets.replace(&text);
    tokio::time::sleep(Duration::from_millis(1_500)).await;

    assert_eq!(ims.token_requests(), 1);
}

#[tokio::test]
async fn a_new_current_secret_is_tried_before_the_next_one_that_worked() {
    let ims = MockIms::start().await;
    ims.set_secrets(MockIms::CLIENT_ID, ["b", "c"]);
    let secrets = Secrets::new(r#"dead", "b"#);
    let tokens = secrets.source(&ims);
    tokens.token().await.unwrap();
    assert_eq!(ims.last_token_request().unwrap().form("client_secret"), Some("b"));

    secrets.replace(&Secrets::json("c"));
    tokens.refresh().await.unwrap();

    assert_eq!(ims.last_token_request().unwrap().form("client_secret"), Some("c"));
    assert_eq!(ims.refused_requests(), 1);
}

#[tokio::test]
async fn a_secret_that_was_refused_is_replaced_by_that_of_the_file_as_soon_as_it_is_there() {
    let ims = MockIms::start().await;
    let secrets = Secrets::new("wrong");
    let tokens = secrets.source(&ims);
    assert!(!tokens.token().await.unwrap_err().is_transient());
    let mut changes = tokens.subscribe();

    secrets.replace(&Secrets::json(MockIms::CLIENT_SECRET));

    let ready = async { while !changes.changed().await.unwrap().is_ready() {} };
    tokio::time::timeout(Duration::from_secs(20), ready).await.expect("it should recover");
}

#[tokio::test]
async fn a_provider_that_fails_is_a_transient_error_with_its_cause() {
    struct Sealed;
    impl ProvideCredentials for Sealed {
        async fn credentials(&self) -> Result<Credentials, BoxError> {
            Err("the vault is sealed".into())
        }
    }
    let tokens = TokenSource::builder_from_provider(Sealed).attempts(1).build().unwrap();

    let error = tokens.token().await.unwrap_err();

    assert!(error.is_transient());
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "the vault is sealed");
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
