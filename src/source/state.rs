//! What a source knows, and what follows from it. Pure: it takes `now`, and neither reads a
//! clock, locks, spawns nor logs.

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use tokio::time::Instant;

use crate::{
    clock::{Moment, Tick},
    error::{ErrorKind, TokenError},
    source::{
        refusals::Refusals,
        schedule::{Schedule, Thresholds},
    },
    token::{AccessToken, HostKey},
};

/// The least time between a token and its renewal, however short it lives.
const LEAST_INTERVAL: Duration = Duration::from_millis(100);

/// One token several times, for several threads.
pub(super) type Copies = Arc<[AccessToken]>;

/// What a source knows: the token in hand, the failures since it came, the flight under way.
///
/// `F` is how a flight is joined.
#[derive(Debug)]
pub(super) struct State<F> {
    schedule: Schedule,
    held: Option<Held>,
    failure: Option<Failure>,
    refusals: Refusals,
    flight: Option<Flight<F>>,
    /// How many flights there have been.
    flights: u64,
}

/// The flight under way.
#[derive(Debug)]
struct Flight<F> {
    join: F,
    number: u64,
    /// By then it should have ended, or have said that it goes on.
    overdue_at: Instant,
}

/// The token in hand.
#[derive(Debug)]
struct Held {
    token: AccessToken,
    copies: Copies,
    thresholds: Thresholds,
    /// An API refused it. It waits for one flight to replace it, and serves on if that fails.
    suspect: bool,
}

/// The failures since the last success.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) error: TokenError,
    pub(super) count: u32,
    pub(super) since: Moment,
    /// When IMS may be asked again.
    pub(super) retry_at: Moment,
}

/// What to do for a caller who needs a token.
#[derive(Debug)]
pub(super) enum Decision<F> {
    /// Use this token.
    Use(AccessToken),
    /// Use this token, and start a flight beside the traffic.
    UseAndFly(AccessToken),
    /// Wait for the flight that is under way.
    Join(F),
    /// Start a flight and wait for it.
    Fly,
    /// Fail at once.
    Fail(TokenError),
}

/// What a request may do without asking the state: the part of it that readers on all threads
/// see. There is none while the token in hand is suspect.
#[derive(Debug)]
pub(crate) struct Current {
    /// Counts what was published.
    pub(super) version: u64,
    pub(super) copies: Copies,
    /// How long the token lives.
    pub(super) lifetime: Duration,
    /// From here on a reader has to see to it that a flight starts.
    pub(super) renew: Option<Moment>,
    /// From here on the token must not be sent.
    pub(super) retire: Moment,
    /// The tick in which the token was last found to be neither due nor retired.
    pub(super) checked: AtomicU64,
}

impl<F: Clone> State<F> {
    pub(super) fn new(schedule: Schedule) -> Self {
        Self {
            schedule,
            held: None,
            failure: None,
            refusals: Refusals::default(),
            flight: None,
            flights: 0,
        }
    }

    /// What to do for a caller who needs a token that lives for at least `min_lifetime`.
    pub(super) fn decide(&self, now: Moment, min_lifetime: Duration) -> Decision<F> {
        let backing_off = self.backing_off(now);

        match self.held.as_ref().filter(|held| held.serves(now, min_lifetime)) {
            Some(held) if !held.suspect => {
                let due = self.next_renewal().is_some_and(|renew| renew.has_come(now));
                let token = held.token.clone();
                if due { Decision::UseAndFly(token) } else { Decision::Use(token) }
            }
            Some(held) => match (&self.flight, backing_off) {
                (Some(flight), _) => Decision::Join(flight.join.clone()),
                (None, Some(_)) => Decision::Use(held.token.clone()),
                (None, None) => Decision::Fly,
            },
            None => match (&self.flight, backing_off) {
                (Some(flight), _) => Decision::Join(flight.join.clone()),
                (None, Some(failure)) => {
                    let retry_in = failure.retry_at.sleep_from(now);
                    Decision::Fail(failure.error.retry_in_after(retry_in))
                }
                (None, None) => match self.beyond_reach(now, min_lifetime) {
                    Some(error) => Decision::Fail(error),
                    None => Decision::Fly,
                },
            },
        }
    }

