//! Promises 2 and 3: no needless wait, and never a dead token, knowingly. On a paused clock.

#![allow(clippy::unwrap_used)]

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, advance, sleep};
use tower_adobe_auth::{ErrorKind, TokenError, TokenResponse, TokenSource};

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// An authorization server on the paused clock: `token-1`, `token-2`, … each a second after it was
/// asked for.
#[derive(Clone)]
struct Server {
    asked: Arc<AtomicUsize>,
    down: Arc<AtomicBool>,
    lifetime: Arc<Mutex<Duration>>,
    delay: Duration,
}

impl Server {
    fn new(lifetime: Duration) -> Self {
        Self {
            asked: Arc::default(),
            down: Arc::default(),
            lifetime: Arc::new(Mutex::new(lifetime)),
            delay: Duration::from_secs(1),
        }
    }

    fn fetcher(
        &self,
    ) -> impl Fn() -> futures_util::future::BoxFuture<'static, Result<TokenResponse, TokenError>>
    + Send
    + Sync
    + use<> {
        let server = self.clone();
        move || {
            let server = server.clone();
            Box::pin(async move {
                let number = server.asked.fetch_add(1, Ordering::SeqCst) + 1;
                sleep(server.delay).await;
                if server.down.load(Ordering::SeqCst) {
                    return Err(TokenError::transient("down"));
                }
                let lifetime = *server.lifetime.lock().unwrap();
                Ok(TokenResponse::new(format!("token-{number}"), lifetime))
            })
        }
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn set_down(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }
}

async fn settle() {
    for _ in 0..32 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_valid_token_is_given_at_once() {
    let server = Server::new(DAY);
    let tokens = TokenSource::from_fetcher(server.fetcher());
    tokens.token().await.unwrap();
    let start = Instant::now();

    for _ in 0..1_000 {
        assert_eq!(tokens.token().await.unwrap().expose_secret(), "token-1");
    }

    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(server.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn renews_ahead_of_expiry_without_making_anyone_wait() {
    let server = Server::new(DAY);
    let tokens =
        TokenSource::builder_from_fetcher(server.fetcher()).refresh_on_demand().build().unwrap();
    tokens.token().await.unwrap();

    advance(22 * HOUR).await;
    assert_eq!(tokens.token().await.unwrap().generation(), 1);
    settle().await;
    assert_eq!(server.asked(), 1);

    advance(HOUR).await;
    let start = Instant::now();
    assert_eq!(tokens.token().await.unwrap().generation(), 1);
    assert_eq!(tokens.token().await.unwrap().generation(), 1);
    assert_eq!(start.elapsed(), Duration::ZERO);

    sleep(Duration::from_secs(2)).await;
    assert_eq!(tokens.token().await.unwrap().generation(), 2);
    assert_eq!(server.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn stays_warm_without_traffic() {
    let server = Server::new(DAY);
    let tokens = TokenSource::from_fetcher(server.fetcher());
    tokens.token().await.unwrap();

    sleep(30 * DAY).await;

    let start = Instant::now();
    tokens.token().await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    let days_at_most_23_hours_long = 31..=32;
    assert!(days_at_most_23_hours_long.contains(&server.asked()), "{}", server.asked());
}

#[tokio::test(start_paused = true)]
async fn on_demand_nothing_is_renewed_without_traffic() {
    let server = Server::new(DAY);
    let tokens =
        TokenSource::builder_from_fetcher(server.fetcher()).refresh_on_demand().build().unwrap();
    tokens.token().await.unwrap();

    sleep(30 * DAY).await;

    assert_eq!(server.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn waits_once_expired() {
    let server = Server::new(DAY);
    let tokens =
        TokenSource::builder_from_fetcher(server.fetcher()).refresh_on_demand().build().unwrap();
    tokens.token().await.unwrap();

    advance(DAY).await;
    assert!(tokens.try_token().is_none());
    let start = Instant::now();

    assert_eq!(tokens.token().await.unwrap().generation(), 2);
    assert_eq!(start.elapsed(), Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn the_life_of_a_token_counts_from_the_moment_it_was_asked_for() {
    let server = Server { delay: Duration::from_secs(20), ..Server::new(HOUR) };
    let wall = SystemTime::UNIX_EPOCH + 365 * DAY;
    let tokens = TokenSource::builder_from_fetcher(server.fetcher())
        .wall_clock(move || wall)
        .build()
        .unwrap();

    let token = tokens.token().await.unwrap();

    assert_eq!(token.expires_at(), wall + HOUR);
    advance(HOUR - Duration::from_secs(20)).await;
    assert!(tokens.try_token().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_stale_token_survives_a_failing_endpoint() {
    let server = Server::new(DAY);
    let tokens = TokenSource::from_fetcher(server.fetcher());
    tokens.token().await.unwrap();
    server.set_down(true);

    let end = Instant::now() + DAY - Duration::from_secs(10);
    while Instant::now() < end {
        let start = Instant::now();
        assert_eq!(tokens.token().await.unwrap().generation(), 1);
        assert_eq!(start.elapsed(), Duration::ZERO);
        sleep(Duration::from_secs(30)).await;
    }
    let retries = server.asked() - 1;
    assert!((60..=320).contains(&retries), "an hour and a quarter of retries: {retries}");

    sleep(Duration::from_secs(30)).await;
    assert!(tokens.token().await.unwrap_err().is_transient());

    server.set_down(false);
    sleep(Duration::from_secs(62)).await;
    assert!(tokens.try_token().is_some(), "recovers without a caller");
}

#[tokio::test(start_paused = true)]
async fn short_lives_are_renewed_in_time_and_not_with_each_request() {
    for (lifetime, at_most) in [(2, 1_340), (6, 450), (300, 10), (3_599, 3)] {
        let server = Server {
            delay: Duration::from_millis(200),
            ..Server::new(Duration::from_secs(lifetime))
        };
        let tokens = TokenSource::from_fetcher(server.fetcher());
        tokens.token().await.unwrap();

        for _ in 0..20_000 {
            let start = Instant::now();
            tokens.token().await.unwrap();
            assert_eq!(start.elapsed(), Duration::ZERO, "a life of {lifetime} s");
            sleep(Duration::from_millis(50)).await;
        }

        assert!(server.asked() <= at_most, "a life of {lifetime} s: {}", server.asked());
    }
}

/// A wall clock that can be set, apart from the paused monotonic one.
fn settable() -> (Arc<Mutex<SystemTime>>, impl Fn() -> SystemTime + Send + Sync + 'static) {
    let wall = Arc::new(Mutex::new(SystemTime::UNIX_EPOCH + 20_000 * DAY));
    let reader = Arc::clone(&wall);
    (wall, move || *reader.lock().unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_for_a_day_does_not_send_yesterdays_token() {
    let server = Server::new(DAY);
    let (wall, clock) = settable();
    let tokens =
        TokenSource::builder_from_fetcher(server.fetcher()).wall_clock(clock).build().unwrap();
    tokens.token().await.unwrap();

    // The monotonic clock stands still while the machine sleeps.
    *wall.lock().unwrap() += DAY;

    assert!(tokens.try_token().is_none());
    assert_eq!(tokens.token().await.unwrap().generation(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_past_the_renewal_renews_by_itself() {
    let server = Server::new(DAY);
    let (wall, clock) = settable();
    let tokens =
        TokenSource::builder_from_fetcher(server.fetcher()).wall_clock(clock).build().unwrap();
    tokens.token().await.unwrap();

    *wall.lock().unwrap() += 23 * HOUR;
    sleep(Duration::from_secs(62)).await;

    assert_eq!(tokens.try_token().unwrap().generation(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_set_back_does_not_extend_a_tokens_life() {
    let server = Server::new(DAY);
    let (wall, clock) = settable();
    let tokens = TokenSource::builder_from_fetcher(server.fetcher())
        .wall_clock(clock)
        .refresh_on_demand()
        .build()
        .unwrap();
    tokens.token().await.unwrap();

    *wall.lock().unwrap() -= 10 * DAY;
    advance(DAY).await;

    assert!(tokens.try_token().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_set_ahead_costs_one_refresh() {
    let server = Server::new(DAY);
    let (wall, clock) = settable();
    let tokens =
        TokenSource::builder_from_fetcher(server.fetcher()).wall_clock(clock).build().unwrap();
    tokens.token().await.unwrap();

    *wall.lock().unwrap() += 1_000 * DAY;
    for _ in 0..100 {
        tokens.token().await.unwrap();
        sleep(Duration::from_secs(60)).await;
    }

    assert_eq!(server.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn invalidate_drops_only_the_token_it_names() {
    let server = Server::new(DAY);
    let tokens = TokenSource::from_fetcher(server.fetcher());
    let first = tokens.token().await.unwrap();
    let second = tokens.refresh().await.unwrap();

    tokens.invalidate(&first);
    assert_eq!(tokens.try_token().unwrap().generation(), 2);

    tokens.invalidate(&second);
    assert!(tokens.try_token().is_none());
    assert_eq!(tokens.token().await.unwrap().generation(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_makes_nobody_wait_and_is_one_flight() {
    let server = Server::new(DAY);
    let tokens = TokenSource::from_fetcher(server.fetcher());
    tokens.token().await.unwrap();

    let (one, two, meanwhile) = tokio::join!(tokens.refresh(), tokens.refresh(), tokens.token());

    assert_eq!(one.unwrap().generation(), 2);
    assert_eq!(two.unwrap().generation(), 2);
    assert_eq!(meanwhile.unwrap().generation(), 1);
    assert_eq!(server.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn status_tells_the_whole_story_and_changes_can_be_awaited() {
    let server = Server::new(DAY);
    let tokens = TokenSource::from_fetcher(server.fetcher());
    let mut changes = tokens.subscribe();
    let status = tokens.status();
    assert!(!status.is_ready() && !status.is_refreshing() && status.last_error().is_none());

    let caller = tokio::spawn({
        let tokens = tokens.clone();
        async move { tokens.token().await }
    });
    let status = changes.changed().await.unwrap();
    assert!(status.is_refreshing() && !status.is_ready());
    caller.await.unwrap().unwrap();
    let status = changes.changed().await.unwrap();
    assert!(status.is_ready() && !status.is_refreshing());
    assert!(status.next_refresh().unwrap() < status.valid_until().unwrap());

    server.set_down(true);
    tokens.refresh().await.unwrap_err();
    let status = tokens.status();
    assert!(status.is_ready(), "the old token serves on");
    assert_eq!(status.last_error().unwrap().kind(), ErrorKind::Fetch);
    assert!(status.failing_since().is_some());
    assert!(status.consecutive_failures() >= 1);

    drop(tokens);
    while let Some(_status) = changes.changed().await {}
}

#[tokio::test(start_paused = true)]
async fn background_work_ends_with_the_last_handle() {
    let server = Server::new(DAY);
    let tokens = TokenSource::from_fetcher(server.fetcher());
    tokens.token().await.unwrap();
    let clone = tokens.clone();
    drop(tokens);
    settle().await;
    let tasks = || tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert_eq!(tasks(), 1, "the keeper");

    drop(clone);
    settle().await;
    assert_eq!(tasks(), 0);

    let tokens = TokenSource::from_fetcher(server.fetcher());
    let _abandoned = tokio::time::timeout(Duration::from_millis(1), tokens.token()).await;
    assert_eq!(tasks(), 2, "the keeper and a flight");
    drop(tokens);
    settle().await;
    assert_eq!(tasks(), 0);
}
