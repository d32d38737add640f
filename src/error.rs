//! The errors that users match on: what failed, whether a retry can help, and what to do.

mod causes;
mod source;

use std::{borrow::Cow, error::Error, fmt, sync::Arc, time::Duration};

use http::StatusCode;

use self::causes::{Bounded, bounded};

/// The error type of the layer and of every service that it wraps, as in `tower` itself.
///
/// A [`TokenError`] or an [`InsecureUri`] is found in it by downcast.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// The kind of failure of a [`TokenError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// IMS rejected the credentials, the scopes or the request ([RFC 6749 §5.2]). Permanent, because
    /// the configuration must change; the source still retries at a slow rate.
    ///
    /// [RFC 6749 §5.2]: https://www.rfc-editor.org/rfc/rfc6749#section-5.2
    Rejected,
    /// IMS responded with 429, because the client requests too many tokens.
    Throttled,
    /// IMS responded with a 5xx status.
    Unavailable,
    /// The connection to IMS was refused, failed its TLS handshake, or broke.
    Connection,
    /// IMS sent no complete response within the request timeout.
    Timeout,
    /// The response of IMS holds no usable token.
    Malformed,
    /// A [`FetchToken`](crate::FetchToken) or [`ProvideCredentials`](crate::ProvideCredentials)
    /// implementation returned an error.
    Fetch,
    /// The caller's timeout elapsed while it waited for a token. The refresh continues.
    AcquireTimeout,
    /// The caller requires a remaining life that no token of this source has.
    Lifetime,
    /// A [`FetchToken`](crate::FetchToken) or [`ProvideCredentials`](crate::ProvideCredentials)
    /// implementation panicked.
    Panicked,
    /// The Tokio runtime of the refresh shut down before the refresh completed.
    RuntimeLost,
    /// The caller runs outside a Tokio runtime, and no usable token is cached.
    NoRuntime,
    /// The source was shut down, and no usable token is cached.
    Shutdown,
}

impl ErrorKind {
    /// Every kind, in the order of declaration.
    #[cfg(feature = "metrics")]
    pub(crate) const ALL: [Self; Self::Shutdown as usize + 1] = [
        Self::Rejected,
        Self::Throttled,
        Self::Unavailable,
        Self::Connection,
        Self::Timeout,
        Self::Malformed,
        Self::Fetch,
        Self::AcquireTimeout,
        Self::Lifetime,
        Self::Panicked,
        Self::RuntimeLost,
        Self::NoRuntime,
        Self::Shutdown,
    ];

    /// The kind as one word in snake case, for the labels of metrics and the fields of events.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Throttled => "throttled",
            Self::Unavailable => "unavailable",
            Self::Connection => "connection",
            Self::Timeout => "timeout",
            Self::Malformed => "malformed",
            Self::Fetch => "fetch",
            Self::AcquireTimeout => "acquire_timeout",
            Self::Lifetime => "lifetime",
            Self::Panicked => "panicked",
            Self::RuntimeLost => "runtime_lost",
            Self::NoRuntime => "no_runtime",
            Self::Shutdown => "shutdown",
        }
    }

    /// Returns whether a later retry can succeed without a change of the configuration.
    const fn is_transient(self) -> bool {
        match self {
            Self::Rejected | Self::Lifetime | Self::Shutdown | Self::Fetch => false,
            Self::Throttled
            | Self::Unavailable
            | Self::Connection
            | Self::Timeout
            | Self::Malformed
            | Self::AcquireTimeout
            | Self::Panicked
            | Self::RuntimeLost
            | Self::NoRuntime => true,
        }
    }
}

