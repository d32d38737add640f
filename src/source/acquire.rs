//! The loop of a caller: decide, act, and wait for the next change of the state.
//!
//! A caller waits for the *state*, not for a particular refresh. After each change of the state, and at
//! its deadline, the caller decides anew by the token that is cached then. A refresh that stalls, is
//! superseded or is lost with its runtime therefore fails no caller.

use std::sync::Arc;

use super::access_token::{AccessToken, OriginKey, TokenOwner};
use super::inner::{Inner, Snapshot};
use super::state::{Decision, State, Want};
use super::{background, hot_path::FastLane, refresh, sync::Handle};
use crate::clock::{Deadline, timer};
use crate::error::TokenError;
use crate::telemetry::{Obtained, Telemetry, events};

/// A waiting caller fails when this many new tokens expired too early for it.
const MAX_INSUFFICIENT: u32 = 2;

/// The token for a request that is sent immediately. Every request calls this first.
///
/// Returns `None` if the request has to wait for a token, or for the replacement of a suspect one.
#[inline]
pub(super) fn cached(inner: &Arc<Inner>) -> Option<AccessToken> {
    let snapshot = inner.snapshot();
    let Some((token, lane)) = fast(inner, &snapshot) else {
        return cached_for(inner, Want::default());
    };
    if Telemetry::COUNTS {
        let (remaining, is_due) = lane.freshness();
        inner.telemetry.sent(Obtained::cached(is_due), remaining);
    }
    Some(token.clone())
}

/// [`cached`], for a token that meets these requirements.
#[cold]
pub(super) fn cached_for(inner: &Arc<Inner>, want: Want) -> Option<AccessToken> {
    // With a deadline the decision for a suspect token is to wait for its replacement. The request then
    // gets `None` here, and waits in `acquire`.
    let deadline = Some(Deadline::after(inner.settings.acquire_timeout).at());
    let token = decide(inner, Want { deadline, ..want }).token()?;
    let is_due = inner.snapshot().state.is_due(inner.now());
    inner.count_sent(&token, Obtained::cached(is_due));
    Some(token)
}

/// The token, if the fast lane is open; `None` if the state has to decide.
#[inline]
fn fast<'a>(inner: &Arc<Inner>, snapshot: &'a Snapshot) -> Option<(&'a AccessToken, &'a FastLane)> {
    let lane = snapshot.lane.as_ref()?;
    let (token, checked) = lane.enter(&inner.settings.clock)?;
    if let Some(now) = checked {
        background::ensure(inner, now);
    }
    Some((token, lane))
}

/// A usable token, if one is cached. Otherwise a refresh is started where that is possible.
pub(super) fn try_acquire(inner: &Arc<Inner>, want: Want) -> Option<AccessToken> {
    decide(inner, Want { deadline: None, joined: None, ..want }).token()
}

/// Returns a usable token, and waits for one until the deadline.
///
/// # Errors
///
/// The failure of the last refresh if the source is in backoff, and
/// [`AcquireTimeout`](crate::ErrorKind::AcquireTimeout) at the deadline.
///
/// # Cancellation
///
/// Dropping the future ends the wait. The refresh continues, because it belongs to the source.
pub(super) async fn acquire(
    inner: &Arc<Inner>,
    mut want: Want,
    mut deadline: Deadline,
) -> Result<AccessToken, TokenError> {
    if want == Want::default() {
        if let Some((token, _)) = fast(inner, &inner.snapshot()) {
            return Ok(token.clone());
        }
    }
    let mut changes = inner.subscribe();
    let mut waiter = None;
    let mut newest = inner.snapshot().state.newest;
    let mut insufficient = 0;
    loop {
        // Mark first, then decide: a change after the mark wakes the wait below, so that none is missed
        // between the decision and the wait.
        changes.mark_unchanged();
        want.deadline = Some(deadline.at());
        let until = match decide(inner, want) {
            Decision::Use(token, _) => return Ok(token),
            Decision::Fail(error) => return Err(error),
            Decision::Wait(until) => until.min(deadline.next_check()),
            Decision::Refresh(_) | Decision::ReviewOverdue => deadline.next_check(),
        };
        {
            let snapshot = inner.snapshot();
            want.joined = want.joined.or(Some(snapshot.state.flights));
            // Each token that came meanwhile and expires too early for this caller has cost a token
            // request, so the caller does not wait for more of them until its deadline.
            insufficient += u32::from(snapshot.state.newest > newest);
            newest = snapshot.state.newest;
        }
        if insufficient >= MAX_INSUFFICIENT && !want.min_lifetime.is_zero() {
            return Err(TokenError::expires_too_early(want.min_lifetime));
        }
        if let Err(error) = inside_a_runtime() {
            return try_acquire(inner, want).ok_or(error);
        }
        waiter = waiter.or_else(|| Some(inner.count_waiter()));
        tokio::select! {
            biased;
            // `changed` fails only once the source is dropped, which the handle of this caller
            // prevents.
            _ = changes.changed() => {}
            timer = timer(until) => if timer.is_err() {
                return try_acquire(inner, want).ok_or_else(TokenError::no_timer);
            },
        }
        deadline.record_wake(until);
        if deadline.has_passed() {
            // The last refresh may have ended in the same moment, so the cache is checked once more.
            return try_acquire(inner, want).ok_or_else(|| timed_out(inner, deadline));
        }
    }
}

/// Decides the next step of a caller, and acts on the decision: starts a refresh, or reviews an overdue
/// one.
///
/// After `Decision::Refresh` the refresh is in progress, and the caller waits for a change of the
/// state.
fn decide(inner: &Arc<Inner>, mut want: Want) -> Decision {
    want.can_start = Handle::try_current().is_ok();
    want.attempts = inner.settings.attempts;
    let mut cannot_start = None;
    loop {
        let now = inner.now();
        let decision = inner.snapshot().state.decide(now, want);
        if matches!(decision, Decision::ReviewOverdue) {
            background::review_overdue(inner);
            continue;
        }
        let Some(reason) = decision.reason() else {
            return match (decision, cannot_start) {
                (Decision::Fail(_), Some(error)) => Decision::Fail(error),
                (decision, _) => decision,
            };
        };
        let wanted = |state: &State| state.decide(now, want).reason().is_some();
        let started = refresh::start(inner, reason, wanted);
        background::ensure(inner, now);
        match started {
            Ok(()) => return decision,
            Err(error) => cannot_start = Some(error),
        }
        // Another try would fail in the same way for ever, so decide as a caller who cannot start a
        // refresh. If the decision is to fail, the error names a runtime that is shutting down.
        want.can_start = false;
    }
}

/// Fails outside of a Tokio runtime, where a timer would panic.
pub(super) fn inside_a_runtime() -> Result<(), TokenError> {
    Handle::try_current().map(drop).map_err(TokenError::cannot_wait)
}

fn timed_out(inner: &Inner, deadline: Deadline) -> TokenError {
    let snapshot = inner.snapshot();
    let state = &snapshot.state;
    let last_failure = state.failure().map(|failure| &failure.error);
    TokenError::acquire_timeout(deadline.limit(), state.is_refreshing(), last_failure)
}

impl TokenOwner for Inner {
    fn record_refusal(self: Arc<Self>, token: &AccessToken, origin: OriginKey) {
        let suspect = self.suspect(token, origin);
        self.telemetry.unauthorized(suspect);
        let (source, generation) = (&*self.settings.name, token.generation());
        if !suspect {
            return events::refusal_ignored(source, generation);
        }
        events::token_refused(source, generation);
        // Outside of a runtime the next caller starts the refresh.
        let _ = try_acquire(&self, Want::default());
    }
}
