//! The background task has three independent jobs: it refreshes the token when that is due or when a
//! failure may be retried, watches the credentials, and never floods IMS. None of them starves,
//! restarts, stops or floods another. On a paused clock, except where a runtime stands still.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    fs,
    future::{Future, pending},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::{runtime::Runtime, sync::Notify, time::sleep};
use tower_adobe_auth::{
    BoxError, Credentials, FetchToken, FileCredentials, ProvideCredentials, TokenError,
    TokenResponse, TokenSource, TokenSources,
};

use self::support::{DAY, HOUR, Ims, MINUTE, Reply, current_thread, millis, multi_thread, secs};

// A credentials file that is looked at now and then.

/// A credentials file in a folder of its own.
struct File {
    _folder: tempfile::TempDir,
    path: PathBuf,
}

impl File {
    fn with_secret(secret: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = Self { path: folder.path().join("credentials.json"), _folder: folder };
        file.write(secret, "openid,AdobeID");
        file
    }

    fn write(&self, secret: &str, scopes: &str) {
        let scopes: Vec<_> = scopes.split(',').map(|scope| format!("\"{scope}\"")).collect();
        let scopes = scopes.join(",");
        let text = format!(
            r#"{{"CLIENT_ID":"client-id","CLIENT_SECRETS":["{secret}"],"SCOPES":[{scopes}]}}"#
        );
        fs::write(&self.path, text).unwrap();
    }

