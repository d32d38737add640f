//! A fleet of processes that share one token, in virtual time: its requests to IMS and its calls of
//! the store.
//!
//! ```sh
//! cargo test --test fleet_simulation
//! FLEET_SIMULATION=checked cargo test --release --test fleet_simulation
//! FLEET_SIMULATION=full cargo test --release --test fleet_simulation -- --nocapture
//! ```
//!
//! The first command plays all scenarios with up to 100 processes, and some with 1,000. The second plays all
//! with up to 1,000. The third also plays larger fleets, of up to a million, and writes the tables and
//! pictures of `docs/fleet/`.
//!
//! Each process is a real `TokenSource`. IMS, the server of the store, the network and the clock are
//! simulated. Each scenario runs on one thread and in paused time, so that its figures repeat exactly.

#![allow(clippy::unwrap_used)]

#[path = "../../benches/limits/charts.rs"]
mod charts;
mod fleet;
mod outages;
mod pictures;
mod rate;
mod report;
mod scenarios;
mod store;
#[path = "../support/mod.rs"]
mod support;

use std::{collections::BTreeMap, env, fs, path::Path, sync::Mutex, time::Instant};

use charts::Curve;
use fleet::Fleet;
use futures_util::future::join_all;
use report::{short, thousands};
use scenarios::{FAR, NEAR, SCENARIOS, burst};
use store::{Model, Server};
use support::{Reply, secs};
use tokio::runtime::Builder;
use tower_adobe_auth::mock::check_token_store;

const SEED: u64 = 8;

/// Up to this size a store of 200 calls a second can serve a fleet.
const CHECKED: usize = 1_000;

/// Runs in virtual time, which advances when there is nothing else to do.
fn simulate<T>(story: impl Future<Output = T>) -> T {
    // The random numbers of the crate come from this thread, too.
    fastrand::seed(SEED);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(story)
}

/// How much is played.
#[derive(Clone, Copy, PartialEq)]
enum Extent {
    /// All scenarios with 100 processes, some with 1,000: without optimization more takes too long.
    Quick,
    /// All scenarios with up to 1,000 processes.
    Checked,
    /// All scenarios with up to a million processes, as far as time and memory permit.
    Full,
}

fn extent() -> Extent {
    match env::var("FLEET_SIMULATION").as_deref() {
        Err(_) => Extent::Quick,
        Ok("checked") => Extent::Checked,
        Ok("full") => Extent::Full,
        Ok(word) => panic!("FLEET_SIMULATION is `checked`, `full` or not set: {word}"),
    }
}

/// The largest fleet of the full set; `FLEET_SIMULATION_LARGEST` lowers it.
fn largest() -> usize {
    let set = env::var("FLEET_SIMULATION_LARGEST");
    set.map_or(usize::MAX, |text| text.parse().expect("a number of processes"))
}

/// A table, printed row by row.
struct Table(String);

impl Table {
    fn new(head: &str) -> Self {
        println!("{head}");
        Self(format!("{head}\n"))
    }

    fn row(&mut self, row: &str) {
        println!("{row}");
        self.0 += row;
        self.0.push('\n');
    }

    /// Writes the table, and those that were written before, into `docs/fleet/figures.md`.
    fn write(self, title: &'static str) {
        static WRITTEN: Mutex<BTreeMap<&str, String>> = Mutex::new(BTreeMap::new());
        let mut written = WRITTEN.lock().unwrap();
        written.insert(title, self.0);
        let mut page =
            "# Figures of the simulation\n\nWritten by `tests/fleet_simulation`. An empty cell was not played.\n"
                .to_owned();
        for (title, table) in &*written {
            page += &format!("\n## {title}\n\n{table}");
        }
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/fleet/figures.md");
        fs::write(path, page).unwrap();
    }
}

#[test]
fn the_simulated_store_keeps_the_promises_of_a_store() {
    simulate(async {
        let server = Server::new(NEAR);
        check_token_store(|| server.store(0)).await.unwrap();
    });
}

#[test]
fn a_fleet_makes_one_request_for_each_token() {
    let extent = extent();
    let (mut table, mut all) = (Table::new(report::HEAD), Vec::new());
    let sizes = [10, 100, 1_000, 10_000, 100_000, 1_000_000];
    for processes in sizes.into_iter().filter(|size| *size <= largest()) {
        for scenario in SCENARIOS.iter().filter(|it| processes <= it.largest(extent)) {
            let start = Instant::now();
            let reports = simulate(scenario.play(processes));
            eprintln!("{}: {processes} in {:.1?}", scenario.name, start.elapsed());
            for report in reports {
                table.row(&report.row());
                if processes <= CHECKED {
                    scenario.check(&report);
                }
                all.push(report);
            }
        }
        if extent == Extent::Full {
            pictures::by_size(&all);
        }
    }
    if extent == Extent::Full {
        let mut requests = Table::new(&report::head_by_size(&sizes));
        report::rows_by_size(&all, &sizes).iter().for_each(|row| requests.row(row));
        requests.write("Token requests");
        table.write("Scenarios");
    }
}

