//! What the token endpoint can be told to answer.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, StatusCode};

use super::reply;

/// One answer of the token endpoint, for [`MockIms::respond_with`] and [`MockIms::respond_next`].
///
/// A constructor says what is answered; [`after`](Self::after) holds any answer back, and
/// [`header`](Self::header) adds a header to it.
///
/// ```
/// use std::time::Duration;
/// use tower_adobe_auth::mock::{Answer, MockIms};
///
/// let ims = MockIms::start_blocking();
/// ims.respond_next([
///     Answer::unavailable().header("retry-after", "2"),
///     Answer::throttled(30),
///     Answer::invalid_client().after(Duration::from_millis(200)),
///     Answer::raw(200, "text/html", "<html>a captive portal</html>"),
/// ]);
/// ```
///
/// [`MockIms::respond_with`]: super::MockIms::respond_with
/// [`MockIms::respond_next`]: super::MockIms::respond_next
#[derive(Clone)]
pub struct Answer {
    pub(super) kind: Kind,
    pub(super) delay: Duration,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
}

#[derive(Clone)]
pub(super) enum Kind {
    // The request is judged on its merits.
    Normal,
    // An error as RFC 6749 shapes it.
    Error { status: StatusCode, error: String, description: String },
    // Something else; `debug_id` asks for the header that IMS sends with its failures.
    Raw { status: StatusCode, body: Bytes, debug_id: bool },
    // The request is read and never answered.
    Hang,
    // The request is read and its connection closed.
    Disconnect,
}

impl Answer {
    /// What IMS would answer: a token if the request deserves one, the fitting error if not.
    #[must_use]
    pub fn normal() -> Self {
        Self::of(Kind::Normal)
    }

    /// [`normal`](Self::normal), held back for `delay`. The token lives from the request's
    /// arrival, so a slow answer brings one that is partly used up.
    #[must_use]
    pub fn delayed(delay: Duration) -> Self {
        Self::normal().after(delay)
    }

    /// An error as RFC 6749 shapes it: `{"error", "error_description"}`, with an `x-debug-id`.
    ///
    /// # Panics
    ///
    /// If `status` is not a final HTTP status (200 to 999).
    #[must_use]
    pub fn error(status: u16, error: impl Into<String>, description: impl Into<String>) -> Self {
        Self::of(Kind::Error {
            status: reply::final_status(status),
            error: error.into(),
            description: description.into(),
        })
    }

    /// What a wrong or deleted secret gets: 400 `invalid_client`.
    #[must_use]
    pub fn invalid_client() -> Self {
        Self::error(400, "invalid_client", "invalid client_secret parameter")
    }

    /// What a client without the client credentials grant gets: 400 `unauthorized_client`.
    #[must_use]
    pub fn unauthorized_client() -> Self {
        Self::error(400, "unauthorized_client", "the client may not use this grant")
    }

    /// What a scope that the client does not have gets: 400 `invalid_scope`.
    #[must_use]
    pub fn invalid_scope() -> Self {
        Self::error(400, "invalid_scope", "the client does not have this scope")
    }

    /// An outage: 503 without `Retry-After`, and a body that is not JSON.
    #[must_use]
    pub fn unavailable() -> Self {
        Self::plain(StatusCode::SERVICE_UNAVAILABLE, "Service Unavailable")
    }

    /// Throttling: 429 with `Retry-After` in seconds.
    #[must_use]
    pub fn throttled(retry_after: u64) -> Self {
        let mut answer = Self::plain(StatusCode::TOO_MANY_REQUESTS, "Too Many Requests");
        answer.headers.push((RETRY_AFTER, HeaderValue::from(retry_after)));
        answer
    }

    /// Any answer at all, sent as it stands.
    ///
    /// # Panics
    ///
    /// If `status` is not a final HTTP status (200 to 999), or `content_type` no header value.
    #[must_use]
    pub fn raw(status: u16, content_type: &str, body: impl Into<Vec<u8>>) -> Self {
        let body = Bytes::from(body.into());
        Self::of(Kind::Raw { status: reply::final_status(status), body, debug_id: false })
            .header("content-type", content_type)
    }

    /// No answer: the request is read, and the connection stays open and silent until the client
    /// gives up, [`MockIms::go_down`](super::MockIms::go_down) or the mock's end.
    #[must_use]
    pub fn hang() -> Self {
        Self::of(Kind::Hang)
    }

    /// No answer: the request is read, and the connection closed.
    #[must_use]
    pub fn disconnect() -> Self {
        Self::of(Kind::Disconnect)
    }

    /// Holds this answer back for `delay`, in addition to
    /// [`MockIms::set_delay`](super::MockIms::set_delay).
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    /// Adds a header to this answer, in the place of one of the same name.
    ///
    /// # Panics
    ///
    /// If `name` or `value` is not legal in HTTP.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        let name = HeaderName::try_from(name).expect("a legal header name");
        let value = HeaderValue::try_from(value).expect("a legal header value");
        self.headers.push((name, value));
        self
    }

    fn plain(status: StatusCode, body: &'static str) -> Self {
        let mut answer = Self::of(Kind::Raw {
            status,
            body: Bytes::from_static(body.as_bytes()),
            debug_id: true,
        });
        answer.headers.push((CONTENT_TYPE, HeaderValue::from_static("text/plain")));
        answer
    }

    fn of(kind: Kind) -> Self {
        Self { kind, delay: Duration::ZERO, headers: Vec::new() }
    }
}

/// Shows neither the body nor the headers' values, which may hold a token.
impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.headers.iter().map(|(name, _)| name).collect();
        f.debug_struct("Answer")
            .field("kind", &self.kind)
            .field("delay", &self.delay)
            .field("headers", &names)
            .finish()
    }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Normal => f.write_str("Normal"),
            Self::Error { status, error, .. } => write!(f, "Error({status}, {error})"),
            Self::Raw { status, body, .. } => write!(f, "Raw({status}, {} bytes)", body.len()),
            Self::Hang => f.write_str("Hang"),
            Self::Disconnect => f.write_str("Disconnect"),
        }
    }
}
