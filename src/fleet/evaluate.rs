//! [`evaluate`]: the meaning of a record for the process that reads it. Pure.
//!
//! | the record holds | the process |
//! | --- | --- |
//! | a newer token that is not due | takes it; after a change of its secret only if the token was requested with the new one |
//! | the token that this process has, requested with the new secret | keeps it, after a change of its secret |
//! | the token that this process has, after enough tokens were refused in a row | keeps it, after a 401 |
//! | a failure that still holds, of IMS or of the same secret | fails with it, or takes a newer token that is due |
//! | anything else | makes an attempt of its own |

use std::time::Duration;

use super::record::{Record, SharedToken};
use crate::clock::{MAX_LIFETIME, Moment};
use crate::error::TokenError;
use crate::source::{BELIEVED_PER_ORIGIN, REFUSAL_WINDOW, Reason, Schedule, Stamp, Supplied};

/// A token that another process requested so recently was requested because of the same change. Only for
/// a fetcher of the user, whose secrets have no fingerprint.
const SAME_CHANGE: Duration = Duration::from_secs(2 * 60);

/// The facts about the process that reads a record.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    /// The stamp of the newest token that the process has had.
    pub(super) newer_than: Stamp,
    /// Why the process needs a token.
    pub(super) reason: Reason,
    pub(super) now: Moment,
    pub(super) schedule: Schedule,
    /// The fingerprint of its secrets; `None` for a fetcher of the user.
    pub(super) secrets: Option<&'a str>,
    /// The stamp of the last token that this process requested itself.
    pub(super) requested: Stamp,
    /// The stamp of its last attempt that failed.
    pub(super) failed: Stamp,
    /// When it last requested a token without a lease.
    pub(super) alone: Option<Moment>,
    /// The longest time for which a failure of another process is believed.
    pub(super) max_hold: Duration,
}

/// The next step of the process.
pub(super) enum Verdict {
    /// Takes this token.
    Take(Supplied),
    /// Keeps its own token.
    Keep,
    /// Fails, unless there is a newer token that is due.
    Fail { error: TokenError, due: Option<Supplied> },
    /// Makes an attempt of its own.
    Request(Request),
}

/// The facts of the record before an attempt.
#[derive(Default)]
pub(super) struct Request {
    /// A newer token that is due: used if the attempt fails.
    pub(super) due: Option<Supplied>,
    /// The token of the record, which stays in it if the attempt fails.
    pub(super) last: Option<SharedToken>,
    /// How many tokens in a row were refused by an API lately.
    pub(super) refusals: u32,
    /// How many attempts in a row have failed.
    pub(super) failures: u32,
    /// `true` if there is a record that this process cannot read.
    pub(super) is_unreadable: bool,
}

/// Judges a record that the store keeps for another `ttl`.
pub(super) fn evaluate(record: Record, ttl: Option<Duration>, reader: Reader<'_>) -> Verdict {
    let time = record.time(reader.now.wall, ttl);
    let Record { token, failure, .. } = record;
    let mut request = Request {
        failures: failure.as_ref().map_or(0, |failure| failure.count),
        ..Request::default()
    };
    if let Some(token) = token.filter(|token| token.lifetime() <= MAX_LIFETIME) {
        match judge(&token, time, reader) {
            Judgement::Take(supplied) => return Verdict::Take(supplied),
            Judgement::Keep => return Verdict::Keep,
            Judgement::Due(supplied) => request.due = Some(supplied),
            Judgement::Old { refusals } => request.refusals = refusals,
            Judgement::Expired => {}
        }
        request.last = Some(token);
    }
    let Some(failure) = failure else { return Verdict::Request(request) };
    let left = failure.remaining(time, reader.reason == Reason::Missing);
    let left = left.min(reader.max_hold);
    // A rejection does not concern those with another secret. The process that was rejected itself has
    // its own backoff.
    let concerned = match failure.secrets.as_deref() {
        None => true,
        secrets => secrets == reader.secrets && failure.stamp != reader.failed.0,
    };
    if left.is_zero() || !concerned {
        return Verdict::Request(request);
    }
    Verdict::Fail { error: failure.error(left), due: request.due }
}

/// The use of a record's token to the process that reads it.
enum Judgement {
    Take(Supplied),
    Keep,
    /// Newer, but due for refresh, or requested with an old secret.
    Due(Supplied),
    /// Not newer, and no reason to keep it.
    Old {
        refusals: u32,
    },
    Expired,
}

fn judge(token: &SharedToken, time: u64, reader: Reader<'_>) -> Judgement {
    let Reader { newer_than, reason, now, schedule, .. } = reader;
    let (lifetime, left) = (token.lifetime(), token.remaining(time));
    let age = lifetime - left;
    if token.stamp <= newer_than.0 {
        let refusals = if age < REFUSAL_WINDOW { token.refusals } else { 0 };
        let keep = match reason {
            // One refusal after the other is no fault of the tokens. A budget for each process would be
            // too large for the fleet.
            Reason::Refused => refusals >= BELIEVED_PER_ORIGIN,
            Reason::CredentialsChanged => {
                token.stamp == newer_than.0 && answers_change(token, age, reader)
            }
            _ => false,
        };
        return if keep { Judgement::Keep } else { Judgement::Old { refusals } };
    }
    if left.is_zero() {
        return Judgement::Expired;
    }
    // Where the clock cannot represent when the token was sent, its lifetime starts now.
    let (sent, lifetime) = now.minus(age).map_or((now, left), |sent| (sent, lifetime));
    // The stamp of a token that was requested without a lease comes from our own clock. The clock of the
    // lease holder may be ahead, so that only the age tells which of the two tokens is older.
    if reader.alone.is_some_and(|alone| sent.monotonic < alone.monotonic) {
        return Judgement::Old { refusals: 0 };
    }
    let thresholds = schedule.thresholds(sent, lifetime);
    let (response, stamp) = (token.clone().response(lifetime), Stamp(token.stamp));
    let supplied = Supplied { response, sent, stamp, shared: true };
    if thresholds.expired.has_come(now) {
        Judgement::Expired
    } else if thresholds.due.has_come(now)
        || reason == Reason::CredentialsChanged && !answers_change(token, age, reader)
    {
        Judgement::Due(supplied)
    } else {
        Judgement::Take(supplied)
    }
}

/// Returns whether a token was requested after the change of credentials that this process has noticed.
fn answers_change(token: &SharedToken, age: Duration, reader: Reader<'_>) -> bool {
    match reader.secrets {
        Some(secrets) => token.secrets.as_deref() == Some(secrets),
        None => token.stamp != reader.requested.0 && age < SAME_CHANGE,
    }
}

#[cfg(test)]
#[path = "evaluate_tests.rs"]
mod tests;
