//! `MockIms` and our client against software that nobody here wrote: Adobe's own JavaScript
//! packages take the mock for IMS, and a certified OpenID provider gives our client its tokens.
//!
//! The packages come from npm when the tests run, into the target folder, in the versions of
//! `tests/node/package-lock.json`; none of them is part of this repository. `cargo test` leaves
//! these tests out, as they need a network: `cargo test --all-features --test node --
//! --include-ignored` runs them where there is Node.js 18 or later with npm, and says that it
//! skipped them where not. With `REQUIRE_NODE=1` what is missing is a failure.
#![cfg(all(feature = "mock", feature = "reqwest"))]
#![allow(clippy::unwrap_used)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::{Duration, SystemTime},
};

use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::{Child, ChildStdout, Command},
    sync::OnceCell,
    time::timeout,
};
use tower_adobe_auth::{
    Credentials, Environment, ErrorKind, Scopes, TokenError, TokenSource, mock::MockIms,
};

/// How long a download may take.
const DOWNLOAD: Duration = Duration::from_secs(300);

/// How long a script may take for a step.
const STEP: Duration = Duration::from_secs(60);

/// The oldest Node.js that the packages run on.
const OLDEST_NODE: u32 = 18;

// Each has characters that a form must encode; the second is one that OpenID providers allow.
const ODD_SECRET: &str = "p8e-a+b&c=d%41 é";
const ASCII_SECRET: &str = "p8e-a+b&c=d%41 e";

/// The folder with the scripts and their packages, or `None` where these tests are skipped.
async fn packages() -> Option<&'static Path> {
    static PACKAGES: OnceCell<Result<PathBuf, String>> = OnceCell::const_new();
    match PACKAGES.get_or_init(install).await {
        Ok(folder) => Some(folder),
        Err(reason) if env::var_os("REQUIRE_NODE").is_some_and(|value| value == "1") => {
            panic!("REQUIRE_NODE=1, but {reason}");
        }
        Err(reason) => {
            eprintln!("skipped: {reason}");
            None
        }
    }
}

async fn install() -> Result<PathBuf, String> {
    let version = run(Command::new("node").arg("--version"), STEP).await?;
    let version = String::from_utf8_lossy(&version.stdout).trim().to_owned();
    let major = version.trim_start_matches('v').split('.').next().unwrap().parse::<u32>();
    if !major.is_ok_and(|major| major >= OLDEST_NODE) {
        return Err(format!("Node.js {OLDEST_NODE} is needed, and this is {version}"));
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("node");
    fs::create_dir_all(&folder).unwrap();
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline"]);
    run(npm.current_dir(&folder), DOWNLOAD).await?;
    Ok(folder)
}

/// Runs a command to its end.
async fn run(command: &mut Command, bound: Duration) -> Result<Output, String> {
    let output = timeout(bound, command.stdin(Stdio::null()).kill_on_drop(true).output());
    let name = command_line(command);
    match output.await {
        Ok(Ok(output)) if output.status.success() => Ok(output),
        Ok(Ok(output)) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("`{name}` failed with {}:\n{said}", output.status))
        }
        Ok(Err(error)) => Err(format!("`{name}` could not be run: {error}")),
        Err(_) => Err(format!("`{name}` had not ended after {bound:?}")),
    }
}

