//! [`State`]: the state of a source, and the decisions that follow from it.
//!
//! Pure: its functions take `now`, and never read a clock, lock, spawn or log. The docs of
//! `source/mod.rs` have the table of decisions.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::access_token::AccessToken;
use super::hot_path::{FastLane, Shards};
use super::policy::{Backoff, Pauses, Schedule, Thresholds};
use super::supply::{Need, Reason, Stamp};
use crate::clock::Moment;
use crate::error::{ErrorKind, TokenError};

/// How long callers wait for the replacement of a suspect token, counted from the refusal, before they
/// use the suspect token: long enough for a healthy IMS, and short enough for a request.
pub(super) const SUSPECT_GRACE: Duration = Duration::from_secs(2);

/// How much longer an overdue refresh may take before it is given up; at most a quarter of the longest
/// attempt. After a standstill of the whole process its result may have arrived already, so that the
/// task only has to be polled.
const MAX_OVERDUE_GRACE: Duration = Duration::from_secs(1);

/// How long a due refresh is postponed after a refresh that brought no newer token, so that the source
/// does not repeat it immediately.
const UNCHANGED_PAUSE: Duration = Duration::from_secs(10);

/// Everything that a source knows about its token. Each change makes a new value, which readers see as
/// a whole.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    schedule: Schedule,
    backoff: Backoff,
    cached: Option<Cached>,
    /// When the cached token was invalidated.
    missing_since: Option<Moment>,
    /// The highest stamp of any token so far. Only a token with a higher stamp is cached.
    pub(super) newest: Stamp,
    /// The stamp of the last token request.
    requested: Stamp,
    /// Failures of the issuer (IMS, or the user's fetcher) since the last token.
    issuer: Option<Failure>,
    /// Refreshes that failed because of this process (their runtime ended or stalled, the fetcher
    /// panicked) since the issuer last responded.
    local: Option<Failure>,
    flight: Option<Flight>,
    /// How many refreshes have been started.
    pub(super) flights: u64,
    pub(super) closed: bool,
}

/// The cached token.
#[derive(Clone, Debug)]
struct Cached {
    shards: Arc<Shards>,
    thresholds: Thresholds,
    /// When an API refused the token; `None` unless the token is suspect.
    suspect_since: Option<Moment>,
}

/// The refresh in progress.
#[derive(Clone, Copy, Debug)]
struct Flight {
    number: u64,
    /// From here on the refresh is overdue: it should have completed, or started another attempt.
    overdue_at: Moment,
    /// How long one attempt takes at most, while its future is polled.
    longest: Duration,
    /// `true` if the refresh was overdue once, and was given [more time](MAX_OVERDUE_GRACE).
    extended: bool,
}

/// Consecutive failures with one cause.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) error: TokenError,
    pub(super) count: u32,
    pub(super) since: Moment,
    /// The number of the refresh that failed last.
    flight: u64,
    /// From here on a caller without a usable token may start a refresh.
    callers_retry_at: Moment,
    /// From here on a refresh may start in the background.
    retry_at: Moment,
}

/// The requirements of a caller for its token, and how long the caller can wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Want {
    /// The shortest remaining lifetime.
    pub(crate) min_lifetime: Duration,
    /// The caller accepts only a token with a higher stamp.
    pub(super) newer_than: Option<Stamp>,
    /// The caller starts a refresh only for a suspect token: an API refused its token, and the budget
    /// for 401s decides if the token is replaced.
    pub(super) after_refusal: bool,
    /// Until when the caller waits; `None` for a caller that does not wait.
    pub(super) deadline: Option<Instant>,
    /// `true` if the caller runs inside a Tokio runtime, on which a refresh can start.
    pub(super) can_start: bool,
    /// The number of the last refresh when the caller began to wait. A panic of this refresh or a later
    /// one fails the caller.
    pub(super) joined: Option<u64>,
    /// The limit of attempts per refresh, which also bounds a caller: after this many failed refreshes
    /// the caller fails, and does not wait out another `Retry-After`.
    pub(super) attempts: u32,
}

