//! Promise 5: no secret and no token in any `Debug`, any error, any event or span.
//!
//! One walk over every public type, in a run with real sockets, under a subscriber that takes
//! everything at `TRACE`, the `log` records of other crates too. What may tell a secret is
//! searched for each of them in each of their encodings.

#![cfg(feature = "reqwest")]
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    convert::Infallible,
    error::Error,
    fmt::Debug,
    fs, io,
    path::Path,
    sync::{Arc, LazyLock, Mutex},
    time::Duration,
};

use base64::{Engine, engine::general_purpose as base64_of};
use http::{Request, Response};
use tokio::time::sleep;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_adobe_auth::{
    AccessToken, AcquireTimeout, Acquired, AdobeAuthLayer, BoxError, CommitOutcome, Credentials,
    Environment, ErrorKind, FileCredentials, ImsClient, InsecureUri, LeaseRequest, MemoryStore,
    MinLifetime, NoAuthorization, NoReplay, PlainCalls, ReplayUnauthorized, Replayed, StoreError,
    StoreKey, StoredRecord, TokenError, TokenResponse, TokenSource, TokenSources,
    mock::{Answer, MockIms, StoreCheck, check_token_store},
};
use tracing_subscriber::fmt::{MakeWriter, format::FmtSpan};

const SECRET: &str = "p8e-a+b&c=d%41 é/current";
const NEXT_SECRET: &str = "p8e-e~f?g#h /next";

/// Public names that are no values: traits.
const TRAITS: [&str; 8] = [
    "FetchToken",
    "Message",
    "ProvideCredentials",
    "Repeat",
    "Replay",
    "Reply",
    "PlainStore",
    "TokenStore",
];

/// Everything that any crate logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

static LOG: LazyLock<Log> = LazyLock::new(Log::default);

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

/// The records of crates that log without `tracing`.
impl log::Log for Log {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let line = format!("{} {} {}\n", record.level(), record.target(), record.args());
        self.0.lock().unwrap().extend_from_slice(line.as_bytes());
    }

    fn flush(&self) {}
}

impl Log {
    fn install(&self) {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::TRACE)
            .with_span_events(FmtSpan::FULL)
            .with_ansi(false)
            .with_writer(self.clone())
            .init();
        log::set_logger(&*LOG).unwrap();
        log::set_max_level(log::LevelFilter::Trace);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

/// What was shown so far, and what must not be in it.
#[derive(Default)]
struct Walk {
    seen: BTreeSet<&'static str>,
    kinds: BTreeSet<String>,
    shown: Vec<(&'static str, String)>,
    needles: Vec<String>,
}

impl Walk {
    /// Takes the `Debug` of a public type, on one line and on many.
    fn show(&mut self, name: &'static str, value: &impl Debug) {
        self.seen.insert(name);
        self.shown.push((name, format!("{value:?}\n{value:#?}")));
    }

    /// Takes the `Debug` and the `Display` of an error, and of all its causes.
    fn tell(&mut self, name: &'static str, error: &(dyn Error + 'static)) {
        self.show(name, &error);
        let mut causes = Some(error);
        while let Some(cause) = causes {
            causes = cause.source();
            self.shown.push((name, format!("{cause}\n{cause:#}\n{cause:?}\n{cause:#?}")));
        }
    }

    fn tell_token_error(&mut self, error: &TokenError) {
        self.tell("TokenError", error);
        self.show("ErrorKind", &error.kind());
        self.kinds.insert(format!("{:?}", error.kind()));
        let said = [error.oauth_error(), error.oauth_error_description(), error.debug_id()];
        self.shown.push(("TokenError", format!("{said:?}")));
    }

    /// What the layer failed with.
    fn tell_box_error(&mut self, error: &BoxError) {
        self.show("BoxError", error);
        self.shown.push(("BoxError", format!("{error}")));
        if let Some(error) = error.downcast_ref::<TokenError>() {
            self.tell_token_error(error);
        }
        if let Some(error) = error.downcast_ref::<InsecureUri>() {
            self.tell("InsecureUri", error);
        }
    }

