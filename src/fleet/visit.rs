//! What one attempt to obtain a token has to do with the token store.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::time::{Instant, timeout};
use tracing::{debug, info, warn};

use super::{
    common::{Common, MAX_VERSION, Pauses, unwinding, wait},
    look::{Look, adopt, has_expired},
};
use crate::{
    clock::unix_millis,
    error::{BoxError, StoreError, TokenError},
    foreign::quietly,
    source::{Need, Reason, Stamp, Supplied},
    store::{Lease, Payload, Saved, is_sane, seal},
};

/// After a shorter pause it is not looked for what IMS told others.
const SHORT_PAUSE: Duration = Duration::from_millis(100);

/// One attempt's dealings with the store.
pub(super) struct Visit<'a> {
    pub(super) common: &'a Common,
    need: Need,
    /// What is left of the time that the store may cost.
    left: Duration,
    /// It failed, or the flight has waited long enough: the rest is done without it.
    pub(super) alone: bool,
    /// It was said that the value in the store is no good.
    warned: bool,
    owed: Option<Owed>,
}

/// The key of a lease that is to be given back, and the lease. Of version 0 is one of which it was
/// not heard whether it was granted.
pub(super) type Owed = (String, Lease);

/// A token of another process, the turn to ask for one, or what IMS told another process.
pub(super) enum Asked {
    Token(Supplied),
    /// The cached token stays in use.
    Keep,
    Turn(Turn),
    Told(Turn, TokenError),
}

/// The right to ask for a token.
#[derive(Default)]
pub(super) struct Turn {
    /// Without one what is asked for is not shared.
    lease: Option<Owed>,
    /// A token of others that is due for renewal: used if there is no new one.
    spare: Option<Supplied>,
    /// How many tokens were refused lately, one after the other.
    refusals: u32,
    /// IMS wants to be left alone.
    told: Option<TokenError>,
    /// The cached token stays in use.
    keep: bool,
}

impl<'a> Visit<'a> {
    pub(super) fn new(common: &'a Common, need: Need) -> Self {
        Self { common, need, left: common.timeout, alone: false, warned: false, owed: None }
    }

    /// Looks for a token that another process has fetched, and waits for one that is being fetched.
    pub(super) async fn ask(&mut self) -> Asked {
        let mut turn = Turn::default();
        match self.try_ask(&mut turn).await {
            Some(supplied) => Asked::Token(supplied),
            None if turn.keep => Asked::Keep,
            None => match turn.told.take() {
                Some(error) => Asked::Told(turn, error),
                None => Asked::Turn(turn),
            },
        }
    }

