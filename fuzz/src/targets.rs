//! What is fuzzed: each place that takes bytes from outside, reached through the public face, with
//! what must hold whatever the bytes are. `tests/corpus.rs` runs the same functions.

use std::{
    convert::Infallible,
    error::Error,
    future::Future,
    net::IpAddr,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Request, Response, StatusCode, Uri,
    header::{AUTHORIZATION, DATE, HOST, RETRY_AFTER},
    uri::Authority,
};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};
use tower::{Layer, ServiceExt, service_fn};
use tower_adobe_auth::{
    AdobeAuthLayer, AllowedHosts, Credentials, ErrorKind, ImsClient, InsecureUri, TokenResponse,
    TokenSource, TokenSourceBuilder,
};

type Answer = Response<Full<Bytes>>;

const SECRET: &str = "p8e-0123456789-current";
const NEXT_SECRET: &str = "p8e-9876543210-next";
const LONGEST_LIFE: Duration = Duration::from_secs(31 * 24 * 60 * 60);
/// The last second that an HTTP date can tell.
const YEAR_9999: u64 = 253_402_300_799;

/// A whole answer of IMS: the status, the headers a line each, an empty line, the body.
pub fn token_response(input: &[u8]) {
    let (head, body) = split_once(input, b"\n\n");
    let mut lines = lines(head);
    let status = lines.next().and_then(|line| StatusCode::from_bytes(line).ok());
    let Some(status) = status else { return };
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(body)));
    *answer.status_mut() = status;
    for line in lines {
        let (name, value) = split_once(line, b": ");
        if let (Ok(name), Ok(value)) =
            (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            answer.headers_mut().append(name, value);
        }
    }
    let credentials = Credentials::new("client-id", SECRET).with_next_secret(NEXT_SECRET);
    let ims = ImsClient::builder(credentials).transport(transport(answer)).build().unwrap();

    match runtime().block_on(ims.request_token()) {
        Ok(response) => {
            let token = response.expose_secret();
            assert_eq!(status, StatusCode::OK);
            assert!(!token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()));
            let life = response.expires_in();
            assert!(!life.is_zero() && life <= LONGEST_LIFE, "{life:?}");
            let other = TokenResponse::new("another", life).with_client_id("client-id");
            assert_eq!(format!("{response:?}"), format!("{other:?}"), "it shows the token");
        }
        Err(error) => {
            let (line, debug) = (error.to_string(), format!("{error:?}"));
            assert_eq!(error.status(), Some(status));
            assert!(!line.contains(char::is_control), "{line}");
            assert!(line.chars().count() < 1_200, "{line}");
            for secret in [SECRET, NEXT_SECRET] {
                assert!(!line.contains(secret) && !debug.contains(secret), "{debug}");
            }
            let body: Value = serde_json::from_slice(body.trim_ascii()).unwrap_or_default();
            if let Some(token) = body["access_token"].as_str().filter(|token| is_distinct(token)) {
                assert!(!error.oauth_error_description().is_some_and(|said| said.contains(token)));
            }
            if let Some(wait) = error.retry_after() {
                assert!(SystemTime::now().checked_add(wait).is_some(), "{wait:?}");
            }
        }
    }
}

/// Long enough to be no ordinary word, and no part of what stands in its place.
fn is_distinct(token: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    token.len() >= 12 && token.bytes().all(is_part)
}

/// A file of the Console.
pub fn console_json(input: &[u8]) {
    match Credentials::from_console_json(input) {
        Ok(credentials) => {
            let mut other = Credentials::new(credentials.client_id(), "another")
                .with_scopes(credentials.scopes().clone());
            if let Some(org_id) = credentials.org_id() {
                other = other.with_org_id(org_id);
            }
            if credentials.next_secret().is_some() {
                other = other.with_next_secret("another");
            }
            assert_eq!(format!("{credentials:?}"), format!("{other:?}"), "it shows a secret");

            // What was accepted from outside is accepted by what is built from it.
            let nobody = transport(Response::new(Full::default()));
            ImsClient::builder(credentials).transport(nobody).build().unwrap();
        }
        Err(error) => {
            let text = error.to_string();
            assert!(text.is_ascii() && text.len() < 120 && error.source().is_none(), "{error:?}");
            // No word of ours has a digit beside a letter, but a value that is told would.
            let is_mixed = |pair: &[u8]| {
                let digits = pair.iter().filter(|byte| byte.is_ascii_digit()).count();
                digits == 1 && pair.iter().all(u8::is_ascii_alphanumeric)
            };
            assert!(!text.as_bytes().windows(2).any(is_mixed), "{text}");
        }
    }
}

