//! Reaches IMS with reqwest.

use std::{sync::Arc, time::Duration};

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
        let request = reqwest::Request::try_from(request).map_err(no_answer)?;
        let url = request.url().clone();
        let response = self.client.execute(request).await.map_err(no_answer)?;
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

/// The client that is used where none is given.
pub(crate) fn default_transport(
    token_url: &Uri,
    connect_timeout: Duration,
) -> Result<Arc<dyn Transport>, ConfigError> {
    let mut client = Client::builder()
        .connect_timeout(connect_timeout)
        .redirect(redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        // A token is asked for about once a day. A connection kept until then is dead, and one
        // kept at all may belong to a runtime that has ended since.
        .pool_max_idle_per_host(0);
    // Plain http is for loopback alone: through a proxy it would carry the secret in clear.
    if token_url.scheme() == Some(&Scheme::HTTP) {
        client = client.no_proxy();
    }
    let client = client
        .build()
        .map_err(|error| ConfigError::with_source("the HTTP client cannot be built", error))?;
    Ok(Arc::new(ReqwestTransport::new(client)))
}

/// The cause is kept, without the URL: after a redirect it is not ours, and may hold anything.
fn no_answer(error: reqwest::Error) -> TokenError {
    let error = error.without_url();
    if error.is_timeout() {
        return TokenError::with_source(ErrorKind::Timeout, "IMS did not answer in time", error);
    }
    if error.is_connect() {
        let message = "IMS could not be reached";
        return TokenError::with_source(ErrorKind::Connection, message, error);
    }
    broken(error.into())
}
