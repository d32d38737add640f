//! [`ResponseFuture`]: from the call to the response.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    authorizer::{Authorizer, Wait},
    message::Message,
};
use crate::{
    error::{BoxError, TokenError},
    token::AccessToken,
};

pin_project! {
    /// The future of [`AdobeAuth`](crate::AdobeAuth).
    ///
    /// Dropping it drops the request. A token request that it waits for goes on for the others.
    pub struct ResponseFuture<S, Req>
    where
        S: Service<Req>,
    {
        #[pin]
        state: State<S, Req>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Req>
    where
        S: Service<Req>,
    {
        // The inner service has the request. Waiting for its response.
        Sent { #[pin] response: S::Future },
        // Waiting for a token, and then for the inner service to be ready. Boxed: the request in
        // it would make the future of every request larger.
        Waiting { pending: Box<Pending<S, Req>> },
        // The request was not sent.
        Failed { error: Option<BoxError> },
    }
}

/// A request that has no token yet.
struct Pending<S, Req> {
    /// `None` when a token has come, and the service is being waited for.
    token: Option<TokenFuture>,
    wait: Wait,
    /// Not ready: the one that was gave its place back.
    service: S,
    request: Option<Req>,
    authorizer: Arc<Authorizer>,
}

type TokenFuture = Pin<Box<dyn Future<Output = Result<AccessToken, TokenError>> + Send>>;

impl<S, Req> ResponseFuture<S, Req>
where
    S: Service<Req>,
{
    pub(super) fn sent(response: S::Future) -> Self {
        Self { state: State::Sent { response } }
    }

    pub(super) fn waiting(
        service: S,
        request: Req,
        authorizer: Arc<Authorizer>,
        wait: Wait,
    ) -> Self {
        let token: TokenFuture = Box::pin(wait.clone().token());
        let (token, request) = (Some(token), Some(request));
        let pending = Box::new(Pending { token, wait, service, request, authorizer });
        Self { state: State::Waiting { pending } }
    }

    pub(super) fn failed(error: BoxError) -> Self {
        Self { state: State::Failed { error: Some(error) } }
    }
}

impl<S, Req> Future for ResponseFuture<S, Req>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    Req: Message,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Sent { response } => return response.poll(cx).map_err(Into::into),
                StateProj::Waiting { pending } => {
                    let response = ready!(pending.poll_send(cx))?;
                    this.state.set(State::Sent { response });
                }
                StateProj::Failed { error } => {
                    return Poll::Ready(Err(error.take().expect("polled after completion")));
                }
            }
        }
    }
}

impl<S, Req> Pending<S, Req>
where
    S: Service<Req> + Clone,
    S::Error: Into<BoxError>,
    Req: Message,
{
    /// Sends the request as soon as there is a token and the service is ready.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<S::Future, BoxError>> {
        let token = loop {
            if let Some(token) = &mut self.token {
                ready!(token.as_mut().poll(cx))?;
                self.token = None;
            }
            ready!(self.service.poll_ready(cx)).map_err(Into::into)?;
            // The service may have taken its time, and the token's life with it.
            match self.wait.at_hand() {
                Some(token) => break token,
                None => {
                    let unready = self.service.clone();
                    self.service = unready;
                    self.token = Some(Box::pin(self.wait.clone().token()));
                }
            }
        };

        let mut request = self.request.take().expect("polled after completion");
        self.authorizer.sign(request.headers_mut(), &token);
        Poll::Ready(Ok(self.service.call(request)))
    }
}

impl<S, Req> fmt::Debug for ResponseFuture<S, Req>
where
    S: Service<Req>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Sent { .. } => "sent",
            State::Waiting { .. } => "waiting",
            State::Failed { .. } => "failed",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish()
    }
}