/// The value of `Retry-After`, that of `Date`, and our wall clock in seconds: a line each.
pub fn retry_after(input: &[u8]) {
    let mut lines = lines(input);
    let value = lines.next().unwrap_or_default();
    let date = lines.next().unwrap_or_default();
    let now = UNIX_EPOCH + Duration::from_secs(number(lines.next()).min(YEAR_9999));
    let Ok(header) = HeaderValue::from_bytes(value) else { return };
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    answer.headers_mut().insert(RETRY_AFTER, header);
    if let Ok(date) = HeaderValue::from_bytes(date) {
        answer.headers_mut().insert(DATE, date);
    }
    let asked = Arc::new(AtomicUsize::new(0));
    let tokens = source(answer, &asked).attempts(1).wall_clock(move || now).build().unwrap();

    let (error, again) = runtime().block_on(async { (tokens.token().await, tokens.token().await) });
    let (error, again) = (error.unwrap_err(), again.unwrap_err());

    let text = |bytes| String::from_utf8_lossy(bytes).trim().to_owned();
    let parse = |bytes| httpdate::parse_http_date(&text(bytes)).ok();
    let value_text = text(value);
    let expected = if !value_text.is_empty() && value_text.bytes().all(|b| b.is_ascii_digit()) {
        let ten_thousand_years = 10_000 * 366 * 86_400;
        let seconds = value_text.parse::<u128>().unwrap_or(u128::MAX).min(ten_thousand_years);
        Some(Duration::from_secs(seconds as u64))
    } else {
        let from = parse(date).unwrap_or(now);
        parse(value).map(|until| until.duration_since(from).unwrap_or_default())
    };
    assert_eq!(error.kind(), ErrorKind::Throttled);
    assert_eq!(error.retry_after(), expected);
    let cap = Duration::from_secs(5 * 60);
    let wait = error.retry_in().unwrap();
    assert!(wait >= expected.unwrap_or_default().min(cap), "{wait:?}");
    assert!(wait <= cap + Duration::from_secs(1), "{wait:?}");
    assert!(again.retry_in().is_some());
    assert_eq!(asked.load(Ordering::Relaxed), 1, "it backs off");
}

/// A URI, and then `Host` headers: a line each. The URI's line is also a host and a rule.
pub fn allowed_hosts(input: &[u8]) {
    let mut lines = lines(input);
    let line = lines.next().unwrap_or_default();
    if let Ok(text) = std::str::from_utf8(line) {
        host_text(text);
    }

    let Ok(uri) = Uri::try_from(line) else { return };
    let mut request = Request::new(());
    *request.uri_mut() = uri;
    for host in lines {
        let Ok(host) = HeaderValue::from_bytes(host) else { return };
        request.headers_mut().append(HOST, host);
    }
    let expected = decision(&request);
    // The scheme and the host, with nothing between them.
    let scheme =
        request.uri().scheme_str().map_or_else(String::new, |scheme| scheme.to_owned() + "://");
    let shown = scheme + request.uri().host().unwrap_or_default();
    let inner = service_fn(|request: Request<()>| async move {
        Ok::<_, Infallible>(Response::new(request.headers().get(AUTHORIZATION).cloned()))
    });
    let layer =
        AdobeAuthLayer::new(TOKENS.clone()).allow_host("127.0.0.1").allow_host("api.frame.io:8443");

    let decided = match runtime().block_on(layer.layer(inner).oneshot(request)) {
        Ok(response) => match response.into_body() {
            Some(header) => {
                assert!(header.is_sensitive());
                Decision::Token
            }
            None => Decision::Pass,
        },
        Err(error) => {
            let error = error.downcast::<InsecureUri>().unwrap();
            assert!(error.uri().starts_with(&shown) && !error.uri().contains('?'), "{error}");
            Decision::Refuse
        }
    };

    assert_eq!(decided, expected);
}

