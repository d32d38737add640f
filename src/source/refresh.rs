//! One refresh: a task that makes a few attempts to obtain a token, and the guard that ends it.
//!
//! The task belongs to the source and not to a caller, so that dropping a caller does not cancel it.
//! However the task ends (with a token, a failure, a panic, or because its runtime ends), its [`Guard`]
//! records the end in the state first, which wakes the callers, and reports to tracing and metrics
//! afterwards.

use std::{pin::pin, sync::Arc, time::Duration};

use tokio::time::Instant;

use super::inner::{Inner, TaskGuard};
use super::supply::{Need, Reason, Stamp, Supplied};
use super::{access_token::AccessToken, state::State, sync::Handle};
use crate::clock::{Deadline, WaitError, timer};
use crate::error::{ErrorKind, TokenError};
use crate::foreign::{Panicked, caught};
use crate::telemetry::{RefreshSpan, events};

/// Starts a refresh on the current runtime if `wanted` still holds and none is in progress.
///
/// # Errors
///
/// If no refresh can start here: outside of a runtime, after a shutdown, and on a runtime that is
/// shutting down.
pub(super) fn start(
    inner: &Arc<Inner>,
    reason: Reason,
    wanted: impl FnOnce(&State) -> bool,
) -> Result<(), TokenError> {
    let runtime = Handle::try_current().map_err(|_| TokenError::no_runtime())?;
    let task = inner.register_task().ok_or_else(TokenError::shut_down)?;
    // Read before the start: a token that comes between the two serves this refresh.
    let newest = inner.snapshot().state.newest;
    let Some(number) = inner.start(inner.now(), wanted) else { return Ok(()) };
    // From here on the guard ends the refresh, even if a tracing subscriber panics in the code below.
    let (source, started, span) = (Arc::clone(inner), Instant::now(), RefreshSpan::none());
    let guard = Guard { inner: source, number, started, completed: false, span, task };
    // A runtime that is shutting down drops the task inside `spawn`. The guard has then recorded the
    // loss already, and the caller must not wait for a result.
    let task = runtime.spawn(run(guard, reason, newest));
    let lost = task.is_finished() && inner.snapshot().state.was_lost(number);
    if lost { Err(TokenError::lost()) } else { Ok(()) }
}

/// Runs a refresh from its first attempt to its end.
fn run(mut guard: Guard, reason: Reason, newest: Stamp) -> impl Future<Output = ()> + Send {
    // The span is made here and not at the first poll, because a runtime that is shutting down drops
    // the future without polling it.
    guard.span = RefreshSpan::new(&guard.inner.settings.name, guard.number);
    let span = guard.span.clone();
    span.instrument(async move {
        let result = tokio::select! {
            biased;
            () = guard.task.closed() => Err(TokenError::shut_down()),
            result = attempts(&guard, reason, newest) => result,
        };
        guard.complete(result);
        // The callers have their result, so the remaining work, such as ending a lease, delays none.
        let _ = caught(guard.inner.supply.settle()).await;
    })
}

/// Makes attempts until one succeeds, or fails for good, or the retry budget is used up. Returns `None`
/// if the cached token stays in use.
async fn attempts(
    guard: &Guard,
    reason: Reason,
    newest: Stamp,
) -> Result<Option<AccessToken>, TokenError> {
    let Guard { inner, number, started, span, .. } = guard;
    let settings = &inner.settings;
    let mut paused = Duration::ZERO;
    let mut lost_time = Duration::ZERO;
    let mut repeated = false;
    let mut attempt = 1;
    loop {
        // A token that came meanwhile, from a refresh that was given up or from another process, will
        // do, unless it may belong to the old credentials.
        let served = inner.snapshot().state.has_newer(newest, inner.now());
        if served && reason != Reason::CredentialsChanged {
            return Ok(None);
        }
        span.record("attempt", u64::from(attempt));
        let random = fastrand::f64();
        // A refresh that was given up because its runtime stalled makes no further requests.
        let need = inner.start_attempt(*number, reason, random).ok_or_else(TokenError::lost)?;
        let (result, deadline) = attempt_once(inner, *number, need).await;
        lost_time += deadline.lost();
        let error = match result {
            Ok(token) => {
                if let Some(token) = &token {
                    report(inner, token, attempt, started.elapsed());
                }
                return Ok(token);
            }
            Err(error) => error,
        };
        // The scenario: a process is stopped in the middle of a token request (SIGSTOP, a paused VM, a
        // frozen function) and resumed minutes later. IMS has closed the connection long ago, so the
        // attempt fails with a broken connection or a timeout. Recorded as a failure, it would start a
        // backoff and fail the callers although IMS is healthy.
        if deadline.stood_still() && !repeated && is_unanswered(&error) {
            repeated = true;
            events::attempt_repeated();
            continue;
        }
        repeated = false;
        let Some(pause) = inner.record_failure(*number, &error, random) else {
            // The refresh was given up, and another one may be in progress.
            return Err(error);
        };
        events::attempt_failed(attempt, &error, pause);
        paused += pause;
        let another = attempt < settings.attempts
            && is_worth_another_attempt(&error)
            && paused <= settings.retry_for
            && (started.elapsed() + pause).saturating_sub(lost_time) < settings.acquire_timeout;
        if !another {
            return Err(error);
        }
        events::attempt_retried(attempt, pause);
        // Meanwhile the other processes learn of the failure.
        let mut paused_until = pin!(timer(Instant::now() + pause));
        let timer = tokio::select! {
            timer = &mut paused_until => timer,
            _ = caught(inner.supply.settle()) => paused_until.await,
        };
        timer.map_err(|_| TokenError::no_timer())?;
        attempt += 1;
    }
}

