//! `check_token_store` passes a store without faults, and names the fault of every other.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{HashMap, HashSet},
    future::pending,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    task::yield_now,
    time::{Instant, sleep},
};
use tower_adobe_auth::{
    Acquired, CommitOutcome, LeaseRequest, MemoryStore, PlainCalls, PlainStore, StoreError,
    StoredRecord, TokenStore,
    mock::{StoreCheck, check_token_store},
};

/// The fault of a store.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    None,
    /// `commit` reports success and does nothing.
    Lies,
    /// A late writer wins.
    IgnoresFencingTokens,
    /// A late writer that comes at the same time as another wins.
    ComparesFirst,
    KeepsRecordsForever,
    CountsMicroseconds,
    CutsValues,
    ForgetsFencingTokens,
    SaysMoreIsLeft,
    /// A record that has ended counts as one that the caller has not seen.
    CountsEndedRecords,
    /// A lease does not exceed a record that has ended.
    ForgetsEndedRecords,
    /// Grants a lease whoever holds it.
    GrantsAlways,
    /// Two concurrent requests both get the lease.
    LooksFirst,
    LeaseNeverEnds,
    LeaseEndsImmediately,
    FencingTokensStandStill,
    IgnoresAbove,
    IgnoresRecords,
    ReleasesForAnyone,
    /// Only the process that heard of the grant can release the lease.
    ReleasesOnlyIfHeard,
    NeverReleases,
    MixesKeys,
    Fails,
    Hangs,
    Panics,
    /// `acquire` without a request takes the lease.
    ReadsWithLease,
    IgnoresSeen,
    /// Grants the lease to a caller that has seen any record.
    SeenIsAFlag,
    /// A caller that has seen a record above the kept one is refused.
    SeenMustBeEqual,
    /// A request that is refused because of a record takes the lease.
    RefusedTakesLease,
    RefusedHidesRecord,
    /// A grant replaces the whole row, with the record.
    GrantDropsRecord,
    GrantHidesRecord,
    /// There is no record while the lease is held.
    LeaseHidesRecord,
    /// The release of a lease deletes the row, with the record.
    ReleaseDropsRecord,
    CommitKeepsLease,
    SupersededKeepsLease,
    /// A commit of a former holder ends the lease of the present one.
    LateCommitEndsLease,
    LateSupersededEndsLease,
    /// A former holder cannot commit at all.
    LateCommitIsDropped,
    /// A holder commits whatever is kept.
    HolderIgnoresRecords,
    ReleaseReportsCommit,
    CommitReportsRelease,
    OverflowsAtTheHighest,
    ChangedSpins,
    ChangedPanics,
    NeverNotifies,
    NotifiesLate,
    NotifiesOfRecordsOnly,
    NotifiesOfReleasesOnly,
}

const LONG: Duration = Duration::from_secs(600);

#[derive(Default)]
struct Entry {
    record: Option<(StoredRecord, Instant)>,
    granted: u64,
    lease: Option<(String, Instant)>,
}

impl Entry {
    fn kept(&self) -> u64 {
        self.record.as_ref().map_or(0, |(record, _)| record.fencing_token())
    }

    fn live(&self) -> Option<&StoredRecord> {
        let kept = self.record.as_ref().filter(|(_, ends)| *ends > Instant::now());
        kept.map(|(record, _)| record)
    }

    fn is_held(&self) -> bool {
        self.lease.as_ref().is_some_and(|(_, ends)| *ends > Instant::now())
    }
}

/// A store with one fault.
struct Buggy {
    entries: Arc<Mutex<HashMap<String, Entry>>>,
    changes: Arc<watch::Sender<()>>,
    /// The owners whose grants this process has heard of.
    heard: Mutex<HashSet<String>>,
    bug: Bug,
}

impl Clone for Buggy {
    fn clone(&self) -> Self {
        Self {
            entries: self.entries.clone(),
            changes: self.changes.clone(),
            heard: Mutex::default(),
            bug: self.bug,
        }
    }
}

