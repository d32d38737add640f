//! Events by the second of virtual time.

use tokio::time::Instant;

/// Counts events in each second since `start`.
pub(crate) struct Rate {
    start: Instant,
    seconds: Vec<u32>,
}

impl Rate {
    pub(crate) fn since(start: Instant) -> Self {
        Self { start, seconds: Vec::new() }
    }

    pub(crate) fn count(&mut self, at: Instant) {
        let second = usize::try_from((at - self.start).as_secs()).unwrap();
        if second >= self.seconds.len() {
            self.seconds.resize(second + 1, 0);
        }
        self.seconds[second] += 1;
    }

    pub(crate) fn total(&self) -> u64 {
        self.seconds.iter().map(|count| u64::from(*count)).sum()
    }

    /// The count of the busiest second.
    pub(crate) fn peak(&self) -> u64 {
        self.seconds.iter().copied().max().unwrap_or_default().into()
    }

    pub(crate) fn seconds(&self) -> &[u32] {
        &self.seconds
    }
}
