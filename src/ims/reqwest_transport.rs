//! Reaches IMS with reqwest.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Uri, uri::Scheme};
use http_body_util::BodyExt;
use reqwest::{Client, redirect};

use super::{
    response::Answer,
    transport::{AnswerFuture, Transport, broken, read_answer},
};
use crate::error::{ConfigError, ErrorKind, TokenError};

/// A [`Transport`] over a `reqwest::Client`.
pub(crate) struct ReqwestTransport {
    client: Client,
}

impl ReqwestTransport {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    async fn exchange(&self, request: Request<Bytes>) -> Result<Answer, TokenError> {
        let request = reqwest::Request::try_from(request).map_err(no_response)?;
        let url = request.url().clone();
        let response = self.client.execute(request).await.map_err(no_response)?;
        if *response.url() != url {
            return Err(TokenError::new(
                ErrorKind::Malformed,
                "the reqwest client followed a redirect of the token request; build it with \
                 redirect::Policy::none()",
            ));
        }
        let response = http::Response::<reqwest::Body>::from(response);
        read_answer(response.map(|body| body.map_err(reqwest::Error::without_url))).await
    }
}

impl Transport for ReqwestTransport {
    fn send(&self, request: Request<Bytes>) -> AnswerFuture<'_> {
        Box::pin(self.exchange(request))
    }
}

/// The clients of sources without a client of their own, by their settings. A process has as many as
/// it has different settings in use, usually one.
static CLIENTS: Mutex<Vec<(Settings, Weak<ReqwestTransport>)>> = Mutex::new(Vec::new());

/// All that distinguishes one default client from another.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Settings {
    connect_timeout: Duration,
    /// `true` if IMS is reached over plain `http`, which is for loopback only.
    is_plain: bool,
}

/// Returns the default client, which all sources with the same settings share.
///
/// Building one takes milliseconds and 100 KiB, mostly for root certificates. It can be shared
/// between runtimes, because it keeps neither connections nor tasks between two requests.
pub(crate) fn default_transport(
    token_url: &Uri,
    connect_timeout: Duration,
) -> Result<Arc<dyn Transport>, ConfigError> {
    let is_plain = token_url.scheme() == Some(&Scheme::HTTP);
    let settings = Settings { connect_timeout, is_plain };
    if let Some(transport) = find(&mut clients(), settings) {
        return Ok(transport);
    }
    // Not under the lock: reqwest logs, and loggers are foreign code.
    let built = Arc::new(ReqwestTransport::new(build(settings)?));
    let mut clients = clients();
    // Another thread may have built the same client in the meantime.
    if let Some(transport) = find(&mut clients, settings) {
        return Ok(transport);
    }
    clients.push((settings, Arc::downgrade(&built)));
    Ok(built)
}

fn clients() -> MutexGuard<'static, Vec<(Settings, Weak<ReqwestTransport>)>> {
    CLIENTS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Finds the client with these settings, and forgets those that no source uses any more.
fn find(
    clients: &mut Vec<(Settings, Weak<ReqwestTransport>)>,
    settings: Settings,
) -> Option<Arc<ReqwestTransport>> {
    clients.retain(|(_, client)| client.strong_count() > 0);
    let (_, client) = clients.iter().find(|(known, _)| *known == settings)?;
    client.upgrade()
}

/// Builds a client with every setting explicit whose default depends on reqwest's features.
///
/// Cargo unifies features: reqwest has those that any crate of the program enables, and they turn on
/// decompression, OpenSSL, another resolver and HTTP/2. Only the proxy is left to the program: the
/// features `socks` and `system-proxy` let this client use the proxy that its other clients use.
fn build(Settings { connect_timeout, is_plain }: Settings) -> Result<Client, ConfigError> {
    let mut client = Client::builder()
        .tls_backend_rustls()
        .http1_only()
        .no_hickory_dns()
        .no_gzip()
        .no_brotli()
        .no_deflate()
        .no_zstd()
        .connect_timeout(connect_timeout)
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        // Tokens are requested about once a day. A connection kept that long is dead, and its task
        // would belong to a runtime that may have shut down since.
        .pool_max_idle_per_host(0);
    // A proxy would read the secret, and loopback has none in between.
    if is_plain {
        client = client.no_proxy();
    }
    client
        .build()
        .map_err(|error| ConfigError::with_source("cannot build the HTTP client for IMS", error))
}

/// Keeps the cause, but not its URL: after a redirect, the server chose that URL.
fn no_response(error: reqwest::Error) -> TokenError {
    let error = error.without_url();
    if error.is_timeout() {
        return TokenError::with_source(ErrorKind::Timeout, "IMS did not respond in time", error);
    }
    if error.is_connect() {
        let message = "IMS could not be reached";
        return TokenError::with_source(ErrorKind::Connection, message, error);
    }
    broken(error.into())
}
