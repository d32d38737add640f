//! The other processes that want the same token: one asks for it, and the others take it from the
//! store.
//!
//! A flight visits the store before it asks, and after that. Whatever goes wrong there, the flight
//! goes on alone: a store costs it no more than [`Sharing::timeout`], beside the time for which
//! another process has the lease.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep, timeout};

use super::{shared::Shared, visit::Owed};
pub(super) use super::{
    visit::{Asked, Visit},
    watch::watch,
};
use crate::{
    clock::FAR,
    clock::unix_millis,
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
        for (name, time) in [("store_timeout", timeout), ("lease_ttl", lease_ttl)] {
            if time.is_zero() {
                return Err(ConfigError::new(format!("`{name}` must be more than zero")));
            }
        }
        let (timeout, lease_ttl) = (timeout.min(FAR), lease_ttl.min(FAR));
        let identity = match (given, ims) {
            (Some(given), _) => Identity::Named(name(["named", &given])),
            (None, Some(ims)) => Identity::Credentials(ims.clone()),
            (None, None) => {
                return Err(ConfigError::new(
                    "tokens from elsewhere are shared under a name: set `store_name`",
                ));
            }
        };
        let shared = Common {
            store: store.0,
            identity,
            keys,
            timeout,
            lease_ttl,
            known: AtomicU64::default(),
            failure: Mutex::default(),
            changed: AtomicBool::default(),
            owed: Mutex::default(),
        };
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
    /// What the store failed at, and how.
    failure: Mutex<Option<(&'static str, StoreError)>>,
    /// The credentials have changed since the last flight.
    changed: AtomicBool,
    /// The lease of a flight that could not give it back.
    owed: Mutex<Option<Owed>>,
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

    /// Notes that the next flight flies because credentials have changed.
    pub(super) fn credentials_have_changed(&self) {
        self.shared.as_ref().inspect(|common| common.changed.store(true, Ordering::Release));
    }

    /// Why the store was of no use the last time that it was asked.
    pub(super) fn failure(&self) -> Option<StoreError> {
        let common = self.shared.as_ref()?;
        let noted = common.failure.lock().unwrap_or_else(PoisonError::into_inner);
        noted.as_ref().map(|(_, error)| error.clone())
    }
}

impl Common {
    /// How long the leases of others are waited for: until one has ended, and for half of another if its
    /// process was quicker then. With the defaults a caller who waits from the start has time left.
    pub(super) fn patience(&self) -> Duration {
        self.lease_ttl.saturating_mul(3) / 2
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
        self.is_news(version);
    }

    /// Notes this version. Returns whether it is the highest so far.
    pub(super) fn is_news(&self, version: u64) -> bool {
        self.known.fetch_max(version, Ordering::AcqRel) < version
    }

    /// What the next version has to be above: also if the store has lost everything, it is then
    /// above those that others know.
    pub(super) fn above(&self, now: SystemTime) -> u64 {
        self.known().max(unix_millis(now).min(1 << 48))
    }

    pub(super) fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::AcqRel)
    }

    pub(super) fn leave_owed(&self, owed: Owed) {
        *self.owed.lock().unwrap_or_else(PoisonError::into_inner) = Some(owed);
    }

    pub(super) fn take_owed(&self) -> Option<Owed> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether this is what the store failed at last.
    pub(super) fn failed_at(&self, operation: &str) -> bool {
        let noted = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        noted.as_ref().is_some_and(|(failed, _)| *failed == operation)
    }

    /// Notes how the store did. Returns whether that is news.
    pub(super) fn note(&self, failure: Option<(&'static str, StoreError)>) -> bool {
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

/// The least time between two looks at the store.
const LEAST_PAUSE: Duration = Duration::from_millis(10);

/// When to look again while another process has the lease.
pub(super) struct Pauses {
    next: Duration,
    until: Instant,
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

/// A panic of the store is a failure of the store.
pub(super) async fn unwinding<T>(
    call: impl Future<Output = Result<T, StoreError>> + Send,
) -> Result<T, StoreError> {
    let mut call = Box::pin(call);
    poll_fn(move |context| {
        // After a panic it is not polled again.
        catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(context)))
            .unwrap_or_else(|_| Poll::Ready(Err(StoreError::new("it panicked"))))
    })
    .await
}

/// Ends when something may have changed under this key.
pub(super) async fn changed(store: &dyn ErasedTokenStore, name: &str) {
    let changed = async {
        store.changed(name).await;
        Ok(())
    };
    // A panic ends the wait early; the next call will tell.
    let _ = unwinding(changed).await;
}

/// Waits until something may have changed, or it is time to look again.
pub(super) async fn wait(common: &Common, name: &str, pause: Duration) {
    let start = Instant::now();
    let _ = timeout(pause, changed(&*common.store, name)).await;
    sleep(LEAST_PAUSE.saturating_sub(start.elapsed())).await;
}

impl Shared {
    pub(super) fn common(&self) -> Option<&Common> {
        self.fleet.shared.as_ref()
    }
}
