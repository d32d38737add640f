//! [`FetchToken`]: the trait of a token fetcher, which the client of IMS implements.

use std::future::{Future, pending};
use std::sync::Arc;

use crate::{
    credentials::Credentials,
    error::TokenError,
    ims::{ImsClient, TokenResponse},
};

/// Fetches one new access token.
///
/// Implemented for [`ImsClient`] and for closures. An implementation makes one token request and
/// returns its result. The source decides when to call it, retries, backs off, limits the time and
/// shares the result. One source makes one call at a time; a further call starts only if the future
/// of the last one has not been polled for much longer than its timeout. A panic is caught, and fails
/// the waiting callers with [`ErrorKind::Panicked`](crate::ErrorKind::Panicked).
///
/// Report failures with [`TokenError::transient`] or [`TokenError::permanent`].
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use tower_adobe_auth::{TokenResponse, TokenSource};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_adobe_auth::TokenError> {
/// let tokens = TokenSource::from_fetcher(|| async {
///     Ok(TokenResponse::new("a-token", Duration::from_secs(3_600)))
/// });
///
/// assert_eq!(tokens.token().await?.expose_secret(), "a-token");
/// # Ok(())
/// # }
/// ```
pub trait FetchToken: Send + Sync + 'static {
    /// Fetches one new access token.
    ///
    /// # Errors
    ///
    /// [`TokenError::transient`] is retried with backoff. [`TokenError::permanent`] fails the waiting
    /// callers, and is retried slowly in the background.
    ///
    /// # Cancellation
    ///
    /// The future is dropped when it takes longer than the source's
    /// [`attempt_timeout`](crate::TokenSourceBuilder::attempt_timeout), when the source is shut down,
    /// and when its last handle is dropped. Dropping a caller does not drop the future.
    fn fetch_token(&self) -> impl Future<Output = Result<TokenResponse, TokenError>> + Send;

    /// Resolves when the token that was fetched last should be replaced, for example because the
    /// credentials have changed. The source then refreshes in the background. Default: never.
    ///
    /// The source polls one such future until it completes, then pauses for at least a second, and
    /// calls this method again. The pause doubles, up to five minutes, while the changes come in
    /// quick succession. A panic is caught. A source that [refreshes on
    /// demand](crate::TokenSourceBuilder::refresh_on_demand) does not call this method.
    ///
    /// # Cancellation
    ///
    /// The future is dropped with the source, and with the runtime that it runs on.
    fn changed(&self) -> impl Future<Output = ()> + Send {
        pending()
    }
}

impl<F, Fut> FetchToken for F
where
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<TokenResponse, TokenError>> + Send,
{
    fn fetch_token(&self) -> impl Future<Output = Result<TokenResponse, TokenError>> + Send {
        self()
    }
}

impl FetchToken for ImsClient {
    async fn fetch_token(&self) -> Result<TokenResponse, TokenError> {
        self.request_token().await
    }

    async fn changed(&self) {
        self.credentials_changed().await;
    }
}

/// A [`FetchToken`] of your own, from [`TokenSource::builder_from_fetcher`](crate::TokenSource).
#[derive(Debug)]
pub struct Custom<F>(pub(super) F);

/// The fetcher of a source: IMS's client, which the source may share, or one of the user.
pub(crate) trait Fetch: Send + Sync + 'static {
    /// Fetches a token with these credentials, or with those that it reads itself.
    fn fetch(
        &self,
        credentials: Option<Credentials>,
    ) -> impl Future<Output = Result<TokenResponse, TokenError>> + Send;

    /// See [`FetchToken::changed`].
    fn changed(&self) -> impl Future<Output = ()> + Send;
}

impl Fetch for Arc<ImsClient> {
    async fn fetch(&self, credentials: Option<Credentials>) -> Result<TokenResponse, TokenError> {
        match credentials {
            Some(credentials) => self.request_token_with(&credentials).await,
            None => self.request_token().await,
        }
    }

    async fn changed(&self) {
        self.credentials_changed().await;
    }
}

impl<F: FetchToken> Fetch for Custom<F> {
    fn fetch(
        &self,
        _credentials: Option<Credentials>,
    ) -> impl Future<Output = Result<TokenResponse, TokenError>> + Send {
        self.0.fetch_token()
    }

    fn changed(&self) -> impl Future<Output = ()> + Send {
        self.0.changed()
    }
}
