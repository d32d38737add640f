//! [`TokenSourceBuilder`]: the settings of a source, and the fetcher of its tokens.

#[cfg(feature = "store")]
use std::any::Any;
use std::time::{Duration, SystemTime};
use std::{fmt, sync::Arc};

use super::fetch::{Custom, Fetch, FetchToken};
use super::inner::{Inner, Settings};
use super::policy::{Backoff, Schedule};
use super::supply::{Direct, Supply};
use super::token_source::TokenSource;
use crate::ims::{Environment, ImsClient, ImsClientBuilder};
use crate::{clock::Clock, error::ConfigError};

/// Builds a [`TokenSource`].
///
/// # How the durations nest
///
/// | duration | default | bounds |
/// | --- | --- | --- |
/// | [`acquire_timeout`](Self::acquire_timeout) | 30 s | the wait of one caller, from its call on; and the time within which a refresh starts attempts |
/// | [`attempts`](Self::attempts) | 3 | the attempts of one refresh |
/// | [`retry_for`](Self::retry_for) | 5 s | the pauses between them, in total |
/// | [`attempt_timeout`](Self::attempt_timeout) | 30 s; 20 s for IMS | one attempt, whatever the fetcher or the provider of the credentials does |
/// | [`request_timeout`](TokenSourceBuilder::request_timeout) | 10 s | one token request to IMS, within the attempt |
/// | backoff while callers ask and no usable token is cached | 250 ms, doubling to 10 s | the pause after a failed attempt; callers fail immediately meanwhile |
/// | [`backoff_cap`](Self::backoff_cap) | 60 s | that pause while nobody waits for a token, and for callers after a permanent failure |
/// | [`retry_after_cap`](Self::retry_after_cap) | 5 min | the pause that IMS asks for with `Retry-After`; a caller whose own limit allows waits it out |
/// | pause after a permanent failure, without callers | 1 min, doubling to 5 min | fixed |
/// | time until a refresh whose runtime stands still is superseded | 38.5 s; 26 s for IMS | five quarters of the [`attempt_timeout`](Self::attempt_timeout), then up to 1 s more |
/// | wait for the replacement of a token that an API refused | 2 s | fixed; then the token is used until it expires |
///
/// With the defaults, an IMS that does not respond gets requests at about 0 s, 10 s and 20 s, and
/// callers fail after 30 s. Time in which the process or its runtime stood still does not count.
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
    /// `None` until the user sets it.
    attempt_timeout: Option<Duration>,
    wrapper: Option<Box<dyn WrapSupply>>,
}

/// Settings from outside of this module that wrap the supply of a source, such as those of a token
/// store that many processes share.
pub(crate) trait WrapSupply: fmt::Debug + Send {
    /// Wraps `supply`, or returns it unchanged. `ims` is the client that requests the tokens, if they
    /// come from IMS.
    ///
    /// # Errors
    ///
    /// If the settings are invalid.
    fn wrap(
        self: Box<Self>,
        supply: Arc<dyn Supply>,
        ims: Option<Arc<ImsClient>>,
        source: &Settings,
    ) -> Result<Arc<dyn Supply>, ConfigError>;

    #[cfg(feature = "store")]
    fn as_any(&mut self) -> &mut dyn Any;
}

/// The lowest value for [`backoff_cap`](TokenSourceBuilder::backoff_cap), so that no setting floods
/// IMS.
const MIN_BACKOFF_CAP: Duration = Duration::from_millis(10);

/// How long one attempt of a user's fetcher may take, unless the user sets it.
const DEFAULT_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

impl<F> TokenSourceBuilder<F> {
    pub(super) fn new(fetcher: F) -> Self {
        let settings = Settings {
            schedule: Schedule { jitter: fastrand::f64(), ..Schedule::default() },
            backoff: Backoff::default(),
            clock: Clock::default(),
            keep_warm: true,
            acquire_timeout: Duration::from_secs(30),
            attempt_timeout: DEFAULT_ATTEMPT_TIMEOUT,
            attempts: 3,
            retry_for: Duration::from_secs(5),
            name: "default".into(),
        };
        Self { fetcher, settings, attempt_timeout: None, wrapper: None }
    }

