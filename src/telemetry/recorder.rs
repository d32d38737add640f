//! The metrics, by the `metrics` crate.

use std::{sync::Arc, time::Duration};

use metrics::{
    Counter, Gauge, Histogram, SharedString, Unit, counter, describe_counter, describe_gauge,
    describe_histogram, gauge, histogram,
};

use super::{Obtained, Recovery};

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

/// The handles of one source, registered once: to look one up for each request would allocate.
pub(crate) struct Telemetry {
    source: SharedString,
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
}

impl Telemetry {
    /// Whether somebody wants to know the life of each token that is sent.
    pub(crate) const COUNTS: bool = true;

    pub(crate) fn new(source: &Arc<str>) -> Self {
        describe();
        let source = SharedString::from_shared(Arc::clone(source));
        let counted = |name: &'static str, label: &'static str, value: &'static str| counter!(name, "source" => source.clone(), label => value);
        let requests = |token| counted(REQUESTS, "token", token);
        let recoveries = |outcome| counted(RECOVERIES, "outcome", outcome);
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
            source,
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
        counter!(REFRESHES, "source" => self.source.clone(), "outcome" => outcome).increment(1);
        self.duration.record(duration);
    }

    pub(crate) fn expiry(&self, remaining: Duration) {
        self.expiry.set(remaining);
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
        let source = self.source.clone();
        counter!(STORE, "source" => source, "operation" => operation, "outcome" => outcome)
            .increment(1);
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
