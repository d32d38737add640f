//! [`Life`]: the time to live of a record or a lease, by two clocks of one host.
//!
//! The wall clock can be set back, and would then prolong every life. The clock that counts from the
//! start of the machine cannot be set, but begins anew with each start. A life therefore ends as soon as
//! either clock says so; the second one is only read on Linux, and only counts until the next start.

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::clock::{MAX_LIFETIME, millis, unix_millis};

/// One reading of the clocks.
#[derive(Clone, Debug)]
pub(super) struct Now {
    /// In milliseconds since 1970.
    pub(super) wall: u64,
    uptime: Option<Uptime>,
}

/// The time since a start of the machine, in which it may have been suspended.
#[derive(Clone, Debug, Deserialize, Serialize)]
struct Uptime {
    /// The random id of this start.
    boot: String,
    millis: u64,
}

impl Now {
    pub(super) fn read() -> Self {
        Self { wall: unix_millis(SystemTime::now()), uptime: uptime::read() }
    }
}

/// When a life began, and when it ends.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Life {
    /// The start and the end by the wall clock, in milliseconds since 1970.
    starts_at: u64,
    ends_at: u64,
    /// The start by the other clock.
    #[serde(default)]
    uptime: Option<Uptime>,
}

impl Life {
    pub(super) fn new(now: &Now, ttl: Duration) -> Self {
        let ends_at = now.wall.saturating_add(millis(ttl.min(MAX_LIFETIME)));
        Self { starts_at: now.wall, ends_at, uptime: now.uptime.clone() }
    }

    /// The time that is left; `None` if it has ended, or may have: a start that lies in the future by
    /// the wall clock proves that the clock was set back, and then only the other clock knows the age.
    pub(super) fn left(&self, now: &Now) -> Option<Duration> {
        let ttl = self.ends_at.checked_sub(self.starts_at)?;
        let by_wall = now.wall.checked_sub(self.starts_at);
        let by_uptime = match (&self.uptime, &now.uptime) {
            (Some(start), Some(now)) if start.boot == now.boot => {
                now.millis.checked_sub(start.millis)
            }
            _ => None,
        };
        // `None` is the lowest: the higher age counts, and at least one has to be known.
        let age = by_wall.max(by_uptime)?;
        let left = ttl.checked_sub(age).filter(|left| *left > 0)?;
        Some(Duration::from_millis(left))
    }
}

#[cfg(target_os = "linux")]
mod uptime {
    use std::{fs, sync::LazyLock, time::Duration};

    use rustix::time::{ClockId, DynamicClockId, clock_gettime_dynamic};

    use super::Uptime;
    use crate::clock::millis;

    static BOOT: LazyLock<Option<String>> = LazyLock::new(|| {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(id.trim().to_owned())
    });

    /// `None` if a sandbox denies it.
    pub(super) fn read() -> Option<Uptime> {
        let boot = BOOT.clone()?;
        let time = clock_gettime_dynamic(DynamicClockId::Known(ClockId::Boottime)).ok()?;
        Some(Uptime { boot, millis: millis(Duration::try_from(time).ok()?) })
    }
}

#[cfg(not(target_os = "linux"))]
mod uptime {
    use super::Uptime;

    pub(super) fn read() -> Option<Uptime> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(wall: u64, uptime: Option<(&str, u64)>) -> Now {
        let uptime = uptime.map(|(boot, millis)| Uptime { boot: boot.to_owned(), millis });
        Now { wall, uptime }
    }

    #[test]
    fn a_life_ends_as_soon_as_either_clock_says_so() {
        // 100 milliseconds from 1,000 on, 50 after the start "a" of the machine.
        for (now, left, case) in [
            (at(1_000, Some(("a", 50))), Some(100), "at the start"),
            (at(1_060, Some(("a", 110))), Some(40), "both clocks agree"),
            (at(1_100, Some(("a", 150))), None, "at the end"),
            (at(1_000, Some(("a", 149))), Some(1), "the wall clock was set back a little"),
            (at(1_000, Some(("a", 150))), None, "set back at the end of the life"),
            (at(10, Some(("a", 60))), Some(90), "set back before the start of the life"),
            (at(10, Some(("a", 150))), None, "set back before its start, at its end"),
            (at(1_100, Some(("a", 60))), None, "the wall clock was set forward"),
            (at(1_060, Some(("b", 10))), Some(40), "the machine was started again"),
            (at(999, Some(("b", 10))), None, "started again, with a clock that was set back"),
            (at(1_060, Some(("a", 10))), Some(40), "the other clock of a container"),
            (at(1_060, None), Some(40), "no other clock"),
            (at(999, None), None, "no other clock, and the wall clock was set back"),
        ] {
            let life = Life::new(&at(1_000, Some(("a", 50))), Duration::from_millis(100));
            assert_eq!(life.left(&now), left.map(Duration::from_millis), "{case}");
        }
    }

    #[test]
    fn a_life_that_ends_before_it_starts_has_ended() {
        let life = Life { starts_at: 1_000, ends_at: 900, uptime: None };
        assert_eq!(life.left(&at(1_000, None)), None);
    }

    #[test]
    fn the_longest_time_to_live_ends_once() {
        let now = Now::read();
        assert_eq!(Life::new(&now, Duration::MAX).left(&now), Some(MAX_LIFETIME));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_clock_that_nobody_can_set_is_read() {
        let [one, another] = [(); 2].map(|()| Now::read().uptime.unwrap());
        assert_eq!((one.boot.len(), &one.boot), (36, &another.boot));
        assert!(another.millis >= one.millis && one.millis > 0);
    }
}
