//! IMS is slow, throttles, hangs, refuses or is gone: no request waits for a token that is still
//! good, a failing IMS is left alone, and callers who have no token get a clear error in time. On
//! real sockets.

#![cfg(feature = "reqwest")]
#![allow(clippy::unwrap_used)]

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use futures_util::{FutureExt, future::join_all};
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use hyper_util::{
    client::legacy::{Client as HyperClient, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::{Layer, ServiceExt};
use tower_adobe_auth::{
    AccessToken, AcquireTimeout, AdobeAuth, AdobeAuthLayer, BoxError, Credentials, Environment,
    ErrorKind, ImsClient, ImsClientBuilder, MinLifetime, TokenError, TokenSource,
    TokenSourceBuilder,
    mock::{Answer, MockIms},
};

/// More than any test needs: what is not there by then never comes.
const AGES: Duration = Duration::from_secs(20);

fn builder(ims: &MockIms) -> TokenSourceBuilder<ImsClientBuilder> {
    TokenSource::builder(Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET))
        .environment(Environment::custom(ims.url()).unwrap())
}

fn source(ims: &MockIms) -> TokenSource {
    builder(ims).build().unwrap()
}

fn client(tokens: &TokenSource) -> AdobeAuth<reqwest::Client> {
    AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1").layer(reqwest::Client::new())
}

async fn get(client: AdobeAuth<reqwest::Client>, url: String) -> Result<StatusCode, BoxError> {
    let request = reqwest::Request::new(Method::GET, url.parse().unwrap());
    Ok(client.oneshot(request).await?.status())
}

/// A client that passes the extensions of a request on to the layer.
type HyperStack = AdobeAuth<HyperClient<HttpConnector, Full<Bytes>>>;

fn hyper_client(tokens: &TokenSource) -> HyperStack {
    let hyper = HyperClient::builder(TokioExecutor::new()).build_http();
    AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1").layer(hyper)
}

/// What became of a request with a wish, and how long that took.
async fn ask<W>(
    client: HyperStack,
    ims: &MockIms,
    wish: W,
) -> (Result<StatusCode, BoxError>, Duration)
where
    W: Clone + Send + Sync + 'static,
{
    let request = Request::get(ims.api_url()).extension(wish).body(Full::default()).unwrap();
    let start = Instant::now();
    let response = client.oneshot(request).await;
    (response.map(|response| response.status()), start.elapsed())
}

fn token_error(error: BoxError) -> TokenError {
    *error.downcast().unwrap()
}

/// Waits until `condition` holds.
async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(AGES, wait).await.expect("it should have happened long ago");
}