impl Buggy {
    fn new(bug: Bug) -> Self {
        let heard = Mutex::default();
        Self { entries: Arc::default(), changes: Arc::default(), heard, bug }
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == bug
    }

    fn with<R>(&self, key: &str, act: impl FnOnce(&mut Entry) -> R) -> R {
        let key = if self.has(Bug::MixesKeys) { "one" } else { key };
        act(self.entries.lock().unwrap().entry(key.to_owned()).or_default())
    }

    /// The record as this store returns it.
    fn read(&self, entry: &Entry) -> Option<StoredRecord> {
        if self.has(Bug::LeaseHidesRecord) && entry.is_held() {
            return None;
        }
        let record = entry.live()?.clone();
        Some(match self.bug {
            Bug::CutsValues => StoredRecord::new(record.fencing_token(), &record.value()[..1_000]),
            Bug::ForgetsFencingTokens => StoredRecord::new(0, record.value()),
            Bug::SaysMoreIsLeft => record.with_ttl(LONG),
            _ => record,
        })
    }

    fn is_unseen(&self, entry: &Entry, seen: u64) -> bool {
        let kept = match self.bug {
            Bug::CountsEndedRecords => Some(entry.kept()).filter(|kept| *kept > 0),
            _ => entry.live().map(StoredRecord::fencing_token),
        };
        kept.is_some_and(|kept| match self.bug {
            Bug::IgnoresSeen => false,
            Bug::SeenIsAFlag => seen == 0,
            Bug::SeenMustBeEqual => seen != kept,
            _ => kept > seen,
        })
    }

    fn grant(&self, entry: &mut Entry, request: &LeaseRequest) -> u64 {
        let above = if self.has(Bug::IgnoresAbove) { unix_millis() } else { request.above() };
        let kept = match self.bug {
            Bug::IgnoresRecords => 0,
            Bug::ForgetsEndedRecords => entry.live().map_or(0, StoredRecord::fencing_token),
            _ => entry.kept(),
        };
        let last = if self.has(Bug::FencingTokensStandStill) { 0 } else { entry.granted };
        let highest = last.max(above).max(kept);
        entry.granted = match self.bug {
            Bug::OverflowsAtTheHighest => highest.checked_add(1).expect("an overflow"),
            _ => highest.saturating_add(1),
        };
        let ttl = match self.bug {
            Bug::LeaseNeverEnds => LONG,
            Bug::LeaseEndsImmediately => Duration::ZERO,
            _ => request.ttl(),
        };
        entry.lease = Some((request.owner().to_owned(), Instant::now() + ttl));
        entry.granted
    }

    /// Keeps the record, unless it is superseded.
    fn keep(&self, entry: &mut Entry, before: u64, owner: &str, record: &StoredRecord) -> bool {
        let kept = match self.bug {
            Bug::IgnoresFencingTokens => 0,
            Bug::ComparesFirst => before,
            Bug::HolderIgnoresRecords
                if entry.lease.as_ref().is_some_and(|(it, _)| it == owner) =>
            {
                0
            }
            Bug::LateCommitIsDropped if entry.is_held() => entry.granted - 1,
            _ => entry.kept(),
        };
        if kept >= record.fencing_token() {
            return false;
        }
        let ttl = match self.bug {
            Bug::KeepsRecordsForever => LONG,
            Bug::CountsMicroseconds => record.ttl().unwrap() / 1_000,
            _ => record.ttl().unwrap(),
        };
        entry.record = Some((record.clone(), Instant::now() + ttl));
        true
    }

