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
    authorizer::{Authorizer, Unsent, Wait},
    message::Message,
    replay::Replayed,
    reply::{Reply, is_unauthorized, refused, refused_again, sealed::Sealed as _},
};
use crate::{
    error::{BoxError, TokenError},
    telemetry::Obtained,
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
        // `None` while the inner service has no request of ours: then `rest` says what is awaited.
        #[pin]
        response: Option<S::Future>,
        // What the request was sent with. `None` if it is not ours.
        sent: Option<Sent>,
        // What is rare. Boxed, so that the future of every request is not larger for it.
        rest: Option<Box<Rest<S, Req>>>,
    }
}

/// The token that a request was sent with, and the host that judges it.
pub(super) struct Sent {
    pub(super) token: AccessToken,
    pub(super) host: HostKey,
}

/// What there is beside a response that is waited for, or before it.
enum Rest<S, Req>
where
    S: Service<Req>,
{
    /// Waiting for the first response; should it be a 401, this is sent.
    Spare(Pending<S, Req>),
    /// Waiting for a token, and then for the inner service to be ready. `spare` is for a 401 after
    /// that.
    Waiting { pending: Pending<S, Req>, spare: Option<Box<Self>>, unsent: Unsent },
    /// The API refused the first try, with this token. Waiting for another one, and then for the
    /// inner service to be ready. The refusal is the answer if that comes to nothing.
    Refused { pending: Pending<S, Req>, token: AccessToken, refusal: S::Response },
    /// Waiting for the response to the second try.
    Replayed,
    /// The request was not sent.
    Failed(BoxError),
}

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
    /// The inner service has the request.
    pub(super) fn sent(
        response: S::Future,
        sent: Option<Sent>,
        spare: Option<Pending<S, Req>>,
    ) -> Self {
        Self { response: Some(response), sent, rest: spare.map(Rest::spare) }
    }

    pub(super) fn waiting(mut pending: Pending<S, Req>, spare: Option<Pending<S, Req>>) -> Self {
        pending.ask();
        let unsent = pending.wait.unsent();
        Self::resting(Rest::Waiting { pending, spare: spare.map(Rest::spare), unsent })
    }

    pub(super) fn failed(error: BoxError) -> Self {
        Self::resting(Rest::Failed(error))
    }

    fn resting(rest: Rest<S, Req>) -> Self {
        Self { response: None, sent: None, rest: Some(Box::new(rest)) }
    }
}

impl<S, Req> Rest<S, Req>
where
    S: Service<Req>,
{
    fn spare(pending: Pending<S, Req>) -> Box<Self> {
        Box::new(Self::Spare(pending))
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

    #[inline]
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let this = self.as_mut().project();
            if let Some(response) = this.response.as_pin_mut() {
                // Passed on as it came, in one piece, but for a 401: to look inside copies it.
                let answer = response.poll(cx);
                let is_plain = match &answer {
                    Poll::Ready(Ok(response)) => this.rest.is_none() && !is_unauthorized(response),
                    _ => true,
                };
                if is_plain {
                    return answer.map_err(Into::into);
                }
                let response = ready!(answer).map_err(Into::into)?;
                if let Some(response) = self.as_mut().judge(response) {
                    return Poll::Ready(Ok(response));
                }
            }
            if let Some(refusal) = ready!(self.as_mut().send(cx))? {
                return Poll::Ready(Ok(refusal));
            }
        }
    }
}

impl<S, Req> ResponseFuture<S, Req>
where
    S: Service<Req> + Clone,
    S::Response: Reply,
    S::Error: Into<BoxError>,
    Req: Message,
{
    /// The response, if it is what the caller gets. Else the request is to be sent once more.
    #[inline(never)]
    fn judge(self: Pin<&mut Self>, mut response: S::Response) -> Option<S::Response> {
        let mut this = self.project();
        match (this.rest.take().map(|rest| *rest), this.sent.take()) {
            (Some(Rest::Replayed), Some(Sent { token, host })) => {
                refused_again(&response, &token, host);
                response.extensions_mut().insert(Replayed);
            }
            (Some(Rest::Spare(mut pending)), Some(Sent { token, host })) => {
                if refused(&response, &token, host) {
                    pending.ask();
                    this.response.set(None);
                    *this.rest =
                        Some(Box::new(Rest::Refused { pending, token, refusal: response }));
                    return None;
                }
            }
            (_, Some(Sent { token, host })) => {
                refused(&response, &token, host);
            }
            (_, None) => {}
        }
        Some(response)
    }

    /// Waits for what has to come first, and sends the request. If it is not to be sent: the error,
    /// or the refusal that stays the answer.
    #[inline(never)]
    fn send(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<S::Response>, BoxError>> {
        let mut this = self.project();
        let token = match this.rest.as_deref_mut().expect(COMPLETED) {
            Rest::Waiting { pending, .. } => Some(ready!(pending.poll_token(cx))?),
            // Whatever came of it: is there another token now?
            Rest::Refused { pending, token, .. } => {
                ready!(pending.poll_token(cx)).ok().filter(|another| !another.is(token))
            }
            Rest::Spare(_) | Rest::Replayed | Rest::Failed(_) => None,
        };
        let (mut pending, how, rest, token) = match (this.rest.take().map(|rest| *rest), token) {
            (Some(Rest::Waiting { pending, spare, unsent }), Some(token)) => {
                unsent.sent();
                (pending, Obtained::Waited, spare, token)
            }
            (Some(Rest::Refused { pending, .. }), Some(token)) => {
                (pending, Obtained::Replayed, Some(Box::new(Rest::Replayed)), token)
            }
            (Some(Rest::Refused { pending, refusal, .. }), None) => {
                pending.wait.count_no_new_token();
                return Poll::Ready(Ok(Some(refusal)));
            }
            (Some(Rest::Failed(error)), _) => return Poll::Ready(Err(error)),
            _ => unreachable!("{COMPLETED}"),
        };
        let (response, sent) = pending.send(token, how);
        this.response.set(Some(response));
        (*this.sent, *this.rest) = (Some(sent), rest);
        Poll::Ready(Ok(None))
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
    fn send(&mut self, token: AccessToken, how: Obtained) -> (S::Future, Sent)
    where
        S: Service<Req>,
        Req: Message,
    {
        let mut request = self.request.take().expect(COMPLETED);
        self.authorizer.sign(request.headers_mut(), &token);
        self.wait.count_sent(&token, how);
        (self.service.call(request), Sent { token, host: self.wait.host })
    }
}

impl<S, Req> fmt::Debug for ResponseFuture<S, Req>
where
    S: Service<Req>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match (self.rest.as_deref(), &self.sent) {
            (Some(Rest::Waiting { .. }), _) => "waiting",
            (Some(Rest::Refused { .. }), _) => "refused",
            (Some(Rest::Replayed), _) => "replayed",
            (Some(Rest::Failed(_)), _) => "failed",
            (_, Some(_)) => "sent",
            (_, None) => "passed",
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish()
    }
}
