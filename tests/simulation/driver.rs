//! [`run`]: one seed, from the first step to the shutdown.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use fastrand::Rng;
use http::Request;
use tokio::{runtime::Handle, time::sleep};
use tower::{Layer, service_fn, util::BoxCloneSyncService};
use tower_adobe_auth::{AdobeAuthLayer, TokenSource};

use crate::{
    adversity::{self, Adversity},
    callers::{Client, Manner},
    credentials::{Mood, Provider},
    foreign::Foreign,
    ims::{BAD, Reason},
    moment::{Moment, Pace, Turn},
    promises::*,
    runtimes::{Runtimes, settle},
    world::{Failures, Simulation, World},
};

pub(crate) const SPAN: Duration = Duration::from_secs(30 * DAY);

/// What came of one run.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) log: u64,
    pub(crate) tally: BTreeMap<&'static str, u64>,
}

pub(crate) fn run(seed: u64) -> Result<Report, String> {
    // The source draws its jitter here.
    fastrand::seed(seed);
    let mut rng = Rng::with_seed(seed);
    let runtimes = Runtimes::new();
    let simulation = {
        let _context = runtimes.main.enter();
        Simulation::new(adversity::draw(&mut rng), &mut rng)
    };
    let subscriber = Foreign::new(&simulation, &mut rng, "subscriber panics");
    let _default =
        simulation.has(Adversity::Subscriber).then(|| tracing::subscriber::set_default(subscriber));

    let (tokens, client) = {
        let _context = runtimes.main.enter();
        source(&simulation, &mut rng)
    };
    simulation.set_handles(Some((tokens.clone(), client.clone())));
    let mut driver = Driver { runtimes, simulation, tokens, client, rng };
    let outcome = driver.run_all();
    let simulation = Arc::clone(&driver.simulation);
    let outcome = outcome.and_then(|()| driver.end());
    outcome.map_err(|error| format!("{error}\nadversities: {:?}", simulation.adversities))?;
    let world = simulation.world();
    Ok(Report { log: world.log, tally: world.tally.clone() })
}

fn source(simulation: &Arc<Simulation>, rng: &mut Rng) -> (TokenSource, Client) {
    let ims = service_fn({
        let simulation = Arc::clone(simulation);
        move |request: Request<_>| Arc::clone(&simulation).ims(request)
    });
    let builder = TokenSource::builder_from_provider(Provider(Arc::clone(simulation)))
        .map_ims(|client| client.transport(ims))
        .wall_clock({
            let simulation = Arc::clone(simulation);
            move || simulation.read_wall()
        });
    let builder = if simulation.keeps_warm { builder } else { builder.refresh_on_demand() };
    let recorder = Foreign::new(simulation, rng, "recorder panics");
    let tokens = if simulation.has(Adversity::Recorder) {
        metrics::with_local_recorder(&recorder, || builder.build())
    } else {
        builder.build()
    };
    let tokens = tokens.unwrap();

    let api = service_fn({
        let simulation = Arc::clone(simulation);
        move |request| Arc::clone(&simulation).api(request)
    });
    let layer = AdobeAuthLayer::new(tokens.clone());
    let client = if rng.bool() {
        BoxCloneSyncService::new(layer.replay_unauthorized().layer(api))
    } else {
        BoxCloneSyncService::new(layer.layer(api))
    };
    (tokens, client)
}

struct Driver {
    runtimes: Runtimes,
    simulation: Arc<Simulation>,
    tokens: TokenSource,
    client: Client,
    rng: Rng,
}

impl Driver {
    fn run_all(&mut self) -> Result<(), String> {
        while self.now().at < SPAN {
            self.step();
            self.check()?;
        }
        Ok(())
    }

    fn now(&self) -> Moment {
        let _context = self.runtimes.main.enter();
        self.simulation.now()
    }

    /// Lets time pass. Timers fire when they are due, and the main runtime is driven.
    fn pass(&self, millis: u64) {
        let delay = Turn::Driver.after(self.now().at, Duration::from_millis(millis));
        self.runtimes.main.block_on(async { sleep(delay).await });
    }

    fn spawn(&self, manner: Manner) {
        let _context = self.runtimes.main.enter();
        self.simulation.spawn(&self.tokens, &self.client, manner);
    }

