//! The page of the example `axum_gateway`, in headless Chromium, driven by WebDriver.
//!
//! Without chromedriver the tests say that they were skipped, unless `REQUIRE_CHROMIUM=1` is set.

#![cfg(all(feature = "reqwest", feature = "metrics"))]
#![allow(clippy::unwrap_used)]

#[path = "../examples/axum_gateway/firefly.rs"]
mod firefly;
#[path = "../examples/axum_gateway/gateway.rs"]
mod gateway;
#[path = "../examples/axum_gateway/mock_firefly.rs"]
mod mock_firefly;

use std::{
    env, fs, io,
    panic::{AssertUnwindSafe, resume_unwind},
    path::Path,
    process::Stdio,
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use futures_util::FutureExt;
use http::{Method, header::CONTENT_TYPE};
use metrics_exporter_prometheus::PrometheusBuilder;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    process::{Child, Command},
    sync::oneshot,
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

const PATIENCE: Duration = Duration::from_secs(60);
/// The key under which WebDriver names an element.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

struct Gateway {
    url: String,
    tokens: TokenSource,
    stop: oneshot::Sender<()>,
    served: JoinHandle<Result<(), BoxError>>,
}

impl Gateway {
    async fn start(ims: &MockIms) -> Self {
        let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
            .environment(Environment::custom(ims.url()).unwrap())
            .backoff_cap(Duration::from_millis(10))
            .build()
            .unwrap();
        tokens.warm_up();
        let layer = AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1");
        let adobe = MockFirefly::start(ims.api_url()).await.unwrap();
        let polling = Polling { every: Duration::from_millis(10), times: 100 };
        let firefly = Firefly::new(layer, &adobe.url, polling).unwrap();
        let metrics = PrometheusBuilder::new().build_recorder().handle();
        let app = gateway::router(tokens.clone(), firefly, metrics, Limits::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel();
        let stopped = async { drop(stopped.await) };
        let served = tokio::spawn(gateway::serve(listener, app, stopped, Duration::from_secs(5)));
        Self { url, tokens, stop, served }
    }
}

/// A session of Chromium: as much of the W3C's WebDriver as these tests need.
struct Browser {
    driver: Child,
    client: Client,
    session: String,
}

impl Browser {
    /// Opens `url`, runs the test, and ends the browser whatever came of it.
    async fn open(url: &str, test: impl AsyncFnOnce(&Self)) {
        let Some((driver, address)) = start_driver().await else { return };
        let client = Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let mut browser = Self { driver, client, session: format!("{address}/session") };
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
        ];
        let wishes = json!({ "capabilities": { "alwaysMatch": {
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let session = browser.command(Method::POST, "", &wishes).await;
        browser.session = format!("{}/{}", browser.session, session["sessionId"].as_str().unwrap());

        let tested = AssertUnwindSafe(async {
            browser.command(Method::POST, "/url", &json!({ "url": url })).await;
            test(&browser).await;
        });
        let tested = tested.catch_unwind().await;
        browser.command(Method::DELETE, "", &json!({})).await;
        browser.driver.kill().await.unwrap();
        if let Err(panic) = tested {
            resume_unwind(panic);
        }
    }

    async fn command(&self, method: Method, path: &str, body: &Value) -> Value {
        let mut request = self.client.request(method.clone(), format!("{}{path}", self.session));
        if method == Method::POST {
            request = request.header(CONTENT_TYPE, "application/json").body(body.to_string());
        }
        let response = request.send().await.unwrap();
        let (status, text) = (response.status(), response.text().await.unwrap());
        assert!(status.is_success(), "{path}: {text}");
        serde_json::from_str::<Value>(&text).unwrap()["value"].take()
    }

    async fn get(&self, path: &str) -> Value {
        self.command(Method::GET, path, &Value::Null).await
    }

    async fn run(&self, script: &str) -> Value {
        let body = json!({ "script": script, "args": [] });
        self.command(Method::POST, "/execute/sync", &body).await
    }

    /// Where the element is that a CSS selector finds.
    async fn find(&self, css: &str) -> String {
        let wish = json!({ "using": "css selector", "value": css });
        let element = self.command(Method::POST, "/element", &wish).await;
        format!("/element/{}", element[ELEMENT].as_str().unwrap())
    }

    async fn text(&self, css: &str) -> String {
        let element = self.find(css).await;
        self.get(&format!("{element}/text")).await.as_str().unwrap().to_owned()
    }

    /// Waits until the text of an element is as wanted.
    async fn sees(&self, css: &str, wanted: impl Fn(&str) -> bool) -> String {
        let mut text = String::new();
        let seen = timeout(PATIENCE, async {
            loop {
                text = self.text(css).await;
                if wanted(&text) {
                    break;
                }
                sleep(Duration::from_millis(50)).await;
            }
        });
        assert!(seen.await.is_ok(), "{css} is still {text:?}");
        text
    }

    /// Tries a prompt, as a person does.
    async fn try_prompt(&self, prompt: &str) {
        let field = self.find("#prompt").await;
        self.command(Method::POST, &format!("{field}/clear"), &json!({})).await;
        self.command(Method::POST, &format!("{field}/value"), &json!({ "text": prompt })).await;
        let button = self.find("button").await;
        self.command(Method::POST, &format!("{button}/click"), &json!({})).await;
        self.sees("#outcome", |text| !text.is_empty() && !text.contains("being made")).await;
    }

    /// What the console holds, but for what the browser says there about statuses of answers.
    async fn complaints(&self) -> Vec<Value> {
        let wish = json!({ "type": "browser" });
        let log = self.command(Method::POST, "/se/log", &wish).await;
        let entries = log.as_array().unwrap().iter();
        entries.filter(|entry| entry["source"] != "network").cloned().collect()
    }

    async fn devtools(&self, command: &str, parameters: Value) {
        let wish = json!({ "cmd": command, "params": parameters });
        self.command(Method::POST, "/goog/cdp/execute", &wish).await;
    }

    /// Sets the width of the window and the scheme of colours, and saves a picture of the page.
    async fn picture(&self, name: &str, width: u32, scheme: &str) {
        let size =
            json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        self.devtools("Emulation.setDeviceMetricsOverride", size).await;
        let feature = json!({ "name": "prefers-color-scheme", "value": scheme });
        self.devtools("Emulation.setEmulatedMedia", json!({ "features": [feature] })).await;

        let picture = self.get("/screenshot").await;
        let picture = BASE64_STANDARD.decode(picture.as_str().unwrap()).unwrap();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        fs::write(folder.join(format!("gateway-{name}-{width}-{scheme}.png")), picture).unwrap();
        let overflow = "return document.documentElement.scrollWidth > window.innerWidth";
        assert_eq!(self.run(overflow).await, false, "{name} is wider than {width} pixels");
    }
}

/// chromedriver and its address; `None`, said aloud, where there is none.
async fn start_driver() -> Option<(Child, String)> {
    // It draws a port for IPv4 and then binds the same for IPv6, which may be taken: two drivers that
    // start at the same time meet there, and one of them ends at once.
    for _ in 0..10 {
        let mut command = Command::new("chromedriver");
        command.arg("--port=0").stdout(Stdio::piped()).kill_on_drop(true);
        let mut driver = match command.spawn() {
            Ok(driver) => driver,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let required = env::var_os("REQUIRE_CHROMIUM").is_some_and(|value| value == "1");
                assert!(!required, "chromedriver is not to be found");
                eprintln!("SKIPPED: chromedriver is not to be found");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = timeout(PATIENCE, async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if let Some((_, port)) = line.split_once("successfully on port ") {
                    return Some(port.trim_end_matches('.').to_owned());
                }
            }
            None
        });
        if let Some(port) = port.await.unwrap() {
            // What else it says must not fill the pipe.
            tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
            return Some((driver, format!("http://127.0.0.1:{port}")));
        }
    }
    panic!("chromedriver does not start");
}

#[tokio::test]
async fn the_page_shows_the_token_and_makes_images() {
    let ims = MockIms::start().await;
    let gateway = Gateway::start(&ims).await;

    Browser::open(&gateway.url, async |page| {
        page.sees("#state", |text| text == "ready").await;
        let first = page.sees("#valid-in", |text| text.starts_with("in 23 h 59 min")).await;
        page.sees("#valid-in", |text| text != first).await;
        assert!(page.text("#refresh-in").await.starts_with("in 2"));
        assert_eq!(page.text("#last-error").await, "none");
        for (css, role, label) in [
            ("#prompt", "textbox", "Prompt"),
            ("button", "button", "Make the image"),
            ("section", "region", "Access token"),
        ] {
            let element = page.find(css).await;
            assert_eq!(page.get(&format!("{element}/computedrole")).await, role);
            assert_eq!(page.get(&format!("{element}/computedlabel")).await, label);
        }

        page.try_prompt("a lighthouse & <b id=bold>bold</b> rocks").await;

        assert_eq!(page.text("#outcome").await, "The image is ready.");
        assert_eq!(page.run("return document.images[0].naturalWidth").await, 640);
        assert_eq!(page.text("#caption").await, "a lighthouse & <b id=bold>bold</b> rocks");
        assert_eq!(page.run("return document.getElementById('bold')").await, Value::Null);
        for (width, scheme) in [(1_200, "light"), (1_200, "dark"), (360, "light"), (360, "dark")] {
            page.picture("ready", width, scheme).await;
        }
        // Here not one answer was an error, so that not even the browser has a word to say.
        let log = page.command(Method::POST, "/se/log", &json!({ "type": "browser" })).await;
        assert_eq!(log, json!([]));
    })
    .await;
}

#[tokio::test]
async fn the_page_shows_an_outage_and_its_end_as_they_happen() {
    let ims = MockIms::start().await;
    let gateway = Gateway::start(&ims).await;
    let (url, tokens) = (gateway.url.clone(), gateway.tokens.clone());

    Browser::open(&url, async |page| {
        page.sees("#state", |text| text == "ready").await;

        // IMS fails, and the token in hand is good.
        ims.respond_with(Answer::error(503, "<b id=bold>down</b>", "back soon"));
        assert!(tokens.refresh().await.is_err());
        let error = page.sees("#last-error", |text| text != "none").await;
        assert!(error.contains("<b id=bold>down</b>: back soon"), "{error}");
        assert_eq!(page.run("return document.getElementById('bold')").await, Value::Null);
        assert!(page.text("#failing").await.contains("in a row, since "));
        page.try_prompt("a lighthouse").await;
        assert_eq!(page.text("#outcome").await, "The image is ready.");

        // There is no token any more.
        tokens.invalidate(&tokens.token().await.unwrap());
        page.sees("#state", |text| text == "not ready" || text == "fetching…").await;
        assert_eq!(page.text("#valid-until").await, "–");
        page.try_prompt("a lighthouse").await;
        let outcome = page.text("#outcome").await;
        assert!(outcome.starts_with("No image. 503: no access token"), "{outcome}");
        assert_eq!(page.run("return document.getElementById('bold')").await, Value::Null);
        let hidden = "return document.getElementById('result').hidden";
        assert_eq!(page.run(hidden).await, true);
        for (width, scheme) in [(1_200, "light"), (1_200, "dark"), (360, "light"), (360, "dark")] {
            page.picture("outage", width, scheme).await;
        }

        ims.respond_normally();
        page.sees("#state", |text| text == "ready").await;
        page.sees("#last-error", |text| text == "none").await;
        assert_eq!(page.complaints().await, [Value::Null; 0]);

        // Then the gateway itself ends.
        drop(gateway.stop);
        timeout(PATIENCE, gateway.served).await.unwrap().unwrap().unwrap();
        page.sees("#state", |text| text == "no answer").await;
        assert_eq!(page.complaints().await, [Value::Null; 0]);
    })
    .await;
}
