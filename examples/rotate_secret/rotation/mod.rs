//! A rotation: what is to be done next is decided anew before each step, from what the file and
//! Adobe hold. A run that was stopped anywhere is therefore taken up by the next one.

mod console;
mod plan;
mod sink;

use std::{
    fmt,
    ops::ControlFlow,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tower_adobe_auth::{BoxError, ClientSecret, Credentials, Environment, ImsClient, TokenError};

use self::{
    console::{Listed, SecretsApi},
    plan::plan,
    sink::{Held, Pending},
};
pub(crate) use self::{plan::Step, sink::Sink};

/// More steps than a rotation can have, whatever it was left with.
const MOST_STEPS: usize = 16;

/// What is rotated, and how.
///
/// One at a time: two rotations of the same credential at once could remove each other's secrets.
pub(crate) struct Rotation {
    pub(crate) sink: Sink,
    pub(crate) environment: Environment,
    /// `https://api.adobe.io/console/organizations/{org_id}/credentials/{credential_id}/secrets`.
    pub(crate) secrets_url: String,
    /// How long the last use of the old secret, and the storing of the new one, must lie back
    /// before the old one is removed. More than the life of a token: who still has the old secret
    /// shows by then.
    pub(crate) quiet: Duration,
}

/// What has just been done. Each is one change, at Adobe or in the file, or a proof.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Announced { current: String },
    Discarded { uuid: String },
    Added { uuid: String },
    Kept { uuid: String },
    Proven { uuid: String },
    Stored { uuid: String },
    Removed { uuid: String },
    Forgotten { uuid: String },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Announced { current } => {
                write!(f, "announced in the file: secret {current} is to be replaced")
            }
            Self::Discarded { uuid } => {
                write!(f, "removed secret {uuid}: nobody knows it, and it was never used")
            }
            Self::Added { uuid } => write!(f, "added secret {uuid} at Adobe"),
            Self::Kept { uuid } => write!(f, "kept secret {uuid} in the file, not in use yet"),
            Self::Proven { uuid } => write!(f, "proven: IMS issued a token for secret {uuid}"),
            Self::Stored { uuid } => {
                write!(f, "stored: secret {uuid} is the file's first, the old one its second")
            }
            Self::Removed { uuid } => write!(f, "removed secret {uuid} at Adobe"),
            Self::Forgotten { uuid } => write!(f, "dropped secret {uuid} from the file"),
        }
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The file and Adobe hold one secret, the same.
    Finished,
    /// Both secrets live, until the old one has not been used for long enough. To be run again.
    Waiting { old: String, remaining: Duration },
    /// The caller wanted no more.
    Stopped,
}

impl Rotation {
    /// Finishes the rotation that an earlier run began or, if there is none, begins one.
    ///
    /// `watch` is told of each step when it is done, and may stop the run there.
    pub(crate) async fn run(
        &self,
        mut watch: impl FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<Outcome, BoxError> {
        let api = self.api()?;
        for steps in 0..MOST_STEPS {
            let (held, step) = self.next(&api, steps == 0).await?;
            match step {
                Step::Done => return Ok(Outcome::Finished),
                Step::Wait { old, remaining } => return Ok(Outcome::Waiting { old, remaining }),
                step => {
                    if self.take(&api, held, step, &mut watch).await?.is_break() {
                        return Ok(Outcome::Stopped);
                    }
                }
            }
        }
        Err("the rotation does not come to an end: does another one run?".into())
    }

    /// What [`run`](Self::run) would do first, and nothing done. (A token is issued for it.)
    pub(crate) async fn dry_run(&self) -> Result<Step, BoxError> {
        let (_, step) = self.next(&self.api()?, true).await?;
        Ok(step)
    }

    async fn next(&self, api: &SecretsApi, begin: bool) -> Result<(Held, Step), BoxError> {
        let held = self.sink.read()?;
        let listed = api.list(held.credentials.client_id()).await?;
        let step = plan(&held, &listed, now_in_millis(), self.quiet, begin)?;
        Ok((held, step))
    }

    async fn take(
        &self,
        api: &SecretsApi,
        mut held: Held,
        step: Step,
        watch: &mut impl FnMut(&Event) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, BoxError> {
        let event = match step {
            // From here on a secret that nobody knows can only be one that this rotation added.
            Step::Announce { current } => {
                held.notes.uuids = vec![current.clone()];
                held.notes.adding = true;
                self.sink.write(held)?;
                Event::Announced { current }
            }
            Step::Discard { uuid } => {
                api.remove(&uuid).await?;
                Event::Discarded { uuid }
            }
            Step::Add => {
                let (Listed { uuid, .. }, client_secret) = api.add().await?;
                if watch(&Event::Added { uuid: uuid.clone() }).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                // Adobe tells it this once: first of all it must not be lost.
                held.notes.pending = Some(Pending { uuid: uuid.clone(), client_secret });
                self.sink.write(held)?;
                Event::Kept { uuid }
            }
            Step::Prove { uuid, listed } => {
                let pending = held.notes.pending.take().ok_or("there is nothing to prove")?;
                let secret = ClientSecret::from(pending.client_secret);
                match self.prove(&held.credentials, &secret).await {
                    // Somebody has removed it: another one is added in its place.
                    Err(error) if !listed && refused(&error) => {
                        self.sink.write(held)?;
                        return Ok(watch(&Event::Forgotten { uuid }));
                    }
                    proof => proof?,
                }
                if watch(&Event::Proven { uuid: uuid.clone() }).is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                held.notes.adding = false;
                held.notes.uuids.insert(0, uuid.clone());
                held.notes.stored_at = now_in_millis();
                held.secrets.insert(0, secret);
                self.sink.write(held)?;
                Event::Stored { uuid }
            }
            // It cannot be had back: once more, the other one must work.
            Step::Remove { old } => {
                self.prove(&held.credentials, held.credentials.client_secret()).await?;
                api.remove(&old).await?;
                Event::Removed { uuid: old }
            }
            Step::Forget { uuid } => {
                let at = held.notes.uuids.iter().position(|known| *known == uuid);
                let at = at.ok_or("there is nothing to forget")?;
                let secret = held.secrets.remove(at);
                held.notes.uuids.remove(at);
                // The old one is dropped as it was removed; the current one, only if it is dead.
                if at == 0 && self.prove(&held.credentials, &secret).await.is_ok() {
                    return Err(format!("secret {uuid} works and is not listed: run again").into());
                }
                self.sink.write(held)?;
                Event::Forgotten { uuid }
            }
            Step::Wait { .. } | Step::Done => return Ok(ControlFlow::Continue(())),
        };
        Ok(watch(&event))
    }

    /// Gets a token with this secret and no other, for the scopes that the service wants.
    async fn prove(&self, service: &Credentials, secret: &ClientSecret) -> Result<(), BoxError> {
        let mut credentials = Credentials::new(service.client_id(), secret.clone())
            .with_scopes(service.scopes().clone());
        if let Some(org_id) = service.org_id() {
            credentials = credentials.with_org_id(org_id);
        }
        let ims = ImsClient::builder(credentials).environment(self.environment.clone()).build()?;
        ims.request_token().await?;
        Ok(())
    }

    fn api(&self) -> Result<SecretsApi, BoxError> {
        let held = self.sink.read()?;
        SecretsApi::new(held.credentials, self.environment.clone(), &self.secrets_url)
    }
}

/// Whether IMS knows no such secret, and has not merely failed.
fn refused(error: &BoxError) -> bool {
    let error = error.downcast_ref::<TokenError>();
    error.and_then(TokenError::oauth_error) == Some("invalid_client")
}

fn now_in_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
