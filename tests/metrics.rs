//! Every metric, as a Prometheus server would read it.

#![cfg(all(feature = "metrics", feature = "reqwest"))]
#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Condvar, LazyLock, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, SharedString, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_adobe_auth::{
    AdobeAuthLayer, BoxError, ErrorKind, MemoryStore, NoAuthorization, TokenError, TokenResponse,
    TokenSource, telemetry,
};

const FIREFLY: &str = "https://firefly-api.adobe.io/v3/models";

/// The one recorder of this process; each test has a source of its own name.
static RECORDER: LazyLock<PrometheusHandle> =
    LazyLock::new(|| PrometheusBuilder::new().install_recorder().unwrap());

fn source(name: &str, lifetime: Duration) -> TokenSource {
    LazyLock::force(&RECORDER);
    let fetch = move || async move { Ok(TokenResponse::new("a-token", lifetime)) };
    TokenSource::builder_from_fetcher(fetch).name(name).build().unwrap()
}

/// The value of one series; `None` if there is no such series.
fn value(metric: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let text = RECORDER.render();
    let lines = text.lines().filter_map(|line| line.split_once(' ').map(|_| line));
    let mut found = lines.filter(|line| {
        let name = line.split(['{', ' ']).next().unwrap();
        let has = |(label, value): &(&str, &str)| line.contains(&format!("{label}=\"{value}\""));
        name == metric && labels.iter().all(has)
    });
    let line = found.next()?;
    Some(line.rsplit_once(' ').unwrap().1.parse().unwrap())
}

fn requests(source: &str, token: &str) -> f64 {
    value(telemetry::REQUESTS, &[("source", source), ("token", token)]).unwrap()
}

fn request(uri: &str) -> Request<()> {
    Request::get(uri).body(()).unwrap()
}

/// Answers with what `status` says of the `Authorization` header.
fn api(
    status: impl Fn(&str) -> StatusCode + Clone + Send + 'static,
) -> impl Service<Request<()>, Response = Response<()>, Error = BoxError, Future: Send> + Clone {
    service_fn(move |request: Request<()>| {
        let sent = request.headers().get("authorization").map(|value| value.to_str().unwrap());
        let status = status(sent.unwrap_or_default());
        async move { Ok(Response::builder().status(status).body(()).unwrap()) }
    })
}

#[tokio::test]
async fn requests_are_counted_by_how_they_got_their_token() {
    let tokens = source("how", Duration::from_secs(86_400));
    let layer = AdobeAuthLayer::new(tokens.clone());
    let client = layer.layer(api(|_| StatusCode::OK));

    client.clone().oneshot(request(FIREFLY)).await.unwrap();
    for _ in 0..3 {
        client.clone().oneshot(request(FIREFLY)).await.unwrap();
    }
    client.clone().oneshot(request("https://example.com/")).await.unwrap();
    let mut opted_out = request(FIREFLY);
    opted_out.extensions_mut().insert(NoAuthorization);
    client.clone().oneshot(opted_out).await.unwrap();

    assert_eq!(requests("how", "waited"), 1.0);
    assert_eq!(requests("how", "at_once"), 3.0);
    assert_eq!(requests("how", "passed_through"), 2.0);
    assert_eq!(requests("how", "stale"), 0.0);
    assert_eq!(requests("how", "replayed"), 0.0);
    assert_eq!(requests("how", "failed"), 0.0);
    let count = format!("{}_count", telemetry::REMAINING);
    assert_eq!(value(&count, &[("source", "how")]), Some(4.0));
    let sum = value(&format!("{}_sum", telemetry::REMAINING), &[("source", "how")]).unwrap();
    assert!((4.0 * 86_390.0..=4.0 * 86_400.0).contains(&sum), "{sum}");
}

#[tokio::test]
async fn a_request_with_a_token_that_is_due_for_renewal_is_stale() {
    let tokens = {
        LazyLock::force(&RECORDER);
        let asked = std::sync::atomic::AtomicUsize::new(0);
        // The first one is due at once; the renewal never comes.
        let fetch = move || {
            let first = asked.fetch_add(1, Ordering::Relaxed) == 0;
            async move {
                if !first {
                    std::future::pending::<()>().await;
                }
                Ok(TokenResponse::new("a-token", Duration::from_secs(60)))
            }
        };
        TokenSource::builder_from_fetcher(fetch).name("stale").build().unwrap()
    };
    tokio::time::pause();
    tokens.token().await.unwrap();
    tokio::time::advance(Duration::from_secs(40)).await;

    let client = AdobeAuthLayer::new(tokens).layer(api(|_| StatusCode::OK));
    client.oneshot(request(FIREFLY)).await.unwrap();

    assert_eq!(requests("stale", "stale"), 1.0);
    assert_eq!(requests("stale", "at_once"), 0.0);
}

