//! When a token is renewed and when it is retired, from its own life. Pure.
//!
//! A token of 24 hours is renewed after 23. A fixed window would make an IMS that issues tokens
//! of five minutes mint one for each request, so the time ahead is a share of the life: at least
//! five minutes, but never more than half of a life (unless it was set so).

use std::time::Duration;

use crate::clock::Moment;

/// The share of a life after which a token is renewed: 23 of 24 hours.
pub(super) const DEFAULT_REFRESH_AT: f64 = 23.0 / 24.0;

/// The least time ahead of expiry at which a token is renewed, if its life is long enough.
const LEAST_AHEAD: Duration = Duration::from_secs(5 * 60);

/// How long before its end a token is no longer sent, so that it is not dead on arrival.
const RETIRE_AHEAD: Duration = Duration::from_secs(5);

/// The rule by which one source renews its tokens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// The share of its life after which a token is renewed, in `(0, 1)`.
    pub(super) refresh_at: f64,
    /// Where in the jitter window this source refreshes, in `[0, 1)`. Drawn once per source: a
    /// new draw at each look would, under load, always find the earliest edge.
    pub(super) jitter: f64,
}

/// The two moments in the life of a token at which something changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Thresholds {
    /// From here on it is renewed beside the traffic.
    pub(super) renew: Moment,
    /// From here on it is not sent any more.
    pub(super) retire: Moment,
}

impl Schedule {
    /// The thresholds of a token that was asked for at `sent` and lives for `lifetime`.
    pub(super) fn thresholds(self, sent: Moment, lifetime: Duration) -> Thresholds {
        let ahead = lifetime
            .mul_f64(1.0 - self.refresh_at)
            .max(LEAST_AHEAD.min(lifetime / 2))
            .min(lifetime);
        let window = ahead.min(lifetime - ahead) / 4;
        let renew_after = lifetime - ahead - window.mul_f64(self.jitter);
        let retire_after = lifetime - RETIRE_AHEAD.min(lifetime / 20);

        Thresholds { renew: sent.plus(renew_after), retire: sent.plus(retire_after) }
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
        let Thresholds { renew, retire } = schedule.thresholds(sent, lifetime);
        (renew.monotonic - sent.monotonic, retire.monotonic - sent.monotonic)
    }

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn a_token_of_a_day_is_renewed_after_23_hours_or_up_to_a_quarter_of_an_hour_before() {
        let (renew, retire) = after(secs(86_400), 0.0);
        assert_eq!((renew.as_secs_f64().round(), retire), (23.0 * 3600.0, secs(86_395)));

        let (renew, _) = after(secs(86_400), 1.0);
        assert_eq!(renew.as_secs_f64().round(), 22.75 * 3600.0);
    }

    #[test]
    fn short_lives_are_renewed_early_enough_to_be_replaced_in_time() {
        assert_eq!(after(secs(3_600), 0.0).0, secs(3_300));
        assert_eq!(after(secs(300), 0.0), (secs(150), secs(295)));
        assert_eq!(after(secs(6), 0.0), (secs(3), Duration::from_millis(5_700)));
        assert_eq!(after(secs(2), 0.0), (secs(1), Duration::from_millis(1_900)));
    }

    proptest! {
        #[test]
        fn a_token_is_renewed_before_it_is_retired_and_retired_before_it_ends(
            millis in 1_u64..100 * 365 * 86_400_000,
            jitter in 0.0..1.0_f64,
        ) {
            let lifetime = Duration::from_millis(millis);
            let (renew, retire) = after(lifetime, jitter);

            prop_assert!(renew < retire, "{renew:?} {retire:?}");
            prop_assert!(retire < lifetime);
            prop_assert!(renew >= lifetime.mul_f64(0.37), "not renewed at once: {renew:?}");
        }
    }
}
