//! [`AccessToken`]: a secret, the header values made from it, and its expiry.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

use super::supply::{Stamp, Supplied};
use crate::clock::{MAX_LIFETIME, Moment};
use crate::error::{ErrorKind, TokenError};

/// An access token of a [`TokenSource`](crate::TokenSource).
///
/// Cloning is cheap: clones share one copy of the secret, which is wiped from memory when the last
/// of them is dropped. `Debug` does not show the secret.
#[derive(Clone)]
pub struct AccessToken {
    shard: Arc<Shard>,
}

/// One copy of a token's header values with a reference count of its own.
///
/// Cloning a token increments reference counts. Threads that increment the same count contend for its
/// cache line, so each thread clones a shard of its own (see `hot_path`). The alignment prevents
/// false sharing between shards. It is 128 bytes, two cache lines, because processors prefetch lines
/// in pairs.
#[repr(align(128))]
struct Shard {
    inner: Arc<Inner>,
    headers: TokenHeaders,
}

/// The parts of a token that all its shards share.
struct Inner {
    owner: Weak<dyn TokenOwner>,
    secret: SecretString,
    generation: u64,
    stamp: Stamp,
    /// `true` if another process obtained the token.
    shared: bool,
    /// When the token was requested.
    sent: Moment,
    expires: Moment,
    lifetime: Duration,
}

/// The source of a token, which learns of responses that refuse the token.
pub(crate) trait TokenOwner: Send + Sync {
    /// Records that an API at `origin` refused this token with 401.
    fn record_refusal(self: Arc<Self>, token: &AccessToken, origin: OriginKey);
}

/// Identifies the origin that a request goes to: a hash of its normalized host and its port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginKey(pub(crate) u64);

/// The header values that go with a token, made once and cloned for each request.
pub(crate) struct TokenHeaders {
    pub(crate) authorization: HeaderValue,
    pub(crate) api_key: Option<HeaderValue>,
    pub(crate) org_id: Option<HeaderValue>,
}

impl AccessToken {
    /// Makes a token from the result of a supply.
    ///
    /// # Errors
    ///
    /// If the token is empty, has a lifetime of zero, or contains a character that is not allowed in a
    /// header value.
    pub(crate) fn new(
        supplied: Supplied,
        generation: u64,
        owner: Weak<dyn TokenOwner>,
    ) -> Result<Self, TokenError> {
        let Supplied { response, sent, stamp, shared } = supplied;
        let lifetime = response.expires_in.min(MAX_LIFETIME);
        let secret = response.access_token.expose_secret();
        if secret.is_empty() {
            return Err(malformed("the access token is empty"));
        }
        if lifetime.is_zero() {
            return Err(malformed("the access token has a lifetime of zero"));
        }

        let headers = TokenHeaders {
            authorization: bearer(secret)?,
            api_key: response.client_id.map(|id| plain(id, "client id")).transpose()?,
            org_id: response.org_id.map(|id| plain(id, "organization id")).transpose()?,
        };
        let inner = Inner {
            owner,
            secret: response.access_token,
            generation,
            stamp,
            shared,
            sent,
            expires: sent.plus(lifetime),
            lifetime,
        };
        Ok(Self { shard: Arc::new(Shard { inner: Arc::new(inner), headers }) })
    }

    /// The same token in a shard of its own.
    pub(crate) fn to_shard(&self) -> Self {
        let inner = Arc::clone(&self.shard.inner);
        Self { shard: Arc::new(Shard { inner, headers: self.shard.headers.copied() }) }
    }

    fn inner(&self) -> &Inner {
        &self.shard.inner
    }

    /// The token itself, to be sent as `Authorization: Bearer`.
    #[must_use]
    pub fn expose_secret(&self) -> &str {
        self.inner().secret.expose_secret()
    }

    /// When the token expires, by the wall clock. The lifetime counts from the moment at which the
    /// token was requested.
    #[must_use]
    pub fn expires_at(&self) -> SystemTime {
        self.inner().expires.wall
    }

    /// The number of this token among those of its source, starting at 1.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.inner().generation
    }

    /// Returns whether both are clones of one token.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shard.inner, &other.shard.inner)
    }

    /// Reports to the source of this token that an API at `origin` refused it.
    pub(crate) fn report_refusal(&self, origin: OriginKey) {
        if let Some(owner) = self.inner().owner.upgrade() {
            owner.record_refusal(self, origin);
        }
    }

    pub(crate) fn stamp(&self) -> Stamp {
        self.inner().stamp
    }

    /// Returns whether another process obtained the token.
    pub(crate) fn is_shared(&self) -> bool {
        self.inner().shared
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
        &self.shard.headers
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

/// The bytes of a header value, aligned so that they share no cache line with a reference count.
#[repr(align(128))]
struct CacheAligned(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for CacheAligned {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// The same value in memory of its own, which is wiped when the value is dropped.
fn copied(value: &HeaderValue) -> HeaderValue {
    let bytes = Bytes::from_owner(CacheAligned(Zeroizing::new(value.as_bytes().to_vec())));
    // Does not fail, because the bytes come from a valid `HeaderValue`.
    let mut copy = HeaderValue::from_maybe_shared(bytes).unwrap_or_else(|_| value.clone());
    copy.set_sensitive(value.is_sensitive());
    copy
}

/// The `Authorization` value, marked sensitive. Its bytes are wiped with its last clone.
fn bearer(secret: &str) -> Result<HeaderValue, TokenError> {
    let mut value = Zeroizing::new(Vec::with_capacity("Bearer ".len() + secret.len()));
    value.extend_from_slice(b"Bearer ");
    value.extend_from_slice(secret.as_bytes());

    let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(value)).map_err(|_| {
        malformed("the access token contains characters that are not allowed in a header")
    })?;
    if value.to_str().is_err() {
        return Err(malformed(
            "the access token contains characters that are not allowed in a header",
        ));
    }
    value.set_sensitive(true);
    Ok(value)
}

/// A header value that is not a secret.
fn plain(value: String, name: &'static str) -> Result<HeaderValue, TokenError> {
    // Not from the `String` itself: its first clone would allocate a reference count.
    HeaderValue::from_maybe_shared(Bytes::from_owner(value)).map_err(|_| {
        malformed(format!("the {name} contains characters that are not allowed in a header"))
    })
}

fn malformed(message: impl Into<std::borrow::Cow<'static, str>>) -> TokenError {
    TokenError::new(ErrorKind::Malformed, message)
}
