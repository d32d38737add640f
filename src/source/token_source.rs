//! [`TokenSource`]: the handle that everybody shares.

use std::{fmt, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use super::{
    builder::{Custom, TokenSourceBuilder},
    fetch::FetchToken,
    flight,
    shared::{Acquired, Seen, Shared},
    status::{Status, StatusChanges},
};
#[cfg(feature = "reqwest")]
use crate::error::ConfigError;
use crate::{
    credentials::{Credentials, ProvideCredentials},
    error::{ErrorKind, TokenError},
    ims::{ImsClient, ImsClientBuilder},
    telemetry::{Obtained, Telemetry},
    token::AccessToken,
};

/// The shared access token of one credential, kept fresh.
///
/// Clones share one token. At most one token request is under way at any moment, however many
/// callers wait, and dropping a caller does not cancel it.
///
/// What happens when:
/// - **No token yet, or the last one has ended:** callers wait for one flight and share its answer.
/// - **A valid token:** it is given at once. From 23 of its 24 hours on (in general: see
///   [`refresh_at`](TokenSourceBuilder::refresh_at)) it is renewed beside the traffic.
/// - **IMS fails while the token lives:** callers get the old token until it ends; the renewal is
///   retried with growing pauses.
/// - **IMS fails and there is no token:** callers get the failure, at once while the source backs
///   off, with the time of the next try in [`TokenError::retry_in`].
///
/// Nothing happens before the first caller asks. From then on the token is kept warm by a task on
/// that caller's runtime, until the last handle is dropped; if the runtime ends, the next caller
/// on another one takes over.
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

/// Ends the background work when the last handle is gone.
struct Handle {
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl TokenSource {
    /// A source of tokens from the production IMS, reached with reqwest.
    ///
    /// # Errors
    ///
    /// If a field of `credentials` is empty or cannot be sent, or if the HTTP client cannot be
    /// made.
    #[cfg(feature = "reqwest")]
    pub fn new(credentials: Credentials) -> Result<Self, ConfigError> {
        Self::builder(credentials).build()
    }

    /// A source of tokens from IMS, to be configured.
    ///
    /// Without the feature `reqwest`, an HTTP client has to be given to it: by
    /// [`map_ims`](TokenSourceBuilder::map_ims), with `|ims| ims.transport(client)`.
    pub fn builder(credentials: Credentials) -> TokenSourceBuilder<ImsClientBuilder> {
        TokenSourceBuilder::new(ImsClient::builder(credentials))
    }

    /// A source of tokens from IMS whose credentials are asked for anew for each token request, to
    /// be configured.
    pub fn builder_from_provider(
        provider: impl ProvideCredentials,
    ) -> TokenSourceBuilder<ImsClientBuilder> {
        TokenSourceBuilder::new(ImsClient::builder_from_provider(provider))
    }

    /// A source of tokens from elsewhere, with the default settings.
    pub fn from_fetcher(fetcher: impl FetchToken) -> Self {
        Self::builder_from_fetcher(fetcher).start()
    }

    /// A source of tokens from elsewhere, to be configured.
    pub fn builder_from_fetcher<F: FetchToken>(fetcher: F) -> TokenSourceBuilder<Custom<F>> {
        TokenSourceBuilder::new(Custom(fetcher))
    }

    pub(super) fn from_shared(shared: Shared) -> Self {
        Self { handle: Arc::new(Handle { shared: Arc::new(shared) }) }
    }

    /// The access token: at once if a valid one is in hand, else when the flight has brought it.
    ///
    /// Cancel safe: the flight goes on for the others, and for the next caller.
    ///
    /// # Errors
    ///
    /// If no valid token is in hand and none could be had within the
    /// [`acquire_timeout`](TokenSourceBuilder::acquire_timeout). One failure is shared by all who
    /// waited for it.
    pub async fn token(&self) -> Result<AccessToken, TokenError> {
        match self.shared().ready() {
            Some(token) => Ok(token),
            None => self.acquire(Duration::ZERO, self.shared().settings.acquire_timeout).await,
        }
    }

    /// The access token if a valid one is in hand. Never waits.
    ///
    /// Inside a Tokio runtime it starts a flight if one is due: the first, or a renewal.
    #[must_use]
    pub fn try_token(&self) -> Option<AccessToken> {
        self.shared().ready().or_else(|| self.acquire_now(Duration::ZERO))
    }

    /// A token that lives for at least `min_lifetime`, if one is in hand; else a flight is started.
    pub(crate) fn acquire_now(&self, min_lifetime: Duration) -> Option<AccessToken> {
        match self.shared().acquire(self.shared().now(), min_lifetime) {
            Ok(Acquired::Token(token)) => Some(token),
            Ok(Acquired::Flight(_)) | Err(_) => None,
        }
    }

    /// Starts to fetch the first token, so that a service is ready before its first request.
    ///
    /// Does not wait; [`status`](Self::status) tells how it went. A transient failure is tried
    /// again until there is a token, unless the source refreshes on demand only. Does nothing if a token is in hand, or outside a runtime.
    pub fn warm_up(&self) {
        let _ = self.try_token();
    }

    /// The token that may be sent now, if one is in hand, for a reader that comes again and again.
    #[inline]
    pub(crate) fn try_token_again(&self, seen: &mut Seen) -> Option<AccessToken> {
        self.shared().ready_again(seen)
    }

    /// A token that lives for at least `min_lifetime`, if one is in hand.
    pub(crate) fn try_token_for(&self, min_lifetime: Duration) -> Option<AccessToken> {
        let token = self.shared().ready()?;
        // Without a wish nothing more needs to be read of the clocks.
        let enough = min_lifetime.is_zero()
            || token.expires().remaining(self.shared().now()) >= min_lifetime;
        enough.then_some(token)
    }

    pub(crate) fn acquire_timeout(&self) -> Duration {
        self.shared().settings.acquire_timeout
    }

    /// Gets a new token now, although the one in hand may be good; joins the flight under way, if
    /// there is one. Others go on with the token in hand meanwhile.
    ///
    /// Cancel safe: the flight goes on.
    ///
    /// # Errors
    ///
    /// If no token could be had, or if the source is backing off after a failure.
    pub async fn refresh(&self) -> Result<AccessToken, TokenError> {
        let limit = self.shared().settings.acquire_timeout;
        let refreshed = async {
            match self.shared().refresh(self.shared().now())? {
                Acquired::Token(token) => Ok(token),
                Acquired::Flight(joined) => flight::join(joined).await,
            }
        };
        inside_a_runtime()?;
        let _waiting = self.shared().waits();
        timeout(limit, refreshed).await.unwrap_or_else(|_| Err(self.gave_up(limit)))
    }

    /// Never gives out `token` again. If a newer token is in hand already, that one is kept.
    ///
    /// The next caller waits for a new one: called for each failure of an API, this costs a token
    /// each time. For a token that *may* be bad there is no need to call
    /// this.
    pub fn invalidate(&self, token: &AccessToken) {
        self.shared().drop_token(token);
    }

    /// Ends the background work of this source for all its handles, and waits until it has ended.
    ///
    /// A token request under way is dropped, and who waits for it gets an error of the kind
    /// [`Shutdown`](ErrorKind::Shutdown). A valid token in hand is given out until it ends; no new
    /// one is fetched. To drop the last handle does the same, without waiting.
    ///
    /// Cancel safe: the shutdown goes on.
    ///
    /// # Errors
    ///
    /// If the work has not ended within the [`acquire_timeout`](TokenSourceBuilder::acquire_timeout):
    /// it was started on a runtime that is kept but not driven. Outside of a runtime nothing can be
    /// waited for: the work is told to end all the same.
    pub async fn shutdown(&self) -> Result<(), TokenError> {
        self.close();
        inside_a_runtime()?;
        self.ended(Instant::now()).await
    }

    /// Waits for the end of the background work, which was told to end at `since`.
    pub(super) async fn ended(&self, since: Instant) -> Result<(), TokenError> {
        let limit = self.shared().settings.acquire_timeout;
        let patience = limit.saturating_sub(since.elapsed());
        timeout(patience, self.shared().tasks_ended()).await.map_err(|_| {
            TokenError::new(
                ErrorKind::AcquireTimeout,
                format!("the background work has not ended within {limit:?}"),
            )
        })
    }

    /// Tells the background work to end, and waits for nothing.
    pub(super) fn close(&self) {
        self.shared().close();
    }

    pub(super) fn is_closed(&self) -> bool {
        self.shared().is_closed()
    }

    /// Whether there are other handles of this source.
    pub(super) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.handle) > 1
    }

    /// Counts a request that is sent with `token`.
    #[inline]
    pub(crate) fn count_sent(&self, token: &AccessToken, how: Obtained) {
        if Telemetry::COUNTS {
            self.shared().sent(token, how);
        }
    }

    pub(crate) fn telemetry(&self) -> &Telemetry {
        self.shared().telemetry()
    }

    /// What the source knows now: whether a valid token is in hand, until when, and what failed.
    #[must_use]
    pub fn status(&self) -> Status {
        self.shared().status()
    }

    /// The changes of [`status`](Self::status) from now on.
    #[must_use]
    pub fn subscribe(&self) -> StatusChanges {
        StatusChanges::new(Arc::downgrade(self.shared()), self.shared().subscribe())
    }

    /// A token that lives for at least `min_lifetime`, within `limit`.
    pub(crate) async fn acquire(
        &self,
        min_lifetime: Duration,
        limit: Duration,
    ) -> Result<AccessToken, TokenError> {
        let acquired = self.shared().acquire(self.shared().now(), min_lifetime)?;
        let joined = match acquired {
            Acquired::Token(token) => return Ok(token),
            Acquired::Flight(joined) => joined,
        };
        inside_a_runtime()?;
        let _waiting = self.shared().waits();
        timeout(limit, self.wait(min_lifetime, joined))
            .await
            .unwrap_or_else(|_| Err(self.gave_up(limit)))
    }

    async fn wait(
        &self,
        min_lifetime: Duration,
        mut joined: flight::Joined,
    ) -> Result<AccessToken, TokenError> {
        // A flight joined late may bring a token that ends too early for this caller, and one
        // that was lost with its runtime says nothing about IMS: then it flies once more.
        for _ in 0..2 {
            match flight::join(joined).await {
                Err(error) if error.kind() != ErrorKind::RuntimeLost => return Err(error),
                _ => {}
            }
            joined = match self.shared().acquire(self.shared().now(), min_lifetime)? {
                Acquired::Token(token) => return Ok(token),
                Acquired::Flight(joined) => joined,
            };
        }
        flight::join(joined).await?;
        match self.shared().acquire(self.shared().now(), min_lifetime)? {
            Acquired::Token(token) => Ok(token),
            Acquired::Flight(_) => Err(TokenError::new(
                ErrorKind::Malformed,
                "the access tokens end before they can be used",
            )),
        }
    }

    fn gave_up(&self, limit: Duration) -> TokenError {
        let flight = if self.shared().is_flying() {
            "the token request goes on"
        } else {
            "no token request is under way"
        };
        let message = format!("no access token was had within {limit:?}; {flight}");
        match self.shared().status().last_error() {
            Some(error) => {
                TokenError::with_source(ErrorKind::AcquireTimeout, message, error.clone())
            }
            None => TokenError::new(ErrorKind::AcquireTimeout, message),
        }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.handle.shared
    }
}

/// A timer outside of a runtime would panic.
pub(super) fn inside_a_runtime() -> Result<(), TokenError> {
    tokio::runtime::Handle::try_current().map(drop).map_err(|error| {
        TokenError::with_source(
            ErrorKind::NoRuntime,
            "a token can only be waited for inside a tokio runtime",
            error,
        )
    })
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSource").field("status", &self.status()).finish_non_exhaustive()
    }
}
