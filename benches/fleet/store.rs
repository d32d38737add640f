//! The way of one process to the server of the store.

use std::{future::pending, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};
use tower_adobe_auth::{Lease, Saved, StoreError, StoredToken, TokenStore};

use crate::{
    server::Entry,
    world::{Way, World},
};

/// To the server and back.
const LATENCY: Duration = Duration::from_millis(1);

pub(crate) struct SimStore {
    world: Arc<World>,
    process: usize,
}

impl SimStore {
    pub(crate) fn new(world: &Arc<World>, process: usize) -> Self {
        Self { world: Arc::clone(world), process }
    }

    async fn call<R>(
        &self,
        key: &str,
        act: impl FnOnce(&mut Entry, Instant) -> R,
    ) -> Result<R, StoreError> {
        match self.world.way(self.process) {
            Way::Open => {}
            Way::Silent => pending().await,
            Way::Refused => return Err(StoreError::new("connection refused")),
        }
        let (answer, done) = self.world.server.call(key, act);
        sleep_until(done + LATENCY).await;
        Ok(answer)
    }
}

impl TokenStore for SimStore {
    async fn load(&self, key: &str) -> Result<Option<StoredToken>, StoreError> {
        self.call(key, |entry, now| entry.load(now)).await
    }

    async fn save(&self, key: &str, token: &StoredToken) -> Result<Saved, StoreError> {
        let save = |entry: &mut Entry, now: Instant| {
            let saved = entry.save(now, token);
            if saved == Saved::Saved {
                self.world.server.announce(now);
            }
            saved
        };
        self.call(key, save).await
    }

    async fn lease(
        &self,
        key: &str,
        owner: &str,
        ttl: Duration,
        above: u64,
    ) -> Result<Option<Lease>, StoreError> {
        self.call(key, |entry, now| entry.lease(now, owner, ttl, above)).await
    }

    async fn release(&self, key: &str, lease: &Lease) -> Result<(), StoreError> {
        self.call(key, |entry, _| entry.release(lease)).await
    }

    async fn changed(&self, _key: &str) {
        if !self.world.announces {
            pending().await
        }
        self.world.server.changed().await;
        // Who is cut off now hears nothing of it.
        while !matches!(self.world.way(self.process), Way::Open) {
            self.world.server.changed().await;
        }
        sleep(LATENCY).await;
    }
}