    /// Returns `true` if this commit ends the lease.
    fn releases(&self, entry: &Entry, owner: &str, outcome: CommitOutcome) -> bool {
        let own = entry.lease.as_ref().is_some_and(|(holder, _)| holder == owner);
        match self.bug {
            Bug::ReleasesForAnyone => true,
            Bug::NeverReleases => false,
            Bug::ReleasesOnlyIfHeard => own && self.heard.lock().unwrap().contains(owner),
            Bug::CommitKeepsLease => own && outcome != CommitOutcome::Committed,
            Bug::SupersededKeepsLease => own && outcome != CommitOutcome::Superseded,
            Bug::LateCommitEndsLease => own || outcome == CommitOutcome::Committed,
            Bug::LateSupersededEndsLease => own || outcome == CommitOutcome::Superseded,
            _ => own,
        }
    }

    fn notify(&self, outcome: CommitOutcome) {
        let is_record = outcome == CommitOutcome::Committed;
        let changes = self.changes.clone();
        match self.bug {
            Bug::NeverNotifies => {}
            Bug::NotifiesOfRecordsOnly if !is_record => {}
            Bug::NotifiesOfReleasesOnly if is_record => {}
            Bug::NotifiesLate => {
                tokio::spawn(async move {
                    sleep(LONG).await;
                    changes.send_replace(());
                });
            }
            _ => {
                changes.send_replace(());
            }
        }
    }
}

/// The time, for a fencing token that ignores the requested one.
fn unix_millis() -> u64 {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(time.as_millis()).unwrap()
}

impl TokenStore for Buggy {
    async fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> Result<Acquired, StoreError> {
        if self.has(Bug::Hangs) {
            pending::<()>().await;
        }
        let before = self.with(key, |entry| entry.is_held());
        if self.has(Bug::LooksFirst) {
            yield_now().await;
        }
        let reader = LeaseRequest::new("reader", LONG);
        let request = request.or_else(|| self.has(Bug::ReadsWithLease).then_some(&reader));
        Ok(self.with(key, |entry| {
            let record = self.read(entry);
            let Some(request) = request else { return Acquired::new(record) };
            let held = match self.bug {
                Bug::GrantsAlways => false,
                Bug::LooksFirst => before,
                _ => entry.is_held(),
            };
            let unseen = self.is_unseen(entry, request.seen());
            if unseen && !held && self.has(Bug::RefusedTakesLease) {
                self.grant(entry, request);
            }
            if held || unseen {
                return Acquired::new(record.filter(|_| !self.has(Bug::RefusedHidesRecord)));
            }
            let fencing_token = self.grant(entry, request);
            self.heard.lock().unwrap().insert(request.owner().to_owned());
            if self.has(Bug::GrantDropsRecord) {
                entry.record = None;
            }
            if request.owner() == "reader" {
                return Acquired::new(record);
            }
            let record = record.filter(|_| !self.has(Bug::GrantHidesRecord));
            Acquired::new(record).with_lease(fencing_token)
        }))
    }

