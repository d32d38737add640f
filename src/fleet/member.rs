//! [`Member`]: this process as a member of a fleet, and how it reads a record.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::evaluate::{Reader, Request, Verdict, evaluate};
use super::issuer::{Issuer, Snapshot};
use super::lease::Commits;
use super::record::Record;
use super::session::{Call, Session};
use crate::clock::{Clock, Deadline, Moment, WaitError, unix_millis};
use crate::error::TokenError;
use crate::foreign::{Panicked, caught};
use crate::source::{Reason, Schedule, Stamp, Supply};
use crate::store::{Acquired, Keys, StoredRecord, is_plausible, open};
use crate::telemetry::events;

/// The highest fencing token that follows a wall clock, however wrong the clock is.
pub(super) const MAX_FENCING_TOKEN: u64 = 1 << 48;

/// Shares the tokens of the supply inside with other processes, through a token store.
pub(super) struct Member {
    pub(super) inside: Arc<dyn Supply>,
    pub(super) issuer: Issuer,
    pub(super) keys: Keys,
    pub(super) session: Session,
    pub(super) commits: Commits,
    pub(super) schedule: Schedule,
    pub(super) clock: Clock,
    pub(super) lease_ttl: Duration,
    pub(super) attempt_timeout: Duration,
    /// The longest time for which a failure of another process is believed.
    pub(super) retry_after_cap: Duration,
    /// The stamp of the last token that this process requested itself.
    pub(super) requested: AtomicU64,
    /// The stamp of the last attempt of this process that failed.
    pub(super) failed: AtomicU64,
    /// When this process last requested a token without a lease.
    pub(super) alone: Mutex<Option<Moment>>,
    /// Notified if the credentials have changed, but their token could not be obtained.
    pub(super) is_change_open: Notify,
}

impl Member {
    /// Reads the credentials once for the whole attempt.
    pub(super) async fn snapshot(&self) -> Result<Snapshot, TokenError> {
        let limit = self.attempt_timeout;
        let snapshot = caught(self.issuer.snapshot(&self.keys));
        match Deadline::after(limit).wait_for(snapshot, || {}).await {
            Ok(Ok(snapshot)) => snapshot,
            Ok(Err(Panicked)) => Err(TokenError::panicked()),
            Err(WaitError::DeadlinePassed) => Err(TokenError::transient_fetch(
                "cannot read the credentials",
                format!("the credentials provider did not return within {limit:?}"),
            )),
            Err(WaitError::NoTimer) => Err(TokenError::no_timer()),
        }
    }

    /// Judges the record of an `acquire` for a process that needs a token newer than `newer_than` for this
    /// reason. Returns the verdict and its name in the metrics.
    pub(super) fn evaluate(
        &self,
        snapshot: &Snapshot,
        acquired: &Acquired,
        newer_than: Stamp,
        reason: Reason,
    ) -> (Verdict, &'static str) {
        let Some(stored) = acquired.record() else {
            return (Verdict::Request(Request::default()), "miss");
        };
        let now = self.clock.now();
        let record = match self.open(snapshot, stored, now) {
            Ok(record) => record,
            Err(reason) => {
                events::record_ignored(reason);
                let request = Request { is_unreadable: true, ..Request::default() };
                return (Verdict::Request(request), "unreadable");
            }
        };
        let reader = Reader {
            newer_than,
            reason,
            now,
            schedule: self.schedule,
            secrets: snapshot.secrets.as_deref(),
            requested: Stamp(self.requested.load(Ordering::Acquire)),
            failed: Stamp(self.failed.load(Ordering::Acquire)),
            alone: *self.alone.lock().unwrap_or_else(PoisonError::into_inner),
            max_hold: self.retry_after_cap,
        };
        let verdict = evaluate(record, stored.ttl(), reader);
        let outcome = match &verdict {
            Verdict::Take(_) | Verdict::Keep => {
                // A store that gave a token is of use, whatever failed before.
                self.session.record_success(Call::Commit);
                "hit"
            }
            Verdict::Fail { .. } => "failure",
            Verdict::Request(_) => "stale",
        };
        (verdict, outcome)
    }

    /// Opens and checks a record. The error is the reason why it cannot be used.
    fn open(
        &self,
        snapshot: &Snapshot,
        stored: &StoredRecord,
        now: Moment,
    ) -> Result<Record, &'static str> {
        if !is_plausible(stored.fencing_token(), self.unix_millis()) {
            return Err("the fencing token is out of range");
        }
        let record: Record = open(&snapshot.key, stored, &self.keys)?;
        record.check(stored.fencing_token(), stored.ttl(), now.wall)?;
        Ok(record)
    }

    /// The time by which fencing tokens are ordered.
    pub(super) fn unix_millis(&self) -> u64 {
        unix_millis(self.clock.now().wall).min(MAX_FENCING_TOKEN)
    }
}
