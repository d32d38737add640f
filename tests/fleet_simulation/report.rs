//! The cost of a scenario, as a row of a table.

use std::time::Duration;

use crate::rate::Rate;

pub(crate) struct Report {
    pub(crate) scenario: &'static str,
    pub(crate) processes: usize,
    /// Token requests.
    pub(crate) requests: Rate,
    /// Calls of the store.
    pub(crate) calls: Rate,
    pub(crate) longest_queue: Duration,
    /// The longest wait of a caller for a token.
    pub(crate) longest_wait: Duration,
    /// Callers that got an error, and processes that were seen without a token.
    pub(crate) failed: usize,
    pub(crate) note: String,
}

pub(crate) const HEAD: &str = "\
| scenario | processes | token requests | in the busiest second | store calls | per process | in the \
busiest second | longest queue | longest wait | failed | |
|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|---|";

impl Report {
    pub(crate) fn row(&self) -> String {
        format!(
            "| {} | {} | {} | {} | {} | {:.2} | {} | {} | {} | {} | {} |",
            self.scenario,
            thousands(self.processes as u64),
            thousands(self.requests.total()),
            thousands(self.requests.peak()),
            thousands(self.calls.total()),
            self.calls.total() as f64 / self.processes as f64,
            thousands(self.calls.peak()),
            short(self.longest_queue),
            short(self.longest_wait),
            thousands(self.failed as u64),
            self.note,
        )
    }
}

pub(crate) fn head_by_size(sizes: &[usize]) -> String {
    let names: String =
        sizes.iter().map(|size| format!(" {} |", thousands(*size as u64))).collect();
    format!("| scenario |{names}\n|---|{}", "--:|".repeat(sizes.len()))
}

/// The token requests of each scenario, with a column for each size. The cell of a fleet that was not
/// played is empty.
pub(crate) fn rows_by_size(reports: &[Report], sizes: &[usize]) -> Vec<String> {
    let mut rows: Vec<((&str, &str), Vec<&Report>)> = Vec::new();
    let mut parent = "";
    for report in reports {
        if !report.scenario.starts_with('…') {
            parent = report.scenario;
        }
        let key = (parent, report.scenario);
        match rows.iter_mut().find(|(it, _)| *it == key) {
            Some((_, reports)) => reports.push(report),
            None => rows.push((key, vec![report])),
        }
    }
    let row = |((_, name), reports): &((_, &str), Vec<&Report>)| {
        let cells = sizes.iter().map(|size| {
            let report = reports.iter().find(|report| report.processes == *size);
            report.map_or(" |".to_owned(), |it| format!(" {} |", thousands(it.requests.total())))
        });
        format!("| {name} |{}", cells.collect::<String>())
    };
    rows.iter().map(row).collect()
}

/// The number with commas.
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

/// The time in milliseconds, or in seconds from one second on.
pub(crate) fn short(time: Duration) -> String {
    let millis = time.as_millis();
    if millis < 1_000 { format!("{millis} ms") } else { format!("{:.1} s", time.as_secs_f64()) }
}
