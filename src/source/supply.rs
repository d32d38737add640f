//! [`Supply`]: the seam between a source and the place that its tokens come from.
//!
//! A supply makes one attempt to obtain a token. The source decides when, retries, backs off and
//! shares the result. [`Direct`] calls a fetcher. With a token store, a fleet of processes is
//! the supply, and wraps a `Direct`.

use std::future::{Future, pending};
use std::{pin::Pin, time::Duration};

use super::fetch::Fetch;
use crate::clock::{Clock, Deadline, Moment, WaitError};
use crate::credentials::Credentials;
use crate::error::{StoreError, TokenError};
use crate::foreign::{Panicked, caught};
use crate::ims::TokenResponse;

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Obtains the tokens of a source.
pub(crate) trait Supply: Send + Sync + 'static {
    /// Makes one attempt to obtain a token that is newer than `need.newer_than`. Returns `None` if the
    /// cached token stays in use, because the supply has no better one.
    ///
    /// # Errors
    ///
    /// The failure of the attempt, without a retry.
    ///
    /// # Cancellation
    ///
    /// Dropping the future cancels the attempt. [`settle`](Self::settle) is called afterwards.
    fn obtain(&self, need: Need) -> BoxFuture<'_, Result<Option<Supplied>, TokenError>>;

    /// Finishes the work that an attempt left when it ended or was cancelled, such as ending a lease.
    /// No caller waits for it.
    fn settle(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {})
    }

    /// Resolves when the credentials have changed, so that the cached token should be replaced.
    fn credentials_changed(&self) -> BoxFuture<'_, ()>;

    /// Watches other processes, and gives each newer token that one of them obtained to the source,
    /// without a call of `obtain`. Never ends.
    fn watch<'a>(&'a self, source: &'a dyn Watching) -> BoxFuture<'a, ()> {
        let _ = source;
        Box::pin(pending())
    }

    /// The longest time that `obtain` takes while its future is polled.
    fn longest(&self) -> Duration;

    /// Returns whether other processes share the tokens.
    fn is_shared(&self) -> bool {
        false
    }

    /// The error of the last call of the token store; `None` if that call succeeded, or without a
    /// store.
    fn store_error(&self) -> Option<StoreError> {
        None
    }
}

/// The source for which a supply watches other processes.
#[cfg_attr(not(feature = "store"), expect(dead_code, reason = "only a fleet has other processes"))]
pub(crate) trait Watching: Send + Sync {
    /// The token that the source has now.
    fn have(&self) -> Have;

    /// Caches a token that another process obtained.
    fn take(&self, supplied: Supplied);
}

/// The token that a source has without asking its supply.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "store"), expect(dead_code, reason = "only a fleet asks"))]
pub(crate) struct Have {
    /// The stamp of the newest token that the source has had.
    pub(crate) newest: Stamp,
    /// `true` if a usable token is cached.
    pub(crate) is_usable: bool,
}

/// The requirements of one attempt.
#[derive(Clone, Debug)]
#[cfg_attr(not(feature = "store"), expect(dead_code, reason = "only a fleet reads the rest"))]
pub(crate) struct Need {
    /// The stamp of the newest token that the source has had.
    pub(crate) newer_than: Stamp,
    /// The stamp of the token that this attempt requests.
    pub(crate) stamp: Stamp,
    pub(crate) reason: Reason,
    /// How long the source will back off if this attempt fails, unless IMS asks for more.
    pub(crate) backoff_if_it_fails: Duration,
    /// The credentials to use, if they were read already.
    pub(crate) credentials: Option<Credentials>,
}

/// Why a token is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// No usable token is cached.
    Missing,
    /// The cached token is due for refresh.
    Due,
    /// An API refused the cached token.
    Refused,
    /// The credentials have changed.
    CredentialsChanged,
    /// The user asked for a new token.
    Requested,
}

/// A token, with the facts that the source needs about it.
#[derive(Debug)]
pub(crate) struct Supplied {
    pub(crate) response: TokenResponse,
    /// When the token was requested. Its lifetime counts from here.
    pub(crate) sent: Moment,
    pub(crate) stamp: Stamp,
    /// `true` if another process obtained the token.
    pub(crate) shared: bool,
}

/// Orders the tokens of a source: the cache takes only a token with a higher stamp.
///
/// Without a store, the stamp counts token requests. With a store, the stamp is the fencing token under
/// which the token is stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Stamp(pub(crate) u64);

/// Obtains each token from its fetcher, without a store.
pub(crate) struct Direct<F> {
    pub(crate) fetcher: F,
    pub(crate) attempt_timeout: Duration,
    pub(crate) clock: Clock,
}

impl<F: Fetch> Supply for Direct<F> {
    fn obtain(&self, need: Need) -> BoxFuture<'_, Result<Option<Supplied>, TokenError>> {
        Box::pin(async move {
            let limit = self.attempt_timeout;
            // Read before the request is sent. IMS starts the lifetime later, so the token lives at
            // least as long as the source assumes.
            let sent = self.clock.now();
            let fetched = caught(async { self.fetcher.fetch(need.credentials).await });
            let response = match Deadline::after(limit).wait_for(fetched, || {}).await {
                Ok(fetched) => fetched.map_err(|Panicked| TokenError::panicked())??,
                Err(WaitError::DeadlinePassed) => return Err(TokenError::fetcher_timeout(limit)),
                Err(WaitError::NoTimer) => return Err(TokenError::no_timer()),
            };
            Ok(Some(Supplied { response, sent, stamp: need.stamp, shared: false }))
        })
    }

    fn credentials_changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async { self.fetcher.changed().await })
    }

    fn longest(&self) -> Duration {
        self.attempt_timeout
    }
}