/// The next step of a caller.
#[derive(Debug)]
pub(super) enum Decision {
    /// Use this token, and start a refresh in the background if there is a reason.
    Use(AccessToken, Option<Reason>),
    /// Start a refresh, and wait.
    Refresh(Reason),
    /// Wait for the next change of the state. Without one, decide again at this time.
    Wait(Instant),
    /// The refresh in progress is overdue: extend it or give it up, then decide again.
    ReviewOverdue,
    /// Fail immediately.
    Fail(TokenError),
}

impl Decision {
    /// The token to use now; `None` if the caller has to wait or fails.
    pub(super) fn token(self) -> Option<AccessToken> {
        match self {
            Self::Use(token, _) => Some(token),
            _ => None,
        }
    }

    /// Why a refresh is to start; `None` if none is.
    pub(super) fn reason(&self) -> Option<Reason> {
        match self {
            Self::Use(_, reason) => *reason,
            Self::Refresh(reason) => Some(*reason),
            _ => None,
        }
    }
}

impl Want {
    /// The requirements of a caller for a token with at least this remaining lifetime.
    pub(crate) fn lasting(min_lifetime: Duration) -> Self {
        Self { min_lifetime, ..Self::default() }
    }

    /// The requirements of a caller whose `refused` token got a 401, for another token.
    pub(crate) fn after_refusal_of(self, refused: &AccessToken) -> Self {
        Self { newer_than: Some(refused.stamp()), after_refusal: true, ..self }
    }
}

impl State {
    pub(super) fn new(schedule: Schedule, backoff: Backoff) -> Self {
        Self { schedule, backoff, ..Self::default() }
    }

    /// Decides the next step of a caller: the table in `source/mod.rs`.
    pub(super) fn decide(&self, now: Moment, mut want: Want) -> Decision {
        want.can_start &= !want.after_refusal || self.is_suspect();
        if self.is_overdue(now) {
            return Decision::ReviewOverdue;
        }
        let Some(cached) = self.usable(now, want) else { return self.decide_missing(now, want) };
        if let Some(since) = cached.suspect_since {
            // A 401 may mean that the token was revoked, or only that a permission is missing.
            // Requests with a revoked token fail, so a caller waits for the replacement. If only a
            // permission is missing and IMS is down, the wait delays every request for nothing, so
            // the first failed attempt or the end of the grace ends it.
            let grace_ends = since.plus(SUSPECT_GRACE);
            let wait = want.deadline.is_some() && self.awaits_replacement();
            match self.flight {
                _ if !wait || grace_ends.has_come(now) => {}
                Some(_) => return Decision::Wait(grace_ends.monotonic),
                None if want.can_start => return Decision::Refresh(Reason::Refused),
                None => {}
            }
        }
        let reason = self.background_reason(now).filter(|_| want.can_start);
        Decision::Use(cached.shards.pick().clone(), reason)
    }

    /// Waits, starts a refresh or fails, because no usable token is cached.
    fn decide_missing(&self, now: Moment, want: Want) -> Decision {
        // A refresh that is still in progress after a shutdown brings no token.
        if self.closed {
            return Decision::Fail(TokenError::shut_down());
        }
        if let Some(flight) = &self.flight {
            return Decision::Wait(flight.overdue_at.monotonic);
        }
        if let Some(failure) = &self.issuer {
            // An explicit `refresh` may find a usable token cached. Nobody is without a token then, so
            // this caller observes the longer backoff of the background.
            let needed = self.usable(now, Want::default()).is_none();
            let soon = needed || !failure.error.is_transient();
            let until = if soon { failure.callers_retry_at } else { failure.retry_at };
            if !until.has_come(now) {
                return failure.decide(now, want, until);
            }
        }
        if let Some(failure) = &self.local {
            let paused = failure.pauses_callers(now);
            // A panic fails those who waited for the refresh. Otherwise each of them would start
            // another one, and a fetcher that always panics would keep them until their deadlines.
            let own = want.joined.is_some_and(|joined| failure.flight >= joined);
            if failure.error.kind() == ErrorKind::Panicked && (own || paused) {
                return failure.fail(now, failure.callers_retry_at);
            }
            // A lost refresh fails nobody: the caller waits out the short pause, then starts another
            // one.
            if paused {
                return Decision::Wait(failure.callers_retry_at.monotonic);
            }
        }
        if let Some(error) = self.beyond_reach(now, want.min_lifetime) {
            return Decision::Fail(error);
        }
        if !want.can_start {
            return Decision::Fail(TokenError::no_runtime());
        }
        let requested = want.newer_than.is_some();
        Decision::Refresh(if requested { Reason::Requested } else { Reason::Missing })
    }

