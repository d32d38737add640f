//! The one place where the crate reads a clock.
//!
//! A moment is two readings: the monotonic clock, which nobody can set, and the wall clock, which
//! goes on while the machine sleeps. Whichever says first that a moment has come is believed: a
//! machine that slept does not use yesterday's token, and a wall clock set back prolongs no life.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::Instant;

/// Far enough for every token, near enough that no clock overflows.
pub(crate) const FAR: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// One moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) monotonic: Instant,
    pub(crate) wall: SystemTime,
}

impl Moment {
    /// The moment `after` this one; a wall clock too near its end stays where it is.
    pub(crate) fn plus(self, after: Duration) -> Self {
        let after = after.min(FAR);
        Self {
            monotonic: self.monotonic + after,
            wall: self.wall.checked_add(after).unwrap_or(self.wall),
        }
    }

    /// Whether either clock says that this moment has come.
    pub(crate) fn has_come(self, now: Self) -> bool {
        now.monotonic >= self.monotonic || now.wall >= self.wall
    }

    /// The later of two moments, on each clock.
    pub(crate) fn later(self, other: Self) -> Self {
        Self { monotonic: self.monotonic.max(other.monotonic), wall: self.wall.max(other.wall) }
    }

    /// How long to sleep until this moment has surely come.
    pub(crate) fn sleep_from(self, now: Self) -> Duration {
        self.monotonic.saturating_duration_since(now.monotonic)
    }

    /// How long until this moment by the clock that reaches it first; zero if it has come.
    pub(crate) fn remaining(self, now: Self) -> Duration {
        let monotonic = self.monotonic.saturating_duration_since(now.monotonic);
        let wall = self.wall.duration_since(now.wall).unwrap_or_default();
        monotonic.min(wall)
    }
}

/// Reads both clocks: Tokio's, which tests can pause, and the system's or one set by the user.
#[derive(Clone, Default)]
pub(crate) struct Clock {
    wall: Option<Arc<dyn Fn() -> SystemTime + Send + Sync>>,
}

impl Clock {
    pub(crate) fn with_wall(wall: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self { wall: Some(Arc::new(wall)) }
    }

    pub(crate) fn now(&self) -> Moment {
        let wall = self.wall.as_ref().map_or_else(SystemTime::now, |wall| wall());
        Moment { monotonic: Instant::now(), wall }
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").finish_non_exhaustive()
    }
}
