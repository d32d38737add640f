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
    replay::Replayed,
    reply::{Reply, refused, sealed::Sealed as _},
};
use crate::{
    error::{BoxError, TokenError},
    token::{AccessToken, HostKey},
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
        // The inner service has a request that is not ours. Waiting for its response.
        Passed { #[pin] response: S::Future },
        // The inner service has the request, with this token. Waiting for its response; should it
        // be a 401, `spare` is sent.
        Sent {
            #[pin]
            response: S::Future,
            token: AccessToken,
            host: HostKey,
            spare: Option<Spare<S, Req>>,
        },
        // Waiting for a token, and then for the inner service to be ready; `spare` is for a 401
        // after that. Boxed: the request in it would make the future of every request larger.
        Waiting { pending: Box<Pending<S, Req>>, spare: Option<Spare<S, Req>> },
        // The API refused the first try. Waiting for another token, and then for the inner service
        // to be ready. The refusal is the answer if that comes to nothing.
        Refused { pending: Box<Pending<S, Req>>, token: AccessToken, refusal: Option<S::Response> },
        // The inner service has the request for the second time. Waiting for its response.
        Replayed { #[pin] response: S::Future, token: AccessToken, host: HostKey },
        // The request was not sent.
        Failed { error: Option<BoxError> },
    }
}

/// The request, to be sent once more.
type Spare<S, Req> = Box<Pending<S, Req>>;

/// A request that has no token yet.
pub(super) struct Pending<S, Req> {
    /// `None` before it is asked for, and when it has come and the service is being waited for.
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
    pub(super) fn passed(response: S::Future) -> Self {
        Self { state: State::Passed { response } }
    }

    pub(super) fn sent(
        response: S::Future,
        token: AccessToken,
        host: HostKey,
        spare: Option<Spare<S, Req>>,
    ) -> Self {
        Self { state: State::Sent { response, token, host, spare } }
    }

    pub(super) fn waiting(mut pending: Pending<S, Req>, spare: Option<Spare<S, Req>>) -> Self {
        pending.ask();
        Self { state: State::Waiting { pending: Box::new(pending), spare } }
    }

    pub(super) fn failed(error: BoxError) -> Self {
        Self { state: State::Failed { error: Some(error) } }
    }
}

impl<S, Req> Future for ResponseFuture<S, Req>
where
    S: Service<Req> + Clone,
    S::Response: Reply,
    S::Error: Into<BoxError>,
    Req: Message,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let next = match state.as_mut().project() {
                StateProj::Passed { response } => return response.poll(cx).map_err(Into::into),
                StateProj::Sent { response, token, host, spare } => {
                    let response = ready!(response.poll(cx)).map_err(Into::into)?;
                    if !refused(&response, token, *host) {
                        return Poll::Ready(Ok(response));
                    }
                    let Some(mut pending) = spare.take() else {
                        return Poll::Ready(Ok(response));
                    };
                    pending.ask();
                    State::Refused { pending, token: token.clone(), refusal: Some(response) }
                }
                StateProj::Waiting { pending, spare } => {
                    let token = ready!(pending.poll_token(cx))?;
                    let (response, host) = pending.send(&token);
                    State::Sent { response, token, host, spare: spare.take() }
                }
                StateProj::Refused { pending, token: old, refusal } => {
                    match ready!(pending.poll_token(cx)) {
                        Ok(token) if !token.is(old) => {
                            let (response, host) = pending.send(&token);
                            State::Replayed { response, token, host }
                        }
                        _ => {
                            return Poll::Ready(Ok(refusal.take().expect(COMPLETED)));
                        }
                    }
                }
                StateProj::Replayed { response, token, host } => {
                    let mut response = ready!(response.poll(cx)).map_err(Into::into)?;
                    refused(&response, token, *host);
                    response.extensions_mut().insert(Replayed);
                    return Poll::Ready(Ok(response));
                }
                StateProj::Failed { error } => {
                    return Poll::Ready(Err(error.take().expect(COMPLETED)));
                }
            };
            state.set(next);
        }
    }
}

const COMPLETED: &str = "polled after completion";

impl<S, Req> Pending<S, Req> {
    pub(super) fn new(service: S, request: Req, authorizer: Arc<Authorizer>, wait: Wait) -> Self {
        Self { token: None, wait, service, request: Some(request), authorizer }
    }

    /// Asks for a token.
    fn ask(&mut self) {
        self.token = Some(Box::pin(self.wait.clone().token()));
    }

    /// Waits until there is a token and the service is ready.
    fn poll_token(&mut self, cx: &mut Context<'_>) -> Poll<Result<AccessToken, BoxError>>
    where
        S: Service<Req> + Clone,
        S::Error: Into<BoxError>,
    {
        loop {
            if let Some(token) = &mut self.token {
                ready!(token.as_mut().poll(cx))?;
                self.token = None;
            }
            ready!(self.service.poll_ready(cx)).map_err(Into::into)?;
            // The service may have taken its time, and the token's life with it.
            if let Some(token) = self.wait.at_hand() {
                return Poll::Ready(Ok(token));
            }
            let unready = self.service.clone();
            self.service = unready;
            self.ask();
        }
    }

    /// Sends the request. The service is ready.
    fn send(&mut self, token: &AccessToken) -> (S::Future, HostKey)
    where
        S: Service<Req>,
        Req: Message,
    {
        let mut request = self.request.take().expect(COMPLETED);
        self.authorizer.sign(request.headers_mut(), token);
        (self.service.call(request), self.wait.host)
    }
}

impl<S, Req> fmt::Debug for ResponseFuture<S, Req>
where
    S: Service<Req>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Passed { .. } => "passed",
            State::Sent { .. } => "sent",
            State::Waiting { .. } => "waiting",
            State::Refused { .. } => "refused",
            State::Replayed { .. } => "replayed",
            State::Failed { .. } => "failed",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish()
    }
}