fn command_line(command: &Command) -> String {
    let command = command.as_std();
    let words = [command.get_program()].into_iter().chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

fn http() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// What the mock's API says to a token.
async fn api_status(ims: &MockIms, token: &Value) -> u16 {
    let request = http()
        .get(format!("{}/v3/models", ims.api_url()))
        .bearer_auth(token.as_str().unwrap())
        .header("x-api-key", MockIms::CLIENT_ID);
    request.send().await.unwrap().status().as_u16()
}

/// A certified authorization server, which ends with this.
struct AuthorizationServer {
    url: String,
    lines: Lines<BufReader<ChildStdout>>,
    // Killed when it is dropped.
    child: Child,
}

impl AuthorizationServer {
    /// Starts it with tokens that live so many seconds.
    async fn start(packages: &Path, seconds: u32) -> Self {
        let mut child = Command::new("node")
            .arg("authorization_server.mjs")
            .current_dir(packages)
            .env_remove("NODE_OPTIONS")
            .env("CLIENT_ID", "client-id")
            .env("CLIENT_SECRET", ASCII_SECRET)
            .env("SECONDS", seconds.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut server = Self { url: String::new(), lines, child };
        let port: u16 = server.next_line().await.unwrap().parse().unwrap();
        server.url = format!("http://127.0.0.1:{port}");
        server
    }

    /// What it says next: `granted` or `refused: …` for each token request; nothing after its end.
    async fn next_line(&mut self) -> Option<String> {
        timeout(STEP, self.lines.next_line()).await.expect("a line in time").unwrap()
    }

    /// Ends it, and returns what it had still to say.
    async fn end(mut self) -> Vec<String> {
        self.child.kill().await.unwrap();
        let mut rest = Vec::new();
        while let Some(line) = self.next_line().await {
            rest.push(line);
        }
        rest
    }

    fn source(&self, credentials: Credentials) -> TokenSource {
        let environment = Environment::custom(&self.url).unwrap();
        TokenSource::builder(credentials).environment(environment).build().unwrap()
    }

    /// What it knows about a token (RFC 7662).
    async fn introspect(&self, token: &str) -> Value {
        let form = form_urlencoded::Serializer::new(String::new())
            .extend_pairs([("client_id", "client-id"), ("client_secret", ASCII_SECRET)])
            .append_pair("token", token)
            .finish();
        let request = http()
            .post(format!("{}/introspect", self.url))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form);
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        serde_json::from_slice(&response.bytes().await.unwrap()).unwrap()
    }
}

/// The provider takes scopes as RFC 6749 has them, which is one of the two ways that IMS does.
fn credentials(secret: &str) -> Credentials {
    let scopes = Scopes::from(["openid", "firefly_api"]).separated_by_spaces();
    Credentials::new("client-id", secret).with_scopes(scopes)
}

#[tokio::test]
#[ignore = "needs npm's registry; .ci/test runs it"]
async fn adobes_own_packages_take_the_mock_for_ims() {
    let Some(packages) = packages().await else { return };
    let ims = MockIms::builder()
        .client(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET)
        .client(MockIms::CLIENT_ID, ODD_SECRET)
        .start()
        .await;

    // The hosts of IMS are fixed in the packages, so a preloaded script leads them to the mock.
    let mut node = Command::new("node");
    node.args(["--require", "./lead_to_mock.cjs", "adobe_packages.cjs"])
        .current_dir(packages)
        .env_remove("NODE_OPTIONS")
        .env("MOCK_IMS_URL", ims.url())
        .env("CLIENT_ID", MockIms::CLIENT_ID)
        .env("PLAIN_SECRET", MockIms::CLIENT_SECRET)
        .env("ODD_SECRET", ODD_SECRET);
    let output = run(&mut node, STEP).await.unwrap();

    // Their side: what the packages hand to their users are tokens that the mock has issued, and
    // its refusal arrives in its own words.
    let got: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(got["production"]["token_type"], "bearer");
    assert_eq!(got["production"]["expires_in"], 86_399);
    assert_eq!(got["production"], got["cached"]);
    assert_ne!(got["production"]["access_token"], got["stage"]["access_token"]);
    assert_eq!(got["first"], got["second"]);
    for token in [&got["production"]["access_token"], &got["stage"]["access_token"], &got["first"]]
    {
        assert_eq!(api_status(&ims, token).await, 200);
    }
    let refusal = &got["refusal"];
    assert_eq!(refusal["code"], "IMS_TOKEN_ERROR");
    assert_eq!(refusal["sdkDetails"]["statusCode"], 400);
    assert_eq!(refusal["sdkDetails"]["error"], "invalid_client");
    assert_eq!(refusal["sdkDetails"]["errorDescription"], "invalid client_secret parameter");
    assert_eq!(refusal["sdkDetails"]["xDebugId"].as_str().unwrap().len(), 32);

    // The mock's side: these requests, in this form, and no others.
    let core_auth = |secret: &str| {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", "client-id"),
            ("client_secret", secret),
            ("org_id", "1@AdobeOrg"),
            // It sorts them.
            ("scope", "AdobeID,ff_apis,firefly_api,openid"),
        ];
        ("/ims/token/v2", form.map(owned).to_vec())
    };
    let firefly = [
        ("grant_type", "client_credentials"),
        ("client_id", "client-id"),
        ("client_secret", "client-secret"),
        ("scope", "openid,AdobeID,firefly_api,ff_apis"),
    ];
    let firefly = ("/ims/token/v3", firefly.map(owned).to_vec());
    let expected = [core_auth(ODD_SECRET), core_auth(ODD_SECRET), core_auth("wrong"), firefly];
    let requests = ims.recorded_token_requests();
    let came: Vec<_> =
        requests.iter().map(|came| (came.path(), came.form_pairs().to_vec())).collect();
    assert_eq!(came, expected);
    assert!(requests.iter().all(|request| request.method() == "POST"));
    assert!(requests[3].header("user-agent").unwrap().starts_with("FFS-SDK, JS"));
    ims.assert_token_requests(4);
    assert_eq!((ims.tokens_issued(), ims.refused_requests()), (3, 1));
    ims.assert_no_unauthorized();
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[tokio::test]
#[ignore = "needs npm's registry; .ci/test runs it"]
async fn a_certified_authorization_server_gives_our_client_one_token_for_all() {
    let Some(packages) = packages().await else { return };
    let mut server = AuthorizationServer::start(packages, 3_600).await;
    let tokens = server.source(credentials(ASCII_SECRET));

    let before = SystemTime::now();
    let callers: Vec<_> = (0..50)
        .map(|_| {
            let tokens = tokens.clone();
            tokio::spawn(async move { tokens.token().await.unwrap() })
        })
        .collect();
    let token = tokens.token().await.unwrap();
    for caller in callers {
        assert_eq!(caller.await.unwrap().expose_secret(), token.expose_secret());
    }
    let after = SystemTime::now();

    let life = Duration::from_secs(3_600);
    assert!((before + life..=after + life).contains(&token.expires_at()), "{token:?}");
    let known = server.introspect(token.expose_secret()).await;
    assert_eq!(known["active"], true);
    assert_eq!(known["client_id"], "client-id");
    assert_eq!(known["scope"], "openid firefly_api");
    assert_eq!(server.next_line().await.unwrap(), "granted");
    assert_eq!(server.end().await, [""; 0]);
}

#[tokio::test]
#[ignore = "needs npm's registry; .ci/test runs it"]
async fn tokens_of_a_certified_authorization_server_are_renewed_before_they_end() {
    let Some(packages) = packages().await else { return };
    let mut server = AuthorizationServer::start(packages, 8).await;
    let tokens = server.source(credentials(ASCII_SECRET));
    let first = tokens.token().await.unwrap();
    assert_eq!(server.next_line().await.unwrap(), "granted");

    // Nobody asks for a token meanwhile.
    assert_eq!(server.next_line().await.unwrap(), "granted");

    assert!(SystemTime::now() < first.expires_at());
    assert_eq!(server.introspect(first.expose_secret()).await["active"], true);
    let mut changes = tokens.subscribe();
    while tokens.token().await.unwrap().expose_secret() == first.expose_secret() {
        timeout(STEP, changes.changed()).await.unwrap();
    }
    let second = tokens.token().await.unwrap();
    assert!(second.expires_at() > first.expires_at());
    assert_eq!(server.introspect(second.expose_secret()).await["active"], true);
}

#[tokio::test]
#[ignore = "needs npm's registry; .ci/test runs it"]
async fn a_refusal_of_a_certified_authorization_server_is_permanent_and_told_in_its_words() {
    let Some(packages) = packages().await else { return };
    let mut server = AuthorizationServer::start(packages, 3_600).await;
    let refusal = |error: TokenError| {
        assert_eq!(error.kind(), ErrorKind::Rejected);
        assert!(!error.is_transient());
        (error.status().unwrap().as_u16(), error.oauth_error().unwrap().to_owned())
    };

    let wrong_secret = server.source(credentials("wrong")).token().await.unwrap_err();
    let forbidden = credentials(ASCII_SECRET)
        .with_scopes(Scopes::from(["firefly_api", "ff_apis"]).separated_by_spaces());
    let forbidden_scope = server.source(forbidden).token().await.unwrap_err();

    let description = wrong_secret.oauth_error_description();
    assert_eq!(description, Some("client authentication failed"));
    assert_eq!(refusal(wrong_secret), (401, "invalid_client".to_owned()));
    assert_eq!(refusal(forbidden_scope), (400, "invalid_scope".to_owned()));
    // Each was asked for once: what is permanent is not tried again.
    assert_eq!(server.next_line().await.unwrap(), "refused: invalid_client");
    assert_eq!(server.next_line().await.unwrap(), "refused: invalid_scope");
    assert_eq!(server.end().await, [""; 0]);
}
