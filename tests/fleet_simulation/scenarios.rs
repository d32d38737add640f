//! The events in the life of a fleet, and the cost that is expected of each.

use std::time::Duration;

use tokio::time::{Instant, advance};

use crate::{
    CHECKED, Extent,
    fleet::{Fleet, hours, until},
    report::{Report, thousands},
    store::{Model, Network},
    support::{MINUTE, millis, secs},
};

const SECOND: Duration = secs(1);
const TEN_MINUTES: Duration = secs(600);

/// A Redis nearby, and the defaults of a source.
pub(crate) const NEAR: Model =
    Model { calls_per_second: 50_000, round_trip: millis(1), notifies: true, timeout: millis(250) };

/// A store on another continent.
pub(crate) const FAR: Model = Model { round_trip: millis(100), ..NEAR };

/// A store that is too slow to notify ten thousand processes.
const SLOW: Model = Model { calls_per_second: 200, ..NEAR };

pub(crate) struct Scenario {
    pub(crate) name: &'static str,
    /// `None`: each process requests its own token.
    store: Option<Model>,
    /// The largest fleet of the table; a larger one takes too long.
    largest: usize,
    /// `true` if a quick run plays the largest fleet that is checked.
    is_cheap: bool,
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
    /// Some processes do not reach the store for three hours, in which tokens are renewed.
    CutRenewal(Network),
    /// Some processes do not reach the store for three hours, in which all start.
    CutStart(Network),
    /// The token is revoked; one process sends an API request.
    RevokedForOne,
    /// The token is revoked; all processes send API requests.
    RevokedForAll(Duration),
    Alone,
}

const ALL: usize = usize::MAX;
const MANY: usize = 100_000;
const SOME: usize = 10_000;

pub(crate) const SCENARIOS: &[Scenario] = &[
    Scenario::new("all start within 1 s", MANY, Run::Burst).cheap(),
    Scenario::new("all start within 60 s", ALL, Run::ColdStart(MINUTE)),
    Scenario::new("all start within 10 min", ALL, Run::ColdStart(TEN_MINUTES)),
    Scenario::new("one renewal", ALL, Run::Renewals(1)).cheap(),
    Scenario::new("three days", MANY, Run::Renewals(3)),
    Scenario::new("three days, silent store", MANY, Run::Renewals(3)).with(silent(NEAR)),
    Scenario::new("restarts, each process lives an hour", MANY, Run::Restarts),
    Scenario::new("deploy: all replaced within 15 min", MANY, Run::Deploy),
    Scenario::new("half cut off, renewal", MANY, Run::CutRenewal(Network::Half)),
    Scenario::new("half cut off, all start within 60 s", MANY, Run::CutStart(Network::Half)),
    Scenario::new("store down, renewal", MANY, Run::CutRenewal(Network::Down)),
    Scenario::new("token revoked, one process sends a request", MANY, Run::RevokedForOne),
    Scenario::new("token revoked, all send within 1 s", MANY, Run::RevokedForAll(SECOND)),
    Scenario::new("token revoked, all send within 60 s", MANY, Run::RevokedForAll(MINUTE)).cheap(),
    Scenario::new("store 100 ms away, all start within 1 s", SOME, Run::ColdStart(SECOND))
        .with(FAR),
    Scenario::new("store 100 ms away, three days", SOME, Run::Renewals(3)).with(FAR),
    Scenario::new("store 100 ms away, silent, all start within 1 s", SOME, Run::ColdStart(SECOND))
        .with(silent(FAR))
        .cheap(),
    Scenario::new("store 100 ms away, silent, three days", SOME, Run::Renewals(3))
        .with(silent(FAR)),
    Scenario::new("store of 200 calls/s, one renewal", SOME, Run::Renewals(1)).with(SLOW),
    Scenario::new("store of 200 calls/s, deploy", SOME, Run::Deploy).with(SLOW),
    Scenario::new("store of 200 calls/s, silent, one renewal", SOME, Run::Renewals(1))
        .with(silent(SLOW)),
    Scenario { store: None, ..Scenario::new("no store, all start within 60 s", MANY, Run::Alone) },
];

const fn silent(model: Model) -> Model {
    Model { notifies: false, ..model }
}

/// A cold start within one second.
pub(crate) const fn burst(store: Model) -> Scenario {
    Scenario::new("burst", ALL, Run::ColdStart(SECOND)).with(store)
}

impl Scenario {
    const fn new(name: &'static str, largest: usize, run: Run) -> Self {
        Self { name, store: Some(NEAR), largest, is_cheap: false, run }
    }

    const fn cheap(self) -> Self {
        Self { is_cheap: true, ..self }
    }

    const fn with(self, store: Model) -> Self {
        Self { store: Some(store), ..self }
    }

    /// The largest fleet that is played.
    pub(crate) fn largest(&self, extent: Extent) -> usize {
        match extent {
            Extent::Quick if !self.is_cheap => 100,
            Extent::Quick | Extent::Checked => CHECKED,
            Extent::Full => self.largest,
        }
    }

    /// The token requests that a report of this scenario must have.
    fn expected_requests(&self, scenario: &str, processes: u64) -> u64 {
        match self.run {
            _ if scenario == AFTERWARDS => 1,
            Run::Renewals(times) => times.into(),
            Run::CutRenewal(Network::Half) | Run::CutStart(Network::Half) => processes / 2 + 1,
            Run::CutRenewal(_) | Run::CutStart(_) | Run::Alone => processes,
            _ => 1,
        }
    }

