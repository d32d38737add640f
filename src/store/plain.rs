//! [`PlainCalls`]: a [`TokenStore`] made from four plain calls.

use std::{
    future::{Future, pending},
    time::{Duration, Instant},
};

use super::token_store::{Acquired, CommitOutcome, LeaseRequest, StoredRecord, TokenStore};
use crate::error::StoreError;

/// A database that can compare and write one value, but cannot do more in one step: the four calls
/// from which [`PlainCalls`] makes a [`TokenStore`].
///
/// The promises are those of [`TokenStore`], for each call by itself.
pub trait PlainStore: Send + Sync + 'static {
    /// Reads the record, unless its time to live has ended.
    ///
    /// # Errors
    ///
    /// If the store cannot be used.
    fn load(
        &self,
        key: &str,
    ) -> impl Future<Output = Result<Option<StoredRecord>, StoreError>> + Send;

    /// Keeps the record if its fencing token is higher than that of the kept one. Compare and write
    /// are one step. Returns whether the record was kept.
    ///
    /// # Errors
    ///
    /// If the store cannot be used.
    fn save(
        &self,
        key: &str,
        record: &StoredRecord,
    ) -> impl Future<Output = Result<bool, StoreError>> + Send;

    /// Takes the lease for `owner` and `ttl`, if nobody holds it, in one step. Returns its fencing
    /// token, which is higher than `above` and than every one before; `None` if the lease is held.
    ///
    /// # Errors
    ///
    /// If the store cannot be used.
    fn lease(
        &self,
        key: &str,
        owner: &str,
        ttl: Duration,
        above: u64,
    ) -> impl Future<Output = Result<Option<u64>, StoreError>> + Send;

    /// Ends the lease, if `owner` holds it.
    ///
    /// # Errors
    ///
    /// If the store cannot be used.
    fn release(
        &self,
        key: &str,
        owner: &str,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Resolves when the record may have changed. Default: never. See [`TokenStore::changed`].
    fn changed(&self, key: &str) -> impl Future<Output = ()> + Send {
        let _ = key;
        pending()
    }

    /// When the store last responded to any call. Default: unknown. See [`TokenStore::last_response`].
    fn last_response(&self) -> Option<Instant> {
        None
    }
}

/// Makes a [`TokenStore`] from the four calls of a [`PlainStore`].
///
/// A token request costs five round trips in place of two, all within the
/// [budget](crate::TokenSourceBuilder::store_timeout) of two calls.
#[derive(Clone, Debug)]
pub struct PlainCalls<S>(pub S);

impl<S: PlainStore> TokenStore for PlainCalls<S> {
    async fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> Result<Acquired, StoreError> {
        let record = self.0.load(key).await?;
        let Some(request) = request else { return Ok(Acquired::new(record)) };
        if record.as_ref().is_some_and(|record| record.fencing_token() > request.seen()) {
            return Ok(Acquired::new(record));
        }
        let (owner, ttl, above) = (request.owner(), request.ttl(), request.above());
        let Some(fencing_token) = self.0.lease(key, owner, ttl, above).await? else {
            return Ok(Acquired::new(record));
        };
        // The last holder may have saved a record between the two calls. Nobody else can from here on.
        let record = self.0.load(key).await?;
        Ok(Acquired::new(record).with_lease(fencing_token))
    }

    async fn commit(
        &self,
        key: &str,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> Result<CommitOutcome, StoreError> {
        let outcome = match record {
            None => CommitOutcome::Released,
            Some(record) if self.0.save(key, record).await? => CommitOutcome::Committed,
            Some(_) => CommitOutcome::Superseded,
        };
        self.0.release(key, owner).await?;
        Ok(outcome)
    }

    async fn changed(&self, key: &str) {
        self.0.changed(key).await;
    }

    fn last_response(&self) -> Option<Instant> {
        self.0.last_response()
    }
}
