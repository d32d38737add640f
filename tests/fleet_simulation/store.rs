//! The token store: a server that does one call after the other, as Redis does, behind a network.

use std::{
    future::pending,
    mem,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tower_adobe_auth::{
    Acquired, CommitOutcome, LeaseRequest, MemoryStore, StoreError, StoredRecord, TokenStore,
};

use crate::rate::Rate;

/// The properties of a store.
#[derive(Clone, Copy)]
pub(crate) struct Model {
    pub(crate) calls_per_second: u32,
    pub(crate) round_trip: Duration,
    /// `true` if the store notifies of changes.
    pub(crate) notifies: bool,
    /// The `store_timeout` of the processes.
    pub(crate) timeout: Duration,
}

/// The processes that reach the store.
#[derive(Clone, Copy)]
pub(crate) enum Network {
    Whole,
    /// Every second process gets no answers and no notifications.
    Half,
    /// The store refuses connections.
    Down,
}

/// A [`MemoryStore`] whose calls take time.
pub(crate) struct Server {
    pub(crate) model: Model,
    kept: MemoryStore,
    /// In place of the notifications of `kept`, whose order is random.
    changes: Notify,
    state: Mutex<State>,
}

struct State {
    network: Network,
    /// The end of the last call in the queue.
    free_at: Instant,
    load: Load,
}

/// The work of the server.
pub(crate) struct Load {
    pub(crate) calls: Rate,
    pub(crate) longest_queue: Duration,
}

impl Load {
    pub(crate) fn none() -> Self {
        Self { calls: Rate::since(Instant::now()), longest_queue: Duration::ZERO }
    }
}

impl Server {
    pub(crate) fn new(model: Model) -> Arc<Self> {
        let state = State { network: Network::Whole, free_at: Instant::now(), load: Load::none() };
        let (kept, changes) = (MemoryStore::default(), Notify::new());
        Arc::new(Self { model, kept, changes, state: Mutex::new(state) })
    }

    /// The store as the process of this number reaches it.
    pub(crate) fn store(self: &Arc<Self>, process: usize) -> SimStore {
        SimStore { server: Arc::clone(self), process }
    }

    pub(crate) fn set(&self, network: Network) {
        self.state().network = network;
    }

    /// The work since the last time that this was called.
    pub(crate) fn take_load(&self) -> Load {
        mem::replace(&mut self.state().load, Load::none())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Puts a call at the end of the queue. Returns the time at which its response arrives.
    fn enqueue(&self) -> Instant {
        let now = Instant::now();
        let mut state = self.state();
        state.free_at =
            state.free_at.max(now) + Duration::from_secs(1) / self.model.calls_per_second;
        let queue = state.free_at - now;
        state.load.calls.count(now);
        state.load.longest_queue = state.load.longest_queue.max(queue);
        state.free_at + self.model.round_trip
    }
}

/// The store as one process reaches it.
pub(crate) struct SimStore {
    server: Arc<Server>,
    process: usize,
}

impl SimStore {
    /// Does `call`. It takes effect also if the caller gives up before the response arrives, because
    /// the caller has sent it. Calls take effect in the order in which they are sent, so each sees
    /// the effect of those before it, and only the response waits for the queue.
    async fn call<T>(
        &self,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, StoreError> {
        let network = self.server.state().network;
        match network {
            Network::Down => return Err(StoreError::new("connection refused")),
            Network::Half if self.is_cut_off() => pending().await,
            _ => {}
        }
        let arrives = self.server.enqueue();
        let response = call.await;
        sleep_until(arrives).await;
        response
    }

    fn is_cut_off(&self) -> bool {
        match self.server.state().network {
            Network::Whole => false,
            Network::Half => self.process % 2 == 1,
            Network::Down => true,
        }
    }
}

impl TokenStore for SimStore {
    async fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> Result<Acquired, StoreError> {
        self.call(self.server.kept.acquire(key, request)).await
    }

    async fn commit(
        &self,
        key: &str,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> Result<CommitOutcome, StoreError> {
        let commit = async {
            let outcome = self.server.kept.commit(key, owner, record).await;
            if record.is_some() {
                self.server.changes.notify_waiters();
            }
            outcome
        };
        self.call(commit).await
    }

    async fn changed(&self, _key: &str) {
        if !self.server.model.notifies {
            pending().await
        }
        self.server.changes.notified().await;
        while self.is_cut_off() {
            self.server.changes.notified().await;
        }
        // The commit is the last call in the queue.
        let done = self.server.state().free_at;
        sleep_until(done + self.server.model.round_trip).await;
    }
}