#[tokio::test]
async fn refreshes_are_counted_by_outcome_and_timed() {
    LazyLock::force(&RECORDER);
    let fetch = || async { Err(TokenError::permanent("no")) };
    let tokens = TokenSource::builder_from_fetcher(fetch).name("refused").build().unwrap();
    let good = source("good", Duration::from_secs(3_600));

    let error = tokens.token().await.unwrap_err();
    good.token().await.unwrap();
    good.refresh().await.unwrap();

    let outcome =
        |source, outcome| value(telemetry::REFRESHES, &[("source", source), ("outcome", outcome)]);
    assert_eq!(error.kind(), ErrorKind::Fetch);
    assert_eq!(outcome("refused", error.kind().as_str()), Some(1.0));
    assert_eq!(outcome("refused", "success"), Some(0.0));
    assert_eq!(outcome("good", "success"), Some(2.0));
    let count = format!("{}_count", telemetry::REFRESH_DURATION);
    assert_eq!(value(&count, &[("source", "good")]), Some(2.0));
    assert_eq!(value(&count, &[("source", "refused")]), Some(1.0));
}

#[tokio::test]
async fn a_request_that_gets_no_token_is_counted_as_failed() {
    LazyLock::force(&RECORDER);
    let fetch = || async { Err(TokenError::permanent("no")) };
    let tokens = TokenSource::builder_from_fetcher(fetch).name("failed").build().unwrap();
    let client = AdobeAuthLayer::new(tokens).layer(api(|_| StatusCode::OK));

    client.clone().oneshot(request(FIREFLY)).await.unwrap_err();
    client.oneshot(request("http://firefly-api.adobe.io/")).await.unwrap_err();

    assert_eq!(requests("failed", "failed"), 2.0);
    assert_eq!(requests("failed", "waited"), 0.0);
}

#[tokio::test]
async fn expiry_is_that_of_the_token_in_hand_and_zero_without_one() {
    let tokens = source("expiry", Duration::from_secs(3_600));
    let expiry = || value(telemetry::EXPIRY, &[("source", "expiry")]).unwrap();

    let token = tokens.token().await.unwrap();
    let in_hand = expiry();
    tokens.invalidate(&token);
    let without = expiry();
    tokens.token().await.unwrap();
    let again = expiry();
    drop(tokens);

    let real = token.expires_at().duration_since(SystemTime::now()).unwrap().as_secs_f64();
    assert!((in_hand - real).abs() < 30.0, "{in_hand} for {real}");
    assert_eq!(without, 0.0);
    assert!(again > 3_500.0, "{again}");
    assert_eq!(expiry(), 0.0);
}

#[tokio::test(start_paused = true)]
async fn expiry_is_brought_up_to_date_once_a_minute_without_traffic() {
    let tokens = source("idle", Duration::from_secs(3_600));
    tokens.token().await.unwrap();
    let before = value(telemetry::EXPIRY, &[("source", "idle")]).unwrap();

    tokio::time::sleep(Duration::from_secs(610)).await;

    let after = value(telemetry::EXPIRY, &[("source", "idle")]).unwrap();
    assert!((540.0..=615.0).contains(&(before - after)), "{before} to {after}");
}

