//! One token for a fleet: never an older one, shared from afar, and every outcome counts for all.

#![cfg(feature = "reqwest")]
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::HashMap,
    error::Error,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use support::{DAY, FIREFLY, HOUR, Ims, MINUTE, Reply, api, bearer, get, millis, secs, wall_clock};
use tokio::{
    sync::watch,
    time::{Duration, Instant, sleep},
};
use tower::{Layer, service_fn};
use tower_adobe_auth::{
    Acquired, AdobeAuthLayer, BoxError, CommitOutcome, Credentials, ErrorKind, FileCredentials,
    LeaseRequest, MemoryStore, PlainCalls, PlainStore, ProvideCredentials, StoreError,
    StoredRecord, TokenSource, TokenStore,
};

/// A store like Redis: each call takes its time, it can be down, and it notifies the listeners of one
/// key.
#[derive(Clone, Default)]
struct Remote {
    inner: MemoryStore,
    latency: Duration,
    is_down: Arc<AtomicBool>,
    bells: Arc<Mutex<HashMap<String, watch::Sender<()>>>>,
}

impl Remote {
    fn away(latency: Duration) -> Self {
        Self { latency, ..Self::default() }
    }

    fn set_down(&self, is_down: bool) {
        self.is_down.store(is_down, Ordering::SeqCst);
    }

    fn bell(&self, key: &str) -> watch::Sender<()> {
        let mut bells = self.bells.lock().unwrap();
        bells.entry(key.to_owned()).or_insert_with(|| watch::channel(()).0).clone()
    }

    /// Notifies all listeners, as after a reconnection.
    fn notify_all(&self) {
        self.bells.lock().unwrap().values().for_each(|bell| {
            bell.send_replace(());
        });
    }

    async fn pass(&self) -> Result<(), StoreError> {
        sleep(self.latency).await;
        match self.is_down.load(Ordering::SeqCst) {
            true => Err(StoreError::new("the server is down")),
            false => Ok(()),
        }
    }
}

impl TokenStore for Remote {
    async fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> Result<Acquired, StoreError> {
        self.pass().await?;
        self.inner.acquire(key, request).await
    }

    async fn commit(
        &self,
        key: &str,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> Result<CommitOutcome, StoreError> {
        self.pass().await?;
        let outcome = self.inner.commit(key, owner, record).await;
        self.bell(key).send_replace(());
        outcome
    }

    async fn changed(&self, key: &str) {
        let _ = self.bell(key).subscribe().changed().await;
    }
}

/// A source as another process would have it.
fn process(ims: &Ims, store: impl TokenStore) -> TokenSource {
    ims.builder().store(store).wall_clock(wall_clock()).build().unwrap()
}

/// The same with this secret.
fn process_with_secret(ims: &Ims, store: impl TokenStore, secret: &str) -> TokenSource {
    let transport = ims.transport();
    TokenSource::builder(Credentials::new("client-id", secret))
        .map_ims(|client| client.transport(transport))
        .store(store)
        .wall_clock(wall_clock())
        .build()
        .unwrap()
}

fn ims() -> Ims {
    Ims::new(DAY).taking(millis(200))
}

async fn token(tokens: &TokenSource) -> String {
    tokens.token().await.unwrap().expose_secret().to_owned()
}

fn cached(tokens: &TokenSource) -> Option<String> {
    tokens.try_token().map(|token| token.expose_secret().to_owned())
}

/// The status that an API answers which refuses `revoked`.
async fn call(tokens: &TokenSource, revoked: &'static str) -> u16 {
    let api = api(move |request| if bearer(request) == revoked { 401 } else { 200 });
    get(&AdobeAuthLayer::new(tokens.clone()).layer(api), FIREFLY).await.ok()
}

/// Asks for a token once a second, for ever.
fn ask_every_second(tokens: TokenSource) {
    tokio::spawn(async move {
        loop {
            let _ = tokens.token().await;
            sleep(secs(1)).await;
        }
    });
}

// ---- Never an older token ----

#[tokio::test(start_paused = true)]
async fn the_token_of_an_outage_is_not_replaced_by_an_older_one() {
    let (ims, store) = (ims(), Remote::default());
    token(&process(&ims, store.clone())).await;
    sleep(HOUR).await;
    store.set_down(true);
    let starts = process(&ims, store.clone());
    assert_eq!(token(&starts).await, "token-2");

    store.set_down(false);
    store.notify_all();
    sleep(MINUTE).await;

    assert_eq!(cached(&starts).unwrap(), "token-2");
    assert_eq!(call(&starts, "token-1").await, 200);
}

#[tokio::test(start_paused = true)]
async fn a_forced_refresh_in_an_outage_is_not_undone() {
    let (ims, store) = (ims(), Remote::default());
    let (one, other) = (process(&ims, store.clone()), process(&ims, store.clone()));
    assert_eq!((token(&one).await, token(&other).await), ("token-1".into(), "token-1".into()));
    sleep(HOUR).await;

    store.set_down(true);
    assert_eq!(other.refresh().await.unwrap().expose_secret(), "token-2");
    store.set_down(false);
    store.notify_all();
    sleep(2 * MINUTE).await;

    assert_eq!(cached(&other).unwrap(), "token-2");
}

#[tokio::test(start_paused = true)]
async fn a_clock_minutes_ahead_brings_back_no_older_token() {
    let (ims, store) = (ims(), Remote::default());
    let clock = wall_clock();
    let ahead = move || clock() + 3 * MINUTE;
    token(&ims.builder().store(store.clone()).wall_clock(ahead).build().unwrap()).await;
    sleep(MINUTE).await;
    store.set_down(true);
    let starts = process(&ims, store.clone());
    assert_eq!(token(&starts).await, "token-2");

    store.set_down(false);
    store.notify_all();
    sleep(MINUTE).await;

    assert_eq!(cached(&starts).unwrap(), "token-2");
}

/// Grants a lease, and answers this much later.
#[derive(Clone)]
struct Late(Remote, Duration);

impl TokenStore for Late {
    async fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> Result<Acquired, StoreError> {
        let acquired = self.0.acquire(key, request).await;
        sleep(if request.is_some() { self.1 } else { Duration::ZERO }).await;
        acquired
    }

