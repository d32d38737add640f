//! The processes: a real [`TokenSource`] for each.

use std::{
    mem,
    sync::{Arc, Mutex},
    time::Duration,
};

use fastrand::Rng;
use http::{Request, StatusCode};
use tokio::{
    sync::Notify,
    time::{Instant, advance, sleep, sleep_until},
};
use tower::{Layer, ServiceExt};
use tower_adobe_auth::{AdobeAuthLayer, TokenSource};

use crate::{
    ims::Ims,
    report::Report,
    store::SimStore,
    world::{Api, World, time},
};

/// How often it is looked whether somebody is without a token.
const LOOK: Duration = Duration::from_secs(60);

/// So long after a token was saved all have looked at it who heard of it.
const ANNOUNCED: Duration = Duration::from_secs(35);

pub(crate) struct Fleet {
    pub(crate) world: Arc<World>,
    pub(crate) rng: Rng,
    /// How long the store may hold up a flight, if there is one.
    store_timeout: Option<Duration>,
    sources: Vec<TokenSource>,
    waits: Arc<Waits>,
    without_token: usize,
}

/// How those fared who had to wait.
#[derive(Default)]
struct Waits {
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
    fn begin(self: &Arc<Self>) -> Instant {
        self.tally.lock().unwrap().waiting += 1;
        Instant::now()
    }

    fn end(&self, since: Instant, ok: bool) {
        let mut tally = self.tally.lock().unwrap();
        tally.waiting -= 1;
        tally.failed += usize::from(!ok);
        tally.longest = tally.longest.max(since.elapsed());
        if tally.waiting == 0 {
            self.all_done.notify_one();
        }
    }

    async fn ended(&self) {
        while self.tally.lock().unwrap().waiting > 0 {
            self.all_done.notified().await;
        }
    }
}

impl Fleet {
    pub(crate) fn new(world: Arc<World>, store_timeout: Option<Duration>, seed: u64) -> Self {
        Self {
            world,
            rng: Rng::with_seed(seed),
            store_timeout,
            sources: Vec::new(),
            waits: Arc::default(),
            without_token: 0,
        }
    }

    fn source(&self, number: usize) -> TokenSource {
        let world = Arc::clone(&self.world);
        let builder = TokenSource::builder_from_fetcher(Ims(Arc::clone(&world)))
            .wall_clock(move || world.wall());
        let builder = match self.store_timeout {
            Some(limit) => builder
                .store(SimStore::new(&self.world, number))
                .store_name("fleet")
                .store_timeout(limit),
            None => builder,
        };
        builder.build().unwrap()
    }

    /// A new process wants its first token.
    fn first_token(&self, source: TokenSource) {
        let waits = Arc::clone(&self.waits);
        tokio::spawn(async move {
            let since = waits.begin();
            waits.end(since, source.token().await.is_ok());
        });
    }

    /// So many processes start at random moments of that time. Ends when each has its token, or an
    /// error.
    pub(crate) async fn start(&mut self, processes: usize, over: Duration) {
        let start = Instant::now();
        let mut moments: Vec<_> =
            (0..processes).map(|_| start + over.mul_f64(self.rng.f64())).collect();
        moments.sort_unstable();
        self.sources.reserve_exact(processes);
        for (number, moment) in moments.into_iter().enumerate() {
            until(moment).await;
            let source = self.source(number);
            self.first_token(source.clone());
            self.sources.push(source);
        }
        self.settle().await;
    }

    /// Until nobody waits for a token, or is about to look for one.
    pub(crate) async fn settle(&self) {
        // What was just spawned is counted when it first runs.
        sleep(Duration::from_millis(10)).await;
        self.waits.ended().await;
        sleep(ANNOUNCED).await;
    }

    /// Another process in the place of this one, which ends.
    pub(crate) fn replace(&mut self, number: usize) {
        let source = self.source(number);
        self.first_token(source.clone());
        self.sources[number] = source;
    }

    /// Runs for so long; looks now and then whether somebody is without a token.
    pub(crate) async fn run(&mut self, until: Instant) {
        while Instant::now() < until {
            sleep_until(until.min(Instant::now() + LOOK)).await;
            self.newer_than(0);
        }
    }

    /// How many have a token that is newer than this one. Notes how many have none.
    pub(crate) fn newer_than(&mut self, number: u64) -> usize {
        let (mut newer, mut without) = (0, 0);
        for source in &self.sources {
            match source.try_token() {
                Some(token) => {
                    newer += usize::from(token.expose_secret().parse::<u64>().unwrap() > number);
                }
                None => without += 1,
            }
        }
        self.without_token = self.without_token.max(without);
        newer
    }

    /// Lets the hours pass in which nothing is due, up to the next renewal. Returns when all will have
    /// renewed.
    ///
    /// The background task of a source wakes once a minute. Here it wakes once, at the end of that time.
    pub(crate) async fn skip_to_renewal(&mut self) -> Instant {
        let (first, last) = self.world.requests.lock().unwrap().take_span().unwrap();
        advance(first + time(22, 44) - Instant::now()).await;
        self.newer_than(0);
        last + time(23, 1)
    }

    /// Goes on until all have renewed their token.
    pub(crate) async fn renew(&mut self) {
        let last = self.world.requests.lock().unwrap().issued();
        let end = self.skip_to_renewal().await;
        while self.newer_than(last) < self.sources.len() {
            assert!(Instant::now() < end, "not all have renewed in time");
            sleep(ANNOUNCED).await;
        }
        sleep(ANNOUNCED).await;
    }

    /// Each of these processes sends a request at a random moment of that time, and another one
    /// half a second after each 401. Returns how many requests were refused.
    pub(crate) async fn traffic(&mut self, processes: usize, within: Duration) -> usize {
        let refused = Arc::new(Mutex::new(0));
        for source in &self.sources[..processes] {
            let (source, world) = (source.clone(), Arc::clone(&self.world));
            let (waits, refused) = (Arc::clone(&self.waits), Arc::clone(&refused));
            let first = within.mul_f64(self.rng.f64());
            tokio::spawn(async move {
                let since = waits.begin() + first;
                sleep(first).await;
                loop {
                    let service = AdobeAuthLayer::new(source.clone()).layer(Api(world.clone()));
                    let request = Request::get("https://firefly-api.adobe.io/v3/models");
                    let response = service.oneshot(request.body(()).unwrap()).await;
                    match response.map(|response| response.status()) {
                        Ok(StatusCode::OK) => break waits.end(since, true),
                        Ok(_) => *refused.lock().unwrap() += 1,
                        Err(_) => break waits.end(since, false),
                    }
                    sleep(Duration::from_millis(500)).await;
                }
            });
        }
        self.settle().await;
        *refused.lock().unwrap()
    }

    /// What happened since the last report.
    pub(crate) fn report(&mut self, scenario: &'static str) -> Report {
        let tally = mem::take(&mut *self.waits.tally.lock().unwrap());
        Report {
            scenario,
            processes: self.sources.len(),
            requests: self.world.requests.lock().unwrap().take(),
            load: self.world.server.take_load(),
            longest_wait: tally.longest,
            failed: tally.failed + mem::take(&mut self.without_token),
            note: String::new(),
        }
    }
}

/// A sleep of no time is none: a timer for each of a million processes takes its time.
pub(crate) async fn until(moment: Instant) {
    if moment > Instant::now() {
        sleep_until(moment).await;
    }
}
