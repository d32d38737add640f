//! hyper-util's client with the layer around it, and IMS reached by the same kind of client: no
//! reqwest in the tree. Against Adobe itself, build the client on the connector of `hyper-rustls`:
//!
//! ```text
//! let https = HttpsConnectorBuilder::new().with_native_roots()?.https_only().enable_http1().build();
//! let client = Client::builder(TokioExecutor::new()).build::<_, Full<Bytes>>(https);
//! ```
//!
//! ```sh
//! cargo run --example hyper_client --no-default-features
//! ```

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tower::{Layer, Service, ServiceExt};
use tower_adobe_auth::{
    AdobeAuthLayer, BoxError, Credentials, Environment, TokenSource, mock::MockIms,
};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), BoxError> {
    let ims = MockIms::start().await;

    // A token request has a `Full<Bytes>` for a body, so a client that is to reach IMS takes it too.
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
        .environment(Environment::custom(ims.url())?)
        .map_ims(|ims| ims.transport(client.clone()))
        .build()?;
    let mut client = AdobeAuthLayer::new(tokens).allow_host("127.0.0.1").layer(client);

    let request = Request::get(format!("{}/v3/images", ims.api_url())).body(Full::default())?;
    let response = client.ready().await?.call(request).await?;
    println!("{}", response.status());
    let body = response.into_body().collect().await?.to_bytes();
    println!("{}", String::from_utf8_lossy(&body));
    Ok(())
}