#[test]
fn a_fleet_asks_a_failing_ims_hardly_more_than_one_process() {
    let sizes: &[usize] = match extent() {
        Extent::Quick => &[50],
        Extent::Checked | Extent::Full => &[50, 1_000],
    };
    // Without optimization five outages take too long.
    let outages =
        if extent() == Extent::Quick { &outages::REPLIES[..3] } else { &outages::REPLIES };
    let mut table = Table::new(outages::HEAD);
    for &(reply, name) in outages {
        let alone = simulate(outages::play(reply, 1, None));
        let one = simulate(outages::play(reply, 1, Some(NEAR)));
        let fewest = alone.requests.min(one.requests);
        table.row(&alone.row(&format!("{name}, no store"), fewest));
        table.row(&one.row(name, fewest));
        for &processes in sizes {
            let outage = simulate(outages::play(reply, processes, Some(NEAR)));
            table.row(&outage.row(name, fewest));
            let ratio = outage.ratio(fewest);
            assert!(ratio < 3.0, "{processes} processes, IMS {name}: {ratio} times the requests");
        }
    }
    if extent() == Extent::Full {
        table.write("IMS fails for ten minutes");
    }
}

#[test]
fn the_last_of_200_processes_knows_of_a_wrong_secret_in_2_s() {
    let (last, requests) = simulate(async {
        let (fleet, start) = (Fleet::new(Some(NEAR)), tokio::time::Instant::now());
        fleet.ims.respond_with(Reply::Rejected);
        let sources = (0..200).map(|number| fleet.source(number));
        let errors = sources.map(|source| async move {
            source.token().await.unwrap_err();
            start.elapsed()
        });
        let errors = join_all(errors).await;
        (errors.into_iter().max().unwrap(), fleet.ims.asked())
    });

    assert!(last < secs(2), "the last knows after {last:?}");
    assert_eq!(requests, 1);
}

#[test]
fn a_store_100_ms_away_serves_cold_starts_in_a_row() {
    for notifies in [true, false] {
        let requests = simulate(async {
            let fleet = Fleet::new(Some(Model { notifies, ..FAR }));
            for number in 0..20 {
                fleet.source(number).token().await.unwrap();
            }
            fleet.ims.asked()
        });

        assert!(requests <= 2, "{requests} token requests; notifies: {notifies}");
    }
}

/// From how many starts in one second on the store is too slow.
#[test]
fn a_store_serves_a_tenth_of_its_calls_as_starts_in_a_second() {
    let full = extent() == Extent::Full;
    let sizes: &[usize] = match full {
        true => &[
            1_000, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 20_000, 25_000, 30_000, 40_000,
            60_000, 100_000,
        ],
        false => &[1_000],
    };
    let stores = [
        (Model { calls_per_second: 10_000, ..NEAR }, "10,000 calls a second"),
        (NEAR, "50,000 calls a second"),
        (Model { timeout: secs(10), ..NEAR }, "the same, store_timeout 10 s"),
    ];
    let mut table = Table::new(
        "| starts within one second | store calls a second | `store_timeout` | token requests | \
         longest wait | failed |\n|--:|--:|--:|--:|--:|--:|",
    );
    let curves = stores.map(|(model, name)| {
        let points = sizes.iter().filter(|size| **size <= largest()).map(|size| {
            let report = simulate(burst(model).play(*size)).remove(0);
            let requests = report.requests.total();
            table.row(&format!(
                "| {} | {} | {:?} | {} | {} | {} |",
                thousands(*size as u64),
                thousands(model.calls_per_second.into()),
                model.timeout,
                thousands(requests),
                short(report.longest_wait),
                thousands(report.failed as u64),
            ));
            assert_eq!(report.failed, 0, "{size} starts, {name}");
            if *size <= CHECKED {
                assert_eq!(requests, 1, "{size} starts, {name}");
            }
            (*size as f64, requests as f64)
        });
        Curve::new(name, points.collect())
    });
    if full {
        table.write("Starts within one second");
        pictures::storm(&curves);
    }
}
