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