    /// The cached token, if it has not expired and meets the requirements of the caller.
    fn usable(&self, now: Moment, want: Want) -> Option<&Cached> {
        self.cached.as_ref().filter(|cached| {
            let token = cached.shards.token();
            !cached.thresholds.expired.has_come(now)
                && token.expires().remaining(now) >= want.min_lifetime
                && want.newer_than.is_none_or(|stamp| token.stamp() > stamp)
        })
    }

    /// The failures since the cached token came: the issuer's first.
    fn failures(&self) -> impl Iterator<Item = &Failure> {
        self.issuer.iter().chain(&self.local)
    }

    /// Returns whether callers can hope for the replacement of a suspect token: no attempt has failed
    /// yet.
    fn awaits_replacement(&self) -> bool {
        self.is_suspect() && self.failure().is_none() && !self.closed
    }

    /// Returns whether the refresh in progress should have completed by now.
    pub(super) fn is_overdue(&self, now: Moment) -> bool {
        // By the monotonic clock alone, because setting the wall clock makes no task late.
        self.flight.is_some_and(|flight| now.monotonic >= flight.overdue_at.monotonic)
    }

    /// The error for a caller who requires a remaining lifetime that a token has only until it is due.
    /// A new token would meet the requirement for a short time, and the next such request would need
    /// another one.
    fn beyond_reach(&self, now: Moment, min_lifetime: Duration) -> Option<TokenError> {
        let cached = self.usable(now, Want::default())?;
        let token = cached.shards.token();
        let longest = cached.thresholds.due.sleep_from(token.sent());
        (min_lifetime > longest)
            .then(|| TokenError::beyond_reach(min_lifetime, token.lifetime(), longest))
    }

    /// When the next refresh may start in the background. `None` while one is in progress, after a
    /// shutdown, and before the first caller.
    fn next_refresh(&self) -> Option<Moment> {
        if self.closed || self.flight.is_some() {
            return None;
        }
        let paused_until = self.failures().map(|failure| failure.retry_at).reduce(Moment::later);
        let due = self.cached.as_ref().map(|it| it.suspect_since.unwrap_or(it.thresholds.due));
        paused_until.or(due).or(self.missing_since)
    }

    /// In how long the background task has to act: to start a refresh, or to review one that is overdue.
    pub(super) fn wake_in(&self, now: Moment) -> Option<Duration> {
        let overdue_in = self.flight.map(|flight| flight.overdue_at.sleep_from(now));
        overdue_in.or_else(|| self.next_refresh().map(|at| at.remaining(now)))
    }

    /// Why a refresh is to start in the background; `None` if none is due.
    pub(super) fn background_reason(&self, now: Moment) -> Option<Reason> {
        self.next_refresh().filter(|at| at.has_come(now))?;
        Some(match self.usable(now, Want::default()) {
            None => Reason::Missing,
            Some(cached) if cached.suspect_since.is_some() => Reason::Refused,
            Some(_) => Reason::Due,
        })
    }

    /// The token and the time up to which requests may send it without a decision.
    pub(super) fn fast_lane(&self) -> Option<FastLane> {
        // Callers wait for the replacement of a suspect token, so each of them has to decide.
        let cached = self.cached.as_ref().filter(|_| !self.awaits_replacement())?;
        let Thresholds { due, expired } = cached.thresholds;
        let next = self.flight.map(|flight| flight.overdue_at).or_else(|| self.next_refresh());
        let until = next.map_or(expired, |at| at.earlier(expired));
        Some(FastLane::new(Arc::clone(&cached.shards), until, due))
    }

