//! [`Fleet`]: tokens that many processes share through a token store.

use std::{sync::Arc, time::Duration};

use super::{
    common::Common,
    visit::{Asked, Visit, settle},
    watch::announced,
};
use crate::{
    error::{StoreError, TokenError},
    source::{BoxFuture, Need, Supplied, Supply},
};

/// Takes tokens from the store, and asks the supply inside only if this process has the lease, or if
/// the store cannot be used.
pub(super) struct Fleet {
    supply: Arc<dyn Supply>,
    common: Arc<Common>,
}

impl Fleet {
    pub(super) fn new(supply: Arc<dyn Supply>, common: Arc<Common>) -> Self {
        Self { supply, common }
    }
}

impl Supply for Fleet {
    fn obtain(&self, need: Need) -> BoxFuture<'_, Result<Option<Supplied>, TokenError>> {
        Box::pin(async move {
            let mut visit = Visit::new(&self.common, need);
            match visit.ask().await {
                Asked::Token(supplied) => Ok(Some(supplied)),
                Asked::Keep => Ok(None),
                Asked::Told(turn, error) => visit.end(turn, Err(error)).await,
                Asked::Turn(turn) => {
                    let result = self.supply.obtain(need).await;
                    visit.end(turn, result).await
                }
            }
        })
    }

    fn settle(&self) -> BoxFuture<'_, ()> {
        Box::pin(settle(&self.common))
    }

    fn credentials_changed(&self) -> BoxFuture<'_, ()> {
        self.supply.credentials_changed()
    }

    fn announced(&self) -> BoxFuture<'_, Supplied> {
        Box::pin(announced(&self.common))
    }

    fn longest(&self) -> Duration {
        let waits = self.common.patience().saturating_add(self.common.timeout);
        self.supply.longest().saturating_add(waits)
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn store_error(&self) -> Option<StoreError> {
        self.common.store_error()
    }
}
