//! A client of Firefly's asynchronous API: it submits a prompt, polls the job's status, and fetches
//! the image from storage. All through one client, which knows where the token may go.

use std::time::Duration;

use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Limited};
use reqwest::{Body, Client, Request, Response, Url};
use serde::{Deserialize, de::DeserializeOwned};
use tokio::time::sleep;
use tower::{Layer, ServiceExt};
use tower_adobe_auth::{AdobeAuth, AdobeAuthLayer, BoxError, ReplayUnauthorized, TokenError};

/// The longest answer of the API that is read.
const MAX_ANSWER: usize = 64 * 1024;
/// The largest image that is passed on.
const MAX_IMAGE: usize = 64 * 1024 * 1024;

/// How often the status of a job is asked for.
#[derive(Clone, Copy)]
pub(crate) struct Polling {
    pub(crate) every: Duration,
    pub(crate) times: u32,
}

impl Default for Polling {
    fn default() -> Self {
        Self { every: Duration::from_secs(1), times: 90 }
    }
}

/// Why there is no image.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No access token could be had.
    Token(TokenError),
    /// Firefly has no time for us, and may have said until when (`Retry-After`).
    Busy(Option<HeaderValue>),
    /// Firefly does not take this prompt.
    Prompt,
    /// The job did not come to a good end.
    Job(&'static str),
    /// Firefly or the storage answered something unexpected.
    Answer(&'static str, StatusCode),
    /// Firefly or the storage could not be reached, or the answer not be read.
    Other(BoxError),
}

impl From<BoxError> for Failure {
    /// The errors of the layer and those of the client come in one type.
    fn from(error: BoxError) -> Self {
        let error = match error.downcast::<TokenError>() {
            Ok(error) => return Self::Token(*error),
            Err(error) => error,
        };
        match error.downcast::<reqwest::Error>() {
            // Whoever reads a pre-signed URL in a log has the image.
            Ok(error) => Self::Other(error.without_url().into()),
            Err(error) => Self::Other(error),
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Job {
    job_id: String,
    status_url: String,
}

#[derive(Deserialize)]
#[serde(tag = "status", rename_all = "lowercase")]
enum Progress {
    Pending,
    Running,
    Succeeded {
        result: JobResult,
    },
    #[serde(other)]
    Failed,
}

#[derive(Deserialize)]
struct JobResult {
    outputs: Vec<Output>,
}

#[derive(Deserialize)]
struct Output {
    image: Stored,
}

#[derive(Deserialize)]
struct Stored {
    url: String,
}

#[derive(Clone)]
pub(crate) struct Firefly {
    http: AdobeAuth<Client, ReplayUnauthorized>,
    submit: Url,
    polling: Polling,
}

impl Firefly {
    /// A client of the Firefly at `url`, a base without a slash at its end.
    pub(crate) fn new(
        layer: AdobeAuthLayer,
        url: &str,
        polling: Polling,
    ) -> Result<Self, BoxError> {
        let client = Client::builder()
            .redirect(layer.allowed_hosts().redirect_policy())
            .connect_timeout(Duration::from_secs(5))
            // Of one request, until its body has been read.
            .timeout(Duration::from_secs(60))
            // For the mock: a proxy would read the token that goes to plain `http` on loopback.
            .no_proxy()
            .build()?;
        // A submission is billed. Repeating it is safe after a 401 all the same: Firefly has refused
        // it, and done nothing.
        let http = layer.replay_unauthorized().layer(client);
        Ok(Self { http, submit: format!("{url}/v3/images/generate-async").parse()?, polling })
    }

    /// The image for a prompt: its head is here, its body comes as storage sends it.
    pub(crate) async fn image(&self, prompt: &str) -> Result<http::Response<Body>, Failure> {
        let job = self.submit(prompt).await?;
        tracing::info!(job = job.job_id, "submitted");
        let stored = self.follow(&job).await?;
        let image = self.fetch(&stored).await?;
        tracing::info!(job = job.job_id, "delivering");
        Ok(image)
    }

    async fn submit(&self, prompt: &str) -> Result<Job, Failure> {
        let mut request = Request::new(Method::POST, self.submit.clone());
        let json = HeaderValue::from_static("application/json");
        request.headers_mut().insert(header::CONTENT_TYPE, json);
        let body = serde_json::json!({ "prompt": prompt, "numVariations": 1 });
        *request.body_mut() = Some(body.to_string().into());

        let response = self.send(request).await?;
        match response.status() {
            StatusCode::ACCEPTED => read(response).await,
            StatusCode::BAD_REQUEST | StatusCode::UNPROCESSABLE_ENTITY => Err(Failure::Prompt),
            status if is_busy(status) => {
                Err(Failure::Busy(response.headers().get(header::RETRY_AFTER).cloned()))
            }
            status => Err(Failure::Answer("Firefly", status)),
        }
    }

    /// Polls the job's status until it has ended, and returns where the image is.
    async fn follow(&self, job: &Job) -> Result<String, Failure> {
        for _ in 0..self.polling.times {
            sleep(self.polling.every).await;
            // Verbatim, on whatever shard it is: the layer decides whether the token may go there.
            let response = self.get(&job.status_url).await?;
            match response.status() {
                StatusCode::OK => {}
                // The job runs, and is billed, whether or not its status can be had right now.
                status if is_busy(status) => continue,
                status => return Err(Failure::Answer("Firefly", status)),
            }
            match read(response).await? {
                Progress::Pending | Progress::Running => {}
                Progress::Succeeded { result } => {
                    let output = result.outputs.into_iter().next();
                    return output
                        .map(|output| output.image.url)
                        .ok_or(Failure::Job("the job made no image"));
                }
                Progress::Failed => return Err(Failure::Job("the job failed")),
            }
        }
        Err(Failure::Job("the job took too long"))
    }

    /// Fetches an image from its pre-signed URL. Its host is not on the list, so that it gets neither
    /// the token nor the API key.
    async fn fetch(&self, url: &str) -> Result<http::Response<Body>, Failure> {
        let response = self.get(url).await?;
        if response.status() != StatusCode::OK {
            return Err(Failure::Answer("the storage", response.status()));
        }
        if response.content_length().is_some_and(|length| length > MAX_IMAGE as u64) {
            return Err(Failure::Job("the image is too large"));
        }
        Ok(http::Response::from(response).map(|body| Body::wrap(Limited::new(body, MAX_IMAGE))))
    }

    async fn get(&self, url: &str) -> Result<Response, Failure> {
        let url = url.parse().map_err(BoxError::from)?;
        self.send(Request::new(Method::GET, url)).await
    }

    async fn send(&self, request: Request) -> Result<Response, Failure> {
        Ok(self.http.clone().oneshot(request).await?)
    }
}

/// Whether this says nothing about the request, and may pass.
fn is_busy(status: StatusCode) -> bool {
    matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE)
}

/// Reads an answer of the API, up to its bound.
async fn read<T: DeserializeOwned>(response: Response) -> Result<T, Failure> {
    let body = Limited::new(Body::from(response), MAX_ANSWER).collect().await?;
    serde_json::from_slice(&body.to_bytes()).map_err(|error| Failure::Other(error.into()))
}
