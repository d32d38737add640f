//! Credentials that may change while a source runs: [`ProvideCredentials`].

use std::{
    fmt,
    future::{Future, pending},
    pin::Pin,
    sync::Arc,
};

use super::Credentials;
use crate::error::BoxError;

/// Provides the credentials for each token request, from wherever a team keeps them.
///
/// [`FileCredentials`](super::FileCredentials) reads them from a file. Implement it for your own
/// vault. If the vault is unreachable, return the last known credentials and log the failure.
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
    /// Returns the current credentials.
    ///
    /// Called for each token request, which happens about once a day, and each time that
    /// [`changed`](Self::changed) is called or ends. With a token store, it is also called for each
    /// access to the store, some dozens of times a day.
    ///
    /// # Errors
    ///
    /// An error fails the token request with [`ErrorKind::Fetch`](crate::ErrorKind::Fetch), which is
    /// transient.
    fn credentials(&self) -> impl Future<Output = Result<Credentials, BoxError>> + Send;

    /// Ends when the credentials may have changed since the call. Default: never.
    ///
    /// The source then compares the credentials with those of its last token request. If they differ
    /// and the source keeps its token warm, it requests a new token in the background. Ending without
    /// a change is harmless.
    ///
    /// # Cancellation
    ///
    /// The future may be dropped at any time. A change between two calls is not lost, because the
    /// source compares the credentials after each call.
    fn changed(&self) -> impl Future<Output = ()> + Send {
        pending()
    }
}

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`ProvideCredentials`] as a trait object.
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

/// Fixed credentials, or a provider of changing ones.
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

    /// Calls `changed` here and not at the first poll: a change counts from the call on.
    pub(crate) fn changed(&self) -> BoxFuture<'_, ()> {
        match self {
            Self::Fixed(_) => Box::pin(pending()),
            Self::Changing(provider) => provider.changed(),
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
