//! [`TokenSource`]: the handle of a source, and [`StatusChanges`].

use std::sync::{Arc, Weak};
use std::{fmt, time::Duration};

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::builder::TokenSourceBuilder;
use super::{
    access_token::AccessToken, acquire, fetch::Custom, fetch::FetchToken, inner::Inner,
    state::Want, status::Status,
};
use crate::credentials::{Credentials, ProvideCredentials};
#[cfg(feature = "reqwest")]
use crate::error::ConfigError;
use crate::ims::{ImsClient, ImsClientBuilder};
use crate::telemetry::{Obtained, Telemetry};
use crate::{clock::Deadline, error::TokenError};

/// The shared access token of one credential, which refreshes itself.
///
/// Clones share one token. At most one token request is in progress at a time, however many callers
/// wait, and dropping a caller does not cancel it.
///
/// - **No token yet, or an expired one:** callers wait for one refresh and share its token.
/// - **A valid token:** callers get it immediately. After 23 of its 24 hours (in general: see
///   [`refresh_at`](TokenSourceBuilder::refresh_at)) it is refreshed in the background.
/// - **An API refused the token with 401:** callers wait up to two seconds for its replacement, then
///   use the token as long as it has not expired.
/// - **IMS fails while the token is valid:** callers get the token until it expires; the refresh is
///   retried with exponential backoff.
/// - **IMS fails and no usable token is cached:** callers share the failure. While the source backs
///   off they fail immediately, with the time to the next attempt in [`TokenError::retry_in`].
///
/// Nothing happens before the first caller asks. From then on a task on the runtime of that caller
/// keeps the token fresh, until the last handle is dropped. If that runtime ends, the next caller on
/// another one starts the task anew. A permanent failure is retried too, at most every five minutes,
/// so that a service recovers without traffic when a secret is corrected.
///
/// # Example
///
/// ```no_run
/// use tower_adobe_auth::{Credentials, TokenSource};
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// # #[cfg(feature = "reqwest")] {
/// let tokens = TokenSource::new(Credentials::from_env()?)?;
/// let token = tokens.token().await?;
/// println!("valid until {:?}", token.expires_at());
/// # }
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct TokenSource {
    handle: Arc<Handle>,
}

/// Ends the background work when the last handle of a source is dropped.
struct Handle {
    inner: Arc<Inner>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.inner.close();
    }
}

impl TokenSource {
    /// A source of tokens from the production IMS, reached with reqwest.
    ///
    /// # Errors
    ///
    /// If a field of `credentials` is empty or contains characters that cannot be sent, or if the HTTP
    /// client cannot be built.
    #[cfg(feature = "reqwest")]
    pub fn new(credentials: Credentials) -> Result<Self, ConfigError> {
        Self::builder(credentials).build()
    }

    /// A builder for a source of tokens from IMS.
    ///
    /// Without the feature `reqwest`, set an HTTP client with
    /// [`map_ims`](TokenSourceBuilder::map_ims)`(|ims| ims.transport(client))`.
    pub fn builder(credentials: Credentials) -> TokenSourceBuilder<ImsClientBuilder> {
        TokenSourceBuilder::new(ImsClient::builder(credentials))
    }

    /// A builder for a source of tokens from IMS. Its credentials are read from `provider` for each
    /// token request.
    pub fn builder_from_provider(
        provider: impl ProvideCredentials,
    ) -> TokenSourceBuilder<ImsClientBuilder> {
        TokenSourceBuilder::new(ImsClient::builder_from_provider(provider))
    }

    /// A source of tokens that `fetcher` fetches, with the default settings.
    pub fn from_fetcher(fetcher: impl FetchToken) -> Self {
        Self::builder_from_fetcher(fetcher).start()
    }

    /// A builder for a source of tokens that `fetcher` fetches.
    pub fn builder_from_fetcher<F: FetchToken>(fetcher: F) -> TokenSourceBuilder<Custom<F>> {
        TokenSourceBuilder::new(Custom(fetcher))
    }

    pub(super) fn from_inner(inner: Inner) -> Self {
        Self { handle: Arc::new(Handle { inner: Arc::new(inner) }) }
    }

    /// Returns the access token: immediately if a valid one is cached, otherwise as soon as a refresh
    /// completes.
    ///
    /// # Errors
    ///
    /// If no usable token is cached and the refresh failed, or no token came within the
    /// [`acquire_timeout`](TokenSourceBuilder::acquire_timeout). Callers who wait for the same
    /// refresh share its failure.
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not cancel the refresh, which serves the other callers and the next
    /// one.
    pub async fn token(&self) -> Result<AccessToken, TokenError> {
        self.acquire(Want::default(), self.deadline(None)).await
    }

    /// Returns the access token if a usable one is cached, also one that an API refused. Never waits.
    ///
    /// Inside a Tokio runtime it starts a refresh if one is due or no usable token is cached.
    #[must_use]
    pub fn try_token(&self) -> Option<AccessToken> {
        self.try_acquire(Want::default())
    }

    /// Starts to fetch the first token, so that a service is ready before its first request.
    ///
    /// Does not wait; [`status`](Self::status) shows the result. A failure is retried in the
    /// background until there is a token, unless the source refreshes on demand only. Does nothing if
    /// a usable token is cached, or outside of a runtime.
    pub fn warm_up(&self) {
        let _ = self.try_token();
    }

