//! [`AdobeAuthMiddleware`]: the layer's logic, for clients built with reqwest-middleware.

use std::marker::PhantomData;

use http::Extensions;
use reqwest::{Request, Response};
use reqwest_middleware::{Error, Middleware, Next, Result};

use crate::middleware::{
    AdobeAuthLayer, Authorization, Authorizer, NoReplay, Replay, Replayed, refused,
};

/// [`AdobeAuthLayer`] as a middleware of the `reqwest-middleware` crate.
///
/// It does what the layer does, with the same rules. Put it inside the retry middleware, that is:
/// add it after, so that each attempt is authorized anew. A request's wishes
/// ([`NoAuthorization`](crate::NoAuthorization), another [`TokenSource`](crate::TokenSource),
/// [`AcquireTimeout`](crate::AcquireTimeout), [`MinLifetime`](crate::MinLifetime)) go into the
/// extensions of its `RequestBuilder`.
///
/// # Errors
///
/// A [`TokenError`](crate::TokenError) or [`InsecureUri`](crate::InsecureUri) is found in
/// [`reqwest_middleware::Error::Middleware`] by downcast.
///
/// # Example
///
/// ```
/// use tower_adobe_auth::{AdobeAuthLayer, AdobeAuthMiddleware, Credentials, TokenSource};
///
/// # fn main() -> Result<(), tower_adobe_auth::ConfigError> {
/// let tokens = TokenSource::new(Credentials::new("client-id", "client-secret"))?;
/// let client = reqwest_middleware::ClientBuilder::new(reqwest::Client::new())
///     .with(AdobeAuthMiddleware::from(AdobeAuthLayer::new(tokens)))
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
                let host = wait.host;
                (wait.token().await.map_err(failed)?, host)
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
            return Ok(response);
        };
        // Its connection may be what the second try needs.
        drop(response);
        self.authorizer.sign(spare.headers_mut(), &another);
        let mut response = next.run(spare, extensions).await?;
        refused(&response, &another, host);
        response.extensions_mut().insert(Replayed);
        Ok(response)
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::middleware(error)
}
