//! [`MemoryStore`]: a store within one process.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

use super::token_store::{Acquired, CommitOutcome, LeaseRequest, StoredRecord, TokenStore};
use crate::{clock::MAX_LIFETIME, error::StoreError};

/// A [`TokenStore`] within one process, for tests and as the model of a store. Clones share it.
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

/// The record and the lease of one key.
#[derive(Default)]
struct Entry {
    /// The record, and when it ends.
    record: Option<(StoredRecord, Instant)>,
    /// The highest fencing token that was granted.
    granted: u64,
    /// The owner of the lease, and when the lease ends.
    lease: Option<(String, Instant)>,
}

/// How long a record without a time to live is kept.
const DEFAULT_TTL: Duration = Duration::from_secs(24 * 60 * 60);

impl TokenStore for MemoryStore {
    async fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> Result<Acquired, StoreError> {
        let now = Instant::now();
        let mut entries = self.lock();
        let entry = entries.entry(key.to_owned()).or_default();
        let acquired = Acquired::new(entry.read(now));
        Ok(match request.and_then(|request| entry.grant(request, now)) {
            Some(fencing_token) => acquired.with_lease(fencing_token),
            None => acquired,
        })
    }

    async fn commit(
        &self,
        key: &str,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> Result<CommitOutcome, StoreError> {
        let now = Instant::now();
        let (is_free, outcome) = {
            let mut entries = self.lock();
            let entry = entries.entry(key.to_owned()).or_default();
            let is_free = entry.lease.take_if(|(holder, _)| holder == owner).is_some();
            let outcome = match record {
                Some(record) if entry.keep(record, now) => CommitOutcome::Committed,
                Some(_) => CommitOutcome::Superseded,
                None => CommitOutcome::Released,
            };
            (is_free, outcome)
        };
        // A call that changed nothing wakes nobody.
        if is_free || outcome == CommitOutcome::Committed {
            self.shared.changes.send_replace(());
        }
        Ok(outcome)
    }

    async fn changed(&self, _key: &str) {
        let mut changes = self.shared.changes.subscribe();
        // Never an error, because `self` holds the sender.
        let _ = changes.changed().await;
    }
}

impl MemoryStore {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.shared.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// The record with what is left of its time to live.
    fn read(&self, now: Instant) -> Option<StoredRecord> {
        let (record, ends) = self.record.as_ref().filter(|(_, ends)| *ends > now)?;
        Some(record.clone().with_ttl(*ends - now))
    }

    /// Grants the lease, unless it is held or the caller has not read the kept record.
    fn grant(&mut self, request: &LeaseRequest, now: Instant) -> Option<u64> {
        let held = self.lease.as_ref().is_some_and(|(_, ends)| *ends > now);
        let unread = self.read(now).is_some_and(|it| it.fencing_token() > request.seen());
        if held || unread {
            return None;
        }
        let kept = self.record.as_ref().map_or(0, |(kept, _)| kept.fencing_token());
        // A fencing token at the end of the range has no successor, so no lease can follow it.
        self.granted = self.granted.max(kept).max(request.above()).checked_add(1)?;
        self.lease = Some((request.owner().to_owned(), now + request.ttl().min(MAX_LIFETIME)));
        Some(self.granted)
    }

    /// Keeps the record if its fencing token is higher than that of the kept one.
    fn keep(&mut self, record: &StoredRecord, now: Instant) -> bool {
        let kept = self.record.as_ref().map_or(0, |(kept, _)| kept.fencing_token());
        let higher = self.record.is_none() || record.fencing_token() > kept;
        if higher {
            let ttl = record.ttl().unwrap_or(DEFAULT_TTL).min(MAX_LIFETIME);
            self.record = Some((record.clone(), now + ttl));
        }
        higher
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}
