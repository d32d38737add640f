//! [`TokenSourceBuilder`]: how a source behaves, and where its tokens come from.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{
    backoff::Backoff,
    fetch::{ErasedFetchToken, FetchToken},
    fleet::{Fleet, Sharing},
    schedule::{DEFAULT_REFRESH_AT, Schedule},
    shared::{Settings, Shared},
    token_source::TokenSource,
};
use crate::{
    clock::Clock,
    error::ConfigError,
    ims::{Environment, ImsClientBuilder},
};

/// Builds a [`TokenSource`].
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use tower_adobe_auth::{Credentials, Environment, TokenSource};
///
/// # fn main() -> Result<(), tower_adobe_auth::ConfigError> {
/// # #[cfg(feature = "reqwest")] {
/// let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
///     .environment(Environment::Stage)
///     .acquire_timeout(Duration::from_secs(10))
///     .build()?;
/// # }
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct TokenSourceBuilder<F> {
    fetcher: F,
    settings: Settings,
    pub(super) sharing: Sharing,
}

/// What [`backoff_cap`](TokenSourceBuilder::backoff_cap) may be set to at least.
const LEAST_BACKOFF_CAP: Duration = Duration::from_millis(10);

/// A [`FetchToken`] of your own, to be built into a [`TokenSource`].
#[derive(Debug)]
pub struct Custom<F>(pub(super) F);

impl<F> TokenSourceBuilder<F> {
    pub(super) fn new(fetcher: F) -> Self {
        let settings = Settings {
            schedule: Schedule { refresh_at: DEFAULT_REFRESH_AT, jitter: fastrand::f64() },
            backoff: Backoff::default(),
            clock: Clock::default(),
            keep_warm: true,
            acquire_timeout: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(30),
            attempts: 3,
            retry_for: Duration::from_secs(5),
            name: "default".into(),
        };
        Self { fetcher, settings, sharing: Sharing::default() }
    }

    /// Names the source, for its spans and metrics. Default: `default`.
    ///
    /// Each name is a series of its own in each metric: name a few, not a million.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// Sets the share of its life after which a token is renewed, between 0 and 1 (both
    /// excluded). Default: 23/24.
    ///
    /// Jitter, drawn once per source, brings this forward by up to a quarter of the time ahead of
    /// expiry. A short-lived token is renewed earlier: at least five minutes before its end, or at
    /// half of its life if that is less.
    pub fn refresh_at(mut self, share: f64) -> Self {
        self.settings.schedule.refresh_at = share;
        self
    }

    /// Renews the token only when a caller comes by, not beside an idle service. Default: it is
    /// kept warm as long as the source is alive.
    pub fn refresh_on_demand(mut self) -> Self {
        self.settings.keep_warm = false;
        self
    }

    /// Sets how long a caller waits for a token at most. Default: 30 seconds.
    ///
    /// A single request can ask for less or more by the
    /// [`AcquireTimeout`](crate::AcquireTimeout) extension.
    pub fn acquire_timeout(mut self, limit: Duration) -> Self {
        self.settings.acquire_timeout = limit;
        self
    }

    /// Sets how long one attempt to fetch a token may take, whatever the fetcher does. Default: 30
    /// seconds; the client for IMS has a tighter limit of its own.
    pub fn attempt_timeout(mut self, limit: Duration) -> Self {
        self.settings.attempt_timeout = limit;
        self
    }

