//! One token request, one answer: what goes over the wire and how each answer is read.
//!
//! The servers here write bytes by hand, since no HTTP library would write most of them.

#![allow(clippy::unwrap_used)]

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::sleep,
};
use tower_adobe_auth::{
    BoxError, Credentials, Environment, ErrorKind, ImsClient, ImsClientBuilder, TokenError,
    TokenResponse, TokenSource,
};

const SECRET: &str = "p8e-a+b&c=d%41 é";
const DAY: u64 = 86_400;

/// What a server does with a request that it has read.
#[derive(Clone)]
enum Act {
    /// Writes this and closes the connection.
    Answer(Vec<u8>),
    /// Writes the first part, then the second one again and again.
    Endless(&'static str, Vec<u8>),
    /// Writes this, a byte every 20 ms.
    Drip(Vec<u8>),
    /// Waits until the client is gone.
    Silence,
}

struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<String>>>,
    gone: mpsc::UnboundedReceiver<()>,
}

impl Server {
    async fn start(act: Act) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (left, gone) = mpsc::unbounded_channel();

        let seen = Arc::clone(&requests);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (act, seen, left) = (act.clone(), Arc::clone(&seen), left.clone());
                tokio::spawn(async move {
                    let Some(request) = read_request(&mut stream).await else { return };
                    seen.lock().unwrap().push(request);
                    let _ = perform(act, stream).await;
                    let _ = left.send(());
                });
            }
        });
        Self { address, requests, gone }
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn builder(&self) -> ImsClientBuilder {
        ImsClient::builder(Credentials::new("client-id", SECRET))
            .environment(Environment::custom(self.url()).unwrap())
    }

    /// A client with the default transport, and one over hyper-util.
    fn clients(&self, timeout: Duration) -> Vec<ImsClient> {
        let tower = self.builder().transport(Client::builder(TokioExecutor::new()).build_http());
        let mut builders = vec![tower];
        if cfg!(feature = "reqwest") {
            builders.push(self.builder());
        }
        builders.into_iter().map(|b| b.request_timeout(timeout).build().unwrap()).collect()
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

async fn read_request(stream: &mut TcpStream) -> Option<String> {
    let mut request = Vec::new();
    loop {
        request.push(stream.read_u8().await.ok()?);
        let text = String::from_utf8(request.clone()).ok()?;
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            if body.len() == length.map_or(0, |length| length.parse().unwrap()) {
                return Some(text);
            }
        }
    }
}

async fn perform(act: Act, mut stream: TcpStream) -> std::io::Result<()> {
    match act {
        Act::Answer(answer) => {
            stream.write_all(&answer).await?;
            stream.shutdown().await
        }
        Act::Endless(head, chunk) => {
            stream.write_all(head.as_bytes()).await?;
            loop {
                stream.write_all(&chunk).await?;
            }
        }
        Act::Drip(answer) => {
            stream.set_nodelay(true)?;
            for byte in answer {
                stream.write_u8(byte).await?;
                sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        }
        Act::Silence => stream.read_u8().await.map(drop),
    }
}

fn http(status: &str, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\n\r\n{body}").into_bytes()
}

/// The same of what is no text.
fn http_bytes(status: &str, headers: &[u8], body: &[u8]) -> Vec<u8> {
    let length = format!("Content-Length: {}\r\n\r\n", body.len());
    let status = format!("HTTP/1.1 {status}\r\n");
    [status.as_bytes(), headers, length.as_bytes(), body].concat()
}

/// Asks a server that gives this answer, with each transport: they must read the same.
async fn ask(status: &str, headers: &str, body: &str) -> Result<TokenResponse, TokenError> {
    ask_for(Act::Answer(http(status, headers, body))).await
}

async fn ask_for(act: Act) -> Result<TokenResponse, TokenError> {
    let server = Server::start(act).await;
    let mut results = Vec::new();
    for ims in server.clients(Duration::from_secs(10)) {
        results.push(ims.request_token().await);
    }

    assert_eq!(server.requests().len(), results.len(), "one answer costs one request");
    assert!(results.iter().all(|result| is_like(result, &results[0])), "{results:?}");
    results.remove(0)
}

/// The remaining life of a JWT differs by the time between the two requests.
fn is_like(
    left: &Result<TokenResponse, TokenError>,
    right: &Result<TokenResponse, TokenError>,
) -> bool {
    match (left, right) {
        (Ok(left), Ok(right)) => (life(left) - life(right)).abs() < 3.0,
        (left, right) => format!("{left:?}") == format!("{right:?}"),
    }
}

async fn ask_ok(headers: &str, body: &str) -> TokenResponse {
    ask("200 OK", headers, body).await.unwrap()
}

async fn malformed(body: &str) -> String {
    let error = ask("200 OK", "", body).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Malformed);
    assert!(error.is_transient());
    assert!(!format!("{error} {error:?}").contains("tok-"), "{error:?}");
    error.to_string()
}

