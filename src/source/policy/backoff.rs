//! [`Backoff`]: how long a source waits after a failure before it requests a token again. Pure.

use std::time::Duration;

use crate::error::{ErrorKind, TokenError};

/// The exponential backoff of a source, with jitter and caps.
///
/// A pause is drawn between a quarter and the whole of its longest value. Full jitter, from zero on,
/// would let a run of small draws flood a failing IMS.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Backoff {
    /// The longest pause after the first failure; it doubles with each further one.
    pub(crate) base: Duration,
    /// The longest pause while nobody waits for a token.
    pub(crate) cap: Duration,
    /// The longest pause because IMS asked for it with `Retry-After`.
    pub(crate) retry_after_cap: Duration,
}

/// The two pauses after one failure: for callers who wait, and for the background.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pauses {
    /// Before a caller without a usable token may start a refresh.
    pub(crate) callers: Duration,
    /// Before a refresh starts that nobody waits for.
    pub(crate) background: Duration,
}

/// The longest pause while callers ask and no usable token is cached, so that they are served within
/// 10 s after an outage has ended.
pub(crate) const CALLERS_CAP: Duration = Duration::from_secs(10);

/// The first pause in the background after a permanent failure, such as a wrong secret. It doubles with
/// each further one. The retry lets a service recover that gets no traffic because its readiness probe
/// fails.
const MIN_PERMANENT_PAUSE: Duration = Duration::from_secs(60);

/// The longest pause in the background after permanent failures in a row.
const MAX_PERMANENT_PAUSE: Duration = Duration::from_secs(5 * 60);

/// The pause for callers after the second and each further refresh in a row that was lost with its
/// runtime: long enough not to flood IMS, and short enough for a caller to wait out.
const LOST_PAUSE: Duration = Duration::from_millis(100);

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
    /// The pauses after `failures` failures in a row (at least one), the last of which is `error`.
    /// `random` is in `[0, 1)`.
    pub(crate) fn pauses(self, failures: u32, error: &TokenError, random: f64) -> Pauses {
        match error.kind() {
            ErrorKind::Panicked => self.panicked(failures, random),
            ErrorKind::RuntimeLost => self.lost(failures, random),
            _ if error.is_transient() => self.transient(failures, error.retry_after(), random),
            _ => self.permanent(failures, error.retry_after(), random),
        }
    }

    /// The pauses after `failures` transient failures of the issuer in a row (at least one), the
    /// last of which carried `retry_after`. `random` is in `[0, 1)`.
    pub(crate) fn transient(
        self,
        failures: u32,
        retry_after: Option<Duration>,
        random: f64,
    ) -> Pauses {
        // Jitter on top of the requested time, so that processes that were throttled together do not
        // retry together as a thundering herd.
        let requested = retry_after
            .map(|requested| requested.min(self.retry_after_cap) + self.base.mul_f64(random))
            .unwrap_or_default();
        let pause = |cap: Duration| self.exponential(failures, cap, random).max(requested);
        Pauses { callers: pause(self.cap.min(CALLERS_CAP)), background: pause(self.cap) }
    }

    /// The pauses after `failures` permanent failures of the issuer in a row. Callers may retry as
    /// after transient failures with the longer cap, because the secret may have been corrected at
    /// Adobe.
    fn permanent(self, failures: u32, retry_after: Option<Duration>, random: f64) -> Pauses {
        let Pauses { background: callers, .. } = self.transient(failures, retry_after, random);
        let slow = MIN_PERMANENT_PAUSE.saturating_mul(doublings(failures)).min(MAX_PERMANENT_PAUSE);
        Pauses { callers, background: slow.max(callers) }
    }

    /// The pauses after the token fetcher panicked `failures` times in a row. After the first panic
    /// the next caller may retry immediately.
    fn panicked(self, failures: u32, random: f64) -> Pauses {
        match failures {
            0 | 1 => Pauses { callers: Duration::ZERO, background: self.base },
            _ => self.transient(failures - 1, None, random),
        }
    }

    /// The pauses after `losses` refreshes in a row were lost with their runtime.
    ///
    /// IMS did not fail, so callers wait only briefly. Each lost refresh may have cost a token at
    /// IMS, so the refresh of a token that is still valid backs off exponentially.
    fn lost(self, losses: u32, random: f64) -> Pauses {
        match losses {
            0 | 1 => Pauses { callers: Duration::ZERO, background: Duration::ZERO },
            _ => Pauses {
                callers: LOST_PAUSE.min(self.cap),
                background: self.exponential(losses - 1, self.cap, random),
            },
        }
    }

    fn exponential(self, failures: u32, cap: Duration, random: f64) -> Duration {
        let longest = self.base.saturating_mul(doublings(failures)).min(cap);
        longest.mul_f64(0.25 + 0.75 * random)
    }
}

/// `2^(failures - 1)`, bounded.
fn doublings(failures: u32) -> u32 {
    1 << failures.saturating_sub(1).min(30)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn pauses_double_up_to_their_caps() {
        let longest = |failures| Backoff::default().transient(failures, None, 1.0);
        let pauses = |callers, background| Pauses { callers, background };

        let quarter = Duration::from_millis(250);
        assert_eq!(longest(1), pauses(quarter, quarter));
        assert_eq!(longest(2), pauses(quarter * 2, quarter * 2));
        assert_eq!(longest(8), pauses(secs(10), secs(32)));
        assert_eq!(longest(9), pauses(secs(10), secs(60)));
        assert_eq!(longest(u32::MAX), pauses(secs(10), secs(60)));
    }

    #[test]
    fn retry_after_is_respected_up_to_its_cap() {
        let pauses = |asked| Backoff::default().transient(1, Some(secs(asked)), 0.0);

        assert_eq!(pauses(20), Pauses { callers: secs(20), background: secs(20) });
        assert_eq!(pauses(u64::MAX), Pauses { callers: secs(300), background: secs(300) });
    }

    #[test]
    fn permanent_failures_are_retried_slowly_without_callers() {
        let background = |failures| Backoff::default().permanent(failures, None, 1.0).background;

        assert_eq!([1, 2, 3, 4, 1_000].map(background), [60, 120, 240, 300, 300].map(secs));
        assert_eq!(Backoff::default().permanent(1_000, None, 1.0).callers, secs(60));
    }

    #[test]
    fn a_first_loss_or_panic_costs_callers_no_pause() {
        let backoff = Backoff::default();

        assert_eq!(backoff.lost(1, 1.0).callers, Duration::ZERO);
        assert_eq!(backoff.lost(1_000, 1.0).callers, Duration::from_millis(100));
        assert_eq!(backoff.lost(1_000, 1.0).background, secs(60));
        assert_eq!(backoff.panicked(1, 1.0).callers, Duration::ZERO);
        assert_eq!(backoff.panicked(1_000, 1.0).callers, secs(10));
    }

    proptest! {
        #[test]
        fn pauses_stay_between_a_quarter_and_the_whole(failures in 1_u32.., random in 0.0..1.0_f64) {
            let backoff = Backoff::default();
            let longest = backoff.transient(failures, None, 1.0);
            let pauses = backoff.transient(failures, None, random);

            prop_assert!(pauses.callers >= longest.callers / 4 && pauses.callers <= longest.callers);
            prop_assert!(pauses.background >= longest.background / 4);
            prop_assert!(pauses.background <= longest.background);
        }
    }
}