/// No access token could be obtained.
///
/// Clones share one error and its chain of causes, so cloning is cheap.
///
/// `Display` is one line for an operator, without a secret, a token or a response body. The parts of
/// a response of IMS are [`status`](Self::status), [`oauth_error`](Self::oauth_error),
/// [`oauth_error_description`](Self::oauth_error_description), [`debug_id`](Self::debug_id) and
/// [`retry_after`](Self::retry_after).
///
/// Below it are at most 16 causes of at most 2,000 bytes each. A cause that exceeds this is
/// replaced by the text of its nearest causes, so that a log line has a bound.
///
/// # Example
///
/// Finding it in the error of a wrapped service:
///
/// ```
/// use tower_adobe_auth::{BoxError, TokenError};
///
/// fn worth_a_retry(error: &BoxError) -> bool {
///     error.downcast_ref::<TokenError>().is_some_and(TokenError::is_transient)
/// }
/// ```
#[derive(Clone)]
pub struct TokenError {
    inner: Arc<Inner>,
    retry_in: Option<Duration>,
}

struct Inner {
    kind: ErrorKind,
    transient: bool,
    message: Cow<'static, str>,
    answer: Option<ImsFailure>,
    source: Option<BoxError>,
}

/// The parts of a response of IMS without a usable token.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ImsFailure {
    pub(crate) status: StatusCode,
    pub(crate) error: Option<String>,
    pub(crate) error_description: Option<String>,
    pub(crate) debug_id: Option<String>,
    pub(crate) retry_after: Option<Duration>,
}

impl TokenError {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<Cow<'static, str>>) -> Self {
        Self::build(kind, kind.is_transient(), message.into(), None, None)
    }

    pub(crate) fn with_source(
        kind: ErrorKind,
        message: impl Into<Cow<'static, str>>,
        source: impl Into<BoxError>,
    ) -> Self {
        Self::build(kind, kind.is_transient(), message.into(), None, Some(source.into()))
    }

    pub(crate) fn with_answer(
        kind: ErrorKind,
        message: impl Into<Cow<'static, str>>,
        answer: ImsFailure,
    ) -> Self {
        Self::build(kind, kind.is_transient(), message.into(), Some(answer), None)
    }

    /// A failure of your own [`FetchToken`](crate::FetchToken) that may pass. The source retries
    /// with backoff.
    pub fn transient(source: impl Into<BoxError>) -> Self {
        Self::build(ErrorKind::Fetch, true, FETCH_FAILED, None, Some(source.into()))
    }

    /// A failure of your own [`FetchToken`](crate::FetchToken) that needs a change of the
    /// configuration. The source retries at a slow rate.
    pub fn permanent(source: impl Into<BoxError>) -> Self {
        Self::build(ErrorKind::Fetch, false, FETCH_FAILED, None, Some(source.into()))
    }

    pub(crate) fn transient_fetch(message: &'static str, source: impl Into<BoxError>) -> Self {
        Self::build(ErrorKind::Fetch, true, message.into(), None, Some(source.into()))
    }

    fn build(
        kind: ErrorKind,
        transient: bool,
        message: Cow<'static, str>,
        answer: Option<ImsFailure>,
        source: Option<BoxError>,
    ) -> Self {
        let source = source.map(bounded);
        let inner = Inner { kind, transient, message, answer, source };
        Self { inner: Arc::new(inner), retry_in: None }
    }

    /// The same failure for a caller during the backoff, which ends in `retry_in`.
    pub(crate) fn retry_in_after(&self, retry_in: Duration) -> Self {
        Self { inner: Arc::clone(&self.inner), retry_in: Some(retry_in) }
    }

    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// Returns whether a later retry can succeed without a change of the configuration.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.inner.transient
    }

    /// The remaining backoff: how long the source waits before its next token request.
    ///
    /// Until then, callers without a usable token fail immediately with this error. `None` if the
    /// source is not in backoff.
    #[must_use]
    pub fn retry_in(&self) -> Option<Duration> {
        self.retry_in
    }

    /// The HTTP status of the response of IMS.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        self.inner.answer.as_ref().map(|answer| answer.status)
    }

    /// The `error` code in the response of IMS, such as `invalid_client` (RFC 6749 §5.2).
    #[must_use]
    pub fn oauth_error(&self) -> Option<&str> {
        self.inner.answer.as_ref()?.error.as_deref()
    }

    /// The `error_description` in the response of IMS, as one line of at most 257 characters.
    #[must_use]
    pub fn oauth_error_description(&self) -> Option<&str> {
        self.inner.answer.as_ref()?.error_description.as_deref()
    }

    /// The `x-debug-id` of the response of IMS, by which Adobe's support finds the failure.
    #[must_use]
    pub fn debug_id(&self) -> Option<&str> {
        self.inner.answer.as_ref()?.debug_id.as_deref()
    }

    /// The `Retry-After` of the response of IMS, before any cap.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.inner.answer.as_ref()?.retry_after
    }
}