    async fn try_ask(&mut self, turn: &mut Turn) -> Option<Supplied> {
        let common = self.common;
        // Of an attempt that was cut short.
        self.owed = common.take_owed().or(self.owed.take());
        self.release().await;
        let name = self.name().await?;
        if let Some(supplied) = self.take(&name, turn).await {
            return Some(supplied);
        }
        if turn.keep {
            return None;
        }
        let mut waiting = None;
        let lease = loop {
            match self.lease(&name).await? {
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
                    if let Some(supplied) = self.take(&name, turn).await {
                        return Some(supplied);
                    }
                    if turn.keep {
                        return None;
                    }
                    // IMS is not as quick as that: no need to keep the store busy.
                    if pause > SHORT_PAUSE {
                        turn.told = self.notice(&name).await;
                    }
                    if turn.told.is_some() {
                        return None;
                    }
                }
            }
        };
        // Who had the lease before may have saved a token since we looked, or failed.
        let token = self.take(&name, turn).await;
        if token.is_none() && !turn.keep {
            turn.told = self.notice(&name).await;
        }
        if token.is_some() || turn.keep || turn.told.is_some() {
            self.release().await;
        } else {
            turn.lease = Some((name, lease));
        }
        token
    }

    /// The key of the token in the store. Credentials that take their time, or fail, are not the
    /// fault of the store.
    pub(super) async fn name(&mut self) -> Option<String> {
        let common = self.common;
        if self.alone {
            return None;
        }
        let name = unwinding(async { common.name().await.map_err(StoreError::new) });
        let name = timeout(common.attempt_timeout, name).await;
        if !matches!(name, Ok(Ok(_))) {
            debug!("it is not known who asks; going on without the token store");
            self.alone = true;
        }
        name.ok()?.ok()
    }

    /// Takes the token in the store in place of ours, if it is newer and not due yet.
    async fn take(&mut self, name: &str, turn: &mut Turn) -> Option<Supplied> {
        let supplied = self.look(name, turn).await?;
        self.common.knows(supplied.stamp.0);
        Some(supplied)
    }

    /// The token in the store, if it is newer than ours and not due yet. What else is
    /// found there is noted in `turn`.
    pub(super) async fn look(&mut self, name: &str, turn: &mut Turn) -> Option<Supplied> {
        let common = self.common;
        let stored = self.call("load", || common.store.load(name)).await?;
        if common.failed_at("load") {
            works(common);
        }
        let count = |outcome| common.telemetry.stored("load", outcome);
        let Some(stored) = stored else {
            count("miss");
            return None;
        };
        match adopt(common, name, &stored, self.need) {
            Err(reason) => {
                count("unreadable");
                if !std::mem::replace(&mut self.warned, true) {
                    warn!(reason, "the value in the token store is no good; it is ignored");
                }
                None
            }
            Ok(Look::Newer(supplied)) => {
                count("hit");
                works(common);
                Some(supplied)
            }
            Ok(Look::Due(supplied)) => {
                count("stale");
                turn.spare = Some(supplied);
                None
            }
            Ok(Look::Keep) => {
                count("hit");
                works(common);
                turn.keep = true;
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

    async fn lease(&mut self, name: &str) -> Option<Option<Lease>> {
        let common = self.common;
        let above = common.above(common.now().wall).max(self.need.newer_than.0);
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
        let lease = self.call("lease", leased).await?;
        self.owed = lease.clone().map(|lease| (name.to_owned(), lease));
        let outcome = if lease.is_some() { "granted" } else { "held" };
        common.telemetry.stored("lease", outcome);
        Some(lease)
    }

    async fn release(&mut self) {
        let common = self.common;
        let Some((name, lease)) = self.owed.clone() else { return };
        if self.call("release", || common.store.release(&name, &lease)).await.is_some() {
            common.telemetry.stored("release", "released");
            self.owed = None;
        }
    }

    /// Shares what the turn brought, and ends it. If it failed, IMS is left alone for `delay`.
    pub(super) async fn end(
        &mut self,
        turn: Turn,
        result: Result<Option<Supplied>, TokenError>,
    ) -> Result<Option<Supplied>, TokenError> {
        let Turn { lease, spare, refusals, .. } = turn;
        let common = self.common;
        // A token that was requested without a lease is ordered by the time of its request: after the
        // tokens that were leased before, and before those that are leased from now on.
        let sent = match &result {
            Ok(Some(supplied)) => unix_millis(supplied.sent.wall).min(MAX_VERSION),
            _ => 0,
        };
        let mut stamp = sent.max(self.need.stamp.0).max(common.known() + 1);
        if let Some(leased) = lease {
            match &result {
                Ok(Some(supplied)) => {
                    stamp = leased.1.version();
                    common.knows(stamp);
                    common.own.store(stamp, Ordering::Release);
                    let suspect = self.need.reason == Reason::Refused;
                    let refusals = if suspect { refusals.saturating_add(1) } else { 0 };
                    self.save(&leased, supplied, refusals).await;
                }
                Ok(None) => {}
                Err(error) => {
                    let asked = error.retry_after().unwrap_or_default();
                    let delay =
                        self.need.backoff_if_it_fails.max(asked.min(common.retry_after_cap));
                    self.tell_others(&leased, error, delay).await;
                }
            }
            self.release().await;
        }
        match (result, spare) {
            // It is due for renewal, but there is no better one.
            (Err(error), Some(spare)) if !has_expired(common, &spare, common.now()) => {
                // Taken once: the next failure is one, and is followed by a pause.
                common.knows(spare.stamp.0);
                warn!(
                    error = &error as &dyn std::error::Error,
                    "could not fetch an access token; using the one in the store"
                );
                Ok(Some(spare))
            }
            (Ok(Some(supplied)), _) => Ok(Some(Supplied { stamp: Stamp(stamp), ..supplied })),
            (result, _) => result,
        }
    }

    async fn save(&mut self, (name, lease): &Owed, supplied: &Supplied, refusals: u32) {
        let common = self.common;
        // Credentials may have changed while the token was asked for: then it is another's.
        if self.name().await.as_ref() != Some(name) {
            return;
        }
        let Supplied { response, sent, .. } = supplied;
        let saved = async || {
            let mut payload = Payload::new(
                response.expose_secret(),
                sent.wall,
                response.expires_in(),
                response.client_id.clone(),
                response.org_id.clone(),
            );
            payload.refusals = refusals;
            let stored = seal(name, lease.version(), payload, &common.keys);
            let ttl = sent.plus(response.expires_in()).remaining(common.now());
            common.store.save(name, &stored.map_err(StoreError::new)?.with_ttl(ttl)).await
        };
        let outcome = match self.call("save", saved).await {
            Some(Saved::Saved) => {
                works(common);
                "saved"
            }
            Some(Saved::Superseded) => "superseded",
            None => return,
        };
        common.telemetry.stored("save", outcome);
    }

    /// Asks the store something, within the time that is left. `None`: from here on alone.
    pub(super) async fn call<T, F>(
        &mut self,
        operation: &'static str,
        call: impl FnOnce() -> F + Send,
    ) -> Option<T>
    where
        F: Future<Output = Result<T, StoreError>> + Send,
    {
        let common = self.common;
        if self.alone {
            return None;
        }
        let start = Instant::now();
        let answer = timeout(self.left, unwinding(async { call().await })).await;
        self.left = self.left.saturating_sub(start.elapsed());
        let (outcome, error) = match answer {
            Ok(Ok(answer)) => return Some(answer),
            Ok(Err(error)) => ("failed", error),
            Err(_) => ("timeout", too_slow(common)),
        };
        common.telemetry.stored(operation, outcome);
        self.go_alone(operation, error);
        None
    }

    fn go_alone(&mut self, operation: &'static str, error: StoreError) {
        self.alone = true;
        warn!(
            operation,
            error = &error as &dyn std::error::Error,
            "the token store failed; going on without it"
        );
        self.common.note(Some((operation, error)));
    }
}

/// Leaves what could not be given back to whoever settles it.
impl Drop for Visit<'_> {
    fn drop(&mut self) {
        if let Some(owed) = self.owed.take() {
            self.common.leave_owed(owed);
        }
    }
}

/// Gives back the lease of an attempt that was cut short, or whose store was slow: others need not wait
/// for its end. No caller waits for this.
pub(super) async fn settle(common: &Common) {
    let Some((name, lease)) = common.take_owed() else { return };
    let release = unwinding(common.store.release(&name, &lease));
    let (outcome, error) = match timeout(common.timeout, release).await {
        Ok(Ok(())) => ("released", None),
        Ok(Err(error)) => ("failed", Some(error)),
        Err(_) => ("timeout", Some(too_slow(common))),
    };
    common.telemetry.stored("release", outcome);
    // One that was not given back ends by itself.
    let Some(error) = error else { return };
    if common.note(Some(("release", error.clone()))) {
        warn!(
            operation = "release",
            error = &error as &dyn std::error::Error,
            "the token store failed; going on without it"
        );
    }
}

/// Notes that the store is of use: it gave or took a token, or can be asked again for one where it could
/// not before. (One that is full still answers.)
fn works(common: &Common) {
    if common.note(None) {
        quietly(|| info!("the token store works again"));
    }
}

fn too_slow(common: &Common) -> StoreError {
    StoreError::new(format!("it cost more than {:?} in all", common.timeout))
}

fn random_name() -> Result<String, BoxError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}
