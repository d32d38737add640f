//! The example `axum_gateway`, asked over HTTP as its callers do.

#![cfg(all(feature = "reqwest", feature = "metrics"))]
#![allow(clippy::unwrap_used)]

#[path = "../examples/axum_gateway/firefly.rs"]
mod firefly;
#[path = "../examples/axum_gateway/gateway.rs"]
mod gateway;
#[path = "../examples/axum_gateway/mock_firefly.rs"]
mod mock_firefly;

use std::{
    convert::Infallible,
    future,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Json, Router, body::Body, routing};
use futures_util::{future::join_all, stream};
use http::{
    HeaderMap, StatusCode,
    header::{AUTHORIZATION, CONTENT_TYPE, RETRY_AFTER},
};
use http_body_util::BodyExt;
use metrics_exporter_prometheus::PrometheusBuilder;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tower_adobe_auth::{
    AdobeAuthLayer, BoxError, Credentials, Environment, TokenSource,
    mock::{Answer, MockIms},
};

use self::{
    firefly::{Firefly, Polling},
    gateway::Limits,
    mock_firefly::MockFirefly,
};

const PATIENCE: Duration = Duration::from_secs(30);
const QUICK: Polling = Polling { every: Duration::from_millis(10), times: 100 };

fn caller() -> Client {
    Client::builder().no_proxy().timeout(PATIENCE).build().unwrap()
}

struct Gateway {
    url: String,
    caller: Client,
    tokens: TokenSource,
    served: JoinHandle<Result<(), BoxError>>,
}

struct Setup {
    firefly: Option<String>,
    polling: Polling,
    limits: Limits,
    stop: Option<Duration>,
}

impl Default for Setup {
    fn default() -> Self {
        Self { firefly: None, polling: QUICK, limits: Limits::default(), stop: None }
    }
}

impl Gateway {
    async fn start(ims: &MockIms) -> Self {
        Self::start_with(ims, Setup::default()).await
    }

    /// It asks for no token before the first prompt.
    async fn start_with(ims: &MockIms, setup: Setup) -> Self {
        let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
            .environment(Environment::custom(ims.url()).unwrap())
            .backoff_cap(Duration::from_millis(10))
            .build()
            .unwrap();
        let firefly = match setup.firefly {
            Some(url) => url,
            None => MockFirefly::start(ims.api_url()).await.unwrap().url,
        };
        let layer = AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1");
        let firefly = Firefly::new(layer, &firefly, setup.polling).unwrap();
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let app = gateway::router(tokens.clone(), firefly, metrics, setup.limits);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let stop = async move {
            match setup.stop {
                Some(after) => sleep(after).await,
                None => future::pending().await,
            }
        };
        let grace = Duration::from_millis(100);
        let served = tokio::spawn(gateway::serve(listener, app, stop, grace));
        Self { url, caller: caller(), tokens, served }
    }

    async fn image(&self, prompt: &str) -> Response {
        self.post("application/json", json!({ "prompt": prompt }).to_string()).await
    }

    async fn post(&self, kind: &str, body: impl Into<reqwest::Body>) -> Response {
        let request = self.caller.post(format!("{}/images", self.url));
        request.header(CONTENT_TYPE, kind).body(body).send().await.unwrap()
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let response = self.caller.get(format!("{}{path}", self.url)).send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    }

    async fn becomes_ready(&self) {
        let ready = async {
            while self.get("/readyz").await.0 != StatusCode::OK {
                sleep(Duration::from_millis(10)).await;
            }
        };
        timeout(PATIENCE, ready).await.unwrap();
    }
}

async fn error(response: Response) -> String {
    let body: Value = serde_json::from_str(&response.text().await.unwrap()).unwrap();
    body["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_prompt_becomes_an_image() {
    let ims = MockIms::start().await;
    let gateway = Gateway::start(&ims).await;

    let response = gateway.image("a fox & <hounds>").await;

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[CONTENT_TYPE], "image/svg+xml");
    let image = response.text().await.unwrap();
    assert!(image.contains("<title>a fox &amp; &lt;hounds&gt;</title>"), "{image}");
}

