//! [`Schedule`]: when a token becomes due for refresh, and when it counts as expired. Pure.
//!
//! A token that lives for 24 hours is refreshed after 23. A fixed window of, say, one hour before the
//! end would make a token that lives for five minutes due when it arrives, and each request would
//! start a refresh. The window is therefore a share of the lifetime: at least five minutes, but at
//! most half of the lifetime, unless the user sets a smaller `refresh_at`.

use std::time::Duration;

use crate::clock::Moment;

/// The share of its lifetime after which a token is refreshed: 23 of 24 hours.
const DEFAULT_REFRESH_AT: f64 = 23.0 / 24.0;

/// The shortest window before expiry in which a token is refreshed, if its lifetime allows.
const MIN_WINDOW: Duration = Duration::from_secs(5 * 60);

/// A token counts as expired this long before its end, so that it does not expire on the way to the
/// API. A twentieth of the lifetime if that is shorter.
const EXPIRY_MARGIN: Duration = Duration::from_secs(5);

/// The shortest time from requesting a token to its refresh, so that no setting floods IMS. Half of the
/// lifetime if that is shorter.
const MIN_INTERVAL: Duration = Duration::from_secs(10);

/// The shortest time from receiving a token to its refresh, so that tokens that are due on arrival
/// do not make the source spin.
const MIN_PAUSE: Duration = Duration::from_millis(100);

/// The rule by which one source refreshes its tokens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    /// The share of its lifetime after which a token is refreshed, in `(0, 1)`.
    pub(crate) refresh_at: f64,
    /// Where in the jitter window this source refreshes, in `[0, 1)`. Drawn once per source, because
    /// with a new draw for each request a busy source would always refresh at the early edge.
    pub(crate) jitter: f64,
}

impl Default for Schedule {
    /// The default rule, without jitter.
    fn default() -> Self {
        Self { refresh_at: DEFAULT_REFRESH_AT, jitter: 0.0 }
    }
}

/// The two moments in the lifetime of a token at which its state changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Thresholds {
    /// From here on the token is due for refresh in the background.
    pub(crate) due: Moment,
    /// From here on the token is not sent.
    pub(crate) expired: Moment,
}

impl Schedule {
    /// The thresholds of a token that was requested at `sent` and lives for `lifetime`.
    pub(crate) fn thresholds(self, sent: Moment, lifetime: Duration) -> Thresholds {
        let window =
            lifetime.mul_f64(1.0 - self.refresh_at).max(MIN_WINDOW.min(lifetime / 2)).min(lifetime);
        let jitter = window.min(lifetime - window) / 4;
        let due_after = lifetime - window - jitter.mul_f64(self.jitter);
        let expired_after = lifetime - EXPIRY_MARGIN.min(lifetime / 20);

        Thresholds { due: sent.plus(due_after), expired: sent.plus(expired_after) }
    }

    /// The [thresholds](Self::thresholds) of a token that was received at `now`, which is not due
    /// before [`MIN_INTERVAL`] and [`MIN_PAUSE`] have passed.
    pub(crate) fn thresholds_from(
        self,
        now: Moment,
        sent: Moment,
        lifetime: Duration,
    ) -> Thresholds {
        let Thresholds { due, expired } = self.thresholds(sent, lifetime);
        let earliest = sent.plus(MIN_INTERVAL.min(lifetime / 2)).later(now.plus(MIN_PAUSE));
        Thresholds { due: due.later(earliest), expired }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use proptest::prelude::*;
    use tokio::time::Instant;

    use super::*;

    fn after(lifetime: Duration, jitter: f64) -> (Duration, Duration) {
        let sent = Moment { monotonic: Instant::now(), wall: SystemTime::UNIX_EPOCH };
        let schedule = Schedule { refresh_at: DEFAULT_REFRESH_AT, jitter };
        let Thresholds { due, expired } = schedule.thresholds(sent, lifetime);
        (due.monotonic - sent.monotonic, expired.monotonic - sent.monotonic)
    }

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_token_of_a_day_is_due_after_22_75_to_23_hours() {
        let (due, expired) = after(secs(86_400), 0.0);
        assert_eq!((due.as_secs_f64().round(), expired), (23.0 * 3600.0, secs(86_395)));

        let (due, _) = after(secs(86_400), 1.0);
        assert_eq!(due.as_secs_f64().round(), 22.75 * 3600.0);
    }

    #[test]
    fn no_setting_refreshes_a_token_as_soon_as_it_came() {
        let now = Moment { monotonic: Instant::now(), wall: SystemTime::UNIX_EPOCH };
        let schedule = Schedule { refresh_at: 1e-9, jitter: 1.0 };
        let due = |lifetime| {
            let Thresholds { due, .. } = schedule.thresholds_from(now, now, lifetime);
            due.monotonic - now.monotonic
        };

        assert_eq!(due(secs(86_400)), secs(10));
        assert_eq!(due(secs(2)), secs(1));
        assert_eq!(due(Duration::from_millis(1)), Duration::from_millis(100));
    }

    #[test]
    fn short_lived_tokens_are_due_early_enough() {
        assert_eq!(after(secs(3_600), 0.0).0, secs(3_300));
        assert_eq!(after(secs(300), 0.0), (secs(150), secs(295)));
        assert_eq!(after(secs(6), 0.0), (secs(3), Duration::from_millis(5_700)));
        assert_eq!(after(secs(2), 0.0), (secs(1), Duration::from_millis(1_900)));
    }

    proptest! {
        #[test]
        fn a_token_is_due_before_it_expires(
            millis in 1_u64..100 * 365 * 86_400_000,
            jitter in 0.0..1.0_f64,
        ) {
            let lifetime = Duration::from_millis(millis);
            let (due, expired) = after(lifetime, jitter);

            prop_assert!(due < expired, "{due:?} {expired:?}");
            prop_assert!(expired < lifetime);
            prop_assert!(due >= lifetime.mul_f64(0.37), "refreshed too early: {due:?}");
        }
    }
}
