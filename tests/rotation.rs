//! Client secrets rotated under traffic, over real sockets: the mock's Console, and the example
//! `rotate_secret` stopped after each of its steps.

#![cfg(feature = "reqwest")]
#![allow(clippy::unwrap_used)]

use std::{
    collections::HashSet,
    fs,
    ops::ControlFlow,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::join_all;
use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::sleep};
use tower::{Layer, ServiceExt};
use tower_adobe_auth::{
    AdobeAuthLayer, Credentials, Environment, FileCredentials, ImsClient, TokenError, TokenSource,
    mock::MockIms,
};

use self::rotation::{Event, Outcome, Rotation, Sink, Step};

#[path = "../examples/rotate_secret/rotation/mod.rs"]
mod rotation;

const ID: &str = MockIms::CLIENT_ID;
const OLD: &str = MockIms::CLIENT_SECRET;
const SCOPES: &str = "AdobeID, openid, read_organizations, \
                      additional_info.projectedProductContext, additional_info.roles, \
                      adobeio_api, read_client_secret, manage_client_secrets";

/// How many steps a rotation has that nothing stops.
const STEPS: usize = 7;

fn ims_client(ims: &MockIms, secret: &str) -> ImsClient {
    let credentials = Credentials::new(ID, secret).with_scopes(SCOPES);
    let environment = Environment::custom(ims.url()).unwrap();
    ImsClient::builder(credentials).environment(environment).build().unwrap()
}

/// Gets a token with this secret.
async fn token(ims: &MockIms, secret: &str) -> Result<String, TokenError> {
    let token = ims_client(ims, secret).request_token().await?;
    Ok(token.expose_secret().to_owned())
}

