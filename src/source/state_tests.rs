//! Every row of the state table, and the changes between them.

use std::{
    sync::{Arc, Weak},
    time::SystemTime,
};

use super::*;
use crate::{
    error::ImsFailure,
    ims::TokenResponse,
    source::{
        access_token::{OriginKey, TokenOwner},
        supply::Supplied,
    },
};

const DAY: Duration = Duration::from_secs(86_400);
const LONGEST: Duration = Duration::from_secs(10);

struct Nobody;

impl TokenOwner for Nobody {
    fn record_refusal(self: Arc<Self>, _: &AccessToken, _: OriginKey) {}
}

fn start() -> Moment {
    Moment { monotonic: Instant::now(), wall: SystemTime::UNIX_EPOCH }
}

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn token(stamp: u64, sent: Moment, lifetime: Duration) -> AccessToken {
    let response = TokenResponse::new("token", lifetime);
    let supplied = Supplied { response, sent, stamp: Stamp(stamp), shared: false };
    let owner: Weak<dyn TokenOwner> = Weak::<Nobody>::new();
    AccessToken::new(supplied, stamp, owner).unwrap()
}

fn empty() -> State {
    State::new(Schedule::default(), Backoff::default())
}

/// A state whose token came at `start`.
fn with_token(start: Moment) -> State {
    let mut state = empty();
    let number = state.start(start, LONGEST).unwrap();
    state.complete(number, start, Ok(Some(token(1, start, DAY))), 0.0);
    state
}

fn with_suspect(start: Moment) -> State {
    let mut state = with_token(start);
    state.suspect(start);
    state
}

fn transient() -> TokenError {
    TokenError::transient("IMS is down")
}

fn throttled(secs: u64) -> TokenError {
    let answer =
        ImsFailure { retry_after: Some(Duration::from_secs(secs)), ..ImsFailure::default() };
    TokenError::with_answer(ErrorKind::Throttled, "throttled", answer)
}

/// Fails one refresh of `state` with `error`.
fn failed(mut state: State, now: Moment, error: &TokenError) -> State {
    let number = state.start(now, LONGEST).unwrap();
    state.record_failure(number, now, error, true, 0.999).unwrap();
    state.complete(number, now, Err(error.clone()), 0.999);
    state
}

fn refreshing(mut state: State, now: Moment) -> State {
    state.start(now, LONGEST).unwrap();
    state
}

/// A caller inside of a runtime who can wait for `patience`.
fn patient(now: Moment, patience: Duration) -> Want {
    let deadline = Some(now.monotonic + patience);
    Want { deadline, can_start: true, attempts: 3, ..Want::default() }
}

/// The decision in words, for comparison.
fn decision(state: &State, now: Moment, want: Want) -> String {
    match state.decide(now, want) {
        Decision::Use(token, None) => format!("use {}", token.generation()),
        Decision::Use(token, Some(reason)) => {
            format!("use {} and refresh: {reason:?}", token.generation())
        }
        Decision::Refresh(reason) => format!("refresh: {reason:?}"),
        Decision::Wait(until) => {
            let wait = until.saturating_duration_since(now.monotonic);
            format!("wait {:.1}", wait.as_secs_f64())
        }
        Decision::ReviewOverdue => "review overdue".to_owned(),
        Decision::Fail(error) => match error.retry_in() {
            Some(retry_in) => {
                format!("fail: {:?}, retry in {:.2}", error.kind(), retry_in.as_secs_f64())
            }
            None => format!("fail: {:?}", error.kind()),
        },
    }
}

