//! [`Lease`]: a lease that this process may hold, and the commits that end leases.
//!
//! A lease is ended after the refresh has completed, so that no caller waits for it. Whatever becomes
//! of an attempt (it succeeds, fails, is cancelled, panics, or is lost with its runtime), dropping its
//! lease leaves a commit to do, and the next one who calls [`Commits::take`] does it.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
};

use crate::{clock::Moment, error::BoxError, store::StoredRecord};

/// The most commits that wait. Older ones are dropped; their leases end by themselves.
const MAX_COMMITS: usize = 8;

/// Ends a lease, and keeps a record if the attempt had an outcome to share.
pub(super) struct Commit {
    pub(super) key: String,
    pub(super) owner: String,
    pub(super) record: Option<StoredRecord>,
}

/// The commits that are left to do.
#[derive(Default)]
pub(super) struct Commits {
    queue: Mutex<VecDeque<Commit>>,
}

impl Commits {
    pub(super) fn take(&self) -> Option<Commit> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
    }

    /// Puts a commit back that was interrupted.
    pub(super) fn push(&self, commit: Commit) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.push_back(commit);
        let dropped = if queue.len() > MAX_COMMITS { queue.pop_front() } else { None };
        drop(queue);
        drop(dropped);
    }
}

/// A lease that this process holds, or may hold. Dropping it leaves the commit that ends it.
pub(super) struct Lease<'a> {
    commits: &'a Commits,
    pub(super) key: &'a str,
    owner: String,
    /// The number that orders the token that is requested under this lease.
    pub(super) fencing_token: u64,
    /// When the lease was asked for.
    pub(super) asked_at: Option<Moment>,
    may_be_held: bool,
    record: Option<StoredRecord>,
}

impl<'a> Lease<'a> {
    /// A lease of `key` that is not held yet, with a random owner.
    ///
    /// # Errors
    ///
    /// If the system has no random numbers.
    pub(super) fn new(commits: &'a Commits, key: &'a str) -> Result<Self, BoxError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        let owner = format!("{:032x}", u128::from_be_bytes(bytes));
        Ok(Self {
            commits,
            key,
            owner,
            fencing_token: 0,
            asked_at: None,
            may_be_held: false,
            record: None,
        })
    }

    pub(super) fn owner(&self) -> &str {
        &self.owner
    }

    /// Sets whether the store may have granted the lease: from the call on, until the store says no.
    pub(super) fn set_may_be_held(&mut self, may_be_held: bool) {
        self.may_be_held = may_be_held;
    }

    /// Sets the record that is committed when the lease is dropped.
    pub(super) fn set_record(&mut self, record: StoredRecord) {
        self.record = Some(record);
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if self.may_be_held {
            self.commits.push(Commit {
                key: self.key.to_owned(),
                owner: std::mem::take(&mut self.owner),
                record: self.record.take(),
            });
        }
    }
}
