//! [`TokenStore`]: the trait of a store, and the types of its two steps.

use std::{
    fmt,
    future::{Future, pending},
    pin::Pin,
    time::{Duration, Instant},
};

use zeroize::Zeroizing;

use crate::error::StoreError;

/// A place where processes share one token: a database, a cache, a file.
///
/// [`MemoryStore`](crate::MemoryStore) is the shortest implementation, and the model to read.
/// [`PlainCalls`](crate::PlainCalls) makes a store from four plain calls (load, save, lease, release),
/// for a database without scripts and transactions. `mock::check_token_store` (feature `mock`) tests
/// whether a store keeps the promises below.
///
/// # What a store keeps
///
/// For each key (64 hexadecimal digits, which stand for one credential):
///
/// - a *record*: opaque bytes with a [fencing token](StoredRecord::fencing_token) and a time to live;
/// - a *lease*: its owner and its end, if a process holds the lease;
/// - the highest fencing token that was granted or kept.
///
/// # What a store promises
///
/// - **One step.** [`acquire`](Self::acquire) and [`commit`](Self::commit) are atomic: read and grant,
///   or compare and write, with no other call for the same key in between.
/// - **One lease at a time.** While a lease is held and has not ended, no other owner gets it. At the end
///   of its time to live it is free again without anybody's help, because its holder may be dead.
/// - **Fencing tokens only grow.** The fencing token of a lease is higher than that of every lease and
///   record before it, including those that have ended, and higher than
///   [`above`](LeaseRequest::above).
/// - **Records only grow.** A record replaces only a record with a lower fencing token. A process
///   that was held up past the end of its lease therefore does no harm.
///
/// A fencing token starts at about the time in milliseconds since 1970 and fits into 52 bits, so that a
/// store that has lost everything does not fall behind the tokens that processes know.
///
/// # What a store need not promise
///
/// A store may lose everything at any time, and may fail. Each call has a
/// [budget](crate::TokenSourceBuilder::store_timeout); after it the source drops the future and
/// requests its own token. A panic counts as a failure. A store must not block the thread: run a client
/// that blocks in `tokio::task::spawn_blocking`.
pub trait TokenStore: Send + Sync + 'static {
    /// Reads the record and, if `request` is given, tries to take the lease. One atomic step.
    ///
    /// The lease is granted if nobody holds it, and if no record is kept whose fencing token is higher
    /// than [`seen`](LeaseRequest::seen): a caller that has not read the kept record may find in it
    /// what it needs, and then takes no lease. The owner of the lease may be granted it again.
    ///
    /// # Errors
    ///
    /// If the store cannot be used. Then the call may have taken the lease or not; `commit` without a
    /// record ends it.
    ///
    /// # Cancellation
    ///
    /// Dropping the future has the same effect as an error.
    fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> impl Future<Output = Result<Acquired, StoreError>> + Send;

    /// Keeps `record` if its fencing token is higher than that of the kept one, ends the lease of
    /// `owner`, and notifies those who wait in [`changed`](Self::changed) if that changed anything. One
    /// atomic step.
    ///
    /// Without a record the call only ends the lease. The lease of another owner stays as it is. An
    /// owner that never heard whether its lease was granted calls this, too.
    ///
    /// # Errors
    ///
    /// If the store cannot be used. The lease then ends at the end of its time to live.
    ///
    /// # Cancellation
    ///
    /// Dropping the future has the same effect as an error.
    fn commit(
        &self,
        key: &str,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> impl Future<Output = Result<CommitOutcome, StoreError>> + Send;

    /// Resolves when the record may have changed, or the lease may have ended. Default: never, for a
    /// store that cannot notify.
    ///
    /// It may resolve without a reason, and may miss a change: a source that needs a token also polls.
    ///
    /// # Cancellation
    ///
    /// The future is dropped and made again at will. It may live for hours, so it must not keep the
    /// store busy.
    fn changed(&self, key: &str) -> impl Future<Output = ()> + Send {
        let _ = key;
        pending()
    }

    /// When the store last responded to a call for any key. Default: `None`, unknown.
    ///
    /// A store that knows it lets thousands of sources start together: a source whose call waits for its
    /// turn does not give up while the store responds to others, for up to eight
    /// [budgets](crate::TokenSourceBuilder::store_timeout).
    fn last_response(&self) -> Option<Instant> {
        None
    }
}

/// A request for the lease of a key: the right to request a token, for one process at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseRequest {
    owner: String,
    ttl: Duration,
    above: u64,
    seen: u64,
}

impl LeaseRequest {
    /// A request of `owner`, a name that no other request has, for a lease that ends after `ttl`.
    #[must_use]
    pub fn new(owner: impl Into<String>, ttl: Duration) -> Self {
        Self { owner: owner.into(), ttl, above: 0, seen: 0 }
    }

