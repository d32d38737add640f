//! [`MemoryStore`]: a store within one process.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::{Lease, Saved, StoredToken, TokenStore};
use crate::{clock::MAX_LIFETIME, error::StoreError};

/// A [`TokenStore`] within one process, for tests and as a model of a store. Clones share it.
///
/// # Example
///
/// ```
/// use std::time::Duration;
/// use tower_adobe_auth::{MemoryStore, TokenResponse, TokenSource};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_adobe_auth::BoxError> {
/// let store = MemoryStore::default();
/// let source = |token: &'static str| {
///     TokenSource::builder_from_fetcher(move || async move {
///         Ok(TokenResponse::new(token, Duration::from_secs(3_600)))
///     })
///     .store(store.clone())
///     .store_name("my-credential")
///     .build()
/// };
/// let (one, another) = (source("of-one")?, source("of-another")?);
///
/// assert_eq!(one.token().await?.expose_secret(), "of-one");
/// assert_eq!(another.token().await?.expose_secret(), "of-one");
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Default)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    entries: Mutex<HashMap<String, Entry>>,
    changes: watch::Sender<()>,
}

#[derive(Default)]
struct Entry {
    /// The value, and when it is useless.
    kept: Option<(StoredToken, Instant)>,
    /// The highest version that was granted.
    granted: u64,
    /// Who has the lease, and until when.
    lease: Option<(Lease, Instant)>,
}

impl MemoryStore {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does this with the entry of `key`, in one step.
    fn with<R>(&self, key: &str, act: impl FnOnce(&mut Entry, Instant) -> R) -> R {
        act(self.lock().entry(key.to_owned()).or_default(), Instant::now())
    }
}

impl TokenStore for MemoryStore {
    async fn load(&self, key: &str) -> Result<Option<StoredToken>, StoreError> {
        Ok(self.with(key, |entry, now| {
            let (token, until) = entry.kept.as_ref().filter(|(_, until)| *until > now)?;
            Some(token.clone().with_ttl(*until - now))
        }))
    }

    async fn save(&self, key: &str, token: &StoredToken) -> Result<Saved, StoreError> {
        let saved = self.with(key, |entry, now| {
            let newer =
                entry.kept.as_ref().is_none_or(|(kept, _)| kept.version() < token.version());
            if !newer {
                return Saved::Superseded;
            }
            let until = now + token.ttl().unwrap_or(Duration::from_secs(86_400)).min(MAX_LIFETIME);
            entry.kept = Some((token.clone(), until));
            Saved::Saved
        });
        self.shared.changes.send_replace(());
        Ok(saved)
    }

    async fn lease(
        &self,
        key: &str,
        owner: &str,
        ttl: Duration,
        above: u64,
    ) -> Result<Option<Lease>, StoreError> {
        Ok(self.with(key, |entry, now| {
            if entry.lease.as_ref().is_some_and(|(_, until)| *until > now) {
                return None;
            }
            let kept = entry.kept.as_ref().map_or(0, |(kept, _)| kept.version());
            entry.granted = entry.granted.max(kept).max(above) + 1;
            let lease = Lease::new(owner, entry.granted);
            entry.lease = Some((lease.clone(), now + ttl.min(MAX_LIFETIME)));
            Some(lease)
        }))
    }

    async fn release(&self, key: &str, lease: &Lease) -> Result<(), StoreError> {
        self.with(key, |entry, _| {
            entry.lease.take_if(|(held, _)| held.owner() == lease.owner());
        });
        self.shared.changes.send_replace(());
        Ok(())
    }

    async fn changed(&self, _key: &str) {
        let mut changes = self.shared.changes.subscribe();
        // The sender is ours: it is not gone.
        let _ = changes.changed().await;
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}
