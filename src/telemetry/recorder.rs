//! The metrics, by the `metrics` crate.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use metrics::{
    Counter, Gauge, Histogram, SharedString, Unit, counter, describe_counter, describe_gauge,
    describe_histogram, gauge, histogram,
};

use super::{Obtained, Recovery};
use crate::error::ErrorKind;

/// Counter: requests, by how they got their `token`.
pub const REQUESTS: &str = "adobe_auth_requests_total";
/// Histogram: the remaining life of the tokens that were sent, in seconds.
pub const REMAINING: &str = "adobe_auth_token_remaining_seconds";
/// Counter: flights, by `outcome`.
pub const REFRESHES: &str = "adobe_auth_refreshes_total";
/// Histogram: how long flights took, in seconds.
pub const REFRESH_DURATION: &str = "adobe_auth_refresh_duration_seconds";
/// Gauge: the remaining life of the token in hand, in seconds; 0 if there is none.
pub const EXPIRY: &str = "adobe_auth_token_expiry_seconds";
/// Gauge: callers that wait for a flight.
pub const WAITERS: &str = "adobe_auth_waiters";
/// Counter: answers with status 401, by `verdict`.
pub const UNAUTHORIZED: &str = "adobe_auth_unauthorized_total";
/// Counter: requests that were refused and could be replayed, by `outcome`.
pub const RECOVERIES: &str = "adobe_auth_recoveries_total";
/// Counter: what was asked of the token store, by `operation` and `outcome`.
pub const STORE: &str = "adobe_auth_store_total";

/// What a token store is asked, and how that may end.
const STORE_OUTCOMES: [(&str, &[&str]); 4] = [
    ("load", &["hit", "stale", "miss", "unreadable", "failed", "timeout"]),
    ("lease", &["granted", "held", "failed", "timeout"]),
    ("save", &["saved", "superseded", "failed", "timeout"]),
    ("release", &["released", "failed", "timeout"]),
];

/// The handles of one source, registered when it is built: to look one up for each request would
/// allocate, and a counter that first appears at 1 hides what it counted from `increase()`.
pub(crate) struct Telemetry {
    at_once: Counter,
    stale: Counter,
    waited: Counter,
    replayed: Counter,
    passed_through: Counter,
    failed: Counter,
    remaining: Histogram,
    duration: Histogram,
    expiry: Mutex<Gauge>,
    waiters: Gauge,
    replaced: Counter,
    ignored: Counter,
    recovered: Counter,
    refused_again: Counter,
    no_new_token: Counter,
    refreshes: Counters<&'static str>,
    #[cfg_attr(not(feature = "store"), expect(dead_code, reason = "there is none"))]
    store: Counters<(&'static str, &'static str)>,
}

/// Counters by their labels, for what is counted seldom.
struct Counters<L>(Vec<(L, Counter)>);

impl<L: Copy + PartialEq> Counters<L> {
    fn increment(&self, labels: L) {
        let found = self.0.iter().find(|(of, _)| *of == labels);
        debug_assert!(found.is_some(), "each series is registered when a source is built");
        found.inspect(|(_, counter)| counter.increment(1));
    }
}

impl Telemetry {
    /// Whether somebody wants to know the life of each token that is sent.
    pub(crate) const COUNTS: bool = true;

