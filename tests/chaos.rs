//! Chaos: real processes, a real Redis, and an IMS, each of which fails at random for two minutes.
//!
//! Ten processes of two tenants share their tokens through a Redis behind a proxy, and each sends a request
//! to an API every 100 ms. A schedule drawn from a seed kills and stops processes, pauses Redis, restarts
//! it empty or with an old state, delays and cuts the network, revokes tokens, rewrites credentials files,
//! and lets IMS throttle, hang, refuse and fail. Checked throughout:
//!
//! - No request fails or waits for long while its process has a usable token cached.
//! - No process has or sends a token that was requested before one it already had.
//! - No process sends a token of another tenant, or an expired one.
//! - The number of token requests stays within the bound of `Ledger::max_requests`.
//! - Within a minute after the last fault, all processes of a tenant send the same token, nothing fails,
//!   and IMS gets only the requests of a fleet that shares.
//!
//! It runs with `cargo test --all-features --test chaos -- --ignored`. `CHAOS_SECONDS` sets for how long
//! faults are drawn (default: 120), `CHAOS_SEED` repeats a schedule, and `CHAOS_ECHO` prints the journal
//! while it is written.

#![cfg(all(feature = "redis-store", feature = "reqwest", unix))]
#![allow(clippy::unwrap_used)]

#[path = "chaos/adobe.rs"]
mod adobe;
#[path = "chaos/fleet.rs"]
mod fleet;
#[path = "chaos/journal.rs"]
mod journal;
#[path = "chaos/proxy.rs"]
mod proxy;
#[path = "chaos/schedule.rs"]
mod schedule;
#[path = "chaos/server.rs"]
mod server;
#[path = "chaos/wire.rs"]
mod wire;
#[path = "chaos/worker.rs"]
mod worker;

use std::{
    env,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use adobe::{Adobe, Tenant};
use fleet::{Fleet, Urls};
use journal::Journal;
use proxy::Proxy;
use schedule::{Chaos, Ledger};
use server::Server;

/// Short, so that two minutes see ten refreshes of each tenant.
const TOKEN_LIFETIME: Duration = Duration::from_secs(30);

/// Shorter than the lease, as the docs of `lease_ttl` ask for.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(2);

/// At least twice the lease.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(10);

const LEASE_TTL: Duration = Duration::from_secs(4);

/// The tenant of each process at the start.
const SEATS: [Tenant; 10] = {
    use Tenant::{A, B};
    [A, B, A, B, A, B, A, B, A, A]
};

/// The seat of the process whose credentials file names the other tenant from time to time.
const SWITCHER: usize = 9;

/// How long after the last fault everything is well again.
const CONVERGENCE: Duration = Duration::from_secs(60);

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|text| text.parse().unwrap())
}

/// One process of the fleet: this binary, started by `Fleet::start`.
#[test]
fn worker() {
    if let Ok(id) = env::var("CHAOS_WORKER") {
        worker::run(&id);
    }
}

#[test]
#[ignore = "two minutes of faults: cargo test --all-features --test chaos -- --ignored"]
fn fleet_keeps_its_promises_in_chaos() {
    let folder = tempfile::tempdir().unwrap();
    let Some(server) = Server::start(folder.path()) else { return };
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = number("CHAOS_SEED").unwrap_or(since_1970.subsec_nanos().into());
    let end = Duration::from_secs(number("CHAOS_SECONDS").unwrap_or(120));
    eprintln!("CHAOS_SEED={seed} CHAOS_SECONDS={}", end.as_secs());
    let journal = Arc::new(Journal::new());
    let adobe = Adobe::new(journal.clone(), &SEATS);
    let (ims, api) = adobe.serve();
    let proxy = Proxy::start(&server.socket(), SEATS.len());
    let urls = Urls { ims, api, stores: proxy.urls() };
    let fleet = Fleet::new(urls, adobe.clone(), journal.clone(), folder.path());
    for (seat, tenant) in SEATS.into_iter().enumerate() {
        fleet.write_file(seat, tenant, None);
        fleet.start(seat);
    }
    let (busy, ledger) = (Mutex::default(), Mutex::default());
    let chaos = Arc::new(Chaos { fleet, server, proxy, adobe, journal, busy, ledger, end });

    chaos.run(seed);
    chaos.journal.fault("the last fault is over");
    if chaos.journal.violations().is_empty() {
        converge(&chaos);
    }
    check_requests(&chaos);
    report(&chaos);

    let violations = chaos.journal.violations();
    if !violations.is_empty() {
        eprintln!("{}", chaos.journal.text());
        panic!("CHAOS_SEED={seed}:\n{}", violations.join("\n"));
    }
}

