//! [`AdobeAuthMiddleware`]: the layer's logic, for clients built with reqwest-middleware.

use std::marker::PhantomData;

use http::Extensions;
use reqwest::{Request, Response};
use reqwest_middleware::{Error, Middleware, Next, Result};

use crate::{
    middleware::{
        AdobeAuthLayer, Authorization, Authorizer, NoReplay, Replay, Replayed, refused,
        refused_again,
    },
    telemetry::Obtained,
};

/// [`AdobeAuthLayer`] as a middleware of the `reqwest-middleware` crate.
///
/// It does what the layer does, with the same rules: 401 recovery with
/// [`replay_unauthorized`](AdobeAuthLayer::replay_unauthorized) too. A body that is a stream cannot be
/// sent again: such a request is sent once, and its 401 is the answer. A request's wishes
/// ([`NoAuthorization`](crate::NoAuthorization), another [`TokenSource`](crate::TokenSource),
/// [`AcquireTimeout`](crate::AcquireTimeout), [`MinLifetime`](crate::MinLifetime)) go into the
/// extensions of its `RequestBuilder`.
///
/// Dropping a request is safe at any moment: a token request that it waits for goes on for the
/// others. While it waits, no middleware inside has been called yet, so that their limits are free.
///
/// # Order
///
/// What is added first is outermost. Tracing, retry, *this one*, then what belongs to one try:
/// - `reqwest-retry` goes **before**: each attempt is then authorized anew. After it, the same token
///   would be repeated, also one that the API has just refused.
/// - Its default strategy takes every error of a middleware for final. One of your own can ask
///   [`TokenError::is_transient`](crate::TokenError::is_transient), and leave a 401 alone that
///   carries [`Replayed`]. It refuses bodies that are streams before anything is sent.
/// - `reqwest-tracing` goes before the retry for one span a request, or after it for one an attempt.
///   No span shows the token: what puts headers in spans sees a value that is marked sensitive.
/// - The timeout of one try is reqwest's own (`ClientBuilder::timeout`); it does not cover the wait
///   for a token. A total one is `tokio::time::timeout` around it all.
///
/// # Errors
///
/// A [`TokenError`](crate::TokenError) or [`InsecureUri`](crate::InsecureUri) is found in
/// [`reqwest_middleware::Error::Middleware`] by downcast. `reqwest-retry` wraps it in its
/// `RetryError`, which has to be opened first.
///
/// # Example
///
/// ```
/// use reqwest_middleware::ClientBuilder;
/// use reqwest_retry::{RetryTransientMiddleware, policies::ExponentialBackoff};
/// use reqwest_tracing::TracingMiddleware;
/// use tower_adobe_auth::{
///     AdobeAuthLayer, AdobeAuthMiddleware, BoxError, Credentials, TokenSource,
/// };
///
/// # fn main() -> Result<(), BoxError> {
/// let tokens = TokenSource::new(Credentials::new("client-id", "client-secret"))?;
/// let layer = AdobeAuthLayer::new(tokens).replay_unauthorized();
/// let policy = layer.allowed_hosts().redirect_policy();
/// let backoff = ExponentialBackoff::builder().build_with_max_retries(3);
///
/// let client = ClientBuilder::new(reqwest::Client::builder().redirect(policy).build()?)
///     .with(TracingMiddleware::default())
///     .with(RetryTransientMiddleware::new_with_policy(backoff))
///     .with(AdobeAuthMiddleware::from(layer))
///     .build();
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct AdobeAuthMiddleware<R = NoReplay> {
    authorizer: Authorizer,
    replay: PhantomData<fn() -> R>,
}

impl<R> From<AdobeAuthLayer<R>> for AdobeAuthMiddleware<R> {
    fn from(layer: AdobeAuthLayer<R>) -> Self {
        Self { authorizer: layer.into_authorizer(), replay: PhantomData }
    }
}

impl<R> Clone for AdobeAuthMiddleware<R> {
    fn clone(&self) -> Self {
        Self { authorizer: self.authorizer.clone(), replay: PhantomData }
    }
}

#[async_trait::async_trait]
impl<R: Replay<Request> + 'static> Middleware for AdobeAuthMiddleware<R> {
    async fn handle(
        &self,
        mut request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response> {
        let (token, host) = match self.authorizer.authorize_once(&request, Some(extensions)) {
            Authorization::NotOurs => return next.run(request, extensions).await,
            Authorization::Token(token, host) => (token, host),
            Authorization::Wait(wait) => {
                let unsent = wait.unsent();
                let token = wait.clone().token().await.map_err(failed)?;
                unsent.sent();
                wait.count_sent(&token, Obtained::Waited);
                (token, wait.host)
            }
            // Out of its box, or no downcast finds it.
            Authorization::Insecure(error) => return Err(failed(*error)),
        };
        // Now: what is inside may change the extensions, and the replay is this request once more.
        let spare =
            R::spare(&request).map(|spare| (spare, self.authorizer.wait(Some(extensions), host)));
        self.authorizer.sign(request.headers_mut(), &token);
        let response = next.clone().run(request, extensions).await?;
        if !refused(&response, &token, host) {
            return Ok(response);
        }

        let Some((mut spare, wait)) = spare else { return Ok(response) };
        // Whatever came of it: is there another token now?
        let _ = wait.clone().token().await;
        let Some(another) = wait.at_hand().filter(|another| !another.is(&token)) else {
            wait.count_no_new_token();
            return Ok(response);
        };
        // Its connection may be what the second try needs.
        drop(response);
        self.authorizer.sign(spare.headers_mut(), &another);
        wait.count_sent(&another, Obtained::Replayed);
        let mut response = next.run(spare, extensions).await?;
        refused_again(&response, &another, host);
        response.extensions_mut().insert(Replayed);
        Ok(response)
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::middleware(error)
}
