//! The gateway asked over HTTP, as its callers do, and its answers checked.

use std::time::Duration;

use reqwest::{Client, StatusCode, header};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tower_adobe_auth::{BoxError, TokenSource, mock::MockIms};

type Answer = (StatusCode, header::HeaderMap, String);

struct Caller<'a> {
    client: Client,
    url: &'a str,
}

impl Caller<'_> {
    async fn get(&self, path: &str) -> Result<Answer, BoxError> {
        let response = self.client.get(format!("{}{path}", self.url)).send().await?;
        Ok((response.status(), response.headers().clone(), response.text().await?))
    }

    async fn image(&self, prompt: &str) -> Result<Answer, BoxError> {
        let request = self.client.post(format!("{}/images", self.url));
        let request = request.header(header::CONTENT_TYPE, "application/json");
        let response = request.body(json!({ "prompt": prompt }).to_string()).send().await?;
        Ok((response.status(), response.headers().clone(), response.text().await?))
    }

    /// Waits until the gateway is ready.
    async fn ready(&self) -> Result<(), BoxError> {
        timeout(Duration::from_secs(30), async {
            while self.get("/readyz").await?.0 != StatusCode::OK {
                sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        })
        .await?
    }

    async fn status(&self) -> Result<Value, BoxError> {
        Ok(serde_json::from_str(&self.get("/status").await?.2)?)
    }
}

pub(crate) async fn run(url: &str, ims: &MockIms, tokens: &TokenSource) -> Result<(), BoxError> {
    let caller = Caller { client: Client::builder().no_proxy().build()?, url };
    caller.ready().await?;
    println!("GET /readyz                        200: the first token is here");

    let (status, headers, image) = caller.image("a harbour at dawn").await?;
    check(status == StatusCode::OK && image.contains("a harbour at dawn"), "an image comes")?;
    check(headers[header::CONTENT_TYPE] == "image/svg+xml", "an SVG, from this storage")?;
    println!("POST /images                       200: an image of {} bytes", image.len());

    let (status, _, error) = caller.image(&"long ".repeat(1_000)).await?;
    check(status == StatusCode::UNPROCESSABLE_ENTITY, "a prompt that is too long is refused")?;
    println!("POST /images, a long prompt        422: {error}");

    let (status, _, error) = caller.image("fail, please").await?;
    check(status == StatusCode::BAD_GATEWAY, "a job that fails is told as such")?;
    println!("POST /images, a job that fails     502: {error}");

    ims.go_down();
    check(tokens.refresh().await.is_err(), "IMS cannot be reached")?;
    let state = caller.status().await?;
    check(state["ready"] == true && state["last_error"].is_string(), "the outage is shown")?;
    println!("GET /status, IMS is down           ready, last error: {}", state["last_error"]);
    let (status, ..) = caller.image("a harbour at noon").await?;
    check(status == StatusCode::OK, "images go on with the token in hand")?;
    println!("POST /images, IMS is down          200: with the token in hand");

    tokens.invalidate(&tokens.token().await?);
    let (status, headers, error) = caller.image("a harbour at dusk").await?;
    check(status == StatusCode::SERVICE_UNAVAILABLE, "without a token there is no image")?;
    println!("POST /images, and no token left    503: {error}");
    println!(
        "                                   Retry-After: {:?}",
        headers.get(header::RETRY_AFTER)
    );
    let (status, ..) = caller.get("/readyz").await?;
    check(status == StatusCode::SERVICE_UNAVAILABLE, "the gateway says that it is not ready")?;
    println!("GET /readyz                        503");

    ims.come_back();
    caller.ready().await?;
    let (status, ..) = caller.image("a harbour at night").await?;
    check(status == StatusCode::OK, "it has recovered")?;
    println!("GET /readyz, IMS is back           200, and an image again");

    let (_, _, metrics) = caller.get("/metrics").await?;
    for line in [
        r#"gateway_images_total{outcome="succeeded"} 3"#,
        r#"gateway_images_total{outcome="refused"} 1"#,
        r#"gateway_images_total{outcome="failed"} 1"#,
        r#"gateway_images_total{outcome="unavailable"} 1"#,
        r#"adobe_auth_requests_total{source="default",token="waited"}"#,
        r#"adobe_auth_refreshes_total{source="default",outcome="success"}"#,
    ] {
        check(metrics.lines().any(|found| found.starts_with(line)), line)?;
        println!("GET /metrics                       {line}");
    }
    check(ims.api_unauthorized() == 0, "Adobe has refused nothing")?;
    println!("all as expected; token requests that were answered: {}", ims.tokens_issued());
    Ok(())
}

fn check(holds: bool, what: &str) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(format!("this does not hold: {what}").into()) }
}
