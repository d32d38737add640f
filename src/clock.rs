//! Clocks: the moments by which expiry is judged, and deadlines that count running time.
//!
//! A [`Moment`] is a reading of two clocks: the monotonic clock, which nobody can set, and the wall
//! clock, which advances while the machine is suspended. A moment has come as soon as *either* clock
//! says so. A machine that was suspended therefore does not use yesterday's token, and a wall clock
//! that is set back does not prolong a token's life.
//!
//! A [`Deadline`] counts running time. A *standstill*, in which the process was stopped, suspended or
//! frozen or its runtime was not driven, does not count.

use std::{
    fmt,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep_until};

/// The longest lifetime of a token: beyond every real one, and short enough that no clock overflows.
pub(crate) const MAX_LIFETIME: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);

/// A duration in milliseconds, the unit in which processes and stores exchange times.
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
    /// The moment `after` this one. A wall clock near the end of its range stays where it is.
    pub(crate) fn plus(self, after: Duration) -> Self {
        let after = after.min(MAX_LIFETIME);
        Self {
            monotonic: self.monotonic + after,
            wall: self.wall.checked_add(after).unwrap_or(self.wall),
        }
    }

    /// The moment `before` this one; `None` if a clock cannot represent it.
    #[cfg(feature = "store")]
    pub(crate) fn minus(self, before: Duration) -> Option<Self> {
        Some(Self {
            monotonic: self.monotonic.checked_sub(before)?,
            wall: self.wall.checked_sub(before)?,
        })
    }

    /// Returns whether either clock says that this moment has come.
    pub(crate) fn has_come(self, now: Self) -> bool {
        now.monotonic >= self.monotonic || now.wall >= self.wall
    }

    /// The later of two moments, on each clock.
    pub(crate) fn later(self, other: Self) -> Self {
        Self { monotonic: self.monotonic.max(other.monotonic), wall: self.wall.max(other.wall) }
    }

    /// The earlier of two moments, on each clock.
    pub(crate) fn earlier(self, other: Self) -> Self {
        Self { monotonic: self.monotonic.min(other.monotonic), wall: self.wall.min(other.wall) }
    }

    /// How long until this moment by the monotonic clock alone, which timers use; zero if it has come.
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

/// A reading of the kernel's coarse monotonic clock. It is cheap to read and stands still for 1 to 10
/// milliseconds at a time.
///
/// An expiry check stays valid for the rest of its tick. Neither clock has advanced by more than a
/// tick, and the kernel advances the coarse clock whenever it sets the wall clock or suspends, so that
/// either starts a new tick. A wall clock that stands still does not prolong a tick, because it is not
/// part of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tick(u64);

impl Tick {
    /// A number that no tick has.
    pub(crate) const NEVER: u64 = u64::MAX;

    pub(crate) const fn number(self) -> u64 {
        self.0
    }
}

/// Reads both clocks: Tokio's, which tests can pause, and the system's wall clock or one that the
/// user injected.
#[derive(Clone, Default)]
pub(crate) struct Clock {
    injected: Option<Arc<Injected>>,
}

/// A wall clock that the user injected, and its last reading.
struct Injected {
    read: Box<dyn Fn() -> SystemTime + Send + Sync>,
    last: Mutex<Option<Moment>>,
}

impl Clock {
    pub(crate) fn with_wall(wall: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        let injected = Injected { read: Box::new(wall), last: Mutex::new(None) };
        Self { injected: Some(Arc::new(injected)) }
    }

    /// The current tick. `None` where the platform has no coarse clock, and for an injected wall
    /// clock, which can change at any time: both clocks are then read for each request.
    #[inline]
    pub(crate) fn tick(&self) -> Option<Tick> {
        if self.injected.is_some() { None } else { coarse::tick() }
    }

    /// Returns whether Tokio's clock is paused. Ticks do not follow a paused clock.
    ///
    /// A heuristic: two readings of a running clock differ on every platform that has ticks.
    pub(crate) fn is_paused() -> bool {
        Instant::now() == Instant::now()
    }

    pub(crate) fn now(&self) -> Moment {
        let monotonic = Instant::now();
        let wall = self.injected.as_ref().map_or_else(SystemTime::now, |it| it.now(monotonic));
        Moment { monotonic, wall }
    }
}

impl Injected {
    /// Reads the injected clock. If it panics, the time goes on from its last reading.
    ///
    /// The clock is the user's code, and destructors read it while another panic unwinds. A second
    /// panic would then abort the process.
    fn now(&self, monotonic: Instant) -> SystemTime {
        let reading = catch_unwind(AssertUnwindSafe(|| (self.read)()));
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let wall = reading.unwrap_or_else(|_| match *last {
            Some(last) => last.plus(monotonic.saturating_duration_since(last.monotonic)).wall,
            None => SystemTime::now(),
        });
        *last = Some(Moment { monotonic, wall });
        wall
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Clock").finish_non_exhaustive()
    }
}

/// The delay of a timer that fires later than this is not running time. Ordinary scheduling delays are
/// shorter.
const MAX_TIMER_DELAY: Duration = Duration::from_millis(250);

/// A timer that fires this late proves a standstill of the process or its runtime. A runtime that is
/// only busy lags by less.
const MIN_STANDSTILL: Duration = Duration::from_secs(1);

/// A wait continues for at least this long after a standstill, because a response that arrived
/// meanwhile still has to be read and parsed.
const EXTENSION: Duration = Duration::from_secs(1);

