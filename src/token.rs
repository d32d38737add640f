//! The access token: the secret, its header values made once, its expiry.

use std::{
    fmt,
    sync::{Arc, Weak},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use crate::{
    clock::{FAR, Moment},
    error::{ErrorKind, TokenError},
    telemetry::Recovery,
};

/// An access token and how long it lives, as it came from the authorization server (RFC 6749
/// §5.1): what a [`FetchToken`](crate::FetchToken) answers.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use tower_adobe_auth::TokenResponse;
///
/// let response = TokenResponse::new("eyJhbGciOi...", Duration::from_secs(86_399));
/// ```
pub struct TokenResponse {
    pub(crate) access_token: SecretString,
    pub(crate) expires_in: Duration,
    pub(crate) client_id: Option<String>,
    pub(crate) org_id: Option<String>,
}

impl TokenResponse {
    /// A token that lives for `expires_in` from the moment it was requested. `access_token` is wiped.
    pub fn new(access_token: impl Into<String>, expires_in: Duration) -> Self {
        // Converting the `String` itself could shrink its allocation and leave the token behind.
        let access_token = Zeroizing::new(access_token.into());
        Self {
            access_token: SecretString::from(access_token.as_str()),
            expires_in,
            client_id: None,
            org_id: None,
        }
    }

    /// The token itself.
    #[must_use]
    pub fn expose_secret(&self) -> &str {
        self.access_token.expose_secret()
    }

    /// How long the token lives from the moment it was asked for.
    #[must_use]
    pub fn expires_in(&self) -> Duration {
        self.expires_in
    }

    /// Sets the client id to send as `x-api-key` beside this token. Default: none is sent.
    #[must_use]
    pub fn with_client_id(mut self, client_id: impl Into<String>) -> Self {
        self.client_id = Some(client_id.into());
        self
    }

    /// Sets the organization to send as `x-gw-ims-org-id` beside this token. Default: none is
    /// sent.
    #[must_use]
    pub fn with_org_id(mut self, org_id: impl Into<String>) -> Self {
        self.org_id = Some(org_id.into());
        self
    }
}

impl fmt::Debug for TokenResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenResponse")
            .field("access_token", &"[redacted]")
            .field("expires_in", &self.expires_in)
            .field("client_id", &self.client_id)
            .field("org_id", &self.org_id)
            .finish()
    }
}

/// An access token of a [`TokenSource`](crate::TokenSource).
///
/// Cloning is cheap: clones share one copy of the secret, which is wiped when the last of them is
/// dropped. (A service that has sent it keeps one until its next request, or its end.) `Debug` shows
/// no secret.
#[derive(Clone)]
pub struct AccessToken {
    copy: Arc<Copied>,
}

/// What is counted when a token is cloned: there may be several of one token, so that threads that
/// clone it at the same time do not count at the same place.
///
/// Each stands apart from the others, so that no two share a line of the processor's cache (or a
/// pair of lines, which many fetch at once).
#[repr(align(128))]
struct Copied {
    inner: Arc<Inner>,
    headers: TokenHeaders,
}

/// Who gave a token out, and wants to hear that an API refused it.
pub(crate) trait Origin: Send + Sync {
    fn refused(self: Arc<Self>, token: &AccessToken, host: HostKey);

    fn recovered(&self, outcome: Recovery);
}

/// Stands for the host that a request goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostKey(pub(crate) u64);

struct Inner {
    origin: Weak<dyn Origin>,
    secret: SecretString,
    generation: u64,
    sent: Moment,
    expires: Moment,
    lifetime: Duration,
}

/// The header values that go with a token, made once and cloned for each request.
pub(crate) struct TokenHeaders {
    pub(crate) authorization: HeaderValue,
    pub(crate) api_key: Option<HeaderValue>,
    pub(crate) org_id: Option<HeaderValue>,
}