    fn must_not_tell(&mut self, secret: &str) {
        let form: String = form_urlencoded::byte_serialize(secret.as_bytes()).collect();
        let percent = form.replace('+', "%20");
        self.needles.extend([secret.to_owned(), form.to_lowercase(), percent.to_lowercase()]);
        self.needles.extend([form, percent]);
        for text in [secret.to_owned(), format!("{}:{secret}", MockIms::CLIENT_ID)] {
            self.needles.push(base64_of::STANDARD_NO_PAD.encode(&text));
            self.needles.push(base64_of::URL_SAFE_NO_PAD.encode(&text));
        }
    }

    /// A token, and each part of it: header, claims and signature.
    fn must_not_tell_token(&mut self, token: &str) {
        let parts: Vec<_> = token.split('.').collect();
        assert_eq!(parts.len(), 3, "it is a JWT");
        self.must_not_tell(token);
        self.needles.extend(parts.into_iter().map(str::to_owned));
    }

    fn assert_nothing_told(&self) {
        assert!(self.needles.len() > 30 && self.needles.iter().all(|needle| needle.len() > 8));
        for needle in &self.needles {
            for (name, text) in &self.shown {
                assert!(!text.contains(needle), "{name} tells {needle}: {text}");
            }
            let log = LOG.text();
            let line = log.lines().find(|line| line.contains(needle));
            assert!(line.is_none(), "an event tells {needle}: {line:?}");
        }
    }
}

/// The types that a `mod` re-exports.
fn public_types(file: &str) -> BTreeSet<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
    let uses = text.split("pub use ").skip(1).map(|rest| rest.split(';').next().unwrap());
    let names = uses.flat_map(|list| list.split(|c: char| !c.is_alphanumeric() && c != '_'));
    names.filter(|name| name.starts_with(char::is_uppercase)).map(str::to_owned).collect()
}

fn credentials() -> Credentials {
    Credentials::new(MockIms::CLIENT_ID, SECRET)
        .with_next_secret(NEXT_SECRET)
        .with_org_id("1234@AdobeOrg")
}

/// A source that fails soon.
fn source(url: &str) -> TokenSource {
    TokenSource::builder(credentials())
        .environment(Environment::custom(url).unwrap())
        .request_timeout(Duration::from_millis(300))
        .attempts(1)
        .build()
        .unwrap()
}

fn json(status: u16, body: &str) -> Answer {
    Answer::raw(status, "application/json", body)
        .header("x-debug-id", &format!("1a {SECRET_ASCII}"))
}

/// Of the current secret, what a header can hold.
const SECRET_ASCII: &str = "p8e-a%2Bb%26c%3Dd%2541+%C3%A9%2Fcurrent";

#[tokio::test]
async fn neither_secret_nor_token_is_told_by_any_type_or_event() {
    LOG.install();
    let ims = MockIms::builder().client(MockIms::CLIENT_ID, SECRET).start().await;
    let mut walk = Walk::default();
    walk.must_not_tell(SECRET);
    walk.must_not_tell(NEXT_SECRET);
    settings(&mut walk);

    let token = success(&mut walk, &ims).await;
    layers(&mut walk, &ims, &token).await;
    refusals_and_malformed_answers(&mut walk, &ims, token.expose_secret()).await;
    recovery(&mut walk, &ims).await;
    other_failures(&mut walk).await;
    store(&mut walk, &ims).await;
    mock(&mut walk, &ims);

    // A flight of a dropped source may still have a word to say.
    sleep(Duration::from_millis(50)).await;
    walk.assert_nothing_told();
    let log = LOG.text();
    for words in [
        "obtained an access token",
        "an API refused the access token",
        "credentials file is invalid",
        "took the access token of another process from the store",
        "could not obtain an access token",
        "passed a request through, because its host is not allowed",
        "starting new connection",
        "hyper_util",
    ] {
        assert!(log.contains(words), "the log lacks {words:?}");
    }
    for kind in [
        ErrorKind::Rejected,
        ErrorKind::Throttled,
        ErrorKind::Unavailable,
        ErrorKind::Connection,
        ErrorKind::Timeout,
        ErrorKind::Malformed,
        ErrorKind::Fetch,
        ErrorKind::AcquireTimeout,
        ErrorKind::Lifetime,
        ErrorKind::Panicked,
        ErrorKind::NoRuntime,
    ] {
        assert!(walk.kinds.contains(&format!("{kind:?}")), "no error was {kind:?}");
    }
    let mut public = public_types("src/lib.rs");
    public.extend(public_types("src/mock/mod.rs"));
    assert!(public.len() > 25, "{public:?}");
    public.retain(|name| !walk.seen.contains(&**name) && !TRAITS.contains(&&**name));
    if cfg!(not(feature = "reqwest-middleware")) {
        public.remove("AdobeAuthMiddleware");
    }
    if cfg!(not(feature = "file-store")) {
        public.remove("FileStore");
    }
    if cfg!(not(feature = "redis-store")) {
        public.remove("RedisStore");
    }
    assert!(public.is_empty(), "these public types are not walked: {public:?}");
}