#[tokio::test(start_paused = true)]
async fn expiry_falls_to_zero_while_the_renewal_is_refused() {
    LazyLock::force(&RECORDER);
    let asked = std::sync::atomic::AtomicUsize::new(0);
    let fetch = move || {
        let first = asked.fetch_add(1, Ordering::Relaxed) == 0;
        async move {
            match first {
                true => Ok(TokenResponse::new("a-token", Duration::from_secs(3_600))),
                false => Err(TokenError::permanent("no")),
            }
        }
    };
    let tokens = TokenSource::builder_from_fetcher(fetch).name("ending").build().unwrap();
    let expiry = || value(telemetry::EXPIRY, &[("source", "ending")]).unwrap();
    tokens.token().await.unwrap();

    tokio::time::sleep(Duration::from_secs(3_540)).await;
    let last_minutes = expiry();
    tokio::time::sleep(Duration::from_secs(120)).await;

    assert!(tokens.status().last_error().is_some());
    assert!((1.0..=125.0).contains(&last_minutes), "{last_minutes}");
    assert_eq!(expiry(), 0.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn expiry_is_zero_when_the_last_handle_is_dropped_while_a_flight_lands() {
    LazyLock::force(&RECORDER);
    for round in 0..500 {
        let landing = Arc::new(AtomicBool::new(false));
        let alive = Arc::new(());
        let (lands, lives) = (Arc::clone(&landing), Arc::clone(&alive));
        let fetch = move || {
            let (lands, lives) = (Arc::clone(&lands), Arc::clone(&lives));
            async move {
                let _lives = lives;
                lands.store(true, Ordering::SeqCst);
                Ok(TokenResponse::new("a-token", Duration::from_secs(3_600)))
            }
        };
        let tokens = TokenSource::builder_from_fetcher(fetch).name("dropped").build().unwrap();
        let _ = tokens.try_token();
        while !landing.load(Ordering::SeqCst) {
            tokio::task::yield_now().await;
        }
        for _ in 0..round {
            std::hint::spin_loop();
        }
        drop(tokens);
        // The fetcher lives as long as the source's work.
        while Arc::strong_count(&alive) > 1 {
            tokio::task::yield_now().await;
        }

        assert_eq!(value(telemetry::EXPIRY, &[("source", "dropped")]), Some(0.0), "{round}");
    }
}

/// A recorder of gauges of which one update is slow to land.
#[derive(Default)]
struct Slow {
    /// How many updates have begun, and the last one that landed.
    begun: Mutex<u32>,
    begins: Condvar,
    landed: Mutex<f64>,
    is_slow: AtomicBool,
}

impl Slow {
    /// Whether so many updates begin within this time.
    fn begin(&self, least: u32, limit: Duration) -> bool {
        let begun = self.begun.lock().unwrap();
        let (begun, _) = self.begins.wait_timeout_while(begun, limit, |it| *it < least).unwrap();
        *begun >= least
    }
}

impl metrics::GaugeFn for Slow {
    fn increment(&self, _: f64) {}

    fn decrement(&self, _: f64) {}

    fn set(&self, value: f64) {
        let number = {
            let mut begun = self.begun.lock().unwrap();
            *begun += 1;
            *begun
        };
        self.begins.notify_all();
        if self.is_slow.swap(false, Ordering::SeqCst) {
            // Overtaken if that can be.
            self.begin(number + 1, Duration::from_millis(300));
        }
        *self.landed.lock().unwrap() = value;
    }
}

struct Gauges(Arc<Slow>);

impl metrics::Recorder for Gauges {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        let is_expiry = key.name() == telemetry::EXPIRY;
        if is_expiry { Gauge::from_arc(Arc::clone(&self.0)) } else { Gauge::noop() }
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[tokio::test]
async fn an_older_expiry_does_not_take_the_place_of_a_newer_one() {
    let slow = Arc::new(Slow::default());
    let tokens = metrics::with_local_recorder(&Gauges(Arc::clone(&slow)), || {
        let fetched = AtomicBool::new(false);
        let fetch = move || {
            let first = !fetched.swap(true, Ordering::SeqCst);
            async move {
                if !first {
                    std::future::pending::<()>().await;
                }
                Ok(TokenResponse::new("a-token", Duration::from_secs(3_600)))
            }
        };
        TokenSource::builder_from_fetcher(fetch).refresh_on_demand().build().unwrap()
    });
    let token = tokens.token().await.unwrap();

    // Two threads change the state; the first, which starts a refresh, is slow to show what it has
    // seen: a valid token.
    let begun = *slow.begun.lock().unwrap();
    slow.is_slow.store(true, Ordering::SeqCst);
    let first = std::thread::spawn({
        let tokens = tokens.clone();
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            let refresh = async { tokens.refresh().now_or_never() };
            assert!(runtime.unwrap().block_on(refresh).is_none());
        }
    });
    assert!(slow.begin(begun + 1, Duration::from_secs(10)));
    tokens.invalidate(&token);
    first.join().unwrap();

    assert!(!tokens.status().is_ready());
    let landed = *slow.landed.lock().unwrap();
    assert_eq!(landed, 0.0);
}

#[tokio::test]
async fn a_request_that_is_given_up_while_it_waits_is_counted_as_failed() {
    LazyLock::force(&RECORDER);
    let fetch = || std::future::pending();
    let tokens = TokenSource::builder_from_fetcher(fetch).name("given-up").build().unwrap();
    let client = AdobeAuthLayer::new(tokens).replay_unauthorized().layer(api(|_| StatusCode::OK));
    let waiters = || value(telemetry::WAITERS, &[("source", "given-up")]).unwrap();

    let mut call = tokio_test::task::spawn(Box::pin(client.oneshot(request(FIREFLY))));
    assert!(call.poll().is_pending());
    assert_eq!((requests("given-up", "failed"), waiters()), (0.0, 1.0));
    drop(call);

    assert_eq!((requests("given-up", "failed"), waiters()), (1.0, 0.0));
}

#[tokio::test]
async fn a_request_whose_service_fails_after_the_wait_is_counted_once() {
    #[derive(Clone)]
    struct Broken;
    impl Service<Request<()>> for Broken {
        type Response = Response<()>;
        type Error = BoxError;
        type Future = std::future::Pending<Result<Response<()>, BoxError>>;

        fn poll_ready(
            &mut self,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Result<(), BoxError>> {
            std::task::Poll::Ready(Err("broken".into()))
        }

        fn call(&mut self, _: Request<()>) -> Self::Future {
            unreachable!("it is never ready")
        }
    }
    let tokens = source("broken", Duration::from_secs(3_600));

    let error = AdobeAuthLayer::new(tokens).layer(Broken).call(request(FIREFLY)).await.unwrap_err();

    assert_eq!(error.to_string(), "broken");
    let words = ["at_once", "stale", "waited", "replayed", "passed_through", "failed"];
    assert_eq!(words.map(|word| requests("broken", word)), [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
}

#[tokio::test]
async fn waiters_are_those_who_wait_now() {
    LazyLock::force(&RECORDER);
    let (answer, answered) = tokio::sync::watch::channel(false);
    let fetch = move || {
        let mut answered = answered.clone();
        async move {
            answered.wait_for(|answered| *answered).await.unwrap();
            Ok(TokenResponse::new("a-token", Duration::from_secs(60)))
        }
    };
    let tokens = TokenSource::builder_from_fetcher(fetch).name("waiters").build().unwrap();
    let waiters = || value(telemetry::WAITERS, &[("source", "waiters")]).unwrap();

    let mut waits: Vec<_> =
        (0..5).map(|_| tokio_test::task::spawn(Box::pin(tokens.token()))).collect();
    for wait in &mut waits {
        assert!(wait.poll().is_pending());
    }
    let all = waiters();
    drop(waits.pop());
    let one_less = waiters();
    answer.send_replace(true);
    for wait in waits {
        wait.await.unwrap();
    }

    assert_eq!((all, one_less, waiters()), (5.0, 4.0, 0.0));
}

/// A source of `token-1`, `token-2`, …
fn counting_source(name: &str) -> TokenSource {
    LazyLock::force(&RECORDER);
    let asked = std::sync::atomic::AtomicUsize::new(1);
    let fetch = move || {
        let number = asked.fetch_add(1, Ordering::Relaxed);
        async move { Ok(TokenResponse::new(format!("token-{number}"), Duration::from_secs(3_600))) }
    };
    TokenSource::builder_from_fetcher(fetch).name(name).build().unwrap()
}

#[tokio::test]
async fn a_401_that_is_recovered_from_is_counted_with_its_replay() {
    let tokens = counting_source("recovers");
    tokens.token().await.unwrap();
    let refuses_the_first = |sent: &str| match sent {
        "Bearer token-1" => StatusCode::UNAUTHORIZED,
        _ => StatusCode::OK,
    };
    let client =
        AdobeAuthLayer::new(tokens.clone()).replay_unauthorized().layer(api(refuses_the_first));

    let response = client.oneshot(request(FIREFLY)).await.unwrap();

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!((requests("recovers", "at_once"), requests("recovers", "replayed")), (1.0, 1.0));
    let of = |metric, label, word| value(metric, &[("source", "recovers"), (label, word)]).unwrap();
    assert_eq!(of(telemetry::UNAUTHORIZED, "verdict", "replaced"), 1.0);
    assert_eq!(of(telemetry::UNAUTHORIZED, "verdict", "ignored"), 0.0);
    assert_eq!(of(telemetry::RECOVERIES, "outcome", "recovered"), 1.0);
}

#[tokio::test]
async fn a_401_to_every_token_is_no_recovery() {
    let tokens = counting_source("refused-again");
    let client =
        AdobeAuthLayer::new(tokens).replay_unauthorized().layer(api(|_| StatusCode::UNAUTHORIZED));

    for _ in 0..10 {
        client.clone().oneshot(request(FIREFLY)).await.unwrap();
    }

    let of =
        |metric, label, word| value(metric, &[("source", "refused-again"), (label, word)]).unwrap();
    let replaced = of(telemetry::UNAUTHORIZED, "verdict", "replaced");
    let ignored = of(telemetry::UNAUTHORIZED, "verdict", "ignored");
    let again = of(telemetry::RECOVERIES, "outcome", "refused_again");
    let no_new = of(telemetry::RECOVERIES, "outcome", "no_new_token");
    assert_eq!(of(telemetry::RECOVERIES, "outcome", "recovered"), 0.0);
    assert_eq!(again, requests("refused-again", "replayed"));
    assert_eq!(again + no_new, 10.0);
    assert_eq!(replaced + ignored, 10.0 + again);
    assert!((1.0..=2.0).contains(&replaced), "{replaced}");
}

#[cfg(feature = "reqwest-middleware")]
#[tokio::test]
async fn the_middleware_of_reqwest_middleware_counts_as_the_layer_does() {
    use tower_adobe_auth::{AdobeAuthMiddleware, mock::MockIms};

    let ims = MockIms::start().await;
    let tokens = counting_source("chain");
    let layer = AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1").replay_unauthorized();
    let client = reqwest_middleware::ClientBuilder::new(reqwest::Client::new())
        .with(AdobeAuthMiddleware::from(layer))
        .build();
    ims.api_respond_next([200, 401, 200]);

    for _ in 0..2 {
        assert_eq!(client.get(ims.api_url()).send().await.unwrap().status(), StatusCode::OK);
    }
    client.get(ims.api_url().replace("127.0.0.1", "localhost")).send().await.unwrap();

    let how = ["waited", "at_once", "replayed", "passed_through", "failed"];
    assert_eq!(how.map(|how| requests("chain", how)), [1.0, 1.0, 1.0, 1.0, 0.0]);
    let recovered = [("source", "chain"), ("outcome", "recovered")];
    assert_eq!(value(telemetry::RECOVERIES, &recovered), Some(1.0));
}

#[tokio::test]
async fn what_was_asked_of_the_store_is_counted_by_operation_and_outcome() {
    LazyLock::force(&RECORDER);
    let store = MemoryStore::default();
    let process = |name: &str| {
        let fetch = || async { Ok(TokenResponse::new("a-token", Duration::from_secs(60))) };
        TokenSource::builder_from_fetcher(fetch)
            .name(name)
            .store(store.clone())
            .store_name("metrics")
            .build()
            .unwrap()
    };
    process("store-asks").token().await.unwrap();
    // No caller waits for the commit.
    let committed = [("source", "store-asks"), ("operation", "commit"), ("outcome", "committed")];
    while value(telemetry::STORE, &committed) != Some(1.0) {
        tokio::task::yield_now().await;
    }
    process("store-takes").token().await.unwrap();

    let of = |source, operation, outcome| {
        let labels = [("source", source), ("operation", operation), ("outcome", outcome)];
        value(telemetry::STORE, &labels)
    };
    assert_eq!(of("store-asks", "acquire", "granted"), Some(1.0));
    assert_eq!(of("store-asks", "commit", "released"), Some(0.0));
    assert_eq!(of("store-takes", "acquire", "hit"), Some(1.0));
    assert_eq!(of("store-takes", "acquire", "granted"), Some(0.0));
    assert_eq!(of("store-takes", "commit", "committed"), Some(0.0));
    let refreshes = |source| {
        ["success", "shared"].map(|outcome| {
            value(telemetry::REFRESHES, &[("source", source), ("outcome", outcome)]).unwrap()
        })
    };
    assert_eq!((refreshes("store-asks"), refreshes("store-takes")), ([1.0, 0.0], [0.0, 1.0]));
}

/// Each series of this source, without its name.
fn series(source: &str) -> BTreeMap<String, f64> {
    let label = format!("source=\"{source}\"");
    let text = RECORDER.render();
    let lines = text.lines().filter(|line| line.contains(&label));
    lines
        .map(|line| {
            let (series, value) = line.rsplit_once(' ').unwrap();
            (series.replace(&label, ""), value.parse().unwrap())
        })
        .collect()
}

#[tokio::test]
async fn each_series_is_there_from_the_start() {
    let new = source("new", Duration::from_secs(3_600));
    let builder = TokenSource::builder_from_fetcher(|| async {
        Ok(TokenResponse::new("a-token", Duration::from_secs(3_600)))
    });
    let store = MemoryStore::default();
    let sharing = builder.name("sharing").store_name("sharing").store(store).build().unwrap();

    let at_first = [series("new"), series("sharing")];
    assert!(at_first.iter().flat_map(BTreeMap::values).all(|value| *value == 0.0), "{at_first:?}");
    let has = |of: usize, part: &str| at_first[of].keys().any(|series| series.contains(part));
    assert!(has(0, "outcome=\"success\"") && has(0, "outcome=\"rejected\""), "{at_first:?}");
    assert!(!has(0, telemetry::STORE) && has(1, telemetry::STORE), "{at_first:?}");

    for tokens in [&new, &sharing] {
        tokens.token().await.unwrap();
        tokens.refresh().await.unwrap();
    }
    // A quantile is shown when there is one.
    let shown = |series: BTreeMap<String, f64>| {
        series.into_keys().filter(|key| !key.contains("quantile")).collect::<Vec<_>>()
    };
    for (before, source) in at_first.into_iter().zip(["new", "sharing"]) {
        assert_eq!(shown(before), shown(series(source)));
    }
}

#[tokio::test]
async fn a_recorder_that_is_installed_after_the_source_was_built_counts_nothing_of_it() {
    let tokens = TokenSource::builder_from_fetcher(|| async {
        Ok(TokenResponse::new("a-token", Duration::from_secs(3_600)))
    });
    let tokens = metrics::with_local_recorder(&metrics::NoopRecorder, || {
        tokens.name("early").store_name("early").store(MemoryStore::default()).build().unwrap()
    });
    LazyLock::force(&RECORDER);

    tokens.token().await.unwrap();

    assert_eq!(series("early"), BTreeMap::new());
}

/// The names between quotes that begin as ours do, without what Prometheus adds to a histogram.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words
        .filter(|word| word.starts_with("adobe_auth_"))
        .map(|word| {
            let ends = ["_bucket", "_sum", "_count"];
            ends.iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word).to_owned()
        })
        .collect()
}

fn constants() -> BTreeSet<String> {
    [
        telemetry::REQUESTS,
        telemetry::REMAINING,
        telemetry::REFRESHES,
        telemetry::REFRESH_DURATION,
        telemetry::EXPIRY,
        telemetry::WAITERS,
        telemetry::UNAUTHORIZED,
        telemetry::RECOVERIES,
        telemetry::STORE,
    ]
    .map(str::to_owned)
    .into()
}

#[tokio::test]
async fn the_names_are_those_of_the_constants_and_of_the_docs() {
    let fetch = || async { Ok(TokenResponse::new("a-token", Duration::from_secs(60))) };
    LazyLock::force(&RECORDER);
    let builder = TokenSource::builder_from_fetcher(fetch).name("names").store_name("names");
    builder.store(MemoryStore::default()).build().unwrap().token().await.unwrap();

    assert_eq!(names(&RECORDER.render()), constants());
    assert_eq!(names(include_str!("../src/telemetry/mod.rs")), constants());
}

#[test]
fn the_dashboard_asks_for_each_metric_and_for_no_other() {
    let text = include_str!("../docs/grafana-dashboard.json");
    let dashboard: serde_json::Value = serde_json::from_str(text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let queries: Vec<_> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap())
        .map(|target| target["expr"].as_str().unwrap())
        .collect();

    assert!(queries.len() >= panels.len());
    assert_eq!(names(&queries.join("\n")), constants());
    // What stands between `by (` and `)`, or before an operator in braces, is a label of ours.
    let docs = include_str!("../src/telemetry/mod.rs");
    for query in queries {
        for group in query.split("by (").skip(1) {
            for label in group.split(')').next().unwrap().split(", ").filter(|word| *word != "le") {
                assert!(docs.contains(&format!("`{label}`")), "{label} in {query}");
            }
        }
    }
}