const FETCH_FAILED: Cow<'static, str> = Cow::Borrowed("the token fetcher failed");

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)?;
        if let Some(answer) = &self.inner.answer {
            write!(f, " (status {}", answer.status.as_u16())?;
            if let Some(error) = &answer.error {
                write!(f, ", {error}")?;
            }
            if let Some(description) = &answer.error_description {
                write!(f, ": {description}")?;
            }
            if let Some(debug_id) = &answer.debug_id {
                write!(f, ", x-debug-id {debug_id}")?;
            }
            f.write_str(")")?;
        }
        // Not for a permanent failure: naming a time would suggest that waiting helps.
        if let Some(retry_in) = self.retry_in.filter(|_| self.is_transient()) {
            write!(f, "; next try in {retry_in:.1?}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { kind, transient, message, answer, source } = &*self.inner;
        f.debug_struct("TokenError")
            .field("kind", kind)
            .field("is_transient", transient)
            .field("message", message)
            .field("answer", answer)
            .field("retry_in", &self.retry_in)
            .field("source", &source.as_deref().map(|source| Bounded(source)))
            .finish()
    }
}

impl Error for TokenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.inner.source.as_deref().map(|source| source as _)
    }
}

/// Credentials, an environment or a builder's settings are invalid.
///
/// `Display` names the invalid environment variable, field or setting, never its value.
#[derive(Clone)]
pub struct ConfigError {
    message: Cow<'static, str>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl ConfigError {
    pub(crate) fn new(message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: message.into(), source: None }
    }

    pub(crate) fn with_source(
        message: impl Into<Cow<'static, str>>,
        source: impl Into<BoxError>,
    ) -> Self {
        Self { message: message.into(), source: Some(bounded(source.into()).into()) }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { message, source } = self;
        f.debug_struct("ConfigError")
            .field("message", message)
            .field("source", &source.as_deref().map(|source| Bounded(source)))
            .finish()
    }
}

impl Error for ConfigError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// A call of a token store failed, or its result cannot be used.
///
/// A store error fails no request: the process requests its own token, and asks the store again with its
/// next refresh. [`Status::store_error`](crate::Status::store_error) has the last one, and the `warn`
/// event `store_unavailable` reports each new reason. The reason is the [`source`](Error::source) of the
/// error.
#[derive(Clone)]
pub struct StoreError {
    source: Arc<dyn Error + Send + Sync>,
}

impl StoreError {
    /// Wraps the reason, for a token store of your own. The reason is logged, so it must not hold a
    /// secret, a token, or a record.
    pub fn new(source: impl Into<BoxError>) -> Self {
        Self { source: bounded(source.into()).into() }
    }
}

impl fmt::Debug for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreError").field("source", &Bounded(&*self.source)).finish()
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the token store failed")
    }
}

impl Error for StoreError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

/// A request to an allowed host uses plain `http`, over which the token would be readable.
///
/// The request was not sent. Use `https`; only loopback hosts may use plain `http`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InsecureUri {
    uri: String,
}

impl InsecureUri {
    /// `uri` is the request's URI without userinfo and query.
    pub(crate) fn new(uri: String) -> Self {
        Self { uri }
    }

    /// The request's URI, without userinfo and query.
    #[must_use]
    pub fn uri(&self) -> &str {
        &self.uri
    }
}

impl fmt::Display for InsecureUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused to send an access token over plain http to {}; use https", self.uri)
    }
}

impl Error for InsecureUri {}
