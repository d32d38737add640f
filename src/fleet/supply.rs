//! The supply of a source that shares its token with other processes.
//!
//! One attempt, from top to bottom:
//!
//! 1. Take one snapshot of the credentials.
//! 2. `acquire`: read the record, and take the lease if nobody holds it. `evaluate` says what the
//!    record means. While another process holds the lease, wait for a change and acquire again.
//! 3. With the lease, obtain a token from the supply inside.
//! 4. After the refresh has completed, `commit`: keep the outcome and end the lease.
//!
//! If the store cannot be used, the process goes on without it. If a process dies in the middle, its
//! lease ends by itself.

use std::sync::{PoisonError, atomic::Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use super::evaluate::{Request, Verdict};
use super::issuer::Snapshot;
use super::lease::{Commit, Commits, Lease};
use super::member::{MAX_FENCING_TOKEN, Member};
use super::record::{Record, SharedFailure, SharedToken};
use super::session::{Call, Session, Unavailable};
use super::watcher;
use crate::clock::{Deadline, unix_millis};
use crate::error::{StoreError, TokenError};
use crate::source::{BoxFuture, CALLERS_CAP, Need, Reason, Stamp, Supplied, Supply, Watching};
use crate::store::{LeaseRequest, is_plausible, seal};
use crate::telemetry::events;

/// The first pause before a process looks again at a lease that another one holds. The pauses grow, and
/// a notification ends one early.
const FIRST_PAUSE: Duration = Duration::from_millis(40);

/// The longest such pause.
const MAX_PAUSE: Duration = Duration::from_millis(500);

/// The shortest time between two calls, however often the store notifies.
const MIN_PAUSE: Duration = Duration::from_millis(40);

/// Within this time the processes make their own requests that have waited for another process in
/// vain, so that they do not make them at one moment.
const ALONE_SPREAD: Duration = Duration::from_secs(1);

/// How often an attempt reads a newer record of no use before it waits as for a held lease.
const MAX_REREADS: u32 = 3;

/// The shortest time for which the other processes leave IMS alone after a failure; it doubles with each
/// further one. Shorter than most backoffs of the process that failed, so that another process is as
/// likely to make the next attempt.
const FIRST_HOLD: Duration = Duration::from_millis(100);

/// The longest such time.
const MAX_HOLD: Duration = Duration::from_secs(4);

/// The same for a secret that IMS rejected, and for the processes that have it.
const FIRST_REJECTED_HOLD: Duration = Duration::from_secs(2);
const MAX_REJECTED_HOLD: Duration = Duration::from_secs(30);

impl Supply for Member {
    fn obtain(&self, need: Need) -> BoxFuture<'_, Result<Option<Supplied>, TokenError>> {
        Box::pin(self.attempt(need))
    }

    fn settle(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.commit_all())
    }

    fn credentials_changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            tokio::select! {
                () = self.inside.credentials_changed() => {}
                () = self.is_change_open.notified() => {}
            }
        })
    }

    fn watch<'a>(&'a self, source: &'a dyn Watching) -> BoxFuture<'a, ()> {
        Box::pin(watcher::watch(self, source))
    }

    fn longest(&self) -> Duration {
        // Twice: to read the credentials, and to request the token.
        let store = self.session.longest().saturating_mul(3).saturating_add(ALONE_SPREAD);
        let others = self.patience().saturating_add(store);
        self.inside.longest().saturating_add(self.attempt_timeout).saturating_add(others)
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn store_error(&self) -> Option<StoreError> {
        self.session.failure()
    }
}

/// The next step of an attempt after the store was asked.
enum Turn<'a> {
    /// Ends with this result; a failure with the newer token that is due, if there is one.
    End(Result<Option<Supplied>, TokenError>, Option<Supplied>),
    /// Requests a token, which is shared if there is a lease.
    Request(Option<Lease<'a>>, Box<Request>),
}

impl Member {
    async fn attempt(&self, need: Need) -> Result<Option<Supplied>, TokenError> {
        let snapshot = self.snapshot().await?;
        // Left over from an attempt that was cut short. The others may wait for this lease.
        let _ = Deadline::after(self.session.budget()).wait_for(self.commit_all(), || {}).await;
        let reason = need.reason;
        let (result, due) = match self.turn(&snapshot, &need).await {
            Turn::End(result, due) => (result, due),
            Turn::Request(lease, request) => self.request(&snapshot, need, lease, *request).await,
        };
        let result = match (result, due) {
            (Err(error), Some(due)) => {
                events::due_token_used(&error);
                if reason == Reason::CredentialsChanged {
                    // The token may belong to the old secret. No failure is recorded that would make the
                    // source try the new one before the token is due.
                    self.is_change_open.notify_one();
                }
                Ok(Some(due))
            }
            (result, _) => result,
        };
        if result.is_ok() {
            self.issuer.record_use(&snapshot);
        }
        result
    }

