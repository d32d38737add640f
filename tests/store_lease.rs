//! However a flight ends, its lease is given back: other processes do not wait for the end of it.

#![allow(clippy::unwrap_used)]

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    runtime::{Builder, Runtime},
    time::{Instant, sleep, timeout},
};
use tower_adobe_auth::{
    Acquired, CommitOutcome, ErrorKind, FetchToken, LeaseRequest, MemoryStore, StoreError,
    StoredRecord, TokenError, TokenResponse, TokenSource, TokenStore,
};

/// What a store may cost one flight, and a tick of the timer.
const STORE: Duration = Duration::from_millis(252);

fn process(store: impl TokenStore, fetcher: impl FetchToken) -> TokenSource {
    TokenSource::builder_from_fetcher(fetcher).store(store).store_name("test").build().unwrap()
}

async fn hangs() -> Result<TokenResponse, TokenError> {
    pending().await
}

async fn answers() -> Result<TokenResponse, TokenError> {
    Ok(TokenResponse::new("a-token", Duration::from_secs(86_400)))
}

/// How long another process that starts now waits for a token.
async fn wait_of_another(store: impl TokenStore) -> Duration {
    let start = Instant::now();
    process(store, answers).token().await.unwrap();
    start.elapsed()
}

/// A source whose flight has the lease, and does not end.
async fn leader(store: impl TokenStore) -> TokenSource {
    let tokens = process(store, hangs);
    timeout(Duration::from_secs(1), tokens.token()).await.unwrap_err();
    tokens
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_in_mid_flight_gives_the_lease_back_before_it_is_over() {
    let store = MemoryStore::default();
    let leader = leader(store.clone()).await;

    leader.shutdown().await.unwrap();

    assert_eq!(wait_of_another(store).await, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_dropped_in_mid_flight_gives_the_lease_back() {
    let store = MemoryStore::default();
    drop(leader(store.clone()).await);

    assert!(wait_of_another(store).await < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn after_a_panic_the_next_flight_does_not_wait_for_the_lease_of_the_one_before() {
    let first = Arc::new(AtomicUsize::new(0));
    let tokens = process(MemoryStore::default(), move || {
        let number = first.fetch_add(1, Ordering::SeqCst);
        async move {
            assert!(number > 0, "a bug in the fetcher");
            answers().await
        }
    });
    assert_eq!(tokens.token().await.unwrap_err().kind(), ErrorKind::Panicked);

    let start = Instant::now();
    tokens.token().await.unwrap();

    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn on_another_runtime_a_source_does_not_wait_for_the_lease_of_the_flight_that_was_lost() {
    let first = Arc::new(AtomicUsize::new(0));
    let tokens = process(MemoryStore::default(), move || {
        let number = first.fetch_add(1, Ordering::SeqCst);
        async move { if number == 0 { hangs().await } else { answers().await } }
    });
    let lost = runtime();
    lost.block_on(async {
        timeout(Duration::from_millis(100), tokens.token()).await.unwrap_err();
    });
    drop(lost);

    let start = std::time::Instant::now();
    runtime().block_on(tokens.token()).unwrap();

    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

/// The call that a store carries out, but does not answer.
#[derive(Clone, Copy, PartialEq)]
enum Mute {
    Acquire,
    Commit,
}

/// Does not answer one call, and is well afterwards.
#[derive(Clone)]
struct Muted {
    inner: MemoryStore,
    mute: Arc<Mutex<Option<Mute>>>,
    key: Arc<Mutex<String>>,
}

impl Muted {
    fn new(mute: Mute) -> Self {
        let mute = Arc::new(Mutex::new(Some(mute)));
        Self { inner: MemoryStore::default(), mute, key: Arc::default() }
    }

    async fn mind(&self, mute: Mute) {
        if self.mute.lock().unwrap().take_if(|muted| *muted == mute).is_some() {
            pending().await
        }
    }
}

impl TokenStore for Muted {
    async fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> Result<Acquired, StoreError> {
        let acquired = self.inner.acquire(key, request).await;
        key.clone_into(&mut self.key.lock().unwrap());
        self.mind(Mute::Acquire).await;
        acquired
    }

    async fn commit(
        &self,
        key: &str,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> Result<CommitOutcome, StoreError> {
        self.mind(Mute::Commit).await;
        self.inner.commit(key, owner, record).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_whose_grant_was_not_heard_is_given_back_too() {
    let store = Muted::new(Mute::Acquire);
    let start = Instant::now();
    process(store.clone(), answers).token().await.unwrap();
    assert!(start.elapsed() <= STORE, "{:?}", start.elapsed());

    sleep(Duration::from_millis(1)).await;

    assert_eq!(wait_of_another(store).await, Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn callers_do_not_wait_for_a_commit_that_hangs() {
    let store = Muted::new(Mute::Commit);
    let tokens = process(store.clone(), answers);

    let start = Instant::now();
    tokens.token().await.unwrap();

    assert_eq!(start.elapsed(), Duration::ZERO);
    sleep(Duration::from_secs(3)).await;
    assert!(tokens.status().store_error().is_some());
    // The lease of the lost commit has ended by itself.
    sleep(Duration::from_secs(15)).await;
    let request = LeaseRequest::new("another", Duration::from_secs(1));
    let key = store.key.lock().unwrap().clone();
    let acquired = store.acquire(&key, Some(&request)).await.unwrap();
    assert!(acquired.fencing_token().is_some());
}

#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_for_long_where_the_store_hangs() {
    let store = Muted::new(Mute::Commit);
    let leader = leader(store).await;

    let start = Instant::now();
    leader.shutdown().await.unwrap();

    assert!(start.elapsed() <= STORE, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_lease_of_any_length_can_be_asked_for() {
    let store = MemoryStore::default();
    let tokens = |fetcher: fn() -> _| {
        TokenSource::builder_from_fetcher(fetcher)
            .store(store.clone())
            .store_name("test")
            .lease_ttl(Duration::MAX)
            .build()
            .unwrap()
    };
    let waits = tokens(|| std::future::ready(Err(TokenError::transient("not asked"))));
    let leader = leader(store.clone()).await;

    let error = timeout(Duration::from_secs(5), waits.token()).await;

    assert!(error.is_err(), "it waits for the leader: {error:?}");
    drop(leader);
}

/// The answer of a store to a lease request, after so many before it.
type Answer = fn(usize) -> Option<Acquired>;

/// Answers lease requests as it is told to, and otherwise as it should.
#[derive(Clone)]
struct Told {
    inner: MemoryStore,
    requests: Arc<AtomicUsize>,
    answer: Answer,
}

impl Told {
    fn new(answer: Answer) -> Self {
        Self { inner: MemoryStore::default(), requests: Arc::default(), answer }
    }
}

impl TokenStore for Told {
    async fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> Result<Acquired, StoreError> {
        match (self.answer)(self.requests.fetch_add(1, Ordering::SeqCst)) {
            Some(told) => Ok(told),
            None => self.inner.acquire(key, request).await,
        }
    }

    async fn commit(
        &self,
        key: &str,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> Result<CommitOutcome, StoreError> {
        self.inner.commit(key, owner, record).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_does_not_end_fails_no_caller() {
    // Somebody else has it: for ever, or again and again.
    let store = Told::new(|_| Some(Acquired::new(None)));

    assert!(wait_of_another(store.clone()).await < Duration::from_secs(24));
    assert!(store.requests.load(Ordering::SeqCst) > 10);
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lied_once_about_a_version_is_of_use_again() {
    // No other version can follow that one.
    let store = Told::new(|before| (before == 0).then(|| Acquired::new(None).with_lease(u64::MAX)));
    let lied_to = process(store, answers);
    lied_to.token().await.unwrap();
    assert!(lied_to.status().store_error().is_some());

    lied_to.refresh().await.unwrap();

    assert!(lied_to.status().store_error().is_none());
}