/// How often a wait is extended. A runtime that stands still again and again must not keep a wait alive
/// for ever.
const MAX_EXTENSIONS: u8 = 3;

/// A wait is cut into at least this many slices, so that a standstill in the middle of it is noticed.
const MIN_SLICES: u32 = 8;

/// The longest slice of a wait. A shorter standstill may go unnoticed.
const MAX_SLICE: Duration = Duration::from_secs(1);

/// A deadline that counts running time only.
///
/// A waiter sleeps until [`next_check`](Self::next_check) at most, and reports each wake-up to
/// [`record_wake`](Self::record_wake). A timer that fires much too late proves that the process was
/// stopped (SIGSTOP, a paused VM, a frozen function) or that nobody drove its runtime. The deadline
/// then moves by that delay.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    at: Instant,
    limit: Duration,
    standstills: u8,
    /// The time that was no running time.
    lost: Duration,
}

impl Deadline {
    /// A deadline in `limit` of running time from now on.
    pub(crate) fn after(limit: Duration) -> Self {
        let limit = limit.min(MAX_LIFETIME);
        Self { at: Instant::now() + limit, limit, standstills: 0, lost: Duration::ZERO }
    }

    /// The limit that the deadline was made with, without standstills.
    pub(crate) const fn limit(self) -> Duration {
        self.limit
    }

    /// The time of the deadline, which a further standstill moves.
    pub(crate) const fn at(self) -> Instant {
        self.at
    }

    pub(crate) fn has_passed(self) -> bool {
        Instant::now() >= self.at
    }

    /// The time that has passed without being running time.
    pub(crate) const fn lost(self) -> Duration {
        self.lost
    }

    /// Returns whether a standstill was noticed.
    pub(crate) const fn stood_still(self) -> bool {
        self.standstills > 0
    }

    /// When the waiter has to wake at the latest, to check for a standstill.
    pub(crate) fn next_check(self) -> Instant {
        let slice = (self.limit / MIN_SLICES).clamp(Duration::from_millis(1), MAX_SLICE);
        let now = Instant::now();
        // Not in the past, because a timer for a time in the past would look like a standstill.
        self.at.clamp(now, now + slice)
    }

    /// Records that a waiter with a timer for `due` is awake, because of the timer or another event.
    /// Returns whether a standstill was noticed.
    pub(crate) fn record_wake(&mut self, due: Instant) -> bool {
        let now = Instant::now();
        let delay = now.saturating_duration_since(due);
        if delay > MAX_TIMER_DELAY {
            self.at += delay;
            self.lost += delay;
        }
        let stood_still = delay >= MIN_STANDSTILL && self.standstills < MAX_EXTENSIONS;
        if stood_still {
            self.standstills += 1;
            self.at = self.at.max(now + EXTENSION.min(self.limit));
        }
        stood_still
    }

    /// Waits for `future` until the deadline. Calls `resumed` after each standstill.
    ///
    /// The future is polled before the deadline is checked, so that a response that arrived during a
    /// standstill is used and not taken for a timeout.
    ///
    /// # Errors
    ///
    /// [`WaitError`]: at the deadline, or if the runtime has no timer.
    ///
    /// # Cancellation
    ///
    /// Dropping the wait drops `future`.
    pub(crate) async fn wait_for<F: Future>(
        &mut self,
        future: F,
        resumed: impl Fn(),
    ) -> Result<F::Output, WaitError> {
        let mut future = pin!(future);
        loop {
            let due = self.next_check();
            let output = tokio::select! {
                biased;
                output = &mut future => Some(output),
                timer = timer(due) => { timer?; None }
            };
            if self.record_wake(due) {
                resumed();
            }
            if let Some(output) = output {
                return Ok(output);
            }
            if self.has_passed() {
                return Err(WaitError::DeadlinePassed);
            }
        }
    }
}

/// Why a wait ended without a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitError {
    DeadlinePassed,
    /// The runtime has ended, or has no time driver.
    NoTimer,
}

/// Sleeps until `due`.
///
/// # Errors
///
/// [`NoTimer`](WaitError::NoTimer) where Tokio's own timer panics: without a time driver, and on a
/// runtime that is shutting down.
pub(crate) async fn timer(due: Instant) -> Result<(), WaitError> {
    // Made inside the future and so at its first poll, because making a timer can panic as well.
    let mut sleep = pin!(async move { sleep_until(due).await });
    poll_fn(|context| {
        catch_unwind(AssertUnwindSafe(|| sleep.as_mut().poll(context)))
            .map_or(Poll::Ready(Err(WaitError::NoTimer)), |poll| poll.map(Ok))
    })
    .await
}

#[cfg(target_os = "linux")]
mod coarse {
    use rustix::time::{ClockId, DynamicClockId, clock_gettime_dynamic};

    use super::Tick;

    /// The kernel updates this clock at each of its timer ticks; reading it is reading memory. `None`
    /// if a sandbox denies it.
    #[inline]
    pub(super) fn tick() -> Option<Tick> {
        let clock = DynamicClockId::Known(ClockId::MonotonicCoarse);
        let time = clock_gettime_dynamic(clock).ok()?;
        // Only equality matters, so the nanoseconds, which take 30 bits, are put beside the seconds.
        Some(Tick((time.tv_sec as u64) << 30 | time.tv_nsec as u64))
    }
}

#[cfg(not(target_os = "linux"))]
mod coarse {
    use super::Tick;

    pub(super) fn tick() -> Option<Tick> {
        None
    }
}