/// Makes one attempt. Returns its result, and its deadline, which knows how long the process stood still.
async fn attempt_once(
    inner: &Arc<Inner>,
    number: u64,
    need: Need,
) -> (Result<Option<AccessToken>, TokenError>, Deadline) {
    // The supply ends an attempt itself after `longest`. This limit is an eighth later, for a supply
    // that does not.
    let longest = inner.supply.longest();
    let mut deadline = Deadline::after(longest.saturating_add(longest / 8));
    // After a standstill the attempt continues with more time, so the refresh is not overdue.
    let resumed = || {
        inner.extend(number);
    };
    let obtained = deadline.wait_for(caught(inner.supply.obtain(need)), resumed).await;
    let result = match obtained {
        Ok(Ok(Ok(supplied))) => supplied.map(|supplied| accept(inner, supplied)).transpose(),
        Ok(Ok(Err(error))) => Err(error),
        Ok(Err(Panicked)) => Err(TokenError::panicked()),
        Err(WaitError::NoTimer) => Err(TokenError::no_timer()),
        Err(WaitError::DeadlinePassed) => Err(TokenError::attempt_timeout(deadline.limit())),
    };
    (result, deadline)
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
fn accept(inner: &Arc<Inner>, supplied: Supplied) -> Result<AccessToken, TokenError> {
    let token = inner.token(supplied)?;
    let thresholds = inner.settings.schedule.thresholds(token.sent(), token.lifetime());
    match thresholds.expired.has_come(inner.now()) {
        true => Err(TokenError::expired_on_arrival(token.lifetime())),
        false => Ok(token),
    }
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

fn report(inner: &Inner, token: &AccessToken, attempt: u32, elapsed: Duration) {
    match token.is_shared() {
        true => report_shared(inner, token),
        false => events::token_obtained(attempt, elapsed, token.lifetime(), token.generation()),
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
    /// Records in the state how the refresh ended, which wakes the callers. Then reports it to tracing
    /// and metrics, whose code may block or panic.
    fn complete(&mut self, result: Result<Option<AccessToken>, TokenError>) {
        self.completed = true;
        let outcome = match &result {
            Ok(Some(token)) if !token.is_shared() => "success",
            Ok(_) => "shared",
            Err(error) => error.kind().as_str(),
        };
        let failed = result.is_err();
        let lifetime = result.as_ref().ok().and_then(Option::as_ref).map(AccessToken::lifetime);
        let waiters = self.inner.waiters();
        self.inner.complete(self.number, result);
        let duration = self.started.elapsed();
        self.span.record("outcome", outcome);
        self.span.record("duration", duration.as_secs_f64());
        self.span.record("waiters", waiters as u64);
        self.inner.telemetry.refreshed(outcome, duration);
        if let Some(lifetime) = lifetime {
            self.span.record("expires_in", lifetime.as_secs_f64());
        }
        if failed {
            self.span.record("otel.status_code", "ERROR");
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.completed {
            let error = TokenError::lost();
            self.complete(Err(error.clone()));
            self.span.in_scope(|| events::refresh_lost(&error));
        }
    }
}