    /// Sets how often a token is asked for, at most, before the callers who wait are failed.
    /// Default: 3. Only transient failures are tried again.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.settings.attempts = attempts;
        self
    }

    /// Sets for how long after the first attempt another one may start while callers wait.
    /// Default: 5 seconds. A `Retry-After` of IMS is waited out as long as it fits in the
    /// [`acquire_timeout`](Self::acquire_timeout).
    pub fn retry_for(mut self, limit: Duration) -> Self {
        self.settings.retry_for = limit;
        self
    }

    /// Sets the most that the source waits between two attempts of its own accord. Default: 60
    /// seconds; at least 10 milliseconds, which only a test should want.
    pub fn backoff_cap(mut self, cap: Duration) -> Self {
        self.settings.backoff.cap = cap;
        self
    }

    /// Sets the most that the source waits because IMS asked for it with `Retry-After`. Default:
    /// five minutes.
    pub fn retry_after_cap(mut self, cap: Duration) -> Self {
        self.settings.backoff.retry_after_cap = cap;
        self
    }

    /// Replaces the wall clock: for tests. Default: [`SystemTime::now`]. The monotonic clock is
    /// always Tokio's, which tests can pause.
    pub fn wall_clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.settings.clock = Clock::with_wall(now);
        self
    }

    fn check(&self) -> Result<(), ConfigError> {
        let Settings { schedule, backoff, acquire_timeout, attempt_timeout, attempts, .. } =
            &self.settings;
        if !(schedule.refresh_at > 0.0 && schedule.refresh_at < 1.0) {
            return Err(ConfigError::new("`refresh_at` must lie between 0 and 1"));
        }
        if acquire_timeout.is_zero() || attempt_timeout.is_zero() {
            return Err(ConfigError::new("a timeout of zero would let nothing succeed"));
        }
        if backoff.cap < LEAST_BACKOFF_CAP {
            return Err(ConfigError::new(format!(
                "`backoff_cap` must be at least {LEAST_BACKOFF_CAP:?}: IMS is not to be flooded"
            )));
        }
        if *attempts == 0 {
            return Err(ConfigError::new("`attempts` must be at least 1"));
        }
        Ok(())
    }

    fn finish(
        settings: Settings,
        fetcher: impl ErasedFetchToken + 'static,
        fleet: Fleet,
    ) -> TokenSource {
        TokenSource::from_shared(Shared::new(settings, Arc::new(fetcher), fleet))
    }
}

impl TokenSourceBuilder<ImsClientBuilder> {
    /// Sets the IMS to ask. Default: [`Environment::Production`].
    pub fn environment(self, environment: Environment) -> Self {
        self.map_ims(|ims| ims.environment(environment))
    }

    /// Sets how long one token request may take, from connecting to the last byte of the answer.
    /// Default: 10 seconds.
    pub fn request_timeout(self, limit: Duration) -> Self {
        self.map_ims(|ims| ims.request_timeout(limit))
    }

    /// Configures the [`ImsClient`](crate::ImsClient) further: its transport, its timeouts.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tower_adobe_auth::{Credentials, TokenSource};
    /// let builder = TokenSource::builder(Credentials::new("client-id", "client-secret"))
    ///     .map_ims(|ims| ims.connect_timeout(Duration::from_secs(2)));
    /// ```
    pub fn map_ims(mut self, change: impl FnOnce(ImsClientBuilder) -> ImsClientBuilder) -> Self {
        self.fetcher = change(self.fetcher);
        self
    }

    /// Builds the source. Nothing is sent before the first caller asks for a token.
    ///
    /// # Errors
    ///
    /// If the credentials or a setting cannot be used, or if the HTTP client cannot be made.
    /// Without the feature `reqwest` there is none unless
    /// [`transport`](ImsClientBuilder::transport) was given one: by [`map_ims`](Self::map_ims).
    pub fn build(self) -> Result<TokenSource, ConfigError> {
        self.check()?;
        let Self { fetcher, settings, sharing } = self;
        let client = fetcher.build()?.with_clock(settings.clock.clone());
        let fleet = sharing.build(Some(&client))?;
        Ok(Self::finish(settings, client, fleet))
    }
}

impl<F: FetchToken> TokenSourceBuilder<Custom<F>> {
    /// Builds the source. Nothing is fetched before the first caller asks for a token.
    ///
    /// # Errors
    ///
    /// If a setting cannot be used.
    pub fn build(self) -> Result<TokenSource, ConfigError> {
        self.check()?;
        let Self { fetcher, settings, sharing } = self;
        let fleet = sharing.build(None)?;
        Ok(Self::finish(settings, fetcher.0, fleet))
    }

    /// The settings are the defaults.
    pub(super) fn start(self) -> TokenSource {
        Self::finish(self.settings, self.fetcher.0, Fleet::default())
    }
}

impl<F> fmt::Debug for TokenSourceBuilder<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSourceBuilder")
            .field("settings", &self.settings)
            .field("sharing", &self.sharing)
            .finish_non_exhaustive()
    }
}
