//! [`ClientSecret`]: wrapped on entry, wiped on drop.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

/// A client secret, which is redacted in `Debug` and wiped when dropped.
///
/// White space is part of it.
///
/// # Example
///
/// ```
/// use tower_adobe_auth::ClientSecret;
///
/// let secret = ClientSecret::from("p8e-secret");
///
/// assert_eq!(secret.expose_secret(), "p8e-secret");
/// assert!(!format!("{secret:?}").contains("p8e"));
/// ```
#[derive(Clone)]
pub struct ClientSecret(SecretString);

impl ClientSecret {
    /// The secret in clear.
    #[must_use]
    pub fn expose_secret(&self) -> &str {
        self.0.expose_secret()
    }
}

impl From<&str> for ClientSecret {
    fn from(secret: &str) -> Self {
        Self(SecretString::from(secret))
    }
}

impl From<String> for ClientSecret {
    /// Copies `secret`, then wipes it.
    fn from(secret: String) -> Self {
        // Converting the `String` itself could shrink its allocation and leave the secret behind.
        let secret = Zeroizing::new(secret);
        Self::from(secret.as_str())
    }
}

impl fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientSecret([redacted])")
    }
}