/// A token, and how long it was waited for: not at all if it was there at the first look.
async fn timed_token(tokens: &TokenSource) -> (Result<AccessToken, TokenError>, Duration) {
    let mut token = Box::pin(tokens.token());
    let start = Instant::now();
    match token.as_mut().now_or_never() {
        Some(outcome) => (outcome, Duration::ZERO),
        None => (token.await, start.elapsed()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_is_never_delayed_by_refreshes_that_take_a_quarter_of_a_tokens_life() {
    let ims = MockIms::start().await;
    ims.set_token_lifetime(Duration::from_secs(6));
    ims.set_delay(Duration::from_millis(1_500));
    let tokens = source(&ims);
    tokens.token().await.unwrap();
    let end = Instant::now() + Duration::from_millis(13_500);

    let callers = (0..4).map(|_| {
        let tokens = tokens.clone();
        tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            while Instant::now() < end {
                let (token, waited) = timed_token(&tokens).await;
                token.unwrap();
                longest = longest.max(waited);
                sleep(Duration::from_millis(5)).await;
            }
            longest
        })
    });
    let trickle = tokio::spawn({
        let (client, url) = (client(&tokens), ims.api_url().to_owned());
        async move {
            while Instant::now() < end {
                assert_eq!(get(client.clone(), url.clone()).await.unwrap(), StatusCode::OK);
                sleep(Duration::from_millis(50)).await;
            }
        }
    });

    let longest = join_all(callers).await.into_iter().map(Result::unwrap).max().unwrap();
    trickle.await.unwrap();
    println!("longest wait {longest:?}, {} token requests", ims.token_requests());
    assert!(longest <= Duration::from_millis(50), "{longest:?}");
    assert!((4..=9).contains(&ims.token_requests()), "{} token requests", ims.token_requests());
    assert_eq!(ims.api_unauthorized(), 0);
}

#[tokio::test]
async fn no_request_fails_before_its_token_ends_while_ims_is_down() {
    let life = Duration::from_secs(3);
    let ims = MockIms::start().await;
    ims.set_token_lifetime(life);
    let tokens = source(&ims);
    let client = client(&tokens);
    let token = tokens.token().await.unwrap();

    ims.go_down();
    // The last twentieth of its life a token is not sent any more: it might be dead on arrival.
    let retired = token.expires_at() - life / 20;
    let mut served = 0;
    loop {
        let outcome = tokens.token().now_or_never();
        if SystemTime::now() >= retired {
            break;
        }
        assert_eq!(outcome.unwrap().unwrap().generation(), 1);
        // An API that is asked shortly before the end may get the request after it.
        if SystemTime::now() < retired - Duration::from_secs(1) {
            let status = get(client.clone(), ims.api_url().to_owned()).await.unwrap();
            assert_eq!(status, StatusCode::OK);
        }
        served += 1;
        sleep(Duration::from_millis(10)).await;
    }

    println!("{served} served, {} connections refused", ims.refused_connections());
    assert!(served > 20, "{served}");
    assert_eq!(ims.api_unauthorized(), 0);
    // From the half of its life on, with pauses of 63 ms, 125 ms, … at the shortest.
    assert!((1..=8).contains(&ims.refused_connections()), "{}", ims.refused_connections());
    let error = token_error(get(client, ims.api_url().to_owned()).await.unwrap_err());
    assert_eq!(error.kind(), ErrorKind::Connection);
}

/// A thousand callers over two seconds; their errors, and the longest that one of them waited.
async fn a_thousand_callers(ims: &MockIms) -> (Vec<TokenError>, Duration) {
    // The last of them are not to wait for longer than the first.
    let tokens = builder(ims).retry_for(Duration::from_secs(2)).build().unwrap();
    let client = client(&tokens);
    let start = tokio::time::Instant::now();
    let mut callers = JoinSet::new();
    for caller in 0..1_000 {
        let (client, url) = (client.clone(), ims.api_url().to_owned());
        callers.spawn(async move {
            tokio::time::sleep_until(start + caller * Duration::from_millis(2)).await;
            let asked = Instant::now();
            (token_error(get(client, url).await.unwrap_err()), asked.elapsed())
        });
    }
    let (errors, waits): (Vec<_>, Vec<_>) = callers.join_all().await.into_iter().unzip();
    (errors, waits.into_iter().max().unwrap())
}

#[tokio::test]
async fn a_thousand_callers_of_an_ims_that_answers_503_make_ten_requests_at_most() {
    let ims = MockIms::start().await;
    ims.respond_with(Answer::unavailable());

    let (errors, longest) = a_thousand_callers(&ims).await;

    println!("{} token requests, longest wait {longest:?}", ims.token_requests());
    println!("{}", errors[0]);
    assert_eq!(errors.len(), 1_000);
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.is_transient());
        assert_eq!(error.status(), Some(StatusCode::SERVICE_UNAVAILABLE));
        let said = error.to_string();
        assert!(said.starts_with("IMS is unavailable (status 503, x-debug-id "), "{said}");
        assert!(error.retry_in().is_some() && said.contains("; next try in "), "{said}");
    }
    assert!(ims.token_requests() <= 10, "{}", ims.token_requests());
    assert!(longest < Duration::from_secs(4), "tried again for 2 s at most: {longest:?}");
}

