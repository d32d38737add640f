//! One refresh: a task that asks for a token, and the guard that lands it.
//!
//! The task belongs to the source, not to a caller: dropping a caller does not end it. However it
//! ends (with a token, an error, a panic, with its runtime) the [`Landing`] tells those who wait.

use std::{
    sync::{Arc, Weak},
    thread,
    time::Duration,
};

use tokio::{
    runtime::Id,
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{Instrument, Span, debug, field::Empty, info, info_span, warn};

use super::{
    closing::Open,
    fleet::{Asked, Visit},
    shared::Shared,
};
use crate::{
    error::{ErrorKind, TokenError},
    token::AccessToken,
};

/// How a flight ends.
pub(super) type Outcome = Result<AccessToken, TokenError>;

/// How a flight is joined.
#[derive(Clone, Debug)]
pub(super) struct Joined {
    outcome: watch::Receiver<Option<Outcome>>,
    /// Where it runs.
    pub(super) runtime: Id,
}

impl Joined {
    /// Whether the flight has ended without a word.
    pub(super) fn is_lost(&self) -> bool {
        self.outcome.has_changed().is_err() && self.outcome.borrow().is_none()
    }
}

/// The other end of [`Joined`]; when it is dropped, those who wait stop waiting.
pub(super) type Landing = watch::Sender<Option<Outcome>>;

pub(super) fn channel(runtime: Id) -> (Landing, Joined) {
    let (landing, outcome) = watch::channel(None);
    (landing, Joined { outcome, runtime })
}

/// Waits until the flight has landed. Cancel safe: a flight does not care who waits for it.
pub(super) async fn join(mut flight: Joined) -> Outcome {
    match flight.outcome.wait_for(Option::is_some).await.as_deref() {
        Ok(Some(outcome)) => outcome.clone(),
        _ => Err(lost()),
    }
}

/// Asks for a token, a few times if need be, and lands.
pub(super) fn fly(
    shared: Arc<Shared>,
    number: u64,
    landing: Landing,
    open: Open,
) -> impl Future<Output = ()> + Send {
    // Made here, not at the first poll: a runtime that is shutting down drops the future unpolled.
    let span = span(&shared, number);
    let start = Instant::now();
    let mut closed = open.clone();
    let landing = Some(landing);
    let visit = Visit::new(&shared);
    let mut guard =
        Guard { shared, number, landing, visit, start, span: span.clone(), _open: open };
    let flight = async move {
        let outcome = tokio::select! {
            biased;
            _ = closed.wait_for(|closed| *closed) => Err(shut_down()),
            outcome = attempts(&guard.shared, number, &mut guard.visit) => outcome,
        };
        guard.land(outcome);
        guard.visit.give_back(&guard.shared).await;
    };
    flight.instrument(span)
}

/// The span of one flight. The root of its trace: who came first is only who came first.
fn span(shared: &Shared, number: u64) -> Span {
    let span = info_span!(
        parent: None,
        "token_refresh",
        otel.kind = "client",
        source = &*shared.settings.name,
        flight = number,
        attempt = Empty,
        outcome = Empty,
        duration = Empty,
        expires_in = Empty,
        waiters = Empty,
        otel.status_code = Empty,
    );
    span.follows_from(Span::current());
    span
}

async fn attempts(shared: &Arc<Shared>, number: u64, visit: &mut Visit) -> Outcome {
    let settings = &shared.settings;
    let start = Instant::now();
    let mut attempt = 1;
    loop {
        Span::current().record("attempt", attempt);
        let (turn, outcome) = match visit.ask(shared).await {
            Asked::Token(token) => return Ok(token),
            Asked::Turn(turn) => (turn, attempt_once(shared).await),
            Asked::Told(turn, error) => (turn, Err(error)),
        };
        let delay = outcome.as_ref().err().and_then(|error| shared.fail(number, error));
        let error = match visit.end(shared, turn, outcome, delay).await {
            Ok(token) if visit.taken => return Ok(token),
            Ok(token) => {
                let expires_in = token.lifetime().as_secs_f64();
                let duration = start.elapsed().as_secs_f64();
                let generation = token.generation();
                info!(attempt, duration, expires_in, generation, "fetched an access token");
                return Ok(token);
            }
            Err(error) => error,
        };

        let Some(delay) = delay else {
            // It was given up: another one flies, and IMS is not to be asked twice.
            return Err(error);
        };
        warn!(
            attempt,
            error = &error as &dyn std::error::Error,
            next_try_in = delay.as_secs_f64(),
            "could not fetch an access token"
        );
        let patience = match error.retry_after() {
            Some(_) => settings.acquire_timeout,
            None => settings.retry_for,
        };
        let last = attempt >= settings.attempts
            || !is_worth_another_try(&error)
            || start.elapsed() + delay > patience;
        if last {
            return Err(error.retry_in_after(delay));
        }
        debug!(attempt, delay = delay.as_secs_f64(), "trying again");
        sleep(delay).await;
        attempt += 1;
    }
}

async fn attempt_once(shared: &Arc<Shared>) -> Outcome {
    let limit = shared.settings.attempt_timeout;
    // The life of the token counts from here, before the request is sent.
    let sent = shared.now();
    let response = timeout(limit, shared.fetcher.fetch_token()).await.unwrap_or_else(|_| {
        Err(TokenError::new(ErrorKind::Timeout, format!("no token was fetched within {limit:?}")))
    })?;
    let origin: Weak<Shared> = Arc::downgrade(shared);
    let token = AccessToken::new(response, sent, shared.next_generation(), origin)?;
    let thresholds = shared.settings.schedule.thresholds(sent, token.lifetime());
    if thresholds.retire.has_come(shared.now()) {
        return Err(TokenError::new(
            ErrorKind::Timeout,
            format!("the access token came too late: it lives for {:?} only", token.lifetime()),
        ));
    }
    Ok(token)
}

/// Whether the same request may bring a token a moment later. A malformed answer may have cost a
/// token at IMS, and is not asked for again while callers wait.
fn is_worth_another_try(error: &TokenError) -> bool {
    error.is_transient() && error.kind() != ErrorKind::Malformed
}

/// Lands the flight, at the latest when it is dropped.
struct Guard {
    shared: Arc<Shared>,
    number: u64,
    landing: Option<Landing>,
    visit: Visit,
    start: Instant,
    span: Span,
    /// Seen by who waits for the end of the source's tasks.
    _open: Open,
}

impl Guard {
    fn land(&mut self, outcome: Outcome) {
        if let Some(landing) = self.landing.take() {
            self.report(&outcome);
            self.shared.land(self.number, &outcome);
            landing.send_replace(Some(outcome));
        }
    }
}

impl Guard {
    /// Says in the span and the metrics how the flight went.
    fn report(&self, outcome: &Outcome) {
        let duration = self.start.elapsed();
        let word = match outcome {
            Ok(token) => {
                self.span.record("expires_in", token.lifetime().as_secs_f64());
                if self.visit.taken { "shared" } else { "success" }
            }
            Err(error) => {
                self.span.record("otel.status_code", "ERROR");
                error.kind().as_str()
            }
        };
        self.span.record("outcome", word);
        self.span.record("duration", duration.as_secs_f64());
        self.span.record("waiters", self.shared.waiters());
        self.shared.telemetry().refreshed(word, duration);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.visit.leave(&self.shared);
        if self.landing.is_none() {
            return;
        }
        let error = if thread::panicking() {
            TokenError::new(ErrorKind::Panicked, "the code that fetches the token panicked")
        } else {
            lost()
        };
        let delay = self.shared.fail(self.number, &error).unwrap_or_default();
        self.land(Err(with_delay(&error, delay)));
        warn!(error = &error as &dyn std::error::Error, "a token request ended without an answer");
    }
}

fn with_delay(error: &TokenError, delay: Duration) -> TokenError {
    if delay.is_zero() { error.clone() } else { error.retry_in_after(delay) }
}

fn lost() -> TokenError {
    TokenError::new(
        ErrorKind::RuntimeLost,
        "the runtime that fetched the token ended before the answer came",
    )
}

pub(super) fn shut_down() -> TokenError {
    TokenError::new(ErrorKind::Shutdown, "the token source was shut down")
}