impl AccessToken {
    /// The token of `response`, which was asked for at `sent`.
    pub(crate) fn new(
        response: TokenResponse,
        sent: Moment,
        generation: u64,
        origin: Weak<dyn Origin>,
    ) -> Result<Self, TokenError> {
        let TokenResponse { access_token, expires_in, client_id, org_id } = response;
        let expires_in = expires_in.min(FAR);
        let secret = access_token.expose_secret();
        if secret.is_empty() {
            return Err(malformed("the access token is empty"));
        }
        if expires_in.is_zero() {
            return Err(malformed("the access token has no time to live"));
        }

        let headers = TokenHeaders {
            authorization: bearer(secret)?,
            api_key: client_id.map(|id| plain(id, "client id")).transpose()?,
            org_id: org_id.map(|id| plain(id, "organization id")).transpose()?,
        };
        let inner = Inner {
            origin,
            secret: access_token,
            generation,
            sent,
            expires: sent.plus(expires_in),
            lifetime: expires_in,
        };
        Ok(Self { copy: Arc::new(Copied { inner: Arc::new(inner), headers }) })
    }

    /// The same token, with header values and a count of references of its own.
    pub(crate) fn copied(&self) -> Self {
        let inner = Arc::clone(&self.copy.inner);
        Self { copy: Arc::new(Copied { inner, headers: self.copy.headers.copied() }) }
    }

    fn inner(&self) -> &Inner {
        &self.copy.inner
    }

    /// The token itself, to be sent as `Authorization: Bearer`.
    #[must_use]
    pub fn expose_secret(&self) -> &str {
        self.inner().secret.expose_secret()
    }

    /// When the token ends, by the wall clock: its life counts from the moment it was asked for.
    #[must_use]
    pub fn expires_at(&self) -> SystemTime {
        self.inner().expires.wall
    }

    /// The number of this token among those of its source, counting up from 1.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.inner().generation
    }

    /// Whether both are clones of one token.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.copy.inner, &other.copy.inner)
    }

    /// Tells the source of this token that an API at `host` refused it.
    pub(crate) fn refused_by(&self, host: HostKey) {
        if let Some(origin) = self.inner().origin.upgrade() {
            origin.refused(self, host);
        }
    }

    /// Tells the source of this token what became of a request that was refused.
    pub(crate) fn recovered(&self, outcome: Recovery) {
        if let Some(origin) = self.inner().origin.upgrade() {
            origin.recovered(outcome);
        }
    }

    pub(crate) fn sent(&self) -> Moment {
        self.inner().sent
    }

    pub(crate) fn expires(&self) -> Moment {
        self.inner().expires
    }

    pub(crate) fn lifetime(&self) -> Duration {
        self.inner().lifetime
    }

    pub(crate) fn headers(&self) -> &TokenHeaders {
        &self.copy.headers
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessToken")
            .field("generation", &self.inner().generation)
            .field("expires_at", &self.inner().expires.wall)
            .finish_non_exhaustive()
    }
}

impl TokenHeaders {
    fn copied(&self) -> Self {
        Self {
            authorization: copied(&self.authorization),
            api_key: self.api_key.as_ref().map(copied),
            org_id: self.org_id.as_ref().map(copied),
        }
    }
}

/// The bytes of a header value, whose count of references is no neighbour of another's.
#[repr(align(128))]
struct Apart(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for Apart {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The same value in memory of its own, which is wiped.
fn copied(value: &HeaderValue) -> HeaderValue {
    let bytes = Bytes::from_owner(Apart(Zeroizing::new(value.as_bytes().to_vec())));
    // What was a value is one.
    let mut copy = HeaderValue::from_maybe_shared(bytes).unwrap_or_else(|_| value.clone());
    copy.set_sensitive(value.is_sensitive());
    copy
}

/// The `Authorization` value, marked sensitive. Its bytes are wiped when its last clone is gone.
fn bearer(secret: &str) -> Result<HeaderValue, TokenError> {
    let mut value = Zeroizing::new(Vec::with_capacity("Bearer ".len() + secret.len()));
    value.extend_from_slice(b"Bearer ");
    value.extend_from_slice(secret.as_bytes());

    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(value))
        .map_err(|_| malformed("the access token cannot be a header value"))?;
    if value.to_str().is_err() {
        return Err(malformed("the access token cannot be a header value"));
    }
    value.set_sensitive(true);
    Ok(value)
}

fn plain(value: String, name: &'static str) -> Result<HeaderValue, TokenError> {
    HeaderValue::try_from(value)
        .map_err(|_| malformed(format!("the {name} cannot be a header value")))
}

fn malformed(message: impl Into<std::borrow::Cow<'static, str>>) -> TokenError {
    TokenError::new(ErrorKind::Malformed, message)
}