    /// Whether a flight may start now, although nobody needs its token: what `refresh` asks.
    pub(super) fn decide_refresh(&self, now: Moment) -> Decision<F> {
        match (&self.flight, self.backing_off(now)) {
            (Some(flight), _) => Decision::Join(flight.join.clone()),
            (None, Some(failure)) => {
                let retry_in = failure.retry_at.sleep_from(now);
                Decision::Fail(failure.error.retry_in_after(retry_in))
            }
            (None, None) => Decision::Fly,
        }
    }

    /// The failure after which IMS may not be asked yet.
    fn backing_off(&self, now: Moment) -> Option<&Failure> {
        self.failure.as_ref().filter(|failure| !failure.retry_at.has_come(now))
    }

    /// The error for a caller who asks for more than a new token would have for long: each such
    /// request would cost a token.
    fn beyond_reach(&self, now: Moment, min_lifetime: Duration) -> Option<TokenError> {
        let held = self.held.as_ref().filter(|held| !held.thresholds.retire.has_come(now))?;
        let longest = held.thresholds.renew.sleep_from(held.token.sent());
        (min_lifetime > longest).then(|| {
            TokenError::new(
                ErrorKind::Lifetime,
                format!(
                    "a token with {min_lifetime:?} to live was asked for, but more than {longest:?} \
                     of tokens that live for {:?} cannot be promised",
                    held.token.lifetime()
                ),
            )
        })
    }

    /// When a flight should start to renew the token in hand. `None` while one is under way.
    fn next_renewal(&self) -> Option<Moment> {
        match (&self.flight, &self.failure, &self.held) {
            (Some(_), _, _) => None,
            (None, Some(failure), _) => Some(failure.retry_at),
            (None, None, held) => held.as_ref().map(|held| held.thresholds.renew),
        }
    }

    /// When a flight should start although nobody calls. A refusal is not asked about again
    /// until somebody needs a token.
    pub(super) fn next_wake(&self) -> Option<Moment> {
        let refused = self.failure.as_ref().is_some_and(|failure| !failure.error.is_transient());
        if refused { None } else { self.next_renewal() }
    }

    /// What readers may do without asking the state.
    pub(super) fn current(&self, version: u64) -> Option<Current> {
        let held = self.held.as_ref().filter(|held| !held.suspect)?;
        Some(Current {
            version,
            copies: Arc::clone(&held.copies),
            lifetime: held.token.lifetime(),
            renew: self.next_renewal(),
            retire: held.thresholds.retire,
            checked: AtomicU64::new(Tick::NEVER),
        })
    }

    /// A flight has started. Returns its number.
    pub(super) fn take_off(&mut self, join: F, overdue_at: Instant) -> u64 {
        self.flights += 1;
        self.flight = Some(Flight { join, number: self.flights, overdue_at });
        self.flights
    }

    /// Whether this flight is the one under way: one that was given up is not.
    pub(super) fn is_under_way(&self, number: u64) -> bool {
        self.flight.as_ref().is_some_and(|flight| flight.number == number)
    }

    /// The flight tries again, and should have ended by then.
    pub(super) fn prolong(&mut self, overdue_at: Instant) {
        if let Some(flight) = &mut self.flight {
            flight.overdue_at = overdue_at;
        }
    }

    /// The flight under way, and whether it should have ended by now.
    pub(super) fn flight(&self, now: Moment) -> Option<(&F, bool)> {
        let flight = self.flight.as_ref()?;
        Some((&flight.join, now.monotonic >= flight.overdue_at))
    }

