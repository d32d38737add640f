//! The client secret of a running service, rotated without a failed request. An example, not
//! public API: take it and make it yours.
//!
//! Without a file it needs no set-up: IMS, the Console and an API are played by `MockIms` on
//! loopback, a service with traffic watches a credentials file, and a rotation is stopped in its
//! worst moment and run again.
//!
//! ```sh
//! cargo run --example rotate_secret
//! ```
//!
//! With a file of the Console it talks to Adobe, and rotates the secret that is in it:
//!
//! ```sh
//! export ADOBE_CONSOLE_ORG_ID=... ADOBE_CREDENTIAL_ID=...
//! cargo run --example rotate_secret -- --dry-run /etc/adobe/credentials.json
//! cargo run --example rotate_secret -- /etc/adobe/credentials.json
//! ```
//!
//! | variable | holds |
//! | --- | --- |
//! | `ADOBE_CONSOLE_ORG_ID` | the organization, by the number in the Console's URLs |
//! | `ADOBE_CREDENTIAL_ID` | the credential, by the number in the Console's URLs |
//! | `ADOBE_QUIET_HOURS` | how long the old secret must not have been used; default: 25, an hour more than tokens live |
//!
//! The project needs the "I/O Management API", which lets a credential manage its own secrets. Run
//! it once a day: a run goes on with what the last one left, and begins the next rotation only when
//! the last is over. A run of the first kind ends with two secrets in the file, and the old one is
//! removed by a later run, when nobody has used it for the quiet hours.
//!
//! | a run stops | at Adobe | in the file | the next run |
//! | --- | --- | --- | --- |
//! | after the announcement | old | old | adds |
//! | after the addition, before it is kept | old, lost | old | removes the lost one, adds another |
//! | before or after the proof | old, new | old (the new one kept aside) | proves again, stores |
//! | after the storing | old, new | new, old | waits, removes |
//! | after the removal | new | new, old | drops the old one from the file |

mod rotation;

use std::{
    env,
    ops::ControlFlow,
    path::Path,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use reqwest::{Client, Method, Request, StatusCode};
use tokio::{task::JoinHandle, time::sleep};
use tower::{Layer, Service, ServiceExt};
use tower_adobe_auth::{
    AdobeAuth, AdobeAuthLayer, BoxError, Credentials, Environment, FileCredentials, ImsClient,
    TokenSource, mock::MockIms,
};

use self::rotation::{Event, Outcome, Rotation, Sink};

#[tokio::main]
async fn main() -> ExitCode {
    let (options, files): (Vec<_>, Vec<_>) = env::args().skip(1).partition(|a| a.starts_with('-'));
    let dry_run = options == ["--dry-run"];
    let ran = match files.as_slice() {
        _ if !options.is_empty() && !dry_run => Err("the only option is --dry-run".into()),
        [] => demonstrate(dry_run).await,
        [file] => rotate(file, dry_run).await,
        _ => Err("one file at a time".into()),
    };
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                eprintln!("  because {error}");
                cause = error.source();
            }
            ExitCode::FAILURE
        }
    }
}

/// The real thing.
async fn rotate(file: &str, dry_run: bool) -> Result<(), BoxError> {
    let variable = |name: &str| env::var(name).map_err(|_| format!("{name} is not set"));
    let (org, credential) = (variable("ADOBE_CONSOLE_ORG_ID")?, variable("ADOBE_CREDENTIAL_ID")?);
    for id in [&org, &credential] {
        if !id.chars().all(|sign| sign.is_ascii_alphanumeric()) {
            return Err(format!("`{id}` is no id as in the Console's URLs").into());
        }
    }
    let hours = match variable("ADOBE_QUIET_HOURS") {
        Ok(hours) => hours.parse().map_err(|_| "ADOBE_QUIET_HOURS is no number of hours")?,
        Err(_) => 25,
    };
    let rotation = Rotation {
        sink: Sink::new(file),
        environment: Environment::Production,
        secrets_url: format!(
            "https://api.adobe.io/console/organizations/{org}/credentials/{credential}/secrets"
        ),
        quiet: Duration::from_secs(60 * 60 * hours),
    };
    if dry_run {
        println!("would {}", rotation.dry_run().await?);
        return Ok(());
    }
    run(&rotation, None).await.map(drop)
}

