//! What happens to a fleet.

use std::time::Duration;

use tokio::time::{Instant, advance};

use crate::{
    fleet::{Fleet, until},
    report::{Report, thousands},
    world::{Network, time},
};

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const TEN_MINUTES: Duration = Duration::from_secs(600);

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// Whether there is a store.
    pub(crate) shares: bool,
    /// Whether the store says that something has changed.
    pub(crate) announces: bool,
    /// How long the store may hold up a flight.
    pub(crate) store_timeout: Duration,
    /// The largest fleet of the table: what is larger takes too long.
    pub(crate) most: usize,
    run: Run,
}

#[derive(Clone, Copy)]
enum Run {
    ColdStart(Duration),
    /// A cold start that may be too much for the store, and the next renewal.
    Burst,
    Renewals(u32),
    Restarts,
    Deploy,
    /// The store is not reached by some for three hours, in which tokens are renewed.
    CutRenewal(Network),
    CutStart(Network),
    RevokedForOne,
    RevokedForAll(Duration),
    Alone,
}

const ALL: usize = usize::MAX;
const SOME: usize = 100_000;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("all start within 1 s", ALL, Run::Burst),
    Scenario::new("all start within 60 s", ALL, Run::ColdStart(MINUTE)),
    Scenario::new("all start within 10 min", ALL, Run::ColdStart(TEN_MINUTES)),
    Scenario::new("one renewal", ALL, Run::Renewals(1)),
    Scenario::new("three days", SOME, Run::Renewals(3)),
    Scenario::new("three days, silent store", SOME, Run::Renewals(3)).silent(),
    Scenario::new("restarts, each process lives an hour", SOME, Run::Restarts),
    Scenario::new("deploy: all replaced within 15 min", SOME, Run::Deploy),
    Scenario::new("half cut off, renewal", SOME, Run::CutRenewal(Network::Half)),
    Scenario::new("half cut off, all start within 60 s", SOME, Run::CutStart(Network::Half)),
    Scenario::new("store down, renewal", SOME, Run::CutRenewal(Network::Down)),
    Scenario::new("token revoked, one process hears of it", SOME, Run::RevokedForOne),
    Scenario::new("token revoked, all hear of it within 1 s", SOME, Run::RevokedForAll(SECOND)),
    Scenario::new("token revoked, all hear of it within 60 s", SOME, Run::RevokedForAll(MINUTE)),
    Scenario::new("no store, all start within 60 s", SOME, Run::Alone).alone(),
];

/// A cold start within one second.
pub(crate) const fn burst(store_timeout: Duration) -> Scenario {
    Scenario { store_timeout, ..Scenario::new("burst", ALL, Run::ColdStart(SECOND)) }
}

impl Scenario {
    const fn new(name: &'static str, most: usize, run: Run) -> Self {
        let store_timeout = Duration::from_millis(250);
        Self { name, shares: true, announces: true, store_timeout, most, run }
    }

    const fn silent(self) -> Self {
        Self { announces: false, ..self }
    }

    const fn alone(self) -> Self {
        Self { shares: false, ..self }
    }

    pub(crate) async fn play(&self, fleet: &mut Fleet, processes: usize) -> Vec<Report> {
        match self.run {
            Run::ColdStart(over) => {
                fleet.start(processes, over).await;
                vec![fleet.report(self.name)]
            }
            Run::Burst => {
                fleet.start(processes, SECOND).await;
                let start = fleet.report(self.name);
                // A million takes minutes more, and shows nothing else.
                if processes > SOME {
                    return vec![start];
                }
                vec![start, next_renewal(fleet).await]
            }
            Run::Renewals(times) => {
                warm(fleet, processes).await;
                for _ in 0..times {
                    fleet.renew().await;
                }
                vec![fleet.report(self.name)]
            }
            Run::Restarts => {
                warm(fleet, processes).await;
                restarts(fleet, processes).await;
                vec![fleet.report(self.name)]
            }
            Run::Deploy => {
                warm(fleet, processes).await;
                deploy(fleet, processes).await;
                vec![fleet.report(self.name)]
            }
            Run::CutRenewal(network) => {
                warm(fleet, processes).await;
                advance(time(22, 0)).await;
                fleet.world.set(network);
                let healed = Instant::now() + time(3, 0);
                fleet.renew().await;
                advance(healed - Instant::now()).await;
                fleet.world.set(Network::Whole);
                vec![fleet.report(self.name), next_renewal(fleet).await]
            }
            Run::CutStart(network) => {
                fleet.world.set(network);
                fleet.start(processes, MINUTE).await;
                advance(time(3, 0)).await;
                fleet.world.set(Network::Whole);
                vec![fleet.report(self.name), next_renewal(fleet).await]
            }
            Run::RevokedForOne => vec![revoked(self.name, fleet, processes, 1, SECOND).await],
            Run::RevokedForAll(within) => {
                vec![revoked(self.name, fleet, processes, processes, within).await]
            }
            Run::Alone => {
                fleet.start(processes, MINUTE).await;
                let start = fleet.report(self.name);
                fleet.renew().await;
                vec![start, fleet.report("no store, one renewal")]
            }
        }
    }
}

/// A fleet that has its token; what that has cost is not counted.
async fn warm(fleet: &mut Fleet, processes: usize) {
    // 2,000 a second, where the store does 50,000 calls.
    let starts_a_second = f64::from(fleet.world.capacity) / 25.0;
    fleet.start(processes, SECOND.mul_f64(processes as f64 / starts_a_second)).await;
    let start = fleet.report("start");
    assert_eq!((start.failed, start.requests.total()), (0, 1), "a slow start");
}

async fn next_renewal(fleet: &mut Fleet) -> Report {
    fleet.renew().await;
    fleet.report("… and the renewal after it")
}

/// Twenty minutes around the renewal, in which each process may end at any moment.
async fn restarts(fleet: &mut Fleet, processes: usize) {
    fleet.skip_to_renewal().await;
    let mean = Duration::from_secs(3_600).div_f64(processes as f64);
    let end = Instant::now() + time(0, 20);
    let mut next = Instant::now();
    loop {
        next += mean.mul_f64(-(1.0 - fleet.rng.f64()).ln());
        if next >= end {
            break;
        }
        until(next).await;
        let number = fleet.rng.usize(0..processes);
        fleet.replace(number);
    }
    fleet.run(end).await;
    fleet.settle().await;
}

/// One process after the other is replaced, just while the token is renewed.
async fn deploy(fleet: &mut Fleet, processes: usize) {
    let end = fleet.skip_to_renewal().await;
    let start = Instant::now() + MINUTE;
    for number in 0..processes {
        until(start + time(0, 15).mul_f64(number as f64 / processes as f64)).await;
        fleet.replace(number);
    }
    fleet.settle().await;
    fleet.run(end).await;
}

/// The token in hand is revoked in mid-life, and so many processes send requests.
async fn revoked(
    name: &'static str,
    fleet: &mut Fleet,
    processes: usize,
    who: usize,
    within: Duration,
) -> Report {
    warm(fleet, processes).await;
    advance(time(12, 0)).await;
    let last = fleet.world.revoke();
    let refused = fleet.traffic(who, within).await;
    let newer = thousands(fleet.newer_than(last) as u64);
    let mut report = fleet.report(name);
    report.note = format!("{} × 401; {newer} have the new token", thousands(refused as u64));
    report
}