    /// The flight has brought a token.
    pub(super) fn land(&mut self, now: Moment, token: AccessToken, copies: Copies) {
        let mut thresholds = self.schedule.thresholds(token.sent(), token.lifetime());
        thresholds.renew = thresholds.renew.later(now.plus(LEAST_INTERVAL));
        self.held = Some(Held { token, copies, thresholds, suspect: false });
        self.failure = None;
        self.flight = None;
    }

    /// The flight has brought nothing. What it failed of was said to [`fail`](Self::fail).
    pub(super) fn crash(&mut self) {
        self.flight = None;
        if let Some(held) = &mut self.held {
            held.suspect = false;
        }
    }

    /// IMS was asked in vain; it may be asked again after `delay(failures in a row)`.
    ///
    /// Returns how long that is.
    pub(super) fn fail(
        &mut self,
        now: Moment,
        error: TokenError,
        delay: impl FnOnce(u32) -> Duration,
    ) -> Duration {
        let (count, since) = match &self.failure {
            Some(failure) => (failure.count.saturating_add(1), failure.since),
            None => (1, now),
        };
        let delay = delay(count);
        let mut next = Failure { error, count, since, retry_at: now.plus(delay) };
        if let Some(last) = &self.failure {
            // What IMS asked for holds, and what it said is worth more than that a runtime ended.
            if !last.retry_at.has_come(now) {
                next.retry_at = next.retry_at.later(last.retry_at);
            }
            if next.error.kind() == ErrorKind::RuntimeLost {
                next.error = last.error.clone();
            }
        }
        let delay = next.retry_at.sleep_from(now);
        self.failure = Some(next);
        delay
    }

    /// What IMS refused may be accepted now: it need not be waited for. A throttle still holds.
    pub(super) fn forget_refusal(&mut self) {
        self.failure.take_if(|failure| !failure.error.is_transient());
    }

    /// An API at `host` refused this token. Returns whether that makes it suspect now.
    ///
    /// A token that was replaced meanwhile says nothing about the one in hand. While IMS fails the
    /// token in hand is the best there is, and is about to be replaced as it is.
    pub(super) fn refuse(&mut self, now: Moment, token: &AccessToken, host: HostKey) -> bool {
        let backing_off = self.backing_off(now).is_some();
        let Some(held) = self.held.as_mut().filter(|held| held.token.is(token)) else {
            return false;
        };
        if held.suspect || backing_off || !self.refusals.believe(now, host) {
            return false;
        }
        held.suspect = true;
        true
    }

    /// Drops this token, if it is the one in hand.
    pub(super) fn drop_token(&mut self, token: &AccessToken) {
        self.held.take_if(|held| held.token.is(token));
    }

    /// What a change may replace. Kept until the lock is given back, so that nothing is dropped
    /// under it: an error may own anything.
    pub(super) fn keepsakes(&self) -> impl Sized + use<F> {
        (
            self.held.as_ref().map(|held| (held.token.clone(), Arc::clone(&held.copies))),
            self.failure.as_ref().map(|failure| failure.error.clone()),
            self.flight.as_ref().map(|flight| flight.join.clone()),
        )
    }

    pub(super) fn is_flying(&self) -> bool {
        self.flight.is_some()
    }

    /// Whether an API refused the token in hand, which waits to be replaced.
    #[cfg(feature = "store")]
    pub(super) fn is_suspect(&self) -> bool {
        self.held.as_ref().is_some_and(|held| held.suspect)
    }

    pub(super) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// The token in hand with the moment at which it is to be renewed, if it may still be sent.
    pub(super) fn token(&self, now: Moment) -> Option<(&AccessToken, Option<Moment>)> {
        let held = self.held.as_ref().filter(|held| held.serves(now, Duration::ZERO))?;
        Some((&held.token, self.next_renewal()))
    }
}

impl Held {
    /// Whether the token may be sent, and lives for at least `min_lifetime`.
    fn serves(&self, now: Moment, min_lifetime: Duration) -> bool {
        !self.thresholds.retire.has_come(now) && self.token.expires().remaining(now) >= min_lifetime
    }
}
