//! One token for many processes: what a source does with a token store, and without it.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio::time::{Instant, advance, sleep, timeout};
use tower::{Layer, ServiceExt, service_fn};
use tower_adobe_auth::{
    Acquired, AdobeAuthLayer, BoxError, CommitOutcome, Credentials, FetchToken, LeaseRequest,
    MemoryStore, ProvideCredentials, StoreError, StoreKey, StoredRecord, TokenError, TokenResponse,
    TokenSource, TokenStore,
};

const DAY: Duration = Duration::from_secs(86_400);
const FIREFLY: &str = "https://firefly-api.adobe.io/v3/models";

/// What an IMS of a whole test has issued: `token-1`, `token-2`, …
#[derive(Clone, Default)]
struct Ims {
    asked: Arc<AtomicUsize>,
    /// Answers with an error.
    down: Arc<Mutex<bool>>,
}

impl Ims {
    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn set_down(&self, down: bool) {
        *self.down.lock().unwrap() = down;
    }

    /// Tokens of this life.
    fn fetcher(&self, lifetime: Duration) -> Fetcher {
        Fetcher { ims: self.clone(), lifetime }
    }

    /// A source as another process would have it.
    fn process(&self, store: impl TokenStore) -> TokenSource {
        TokenSource::builder_from_fetcher(self.fetcher(DAY))
            .store(store)
            .store_name("test")
            .wall_clock(support::wall_clock())
            .build()
            .unwrap()
    }
}

struct Fetcher {
    ims: Ims,
    lifetime: Duration,
}

impl FetchToken for Fetcher {
    async fn fetch_token(&self) -> Result<TokenResponse, TokenError> {
        let number = self.ims.asked.fetch_add(1, Ordering::SeqCst) + 1;
        sleep(Duration::from_millis(100)).await;
        if *self.ims.down.lock().unwrap() {
            return Err(TokenError::transient("down"));
        }
        Ok(TokenResponse::new(format!("token-{number}"), self.lifetime))
    }
}

async fn secret(tokens: &TokenSource) -> String {
    tokens.token().await.unwrap().expose_secret().to_owned()
}

/// Waits until the last refresh has stored its outcome, for which no caller waits.
async fn stored() {
    sleep(Duration::from_millis(1)).await;
}

/// How a store misbehaves.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Mood {
    Well,
    Fails,
    Hangs,
    Panics,
    /// Says that it has saved, and has not.
    Lies,
    /// Each call takes this long.
    Slow(Duration),
}

/// A store in a mood, which counts what it is asked.
#[derive(Clone)]
struct Moody {
    inner: MemoryStore,
    mood: Arc<Mutex<Mood>>,
    calls: Arc<AtomicUsize>,
    saved: Arc<Mutex<Option<StoredRecord>>>,
    planted: Arc<Mutex<Option<Vec<u8>>>>,
}

impl Moody {
    fn new(mood: Mood) -> Self {
        Self {
            inner: MemoryStore::default(),
            mood: Arc::new(Mutex::new(mood)),
            calls: Arc::default(),
            saved: Arc::default(),
            planted: Arc::default(),
        }
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// The value that was saved last, as text.
    fn text(&self) -> String {
        let saved = self.saved.lock().unwrap();
        String::from_utf8(saved.as_ref().unwrap().value().to_vec()).unwrap()
    }

    /// Gives this value out in place of the one that was saved, until the next one is.
    fn plant(&self, value: impl Into<Vec<u8>>) {
        *self.planted.lock().unwrap() = Some(value.into());
    }

    async fn mind(&self) -> Result<(), StoreError> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let mood = *self.mood.lock().unwrap();
        match mood {
            Mood::Well | Mood::Lies => Ok(()),
            Mood::Fails => Err(StoreError::new("out of order")),
            Mood::Hangs => pending().await,
            Mood::Panics => panic!("a bug in the store"),
            Mood::Slow(time) => {
                sleep(time).await;
                Ok(())
            }
        }
    }
}

