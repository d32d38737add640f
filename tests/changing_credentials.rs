//! Credentials that change while a source runs: a change costs one token, and nothing else does.

#![cfg(feature = "reqwest")]
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tempfile::TempDir;
use tokio::{sync::watch, time::sleep};
use tower_adobe_auth::{
    BoxError, Credentials, Environment, FileCredentials, ImsClientBuilder, ProvideCredentials,
    TokenSource, TokenSourceBuilder, mock::MockIms,
};

const POLL: Duration = Duration::from_millis(50);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(60 * 60);

/// A credentials file in a folder of its own.
struct CredentialsFile {
    folder: TempDir,
}

impl CredentialsFile {
    fn new(secrets: &str, scopes: &str) -> Self {
        let file = Self { folder: tempfile::tempdir().unwrap() };
        file.write(secrets, scopes);
        file
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("credentials.json")
    }

    fn write(&self, secrets: &str, scopes: &str) {
        let id = MockIms::CLIENT_ID;
        let json =
            format!(r#"{{"CLIENT_ID":"{id}","CLIENT_SECRETS":[{secrets}],"SCOPES":[{scopes}]}}"#);
        let new = self.folder.path().join("new.json");
        fs::write(&new, json).unwrap();
        fs::rename(new, self.path()).unwrap();
    }

    fn open(&self) -> FileCredentials {
        FileCredentials::open(self.path()).unwrap().with_poll_interval(POLL)
    }
}

/// An IMS that records the secret of each token request.
#[derive(Clone, Default)]
struct Ims {
    secrets: Arc<Mutex<Vec<String>>>,
}

impl Ims {
    fn serve(
        &self,
        builder: TokenSourceBuilder<ImsClientBuilder>,
    ) -> TokenSourceBuilder<ImsClientBuilder> {
        let secrets = Arc::clone(&self.secrets);
        let service = tower::service_fn(move |request: Request<Full<Bytes>>| {
            let secrets = Arc::clone(&secrets);
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let secret =
                    form_urlencoded::parse(&body).find(|(name, _)| name == "client_secret");
                secrets.lock().unwrap().push(secret.unwrap().1.into_owned());
                let body = r#"{"access_token":"token","expires_in":86399}"#;
                Ok::<_, BoxError>(Response::new(Full::<Bytes>::from(body)))
            }
        });
        builder.map_ims(|ims| ims.transport(service))
    }

    fn secrets(&self) -> Vec<String> {
        self.secrets.lock().unwrap().clone()
    }
}

async fn until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !condition() {
        if start.elapsed() > limit {
            return false;
        }
        sleep(Duration::from_millis(20)).await;
    }
    true
}