    /// Records that a refresh starts, unless one is in progress or the source is closed. Returns its
    /// number.
    pub(super) fn start(&mut self, now: Moment, longest: Duration) -> Option<u64> {
        if self.flight.is_some() || self.closed {
            return None;
        }
        self.flights += 1;
        self.flight = Some(Flight::new(self.flights, now, longest));
        Some(self.flights)
    }

    /// Records that the refresh `number` starts an attempt, and returns the requirements of the attempt.
    /// `None` if this refresh was given up.
    pub(super) fn start_attempt(
        &mut self,
        number: u64,
        now: Moment,
        reason: Reason,
        random: f64,
    ) -> Option<Need> {
        self.extend(number, now, Duration::ZERO).then_some(())?;
        // The request of a refresh that was given up may still be in progress on a stalled runtime.
        // Each request gets a stamp of its own, so that the late token of the earlier request does
        // not replace that of the later one.
        self.requested = Stamp(self.requested.max(self.newest).0 + 1);
        Some(Need {
            newer_than: self.newest,
            stamp: self.requested,
            reason: if self.is_suspect() { Reason::Refused } else { reason },
            backoff_if_it_fails: self.backoff_if_it_fails(random),
            credentials: None,
        })
    }

    /// Records that the refresh `number` starts another attempt after `pause`, or has noticed that the
    /// process stood still. Returns `false` if this refresh was given up.
    pub(super) fn extend(&mut self, number: u64, now: Moment, pause: Duration) -> bool {
        let Some(flight) = self.flight.filter(|it| it.number == number) else { return false };
        self.flight = Some(Flight::new(number, now.plus(pause), flight.longest));
        true
    }

    /// Reviews an overdue refresh: extends it the first time, and gives it up the second time. Returns
    /// whether it was given up.
    ///
    /// A task may be late because its own runtime is blocked or not driven, or because the whole
    /// process was stopped. In the second case it needs only a moment, and giving it up would cost a
    /// second token request. In the first case waiting longer would make every caller wait for ever.
    pub(super) fn review_overdue(&mut self, now: Moment, random: f64) -> bool {
        let Some(flight) = self.flight.filter(|_| self.is_overdue(now)) else { return false };
        if !flight.extended {
            let grace = MAX_OVERDUE_GRACE.min(flight.longest / 4);
            self.flight = Some(Flight { overdue_at: now.plus(grace), extended: true, ..flight });
            return false;
        }
        self.complete(flight.number, now, Err(TokenError::stalled()), random);
        true
    }

    /// How long the source will back off if the next attempt fails.
    pub(super) fn backoff_if_it_fails(&self, random: f64) -> Duration {
        let failures = self.issuer.as_ref().map_or(0, |failure| failure.count);
        self.backoff.transient(failures.saturating_add(1), None, random).background
    }

    /// Records a failed attempt of the refresh `number`, and returns the pause before the next one:
    /// a short one if callers are `waiting` and no usable token is cached. `None` if the refresh was
    /// given up meanwhile: then nothing is recorded.
    pub(super) fn record_failure(
        &mut self,
        number: u64,
        now: Moment,
        error: &TokenError,
        waiting: bool,
        random: f64,
    ) -> Option<Duration> {
        self.flight.filter(|flight| flight.number == number)?;
        let pauses = self.record(number, now, error, random);
        // In a long outage callers fail as soon as an attempt does. One that timed out is repeated
        // after the shorter pause, because those who waited for it still have time.
        let needed = waiting && self.usable(now, Want::default()).is_none();
        let soon = needed && error.kind() == ErrorKind::Timeout;
        let pause = if soon { pauses.callers } else { pauses.background };
        self.extend(number, now, pause);
        Some(pause)
    }

