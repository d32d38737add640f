//! [`ResponseFuture`]: the state machine of one request, from the call to the response.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    authorizer::{Authorizer, FailureCounter, PendingToken, Sent, TokenFuture},
    message::Message,
    replay::Replayed,
    reply::{Reply, is_refusal, is_unauthorized},
};
use crate::{error::BoxError, source::AccessToken, telemetry::Obtained};

pin_project! {
    /// The response future of [`AdobeAuth`](crate::AdobeAuth).
    ///
    /// # Cancellation
    ///
    /// Dropping it drops the request. A token refresh that the request waits for continues, because
    /// other requests need the token too.
    pub struct ResponseFuture<S, Req>
    where
        S: Service<Req>,
    {
        #[pin]
        state: State<S, Req>,
    }
}

pin_project! {
    /// The states of a request. Rare states are boxed, because the future of every request is as
    /// large as the largest state.
    #[project = StateProjection]
    enum State<S, Req>
    where
        S: Service<Req>,
    {
        /// Sent unchanged. Awaits the response.
        PassedThrough {
            #[pin]
            response: S::Future,
        },
        /// Sent with a token. Awaits the response; `spare` is sent if the response is a refusal.
        Sent {
            #[pin]
            response: S::Future,
            sent: Sent,
            spare: Option<Box<HeldRequest<S, Req>>>,
        },
        /// Sent for the second time. Awaits the response, which is the caller's whatever its status.
        Replayed {
            #[pin]
            response: S::Future,
            replay: Box<Replay>,
        },
        /// Not sent yet, or not sent again yet.
        Held { held: Held<S, Req> },
    }
}

/// The states in which this future, and not the inner service, has the request.
enum Held<S, Req>
where
    S: Service<Req>,
{
    /// Awaits a token and the readiness of the inner service, for the first try. Dropping this state
    /// counts the request as failed.
    Waiting(Box<Waiting<S, Req>>),
    /// The API refused the first try. Awaits another token; the refusal is the response if none
    /// comes.
    Refused(Box<Refused<S, Req>>),
    /// Another token came and the refusal was dropped. Awaits the readiness of the inner service.
    Replaying(Box<Attempt<S, Req>>),
    /// Failed before it was sent. Awaits nothing.
    Failed(BoxError),
    /// Has returned its result, and must not be polled again.
    Done,
}

/// The data of [`Held::Waiting`].
struct Waiting<S, Req> {
    attempt: Attempt<S, Req>,
    spare: Option<Box<HeldRequest<S, Req>>>,
    failure: FailureCounter,
}

/// The data of [`Held::Refused`].
struct Refused<S, Req>
where
    S: Service<Req>,
{
    token: TokenFuture,
    held: HeldRequest<S, Req>,
    refusal: S::Response,
}

/// A replay in progress.
struct Replay {
    sent: Sent,
    pending: PendingToken,
}

/// A request that waits for a token and for the inner service.
struct Attempt<S, Req> {
    step: Step,
    held: HeldRequest<S, Req>,
}

/// The step of an [`Attempt`].
enum Step {
    /// Awaits a token.
    Token(TokenFuture),
    /// A token came. Awaits the readiness of the inner service.
    Readiness,
}

/// A request that was not passed to the inner service yet, with everything that is needed to send it.
pub(super) struct HeldRequest<S, Req> {
    pub(super) request: Req,
    /// A clone that has not been polled ready.
    pub(super) service: S,
    pub(super) authorizer: Arc<Authorizer>,
    pub(super) pending: PendingToken,
}

