//! Where credentials come from when they may change: [`ProvideCredentials`].

use std::{
    fmt,
    future::{Future, pending},
    pin::Pin,
    sync::Arc,
};

use super::Credentials;
use crate::error::BoxError;

/// Gives the credentials anew for each token request, from wherever a team keeps them.
///
/// [`FileCredentials`](super::FileCredentials) does so for a file. Implement it for a vault of
/// your own; keep what you have if the vault cannot be reached, and say so.
///
/// # Example
///
/// ```
/// use tower_adobe_auth::{BoxError, Credentials, ProvideCredentials, TokenSource};
///
/// struct Vault;
///
/// impl ProvideCredentials for Vault {
///     async fn credentials(&self) -> Result<Credentials, BoxError> {
///         let secret = "read from the vault";
///         Ok(Credentials::new("client-id", secret))
///     }
/// }
///
/// # #[cfg(feature = "reqwest")]
/// let tokens = TokenSource::builder_from_provider(Vault).build()?;
/// # Ok::<(), tower_adobe_auth::ConfigError>(())
/// ```
pub trait ProvideCredentials: Send + Sync + 'static {
    /// The credentials to ask for a token with.
    ///
    /// Called for each token request, about once a day; where there is a token store, for each look
    /// at it as well, which is some dozens of times a day. A failure is one of the token request, and
    /// transient.
    fn credentials(&self) -> impl Future<Output = Result<Credentials, BoxError>> + Send;

    /// Ends when the credentials are no longer those that were given last; a source that keeps its
    /// token warm then gets a new one beside the traffic. Default: never.
    ///
    /// It is dropped and called again at will.
    fn changed(&self) -> impl Future<Output = ()> + Send {
        pending()
    }
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`ProvideCredentials`] as an object.
pub(crate) trait ErasedProvideCredentials: Send + Sync {
    fn credentials(&self) -> BoxFuture<'_, Result<Credentials, BoxError>>;
    fn changed(&self) -> BoxFuture<'_, ()>;
}

impl<P: ProvideCredentials> ErasedProvideCredentials for P {
    fn credentials(&self) -> BoxFuture<'_, Result<Credentials, BoxError>> {
        Box::pin(ProvideCredentials::credentials(self))
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(ProvideCredentials::changed(self))
    }
}

/// Credentials that stay, or a provider of them.
#[derive(Clone)]
pub(crate) enum Provider {
    Fixed(Credentials),
    Changing(Arc<dyn ErasedProvideCredentials>),
}

impl Provider {
    pub(crate) async fn credentials(&self) -> Result<Credentials, BoxError> {
        match self {
            Self::Fixed(credentials) => Ok(credentials.clone()),
            Self::Changing(provider) => {
                let credentials = provider.credentials().await?;
                credentials.check()?;
                Ok(credentials)
            }
        }
    }

    pub(crate) async fn changed(&self) {
        match self {
            Self::Fixed(_) => pending().await,
            Self::Changing(provider) => provider.changed().await,
        }
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(credentials) => credentials.fmt(f),
            Self::Changing(_) => f.write_str("ProvideCredentials"),
        }
    }
}
