//! The processes: a real [`TokenSource`] for each.

use std::{
    mem,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use fastrand::Rng;
use tokio::{
    sync::Notify,
    time::{Instant, advance, sleep, sleep_until},
};
use tower::Layer;
use tower_adobe_auth::{AdobeAuthLayer, TokenSource};

use crate::{
    SEED,
    rate::Rate,
    report::Report,
    store::{Load, Model, Network, Server},
    support::{DAY, FIREFLY, Ims, MINUTE, api, bearer, get, millis, secs},
};

/// How long IMS takes for a token.
const IMS_LATENCY: Duration = millis(200);

/// A notification reaches all processes within this time after a commit.
const NOTIFIED: Duration = secs(35);

/// The first reading of the wall clock, in days since 1970.
const FIRST_DAY: u32 = 20_000;

pub(crate) struct Fleet {
    pub(crate) ims: Ims,
    /// `None`: each process requests its own token.
    pub(crate) server: Option<Arc<Server>>,
    pub(crate) rng: Rng,
    pub(crate) waits: Arc<Waits>,
    sources: Vec<TokenSource>,
    start: Instant,
    /// The time of the last report, and the token requests before it.
    reported: (Instant, usize),
    /// The token requests before the last renewal.
    renewed: usize,
    without_token: usize,
}

/// The fate of the callers that had to wait.
#[derive(Default)]
pub(crate) struct Waits {
    tally: Mutex<Tally>,
    all_done: Notify,
}

#[derive(Default)]
struct Tally {
    waiting: usize,
    failed: usize,
    longest: Duration,
}

impl Waits {
    pub(crate) fn begin(&self) {
        self.tally.lock().unwrap().waiting += 1;
    }

    pub(crate) fn end(&self, since: Instant, is_ok: bool) {
        let mut tally = self.tally.lock().unwrap();
        tally.waiting -= 1;
        tally.failed += usize::from(!is_ok);
        tally.longest = tally.longest.max(since.elapsed());
        if tally.waiting == 0 {
            self.all_done.notify_one();
        }
    }

    pub(crate) async fn ended(&self) {
        while self.tally.lock().unwrap().waiting > 0 {
            self.all_done.notified().await;
        }
    }
}

impl Fleet {
    pub(crate) fn new(store: Option<Model>) -> Self {
        let now = Instant::now();
        Self {
            ims: Ims::new(DAY).taking(IMS_LATENCY),
            server: store.map(Server::new),
            rng: Rng::with_seed(SEED),
            waits: Arc::default(),
            sources: Vec::new(),
            start: now,
            reported: (now, 0),
            renewed: 0,
            without_token: 0,
        }
    }

    /// A process of this number.
    pub(crate) fn source(&self, number: usize) -> TokenSource {
        let start = self.start;
        let wall_clock = move || UNIX_EPOCH + DAY * FIRST_DAY + start.elapsed();
        let builder = self.ims.builder().wall_clock(wall_clock);
        let builder = match &self.server {
            Some(server) => builder.store(server.store(number)).store_timeout(server.model.timeout),
            None => builder,
        };
        builder.build().unwrap()
    }

    pub(crate) fn set(&self, network: Network) {
        self.server.as_ref().unwrap().set(network);
    }

    /// Starts so many processes at random moments of `over`. Returns when each has its first token,
    /// or an error.
    pub(crate) async fn start(&mut self, processes: usize, over: Duration) {
        let now = Instant::now();
        let mut moments: Vec<_> =
            (0..processes).map(|_| now + over.mul_f64(self.rng.f64())).collect();
        moments.sort_unstable();
        self.sources.reserve_exact(processes);
        for (number, moment) in moments.into_iter().enumerate() {
            until(moment).await;
            let source = self.source(number);
            self.request_first_token(source.clone());
            self.sources.push(source);
        }
        self.settle().await;
    }

    /// Ends this process and starts another in its place.
    pub(crate) fn replace(&mut self, number: usize) {
        let source = self.source(number);
        self.request_first_token(source.clone());
        self.sources[number] = source;
    }

    fn request_first_token(&self, source: TokenSource) {
        let (waits, since) = (Arc::clone(&self.waits), Instant::now());
        waits.begin();
        tokio::spawn(async move { waits.end(since, source.token().await.is_ok()) });
    }

    /// Returns when no caller waits, and notifications have reached all processes.
    pub(crate) async fn settle(&self) {
        self.waits.ended().await;
        sleep(NOTIFIED).await;
    }

    /// Runs until `end`, and checks once a minute whether each process has a token.
    pub(crate) async fn run(&mut self, end: Instant) {
        while Instant::now() < end {
            sleep_until(end.min(Instant::now() + MINUTE)).await;
            self.newer_than(0);
        }
    }

    /// The number of processes with a token that is newer than the token of this number. Records how
    /// many have none.
    pub(crate) fn newer_than(&mut self, number: usize) -> usize {
        let (mut newer, mut without) = (0, 0);
        for source in &self.sources {
            match source.try_token() {
                Some(token) => newer += usize::from(token_number(token.expose_secret()) > number),
                None => without += 1,
            }
        }
        self.without_token = self.without_token.max(without);
        newer
    }

    /// Skips the hours in which no token is due. Returns the time at which all will have renewed.
    ///
    /// The background task of a source wakes once a minute in these hours, finds that its token is not
    /// due and asks nobody. Here it wakes once, at their end.
    pub(crate) async fn skip_to_renewal(&mut self) -> Instant {
        let requests = self.ims.asked_at();
        let in_use = &requests[self.renewed..];
        let (first, last) = (*in_use.first().unwrap(), *in_use.last().unwrap());
        self.renewed = requests.len();
        advance(first + hours(22, 44) - Instant::now()).await;
        self.newer_than(0);
        last + hours(23, 1)
    }

    /// Runs until all have renewed their token.
    pub(crate) async fn renew(&mut self) {
        let last = self.ims.asked();
        let end = self.skip_to_renewal().await;
        while self.newer_than(last) < self.sources.len() {
            assert!(Instant::now() < end, "not all have renewed in time");
            sleep(NOTIFIED).await;
        }
        sleep(NOTIFIED).await;
    }

    /// The first `processes` send an API request each at a random moment of `within`, and another one
    /// half a second after each 401. The API refuses all tokens that were issued so far. Returns the
    /// number of 401s.
    pub(crate) async fn meet_revocation(&mut self, processes: usize, within: Duration) -> usize {
        let (revoked, refused) = (self.ims.asked(), Arc::new(AtomicUsize::new(0)));
        for source in &self.sources[..processes] {
            let (waits, refused) = (Arc::clone(&self.waits), Arc::clone(&refused));
            let client = AdobeAuthLayer::new(source.clone()).layer(api(move |request| {
                if token_number(bearer(request)) > revoked { 200 } else { 401 }
            }));
            let first = Instant::now() + within.mul_f64(self.rng.f64());
            waits.begin();
            tokio::spawn(async move {
                sleep_until(first).await;
                loop {
                    match get(&client, FIREFLY).await.status {
                        Ok(401) => refused.fetch_add(1, Ordering::Relaxed),
                        status => break waits.end(first, status.is_ok()),
                    };
                    sleep(millis(500)).await;
                }
            });
        }
        self.settle().await;
        refused.load(Ordering::Relaxed)
    }

    /// The cost since the last report.
    pub(crate) fn report(&mut self, scenario: &'static str) -> Report {
        let (failed, longest_wait) = {
            let mut tally = self.waits.tally.lock().unwrap();
            (mem::take(&mut tally.failed), mem::take(&mut tally.longest))
        };
        let (since, before) = self.reported;
        let mut requests = Rate::since(since);
        let asked_at = self.ims.asked_at();
        asked_at[before..].iter().for_each(|at| requests.count(*at));
        self.reported = (Instant::now(), asked_at.len());
        let load = self.server.as_ref().map(|server| server.take_load());
        let Load { calls, longest_queue } = load.unwrap_or_else(Load::none);
        Report {
            scenario,
            processes: self.sources.len(),
            requests,
            calls,
            longest_queue,
            longest_wait,
            failed: failed + mem::take(&mut self.without_token),
            note: String::new(),
        }
    }
}

/// The number of `token-1`, `token-2`, …
fn token_number(token: &str) -> usize {
    token.strip_prefix("token-").unwrap().parse().unwrap()
}

pub(crate) const fn hours(hours: u64, minutes: u64) -> Duration {
    secs((hours * 60 + minutes) * 60)
}

/// Sleeps until `moment`, without a timer if it has come: a timer for each of a million processes takes
/// a while.
pub(crate) async fn until(moment: Instant) {
    if moment > Instant::now() {
        sleep_until(moment).await;
    }
}
