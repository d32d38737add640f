//! No metrics: the feature `metrics` is disabled.

use std::{sync::Arc, time::Duration};

use super::{Obtained, Recovery};

/// Counts nothing, and costs nothing.
pub(crate) struct Telemetry;

impl Telemetry {
    /// `true` if the remaining lifetime of each token that is sent is recorded.
    pub(crate) const COUNTS: bool = false;

    pub(crate) fn new(_source: &Arc<str>, _shares: bool) -> Self {
        Self
    }

    pub(crate) fn sent(&self, _how: Obtained, _remaining: Duration) {}

    pub(crate) fn passed_through(&self) {}

    pub(crate) fn failed(&self) {}

    pub(crate) fn refreshed(&self, _outcome: &'static str, _duration: Duration) {}

    pub(crate) fn expiry(&self, _remaining: Duration) {}

    pub(crate) fn waiter_added(&self) {}

    pub(crate) fn waiter_removed(&self) {}

    pub(crate) fn unauthorized(&self, _replaced: bool) {}

    pub(crate) fn recovery(&self, _outcome: Recovery) {}
}

/// Counts nothing.
#[cfg(feature = "store")]
pub(crate) struct StoreTelemetry;

#[cfg(feature = "store")]
impl StoreTelemetry {
    pub(crate) fn new(_source: &Arc<str>) -> Self {
        Self
    }

    pub(crate) fn stored(&self, _operation: &'static str, _outcome: &'static str) {}
}
