//! Optimizations for a request with a valid token. A reader who does not care about nanoseconds can
//! skip this file: without it the source gives the same results, only slower.
//!
//! | part | effect, as measured in `docs/performance.md` |
//! | --- | --- |
//! | [`FastLane`]: the moment until which the token can be sent without a decision, computed when the state changes | a request compares one moment and runs no decision |
//! | the last checked [`Tick`] in the lane | one thread: 1.5 × the cost of a constant header instead of 2.3 × (both on a busy machine), because the two precise clocks are read once per tick |
//! | [`Shards`]: a copy of the header values for each further thread | two threads: 0.8 × the cost of a constant header instead of 1.8 ×, for 3 instructions, because no reference count is contended |
//!
//! A snapshot remembered by each service bought nothing (1.29 × instead of 1.31 ×) and was removed.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::{cell::Cell, num::NonZero, thread, time::Duration};

use super::access_token::AccessToken;
use crate::clock::{Clock, Moment, Tick};

/// The shortest lifetime of a token that is checked once per tick. Such a token counts as expired at
/// least 250 ms before its end, and a tick is at most 10 ms.
const MIN_TICKED_LIFETIME: Duration = Duration::from_secs(5);

/// The most further copies of a token. Each holds its header values, so more would cost memory and
/// hardly reduce the contention.
const MAX_COPIES: usize = 8;

/// The part of the state that a request with a valid token needs: the token, and how long it can be
/// sent without a decision.
#[derive(Debug)]
pub(super) struct FastLane {
    shards: Arc<Shards>,
    /// From here on the state decides: a refresh is due or overdue, or the token has expired.
    until: Moment,
    /// A token with this remaining lifetime or less is due for refresh. For the metrics.
    due: Duration,
    /// `true` if one check per tick is enough for the lifetime of this token.
    ticked: bool,
    /// The number of the last tick in which `until` had not come.
    checked: AtomicU64,
    /// The remaining lifetime at the last check, in milliseconds. For the metrics.
    remaining: AtomicU64,
}

impl FastLane {
    pub(super) fn new(shards: Arc<Shards>, until: Moment, due: Moment) -> Self {
        let ticked = shards.token().lifetime() >= MIN_TICKED_LIFETIME;
        let due = shards.token().expires().remaining(due);
        let (checked, remaining) = (AtomicU64::new(Tick::NEVER), AtomicU64::new(0));
        Self { shards, until, due, ticked, checked, remaining }
    }

    /// The token, if it can be sent now without a decision; and the time, if the clocks were read for
    /// that.
    ///
    /// The first request in a tick reads both clocks; the others compare one number. `Relaxed` is
    /// enough, because the number of a tick refers to no other memory: a thread that reads an old one
    /// only checks once more.
    #[inline]
    pub(super) fn enter(&self, clock: &Clock) -> Option<(&AccessToken, Option<Moment>)> {
        let tick = clock.tick();
        if tick.is_some_and(|tick| tick.number() == self.checked.load(Ordering::Relaxed)) {
            return Some((self.shards.pick(), None));
        }
        self.check(clock, tick)
    }

    #[cold]
    fn check(&self, clock: &Clock, tick: Option<Tick>) -> Option<(&AccessToken, Option<Moment>)> {
        let now = clock.now();
        if self.until.has_come(now) {
            return None;
        }
        let remaining = self.shards.token().expires().remaining(now).as_millis();
        self.remaining.store(u64::try_from(remaining).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Some(tick) = tick.filter(|_| self.ticked && !Clock::is_paused()) {
            self.checked.store(tick.number(), Ordering::Relaxed);
        }
        Some((self.shards.pick(), Some(now)))
    }

    /// The remaining lifetime of the token at the last check, and whether the token was due then.
    pub(super) fn freshness(&self) -> (Duration, bool) {
        let remaining = Duration::from_millis(self.remaining.load(Ordering::Relaxed));
        (remaining, remaining <= self.due)
    }
}

/// Copies of one token, so that threads that send it concurrently share no reference count.
#[derive(Debug)]
pub(super) struct Shards {
    first: AccessToken,
    /// The number of the thread that uses `first`: the first one that sends the token.
    first_user: AtomicUsize,
    /// Each is made by the first request of a further thread that picks it. Their number is a power of
    /// two.
    others: Box<[OnceLock<AccessToken>]>,
}

impl Shards {
    pub(super) fn new(token: AccessToken) -> Self {
        // Determined once, because on Linux this reads the files of the cgroup.
        static THREADS: OnceLock<usize> = OnceLock::new();
        let threads =
            *THREADS.get_or_init(|| thread::available_parallelism().map_or(1, NonZero::get));
        // Twice as many as processors, so that threads that come and go seldom share one.
        let others = (2 * threads).next_power_of_two().min(MAX_COPIES);
        Self {
            first: token,
            first_user: AtomicUsize::new(NO_THREAD),
            others: (0..others).map(|_| OnceLock::new()).collect(),
        }
    }

    pub(super) fn token(&self) -> &AccessToken {
        &self.first
    }

    /// The shard of the current thread.
    #[inline]
    pub(super) fn pick(&self) -> &AccessToken {
        if self.first_user.load(Ordering::Relaxed) == NUMBER.get() {
            return &self.first;
        }
        self.pick_other()
    }

    // Out of line, because most of it is the making of a copy.
    #[inline(never)]
    fn pick_other(&self) -> &AccessToken {
        let thread = thread_number();
        let (unused, order) = (NO_THREAD, Ordering::Relaxed);
        if self.first_user.load(order) == unused
            && self.first_user.compare_exchange(unused, thread, order, order).is_ok()
        {
            return &self.first;
        }
        let other = self.others.get(thread & (self.others.len() - 1));
        other.map_or(&self.first, |other| other.get_or_init(|| self.first.to_shard()))
    }
}

/// `first_user` before the first request. Never equal to a `NUMBER`.
const NO_THREAD: usize = usize::MAX;

/// The `NUMBER` of a thread before its first request.
const UNNUMBERED: usize = usize::MAX - 1;

thread_local! {
    static NUMBER: Cell<usize> = const { Cell::new(UNNUMBERED) };
}

/// The number of the current thread, drawn at its first request.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);

    if NUMBER.get() == UNNUMBERED {
        NUMBER.set(NEXT.fetch_add(1, Ordering::Relaxed));
    }
    NUMBER.get()
}