    /// Records a failure against the issuer or against this process, and returns its pauses.
    ///
    /// A local failure leaves the issuer's backoff as it is. A failure of the issuer ends that of this
    /// process, which got a response after all.
    fn record(&mut self, flight: u64, now: Moment, error: &TokenError, random: f64) -> Pauses {
        let is_local = matches!(error.kind(), ErrorKind::Panicked | ErrorKind::RuntimeLost);
        let local = self.local.take().filter(|last| last.error.kind() == error.kind());
        let last = if is_local { local } else { self.issuer.take() };
        let count = last.as_ref().map_or(0, |last| last.count).saturating_add(1);
        let pauses = self.backoff.pauses(count, error, random);
        let mut failure = Failure {
            error: error.clone(),
            count,
            since: last.as_ref().map_or(now, |last| last.since),
            flight,
            callers_retry_at: now.plus(pauses.callers),
            retry_at: now.plus(pauses.background),
        };
        // A later failure does not shorten the pause that IMS asked for with an earlier `Retry-After`.
        let requested =
            |last: &Failure| last.error.retry_after().is_some() && last.pauses_callers(now);
        if let Some(last) = last.filter(requested) {
            failure.callers_retry_at = failure.callers_retry_at.later(last.callers_retry_at);
            failure.retry_at = failure.retry_at.later(last.retry_at);
        }
        *(if is_local { &mut self.local } else { &mut self.issuer }) = Some(failure);
        pauses
    }

    /// Ends the refresh `number` with its result: a token, or `None` if the cached one stays in use.
    ///
    /// The token of a refresh that was given up is cached too, if its stamp is higher. A failed attempt
    /// was recorded when it failed; a refresh that was lost is recorded here.
    pub(super) fn complete(
        &mut self,
        number: u64,
        now: Moment,
        result: Result<Option<AccessToken>, TokenError>,
        random: f64,
    ) {
        let current = self.flight.take_if(|flight| flight.number == number).is_some();
        match result {
            Ok(Some(token)) => {
                let usable = self.take(now, token) || self.usable(now, Want::default()).is_some();
                if current && usable {
                    self.postpone_refresh(now);
                } else if current {
                    // The issuer returned a token that cannot be used, and the callers have none.
                    // Without a recorded failure each of them would request another one immediately.
                    self.record(number, now, &TokenError::not_newer(), random);
                }
            }
            Ok(None) if current => {
                (self.issuer, self.local) = (None, None);
                if let Some(cached) = &mut self.cached {
                    cached.suspect_since = None;
                }
                self.postpone_refresh(now);
            }
            Err(error) if current && error.kind() == ErrorKind::RuntimeLost => {
                if !self.was_lost(number) {
                    self.record(number, now, &error, random);
                }
            }
            Ok(None) | Err(_) => {}
        }
    }

    /// Postpones the next refresh of a token that is still due, because the last one brought no newer
    /// token.
    fn postpone_refresh(&mut self, now: Moment) {
        if let Some(cached) = self.cached.as_mut().filter(|it| it.thresholds.due.has_come(now)) {
            cached.thresholds.due = now.plus(UNCHANGED_PAUSE);
        }
    }

    /// Caches this token if its stamp is higher than any before and it has not expired. Returns whether
    /// it was cached.
    pub(super) fn take(&mut self, now: Moment, token: AccessToken) -> bool {
        let thresholds = self.schedule.thresholds_from(now, token.sent(), token.lifetime());
        if token.stamp() <= self.newest || thresholds.expired.has_come(now) {
            return false;
        }
        self.newest = token.stamp();
        let shards = Arc::new(Shards::new(token));
        self.cached = Some(Cached { shards, thresholds, suspect_since: None });
        (self.issuer, self.local) = (None, None);
        true
    }

    /// Returns whether a 401 for this token is evidence. It is ignored for a token that was replaced
    /// meanwhile or is suspect already, and while no replacement can be requested.
    pub(super) fn is_refusal_of_interest(&self, now: Moment, token: &AccessToken) -> bool {
        let is_current = self.cached.as_ref().is_some_and(|it| it.shards.token().is(token));
        let pauses = self.next_refresh().is_some_and(|at| !at.has_come(now));
        let backing_off = pauses && self.failure().is_some();
        is_current && !self.is_suspect() && !backing_off && !self.closed
    }

