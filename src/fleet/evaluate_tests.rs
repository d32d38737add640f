#![allow(clippy::unwrap_used)]

use std::time::SystemTime;

use tokio::time::Instant;

use super::{super::record::SharedFailure, *};
use crate::{error::ErrorKind, ims::TokenResponse};

const DAY: Duration = Duration::from_secs(86_400);
const HOUR: Duration = Duration::from_secs(3_600);
const MINUTE: Duration = Duration::from_secs(60);

/// The stamp of the token in the record.
const STAMP: u64 = 100;

/// The contents of the record, and its age.
#[derive(Clone, Copy)]
struct Given {
    token: Option<Token>,
    failure: Option<(ErrorKind, Duration)>,
    age: Duration,
}

#[derive(Clone, Copy)]
struct Token {
    secrets: Option<&'static str>,
    refusals: u32,
}

/// The reader of the record.
#[derive(Clone, Copy)]
struct As {
    reason: Reason,
    newest: u64,
    secrets: Option<&'static str>,
    requested: u64,
    failed: u64,
}

const TOKEN: Token = Token { secrets: Some("ours"), refusals: 0 };
const FRESH: Given = Given { token: Some(TOKEN), failure: None, age: MINUTE };
const NOTHING: Given = Given { token: None, failure: None, age: MINUTE };
const STARTS: As =
    As { reason: Reason::Missing, newest: 0, secrets: Some("ours"), requested: 0, failed: 0 };
const HAS_IT: As = As { newest: STAMP, ..STARTS };

const fn failed(kind: ErrorKind, holds: Duration) -> Given {
    Given { token: None, failure: Some((kind, holds)), age: Duration::ZERO }
}

fn moment() -> Moment {
    let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    Moment { monotonic: Instant::now() + 100 * DAY, wall }
}

fn shared_token(token: Token, sent: Moment) -> SharedToken {
    let response = TokenResponse::new("secret", DAY);
    let supplied = Supplied { response, sent, stamp: Stamp(STAMP), shared: false };
    SharedToken::new(&supplied, token.refusals, token.secrets.map(str::to_owned))
}

/// The verdict in a word, by a store that counts the time to live down.
fn verdict(given: Given, reader: As) -> &'static str {
    let committed = moment();
    let token = given.token.map(|token| shared_token(token, committed));
    let record = match given.failure {
        Some((kind, holds)) => {
            let error = TokenError::new(kind, "a failure");
            let secrets = Some("ours".to_owned());
            let failure = SharedFailure::new(&error, STAMP + 5, 1, secrets).unwrap();
            Record::of_failure(failure, holds, token, committed.wall)
        }
        None if given.token.is_some() => Record::of_token(token.unwrap(), committed.wall),
        None => return "request",
    };
    let reader = Reader {
        newer_than: Stamp(reader.newest),
        reason: reader.reason,
        now: committed.plus(given.age),
        schedule: Schedule { refresh_at: 23.0 / 24.0, jitter: 0.0 },
        secrets: reader.secrets,
        requested: Stamp(reader.requested),
        failed: Stamp(reader.failed),
        alone: None,
        max_hold: 5 * MINUTE,
    };
    let ttl = record.ttl().saturating_sub(given.age);
    match evaluate(record, Some(ttl), reader) {
        Verdict::Take(_) => "take",
        Verdict::Keep => "keep",
        Verdict::Fail { due: None, .. } => "fail",
        Verdict::Fail { due: Some(_), .. } => "fail or due",
        Verdict::Request(Request { due: Some(_), .. }) => "request or due",
        Verdict::Request(_) => "request",
    }
}

