//! A token that one process saves is taken by the others while their own is still good.

#![cfg(feature = "store")]
#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use http::{Request, Response, StatusCode};
use tokio::time::sleep;
use tower::{Layer, ServiceExt, service_fn};
use tower_adobe_auth::{
    Acquired, AdobeAuthLayer, BoxError, CommitOutcome, LeaseRequest, MemoryStore, StoreError,
    StoredRecord, TokenError, TokenResponse, TokenSource, TokenStore,
};

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3_600);

/// The time after which what one process saved is known to the others.
const SOON: Duration = Duration::from_secs(31);

/// How many tokens there have been: `token-1`, `token-2`, …
type Asked = Arc<AtomicUsize>;

fn process(asked: &Asked, store: impl TokenStore) -> TokenSource {
    source(asked, store, true)
}

fn source(asked: &Asked, store: impl TokenStore, background: bool) -> TokenSource {
    let asked = Arc::clone(asked);
    let fetch = move || {
        let number = asked.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            sleep(Duration::from_millis(100)).await;
            Ok(TokenResponse::new(format!("token-{number}"), DAY))
        }
    };
    let builder = TokenSource::builder_from_fetcher(fetch).store(store).store_name("test");
    if background { builder } else { builder.refresh_on_demand() }.build().unwrap()
}

async fn fleet(asked: &Asked, store: &MemoryStore, size: usize) -> Vec<TokenSource> {
    let fleet: Vec<_> = (0..size).map(|_| process(asked, store.clone())).collect();
    for tokens in &fleet {
        assert_eq!(tokens.token().await.unwrap().expose_secret(), "token-1");
    }
    fleet
}

/// The token in hand: no flight is started for it.
fn in_hand(tokens: &TokenSource) -> String {
    tokens.try_token().unwrap().expose_secret().to_owned()
}

