//! Where tokens come from: [`FetchToken`], and IMS as its default.

use std::{
    future::{Future, pending},
    pin::Pin,
};

use crate::{error::TokenError, ims::ImsClient, token::TokenResponse};

/// Gets one new access token. What varies between sources; when it is called does not.
///
/// Implemented for [`ImsClient`] and for closures. An implementation asks once and answers: the
/// source retries, backs off, limits the time and shares the answer. It never runs twice at the
/// same time for one source. A panic in it is caught and becomes an error of the waiters.
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
    /// Gets one new access token.
    ///
    /// The future is dropped when it takes longer than the source's
    /// [`attempt_timeout`](crate::TokenSourceBuilder::attempt_timeout), and when the last handle
    /// of the source is dropped.
    fn fetch_token(&self) -> impl Future<Output = Result<TokenResponse, TokenError>> + Send;

    /// Ends when the token that was fetched last should be replaced, beside the traffic: when the
    /// credentials have changed, say. Default: never.
    ///
    /// It is dropped and called again at will, and listened to only by a source that keeps its
    /// token warm.
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

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`FetchToken`] as an object, so that `TokenSource` is one type.
pub(super) trait ErasedFetchToken: Send + Sync {
    fn fetch_token(&self) -> BoxFuture<'_, Result<TokenResponse, TokenError>>;
    fn changed(&self) -> BoxFuture<'_, ()>;
}

impl<F: FetchToken> ErasedFetchToken for F {
    fn fetch_token(&self) -> BoxFuture<'_, Result<TokenResponse, TokenError>> {
        Box::pin(FetchToken::fetch_token(self))
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(FetchToken::changed(self))
    }
}
