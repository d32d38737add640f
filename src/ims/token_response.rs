//! [`TokenResponse`]: what an authorization server answers to a token request.

use std::{fmt, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

/// An access token and its lifetime, as the authorization server issued it (RFC 6749 §5.1). A
/// [`FetchToken`](crate::FetchToken) returns one.
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