    /// Lets time pass, and does one thing.
    fn step(&mut self) {
        let now = self.now();
        let is_bad = !self.simulation.world().is_clear(now, Duration::ZERO)
            || now.at < self.simulation.world().foreign_panics_until;
        let millis = match self.rng.u8(0..if is_bad { 8 } else { 10 }) {
            0..4 => self.rng.u64(0..2_000),
            4..7 => self.rng.u64(2_000..60_000),
            7..9 => self.rng.u64(60_000..1_800_000),
            _ => self.rng.u64(1_800_000..36_000_000),
        };
        self.simulation.world().shortest_life = millis / 1_000 / 30;
        self.pass(millis);

        match self.rng.u8(0..100) {
            0..30 => self.spawn(Manner::Token),
            30..60 => {
                for _ in 0..self.rng.u8(2..10) {
                    let manner = Manner::draw(&mut self.rng);
                    self.spawn(manner);
                }
            }
            60..64 => {
                let _context = self.runtimes.main.enter();
                self.simulation.invalidate(&self.tokens);
            }
            64..68 => self.spawn(Manner::Refresh),
            68..74 => {
                let _context = self.runtimes.main.enter();
                self.simulation.check_try_token(&self.tokens);
            }
            74..98 => {
                let adversities: Vec<_> = self.simulation.adversities.iter().copied().collect();
                if let Some(adversity) = self.rng.choice(adversities) {
                    self.strike(adversity);
                }
            }
            _ => {}
        }
    }

    fn strike(&mut self, adversity: Adversity) {
        match adversity {
            Adversity::Weather => {
                let weather = self.rng.choice(BAD).unwrap();
                let until = self.until([60, 300, 300, 900, 900, 7_200]);
                self.change(
                    |world| world.weather = (weather, until),
                    "bad weather",
                    weather as u64,
                );
            }
            Adversity::Clocks => self.strike_clocks(),
            Adversity::Refusals => self.strike_refusals(),
            Adversity::Standstills => self.stand_still(),
            Adversity::Runtimes => self.strike_runtimes(),
            Adversity::Provider => {
                let mood = self.rng.choice([Mood::Panics, Mood::Fails, Mood::Hangs]).unwrap();
                let until = self.until([60, 300, 900]);
                self.change(|world| world.provider = (mood, until), "bad provider", mood as u64);
            }
            Adversity::Changes if self.rng.bool() => {
                let now = self.now();
                let change = |world: &mut World| {
                    world.secret = (world.secret.0 + 1, now.at);
                };
                self.change(change, "new secret", 0);
            }
            Adversity::Changes => {
                let moods = [Mood::ChangedPanics, Mood::ChangedAlwaysReturns];
                let mood = self.rng.choice(moods).unwrap();
                let until = self.until([300, 7_200, 7_200]);
                self.change(|world| world.provider = (mood, until), "bad changed()", mood as u64);
            }
            Adversity::Subscriber | Adversity::Recorder => {
                let until = self.until([10, 60, 300]);
                let panics = "foreign code panics";
                self.change(|world| world.foreign_panics_until = until, panics, 0);
                self.spawn(Manner::Refresh);
            }
            // It happens while a failure is booked.
            Adversity::PanickingClock => {}
        }
    }

    fn until<const N: usize>(&mut self, longest: [u64; N]) -> Duration {
        let longest = self.rng.choice(longest).unwrap();
        self.now().at + Duration::from_secs(self.rng.u64(1..longest))
    }

    fn change(&self, change: impl FnOnce(&mut World), what: &'static str, number: u64) {
        let now = self.now();
        let mut world = self.simulation.world();
        change(&mut world);
        world.note(now, what, number);
    }

    fn strike_clocks(&mut self) {
        self.runtimes.main.block_on(settle());
        let most = self.rng.choice([600_000, 600_000, 2 * 86_400_000, 1_000 * 86_400_000]).unwrap();
        let (what, pace, millis) = match self.rng.u8(0..8) {
            0..3 => ("machine sleeps", None, self.rng.i64(60_000..3 * 86_400_000)),
            3..5 => ("clock set", None, self.rng.i64(-most..most)),
            5 => ("clock stands", Some(Pace::Stands), 0),
            6 => ("clock runs backwards", Some(Pace::RunsBackwards), 0),
            // It is set right again, often far ahead.
            _ => ("clock runs", Some(Pace::Runs), self.rng.i64(0..most)),
        };
        let now = self.now();
        let change = |world: &mut World| {
            world.wall.jump(now.at, millis);
            if let Some(pace) = pace {
                world.wall.set_pace(now.at, pace);
            }
            world.clock_set = now.at;
            // The windows of believed refusals may end by the wall clock.
            world.replacements.clear();
            world.replacements_of.clear();
        };
        self.change(change, what, millis.unsigned_abs());
    }

