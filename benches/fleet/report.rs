//! What a scenario has cost.

use std::time::Duration;

use crate::{rate::Rate, server::Load};

pub(crate) struct Report {
    pub(crate) scenario: &'static str,
    pub(crate) processes: usize,
    pub(crate) requests: Rate,
    pub(crate) load: Load,
    /// The longest wait for a token.
    pub(crate) longest_wait: Duration,
    /// Callers who got an error, and processes that were without a token.
    pub(crate) failed: usize,
    pub(crate) note: String,
}

pub(crate) fn head() {
    println!(
        "| scenario | processes | token requests | in the busiest second | calls of the store | in \
         the busiest second | longest queue | longest wait | failed | |"
    );
    println!("|---|--:|--:|--:|--:|--:|--:|--:|--:|---|");
}

impl Report {
    pub(crate) fn row(&self) {
        println!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            self.scenario,
            thousands(self.processes as u64),
            thousands(self.requests.total()),
            thousands(self.requests.peak().into()),
            thousands(self.load.calls.total()),
            thousands(self.load.calls.peak().into()),
            short(self.load.longest_queue),
            short(self.longest_wait),
            thousands(self.failed as u64),
            self.note,
        );
    }
}

/// With commas.
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// In seconds, or less.
pub(crate) fn short(time: Duration) -> String {
    let millis = time.as_millis();
    if millis < 1_000 { format!("{millis} ms") } else { format!("{:.1} s", time.as_secs_f64()) }
}
