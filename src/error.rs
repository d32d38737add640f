//! The errors that users match on: what failed, whether trying again can help, and what to do.

use std::{borrow::Cow, error::Error, fmt, sync::Arc, time::Duration};

use http::StatusCode;

/// The error type of the layer and of every service that it wraps, as in `tower` itself.
///
/// A [`TokenError`] or an [`InsecureUri`] is found in it by downcast.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// What kind of failure a [`TokenError`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// IMS refused the credentials, the scopes or the request ([RFC 6749 §5.2]). Permanent: the
    /// configuration must change.
    ///
    /// [RFC 6749 §5.2]: https://www.rfc-editor.org/rfc/rfc6749#section-5.2
    Rejected,
    /// IMS answered 429: the integration asks for too many tokens.
    Throttled,
    /// IMS answered 5xx.
    Unavailable,
    /// IMS could not be reached, or the connection broke.
    Connection,
    /// IMS did not answer within the request timeout.
    Timeout,
    /// IMS answered something that is not a usable token.
    Malformed,
    /// A [`FetchToken`](crate::FetchToken) or the provider of the credentials failed.
    Fetch,
    /// The caller waited as long as it was willing to; the token request may still be under way.
    AcquireTimeout,
    /// The caller asked for more remaining life than the tokens of this source ever have.
    Lifetime,
    /// The code that fetches the token panicked.
    Panicked,
    /// The runtime that the token request ran on ended before the answer came.
    RuntimeLost,
    /// The caller is outside a Tokio runtime and no valid token is in hand.
    NoRuntime,
    /// The source was shut down.
    Shutdown,
}

impl ErrorKind {
    /// All of them, to the last.
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

    /// Whether the same call can succeed later with nothing changed but the time.
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

/// Why no access token could be had.
///
/// Cloning is cheap: one failure is shared by all who waited for it, with its source chain.
///
/// `Display` is one line for an operator. It holds no secret, no token and no response body; what
/// IMS said is kept in [`status`](Self::status), [`oauth_error`](Self::oauth_error),
/// [`oauth_error_description`](Self::oauth_error_description), [`debug_id`](Self::debug_id) and
/// [`retry_after`](Self::retry_after).
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

/// What IMS said when it gave no token.
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

    /// A failure of a [`FetchToken`](crate::FetchToken) of your own that may pass: it is tried
    /// again, with backoff.
    pub fn transient(source: impl Into<BoxError>) -> Self {
        Self::build(ErrorKind::Fetch, true, FETCH_FAILED, None, Some(source.into()))
    }

    /// A failure of a [`FetchToken`](crate::FetchToken) of your own that will not pass by itself.
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
        let inner = Inner { kind, transient, message, answer, source };
        Self { inner: Arc::new(inner), retry_in: None }
    }

    /// The same failure, told to a caller who has to wait `retry_in` before another try is made.
    pub(crate) fn retry_in_after(&self, retry_in: Duration) -> Self {
        Self { inner: Arc::clone(&self.inner), retry_in: Some(retry_in) }
    }

    /// What kind of failure it is.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// Whether trying again later can help with nothing else changed.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        self.inner.transient
    }

    /// How long the source backs off before it asks for a token again.
    ///
    /// Calls before that are answered at once from this failure. `None` where the source is not
    /// backing off.
    #[must_use]
    pub fn retry_in(&self) -> Option<Duration> {
        self.retry_in
    }

    /// The HTTP status of IMS's answer.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        self.inner.answer.as_ref().map(|answer| answer.status)
    }

    /// The `error` code of IMS's answer, such as `invalid_client` (RFC 6749 §5.2).
    #[must_use]
    pub fn oauth_error(&self) -> Option<&str> {
        self.inner.answer.as_ref()?.error.as_deref()
    }

    /// The `error_description` of IMS's answer, on one line and of bounded length.
    #[must_use]
    pub fn oauth_error_description(&self) -> Option<&str> {
        self.inner.answer.as_ref()?.error_description.as_deref()
    }

    /// The `x-debug-id` of IMS's answer, by which Adobe's support finds the failure.
    #[must_use]
    pub fn debug_id(&self) -> Option<&str> {
        self.inner.answer.as_ref()?.debug_id.as_deref()
    }

    /// How long IMS asked to be left alone (`Retry-After`), as it said it.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.inner.answer.as_ref()?.retry_after
    }
}

const FETCH_FAILED: Cow<'static, str> = Cow::Borrowed("the token could not be fetched");

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
        // A permanent failure is no better then: to say when would invite to wait for it.
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
            .field("source", source)
            .finish()
    }
}

impl Error for TokenError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.inner.source.as_deref().map(|source| source as _)
    }
}

/// Credentials, an environment or a builder's settings are not usable.
///
/// `Display` names the environment variable or the field at fault, never its value.
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
        Self { message: message.into(), source: Some(source.into().into()) }
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
        f.debug_struct("ConfigError").field("message", message).field("source", source).finish()
    }
}

impl Error for ConfigError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// A token store failed: it could not be reached, was full, or answered nonsense.
///
/// No request fails of it: the source goes on alone.
#[derive(Clone, Debug)]
pub struct StoreError {
    source: Arc<dyn Error + Send + Sync>,
}

impl StoreError {
    /// What a token store reports. `source` is logged: it must hold no secret.
    pub fn new(source: impl Into<BoxError>) -> Self {
        Self { source: source.into().into() }
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

/// A request to an allowed host would have carried the token over plain `http`.
///
/// It was not sent. Use `https`; only loopback hosts may be plain.
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
