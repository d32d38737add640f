//! What one flight has to do with the token store.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Weak},
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use super::{
    fleet::{Common, Pauses},
    flight::Outcome,
    shared::Shared,
};
use crate::{
    clock::{FAR, Moment},
    error::{BoxError, StoreError},
    store::{Lease, Payload, Saved, StoredToken, open, seal},
    token::{AccessToken, Origin, TokenResponse},
};

/// By how much the clocks of two machines may differ, where the store counts a life down.
const CLOCKS_DIFFER: Duration = Duration::from_secs(5 * 60);

/// The least time between two looks at the store.
const LEAST_PAUSE: Duration = Duration::from_millis(10);

/// One flight's dealings with the store.
pub(super) struct Visit {
    /// What is left of the time that the store may cost.
    left: Duration,
    /// It failed, or the flight has waited long enough: the rest is done without it.
    alone: bool,
    /// It was said that the value in the store is no good.
    warned: bool,
    /// The token that the flight brings is another process's.
    pub(super) taken: bool,
}

/// A token of another process, or the turn to ask for one.
pub(super) enum Asked {
    Token(AccessToken),
    Turn(Turn),
}

/// The right to ask for a token.
#[derive(Default)]
pub(super) struct Turn {
    /// Without one what is asked for is not shared.
    lease: Option<(String, Lease)>,
    /// A token of others that is due for renewal and its version: used if there is no new one.
    spare: Option<(AccessToken, u64)>,
}

/// What a look at the store brings.
enum Look {
    Taken(AccessToken),
    /// Newer than ours, but due for renewal.
    Due(AccessToken),
    Nothing,
}

impl Visit {
    pub(super) fn new(shared: &Shared) -> Self {
        let left = shared.common().map(|common| common.timeout);
        Self { left: left.unwrap_or_default(), alone: left.is_none(), warned: false, taken: false }
    }

    /// Looks for a token that another process has fetched, and waits for one that is being fetched.
    pub(super) async fn ask(&mut self, shared: &Arc<Shared>) -> Asked {
        let mut turn = Turn::default();
        match self.try_ask(shared, &mut turn).await {
            Some(token) => {
                self.taken = true;
                Asked::Token(token)
            }
            None => Asked::Turn(turn),
        }
    }

    async fn try_ask(&mut self, shared: &Arc<Shared>, turn: &mut Turn) -> Option<AccessToken> {
        let common = shared.common().filter(|_| !self.alone)?;
        let name = async || common.name().await.map_err(StoreError::new);
        let name = self.call(shared, "identity", name).await?;
        if let Some(token) = self.look(shared, common, &name, turn).await {
            return Some(token);
        }
        let mut waiting = None;
        let lease = loop {
            match self.lease(shared, common, &name).await? {
                Some(lease) => break lease,
                // What the wait costs is not the fault of the store.
                None => {
                    let (pauses, left) = waiting.get_or_insert_with(|| {
                        debug!("another process asks for an access token; waiting for it");
                        (Pauses::new(common.patience()), self.left)
                    });
                    if pauses.are_over() {
                        warn!("no token came from the process that has the lease; going on alone");
                        self.alone = true;
                        return None;
                    }
                    wait(common, &name, pauses.next()).await;
                    self.left = *left;
                    if let Some(token) = self.look(shared, common, &name, turn).await {
                        return Some(token);
                    }
                }
            }
        };
        turn.lease = Some((name.clone(), lease));
        // Who had the lease before may have saved a token since we looked.
        let token = self.look(shared, common, &name, turn).await?;
        self.release(shared, common, turn).await;
        Some(token)
    }

