//! [`FetchToken`]: the trait of a token fetcher, which the client of IMS implements.

use std::future::{Future, pending};

use crate::error::TokenError;
use crate::ims::{ImsClient, TokenResponse};

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