/// A Firefly whose storage tells what it was sent, and sends what it is told.
struct StandIn {
    url: String,
    seen: Arc<Mutex<Vec<(&'static str, HeaderMap)>>>,
    chunks: mpsc::UnboundedSender<Result<&'static str, Infallible>>,
}

impl StandIn {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let image = url.replace("127.0.0.1", "localhost") + "/image";
        let job = json!({ "jobId": "1", "statusUrl": format!("{url}/status"), "cancelUrl": url });
        let done = json!({
            "status": "succeeded", "result": { "outputs": [{ "image": { "url": image } }] },
        });
        let seen = Arc::new(Mutex::new(Vec::new()));
        let note = |who| {
            let seen = Arc::clone(&seen);
            move |headers| seen.lock().unwrap().push((who, headers))
        };
        let (api, status, storage) = (note("api"), note("api"), note("storage"));
        let (chunks, receiver) = mpsc::unbounded_channel();
        let receiver = Arc::new(Mutex::new(Some(receiver)));
        let app = Router::new()
            .route(
                "/v3/images/generate-async",
                routing::post(async move |headers: HeaderMap| {
                    api(headers);
                    (StatusCode::ACCEPTED, Json(job))
                }),
            )
            .route(
                "/status",
                routing::get(async move |headers: HeaderMap| {
                    status(headers);
                    Json(done)
                }),
            )
            .route(
                "/image",
                routing::get(async move |headers: HeaderMap| {
                    storage(headers);
                    let mut chunks = receiver.lock().unwrap().take().unwrap();
                    let body = Body::from_stream(stream::poll_fn(move |cx| chunks.poll_recv(cx)));
                    ([(CONTENT_TYPE, "image/png")], body)
                }),
            );
        tokio::spawn(axum::serve(listener, app).into_future());
        Self { url, seen, chunks }
    }
}

