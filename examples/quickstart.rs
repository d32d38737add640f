//! A burst of 1,000 requests, and a token that is renewed under traffic. No set-up needed: IMS and
//! the API are played by `MockIms` on loopback.
//!
//! ```sh
//! cargo run --example quickstart
//! ```

use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use reqwest::{Client, Request, StatusCode};
use tower::{Layer, Service, ServiceExt};
use tower_adobe_auth::{
    AdobeAuth, AdobeAuthLayer, BoxError, Credentials, Environment, TokenSource, mock::MockIms,
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let ims = MockIms::start().await;
    println!("MockIms plays IMS at {} and an Adobe API at {}\n", ims.url(), ims.api_url());

    burst(&ims).await?;
    rollover(&ims).await
}

/// 1,000 requests at once, and no token yet.
async fn burst(ims: &MockIms) -> Result<(), BoxError> {
    let (tokens, client) = client(ims)?;
    let start = Instant::now();

    let answers = join_all((0..1_000).map(|_| get(client.clone(), ims.api_url()))).await;

    let good = answers.iter().filter(|answer| matches!(answer, Ok(StatusCode::OK))).count();
    println!("a burst on a cold start");
    println!("  requests sent            {}", answers.len());
    println!("  answers with 200         {good}");
    println!("  token requests           {}", ims.token_requests());
    println!("  took                     {:.0?}", start.elapsed());
    let life = tokens.token().await?.expires_at().duration_since(SystemTime::now())?;
    println!("  the token lives for      {life:.0?}\n");
    check(good == 1_000 && ims.token_requests() == 1)
}

/// Five seconds of traffic with tokens that live for two.
async fn rollover(ims: &MockIms) -> Result<(), BoxError> {
    ims.set_token_lifetime(Duration::from_secs(2));
    let (tokens, client) = client(ims)?;
    let (before, start) = (ims.token_requests(), Instant::now());
    // The first request waits for a token. From then on none should.
    tokens.token().await?;

    let (mut sent, mut good, mut slowest) = (0, 0, Duration::ZERO);
    while start.elapsed() < Duration::from_secs(5) {
        let request = Instant::now();
        sent += 1;
        if get(client.clone(), ims.api_url()).await? == StatusCode::OK {
            good += 1;
        }
        slowest = slowest.max(request.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    let asked = ims.token_requests() - before;
    println!("five seconds of traffic, with tokens that live for two");
    println!("  requests sent            {sent}");
    println!("  answers with 200         {good}");
    println!("  token requests           {asked}, {} of them refreshes", asked - 1);
    println!("  slowest request          {slowest:.1?}");
    check(good == sent && (3..=10).contains(&asked))
}

fn client(ims: &MockIms) -> Result<(TokenSource, AdobeAuth<Client>), BoxError> {
    let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
        .environment(Environment::custom(ims.url())?)
        .build()?;
    let layer = AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1");
    let policy = layer.allowed_hosts().redirect_policy();
    let client = Client::builder().redirect(policy).no_proxy().build()?;
    Ok((tokens, layer.layer(client)))
}

async fn get(mut client: AdobeAuth<Client>, api: &str) -> Result<StatusCode, BoxError> {
    let request = Request::new(http::Method::GET, format!("{api}/v3/images").parse()?);
    Ok(client.ready().await?.call(request).await?.status())
}

fn check(holds: bool) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err("this is not what should have happened".into()) }
}