/// One call to an API that refuses `refused`.
async fn call(tokens: &TokenSource, refused: &'static str) -> StatusCode {
    let api = service_fn(move |request: Request<()>| async move {
        let sent = request.headers()["authorization"].to_str().unwrap();
        let ok = sent != format!("Bearer {refused}");
        let status = if ok { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
        Ok::<_, BoxError>(Response::builder().status(status).body(()).unwrap())
    });
    let client = AdobeAuthLayer::new(tokens.clone()).replay_unauthorized().layer(api);
    let request = Request::get("https://firefly-api.adobe.io/v3/models").body(()).unwrap();
    client.oneshot(request).await.unwrap().status()
}

#[tokio::test(start_paused = true)]
async fn a_401_in_one_process_makes_all_others_drop_the_token() {
    let (asked, store) = (Asked::default(), MemoryStore::default());
    let fleet = fleet(&asked, &store, 50).await;

    assert_eq!(call(&fleet[0], "token-1").await, StatusCode::OK);
    sleep(SOON).await;

    for tokens in &fleet {
        assert_eq!(in_hand(tokens), "token-2");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn the_others_do_not_look_all_at_once() {
    let (asked, store) = (Asked::default(), MemoryStore::default());
    let fleet = fleet(&asked, &store, 100).await;
    fleet[0].refresh().await.unwrap();

    let mut before = 1;
    let mut busiest = 0;
    for _ in 0..31 {
        sleep(SOON / 31).await;
        let now = fleet.iter().filter(|tokens| in_hand(tokens) == "token-2").count();
        busiest = busiest.max(now - before);
        before = now;
    }

    assert_eq!(before, 100);
    assert!(busiest < 20, "{busiest} of 100 looked within a second");
}

#[tokio::test(start_paused = true)]
async fn a_process_that_backs_off_takes_the_token_that_another_one_got() {
    let (asked, store) = (Asked::default(), MemoryStore::default());
    let throttled = || async { Err::<TokenResponse, _>(TokenError::transient("throttled")) };
    let first = process(&asked, store.clone());
    first.token().await.unwrap();
    let unlucky = TokenSource::builder_from_fetcher(throttled)
        .store(store.clone())
        .store_name("test")
        .build()
        .unwrap();
    assert_eq!(unlucky.token().await.unwrap().expose_secret(), "token-1");
    unlucky.refresh().await.unwrap_err();
    assert!(unlucky.refresh().await.unwrap_err().retry_in().is_some());

    first.refresh().await.unwrap();
    sleep(SOON).await;

    assert_eq!(in_hand(&unlucky), "token-2");
    assert!(unlucky.status().last_error().is_none());
}

/// A store that says all the time that something has changed.
#[derive(Clone, Default)]
struct Noisy {
    inner: MemoryStore,
    looks: Arc<AtomicUsize>,
    nonsense: bool,
    full: bool,
    broken: Arc<AtomicBool>,
    /// It says so only when there is something.
    quiet: bool,
}

impl TokenStore for Noisy {
    async fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> Result<Acquired, StoreError> {
        self.looks.fetch_add(1, Ordering::SeqCst);
        if self.broken.load(Ordering::SeqCst) {
            return Err(StoreError::new("it is down"));
        }
        if self.full && request.is_some() {
            return Err(StoreError::new("no space left"));
        }
        let acquired = self.inner.acquire(key, request).await?;
        if self.nonsense && request.is_none() {
            // Each time a newer version of nothing.
            let version = 1 << 50 | self.looks.load(Ordering::SeqCst) as u64;
            let record = StoredRecord::new(version, "{}").with_ttl(DAY);
            return Ok(Acquired::new(Some(record)));
        }
        Ok(acquired)
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
        if self.quiet {
            self.inner.changed(key).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_always_says_so_is_not_asked_all_the_time_and_costs_no_token() {
    for nonsense in [false, true] {
        let (asked, store) = (Asked::default(), Noisy { nonsense, ..Noisy::default() });
        let tokens = process(&asked, store.clone());
        tokens.token().await.unwrap();
        let before = store.looks.load(Ordering::SeqCst);

        sleep(HOUR).await;

        let looks = store.looks.load(Ordering::SeqCst) - before;
        assert!((100..1_800).contains(&looks), "{looks} looks in an hour");
        assert_eq!((in_hand(&tokens), asked.load(Ordering::SeqCst)), ("token-1".into(), 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_that_only_answers_is_not_said_to_work_again() {
    let (asked, store) = (Asked::default(), Noisy { full: true, ..Noisy::default() });
    let tokens = process(&asked, store.clone());
    tokens.token().await.unwrap();

    sleep(HOUR).await;

    assert!(store.looks.load(Ordering::SeqCst) > 100);
    assert!(tokens.status().store_error().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_fails_is_looked_at_ever_more_rarely() {
    let (asked, store) = (Asked::default(), Noisy::default());
    let tokens = process(&asked, store.clone());
    tokens.token().await.unwrap();
    store.broken.store(true, Ordering::SeqCst);
    let before = store.looks.load(Ordering::SeqCst);

    sleep(12 * HOUR).await;

    let looks = store.looks.load(Ordering::SeqCst) - before;
    assert!((10..60).contains(&looks), "{looks} looks in twelve hours");
    store.broken.store(false, Ordering::SeqCst);
    let other = process(&asked, store.inner.clone());
    other.refresh().await.unwrap();
    other.refresh().await.unwrap();
    sleep(2 * HOUR).await;
    assert_eq!(in_hand(&tokens), in_hand(&other));
}

#[tokio::test(start_paused = true)]
async fn a_look_that_failed_is_taken_again() {
    let (asked, store) = (Asked::default(), Noisy { quiet: true, ..Noisy::default() });
    let tokens = process(&asked, store.clone());
    tokens.token().await.unwrap();
    sleep(SOON).await;
    store.broken.store(true, Ordering::SeqCst);
    let other = process(&asked, store.inner.clone());
    other.token().await.unwrap();
    other.refresh().await.unwrap();
    sleep(SOON).await;
    assert!(tokens.status().store_error().is_some());

    store.broken.store(false, Ordering::SeqCst);
    sleep(6 * SOON).await;

    assert_eq!(in_hand(&tokens), "token-2");
    assert!(tokens.status().store_error().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_store_that_can_be_looked_at_again_works_again_also_without_a_new_token() {
    let (asked, store) = (Asked::default(), Noisy::default());
    let tokens = process(&asked, store.clone());
    tokens.token().await.unwrap();
    store.broken.store(true, Ordering::SeqCst);
    sleep(2 * SOON).await;
    assert!(tokens.status().store_error().is_some());

    store.broken.store(false, Ordering::SeqCst);
    sleep(HOUR).await;

    assert!(tokens.status().store_error().is_none());
    assert_eq!((in_hand(&tokens), asked.load(Ordering::SeqCst)), ("token-1".into(), 1));
}

#[tokio::test(start_paused = true)]
async fn a_source_without_a_keeper_listens_to_nobody() {
    let (asked, store) = (Asked::default(), MemoryStore::default());
    let quiet = source(&asked, store.clone(), false);
    quiet.token().await.unwrap();
    let other = process(&asked, store);
    other.token().await.unwrap();
    other.refresh().await.unwrap();

    sleep(SOON).await;

    assert_eq!((in_hand(&quiet), in_hand(&other)), ("token-1".into(), "token-2".into()));
    assert_eq!(quiet.refresh().await.unwrap().expose_secret(), "token-2");
}

#[tokio::test(start_paused = true)]
async fn a_source_that_listens_ends_with_its_last_handle() {
    let (asked, store) = (Asked::default(), Noisy::default());
    let tokens = process(&asked, store.clone());
    tokens.token().await.unwrap();
    drop(tokens);
    sleep(SOON).await;
    let before = store.looks.load(Ordering::SeqCst);

    sleep(HOUR).await;

    assert_eq!(store.looks.load(Ordering::SeqCst), before);
}
