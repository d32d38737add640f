//! What a source counts of itself: who waits, what is sent, how long the token in hand lives on.

use std::{sync::atomic::Ordering, time::Duration};

use super::shared::Shared;
use crate::{
    telemetry::{Obtained, Telemetry},
    token::AccessToken,
};

impl Shared {
    pub(super) fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Counts a request that is sent with `token`.
    pub(super) fn sent(&self, token: &AccessToken, how: Obtained) {
        let now = self.now();
        let renew = self.settings.schedule.thresholds(token.sent(), token.lifetime()).renew;
        let how =
            if how == Obtained::AtOnce && renew.has_come(now) { Obtained::Stale } else { how };
        self.telemetry.sent(how, token.expires().remaining(now));
    }

    /// Shows how long the token in hand lives on.
    pub(super) fn show_expiry(&self) {
        self.telemetry.expiry(|| {
            let now = self.now();
            let expires = self.read(|state| state.token(now).map(|(token, _)| token.expires()));
            // Who closes shows it after that.
            expires.filter(|_| !self.is_closed()).map_or(Duration::ZERO, |it| it.remaining(now))
        });
    }

    /// Counts a caller that waits, until the guard is dropped.
    pub(super) fn waits(&self) -> Waiting<'_> {
        self.waiters.fetch_add(1, Ordering::Relaxed);
        self.telemetry.begins_to_wait();
        Waiting(self)
    }

    pub(super) fn waiters(&self) -> usize {
        self.waiters.load(Ordering::Relaxed)
    }
}

/// A caller that waits for a flight.
pub(super) struct Waiting<'a>(&'a Shared);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, Ordering::Relaxed);
        self.0.telemetry.ends_to_wait();
    }
}
