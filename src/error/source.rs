//! The errors that a token source makes itself.

use std::time::Duration;

use super::{ErrorKind, TokenError};

impl TokenError {
    /// The source was shut down.
    pub(crate) fn shut_down() -> Self {
        Self::new(ErrorKind::Shutdown, "the token source was shut down and requests no more tokens")
    }

    /// The runtime of a refresh ended.
    pub(crate) fn lost() -> Self {
        Self::new(
            ErrorKind::RuntimeLost,
            "the tokio runtime of the token request shut down before the request completed; the \
             next caller on another runtime requests a token",
        )
    }

    /// The runtime of a refresh exists, but does not drive the refresh.
    pub(crate) fn stalled() -> Self {
        Self::new(
            ErrorKind::RuntimeLost,
            "the tokio runtime of the token request stalled; the next caller requests another token",
        )
    }

    /// The runtime has no timer.
    pub(crate) fn no_timer() -> Self {
        Self::new(
            ErrorKind::RuntimeLost,
            "the tokio runtime is shutting down, or was built without a time driver",
        )
    }

    /// A token has to be requested, but there is no runtime here.
    pub(crate) fn no_runtime() -> Self {
        Self::new(
            ErrorKind::NoRuntime,
            "no usable token is cached, and none can be requested outside of a tokio runtime",
        )
    }

    /// A caller would have to wait, but there is no runtime here.
    pub(crate) fn cannot_wait(source: tokio::runtime::TryCurrentError) -> Self {
        Self::with_source(
            ErrorKind::NoRuntime,
            "waiting for an access token requires a tokio runtime",
            source,
        )
    }

    /// The user's code panicked.
    pub(crate) fn panicked() -> Self {
        Self::new(ErrorKind::Panicked, "the token fetcher or credentials provider panicked")
    }

    /// The token fetcher did not return within its limit.
    pub(crate) fn fetcher_timeout(limit: Duration) -> Self {
        Self::new(
            ErrorKind::Timeout,
            format!("the token fetcher did not return within {limit:?} and was cancelled"),
        )
    }

    /// The supply of the source did not return within its limit.
    pub(crate) fn attempt_timeout(limit: Duration) -> Self {
        Self::new(
            ErrorKind::Timeout,
            format!("the token request was cancelled after {limit:?} without a result"),
        )
    }

    /// A new token was received after its end.
    pub(crate) fn expired_on_arrival(lifetime: Duration) -> Self {
        Self::new(
            ErrorKind::Timeout,
            format!(
                "the new access token with a lifetime of {lifetime:?} expired before it could be used"
            ),
        )
    }

    /// A refresh brought a token that the cache does not take.
    pub(crate) fn not_newer() -> Self {
        Self::new(
            ErrorKind::Malformed,
            "rejected the new access token, because it has expired or is older than an earlier one",
        )
    }

    /// A caller requires a remaining lifetime that tokens have for a short time only, or never.
    pub(crate) fn beyond_reach(required: Duration, lifetime: Duration, longest: Duration) -> Self {
        Self::new(
            ErrorKind::Lifetime,
            format!(
                "the request requires a token with {required:?} of remaining lifetime; with a token \
                 lifetime of {lifetime:?} at most {longest:?} can be required"
            ),
        )
    }

    /// The tokens that came while a caller waited expire too early for the caller.
    pub(crate) fn expires_too_early(required: Duration) -> Self {
        Self::new(
            ErrorKind::Lifetime,
            format!(
                "the new access tokens expire too early for a request that requires {required:?}"
            ),
        )
    }

    /// A caller has waited for its whole `limit`. `last_failure` is that of the source, if any.
    pub(crate) fn acquire_timeout(
        limit: Duration,
        is_refreshing: bool,
        last_failure: Option<&Self>,
    ) -> Self {
        let request = match is_refreshing {
            true => "the token request goes on",
            false => "no token request is in progress",
        };
        let message = format!("timed out waiting for an access token after {limit:?}; {request}");
        match last_failure {
            Some(failure) => Self::with_source(ErrorKind::AcquireTimeout, message, failure.clone()),
            None => Self::new(ErrorKind::AcquireTimeout, message),
        }
    }

    /// The tasks of a source that was shut down have not ended.
    pub(crate) fn not_ended(limit: Duration) -> Self {
        Self::new(
            ErrorKind::AcquireTimeout,
            format!(
                "the background work of the token source has not ended within {limit:?}; it ends \
                 when its runtime is driven again or dropped"
            ),
        )
    }
}
