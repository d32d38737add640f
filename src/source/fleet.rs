//! The other processes that want the same token: one asks for it, and the others take it from the
//! store.
//!
//! A flight visits the store before it asks, and after that. Whatever goes wrong there, the flight
//! goes on alone: a store costs it no more than [`Sharing::timeout`], beside the time for which
//! another process has the lease.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

use super::shared::Shared;
pub(super) use super::visit::{Asked, Visit};
use crate::{
    error::{BoxError, ConfigError, StoreError},
    ims::ImsClient,
    store::{ErasedTokenStore, Keys, name},
};

/// What a builder knows of the store.
#[derive(Debug)]
pub(super) struct Sharing {
    pub(super) store: Option<StoreHandle>,
    /// What names the token, if that is not the credentials.
    pub(super) name: Option<String>,
    pub(super) keys: Keys,
    pub(super) timeout: Duration,
    pub(super) lease_ttl: Duration,
}

#[derive(Clone)]
pub(super) struct StoreHandle(pub(super) Arc<dyn ErasedTokenStore>);

impl std::fmt::Debug for StoreHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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

impl Sharing {
    /// `ims` is who is asked for tokens, if that is IMS.
    pub(super) fn build(self, ims: Option<&ImsClient>) -> Result<Fleet, ConfigError> {
        let Self { store, name: given, keys, timeout, lease_ttl } = self;
        let Some(store) = store else { return Ok(Fleet::default()) };
        keys.check()?;
        if timeout.is_zero() || lease_ttl.is_zero() {
            return Err(ConfigError::new("a store that is given no time is of no use"));
        }
        let identity = match (given, ims) {
            (Some(given), _) => Identity::Named(name(["named", &given])),
            (None, Some(ims)) => Identity::Credentials(ims.clone()),
            (None, None) => {
                return Err(ConfigError::new(
                    "tokens from elsewhere are shared under a name: set `store_name`",
                ));
            }
        };
        let (known, failure) = (AtomicU64::new(0), Mutex::new(None));
        let store = store.0;
        let shared = Common { store, identity, keys, timeout, lease_ttl, known, failure };
        Ok(Fleet { shared: Some(shared) })
    }
}

/// The other processes, if a store leads to them.
#[derive(Default)]
pub(super) struct Fleet {
    pub(super) shared: Option<Common>,
}

/// What this process has in common with the others.
pub(super) struct Common {
    pub(super) store: Arc<dyn ErasedTokenStore>,
    identity: Identity,
    pub(super) keys: Keys,
    pub(super) timeout: Duration,
    pub(super) lease_ttl: Duration,
    /// The highest version that this source has had. What is no newer is not taken: it may have
    /// been refused.
    known: AtomicU64,
    failure: Mutex<Option<StoreError>>,
}

/// What names the token in the store.
enum Identity {
    Named(String),
    Credentials(ImsClient),
}

impl Fleet {
    pub(super) fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// How much longer than its own requests a flight may take.
    pub(super) fn longest_wait(&self) -> Duration {
        self.shared.as_ref().map_or(Duration::ZERO, |common| common.patience() + common.timeout)
    }

    /// Why the store was of no use the last time that it was asked.
    pub(super) fn failure(&self) -> Option<StoreError> {
        let common = self.shared.as_ref()?;
        common.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Common {
    /// How long the lease of others is waited for: until it has ended, and once more if another
    /// process was quicker then.
    pub(super) fn patience(&self) -> Duration {
        self.lease_ttl.saturating_mul(2)
    }

    pub(super) async fn name(&self) -> Result<String, BoxError> {
        match &self.identity {
            Identity::Named(name) => Ok(name.clone()),
            Identity::Credentials(ims) => {
                Ok(name(ims.identity().await?.iter().map(String::as_str)))
            }
        }
    }

    pub(super) fn known(&self) -> u64 {
        self.known.load(Ordering::Acquire)
    }

    pub(super) fn knows(&self, version: u64) {
        self.known.fetch_max(version, Ordering::AcqRel);
    }

    /// What the next version has to be above: also if the store has lost everything, it is then
    /// above those that others know.
    pub(super) fn above(&self, now: SystemTime) -> u64 {
        let since = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let millis = u64::try_from(since.as_millis()).unwrap_or_default();
        self.known().max(millis.min(1 << 48))
    }

    /// Notes how the store did. Returns whether that is news.
    pub(super) fn note(&self, failure: Option<StoreError>) -> bool {
        let mut noted = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let news = noted.is_some() != failure.is_some();
        let before = std::mem::replace(&mut *noted, failure);
        drop(noted);
        drop(before);
        news
    }
}

/// The longest time between two looks at a lease that another process has.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// When to look again while another process has the lease.
pub(super) struct Pauses {
    next: Duration,
    pub(super) until: Instant,
}

impl Pauses {
    pub(super) fn new(patience: Duration) -> Self {
        Self { next: Duration::from_millis(40), until: Instant::now() + patience }
    }

    /// Grows, with jitter: processes that began to wait together do not look together.
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.next.mul_f64(0.5 + fastrand::f64());
        self.next = self.next.mul_f64(1.5).min(LONGEST_PAUSE);
        pause.min(self.until.saturating_duration_since(Instant::now()))
    }

    pub(super) fn are_over(&self) -> bool {
        Instant::now() >= self.until
    }
}

impl Shared {
    pub(super) fn common(&self) -> Option<&Common> {
        self.fleet.shared.as_ref()
    }
}
