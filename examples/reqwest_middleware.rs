//! A client built with reqwest-middleware.
//!
//! ```sh
//! cargo run --example reqwest_middleware --features reqwest-middleware
//! ```

use reqwest::Client;
use reqwest_middleware::ClientBuilder;
use tower_adobe_auth::{
    AdobeAuthLayer, AdobeAuthMiddleware, BoxError, Credentials, Environment, TokenSource,
    mock::MockIms,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let ims = MockIms::start().await;

    let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
        .environment(Environment::custom(ims.url())?)
        .build()?;
    let layer = AdobeAuthLayer::new(tokens).allow_host("127.0.0.1");
    let policy = layer.allowed_hosts().redirect_policy();
    let client = ClientBuilder::new(Client::builder().redirect(policy).no_proxy().build()?)
        // A retry middleware would come before: each attempt is then authorized anew.
        .with(AdobeAuthMiddleware::from(layer))
        .build();

    let response = client.get(format!("{}/v3/images", ims.api_url())).send().await?;
    println!("{}", response.status());
    println!("{}", response.text().await?);
    Ok(())
}