#[tokio::test]
async fn the_image_is_passed_on_as_it_comes_and_the_storage_sees_no_token() {
    let ims = MockIms::start().await;
    let stand_in = StandIn::start().await;
    let setup = Setup { firefly: Some(stand_in.url.clone()), ..Setup::default() };
    let gateway = Gateway::start_with(&ims, setup).await;

    stand_in.chunks.send(Ok("first")).unwrap();
    let response = gateway.image("a fox").await;
    let mut body = reqwest::Body::from(response);

    // The rest of the image does not exist yet.
    let first = timeout(PATIENCE, body.frame()).await.unwrap().unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "first");
    stand_in.chunks.send(Ok("last")).unwrap();
    let StandIn { seen, chunks, .. } = stand_in;
    drop(chunks);
    assert_eq!(body.collect().await.unwrap().to_bytes(), "last");

    let seen = seen.lock().unwrap();
    assert_eq!(seen.iter().map(|(who, _)| *who).collect::<Vec<_>>(), ["api", "api", "storage"]);
    for (who, headers) in &*seen {
        assert_eq!(headers.contains_key(AUTHORIZATION), *who == "api", "{who}");
        assert_eq!(headers.contains_key("x-api-key"), *who == "api", "{who}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_prompts_at_once_on_a_cold_start_make_one_token_request() {
    let ims = MockIms::start().await;
    ims.set_delay(Duration::from_millis(50));
    let gateway = Gateway::start(&ims).await;

    let images = join_all((0..50).map(|number| {
        let gateway = &gateway;
        async move {
            let prompt = format!("fox {number}");
            let response = gateway.image(&prompt).await;
            assert_eq!(response.status(), StatusCode::OK);
            response.text().await.unwrap().contains(&format!("<title>{prompt}</title>"))
        }
    }))
    .await;

    assert!(images.into_iter().all(|right| right));
    assert_eq!(ims.token_requests(), 1);
}

#[tokio::test]
async fn without_ims_it_is_alive_but_not_ready_and_recovers_when_ims_is_back() {
    let ims = MockIms::start().await;
    ims.go_down();
    let gateway = Gateway::start(&ims).await;

    let response = gateway.image("a fox").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(error(response).await.starts_with("no access token: the connection to IMS failed"));
    let (status, reason) = gateway.get("/readyz").await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(reason.starts_with("the connection to IMS failed"), "{reason}");
    assert_eq!(gateway.get("/healthz").await.0, StatusCode::OK);

    ims.come_back();
    gateway.becomes_ready().await;
    assert_eq!(gateway.image("a fox").await.status(), StatusCode::OK);
}

#[tokio::test]
async fn callers_are_told_when_ims_may_be_asked_again() {
    let ims = MockIms::start().await;
    ims.respond_with(Answer::throttled(100));
    let gateway = Gateway::start(&ims).await;

    let response = gateway.image("a fox").await;

    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let seconds: u64 = response.headers()[RETRY_AFTER].to_str().unwrap().parse().unwrap();
    // The source adds up to a quarter of a second, so that a fleet does not come back together.
    assert!((90..=101).contains(&seconds), "{seconds}");
}

#[tokio::test]
async fn credentials_that_ims_rejects_are_the_gateways_fault() {
    let ims = MockIms::start().await;
    ims.respond_with(Answer::invalid_client());
    let gateway = Gateway::start(&ims).await;

    let response = gateway.image("a fox").await;

    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert!(error(response).await.contains("IMS rejected the client credentials"));
}

#[tokio::test]
async fn a_revoked_token_costs_no_image() {
    let ims = MockIms::start().await;
    let gateway = Gateway::start(&ims).await;
    assert_eq!(gateway.image("a fox").await.status(), StatusCode::OK);

    ims.revoke_all();
    let response = gateway.image("a hound").await;

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!((ims.api_unauthorized(), ims.token_requests()), (1, 2));
}

#[tokio::test]
async fn a_token_that_is_revoked_under_a_running_job_costs_no_image() {
    let ims = MockIms::start().await;
    let gateway = Gateway::start(&ims).await;

    let (response, ()) = tokio::join!(gateway.image("a slow fox"), async {
        // The submission and a poll have been let in, and a slow job takes twenty polls.
        let begun = async {
            while ims.api_requests() < 2 {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(PATIENCE, begun).await.unwrap();
        ims.revoke_all();
    });

    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!((ims.api_unauthorized(), ims.token_requests()), (1, 2));
}

#[tokio::test]
async fn what_is_no_prompt_is_refused_before_adobe_is_asked() {
    let ims = MockIms::start().await;
    let gateway = Gateway::start(&ims).await;
    let json = "application/json";

    let (empty, long) = (gateway.image("  ").await, gateway.image(&"é".repeat(1_025)).await);
    assert_eq!(empty.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(long.status(), StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(error(long).await, "a prompt has 1 to 1024 characters");
    for (kind, body, status) in [
        (json, "{}".to_owned(), StatusCode::UNPROCESSABLE_ENTITY),
        (json, "{\"prompt\"".to_owned(), StatusCode::BAD_REQUEST),
        ("text/plain", "a fox".to_owned(), StatusCode::UNSUPPORTED_MEDIA_TYPE),
        (json, json!({ "prompt": "x".repeat(20_000) }).to_string(), StatusCode::PAYLOAD_TOO_LARGE),
    ] {
        let response = gateway.post(kind, body).await;
        assert_eq!(response.status(), status);
        assert!(!error(response).await.is_empty());
    }
    assert_eq!((ims.token_requests(), ims.api_requests()), (0, 0));

    assert_eq!(gateway.image(&"é".repeat(1_024)).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_job_that_fails_or_does_not_end_is_a_bad_gateway() {
    let ims = MockIms::start().await;
    let polling = Polling { times: 5, ..QUICK };
    let gateway = Gateway::start_with(&ims, Setup { polling, ..Setup::default() }).await;

    let (failed, slow) = (gateway.image("fail").await, gateway.image("slow").await);

    assert_eq!(
        (failed.status(), slow.status()),
        (StatusCode::BAD_GATEWAY, StatusCode::BAD_GATEWAY)
    );
    assert_eq!(error(failed).await, "the job failed");
    assert_eq!(error(slow).await, "the job took too long");
}

#[tokio::test]
async fn a_busy_firefly_delays_a_job_and_refuses_a_submission() {
    let ims = MockIms::start().await;
    let gateway = Gateway::start(&ims).await;

    // The submission is let in, and two polls are not.
    ims.api_respond_next([200, 429, 503]);
    assert_eq!(gateway.image("a fox").await.status(), StatusCode::OK);
    ims.api_respond_next([429]);
    assert_eq!(gateway.image("a fox").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    ims.api_respond_next([500]);
    assert_eq!(gateway.image("a fox").await.status(), StatusCode::BAD_GATEWAY);
    assert_eq!(ims.token_requests(), 1);
}

#[tokio::test]
async fn the_wait_for_a_token_is_within_the_total_time() {
    let ims = MockIms::start().await;
    ims.respond_with(Answer::hang());
    let limits = Limits { total: Duration::from_millis(100), ..Limits::default() };
    let gateway = Gateway::start_with(&ims, Setup { limits, ..Setup::default() }).await;

    let response = gateway.image("a fox").await;

    assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(error(response).await, "the image was not ready in time");
}

#[tokio::test]
async fn who_comes_when_all_places_are_taken_is_told_so_at_once() {
    let ims = MockIms::start().await;
    ims.respond_with(Answer::hang());
    let limits = Limits { at_once: 2, total: Duration::from_secs(1), ..Limits::default() };
    let gateway = Gateway::start_with(&ims, Setup { limits, ..Setup::default() }).await;

    let responses = join_all((0..3).map(|_| gateway.image("a fox"))).await;

    let mut statuses: Vec<_> =
        responses.iter().map(|response| response.status().as_u16()).collect();
    statuses.sort_unstable();
    assert_eq!(statuses, [503, 504, 504]);
}

#[tokio::test]
async fn the_status_tells_the_tokens_state() {
    let ims = MockIms::start().await;
    let gateway = Gateway::start(&ims).await;
    let status =
        async || -> Value { serde_json::from_str(&gateway.get("/status").await.1).unwrap() };

    let cold = status().await;
    assert_eq!((&cold["ready"], &cold["valid_until"]), (&json!(false), &json!(null)));

    gateway.tokens.warm_up();
    gateway.becomes_ready().await;
    let warm = status().await;
    let left = warm["valid_until"].as_u64().unwrap() - warm["now"].as_u64().unwrap();
    assert!((86_300_000..86_400_000).contains(&left), "{left}");
    assert!(warm["next_refresh"].as_u64() < warm["valid_until"].as_u64());
    assert_eq!((&warm["ready"], &warm["last_error"]), (&json!(true), &json!(null)));

    ims.go_down();
    assert!(gateway.tokens.refresh().await.is_err());
    let failing = status().await;
    assert_eq!(
        (&failing["ready"], &failing["last_error"]),
        (&json!(true), &json!("the connection to IMS failed"))
    );
    assert!(failing["failures"].as_u64() >= Some(1) && failing["failing_since"].is_u64());
}

#[tokio::test]
async fn a_shutdown_does_not_wait_for_ever() {
    let ims = MockIms::start().await;
    ims.respond_with(Answer::hang());
    let stop = Some(Duration::from_millis(200));
    let gateway = Gateway::start_with(&ims, Setup { stop, ..Setup::default() }).await;

    let hanging = tokio::spawn({
        let request = gateway.caller.post(format!("{}/images", gateway.url));
        request.header(CONTENT_TYPE, "application/json").body(r#"{"prompt":"a fox"}"#).send()
    });
    let ended = timeout(PATIENCE, gateway.served).await.unwrap().unwrap();

    assert!(ended.unwrap_err().to_string().contains("after the grace period"));
    hanging.abort();
}

/// The example as a process, which Cargo has built beside this test.
#[cfg(unix)]
mod process {
    use std::{env, fs, path::Path, process::Stdio};

    use tokio::{
        io::{AsyncBufReadExt, AsyncRead, BufReader, Lines},
        process::{Child, Command},
    };

    use super::*;

    fn example() -> Command {
        let test = env::current_exe().unwrap();
        let example = test.parent().unwrap().parent().unwrap().join("examples/axum_gateway");
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/axum_gateway");
        let modified = |path: &Path| fs::metadata(path).and_then(|data| data.modified());
        let fresh = modified(&example).is_ok_and(|built| {
            fs::read_dir(&sources)
                .unwrap()
                .all(|source| modified(&source.unwrap().path()).unwrap() <= built)
        });
        assert!(fresh, "build it first: cargo build --example axum_gateway");
        let mut command = Command::new(example);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
        command
    }

    /// The first line with `text` in it.
    async fn line(lines: &mut Lines<BufReader<impl AsyncRead + Unpin>>, text: &str) -> String {
        let found = async {
            loop {
                let line = lines.next_line().await.unwrap().expect("the process goes on");
                if line.contains(text) {
                    return line;
                }
            }
        };
        timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("no line with `{text}`"))
    }

    fn terminate(child: &Child) {
        let id = child.id().unwrap().to_string();
        let kill = std::process::Command::new("kill").args(["-TERM", &id]).status().unwrap();
        assert!(kill.success());
    }

    #[tokio::test]
    async fn sigterm_lets_an_image_that_is_under_way_finish() {
        let mut child = example().arg("--serve").env("PORT", "0").spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let listening = line(&mut output, "listening on ").await;
        let url = listening.strip_prefix("listening on ").unwrap().to_owned();

        let request = caller().post(format!("{url}/images"));
        let request = request.header(CONTENT_TYPE, "application/json");
        let image = tokio::spawn(request.body(r#"{"prompt":"a slow fox"}"#).send());
        line(&mut log, "submitted").await;
        terminate(&child);
        line(&mut log, "asked to end").await;
        // Nobody else is let in, and the image comes.
        let refused = async { while caller().get(&url).send().await.is_ok() {} };
        timeout(PATIENCE, refused).await.unwrap();
        line(&mut log, "delivering").await;

        let response = image.await.unwrap().unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert!(response.text().await.unwrap().ends_with("</svg>\n"));
        let ended = timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
        assert!(ended.success(), "{ended}");
    }

    #[tokio::test]
    async fn the_demonstration_finds_all_as_expected() {
        let output = timeout(PATIENCE, example().output()).await.unwrap().unwrap();

        let text = String::from_utf8(output.stdout).unwrap();
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains("all as expected"), "{text}{log}");
        assert!(text.contains(r#"gateway_images_total{outcome="succeeded"} 3"#), "{text}");
    }
}