    /// Asks the store until this process knows what to do: until there is a record of use, the lease is
    /// granted, the store fails, or the other processes have had their time.
    async fn turn<'a>(&'a self, snapshot: &'a Snapshot, need: &Need) -> Turn<'a> {
        let mut alone = Box::<Request>::default();
        let mut lease = match Lease::new(&self.commits, &snapshot.key) {
            Ok(lease) => lease,
            Err(error) => {
                self.session.record_failure(Call::Acquire, StoreError::new(error));
                return Turn::Request(None, alone);
            }
        };
        let mut seen = need.newer_than.0;
        let mut rereads = 0;
        let mut wait = None;
        loop {
            let above = need.newer_than.0.max(self.unix_millis());
            let request =
                LeaseRequest::new(lease.owner(), self.lease_ttl).with_above(above).with_seen(seen);
            // From here on the store may have granted the lease, whether or not its answer arrives.
            lease.set_may_be_held(true);
            lease.asked_at = Some(self.clock.now());
            let Ok(acquired) = self.session.acquire(&snapshot.key, Some(&request)).await else {
                return Turn::Request(None, alone);
            };
            let granted = acquired.fencing_token();
            lease.set_may_be_held(granted.is_some());
            if granted.is_some_and(|token| token <= above || !is_plausible(token, above)) {
                let error = "the fencing token of the lease is not higher, or is out of range";
                self.session.record_failure(Call::Acquire, StoreError::new(error));
                return Turn::Request(None, alone);
            }
            lease.fencing_token = granted.unwrap_or_default();

            let version = acquired.record().map_or(0, |record| record.fencing_token());
            let (verdict, outcome) =
                self.evaluate(snapshot, &acquired, need.newer_than, need.reason);
            let outcome = match verdict {
                _ if granted.is_some() => "granted",
                Verdict::Request(_) if version <= seen => "held",
                _ => outcome,
            };
            self.session.count(Call::Acquire, outcome);
            match verdict {
                Verdict::Take(supplied) => return Turn::End(Ok(Some(supplied)), None),
                Verdict::Keep => return Turn::End(Ok(None), None),
                Verdict::Fail { error, due } => return Turn::End(Err(error), due),
                Verdict::Request(request) if granted.is_some() => {
                    return Turn::Request(Some(lease), Box::new(request));
                }
                Verdict::Request(request) => *alone = request,
            }
            if version > seen && rereads < MAX_REREADS {
                // Not granted because of this record, which is of no use here.
                (seen, rereads) = (version, rereads + 1);
                continue;
            }
            let wait = wait.get_or_insert_with(|| Wait::new(self.patience()));
            if wait.is_over() {
                events::lease_not_released();
                sleep(ALONE_SPREAD.mul_f64(fastrand::f64())).await;
                return Turn::Request(None, alone);
            }
            wait.next(&self.session, &snapshot.key).await;
        }
    }

    /// Requests a token, and leaves the outcome for the commit.
    async fn request(
        &self,
        snapshot: &Snapshot,
        need: Need,
        lease: Option<Lease<'_>>,
        request: Request,
    ) -> (Result<Option<Supplied>, TokenError>, Option<Supplied>) {
        let need = Need { credentials: snapshot.credentials.clone(), ..need };
        let (reason, newest, backoff) = (need.reason, need.newer_than, need.backoff_if_it_fails);
        let own_stamp = need.stamp;
        let result = self.inside.obtain(need).await;
        let lease = lease.filter(|lease| !self.is_late(lease, &result));
        let Some(mut lease) = lease else {
            // Ordered by the time of its request: after the tokens that were leased before, and before
            // those that are leased from now on.
            let result = result.map(|supplied| {
                supplied.map(|supplied| {
                    let sent = unix_millis(supplied.sent.wall).min(MAX_FENCING_TOKEN);
                    let stamp = Stamp(sent.max(newest.0 + 1).max(own_stamp.0));
                    self.requested.store(stamp.0, Ordering::Release);
                    let mut alone = self.alone.lock().unwrap_or_else(PoisonError::into_inner);
                    *alone = Some(supplied.sent);
                    Supplied { stamp, ..supplied }
                })
            });
            return (result, request.due);
        };
        let now = self.clock.now().wall;
        let (result, record) = match result {
            Ok(Some(supplied)) => {
                let supplied = Supplied { stamp: Stamp(lease.fencing_token), ..supplied };
                self.requested.store(lease.fencing_token, Ordering::Release);
                let refused = reason == Reason::Refused;
                let refusals = if refused { request.refusals.saturating_add(1) } else { 0 };
                let token = SharedToken::new(&supplied, refusals, snapshot.secrets.clone());
                (Ok(Some(supplied)), Some(Record::of_token(token, now)))
            }
            Ok(None) => (Ok(None), None),
            Err(error) => {
                let count = request.failures.saturating_add(1);
                self.failed.store(lease.fencing_token, Ordering::Release);
                // While callers wait, the next attempt comes sooner.
                let is_urgent = reason == Reason::Missing && error.is_transient();
                let backoff = if is_urgent { backoff.min(CALLERS_CAP / 2) } else { backoff };
                let holds = self.hold(&error, count, backoff);
                // A record that this process cannot read may hold a token of use to others.
                let (stamp, secrets) = (lease.fencing_token, snapshot.secrets.clone());
                let failure = SharedFailure::new(&error, stamp, count, secrets)
                    .filter(|_| !request.is_unreadable);
                let record =
                    failure.map(|it| Record::of_failure(it, holds, request.last.clone(), now));
                (Err(error), record)
            }
        };
        if let Some(record) = record {
            let ttl = record.ttl();
            match seal(&snapshot.key, lease.fencing_token, record, &self.keys) {
                Ok(record) => lease.set_record(record.with_ttl(ttl)),
                Err(error) => self.session.record_failure(Call::Commit, StoreError::new(error)),
            }
        }
        (result, request.due)
    }