    fn strike_refusals(&mut self) {
        match self.rng.u8(0..6) {
            0..5 => {
                let revoke = |world: &mut World| world.revoked = world.newest_number();
                self.change(revoke, "revoked", 0);
                for _ in 0..self.rng.u8(1..6) {
                    self.spawn(Manner::Request(ACQUIRE_TIMEOUT));
                }
            }
            _ => {
                let (number, pause) = (self.rng.u8(1..50), self.rng.u64(1..2_000));
                self.change(|_| {}, "refusals in a row", u64::from(number));
                for _ in 0..number {
                    self.spawn(Manner::Refused);
                    self.pass(pause);
                }
            }
        }
    }

    /// Nothing runs for a while, often in the middle of a refresh.
    fn stand_still(&mut self) {
        if self.rng.bool() {
            let _context = self.runtimes.main.enter();
            self.simulation.invalidate(&self.tokens);
        }
        for _ in 0..self.rng.u8(0..4) {
            let manner = Manner::draw(&mut self.rng);
            self.spawn(manner);
        }
        let millis = self.rng.u64(0..1_500);
        self.pass(millis);
        let longest = self.rng.choice([1_000, 15_000, 45_000, 600_000, 3 * 86_400_000]).unwrap();
        let duration = Duration::from_millis(self.rng.u64(300..longest) / Turn::ALL * Turn::ALL);
        self.runtimes.stand_still(duration);
        let change = |world: &mut World| {
            world.stood += duration;
            world.standstills += 1;
        };
        self.change(change, "standstill", duration.as_millis() as u64);
        let _context = self.runtimes.main.enter();
        self.simulation.note_trouble("resumes");
    }

    fn strike_runtimes(&mut self) {
        // The other clock is younger than the main one only after a while.
        if self.now().at < Duration::from_secs(3_600) {
            return;
        }
        match self.rng.u8(0..8) {
            0..4 => {
                let (simulation, tokens) = (&self.simulation, &self.tokens);
                let loses = self.rng.bool();
                self.runtimes.on_other(|| {
                    simulation.note_trouble("refresh on another runtime");
                    let now = simulation.now();
                    {
                        let mut world = simulation.world();
                        world.may_be_lost = true;
                        world.started_elsewhere |= !matches!(world.reason(now), Reason::None);
                    }
                    if loses {
                        simulation.invalidate(tokens);
                    }
                    simulation.check_try_token(tokens);
                });
                if self.rng.bool() {
                    self.runtimes.drive_other();
                }
            }
            4..7 => {
                for _ in 0..self.rng.u8(1..60) {
                    let millis = self.rng.u64(20..100);
                    self.pass(millis);
                    self.runtimes.drive_other();
                }
                let _context = self.runtimes.main.enter();
                self.simulation.note_trouble("runtime driven");
            }
            _ => {
                self.runtimes.end_other();
                let _context = self.runtimes.main.enter();
                self.simulation.note_trouble("runtime ends");
            }
        }
        for _ in 0..self.rng.u8(0..3) {
            let manner = Manner::draw(&mut self.rng);
            self.spawn(manner);
        }
    }

    /// After each step: the status of the source is true, and no check has failed.
    fn check(&self) -> Result<(), String> {
        let _context = self.runtimes.main.enter();
        self.simulation.check_status(&self.tokens)
    }

    /// Shuts the source down in the middle of everything, and waits for its end.
    fn end(mut self) -> Result<(), String> {
        for _ in 0..self.rng.u8(0..6) {
            let manner = Manner::draw(&mut self.rng);
            self.spawn(manner);
        }
        let millis = self.rng.u64(0..1_000);
        self.pass(millis);
        if self.rng.u8(0..3) > 0 {
            self.shut_down()?;
        }

        self.simulation.set_handles(None);
        let mut seconds = 0;
        while self.simulation.world().callers > 0 {
            self.pass(1_000);
            seconds += 1;
            let callers = self.simulation.world().callers;
            if seconds > 120 {
                return Err(format!("{callers} callers wait for ever"));
            }
        }
        self.check()?;
        let Self { mut runtimes, simulation, tokens, client, .. } = self;
        runtimes.main.block_on(async move {
            simulation.world().is_closed = true;
            drop((tokens, client));
            settle().await;
        });
        runtimes.end_other();
        let alive = runtimes.main.metrics().num_alive_tasks();
        if alive > 0 {
            return Err(format!("{alive} tasks have outlived the source"));
        }
        Ok(())
    }

