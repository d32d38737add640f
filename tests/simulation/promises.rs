//! The numbers that the crate promises, from its documentation. Nothing here is read from `src/`.

use std::time::Duration;

/// In seconds.
pub(crate) const DAY: u64 = 24 * 60 * 60;

/// A caller waits at most this long, in running time: time in which the process stood still does
/// not count.
pub(crate) const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);
/// A caller waits at most this long for the replacement of a token that an API refused.
pub(crate) const SUSPECT_GRACE: Duration = Duration::from_secs(2);
/// One request to IMS ends after this long, in running time.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// One attempt ends after this long, in running time: reading the credentials and both requests.
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);
/// The attempts of one refresh.
pub(crate) const ATTEMPTS: u64 = 3;

/// The pause after the n-th failure in a row: at most 250 ms × 2^(n-1), at least a quarter of that.
pub(crate) const BACKOFF_BASE: Duration = Duration::from_millis(250);
/// The longest pause of a source that nobody waits for.
pub(crate) const BACKOFF_CAP: Duration = Duration::from_secs(60);
/// The longest pause while callers ask and no usable token is cached.
pub(crate) const BACKOFF_CAP_WHILE_ASKED: Duration = Duration::from_secs(10);
/// The longest `Retry-After` that is kept.
pub(crate) const RETRY_AFTER_CAP: Duration = Duration::from_secs(5 * 60);
/// The pause after a panic of the fetcher: the first may be free, then at least a quarter of
/// 100 ms × 2^(n-2), and never more than the cap.
pub(crate) const PANIC_PAUSE_BASE: Duration = Duration::from_millis(100);
pub(crate) const PANIC_PAUSE_CAP: Duration = Duration::from_secs(10);

/// The source has asked IMS again this long after the last trouble: the longest `Retry-After` (or
/// the pause after a permanent failure, as long), a pause of the backoff, and an attempt.
pub(crate) const RECOVERY: Duration = Duration::from_secs(390);
/// The background task has seen a clock jump after this long, and has refreshed.
pub(crate) const NOTICE: Duration = Duration::from_secs(65);
/// Timers fire at the next whole millisecond.
pub(crate) const TICK: Duration = Duration::from_millis(1);
/// A wait is cut into slices no longer than this. What was left of a slice when the process stood
/// still is not waited for again, nor is a delay of its timer that shows no standstill. A wait may be
/// so much shorter for each standstill.
pub(crate) const MAX_SLICE: Duration = Duration::from_secs(1);
/// A timer that fires this late shows that the process stood still.
pub(crate) const MIN_STANDSTILL: Duration = Duration::from_secs(1);
/// A wait goes on for at least this long after a standstill.
pub(crate) const EXTENSION: Duration = Duration::from_secs(1);
/// A refresh on a runtime that is not driven may be superseded after twice its longest attempt.
pub(crate) const MIN_OVERDUE: Duration = Duration::from_secs(2 * REQUEST_TIMEOUT.as_secs());
/// It gets this much more time once it is found overdue.
pub(crate) const OVERDUE_GRACE: Duration = Duration::from_secs(1);

/// Refusals (401) are believed in windows of a minute, each of which may begin right after the one
/// before it. `n` believed in a window are then at most `n × (T / 60 s + 1)` in any interval `T`.
pub(crate) const REFUSAL_WINDOW: Duration = Duration::from_secs(60);
pub(crate) const MAX_REFUSALS_PER_ORIGIN: usize = 2;
pub(crate) const MAX_REFUSALS: usize = 4;

/// A `changed()` that always returns is called after pauses of 1, 2, 4 .. 300 s: 9 times in the
/// first 511 s and 11 times in the rest of an hour. The pauses may be jittered down to a half.
pub(crate) const MAX_CHANGES_PER_HOUR: usize = 40;
/// A rejection is retried without callers after 1, 2, 4, then every 5 minutes: 13 in the first hour.
pub(crate) const MAX_RETRIES_OF_REJECTIONS_PER_HOUR: usize = 19;
