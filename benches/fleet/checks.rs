//! What has to hold in a fleet of up to a thousand processes.

use tower_adobe_auth::mock::check_token_store;

use crate::{CAPACITY, report::Report, runtime, store::SimStore, world::World};

/// The simulated store does what a store must do.
pub(crate) fn the_store_is_one() {
    runtime().block_on(async {
        let world = World::new(CAPACITY, true);
        check_token_store(|| SimStore::new(&world, 0)).await.unwrap();
    });
}

pub(crate) fn check(reports: &[Report]) {
    for report in reports {
        let processes = report.processes as u64;
        let (requests, scenario) = (report.requests.total(), report.scenario);
        let expected = match scenario {
            "three days" | "three days, silent store" => 3,
            "half cut off, renewal" | "half cut off, all start within 60 s" => processes / 2 + 1,
            "store down, renewal" => processes,
            _ if scenario.starts_with("no store") => processes,
            _ => 1,
        };
        assert_eq!(requests, expected, "token requests: {scenario}, {processes} processes");
        assert_eq!(report.failed, 0, "failed: {scenario}, {processes} processes");
    }
    println!("{} reports, all as expected", reports.len());
}