    /// Requests a new token now, although the cached one may be valid, or joins the refresh in
    /// progress. Other callers use the cached token meanwhile.
    ///
    /// # Errors
    ///
    /// If the refresh fails, if the source is backing off after a failure, or if no new token came
    /// within the [`acquire_timeout`](TokenSourceBuilder::acquire_timeout).
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not cancel the refresh.
    pub async fn refresh(&self) -> Result<AccessToken, TokenError> {
        acquire::inside_a_runtime()?;
        let newer_than = Some(self.inner().snapshot().state.newest);
        self.acquire(Want { newer_than, ..Want::default() }, self.deadline(None)).await
    }

    /// Drops `token` from the cache, so that the next caller waits for a new one. A newer token that is
    /// cached already is kept.
    ///
    /// For a token that is *known* to be revoked. Do not call this for each failure of an API: each
    /// call costs a token request, and the layer recovers from 401s by itself.
    pub fn invalidate(&self, token: &AccessToken) {
        self.inner().invalidate(token);
    }

    /// Ends the background work of this source for all its handles, and waits until it has ended.
    ///
    /// A refresh in progress is cancelled. A usable token that is cached is given out until it
    /// expires; after that callers fail with [`ErrorKind::Shutdown`](crate::ErrorKind::Shutdown). Dropping the last handle does
    /// the same without waiting.
    ///
    /// # Errors
    ///
    /// If the work has not ended within the [`acquire_timeout`](TokenSourceBuilder::acquire_timeout),
    /// because its runtime exists but is not driven. Outside of a Tokio runtime the work ends too,
    /// but the call cannot wait for its end and returns [`ErrorKind::NoRuntime`](crate::ErrorKind::NoRuntime).
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not cancel the shutdown.
    pub async fn shutdown(&self) -> Result<(), TokenError> {
        self.close();
        acquire::inside_a_runtime()?;
        self.ended(Instant::now()).await
    }

    /// Waits for the end of the background work after a [`close`](Self::close) at `since`.
    ///
    /// # Errors
    ///
    /// If the work has not ended within the `acquire_timeout`, counted from `since`.
    pub(super) async fn ended(&self, since: Instant) -> Result<(), TokenError> {
        let limit = self.inner().settings.acquire_timeout;
        let left = limit.saturating_sub(since.elapsed());
        let ended = timeout(left, self.inner().tasks_ended()).await;
        ended.map_err(|_| TokenError::not_ended(limit))
    }

    /// Ends the background work, without waiting for its end.
    pub(super) fn close(&self) {
        self.inner().close();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.inner().snapshot().state.closed
    }

    /// Returns whether there are other handles of this source.
    pub(super) fn has_other_handles(&self) -> bool {
        Arc::strong_count(&self.handle) > 1
    }

    /// The state of the source now: until when a usable token is cached, and what failed.
    #[must_use]
    pub fn status(&self) -> Status {
        self.inner().status()
    }

    /// The changes of [`status`](Self::status) from now on.
    #[must_use]
    pub fn subscribe(&self) -> StatusChanges {
        StatusChanges { source: Arc::downgrade(self.inner()), changes: self.inner().subscribe() }
    }

    fn inner(&self) -> &Arc<Inner> {
        &self.handle.inner
    }
}

/// The methods that the middleware uses.
impl TokenSource {
    /// The token for a request that is sent immediately, and counts the request. `None` if the
    /// request has to wait.
    #[inline]
    pub(crate) fn cached(&self) -> Option<AccessToken> {
        acquire::cached(self.inner())
    }

    /// [`cached`](Self::cached), for a token that meets these requirements.
    pub(crate) fn cached_for(&self, want: Want) -> Option<AccessToken> {
        acquire::cached_for(self.inner(), want)
    }

    /// A usable token, if one is cached. Does not wait. Starts a refresh if one is due or no usable
    /// token is cached.
    pub(crate) fn try_acquire(&self, want: Want) -> Option<AccessToken> {
        acquire::try_acquire(self.inner(), want)
    }

    /// Returns a usable token, and waits for one until the deadline.
    ///
    /// # Errors
    ///
    /// As [`token`](Self::token).
    pub(crate) async fn acquire(
        &self,
        want: Want,
        deadline: Deadline,
    ) -> Result<AccessToken, TokenError> {
        acquire::acquire(self.inner(), want, deadline).await
    }

    /// The deadline of a caller who waits from now on, by default for the source's
    /// [`acquire_timeout`](TokenSourceBuilder::acquire_timeout).
    pub(crate) fn deadline(&self, limit: Option<Duration>) -> Deadline {
        Deadline::after(limit.unwrap_or(self.inner().settings.acquire_timeout))
    }

    /// Counts a request that is sent with `token` after a wait.
    pub(crate) fn count_sent(&self, token: &AccessToken, how: Obtained) {
        self.inner().count_sent(token, how);
    }

    pub(crate) fn telemetry(&self) -> &Telemetry {
        &self.inner().telemetry
    }
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSource").field("status", &self.status()).finish_non_exhaustive()
    }
}

/// The changes of a source's [`Status`], from [`TokenSource::subscribe`].
///
/// It does not keep the source alive.
#[derive(Debug)]
pub struct StatusChanges {
    source: Weak<Inner>,
    changes: watch::Receiver<()>,
}

impl StatusChanges {
    /// Waits for the next change and returns the status after it; `None` once the source is dropped
    /// or shut down.
    ///
    /// Changes in quick succession are reported as one. The expiry of a token is not reported, because
    /// only time has passed and the source has not changed.
    ///
    /// # Cancellation
    ///
    /// Dropping the future loses no change.
    pub async fn changed(&mut self) -> Option<Status> {
        // After a shutdown there are no further changes.
        self.open()?;
        self.changes.changed().await.ok()?;
        self.open().map(|source| source.status())
    }

    fn open(&self) -> Option<Arc<Inner>> {
        self.source.upgrade().filter(|source| !source.snapshot().state.closed)
    }
}
