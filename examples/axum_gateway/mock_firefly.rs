//! Firefly on loopback, as far as the gateway needs it: asynchronous jobs, and their images behind
//! pre-signed URLs.
//!
//! A job whose prompt holds the word `fail` fails, and one with `slow` takes twenty polls, not three.

use std::{
    collections::HashMap,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::{Path, Query, Request, State},
    http::{StatusCode, header},
    middleware::{Next, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// Runs on the runtime that started it, to its end.
pub(crate) struct MockFirefly {
    /// Where it is, without a slash at the end: `http://127.0.0.1:4802`.
    pub(crate) url: String,
}

struct Firefly {
    url: String,
    /// The API of `MockIms`, which knows the tokens.
    judge: String,
    client: Client,
    jobs: Mutex<HashMap<String, Job>>,
}

struct Job {
    prompt: String,
    polls: u32,
    signature: String,
}

type Shared = State<Arc<Firefly>>;

impl MockFirefly {
    /// `judge` is [`MockIms::api_url`](tower_adobe_auth::mock::MockIms::api_url): who is welcome
    /// there is welcome here.
    pub(crate) async fn start(judge: &str) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let client = Client::builder().no_proxy().build().map_err(io::Error::other)?;
        let (judge, jobs) = (judge.to_owned(), Mutex::default());
        let firefly = Arc::new(Firefly { url: url.clone(), judge, client, jobs });
        let app = Router::new()
            .route("/v3/images/generate-async", post(submit))
            .route("/v3/status/{job}", get(status))
            .route_layer(from_fn_with_state(Arc::clone(&firefly), guard))
            .route("/storage/{job}", get(storage))
            .with_state(firefly);
        tokio::spawn(axum::serve(listener, app).into_future());
        Ok(Self { url })
    }
}

impl Firefly {
    fn jobs<T>(&self, work: impl FnOnce(&mut HashMap<String, Job>) -> T) -> T {
        work(&mut self.jobs.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Lets the API of `MockIms` judge the token and the API key, and answers as it does.
async fn guard(State(firefly): Shared, request: Request, next: Next) -> Response {
    let mut question = firefly.client.get(&firefly.judge);
    for name in [header::AUTHORIZATION.as_str(), "x-api-key"] {
        for value in request.headers().get_all(name) {
            question = question.header(name, value);
        }
    }
    match question.send().await {
        Ok(answer) if answer.status().is_success() => next.run(request).await,
        Ok(answer) => http::Response::from(answer).map(Body::new),
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

async fn submit(State(firefly): Shared, Json(body): Json<Value>) -> Response {
    let Some(prompt) = body["prompt"].as_str().filter(|prompt| !prompt.is_empty()) else {
        return StatusCode::UNPROCESSABLE_ENTITY.into_response();
    };
    let id = format!("{:032x}", fastrand::u128(..));
    let polls = if prompt.contains("slow") { 20 } else { 3 };
    let signature = format!("{:016x}", fastrand::u64(..));
    let job = Job { prompt: prompt.to_owned(), polls, signature };
    firefly.jobs(|jobs| jobs.insert(id.clone(), job));
    let answer = json!({
        "jobId": id,
        "statusUrl": format!("{}/v3/status/{id}", firefly.url),
        "cancelUrl": format!("{}/v3/cancel/{id}", firefly.url),
    });
    (StatusCode::ACCEPTED, Json(answer)).into_response()
}

async fn status(State(firefly): Shared, Path(id): Path<String>) -> Response {
    let answer = firefly.jobs(|jobs| {
        let job = jobs.get_mut(&id)?;
        job.polls = job.polls.saturating_sub(1);
        Some(match job.polls {
            0 if job.prompt.contains("fail") => json!({ "jobId": id, "status": "failed" }),
            0 => {
                // By another name than the API's: one that the layer was not told to allow.
                let storage = firefly.url.replace("127.0.0.1", "localhost");
                let url = format!("{storage}/storage/{id}?signature={}", job.signature);
                let outputs = json!([{ "image": { "url": url } }]);
                json!({ "jobId": id, "status": "succeeded", "result": { "outputs": outputs } })
            }
            1 => json!({ "jobId": id, "status": "running" }),
            _ => json!({ "jobId": id, "status": "pending" }),
        })
    });
    answer.map_or_else(
        || StatusCode::NOT_FOUND.into_response(),
        |answer| Json(answer).into_response(),
    )
}

/// Pre-signed storage: its URL is its authorization, and it takes no other.
async fn storage(
    State(firefly): Shared,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    request: Request,
) -> Response {
    if request.headers().contains_key(header::AUTHORIZATION) {
        return (StatusCode::BAD_REQUEST, "Only one auth mechanism allowed").into_response();
    }
    let signed = |job: &Job| query.get("signature") == Some(&job.signature);
    match firefly.jobs(|jobs| jobs.get(&id).filter(|job| signed(job)).map(draw)) {
        Some(image) => ([(header::CONTENT_TYPE, "image/svg+xml")], image).into_response(),
        None => StatusCode::FORBIDDEN.into_response(),
    }
}

/// A picture of hills under a sun, in colours that come from the prompt.
fn draw(job: &Job) -> Bytes {
    let hue = job.prompt.bytes().fold(7_u32, |hash, byte| (hash * 31 + u32::from(byte)) % 360);
    let (near, far) = ((hue + 40) % 360, (hue + 20) % 360);
    let title = job.prompt.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Bytes::from(format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="640" height="400" viewBox="0 0 640 400">
<title>{title}</title>
<linearGradient id="sky" x2="0" y2="1"><stop stop-color="hsl({hue} 70% 62%)"/>
<stop offset="1" stop-color="hsl({near} 85% 88%)"/></linearGradient>
<rect width="640" height="400" fill="url(#sky)"/>
<circle cx="{sun}" cy="120" r="46" fill="#fff8dc"/>
<path d="M0 290 Q120 190 260 270 T640 230 V400 H0Z" fill="hsl({far} 45% 52%)"/>
<path d="M0 340 Q180 250 340 330 T640 310 V400 H0Z" fill="hsl({near} 50% 34%)"/>
</svg>
"##,
        sun = 120 + hue,
    ))
}
