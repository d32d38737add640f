//! [`Session`]: the calls of the token store, each within its budget, and the health of the store.

use std::error::Error;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::timer;
use crate::error::StoreError;
use crate::foreign::caught;
use crate::store::{Acquired, CommitOutcome, ErasedTokenStore, LeaseRequest, StoredRecord};
use crate::telemetry::{StoreTelemetry, events};

/// A budget is counted in this many slices. A slice whose timer fires late counts once, so that time in
/// which this process did not run, or was busy with other work, is not taken for time of the store.
const SLICES: u32 = 10;

/// The most budgets of a call that waits for its turn at a store that responds to others.
const MAX_BUDGETS: u32 = 8;

/// How much more time than a call that callers wait for a commit gets, for which nobody waits.
const COMMIT_BUDGETS: u32 = 10;

/// The store was not usable; the reason is in [`Session::failure`].
#[derive(Debug)]
pub(super) struct Unavailable;

/// The calls of a store, in the order of the trust that their success earns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Call {
    /// `commit` without a record.
    Release,
    /// `acquire` without a lease request.
    Read,
    Acquire,
    Commit,
}

impl Call {
    const fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Read => "read",
            Self::Acquire => "acquire",
            Self::Commit => "commit",
        }
    }
}

pub(super) struct Session {
    store: Arc<dyn ErasedTokenStore>,
    budget: Duration,
    telemetry: StoreTelemetry,
    /// The last call that failed, until a call of the same or a higher trust succeeds.
    failure: Mutex<Option<(Call, StoreError)>>,
}

impl Session {
    pub(super) fn new(
        store: Arc<dyn ErasedTokenStore>,
        budget: Duration,
        telemetry: StoreTelemetry,
    ) -> Self {
        Self { store, budget, telemetry, failure: Mutex::default() }
    }

    pub(super) fn budget(&self) -> Duration {
        self.budget
    }

    /// The longest time of a call for which callers wait.
    pub(super) fn longest(&self) -> Duration {
        self.budget.saturating_mul(MAX_BUDGETS)
    }

    /// Reads the record, and takes the lease if it is requested and free. The caller counts the
    /// outcome.
    pub(super) async fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> Result<Acquired, Unavailable> {
        let call = if request.is_some() { Call::Acquire } else { Call::Read };
        self.call(call, self.budget, self.store.acquire(key, request)).await
    }

    /// Ends the lease of `owner`, and keeps the record if there is one.
    pub(super) async fn commit(
        &self,
        key: &str,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> Result<CommitOutcome, Unavailable> {
        let (call, budget) = match record {
            Some(_) => (Call::Commit, self.budget.saturating_mul(COMMIT_BUDGETS)),
            None => (Call::Release, self.budget),
        };
        let outcome = self.call(call, budget, self.store.commit(key, owner, record)).await?;
        self.count(
            call,
            match outcome {
                CommitOutcome::Committed => "committed",
                CommitOutcome::Superseded => "superseded",
                CommitOutcome::Released => "released",
            },
        );
        Ok(outcome)
    }

    /// Resolves when the record may have changed. A panic of the store ends the wait early.
    pub(super) async fn changed(&self, key: &str) {
        let _ = caught(self.store.changed(key)).await;
    }

    pub(super) fn count(&self, call: Call, outcome: &'static str) {
        let operation = match call {
            Call::Read | Call::Acquire => "acquire",
            Call::Release | Call::Commit => "commit",
        };
        self.telemetry.stored(operation, outcome);
    }

    /// The error of the last call that failed; `None` if the store is well.
    pub(super) fn failure(&self) -> Option<StoreError> {
        let failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.as_ref().map(|(_, error)| error.clone())
    }

    async fn call<T>(
        &self,
        call: Call,
        budget: Duration,
        future: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, Unavailable> {
        let (outcome, error) = match self.within(budget, caught(future)).await {
            Some(Ok(Ok(output))) => {
                self.record_success(call);
                return Ok(output);
            }
            Some(Ok(Err(error))) => ("failed", error),
            Some(Err(_panicked)) => ("failed", StoreError::new("the token store panicked")),
            None => ("timeout", StoreError::new(format!("no response within {budget:?}"))),
        };
        self.count(call, outcome);
        self.record_failure(call, error);
        Err(Unavailable)
    }

    /// Records that this call failed, or that its result cannot be used. Reports it unless the last
    /// failure was the same.
    pub(super) fn record_failure(&self, call: Call, error: StoreError) {
        let reason = |error: &StoreError| error.source().map(ToString::to_string);
        let last = self.failure();
        if last.as_ref().is_none_or(|last| reason(last) != reason(&error)) {
            events::store_unavailable(call.name(), &error);
        }
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        // The highest call that failed is the one that has to succeed.
        let highest = failure.as_ref().map_or(call, |(failed, _)| call.max(*failed));
        let displaced = failure.replace((highest, error));
        // Released first, because the destructor of the user's error is foreign code.
        drop(failure);
        drop(displaced);
    }

    /// Records that this call succeeded. Only a call that needs as much of the store as the one that
    /// failed proves that the store works again: a full store can still be read.
    pub(super) fn record_success(&self, call: Call) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let displaced = failure.take_if(|(failed, _)| *failed <= call);
        drop(failure);
        if displaced.is_some() {
            events::store_recovered();
        }
    }

    /// The output of `future`, unless it takes longer than `budget`.
    async fn within<F: Future>(&self, budget: Duration, future: F) -> Option<F::Output> {
        let slice = budget / SLICES;
        let mut future = pin!(future);
        let mut due = Instant::now();
        let (mut used, mut waited) = (0, 0);
        while used < SLICES && waited < MAX_BUDGETS * SLICES {
            // A timer is a little late as a rule, which must not add up.
            let now = Instant::now();
            due = if now < due + slice / 2 { due + slice } else { now + slice };
            let last_response = self.store.last_response();
            tokio::select! {
                biased;
                output = &mut future => return Some(output),
                timer = timer(due) => if timer.is_err() { return None },
            }
            // A slice in which the store responded to another call is not used up.
            used += u32::from(self.store.last_response() == last_response);
            waited += 1;
        }
        None
    }
}
