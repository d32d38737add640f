//! The events of a source. Each function reports one event, and ignores a panic of the subscriber.
//!
//! An event of a refresh is inside the refresh's span if the caller is.

use std::{error::Error, time::Duration};

use tracing::{debug, info, warn};

use crate::{error::TokenError, foreign::quietly};

/// This process requested a token and got one, after `duration` and in this attempt.
pub(crate) fn token_obtained(
    attempt: u32,
    duration: Duration,
    expires_in: Duration,
    generation: u64,
) {
    quietly(|| {
        info!(
            event = "token_obtained",
            attempt,
            duration = duration.as_secs_f64(),
            expires_in = expires_in.as_secs_f64(),
            generation,
            "obtained an access token"
        );
    });
}

/// This process uses a token that another process obtained, stored under the fencing token `version`.
pub(crate) fn token_shared(version: u64, expires_in: Duration, generation: u64) {
    quietly(|| {
        info!(
            event = "token_shared",
            version,
            expires_in = expires_in.as_secs_f64(),
            generation,
            "took the access token of another process from the store"
        );
    });
}

/// An attempt of a refresh failed. The next one starts after `pause` at the earliest.
pub(crate) fn attempt_failed(attempt: u32, error: &TokenError, pause: Duration) {
    quietly(|| {
        warn!(
            event = "attempt_failed",
            attempt,
            error = error as &dyn Error,
            next_attempt_in = pause.as_secs_f64(),
            "could not obtain an access token"
        );
    });
}

/// The refresh makes another attempt after `pause`.
pub(crate) fn attempt_retried(attempt: u32, pause: Duration) {
    quietly(|| {
        let pause = pause.as_secs_f64();
        debug!(event = "attempt_retried", attempt, pause, "retrying the token request");
    });
}

/// The process stood still during an attempt, which is made once more.
pub(crate) fn attempt_repeated() {
    quietly(|| {
        debug!(
            event = "attempt_repeated",
            "the process stood still during a token request; repeating the request"
        );
    });
}

/// A refresh was dropped with its runtime.
pub(crate) fn refresh_lost(error: &TokenError) {
    quietly(|| {
        warn!(
            event = "refresh_lost",
            error = error as &dyn Error,
            "a token refresh was lost with its runtime; the next caller starts another one"
        );
    });
}

/// A refresh was given up, because nothing was heard of it for too long.
pub(crate) fn refresh_stalled(source: &str) {
    quietly(|| {
        warn!(
            event = "refresh_stalled",
            source,
            "a token refresh was given up, because its runtime stalled; another one can start"
        );
    });
}

/// The provider of the credentials reported a change.
pub(crate) fn credentials_changed(source: &str) {
    quietly(|| {
        debug!(
            event = "credentials_changed",
            source, "the credentials have changed; requesting a token with the new ones"
        );
    });
}

/// The code that waits for a change of the credentials panicked.
pub(crate) fn changed_panicked(source: &str) {
    quietly(|| {
        warn!(
            event = "changed_panicked",
            source, "waiting for a change of the credentials panicked; waiting again"
        );
    });
}

/// An API responded with 401, and the token is replaced.
pub(crate) fn token_refused(source: &str, generation: u64) {
    quietly(|| {
        warn!(
            event = "token_refused",
            source, generation, "an API refused the access token; requesting a new one"
        );
    });
}

/// An API responded with 401, and the refusal was not believed.
pub(crate) fn refusal_ignored(source: &str, generation: u64) {
    quietly(|| {
        debug!(
            event = "refusal_ignored",
            source, generation, "an API refused an access token; the token stays in use"
        );
    });
}

/// Events of a fleet, which shares its token through a token store.
#[cfg(feature = "store")]
mod fleet {
    use std::error::Error;

    use tracing::{debug, info, warn};

    use crate::error::{StoreError, TokenError};
    use crate::foreign::quietly;

    /// A call of the token store failed, or its result cannot be used.
    pub(crate) fn store_unavailable(operation: &'static str, error: &StoreError) {
        quietly(|| {
            warn!(
                event = "store_unavailable",
                operation,
                error = error as &dyn Error,
                "token store unavailable; this process requests its own token"
            );
        });
    }

    /// The token store works again after a failure.
    pub(crate) fn store_recovered() {
        quietly(|| info!(event = "store_recovered", "the token store works again"));
    }

    /// The record in the token store cannot be used.
    pub(crate) fn record_ignored(reason: &'static str) {
        quietly(|| {
            warn!(
                event = "record_ignored",
                reason, "ignored an unusable record in the token store"
            );
        });
    }

    /// Another process holds the lease.
    pub(crate) fn lease_held() {
        quietly(|| {
            debug!(
                event = "lease_held",
                "another process requests an access token; waiting for its result"
            );
        });
    }

    /// The other processes had their time, and none stored a token.
    pub(crate) fn lease_not_released() {
        quietly(|| {
            warn!(
                event = "lease_not_released",
                "no token came from the process that holds the lease; requesting one without it"
            );
        });
    }

    /// A token that is due for refresh is used, because no better one could be obtained.
    pub(crate) fn due_token_used(error: &TokenError) {
        quietly(|| {
            warn!(
                event = "due_token_used",
                error = error as &dyn Error,
                "could not obtain an access token; using the one in the store, which is due for \
                 refresh"
            );
        });
    }
}

#[cfg(feature = "store")]
pub(crate) use self::fleet::*;