    /// The settings of the wrapper of type `W`, which is added if none is set. `None` if a wrapper of
    /// another type is set.
    #[cfg(feature = "store")]
    pub(crate) fn wrapper<W: WrapSupply + Default + Any>(&mut self) -> Option<&mut W> {
        let wrapper = self.wrapper.get_or_insert_with(|| Box::new(W::default()));
        wrapper.as_any().downcast_mut()
    }

    /// Names the source in its spans, events and metrics. Default: `default`.
    ///
    /// Each name adds a series to each metric, so use few names.
    pub fn name(mut self, name: impl Into<Arc<str>>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// Sets the share of its lifetime after which a token is refreshed, between 0 and 1 (both
    /// excluded). Default: 23/24.
    ///
    /// Jitter, drawn once per source, brings this forward by up to a quarter of the time that is left
    /// then. A short-lived token is refreshed earlier: at least five minutes before it expires, or
    /// after half of its lifetime if that is later. No setting refreshes a token in its first ten
    /// seconds, or the first half of its lifetime if that is shorter.
    pub fn refresh_at(mut self, share: f64) -> Self {
        self.settings.schedule.refresh_at = share;
        self
    }

    /// Refreshes the token only when a caller asks for it. Default: a background task keeps the token
    /// fresh as long as the source exists.
    pub fn refresh_on_demand(mut self) -> Self {
        self.settings.keep_warm = false;
        self
    }

    /// Sets how long a caller waits for a token at most. Default: 30 seconds.
    ///
    /// A single request can set its own limit with the [`AcquireTimeout`](crate::AcquireTimeout)
    /// extension.
    pub fn acquire_timeout(mut self, limit: Duration) -> Self {
        self.settings.acquire_timeout = limit;
        self
    }

    /// Sets how long one attempt to fetch a token may take, whatever the fetcher does. Default: 30
    /// seconds; for tokens from IMS twice the
    /// [`request_timeout`](TokenSourceBuilder::request_timeout), which leaves time to read the
    /// credentials and to try a second secret.
    pub fn attempt_timeout(mut self, limit: Duration) -> Self {
        self.attempt_timeout = Some(limit);
        self
    }

    /// Sets how many attempts a refresh makes at most. Default: 3. Only transient failures are
    /// retried.
    pub fn attempts(mut self, attempts: u32) -> Self {
        self.settings.attempts = attempts;
        self
    }

    /// Sets how long the pauses between the attempts of a refresh may be in total. Default: 5
    /// seconds. The time that the attempts themselves take does not count, so that one that ended in
    /// its timeout is retried while callers still have time.
    pub fn retry_for(mut self, limit: Duration) -> Self {
        self.settings.retry_for = limit;
        self
    }

    /// Sets the longest pause of the exponential backoff. Default: 60 seconds; at least 10
    /// milliseconds, which only a test should need. While callers ask and no usable token is cached
    /// the pause is at most 10 seconds, unless the failure is permanent.
    pub fn backoff_cap(mut self, cap: Duration) -> Self {
        self.settings.backoff.cap = cap;
        self
    }

    /// Sets the longest pause that IMS can ask for with `Retry-After`. Default: five minutes.
    pub fn retry_after_cap(mut self, cap: Duration) -> Self {
        self.settings.backoff.retry_after_cap = cap;
        self
    }

    /// Replaces the wall clock, for tests. Default: [`SystemTime::now`]. The monotonic clock is
    /// always Tokio's, which tests can pause.
    ///
    /// With the default clock, expiry is checked once per tick of the kernel's clock, a few
    /// milliseconds. A test that pauses Tokio's clock *after* it has sent requests, and needs the
    /// change to be seen immediately, sets a wall clock: then each request reads the clocks.
    pub fn wall_clock(mut self, now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        self.settings.clock = Clock::with_wall(now);
        self
    }

    fn check(&self) -> Result<(), ConfigError> {
        let Settings { schedule, backoff, acquire_timeout, attempts, .. } = &self.settings;
        let rules = [
            (
                schedule.refresh_at > 0.0 && schedule.refresh_at < 1.0,
                "`refresh_at` must be between 0 and 1",
            ),
            (!acquire_timeout.is_zero(), "`acquire_timeout` must not be zero"),
            (self.attempt_timeout != Some(Duration::ZERO), "`attempt_timeout` must not be zero"),
            (
                backoff.cap >= MIN_BACKOFF_CAP,
                "`backoff_cap` must be at least 10ms, so that IMS is not flooded",
            ),
            (*attempts > 0, "`attempts` must be at least 1"),
        ];
        let broken = rules.into_iter().find(|(holds, _)| !holds);
        broken.map_or(Ok(()), |(_, message)| Err(ConfigError::new(message)))
    }
}

/// Builds a source whose tokens come from `fetcher`, which asks `ims` or is the user's own.
fn finish(
    settings: Settings,
    fetcher: impl Fetch,
    ims: Option<Arc<ImsClient>>,
    wrapper: Option<Box<dyn WrapSupply>>,
) -> Result<TokenSource, ConfigError> {
    let direct = direct(fetcher, &settings);
    let supply = match wrapper {
        Some(wrapper) => wrapper.wrap(direct, ims, &settings)?,
        None => direct,
    };
    Ok(TokenSource::from_inner(Inner::new(settings, supply)))
}

fn direct(fetcher: impl Fetch, settings: &Settings) -> Arc<dyn Supply> {
    let (attempt_timeout, clock) = (settings.attempt_timeout, settings.clock.clone());
    Arc::new(Direct { fetcher, attempt_timeout, clock })
}

impl TokenSourceBuilder<ImsClientBuilder> {
    /// Sets the IMS that issues the tokens. Default: [`Environment::Production`].
    pub fn environment(self, environment: Environment) -> Self {
        self.map_ims(|ims| ims.environment(environment))
    }