    /// Sets the number that the fencing token of the lease has to exceed. Default: 0.
    #[must_use]
    pub fn with_above(mut self, above: u64) -> Self {
        self.above = above;
        self
    }

    /// Sets the fencing token of the last record that the caller has read. Default: 0, none.
    #[must_use]
    pub fn with_seen(mut self, seen: u64) -> Self {
        self.seen = seen;
        self
    }

    /// The random name that tells this holder from every other.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The time after which the lease ends by itself.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.ttl
    }

    /// The number that the fencing token of the lease has to exceed.
    #[must_use]
    pub fn above(&self) -> u64 {
        self.above
    }

    /// The fencing token of the last record that the caller has read. If the kept record has a higher
    /// one, the lease is not granted.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.seen
    }
}

/// The result of [`TokenStore::acquire`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Acquired {
    record: Option<StoredRecord>,
    fencing_token: Option<u64>,
}

impl Acquired {
    /// A result without the lease. `record` is `None` if none is kept, or the kept one has ended.
    pub fn new(record: Option<StoredRecord>) -> Self {
        Self { record, fencing_token: None }
    }

    /// Adds the lease, with its fencing token.
    pub fn with_lease(mut self, fencing_token: u64) -> Self {
        self.fencing_token = Some(fencing_token);
        self
    }

    /// The record that is kept.
    #[must_use]
    pub fn record(&self) -> Option<&StoredRecord> {
        self.record.as_ref()
    }

    /// The fencing token of the lease; `None` if the lease was not granted.
    #[must_use]
    pub fn fencing_token(&self) -> Option<u64> {
        self.fencing_token
    }
}

/// The result of [`TokenStore::commit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
#[non_exhaustive]
pub enum CommitOutcome {
    /// The record is kept.
    Committed,
    /// The record was dropped, because one with the same or a higher fencing token is kept.
    Superseded,
    /// There was no record; the lease of the owner, if it held one, has ended.
    Released,
}

/// A record of a [`TokenStore`]. `Debug` does not show its value, which is wiped when dropped.
#[derive(Clone)]
pub struct StoredRecord {
    fencing_token: u64,
    value: Zeroizing<Vec<u8>>,
    ttl: Option<Duration>,
}

impl StoredRecord {
    /// A record without a time to live.
    #[must_use]
    pub fn new(fencing_token: u64, value: impl Into<Vec<u8>>) -> Self {
        Self { fencing_token, value: Zeroizing::new(value.into()), ttl: None }
    }

    /// Sets the time to live. Default: unknown.
    ///
    /// A record that is committed is kept for this time. A record that is read has what is left of
    /// it, if the store counts it down: then the clocks of two machines may differ.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// The number that orders records: a record replaces only one with a lower fencing token.
    #[must_use]
    pub fn fencing_token(&self) -> u64 {
        self.fencing_token
    }

    /// The value: UTF-8 text (JSON), for a store that keeps text rather than bytes. Without a
    /// [`StoreKey`](crate::StoreKey) it holds the access token.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// The time to live, if it is known.
    #[must_use]
    pub fn ttl(&self) -> Option<Duration> {
        self.ttl
    }
}

impl fmt::Debug for StoredRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredRecord")
            .field("fencing_token", &self.fencing_token)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`TokenStore`] as an object.
pub(crate) trait ErasedTokenStore: Send + Sync {
    fn acquire<'a>(
        &'a self,
        key: &'a str,
        request: Option<&'a LeaseRequest>,
    ) -> BoxFuture<'a, Result<Acquired, StoreError>>;
    fn commit<'a>(
        &'a self,
        key: &'a str,
        owner: &'a str,
        record: Option<&'a StoredRecord>,
    ) -> BoxFuture<'a, Result<CommitOutcome, StoreError>>;
    fn changed<'a>(&'a self, key: &'a str) -> BoxFuture<'a, ()>;
    fn last_response(&self) -> Option<Instant>;
}

impl<S: TokenStore> ErasedTokenStore for S {
    fn acquire<'a>(
        &'a self,
        key: &'a str,
        request: Option<&'a LeaseRequest>,
    ) -> BoxFuture<'a, Result<Acquired, StoreError>> {
        // Inside the future, because making it is code of the store, too, and may panic.
        Box::pin(async move { TokenStore::acquire(self, key, request).await })
    }

    fn commit<'a>(
        &'a self,
        key: &'a str,
        owner: &'a str,
        record: Option<&'a StoredRecord>,
    ) -> BoxFuture<'a, Result<CommitOutcome, StoreError>> {
        Box::pin(async move { TokenStore::commit(self, key, owner, record).await })
    }

    fn changed<'a>(&'a self, key: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(async move { TokenStore::changed(self, key).await })
    }

    fn last_response(&self) -> Option<Instant> {
        TokenStore::last_response(self)
    }
}