#[tokio::test]
async fn a_thousand_callers_of_an_ims_that_cannot_be_reached_make_ten_connections_at_most() {
    let ims = MockIms::start().await;
    ims.go_down();

    let (errors, longest) = a_thousand_callers(&ims).await;

    println!("{} connections, longest wait {longest:?}", ims.refused_connections());
    println!("{}", errors[0]);
    assert_eq!(errors.len(), 1_000);
    for error in errors {
        assert_eq!(error.kind(), ErrorKind::Connection);
        assert!(error.is_transient());
        assert!(error.source().is_some(), "{error:?}");
        let said = error.to_string();
        assert!(error.retry_in().is_some() && said.contains("; next try in "), "{said}");
    }
    assert!((1..=10).contains(&ims.refused_connections()), "{}", ims.refused_connections());
    assert!(longest < Duration::from_secs(4), "tried again for 2 s at most: {longest:?}");
}

#[tokio::test]
async fn a_retry_after_in_seconds_is_waited_out_and_callers_succeed() {
    let ims = MockIms::start().await;
    ims.respond_next([Answer::throttled(2)]);
    let tokens = source(&ims);
    let client = hyper_client(&tokens);
    let patient = tokio::spawn({
        let tokens = tokens.clone();
        async move { join_all((0..100).map(|_| tokens.token())).await }
    });
    until(|| tokens.status().consecutive_failures() == 1).await;

    // A caller who arrives within the pause and cannot wait it out fails immediately.
    let limit = Duration::from_millis(100);
    let (hasty, waited) = ask(client.clone(), &ims, AcquireTimeout(limit)).await;
    let (late, _) = ask(client, &ims, AcquireTimeout(AGES)).await;
    let hasty = token_error(hasty.unwrap_err());
    assert_eq!(
        (hasty.kind(), hasty.retry_after()),
        (ErrorKind::Throttled, Some(Duration::from_secs(2)))
    );
    assert!(hasty.retry_in().unwrap() > limit, "{hasty}");
    assert!(waited < Duration::from_secs(1), "{waited:?}");
    assert_eq!(late.unwrap(), StatusCode::OK);
    for token in patient.await.unwrap() {
        assert_eq!(token.unwrap().generation(), 1);
    }
    let times = ims.token_request_times();
    println!("asked again after {:?}", times[1] - times[0]);
    assert_eq!(times.len(), 2);
    assert!(times[1] - times[0] >= Duration::from_secs(2), "{:?}", times[1] - times[0]);
}

#[tokio::test]
async fn a_retry_after_that_is_a_date_is_waited_out_and_callers_succeed() {
    let ims = MockIms::start().await;
    let (start, wall) = (Instant::now(), SystemTime::now());
    // A date has no fractions of a second: it lies one to two seconds ahead.
    let date = httpdate::fmt_http_date(wall + Duration::from_secs(2));
    let ahead = httpdate::parse_http_date(&date).unwrap().duration_since(wall).unwrap();
    ims.respond_next([Answer::throttled(0).header("retry-after", &date)]);
    let tokens = source(&ims);

    let callers = join_all((0..100).map(|_| tokens.token())).await;

    assert!(callers.into_iter().all(|token| token.is_ok()));
    let times = ims.token_request_times();
    let waited = times[1] - start;
    println!("asked again {:?} after the date", waited.checked_sub(ahead));
    assert_eq!(times.len(), 2);
    // The server's own time, by which it counts, has a granularity of a second too.
    assert!(waited + Duration::from_millis(10) >= ahead, "{waited:?} of {ahead:?}");
}

#[tokio::test]
async fn a_retry_after_that_no_caller_can_wait_out_fails_them_at_once() {
    let ims = MockIms::start().await;
    ims.respond_with(Answer::throttled(60));
    let tokens = source(&ims);

    let (first, waited) = timed_token(&tokens).await;
    let further = join_all((0..1_000).map(|_| tokens.token())).await;

    assert!(waited < Duration::from_secs(5), "{waited:?}");
    for error in further.into_iter().chain([first]).map(Result::unwrap_err) {
        assert_eq!(error.kind(), ErrorKind::Throttled);
        assert!(error.retry_in().unwrap() > Duration::from_secs(50), "{error}");
        assert!(error.to_string().contains("share one token source"), "{error}");
    }
    assert_eq!(ims.token_requests(), 1);
}

