//! One refresh: a task that makes a few attempts to obtain a token, and the guard that ends it.
//!
//! The task belongs to the source and not to a caller, so that dropping a caller does not cancel it.
//! However the task ends (with a token, a failure, a panic, or because its runtime ends), its [`Guard`]
//! records the end in the state first, which wakes the callers, and reports to tracing and metrics
//! afterwards.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    access_token::AccessToken,
    inner::{Inner, TaskGuard},
    state::{Completion, State},
    supply::{Obtained, Panicked, Reason, caught},
    sync::Handle,
};
use crate::{
    clock::{Deadline, WaitError, timer},
    error::{ErrorKind, TokenError},
    telemetry::{RefreshSpan, events},
};

/// The result of the call that starts a refresh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// A refresh is in progress, or is no longer wanted.
    Done,
    /// The current runtime is shutting down, and dropped the task.
    Lost,
    /// There is no runtime here, or the source is closed.
    Impossible,
}

/// Starts a refresh on the current runtime if `wanted` still holds and none is in progress.
pub(super) fn start(
    inner: &Arc<Inner>,
    reason: Reason,
    wanted: impl FnOnce(&State) -> bool,
) -> Start {
    let (Ok(runtime), Some(task)) = (Handle::try_current(), inner.register_task()) else {
        return Start::Impossible;
    };
    let Some(number) = inner.start(inner.now(), wanted) else { return Start::Done };
    // From here on the guard ends the refresh, even if a tracing subscriber panics in the code below.
    let guard = Guard::new(Arc::clone(inner), number, task);
    // A runtime that is shutting down drops the task inside `spawn`. The guard has then recorded the
    // loss already, and the caller must not wait for a result.
    let task = runtime.spawn(run(guard, reason));
    let lost = task.is_finished() && inner.snapshot().state.was_lost(number);
    if lost { Start::Lost } else { Start::Done }
}

/// Runs a refresh from its first attempt to its end.
fn run(mut guard: Guard, reason: Reason) -> impl Future<Output = ()> + Send {
    // The span is made here and not at the first poll, because a runtime that is shutting down drops
    // the future without polling it.
    guard.span = RefreshSpan::new(&guard.inner.settings.name, guard.number);
    let span = guard.span.clone();
    span.instrument(async move {
        let result = tokio::select! {
            biased;
            () = guard.task.closed() => Err(TokenError::shut_down()),
            result = attempts(&guard, reason) => result,
        };
        guard.complete(result);
        // The callers have their result, so the remaining work, such as ending a lease, delays none.
        let _ = caught(guard.inner.supply.settle()).await;
    })
}

/// The result of a refresh.
enum Refreshed {
    Token { token: AccessToken, shared: bool },
    Unchanged,
}

/// Makes attempts until one succeeds, or fails for good, or the retry budget is used up.
async fn attempts(guard: &Guard, reason: Reason) -> Result<Refreshed, TokenError> {
    let Guard { inner, number, span, .. } = guard;
    let settings = &inner.settings;
    let start = Instant::now();
    let newest = inner.snapshot().state.newest();
    let mut paused = Duration::ZERO;
    let mut lost_time = Duration::ZERO;
    let mut attempt = 1;
    loop {
        span.record("attempt", u64::from(attempt));
        let random = fastrand::f64();
        let (result, standstill) = attempt_once(inner, *number, reason, random).await;
        lost_time += standstill;
        let error = match result {
            Ok(refreshed) => {
                report_success(inner, attempt, start.elapsed(), &refreshed);
                return Ok(refreshed);
            }
            Err(error) => error,
        };
        let Some(pause) = inner.record_failure(*number, &error, random) else {
            // The refresh was given up, and another one may be in progress.
            return Err(error);
        };
        events::attempt_failed(attempt, &error, pause);
        paused += pause;
        let another = attempt < settings.attempts
            && is_worth_another_attempt(&error)
            && paused <= settings.retry_for
            && (start.elapsed() + pause).saturating_sub(lost_time) < settings.acquire_timeout;
        if !another {
            return Err(error);
        }
        events::attempt_retried(attempt, pause);
        timer(Instant::now() + pause).await.map_err(|_| TokenError::no_timer())?;
        // A token that came meanwhile, from a refresh that was given up or from another process, will
        // do, unless it may belong to the old credentials.
        let served = inner.snapshot().state.has_newer(newest, inner.now());
        if served && reason != Reason::CredentialsChanged {
            return Ok(Refreshed::Unchanged);
        }
        attempt += 1;
    }
}

