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

/// A duration in milliseconds, as processes and stores tell each other.
#[cfg(feature = "store")]
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A reading of the wall clock in milliseconds since 1970; 0 before that.
#[cfg(feature = "store")]
pub(crate) fn unix_millis(wall: SystemTime) -> u64 {
    millis(wall.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

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

    /// The moment `before` this one; `None` where a clock cannot say it.
    #[cfg(feature = "store")]
    pub(crate) fn minus(self, before: Duration) -> Option<Self> {
        Some(Self {
            monotonic: self.monotonic.checked_sub(before)?,
            wall: self.wall.checked_sub(before)?,
        })
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

/// A reading of the wall clock that costs little and stands still for some milliseconds at a time.
///
/// What was found out of the two clocks in one tick need not be found out again in the same: no
/// clock has moved on, and the machine has not slept, since its sleep is on the wall clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tick(u64);

impl Tick {
    /// Before any reading.
    pub(crate) const NEVER: u64 = u64::MAX;

    pub(crate) const fn number(self) -> u64 {
        self.0
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

    /// The tick of now, where such a clock is to be had and the two clocks are the system's.
    ///
    /// A build with debug assertions has none: there Tokio's clock may be paused at any time, and a
    /// test that moves it on must not find what was so a millisecond ago.
    #[inline]
    pub(crate) fn tick(&self) -> Option<Tick> {
        if cfg!(debug_assertions) || self.wall.is_some() { None } else { coarse::tick() }
    }

    /// Whether Tokio's clock is paused: then ticks say nothing about it.
    ///
    /// Two readings of a clock that runs differ, where there are ticks.
    pub(crate) fn is_paused() -> bool {
        Instant::now() == Instant::now()
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

#[cfg(target_os = "linux")]
mod coarse {
    use rustix::time::{ClockId, DynamicClockId, clock_gettime_dynamic};

    use super::Tick;

    /// The kernel writes this clock at each of its ticks, 1 to 10 milliseconds apart; to read it is
    /// to read memory.
    pub(super) fn tick() -> Option<Tick> {
        // A sandbox may not let us have it: then there are no ticks.
        let time = clock_gettime_dynamic(DynamicClockId::Known(ClockId::RealtimeCoarse)).ok()?;
        let (seconds, nanos) =
            (u64::try_from(time.tv_sec).ok()?, u64::try_from(time.tv_nsec).ok()?);
        Some(Tick(seconds.wrapping_mul(1_000_000_000).wrapping_add(nanos)))
    }
}

#[cfg(not(target_os = "linux"))]
mod coarse {
    use super::Tick;

    pub(super) fn tick() -> Option<Tick> {
        None
    }
}