    /// The store calls that a report of this scenario may have, for each process and in all.
    fn max_calls(&self, scenario: &str, processes: u64) -> (u64, u64) {
        match self.run {
            _ if scenario == AFTERWARDS => (2, 10),
            Run::Alone => (0, 0),
            Run::CutRenewal(Network::Down) | Run::CutStart(Network::Down) => (0, 0),
            // One read of each process for each token, and those of a few that wait.
            Run::Renewals(times) => (u64::from(times), 10 + processes / 20 * u64::from(times)),
            _ => (3, 10),
        }
    }

    /// Checks a report of a fleet that the store can serve.
    pub(crate) fn check(&self, report: &Report) {
        let (processes, name) = (report.processes as u64, report.scenario);
        let subject = format!("{name} after {}, {processes} processes", self.name);
        let expected = self.expected_requests(name, processes);
        assert_eq!(report.requests.total(), expected, "token requests: {subject}");
        assert_eq!(report.failed, 0, "failed: {subject}");
        let (each, more) = self.max_calls(name, processes);
        let calls = report.calls.total();
        assert!(calls <= each * processes + more, "{calls} store calls: {subject}");
        if let Run::Renewals(_) = self.run {
            let peak = report.calls.peak();
            assert!(peak <= processes / 10 + 10, "{peak} store calls in a second: {subject}");
        }
        let wait = report.longest_wait;
        assert!(wait < SECOND, "a caller waited for {wait:?}: {subject}");
    }

    pub(crate) async fn play(&self, processes: usize) -> Vec<Report> {
        let fleet = &mut Fleet::new(self.store);
        match self.run {
            Run::ColdStart(over) => {
                fleet.start(processes, over).await;
                vec![fleet.report(self.name)]
            }
            Run::Burst => {
                fleet.start(processes, SECOND).await;
                let start = fleet.report(self.name);
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
                restart(fleet, processes).await;
                vec![fleet.report(self.name)]
            }
            Run::Deploy => {
                warm(fleet, processes).await;
                deploy(fleet, processes).await;
                vec![fleet.report(self.name)]
            }
            Run::CutRenewal(network) => {
                warm(fleet, processes).await;
                advance(hours(22, 0)).await;
                fleet.set(network);
                let healed = Instant::now() + hours(3, 0);
                fleet.renew().await;
                advance(healed - Instant::now()).await;
                fleet.set(Network::Whole);
                vec![fleet.report(self.name), next_renewal(fleet).await]
            }
            Run::CutStart(network) => {
                fleet.set(network);
                fleet.start(processes, MINUTE).await;
                advance(hours(3, 0)).await;
                fleet.set(Network::Whole);
                vec![fleet.report(self.name), next_renewal(fleet).await]
            }
            Run::RevokedForOne => vec![revoke(self.name, fleet, processes, 1, SECOND).await],
            Run::RevokedForAll(within) => {
                vec![revoke(self.name, fleet, processes, processes, within).await]
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

/// Starts a fleet at a rate that its store can serve, and does not count the cost.
async fn warm(fleet: &mut Fleet, processes: usize) {
    let capacity = fleet.server.as_ref().unwrap().model.calls_per_second;
    // 2,000 a second, where the store does 50,000 calls.
    let starts_per_second = f64::from(capacity) / 25.0;
    fleet.start(processes, SECOND.mul_f64(processes as f64 / starts_per_second)).await;
    let start = fleet.report("start");
    assert_eq!((start.failed, start.requests.total()), (0, 1), "a slow start");
}

const AFTERWARDS: &str = "… and the renewal after it";

async fn next_renewal(fleet: &mut Fleet) -> Report {
    fleet.renew().await;
    fleet.report(AFTERWARDS)
}

/// Twenty minutes around the renewal, in which each process may end at any moment.
async fn restart(fleet: &mut Fleet, processes: usize) {
    fleet.skip_to_renewal().await;
    let mean = Duration::from_secs(3_600).div_f64(processes as f64);
    let end = Instant::now() + hours(0, 20);
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

/// One process after the other is replaced while the token is renewed.
async fn deploy(fleet: &mut Fleet, processes: usize) {
    let end = fleet.skip_to_renewal().await;
    let start = Instant::now() + MINUTE;
    for number in 0..processes {
        until(start + hours(0, 15).mul_f64(number as f64 / processes as f64)).await;
        fleet.replace(number);
    }
    fleet.settle().await;
    fleet.run(end).await;
}

/// The token is revoked in the middle of its life, and the first `senders` send requests.
async fn revoke(
    name: &'static str,
    fleet: &mut Fleet,
    processes: usize,
    senders: usize,
    within: Duration,
) -> Report {
    warm(fleet, processes).await;
    advance(hours(12, 0)).await;
    let last = fleet.ims.asked();
    let refused = fleet.meet_revocation(senders, within).await;
    let newer = thousands(fleet.newer_than(last) as u64);
    let mut report = fleet.report(name);
    report.note = format!("{} × 401; {newer} have the new token", thousands(refused as u64));
    report
}