fn token_body(expires_in: &str) -> String {
    format!(r#"{{"access_token":"tok-1","token_type":"bearer","expires_in":{expires_in}}}"#)
}

/// The answer with a JWT that was created `age` seconds ago and lives for `life` seconds.
fn jwt_body(age: u64, life: u64, expires_in: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = format!(
        r#"{{"type":"access_token","created_at":"{}000","expires_in":"{life}000"}}"#,
        now - age
    );
    let token = format!("eyJhbGciOiJSUzI1NiJ9.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
    format!(r#"{{"access_token":"{token}","token_type":"bearer","expires_in":{expires_in}}}"#)
}

fn date(time: SystemTime) -> String {
    format!("Date: {}\r\n", httpdate::fmt_http_date(time))
}

/// The life of the token in seconds, as `Debug` tells it.
fn life(response: &TokenResponse) -> f64 {
    let text = format!("{response:?}");
    let (_, life) = text.split_once("expires_in: ").unwrap();
    life.split_once('s').unwrap().0.parse().unwrap()
}

fn is_about(life: f64, seconds: u64) -> bool {
    (seconds as f64 - 3.0..=seconds as f64).contains(&life)
}

#[tokio::test]
async fn the_form_and_the_headers_arrive_as_documented() {
    let server = Server::start(Act::Answer(http("200 OK", "", &token_body("3600")))).await;
    let credentials = Credentials::new("client-id", SECRET).with_org_id("1234@AdobeOrg");

    let ims = ImsClient::builder(credentials)
        .environment(Environment::custom(server.url()).unwrap())
        .transport(Client::builder(TokioExecutor::new()).build_http())
        .build()
        .unwrap();
    let response = ims.request_token().await.unwrap();

    let text = format!("{response:?}");
    assert!(text.contains("client-id") && text.contains("1234@AdobeOrg"), "{text}");
    let requests = server.requests();
    let (head, body) = requests[0].split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /ims/token/v3 HTTP/1.1\r\n"), "{head}");
    let head = head.to_lowercase();
    for header in [
        "content-type: application/x-www-form-urlencoded".to_owned(),
        "accept: application/json".to_owned(),
        format!("user-agent: tower-adobe-auth/{}", env!("CARGO_PKG_VERSION")),
    ] {
        assert_eq!(head.lines().filter(|line| *line == header).count(), 1, "{head}");
    }
    assert!(!head.contains("authorization") && !head.contains("cookie"), "{head}");
    let fields: Vec<_> = form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    let expected = [
        ("grant_type", "client_credentials"),
        ("client_id", "client-id"),
        ("client_secret", SECRET),
        ("scope", "openid,AdobeID,firefly_api,ff_apis"),
        ("org_id", "1234@AdobeOrg"),
    ];
    assert_eq!(fields, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
}

#[tokio::test]
async fn both_transports_send_the_same_form_and_headers() {
    let server = Server::start(Act::Answer(http("200 OK", "", &token_body("3600")))).await;

    for ims in server.clients(Duration::from_secs(10)) {
        ims.request_token().await.unwrap();
    }

    let sorted = |request: &String| {
        let mut lines: Vec<_> = request.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let requests = server.requests();
    assert!(requests.iter().all(|request| sorted(request) == sorted(&requests[0])), "{requests:?}");
}

#[tokio::test]
async fn the_token_path_of_the_environment_is_asked() {
    let server = Server::start(Act::Answer(http("200 OK", "", &token_body("\"86399\"")))).await;
    let environment = Environment::custom(format!("{}/eu", server.url())).unwrap();

    let ims = server.builder().environment(environment.with_token_path("/token").unwrap());
    let ims = ims.transport(Client::builder(TokioExecutor::new()).build_http());
    ims.build().unwrap().request_token().await.unwrap();

    assert!(server.requests()[0].starts_with("POST /eu/token HTTP/1.1\r\n"));
}

#[tokio::test]
async fn a_request_without_scopes_has_no_scope_field() {
    let server = Server::start(Act::Answer(http("200 OK", "", &token_body("\"86399\"")))).await;
    let environment = Environment::custom(server.url()).unwrap().with_token_path("/token").unwrap();

    let ims = ImsClient::builder(Credentials::new("client-id", SECRET).without_scopes())
        .environment(environment)
        .transport(Client::builder(TokioExecutor::new()).build_http())
        .build()
        .unwrap();
    ims.request_token().await.unwrap();

    let requests = server.requests();
    let (_, body) = requests[0].split_once("\r\n\r\n").unwrap();
    let names: Vec<_> = form_urlencoded::parse(body.as_bytes()).map(|(name, _)| name).collect();
    assert_eq!(names, ["grant_type", "client_id", "client_secret"]);
}

#[tokio::test]
async fn an_expires_in_is_a_number_or_a_numeric_string() {
    for expires_in in ["86399", "\"86399\""] {
        assert_eq!(life(&ask_ok("", &token_body(expires_in)).await), 86_399.0);
    }
}

#[tokio::test]
async fn an_unusable_expires_in_is_an_error_of_its_own() {
    assert!(malformed(&token_body("0")).await.contains("expires_in of zero"));
    assert!(malformed(&token_body("-1")).await.contains("negative expires_in"));
    assert!(malformed(&token_body("\"abc\"")).await.contains("not a number"));
    assert!(malformed(&token_body("1000000000000")).await.contains("longer than any"));
    let absurd = ask("200 OK", "", &jwt_body(0, DAY, 1_000_000_000_000)).await.unwrap_err();
    assert!(absurd.to_string().contains("longer than any"), "{absurd}");
}

#[tokio::test]
async fn an_unusable_body_is_an_error_of_its_own() {
    assert!(malformed("").await.contains("empty body"));
    assert!(malformed("<!DOCTYPE html><p>tok-1").await.contains("HTML"));
    assert!(malformed(r#"{"access_token":"tok-1","#).await.contains("ends too early"));
    assert!(malformed(r#"{"access_token":tok-1}"#).await.contains("malformed JSON (line 1"));
    assert!(malformed(r#"{"access_token":["tok-1"]}"#).await.contains("wrong type"));
    let line_break = r#"{"access_token":"tok-1\r\nx: y","expires_in":3600}"#;
    assert!(malformed(line_break).await.contains("cannot be a header value"));
}

#[tokio::test]
async fn claims_that_end_earlier_than_expires_in_win() {
    let response = ask_ok("", &jwt_body(DAY - 600, DAY, DAY)).await;
    assert!(is_about(life(&response), 600), "{response:?}");

    let headers = date(SystemTime::now());
    let response = ask_ok(&headers, &jwt_body(DAY - 600, DAY, DAY)).await;
    assert!(is_about(life(&response), 600), "{response:?}");
}

#[tokio::test]
async fn the_age_of_a_token_is_judged_by_the_servers_date() {
    // The server's clock is a day behind ours: by its own time the token is new.
    let headers = date(SystemTime::now() - Duration::from_secs(DAY));
    let response = ask_ok(&headers, &jwt_body(DAY, DAY, DAY - 1)).await;
    assert!(is_about(life(&response), DAY), "{response:?}");

    // Without a date, it may be our clock that is wrong.
    let response = ask_ok("", &jwt_body(DAY + 60, DAY, 3_600)).await;
    assert!(is_about(life(&response), 3_600), "{response:?}");
}

#[tokio::test]
async fn a_token_that_has_already_expired_is_an_error() {
    let headers = date(SystemTime::now());

    let error = ask("200 OK", &headers, &jwt_body(DAY, DAY, DAY)).await.unwrap_err();

    assert_eq!(error.kind(), ErrorKind::Malformed);
    assert!(error.is_transient());
    assert!(error.to_string().contains("already expired"), "{error}");
}

#[tokio::test]
async fn milliseconds_passed_off_as_seconds_are_found_out() {
    let opaque = ask_ok("", &token_body("86400000")).await;
    assert_eq!(life(&opaque), DAY as f64);

    let half_an_hour = ask_ok("", &jwt_body(0, 1_800, 1_800_000)).await;
    assert!(is_about(life(&half_an_hour), 1_800), "{half_an_hour:?}");
}

#[tokio::test]
async fn wrong_credentials_are_rejected_under_400_and_under_401() {
    let body =
        r#"{"error":"invalid_client","error_description":"invalid client_secret parameter"}"#;
    for status in ["400 Bad Request", "401 Unauthorized"] {
        let error = ask(status, "X-Debug-Id: 1a-2b\r\n", body).await.unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Rejected);
        assert!(!error.is_transient());
        assert_eq!(error.oauth_error(), Some("invalid_client"));
        assert_eq!(error.oauth_error_description(), Some("invalid client_secret parameter"));
        assert_eq!(error.debug_id(), Some("1a-2b"));
        assert!(error.to_string().contains("check the client id and secret"), "{error}");
    }
}

#[tokio::test]
async fn retry_after_is_kept_in_each_form() {
    let now = SystemTime::now();
    let in_two_minutes = httpdate::fmt_http_date(now + Duration::from_secs(120));
    for (status, kind) in [
        ("429 Too Many Requests", ErrorKind::Throttled),
        ("503 Service Unavailable", ErrorKind::Unavailable),
    ] {
        for value in ["120", &in_two_minutes] {
            let headers = format!("{}Retry-After: {value}\r\n", date(now));
            let error = ask(status, &headers, "<h1>busy</h1>").await.unwrap_err();

            assert_eq!(error.kind(), kind);
            assert!(error.is_transient());
            assert_eq!(error.retry_after(), Some(Duration::from_secs(120)));
        }
        for value in ["31556952000", "Wed, 01 Jan 3000 00:00:00 GMT", &"9".repeat(60)] {
            let error = ask(status, &format!("Retry-After: {value}\r\n{}", date(now)), "").await;

            let wait = error.unwrap_err().retry_after().unwrap();
            assert!(wait > Duration::from_secs(900 * 365 * DAY), "{wait:?}");
            assert!(SystemTime::now().checked_add(wait).is_some());
        }
    }
}

#[tokio::test]
async fn what_a_server_says_is_one_bounded_line_without_the_secret() {
    let echo = format!(r"bad secret {SECRET}\r\nINFO forged\u001b[2J\u2028\u202e");
    let form: String = form_urlencoded::byte_serialize(SECRET.as_bytes()).collect();
    let body = format!(
        r#"{{"error":"invalid_client","error_description":"{echo} {form} {}"}}"#,
        "x".repeat(5_000)
    );

    let error = ask("400 Bad Request", &format!("x-debug-id: id-{form}\r\n"), &body).await;
    let error = error.unwrap_err();

    let description = error.oauth_error_description().unwrap();
    assert!(description.starts_with("bad secret [redacted]  INFO forged [2J"), "{description}");
    assert!(description.chars().count() <= 257, "{description}");
    assert_eq!(error.debug_id(), Some("id-[redacted]"));
    for text in [error.to_string(), format!("{error:?}")] {
        assert!(!text.contains(SECRET) && !text.contains(&form), "{text}");
        assert!(!error.to_string().contains(char::is_control), "{text}");
    }
}

#[tokio::test]
async fn the_next_secret_and_the_answers_own_token_are_redacted_too() {
    let token = "eyJhbGciOiJSUzI1NiJ9.eyJleHBpcmVzX2luIjoiMSJ9.c2lnbmF0dXJl";
    for (status, kind) in
        [("400 Bad Request", ErrorKind::Rejected), ("200 OK", ErrorKind::Malformed)]
    {
        let body = format!(
            r#"{{"access_token":"{token}","error":"no {token}",
                "error_description":"no p8e-the-next, no {token}, no c2lnbmF0dXJl"}}"#
        );
        let headers = format!("x-debug-id: p8e-the-next {token}\r\n");
        let server = Server::start(Act::Answer(http(status, &headers, &body))).await;
        let credentials = Credentials::new("client-id", SECRET).with_next_secret("p8e-the-next");
        let ims = ImsClient::builder(credentials)
            .environment(Environment::custom(server.url()).unwrap())
            .transport(Client::builder(TokioExecutor::new()).build_http());

        let error = ims.build().unwrap().request_token().await.unwrap_err();

        assert_eq!(error.kind(), kind);
        assert_eq!(error.oauth_error(), Some("no [redacted]"));
        let description = error.oauth_error_description().unwrap();
        assert_eq!(description, "no [redacted], no [redacted], no [redacted]");
        assert_eq!(error.debug_id(), Some("[redacted] [redacted]"));
    }
}

#[tokio::test]
async fn a_refused_connection_is_a_transient_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (_left, gone) = mpsc::unbounded_channel();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let server = Server { address, requests: Arc::default(), gone };

    for ims in server.clients(Duration::from_secs(10)) {
        let error = ims.request_token().await.unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Connection);
        assert!(error.is_transient());
        assert!(std::error::Error::source(&error).is_some());
    }
}

#[tokio::test]
async fn a_connection_that_breaks_is_a_transient_error() {
    for answer in ["", "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{\"access_token\":\"tok-1\""]
    {
        let server = Server::start(Act::Answer(answer.into())).await;
        for ims in server.clients(Duration::from_secs(10)) {
            let error = ims.request_token().await.unwrap_err();

            assert_eq!(error.kind(), ErrorKind::Connection, "{error:?}");
            assert!(!format!("{error:?}").contains("tok-1"));
        }
    }
}

#[tokio::test]
async fn an_endpoint_that_never_answers_ends_in_a_timeout() {
    let server = Server::start(Act::Silence).await;
    for ims in server.clients(Duration::from_millis(200)) {
        let start = Instant::now();
        let error = ims.request_token().await.unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert!(error.is_transient());
        assert!(error.to_string().contains("200ms"), "{error}");
        assert!(start.elapsed() < Duration::from_secs(5));
    }
}

#[tokio::test]
async fn a_slow_drip_ends_in_a_timeout() {
    let server = Server::start(Act::Drip(http("200 OK", "", &token_body("3600")))).await;
    for ims in server.clients(Duration::from_millis(600)) {
        let error = ims.request_token().await.unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Timeout);
    }
}

#[tokio::test]
async fn dropping_the_future_cancels_the_request() {
    let mut server = Server::start(Act::Silence).await;
    for ims in server.clients(Duration::from_secs(60)) {
        let request = tokio::time::timeout(Duration::from_millis(200), ims.request_token());
        assert!(request.await.is_err());

        server.gone.recv().await.unwrap();
    }
}

#[tokio::test]
async fn a_body_over_64_kib_is_cut_off_whatever_its_length_is_said_to_be() {
    for head in
        ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 1000000000000\r\n\r\n"]
    {
        let error = ask_for(Act::Endless(head, vec![b' '; 4_096])).await.unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Malformed);
        assert!(error.to_string().contains("larger than 64 KiB"), "{error}");
    }

    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let error = ask_for(Act::Endless(chunked, b"4\r\n    \r\n".repeat(1_000))).await.unwrap_err();
    assert!(error.to_string().contains("larger than 64 KiB"), "{error}");
}

#[tokio::test]
async fn an_endless_error_page_is_still_judged_by_its_status() {
    let head = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 7\r\n\r\n";

    let error = ask_for(Act::Endless(head, vec![b'<'; 4_096])).await.unwrap_err();

    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.retry_after(), Some(Duration::from_secs(7)));
}

#[tokio::test]
async fn a_content_length_that_is_too_short_cuts_the_json() {
    let body = token_body("3600");
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{body}");

    let error = ask_for(Act::Answer(answer.into_bytes())).await.unwrap_err();

    assert!(error.to_string().contains("ends too early"), "{error}");
}

/// A token's answer, compressed.
const GZIP: &[u8] =
    b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xab\x56\x4a\x4c\x4e\x4e\x2d\x2e\x8e\x2f\xc9\xcf\
    \x4e\xcd\x53\xb2\x52\x02\xd2\xba\x86\x4a\x3a\x4a\x60\x7e\x7c\x49\x65\x41\x2a\x50\x30\x29\
    \x35\xb1\x28\xb5\x08\x28\x9a\x5a\x51\x90\x59\x94\x5a\x1c\x9f\x09\x54\x6a\x6c\x66\x60\x50\
    \x0b\x00\x34\x8d\xa9\xef\x40\x00\x00\x00";

#[tokio::test]
async fn compression_is_refused_and_a_compressed_answer_named() {
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: {}\r\n\r\n",
        GZIP.len()
    );
    let server = Server::start(Act::Answer([head.as_bytes(), GZIP].concat())).await;
    for ims in server.clients(Duration::from_secs(10)) {
        let error = ims.request_token().await.unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Malformed);
        assert!(error.to_string().contains("a body encoded as gzip"), "{error}");
    }
    for request in server.requests() {
        let request = request.to_lowercase();
        let encodings: Vec<&str> =
            request.lines().filter(|line| line.starts_with("accept-encoding")).collect();
        assert_eq!(encodings, ["accept-encoding: identity"], "{request}");
    }
}

#[tokio::test(start_paused = true)]
async fn clock_ahead_of_the_claims_costs_no_refresh_without_a_date() {
    let (lifetime, start) = (DAY, SystemTime::now());
    let created = start.duration_since(UNIX_EPOCH).unwrap().as_millis();
    let claims = format!(r#"{{"created_at":"{created}","expires_in":"{}"}}"#, lifetime * 1_000);
    let token = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
    let body = format!(r#"{{"access_token":"{token}","expires_in":{lifetime}}}"#);
    for ahead in [lifetime / 2, lifetime - 50, lifetime - 4, lifetime - 2, lifetime, 9 * lifetime] {
        let (asked, body) = (Arc::new(AtomicUsize::new(0)), body.clone());
        let count = Arc::clone(&asked);
        let ims = tower::service_fn(move |_: Request<Full<Bytes>>| {
            count.fetch_add(1, Ordering::SeqCst);
            let body = Full::new(Bytes::from(body.clone()));
            async move { Ok::<_, BoxError>(Response::new(body)) }
        });
        let first = tokio::time::Instant::now();
        let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
            .map_ims(|builder| builder.transport(ims))
            .wall_clock(move || start + Duration::from_secs(ahead) + first.elapsed())
            .build()
            .unwrap();

        for _ in 0..10 {
            tokens.token().await.unwrap();
            sleep(Duration::from_secs(60)).await;
        }

        assert_eq!(asked.load(Ordering::SeqCst), 1, "{ahead} s ahead");
    }
}

#[tokio::test]
async fn deep_json_ends_in_an_error_and_not_in_the_stack() {
    let deep = format!("{}{}", "[".repeat(30_000), "]".repeat(30_000));
    let text = malformed(&format!(r#"{{"access_token":"tok-1","expires_in":{deep}}}"#)).await;
    assert!(text.contains("malformed JSON"), "{text}");

    let body = format!(r#"{{"error":{deep}}}"#);
    let error = ask("400 Bad Request", "", &body).await.unwrap_err();
    assert_eq!((error.kind(), error.oauth_error()), (ErrorKind::Rejected, None));

    // What is not read is not climbed into either.
    ask_ok("", &format!(r#"{{"x":{deep},"access_token":"tok-1","expires_in":3600}}"#)).await;
}

#[tokio::test]
async fn a_wrong_charset_is_an_error_without_the_bytes() {
    let utf_16: Vec<u8> = token_body("3600").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let latin_1 = b"{\"access_token\":\"tok-\xe9\",\"expires_in\":3600}".to_vec();
    for body in [utf_16, latin_1] {
        let error = ask_for(Act::Answer(http_bytes("200 OK", b"", &body))).await.unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Malformed);
        assert!(error.to_string().contains("JSON"), "{error}");
        assert!(!format!("{error:?}").contains("tok-"), "{error:?}");
    }

    let refusal = b"{\"error\":\"invalid_client\",\"error_description\":\"caf\xe9\"}";
    let answer = http_bytes("400 Bad Request", b"", refusal);
    let error = ask_for(Act::Answer(answer)).await.unwrap_err();
    assert_eq!((error.kind(), error.oauth_error_description()), (ErrorKind::Rejected, None));
}

#[tokio::test]
async fn a_token_told_twice_is_an_error() {
    for key in ["access_token", "expires_in", "token_type"] {
        let body = token_body("3600").replacen('{', &format!(r#"{{"{key}":"1","#), 1);

        let text = malformed(&body).await;

        assert!(text.contains("twice the same"), "{text}");
    }
}

#[tokio::test]
async fn header_values_that_are_not_text_are_read_as_far_as_they_are() {
    let headers = b"X-Debug-Id: 1a-\xff\xfe\r\nRetry-After: \xe9\r\nDate: \xff\r\n";
    let answer = http_bytes("503 Service Unavailable", headers, b"");

    let error = ask_for(Act::Answer(answer)).await.unwrap_err();

    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(error.debug_id(), Some("1a-\u{fffd}\u{fffd}"));
    assert_eq!(error.retry_after(), None);
    let answer = http_bytes("200 OK", headers, token_body("3600").as_bytes());
    assert_eq!(life(&ask_for(Act::Answer(answer)).await.unwrap()), 3_600.0);
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let elsewhere = Server::start(Act::Answer(http("200 OK", "", &token_body("3600")))).await;
    for status in ["302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let location = format!("Location: {}/ims/token/v3\r\n", elsewhere.url());

        let error = ask(status, &location, "").await.unwrap_err();

        assert_eq!(error.kind(), ErrorKind::Malformed);
        assert!(error.to_string().contains("redirect, which is not followed"), "{error}");
    }
    assert!(elsewhere.requests().is_empty());
}

#[cfg(feature = "reqwest")]
#[tokio::test]
async fn an_answer_from_another_url_is_an_error() {
    let elsewhere = Server::start(Act::Answer(http("200 OK", "", &token_body("3600")))).await;
    let location = format!("Location: {}/other\r\n", elsewhere.url());
    let server = Server::start(Act::Answer(http("302 Found", &location, ""))).await;
    let following = reqwest::Client::builder().no_proxy().build().unwrap();

    let ims = server.builder().reqwest_client(following).build().unwrap();
    let error = ims.request_token().await.unwrap_err();

    assert_eq!(error.kind(), ErrorKind::Malformed);
    assert!(error.to_string().contains("followed a redirect"), "{error}");
}

#[tokio::test]
async fn a_tower_service_is_polled_ready_before_it_is_called() {
    let server = Server::start(Act::Answer(http("200 OK", "", &token_body("3600")))).await;
    // It panics when it is called without having been polled ready.
    let service = tower::ServiceBuilder::new()
        .concurrency_limit(1)
        .service(Client::builder(TokioExecutor::new()).build_http());

    let ims = server.builder().transport(service).build().unwrap();

    for _ in 0..3 {
        ims.request_token().await.unwrap();
    }
}

#[test]
fn outside_a_runtime_is_an_error_not_a_panic() {
    let http = Client::builder(TokioExecutor::new()).build_http();
    let ims = ImsClient::builder(Credentials::new("id", SECRET)).transport(http).build().unwrap();

    let error = tokio_test::task::spawn(ims.request_token()).poll();

    let std::task::Poll::Ready(Err(error)) = error else { panic!("it waits") };
    assert_eq!(error.kind(), ErrorKind::NoRuntime);
}

#[test]
fn debug_redacts_the_secret() {
    let http = Client::builder(TokioExecutor::new()).build_http();
    let builder = ImsClient::builder(Credentials::new("id", SECRET)).transport(http);
    assert!(!format!("{builder:?}").contains("p8e"));

    assert!(!format!("{:?}", builder.build().unwrap()).contains("p8e"));
}

#[cfg(not(feature = "reqwest"))]
#[test]
fn without_a_transport_the_builder_says_what_to_do() {
    let error = ImsClient::new(Credentials::new("id", SECRET)).unwrap_err();

    assert!(error.to_string().contains("enable the feature `reqwest`"), "{error}");
}

#[test]
fn a_timeout_of_zero_is_refused() {
    let builder = || ImsClient::builder(Credentials::new("id", SECRET));

    assert!(builder().request_timeout(Duration::ZERO).build().is_err());
    assert!(builder().connect_timeout(Duration::ZERO).build().is_err());
}