impl<S, Req> ResponseFuture<S, Req>
where
    S: Service<Req>,
{
    pub(super) fn passed_through(response: S::Future) -> Self {
        Self { state: State::PassedThrough { response } }
    }

    pub(super) fn sent(
        response: S::Future,
        sent: Sent,
        spare: Option<Box<HeldRequest<S, Req>>>,
    ) -> Self {
        Self { state: State::Sent { response, sent, spare } }
    }

    /// A future that waits for the token of `held`. `spare` is the copy for the replay.
    pub(super) fn waiting(
        held: HeldRequest<S, Req>,
        spare: Option<Box<HeldRequest<S, Req>>>,
    ) -> Self {
        let failure = held.pending.failure_counter();
        let attempt = Attempt { step: Step::Token(held.pending.acquire()), held };
        Self::held(Held::Waiting(Box::new(Waiting { attempt, spare, failure })))
    }

    pub(super) fn failed(error: BoxError) -> Self {
        Self::held(Held::Failed(error))
    }

    fn held(held: Held<S, Req>) -> Self {
        Self { state: State::Held { held } }
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
            let mut state = self.as_mut().project().state;
            let next = match state.as_mut().project() {
                StateProjection::PassedThrough { response } => {
                    return response.poll(cx).map_err(Into::into);
                }
                StateProjection::Sent { response, sent, spare } => {
                    let result = response.poll(cx);
                    // Taking the response out of the result copies it, so only a 401 is taken out.
                    if !is_ready_unauthorized(&result) {
                        return result.map_err(Into::into);
                    }
                    let response = ready!(result).map_err(Into::into)?;
                    match after_unauthorized(response, sent, spare) {
                        Next::Return(response) => return Poll::Ready(Ok(response)),
                        Next::Enter(next) => next,
                    }
                }
                StateProjection::Replayed { response, replay } => {
                    let response = ready!(response.poll(cx)).map_err(Into::into)?;
                    return Poll::Ready(Ok(replay.finish(response)));
                }
                StateProjection::Held { held } => match ready!(held.poll(cx))? {
                    Next::Return(response) => return Poll::Ready(Ok(response)),
                    Next::Enter(next) => next,
                },
            };
            state.set(next);
        }
    }
}

/// The step that follows a state.
enum Next<S, Req>
where
    S: Service<Req>,
{
    /// Return this response.
    Return(S::Response),
    /// Enter this state, and poll it.
    Enter(State<S, Req>),
}

#[inline]
fn is_ready_unauthorized<R: Reply, E>(result: &Poll<Result<R, E>>) -> bool {
    matches!(result, Poll::Ready(Ok(response)) if is_unauthorized(response))
}

/// Reports the 401 if it refuses the token, and starts the replay if there is a spare request.
#[inline(never)]
fn after_unauthorized<S, Req>(
    response: S::Response,
    sent: &Sent,
    spare: &mut Option<Box<HeldRequest<S, Req>>>,
) -> Next<S, Req>
where
    S: Service<Req>,
    S::Response: Reply,
{
    if !is_refusal(&response, sent.origin) {
        return Next::Return(response);
    }
    sent.report_unauthorized();
    let Some(held) = spare.take() else {
        return Next::Return(response);
    };
    let token = held.pending.acquire_another(&sent.token);
    let refused = Refused { token, held: *held, refusal: response };
    Next::Enter(State::Held { held: Held::Refused(Box::new(refused)) })
}