#[tokio::test]
async fn callers_of_an_ims_that_hangs_fail_at_their_timeout_and_the_next_flight_succeeds() {
    let ims = MockIms::start().await;
    ims.respond_next([Answer::hang()]);
    let limit = Duration::from_millis(200);
    let tokens = builder(&ims)
        .acquire_timeout(limit)
        .request_timeout(Duration::from_millis(1_200))
        .attempts(1)
        .build()
        .unwrap();

    let callers = join_all((0..100).map(|_| timed_token(&tokens))).await;

    let longest = callers.iter().map(|(_, waited)| *waited).max().unwrap();
    println!("longest wait {longest:?}");
    for (outcome, waited) in callers {
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::AcquireTimeout);
        assert!(error.is_transient());
        assert!(error.to_string().ends_with("the token request goes on"), "{error}");
        assert!(waited >= limit && waited < Duration::from_secs(1), "{waited:?}");
    }
    assert!(tokens.status().is_refreshing());

    until(|| !tokens.status().is_refreshing()).await;
    assert_eq!(tokens.status().last_error().unwrap().kind(), ErrorKind::Timeout);
    let remembered = tokens.token().await;
    if let Err(error) = remembered {
        assert_eq!(error.kind(), ErrorKind::Timeout);
        sleep(error.retry_in().unwrap()).await;
    }
    // Its answer may take longer than this caller has, but not longer than a few of them.
    while tokens.token().await.is_err() {}
    assert_eq!(ims.token_requests(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_first_caller_is_dropped_the_other_999_get_the_token_of_its_flight() {
    let ims = MockIms::start().await;
    ims.set_delay(Duration::from_millis(500));
    let tokens = source(&ims);
    let (client, url) = (client(&tokens), ims.api_url().to_owned());
    let first = tokio::spawn(get(client.clone(), url.clone()));
    until(|| ims.token_requests() == 1).await;

    let others: Vec<_> = (0..999).map(|_| tokio::spawn(get(client.clone(), url.clone()))).collect();
    first.abort();

    assert!(first.await.unwrap_err().is_cancelled());
    for status in join_all(others).await {
        assert_eq!(status.unwrap().unwrap(), StatusCode::OK);
    }
    assert_eq!((ims.token_requests(), ims.tokens_issued(), ims.api_requests()), (1, 1, 999));
}

#[tokio::test]
async fn a_flight_that_panics_fails_its_waiters_and_the_next_call_works() {
    let ims = MockIms::start().await;
    let credentials = Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET);
    let asks = ImsClient::builder(credentials)
        .environment(Environment::custom(ims.url()).unwrap())
        .build()
        .unwrap();
    let asks = Arc::new(asks);
    let flights = Arc::new(AtomicUsize::new(0));
    let tokens = TokenSource::from_fetcher({
        let flights = Arc::clone(&flights);
        move || {
            let flight = flights.fetch_add(1, Ordering::SeqCst) + 1;
            let asks = Arc::clone(&asks);
            async move {
                let token = asks.request_token().await;
                assert_ne!(flight, 1, "the first flight panics, with the token in hand");
                token
            }
        }
    });
    let client = client(&tokens);

    let waiters = join_all((0..100).map(|_| get(client.clone(), ims.api_url().to_owned()))).await;

    for error in waiters.into_iter().map(|waiter| token_error(waiter.unwrap_err())) {
        assert_eq!(error.kind(), ErrorKind::Panicked);
        assert!(error.is_transient());
    }
    assert_eq!(get(client, ims.api_url().to_owned()).await.unwrap(), StatusCode::OK);
    assert_eq!((flights.load(Ordering::SeqCst), ims.token_requests()), (2, 2));
}

#[tokio::test]
async fn a_refusal_is_reported_at_once_and_asked_about_again_only_after_the_backoff() {
    let ims = MockIms::start().await;
    ims.set_secrets(MockIms::CLIENT_ID, ["another-secret"]);
    let tokens = source(&ims);

    let callers = join_all((0..100).map(|_| tokens.token())).await;
    let refused = Instant::now();
    let backoff = callers[0].as_ref().unwrap_err().retry_in().unwrap();
    let further = join_all((0..1_000).map(|_| tokens.token())).await;

    // All calls were made before the first of them could wait for anything.
    let flights = 1 + usize::from(refused.elapsed() >= backoff);
    assert!(ims.token_requests() <= flights, "{} requests", ims.token_requests());
    println!("{}", callers[0].as_ref().unwrap_err());
    for error in callers.into_iter().chain(further).map(Result::unwrap_err) {
        assert_eq!(error.kind(), ErrorKind::Rejected);
        assert!(!error.is_transient());
        assert_eq!(error.oauth_error(), Some("invalid_client"));
        assert!(error.to_string().contains("check the client id and secret"), "{error}");
    }

    // Without a caller nobody asks IMS the same again.
    let asked = ims.token_requests();
    sleep(Duration::from_millis(500)).await;
    assert_eq!(ims.token_requests(), asked);

    ims.set_secrets(MockIms::CLIENT_ID, [MockIms::CLIENT_SECRET]);
    tokens.token().await.unwrap();
    assert_eq!(ims.token_requests(), asked + 1);
}

#[tokio::test]
async fn a_refusal_with_a_retry_after_costs_a_thousand_callers_one_request() {
    let ims = MockIms::start().await;
    ims.respond_with(Answer::invalid_client().header("retry-after", "120"));
    let tokens = source(&ims);

    for _ in 0..1_000 {
        let (outcome, _) = timed_token(&tokens).await;
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Rejected);
    }

    assert_eq!(ims.token_requests(), 1);
}

