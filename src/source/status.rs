//! What a source tells about itself: for readiness probes, dashboards and logs.

use std::{
    sync::{Arc, Weak},
    time::SystemTime,
};

use tokio::sync::watch;

use super::{shared::Shared, state::State};
use crate::{
    clock::Moment,
    error::{StoreError, TokenError},
};

/// What a [`TokenSource`](crate::TokenSource) knows at one moment.
///
/// # Example
///
/// A readiness probe asks [`is_ready`](Self::is_ready): whether requests get a token at once.
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
    fn of<F: Clone>(state: &State<F>, now: Moment) -> Self {
        let token = state.token(now);
        let failure = state.failure();
        Self {
            valid_until: token.map(|(token, _)| token.expires_at()),
            next_refresh: token.and_then(|(_, renew)| renew).map(|renew| renew.wall),
            refreshing: state.is_flying(),
            failing_since: failure.map(|failure| failure.since.wall),
            failures: failure.map_or(0, |failure| failure.count),
            last_error: failure.map(|failure| failure.error.clone()),
            store_error: None,
        }
    }

    /// Whether a valid token is in hand, so that requests wait for nothing.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.valid_until.is_some()
    }

    /// When the token in hand ends. `None` while there is no valid token.
    #[must_use]
    pub fn valid_until(&self) -> Option<SystemTime> {
        self.valid_until
    }

    /// When the token in hand is going to be renewed. `None` while there is no valid token, or
    /// while it is being renewed.
    #[must_use]
    pub fn next_refresh(&self) -> Option<SystemTime> {
        self.next_refresh
    }

    /// Whether a token request is under way.
    #[must_use]
    pub fn is_refreshing(&self) -> bool {
        self.refreshing
    }

    /// Since when token requests fail. `None` if the last one succeeded.
    #[must_use]
    pub fn failing_since(&self) -> Option<SystemTime> {
        self.failing_since
    }

    /// How many token requests have failed since the last one that succeeded.
    #[must_use]
    pub fn consecutive_failures(&self) -> u32 {
        self.failures
    }

    /// Why the last token request failed. `None` if it succeeded.
    #[must_use]
    pub fn last_error(&self) -> Option<&TokenError> {
        self.last_error.as_ref()
    }

    /// Why the token store was of no use the last time that it was asked, so that this source went
    /// on alone. `None` if it worked, or if there is none. No reason not to be ready.
    #[must_use]
    pub fn store_error(&self) -> Option<&StoreError> {
        self.store_error.as_ref()
    }
}

impl Shared {
    pub(super) fn is_flying(&self) -> bool {
        self.read(State::is_flying)
    }

    pub(super) fn status(&self) -> Status {
        let now = self.now();
        let mut status = self.read(|state| Status::of(state, now));
        status.store_error = self.fleet.failure();
        status
    }
}

/// The changes of a source's [`Status`], from [`TokenSource::subscribe`].
///
/// It does not keep the source alive.
///
/// [`TokenSource::subscribe`]: crate::TokenSource::subscribe
#[derive(Debug)]
pub struct StatusChanges {
    source: Weak<Shared>,
    changes: watch::Receiver<()>,
}

impl StatusChanges {
    pub(super) fn new(source: Weak<Shared>, changes: watch::Receiver<()>) -> Self {
        Self { source, changes }
    }

    /// Waits for the next change and returns the status after it; `None` when the source is gone or
    /// shut down.
    ///
    /// Changes that come faster than they are asked for are told as one. Time alone is no change:
    /// a token that ends makes none. Cancel safe.
    pub async fn changed(&mut self) -> Option<Status> {
        // Who comes after the end is told of no change any more.
        self.open()?;
        self.changes.changed().await.ok()?;
        self.open().map(|source| source.status())
    }

    fn open(&self) -> Option<Arc<Shared>> {
        self.source.upgrade().filter(|source| !source.is_closed())
    }
}