static TOKENS: LazyLock<TokenSource> = LazyLock::new(|| {
    let century = Duration::from_secs(100 * 365 * 86_400);
    let fetch = move || async move { Ok(TokenResponse::new("a-token", century)) };
    let tokens = TokenSource::builder_from_fetcher(fetch).refresh_on_demand().build().unwrap();
    runtime().block_on(tokens.token()).unwrap();
    tokens
});

#[derive(Debug, PartialEq, Eq)]
enum Decision {
    Token,
    Pass,
    Refuse,
}

/// The rule, stated once more.
fn decision(request: &Request<()>) -> Decision {
    let uri = request.uri();
    let (scheme, host, port) = if let Some(host) = uri.host() {
        (uri.scheme_str(), host.to_owned(), uri.port_u16())
    } else {
        let hosts: Vec<_> = request.headers().get_all(HOST).iter().collect();
        let [host] = hosts[..] else { return Decision::Pass };
        let Ok(authority) = Authority::try_from(host.as_bytes()) else { return Decision::Pass };
        if host.as_bytes().contains(&b'@') {
            return Decision::Pass;
        }
        (None, authority.host().to_owned(), authority.port_u16())
    };
    let (plain, usual) = match scheme {
        Some("https") => (false, Some(443)),
        Some("http") => (true, Some(80)),
        None => (port == Some(80), None),
        Some(_) => return Decision::Pass,
    };

    let address = bare(&host).parse::<IpAddr>().ok();
    let allowed = is_adobe(&host)
        || address == Some(IpAddr::from([127, 0, 0, 1]))
        || (absolute(&host) == "api.frame.io" && port.or(usual) == Some(8_443));
    let loopback =
        address.is_some_and(|address| address.is_loopback()) || absolute(&host) == "localhost";
    match (allowed, plain && !loopback) {
        (false, _) => Decision::Pass,
        (true, true) => Decision::Refuse,
        (true, false) => Decision::Token,
    }
}

/// In lower case, without the dot that makes a name absolute.
fn absolute(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    host.strip_suffix('.').map_or(host.clone(), str::to_owned)
}

