//! Whose 401 is believed. Pure.
//!
//! An API may answer 401 although the token is good: Adobe does for missing permissions. A new
//! token does not mend that, and would be refused too. So a host can have its token replaced
//! twice a minute; from the third refusal on it is not the token's fault, and the host is not
//! listened to for a while, which doubles each time.

use std::time::Duration;

use crate::{clock::Moment, token::HostKey};

/// How many refusals of one host are believed in one [`WINDOW`].
pub(super) const BELIEVED: u32 = 2;
pub(super) const WINDOW: Duration = Duration::from_secs(60);
const SHORTEST_LATCH: Duration = Duration::from_secs(60);
const LONGEST_LATCH: Duration = Duration::from_secs(60 * 60);

/// How many hosts are remembered; the one heard of longest ago is forgotten first.
const MOST_HOSTS: usize = 64;

/// The hosts that have refused a token lately.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    hosts: Vec<Host>,
}

#[derive(Debug)]
struct Host {
    key: HostKey,
    refusals: u32,
    window_ends: Moment,
    latched_until: Moment,
    next_latch: Duration,
}

impl Refusals {
    /// Whether a refusal by this host is to be believed. Counts it.
    pub(super) fn believe(&mut self, now: Moment, key: HostKey) -> bool {
        let mut host = match self.hosts.iter().position(|host| host.key == key) {
            Some(at) => self.hosts.remove(at),
            None => Host {
                key,
                refusals: 0,
                window_ends: now.plus(WINDOW),
                latched_until: now,
                next_latch: SHORTEST_LATCH,
            },
        };
        let believed = host.believe(now);
        if self.hosts.len() >= MOST_HOSTS {
            self.hosts.remove(0);
        }
        self.hosts.push(host);
        believed
    }
}

impl Host {
    fn believe(&mut self, now: Moment) -> bool {
        if !self.latched_until.has_come(now) {
            return false;
        }
        if self.latched_until.plus(self.next_latch).has_come(now) {
            self.next_latch = SHORTEST_LATCH;
        }
        if self.window_ends.has_come(now) {
            self.refusals = 0;
            self.window_ends = now.plus(WINDOW);
        }
        self.refusals += 1;
        if self.refusals <= BELIEVED {
            return true;
        }
        self.latched_until = now.plus(self.next_latch);
        self.next_latch = (self.next_latch * 2).min(LONGEST_LATCH);
        self.window_ends = self.latched_until;
        false
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use tokio::time::Instant;

    use super::*;

    const API: HostKey = HostKey(1);
    const OTHER: HostKey = HostKey(2);

    fn start() -> Moment {
        Moment { monotonic: Instant::now(), wall: SystemTime::UNIX_EPOCH }
    }

    /// How many of the refusals of one host, one each second, are believed.
    fn believed(refusals: &mut Refusals, start: Moment, seconds: std::ops::Range<u64>) -> usize {
        let at = |second| start.plus(Duration::from_secs(second));
        seconds.filter(|second| refusals.believe(at(*second), API)).count()
    }

    #[test]
    fn a_host_is_believed_twice_and_then_latched_for_longer_each_time() {
        let (mut refusals, start) = (Refusals::default(), start());

        assert_eq!(believed(&mut refusals, start, 0..60), 2);
        assert_eq!(believed(&mut refusals, start, 60..3_600), 10);
        assert_eq!(believed(&mut refusals, start, 3_600..86_400), 46);
    }

    #[test]
    fn one_host_says_nothing_about_another() {
        let (mut refusals, start) = (Refusals::default(), start());
        believed(&mut refusals, start, 0..10);

        assert!(refusals.believe(start.plus(Duration::from_secs(10)), OTHER));
    }

    #[test]
    fn a_host_that_was_quiet_for_long_starts_anew() {
        let (mut refusals, start) = (Refusals::default(), start());
        believed(&mut refusals, start, 0..1_000);

        assert_eq!(believed(&mut refusals, start, 100_000..100_060), 2);
        assert_eq!(believed(&mut refusals, start, 100_060..100_070), 2);
    }

    #[test]
    fn only_so_many_hosts_are_remembered() {
        let (mut refusals, start) = (Refusals::default(), start());
        for host in 0..10_000 {
            refusals.believe(start, HostKey(host));
        }

        assert_eq!(refusals.hosts.len(), MOST_HOSTS);
    }
}
