//! [`AdobeAuth`]: the service that the layer makes.

use std::{
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use super::{
    authorizer::{Authorization, Authorizer},
    future::ResponseFuture,
    message::Message,
};
use crate::error::BoxError;

/// Authorizes each request and passes it on to the inner service.
///
/// Made by [`AdobeAuthLayer`](crate::AdobeAuthLayer), which tells what it does. Clones share the
/// token.
///
/// # Example
///
/// A client of your own around it: [`get_ref`](Self::get_ref) gives the inner client, whose builders
/// make the request, and a clone sends it through `&self`.
///
/// ```
/// # #[cfg(feature = "reqwest")]
/// # mod example {
/// use tower::ServiceExt;
/// use tower_adobe_auth::{AdobeAuth, BoxError};
///
/// struct Firefly {
///     http: AdobeAuth<reqwest::Client>,
/// }
///
/// impl Firefly {
///     async fn models(&self) -> Result<String, BoxError> {
///         let request =
///             self.http.get_ref().get("https://firefly-api.adobe.io/v3/models").build()?;
///         let response = self.http.clone().oneshot(request).await?;
///         Ok(response.error_for_status()?.text().await?)
///     }
/// }
/// # }
/// ```
///
/// # Errors
///
/// The errors of the inner service, and as a [`BoxError`] to be downcast
/// [`TokenError`](crate::TokenError) if no token could be had, and
/// [`InsecureUri`](crate::InsecureUri) if the token would have been sent in clear. In both cases the
/// request was not sent.
#[derive(Clone, Debug)]
pub struct AdobeAuth<S> {
    inner: S,
    authorizer: Arc<Authorizer>,
}

impl<S> AdobeAuth<S> {
    pub(super) fn new(inner: S, authorizer: Arc<Authorizer>) -> Self {
        Self { inner, authorizer }
    }

    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service, to be changed.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// The inner service, taken out.
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, Req> Service<Req> for AdobeAuth<S>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    Req: Message,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S, Req>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Req) -> Self::Future {
        match self.authorizer.authorize(&request) {
            Authorization::NotOurs => ResponseFuture::sent(self.inner.call(request)),
            Authorization::Token(token) => {
                self.authorizer.sign(request.headers_mut(), &token);
                ResponseFuture::sent(self.inner.call(request))
            }
            Authorization::Wait(wait) => {
                // The service that was polled ready gives its place back while we wait: it may be
                // the one that the token request needs.
                let unready = self.inner.clone();
                drop(mem::replace(&mut self.inner, unready.clone()));
                ResponseFuture::waiting(unready, request, Arc::clone(&self.authorizer), wait)
            }
            Authorization::Insecure(error) => {
                let unready = self.inner.clone();
                drop(mem::replace(&mut self.inner, unready));
                ResponseFuture::failed(error.into())
            }
        }
    }
}