#[tokio::test]
async fn a_request_waits_no_longer_than_it_says_also_when_it_joins_a_flight_late() {
    let ims = MockIms::start().await;
    ims.set_delay(Duration::from_millis(1_500));
    let tokens = source(&ims);
    let client = hyper_client(&tokens);
    let limit = AcquireTimeout(Duration::from_millis(200));

    let first = ask(client.clone(), &ims, limit).await;
    let second = ask(client.clone(), &ims, limit).await;

    for (outcome, waited) in [first, second] {
        let error = token_error(outcome.unwrap_err());
        println!("{error} ({waited:?})");
        assert_eq!(error.kind(), ErrorKind::AcquireTimeout);
        assert!(error.to_string().contains("200ms; the token request goes on"), "{error}");
        assert!(waited >= limit.0 && waited < Duration::from_secs(1), "{waited:?}");
    }
    let (patient, _) = ask(client, &ims, AcquireTimeout(AGES)).await;
    assert_eq!(patient.unwrap(), StatusCode::OK);
    assert_eq!((ims.token_requests(), ims.api_requests()), (1, 1));
}

#[tokio::test]
async fn a_request_may_wait_longer_than_its_source_would() {
    let ims = MockIms::start().await;
    ims.set_delay(Duration::from_millis(400));
    let tokens = builder(&ims).acquire_timeout(Duration::from_millis(50)).build().unwrap();

    let hasty = tokens.token();
    let patient = ask(hyper_client(&tokens), &ims, AcquireTimeout(AGES));
    let (hasty, (patient, _)) = tokio::join!(hasty, patient);

    assert_eq!(hasty.unwrap_err().kind(), ErrorKind::AcquireTimeout);
    assert_eq!(patient.unwrap(), StatusCode::OK);
    assert_eq!(ims.token_requests(), 1);
}