    fn source(&self, ims: &Ims, interval: Duration) -> TokenSource {
        let file = FileCredentials::open(&self.path).unwrap().with_poll_interval(interval);
        let transport = ims.transport();
        TokenSource::builder_from_provider(file)
            .map_ims(|ims| ims.transport(transport))
            .build()
            .unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_file_is_noticed_at_any_poll_interval() {
    for interval in [5, 59, 60, 61, 300, 3_600].map(secs) {
        let (file, ims) = (File::with_secret("one"), Ims::new(DAY));
        let tokens = file.source(&ims, interval);
        tokens.token().await.unwrap();

        file.write("two", "openid,AdobeID");
        sleep(20 * HOUR).await;

        assert_eq!(ims.asked(), 2, "with a poll interval of {interval:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_file_is_noticed_within_two_intervals() {
    for interval in [5, 60, 300].map(secs) {
        let (file, ims) = (File::with_secret("one"), Ims::new(DAY));
        let tokens = file.source(&ims, interval);
        tokens.token().await.unwrap();
        sleep(HOUR).await;

        file.write("two", "openid,AdobeID");
        sleep(2 * interval + secs(5)).await;

        assert_eq!(ims.asked(), 2, "with a poll interval of {interval:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_order_of_scopes_in_a_file_costs_no_token() {
    let (file, ims) = (File::with_secret("one"), Ims::new(DAY));
    let tokens = file.source(&ims, secs(5));
    tokens.token().await.unwrap();

    for turn in 0..20 {
        let scopes = if turn % 2 == 0 { "AdobeID,openid" } else { "openid,AdobeID" };
        file.write("one", scopes);
        sleep(secs(30)).await;
    }

    assert_eq!(ims.asked(), 1);
}

// `changed` of a fetcher.

/// The behavior of a [`Vault`]'s `changed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Changed {
    Never,
    /// Panics in the call, before there is a future.
    PanicsAtCall,
    /// Panics when its future is polled.
    PanicsAtPoll,
    /// Returns immediately, as `receiver.changed().await.ok()` does once the sender is gone.
    Returns,
    /// Returns an hour after it was called.
    ReturnsAfterAnHour,
}

/// A fetcher whose `changed` misbehaves the first `times` times, and then never returns.
struct Vault {
    asked: Arc<AtomicUsize>,
    changed: Changed,
    left: AtomicUsize,
    life: Duration,
}

impl Vault {
    fn source(changed: Changed, times: usize) -> (TokenSource, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let left = AtomicUsize::new(times);
        let vault = Self { asked: Arc::clone(&asked), changed, left, life: DAY };
        (TokenSource::from_fetcher(vault), asked)
    }
}

impl FetchToken for Vault {
    async fn fetch_token(&self) -> Result<TokenResponse, TokenError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        Ok(TokenResponse::new("token", self.life))
    }

    fn changed(&self) -> impl Future<Output = ()> + Send {
        let take = |left: usize| left.checked_sub(1);
        let misbehaves = self.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok();
        let changed = if misbehaves { self.changed } else { Changed::Never };
        assert!(changed != Changed::PanicsAtCall, "the vault hiccuped");
        async move {
            match changed {
                Changed::Never | Changed::PanicsAtCall => pending().await,
                Changed::PanicsAtPoll => panic!("the vault hiccuped"),
                Changed::Returns => {}
                Changed::ReturnsAfterAnHour => sleep(HOUR).await,
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_source_stays_warm_after_changed_panicked_once() {
    for changed in [Changed::PanicsAtPoll, Changed::PanicsAtCall] {
        let (tokens, asked) = Vault::source(changed, 1);
        tokens.token().await.unwrap();

        sleep(3 * DAY).await;

        let asked = asked.load(Ordering::SeqCst);
        assert!(asked >= 4 && tokens.status().is_ready(), "{asked} tokens, with {changed:?}");
        assert!(asked <= 6, "{asked} tokens, with {changed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_source_stays_warm_though_changed_always_panics() {
    for changed in [Changed::PanicsAtPoll, Changed::PanicsAtCall] {
        let (tokens, asked) = Vault::source(changed, usize::MAX);
        tokens.token().await.unwrap();

        let mut ready = 0;
        for _ in 0..3 * 24 {
            sleep(HOUR).await;
            ready += usize::from(tokens.status().is_ready());
        }

        let asked = asked.load(Ordering::SeqCst);
        assert_eq!(ready, 3 * 24, "hours, with {changed:?}");
        assert!(asked >= 4, "{asked} tokens, with {changed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_that_always_panics_costs_no_token() {
    for changed in [Changed::PanicsAtPoll, Changed::PanicsAtCall] {
        let (tokens, asked) = Vault::source(changed, usize::MAX);
        tokens.token().await.unwrap();

        sleep(12 * HOUR).await;

        assert_eq!(asked.load(Ordering::SeqCst), 1, "with {changed:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_changed_that_always_returns_costs_few_tokens() {
    let (tokens, asked) = Vault::source(Changed::Returns, usize::MAX);
    tokens.token().await.unwrap();

    sleep(HOUR).await;
    let in_the_first_hour = asked.load(Ordering::SeqCst);
    sleep(DAY).await;
    let in_the_next_day = asked.load(Ordering::SeqCst) - in_the_first_hour;

    assert!(in_the_first_hour < 100, "{in_the_first_hour} in an hour");
    // The pause between two notifications has grown to five minutes.
    assert!(in_the_next_day <= 24 * 12 + 3, "{in_the_next_day} in a day");
    assert!(tokens.status().is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_changed_that_needs_an_hour_lives_until_it_returns() {
    let (tokens, asked) = Vault::source(Changed::ReturnsAfterAnHour, 1);
    tokens.token().await.unwrap();

    sleep(HOUR + MINUTE).await;

    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn a_changed_that_needs_an_hour_survives_refreshes() {
    let (tokens, asked) = Vault::source(Changed::ReturnsAfterAnHour, 1);
    tokens.token().await.unwrap();

    // None of these refreshes starts the hour anew.
    for _ in 0..59 {
        sleep(MINUTE).await;
        tokens.refresh().await.unwrap();
    }
    sleep(2 * MINUTE).await;

    assert_eq!(asked.load(Ordering::SeqCst), 1 + 59 + 1);
}

/// A fetcher that says when its credentials change, and fails while it is down.
#[derive(Clone, Default)]
struct Notifying {
    asked: Arc<AtomicUsize>,
    down: Arc<AtomicBool>,
    change: Arc<Notify>,
    always_changed: bool,
}

impl FetchToken for Notifying {
    async fn fetch_token(&self) -> Result<TokenResponse, TokenError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.down.load(Ordering::SeqCst) {
            return Err(TokenError::transient("down"));
        }
        Ok(TokenResponse::new("token", 2 * HOUR))
    }

    async fn changed(&self) {
        if !self.always_changed {
            self.change.notified().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_after_a_quiet_time_is_acted_on_immediately() {
    let fetcher = Notifying::default();
    let tokens = TokenSource::from_fetcher(fetcher.clone());
    tokens.token().await.unwrap();

    for _ in 0..5 {
        sleep(HOUR).await;
        let before = fetcher.asked.load(Ordering::SeqCst);

        fetcher.change.notify_one();
        sleep(secs(2)).await;

        assert_eq!(fetcher.asked.load(Ordering::SeqCst), before + 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_change_during_an_outage_is_acted_on_after_it() {
    let fetcher = Notifying::default();
    let tokens = TokenSource::from_fetcher(fetcher.clone());
    tokens.token().await.unwrap();
    fetcher.down.store(true, Ordering::SeqCst);
    fetcher.change.notify_one();
    sleep(5 * MINUTE).await;
    let during = fetcher.asked.load(Ordering::SeqCst);

    fetcher.down.store(false, Ordering::SeqCst);
    sleep(secs(61)).await;

    assert!(during >= 2, "the change was acted on");
    assert_eq!(fetcher.asked.load(Ordering::SeqCst), during + 1);
    assert!(tokens.status().last_error().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_changed_that_always_returns_stops_no_refresh() {
    let fetcher = Notifying { always_changed: true, ..Notifying::default() };
    let tokens = TokenSource::from_fetcher(fetcher.clone());
    tokens.token().await.unwrap();

    // Each outage is shorter than the rest of the life of a token that is due for refresh.
    for _ in 0..24 {
        fetcher.down.store(true, Ordering::SeqCst);
        sleep(HOUR / 2).await;
        assert!(tokens.status().is_ready());
        fetcher.down.store(false, Ordering::SeqCst);
        sleep(HOUR / 2).await;
        assert!(tokens.status().is_ready());
    }

    let asked = fetcher.asked.load(Ordering::SeqCst);
    // At most one each five minutes because of `changed`, and three attempts a minute in outages.
    assert!(asked < 24 * 12 + 12 * 60 * 6, "{asked} token requests in a day");
}

// A provider of credentials that misbehaves.

/// The outcome of a [`Provider`]'s `credentials`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gives {
    Secret(&'static str),
    AnError,
    APanic,
}

#[derive(Clone)]
struct Provider {
    gives: Arc<Mutex<Gives>>,
    change: Arc<Notify>,
}

impl ProvideCredentials for Provider {
    async fn credentials(&self) -> Result<Credentials, BoxError> {
        let gives = *self.gives.lock().unwrap();
        match gives {
            Gives::Secret(secret) => Ok(Credentials::new("client-id", secret)),
            Gives::AnError => Err("the vault is sealed".into()),
            Gives::APanic => panic!("the vault hiccuped"),
        }
    }

    async fn changed(&self) {
        self.change.notified().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_fails_after_a_change_costs_no_token() {
    for gives in [Gives::AnError, Gives::APanic] {
        let ims = Ims::new(DAY);
        let provider =
            Provider { gives: Arc::new(Mutex::new(Gives::Secret("one"))), change: Arc::default() };
        let transport = ims.transport();
        let tokens = TokenSource::builder_from_provider(provider.clone())
            .map_ims(|ims| ims.transport(transport))
            .build()
            .unwrap();
        tokens.token().await.unwrap();
        *provider.gives.lock().unwrap() = gives;
        provider.change.notify_one();

        for _ in 0..60 {
            sleep(MINUTE).await;
            assert!(tokens.token().await.is_ok(), "with {gives:?}");
        }
        assert_eq!(ims.asked(), 1, "with {gives:?}");
        *provider.gives.lock().unwrap() = Gives::Secret("two");
        sleep(5 * MINUTE + secs(30)).await;

        // The change is acted on as soon as the provider works again.
        assert_eq!(ims.asked(), 2, "with {gives:?}");
        assert_eq!(tokens.token().await.unwrap().expose_secret(), "token-2");
    }
}

#[tokio::test(start_paused = true)]
async fn a_provider_that_fails_at_start_is_asked_again() {
    for gives in [Gives::AnError, Gives::APanic] {
        let ims = Ims::new(DAY);
        let provider = Provider { gives: Arc::new(Mutex::new(gives)), change: Arc::default() };
        let transport = ims.transport();
        let tokens = TokenSource::builder_from_provider(provider.clone())
            .map_ims(|ims| ims.transport(transport))
            .build()
            .unwrap();
        assert!(tokens.token().await.unwrap_err().is_transient());

        *provider.gives.lock().unwrap() = Gives::Secret("two");
        sleep(secs(61)).await;

        assert!(tokens.status().is_ready(), "with {gives:?}");
        assert_eq!(ims.asked(), 1, "with {gives:?}");
    }
}

// Permanent failures, which are retried without traffic.

#[tokio::test(start_paused = true)]
async fn a_rejection_at_start_is_retried_without_traffic() {
    let ims = Ims::new(DAY);
    ims.respond_with(Reply::Rejected);
    let tokens = ims.source();
    tokens.warm_up();
    sleep(secs(1)).await;
    assert_eq!(ims.asked(), 1);

    // IMS knows the new secret now.
    ims.respond_with(Reply::Token);
    sleep(5 * MINUTE + secs(30)).await;

    assert!(tokens.status().is_ready(), "{} token requests", ims.asked());
    assert_eq!(ims.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_lasting_rejection_costs_under_20_requests_an_hour() {
    for asked_by_a_caller in [false, true] {
        let ims = Ims::new(DAY);
        ims.respond_with(Reply::Rejected);
        let tokens = ims.source();
        if asked_by_a_caller {
            assert!(!tokens.token().await.unwrap_err().is_transient());
        } else {
            tokens.warm_up();
        }

        sleep(HOUR).await;

        assert!((2..20).contains(&ims.asked()), "{} token requests", ims.asked());
    }
}

#[tokio::test(start_paused = true)]
async fn a_rejection_is_retried_after_days_as_well() {
    for outage in [HOUR, DAY, 5 * DAY] {
        let ims = Ims::new(DAY);
        ims.respond_with(Reply::Rejected);
        let tokens = ims.source();
        tokens.warm_up();
        sleep(outage).await;
        let asked = ims.asked();

        ims.respond_with(Reply::Token);
        sleep(5 * MINUTE + secs(30)).await;

        assert!(tokens.status().is_ready(), "after {outage:?}, {} requests", ims.asked());
        let hours = (outage.as_secs() / 3_600) as usize;
        assert!(asked < 20 * hours, "{asked} token requests in {outage:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rejected_refresh_is_retried_while_the_token_is_valid() {
    let ims = Ims::new(DAY);
    let tokens = ims.source();
    tokens.token().await.unwrap();
    ims.respond_with(Reply::Rejected);
    // The token is due for refresh after 23 hours at the latest, and the refresh is rejected.
    sleep(23 * HOUR + MINUTE).await;
    assert!(ims.asked() >= 2 && tokens.status().is_ready());

    ims.respond_with(Reply::Token);
    sleep(5 * MINUTE + secs(30)).await;

    let asked = ims.asked();
    assert_ne!(tokens.token().await.unwrap().expose_secret(), "token-1", "{asked} requests");
    assert!(tokens.status().last_error().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_rejected_refresh_is_retried_after_the_token_expired() {
    let ims = Ims::new(DAY);
    let tokens = ims.source();
    tokens.token().await.unwrap();
    ims.respond_with(Reply::Rejected);
    sleep(30 * HOUR).await;
    assert!(!tokens.status().is_ready());
    let asked = ims.asked();

    ims.respond_with(Reply::Token);
    sleep(5 * MINUTE + secs(30)).await;

    assert!(tokens.status().is_ready(), "{} token requests", ims.asked());
    // From the 22nd hour on.
    assert!(asked < 20 * 8, "{asked} token requests");
}

#[tokio::test(start_paused = true)]
async fn a_lasting_rejection_serves_the_token_until_its_end() {
    let ims = Ims::new(DAY);
    let tokens = ims.source();
    tokens.token().await.unwrap();
    ims.respond_with(Reply::Rejected);

    for _ in 0..24 * 60 - 1 {
        assert!(tokens.token().await.is_ok());
        sleep(MINUTE).await;
    }
}

#[tokio::test(start_paused = true)]
async fn callers_of_a_rejected_source_do_not_flood_ims() {
    let ims = Ims::new(DAY);
    ims.respond_with(Reply::Rejected);
    let tokens = ims.source();

    let start = tokio::time::Instant::now();
    while start.elapsed() < HOUR {
        let error = tokens.token().await.unwrap_err();
        assert!(!error.is_transient());
        sleep(secs(1)).await;
    }

    // At most one each ten seconds, and a little more at the beginning.
    assert!((2..=370).contains(&ims.asked()), "{} token requests", ims.asked());
}

// Nothing floods IMS.

#[tokio::test(start_paused = true)]
async fn no_setting_of_refresh_at_floods_ims() {
    for refresh_at in [f64::MIN_POSITIVE, 1e-9, 1e-6, 1e-3] {
        let ims = Ims::new(DAY);
        let Ok(tokens) = ims.builder().refresh_at(refresh_at).build() else { continue };
        tokens.token().await.unwrap();

        sleep(MINUTE).await;

        assert!(ims.asked() < 10, "{} a minute, with {refresh_at}", ims.asked());
    }
}

#[tokio::test(start_paused = true)]
async fn an_outage_without_traffic_costs_about_a_request_a_minute() {
    let ims = Ims::new(DAY);
    ims.respond_with(Reply::Unavailable);
    let tokens = ims.source();
    tokens.warm_up();

    sleep(10 * MINUTE).await;
    let before = ims.asked();
    sleep(HOUR).await;

    let in_an_hour = ims.asked() - before;
    // Up to three attempts for each pause, which jitter may halve.
    assert!((30..=360).contains(&in_an_hour), "{in_an_hour} token requests in an hour");
}

// Runtimes that stand still.

/// A source whose background task lives on a runtime that is kept and not driven.
fn with_a_stalled_task() -> (TokenSource, Ims, Runtime) {
    let ims = Ims::new(secs(4)).taking(millis(20));
    let tokens = ims.source();
    let job = current_thread();
    job.block_on(tokens.token()).unwrap();
    (tokens, ims, job)
}

#[test]
fn occasional_traffic_refreshes_though_the_task_stalls() {
    let (tokens, ims, job) = with_a_stalled_task();
    let service = multi_thread(1);

    let (start, mut waited) = (Instant::now(), 0);
    while start.elapsed() < secs(9) {
        service.block_on(async {
            let mut call = Box::pin(tokens.token());
            match call.as_mut().now_or_never() {
                Some(token) => drop(token.unwrap()),
                None => {
                    waited += 1;
                    call.await.unwrap();
                }
            }
        });
        thread::sleep(millis(300));
    }

    assert_eq!(waited, 0, "callers waited, although one came every 300 ms");
    assert!((4..=8).contains(&ims.asked()), "{} token requests in two lives", ims.asked());
    drop(job);
}

#[test]
fn the_task_moves_to_a_runtime_with_traffic() {
    let (tokens, _ims, job) = with_a_stalled_task();
    // Some traffic on a healthy runtime, for longer than a life of the token; then none at all.
    let service = multi_thread(1);
    for _ in 0..10 {
        service.block_on(tokens.token()).unwrap();
        thread::sleep(millis(500));
    }

    let mut ready = 0;
    for _ in 0..20 {
        thread::sleep(millis(500));
        ready += usize::from(tokens.status().is_ready());
    }

    assert_eq!(ready, 20, "of 20 times in ten seconds without traffic");
    drop(job);
}

fn tenants() -> TokenSources<u32> {
    let make =
        |_: &u32| Ok(TokenSource::from_fetcher(|| async { Ok(TokenResponse::new("token", DAY)) }));
    TokenSources::new(make).with_idle_timeout(millis(200))
}

#[test]
fn idle_tenants_are_dropped_though_the_first_runtime_stalls() {
    let sources = tenants();
    // Kept, and not driven any more.
    let job = current_thread();
    job.block_on(async { sources.get(&0).unwrap() });

    multi_thread(1).block_on(async {
        for tenant in 1..=50 {
            sources.get(&tenant).unwrap();
        }
        sleep(secs(1)).await;
    });

    assert_eq!(sources.len(), 0);
    drop(job);
}

#[test]
fn idle_tenants_are_dropped_though_each_runtime_stalls_in_turn() {
    let sources = tenants();
    let mut stalled = Vec::new();
    for tenant in 0..5 {
        let job = current_thread();
        job.block_on(async { sources.get(&tenant).unwrap() });
        stalled.push(job);
        thread::sleep(millis(50));
    }

    multi_thread(1).block_on(async {
        sources.get(&5).unwrap();
        sleep(secs(2)).await;
    });

    assert_eq!(sources.len(), 0);
}

#[test]
fn idle_tenants_are_dropped_though_the_first_runtime_ended() {
    let sources = tenants();
    current_thread().block_on(async { sources.get(&0).unwrap() });

    multi_thread(1).block_on(async {
        sources.get(&1).unwrap();
        sleep(secs(1)).await;
    });

    assert_eq!(sources.len(), 0);
}

#[cfg(feature = "reqwest")]
mod over_sockets {
    use tower_adobe_auth::{Environment, MemoryStore, mock::MockIms};

    use super::*;

    fn file(secret: &str) -> File {
        let file = File::with_secret(secret);
        assert_eq!(MockIms::CLIENT_ID, "client-id");
        file
    }

    async fn ims() -> MockIms {
        let ims = MockIms::start().await;
        ims.set_secrets(MockIms::CLIENT_ID, ["one", "two"]);
        ims
    }

    /// Rewrites the file while the first token request is in progress, and waits for the second.
    async fn is_noticed(ims: &MockIms, file: &File, tokens: &TokenSource) {
        let hold = ims.hold();
        tokens.warm_up();
        ims.wait_for_token_requests(1).await;
        file.write("two", "openid,AdobeID");
        drop(hold);

        ims.wait_for_token_requests(2).await;

        assert_eq!(ims.last_token_request().unwrap().form("client_secret"), Some("two"));
    }

    #[tokio::test]
    async fn a_file_that_changes_during_a_request_is_noticed() {
        let (ims, file) = (ims().await, file("one"));
        let provider = FileCredentials::open(&file.path).unwrap().with_poll_interval(millis(50));
        let tokens = TokenSource::builder_from_provider(provider)
            .environment(Environment::custom(ims.url()).unwrap())
            .build()
            .unwrap();

        is_noticed(&ims, &file, &tokens).await;
    }

    #[tokio::test]
    async fn a_file_that_changes_is_noticed_with_a_store_as_well() {
        let (ims, file) = (ims().await, file("one"));
        let provider = FileCredentials::open(&file.path).unwrap().with_poll_interval(millis(50));
        let tokens = TokenSource::builder_from_provider(provider)
            .environment(Environment::custom(ims.url()).unwrap())
            .store(MemoryStore::default())
            .build()
            .unwrap();

        is_noticed(&ims, &file, &tokens).await;
    }
}
