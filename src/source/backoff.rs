//! How long the source leaves IMS alone after a failure. Pure.

use std::time::Duration;

/// Exponential backoff with jitter and a cap, one for a source.
///
/// The jitter is full but for a floor of a quarter: the number of requests to a failing IMS is
/// then bounded whatever is drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    /// The most that is waited after the first failure; it doubles with each further one.
    pub(super) base: Duration,
    /// The most that is ever waited of our own accord.
    pub(super) cap: Duration,
    /// The most that is waited because IMS asked for it with `Retry-After`.
    pub(super) retry_after_cap: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(250),
            cap: Duration::from_secs(60),
            retry_after_cap: Duration::from_secs(5 * 60),
        }
    }
}

impl Backoff {
    /// How long to wait after `failures` failures in a row (at least one), the last of which
    /// carried `retry_after`. `random` is in `[0, 1)`.
    pub(super) fn delay(
        self,
        failures: u32,
        retry_after: Option<Duration>,
        random: f64,
    ) -> Duration {
        let doublings = failures.saturating_sub(1).min(31);
        let most = self.base.saturating_mul(1 << doublings).min(self.cap);
        let ours = most.mul_f64(0.25 + 0.75 * random);
        // A little more than asked for, so that a fleet that was throttled together does not
        // come back together.
        let theirs =
            retry_after.map(|asked| asked.min(self.retry_after_cap) + self.base.mul_f64(random));
        ours.max(theirs.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn doubles_up_to_the_cap() {
        let most = |failures| Backoff::default().delay(failures, None, 1.0);

        assert_eq!(most(1), Duration::from_millis(250));
        assert_eq!(most(2), Duration::from_millis(500));
        assert_eq!(most(8), Duration::from_secs(32));
        assert_eq!(most(9), Duration::from_secs(60));
        assert_eq!(most(u32::MAX), Duration::from_secs(60));
    }

    #[test]
    fn retry_after_is_waited_out_up_to_its_cap() {
        let delay = |secs| Backoff::default().delay(1, Some(Duration::from_secs(secs)), 0.0);

        assert_eq!(delay(2), Duration::from_secs(2));
        assert_eq!(delay(u64::MAX), Duration::from_secs(300));
    }

    proptest! {
        #[test]
        fn stays_between_a_quarter_of_its_most_and_its_most(failures in 1_u32.., random in 0.0..1.0_f64) {
            let backoff = Backoff::default();
            let most = backoff.delay(failures, None, 1.0);
            let delay = backoff.delay(failures, None, random);

            prop_assert!(delay >= most / 4 && delay <= most, "{delay:?} of {most:?}");
        }
    }
}
