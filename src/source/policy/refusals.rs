//! [`Refusals`]: decides which 401s to believe, and so which tokens to replace. Pure.
//!
//! An API may respond with 401 although the token is valid: Adobe does so for missing permissions. A
//! new token is then refused as well. To *believe* a 401 means to replace the token because of it,
//! which costs a token request. The budget of such requests has two bounds:
//!
//! 1. Each origin is believed twice a minute. Its third refusal *latches* the origin: it is ignored
//!    for a minute, then believed twice again. Each further latch lasts twice as long, up to an hour.
//! 2. All origins together are believed four times in ten minutes. The fifth refusal latches all of
//!    them in the same way, up to ten minutes. A caller may choose the hosts, so a bound per origin
//!    alone would be no bound.
//!
//! A replacement that is refused within a minute, by an origin that has not been believed within its
//! window, is evidence against that origin, because IMS has no fresher token.

use std::time::Duration;

use crate::{clock::Moment, source::access_token::OriginKey};

/// How many refusals of one origin are believed per [`WINDOW`]: one revocation, and one more.
pub(crate) const BELIEVED_PER_ORIGIN: u32 = 2;

/// The time over which believed refusals of one origin are counted.
pub(crate) const WINDOW: Duration = Duration::from_secs(60);

/// How many refusals of all origins together are believed per [`SOURCE_WINDOW`].
const BELIEVED_PER_SOURCE: u32 = 4;

/// The time over which believed refusals of all origins are counted.
const SOURCE_WINDOW: Duration = Duration::from_secs(10 * 60);

/// How long the first latch lasts. Each further one lasts twice as long.
const MIN_LATCH: Duration = Duration::from_secs(60);

/// How many origins are remembered, which bounds the memory. While all of them are active, an unknown
/// origin counts as latched, so that requests to many hosts do not evict a latch.
const MAX_ORIGINS: usize = 64;

/// The origins that refused a token lately.
#[derive(Debug)]
pub(crate) struct Refusals {
    origins: Vec<(OriginKey, Latch)>,
    source: Latch,
    /// When a token was last replaced because of a refusal.
    replaced_at: Option<Moment>,
}

/// Counts the refusals of one origin or of all, and ignores them for a while when there are too many,
/// as a circuit breaker does.
#[derive(Debug)]
struct Latch {
    limits: Limits,
    /// How many refusals were believed in the current window.
    believed: u32,
    window_ends: Option<Moment>,
    /// `true` if refusals are ignored until the window ends.
    latched: bool,
    /// How long the next latch lasts.
    next_latch: Duration,
    last_refusal: Option<Moment>,
}

/// The limits of a [`Latch`].
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// How many refusals are believed per `window`.
    believed: u32,
    window: Duration,
    max_latch: Duration,
}

const PER_ORIGIN: Limits = Limits {
    believed: BELIEVED_PER_ORIGIN,
    window: WINDOW,
    max_latch: Duration::from_secs(60 * 60),
};

const PER_SOURCE: Limits = Limits {
    believed: BELIEVED_PER_SOURCE,
    window: SOURCE_WINDOW,
    max_latch: Duration::from_secs(10 * 60),
};

impl Default for Refusals {
    fn default() -> Self {
        Self { origins: Vec::new(), source: Latch::new(PER_SOURCE), replaced_at: None }
    }
}

impl Refusals {
    /// Records that `origin` refused the cached token. Returns whether to believe the refusal.
    pub(crate) fn record(&mut self, now: Moment, origin: OriginKey) -> bool {
        let fresh = self.replaced_at.is_some_and(|at| !at.plus(WINDOW).has_come(now));
        let Some(latch) = self.latch(now, origin) else { return false };
        // The budget of the source is asked last: a refusal that its own origin ignores must not use up
        // what all origins share.
        if !latch.record(now) || (fresh && latch.believed == 0) || !self.source.record(now) {
            return false;
        }
        if let Some(latch) = self.latch(now, origin) {
            latch.believed += 1;
        }
        self.source.believed += 1;
        true
    }

    /// Records that a suspect token was replaced.
    pub(crate) fn record_replacement(&mut self, now: Moment) {
        self.replaced_at = Some(now);
    }

    /// The latch of this origin; `None` if too many others are active.
    fn latch(&mut self, now: Moment, origin: OriginKey) -> Option<&mut Latch> {
        let known = self.origins.iter().position(|(key, _)| *key == origin);
        let at = match known {
            Some(at) => at,
            None if self.origins.len() < MAX_ORIGINS => {
                self.origins.push((origin, Latch::new(PER_ORIGIN)));
                self.origins.len() - 1
            }
            None => {
                let at = self.origins.iter().position(|(_, latch)| latch.is_quiet(now))?;
                self.origins[at] = (origin, Latch::new(PER_ORIGIN));
                at
            }
        };
        Some(&mut self.origins[at].1)
    }
}

