//! The real IMS, and a request to the real Firefly API.
//!
//! ```sh
//! ADOBE_CLIENT_ID=... ADOBE_CLIENT_SECRET=... cargo run --example live
//! ```

use reqwest::{Client, Method, Request};
use tower::{Layer, Service, ServiceExt};
use tower_adobe_auth::{AdobeAuthLayer, BoxError, Credentials, TokenSource};

/// Answers a request without a body with an error about the body, once it is authorized: it costs
/// nothing, and tells whether the token was good.
const FIREFLY: &str = "https://firefly-api.adobe.io/v3/images/generate";

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let credentials = match Credentials::from_env() {
        Ok(credentials) => credentials,
        Err(error) => {
            println!("{error}\n");
            println!("This example talks to Adobe. It reads from the environment:");
            println!(
                "  ADOBE_CLIENT_ID      the client id of an OAuth Server-to-Server credential"
            );
            println!("  ADOBE_CLIENT_SECRET  its client secret");
            println!(
                "  ADOBE_SCOPES         optional; default: openid,AdobeID,firefly_api,ff_apis"
            );
            println!("  ADOBE_ORG_ID         optional, such as 1234@AdobeOrg");
            return Ok(());
        }
    };

    let tokens = TokenSource::new(credentials)?;
    let token = tokens.token().await?;
    println!("IMS issued a token; it is valid until {:?}", token.expires_at());

    let layer = AdobeAuthLayer::new(tokens);
    let policy = layer.allowed_hosts().redirect_policy();
    let mut client = layer.layer(Client::builder().redirect(policy).build()?);
    let request = Request::new(Method::POST, FIREFLY.parse()?);
    let response = client.ready().await?.call(request).await?;
    let status = response.status();
    println!("POST {FIREFLY}\n{status}\n{}", response.text().await?);
    if status == 401 || status == 403 {
        return Err("the API refused the token: are its scopes those of Firefly?".into());
    }
    Ok(())
}
