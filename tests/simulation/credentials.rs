//! [`Provider`]: credentials that change, from a vault that panics, fails and hangs.

use std::{future::pending, panic::resume_unwind, sync::Arc, time::Duration};

use tokio::{task, time::sleep};
use tower_adobe_auth::{BoxError, Credentials, ProvideCredentials};

use crate::{
    moment::Moment,
    world::{Simulation, World},
};

/// What the provider does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mood {
    Well,
    Panics,
    Fails,
    Hangs,
    ChangedPanics,
    ChangedAlwaysReturns,
}

pub(crate) struct Provider(pub(crate) Arc<Simulation>);

impl Provider {
    fn mood(&self) -> Mood {
        let now = self.0.now();
        match self.0.world().provider {
            (mood, until) if now.at < until => mood,
            _ => Mood::Well,
        }
    }
}

impl ProvideCredentials for Provider {
    async fn credentials(&self) -> Result<Credentials, BoxError> {
        let secret = self.0.world().secret.0;
        // The background task compares the credentials, and requests no token with them.
        let is_request = !self.0.world().watchers.contains(&task::try_id());
        match self.mood() {
            Mood::Panics => {
                if is_request {
                    self.0.request_begins(None).fails("provider panics");
                }
                resume_unwind(Box::new("a panic in the provider"));
            }
            Mood::Fails => {
                if is_request {
                    self.0.request_begins(None).fails("provider fails");
                }
                Err("the vault is sealed".into())
            }
            Mood::Hangs => {
                let _request = is_request.then(|| self.0.request_begins(None).hangs_longer());
                pending().await
            }
            _ => {
                if is_request {
                    self.0.world().secret_given = secret;
                } else {
                    let now = self.0.now();
                    self.0.world().compare(now, secret);
                }
                Ok(Credentials::new("client-id", format!("secret-{secret}")))
            }
        }
    }

    fn changed(&self) -> impl Future<Output = ()> + Send {
        // At the call: the credentials are compared before this is polled.
        self.0.world().watchers.insert(task::try_id());
        self.wait_for_change()
    }
}

impl World {
    /// The background task compares `secret` with that of the last request, and reports another one.
    fn compare(&mut self, now: Moment, secret: u64) {
        if self.requested_with.replace(secret).is_none_or(|last| last == secret) {
            return;
        }
        self.changed = Some(now.at);
        // A rejection of the old one says nothing about the new one, and is forgotten.
        // Failures after it need not be recorded, if they are not certain.
        let mut last = self.failed.iter().rev();
        let last = last.find(|failed| failed.is_rejection || failed.is_certain);
        let is_rejected = last.is_some_and(|failed| failed.is_rejection);
        if let Some(pause) = self.leave_alone.as_mut().filter(|_| is_rejected) {
            (pause.at_least, pause.at_least_while_asked) = (Duration::ZERO, Duration::ZERO);
            self.failures.min = 0;
        }
    }
}

impl Provider {
    async fn wait_for_change(&self) {
        let known = self.0.world().secret_given;
        loop {
            match self.mood() {
                Mood::ChangedPanics => {
                    self.0.note_trouble("changed panics");
                    resume_unwind(Box::new("a panic in changed"));
                }
                Mood::ChangedAlwaysReturns => break,
                _ => sleep(self.0.poll_interval).await,
            }
            if self.0.world().secret.0 != known {
                break;
            }
        }
        let now = self.0.now();
        let mut world = self.0.world();
        world.changed = Some(now.at);
        world.note(now, "credentials changed", known);
    }
}
