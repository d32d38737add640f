//! The Console's API for client secrets, reached through the crate's own layer.

use std::time::Duration;

use reqwest::{Client, Method, Request, StatusCode, Url};
use serde::{Deserialize, de::DeserializeOwned};
use tower::{Layer, ServiceExt};
use tower_adobe_auth::{
    AdobeAuth, AdobeAuthLayer, BoxError, Credentials, Environment, TokenSource,
};

/// The scopes that Adobe documents for this API. A credential has them when the "I/O Management
/// API" is added to its project.
const SCOPES: [&str; 8] = [
    "AdobeID",
    "openid",
    "read_organizations",
    "additional_info.projectedProductContext",
    "additional_info.roles",
    "adobeio_api",
    "read_client_secret",
    "manage_client_secrets",
];

const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) struct SecretsApi {
    client: AdobeAuth<Client>,
    url: Url,
}

/// A secret at Adobe, of which everything is told but the secret.
pub(super) struct Listed {
    pub(super) uuid: String,
    /// In milliseconds since 1970.
    pub(super) last_used_at: Option<u64>,
}

#[derive(Deserialize)]
struct List {
    client_id: String,
    client_secrets: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    uuid: String,
    secret_usages: Option<Vec<Usage>>,
    client_secret: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    last_used_at: String,
}

impl SecretsApi {
    /// The API at `url`, asked with the credential that is rotated.
    pub(super) fn new(
        service: Credentials,
        environment: Environment,
        url: &str,
    ) -> Result<Self, BoxError> {
        let url = Url::parse(url)?;
        let host = url.host_str().ok_or("the URL of the API has no host")?.to_owned();
        // On demand: nothing may use a secret beside the run.
        let tokens = TokenSource::builder(service.with_scopes(SCOPES))
            .environment(environment)
            .refresh_on_demand()
            .build()?;
        let layer = AdobeAuthLayer::new(tokens).allow_host(host);
        let policy = layer.allowed_hosts().redirect_policy();
        let mut client = Client::builder().redirect(policy).timeout(REQUEST_TIMEOUT);
        // The layer sends a token without TLS to loopback only, which no proxy leads to.
        if url.scheme() == "http" {
            client = client.no_proxy();
        }
        let client = client.build()?;
        Ok(Self { client: layer.layer(client), url })
    }

    /// The secrets of the credential, which must be that of this client.
    pub(super) async fn list(&self, client_id: &str) -> Result<Vec<Listed>, BoxError> {
        let body = self.send(Method::GET, self.url.clone(), &[StatusCode::OK]).await?;
        let list: List = read(&body)?;
        if list.client_id != client_id {
            return Err("the credential at Adobe is of another client than the file".into());
        }
        list.client_secrets.iter().map(listed).collect()
    }

    /// Adds a secret; this is the only time that Adobe tells it.
    pub(super) async fn add(&self) -> Result<(Listed, String), BoxError> {
        let body = self.send(Method::POST, self.url.clone(), &[StatusCode::CREATED]).await?;
        let mut entry: Entry = read(&body)?;
        let secret = entry.client_secret.take().ok_or("the answer has no client_secret")?;
        Ok((listed(&entry)?, secret))
    }

    /// Removes a secret for good. One that is gone already is no error.
    pub(super) async fn remove(&self, uuid: &str) -> Result<(), BoxError> {
        let mut url = self.url.clone();
        url.path_segments_mut().map_err(|()| "the URL of the API has no path")?.push(uuid);
        let gone = [StatusCode::NO_CONTENT, StatusCode::NOT_FOUND];
        self.send(Method::DELETE, url, &gone).await.map(drop)
    }

    async fn send(
        &self,
        method: Method,
        url: Url,
        expected: &[StatusCode],
    ) -> Result<Vec<u8>, BoxError> {
        let request = Request::new(method.clone(), url);
        let answer = self.client.clone().oneshot(request).await?;
        let status = answer.status();
        if !expected.contains(&status) {
            return Err(format!("the secrets API answered {status} to {method}").into());
        }
        Ok(answer.bytes().await?.to_vec())
    }
}

fn listed(entry: &Entry) -> Result<Listed, BoxError> {
    let usages = entry.secret_usages.iter().flatten();
    let times = usages.map(|usage| usage.last_used_at.parse::<u64>());
    let times = times.collect::<Result<Vec<_>, _>>().map_err(|_| "a last_used_at is no time")?;
    Ok(Listed { uuid: entry.uuid.clone(), last_used_at: times.into_iter().max() })
}

/// What serde says of a wrong answer could quote a secret, so it is left out.
fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, BoxError> {
    serde_json::from_slice(body).map_err(|_| "the secrets API answered something else".into())
}
