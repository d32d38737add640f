//! [`Journal`]: the faults of a run in the order in which they came, and the broken promises.

use std::{
    env,
    sync::Mutex,
    time::{Duration, Instant},
};

/// The most lines about failed requests that are kept. Faults are always kept.
const MAX_NOTES: usize = 400;

/// The most violations that are kept. The first ones tell the cause.
const MAX_VIOLATIONS: usize = 20;

pub(crate) struct Journal {
    start: Instant,
    is_echoed: bool,
    entries: Mutex<Entries>,
}

#[derive(Default)]
struct Entries {
    lines: Vec<String>,
    notes: usize,
    violations: Vec<String>,
}

impl Journal {
    pub(crate) fn new() -> Self {
        let is_echoed = env::var_os("CHAOS_ECHO").is_some();
        Self { start: Instant::now(), is_echoed, entries: Mutex::default() }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.start.elapsed()
    }

    /// Records a fault, or its end.
    pub(crate) fn fault(&self, text: impl AsRef<str>) {
        let line = self.line(text.as_ref());
        self.entries.lock().unwrap().lines.push(line);
    }

    /// Records something of interest that breaks no promise.
    pub(crate) fn note(&self, text: impl AsRef<str>) {
        let line = self.line(text.as_ref());
        let mut entries = self.entries.lock().unwrap();
        entries.notes += 1;
        if entries.notes <= MAX_NOTES {
            entries.lines.push(line);
        }
    }

    /// Records a broken promise, which ends the run.
    pub(crate) fn violation(&self, text: impl AsRef<str>) {
        let line = self.line(&format!("VIOLATION: {}", text.as_ref()));
        let mut entries = self.entries.lock().unwrap();
        if entries.violations.len() < MAX_VIOLATIONS {
            entries.lines.push(line.clone());
            entries.violations.push(line);
        }
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.entries.lock().unwrap().violations.clone()
    }

    pub(crate) fn text(&self) -> String {
        self.entries.lock().unwrap().lines.join("\n")
    }

    fn line(&self, text: &str) -> String {
        let line = format!("{:9.3} {text}", self.start.elapsed().as_secs_f64());
        if self.is_echoed {
            eprintln!("{line}");
        }
        line
    }
}
