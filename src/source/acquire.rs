//! The loop of a caller: decide, act, and wait for the next change of the state.
//!
//! A caller waits for the *state*, not for a particular refresh. After each change of the state, and at
//! its deadline, the caller decides anew by the token that is cached then. A refresh that stalls, is
//! superseded or is lost with its runtime therefore fails no caller.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{
    access_token::{AccessToken, OriginKey, TokenOwner},
    background::{ensure, review_overdue},
    hot_path::{FastLane, Freshness, Lane},
    inner::{Inner, Snapshot},
    refresh::{self, Start},
    state::{Decision, State, Want},
    supply::Stamp,
    sync::Handle,
};
use crate::{
    clock::{Deadline, timer},
    error::TokenError,
    telemetry::{Obtained, Telemetry, events},
};

/// The requirements of a caller for its token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Requirement {
    /// The shortest remaining lifetime.
    pub(super) min_lifetime: Duration,
    /// The caller accepts only a token with a higher stamp.
    pub(super) newer_than: Option<Stamp>,
    /// The caller starts a refresh only for a suspect token: an API refused its token, and the budget
    /// for 401s decides if the token is replaced.
    pub(super) after_refusal: bool,
}

/// A waiting caller fails when this many new tokens expired too early for it, because each of them cost
/// a token request.
const MAX_INSUFFICIENT: u32 = 2;

/// The token for a request that is sent immediately. Every request calls this first.
///
/// Returns `None` if the request has to wait for a token, or for the replacement of a suspect one.
#[inline]
pub(super) fn cached(inner: &Arc<Inner>) -> Option<AccessToken> {
    let snapshot = inner.snapshot();
    let Some((token, lane)) = fast(inner, &snapshot) else {
        return cached_for(inner, Duration::ZERO);
    };
    if Telemetry::COUNTS {
        let Freshness { remaining, is_due } = lane.freshness();
        inner.telemetry.sent(if is_due { Obtained::Stale } else { Obtained::AtOnce }, remaining);
    }
    Some(token.clone())
}

/// [`cached`], for a token with at least this remaining lifetime.
#[cold]
pub(super) fn cached_for(inner: &Arc<Inner>, min_lifetime: Duration) -> Option<AccessToken> {
    // With a deadline the decision for a suspect token is to wait for its replacement. The request then
    // gets `None` here, and waits in `acquire`.
    let deadline = Deadline::after(inner.settings.acquire_timeout).at();
    let requirement = Requirement { min_lifetime, ..Requirement::default() };
    let token = decide(inner, requirement, Some(deadline), None).token()?;
    let due = inner.snapshot().state.is_due(inner.now());
    inner.count_sent(&token, if due { Obtained::Stale } else { Obtained::AtOnce });
    Some(token)
}

/// The token, if the fast lane is open; `None` if the state has to decide.
#[inline]
fn fast<'a>(inner: &Arc<Inner>, snapshot: &'a Snapshot) -> Option<(&'a AccessToken, &'a FastLane)> {
    let lane = snapshot.lane.as_ref()?;
    let token = match lane.enter(&inner.settings.clock) {
        Lane::Open(token) => token,
        Lane::Checked(token, now) => {
            ensure(inner, now);
            token
        }
        Lane::Closed => return None,
    };
    Some((token, lane))
}

/// A usable token, if one is cached. Otherwise a refresh is started where that is possible.
pub(super) fn try_acquire(inner: &Arc<Inner>, requirement: Requirement) -> Option<AccessToken> {
    decide(inner, requirement, None, None).token()
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
    requirement: Requirement,
    mut deadline: Deadline,
) -> Result<AccessToken, TokenError> {
    if requirement == Requirement::default() {
        if let Some((token, _)) = fast(inner, &inner.snapshot()) {
            return Ok(token.clone());
        }
    }
    let mut changes = inner.subscribe();
    let mut joined = None;
    let mut waiter = None;
    let mut insufficient = Insufficient::default();
    loop {
        // Mark first, then decide: a change after the mark wakes the wait below, so that none is missed
        // between the decision and the wait.
        changes.mark_unchanged();
        let until = match decide(inner, requirement, Some(deadline.at()), joined) {
            Decision::Use(token) | Decision::UseAndRefresh(token, _) => return Ok(token),
            Decision::Fail(error) => return Err(error),
            Decision::Wait(until) => Some(until),
            Decision::Refresh(_) | Decision::ReviewOverdue => None,
        };
        {
            let snapshot = inner.snapshot();
            insufficient.observe(&snapshot.state, requirement)?;
            joined = joined.or(Some(snapshot.state.flights()));
        }
        if let Err(error) = inside_a_runtime() {
            return try_acquire(inner, requirement).ok_or(error);
        }
        waiter = waiter.or_else(|| Some(inner.count_waiter()));

        let due = until.map_or_else(|| deadline.next_check(), |at| at.min(deadline.next_check()));
        tokio::select! {
            biased;
            // `changed` fails only once the source is dropped, which the handle of this caller
            // prevents.
            _ = changes.changed() => {}
            timer = timer(due) => if timer.is_err() {
                return try_acquire(inner, requirement).ok_or_else(TokenError::no_timer);
            },
        }
        deadline.record_wake(due);
        if deadline.has_passed() {
            // The last refresh may have ended in the same moment, so the cache is checked once more.
            return try_acquire(inner, requirement)
                .ok_or_else(|| timed_out(inner, deadline.limit()));
        }
    }
}

