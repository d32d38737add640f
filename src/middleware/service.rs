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
    authorizer::{Authorization, Authorizer, Sent},
    future::{HeldRequest, ResponseFuture},
    message::Message,
    replay::{NoReplay, Replay},
    reply::Reply,
};
use crate::{error::BoxError, source::OriginKey};

/// A service that authorizes each request and passes it on to the inner service.
///
/// [`AdobeAuthLayer`](crate::AdobeAuthLayer) makes it, and documents its behavior. Clones share the
/// token.
///
/// # Example
///
/// A client of your own around this service: [`get_ref`](Self::get_ref) gives the inner client, to
/// build the request, and a clone of the service sends the request from `&self`.
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
/// The inner service's errors, and as a [`BoxError`] to be downcast:
/// - [`TokenError`](crate::TokenError) if no token could be obtained by the request's deadline;
/// - [`InsecureUri`](crate::InsecureUri) if the token would have been readable on the network.
///
/// In these two cases the request was not sent, with one exception: a replay fails with a
/// `TokenError` if its token expires while the inner service is not ready, and no other token comes.
///
/// # Cancellation
///
/// Dropping the future of a call drops the request. A token refresh that the request waits for
/// continues.
pub struct AdobeAuth<S, R = NoReplay> {
    inner: S,
    authorizer: Arc<Authorizer>,
    replay: PhantomData<fn() -> R>,
}

impl<S, R> AdobeAuth<S, R> {
    pub(super) fn new(inner: S, authorizer: Arc<Authorizer>) -> Self {
        Self { inner, authorizer, replay: PhantomData }
    }

    /// The inner service.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// The inner service, mutably.
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Returns the inner service and drops the rest.
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
        match self.authorizer.authorize(&request, request.extensions()) {
            Authorization::PassThrough => ResponseFuture::passed_through(self.inner.call(request)),
            Authorization::Send(sent) => {
                let spare = R::spare(&request).map(|spare| self.spare(spare, &request, &sent));
                self.authorizer.insert_headers(request.headers_mut(), &sent.token);
                ResponseFuture::sent(self.inner.call(request), sent, spare)
            }
            Authorization::Wait(origin) => self.wait(request, origin),
            Authorization::Insecure(error) => {
                self.release_readiness();
                ResponseFuture::failed((*error).into())
            }
        }
    }
}

impl<S: Clone, R> AdobeAuth<S, R> {
    /// The copy of a request that is kept for its replay.
    fn spare<Req: Message>(
        &self,
        spare: Req,
        request: &Req,
        sent: &Sent,
    ) -> Box<HeldRequest<S, Req>> {
        let pending = self.authorizer.pending_token(request.extensions(), sent.origin);
        let authorizer = Arc::clone(&self.authorizer);
        Box::new(HeldRequest { request: spare, service: self.inner.clone(), authorizer, pending })
    }

    /// Holds the request in the response future until a token for it has come.
    // Out of line, because few requests wait and `call` is inlined.
    #[inline(never)]
    fn wait<Req>(&mut self, request: Req, origin: OriginKey) -> ResponseFuture<S, Req>
    where
        S: Service<Req>,
        Req: Message,
        R: Replay<Req>,
    {
        let pending = self.authorizer.pending_token(request.extensions(), origin);
        let service = self.release_readiness();
        let held = |request, service| {
            let authorizer = Arc::clone(&self.authorizer);
            HeldRequest { request, service, authorizer, pending: pending.clone() }
        };
        let spare = R::spare(&request).map(|spare| Box::new(held(spare, service.clone())));
        ResponseFuture::waiting(held(request, service), spare)
    }

    /// Gives up the readiness that the inner service reserved for this call, and returns a clone that
    /// has reserved nothing.
    ///
    /// The scenario: API and IMS requests share one `concurrency_limit(1)`. This call holds the only
    /// permit since `poll_ready`. If it kept the permit while waiting for a token, the token request
    /// would wait for the permit, and both for ever.
    fn release_readiness(&mut self) -> S {
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