    /// The token in the store, if it is newer than ours and not due yet.
    async fn look(
        &mut self,
        shared: &Arc<Shared>,
        common: &Common,
        name: &str,
        turn: &mut Turn,
    ) -> Option<AccessToken> {
        let stored = self.call(shared, "load", || common.store.load(name)).await?;
        let count = |outcome| shared.telemetry().stored("load", outcome);
        let Some(stored) = stored else {
            count("miss");
            return None;
        };
        match adopt(shared, common, name, &stored) {
            Err(reason) => {
                count("unreadable");
                if !std::mem::replace(&mut self.warned, true) {
                    warn!(reason, "the value in the token store is no good; it is ignored");
                }
                None
            }
            Ok(Look::Taken(token)) => {
                count("hit");
                common.knows(stored.version());
                let (version, generation) = (stored.version(), token.generation());
                let expires_in = token.expires().remaining(shared.now()).as_secs_f64();
                info!(
                    version,
                    expires_in,
                    generation,
                    "took the access token of another process from the store"
                );
                Some(token)
            }
            Ok(Look::Due(token)) => {
                count("stale");
                turn.spare = Some((token, stored.version()));
                None
            }
            Ok(Look::Nothing) => {
                count("stale");
                None
            }
        }
    }

    async fn lease(
        &mut self,
        shared: &Arc<Shared>,
        common: &Common,
        name: &str,
    ) -> Option<Option<Lease>> {
        let above = common.above(shared.now().wall);
        let leased = async || {
            let owner = random_name().map_err(StoreError::new)?;
            let lease = common.store.lease(name, &owner, common.lease_ttl, above).await?;
            match &lease {
                Some(lease) if lease.version() <= above => {
                    Err(StoreError::new("the store granted a lease whose version is not higher"))
                }
                _ => Ok(lease),
            }
        };
        let lease = self.call(shared, "lease", leased).await?;
        let outcome = if lease.is_some() { "granted" } else { "held" };
        shared.telemetry().stored("lease", outcome);
        Some(lease)
    }

    async fn release(&mut self, shared: &Arc<Shared>, common: &Common, turn: &mut Turn) {
        let Some((name, lease)) = turn.lease.take() else { return };
        if self.call(shared, "release", || common.store.release(&name, &lease)).await.is_some() {
            shared.telemetry().stored("release", "released");
        }
    }

    /// Shares what the turn brought, and ends it.
    pub(super) async fn end(
        &mut self,
        shared: &Arc<Shared>,
        mut turn: Turn,
        outcome: Outcome,
    ) -> Outcome {
        let spare = turn.spare.take();
        if let (Some(common), Some((name, lease))) = (shared.common(), turn.lease.clone()) {
            if let Ok(token) = &outcome {
                common.knows(lease.version());
                self.save(shared, common, &name, &lease, token).await;
            }
            self.release(shared, common, &mut turn).await;
        }
        match (outcome, spare) {
            // It is due for renewal, but there is no better one.
            (Err(error), Some((spare, version))) if !is_retired(shared, &spare, shared.now()) => {
                // Taken once: the next failure is one, and is followed by a pause.
                shared.common().inspect(|common| common.knows(version));
                warn!(
                    error = &error as &dyn std::error::Error,
                    "could not fetch an access token; using the one in the store"
                );
                self.taken = true;
                Ok(spare)
            }
            (outcome, _) => outcome,
        }
    }

    async fn save(
        &mut self,
        shared: &Arc<Shared>,
        common: &Common,
        name: &str,
        lease: &Lease,
        token: &AccessToken,
    ) {
        let saved = async || {
            // Credentials may have changed while the token was asked for: then it is another's.
            if common.name().await.map_err(StoreError::new)? != name {
                return Ok(Saved::Superseded);
            }
            let text = |value: &Option<http::HeaderValue>| {
                value.as_ref().and_then(|value| value.to_str().ok()).map(str::to_owned)
            };
            let payload = Payload::new(
                token.expose_secret(),
                token.sent().wall,
                token.lifetime(),
                text(&token.headers().api_key),
                text(&token.headers().org_id),
            );
            let stored = seal(name, lease.version(), payload, &common.keys);
            let ttl = token.expires().remaining(shared.now());
            common.store.save(name, &stored.map_err(StoreError::new)?.with_ttl(ttl)).await
        };
        let outcome = match self.call(shared, "save", saved).await {
            Some(Saved::Saved) => "saved",
            Some(Saved::Superseded) => "superseded",
            None => return,
        };
        shared.telemetry().stored("save", outcome);
    }