/// Decides the next step of a caller, and acts on the decision: starts a refresh, or reviews an overdue
/// one.
///
/// After `Decision::Refresh` the refresh is in progress, and the caller waits for a change of the
/// state.
fn decide(
    inner: &Arc<Inner>,
    requirement: Requirement,
    deadline: Option<Instant>,
    joined: Option<u64>,
) -> Decision {
    let Requirement { min_lifetime, newer_than, after_refusal } = requirement;
    let mut can_start = Handle::try_current().is_ok();
    let mut lost_here = false;
    loop {
        let now = inner.now();
        let attempts = u64::from(inner.settings.attempts);
        let snapshot = inner.snapshot();
        let may_start = !after_refusal || snapshot.state.is_suspect();
        let want = Want {
            min_lifetime,
            newer_than,
            deadline,
            can_start: can_start && may_start,
            joined,
            attempts,
        };
        let decision = snapshot.state.decide(now, want);
        drop(snapshot);
        if lost_here && matches!(decision, Decision::Fail(_)) {
            return Decision::Fail(TokenError::lost());
        }
        let reason = match &decision {
            Decision::Refresh(reason) | Decision::UseAndRefresh(_, reason) => *reason,
            Decision::ReviewOverdue => {
                review_overdue(inner);
                continue;
            }
            Decision::Use(_) | Decision::Wait(_) | Decision::Fail(_) => return decision,
        };
        let wanted = |state: &State| {
            matches!(state.decide(now, want), Decision::Refresh(_) | Decision::UseAndRefresh(..))
        };
        let start = refresh::start(inner, reason, wanted);
        ensure(inner, now);
        if start == Start::Done {
            return decision;
        }
        // No refresh can start here: the runtime is shutting down, there is none, or the source was
        // closed. Another try would fail in the same way for ever, so decide as a caller who cannot
        // start a refresh. If the decision is to fail, the error names a runtime that is shutting
        // down.
        if start == Start::Lost {
            lost_here = true;
        }
        can_start = false;
    }
}

/// Counts the tokens that came while a caller waited, and that expire too early for the caller. Each
/// costs a token request, so the caller fails after [`MAX_INSUFFICIENT`] of them and not at its
/// deadline.
#[derive(Debug, Default)]
struct Insufficient {
    newest: Option<Stamp>,
    count: u32,
}

impl Insufficient {
    fn observe(&mut self, state: &State, requirement: Requirement) -> Result<(), TokenError> {
        let newest = state.newest();
        let came = self.newest.replace(newest).is_some_and(|before| before < newest);
        self.count += u32::from(came && !requirement.min_lifetime.is_zero());
        if self.count < MAX_INSUFFICIENT {
            return Ok(());
        }
        Err(TokenError::expires_too_early(requirement.min_lifetime))
    }
}

/// Fails outside of a Tokio runtime, where a timer would panic.
pub(super) fn inside_a_runtime() -> Result<(), TokenError> {
    Handle::try_current().map(drop).map_err(TokenError::cannot_wait)
}

fn timed_out(inner: &Inner, limit: Duration) -> TokenError {
    let snapshot = inner.snapshot();
    let state = &snapshot.state;
    let last_failure = state.failure().map(|failure| &failure.error);
    TokenError::acquire_timeout(limit, state.is_refreshing(), last_failure)
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
        let _ = try_acquire(&self, Requirement::default());
    }
}
