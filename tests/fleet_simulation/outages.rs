//! IMS fails for ten minutes, in which nobody has a token.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::{Instant, sleep, sleep_until};

use crate::{
    fleet::Fleet,
    report::{short, thousands},
    store::Model,
    support::{Reply, secs},
};

const LENGTH: Duration = secs(600);

pub(crate) const REPLIES: [(Reply, &str); 5] = [
    (Reply::Hang, "hangs"),
    (Reply::Disconnect, "refuses connections"),
    (Reply::Rejected, "rejects the secret"),
    (Reply::Unavailable, "responds 503"),
    (Reply::Throttled(30), "responds 429, `Retry-After: 30`"),
];

pub(crate) struct Outage {
    pub(crate) processes: usize,
    /// Token requests while IMS fails.
    pub(crate) requests: u64,
    peak: u64,
    calls: u64,
    /// How long the first error of the last process took.
    pub(crate) first_error: Duration,
    /// The time from the end of the outage until the last process had a token.
    pub(crate) recovery: Duration,
}

#[derive(Default)]
struct Times {
    first_error: Duration,
    last_token: Option<Instant>,
}

/// All processes start in one moment, and the callers of each ask for a token once a second.
pub(crate) async fn play(reply: Reply, processes: usize, store: Option<Model>) -> Outage {
    let mut fleet = Fleet::new(store);
    fleet.ims.respond_with(reply);
    let (start, times) = (Instant::now(), Arc::new(Mutex::new(Times::default())));
    for number in 0..processes {
        let (source, waits, times) =
            (fleet.source(number), Arc::clone(&fleet.waits), Arc::clone(&times));
        waits.begin();
        tokio::spawn(async move {
            let mut has_failed = false;
            while source.token().await.is_err() {
                if !has_failed {
                    has_failed = true;
                    times.lock().unwrap().first_error = start.elapsed();
                }
                sleep(secs(1)).await;
            }
            times.lock().unwrap().last_token = Some(Instant::now());
            waits.end(start, true);
        });
    }
    sleep_until(start + LENGTH).await;
    let report = fleet.report("IMS fails");
    fleet.ims.respond_with(Reply::Token);
    fleet.waits.ended().await;
    let times = times.lock().unwrap();
    Outage {
        processes,
        requests: report.requests.total(),
        peak: report.requests.peak(),
        calls: report.calls.total(),
        first_error: times.first_error,
        recovery: times.last_token.unwrap() - (start + LENGTH),
    }
}

pub(crate) const HEAD: &str = "\
| IMS | processes | token requests in 10 min | × one process | in the busiest second | store calls | \
per process and second | first error of the last process | last token after the end |
|---|--:|--:|--:|--:|--:|--:|--:|--:|";

impl Outage {
    /// The factor by which this fleet made more token requests than one process, which made `one`.
    pub(crate) fn ratio(&self, one: u64) -> f64 {
        self.requests as f64 / one as f64
    }

    pub(crate) fn row(&self, name: &str, one: u64) -> String {
        format!(
            "| {name} | {} | {} | {:.1} | {} | {} | {:.2} | {} | {} |",
            thousands(self.processes as u64),
            thousands(self.requests),
            self.ratio(one),
            self.peak,
            thousands(self.calls),
            self.calls as f64 / self.processes as f64 / LENGTH.as_secs_f64(),
            short(self.first_error),
            short(self.recovery),
        )
    }
}