    /// Asks the store something, within the time that is left. `None`: from here on alone.
    async fn call<T, F>(
        &mut self,
        shared: &Shared,
        operation: &'static str,
        call: impl FnOnce() -> F + Send,
    ) -> Option<T>
    where
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        let common = shared.common().filter(|_| !self.alone)?;
        let start = Instant::now();
        let answer = timeout(self.left, unwinding(async { call().await })).await;
        self.left = self.left.saturating_sub(start.elapsed());
        let (outcome, error) = match answer {
            Ok(Ok(answer)) => {
                if operation != "identity" && common.note(None) {
                    info!("the token store works again");
                }
                return Some(answer);
            }
            Ok(Err(error)) => ("failed", error),
            Err(_) => {
                let message = format!("it cost more than {:?} in all", common.timeout);
                ("timeout", StoreError::new(message))
            }
        };
        self.alone = true;
        shared.telemetry().stored(operation, outcome);
        warn!(
            operation,
            error = &error as &dyn std::error::Error,
            "the token store failed; going on without it"
        );
        common.note(Some(error));
        None
    }
}

/// A panic of the store is a failure of the store.
async fn unwinding<T>(
    call: impl Future<Output = Result<T, StoreError>> + Send,
) -> Result<T, StoreError> {
    let mut call = Box::pin(call);
    poll_fn(move |context| {
        // After a panic it is not polled again.
        catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(context)))
            .unwrap_or_else(|_| Poll::Ready(Err(StoreError::new("it panicked"))))
    })
    .await
}

/// Waits until something may have changed, or it is time to look again.
async fn wait(common: &Common, name: &str, pause: Duration) {
    let start = Instant::now();
    let changed = async {
        common.store.changed(name).await;
        Ok(())
    };
    // A panic ends the wait early; the next call will tell.
    let _ = timeout(pause, unwinding(changed)).await;
    sleep(LEAST_PAUSE.saturating_sub(start.elapsed())).await;
}

/// The token of a stored value, by this source's schedule and clocks.
fn adopt(
    shared: &Arc<Shared>,
    common: &Common,
    name: &str,
    stored: &StoredToken,
) -> Result<Look, &'static str> {
    let payload = open(name, stored, &common.keys)?;
    if stored.version() <= common.known() {
        return Ok(Look::Nothing);
    }
    let lifetime = payload.lifetime();
    if lifetime > FAR {
        return Err("its life is out of range");
    }
    let now = shared.now();
    let left = match stored.ttl() {
        Some(ttl) => payload.remaining(now.wall, CLOCKS_DIFFER).min(ttl),
        None => payload.remaining(now.wall, Duration::ZERO),
    };
    // Where the clock cannot say when that was, it lives from now on.
    let (sent, lifetime) = now.minus(lifetime - left).map_or((now, left), |sent| (sent, lifetime));
    if left.is_zero() {
        return Ok(Look::Nothing);
    }
    let mut response = TokenResponse::new(payload.access_token.as_str(), lifetime);
    response.client_id = payload.client_id;
    response.org_id = payload.org_id;
    let origin: Weak<dyn Origin> = Arc::downgrade(shared) as _;
    let token = AccessToken::new(response, sent, shared.next_generation(), origin)
        .map_err(|_| "it is no access token")?;
    let due = shared.settings.schedule.thresholds(sent, lifetime).renew.has_come(now);
    Ok(match () {
        () if is_retired(shared, &token, now) => Look::Nothing,
        () if due => Look::Due(token),
        () => Look::Taken(token),
    })
}

fn is_retired(shared: &Shared, token: &AccessToken, now: Moment) -> bool {
    shared.settings.schedule.thresholds(token.sent(), token.lifetime()).retire.has_come(now)
}

fn random_name() -> Result<String, BoxError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}
