//! The routes, their limits, and the shutdown.

use std::{
    future::Future,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Json, Router,
    body::Body,
    error_handling::HandleErrorLayer,
    extract::{DefaultBodyLimit, State, rejection::JsonRejection},
    http::{HeaderName, HeaderValue, StatusCode, header},
    middleware::map_response,
    response::{Html, IntoResponse, Response},
    routing::{get, post},
};
use futures_util::FutureExt;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, time::sleep};
use tower::{ServiceBuilder, limit::GlobalConcurrencyLimitLayer, timeout::error::Elapsed};
use tower_adobe_auth::{BoxError, TokenSource};

use crate::firefly::{Failure, Firefly};

/// What one caller, and all callers together, may ask for.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Characters of a prompt.
    pub(crate) prompt: usize,
    /// From the request to the first byte of the image; the token, the job and its polls included.
    pub(crate) total: Duration,
    /// Images under way at the same time.
    pub(crate) at_once: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { prompt: 1_024, total: Duration::from_secs(120), at_once: 64 }
    }
}

/// The longest request body: more than the longest prompt, with every character escaped.
const MAX_BODY: usize = 16 * 1024;

#[derive(Clone)]
struct App {
    tokens: TokenSource,
    firefly: Firefly,
    metrics: PrometheusHandle,
    limits: Limits,
}

pub(crate) fn router(
    tokens: TokenSource,
    firefly: Firefly,
    metrics: PrometheusHandle,
    limits: Limits,
) -> Router {
    let bounded = ServiceBuilder::new()
        .layer(map_response(count))
        .layer(HandleErrorLayer::new(given_up))
        .timeout(limits.total)
        // Who comes when all places are taken is told so, and does not queue.
        .load_shed()
        .layer(GlobalConcurrencyLimitLayer::new(limits.at_once));
    Router::new()
        .route("/", get(page))
        .route("/images", post(images).layer(bounded))
        .route("/status", get(status))
        .route("/readyz", get(readyz))
        .route("/healthz", get(|| async { "alive" }))
        .route("/metrics", get(|State(app): State<App>| async move { app.metrics.render() }))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(App { tokens, firefly, metrics, limits })
}

/// Serves until `stop` is ready. What is under way then is finished, but for `grace` at most.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Router,
    stop: impl Future<Output = ()> + Send + 'static,
    grace: Duration,
) -> Result<(), BoxError> {
    let stop = stop.shared();
    let server = axum::serve(listener, app).with_graceful_shutdown(stop.clone());
    tokio::select! {
        served = server.into_future() => Ok(served?),
        () = async { stop.await; sleep(grace).await } => {
            Err("requests were still under way after the grace period".into())
        }
    }
}

#[derive(Deserialize)]
struct Wish {
    prompt: String,
}

async fn images(
    State(app): State<App>,
    wish: Result<Json<Wish>, JsonRejection>,
) -> Result<Response, Refusal> {
    let Json(Wish { prompt }) = wish?;
    let prompt = prompt.trim();
    if prompt.is_empty() || prompt.chars().count() > app.limits.prompt {
        let text = format!("a prompt has 1 to {} characters", app.limits.prompt);
        return Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, text));
    }
    let (head, body) = app.firefly.image(prompt).await?.into_parts();
    // Storage is not ours: of its headers only what describes the image goes on, and only images.
    let kind = head.headers.get(header::CONTENT_TYPE);
    let Some(kind) = kind.filter(|kind| kind.as_bytes().starts_with(b"image/")) else {
        return Err(Refusal::new(StatusCode::BAD_GATEWAY, "the storage sent no image"));
    };
    let mut response = Body::new(body).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, kind.clone());
    if let Some(length) = head.headers.get(header::CONTENT_LENGTH) {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.clone());
    }
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    Ok(response)
}

const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");

/// An answer without an image: a status, and why, as JSON.
struct Refusal {
    status: StatusCode,
    error: String,
    retry_after: Option<HeaderValue>,
}

