//! What one flight has to do with the token store.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::{
    fleet::{Common, Pauses, unwinding, wait},
    flight::Outcome,
    look::{Look, adopt, is_retired},
    shared::Shared,
    state::State,
};
use crate::{
    error::{BoxError, StoreError, TokenError},
    store::{Lease, Payload, Saved, is_sane, seal},
    token::AccessToken,
};

/// After a shorter pause it is not looked for what IMS told others.
const SHORT_PAUSE: Duration = Duration::from_millis(100);

/// One flight's dealings with the store.
pub(super) struct Visit {
    /// What is left of the time that the store may cost.
    left: Duration,
    /// It failed, or the flight has waited long enough: the rest is done without it.
    pub(super) alone: bool,
    /// The flight flies because credentials have changed.
    changed: bool,
    /// It was said that the value in the store is no good.
    warned: bool,
    /// The token that the flight brings is another process's.
    pub(super) taken: bool,
    owed: Option<Owed>,
}

/// The key of a lease that is to be given back, and the lease. Of version 0 is one of which it was
/// not heard whether it was granted.
pub(super) type Owed = (String, Lease);

/// A token of another process, the turn to ask for one, or what IMS told another process.
pub(super) enum Asked {
    Token(AccessToken),
    Turn(Turn),
    Told(Turn, TokenError),
}

/// The right to ask for a token.
#[derive(Default)]
pub(super) struct Turn {
    /// Without one what is asked for is not shared.
    lease: Option<Owed>,
    /// A token of others that is due for renewal and its version: used if there is no new one.
    spare: Option<(AccessToken, u64)>,
    /// How many tokens were refused lately, one after the other.
    refusals: u32,
    /// IMS wants to be left alone.
    told: Option<TokenError>,
}

impl Visit {
    pub(super) fn new(shared: &Shared) -> Self {
        let left = shared.common().map(|common| common.timeout);
        let (left, alone) = (left.unwrap_or_default(), left.is_none());
        Self { left, alone, changed: false, warned: false, taken: false, owed: None }
    }

    /// Looks for a token that another process has fetched, and waits for one that is being fetched.
    pub(super) async fn ask(&mut self, shared: &Arc<Shared>) -> Asked {
        let mut turn = Turn::default();
        match self.try_ask(shared, &mut turn).await {
            Some(token) => {
                self.taken = true;
                Asked::Token(token)
            }
            None => match turn.told.take() {
                Some(error) => Asked::Told(turn, error),
                None => Asked::Turn(turn),
            },
        }
    }

    async fn try_ask(&mut self, shared: &Arc<Shared>, turn: &mut Turn) -> Option<AccessToken> {
        let common = shared.common()?;
        self.changed |= common.take_changed();
        // Of a flight that panicked, or ended with its runtime.
        self.owed = common.take_owed().or(self.owed.take());
        self.release(shared, common).await;
        let name = self.name(shared).await?;
        if let Some(token) = self.take(shared, common, &name, turn).await {
            return Some(token);
        }
        let mut waiting = None;
        let lease = loop {
            match self.lease(shared, common, &name).await? {
                Some(lease) => break lease,
                None => {
                    let pauses = waiting.get_or_insert_with(|| {
                        debug!("another process asks for an access token; waiting for it");
                        Pauses::new(common.patience())
                    });
                    if pauses.are_over() {
                        warn!("no token came from the process that has the lease; going on alone");
                        self.alone = true;
                        return None;
                    }
                    let pause = pauses.next();
                    wait(common, &name, pause).await;
                    // What the wait costs is not the fault of the store, which has answered till now.
                    self.left = common.timeout;
                    if let Some(token) = self.take(shared, common, &name, turn).await {
                        return Some(token);
                    }
                    // IMS is not as quick as that: no need to keep the store busy.
                    if pause > SHORT_PAUSE {
                        turn.told = self.notice(shared, common, &name).await;
                    }
                    if turn.told.is_some() {
                        return None;
                    }
                }
            }
        };
        // Who had the lease before may have saved a token since we looked, or failed.
        let token = self.take(shared, common, &name, turn).await;
        if token.is_none() {
            turn.told = self.notice(shared, common, &name).await;
        }
        if token.is_some() || turn.told.is_some() {
            self.release(shared, common).await;
        } else {
            turn.lease = Some((name, lease));
        }
        token
    }

