//! [`Transport`]: sends the token request and reads the response.

use std::{future::Future, pin::Pin, pin::pin};

use bytes::{Buf, Bytes};
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use zeroize::Zeroizing;

#[cfg(feature = "reqwest")]
pub(crate) use super::reqwest_transport::default_transport;
use super::response::Answer;
use crate::error::{BoxError, ErrorKind, TokenError};

/// The longest body that is read, in bytes. A token has about 2 KB.
pub(crate) const MAX_BODY: usize = 64 * 1024;

pub(crate) type AnswerFuture<'a> =
    Pin<Box<dyn Future<Output = Result<Answer, TokenError>> + Send + 'a>>;

/// Sends one token request: no retry, no redirect. Dropping the future cancels the request.
pub(crate) trait Transport: Send + Sync {
    fn send(&self, request: Request<Bytes>) -> AnswerFuture<'_>;
}

/// Without the feature `reqwest`, the user must set a transport.
#[cfg(not(feature = "reqwest"))]
pub(crate) fn default_transport(
    _token_url: &http::Uri,
    _connect_timeout: std::time::Duration,
) -> Result<std::sync::Arc<dyn Transport>, crate::error::ConfigError> {
    Err(crate::error::ConfigError::new(
        "no HTTP client for IMS; enable the feature `reqwest`, or set one with `transport`",
    ))
}

/// Reads at most [`MAX_BODY`] bytes of the body, whatever its `content-length`.
pub(crate) async fn read_answer<B>(response: Response<B>) -> Result<Answer, TokenError>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    let (head, body) = response.into_parts();
    let mut answer = Answer {
        status: head.status,
        headers: head.headers,
        // The largest possible size: a buffer that grows would leave copies of the token behind.
        body: Zeroizing::new(Vec::with_capacity(MAX_BODY)),
        is_truncated: false,
    };
    let mut body = pin!(body);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| broken(error.into()))?;
        let Ok(mut data) = frame.into_data() else { continue };
        while data.has_remaining() {
            let chunk = data.chunk();
            let taken = chunk.len().min(MAX_BODY - answer.body.len());
            if taken == 0 {
                answer.is_truncated = true;
                return Ok(answer);
            }
            answer.body.extend_from_slice(&chunk[..taken]);
            data.advance(taken);
        }
    }
    Ok(answer)
}

pub(crate) fn broken(error: BoxError) -> TokenError {
    TokenError::with_source(ErrorKind::Connection, "the connection to IMS failed", error)
}
