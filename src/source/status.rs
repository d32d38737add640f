//! [`Status`]: the state of a source, for readiness probes, dashboards and logs.

use std::time::SystemTime;

use super::state::State;
use crate::clock::Moment;
use crate::error::{ErrorKind, StoreError, TokenError};

/// The state of a [`TokenSource`](crate::TokenSource) at one moment.
///
/// # Example
///
/// A readiness probe asks [`is_ready`](Self::is_ready):
///
/// ```
/// # fn readyz(tokens: &tower_adobe_auth::TokenSource) -> (u16, String) {
/// let status = tokens.status();
/// match (status.is_ready(), status.last_error()) {
///     (true, _) => (200, "ok".to_owned()),
///     (false, Some(error)) => (503, error.to_string()),
///     (false, None) => (503, "no token yet".to_owned()),
/// }
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Status {
    valid_until: Option<SystemTime>,
    next_refresh: Option<SystemTime>,
    refreshing: bool,
    failing_since: Option<SystemTime>,
    failures: u32,
    last_error: Option<TokenError>,
    store_error: Option<StoreError>,
}

impl Status {
    pub(super) fn new(state: &State, now: Moment, store_error: Option<StoreError>) -> Self {
        let token = state.token(now);
        let failure = state.failure();
        // A runtime that ended or stalled does not count as a failure of the issuer.
        let failing = failure.filter(|failure| failure.error.kind() != ErrorKind::RuntimeLost);
        Self {
            valid_until: token.map(|(token, _)| token.expires_at()),
            next_refresh: token.and_then(|(_, refresh)| refresh).map(|refresh| refresh.wall),
            refreshing: state.is_refreshing(),
            failing_since: failing.map(|failure| failure.since.wall),
            failures: failing.map_or(0, |failure| failure.count),
            last_error: failure.map(|failure| failure.error.clone()),
            store_error,
        }
    }

    /// Returns whether a usable token is cached, so that requests are sent.
    ///
    /// They are sent immediately, except for up to two seconds after an API refused the token with
    /// 401. They wait that long for its replacement, and then use the token as long as it has not
    /// expired.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.valid_until.is_some()
    }

    /// When the cached token expires. `None` if no usable token is cached.
    #[must_use]
    pub fn valid_until(&self) -> Option<SystemTime> {
        self.valid_until
    }

    /// When the cached token will be refreshed. `None` if no usable token is cached, while a refresh
    /// is in progress, and after a shutdown.
    #[must_use]
    pub fn next_refresh(&self) -> Option<SystemTime> {
        self.next_refresh
    }

    /// Returns whether a refresh is in progress.
    #[must_use]
    pub fn is_refreshing(&self) -> bool {
        self.refreshing
    }

    /// When the first of the current failures happened. `None` if the last token request succeeded.
    #[must_use]
    pub fn failing_since(&self) -> Option<SystemTime> {
        self.failing_since
    }

    /// How many token requests have failed in a row. A request that was lost with its runtime is not
    /// counted.
    #[must_use]
    pub fn consecutive_failures(&self) -> u32 {
        self.failures
    }

    /// The error of the last token request. `None` if it succeeded.
    #[must_use]
    pub fn last_error(&self) -> Option<&TokenError> {
        self.last_error.as_ref()
    }

    /// Why the token store could not be used. `None` if the store is well, or if the source has none.
    ///
    /// While there is an error, each refresh still tries the store first, and this process requests its
    /// own tokens. The error stays until a call succeeds that needs as much of the store as the one that
    /// failed: a store that is full can still be read, so reading it does not clear an error of writing.
    /// A usable token from the store clears every error.
    ///
    /// A store error fails no request and does not change [`is_ready`](Self::is_ready).
    #[must_use]
    pub fn store_error(&self) -> Option<&StoreError> {
        self.store_error.as_ref()
    }
}
