//! The settings of a source that shares its token with other processes.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::{any::Any, fmt, time::Duration};

use tokio::sync::Notify;

use super::{issuer::Issuer, lease::Commits, member::Member, session::Session};
use crate::clock::MAX_LIFETIME;
use crate::error::ConfigError;
use crate::ims::ImsClient;
use crate::source::{Settings, Supply, TokenSourceBuilder, WrapSupply};
use crate::store::{ErasedTokenStore, Keys, StoreKey, TokenStore};
use crate::telemetry::StoreTelemetry;

const DEFAULT_STORE_TIMEOUT: Duration = Duration::from_millis(250);
const DEFAULT_LEASE_TTL: Duration = Duration::from_secs(15);

/// The settings of the builder's methods below.
#[derive(Debug)]
pub(super) struct Sharing {
    store: Option<StoreHandle>,
    /// The name of the token in the store, in place of the credentials.
    name: Option<String>,
    keys: Keys,
    timeout: Duration,
    lease_ttl: Duration,
}

struct StoreHandle(Arc<dyn ErasedTokenStore>);

impl fmt::Debug for StoreHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenStore")
    }
}

impl Default for Sharing {
    fn default() -> Self {
        Self {
            store: None,
            name: None,
            keys: Keys::default(),
            timeout: DEFAULT_STORE_TIMEOUT,
            lease_ttl: DEFAULT_LEASE_TTL,
        }
    }
}

impl WrapSupply for Sharing {
    fn wrap(
        self: Box<Self>,
        supply: Arc<dyn Supply>,
        ims: Option<Arc<ImsClient>>,
        source: &Settings,
    ) -> Result<Arc<dyn Supply>, ConfigError> {
        let Self { store, name, keys, timeout, lease_ttl } = *self;
        let Some(store) = store else { return Ok(supply) };
        keys.check()?;
        for (name, time) in [("store_timeout", timeout), ("lease_ttl", lease_ttl)] {
            if time.is_zero() {
                return Err(ConfigError::new(format!("`{name}` must not be zero")));
            }
        }
        let issuer = match (name, ims) {
            (Some(name), _) => Issuer::Named(name),
            (None, Some(ims)) => Issuer::Ims(ims),
            (None, None) => {
                return Err(ConfigError::new(
                    "tokens of a fetcher of your own are shared under a name; set `store_name`",
                ));
            }
        };
        let telemetry = StoreTelemetry::new(&source.name);
        Ok(Arc::new(Member {
            inside: supply,
            issuer,
            keys,
            session: Session::new(store.0, timeout.min(MAX_LIFETIME), telemetry),
            commits: Commits::default(),
            schedule: source.schedule,
            clock: source.clock.clone(),
            lease_ttl: lease_ttl.min(MAX_LIFETIME),
            attempt_timeout: source.attempt_timeout,
            retry_after_cap: source.backoff.retry_after_cap,
            requested: AtomicU64::default(),
            failed: AtomicU64::default(),
            alone: Mutex::default(),
            is_change_open: Notify::new(),
        }))
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

/// One token for many processes.
impl<F> TokenSourceBuilder<F> {
    /// Shares the token with all processes that have the same store and the same credentials. One
    /// process requests the token from IMS, and the others take it from the store. Default: each source
    /// requests its own token.
    ///
    /// Credentials are the same if IMS, the client id, the organization and the scopes are. The secret
    /// may differ, while it is rotated.
    ///
    /// - **A request with a valid token** never waits for the store. The store is asked when the token
    ///   is missing, due or refused.
    /// - **The store is slow, full or down:** the source requests its own token, at most two
    ///   [`store_timeout`](Self::store_timeout)s later, and asks the store again with its next
    ///   refresh. [`Status::store_error`](crate::Status::store_error) has the reason.
    /// - **Another process has a newer token:** if the store [notifies](crate::TokenStore::changed), a
    ///   process with a usable token takes it within half a minute, at a random moment, and a process
    ///   without one within a second. Otherwise, and with
    ///   [`refresh_on_demand`](Self::refresh_on_demand), a process reads the store when its own token is
    ///   missing, due or refused.
    /// - **IMS fails** (429, 5xx, a timeout, a refused connection): all processes leave IMS alone for a
    ///   while and fail with its words, so that IMS gets hardly more requests than from one process.
    ///   The next attempt may come from any of them.
    /// - **IMS rejects the secret:** all processes with the same secret fail immediately. A process with
    ///   another secret makes its own attempt.
    /// - **An API refuses one token after the other with 401:** all processes together replace two tokens a
    ///   minute.
    /// - **The secret was rotated:** the token is replaced once for the member.
    pub fn store(self, store: impl TokenStore) -> Self {
        self.change(|sharing| sharing.store = Some(StoreHandle(Arc::new(store))))
    }

    /// Names the token in the store, in place of the credentials. Sources of one name share one token.
    ///
    /// Tokens of a [`FetchToken`](crate::FetchToken) of your own need a name.
    pub fn store_name(self, name: impl Into<String>) -> Self {
        self.change(|sharing| sharing.name = Some(name.into()))
    }

    /// Encrypts the token in the store with this key, and ignores records without it. Default: the token
    /// lies in the store in clear.
    pub fn encrypt_with(self, key: StoreKey) -> Self {
        self.change(|sharing| sharing.keys.write = Some(key))
    }

    /// Also reads records that were encrypted with this key, while keys are
    /// [rotated](StoreKey#rotation).
    pub fn also_read_with(self, key: StoreKey) -> Self {
        self.change(|sharing| sharing.keys.read.push(key))
    }

    /// Sets how long one call of the store may take while callers wait. Default: 250 ms.
    ///
    /// A refresh makes at most two such calls before it requests a token. Time in which this process
    /// did not run, or was too busy to look for the answer, does not count. Nobody waits for the call
    /// that stores the new token, so that it may take ten times as long.
    ///
    /// A store bears a round trip of about a third of this limit: the first call also connects. With
    /// TLS, or across regions, choose at least six round trips.
    pub fn store_timeout(self, limit: Duration) -> Self {
        self.change(|sharing| sharing.timeout = limit)
    }

    /// Sets how long one process may take to request a token before another one takes over. Default: 15
    /// seconds. If the process dies meanwhile, the others wait that long.
    ///
    /// It should exceed the [`request_timeout`](TokenSourceBuilder::request_timeout), or the longest
    /// time of your own fetcher, because a process that takes longer is no longer waited for. It should
    /// be at most half of the [`acquire_timeout`](Self::acquire_timeout): callers wait for processes
    /// that hang for up to one and a half times as long, and then request their own token.
    pub fn lease_ttl(self, ttl: Duration) -> Self {
        self.change(|sharing| sharing.lease_ttl = ttl)
    }

    fn change(mut self, change: impl FnOnce(&mut Sharing)) -> Self {
        if let Some(sharing) = self.wrapper() {
            change(sharing);
        }
        self
    }
}
