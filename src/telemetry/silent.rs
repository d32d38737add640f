//! No metrics: the feature is off.

use std::{sync::Arc, time::Duration};

use super::{Obtained, Recovery};

/// Counts nothing, and costs nothing.
pub(crate) struct Telemetry;

impl Telemetry {
    /// Whether somebody wants to know the life of each token that is sent.
    pub(crate) const COUNTS: bool = false;

    pub(crate) fn new(_source: &Arc<str>, _shares: bool) -> Self {
        Self
    }

    pub(crate) fn sent(&self, _how: Obtained, _remaining: Duration) {}

    pub(crate) fn passed_through(&self) {}

    pub(crate) fn failed(&self) {}

    pub(crate) fn refreshed(&self, _outcome: &'static str, _duration: Duration) {}

    pub(crate) fn expiry(&self, _remaining: impl FnOnce() -> Duration) {}

    pub(crate) fn begins_to_wait(&self) {}

    pub(crate) fn ends_to_wait(&self) {}

    pub(crate) fn unauthorized(&self, _replaced: bool) {}

    pub(crate) fn recovery(&self, _outcome: Recovery) {}
}

#[cfg(feature = "store")]
impl Telemetry {
    pub(crate) fn stored(&self, _operation: &'static str, _outcome: &'static str) {}
}