fn bare(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

fn is_adobe(host: &str) -> bool {
    let host = absolute(host);
    let mut labels: Vec<&str> = host.split('.').collect();
    let (tld, domain) = (labels.pop(), labels.pop());
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    (domain, tld) == (Some("adobe"), Some("io"))
        && labels.iter().all(|label| !label.is_empty() && label.chars().all(legal))
}

/// Text as a host, and as a rule.
fn host_text(text: &str) {
    assert_eq!(AllowedHosts::default().allow(text, None), is_adobe(text), "{text:?}");

    let other = "another.example";
    if !text.to_ascii_lowercase().contains("example") {
        assert!(!AllowedHosts::default().with_host(text).allow(other, Some(443)), "{text:?}");
        let within = AllowedHosts::none().with_subdomains_of(text);
        assert!(!within.allow(other, Some(443)), "{text:?}");
    }
}

/// `expires_in`, the claims `created_at` and `expires_in` in milliseconds, `Date`, and our wall
/// clock in seconds: a line each.
pub fn expiry(input: &[u8]) {
    let mut lines = lines(input);
    let text = |line: Option<&[u8]>| String::from_utf8_lossy(line.unwrap_or_default()).into_owned();
    let raw = text(lines.next());
    let (created_at, claimed) = (text(lines.next()), text(lines.next()));
    let date = lines.next().unwrap_or_default();
    let start = number(lines.next()).min(YEAR_9999);
    let expires_in = serde_json::from_str(&raw).unwrap_or(Value::String(raw));
    let claims = json!({ "created_at": created_at, "expires_in": claimed }).to_string();
    let token = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
    let body = json!({ "access_token": token, "expires_in": expires_in }).to_string();
    let mut answer = Response::new(Full::from(body));
    if let Ok(date) = HeaderValue::from_bytes(date) {
        answer.headers_mut().insert(DATE, date);
    }
    let clock = Arc::new(AtomicU64::new(start));
    let wall = Arc::clone(&clock);
    let tokens = source(answer, &Arc::default())
        .attempts(1)
        .refresh_on_demand()
        .wall_clock(move || UNIX_EPOCH + Duration::from_secs(wall.load(Ordering::Relaxed)))
        .build()
        .unwrap();

    runtime().block_on(async {
        let token = match tokens.token().await {
            Ok(token) => token,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Malformed, "{error}");
                return;
            }
        };
        let sent = UNIX_EPOCH + Duration::from_secs(start);
        let life = token.expires_at().duration_since(sent).unwrap();
        assert!(!life.is_zero() && life <= LONGEST_LIFE, "{life:?}");
        let milliseconds = |text: &str| text.trim().parse::<u64>().ok();
        if let Some(claimed) = milliseconds(&claimed) {
            assert!(life <= Duration::from_millis(claimed), "{life:?}");
            let date = httpdate::parse_http_date(String::from_utf8_lossy(date).trim());
            if let (Some(created), Ok(date)) = (milliseconds(&created_at), date) {
                let end = u128::from(created.saturating_add(claimed));
                let date = date.duration_since(UNIX_EPOCH).unwrap().as_millis();
                assert!(life.as_millis() <= end.saturating_sub(date), "{life:?}");
            }
        }
        if let Some(seconds) = expires_in.as_u64() {
            assert!(life <= Duration::from_secs(seconds), "{life:?}");
        }
        let status = tokens.status();
        assert_eq!(status.valid_until(), Some(token.expires_at()));
        // A token of no time at all is not renewed at once all the same.
        let latest = token.expires_at().max(sent + Duration::from_millis(100));
        assert!(status.next_refresh().is_none_or(|at| at >= sent && at <= latest));

        // It is used for the larger part of its life, and never after it, by either clock.
        tokio::time::advance(life / 2).await;
        assert!(tokens.status().is_ready());
        if start % 2 == 0 {
            tokio::time::advance(life / 2 + Duration::from_millis(1)).await;
        } else {
            clock.fetch_add(life.as_secs() + 1, Ordering::Relaxed);
        }
        assert!(!tokens.status().is_ready());
    });
}

/// A source whose IMS always answers `answer` and counts how often it was asked.
fn source(
    answer: Answer,
    asked: &Arc<AtomicUsize>,
) -> TokenSourceBuilder<tower_adobe_auth::ImsClientBuilder> {
    let asked = Arc::clone(asked);
    let counted = service_fn(move |_: Request<Full<Bytes>>| {
        asked.fetch_add(1, Ordering::Relaxed);
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(answer) }
    });
    TokenSource::builder(Credentials::new("client-id", SECRET))
        .map_ims(|ims| ims.transport(counted))
}

fn transport(
    answer: Answer,
) -> impl tower::Service<
    Request<Full<Bytes>>,
    Response = Answer,
    Error = Infallible,
    Future = impl Future<Output = Result<Answer, Infallible>> + Send,
> + Clone
+ Send
+ Sync
+ 'static {
    service_fn(move |_: Request<Full<Bytes>>| {
        let answer = answer.clone();
        async move { Ok(answer) }
    })
}

/// A runtime in virtual time.
fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

fn split_once<'a>(bytes: &'a [u8], sign: &[u8]) -> (&'a [u8], &'a [u8]) {
    match bytes.windows(sign.len()).position(|window| window == sign) {
        Some(at) => (&bytes[..at], &bytes[at + sign.len()..]),
        None => (bytes, &[]),
    }
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|byte| *byte == b'\n')
}

fn number(line: Option<&[u8]>) -> u64 {
    String::from_utf8_lossy(line.unwrap_or_default()).trim().parse().unwrap_or_default()
}
