//! A fleet of processes that share one token, in virtual time: what it asks of IMS and of the store.
//!
//! ```sh
//! cargo bench --bench fleet --features store                # the tables of docs/fleet.md
//! cargo bench --bench fleet --features store -- charts      # the same, and the pictures
//! cargo bench --bench fleet --features store -- bursts      # one table and its picture alone
//! cargo bench --bench fleet --features store -- quick       # up to 1,000 processes, with checks
//! cargo bench --bench fleet --features store -- only "three days" 10000 5000
//! ```
//!
//! The last one plays what has these words in its name, with a store of 5,000 calls a second.
//!
//! Each process is a real `TokenSource`. What is not real is IMS, the store's server, the network and
//! the clock.

#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../limits/charts.rs"]
mod charts;
mod checks;
mod fleet;
mod ims;
mod pictures;
mod rate;
mod report;
mod scenarios;
mod server;
mod store;
mod world;

use std::{
    env,
    process::ExitCode,
    time::{Duration, Instant},
};

use charts::Curve;
use fleet::Fleet;
use report::Report;
use scenarios::{SCENARIOS, Scenario, burst};
use tokio::runtime::{Builder, Runtime};
use world::World;

const SEED: u64 = 8;
const SIZES: [usize; 6] = [10, 100, 1_000, 10_000, 100_000, 1_000_000];
/// How many calls a second the server of the store does.
const CAPACITY: u32 = 50_000;

fn main() -> ExitCode {
    // Cargo adds `--bench`, which says nothing.
    let arguments: Vec<_> = env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<_> = arguments.iter().map(String::as_str).collect();
    println!("seed {SEED}");
    match words[..] {
        [] => {
            table(&SIZES, CAPACITY, |_| true, |_| ());
            bursts();
        }
        ["charts"] => {
            table(&SIZES, CAPACITY, |_| true, pictures::by_size);
            pictures::storm(&bursts());
        }
        ["bursts"] => pictures::storm(&bursts()),
        ["quick"] => {
            checks::the_store_is_one();
            checks::check(&table(&SIZES[..3], CAPACITY, |_| true, |_| ()));
        }
        ["only", name, size, ref capacity @ ..] => {
            let capacity = capacity.first().map_or(CAPACITY, |it| it.parse().unwrap());
            let wanted = |scenario: &Scenario| scenario.name.contains(name);
            table(&[size.parse().unwrap()], capacity, wanted, |_| ());
        }
        _ => {
            eprintln!("nothing, `charts`, `bursts`, `quick` or `only`: what is {words:?}?");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// A runtime whose clock moves when there is nothing else to do.
fn runtime() -> Runtime {
    // Everything happens on this thread: what the crate draws comes from here.
    fastrand::seed(SEED);
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

fn play(scenario: &Scenario, processes: usize, capacity: u32) -> Vec<Report> {
    runtime().block_on(async {
        let world = World::new(capacity, scenario.announces);
        let mut fleet = Fleet::new(world, scenario.shares.then_some(scenario.store_timeout), SEED);
        scenario.play(&mut fleet, processes).await
    })
}

/// Plays what is wanted, the largest fleets last; `show` sees all reports after each size.
fn table(
    sizes: &[usize],
    capacity: u32,
    wanted: impl Fn(&Scenario) -> bool,
    show: impl Fn(&[Report]),
) -> Vec<Report> {
    let mut all = Vec::new();
    println!();
    report::head();
    for &processes in sizes {
        let wanted = |scenario: &&Scenario| wanted(scenario) && processes <= scenario.most;
        for scenario in SCENARIOS.iter().filter(wanted) {
            let start = Instant::now();
            let reports = play(scenario, processes, capacity);
            reports.iter().for_each(Report::row);
            eprintln!("{}: {processes} in {:.1?}", scenario.name, start.elapsed());
            all.extend(reports);
        }
        show(&all);
    }
    all
}

/// From how many starts in one second on the store is too slow.
fn bursts() -> Vec<Curve> {
    println!(
        "| starts within one second | calls a second that the store does | `store_timeout` | token \
         requests | longest wait | failed |"
    );
    println!("|--:|--:|--:|--:|--:|--:|");
    let [short, long] = [250, 10_000].map(Duration::from_millis);
    let stores = [
        (10_000, short, "10,000 calls a second"),
        (50_000, short, "50,000 calls a second"),
        (50_000, long, "the same, store_timeout 10 s"),
    ];
    let curve = |(capacity, limit, name)| {
        let start = |processes: usize| {
            let report = play(&burst(limit), processes, capacity).remove(0);
            let [starts, requests, failed] =
                [processes as u64, report.requests.total(), report.failed as u64]
                    .map(report::thousands);
            let (capacity, waited) =
                (report::thousands(capacity.into()), report::short(report.longest_wait));
            println!("| {starts} | {capacity} | {limit:?} | {requests} | {waited} | {failed} |");
            (processes as f64, report.requests.total() as f64)
        };
        let sizes = [1_000, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 20_000, 25_000, 30_000];
        Curve::new(name, sizes.into_iter().chain([40_000, 60_000, 100_000]).map(start).collect())
    };
    stores.map(curve).into()
}