    fn shut_down(&mut self) -> Result<(), String> {
        let (simulation, tokens) = (Arc::clone(&self.simulation), self.tokens.clone());
        // The tasks that run there end when they are driven.
        let may_stay = self.runtimes.has_other();
        self.runtimes.main.block_on(async {
            let asked = simulation.now();
            simulation.world().is_closed = true;
            let answer = tokens.shutdown().await;
            let now = simulation.now();
            let mut world = simulation.world();
            world.note(now, "shutdown", 0);
            let took = now.at - asked.at;
            world.check(took <= ACQUIRE_TIMEOUT + TICK, || format!("the shutdown took {took:?}"));
            world.check(answer.is_ok() || may_stay, || format!("the shutdown failed: {answer:?}"));
        });
        self.check()?;
        for _ in 0..self.rng.u8(0..6) {
            let manner = Manner::draw(&mut self.rng);
            self.spawn(manner);
            let millis = self.rng.u64(0..3_000);
            self.pass(millis);
        }
        self.check()
    }
}

impl World {
    /// `try_token` does not wait, but it asks, as a refused caller does. Returns the cached token.
    pub(crate) fn asks_without_waiting(&mut self, now: Moment) -> Option<u64> {
        let cached = self.cached(now);
        self.asked_since_failure = true;
        self.asked_in_vain |= cached.is_none();
        cached
    }
}

impl Simulation {
    fn invalidate(&self, tokens: &TokenSource) {
        let now = self.now();
        self.world().asks_without_waiting(now);
        let Some(token) = tokens.try_token() else { return };
        let number = self.world().check_token(now, token.expose_secret());
        tokens.invalidate(&token);
        let mut world = self.world();
        world.note(now, "invalidated", number);
        if let Some(issued) = world.issued.get_mut((number as usize).wrapping_sub(1)) {
            issued.invalidated = true;
        }
    }

    fn check_try_token(&self, tokens: &TokenSource) {
        let now = self.now();
        let (cached, is_suspect) = {
            let mut world = self.world();
            (world.asks_without_waiting(now), world.is_suspect)
        };
        let token = tokens.try_token();
        let mut world = self.world();
        world.check(token.is_none() || cached.is_some(), || "try_token gave a dead token".into());
        world.check(token.is_some() || cached.is_none() || is_suspect, || {
            "try_token missed the token".into()
        });
        if let Some(token) = token {
            world.check_token(now, token.expose_secret());
        }
    }

    /// Inside the main runtime.
    fn check_status(&self, tokens: &TokenSource) -> Result<(), String> {
        debug_assert!(self.is_main(Handle::current().id()));
        self.world().wall_panics = 0;
        let now = self.now();
        let status = tokens.status();
        let mut world = self.world();
        let cached = world.cached(now);
        world
            .check(status.is_ready() == cached.is_some(), || format!("{cached:?}, but {status:?}"));
        let in_progress = world.in_progress.iter().any(|request| !request.may_be_superseded(now));
        let is_known = status.is_refreshing() || !in_progress || world.is_closed;
        world.check(is_known, || "an unknown token request".into());
        let Failures { min, max } = world.failures;
        let failures = u64::from(status.consecutive_failures());
        world.check((min..=max).contains(&failures), || {
            format!("{min} to {max} failures, but {status:?}")
        });
        self.check_secret(now, &mut world);
        world.take_violation(now)
    }

    /// The background task hears of new credentials, however seldom they are polled.
    fn check_secret(&self, now: Moment, world: &mut World) {
        let (secret, since) = world.secret;
        let longest = self.poll_interval + RECOVERY + RETRY_AFTER_CAP;
        let is_heard = self.keeps_warm
            && !world.is_closed
            && world.is_calm(now)
            && now.at > since.max(world.trouble).max(world.provider.1) + longest;
        if !is_heard {
            return;
        }
        let used = world.newest().map(|newest| newest.secret);
        world.check(used == Some(secret), || {
            format!("secret {secret} of {since:?} is not used yet, but {used:?}")
        });
    }
}
