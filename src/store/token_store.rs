//! [`TokenStore`]: what a store has to be able to do.

use std::{
    fmt,
    future::{Future, pending},
    pin::Pin,
    time::Duration,
};

use zeroize::Zeroizing;

use crate::error::StoreError;

/// Where processes share one token: a database, a cache, a file.
///
/// [`MemoryStore`](crate::MemoryStore) is the shortest one, to be read as a model. Whether yours is
/// right, `mock::check_token_store` tells (feature `mock`).
///
/// # What is kept
///
/// Under each key (64 hexadecimal digits, which stand for the credential): a value, which is bytes
/// to the store; the value's version, which is a number; and who has the lease, if somebody has.
///
/// A version is about the time in milliseconds since 1970 (it fits in 52 bits), so that a store that
/// has lost everything does not begin below what others know.
///
/// # What must hold
///
/// - **One lease at a time.** While a lease is held and its time is not over, no other is granted
///   for the same key. After that one is, without anybody's help: its holder may be dead.
/// - **Leases count up.** The [`version`](Lease::version) of a lease is higher than that of any
///   lease or value before it, also of those that are over, and higher than `above`.
/// - **Values count up.** [`save`](Self::save) never replaces a value by one whose version is not
///   higher, also where two of them come at once: compare and write in one step. So a process that
///   was held up past the end of its lease does no harm.
///
/// # What need not hold
///
/// A store may lose everything at any time, and may fail. The source gives all calls for one token
/// [a quarter of a second](crate::TokenSourceBuilder::store_timeout) together (and again
/// after each wait for another process), then drops the future, and goes on alone; so does a source
/// whose store panics. A store must not block the thread, which cannot be ended from outside: a client
/// that blocks belongs into `tokio::task::spawn_blocking`.
///
/// Whether the holder of a lease gets it again when it asks again is up to the store. So is when what is
/// over is deleted.
pub trait TokenStore: Send + Sync + 'static {
    /// The value that was saved last, unless its time is over.
    fn load(
        &self,
        key: &str,
    ) -> impl Future<Output = Result<Option<StoredToken>, StoreError>> + Send;

    /// Keeps this value for [`ttl`](StoredToken::ttl), if its version is higher than that of the
    /// value that is kept. Who saves has the lease, or had it.
    fn save(
        &self,
        key: &str,
        token: &StoredToken,
    ) -> impl Future<Output = Result<Saved, StoreError>> + Send;

    /// The right to ask for a new token, for the time `ttl`; `None` if somebody has it.
    ///
    /// `owner` is random: it tells one holder from another. The version of the lease is to be higher
    /// than `above`.
    fn lease(
        &self,
        key: &str,
        owner: &str,
        ttl: Duration,
        above: u64,
    ) -> impl Future<Output = Result<Option<Lease>, StoreError>> + Send;

    /// Gives the lease back. If another owner has it by now, nothing happens.
    ///
    /// The owner decides: where [`lease`](Self::lease) was given up before its answer came, the
    /// version is not known, and is 0 here.
    fn release(
        &self,
        key: &str,
        lease: &Lease,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Ends when something may have changed under this key: a value was saved, or perhaps a lease was
    /// given back. Default: never.
    ///
    /// It may end without a reason, and may miss a change: who waits for a token looks from time to
    /// time as well. It is dropped and called again at will, and waited for as long as there is a
    /// token in hand: for hours, so it is not to keep the store busy.
    fn changed(&self, key: &str) -> impl Future<Output = ()> + Send {
        let _ = key;
        pending()
    }
}

/// What a [`TokenStore`] keeps. `Debug` does not show the value; it is wiped when dropped.
#[derive(Clone)]
pub struct StoredToken {
    version: u64,
    value: Zeroizing<Vec<u8>>,
    ttl: Option<Duration>,
}

impl StoredToken {
    /// A value as it was kept. [`with_ttl`](Self::with_ttl) says how long it is still good for.
    #[must_use]
    pub fn new(version: u64, value: impl Into<Vec<u8>>) -> Self {
        Self { version, value: Zeroizing::new(value.into()), ttl: None }
    }

    /// Sets the time after which the value is useless. Default: not known.
    ///
    /// When it is saved: for how long to keep it. When it is loaded: what is left of that, if the
    /// store counts it down. A store that does so makes it matter less that the clocks of two
    /// machines differ.
    #[must_use]
    pub fn with_ttl(mut self, ttl: Duration) -> Self {
        self.ttl = Some(ttl);
        self
    }

    /// The version: values of higher versions replace those of lower ones, never the other way.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The value: UTF-8 text (JSON), for a store that keeps text rather than bytes. Without a
    /// [`StoreKey`](crate::StoreKey) it holds the token.
    #[must_use]
    pub fn value(&self) -> &[u8] {
        &self.value
    }

    /// The time after which the value is useless, if it is known.
    #[must_use]
    pub fn ttl(&self) -> Option<Duration> {
        self.ttl
    }
}

impl fmt::Debug for StoredToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredToken")
            .field("version", &self.version)
            .field("ttl", &self.ttl)
            .finish_non_exhaustive()
    }
}

/// The right to ask for a new token, held by one process at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    owner: String,
    version: u64,
}

impl Lease {
    /// A lease that was granted to `owner`.
    #[must_use]
    pub fn new(owner: impl Into<String>, version: u64) -> Self {
        Self { owner: owner.into(), version }
    }

    /// Who has it.
    #[must_use]
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The number of this lease, and the version of the value that is saved under it.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }
}

/// What became of a value that was to be saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Saved {
    /// It is kept.
    Saved,
    /// It is not: the store has one of the same or of a higher version.
    Superseded,
}

pub(crate) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`TokenStore`] as an object.
pub(crate) trait ErasedTokenStore: Send + Sync {
    fn load<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<StoredToken>, StoreError>>;
    fn save<'a>(
        &'a self,
        key: &'a str,
        token: &'a StoredToken,
    ) -> BoxFuture<'a, Result<Saved, StoreError>>;
    fn lease<'a>(
        &'a self,
        key: &'a str,
        owner: &'a str,
        ttl: Duration,
        above: u64,
    ) -> BoxFuture<'a, Result<Option<Lease>, StoreError>>;
    fn release<'a>(
        &'a self,
        key: &'a str,
        lease: &'a Lease,
    ) -> BoxFuture<'a, Result<(), StoreError>>;
    fn changed<'a>(&'a self, key: &'a str) -> BoxFuture<'a, ()>;
}

impl<S: TokenStore> ErasedTokenStore for S {
    fn load<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<Option<StoredToken>, StoreError>> {
        Box::pin(TokenStore::load(self, key))
    }

    fn save<'a>(
        &'a self,
        key: &'a str,
        token: &'a StoredToken,
    ) -> BoxFuture<'a, Result<Saved, StoreError>> {
        Box::pin(TokenStore::save(self, key, token))
    }

    fn lease<'a>(
        &'a self,
        key: &'a str,
        owner: &'a str,
        ttl: Duration,
        above: u64,
    ) -> BoxFuture<'a, Result<Option<Lease>, StoreError>> {
        Box::pin(TokenStore::lease(self, key, owner, ttl, above))
    }

    fn release<'a>(
        &'a self,
        key: &'a str,
        lease: &'a Lease,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        Box::pin(TokenStore::release(self, key, lease))
    }

    fn changed<'a>(&'a self, key: &'a str) -> BoxFuture<'a, ()> {
        Box::pin(TokenStore::changed(self, key))
    }
}