impl Refusal {
    fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, error: error.into(), retry_after: None }
    }

    /// 503 tells our callers that the same request may succeed later.
    fn busy(error: impl Into<String>, retry_after: Option<HeaderValue>) -> Self {
        Self { retry_after, ..Self::new(StatusCode::SERVICE_UNAVAILABLE, error) }
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self::new(rejection.status(), rejection.body_text())
    }
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let bad_gateway = |error: String| Self::new(StatusCode::BAD_GATEWAY, error);
        let refusal = match failure {
            Failure::Token(error) if error.is_transient() => {
                // When the source asks again, or what IMS said. Whole seconds, rounded up.
                let retry_in = error.retry_in().or(error.retry_after());
                let seconds = retry_in.map(|wait| (wait.as_secs_f64().ceil() as u64).into());
                Self::busy(format!("no access token: {error}"), seconds)
            }
            Failure::Token(error) => bad_gateway(format!("no access token: {error}")),
            Failure::Busy(retry_after) => Self::busy("Firefly is busy", retry_after),
            Failure::Prompt => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "Firefly does not take this prompt")
            }
            Failure::Job(what) => bad_gateway(what.into()),
            Failure::Answer(who, status) => bad_gateway(format!("{who} answered {status}")),
            // What it is in detail is for the operator.
            Failure::Other(error) => {
                tracing::warn!(error, "Firefly failed");
                bad_gateway("Firefly or its storage could not be reached".into())
            }
        };
        tracing::warn!(status = refusal.status.as_u16(), error = refusal.error, "no image");
        refusal
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = Json(serde_json::json!({ "error": self.error }));
        let mut response = (self.status, body).into_response();
        if let Some(retry_after) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, retry_after);
        }
        response
    }
}

/// The errors of tower's layers around the handler: the total timeout, and no place left.
async fn given_up(error: BoxError) -> Refusal {
    if error.is::<Elapsed>() {
        Refusal::new(StatusCode::GATEWAY_TIMEOUT, "the image was not ready in time")
    } else {
        Refusal::busy("too many images are under way", Some(HeaderValue::from_static("1")))
    }
}

/// Counts how images turn out.
async fn count(response: Response) -> Response {
    let outcome = match response.status() {
        StatusCode::OK => "succeeded",
        StatusCode::SERVICE_UNAVAILABLE => "unavailable",
        StatusCode::GATEWAY_TIMEOUT => "timed_out",
        status if status.is_client_error() => "refused",
        _ => "failed",
    };
    metrics::counter!("gateway_images_total", "outcome" => outcome).increment(1);
    response
}

/// Ready is who has a valid token. Asking for one here would make the probe wait for IMS.
async fn readyz(State(app): State<App>) -> (StatusCode, String) {
    let status = app.tokens.status();
    match (status.is_ready(), status.last_error()) {
        (true, _) => (StatusCode::OK, "ready".into()),
        (false, Some(error)) => (StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
        (false, None) => (StatusCode::SERVICE_UNAVAILABLE, "no token yet".into()),
    }
}

/// Times are milliseconds since 1970; `now` lets a page with a wrong clock count down rightly.
#[derive(Serialize)]
struct TokenStatus {
    now: u64,
    ready: bool,
    refreshing: bool,
    valid_until: Option<u64>,
    next_refresh: Option<u64>,
    failing_since: Option<u64>,
    failures: u32,
    last_error: Option<String>,
}

async fn status(State(app): State<App>) -> Json<TokenStatus> {
    let millis = |time: SystemTime| {
        time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    };
    let status = app.tokens.status();
    Json(TokenStatus {
        now: millis(SystemTime::now()),
        ready: status.is_ready(),
        refreshing: status.is_refreshing(),
        valid_until: status.valid_until().map(millis),
        next_refresh: status.next_refresh().map(millis),
        failing_since: status.failing_since().map(millis),
        failures: status.consecutive_failures(),
        last_error: status.last_error().map(ToString::to_string),
    })
}

/// The page loads nothing from anywhere, and may not.
async fn page() -> ([(HeaderName, HeaderValue); 1], Html<&'static str>) {
    let policy = HeaderValue::from_static(
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
         connect-src 'self'; img-src blob: data:; frame-ancestors 'none'; base-uri 'none'",
    );
    ([(header::CONTENT_SECURITY_POLICY, policy)], Html(include_str!("page.html")))
}
