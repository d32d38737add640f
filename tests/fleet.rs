//! Many processes and one store, while IMS or an API is in trouble: what the whole fleet asks.

#![allow(clippy::unwrap_used)]

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_adobe_auth::{
    Acquired, AdobeAuthLayer, BoxError, CommitOutcome, Credentials, ErrorKind, ImsClientBuilder,
    LeaseRequest, MemoryStore, ProvideCredentials, StoreError, StoreKey, StoredRecord, TokenError,
    TokenSource, TokenSourceBuilder, TokenStore,
};

/// A status and its `Retry-After`.
type Trouble = (u16, Option<u64>);

/// An IMS that answers `token-1`, `token-2`, …, or what it was told to.
#[derive(Clone, Default)]
struct Ims {
    asked: Arc<Mutex<Vec<Instant>>>,
    trouble: Arc<Mutex<Option<Trouble>>>,
}

impl Ims {
    fn in_trouble(status: u16, retry_after: Option<u64>) -> Self {
        let ims = Self::default();
        ims.set_trouble(Some((status, retry_after)));
        ims
    }

    fn set_trouble(&self, trouble: Option<Trouble>) {
        *self.trouble.lock().unwrap() = trouble;
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    async fn answer(self) -> Result<Response<Full<Bytes>>, Infallible> {
        let number = {
            let mut asked = self.asked.lock().unwrap();
            asked.push(Instant::now());
            asked.len()
        };
        sleep(Duration::from_millis(100)).await;
        let trouble = *self.trouble.lock().unwrap();
        let Some((status, retry_after)) = trouble else {
            let body = format!(r#"{{"access_token":"token-{number}","expires_in":86400}}"#);
            return Ok(Response::new(body.into()));
        };
        let mut response = Response::builder().status(status).header("x-debug-id", "a-debug-id");
        if let Some(retry_after) = retry_after {
            response = response.header("retry-after", retry_after);
        }
        Ok(response.body(r#"{"error":"slow_down"}"#.into()).unwrap())
    }

    fn builder(&self, store: impl TokenStore) -> TokenSourceBuilder<ImsClientBuilder> {
        let credentials = Credentials::new("client-id", "client-secret");
        self.asked_by(TokenSource::builder(credentials), store)
    }

    fn asked_by(
        &self,
        builder: TokenSourceBuilder<ImsClientBuilder>,
        store: impl TokenStore,
    ) -> TokenSourceBuilder<ImsClientBuilder> {
        let ims = self.clone();
        let ims = service_fn(move |_: Request<Full<Bytes>>| ims.clone().answer());
        builder.map_ims(|client| client.transport(ims)).store(store)
    }

    /// A source as another process would have it.
    fn process(&self, store: impl TokenStore) -> TokenSource {
        self.builder(store).build().unwrap()
    }

    fn fleet(&self, size: usize, store: &MemoryStore) -> Vec<TokenSource> {
        (0..size).map(|_| self.process(store.clone())).collect()
    }
}

async fn secret(tokens: &TokenSource) -> String {
    tokens.token().await.unwrap().expose_secret().to_owned()
}

/// What fails of a caller that comes each second.
async fn errors(tokens: &TokenSource, seconds: u64) -> Vec<TokenError> {
    let mut errors = Vec::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        errors.extend(tokens.token().await.err());
        sleep(Duration::from_secs(1)).await;
    }
    errors
}

#[tokio::test(start_paused = true)]
async fn a_fleet_asks_an_ims_that_throttles_or_is_down_hardly_more_often_than_one_process_would() {
    // Without `Retry-After` one process asks nine or ten times, and a fleet mostly twelve to fourteen.
    for (status, retry_after, kind, most) in [
        (429, Some(30), ErrorKind::Throttled, 3),
        (503, Some(30), ErrorKind::Unavailable, 3),
        (429, None, ErrorKind::Throttled, 20),
        (503, None, ErrorKind::Unavailable, 20),
    ] {
        let ims = Ims::in_trouble(status, retry_after);
        let fleet = ims.fleet(50, &MemoryStore::default());

        let errors = join_all(fleet.iter().map(|tokens| errors(tokens, 60))).await.concat();

        assert!(ims.asked() <= most, "{status} {retry_after:?}: {} requests", ims.asked());
        assert!(!errors.is_empty());
        for error in errors {
            assert_eq!(error.kind(), kind);
            assert_eq!(error.status().unwrap().as_u16(), status);
            assert_eq!(error.oauth_error(), Some("slow_down"));
            assert_eq!(error.debug_id(), Some("a-debug-id"));
            assert!(error.is_transient());
            assert!(error.retry_in().is_some());
            assert_eq!(error.retry_after().is_some(), retry_after.is_some());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_that_starts_while_ims_throttles_is_told_so_at_once_and_keeps_to_retry_after() {
    let (ims, store) = (Ims::in_trouble(429, Some(60)), MemoryStore::default());
    ims.process(store.clone()).token().await.unwrap_err();
    let told = Instant::now();
    ims.set_trouble(None);
    sleep(Duration::from_secs(20)).await;

    let starts = ims.process(store);
    let error = starts.token().await.unwrap_err();

    assert!(told.elapsed() < Duration::from_secs(21), "{:?}", told.elapsed());
    let retry_in = error.retry_in().unwrap();
    let left = Duration::from_secs(39)..Duration::from_secs(41);
    assert!(left.contains(&retry_in), "{retry_in:?}");
    assert_eq!(ims.asked(), 1);
    sleep(retry_in).await;
    assert_eq!(secret(&starts).await, "token-2");
    assert!(told.elapsed() >= Duration::from_secs(60), "{:?}", told.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_fleet_recovers_with_one_request_when_ims_is_back() {
    let (ims, store) = (Ims::in_trouble(503, None), MemoryStore::default());
    let fleet = ims.fleet(50, &store);
    join_all(fleet.iter().map(|tokens| errors(tokens, 60))).await;
    let before = ims.asked();

    ims.set_trouble(None);
    // What another was told holds for a minute at most, and so does a pause of one's own after it.
    sleep(Duration::from_secs(121)).await;

    let tokens = join_all(fleet.iter().map(secret)).await;
    assert!(tokens.iter().all(|token| *token == tokens[0]), "{tokens:?}");
    // One may have been under way.
    assert!(ims.asked() <= before + 1);
}

#[tokio::test(start_paused = true)]
async fn valid_tokens_are_served_while_ims_throttles() {
    let (ims, store) = (Ims::default(), MemoryStore::default());
    let fleet = ims.fleet(20, &store);
    join_all(fleet.iter().map(secret)).await;
    sleep(Duration::from_secs(22 * 3_600)).await;
    ims.set_trouble(Some((429, Some(300))));

    for _ in 0..110 {
        sleep(Duration::from_secs(60)).await;
        for tokens in &fleet {
            assert_eq!(secret(tokens).await, "token-1");
        }
    }

    // For less than an hour and a quarter, one each five minutes.
    assert!(ims.asked() <= 1 + 15, "{}", ims.asked());
}

#[tokio::test(start_paused = true)]
async fn what_may_be_the_fault_of_one_process_holds_up_no_other() {
    // A rejection holds for those who have the same secret.
    for (status, secret_of_good) in
        [(400, "other-secret"), (401, "other-secret"), (408, "client-secret")]
    {
        let (bad, good) = (Ims::in_trouble(status, None), Ims::default());
        let store = MemoryStore::default();
        bad.process(store.clone()).token().await.unwrap_err();

        let credentials = Credentials::new("client-id", secret_of_good);
        let other = good.asked_by(TokenSource::builder(credentials), store).build().unwrap();
        assert_eq!(secret(&other).await, "token-1");
    }
}

/// The ways to fail of a proxy that stands between one process and IMS.
const OF_A_PROXY: [Trouble; 4] = [(502, None), (503, None), (503, Some(30)), (429, Some(30))];

#[tokio::test(start_paused = true)]
async fn a_process_behind_a_bad_proxy_of_its_own_keeps_nobody_from_ims() {
    for (status, retry_after) in OF_A_PROXY {
        let (bad, good) = (Ims::in_trouble(status, retry_after), Ims::default());
        let store = MemoryStore::default();
        let behind = bad.process(store.clone());
        tokio::spawn(async move { errors(&behind, 86_400).await });
        sleep(Duration::from_secs(600)).await;

        let starts = good.process(store);
        let start = Instant::now();
        while starts.token().await.is_err() {
            // Each of the two is as likely as the other to be the next one to try.
            assert!(start.elapsed() < Duration::from_secs(3_600), "{status} {retry_after:?}");
            sleep(Duration::from_secs(1)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn no_fleet_runs_out_of_tokens_for_a_bad_proxy_of_one_process() {
    for (status, retry_after) in OF_A_PROXY {
        let (bad, good) = (Ims::in_trouble(status, retry_after), Ims::default());
        let store = MemoryStore::default();
        let fleet = good.fleet(20, &store);
        join_all(fleet.iter().map(secret)).await;
        // It renews before the others, and is the first one to be told something.
        let behind = bad.builder(store).refresh_at(0.9).build().unwrap();
        secret(&behind).await;

        for _ in 0..30 * 60 {
            sleep(Duration::from_secs(60)).await;
            join_all(fleet.iter().map(secret)).await;
        }

        assert!(good.asked() <= 3, "{status} {retry_after:?}: {}", good.asked());
    }
}

#[tokio::test(start_paused = true)]
async fn retry_after_holds_also_while_a_token_of_the_store_serves_that_is_due() {
    let (ims, store) = (Ims::default(), MemoryStore::default());
    let gone = ims.process(store.clone());
    secret(&gone).await;
    gone.shutdown().await.unwrap();
    sleep(Duration::from_secs(23 * 3_600 + 600)).await;
    ims.set_trouble(Some((429, Some(300))));

    let fleet: Vec<_> = (0..3).map(|_| ims.process(store.clone())).collect();
    for _ in 0..290 {
        assert!(join_all(fleet.iter().map(secret)).await.iter().all(|token| token == "token-1"));
        sleep(Duration::from_secs(1)).await;
    }

    assert_eq!(ims.asked(), 2, "the token, and the request that was told to wait");
}

/// Keeps every record for ever, and counts no time to live down.
#[derive(Clone, Default)]
struct Hoard(Arc<Mutex<std::collections::HashMap<String, StoredRecord>>>, MemoryStore);

impl TokenStore for Hoard {
    async fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> Result<Acquired, StoreError> {
        let kept = self.0.lock().unwrap().get(key).cloned();
        let kept = kept.map(|kept| StoredRecord::new(kept.fencing_token(), kept.value()));
        let unread = |request: &&LeaseRequest| {
            kept.as_ref().is_none_or(|kept| kept.fencing_token() <= request.seen())
        };
        let request = request.filter(unread);
        let leased = self.1.acquire(key, request).await?;
        Ok(match leased.fencing_token() {
            Some(token) => Acquired::new(kept).with_lease(token),
            None => Acquired::new(kept),
        })
    }

    async fn commit(
        &self,
        key: &str,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> Result<CommitOutcome, StoreError> {
        if let Some(record) = record {
            self.0.lock().unwrap().insert(key.to_owned(), record.clone());
        }
        let _ = self.1.commit(key, owner, None).await?;
        Ok(CommitOutcome::Committed)
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_keeps_a_notice_for_ever_holds_up_nobody_for_longer_than_ims_asked() {
    let (ims, store) = (Ims::in_trouble(429, Some(60)), Hoard::default());
    // Tokio's clock is paused, and moves on by the sleeps; the wall clock is to go with it.
    let (start, wall) = (Instant::now(), std::time::SystemTime::now());
    let process =
        || ims.builder(store.clone()).wall_clock(move || wall + start.elapsed()).build().unwrap();
    process().token().await.unwrap_err();
    ims.set_trouble(None);
    process().token().await.unwrap_err();

    sleep(Duration::from_secs(61)).await;

    assert_eq!(secret(&process()).await, "token-2");
}

#[tokio::test(start_paused = true)]
async fn with_a_key_the_words_of_ims_are_encrypted_and_a_notice_in_clear_is_none() {
    let (ims, store) = (Ims::in_trouble(429, Some(60)), Hoard::default());
    let encrypted =
        || ims.builder(store.clone()).encrypt_with(StoreKey::new("key", [1; 32])).build().unwrap();
    encrypted().token().await.unwrap_err();
    for kept in store.0.lock().unwrap().values() {
        assert!(!String::from_utf8_lossy(kept.value()).contains("slow_down"));
    }
    ims.process(store.clone()).token().await.unwrap_err();
    assert_eq!(ims.asked(), 2, "an encrypted failure is ignored without the key");
    encrypted().token().await.unwrap_err();
    assert_eq!(
        ims.asked(),
        2,
        "the failure of a process without the key replaced the encrypted one"
    );

    store.0.lock().unwrap().clear();
    ims.process(store.clone()).token().await.unwrap_err();
    ims.set_trouble(None);

    assert_eq!(secret(&encrypted()).await, "token-4", "a failure in clear was believed");
}

/// Calls an API that answers 401 to each token, as a client does that sends refused requests again.
async fn call(tokens: &TokenSource) -> StatusCode {
    let api = service_fn(|_: Request<()>| async {
        let response = Response::builder().status(StatusCode::UNAUTHORIZED).body(());
        Ok::<_, BoxError>(response.unwrap())
    });
    let client = AdobeAuthLayer::new(tokens.clone()).replay_unauthorized().layer(api);
    let request = Request::get("https://firefly-api.adobe.io/v3/models").body(()).unwrap();
    client.oneshot(request).await.unwrap().status()
}

#[tokio::test(start_paused = true)]
async fn an_api_that_refuses_every_token_costs_a_fleet_as_many_tokens_as_one_process() {
    // All of them hear of it together, or one after the other.
    for apart in [0, 50, 2_500] {
        let (ims, store) = (Ims::default(), MemoryStore::default());
        let fleet = ims.fleet(20, &store);
        join_all(fleet.iter().map(secret)).await;

        let storm = fleet.iter().enumerate().map(|(number, tokens)| async move {
            sleep(Duration::from_millis(number as u64 * apart)).await;
            let end = Instant::now() + Duration::from_secs(59);
            while Instant::now() < end {
                assert_eq!(call(tokens).await, StatusCode::UNAUTHORIZED);
                sleep(Duration::from_secs(1)).await;
            }
        });
        join_all(storm).await;

        let asked = ims.asked.lock().unwrap().clone();
        let most_a_minute = asked.iter().map(|from| {
            asked
                .iter()
                .filter(|at| **at >= *from && **at < *from + Duration::from_secs(60))
                .count()
        });
        assert!(most_a_minute.clone().max() <= Some(3), "{apart}: {asked:?}");
        // It is their own token that is refused, and no error of IMS.
        for tokens in &fleet {
            assert!(tokens.status().is_ready());
            assert!(tokens.status().last_error().is_none());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_revoked_a_minute_after_a_storm_is_replaced() {
    let (ims, store) = (Ims::default(), MemoryStore::default());
    let fleet = ims.fleet(3, &store);
    join_all(fleet.iter().map(secret)).await;
    for tokens in &fleet[..2] {
        call(tokens).await;
    }
    let before = ims.asked();
    assert_eq!(before, 3);

    sleep(Duration::from_secs(61)).await;
    call(&fleet[2]).await;

    assert!(ims.asked() > before);
}

/// Credentials that become others.
#[derive(Clone)]
struct Moving(Arc<Mutex<&'static str>>);

impl ProvideCredentials for Moving {
    async fn credentials(&self) -> Result<Credentials, BoxError> {
        Ok(Credentials::new(*self.0.lock().unwrap(), "client-secret"))
    }
}

#[tokio::test(start_paused = true)]
async fn who_has_other_credentials_by_now_takes_no_token_of_the_old_ones() {
    let (ims, store) = (Ims::default(), MemoryStore::default());
    let id = Arc::new(Mutex::new("client-id"));
    let moves = TokenSource::builder_from_provider(Moving(Arc::clone(&id)));
    let moves = ims.asked_by(moves, store.clone()).build().unwrap();
    let stays = ims.process(store);
    assert_eq!((secret(&moves).await, secret(&stays).await), ("token-1".into(), "token-1".into()));
    *id.lock().unwrap() = "other-client-id";
    moves.refresh().await.unwrap();

    // Twice, so that its version is the higher one.
    stays.refresh().await.unwrap();
    stays.refresh().await.unwrap();
    sleep(Duration::from_secs(31)).await;

    assert_eq!((secret(&moves).await, secret(&stays).await), ("token-2".into(), "token-4".into()));
}

/// Credentials whose secret becomes another, which one process sees earlier than the next.
#[derive(Clone, Default)]
struct Rotating {
    seen: Arc<AtomicBool>,
    told: Arc<Notify>,
}

impl ProvideCredentials for Rotating {
    async fn credentials(&self) -> Result<Credentials, BoxError> {
        let secret = if self.seen.load(Ordering::SeqCst) { "new" } else { "old" };
        Ok(Credentials::new("client-id", secret))
    }

    async fn changed(&self) {
        self.told.notified().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_secret_that_all_see_within_two_minutes_costs_a_fleet_one_token() {
    for apart in [0, 2, 90] {
        let (ims, store) = (Ims::default(), MemoryStore::default());
        let secrets: Vec<_> = (0..40).map(|_| Rotating::default()).collect();
        let fleet = secrets.iter().map(|credentials| {
            let builder = TokenSource::builder_from_provider(credentials.clone());
            ims.asked_by(builder, store.clone()).build().unwrap()
        });
        let fleet: Vec<_> = fleet.collect();
        join_all(fleet.iter().map(secret)).await;
        sleep(Duration::from_secs(3_600)).await;
        assert_eq!(ims.asked(), 1);

        for credentials in &secrets {
            credentials.seen.store(true, Ordering::SeqCst);
            credentials.told.notify_one();
            sleep(Duration::from_millis(1_000 * apart / 40)).await;
        }
        sleep(Duration::from_secs(60)).await;

        let tokens = join_all(fleet.iter().map(secret)).await;
        assert!(tokens.iter().all(|token| token == "token-2"), "{apart}: {tokens:?}");
        assert_eq!(ims.asked(), 2, "{apart}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_secret_is_tried_where_the_token_is_an_old_one() {
    let (ims, store) = (Ims::default(), MemoryStore::default());
    let credentials = Rotating::default();
    let builder = TokenSource::builder_from_provider(credentials.clone());
    let tokens = ims.asked_by(builder, store).build().unwrap();
    secret(&tokens).await;
    sleep(Duration::from_secs(121)).await;

    credentials.seen.store(true, Ordering::SeqCst);
    credentials.told.notify_one();
    sleep(Duration::from_secs(2)).await;

    assert_eq!(tokens.try_token().unwrap().expose_secret(), "token-2");
}
