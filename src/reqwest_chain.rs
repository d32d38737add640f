//! [`AdobeAuthMiddleware`]: the layer's logic, for clients built with reqwest-middleware.

use http::Extensions;
use reqwest::{Request, Response};
use reqwest_middleware::{Error, Middleware, Next, Result};

use crate::middleware::{AdobeAuthLayer, Authorization, Authorizer};

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
#[derive(Clone, Debug)]
pub struct AdobeAuthMiddleware {
    authorizer: Authorizer,
}

impl From<AdobeAuthLayer> for AdobeAuthMiddleware {
    fn from(layer: AdobeAuthLayer) -> Self {
        Self { authorizer: layer.into_authorizer() }
    }
}

#[async_trait::async_trait]
impl Middleware for AdobeAuthMiddleware {
    async fn handle(
        &self,
        mut request: Request,
        extensions: &mut Extensions,
        next: Next<'_>,
    ) -> Result<Response> {
        let token = match self.authorizer.authorize_with(&request, Some(extensions)) {
            Authorization::NotOurs => return next.run(request, extensions).await,
            Authorization::Token(token) => token,
            Authorization::Wait(wait) => wait.token().await.map_err(failed)?,
            Authorization::Insecure(error) => return Err(failed(error)),
        };
        self.authorizer.sign(request.headers_mut(), &token);
        next.run(request, extensions).await
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::middleware(error)
}