    /// The key of the token in the store. Credentials that take their time, or fail, are not the
    /// fault of the store.
    pub(super) async fn name(&mut self, shared: &Shared) -> Option<String> {
        let common = shared.common().filter(|_| !self.alone)?;
        let name = unwinding(async { common.name().await.map_err(StoreError::new) });
        let name = timeout(shared.settings.attempt_timeout, name).await;
        if !matches!(name, Ok(Ok(_))) {
            debug!("it is not known who asks; going on without the token store");
            self.alone = true;
        }
        name.ok()?.ok()
    }

    /// Takes the token in the store in place of ours, if it is newer and not due yet.
    async fn take(
        &mut self,
        shared: &Arc<Shared>,
        common: &Common,
        name: &str,
        turn: &mut Turn,
    ) -> Option<AccessToken> {
        let (token, version) = self.look(shared, name, turn).await?;
        common.knows(version);
        tell(shared, &token, version);
        Some(token)
    }

    /// The token in the store and its version, if it is newer than ours and not due yet. What else is
    /// found there is noted in `turn`.
    pub(super) async fn look(
        &mut self,
        shared: &Arc<Shared>,
        name: &str,
        turn: &mut Turn,
    ) -> Option<(AccessToken, u64)> {
        let common = shared.common()?;
        let stored = self.call(shared, "load", || common.store.load(name)).await?;
        if common.failed_at("load") {
            works(common);
        }
        let count = |outcome| shared.telemetry().stored("load", outcome);
        let Some(stored) = stored else {
            count("miss");
            return None;
        };
        match adopt(shared, common, name, &stored, self.changed) {
            Err(reason) => {
                count("unreadable");
                if !std::mem::replace(&mut self.warned, true) {
                    warn!(reason, "the value in the token store is no good; it is ignored");
                }
                None
            }
            Ok(Look::Newer(token, version)) => {
                count("hit");
                works(common);
                Some((token, version))
            }
            Ok(Look::Due(token)) => {
                count("stale");
                turn.spare = Some((token, stored.version()));
                None
            }
            Ok(Look::Known(refusals)) => {
                count("stale");
                turn.refusals = refusals;
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
        let owner = random_name();
        let owed = owner.as_ref().ok().map(|owner| (name.to_owned(), Lease::new(owner, 0)));
        self.owed = owed.filter(|_| !self.alone);
        let leased = async || {
            let owner = owner.map_err(StoreError::new)?;
            let lease = common.store.lease(name, &owner, common.lease_ttl, above).await?;
            let sane = |lease: &Lease| lease.version() > above && is_sane(lease.version(), above);
            if lease.as_ref().is_none_or(sane) {
                Ok(lease)
            } else {
                Err(StoreError::new("the version of the lease is not higher, or is out of range"))
            }
        };
        let lease = self.call(shared, "lease", leased).await?;
        self.owed = lease.clone().map(|lease| (name.to_owned(), lease));
        let outcome = if lease.is_some() { "granted" } else { "held" };
        shared.telemetry().stored("lease", outcome);
        Some(lease)
    }

    async fn release(&mut self, shared: &Shared, common: &Common) {
        let Some((name, lease)) = self.owed.clone() else { return };
        if self.call(shared, "release", || common.store.release(&name, &lease)).await.is_some() {
            shared.telemetry().stored("release", "released");
            self.owed = None;
        }
    }

    /// Gives back the lease if the flight was cut short, or the store was slow: others need not wait
    /// for its end. The flight has landed, and no caller waits for this.
    pub(super) async fn give_back(&mut self, shared: &Shared) {
        let (Some(common), Some((name, lease))) = (shared.common(), self.owed.clone()) else {
            return;
        };
        let release = unwinding(common.store.release(&name, &lease));
        let (outcome, error) = match timeout(common.timeout, release).await {
            Ok(Ok(())) => ("released", None),
            Ok(Err(error)) => ("failed", Some(error)),
            Err(_) => ("timeout", Some(too_slow(common))),
        };
        shared.telemetry().stored("release", outcome);
        // It was not given back: then it ends by itself.
        self.owed = None;
        if let Some(error) = error.filter(|_| !self.alone) {
            self.go_alone(common, "release", error);
        }
    }

    /// Leaves what could not be given back to the next flight.
    pub(super) fn leave(&mut self, shared: &Shared) {
        if let (Some(common), Some(owed)) = (shared.common(), self.owed.take()) {
            common.leave_owed(owed);
        }
    }

    /// Shares what the turn brought, and ends it. If it failed, IMS is left alone for `delay`.
    pub(super) async fn end(
        &mut self,
        shared: &Arc<Shared>,
        turn: Turn,
        outcome: Outcome,
        delay: Option<Duration>,
    ) -> Outcome {
        let Turn { lease, spare, refusals, .. } = turn;
        if let (Some(common), Some(leased)) = (shared.common(), lease) {
            match (&outcome, delay) {
                (Ok(token), _) => {
                    common.knows(leased.1.version());
                    let suspect = shared.read(State::is_suspect);
                    let refusals = if suspect { refusals.saturating_add(1) } else { 0 };
                    self.save(shared, common, &leased, token, refusals).await;
                }
                (Err(error), Some(delay)) => {
                    self.tell_others(shared, common, &leased, error, delay).await;
                }
                // It was given up.
                (Err(_), None) => {}
            }
            self.release(shared, common).await;
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
        (name, lease): &Owed,
        token: &AccessToken,
        refusals: u32,
    ) {
        // Credentials may have changed while the token was asked for: then it is another's.
        if self.name(shared).await.as_ref() != Some(name) {
            return;
        }
        let saved = async || {
            let text = |value: &Option<http::HeaderValue>| {
                value.as_ref().and_then(|value| value.to_str().ok()).map(str::to_owned)
            };
            let mut payload = Payload::new(
                token.expose_secret(),
                token.sent().wall,
                token.lifetime(),
                text(&token.headers().api_key),
                text(&token.headers().org_id),
            );
            payload.refusals = refusals;
            let stored = seal(name, lease.version(), payload, &common.keys);
            let ttl = token.expires().remaining(shared.now());
            common.store.save(name, &stored.map_err(StoreError::new)?.with_ttl(ttl)).await
        };
        let outcome = match self.call(shared, "save", saved).await {
            Some(Saved::Saved) => {
                works(common);
                "saved"
            }
            Some(Saved::Superseded) => "superseded",
            None => return,
        };
        shared.telemetry().stored("save", outcome);
    }

    /// Asks the store something, within the time that is left. `None`: from here on alone.
    pub(super) async fn call<T, F>(
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
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => ("failed", error),
            Err(_) => ("timeout", too_slow(common)),
        };
        shared.telemetry().stored(operation, outcome);
        self.go_alone(common, operation, error);
        None
    }

    fn go_alone(&mut self, common: &Common, operation: &'static str, error: StoreError) {
        self.alone = true;
        warn!(
            operation,
            error = &error as &dyn std::error::Error,
            "the token store failed; going on without it"
        );
        common.note(Some((operation, error)));
    }
}

/// Notes that the store is of use: it gave or took a token, or can be asked again for one where it could
/// not before. (One that is full still answers.)
fn works(common: &Common) {
    if common.note(None) {
        info!("the token store works again");
    }
}

fn too_slow(common: &Common) -> StoreError {
    StoreError::new(format!("it cost more than {:?} in all", common.timeout))
}

/// Says that the token of another process was taken.
pub(super) fn tell(shared: &Shared, token: &AccessToken, version: u64) {
    let expires_in = token.expires().remaining(shared.now()).as_secs_f64();
    let generation = token.generation();
    info!(
        version,
        expires_in, generation, "took the access token of another process from the store"
    );
}

fn random_name() -> Result<String, BoxError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}
