//! A usable token is always used: while the cached token has not expired, no request fails or waits
//! longer than the suspect grace, however its refresh ends. On a paused clock.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use http::Request;
use tokio::time::{Instant, sleep, timeout};
use tower::{Layer, ServiceExt, timeout::TimeoutLayer};
use tower_adobe_auth::{AdobeAuthLayer, ErrorKind, TokenSource};

use self::support::{
    DAY, FIREFLY, Ims, MINUTE, PHOTOSHOP, Reply, SUSPECT_GRACE, api, api_refusing_first, bearer,
    current_thread, failed, get, get_many, get_within, longest, millis, secs, suspect,
};

/// A source whose token an IMS gave that fails with `reply` from now on, 100 ms after each request.
async fn failing_with(reply: Reply) -> (TokenSource, Ims) {
    let ims = Ims::new(DAY).taking(millis(100));
    let tokens = ims.source();
    tokens.token().await.unwrap();
    ims.respond_with(reply);
    (tokens, ims)
}

#[tokio::test(start_paused = true)]
async fn one_401_during_an_outage_fails_no_other_request() {
    for reply in Reply::FAILURES {
        let (tokens, _ims) = failing_with(reply).await;
        let client = suspect(&tokens).await;

        let outcomes = get_many(&client, FIREFLY, 100).await;
        let later = get(&client, FIREFLY).await;

        assert_eq!(failed(&outcomes), 0, "of 100, with {reply:?}");
        assert!(longest(&outcomes) <= SUSPECT_GRACE, "{:?}, with {reply:?}", longest(&outcomes));
        assert_eq!(later.ok(), 200, "with {reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_failed_attempt_ends_the_wait_for_a_suspect_token() {
    let (tokens, _ims) = failing_with(Reply::Unavailable).await;
    let client = suspect(&tokens).await;

    let outcomes = get_many(&client, FIREFLY, 100).await;
    let after_the_attempt = get_many(&client, FIREFLY, 100).await;

    assert_eq!(failed(&outcomes), 0);
    assert!(longest(&outcomes) <= millis(110), "{:?}", longest(&outcomes));
    assert_eq!(failed(&after_the_attempt), 0);
    assert_eq!(longest(&after_the_attempt), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_request_after_the_suspect_grace_does_not_wait() {
    let (tokens, _ims) = failing_with(Reply::Hang).await;
    let client = suspect(&tokens).await;
    assert_eq!(get(&client, FIREFLY).await.ok(), 200);
    sleep(secs(1)).await;

    let outcomes = get_many(&client, FIREFLY, 100).await;

    assert_eq!(failed(&outcomes), 0);
    assert_eq!(longest(&outcomes), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_before_the_grace_ends_gets_the_suspect_token() {
    for limit in [millis(100), secs(1), secs(2), secs(30)] {
        let (tokens, _ims) = failing_with(Reply::Hang).await;
        let client = suspect(&tokens).await;

        let outcome = get_within(&client, FIREFLY, limit).await;

        assert_eq!(outcome.ok(), 200, "AcquireTimeout({limit:?})");
        let longest = SUSPECT_GRACE.min(limit + millis(10));
        assert!(outcome.took <= longest, "{:?}, AcquireTimeout({limit:?})", outcome.took);
    }
}

#[tokio::test(start_paused = true)]
async fn a_tower_timeout_outside_the_layer_is_not_reached() {
    let (tokens, _ims) = failing_with(Reply::Hang).await;
    let client = TimeoutLayer::new(secs(3)).layer(suspect(&tokens).await);

    for _ in 0..20 {
        let request = Request::get(FIREFLY).body(()).unwrap();
        let response = client.clone().oneshot(request).await;

        assert_eq!(response.expect("it should be in time").status(), 200);
        sleep(millis(500)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn token_returns_the_suspect_token_while_ims_hangs() {
    let (tokens, _ims) = failing_with(Reply::Hang).await;
    suspect(&tokens).await;

    let start = Instant::now();
    let token = tokens.token().await;

    assert_eq!(token.unwrap().expose_secret(), "token-1");
    assert!(start.elapsed() <= SUSPECT_GRACE, "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn try_token_returns_the_suspect_token_after_the_grace() {
    for reply in Reply::FAILURES {
        let (tokens, _ims) = failing_with(reply).await;
        suspect(&tokens).await;

        sleep(SUSPECT_GRACE).await;

        for _ in 0..60 {
            let token = tokens.try_token().unwrap_or_else(|| panic!("none, with {reply:?}"));
            assert_eq!(token.expose_secret(), "token-1");
            sleep(secs(1)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn callers_already_waiting_get_the_suspect_token_on_failure() {
    for reply in [Reply::Unavailable, Reply::Rejected, Reply::Html, Reply::Disconnect] {
        let (tokens, ims) = failing_with(reply).await;
        ims.set_delay(secs(1));
        let client = suspect(&tokens).await;
        sleep(millis(500)).await;

        let outcomes = get_many(&client, FIREFLY, 100).await;

        assert_eq!(failed(&outcomes), 0, "of 100, with {reply:?}");
        assert!(longest(&outcomes) <= millis(510), "{:?}, with {reply:?}", longest(&outcomes));
    }
}

#[tokio::test(start_paused = true)]
async fn requests_to_another_host_are_served_by_a_suspect_token() {
    for reply in Reply::FAILURES {
        let (tokens, _ims) = failing_with(reply).await;
        let client = suspect(&tokens).await;

        let outcomes = get_many(&client, PHOTOSHOP, 100).await;

        assert_eq!(failed(&outcomes), 0, "of 100, with {reply:?}");
        assert!(longest(&outcomes) <= SUSPECT_GRACE, "{:?}, with {reply:?}", longest(&outcomes));
    }
}

#[tokio::test(start_paused = true)]
async fn a_host_that_refuses_now_and_then_fails_no_other_host() {
    let (tokens, ims) = failing_with(Reply::Hang).await;
    let requests = AtomicUsize::new(0);
    let refuses_each_fiftieth = api(move |request| {
        let is_firefly = request.uri().host() == Some("firefly-api.adobe.io");
        let refuses = is_firefly && requests.fetch_add(1, Ordering::SeqCst) % 50 == 0;
        if refuses { 401 } else { 200 }
    });
    let client = AdobeAuthLayer::new(tokens).layer(refuses_each_fiftieth);
    let firefly = tokio::spawn({
        let client = client.clone();
        async move {
            loop {
                get_within(&client, FIREFLY, secs(2)).await;
                sleep(secs(1)).await;
            }
        }
    });

    let mut outcomes = Vec::new();
    let start = Instant::now();
    while start.elapsed() < secs(300) {
        outcomes.push(get_within(&client, PHOTOSHOP, secs(2)).await);
        sleep(millis(200)).await;
    }
    firefly.abort();

    assert_eq!(failed(&outcomes), 0, "of {}", outcomes.len());
    assert!(longest(&outcomes) <= SUSPECT_GRACE, "{:?}", longest(&outcomes));
    assert!(ims.asked() > 1, "the 401 was believed");
}

#[tokio::test(start_paused = true)]
async fn a_second_api_that_refuses_fails_no_other_request() {
    for reply in Reply::FAILURES {
        let (tokens, _ims) = failing_with(reply).await;
        let refused = Mutex::new(Vec::new());
        let each_host_refuses_once = api(move |request| {
            let host = request.uri().host().unwrap().to_owned();
            let mut refused = refused.lock().unwrap();
            if refused.contains(&host) {
                return 200;
            }
            refused.push(host);
            401
        });
        let client = AdobeAuthLayer::new(tokens).layer(each_host_refuses_once);
        assert_eq!(get(&client, FIREFLY).await.ok(), 401);
        assert_eq!(get(&client, PHOTOSHOP).await.ok(), 401);

        let (firefly, photoshop) =
            tokio::join!(get_many(&client, FIREFLY, 50), get_many(&client, PHOTOSHOP, 50));

        assert_eq!(failed(&firefly) + failed(&photoshop), 0, "of 100, with {reply:?}");
        assert!(longest(&firefly).max(longest(&photoshop)) <= SUSPECT_GRACE, "with {reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_healthy_ims_replaces_the_suspect_token_within_the_grace() {
    let ims = Ims::new(DAY);
    let tokens = ims.source();
    tokens.token().await.unwrap();
    ims.set_delay(secs(1));
    let sent = Arc::new(Mutex::new(Vec::new()));
    let accepts_the_second = api({
        let sent = Arc::clone(&sent);
        move |request| {
            sent.lock().unwrap().push(bearer(request).to_owned());
            if bearer(request) == "token-1" { 401 } else { 200 }
        }
    });
    let client = AdobeAuthLayer::new(tokens).layer(accepts_the_second);
    assert_eq!(get(&client, FIREFLY).await.ok(), 401);

    let outcomes = get_many(&client, FIREFLY, 100).await;

    assert!(outcomes.iter().all(|outcome| outcome.ok() == 200));
    assert_eq!(sent.lock().unwrap().iter().filter(|token| *token == "token-1").count(), 1);
    assert_eq!(ims.asked(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_replaying_layer_returns_the_401_when_no_token_comes() {
    for reply in Reply::FAILURES {
        let (tokens, _ims) = failing_with(reply).await;
        let client = AdobeAuthLayer::new(tokens).replay_unauthorized().layer(api_refusing_first(1));

        let (first, others) = tokio::join!(get(&client, FIREFLY), async {
            sleep(millis(1)).await;
            get_many(&client, FIREFLY, 100).await
        });

        assert_eq!(first.ok(), 401, "with {reply:?}");
        assert_eq!(failed(&others), 0, "of 100, with {reply:?}");
        assert!(longest(&others) <= SUSPECT_GRACE, "with {reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_401_after_shutdown_leaves_the_cached_token() {
    let ims = Ims::new(DAY);
    let tokens = ims.source();
    tokens.token().await.unwrap();
    tokens.shutdown().await.unwrap();

    let client = suspect(&tokens).await;

    let outcomes = get_many(&client, FIREFLY, 100).await;
    assert!(tokens.status().is_ready());
    assert!(outcomes.iter().all(|outcome| outcome.ok() == 200));
    assert_eq!(longest(&outcomes), Duration::ZERO);
    assert_eq!(tokens.try_token().unwrap().expose_secret(), "token-1");
    assert_eq!(ims.asked(), 1);
}

#[tokio::test(start_paused = true)]
async fn shutdown_gives_waiting_callers_the_suspect_token() {
    let (tokens, _ims) = failing_with(Reply::Hang).await;
    let client = suspect(&tokens).await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { get_many(&client, FIREFLY, 100).await }
    });
    sleep(millis(100)).await;

    tokens.shutdown().await.unwrap();

    let (waited, later) = (waiting.await.unwrap(), get(&client, FIREFLY).await);
    assert_eq!(failed(&waited), 0, "of 100");
    assert!(longest(&waited) <= millis(110), "{:?}", longest(&waited));
    assert_eq!(later.ok(), 200);
}

#[test]
fn a_401_outside_a_runtime_leaves_the_cached_token() {
    let tokens = Ims::new(DAY).source();
    current_thread().block_on(tokens.token()).unwrap();
    let client = AdobeAuthLayer::new(tokens.clone()).layer(api_refusing_first(1));

    let refused = get(&client, FIREFLY).now_or_never().unwrap();
    let later: Vec<_> = (0..3).map(|_| get(&client, FIREFLY).now_or_never().unwrap()).collect();

    assert_eq!(refused.ok(), 401);
    assert!(later.iter().all(|outcome| outcome.ok() == 200));
    assert_eq!(tokens.token().now_or_never().unwrap().unwrap().expose_secret(), "token-1");
    assert_eq!(tokens.try_token().unwrap().expose_secret(), "token-1");
}

#[test]
fn the_end_of_a_refreshs_runtime_leaves_the_suspect_token() {
    let ims = Ims::new(DAY);
    let tokens = ims.source();
    current_thread().block_on(tokens.token()).unwrap();
    ims.respond_with(Reply::Hang);
    let client = current_thread().block_on(suspect(&tokens));

    // The refresh has ended with its runtime: outside a runtime none can start.
    let outcome = get(&client, FIREFLY).now_or_never();

    assert_eq!(outcome.expect("it should not wait").ok(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_suspect_token_is_not_sent_after_its_end() {
    let ims = Ims::new(MINUTE);
    let tokens = ims.source();
    tokens.token().await.unwrap();
    let start = Instant::now();
    ims.respond_with(Reply::Hang);
    let (refuses, last_sent) = (AtomicBool::new(true), Arc::new(Mutex::new(Duration::ZERO)));
    let refuses_the_old_token = api({
        let last_sent = Arc::clone(&last_sent);
        move |request| {
            if bearer(request) == "token-1" {
                *last_sent.lock().unwrap() = start.elapsed();
            }
            if start.elapsed() > secs(50) && refuses.swap(false, Ordering::SeqCst) {
                return 401;
            }
            200
        }
    });
    let client = AdobeAuthLayer::new(tokens).layer(refuses_the_old_token);

    // A request each 100 ms, from before the refusal to after the end of the token.
    let mut requests = Vec::new();
    while start.elapsed() < secs(65) {
        requests.push(tokio::spawn({
            let client = client.clone();
            async move { (start.elapsed(), get(&client, FIREFLY).await) }
        }));
        sleep(millis(100)).await;
    }
    ims.respond_with(Reply::Token);
    let outcomes = join_all(requests).await;
    sleep(MINUTE).await;

    let last_sent = *last_sent.lock().unwrap();
    assert!(last_sent > secs(51) && last_sent < MINUTE, "last sent at {last_sent:?}");
    for outcome in outcomes {
        let (sent_at, outcome) = outcome.unwrap();
        let failed = outcome.status.is_err();
        assert!(!failed || sent_at + outcome.took >= last_sent, "sent at {sent_at:?}");
    }
    assert_eq!(get(&client, FIREFLY).await.ok(), 200);
}

#[tokio::test(start_paused = true)]
async fn a_failed_explicit_refresh_leaves_the_suspect_token() {
    for reply in Reply::FAILURES {
        let (tokens, _ims) = failing_with(reply).await;
        let client = suspect(&tokens).await;

        let (refreshed, outcomes) = tokio::join!(tokens.refresh(), get_many(&client, FIREFLY, 100));

        assert!(refreshed.is_err(), "with {reply:?}");
        assert_eq!(failed(&outcomes), 0, "of 100, with {reply:?}");
        assert!(longest(&outcomes) <= SUSPECT_GRACE, "with {reply:?}");
        assert_eq!(get(&client, FIREFLY).await.ok(), 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_explicit_refresh_delays_nobody() {
    for reply in Reply::FAILURES {
        let (tokens, _ims) = failing_with(reply).await;
        let client = AdobeAuthLayer::new(tokens.clone()).layer(api(|_| 200));

        let (refreshed, outcomes) = tokio::join!(tokens.refresh(), async {
            sleep(millis(1)).await;
            get_many(&client, FIREFLY, 100).await
        });

        assert!(refreshed.is_err(), "with {reply:?}");
        assert_eq!(failed(&outcomes), 0, "of 100, with {reply:?}");
        assert_eq!(longest(&outcomes), Duration::ZERO, "with {reply:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_invalidated_token_does_not_come_back() {
    let (tokens, _ims) = failing_with(Reply::Unavailable).await;
    let token = tokens.token().await.unwrap();
    let client = suspect(&tokens).await;
    tokens.invalidate(&token);

    let outcome = get(&client, FIREFLY).await;

    assert_eq!(outcome.token_error().kind(), ErrorKind::Unavailable);
    assert!(tokens.try_token().is_none() && !tokens.status().is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_ready_source_makes_no_caller_wait_beyond_the_grace() {
    let ims = Ims::new(DAY);
    let tokens = ims.source();
    tokens.token().await.unwrap();
    ims.set_delay(secs(10));
    ims.respond_with(Reply::Unavailable);
    suspect(&tokens).await;

    let ready = tokens.status().is_ready();
    let waits = timeout(SUSPECT_GRACE, tokens.token()).await.is_err();

    assert!(!(ready && waits), "is_ready, and a caller waits for more than two seconds");
}

#[cfg(feature = "reqwest")]
mod over_sockets {
    use http::Method;
    use tower_adobe_auth::{
        BoxError, Credentials, Environment,
        mock::{Answer, MockIms},
    };

    use super::*;

    /// IMS fails, and the token that it gave before is suspect after one 401.
    async fn suspect_with(answer: Answer) -> (MockIms, TokenSource) {
        let ims = MockIms::start().await;
        let credentials = Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET);
        let environment = Environment::custom(ims.url()).unwrap();
        let tokens = TokenSource::builder(credentials).environment(environment).build().unwrap();
        tokens.token().await.unwrap();
        ims.respond_with(answer.after(millis(300)));
        ims.api_respond_next([401]);
        (ims, tokens)
    }

    fn failures() -> [Answer; 4] {
        [
            Answer::unavailable(),
            Answer::disconnect(),
            Answer::invalid_client(),
            Answer::raw(200, "text/html", "<html>a captive portal</html>"),
        ]
    }

    #[tokio::test]
    async fn one_401_fails_no_other_request_of_reqwest() {
        for answer in failures() {
            let (ims, tokens) = suspect_with(answer.clone()).await;
            let client =
                AdobeAuthLayer::new(tokens).allow_host("127.0.0.1").layer(reqwest::Client::new());
            let send = || {
                let request = reqwest::Request::new(Method::GET, ims.api_url().parse().unwrap());
                let response = client.clone().oneshot(request);
                async move { Ok::<_, BoxError>(response.await?.status()) }
            };
            assert_eq!(send().await.unwrap(), 401);

            let statuses = join_all((0..100).map(|_| send())).await;

            let served = statuses.iter().filter(|status| matches!(status, Ok(s) if *s == 200));
            assert_eq!(served.count(), 100, "with {answer:?}");
        }
    }

    #[cfg(feature = "reqwest-middleware")]
    #[tokio::test]
    async fn one_401_fails_no_other_request_of_reqwest_middleware() {
        use tower_adobe_auth::AdobeAuthMiddleware;

        use super::support::until;

        for answer in failures() {
            let (ims, tokens) = suspect_with(answer.clone()).await;
            let layer =
                AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1").replay_unauthorized();
            let client = reqwest_middleware::ClientBuilder::new(reqwest::Client::new())
                .with(AdobeAuthMiddleware::from(layer))
                .build();
            let refused = tokio::spawn(client.get(ims.api_url()).send());
            until(|| ims.api_unauthorized() == 1 && tokens.status().is_refreshing()).await;

            let responses = join_all((0..100).map(|_| client.get(ims.api_url()).send())).await;

            assert_eq!(refused.await.unwrap().unwrap().status(), 401, "with {answer:?}");
            let failed = responses.iter().filter(|response| response.is_err()).count();
            assert_eq!(failed, 0, "of 100, with {answer:?}");
        }
    }
}
