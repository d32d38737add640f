//! How often something happened, in each second of virtual time.

use tokio::time::Instant;

/// Counts by the second since its start.
pub(crate) struct Rate {
    start: Instant,
    seconds: Vec<u32>,
}

impl Rate {
    pub(crate) fn new() -> Self {
        Self { start: Instant::now(), seconds: Vec::new() }
    }

    pub(crate) fn count(&mut self) {
        let second = usize::try_from(self.start.elapsed().as_secs()).unwrap();
        if second >= self.seconds.len() {
            self.seconds.resize(second + 1, 0);
        }
        self.seconds[second] += 1;
    }

    pub(crate) fn total(&self) -> u64 {
        self.seconds.iter().map(|count| u64::from(*count)).sum()
    }

    /// In the busiest second.
    pub(crate) fn peak(&self) -> u32 {
        self.seconds.iter().copied().max().unwrap_or_default()
    }

    /// Second by second, with one count for each.
    pub(crate) fn seconds(&self) -> &[u32] {
        &self.seconds
    }
}