    async fn commit(
        &self,
        key: &str,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> Result<CommitOutcome, StoreError> {
        self.0.commit(key, owner, record).await
    }

    async fn changed(&self, key: &str) {
        self.0.changed(key).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_stopped_with_its_lease_goes_back_to_no_older_token() {
    let (ims, store) = (ims(), Remote::default());
    let stopped = ims
        .builder()
        .store(Late(store.clone(), secs(3)))
        .store_timeout(secs(10))
        .lease_ttl(secs(2))
        .wall_clock(wall_clock())
        // A process that is stopped watches nothing.
        .refresh_on_demand()
        .build()
        .unwrap();
    stopped.warm_up();
    sleep(millis(10)).await;
    // Its lease ends after two seconds, and this process takes over.
    let other = process(&ims, store.clone());
    assert_eq!(token(&other).await, "token-1");

    assert_eq!(token(&stopped).await, "token-2", "requested a second later");
    sleep(MINUTE).await;

    assert_eq!(stopped.refresh().await.unwrap().expose_secret(), "token-3");
}

#[tokio::test(start_paused = true)]
async fn an_invalidated_token_does_not_come_back_from_the_store() {
    let (ims, store) = (ims(), Remote::default());
    let tokens = process(&ims, store.clone());
    let revoked = tokens.token().await.unwrap();
    sleep(HOUR).await;

    tokens.invalidate(&revoked);
    store.notify_all();
    sleep(MINUTE).await;

    assert_eq!(token(&tokens).await, "token-2");
}

#[tokio::test(start_paused = true)]
async fn a_store_with_old_state_gives_nobody_an_older_token() {
    let (ims, now, old) = (ims(), Remote::default(), Remote::default());
    // Both stores have token-1; only the newer state has token-2.
    let keeps_old = process(&ims, old.clone());
    token(&keeps_old).await;
    sleep(HOUR).await;
    let swaps = Swaps { stores: [now, old], is_old: Arc::default() };
    let fleet: Vec<_> = (0..5).map(|_| process(&ims, swaps.clone())).collect();
    for tokens in &fleet {
        assert_eq!(token(tokens).await, "token-2");
    }

    swaps.is_old.store(true, Ordering::SeqCst);
    swaps.stores.iter().for_each(Remote::notify_all);
    sleep(2 * MINUTE).await;

    for tokens in &fleet {
        assert_eq!(cached(tokens).unwrap(), "token-2");
    }
    assert_eq!(fleet[0].refresh().await.unwrap().expose_secret(), "token-3");
    sleep(MINUTE).await;
    assert!(fleet.iter().all(|tokens| cached(tokens).unwrap() == "token-3"));
}

/// A store that is restored from a backup.
#[derive(Clone)]
struct Swaps {
    stores: [Remote; 2],
    is_old: Arc<AtomicBool>,
}

impl Swaps {
    fn store(&self) -> &Remote {
        &self.stores[usize::from(self.is_old.load(Ordering::SeqCst))]
    }
}

impl TokenStore for Swaps {
    async fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> Result<Acquired, StoreError> {
        self.store().acquire(key, request).await
    }

    async fn commit(
        &self,
        key: &str,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> Result<CommitOutcome, StoreError> {
        self.store().commit(key, owner, record).await
    }

    async fn changed(&self, key: &str) {
        self.store().changed(key).await;
    }
}

// ---- Credentials that change ----

/// An IMS whose tokens name the client that they were issued to.
fn builder_by_client(
    provider: impl ProvideCredentials,
    delay: Duration,
) -> tower_adobe_auth::TokenSourceBuilder<tower_adobe_auth::ImsClientBuilder> {
    let ims = service_fn(move |request: Request<Full<Bytes>>| async move {
        let form = request.into_body().collect().await?.to_bytes();
        let mut form = form_urlencoded::parse(&form);
        let (_, client) = form.find(|(name, _)| name == "client_id").unwrap();
        sleep(delay).await;
        let body = format!(r#"{{"access_token":"of-{client}","expires_in":86400}}"#);
        Ok::<_, BoxError>(Response::new(Full::<Bytes>::from(body)))
    });
    TokenSource::builder_from_provider(provider).map_ims(|client| client.transport(ims))
}

fn write_credentials(file: &Path, client: &str) {
    let new = file.with_extension("new");
    let json = format!(
        r#"{{"CLIENT_ID":"{client}","CLIENT_SECRETS":["s"],"SCOPES":["openid"],"ORG_ID":"o"}}"#
    );
    std::fs::write(&new, json).unwrap();
    std::fs::rename(new, file).unwrap();
}

#[tokio::test(start_paused = true)]
async fn credentials_of_another_tenant_in_mid_refresh_lead_to_its_token() {
    // Before, in and after the token request, and after a notification of the store.
    for at in [0, 1_000, 2_500, 6_000, 40_000] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("credentials.json");
        write_credentials(&file, "tenant-one");
        let store = Remote::default();
        let provider = FileCredentials::open(&file).unwrap();
        let tokens = builder_by_client(provider, secs(2)).store(store.clone()).build().unwrap();
        tokens.warm_up();
        sleep(millis(at)).await;

        write_credentials(&file, "tenant-two");
        store.notify_all();
        sleep(MINUTE).await;

        assert_eq!(cached(&tokens).unwrap(), "of-tenant-two", "changed after {at} ms");
    }
}

/// Credentials whose secret changes.
#[derive(Clone)]
struct Rotating(watch::Sender<&'static str>);

impl ProvideCredentials for Rotating {
    async fn credentials(&self) -> Result<Credentials, BoxError> {
        Ok(Credentials::new("client-id", *self.0.borrow()))
    }

    async fn changed(&self) {
        let _ = self.0.subscribe().changed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_secret_is_tried_again_after_a_failure() {
    let (ims, store) = (ims(), Remote::default());
    let (provider, transport) = (Rotating(watch::channel("old").0), ims.transport());
    let tokens = TokenSource::builder_from_provider(provider.clone())
        .map_ims(|client| client.transport(transport))
        .store(store.clone())
        .wall_clock(wall_clock())
        .build()
        .unwrap();
    let other = process_with_secret(&ims, store, "old");
    assert_eq!((token(&tokens).await, token(&other).await), ("token-1".into(), "token-1".into()));
    sleep(HOUR).await;

    // The store has a newer token of the old secret when the new one fails.
    assert_eq!(other.refresh().await.unwrap().expose_secret(), "token-2");
    ims.respond_next([Reply::Unavailable; 4]);
    provider.0.send_replace("new");
    sleep(5 * MINUTE).await;

    assert_eq!(cached(&tokens).unwrap(), "token-7");
}

#[tokio::test(start_paused = true)]
async fn credentials_that_change_after_a_shared_token_are_noticed() {
    // Before the background task compares the credentials for the first time, and after it.
    for at in [1, 900, 5_000] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("credentials.json");
        write_credentials(&file, "tenant-one");
        let store = Remote::default();
        let process = || {
            let provider = FileCredentials::open(&file).unwrap();
            builder_by_client(provider, secs(2)).store(store.clone()).build().unwrap()
        };
        token(&process()).await;
        sleep(secs(1)).await;
        let tokens = process();
        assert_eq!(token(&tokens).await, "of-tenant-one");
        sleep(millis(at)).await;

        write_credentials(&file, "tenant-two");
        sleep(MINUTE).await;

        assert_eq!(cached(&tokens).unwrap(), "of-tenant-two", "changed after {at} ms");
    }
}

/// Credentials that take their time.
#[derive(Clone)]
struct Slow(Duration, Arc<AtomicUsize>);

impl ProvideCredentials for Slow {
    async fn credentials(&self) -> Result<Credentials, BoxError> {
        self.1.fetch_add(1, Ordering::SeqCst);
        sleep(self.0).await;
        Ok(Credentials::new("id", "secret"))
    }
}

#[tokio::test(start_paused = true)]
async fn slow_credentials_are_read_once_for_a_token() {
    for takes in [3, 8, 11] {
        let reads = Arc::new(AtomicUsize::new(0));
        let provider = Slow(secs(takes), Arc::clone(&reads));
        let tokens = builder_by_client(provider, millis(200))
            .store(MemoryStore::default())
            // Without the watchers, which read the credentials for their own purposes.
            .refresh_on_demand()
            .build()
            .unwrap();

        let start = Instant::now();
        token(&tokens).await;

        assert_eq!(start.elapsed(), secs(takes) + millis(200));
        assert_eq!(reads.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn slow_credentials_fail_no_caller_of_a_warm_source() {
    let provider = Slow(secs(11), Arc::default());
    let tokens =
        builder_by_client(provider, millis(200)).store(MemoryStore::default()).build().unwrap();

    let start = Instant::now();
    token(&tokens).await;

    assert!(start.elapsed() <= millis(11_300), "{:?}", start.elapsed());
}

// ---- From afar ----

#[tokio::test(start_paused = true)]
async fn a_store_from_0_to_120_ms_away_is_shared() {
    for latency in [0, 20, 55, 60, 100, 120] {
        let (ims, store) = (ims(), Remote::away(millis(latency)));

        for _ in 0..20 {
            let tokens = process(&ims, store.clone());
            token(&tokens).await;
            assert!(tokens.status().store_error().is_none(), "{latency} ms");
            sleep(secs(10)).await;
        }

        assert_eq!(ims.asked(), 1, "{latency} ms: one after the other");
        let (ims, store) = (Ims::new(DAY).taking(millis(200)), Remote::away(millis(latency)));
        let fleet: Vec<_> = (0..20).map(|_| process(&ims, store.clone())).collect();
        join_all(fleet.iter().map(token)).await;
        assert_eq!(ims.asked(), 1, "{latency} ms: all together");
    }
}

#[tokio::test(start_paused = true)]
async fn a_leader_makes_two_calls_and_a_follower_one() {
    let (ims, store) = (ims(), Remote::away(millis(100)));

    let start = Instant::now();
    token(&process(&ims, store.clone())).await;
    assert_eq!(start.elapsed(), millis(100) + millis(200), "the commit delays nobody");
    sleep(secs(1)).await;

    let start = Instant::now();
    token(&process(&ims, store)).await;
    assert_eq!(start.elapsed(), millis(100));
}

/// A database that offers four plain calls.
#[derive(Clone, Default)]
struct Database {
    records: Arc<Mutex<HashMap<String, StoredRecord>>>,
    leases: MemoryStore,
}

impl PlainStore for Database {
    async fn load(&self, key: &str) -> Result<Option<StoredRecord>, StoreError> {
        sleep(millis(30)).await;
        Ok(self.records.lock().unwrap().get(key).cloned())
    }

    async fn save(&self, key: &str, record: &StoredRecord) -> Result<bool, StoreError> {
        sleep(millis(30)).await;
        let mut records = self.records.lock().unwrap();
        let kept = records.get(key).map_or(0, StoredRecord::fencing_token);
        let is_higher = record.fencing_token() > kept;
        if is_higher {
            records.insert(key.to_owned(), record.clone());
        }
        Ok(is_higher)
    }

    async fn lease(
        &self,
        key: &str,
        owner: &str,
        ttl: Duration,
        above: u64,
    ) -> Result<Option<u64>, StoreError> {
        sleep(millis(30)).await;
        let request = LeaseRequest::new(owner, ttl).with_above(above);
        Ok(self.leases.acquire(key, Some(&request)).await?.fencing_token())
    }

    async fn release(&self, key: &str, owner: &str) -> Result<(), StoreError> {
        sleep(millis(30)).await;
        self.leases.commit(key, owner, None).await.map(drop)
    }
}

#[tokio::test(start_paused = true)]
async fn a_database_with_plain_calls_is_shared() {
    let (ims, store) = (ims(), PlainCalls(Database::default()));
    let fleet: Vec<_> = (0..50).map(|_| process(&ims, store.clone())).collect();

    let tokens = join_all(fleet.iter().map(token)).await;

    assert!(tokens.iter().all(|token| token == "token-1"));
    assert_eq!(ims.asked(), 1);
    sleep(23 * HOUR + MINUTE).await;
    assert!(fleet.iter().all(|tokens| cached(tokens).unwrap() == "token-2"));
    assert_eq!(ims.asked(), 2);
}

// ---- Every outcome counts ----

/// The token requests in ten minutes of a fleet whose callers come once a second.
async fn requests_of(size: usize, reply: Reply) -> usize {
    let (ims, store) = (ims(), Remote::default());
    ims.respond_with(reply);
    for _ in 0..size {
        ask_every_second(process(&ims, store.clone()));
    }
    sleep(10 * MINUTE).await;
    ims.asked()
}

#[tokio::test(start_paused = true)]
async fn a_failing_ims_gets_hardly_more_requests_from_a_fleet() {
    for reply in [Reply::Hang, Reply::Disconnect, Reply::Rejected, Reply::Html] {
        let (one, fifty) = (requests_of(1, reply).await, requests_of(50, reply).await);

        assert!(fifty < 3 * one, "{reply:?}: {fifty} requests of fifty processes, {one} of one");
    }
}

#[tokio::test(start_paused = true)]
async fn two_hundred_processes_learn_at_once_that_a_secret_is_wrong() {
    let (ims, store) = (ims(), MemoryStore::default());
    ims.respond_with(Reply::Rejected);
    let fleet: Vec<_> = (0..200).map(|_| process(&ims, store.clone())).collect();

    let start = Instant::now();
    let errors = join_all(
        fleet.iter().map(|tokens| async { (tokens.token().await.unwrap_err(), start.elapsed()) }),
    );

    for (error, after) in errors.await {
        assert_eq!(error.kind(), ErrorKind::Rejected);
        assert!(after < secs(2), "{after:?}");
    }
    assert_eq!(ims.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_process_with_another_secret_tries_at_once() {
    let (ims, store) = (ims(), MemoryStore::default());
    ims.respond_with(Reply::Rejected);
    process_with_secret(&ims, store.clone(), "wrong").token().await.unwrap_err();
    ims.respond_with(Reply::Token);
    let wrong = process_with_secret(&ims, store.clone(), "wrong");
    assert_eq!(wrong.token().await.unwrap_err().kind(), ErrorKind::Rejected);
    assert_eq!(ims.asked(), 1, "the rejection holds for the same secret");

    let right = process_with_secret(&ims, store, "right");
    let start = Instant::now();
    assert_eq!(token(&right).await, "token-2");
    assert!(start.elapsed() < secs(1), "{:?}", start.elapsed());

    // The token is good for all, whatever their secret.
    sleep(MINUTE).await;
    assert_eq!(token(&wrong).await, "token-2");
}

#[tokio::test(start_paused = true)]
async fn a_process_without_a_token_takes_the_one_in_the_store() {
    for reply in [Reply::Unavailable, Reply::Disconnect, Reply::Rejected] {
        let (ims, store) = (ims(), Remote::default());
        ims.respond_with(reply);
        let fleet: Vec<_> = (0..20).map(|_| process(&ims, store.clone())).collect();
        fleet.iter().cloned().for_each(ask_every_second);
        sleep(3 * MINUTE).await;

        ims.respond_with(Reply::Token);
        while fleet.iter().all(|tokens| !tokens.status().is_ready()) {
            sleep(millis(50)).await;
        }
        sleep(secs(3)).await;

        let without = fleet.iter().filter(|it| !it.status().is_ready()).count();
        assert_eq!(without, 0, "{reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_fleet_is_served_within_ten_seconds_after_an_outage() {
    for reply in [Reply::Unavailable, Reply::Disconnect, Reply::Hang] {
        let (ims, store) = (ims(), Remote::default());
        ims.respond_with(reply);
        let fleet: Vec<_> = (0..10).map(|_| process(&ims, store.clone())).collect();
        fleet.iter().cloned().for_each(ask_every_second);
        sleep(5 * MINUTE).await;

        ims.respond_with(Reply::Token);
        // A request that hangs ends in its timeout first.
        let hangs = if reply == Reply::Hang { secs(11) } else { Duration::ZERO };
        sleep(secs(14) + hangs).await;

        let without = fleet.iter().filter(|it| !it.status().is_ready()).count();
        assert_eq!(without, 0, "{reply:?}");
    }
}

// ---- Stores that panic ----

/// Panics when it is dropped before its time.
struct Bomb(bool);

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(!self.0 || std::thread::panicking(), "a bug of the store");
    }
}

/// A store that panics where one of its calls is given up.
#[derive(Clone)]
struct Bombs {
    inner: MemoryStore,
    in_commit: bool,
}

async fn slowly() {
    let mut bomb = Bomb(true);
    sleep(MINUTE).await;
    bomb.0 = false;
}

impl TokenStore for Bombs {
    async fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> Result<Acquired, StoreError> {
        if !self.in_commit {
            slowly().await;
        }
        self.inner.acquire(key, request).await
    }

    async fn commit(
        &self,
        key: &str,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> Result<CommitOutcome, StoreError> {
        slowly().await;
        self.inner.commit(key, owner, record).await
    }

    async fn changed(&self, _key: &str) {
        slowly().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_panics_in_drop_costs_no_token() {
    for in_commit in [false, true] {
        let ims = ims();
        let tokens = process(&ims, Bombs { inner: MemoryStore::default(), in_commit });

        assert_eq!(token(&tokens).await, "token-1");
        sleep(HOUR).await;

        assert_eq!((token(&tokens).await, ims.asked()), ("token-1".into(), 1));
        assert!(tokens.status().store_error().is_some());
        tokens.shutdown().await.unwrap();
    }
}

// ---- Records that nobody should have written ----

/// A store whose records somebody has changed.
#[derive(Clone)]
struct Forged {
    inner: Remote,
    forge: fn(&str) -> String,
}

impl TokenStore for Forged {
    async fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> Result<Acquired, StoreError> {
        let acquired = self.inner.acquire(key, request).await?;
        let forged = Acquired::new(acquired.record().map(|record| {
            let value = (self.forge)(std::str::from_utf8(record.value()).unwrap());
            StoredRecord::new(record.fencing_token(), value).with_ttl(record.ttl().unwrap())
        }));
        Ok(match acquired.fencing_token() {
            Some(fencing_token) => forged.with_lease(fencing_token),
            None => forged,
        })
    }

    async fn commit(
        &self,
        key: &str,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> Result<CommitOutcome, StoreError> {
        self.inner.commit(key, owner, record).await
    }

    async fn changed(&self, key: &str) {
        self.inner.changed(key).await;
    }
}

/// The token of a process that reads a forged copy of the record of token-1.
async fn token_of_a_forged_record(forge: fn(&str) -> String) -> Result<String, String> {
    let (ims, inner) = (ims(), Remote::default());
    token(&process(&ims, inner.clone())).await;
    sleep(secs(1)).await;
    let token = process(&ims, Forged { inner, forge }).token().await;
    token.map(|token| token.expose_secret().to_owned()).map_err(|error| error.to_string())
}

#[tokio::test(start_paused = true)]
async fn a_forged_stamp_is_ignored() {
    // The record holds `"stamp":1795783352000`, among others.
    let token = token_of_a_forged_record(|text| {
        let (start, rest) = text.split_once(r#""stamp":"#).unwrap();
        let rest = rest.trim_start_matches(|digit: char| digit.is_ascii_digit());
        format!(r#"{start}"stamp":{}{rest}"#, u64::MAX)
    });

    assert_eq!(token.await, Ok("token-2".into()));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_no_header_value_is_ignored() {
    for forge in [
        (|text| text.replace("token-1", r"token\n1")) as fn(&str) -> String,
        |text| text.replace("token-1", ""),
        |text| text.replace(r#""stamp""#, r#""client_id":"a\nb","stamp""#),
    ] {
        assert_eq!(token_of_a_forged_record(forge).await, Ok("token-2".into()));
    }
}

// ---- A store that keeps no record ----

/// A database whose column is too short for a record.
#[derive(Clone, Default)]
struct TooShort(MemoryStore);

impl TokenStore for TooShort {
    async fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> Result<Acquired, StoreError> {
        self.0.acquire(key, request).await
    }

    async fn commit(
        &self,
        key: &str,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> Result<CommitOutcome, StoreError> {
        match record {
            Some(_) => Err(StoreError::new("value too long for type character varying(255)")),
            None => self.0.commit(key, owner, None).await,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_keeps_no_record_delays_nobody() {
    let (ims, store) = (ims(), TooShort::default());
    let first = process(&ims, store.clone());
    token(&first).await;
    sleep(secs(1)).await;

    let start = Instant::now();
    token(&process(&ims, store)).await;

    assert_eq!(start.elapsed(), millis(200), "as without a store");
    let error = first.status().store_error().unwrap().source().unwrap().to_string();
    assert!(error.contains("too long"), "{error}");
}

// ---- A store that does not count the time to live ----

#[derive(Clone, Default)]
struct Uncounted(MemoryStore);

impl TokenStore for Uncounted {
    async fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> Result<Acquired, StoreError> {
        let acquired = self.0.acquire(key, request).await?;
        let record = acquired.record();
        let record = record.map(|it| StoredRecord::new(it.fencing_token(), it.value()));
        Ok(match acquired.fencing_token() {
            Some(fencing_token) => Acquired::new(record).with_lease(fencing_token),
            None => Acquired::new(record),
        })
    }

    async fn commit(
        &self,
        key: &str,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> Result<CommitOutcome, StoreError> {
        self.0.commit(key, owner, record).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_clock_hours_ahead_holds_nobody_up() {
    for reply in [Reply::Unavailable, Reply::Rejected] {
        let (ims, store) = (ims(), Uncounted::default());
        ims.respond_with(reply);
        let clock = wall_clock();
        let ahead = move || clock() + 2 * HOUR;
        let ahead = ims.builder().store(store.clone()).wall_clock(ahead).build().unwrap();
        ahead.token().await.unwrap_err();
        ims.respond_with(Reply::Token);
        ahead.shutdown().await.unwrap();
        sleep(MINUTE).await;

        assert_eq!(token(&process(&ims, store)).await, format!("token-{}", ims.asked()));
    }
}

// ---- Notifications ----

/// Credentials in a vault that is sealed at times.
#[derive(Clone, Default)]
struct Vault(Arc<AtomicBool>);

impl ProvideCredentials for Vault {
    async fn credentials(&self) -> Result<Credentials, BoxError> {
        match self.0.load(Ordering::SeqCst) {
            true => Err("the vault is sealed".into()),
            false => Ok(Credentials::new("client-id", "client-secret")),
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_vault_that_is_sealed_hides_no_notification() {
    let (ims, store, vault) = (ims(), Remote::default(), Vault::default());
    let transport = ims.transport();
    let tokens = TokenSource::builder_from_provider(vault.clone())
        .map_ims(|client| client.transport(transport))
        .store(store.clone())
        .wall_clock(wall_clock())
        .build()
        .unwrap();
    let other = process(&ims, store.clone());
    assert_eq!((token(&tokens).await, token(&other).await), ("token-1".into(), "token-1".into()));
    // The watcher reads the credentials once an hour, and does so while the vault is sealed.
    sleep(HOUR - secs(10)).await;
    vault.0.store(true, Ordering::SeqCst);
    sleep(secs(60)).await;

    other.refresh().await.unwrap();
    vault.0.store(false, Ordering::SeqCst);
    sleep(2 * MINUTE).await;

    assert_eq!(cached(&tokens).unwrap(), "token-2");
}