    /// Sets how long one token request may take, from connecting to the last byte of the response.
    /// Default: 10 seconds.
    pub fn request_timeout(self, limit: Duration) -> Self {
        self.map_ims(|ims| ims.request_timeout(limit))
    }

    /// Configures the [`ImsClient`](crate::ImsClient) further: its transport and its timeouts.
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
    /// If the credentials or a setting are invalid, or if the HTTP client cannot be built. Without the
    /// feature `reqwest`, also if [`map_ims`](Self::map_ims) has set no
    /// [`transport`](ImsClientBuilder::transport).
    pub fn build(self) -> Result<TokenSource, ConfigError> {
        self.check()?;
        let Self { fetcher, mut settings, attempt_timeout, wrapper } = self;
        let client = Arc::new(fetcher.build()?.with_clock(settings.clock.clone()));
        // Leaves time to read the credentials, and to try a second secret.
        let default = client.request_timeout().saturating_mul(2);
        settings.attempt_timeout = attempt_timeout.unwrap_or(default);
        // One client, so that the wrapper and the fetcher know the same last credentials.
        finish(settings, Arc::clone(&client), Some(client), wrapper)
    }
}

impl<F: FetchToken> TokenSourceBuilder<Custom<F>> {
    /// Builds the source. Nothing is fetched before the first caller asks for a token.
    ///
    /// # Errors
    ///
    /// If a setting is invalid.
    pub fn build(self) -> Result<TokenSource, ConfigError> {
        self.check()?;
        let Self { fetcher, mut settings, attempt_timeout, wrapper } = self;
        settings.attempt_timeout = attempt_timeout.unwrap_or(DEFAULT_ATTEMPT_TIMEOUT);
        finish(settings, fetcher, None, wrapper)
    }

    /// Builds the source with the default settings, which are valid.
    pub(super) fn start(self) -> TokenSource {
        let Self { fetcher, settings, .. } = self;
        let supply = direct(fetcher, &settings);
        TokenSource::from_inner(Inner::new(settings, supply))
    }
}

impl<F> fmt::Debug for TokenSourceBuilder<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSourceBuilder")
            .field("settings", &self.settings)
            .field("wrapper", &self.wrapper)
            .finish_non_exhaustive()
    }
}