impl TokenStore for Moody {
    async fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> Result<Acquired, StoreError> {
        self.mind().await?;
        let acquired = self.inner.acquire(key, request).await?;
        let planted = self.planted.lock().unwrap().clone();
        let (Some(record), Some(value)) = (acquired.record(), planted) else {
            return Ok(acquired);
        };
        let planted = StoredRecord::new(record.fencing_token(), value).with_ttl(DAY);
        Ok(match acquired.fencing_token() {
            Some(token) => Acquired::new(Some(planted)).with_lease(token),
            None => Acquired::new(Some(planted)),
        })
    }

    async fn commit(
        &self,
        key: &str,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> Result<CommitOutcome, StoreError> {
        self.mind().await?;
        if *self.mood.lock().unwrap() == Mood::Lies && record.is_some() {
            let _ = self.inner.commit(key, owner, None).await?;
            return Ok(CommitOutcome::Committed);
        }
        if let Some(record) = record {
            *self.saved.lock().unwrap() = Some(record.clone());
            *self.planted.lock().unwrap() = None;
        }
        self.inner.commit(key, owner, record).await
    }
}

#[tokio::test(start_paused = true)]
async fn fifty_processes_that_start_at_once_ask_once() {
    let (ims, store) = (Ims::default(), MemoryStore::default());
    let fleet: Vec<_> = (0..50).map(|_| ims.process(store.clone())).collect();

    let tokens = futures_util::future::join_all(fleet.iter().map(secret)).await;

    assert!(tokens.iter().all(|token| token == "token-1"));
    assert_eq!(ims.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_store_without_notifications_is_polled() {
    let (ims, store) = (Ims::default(), Moody::new(Mood::Well));
    let fleet: Vec<_> = (0..50).map(|_| ims.process(store.clone())).collect();

    let start = Instant::now();
    let tokens = futures_util::future::join_all(fleet.iter().map(secret)).await;

    assert!(tokens.iter().all(|token| token == "token-1"));
    assert_eq!(ims.asked(), 1);
    assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_request_with_a_valid_token_never_touches_the_store() {
    let (ims, store) = (Ims::default(), Moody::new(Mood::Well));
    let tokens = ims.process(store.clone());
    secret(&tokens).await;
    stored().await;
    let before = store.calls();

    store.set(Mood::Panics);
    for _ in 0..100 {
        advance(Duration::from_secs(600)).await;
        assert_eq!(secret(&tokens).await, "token-1");
    }

    assert_eq!(store.calls(), before);
}

#[tokio::test(start_paused = true)]
async fn when_one_process_hangs_another_takes_over_at_the_end_of_its_lease() {
    let (ims, store) = (Ims::default(), MemoryStore::default());
    let hangs = TokenSource::builder_from_fetcher(pending::<Result<TokenResponse, TokenError>>)
        .store(store.clone())
        .store_name("test")
        .build()
        .unwrap();
    assert!(timeout(Duration::from_secs(1), hangs.token()).await.is_err());
    let fleet: Vec<_> = (0..20).map(|_| ims.process(store.clone())).collect();

    let start = Instant::now();
    let tokens = futures_util::future::join_all(fleet.iter().map(secret)).await;

    assert!(tokens.iter().all(|token| token == "token-1"));
    assert_eq!(ims.asked(), 1);
    let took = start.elapsed();
    assert!((Duration::from_secs(14)..Duration::from_secs(16)).contains(&took), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_store_in_a_bad_mood_costs_a_quarter_of_a_second_and_no_token() {
    for mood in [
        Mood::Fails,
        Mood::Hangs,
        Mood::Panics,
        Mood::Slow(Duration::from_secs(2)),
        Mood::Slow(Duration::from_millis(260)),
    ] {
        let (ims, store) = (Ims::default(), Moody::new(mood));
        let tokens = ims.process(store.clone());

        let start = Instant::now();
        assert_eq!(secret(&tokens).await, "token-1", "{mood:?}");

        let cost = start.elapsed() - Duration::from_millis(100);
        assert!(cost <= Duration::from_millis(252), "{mood:?} cost {cost:?}");
        assert!(tokens.status().store_error().is_some(), "{mood:?}");
        assert!(tokens.status().is_ready());
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_lies_about_success_costs_sharing_and_no_token() {
    let (ims, store) = (Ims::default(), Moody::new(Mood::Lies));
    let fleet: Vec<_> = (0..10).map(|_| ims.process(store.clone())).collect();

    let mut tokens = futures_util::future::join_all(fleet.iter().map(secret)).await;

    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!((tokens.len(), ims.asked()), (10, 10));
    store.set(Mood::Well);
    fleet[0].refresh().await.unwrap();
    assert_eq!(fleet[1].refresh().await.unwrap().expose_secret(), "token-11");
}

#[tokio::test(start_paused = true)]
async fn a_source_rejoins_when_the_store_is_back() {
    let (ims, store) = (Ims::default(), Moody::new(Mood::Fails));
    let (one, another) = (ims.process(store.clone()), ims.process(store.clone()));
    assert_eq!((secret(&one).await, secret(&another).await), ("token-1".into(), "token-2".into()));

    store.set(Mood::Well);
    assert_eq!(one.refresh().await.unwrap().expose_secret(), "token-3");
    assert_eq!(another.refresh().await.unwrap().expose_secret(), "token-3");

    assert!(one.status().store_error().is_none());
    assert_eq!(ims.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn one_process_renews_and_the_others_take_the_new_token_before_the_old_one_ends() {
    let (ims, store) = (Ims::default(), MemoryStore::default());
    let fleet: Vec<_> = (0..20).map(|_| ims.process(store.clone())).collect();
    futures_util::future::join_all(fleet.iter().map(secret)).await;

    sleep(Duration::from_secs(23 * 3_600 + 60)).await;

    for tokens in &fleet {
        assert_eq!(secret(tokens).await, "token-2");
    }
    assert_eq!(ims.asked(), 2);
}

/// An API that answers 401 to this token, behind the layer.
async fn call(tokens: &TokenSource, refused: &'static str) -> StatusCode {
    let api = service_fn(move |request: Request<()>| async move {
        let sent = request.headers()["authorization"].to_str().unwrap();
        let ok = sent != format!("Bearer {refused}");
        let status = if ok { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
        Ok::<_, BoxError>(Response::builder().status(status).body(()).unwrap())
    });
    let client = AdobeAuthLayer::new(tokens.clone()).replay_unauthorized().layer(api);
    client.oneshot(Request::get(FIREFLY).body(()).unwrap()).await.unwrap().status()
}

#[tokio::test(start_paused = true)]
async fn a_revoked_token_is_replaced_once_for_all_processes() {
    let (ims, store) = (Ims::default(), MemoryStore::default());
    let fleet: Vec<_> = (0..20).map(|_| ims.process(store.clone())).collect();
    futures_util::future::join_all(fleet.iter().map(secret)).await;

    let calls = fleet.iter().map(|tokens| call(tokens, "token-1"));
    let statuses = futures_util::future::join_all(calls).await;

    assert!(statuses.iter().all(|status| *status == StatusCode::OK), "{statuses:?}");
    assert_eq!(ims.asked(), 2);
    for tokens in &fleet {
        assert_eq!(secret(tokens).await, "token-2");
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_starts_with_a_revoked_token_of_the_store_gets_another() {
    let (ims, store) = (Ims::default(), MemoryStore::default());
    secret(&ims.process(store.clone())).await;
    let starts = ims.process(store);

    assert_eq!(call(&starts, "token-1").await, StatusCode::OK);

    assert_eq!(ims.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_due_is_better_than_none() {
    let (ims, store) = (Ims::default(), MemoryStore::default());
    let dead = ims.process(store.clone());
    secret(&dead).await;
    dead.shutdown().await.unwrap();
    sleep(Duration::from_secs(23 * 3_600 + 1_800)).await;
    ims.set_down(true);

    let starts = ims.process(store);

    assert_eq!(secret(&starts).await, "token-1");
    sleep(Duration::from_secs(60)).await;
    assert_eq!(secret(&starts).await, "token-1");
    assert!(ims.asked() < 20, "IMS is left alone: {} requests", ims.asked());
    ims.set_down(false);
    sleep(Duration::from_secs(300)).await;
    assert_ne!(secret(&starts).await, "token-1");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_fails_gives_its_lease_back() {
    let (ims, store) = (Ims::default(), MemoryStore::default());
    ims.set_down(true);
    let fails = ims.process(store.clone());
    fails.token().await.unwrap_err();
    ims.set_down(false);

    let start = Instant::now();
    secret(&ims.process(store)).await;

    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn clocks_two_minutes_apart_do_not_matter_where_the_store_counts_a_life_down() {
    let (ims, store) = (Ims::default(), MemoryStore::default());
    let behind = |secs: i64| {
        let apart = Duration::from_secs(secs.unsigned_abs());
        TokenSource::builder_from_fetcher(ims.fetcher(Duration::from_secs(90)))
            .store(store.clone())
            .store_name("test")
            .wall_clock(move || {
                let now = SystemTime::now();
                if secs < 0 { now + apart } else { now - apart }
            })
            .refresh_on_demand()
            .build()
            .unwrap()
    };
    let (exact, early, late) = (behind(0), behind(120), behind(-120));

    for tokens in [&exact, &early, &late] {
        assert_eq!(secret(tokens).await, "token-1");
    }
    sleep(Duration::from_secs(88)).await;

    for tokens in [&early, &late, &exact] {
        assert_eq!(secret(tokens).await, "token-2");
    }
}

fn with_keys(ims: &Ims, store: &Moody, write: &StoreKey, read: &[StoreKey]) -> TokenSource {
    let builder = TokenSource::builder_from_fetcher(ims.fetcher(DAY))
        .store(store.clone())
        .store_name("test")
        .encrypt_with(write.clone());
    read.iter().cloned().fold(builder, |builder, key| builder.also_read_with(key)).build().unwrap()
}

#[tokio::test(start_paused = true)]
async fn with_a_key_the_store_does_not_see_the_token_and_keys_can_be_rotated() {
    let (ims, store) = (Ims::default(), Moody::new(Mood::Well));
    let (old, new) = (StoreKey::new("old", [1; 32]), StoreKey::new("new", [2; 32]));

    assert_eq!(secret(&with_keys(&ims, &store, &old, &[])).await, "token-1");
    stored().await;
    assert!(!store.text().contains("token-1"), "{}", store.text());
    assert_eq!(secret(&with_keys(&ims, &store, &old, std::slice::from_ref(&new))).await, "token-1");
    let rotated = with_keys(&ims, &store, &new, std::slice::from_ref(&old));
    assert_eq!(secret(&rotated).await, "token-1");
    assert_eq!(rotated.refresh().await.unwrap().expose_secret(), "token-2");
    let late = with_keys(&ims, &store, &old, &[new]);

    assert_eq!(secret(&late).await, "token-2");
    assert_eq!(ims.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_value_that_was_tampered_with_is_a_miss() {
    let (ims, store) = (Ims::default(), Moody::new(Mood::Well));
    let key = StoreKey::new("one", [1; 32]);
    secret(&with_keys(&ims, &store, &key, &[])).await;
    stored().await;
    let good = store.text();
    let planted = r#"{"format":2,"key":"","fencing_token":1,"clear":{"committed_at":0,"kept_for":9999999999999,"token":{"access_token":"evil","stamp":1,"sent_at":0,"expires_at":9999999999999}}}"#;

    for (count, value) in [
        planted.to_owned(),
        String::new(),
        "null".to_owned(),
        good.replace("one", "two"),
        good[..good.len() / 2].to_owned(),
        "[".repeat(50_000),
    ]
    .into_iter()
    .enumerate()
    {
        store.plant(value);
        let token = secret(&with_keys(&ims, &store, &key, &[])).await;
        stored().await;

        assert_eq!(token, format!("token-{}", count + 2));
    }
}

#[tokio::test(start_paused = true)]
async fn a_flight_on_a_wait_for_others_is_still_one_flight() {
    let (ims, store) = (Ims::default(), MemoryStore::default());
    let hangs = TokenSource::builder_from_fetcher(pending::<Result<TokenResponse, TokenError>>)
        .store(store.clone())
        .store_name("test")
        .build()
        .unwrap();
    assert!(timeout(Duration::from_secs(1), hangs.token()).await.is_err());
    let tokens = ims.process(store);

    let callers = futures_util::future::join_all((0..100).map(|_| secret(&tokens))).await;

    assert!(callers.iter().all(|token| token == "token-1"));
    assert_eq!(ims.asked(), 1);
}

/// Credentials that are read from far away.
struct Vault;

impl ProvideCredentials for Vault {
    async fn credentials(&self) -> Result<Credentials, BoxError> {
        sleep(Duration::from_millis(700)).await;
        Ok(Credentials::new("client-id", "client-secret"))
    }
}

#[tokio::test(start_paused = true)]
async fn credentials_that_take_their_time_are_not_the_fault_of_the_store() {
    let asked = Arc::new(AtomicUsize::new(0));
    let store = MemoryStore::default();
    let process = || {
        let asked = Arc::clone(&asked);
        let ims = service_fn(move |_: Request<Full<Bytes>>| {
            let number = asked.fetch_add(1, Ordering::SeqCst) + 1;
            let body = format!(r#"{{"access_token":"token-{number}","expires_in":86400}}"#);
            async { Ok::<_, BoxError>(Response::new(Full::<Bytes>::from(body))) }
        });
        TokenSource::builder_from_provider(Vault)
            .map_ims(|client| client.transport(ims))
            .store(store.clone())
            .build()
            .unwrap()
    };
    let fleet: Vec<_> = (0..10).map(|_| process()).collect();

    let tokens = futures_util::future::join_all(fleet.iter().map(secret)).await;

    assert!(tokens.iter().all(|token| token == "token-1"), "{tokens:?}");
    assert!(fleet.iter().all(|tokens| tokens.status().store_error().is_none()));
}

#[test]
fn a_store_that_cannot_be_used_is_an_error_of_the_builder() {
    let ims = Ims::default();
    let builder =
        || TokenSource::builder_from_fetcher(ims.fetcher(DAY)).store(MemoryStore::default());
    let key = |byte| StoreKey::new("one", [byte; 32]);

    builder().build().unwrap_err();
    builder().store_name("a").build().unwrap();
    builder().store_name("a").store_timeout(Duration::ZERO).build().unwrap_err();
    builder().store_name("a").lease_ttl(Duration::ZERO).build().unwrap_err();
    builder().store_name("a").also_read_with(key(1)).build().unwrap_err();
    builder().store_name("a").encrypt_with(key(1)).also_read_with(key(2)).build().unwrap_err();
    StoreKey::from_base64("a", "c2hvcnQ=").unwrap_err();
    StoreKey::from_base64(
        "a",
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=
",
    )
    .unwrap();
}

#[tokio::test]
async fn no_debug_shows_a_token_or_a_key() {
    let (ims, store) = (Ims::default(), Moody::new(Mood::Well));
    secret(&ims.process(store.clone())).await;
    sleep(Duration::from_millis(100)).await;
    let key = StoreKey::new("id", [0x41; 32]);
    let builder =
        TokenSource::builder_from_fetcher(ims.fetcher(DAY)).store(store.clone()).encrypt_with(key);

    let saved = store.saved.lock().unwrap().clone().unwrap();
    let text = format!("{builder:?} {saved:?} {:?}", store.inner);

    assert!(String::from_utf8_lossy(saved.value()).contains("token-1"));
    for secret in ["token-1", "65, 65", "AAAA", "116, 111, 107"] {
        assert!(!text.contains(secret), "{secret} in {text}");
    }
}