#[test]
fn every_row_of_the_table_holds() {
    let start = start();
    let at = |seconds| start.plus(secs(seconds));
    let (due, end) = (at(23 * 3_600), at(86_400));
    let mut closed = with_suspect(start);
    closed.closed = true;
    let mut closed_and_empty = empty();
    closed_and_empty.closed = true;
    let down = failed(with_token(start), due, &transient());
    let suspect_and_down = {
        let mut state = failed(with_token(start), at(100), &transient());
        state.suspect(at(100));
        state
    };
    let suspect_failed_once = {
        let mut state = with_suspect(start);
        let number = state.start(start, LONGEST).unwrap();
        state.record_failure(number, start, &transient(), true, 0.999).unwrap();
        state
    };

    let rows: Vec<(&str, State, Moment, &str)> = vec![
        // cached token, refresh in progress, issuer in backoff: what a caller gets
        ("valid", with_token(start), at(1), "use 1"),
        ("valid, refreshing", refreshing(with_token(start), at(1)), at(2), "use 1"),
        ("valid, backoff", failed(with_token(start), at(1), &transient()), at(1), "use 1"),
        ("due", with_token(start), due, "use 1 and refresh: Due"),
        ("due, refreshing", refreshing(with_token(start), due), due, "use 1"),
        ("due, backoff", down.clone(), due, "use 1"),
        ("due, backoff over", down.clone(), due.plus(secs(1)), "use 1 and refresh: Due"),
        ("suspect, refreshing", refreshing(with_suspect(start), start), at(1), "wait 1.0"),
        ("suspect, refreshing, grace over", refreshing(with_suspect(start), start), at(2), "use 1"),
        ("suspect, one attempt failed", suspect_failed_once, at(1), "use 1"),
        ("suspect", with_suspect(start), at(1), "refresh: Refused"),
        ("suspect, grace over", with_suspect(start), at(2), "use 1 and refresh: Refused"),
        ("suspect, closed", closed, at(1), "use 1"),
        ("suspect, backoff", suspect_and_down, at(100), "use 1"),
        ("none, refreshing", refreshing(empty(), start), at(1), "wait 11.5"),
        ("none, overdue", refreshing(empty(), start), at(13), "review overdue"),
        ("none", empty(), start, "refresh: Missing"),
        ("none, closed", closed_and_empty, start, "fail: Shutdown"),
        (
            "none, backoff",
            failed(empty(), start, &transient()),
            start,
            "fail: Fetch, retry in 0.25",
        ),
        ("none, backoff over", failed(empty(), start, &transient()), at(1), "refresh: Missing"),
        ("expired", with_token(start), end, "refresh: Missing"),
        ("expired, refreshing", refreshing(with_token(start), end), end, "wait 12.5"),
        ("suspect and expired", with_suspect(start), end, "refresh: Missing"),
        (
            "none, Retry-After within reach",
            failed(empty(), start, &throttled(20)),
            at(5),
            "wait 15.2",
        ),
        (
            "none, Retry-After out of reach",
            failed(empty(), start, &throttled(60)),
            at(5),
            "fail: Throttled, retry in 55.25",
        ),
    ];
    for (row, state, now, expected) in rows {
        assert_eq!(decision(&state, now, patient(now, secs(30))), expected, "{row}");
    }
}

#[test]
fn a_retry_after_is_waited_out_twice_and_not_for_ever() {
    let start = start();
    let state = failed(failed(empty(), start, &throttled(20)), start, &throttled(20));
    let joined = |joined| Want { joined: Some(joined), ..patient(start, secs(30)) };

    assert_eq!(decision(&state, start, joined(2)), "wait 20.2");
    assert_eq!(decision(&state, start, joined(1)), "wait 20.2");
    let again = failed(state, start, &throttled(20));
    assert_eq!(decision(&again, start, joined(1)), "fail: Throttled, retry in 20.25");
}

#[test]
fn a_caller_that_cannot_wait_gets_the_suspect_token() {
    let start = start();
    let now = Want { can_start: true, ..Want::default() };

    assert_eq!(decision(&with_suspect(start), start, now), "use 1 and refresh: Refused");
    assert_eq!(decision(&refreshing(with_suspect(start), start), start, now), "use 1");
}

#[test]
fn outside_a_runtime_a_suspect_token_is_used() {
    let start = start();
    let outside = Want { can_start: false, ..patient(start, secs(30)) };

    assert_eq!(decision(&with_suspect(start), start, outside), "use 1");
    assert_eq!(decision(&empty(), start, outside), "fail: NoRuntime");
    assert_eq!(decision(&with_token(start), start.plus(secs(85_000)), outside), "use 1");
}

#[test]
fn only_the_issuer_moves_the_backoff_of_the_issuer() {
    let start = start();
    let mut state = empty();
    for _ in 0..10 {
        let number = state.start(start, LONGEST).unwrap();
        state.complete(number, start, Err(TokenError::lost()), 0.999);
    }

    // Callers wait out a short pause, and then a refresh starts.
    assert_eq!(decision(&state, start, patient(start, secs(30))), "wait 0.1");
    assert_eq!(state.backoff_if_it_fails(0.999).as_millis(), 249);
    let later = start.plus(Duration::from_millis(100));
    assert_eq!(decision(&state, later, patient(later, secs(30))), "refresh: Missing");
    // Without callers the losses back off: each may have cost a token.
    assert!(state.wake_in(start).unwrap() > secs(30));
}

#[test]
fn the_first_lost_refresh_costs_no_pause() {
    let start = start();
    let mut state = empty();
    let number = state.start(start, LONGEST).unwrap();
    state.complete(number, start, Err(TokenError::lost()), 0.999);

    assert_eq!(decision(&state, start, patient(start, secs(30))), "refresh: Missing");
}

#[test]
fn a_panic_fails_those_who_waited_for_it_and_nobody_else() {
    let start = start();
    let panicked = TokenError::panicked();
    let state = failed(empty(), start, &panicked);
    let waited = Want { joined: Some(1), ..patient(start, secs(30)) };

    assert_eq!(decision(&state, start, waited), "fail: Panicked");
    assert_eq!(decision(&state, start, patient(start, secs(30))), "refresh: Missing");

    let again = failed(state, start, &panicked);
    assert_eq!(decision(&again, start, patient(start, secs(30))), "fail: Panicked, retry in 0.25");
}

