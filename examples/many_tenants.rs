//! One client for many Adobe organizations: each request names the source of its token.
//!
//! ```sh
//! cargo run --example many_tenants
//! ```

use http::Method;
use reqwest::{Client, Request};
use tower::{Layer, Service, ServiceExt};
use tower_adobe_auth::{
    AdobeAuthLayer, BoxError, Credentials, Environment, TokenError, TokenSource, TokenSources,
    mock::MockIms,
};

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let ims = MockIms::builder()
        .client("client-of-acme", "secret-of-acme")
        .client("client-of-umbrella", "secret-of-umbrella")
        .start()
        .await;
    let environment = Environment::custom(ims.url())?;

    // Made when a tenant is first seen. A real service looks the credentials up here.
    let sources = TokenSources::new(move |tenant: &String| {
        let (id, secret) = (format!("client-of-{tenant}"), format!("secret-of-{tenant}"));
        let credentials = Credentials::new(id, secret).with_org_id(format!("{tenant}@AdobeOrg"));
        TokenSource::builder(credentials).environment(environment.clone()).build()
    })
    .with_capacity(100);

    // For requests that name no source: here there are none.
    let nobody = TokenSource::from_fetcher(|| async {
        Err(TokenError::permanent("this request names no tenant"))
    });
    // The extensions are those of `http::Request`: reqwest shows none of its own.
    let mut client = AdobeAuthLayer::new(nobody)
        .allow_host("127.0.0.1")
        .layer(tower::util::MapRequest::new(Client::new(), to_reqwest));

    for tenant in ["acme", "umbrella", "acme", "acme", "umbrella"] {
        let request = http::Request::builder()
            .method(Method::GET)
            .uri(format!("{}/v3/models", ims.api_url()))
            .extension(sources.get(&tenant.to_owned())?)
            .body(reqwest::Body::default())?;
        let response = client.ready().await?.call(request).await?;
        println!("{tenant}: {}", response.status());
    }
    println!("{} tenants, {} token requests", sources.len(), ims.token_requests());

    sources.shutdown().await?;
    println!("shut down");
    Ok(())
}

fn to_reqwest(request: http::Request<reqwest::Body>) -> Request {
    Request::try_from(request).expect("the URI is a URL")
}
