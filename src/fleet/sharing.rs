//! The settings of a source that shares its token with other processes.

use std::{
    any::Any,
    fmt,
    sync::{Arc, Mutex, atomic::AtomicU64},
    time::Duration,
};

use super::{
    common::{Common, Identity},
    supply::Fleet,
};
use crate::{
    clock::MAX_LIFETIME,
    error::ConfigError,
    ims::ImsClient,
    source::{Settings, Supply, TokenSourceBuilder, WrapSupply},
    store::{ErasedTokenStore, Keys, StoreKey, TokenStore, name},
    telemetry::StoreTelemetry,
};

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

#[derive(Clone)]
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
            timeout: Duration::from_millis(250),
            lease_ttl: Duration::from_secs(15),
        }
    }
}

impl WrapSupply for Sharing {
    fn wrap(
        self: Box<Self>,
        supply: Arc<dyn Supply>,
        ims: Option<ImsClient>,
        source: &Settings,
    ) -> Result<Arc<dyn Supply>, ConfigError> {
        let Self { store, name: given, keys, timeout, lease_ttl } = *self;
        let Some(store) = store else { return Ok(supply) };
        keys.check()?;
        for (name, time) in [("store_timeout", timeout), ("lease_ttl", lease_ttl)] {
            if time.is_zero() {
                return Err(ConfigError::new(format!("`{name}` must not be zero")));
            }
        }
        let identity = match (given, ims) {
            (Some(given), _) => Identity::Named(name(["named", &given])),
            (None, Some(ims)) => Identity::Credentials(ims),
            (None, None) => {
                return Err(ConfigError::new(
                    "tokens of a fetcher are shared under a name: set `store_name`",
                ));
            }
        };
        let common = Common {
            store: store.0,
            identity,
            keys,
            timeout: timeout.min(MAX_LIFETIME),
            lease_ttl: lease_ttl.min(MAX_LIFETIME),
            schedule: source.schedule,
            clock: source.clock.clone(),
            attempt_timeout: source.attempt_timeout,
            retry_after_cap: source.backoff.retry_after_cap,
            telemetry: StoreTelemetry::new(&source.name),
            known: AtomicU64::default(),
            own: AtomicU64::default(),
            failure: Mutex::default(),
            owed: Mutex::default(),
        };
        Ok(Arc::new(Fleet::new(supply, Arc::new(common))))
    }

    fn as_any(&mut self) -> &mut dyn Any {
        self
    }
}

/// One token for many processes.
impl<F> TokenSourceBuilder<F> {
    /// Shares the token with all processes that have the same store and the same credential: one of
    /// them asks IMS, and the others take its token from the store. Default: each source has its
    /// own token.
    ///
    /// The store is asked when a token is due, never for a request with a valid token. If it is
    /// slow, down or full the source goes on alone, and tries again at the next flight; see
    /// [`Status::store_error`](crate::Status::store_error) and [`telemetry`](crate::telemetry).
    ///
    /// A token that one process has fetched is taken by the others within half a minute where the store
    /// [announces](crate::TokenStore::changed) it, at a random moment, so that they do not look all
    /// at once (where the store fails then, after one to three minutes, and ever more rarely after that).
    /// So a token that an API refused to one process with 401 is dropped by all. Where it is
    /// not announced (or with [`refresh_on_demand`](Self::refresh_on_demand)), they look when their
    /// own token is due or refused.
    ///
    /// An IMS that throttles (429) or is down (5xx) is asked hardly more often than by one process: what
    /// it said lies in the store for a time, and the others fail with its words. The next to ask is one of
    /// them, since it may have been a proxy that spoke. Of an API that refuses one token after the other,
    /// all processes together believe two refusals a minute.
    ///
    /// Where a provider says that the secret has changed, the token is replaced; but not one that is
    /// younger than two minutes, so that it costs one token and not one for each process.
    ///
    /// The credential is the IMS, the client id, the organization and the scopes.
    pub fn store(self, store: impl TokenStore) -> Self {
        self.change(|sharing| sharing.store = Some(StoreHandle(Arc::new(store))))
    }

    /// Names the token in the store, in place of the credential: for tokens from a fetcher of your
    /// own, which need it. Sources of one name share one token.
    pub fn store_name(self, name: impl Into<String>) -> Self {
        self.change(|sharing| sharing.name = Some(name.into()))
    }

    /// Encrypts the token in the store, and reads no other. Default: it lies there as it is.
    pub fn encrypt_with(self, key: StoreKey) -> Self {
        self.change(|sharing| sharing.keys.write = Some(key))
    }

    /// Reads tokens in the store that were encrypted with this key, too: while keys are
    /// [rotated](StoreKey#rotation).
    pub fn also_read_with(self, key: StoreKey) -> Self {
        self.change(|sharing| sharing.keys.read.push(key))
    }

    /// Sets how long the store may hold up one flight in all, when it is slow or down. Default: a
    /// quarter of a second. (While another process asks for a token its lease is waited for besides;
    /// after each look at it the store has this time anew.)
    pub fn store_timeout(self, limit: Duration) -> Self {
        self.change(|sharing| sharing.timeout = limit)
    }

    /// Sets how long one process may take to ask for a token, before another one takes over. Default:
    /// 15 seconds. If the process dies meanwhile, the others wait that long.
    ///
    /// It should be more than the [`request_timeout`](TokenSourceBuilder::request_timeout) (or what your
    /// own fetcher takes at most): a process that takes longer is no longer waited for, and another
    /// asks too. And it should be at most half of the [`acquire_timeout`](Self::acquire_timeout): processes
    /// that hang cost the callers of the others up to one and a half times as long; after that each asks
    /// for itself.
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