#[test]
fn an_overdue_refresh_is_extended_once_and_then_given_up() {
    let start = start();
    let mut state = refreshing(empty(), start);

    assert!(!state.review_overdue(start.plus(secs(12)), 0.0), "not overdue");
    assert!(!state.review_overdue(start.plus(secs(13)), 0.0), "extended");
    assert!(state.is_refreshing());
    assert!(!state.review_overdue(start.plus(secs(13)), 0.0), "no longer overdue");
    assert!(state.review_overdue(start.plus(secs(14)), 0.0), "given up");
    assert!(!state.is_refreshing());

    // The answer of the superseded refresh is taken when it comes all the same.
    let late = start.plus(secs(22));
    state.complete(1, late, Ok(Some(token(1, late, DAY))), 0.0);
    assert_eq!(decision(&state, late, patient(late, secs(30))), "use 1");
}

#[test]
fn only_a_token_with_a_higher_stamp_is_taken() {
    let start = start();
    let mut state = with_token(start);

    assert!(!state.take(start, token(1, start, DAY)), "the same stamp");
    assert!(state.take(start, token(3, start, DAY)));
    assert!(!state.take(start, token(2, start, DAY)), "an older one");
    assert!(state.invalidate(start, &state.token(start).unwrap().0.clone()));
    assert!(!state.take(start, token(3, start, DAY)), "an invalidated token does not come back");
    assert!(state.take(start, token(4, start, DAY)));
}

#[test]
fn a_refresh_that_brings_nothing_new_is_postponed() {
    let start = start();
    let due = start.plus(secs(23 * 3_600));
    let mut state = refreshing(with_token(start), due);
    state.complete(2, due, Ok(Some(token(1, due, DAY))), 0.0);
    assert_eq!(decision(&state, due, patient(due, secs(30))), "use 1");

    let mut state = refreshing(empty(), start);
    state.complete(1, start, Ok(Some(token(0, start, DAY))), 0.999);
    assert_eq!(decision(&state, start, patient(start, secs(30))), "fail: Malformed, retry in 0.25");
}

#[test]
fn callers_pause_ten_seconds_at_most_the_background_a_minute() {
    let start = start();
    let mut state = empty();
    for _ in 0..20 {
        state = failed(state, start, &transient());
    }

    assert_eq!(decision(&state, start, patient(start, secs(30))), "fail: Fetch, retry in 9.99");
    assert!(state.wake_in(start).unwrap() > secs(59));
}

#[test]
fn a_permanent_failure_is_retried_slowly_without_callers() {
    let start = start();
    let state = failed(empty(), start, &TokenError::permanent("rejected"));

    assert_eq!(state.wake_in(start).unwrap(), secs(60));
    assert_eq!(state.background_reason(start.plus(secs(60))), Some(Reason::Missing));
}

#[test]
fn a_lifetime_that_no_token_has_for_long_is_refused() {
    let start = start();
    let want = |min_lifetime| Want { min_lifetime, ..patient(start, secs(30)) };
    let now = start.plus(secs(3_600));

    assert_eq!(decision(&with_token(start), now, want(secs(22 * 3_600))), "use 1");
    assert_eq!(decision(&with_token(start), now, want(DAY)), "fail: Lifetime");
    assert_eq!(decision(&with_token(start), now, want(secs(82_795))), "use 1");
    let later = start.plus(secs(7_200));
    assert_eq!(decision(&with_token(start), later, want(secs(82_795))), "refresh: Missing");
}

#[test]
fn an_explicit_refresh_needs_a_newer_token() {
    let start = start();
    let want = Want { newer_than: Some(Stamp(1)), ..patient(start, secs(30)) };

    assert_eq!(decision(&with_token(start), start, want), "refresh: Requested");
    let mut down = with_token(start);
    for _ in 0..20 {
        down = failed(down, start, &transient());
    }
    let later = start.plus(secs(11));
    assert_eq!(decision(&down, later, want), "fail: Fetch, retry in 48.95");
    let mut state = refreshing(with_token(start), start);
    assert_eq!(decision(&state, start, want), "wait 12.5");
    state.complete(2, start, Ok(Some(token(2, start, DAY))), 0.0);
    assert_eq!(decision(&state, start, want), "use 2");
}

#[test]
fn a_newer_token_serves_unless_it_is_suspect_or_expired() {
    let start = start();
    let mut state = with_token(start);
    assert!(!state.has_newer(Stamp(1), start), "the same token");
    assert!(state.take(start, token(2, start, DAY)));

    assert!(state.has_newer(Stamp(1), start));
    assert!(!state.has_newer(Stamp(1), start.plus(DAY)), "expired");
    state.suspect(start);
    assert!(!state.has_newer(Stamp(1), start), "suspect");
}

#[test]
fn a_refresh_that_was_given_up_clears_no_failure() {
    let start = start();
    let mut state = with_token(start);
    let number = state.start(start, LONGEST).unwrap();
    state.complete(number, start, Err(TokenError::lost()), 0.0);
    let mut state = failed(state, start, &transient());

    state.complete(number, start, Ok(None), 0.0);

    assert!(state.failure().is_some());
}
