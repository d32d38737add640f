//! The metrics, for the recorder of the `metrics` crate.

use std::{sync::Arc, time::Duration};

use metrics::{
    Counter, Gauge, Histogram, SharedString, Unit, counter, describe_counter, describe_gauge,
    describe_histogram, gauge, histogram,
};

use super::{Obtained, Recovery};
use crate::{error::ErrorKind, foreign::quietly};

/// Counter: requests, by how they got their `token`.
pub const REQUESTS: &str = "adobe_auth_requests_total";
/// Histogram: the remaining lifetime of each token that was sent, in seconds.
pub const REMAINING: &str = "adobe_auth_token_remaining_seconds";
/// Counter: refreshes, by `outcome`.
pub const REFRESHES: &str = "adobe_auth_refreshes_total";
/// Histogram: the duration of each refresh, in seconds.
pub const REFRESH_DURATION: &str = "adobe_auth_refresh_duration_seconds";
/// Gauge: the remaining lifetime of the cached token, in seconds; 0 without a usable one.
pub const EXPIRY: &str = "adobe_auth_token_expiry_seconds";
/// Gauge: callers that wait for a token.
pub const WAITERS: &str = "adobe_auth_waiters";
/// Counter: responses with status 401, by `verdict`.
pub const UNAUTHORIZED: &str = "adobe_auth_unauthorized_total";
/// Counter: requests that were refused and could be replayed, by `outcome`.
pub const RECOVERIES: &str = "adobe_auth_recoveries_total";
/// Counter: operations of the token store, by `operation` and `outcome`.
pub const STORE: &str = "adobe_auth_store_total";

/// The operations of a token store, and the outcomes of each.
#[cfg(feature = "store")]
const STORE_OUTCOMES: [(&str, &[&str]); 2] = [
    (
        "acquire",
        &["granted", "held", "hit", "failure", "stale", "miss", "unreadable", "failed", "timeout"],
    ),
    ("commit", &["committed", "superseded", "released", "failed", "timeout"]),
];

/// The handles of one source, registered when it is built: looking one up for each request would
/// allocate, and a counter that first appears at 1 hides its first event from `increase()`.
pub(crate) struct Telemetry {
    at_once: Counter,
    stale: Counter,
    waited: Counter,
    replayed: Counter,
    passed_through: Counter,
    failed: Counter,
    remaining: Histogram,
    duration: Histogram,
    expiry: Gauge,
    waiters: Gauge,
    replaced: Counter,
    ignored: Counter,
    recovered: Counter,
    refused_again: Counter,
    no_new_token: Counter,
    refreshes: Counters<&'static str>,
}

/// Counters by their labels, for rare events.
struct Counters<L>(Vec<(L, Counter)>);

impl<L: Copy + PartialEq> Counters<L> {
    fn increment(&self, labels: L) {
        let found = self.0.iter().find(|(of, _)| *of == labels);
        debug_assert!(found.is_some(), "each series is registered when a source is built");
        found.inspect(|(_, counter)| counter.increment(1));
    }
}

impl Telemetry {
    /// `true` if the remaining lifetime of each token that is sent is recorded.
    pub(crate) const COUNTS: bool = true;

    /// `shares` is `true` for a source with a token store.
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
        Self {
            at_once: requests("at_once"),
            stale: requests("stale"),
            waited: requests("waited"),
            replayed: requests("replayed"),
            passed_through: requests("passed_through"),
            failed: requests("failed"),
            remaining: histogram!(REMAINING, "source" => source.clone()),
            duration: histogram!(REFRESH_DURATION, "source" => source.clone()),
            expiry: gauge!(EXPIRY, "source" => source.clone()),
            waiters: gauge!(WAITERS, "source" => source.clone()),
            replaced: counted(UNAUTHORIZED, "verdict", "replaced"),
            ignored: counted(UNAUTHORIZED, "verdict", "ignored"),
            recovered: recoveries("recovered"),
            refused_again: recoveries("refused_again"),
            no_new_token: recoveries("no_new_token"),
            refreshes: Counters(refreshes.collect()),
        }
    }

    #[inline]
    pub(crate) fn sent(&self, how: Obtained, remaining: Duration) {
        let counter = match how {
            Obtained::AtOnce => &self.at_once,
            Obtained::Stale => &self.stale,
            Obtained::Waited => &self.waited,
            Obtained::Replayed => &self.replayed,
        };
        quietly(|| {
            counter.increment(1);
            self.remaining.record(remaining);
        });
    }

    pub(crate) fn passed_through(&self) {
        quietly(|| self.passed_through.increment(1));
    }

    pub(crate) fn failed(&self) {
        quietly(|| self.failed.increment(1));
    }

    pub(crate) fn refreshed(&self, outcome: &'static str, duration: Duration) {
        quietly(|| {
            self.refreshes.increment(outcome);
            self.duration.record(duration);
        });
    }

    /// Sets the remaining lifetime of the cached token.
    pub(crate) fn expiry(&self, remaining: Duration) {
        quietly(|| self.expiry.set(remaining));
    }

    pub(crate) fn waiter_added(&self) {
        quietly(|| self.waiters.increment(1));
    }

    pub(crate) fn waiter_removed(&self) {
        quietly(|| self.waiters.decrement(1));
    }

    pub(crate) fn unauthorized(&self, replaced: bool) {
        let counter = if replaced { &self.replaced } else { &self.ignored };
        quietly(|| counter.increment(1));
    }

    pub(crate) fn recovery(&self, outcome: Recovery) {
        let counter = match outcome {
            Recovery::Recovered => &self.recovered,
            Recovery::RefusedAgain => &self.refused_again,
            Recovery::NoNewToken => &self.no_new_token,
        };
        quietly(|| counter.increment(1));
    }
}

/// The counters of the operations of a token store.
#[cfg(feature = "store")]
pub(crate) struct StoreTelemetry(Counters<(&'static str, &'static str)>);

#[cfg(feature = "store")]
impl StoreTelemetry {
    pub(crate) fn new(source: &Arc<str>) -> Self {
        let source = SharedString::from_shared(Arc::clone(source));
        let pairs = STORE_OUTCOMES.iter();
        let pairs = pairs.flat_map(|(asked, ends)| ends.iter().map(move |end| (*asked, *end)));
        let counters = pairs.map(|(asked, end)| {
            let counter =
                counter!(STORE, "source" => source.clone(), "operation" => asked, "outcome" => end);
            ((asked, end), counter)
        });
        Self(Counters(counters.collect()))
    }

    pub(crate) fn stored(&self, operation: &'static str, outcome: &'static str) {
        quietly(|| self.0.increment((operation, outcome)));
    }
}

fn describe() {
    describe_counter!(REQUESTS, "Requests, by how they got their token");
    describe_histogram!(
        REMAINING,
        Unit::Seconds,
        "Remaining lifetime of the tokens that were sent"
    );
    describe_counter!(REFRESHES, "Token refreshes, by outcome");
    describe_histogram!(REFRESH_DURATION, Unit::Seconds, "How long token refreshes took");
    describe_gauge!(EXPIRY, Unit::Seconds, "Remaining lifetime of the cached token");
    describe_gauge!(WAITERS, "Callers that wait for a token");
    describe_counter!(UNAUTHORIZED, "Answers with status 401, by what was made of them");
    describe_counter!(STORE, "Calls of the token store, by operation and outcome");
    describe_counter!(RECOVERIES, "Refused requests that could be replayed, by outcome");
}