    /// Returns whether a token was requested so long after the lease was asked for (because the process
    /// was stopped in between) that another process may have had the lease meanwhile. A token of that
    /// process has a higher fencing token, although it was requested earlier.
    fn is_late(&self, lease: &Lease<'_>, result: &Result<Option<Supplied>, TokenError>) -> bool {
        let (Ok(Some(supplied)), Some(asked_at)) = (result, lease.asked_at) else { return false };
        asked_at.plus(self.lease_ttl / 2).has_come(supplied.sent)
    }

    /// How long the other processes leave IMS alone after this failure, the `count`th in a row.
    ///
    /// Shorter than most backoffs of this process, so that another one can make the next attempt: its
    /// way to IMS may be better. It grows with the failures of the fleet, because each new process
    /// would start with the shortest backoff.
    fn hold(&self, error: &TokenError, count: u32, backoff: Duration) -> Duration {
        let asked = error.retry_after().unwrap_or_default();
        let delay = backoff.max(asked.min(self.retry_after_cap));
        let (first, cap) = match error.is_transient() {
            true => (FIRST_HOLD, MAX_HOLD),
            false => (FIRST_REJECTED_HOLD, MAX_REJECTED_HOLD),
        };
        let doublings = 1_u32.checked_shl(count.saturating_sub(1)).unwrap_or(u32::MAX);
        let shared = first.saturating_mul(doublings).min(cap);
        asked.clamp(delay / 2, delay).max(shared)
    }

    /// Does the commits that attempts have left: keeps their outcomes and ends their leases.
    async fn commit_all(&self) {
        while let Some(commit) = self.commits.take() {
            // Put back if this future is dropped, for the next attempt.
            let mut commit = Interrupted { commits: &self.commits, commit: Some(commit) };
            commit.run(&self.session).await;
        }
    }

    /// How long the leases of others are waited for: one whole lease, whose holder may have died, and
    /// half of the next.
    fn patience(&self) -> Duration {
        self.lease_ttl.saturating_mul(3) / 2
    }
}

/// A commit in progress.
struct Interrupted<'a> {
    commits: &'a Commits,
    commit: Option<Commit>,
}

impl Interrupted<'_> {
    async fn run(&mut self, session: &Session) {
        if let Some(Commit { key, owner, record }) = &self.commit {
            // A commit that failed is not repeated, and the next process requests a token. It need not
            // wait for the end of the lease if the store is only unable to keep the record.
            if session.commit(key, owner, record.as_ref()).await.is_err() && record.is_some() {
                let _: Result<_, Unavailable> = session.commit(key, owner, None).await;
            }
        }
        self.commit = None;
    }
}

impl Drop for Interrupted<'_> {
    fn drop(&mut self) {
        if let Some(commit) = self.commit.take() {
            self.commits.push(commit);
        }
    }
}

/// The wait for a lease that another process holds.
struct Wait {
    pause: Duration,
    until: Instant,
}

impl Wait {
    fn new(patience: Duration) -> Self {
        events::lease_held();
        Self { pause: FIRST_PAUSE, until: Instant::now() + patience }
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Waits for a change or the next pause, which grows, with jitter.
    async fn next(&mut self, session: &Session, key: &str) {
        let start = Instant::now();
        let pause = self.pause.mul_f64(0.5 + fastrand::f64());
        let pause = pause.min(self.until.saturating_duration_since(start));
        self.pause = self.pause.mul_f64(1.5).min(MAX_PAUSE);
        let _ = timeout(pause, session.changed(key)).await;
        sleep(MIN_PAUSE.saturating_sub(start.elapsed())).await;
    }
}