#[tokio::test]
async fn a_request_for_a_long_job_waits_for_a_token_that_lives_longer() {
    let ims = MockIms::start().await;
    ims.set_token_lifetime(Duration::from_secs(2));
    let tokens = builder(&ims).refresh_on_demand().build().unwrap();
    let client = hyper_client(&tokens);
    let old = tokens.token().await.unwrap();
    let wish = Duration::from_millis(700);
    sleep(Duration::from_millis(1_350)).await;
    assert!(old.expires_at().duration_since(SystemTime::now()).unwrap_or_default() < wish);

    ims.set_delay(Duration::from_millis(300));
    ims.set_token_lifetime(Duration::from_secs(600));
    let (long_job, waited) = ask(client.clone(), &ims, MinLifetime(wish)).await;

    assert_eq!(long_job.unwrap(), StatusCode::OK);
    assert!(waited >= Duration::from_millis(300), "{waited:?}");
    assert_eq!(tokens.try_token().unwrap().generation(), 2);
    assert_eq!(ims.token_requests(), 2);

    let (impossible, _) = ask(client, &ims, MinLifetime(Duration::from_secs(601))).await;
    assert_eq!(token_error(impossible.unwrap_err()).kind(), ErrorKind::Lifetime);
    assert_eq!(ims.token_requests(), 2);
}

#[tokio::test]
async fn subscribers_see_an_outage_and_its_end() {
    let ims = MockIms::start().await;
    ims.set_token_lifetime(Duration::from_secs(600));
    let tokens = source(&ims);
    let before = tokens.token().await.unwrap();
    let mut changes = tokens.subscribe();
    ims.respond_with(Answer::unavailable());
    let began = SystemTime::now();

    assert_eq!(tokens.refresh().await.unwrap_err().kind(), ErrorKind::Unavailable);

    let failing = loop {
        let status = timeout(AGES, changes.changed()).await.unwrap().unwrap();
        if status.consecutive_failures() >= 3 && !status.is_refreshing() {
            break status;
        }
    };
    assert!(failing.is_ready(), "the old token serves on");
    assert_eq!(failing.valid_until(), Some(before.expires_at()));
    let since = failing.failing_since().unwrap();
    assert!(since >= began && since <= SystemTime::now());
    let error = failing.last_error().unwrap();
    println!("{error}");
    assert_eq!(error.status(), Some(StatusCode::SERVICE_UNAVAILABLE));
    assert!(!error.debug_id().unwrap().is_empty());

    // It is tried again by itself, and the outage is one however long it lasts.
    let flying = loop {
        let status = timeout(AGES, changes.changed()).await.unwrap().unwrap();
        if status.is_refreshing() {
            break status;
        }
    };
    assert_eq!(flying.failing_since(), Some(since));
    ims.respond_normally();
    let recovered = loop {
        let status = timeout(AGES, changes.changed()).await.unwrap().unwrap();
        if status.failing_since().is_none() {
            break status;
        }
    };
    assert!(recovered.is_ready() && recovered.last_error().is_none());
    assert_eq!(recovered.consecutive_failures(), 0);
    assert!(recovered.valid_until() > failing.valid_until());

    drop(tokens);
    while timeout(AGES, changes.changed()).await.unwrap().is_some() {}
}

#[tokio::test]
async fn a_source_without_a_token_tells_its_status_through_an_outage() {
    let ims = MockIms::start().await;
    ims.go_down();
    let tokens = source(&ims);
    let mut changes = tokens.subscribe();
    assert!(!tokens.status().is_ready() && tokens.status().failing_since().is_none());

    tokens.warm_up();
    until(|| tokens.status().consecutive_failures() > 0).await;
    let status = tokens.status();
    assert!(!status.is_ready() && status.valid_until().is_none());
    assert!(status.failing_since().is_some());
    assert_eq!(status.last_error().unwrap().kind(), ErrorKind::Connection);

    // Nobody asks any more; the source does.
    ims.come_back();
    while !timeout(AGES, changes.changed()).await.unwrap().unwrap().is_ready() {}
    assert!(tokens.status().last_error().is_none());
    assert!(tokens.try_token().is_some());
}