/// Runs the rotation, stopped after a step if one is given, and tells what happens.
async fn run(rotation: &Rotation, stop: Option<fn(&Event) -> bool>) -> Result<Outcome, BoxError> {
    let outcome = rotation
        .run(|event| {
            println!("  {event}");
            match stop {
                Some(stop) if stop(event) => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        })
        .await?;
    match &outcome {
        Outcome::Finished => println!("  finished: one secret, in the file and at Adobe"),
        Outcome::Waiting { old, remaining } => {
            println!("  the old secret {old} stays for {remaining:.1?} at least: run again then");
        }
        Outcome::Stopped => println!("  stopped here, as by a power failure"),
    }
    Ok(outcome)
}

/// A service, its traffic, and a rotation, all on loopback.
async fn demonstrate(dry_run: bool) -> Result<(), BoxError> {
    let ims = MockIms::start().await;
    // Short lives, so that the service asks for tokens all the time.
    ims.set_token_lifetime(Duration::from_secs(2));
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("credentials.json");
    std::fs::write(&file, console_file(MockIms::CLIENT_SECRET))?;
    let rotation = Rotation {
        sink: Sink::new(&file),
        environment: Environment::custom(ims.url())?,
        secrets_url: ims.secrets_url(MockIms::CLIENT_ID),
        quiet: Duration::from_secs(3),
    };
    println!("MockIms plays IMS and the Console; a service watches its credentials file\n");

    let before = std::fs::read(&file)?;
    println!("a dry run\n  would {}", rotation.dry_run().await?);
    check(ims.secrets(MockIms::CLIENT_ID) == [MockIms::CLIENT_SECRET], "nothing is added")?;
    check(std::fs::read(&file)? == before, "the file is as it was")?;
    if dry_run {
        return Ok(());
    }

    let traffic = Traffic::start(&file, &ims)?;
    sleep(Duration::from_millis(500)).await;

    println!("\na run, stopped before the new secret is kept anywhere");
    let stopped = run(&rotation, Some(|event| matches!(event, Event::Added { .. }))).await?;
    check(stopped == Outcome::Stopped, "it was stopped")?;

    println!("\nrun again");
    let waiting = run(&rotation, None).await?;
    check(matches!(waiting, Outcome::Waiting { .. }), "the old secret was used just now")?;

    println!("\nand again, when the old secret has not been used for a while");
    let mut outcome = waiting;
    for _ in 0..10 {
        let Outcome::Waiting { remaining, .. } = outcome else { break };
        sleep(remaining).await;
        outcome = run(&rotation, None).await?;
    }
    check(outcome == Outcome::Finished, "the rotation has come to its end")?;

    // The tokens of before end, and the service goes on with the new secret.
    sleep(Duration::from_secs(2)).await;
    let (sent, failed) = traffic.stop().await?;
    println!("\nthe service meanwhile");
    println!("  requests sent            {sent}");
    println!("  of them failed           {failed}");
    println!("  401 answers              {}", ims.api_unauthorized());
    println!("  token requests refused   {}", ims.refused_requests());
    check(sent > 0 && failed == 0 && ims.api_unauthorized() == 0, "no request has failed")?;

    let (secrets, credentials) =
        (ims.secrets(MockIms::CLIENT_ID), Credentials::from_console_file(&file)?);
    let new = credentials.client_secret().expose_secret();
    check(secrets == [new] && new != MockIms::CLIENT_SECRET, "one secret is left, a new one")?;
    check(credentials.next_secret().is_none(), "the file has that one and no other")?;
    let last = ims.last_token_request().ok_or("no token was requested")?;
    check(last.form("client_secret") == Some(new), "the service uses the new secret")?;
    let old = Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET);
    let refused = ImsClient::builder(old).environment(rotation.environment.clone()).build()?;
    check(refused.request_token().await.is_err(), "the old secret is refused")?;
    println!("\nthe old secret is refused, and the service uses the new one");
    Ok(())
}

fn console_file(secret: &str) -> String {
    let client = MockIms::CLIENT_ID;
    format!(
        r#"{{"CLIENT_ID": "{client}", "CLIENT_SECRETS": ["{secret}"], "ORG_ID": "1@AdobeOrg"}}"#
    )
}

fn check(holds: bool, what: &str) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(format!("this does not hold: {what}").into()) }
}

/// A service that sends a request every few milliseconds, and knows nothing of rotations.
struct Traffic {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(usize, usize)>,
}

impl Traffic {
    fn start(file: &Path, ims: &MockIms) -> Result<Self, BoxError> {
        let credentials =
            FileCredentials::open(file)?.with_poll_interval(Duration::from_millis(100));
        let tokens = TokenSource::builder_from_provider(credentials)
            .environment(Environment::custom(ims.url())?)
            .build()?;
        let layer = AdobeAuthLayer::new(tokens).allow_host("127.0.0.1");
        let policy = layer.allowed_hosts().redirect_policy();
        let client = layer.layer(Client::builder().redirect(policy).no_proxy().build()?);

        let (stop, api) = (Arc::new(AtomicBool::new(false)), ims.api_url().to_owned());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let (mut sent, mut failed) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                let answer = get(client.clone(), &api).await;
                sent += 1;
                failed += usize::from(!matches!(answer, Ok(StatusCode::OK)));
                sleep(Duration::from_millis(5)).await;
            }
            (sent, failed)
        });
        Ok(Self { stop, task })
    }

    /// How many requests it has sent, and how many of them failed.
    async fn stop(self) -> Result<(usize, usize), BoxError> {
        self.stop.store(true, Ordering::Relaxed);
        Ok(self.task.await?)
    }
}

async fn get(mut client: AdobeAuth<Client>, api: &str) -> Result<StatusCode, BoxError> {
    let request = Request::new(Method::GET, format!("{api}/v3/images").parse()?);
    Ok(client.ready().await?.call(request).await?.status())
}