/// What is made before anything is sent.
fn settings(walk: &mut Walk) {
    walk.show("Credentials", &credentials());
    walk.show("ClientSecret", credentials().client_secret());
    walk.show("Scopes", credentials().scopes());
    let builder = ImsClient::builder(credentials());
    walk.show("ImsClientBuilder", &builder);
    walk.show("ImsClient", &builder.build().unwrap());
    walk.show("TokenSourceBuilder", &TokenSource::builder(credentials()));
    let custom = Environment::custom("https://ims.example.com").unwrap();
    if let Environment::Custom(custom) = &custom {
        walk.show("CustomEnvironment", custom);
    }
    walk.show("Environment", &custom);
    walk.show("AcquireTimeout", &AcquireTimeout(Duration::ZERO));
    walk.show("MinLifetime", &MinLifetime(Duration::ZERO));
    walk.show("NoAuthorization", &NoAuthorization);

    // The secret where it does not belong.
    for document in [
        serde_json::json!({ "CLIENT_ID": [SECRET], "CLIENT_SECRETS": [SECRET] }),
        serde_json::json!({ "CLIENT_ID": SECRET, "CLIENT_SECRETS": { SECRET: 1 } }),
        serde_json::json!({ "CLIENT_ID": "id", "CLIENT_SECRETS": [SECRET], "ORG_ID": SECRET }),
        serde_json::json!({ "CLIENT_ID": "id", "CLIENT_SECRETS": [SECRET], "SCOPES": [SECRET] }),
        serde_json::json!([SECRET]),
    ] {
        for text in [document.to_string(), document.to_string().replace('}', "")] {
            match Credentials::from_console_json(text) {
                Ok(_) => {}
                Err(error) => walk.tell("ConfigError", &error),
            }
        }
    }
    let url = format!("https://id:{SECRET_ASCII}@ims.example.com/{SECRET_ASCII}?{SECRET_ASCII}");
    walk.tell("ConfigError", &Environment::custom(url).unwrap_err());
    let header = Credentials::new("id\n", SECRET).with_next_secret("");
    walk.tell("ConfigError", &ImsClient::new(header).unwrap_err());
}

/// A token by the client and one by the source. The latter is returned.
async fn success(walk: &mut Walk, ims: &MockIms) -> AccessToken {
    let client = ImsClient::builder(credentials())
        .environment(Environment::custom(ims.url()).unwrap())
        .build()
        .unwrap();
    let response = client.request_token().await.unwrap();
    walk.must_not_tell_token(response.expose_secret());
    walk.show("TokenResponse", &response);

    let tokens = source(ims.url());
    let mut changes = tokens.subscribe();
    walk.show("TokenSource", &tokens);
    let token = tokens.token().await.unwrap();
    walk.must_not_tell_token(token.expose_secret());
    walk.show("AccessToken", &token);
    walk.show("TokenSource", &tokens);
    walk.show("Status", &changes.changed().await.unwrap());
    walk.show("Status", &tokens.status());
    walk.show("StatusChanges", &changes);
    let renewed = tokens.refresh().await.unwrap();
    walk.must_not_tell_token(renewed.expose_secret());
    tokens.invalidate(&token);
    renewed
}