#[tokio::test]
async fn file_change_during_a_token_request_costs_one_token() {
    let ims = MockIms::start().await;
    ims.set_secrets(MockIms::CLIENT_ID, ["one", "two"]);
    let file = CredentialsFile::new(r#""one""#, r#""openid""#);
    let tokens = TokenSource::builder_from_provider(file.open())
        .environment(Environment::custom(ims.url()).unwrap())
        .build()
        .unwrap();

    let held = ims.hold();
    tokens.warm_up();
    assert!(until(Duration::from_secs(5), || ims.token_requests() == 1).await);
    file.write(r#""two""#, r#""openid""#);
    sleep(4 * POLL).await;
    held.release();

    let is_noticed = || ims.last_token_request().unwrap().form("client_secret") == Some("two");
    assert!(until(Duration::from_secs(10), is_noticed).await, "the change is lost");
    sleep(Duration::from_secs(2)).await;
    assert_eq!(ims.token_requests(), 2);
}

#[tokio::test(start_paused = true)]
async fn changed_order_in_a_file_costs_no_token() {
    let (ims, file) = (Ims::default(), CredentialsFile::new(r#""one","two""#, r#""a","b","c""#));
    let tokens = ims.serve(TokenSource::builder_from_provider(file.open())).build().unwrap();
    tokens.token().await.unwrap();

    for _ in 0..10 {
        for (secrets, scopes) in
            [(r#""one","two""#, r#""c","b","a","a""#), (r#""two","one""#, r#""b","a","c""#)]
        {
            file.write(secrets, scopes);
            sleep(Duration::from_secs(10)).await;
        }
    }
    assert_eq!(ims.secrets().len(), 1);

    // The first secret of the file comes first in the next token request.
    tokens.refresh().await.unwrap();
    assert_eq!(ims.secrets()[1], "two");
}

#[tokio::test(start_paused = true)]
async fn each_meaningful_change_of_a_file_costs_one_token() {
    let (ims, file) = (Ims::default(), CredentialsFile::new(r#""one""#, r#""a""#));
    let tokens = ims.serve(TokenSource::builder_from_provider(file.open())).build().unwrap();
    tokens.token().await.unwrap();

    for (number, (secrets, scopes)) in [
        (r#""two","one""#, r#""a""#),
        (r#""two""#, r#""a""#),
        (r#""two""#, r#""a","b""#),
        (r#""one""#, r#""a""#),
    ]
    .into_iter()
    .enumerate()
    {
        file.write(secrets, scopes);
        sleep(MINUTE).await;
        assert_eq!(ims.secrets().len(), number + 2, "{secrets} {scopes}");
    }
}

/// One file for several sources.
#[derive(Clone)]
struct Shared(Arc<FileCredentials>);

impl ProvideCredentials for Shared {
    async fn credentials(&self) -> Result<Credentials, BoxError> {
        self.0.credentials().await
    }

    async fn changed(&self) {
        self.0.changed().await;
    }
}

#[tokio::test(start_paused = true)]
async fn each_source_of_one_file_notices_its_change() {
    let file = CredentialsFile::new(r#""one""#, r#""a""#);
    let shared = Shared(Arc::new(file.open()));
    let all: Vec<(Ims, TokenSource)> = (0..3)
        .map(|_| {
            let ims = Ims::default();
            let builder = TokenSource::builder_from_provider(shared.clone());
            let tokens = ims.serve(builder).build().unwrap();
            (ims, tokens)
        })
        .collect();
    for (_, tokens) in &all {
        tokens.token().await.unwrap();
    }

    file.write(r#""two""#, r#""a""#);
    sleep(MINUTE).await;

    for (ims, _) in &all {
        assert_eq!(ims.secrets(), ["one", "two"]);
    }
}

/// A vault that notifies again and again, whether its secret has changed or not.
struct Noisy {
    secret: watch::Receiver<&'static str>,
    reads: Arc<AtomicUsize>,
}

impl ProvideCredentials for Noisy {
    async fn credentials(&self) -> Result<Credentials, BoxError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let secret = *self.secret.borrow();
        if secret == "unreachable" {
            return Err("the vault is unreachable".into());
        }
        Ok(Credentials::new("client-id", secret))
    }

    async fn changed(&self) {}
}

#[tokio::test(start_paused = true)]
async fn notification_without_a_change_costs_no_token() {
    let (secret, receiver) = watch::channel("one");
    let (ims, reads) = (Ims::default(), Arc::new(AtomicUsize::new(0)));
    let vault = Noisy { secret: receiver, reads: Arc::clone(&reads) };
    let tokens = ims.serve(TokenSource::builder_from_provider(vault)).build().unwrap();
    tokens.token().await.unwrap();

    sleep(HOUR).await;
    assert_eq!(ims.secrets().len(), 1);
    let count = reads.load(Ordering::SeqCst);
    assert!(count < 600, "{count} reads of the vault in an hour");

    // An outage of the vault costs no token either, and hides no change.
    secret.send_replace("unreachable");
    sleep(HOUR).await;
    secret.send_replace("two");
    sleep(HOUR).await;
    assert_eq!(ims.secrets(), ["one", "two"]);
    drop(tokens);
}