/// A request as one would write it with no layer at all.
async fn ask(method: Method, url: &str, token: Option<&str>, key: &str) -> (StatusCode, Value) {
    let mut request = reqwest::Client::new().request(method, url).header("x-api-key", key);
    if let Some(token) = token {
        request = request.bearer_auth(token);
    }
    let answer = request.send().await.unwrap();
    let (status, body) = (answer.status(), answer.bytes().await.unwrap());
    (status, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

#[tokio::test]
async fn the_console_lists_secrets_without_their_text_and_with_their_last_use() {
    let ims = MockIms::start().await;
    ims.set_secrets(ID, [OLD, "unused"]);
    let token = token(&ims, OLD).await.unwrap();

    let (status, list) = ask(Method::GET, &ims.secrets_url(ID), Some(&token), ID).await;

    assert_eq!(status, StatusCode::OK);
    assert_eq!(list["client_id"], ID);
    let [used, unused] = list["client_secrets"].as_array().unwrap().as_slice() else { panic!() };
    assert_eq!(unused["secret_usages"], Value::Null);
    assert_eq!(unused["expires_at"], "PERMANENT");
    assert_eq!(used["secret_usages"][0]["grant_type"], "client_credentials");
    let millis = |time: &Value| time.as_str().unwrap().parse::<u64>().unwrap();
    assert!(millis(&used["secret_usages"][0]["last_used_at"]) >= millis(&used["created_at"]));
    assert_ne!(used["uuid"], unused["uuid"]);
    assert!(used.get("client_secret").is_none());
    assert!(!list.to_string().contains(OLD));
}

#[tokio::test]
async fn an_added_secret_is_accepted_at_once_and_a_removed_one_refused() {
    let ims = MockIms::start().await;
    let url = ims.secrets_url(ID);
    let old = token(&ims, OLD).await.unwrap();
    let (_, list) = ask(Method::GET, &url, Some(&old), ID).await;
    let uuid = list["client_secrets"][0]["uuid"].as_str().unwrap();

    let (added, secret) = ask(Method::POST, &url, Some(&old), ID).await;
    let new = token(&ims, secret["client_secret"].as_str().unwrap()).await;
    let (third, _) = ask(Method::POST, &url, Some(&old), ID).await;
    let (removed, _) = ask(Method::DELETE, &format!("{url}/{uuid}"), Some(&old), ID).await;
    let refused = token(&ims, OLD).await.unwrap_err();
    let (unknown, _) = ask(Method::DELETE, &format!("{url}/{uuid}"), Some(&old), ID).await;

    assert_eq!(added, StatusCode::CREATED);
    assert!(secret["uuid"].is_string() && secret["secret_usages"].is_null());
    assert!(new.is_ok());
    assert_eq!(third, StatusCode::BAD_REQUEST, "two at a time");
    assert_eq!(removed, StatusCode::NO_CONTENT);
    assert_eq!(refused.oauth_error(), Some("invalid_client"));
    assert_eq!(unknown, StatusCode::NOT_FOUND, "and the old token lives on");
    assert_eq!(ims.secrets(ID), [secret["client_secret"].as_str().unwrap()]);
}

#[tokio::test]
async fn the_console_is_guarded_and_wants_all_of_its_scopes() {
    let ims = MockIms::start().await;
    let url = ims.secrets_url(ID);
    let good = token(&ims, OLD).await.unwrap();
    let credentials = Credentials::new(ID, OLD).with_scopes(SCOPES.replace("adobeio_api,", ""));
    let environment = Environment::custom(ims.url()).unwrap();
    let lacking = ImsClient::builder(credentials).environment(environment).build().unwrap();
    let lacking = lacking.request_token().await.unwrap().expose_secret().to_owned();

    let code = |(status, body): (StatusCode, Value)| {
        (status.as_u16(), body["error_code"].as_str().unwrap().to_owned())
    };
    let asked = |token, key| ask(Method::GET, &url, token, key);

    assert_eq!(code(asked(None, ID).await), (403, "403010".to_owned()));
    assert_eq!(code(asked(Some("unknown"), ID).await), (401, "401013".to_owned()));
    assert_eq!(code(asked(Some(&good), "other").await), (403, "403003".to_owned()));
    assert_eq!(code(asked(Some(&lacking), ID).await), (403, "403011".to_owned()));
    let other = url.replace("/credentials/", "/credentials/9");
    assert_eq!(ask(Method::GET, &other, Some(&good), ID).await.0, StatusCode::NOT_FOUND);
    let method = ask(Method::PUT, &url, Some(&good), ID).await.0;
    assert_eq!(method, StatusCode::METHOD_NOT_ALLOWED);
}

/// An IMS, a credentials file, and the rotation of what is in it.
struct Place {
    ims: MockIms,
    folder: tempfile::TempDir,
    rotation: Rotation,
}

impl Place {
    /// With an old secret that may be removed when it has not been used for so long.
    async fn new(quiet: Duration) -> Self {
        let document = json!({
            "CLIENT_ID": ID, "CLIENT_SECRETS": [OLD], "SCOPES": ["openid"], "OTHER": { "kept": 1 },
        });
        Self::with(quiet, &document).await
    }

    async fn with(quiet: Duration, document: &Value) -> Self {
        let ims = MockIms::start().await;
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("credentials.json");
        fs::write(&file, document.to_string()).unwrap();
        let rotation = Rotation {
            sink: Sink::new(file),
            environment: Environment::custom(ims.url()).unwrap(),
            secrets_url: ims.secrets_url(ID),
            quiet,
        };
        Self { ims, folder, rotation }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("credentials.json")
    }

    fn document(&self) -> Value {
        serde_json::from_slice(&fs::read(self.file()).unwrap()).unwrap()
    }

    /// The secrets that a service finds in the file.
    fn sink(&self) -> Vec<String> {
        let credentials = Credentials::from_console_file(self.file()).unwrap();
        [Some(credentials.client_secret()), credentials.next_secret()]
            .into_iter()
            .flatten()
            .map(|secret| secret.expose_secret().to_owned())
            .collect()
    }

    /// What must hold at any time.
    fn check(&self, event: &Event) {
        let (sink, adobe) = (self.sink(), self.ims.secrets(ID));
        assert!(sink.iter().any(|secret| adobe.contains(secret)), "none works after: {event}");
        assert!(adobe.len() <= 2, "{} at Adobe after: {event}", adobe.len());
        let shown = format!("{event} {event:?}");
        assert!(!sink.iter().chain(&adobe).any(|secret| shown.contains(secret)), "{event:?}");
    }

    /// One run, which is let go on after each step or not.
    async fn run(&self, mut go_on: impl FnMut(&Event) -> bool) -> Result<Outcome, String> {
        let run = self.rotation.run(|event| {
            self.check(event);
            if go_on(event) { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        run.await.map_err(|error| error.to_string())
    }

    /// Runs until it is finished, as often as it takes.
    async fn finish(&self, mut go_on: impl FnMut(&Event) -> bool) {
        for _ in 0..10 {
            match self.run(&mut go_on).await {
                Ok(Outcome::Finished) => return,
                Ok(Outcome::Waiting { remaining, .. }) => sleep(remaining).await,
                Ok(Outcome::Stopped) | Err(_) => {}
            }
        }
        panic!("the rotation does not finish");
    }

    /// That a rotation came to its end: one secret, a new one, the same here and there.
    fn assert_rotated(&self) {
        assert_eq!(self.sink(), self.ims.secrets(ID));
        assert_eq!(self.sink().len(), 1);
        assert_ne!(self.sink(), [OLD]);
    }
}

/// A service that watches the file, and gets a token for each of its requests.
struct Service {
    stop: Arc<AtomicBool>,
    task: JoinHandle<(usize, Vec<String>)>,
}

impl Service {
    fn start(place: &Place) -> Self {
        let file = FileCredentials::open(place.file()).unwrap();
        let tokens =
            TokenSource::builder_from_provider(file.with_poll_interval(Duration::from_millis(100)))
                .environment(Environment::custom(place.ims.url()).unwrap())
                .build()
                .unwrap();
        let layer = AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1");
        let client = layer.layer(reqwest::Client::new());
        let (stop, url) = (Arc::new(AtomicBool::new(false)), place.ims.api_url().parse().unwrap());
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let (mut sent, mut failures) = (0, Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                failures.extend(tokens.refresh().await.err().map(|error| error.to_string()));
                let request = reqwest::Request::new(Method::GET, reqwest::Url::clone(&url));
                match client.clone().oneshot(request).await {
                    Ok(answer) if answer.status() == StatusCode::OK => {}
                    Ok(answer) => failures.push(answer.status().to_string()),
                    Err(error) => failures.push(error.to_string()),
                }
                sent += 1;
                sleep(Duration::from_millis(30)).await;
            }
            (sent, failures)
        });
        Self { stop, task }
    }

    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        let (sent, failures) = self.task.await.unwrap();
        assert!(sent > 0);
        assert_eq!(failures, [""; 0], "of {sent} requests");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_stopped_after_any_step_and_run_again_costs_a_running_service_nothing() {
    let stopped_after = |stop: usize| async move {
        let place = Place::new(Duration::from_secs(1)).await;
        let service = Service::start(&place);
        let mut events = Vec::new();

        place
            .finish(|event| {
                events.push(event.clone());
                events.len() != stop
            })
            .await;

        service.stop().await;
        place.assert_rotated();
        assert_eq!(place.ims.refused_requests(), 0, "stopped after {stop}");
        let added = events.iter().filter(|event| matches!(event, Event::Added { .. })).count();
        let lost = events.iter().filter(|event| matches!(event, Event::Discarded { .. })).count();
        match stop {
            // Nobody had got to know the secret: it is replaced by another.
            2 => assert_eq!((added, lost), (2, 1)),
            // The rotation was over, and the next run began another.
            STEPS => assert_eq!((added, lost, events.len()), (2, 0, 2 * STEPS)),
            _ => assert_eq!((added, lost), (1, 0), "stopped after {stop}: {events:?}"),
        }
    };

    join_all((1..=STEPS).map(stopped_after)).await;
}

#[tokio::test]
async fn a_rotation_that_nothing_stops_takes_its_steps_in_order() {
    let place = Place::new(Duration::ZERO).await;
    let mut names = Vec::new();

    let outcome = place
        .run(|event| {
            names.push(format!("{event:?}").split(' ').next().unwrap().to_owned());
            true
        })
        .await;

    assert_eq!(outcome, Ok(Outcome::Finished));
    let order = ["Announced", "Added", "Kept", "Proven", "Stored", "Removed", "Forgotten"];
    assert_eq!(names, order);
    assert_eq!(names.len(), STEPS);
    place.assert_rotated();
}

#[tokio::test]
async fn a_request_that_fails_after_any_step_is_made_good_by_the_next_run() {
    for failing in 1..STEPS {
        let place = Place::new(Duration::ZERO).await;
        let mut done = 0;

        place
            .finish(|_| {
                done += 1;
                if done == failing {
                    place.ims.api_respond_next([500]);
                    place.ims.respond_next([tower_adobe_auth::mock::Answer::unavailable()]);
                }
                true
            })
            .await;

        place.assert_rotated();
    }
}

#[tokio::test]
async fn while_both_secrets_live_the_sink_holds_the_new_one_first_and_then_the_old_one() {
    let place = Place::new(Duration::from_secs(3600)).await;

    let outcome = place.run(|_| true).await.unwrap();

    assert!(matches!(outcome, Outcome::Waiting { .. }));
    let adobe = place.ims.secrets(ID);
    assert_eq!(adobe[0], OLD, "the oldest first");
    assert_eq!(place.sink(), [adobe[1].as_str(), OLD]);
    assert_eq!(place.document()["OTHER"], json!({ "kept": 1 }));
}

#[tokio::test]
async fn an_old_secret_that_is_still_used_is_kept_until_it_is_not() {
    let quiet = Duration::from_secs(1);
    let place = Place::new(quiet).await;
    place.run(|_| true).await.unwrap();
    sleep(quiet).await;

    token(&place.ims, OLD).await.unwrap();
    let used = place.run(|_| true).await.unwrap();

    let Outcome::Waiting { remaining, .. } = used else { panic!("it was removed: {used:?}") };
    assert_eq!(place.ims.secrets(ID).len(), 2);
    assert_eq!(place.sink().len(), 2);
    sleep(remaining).await;
    assert_eq!(place.run(|_| true).await, Ok(Outcome::Finished), "its own runs do not use it");
    place.assert_rotated();
}

#[tokio::test]
async fn a_dry_run_says_what_comes_first_and_changes_nothing() {
    for done in 0..STEPS {
        let place = Place::new(Duration::ZERO).await;
        let mut steps = 0;
        if done > 0 {
            let stop = |_: &Event| {
                steps += 1;
                steps != done
            };
            assert_eq!(place.run(stop).await, Ok(Outcome::Stopped));
        }
        let before = (fs::read(place.file()).unwrap(), place.ims.secrets(ID));

        let step = place.rotation.dry_run().await.unwrap();

        assert_eq!((fs::read(place.file()).unwrap(), place.ims.secrets(ID)), before);
        let fits = match done {
            0 => matches!(step, Step::Announce { .. }),
            1 => matches!(step, Step::Add),
            2 => matches!(step, Step::Discard { .. }),
            3 | 4 => matches!(step, Step::Prove { listed: true, .. }),
            5 => matches!(step, Step::Remove { .. }),
            _ => matches!(step, Step::Forget { .. }),
        };
        assert!(fits, "after {done} steps: {step}");
        assert!(!place.ims.secrets(ID).iter().any(|secret| step.to_string().contains(secret)));
    }
}

#[tokio::test]
async fn a_secret_that_somebody_else_added_or_uses_is_never_removed() {
    let place = Place::new(Duration::ZERO).await;
    place.run(|event| !matches!(event, Event::Announced { .. })).await.unwrap();
    place.ims.set_secrets(ID, [OLD, "of somebody else"]);
    token(&place.ims, "of somebody else").await.unwrap();

    let announced = place.run(|_| true).await.unwrap_err();

    assert!(announced.contains("who uses it?"), "{announced}");
    assert_eq!(place.ims.secrets(ID), [OLD, "of somebody else"]);

    place.ims.set_secrets(ID, [OLD]);
    place.finish(|_| true).await;
    let new = place.sink().remove(0);
    place.ims.set_secrets(ID, [new.as_str(), "not used yet"]);
    assert!(place.run(|_| true).await.unwrap_err().contains("who uses it?"));
    assert_eq!(place.ims.secrets(ID), [new.as_str(), "not used yet"]);
}

#[tokio::test]
async fn two_secrets_of_which_nothing_says_which_is_which_are_left_alone() {
    let document = json!({ "CLIENT_ID": ID, "CLIENT_SECRETS": [OLD, "another"] });
    let place = Place::with(Duration::ZERO, &document).await;
    place.ims.set_secrets(ID, [OLD, "another"]);

    let error = place.run(|_| true).await.unwrap_err();

    assert!(error.contains("nothing says which is which"), "{error}");
    assert_eq!(place.ims.secrets(ID), [OLD, "another"]);
    assert_eq!(place.document(), document);
}

#[tokio::test]
async fn secrets_that_other_hands_changed_in_the_file_are_left_alone() {
    let place = Place::new(Duration::ZERO).await;
    place.run(|event| !matches!(event, Event::Stored { .. })).await.unwrap();
    let mut document = place.document();
    document["CLIENT_SECRETS"].as_array_mut().unwrap().reverse();
    fs::write(place.file(), document.to_string()).unwrap();

    let error = place.run(|_| true).await.unwrap_err();

    assert!(error.contains("were changed"), "{error}");
    assert_eq!(place.ims.secrets(ID).len(), 2);
    assert_eq!(place.document(), document);
}

#[tokio::test]
async fn a_secret_that_was_removed_by_hand_meanwhile_is_dropped_or_replaced() {
    // The one that was kept and not yet proven.
    let place = Place::new(Duration::ZERO).await;
    place.run(|event| !matches!(event, Event::Kept { .. })).await.unwrap();
    place.ims.set_secrets(ID, [OLD]);

    place.finish(|_| true).await;

    place.assert_rotated();

    // The current one, while the old one lives.
    let place = Place::new(Duration::from_secs(3600)).await;
    place.run(|_| true).await.unwrap();
    place.ims.set_secrets(ID, [OLD]);

    assert_eq!(place.run(|_| true).await, Ok(Outcome::Finished));
    assert_eq!(place.sink(), [OLD]);
}

#[tokio::test]
async fn the_export_of_a_project_is_a_sink_too() {
    let credential = json!({ "client_id": ID, "client_secrets": [OLD], "scopes": ["openid"] });
    let document = json!({ "project": {
        "org": { "ims_org_id": "1@AdobeOrg" },
        "workspace": { "details": { "credentials": [
            { "integration_type": "apikey" },
            { "id": "7", "oauth_server_to_server": credential },
        ] } },
    } });
    let place = Place::with(Duration::ZERO, &document).await;

    place.finish(|_| true).await;

    place.assert_rotated();
    let details = &place.document()["project"]["workspace"]["details"];
    assert_eq!(details["credentials"][0], json!({ "integration_type": "apikey" }));
    assert_eq!(details["credentials"][1]["id"], "7");
}

#[cfg(unix)]
#[tokio::test]
async fn the_file_keeps_its_permissions_and_a_link_stays_a_link() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let place = Place::new(Duration::ZERO).await;
    let real = place.folder.path().join("real.json");
    fs::rename(place.file(), &real).unwrap();
    symlink(&real, place.file()).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();

    place.finish(|_| true).await;

    place.assert_rotated();
    assert!(place.file().is_symlink());
    assert_eq!(fs::metadata(&real).unwrap().permissions().mode() & 0o777, 0o640);
    let names = fs::read_dir(place.folder.path()).unwrap();
    let names: HashSet<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "nothing else is left in the folder: {names:?}");
}