impl Latch {
    const fn new(limits: Limits) -> Self {
        Self {
            limits,
            believed: 0,
            window_ends: None,
            latched: false,
            next_latch: MIN_LATCH,
            last_refusal: None,
        }
    }

    /// Records a refusal. Returns whether the budget of the window allows believing it, and latches if
    /// not.
    fn record(&mut self, now: Moment) -> bool {
        if self.is_quiet(now) {
            *self = Self::new(self.limits);
        }
        self.last_refusal = Some(now);
        if self.window_ends.is_none_or(|end| end.has_come(now)) {
            (self.believed, self.latched) = (0, false);
            self.window_ends = Some(now.plus(self.limits.window));
        }
        if self.latched || self.believed < self.limits.believed {
            return !self.latched;
        }
        self.latched = true;
        self.window_ends = Some(now.plus(self.next_latch));
        self.next_latch = (self.next_latch * 2).min(self.limits.max_latch);
        false
    }

    /// Returns whether this latch can be forgotten: it ignores nothing now, its window has ended, and
    /// no refusal came for longer than the next latch would last.
    fn is_quiet(&self, now: Moment) -> bool {
        let over = |moment: Option<Moment>| moment.is_none_or(|moment| moment.has_come(now));
        over(self.last_refusal.map(|last| last.plus(self.next_latch))) && over(self.window_ends)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tokio::time::Instant;

    use super::*;

    const API: OriginKey = OriginKey(1);

    fn start() -> Moment {
        Moment { monotonic: Instant::now(), wall: SystemTime::UNIX_EPOCH }
    }

    fn at(start: Moment, second: u64) -> Moment {
        start.plus(Duration::from_secs(second))
    }

    /// How many of the refusals of one origin, one each second, are believed.
    fn believed(refusals: &mut Refusals, start: Moment, seconds: std::ops::Range<u64>) -> usize {
        seconds.filter(|second| refusals.record(at(start, *second), API)).count()
    }

    #[test]
    fn an_origin_is_believed_twice_then_latched_ever_longer() {
        let (mut refusals, start) = (Refusals::default(), start());

        assert_eq!(believed(&mut refusals, start, 0..60), 2);
        assert_eq!(believed(&mut refusals, start, 60..3_600), 10);
        assert_eq!(believed(&mut refusals, start, 3_600..86_400), 46);
    }

    #[test]
    fn one_origin_says_nothing_about_another() {
        let (mut refusals, start) = (Refusals::default(), start());
        believed(&mut refusals, start, 0..10);

        assert!(refusals.record(at(start, 10), OriginKey(2)));
    }

    #[test]
    fn an_origin_that_was_quiet_for_long_starts_over() {
        let (mut refusals, start) = (Refusals::default(), start());
        believed(&mut refusals, start, 0..1_000);

        assert_eq!(believed(&mut refusals, start, 100_000..100_060), 2);
        assert_eq!(believed(&mut refusals, start, 100_060..100_070), 2);
    }

    #[test]
    fn many_origins_share_the_budget_of_the_source() {
        let (mut refusals, start) = (Refusals::default(), start());

        let believed = |seconds: std::ops::Range<u64>, refusals: &mut Refusals| {
            seconds.filter(|n| refusals.record(at(start, *n), OriginKey(*n))).count()
        };

        assert_eq!(believed(0..60, &mut refusals), 4);
        // Four between latches of 1, 2, 4, 8 and then 10 minutes.
        assert_eq!(believed(60..3_600, &mut refusals), 4 * 8);
        assert!(believed(3_600..86_400, &mut refusals) <= 4 * 138);
    }

    #[test]
    fn a_fresh_token_refused_elsewhere_speaks_against_the_origin() {
        let (mut refusals, start) = (Refusals::default(), start());

        assert!(refusals.record(start, API));
        refusals.record_replacement(start);

        assert!(!refusals.record(at(start, 1), OriginKey(2)), "a fresh token, refused elsewhere");
        assert!(refusals.record(at(start, 2), API), "a second revocation");
        assert!(refusals.record(at(start, 61), OriginKey(2)), "the token is no longer fresh");
    }

    #[test]
    fn a_forgotten_origin_counts_as_latched() {
        let (mut refusals, start) = (Refusals::default(), start());
        for origin in 0..10_000 {
            refusals.record(start, OriginKey(origin));
        }

        assert_eq!(refusals.origins.len(), MAX_ORIGINS);
        assert!(!refusals.record(at(start, 59), OriginKey(10_000)), "all others are active");
        assert!(refusals.record(at(start, 200), OriginKey(10_000)), "the others are quiet");
        assert_eq!(refusals.origins.len(), MAX_ORIGINS);
    }
}
