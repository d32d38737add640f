//! A fleet of processes that share one token, in virtual time: what it asks of IMS and of the store.
//!
//! ```sh
//! cargo bench --bench fleet --features store                # the table of docs/fleet.md
//! cargo bench --bench fleet --features store -- charts      # and its pictures
//! cargo bench --bench fleet --features store -- quick       # up to 1,000 processes, with checks
//! ```
//!
//! Each process is a real `TokenSource`. What is not real is IMS, the store's server, the network and
//! the clock.

#![allow(clippy::unwrap_used, missing_docs)]

mod fleet;
mod ims;
mod rate;
mod report;
mod scenarios;
mod server;
mod store;
mod world;

use std::{env, process::ExitCode, time::Instant};

use fleet::Fleet;
use report::Report;
use scenarios::{SCENARIOS, Scenario};
use tokio::runtime::Builder;
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
        [] => table(&SIZES, |_| true),
        ["only", name, size] => {
            table(&[size.parse().unwrap()], |scenario| scenario.name.contains(name));
        }
        _ => {
            eprintln!("nothing, `charts` or `quick`: what is {words:?}?");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn table(sizes: &[usize], wanted: impl Fn(&Scenario) -> bool) {
    report::head();
    for scenario in SCENARIOS.iter().filter(|scenario| wanted(scenario)) {
        for &processes in sizes {
            let start = Instant::now();
            for report in play(scenario, processes, CAPACITY) {
                report.row();
            }
            eprintln!("{}: {processes} in {:.1?}", scenario.name, start.elapsed());
        }
    }
}

fn play(scenario: &Scenario, processes: usize, capacity: u32) -> Vec<Report> {
    // Everything happens on this thread: what the crate draws comes from here.
    fastrand::seed(SEED);
    let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let mut fleet = Fleet::new(World::new(capacity, true), scenario.shares, SEED);
        scenario.play(&mut fleet, processes).await
    })
}
