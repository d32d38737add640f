//! [`AdobeAuth`]: the service that the layer makes.

use std::{
    fmt,
    marker::PhantomData,
    mem,
    sync::Arc,
    task::{Context, Poll},
};

use tower_service::Service;

use super::{
    authorizer::{Authorization, Authorizer, Wait},
    future::{Pending, ResponseFuture, Sent},
    message::Message,
    replay::{NoReplay, Replay},
    reply::Reply,
};
use crate::{error::BoxError, source::Seen};

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
pub struct AdobeAuth<S, R = NoReplay> {
    inner: S,
    authorizer: Arc<Authorizer>,
    seen: Seen,
    replay: PhantomData<fn() -> R>,
}

impl<S, R> AdobeAuth<S, R> {
    pub(super) fn new(inner: S, authorizer: Arc<Authorizer>) -> Self {
        Self { inner, authorizer, seen: Seen::default(), replay: PhantomData }
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

impl<S, R, Req> Service<Req> for AdobeAuth<S, R>
where
    S: Service<Req> + Clone,
    S::Response: Reply,
    S::Error: Into<BoxError>,
    Req: Message,
    R: Replay<Req>,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S, Req>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    #[inline]
    fn call(&mut self, mut request: Req) -> Self::Future {
        let extensions = request.extensions();
        let (sent, spare) = match self.authorizer.authorize(&request, extensions, &mut self.seen) {
            Authorization::NotOurs => (None, None),
            Authorization::Token(token, host) => {
                let spare = R::spare(&request).map(|spare| {
                    let wait = self.authorizer.wait(extensions, host);
                    let authorizer = Arc::clone(&self.authorizer);
                    Pending::new(self.inner.clone(), spare, authorizer, wait)
                });
                self.authorizer.sign(request.headers_mut(), &token);
                (Some(Sent { token, host }), spare)
            }
            Authorization::Wait(wait) => return self.wait(request, *wait),
            Authorization::Insecure(error) => {
                self.release();
                return ResponseFuture::failed((*error).into());
            }
        };
        ResponseFuture::sent(self.inner.call(request), sent, spare)
    }
}

impl<S: Clone, R> AdobeAuth<S, R> {
    /// Sends the request when there is a token for it.
    #[inline(never)]
    fn wait<Req>(&mut self, request: Req, wait: Wait) -> ResponseFuture<S, Req>
    where
        S: Service<Req>,
        R: Replay<Req>,
    {
        let authorizer = Arc::clone(&self.authorizer);
        let spare = R::spare(&request).map(|spare| {
            let authorizer = Arc::clone(&authorizer);
            Pending::new(self.inner.clone(), spare, authorizer, wait.clone())
        });
        let pending = Pending::new(self.release(), request, authorizer, wait);
        ResponseFuture::waiting(pending, spare)
    }

    /// Gives the place back that the inner service keeps for us since it was polled ready, and
    /// returns a clone that keeps none. The token request may be what needs the place.
    fn release(&mut self) -> S {
        let unready = self.inner.clone();
        drop(mem::replace(&mut self.inner, unready.clone()));
        unready
    }
}

impl<S: Clone, R> Clone for AdobeAuth<S, R> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone(), Arc::clone(&self.authorizer))
    }
}

impl<S: fmt::Debug, R> fmt::Debug for AdobeAuth<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AdobeAuth")
            .field("inner", &self.inner)
            .field("authorizer", &self.authorizer)
            .finish()
    }
}