impl<S, Req> Held<S, Req>
where
    S: Service<Req> + Clone,
    S::Response: Reply,
    S::Error: Into<BoxError>,
    Req: Message,
{
    // Out of line, so that the code for rare states does not enlarge the `poll` of every request.
    #[inline(never)]
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Next<S, Req>, BoxError>> {
        match mem::replace(self, Self::Done) {
            Self::Waiting(mut waiting) => {
                let Poll::Ready(token) = waiting.attempt.poll_token(cx) else {
                    *self = Self::Waiting(waiting);
                    return Poll::Pending;
                };
                let token = token?;
                let Waiting { attempt, spare, failure } = *waiting;
                failure.disarm();
                let (response, sent) = attempt.held.send(token, Obtained::Waited);
                Poll::Ready(Ok(Next::Enter(State::Sent { response, sent, spare })))
            }
            Self::Refused(mut refused) => {
                let Poll::Ready(token) = refused.token.as_mut().poll(cx) else {
                    *self = Self::Refused(refused);
                    return Poll::Pending;
                };
                let Refused { held, refusal, .. } = *refused;
                if token.is_err() {
                    held.pending.count_no_new_token();
                    return Poll::Ready(Ok(Next::Return(refusal)));
                }
                // A response may occupy a connection or a permit of the inner service until it is
                // dropped, and the replay needs one too. If refused responses occupied all of them,
                // each replay would wait for the others for ever. So the refusal is dropped before
                // the inner service is polled for readiness.
                drop(refusal);
                let attempt = Attempt { step: Step::Readiness, held };
                let held = Self::Replaying(Box::new(attempt));
                Poll::Ready(Ok(Next::Enter(State::Held { held })))
            }
            Self::Replaying(mut attempt) => {
                let Poll::Ready(token) = attempt.poll_token(cx) else {
                    *self = Self::Replaying(attempt);
                    return Poll::Pending;
                };
                let token = token?;
                let pending = attempt.held.pending.clone();
                let (response, sent) = attempt.held.send(token, Obtained::Replayed);
                let replay = Box::new(Replay { sent, pending });
                Poll::Ready(Ok(Next::Enter(State::Replayed { response, replay })))
            }
            Self::Failed(error) => Poll::Ready(Err(error)),
            Self::Done => panic!("`ResponseFuture` polled after completion"),
        }
    }
}

impl Replay {
    /// Reports and counts the outcome of the replay, and marks its response.
    fn finish<R: Reply>(&self, mut response: R) -> R {
        let refused_again = is_refusal(&response, self.sent.origin);
        if refused_again {
            self.sent.report_unauthorized();
        }
        self.pending.count_replayed(refused_again);
        response.extensions_mut().insert(Replayed);
        response
    }
}

impl<S, Req> Attempt<S, Req> {
    /// Waits until the inner service is ready and there is a token.
    fn poll_token(&mut self, cx: &mut Context<'_>) -> Poll<Result<AccessToken, BoxError>>
    where
        S: Service<Req> + Clone,
        S::Error: Into<BoxError>,
    {
        loop {
            match &mut self.step {
                Step::Token(token) => {
                    ready!(token.as_mut().poll(cx))?;
                    self.step = Step::Readiness;
                }
                Step::Readiness => {
                    ready!(self.held.service.poll_ready(cx)).map_err(Into::into)?;
                    // The token may have expired while the service was not ready. The wait for the
                    // next one may be long, so the readiness is given up meanwhile, as in
                    // `AdobeAuth::release_readiness`.
                    if let Some(token) = self.held.pending.usable() {
                        return Poll::Ready(Ok(token));
                    }
                    let unready = self.held.service.clone();
                    self.held.service = unready;
                    self.step = Step::Token(self.held.pending.acquire());
                }
            }
        }
    }
}

impl<S, Req> HeldRequest<S, Req> {
    /// Sends the request to the inner service, which is ready.
    fn send(mut self, token: AccessToken, how: Obtained) -> (S::Future, Sent)
    where
        S: Service<Req>,
        Req: Message,
    {
        self.authorizer.insert_headers(self.request.headers_mut(), &token);
        let sent = self.pending.send_with(token, how);
        (self.service.call(self.request), sent)
    }
}

impl<S, Req> fmt::Debug for ResponseFuture<S, Req>
where
    S: Service<Req>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::PassedThrough { .. } => "passed through",
            State::Sent { .. } => "sent",
            State::Replayed { .. } => "replayed",
            State::Held { held } => match held {
                Held::Waiting(_) => "waiting",
                Held::Refused(_) => "refused",
                Held::Replaying(_) => "replaying",
                Held::Failed(_) => "failed",
                Held::Done => "done",
            },
        };
        f.debug_struct("ResponseFuture").field("state", &state).finish()
    }
}
