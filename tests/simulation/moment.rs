//! [`Moment`]: a reading of both clocks. [`Wall`]: a wall clock that stands, jumps or runs backwards.

use std::time::Duration;

use crate::promises::DAY;

/// The wall clock's first reading, in days since 1970.
const FIRST_DAY: i64 = 20_000;

/// Who acts at which milliseconds, modulo [`Turn::ALL`].
///
/// Callers that wait for one token wake in an order that Tokio draws. A seed tells the same story
/// all the same, because nobody else acts at the instant at which they wake.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Turn {
    Refusals = 0,
    MiddleOfRequest = 1,
    Driver = 2,
    EndOfRequest = 3,
}

impl Turn {
    pub(crate) const ALL: u64 = 4;

    /// The first such instant after `at` and not before `at + delay`, as a delay.
    pub(crate) fn after(self, at: Duration, delay: Duration) -> Duration {
        let at = at.as_millis() as u64;
        let earliest = at + (delay.as_millis() as u64).max(1);
        let ahead = (self as u64 + Self::ALL - earliest % Self::ALL) % Self::ALL;
        Duration::from_millis(earliest + ahead - at)
    }
}

/// A reading of both clocks: the virtual time since the start, and the time since 1970.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Moment {
    pub(crate) at: Duration,
    pub(crate) wall: Duration,
}

impl Moment {
    /// Whether `after` has passed since `since` by either clock.
    pub(crate) fn is(self, after: Duration, since: Self) -> bool {
        self.at >= since.at + after || self.wall >= since.wall + after
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pace {
    Runs,
    Stands,
    RunsBackwards,
}

/// The wall clock: its reading at some moment, and its pace since.
pub(crate) struct Wall {
    reading: i64,
    since: Duration,
    pace: Pace,
}

impl Wall {
    pub(crate) fn new() -> Self {
        Self { reading: FIRST_DAY * millis_per_day(), since: Duration::ZERO, pace: Pace::Runs }
    }

    pub(crate) fn read(&self, at: Duration) -> Duration {
        // On another runtime a reading may be older than the last change of the clock.
        let passed = at.saturating_sub(self.since).as_millis() as i64;
        let reading = match self.pace {
            Pace::Runs => self.reading + passed,
            Pace::Stands => self.reading,
            Pace::RunsBackwards => self.reading - passed,
        };
        Duration::from_millis(reading.max(0) as u64)
    }

    /// Moves the reading by `millis`, within bounds that the crate's own arithmetic cannot reach.
    pub(crate) fn jump(&mut self, at: Duration, millis: i64) {
        let reading = self.read(at).as_millis() as i64 + millis;
        let bounds = (10_000 * millis_per_day(), 120_000 * millis_per_day());
        self.reading = reading.clamp(bounds.0, bounds.1);
        self.since = at;
    }

    pub(crate) fn set_pace(&mut self, at: Duration, pace: Pace) {
        self.jump(at, 0);
        self.pace = pace;
    }
}

fn millis_per_day() -> i64 {
    DAY as i64 * 1_000
}
