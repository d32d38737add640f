//! [`AdobeAuthMiddleware`]: the rules of the layer, for clients built with reqwest-middleware.

use std::marker::PhantomData;

use http::Extensions;
use reqwest::{Request, Response};
use reqwest_middleware::{Error, Middleware, Next, Result};

use crate::{
    middleware::{
        AdobeAuthLayer, Authorization, Authorizer, NoReplay, Replay, Replayed, is_refusal,
    },
    telemetry::Obtained,
};

/// [`AdobeAuthLayer`] as a middleware of the `reqwest-middleware` crate.
///
/// The middleware does what the layer does, with the same rules, and replays a 401 if the layer
/// [does](AdobeAuthLayer::replay_unauthorized). A body that is a stream cannot be copied: such a
/// request is sent once, and the caller gets its 401.
///
/// The extensions of a request ([`NoAuthorization`](crate::NoAuthorization), another
/// [`TokenSource`](crate::TokenSource), [`AcquireTimeout`](crate::AcquireTimeout),
/// [`MinLifetime`](crate::MinLifetime)) are set on its `RequestBuilder`.
///
/// # Cancellation
///
/// A request may be dropped at any moment. A token refresh that it waits for continues, because other
/// requests need the token too. During the wait no inner middleware has been called, so the request
/// occupies no slot of their concurrency limits.
///
/// # Order
///
/// The middleware that is added first is outermost. Add tracing, retry, *this one*, and then those
/// that belong to one try:
/// - Add `reqwest-retry` **before** this one, so that each attempt is authorized anew. Added after this
///   one, it would repeat a request with the same token, even if the API has just refused the token.
/// - The default strategy of `reqwest-retry` treats every error of a middleware as permanent. A
///   strategy of your own can check [`TokenError::is_transient`](crate::TokenError::is_transient),
///   and should not repeat a 401 that carries [`Replayed`]. `reqwest-retry` rejects bodies that are
///   streams before they are sent.
/// - `reqwest-tracing` goes before the retry for one span per request, or after it for one span per
///   attempt. No span shows the token, because its header value is marked sensitive.
/// - The timeout of one try is reqwest's own (`ClientBuilder::timeout`), which does not cover the wait
///   for a token. A total timeout is `tokio::time::timeout` around the whole call.
///
/// # Errors
///
/// A downcast of [`reqwest_middleware::Error::Middleware`] finds [`TokenError`](crate::TokenError)
/// and [`InsecureUri`](crate::InsecureUri). `reqwest-retry` wraps them in its `RetryError`, which has
/// to be unwrapped first.
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
        let (sent, pending) = match self.authorizer.authorize(&request, Some(extensions)) {
            Authorization::PassThrough => return next.run(request, extensions).await,
            Authorization::Send(sent) => (sent, None),
            Authorization::Wait(origin) => {
                let pending = self.authorizer.pending_token(Some(extensions), origin);
                let failure = pending.failure_counter();
                let token = pending.acquire().await.map_err(failed)?;
                failure.disarm();
                (pending.send_with(token, Obtained::Waited), Some(pending))
            }
            // Unboxed, because a downcast to `InsecureUri` does not find a `Box<InsecureUri>`.
            Authorization::Insecure(error) => return Err(failed(*error)),
        };
        // The copy is made before the call, because an inner middleware may change the extensions.
        let spare = R::spare(&request).map(|spare| {
            let pending = pending
                .unwrap_or_else(|| self.authorizer.pending_token(Some(extensions), sent.origin));
            (spare, pending)
        });
        self.authorizer.insert_headers(request.headers_mut(), &sent.token);
        let response = next.clone().run(request, extensions).await?;
        if !is_refusal(&response, sent.origin) {
            return Ok(response);
        }
        sent.report_unauthorized();

        let Some((mut spare, pending)) = spare else { return Ok(response) };
        // If the refused token could not be replaced in time, the source returns it once more.
        let another = pending.acquire_another(&sent.token).await.ok();
        let Some(another) = another else {
            pending.count_no_new_token();
            return Ok(response);
        };
        // The replay may need the connection that the refused response occupies.
        drop(response);
        self.authorizer.insert_headers(spare.headers_mut(), &another);
        let sent = pending.send_with(another, Obtained::Replayed);
        let mut response = next.run(spare, extensions).await?;
        let refused_again = is_refusal(&response, sent.origin);
        if refused_again {
            sent.report_unauthorized();
        }
        pending.count_replayed(refused_again);
        response.extensions_mut().insert(Replayed);
        Ok(response)
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::middleware(error)
}
