//! How attempts, retries, backoff and the deadlines of callers nest: a caller waits for the next attempt
//! if its deadline allows that, fails immediately if not, and never fails while a later attempt would
//! have been in time. On a paused clock.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep};
use tower::Layer;
use tower_adobe_auth::{AccessToken, AdobeAuthLayer, ErrorKind, TokenError, TokenSource};

use self::support::{DAY, FIREFLY, HOUR, Ims, MINUTE, Reply, api, get, get_within, millis, secs};

/// The outcome of one call, and how long it took.
async fn timed(tokens: &TokenSource) -> (Result<AccessToken, TokenError>, Duration) {
    let start = Instant::now();
    let token = tokens.token().await;
    (token, start.elapsed())
}

// `Retry-After`, against the deadline of each caller.

#[tokio::test(start_paused = true)]
async fn a_caller_that_cannot_wait_out_retry_after_fails_early() {
    let ims = Ims::new(DAY).taking(millis(10));
    ims.respond_next([Reply::Throttled(20)]);
    let client = AdobeAuthLayer::new(ims.source()).layer(api(|_| 200));

    let outcome = get_within(&client, FIREFLY, secs(3)).await;

    assert_eq!(outcome.token_error().kind(), ErrorKind::Throttled);
    assert!(outcome.token_error().retry_in().unwrap() > secs(18));
    assert!(outcome.took <= millis(100), "{:?}", outcome.took);
    assert_eq!(ims.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_can_wait_out_retry_after_waits() {
    let ims = Ims::new(DAY).taking(millis(10));
    ims.respond_next([Reply::Throttled(40)]);
    let client = AdobeAuthLayer::new(ims.source()).layer(api(|_| 200));

    let outcome = get_within(&client, FIREFLY, secs(120)).await;

    assert_eq!(outcome.ok(), 200);
    assert!(outcome.took >= secs(40) && outcome.took < secs(55), "{:?}", outcome.took);
    assert_eq!(ims.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn each_caller_decides_by_its_own_deadline() {
    let ims = Ims::new(DAY).taking(millis(10));
    ims.respond_next([Reply::Throttled(20)]);
    let client = AdobeAuthLayer::new(ims.source()).layer(api(|_| 200));

    let (hasty, default, patient) = tokio::join!(
        get_within(&client, FIREFLY, secs(3)),
        get(&client, FIREFLY),
        get_within(&client, FIREFLY, secs(120)),
    );

    assert_eq!(hasty.token_error().kind(), ErrorKind::Throttled);
    assert!(hasty.took <= millis(100), "{:?}", hasty.took);
    for waits in [default, patient] {
        assert_eq!(waits.ok(), 200);
        assert!(waits.took >= secs(20) && waits.took < secs(30), "{:?}", waits.took);
    }
    assert_eq!(ims.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_caller_during_retry_after_decides_by_its_own_deadline() {
    let ims = Ims::new(DAY).taking(millis(10));
    ims.respond_next([Reply::Throttled(40)]);
    let client = AdobeAuthLayer::new(ims.source()).layer(api(|_| 200));
    get_within(&client, FIREFLY, secs(3)).await.token_error();
    sleep(secs(15)).await;

    let (hasty, patient) = tokio::join!(
        get_within(&client, FIREFLY, secs(3)),
        get_within(&client, FIREFLY, secs(60)),
    );

    assert_eq!(hasty.token_error().kind(), ErrorKind::Throttled);
    assert!(hasty.took <= millis(10), "{:?}", hasty.took);
    assert_eq!(patient.ok(), 200);
    assert!(patient.took >= secs(24) && patient.took < secs(40), "{:?}", patient.took);
}

#[tokio::test(start_paused = true)]
async fn retry_after_is_respected_however_many_callers_wait() {
    let ims = Ims::new(DAY).taking(millis(10));
    ims.respond_next([Reply::Throttled(10), Reply::Throttled(10)]);
    let tokens = ims.source();

    let calls = join_all((0..100).map(|_| tokens.token())).await;

    assert!(calls.iter().all(Result::is_ok));
    let asked_at = ims.asked_at();
    assert_eq!(asked_at.len(), 3);
    assert!(asked_at.windows(2).all(|pair| pair[1] - pair[0] >= secs(10)), "{asked_at:?}");
}

// Attempts that end in their timeout are tried again.

#[tokio::test(start_paused = true)]
async fn a_second_attempt_serves_all_waiters() {
    let ims = Ims::new(DAY).taking(millis(10));
    // The request timeout is ten seconds, the acquire timeout thirty.
    ims.respond_next([Reply::Hang]);
    let tokens = ims.source();

    let calls = join_all((0..100).map(|_| timed(&tokens))).await;

    for (token, took) in calls {
        assert_eq!(token.unwrap().expose_secret(), "token-2");
        assert!(took < secs(12), "{took:?}");
    }
    assert_eq!(ims.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_third_attempt_serves_all_waiters() {
    let ims = Ims::new(DAY).taking(millis(10));
    ims.respond_next([Reply::Hang, Reply::Hang]);
    let tokens = ims.source();

    let calls = join_all((0..100).map(|_| timed(&tokens))).await;

    for (token, took) in calls {
        assert_eq!(token.unwrap().expose_secret(), "token-3");
        assert!(took < secs(24), "{took:?}");
    }
    assert_eq!(ims.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_third_attempt_serves_after_different_failures() {
    let failures = [Reply::Hang, Reply::Unavailable, Reply::Disconnect];
    for (first, second) in failures.iter().flat_map(|a| failures.iter().map(move |b| (a, b))) {
        let ims = Ims::new(DAY).taking(millis(10));
        ims.respond_next([*first, *second]);
        let tokens = ims.source();

        let (token, took) = timed(&tokens).await;

        assert!(token.is_ok(), "{token:?}, after {first:?} and {second:?}");
        assert!(took < secs(24), "{took:?}, after {first:?} and {second:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_came_late_is_served_by_the_next_attempt() {
    let ims = Ims::new(DAY).taking(millis(10));
    ims.respond_next([Reply::Hang, Reply::Hang]);
    let tokens = ims.source();
    let first = tokio::spawn({
        let tokens = tokens.clone();
        async move { tokens.token().await.map(drop) }
    });
    sleep(secs(9)).await;

    let late = tokens.token().await;

    assert!(late.is_ok(), "{late:?}");
    first.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_ims_that_hangs_fails_callers_at_their_deadline() {
    let ims = Ims::new(DAY);
    ims.respond_with(Reply::Hang);
    let tokens = ims.source();

    let calls = join_all((0..100).map(|_| timed(&tokens))).await;

    for (token, took) in calls {
        let error = token.unwrap_err();
        assert!(error.is_transient());
        let kinds = [ErrorKind::AcquireTimeout, ErrorKind::Timeout];
        assert!(kinds.contains(&error.kind()), "{error:?}");
        assert!(took <= millis(30_100), "{took:?}");
    }
    assert!((2..=3).contains(&ims.asked()), "{} attempts", ims.asked());
}

#[tokio::test(start_paused = true)]
async fn no_caller_waits_beyond_its_deadline() {
    for reply in [Reply::Hang, Reply::Unavailable, Reply::Throttled(1), Reply::Disconnect] {
        let ims = Ims::new(DAY).taking(millis(700));
        ims.respond_with(reply);
        let client = AdobeAuthLayer::new(ims.source()).layer(api(|_| 200));

        for limit in [millis(1), millis(500), secs(2), secs(7), secs(25)] {
            let outcome = get_within(&client, FIREFLY, limit).await;

            assert!(outcome.status.is_err());
            assert!(outcome.took <= limit + millis(10), "{:?} of {limit:?}", outcome.took);
        }
    }
}

// The pause between attempts.

#[tokio::test(start_paused = true)]
async fn a_caller_succeeds_10_s_after_a_long_outage() {
    for (outage, reply) in [
        (10 * MINUTE, Reply::Unavailable),
        (10 * MINUTE, Reply::Disconnect),
        (10 * MINUTE, Reply::Hang),
        (2 * HOUR, Reply::Unavailable),
    ] {
        let ims = Ims::new(DAY).taking(millis(100));
        ims.respond_with(reply);
        let tokens = ims.source();
        // A caller comes each second.
        let start = Instant::now();
        let caller = tokio::spawn(async move {
            let mut calls = Vec::new();
            loop {
                let tokens = tokens.clone();
                calls.push(tokio::spawn(async move {
                    let token = tokens.token().await;
                    (token.is_ok(), start.elapsed())
                }));
                if start.elapsed() > outage + MINUTE {
                    break join_all(calls).await;
                }
                sleep(secs(1)).await;
            }
        });

        sleep(outage).await;
        ims.respond_with(Reply::Token);
        let calls = caller.await.unwrap();

        let served = calls.into_iter().map(Result::unwrap).filter(|(is_ok, _)| *is_ok);
        let first = served.map(|(_, at)| at - outage).min().expect("a caller is served");
        // An attempt that hangs takes ten seconds to end.
        let attempt = if reply == Reply::Hang { secs(10) } else { Duration::ZERO };
        assert!(first <= secs(12) + attempt, "{first:?} after {outage:?} of {reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn callers_during_an_outage_do_not_flood_ims() {
    let ims = Ims::new(DAY).taking(millis(100));
    ims.respond_with(Reply::Unavailable);
    let tokens = ims.source();

    let start = Instant::now();
    while start.elapsed() < HOUR {
        tokens.token().await.unwrap_err();
        sleep(secs(1)).await;
    }

    // A refresh of three attempts for each pause of ten seconds, which jitter may halve.
    assert!(ims.asked() <= 3 * 720, "{} token requests in an hour", ims.asked());
    let longest = ims.asked_at().windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(longest <= secs(12), "{longest:?} between two attempts");
}

#[tokio::test(start_paused = true)]
async fn a_source_nobody_waits_for_pauses_for_longer() {
    let ims = Ims::new(DAY).taking(millis(100));
    ims.respond_with(Reply::Unavailable);
    let tokens = ims.source();
    tokens.warm_up();

    sleep(HOUR).await;

    let longest = ims.asked_at().windows(2).map(|pair| pair[1] - pair[0]).max().unwrap();
    assert!(longest > secs(25) && longest <= secs(62), "{longest:?} between two attempts");
}

#[tokio::test(start_paused = true)]
async fn the_first_caller_after_a_quiet_outage_is_served_in_10_s() {
    let ims = Ims::new(DAY).taking(millis(100));
    ims.respond_with(Reply::Unavailable);
    let tokens = ims.source();
    tokens.warm_up();
    // Nobody waits, so that the pauses have grown to a minute.
    sleep(HOUR).await;
    ims.respond_with(Reply::Token);
    sleep(millis(500)).await;

    let start = Instant::now();
    while tokens.token().await.is_err() {
        sleep(secs(1)).await;
    }

    assert!(start.elapsed() <= secs(12), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_caller_within_the_pause_fails_early_with_retry_in() {
    let ims = Ims::new(DAY).taking(millis(100));
    ims.respond_with(Reply::Unavailable);
    let tokens = ims.builder().attempts(1).build().unwrap();
    tokens.token().await.unwrap_err();

    let (error, took) = timed(&tokens).await;

    let error = error.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    let retry_in = error.retry_in().expect("the time of the next attempt");
    assert!(retry_in <= secs(10));
    assert_eq!(took, Duration::ZERO);
    assert_eq!(ims.asked(), 1);
}