/// Makes one attempt, and repeats it once if it failed because the process stood still.
///
/// The scenario: a process is stopped in the middle of a token request (SIGSTOP, a paused VM, a frozen
/// function) and resumed minutes later. IMS has closed the connection long ago, so the attempt fails
/// with a broken connection or a timeout. Recorded as a failure, it would start a backoff and fail the
/// callers although IMS is healthy.
async fn attempt_once(
    inner: &Arc<Inner>,
    number: u64,
    reason: Reason,
    random: f64,
) -> (Result<Refreshed, TokenError>, Duration) {
    let mut repeated = false;
    let mut lost_time = Duration::ZERO;
    loop {
        // A refresh that was given up because its runtime stalled makes no further requests.
        if !inner.extend(number) {
            return (Err(TokenError::lost()), lost_time);
        }
        // The supply ends an attempt itself after `longest`. This limit is an eighth later, for a
        // supply that does not.
        let longest = inner.supply.longest();
        let limit = longest.saturating_add(longest / 8);
        let mut deadline = Deadline::after(limit);
        let obtained = caught(inner.supply.obtain(inner.need(reason, random)));
        // After a standstill the attempt continues with more time, so the refresh is not overdue.
        let resumed = || {
            inner.extend(number);
        };
        let result = match deadline.wait_for(obtained, resumed).await {
            Ok(Ok(result)) => result.and_then(|obtained| accept(inner, obtained)),
            Ok(Err(Panicked)) => Err(TokenError::panicked()),
            Err(WaitError::NoTimer) => Err(TokenError::no_timer()),
            Err(WaitError::DeadlinePassed) => Err(TokenError::attempt_timeout(limit)),
        };
        lost_time += deadline.lost();
        let unanswered = result.as_ref().is_err_and(is_unanswered);
        if !unanswered || repeated || !deadline.stood_still() {
            return (result, lost_time);
        }
        repeated = true;
        events::attempt_repeated();
    }
}

/// Returns whether the attempt may have failed because the process stood still: IMS did not respond, or
/// the token had expired when the process resumed.
fn is_unanswered(error: &TokenError) -> bool {
    match error.kind() {
        ErrorKind::Connection | ErrorKind::Timeout => true,
        ErrorKind::Fetch => error.is_transient(),
        _ => false,
    }
}

/// Makes a token from the result of the supply. Fails if the token has expired already.
fn accept(inner: &Arc<Inner>, obtained: Obtained) -> Result<Refreshed, TokenError> {
    let Obtained::Token(supplied) = obtained else { return Ok(Refreshed::Unchanged) };
    let shared = supplied.shared;
    let token = inner.token(supplied)?;
    let thresholds = inner.settings.schedule.thresholds(token.sent(), token.lifetime());
    if thresholds.expired.has_come(inner.now()) {
        return Err(TokenError::expired_on_arrival(token.lifetime()));
    }
    Ok(Refreshed::Token { token, shared })
}

/// Returns whether the same request may succeed a moment later.
///
/// A malformed response is not retried, because it may have cost a token at IMS. A failure with
/// `Retry-After` ends the refresh, because each caller decides by its own deadline whether to wait.
fn is_worth_another_attempt(error: &TokenError) -> bool {
    error.is_transient()
        && error.retry_after().is_none()
        && !matches!(
            error.kind(),
            ErrorKind::Malformed | ErrorKind::Panicked | ErrorKind::RuntimeLost
        )
}

fn report_success(inner: &Inner, attempt: u32, elapsed: Duration, refreshed: &Refreshed) {
    match refreshed {
        Refreshed::Token { token, shared: false } => {
            events::token_obtained(attempt, elapsed, token.lifetime(), token.generation());
        }
        Refreshed::Token { token, shared: true } => report_shared(inner, token),
        Refreshed::Unchanged => {}
    }
}

/// Reports that this process uses a token that another process obtained.
pub(super) fn report_shared(inner: &Inner, token: &AccessToken) {
    let expires_in = token.expires().remaining(inner.now());
    events::token_shared(token.stamp().0, expires_in, token.generation());
}

/// Ends a refresh in the state: with its result, or as lost if the guard is dropped without one.
struct Guard {
    inner: Arc<Inner>,
    number: u64,
    started: Instant,
    completed: bool,
    span: RefreshSpan,
    task: TaskGuard,
}

impl Guard {
    fn new(inner: Arc<Inner>, number: u64, task: TaskGuard) -> Self {
        let (started, span) = (Instant::now(), RefreshSpan::none());
        Self { inner, number, started, completed: false, span, task }
    }

    fn complete(&mut self, result: Result<Refreshed, TokenError>) {
        match result {
            Ok(Refreshed::Token { token, shared }) => {
                let lifetime = token.lifetime();
                let outcome = if shared { "shared" } else { "success" };
                self.finish(Completion::Token(token), outcome);
                self.span.record("expires_in", lifetime.as_secs_f64());
            }
            Ok(Refreshed::Unchanged) => self.finish(Completion::Unchanged, "shared"),
            Err(error) => self.fail(Completion::Failed, &error),
        }
    }

    fn fail(&mut self, completion: Completion, error: &TokenError) {
        self.finish(completion, error.kind().as_str());
        self.span.record("otel.status_code", "ERROR");
    }

    /// Records in the state how the refresh ended, which wakes the callers. Then reports it to tracing
    /// and metrics, whose code may block or panic.
    fn finish(&mut self, completion: Completion, outcome: &'static str) {
        self.completed = true;
        let waiters = self.inner.waiters();
        self.inner.complete(self.number, completion);
        let duration = self.started.elapsed();
        self.span.record("outcome", outcome);
        self.span.record("duration", duration.as_secs_f64());
        self.span.record("waiters", waiters as u64);
        self.inner.telemetry.refreshed(outcome, duration);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.completed {
            return;
        }
        let error = TokenError::lost();
        self.fail(Completion::Lost(error.clone()), &error);
        self.span.in_scope(|| events::refresh_lost(&error));
    }
}