async fn layers(walk: &mut Walk, ims: &MockIms, token: &AccessToken) {
    let tokens = source(ims.url());
    let layer = AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1");
    let reqwest = layer.layer(reqwest::Client::builder().no_proxy().build().unwrap());
    let get = |url: &str| reqwest::Request::new(reqwest::Method::GET, url.parse().unwrap());

    // Without a token in hand, then with one, then to a host that gets none.
    let mut service = reqwest.clone();
    let waiting = service.ready().await.unwrap().call(get(ims.api_url()));
    walk.show("ResponseFuture", &waiting);
    assert_eq!(waiting.await.unwrap().status(), 200);
    walk.must_not_tell_token(tokens.token().await.unwrap().expose_secret());
    let sent = service.ready().await.unwrap().call(get(ims.api_url()));
    walk.show("ResponseFuture", &sent);
    assert_eq!(sent.await.unwrap().status(), 200);
    walk.show("AdobeAuth", &reqwest);
    walk.show("AdobeAuthLayer", &layer);
    walk.show("AllowedHosts", layer.allowed_hosts());
    let storage = ims.api_url().replace("127.0.0.1", "localhost") + "/storage/x";
    assert_eq!(service.ready().await.unwrap().call(get(&storage)).await.unwrap().status(), 200);

    // The request itself, as the inner service sees it.
    let inner = service_fn(|request: Request<()>| async move {
        tracing::debug!(?request, headers = ?request.headers(), "sent");
        Ok::<_, Infallible>(Response::new(format!("{request:?}\n{request:#?}")))
    });
    let request = Request::get("https://firefly-api.adobe.io/v3/models").body(()).unwrap();
    let shown = layer.layer(inner).oneshot(request).await.unwrap().into_body();
    assert!(shown.contains("Sensitive"), "{shown}");
    walk.shown.push(("AdobeAuth", shown));

    // Refused: plain http, with what must not be told in the URI.
    let secret = token.expose_secret();
    for uri in [
        format!("http://x.adobe.io/path?access_token={secret}"),
        format!("http://{secret}@x.adobe.io/path"),
        format!("http://u:{secret}@x.adobe.io/path?{secret}#{secret}"),
    ] {
        let error = service.ready().await.unwrap().call(get(&uri));
        walk.show("ResponseFuture", &error);
        walk.tell_box_error(&error.await.unwrap_err());
        let request = Request::get(uri.split('#').next().unwrap()).body(()).unwrap();
        walk.tell_box_error(&layer.layer(inner).oneshot(request).await.unwrap_err());
    }
    assert!(walk.seen.contains("InsecureUri"));

    #[cfg(feature = "reqwest-middleware")]
    walk.show("AdobeAuthMiddleware", &tower_adobe_auth::AdobeAuthMiddleware::from(layer));
}

