//! One process of the fleet: sends a request every 100 ms and prints a line for each.

use std::{
    convert::Infallible,
    env,
    error::Error,
    fmt::Write as _,
    io::Read,
    process, thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tower::{Layer, ServiceExt, service_fn};
use tower_adobe_auth::{
    AccessToken, AdobeAuthLayer, BoxError, Environment, FileCredentials, RedisStore, TokenError,
    TokenSource,
};

/// Longer than the time before its end at which a token counts as expired.
const EXPIRY_MARGIN: Duration = Duration::from_secs(3);

/// Microseconds since 1970, by the one wall clock of this machine.
pub(crate) fn unix_micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(since.as_micros()).unwrap()
}

/// Runs until its standard input ends, so that no process outlives the test.
pub(crate) fn run(id: &str) {
    thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        process::exit(0);
    });
    let is_multi_threaded = env::var_os("CHAOS_THREADS").is_some();
    let runtime = match is_multi_threaded {
        true => tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build(),
        false => tokio::runtime::Builder::new_current_thread().enable_all().build(),
    };
    let Err(error) = runtime.unwrap().block_on(send_requests(id));
    panic!("{error}");
}

async fn send_requests(id: &str) -> Result<Infallible, BoxError> {
    let tokens = source(id).await?;
    let mut headers = reqwest::header::HeaderMap::new();
    headers.insert("x-worker", id.parse()?);
    let http = reqwest::Client::builder().default_headers(headers).no_proxy().build()?;
    let layer = AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1");
    let client = layer.replay_unauthorized().layer(http.clone());
    let url = env::var("CHAOS_API")?;
    println!();
    loop {
        let request = http.get(&url).build()?;
        let before = tokens.try_token();
        let start = Instant::now();
        let result = client.clone().oneshot(request).await;
        let took = start.elapsed();
        let after = tokens.try_token();
        let usable = is_usable_throughout(before.as_ref(), after.as_ref());
        let (outcome, text) = match result {
            Ok(response) => (format!("status-{}", response.status().as_u16()), String::new()),
            Err(error) => match find(&*error) {
                Some(token_error) => ("failed".to_owned(), chain(token_error)),
                None => ("broken".to_owned(), chain(&*error)),
            },
        };
        let store = if tokens.status().store_error().is_none() { "well" } else { "ill" };
        println!(
            "result {outcome} {} {} {} {usable} {store} {text} end",
            took.as_millis(),
            secret(before.as_ref()),
            secret(after.as_ref()),
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Returns whether a usable token was cached while a request was made, and at its end.
fn is_usable_throughout(before: Option<&AccessToken>, after: Option<&AccessToken>) -> bool {
    let (Some(before), Some(after)) = (before, after) else { return false };
    before.generation() == after.generation()
        || before.expires_at() > SystemTime::now() + EXPIRY_MARGIN
}

async fn source(id: &str) -> Result<TokenSource, BoxError> {
    let file = env::var("CHAOS_FILE")?;
    // The file may be half written at the moment.
    let credentials = loop {
        match FileCredentials::open(&file) {
            Ok(credentials) => break credentials.with_poll_interval(Duration::from_secs(1)),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    let http = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http();
    let id = id.to_owned();
    // Tells IMS the process and the time of the request.
    let transport = service_fn(move |mut request: http::Request<Full<bytes::Bytes>>| {
        let headers = request.headers_mut();
        headers.insert("x-worker", id.parse().unwrap());
        headers.insert("x-sent-at", unix_micros().into());
        http.request(request)
    });
    let tokens = TokenSource::builder_from_provider(credentials)
        .environment(Environment::custom(env::var("CHAOS_IMS")?)?)
        .request_timeout(super::REQUEST_TIMEOUT)
        .acquire_timeout(super::ACQUIRE_TIMEOUT)
        .map_ims(|ims| ims.transport(transport))
        .store(RedisStore::new(env::var("CHAOS_STORE")?)?)
        .lease_ttl(super::LEASE_TTL)
        .build()?;
    Ok(tokens)
}

fn secret(token: Option<&AccessToken>) -> &str {
    token.map_or("none", AccessToken::expose_secret)
}

fn find<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a TokenError> {
    error.downcast_ref().or_else(|| find(error.source()?))
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let _ = write!(text, ": {error}");
        source = error.source();
    }
    text.replace('\n', " ")
}