/// Waits until everything is well, and watches the fleet for the life of a token.
fn converge(chaos: &Chaos) {
    let start = Instant::now();
    while !is_converged(chaos) {
        if start.elapsed() > CONVERGENCE {
            let sent = Tenant::ALL.map(|tenant| chaos.adobe.last_sent(tenant));
            let is_well = chaos.fleet.is_well_for(Duration::from_secs(2));
            return chaos.journal.violation(format!(
                "after {CONVERGENCE:?} the fleet has not converged; it is well: {is_well}; {sent:?}"
            ));
        }
        thread::sleep(Duration::from_millis(50));
    }
    chaos.journal.fault(format!("converged after {:?}", start.elapsed()));
    let before = Tenant::ALL.map(|tenant| chaos.adobe.issued(tenant));
    let start = Instant::now();
    thread::sleep(TOKEN_LIFETIME);
    if !chaos.fleet.is_well_for(start.elapsed()) {
        chaos.journal.violation("a request failed although no fault is left");
    }
    let max = Ledger::max_quiet_requests(start.elapsed());
    for (tenant, before) in Tenant::ALL.into_iter().zip(before) {
        let issued = chaos.adobe.issued(tenant) - before;
        if issued > max {
            let text = format!("{tenant:?} without faults: {issued} tokens issued, at most {max}");
            chaos.journal.violation(text);
        }
    }
}

/// Returns whether all processes of each tenant send the same token, and none is in trouble.
fn is_converged(chaos: &Chaos) -> bool {
    let is_shared = |tenant| {
        let sent = chaos.adobe.last_sent(tenant);
        sent.iter().all(|token| token.is_some() && *token == sent[0])
    };
    chaos.fleet.is_well_for(Duration::from_secs(2)) && Tenant::ALL.into_iter().all(is_shared)
}

/// Checks the number of token requests.
fn check_requests(chaos: &Chaos) {
    let elapsed = chaos.journal.elapsed();
    let ledger = chaos.ledger.lock().unwrap();
    let check = |name: String, count: u32, max: u32| {
        let text = format!("{name}: {count}, at most {max}");
        match count <= max {
            true => chaos.journal.fault(text),
            false => chaos.journal.violation(text),
        }
    };
    let mut max_failed = 0;
    for tenant in Tenant::ALL {
        let fixed = SEATS[..SWITCHER].iter().filter(|it| **it == tenant).count();
        // The switcher may be a member of either.
        let members = u32::try_from(fixed + 1).unwrap();
        let max = ledger.max_issued(tenant, members, elapsed);
        check(format!("tokens issued to {tenant:?}"), chaos.adobe.issued(tenant), max);
        max_failed += ledger.max_failed(tenant, members);
    }
    check("failed token requests".to_owned(), chaos.adobe.failed(), max_failed);
}

fn report(chaos: &Chaos) {
    let (requests, failures) = chaos.fleet.counts();
    let issued: u32 = Tenant::ALL.iter().map(|tenant| chaos.adobe.issued(*tenant)).sum();
    let unauthorized = chaos.adobe.unauthorized();
    let text = format!(
        "{requests} requests, {failures} failed without a token, {unauthorized} times 401, \
         {issued} tokens issued"
    );
    chaos.journal.fault(&text);
    assert!(requests > 0 && issued > 0, "{text}");
    eprintln!("{text}");
}