#[test]
fn every_record_has_one_meaning() {
    use ErrorKind::{Rejected, Throttled};
    use Reason::{CredentialsChanged, Due, Missing, Refused, Requested};

    let aged = |age| Given { age, ..FRESH };
    let refused =
        |refusals, age| Given { token: Some(Token { refusals, ..TOKEN }), failure: None, age };
    let of = |secrets| Given { token: Some(Token { secrets, ..TOKEN }), ..FRESH };
    let to = |reason, reader: As| As { reason, ..reader };
    let due_and_failed =
        Given { token: Some(TOKEN), failure: Some((Throttled, MINUTE)), age: Duration::ZERO };
    let other = As { secrets: Some("theirs"), ..STARTS };
    let custom = As { secrets: None, ..STARTS };
    let rejected_itself = As { failed: STAMP + 5, ..STARTS };

    for (number, (given, reader, expected)) in [
        // A newer token.
        (NOTHING, STARTS, "request"),
        (FRESH, STARTS, "take"),
        (FRESH, to(Due, STARTS), "take"),
        (FRESH, to(Refused, STARTS), "take"),
        (FRESH, to(Requested, STARTS), "take"),
        (FRESH, other, "take"),
        (aged(23 * HOUR + MINUTE), STARTS, "request or due"),
        (aged(DAY), STARTS, "request"),
        (aged(2 * DAY), STARTS, "request"),
        // The token that the process has.
        (FRESH, HAS_IT, "request"),
        (FRESH, to(Due, HAS_IT), "request"),
        (FRESH, to(Requested, HAS_IT), "request"),
        (FRESH, to(Refused, HAS_IT), "request"),
        (refused(1, Duration::ZERO), to(Refused, HAS_IT), "request"),
        (refused(2, Duration::ZERO), to(Refused, HAS_IT), "keep"),
        (refused(2, 2 * MINUTE), to(Refused, HAS_IT), "request"),
        (refused(2, Duration::ZERO), to(Due, HAS_IT), "request"),
        // A new secret.
        (of(Some("ours")), to(CredentialsChanged, STARTS), "take"),
        (of(Some("theirs")), to(CredentialsChanged, STARTS), "request or due"),
        (of(Some("ours")), to(CredentialsChanged, HAS_IT), "keep"),
        (of(Some("theirs")), to(CredentialsChanged, HAS_IT), "request"),
        (of(Some("ours")), As { newest: STAMP + 1, ..to(CredentialsChanged, STARTS) }, "request"),
        // The same, with a fetcher of the user.
        (of(None), to(CredentialsChanged, custom), "take"),
        (of(None), As { newest: STAMP, ..to(CredentialsChanged, custom) }, "keep"),
        (
            of(None),
            As { newest: STAMP, requested: STAMP, ..to(CredentialsChanged, custom) },
            "request",
        ),
        (
            Given { age: 3 * MINUTE, ..of(None) },
            As { newest: STAMP, ..to(CredentialsChanged, custom) },
            "request",
        ),
        // A failure.
        (failed(Throttled, MINUTE), to(Due, STARTS), "fail"),
        (failed(Throttled, MINUTE), other, "fail"),
        (failed(Throttled, Duration::ZERO), STARTS, "request"),
        (Given { age: 2 * MINUTE, ..failed(Throttled, MINUTE) }, to(Due, STARTS), "request"),
        (failed(Rejected, MINUTE), STARTS, "fail"),
        (failed(Rejected, MINUTE), other, "request"),
        (failed(Rejected, MINUTE), custom, "request"),
        (failed(Rejected, MINUTE), rejected_itself, "request"),
        (failed(Throttled, MINUTE), As { reason: Due, ..rejected_itself }, "fail"),
        // A process without a token leaves IMS alone for 10 s at most.
        (Given { age: MINUTE / 4, ..failed(Throttled, MINUTE) }, to(Due, STARTS), "fail"),
        (Given { age: MINUTE / 4, ..failed(Throttled, MINUTE) }, to(Missing, STARTS), "request"),
        (Given { age: MINUTE / 4, ..failed(Rejected, MINUTE) }, to(Missing, STARTS), "fail"),
        // A token and a failure after it.
        (due_and_failed, STARTS, "take"),
        (due_and_failed, HAS_IT, "fail"),
    ]
    .into_iter()
    .enumerate()
    {
        assert_eq!(verdict(given, reader), expected, "row {number}");
    }
}

#[test]
fn a_due_token_is_used_while_a_failure_holds() {
    let committed = moment();
    let sent = committed.minus(23 * HOUR + 10 * MINUTE).unwrap();
    let error = TokenError::new(ErrorKind::Unavailable, "a failure");
    let failure = SharedFailure::new(&error, STAMP + 5, 1, None).unwrap();
    let token = Some(shared_token(TOKEN, sent));
    let record = Record::of_failure(failure, MINUTE, token, committed.wall);
    let reader = Reader {
        newer_than: Stamp::default(),
        reason: Reason::Missing,
        now: committed,
        schedule: Schedule { refresh_at: 23.0 / 24.0, jitter: 0.0 },
        secrets: None,
        requested: Stamp::default(),
        failed: Stamp::default(),
        alone: None,
        max_hold: 5 * MINUTE,
    };

    let Verdict::Fail { error, due } = evaluate(record, None, reader) else { panic!() };

    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(due.unwrap().stamp, Stamp(STAMP));
}

/// The remaining lifetime of a token of a day that was committed `age` ago.
fn remaining(ttl: Option<Duration>, age: Duration, skew: i64) -> Duration {
    let committed = moment();
    let record = Record::of_token(shared_token(TOKEN, committed), committed.wall);
    let skewed = |wall: SystemTime| {
        let by = Duration::from_secs(skew.unsigned_abs());
        if skew < 0 { wall - by } else { wall + by }
    };
    let time = record.time(skewed(committed.wall + age), ttl);
    record.token.unwrap().remaining(time)
}

#[test]
fn a_store_that_counts_down_makes_skewed_clocks_harmless() {
    let left = 10 * HOUR;
    for skew in [-86_400, -120, 0, 120, 299] {
        assert_eq!(remaining(Some(left), DAY - left, skew), left, "{skew}");
    }
    // Without it, the clock of the reader counts.
    assert_eq!(remaining(None, 14 * HOUR, 0), left);
    assert_eq!(remaining(None, 14 * HOUR, 3_600), left - HOUR);
}

#[test]
fn a_record_put_back_is_as_old_as_the_clock_says() {
    assert_eq!(remaining(Some(DAY), 14 * HOUR, 0), 10 * HOUR + 5 * MINUTE);
    assert_eq!(remaining(Some(10 * DAY), 25 * HOUR, 0), Duration::ZERO);
}