    /// Makes the cached token suspect.
    pub(super) fn suspect(&mut self, now: Moment) {
        if let Some(cached) = &mut self.cached {
            cached.suspect_since = Some(now);
        }
    }

    /// Drops this token if it is the cached one.
    pub(super) fn invalidate(&mut self, now: Moment, token: &AccessToken) -> bool {
        let dropped = self.cached.take_if(|cached| cached.shards.token().is(token)).is_some();
        if dropped {
            self.missing_since = Some(now);
        }
        dropped
    }

    /// Returns whether a backoff for callers is in progress.
    pub(super) fn is_backing_off(&self, now: Moment) -> bool {
        self.failures().any(|failure| failure.pauses_callers(now))
    }

    /// Ends the backoff after a permanent failure, because the rejection of old credentials says
    /// nothing about new ones. The backoff after a transient failure, such as a 429, continues.
    pub(super) fn forget_rejection(&mut self) -> bool {
        self.issuer.take_if(|failure| !failure.error.is_transient()).is_some()
    }

    /// Returns whether the refresh `number` was the last one, and was lost.
    pub(super) fn was_lost(&self, number: u64) -> bool {
        self.flight.is_none() && self.local.as_ref().is_some_and(|failure| failure.flight == number)
    }

    pub(super) fn is_refreshing(&self) -> bool {
        self.flight.is_some()
    }

    pub(super) fn is_suspect(&self) -> bool {
        self.cached.as_ref().is_some_and(|cached| cached.suspect_since.is_some())
    }

    /// Returns whether the cached token is due for refresh.
    pub(super) fn is_due(&self, now: Moment) -> bool {
        self.cached.as_ref().is_some_and(|cached| cached.thresholds.due.has_come(now))
    }

    /// Returns whether a token with a higher stamp than this one is cached, usable and not suspect.
    pub(super) fn has_newer(&self, stamp: Stamp, now: Moment) -> bool {
        let want = Want { newer_than: Some(stamp), ..Want::default() };
        self.usable(now, want).is_some_and(|cached| cached.suspect_since.is_none())
    }

    /// The failure to report: the issuer's if there is one.
    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failures().next()
    }

    /// The cached token if it is usable, and when it will be refreshed.
    pub(super) fn token(&self, now: Moment) -> Option<(&AccessToken, Option<Moment>)> {
        let cached = self.usable(now, Want::default())?;
        Some((cached.shards.token(), self.next_refresh()))
    }
}

impl Flight {
    /// A refresh whose attempt starts at `now`. An attempt that is polled ends itself after
    /// `longest`; a quarter of that is added for its scheduling.
    fn new(number: u64, now: Moment, longest: Duration) -> Self {
        let overdue_at = now.plus(longest.saturating_add(longest / 4));
        Self { number, overdue_at, longest, extended: false }
    }
}

impl Failure {
    fn pauses_callers(&self, now: Moment) -> bool {
        !self.callers_retry_at.has_come(now)
    }

    /// The decision during the backoff: the caller waits out a `Retry-After` if its deadline and the
    /// number of attempts allow it, and fails otherwise.
    ///
    /// An IMS that responds with a short `Retry-After` again and again would otherwise hold a caller
    /// until its deadline, with one token request after the other.
    fn decide(&self, now: Moment, want: Want, until: Moment) -> Decision {
        let requested = self.error.is_transient() && self.error.retry_after().is_some();
        let waited = want.joined.map_or(0, |joined| (self.flight + 1).saturating_sub(joined));
        let allowed = want.deadline.is_some_and(|deadline| deadline > until.monotonic)
            && waited.max(1) < u64::from(want.attempts);
        match requested && allowed {
            true => Decision::Wait(until.monotonic),
            false => self.fail(now, until),
        }
    }

    fn fail(&self, now: Moment, until: Moment) -> Decision {
        let retry_in = until.sleep_from(now);
        Decision::Fail(match retry_in.is_zero() {
            true => self.error.clone(),
            false => self.error.retry_in_after(retry_in),
        })
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