    async fn commit(
        &self,
        key: &str,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> Result<CommitOutcome, StoreError> {
        match self.bug {
            Bug::Lies => {
                return Ok(record.map_or(CommitOutcome::Released, |_| CommitOutcome::Committed));
            }
            Bug::Fails => return Err(StoreError::new("out of order")),
            Bug::Panics => panic!("a bug of the store"),
            _ => {}
        }
        let before = self.with(key, |entry| entry.kept());
        if self.has(Bug::ComparesFirst) {
            yield_now().await;
        }
        let outcome = self.with(key, |entry| {
            let outcome = match record {
                None => CommitOutcome::Released,
                Some(record) if self.keep(entry, before, owner, record) => CommitOutcome::Committed,
                Some(_) => CommitOutcome::Superseded,
            };
            if self.releases(entry, owner, outcome) {
                entry.lease = None;
                if self.has(Bug::ReleaseDropsRecord) && record.is_none() {
                    entry.record = None;
                }
            }
            outcome
        });
        self.notify(outcome);
        Ok(match self.bug {
            Bug::ReleaseReportsCommit if record.is_none() => CommitOutcome::Committed,
            Bug::CommitReportsRelease => CommitOutcome::Released,
            _ => outcome,
        })
    }

    async fn changed(&self, _key: &str) {
        match self.bug {
            Bug::ChangedSpins => {}
            Bug::ChangedPanics => panic!("a bug of the store"),
            _ => {
                let mut changes = self.changes.subscribe();
                changes.changed().await.unwrap();
            }
        }
    }
}

/// The faults that the check finds in a store with this bug, in one text.
async fn faults(bug: Bug) -> String {
    let store = Buggy::new(bug);
    let check = StoreCheck::new(|| store.clone()).expects_notifications();
    check.run().await.map_or_else(|faults| faults.to_string(), |()| String::new())
}

#[tokio::test(start_paused = true)]
async fn a_store_without_a_bug_passes() {
    assert_eq!(faults(Bug::None).await, "");
    let store = MemoryStore::default();
    check_token_store(|| store.clone()).await.unwrap();
    StoreCheck::new(|| store.clone()).expects_notifications().run().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_memory_store_passes_on_several_threads() {
    let store = MemoryStore::default();
    StoreCheck::new(|| store.clone()).expects_notifications().run().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn each_bug_is_found_and_named() {
    for (bug, words) in [
        (Bug::Lies, "a record that `commit` reported as committed is missing"),
        (Bug::IgnoresFencingTokens, "20 returned Committed in place of Superseded"),
        (Bug::ComparesFirst, "compare and write in one step"),
        (Bug::KeepsRecordsForever, "a record of 500ms has not ended"),
        (Bug::CountsMicroseconds, "a record of 500ms ended long before its time"),
        (Bug::CutsValues, "not, byte for byte, the one that was committed last"),
        (Bug::ForgetsFencingTokens, "was read with fencing token 0"),
        (Bug::SaysMoreIsLeft, "a record of 60s was read with 600s"),
        (Bug::CountsEndedRecords, "refused because of a record that has ended"),
        (Bug::ForgetsEndedRecords, "is not above the one of a record that has ended"),
        (Bug::GrantsAlways, "a lease was granted that another owner holds"),
        (Bug::LooksFirst, "check and grant in one step"),
        (Bug::LeaseNeverEnds, "if its holder dies, nobody takes over"),
        (Bug::LeaseEndsImmediately, "a lease ended long before its time"),
        (Bug::FencingTokensStandStill, "is not above the one before"),
        (Bug::IgnoresAbove, "is not above the requested one"),
        (Bug::IgnoresRecords, "is not above the one of the kept record"),
        (Bug::ReleasesForAnyone, "an owner that does not hold the lease released it"),
        (Bug::ReleasesOnlyIfHeard, "by an owner that never heard of the grant"),
        (Bug::NeverReleases, "a lease is still held after its release: others wait"),
        (Bug::MixesKeys, "tokens of different credentials mix"),
        (Bug::Fails, "`commit` failed: the token store failed: out of order"),
        (Bug::Hangs, "`acquire` did not respond within 5s"),
        (Bug::Panics, "`commit` panicked"),
        (Bug::ReadsWithLease, "`acquire` without a request took the lease"),
        (Bug::IgnoresSeen, "granted to a caller that has not seen the kept record"),
        (Bug::SeenIsAFlag, "granted to a caller that has not seen the kept record"),
        (Bug::SeenMustBeEqual, "refused to a caller that has seen a record above the kept one"),
        (Bug::RefusedTakesLease, "the refused requests before took the lease"),
        (Bug::RefusedHidesRecord, "a refused lease request does not return the kept record"),
        (Bug::GrantDropsRecord, "while the lease is held"),
        (Bug::GrantHidesRecord, "a granted lease does not return the kept record"),
        (Bug::LeaseHidesRecord, "while the lease is held"),
        (Bug::ReleaseDropsRecord, "after the lease was released without a record"),
        (Bug::CommitKeepsLease, "still held after its owner committed a record"),
        (Bug::SupersededKeepsLease, "still held after its owner committed a superseded record"),
        (Bug::LateCommitEndsLease, "a former holder ended the lease of the present one"),
        (Bug::LateSupersededEndsLease, "a superseded commit of somebody else ended the lease"),
        (Bug::LateCommitIsDropped, "dropped although no newer one is kept"),
        (Bug::HolderIgnoresRecords, "a record replaced one with the same fencing token"),
        (Bug::ReleaseReportsCommit, "`commit` without a record returned `Committed`"),
        (Bug::CommitReportsRelease, "`commit` with a record returned `Released`"),
        (Bug::OverflowsAtTheHighest, "panicked at the fencing token 18446744073709551615"),
        (Bug::ChangedSpins, "`changed` resolved 100 times within 500ms"),
        (Bug::ChangedPanics, "`changed` panicked"),
        (Bug::NeverNotifies, "`changed` did not resolve within 3s after a record"),
        (Bug::NotifiesLate, "`changed` did not resolve within 3s after a record"),
        (Bug::NotifiesOfRecordsOnly, "`changed` did not resolve within 3s after a lease"),
        (Bug::NotifiesOfReleasesOnly, "`changed` did not resolve within 3s after a record"),
    ] {
        let faults = faults(bug).await;
        assert!(faults.contains(words), "{bug:?}: {faults}");
    }
}

#[tokio::test(start_paused = true)]
async fn stores_that_are_not_the_same_place_share_nothing() {
    let faults = check_token_store(MemoryStore::default).await.unwrap_err();

    assert!(
        faults.iter().any(|fault| fault.contains("processes would not share tokens")),
        "{faults}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_store_that_cannot_notify_passes_unless_it_has_to() {
    let store = Buggy::new(Bug::NeverNotifies);

    check_token_store(|| store.clone()).await.unwrap();

    let check = StoreCheck::new(|| store.clone()).expects_notifications();
    let faults = check.run().await.unwrap_err();
    assert_eq!(faults.iter().count(), 1, "{faults}");
}

/// A store of plain calls, right except that `release` may delete the record.
#[derive(Clone, Default)]
struct Plain {
    entries: Arc<Mutex<HashMap<String, Entry>>>,
    forgets: bool,
}

impl Plain {
    fn with<R>(&self, key: &str, act: impl FnOnce(&mut Entry) -> R) -> R {
        act(self.entries.lock().unwrap().entry(key.to_owned()).or_default())
    }
}

impl PlainStore for Plain {
    async fn load(&self, key: &str) -> Result<Option<StoredRecord>, StoreError> {
        Ok(self.with(key, |entry| entry.live().cloned()))
    }

    async fn save(&self, key: &str, record: &StoredRecord) -> Result<bool, StoreError> {
        Ok(self.with(key, |entry| {
            let higher = record.fencing_token() > entry.kept();
            if higher {
                entry.record = Some((record.clone(), Instant::now() + record.ttl().unwrap()));
            }
            higher
        }))
    }

    async fn lease(
        &self,
        key: &str,
        owner: &str,
        ttl: Duration,
        above: u64,
    ) -> Result<Option<u64>, StoreError> {
        Ok(self.with(key, |entry| {
            if entry.is_held() {
                return None;
            }
            entry.granted = entry.granted.max(above).max(entry.kept()).checked_add(1)?;
            entry.lease = Some((owner.to_owned(), Instant::now() + ttl));
            Some(entry.granted)
        }))
    }

    async fn release(&self, key: &str, owner: &str) -> Result<(), StoreError> {
        self.with(key, |entry| {
            let released = entry.lease.take_if(|(holder, _)| holder == owner).is_some();
            if released && self.forgets {
                entry.record = None;
            }
        });
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn a_store_of_plain_calls_passes() {
    let store = Plain::default();

    check_token_store(|| PlainCalls(store.clone())).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_release_that_drops_the_record_is_found() {
    let store = Plain { forgets: true, ..Plain::default() };

    let faults = check_token_store(|| PlainCalls(store.clone())).await.unwrap_err();

    assert!(
        faults.iter().any(|fault| fault.starts_with("acquire, commit, acquire: a record")),
        "{faults}"
    );
}
