//! Whatever IMS answers: a clear error within its time, no panic, and the source works again as
//! soon as IMS does.

#![cfg(feature = "reqwest")]
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use tower_adobe_auth::{
    Credentials, Environment, ErrorKind, TokenError, TokenSource,
    mock::{Answer, MockIms},
};

fn source(url: &str) -> TokenSource {
    TokenSource::builder(Credentials::new("client-id", "client-secret"))
        .environment(Environment::custom(url).unwrap())
        .request_timeout(Duration::from_millis(500))
        .retry_for(Duration::from_millis(100))
        .build()
        .unwrap()
}

fn json(body: &str) -> Answer {
    Answer::raw(200, "application/json", body)
}

fn lives_for(expires_in: &str) -> Answer {
    json(&format!(r#"{{"access_token":"t","token_type":"bearer","expires_in":{expires_in}}}"#))
}

/// Asks once while IMS answers `answer`, and once more when it is itself again.
async fn fails_then_recovers(answer: Answer) -> TokenError {
    let ims = MockIms::start().await;
    let tokens = source(ims.url());
    ims.respond_with(answer);
    let start = Instant::now();

    let error = tokens.token().await.unwrap_err();

    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    assert!(!format!("{error} {error:?}").contains("client-secret"));
    ims.respond_normally();
    tokio::time::sleep(error.retry_in().unwrap()).await;
    tokens.token().await.unwrap();
    error
}

#[tokio::test]
async fn answers_that_are_no_token_are_each_a_clear_error() {
    for (answer, said) in [
        (json(r#"{"access_token": "#), "JSON"),
        (Answer::raw(200, "text/html", "<html><body>Sign in</body></html>"), "JSON"),
        (json(""), "empty"),
        (lives_for("0"), "expires_in"),
        (lives_for("-1"), "expires_in"),
        (lives_for(r#""abc""#), "expires_in"),
        (lives_for("1000000000000"), "expires_in"),
        (json(r#"{"access_token":"a\nb","token_type":"bearer","expires_in":86399}"#), "header"),
        (json(r#"{"access_token":"","token_type":"bearer","expires_in":86399}"#), "empty"),
    ] {
        let shown = format!("{answer:?}");

        let error = fails_then_recovers(answer).await;

        assert_eq!(error.kind(), ErrorKind::Malformed, "{shown}: {error}");
        assert!(error.to_string().contains(said), "{shown}: {error}");
    }
}

#[tokio::test]
async fn a_refusal_says_what_ims_said() {
    let error = fails_then_recovers(Answer::invalid_client()).await;

    assert_eq!(error.kind(), ErrorKind::Rejected);
    assert!(!error.is_transient());
    assert_eq!(error.status().unwrap(), 400);
    assert_eq!(error.oauth_error(), Some("invalid_client"));
    assert_eq!(error.oauth_error_description(), Some("invalid client_secret parameter"));
    assert!(error.debug_id().is_some());
}

#[tokio::test]
async fn an_outage_is_transient() {
    let unavailable = fails_then_recovers(Answer::unavailable()).await;
    assert_eq!(unavailable.kind(), ErrorKind::Unavailable);
    assert!(unavailable.is_transient());

    let cut = fails_then_recovers(Answer::disconnect()).await;
    assert_eq!(cut.kind(), ErrorKind::Connection);
}

#[tokio::test]
async fn an_endpoint_that_never_answers_fails_at_the_timeout() {
    let error = fails_then_recovers(Answer::hang()).await;

    assert_eq!(error.kind(), ErrorKind::Timeout);
}

#[tokio::test]
async fn a_refused_connection_is_told_with_its_cause() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();

    let error = source(&format!("http://127.0.0.1:{port}")).token().await.unwrap_err();

    assert_eq!(error.kind(), ErrorKind::Connection);
    let mut causes = std::iter::successors(std::error::Error::source(&error), |e| e.source());
    assert!(causes.any(|cause| cause.to_string().contains("refused")), "{error:?}");
}

#[tokio::test]
async fn no_credentials_is_an_error_before_anything_is_sent() {
    for (credentials, field) in [
        (Credentials::new("", "secret"), "client_id"),
        (Credentials::new("id", ""), "client_secret"),
    ] {
        let error = TokenSource::new(credentials).unwrap_err();

        assert!(error.to_string().contains(field), "{error}");
    }
}
