//! The client secret, wrapped at the door.

use std::fmt;

use secrecy::{ExposeSecret, SecretString};
use zeroize::Zeroizing;

/// A client secret: shown by no `Debug`, wiped from memory when dropped.
///
/// It is taken literally, white space included.
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
    /// Wipes `secret` once it is taken over.
    fn from(secret: String) -> Self {
        // Handing the `String` itself over could move it to a smaller allocation and leave the
        // old one behind in clear.
        let secret = Zeroizing::new(secret);
        Self::from(secret.as_str())
    }
}

impl fmt::Debug for ClientSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientSecret([redacted])")
    }
}