    /// `shares`: whether there is a token store.
    pub(crate) fn new(source: &Arc<str>, shares: bool) -> Self {
        describe();
        let source = SharedString::from_shared(Arc::clone(source));
        let counted = |name: &'static str, label: &'static str, value: &'static str| counter!(name, "source" => source.clone(), label => value);
        let requests = |token| counted(REQUESTS, "token", token);
        let recoveries = |outcome| counted(RECOVERIES, "outcome", outcome);
        // All kinds: a fetcher may hand on the error of another source.
        let outcomes = ErrorKind::ALL.map(ErrorKind::as_str).into_iter();
        let outcomes = outcomes.chain(["success"]).chain(shares.then_some("shared"));
        let refreshes = outcomes.map(|word| (word, counted(REFRESHES, "outcome", word)));
        let pairs = STORE_OUTCOMES.iter().filter(|_| shares);
        let pairs = pairs.flat_map(|(asked, ends)| ends.iter().map(move |end| (*asked, *end)));
        let store = pairs.map(|(asked, end)| {
            let counter =
                counter!(STORE, "source" => source.clone(), "operation" => asked, "outcome" => end);
            ((asked, end), counter)
        });
        Self {
            at_once: requests("at_once"),
            stale: requests("stale"),
            waited: requests("waited"),
            replayed: requests("replayed"),
            passed_through: requests("passed_through"),
            failed: requests("failed"),
            remaining: histogram!(REMAINING, "source" => source.clone()),
            duration: histogram!(REFRESH_DURATION, "source" => source.clone()),
            expiry: Mutex::new(gauge!(EXPIRY, "source" => source.clone())),
            waiters: gauge!(WAITERS, "source" => source.clone()),
            replaced: counted(UNAUTHORIZED, "verdict", "replaced"),
            ignored: counted(UNAUTHORIZED, "verdict", "ignored"),
            recovered: recoveries("recovered"),
            refused_again: recoveries("refused_again"),
            no_new_token: recoveries("no_new_token"),
            refreshes: Counters(refreshes.collect()),
            store: Counters(store.collect()),
        }
    }

    pub(crate) fn sent(&self, how: Obtained, remaining: Duration) {
        match how {
            Obtained::AtOnce => &self.at_once,
            Obtained::Stale => &self.stale,
            Obtained::Waited => &self.waited,
            Obtained::Replayed => &self.replayed,
        }
        .increment(1);
        self.remaining.record(remaining);
    }

    pub(crate) fn passed_through(&self) {
        self.passed_through.increment(1);
    }

    pub(crate) fn failed(&self) {
        self.failed.increment(1);
    }

    pub(crate) fn refreshed(&self, outcome: &'static str, duration: Duration) {
        self.refreshes.increment(outcome);
        self.duration.record(duration);
    }

    /// Shows what `remaining` says. To look and to show is one step, so that what was seen first does
    /// not land last.
    pub(crate) fn expiry(&self, remaining: impl FnOnce() -> Duration) {
        let gauge = self.expiry.lock().unwrap_or_else(PoisonError::into_inner);
        gauge.set(remaining());
    }

    pub(crate) fn begins_to_wait(&self) {
        self.waiters.increment(1);
    }

    pub(crate) fn ends_to_wait(&self) {
        self.waiters.decrement(1);
    }

    pub(crate) fn unauthorized(&self, replaced: bool) {
        if replaced { &self.replaced } else { &self.ignored }.increment(1);
    }

    pub(crate) fn recovery(&self, outcome: Recovery) {
        match outcome {
            Recovery::Recovered => &self.recovered,
            Recovery::RefusedAgain => &self.refused_again,
            Recovery::NoNewToken => &self.no_new_token,
        }
        .increment(1);
    }
}

#[cfg(feature = "store")]
impl Telemetry {
    pub(crate) fn stored(&self, operation: &'static str, outcome: &'static str) {
        self.store.increment((operation, outcome));
    }
}

fn describe() {
    describe_counter!(REQUESTS, "Requests, by how they got their token");
    describe_histogram!(REMAINING, Unit::Seconds, "Remaining life of the tokens that were sent");
    describe_counter!(REFRESHES, "Token refreshes, by outcome");
    describe_histogram!(REFRESH_DURATION, Unit::Seconds, "How long token refreshes took");
    describe_gauge!(EXPIRY, Unit::Seconds, "Remaining life of the token in hand");
    describe_gauge!(WAITERS, "Callers that wait for a token");
    describe_counter!(UNAUTHORIZED, "Answers with status 401, by what was made of them");
    describe_counter!(STORE, "What was asked of the token store, by operation and outcome");
    describe_counter!(RECOVERIES, "Refused requests that could be replayed, by outcome");
}