async fn refusals_and_malformed_answers(walk: &mut Walk, ims: &MockIms, token: &str) {
    let echo = serde_json::to_string(&format!(
        "bad {SECRET}, {SECRET_ASCII}, {NEXT_SECRET}\r\nINFO forged"
    ))
    .unwrap();
    let refusal = format!(r#"{{"error":{echo},"error_description":{echo}}}"#);
    let parts: Vec<_> = token.split('.').collect();
    let with_token = |life: &str| {
        format!(
            r#"{{"access_token":"{token}","expires_in":{life},"error_description":
                "no {token}, no {}, no {}, no {}"}}"#,
            parts[0], parts[1], parts[2]
        )
    };

    for answer in [
        Answer::invalid_client(),
        Answer::throttled(1),
        Answer::unavailable(),
        Answer::disconnect(),
        Answer::hang(),
        json(400, &refusal),
        json(401, &refusal),
        json(500, &refusal),
        json(200, &refusal),
        json(200, &with_token("0")),
        json(200, &with_token("1000000000000")),
        json(200, &with_token(&format!(r#""{token}""#))),
        json(400, &with_token("3600")),
        json(200, &with_token("3600").replacen('}', "", 1)),
        json(200, &with_token("3600").replacen(token, &format!(r"{token}\n"), 1)),
        json(200, &format!(r#"{{"access_token":["{token}"],"{token}":1}}"#)),
        json(200, &format!(r#""{token}""#)),
        json(302, "").header("location", &format!("http://127.0.0.1:1/?{SECRET_ASCII}#{token}")),
    ] {
        ims.respond_with(answer.clone());
        let tokens = source(ims.url());
        walk.show("Answer", &answer);

        let error = tokens.token().await.unwrap_err();

        walk.tell_token_error(&error);
        walk.show("Status", &tokens.status());
        walk.show("TokenSource", &tokens);
        let layer = AdobeAuthLayer::new(tokens).allow_host("127.0.0.1");
        let request = reqwest::Request::new(reqwest::Method::GET, ims.api_url().parse().unwrap());
        let error = layer.layer(reqwest::Client::new()).oneshot(request).await.unwrap_err();
        walk.tell_box_error(&error);
    }
    ims.respond_normally();
}

/// A token that an API refuses, and credentials of a file that is no good in between.
async fn recovery(walk: &mut Walk, ims: &MockIms) {
    let document = serde_json::json!({
        "CLIENT_ID": MockIms::CLIENT_ID, "CLIENT_SECRETS": [SECRET, NEXT_SECRET], "SCOPES": ["openid"],
    });
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("credentials.json");
    fs::write(&path, document.to_string()).unwrap();
    let file = FileCredentials::open(&path).unwrap();
    walk.show("FileCredentials", &file);
    let builder = TokenSource::builder_from_provider(file);
    walk.show("TokenSourceBuilder", &builder);
    let tokens = builder.environment(Environment::custom(ims.url()).unwrap()).build().unwrap();
    fs::write(&path, document.to_string().replace('}', "")).unwrap();

    let layer = AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1").replay_unauthorized();
    walk.show("AdobeAuthLayer", &layer);
    let client = layer.layer(reqwest::Client::builder().no_proxy().build().unwrap());
    walk.show("AdobeAuth", &client);
    walk.must_not_tell_token(tokens.token().await.unwrap().expose_secret());
    ims.revoke_all();
    let request = reqwest::Request::new(reqwest::Method::GET, ims.api_url().parse().unwrap());
    let response = client.oneshot(request).await.unwrap();
    assert_eq!(response.status(), 200);
    walk.show("Replayed", response.extensions().get::<Replayed>().unwrap());
    walk.must_not_tell_token(tokens.token().await.unwrap().expose_secret());
    walk.show("TokenSource", &tokens);
    walk.show("NoReplay", &NoReplay);
    walk.show("ReplayUnauthorized", &ReplayUnauthorized);
}

async fn other_failures(walk: &mut Walk) {
    let fetched = |error: fn() -> TokenError| {
        TokenSource::builder_from_fetcher(move || async move { Err::<TokenResponse, _>(error()) })
            .attempts(1)
            .build()
            .unwrap()
    };
    let permanent = fetched(|| TokenError::permanent("gone"));
    walk.tell_token_error(&permanent.token().await.unwrap_err());
    let transient = fetched(|| TokenError::transient("away"));
    walk.tell_token_error(&transient.token().await.unwrap_err());
    let panics = fetched(|| panic!("a bug"));
    walk.tell_token_error(&panics.token().await.unwrap_err());

    // Nobody listens there.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let nobody = format!("http://127.0.0.1:{port}");
    walk.tell_token_error(&source(&nobody).token().await.unwrap_err());
    let outside = std::thread::spawn(move || {
        let client = ImsClient::builder(credentials())
            .environment(Environment::custom(nobody).unwrap())
            .build()
            .unwrap();
        let mut request = tokio_test::task::spawn(async move { client.request_token().await });
        match request.poll() {
            std::task::Poll::Ready(result) => result.unwrap_err(),
            std::task::Poll::Pending => panic!("it waits"),
        }
    });
    walk.tell_token_error(&outside.join().unwrap());

    let day = Duration::from_secs(86_400);
    let opaque = TokenSource::from_fetcher(move || async move { Ok(TokenResponse::new("t", day)) });
    opaque.token().await.unwrap();
    let silent = TokenSource::from_fetcher(std::future::pending::<Result<TokenResponse, _>>);
    let inner = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(())) });
    for (tokens, request) in [
        (opaque, Request::get("https://x.adobe.io/").extension(MinLifetime(day))),
        (silent, Request::get("https://x.adobe.io/").extension(AcquireTimeout(Duration::ZERO))),
    ] {
        let service = AdobeAuthLayer::new(tokens).layer(inner);
        walk.tell_box_error(&service.oneshot(request.body(()).unwrap()).await.unwrap_err());
    }
}

/// A token that two sources share.
async fn store(walk: &mut Walk, ims: &MockIms) {
    let store = MemoryStore::default();
    let key = StoreKey::new("id", *b"p8e-of-the-store-p8e-of-the-stor");
    walk.must_not_tell("p8e-of-the-store-p8e-of-the-stor");
    for _ in 0..2 {
        let builder = TokenSource::builder(credentials())
            .environment(Environment::custom(ims.url()).unwrap())
            .encrypt_with(key.clone())
            .store(store.clone());
        walk.show("TokenSourceBuilder", &builder);
        let tokens = builder.build().unwrap();
        walk.must_not_tell_token(tokens.token().await.unwrap().expose_secret());
        walk.show("TokenSource", &tokens);
    }
    walk.show("StoreKey", &key);
    walk.show("MemoryStore", &store);
    let record = StoredRecord::new(1, SECRET);
    walk.show("StoredRecord", &record);
    walk.show("Acquired", &Acquired::new(Some(record)));
    #[cfg(feature = "file-store")]
    walk.show("FileStore", &tower_adobe_auth::FileStore::in_folder("folder"));
    #[cfg(feature = "redis-store")]
    {
        use tower_adobe_auth::RedisStore;
        let url = format!("redis://user:{SECRET_ASCII}@127.0.0.1:1/0");
        walk.show("RedisStore", &RedisStore::new(&url).unwrap());
        let url = url.replace("/0", "/none");
        walk.tell("ConfigError", &RedisStore::new(&url).unwrap_err());
    }
    walk.show("LeaseRequest", &LeaseRequest::new("owner", Duration::from_secs(1)));
    walk.show("CommitOutcome", &CommitOutcome::Committed);
    walk.show("PlainCalls", &PlainCalls(store.clone()));
    let faults = check_token_store(MemoryStore::default).await.unwrap_err();
    walk.show("StoreFaults", &faults);
    walk.show("StoreCheck", &StoreCheck::new(MemoryStore::default));
    walk.tell("StoreError", &StoreError::new("out of order"));
}

fn mock(walk: &mut Walk, ims: &MockIms) {
    let sources =
        TokenSources::new(|key: &String| TokenSource::new(Credentials::new("id", key.as_str())));
    sources.get(&SECRET.to_owned()).unwrap();
    walk.show("TokenSources", &sources);
    walk.show("MockIms", ims);
    walk.show("MockImsBuilder", &MockIms::builder().client("id", SECRET));
    walk.show("Gate", &ims.hold());
    let requests = ims.recorded_token_requests();
    assert!(requests.iter().any(|request| request.form("client_secret") == Some(SECRET)));
    walk.show("TokenRequest", &requests);
}

/// No allocation can be looked at after it was freed without unsafe code, so that this looks at
/// what holds the secrets instead: types that wipe themselves.
#[test]
fn secrets_are_held_in_types_that_wipe_themselves() {
    fn is_wiped<T: zeroize::ZeroizeOnDrop>() {}
    is_wiped::<secrecy::SecretString>();
    is_wiped::<zeroize::Zeroizing<Vec<u8>>>();

    for (file, declaration) in [
        ("credentials/secret.rs", "pub struct ClientSecret(SecretString);"),
        ("credentials/json.rs", "type Text = Zeroizing<String>;"),
        ("ims/token_response.rs", "    pub(crate) access_token: SecretString,"),
        ("source/access_token.rs", "    secret: SecretString,"),
        ("store/token_store.rs", "    value: Zeroizing<Vec<u8>>,"),
        ("store/key.rs", "    secret: Arc<Zeroizing<[u8; LENGTH]>>,"),
        ("fleet/record.rs", "    access_token: Zeroizing<String>,"),
        ("ims/response.rs", "    pub(crate) body: Zeroizing<Vec<u8>>,"),
        (
            "ims/request.rs",
            "fn form(credentials: &Credentials, secret: &ClientSecret) -> Zeroizing<Vec<u8>> {",
        ),
    ] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file);
        let text = fs::read_to_string(path).unwrap();
        assert!(text.contains(declaration), "{file} lacks `{declaration}`");
    }
}

/// The search would find what it looks for.
#[test]
fn the_walk_finds_a_secret_in_each_encoding() {
    let form: String = form_urlencoded::byte_serialize(SECRET.as_bytes()).collect();
    let basic = base64_of::STANDARD.encode(format!("{}:{SECRET}", MockIms::CLIENT_ID));
    let mut walk = Walk::default();
    walk.must_not_tell(SECRET);

    for text in [SECRET, &form, &form.to_lowercase(), SECRET_ASCII, &basic] {
        let found = |needle: &String| format!("<{text}>").contains(needle.as_str());
        assert!(walk.needles.iter().any(found), "{text}");
    }
}
