//! The check of token stores passes what is right, and names what is wrong.

#![allow(clippy::unwrap_used)]

use std::{
    collections::HashMap,
    future::pending,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use tokio::{task::yield_now, time::Instant};
use tower_adobe_auth::{
    Lease, MemoryStore, Saved, StoreError, StoredToken, TokenStore, mock::check_token_store,
};

/// What is wrong with a store.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Bug {
    None,
    /// `save` says yes and does nothing.
    Lies,
    /// A late writer wins.
    IgnoresVersions,
    /// A late writer that comes at once with another wins.
    ComparesFirst,
    KeepsValuesForEver,
    CountsMicroseconds,
    CutsValues,
    ForgetsVersions,
    SaysMoreIsLeft,
    /// Grants a lease whoever has it.
    GrantsAlways,
    /// Two who come at once both get it.
    LooksFirst,
    LeaseNeverEnds,
    LeaseEndsAtOnce,
    VersionsStandStill,
    IgnoresAbove,
    IgnoresValues,
    ReleasesForAnyone,
    ReleasesByVersion,
    NeverReleases,
    MixesKeys,
    Fails,
    Hangs,
}

const LONG: Duration = Duration::from_secs(600);

#[derive(Default)]
struct Entry {
    kept: Option<(StoredToken, Instant)>,
    granted: u64,
    lease: Option<(Lease, Instant)>,
}

/// A store with one bug.
#[derive(Clone)]
struct Buggy {
    entries: Arc<Mutex<HashMap<String, Entry>>>,
    bug: Bug,
}

impl Buggy {
    fn new(bug: Bug) -> Self {
        Self { entries: Arc::default(), bug }
    }

    fn has(&self, bug: Bug) -> bool {
        self.bug == bug
    }

    fn with<R>(&self, key: &str, act: impl FnOnce(&mut Entry) -> R) -> R {
        let key = if self.has(Bug::MixesKeys) { "one" } else { key };
        act(self.entries.lock().unwrap().entry(key.to_owned()).or_default())
    }
}

/// The time, by which a version goes that ignores what it is to be above.
fn unix_millis() -> u64 {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    u64::try_from(time.as_millis()).unwrap()
}

fn kept_version(entry: &Entry) -> u64 {
    entry.kept.as_ref().map_or(0, |(kept, _)| kept.version())
}

fn is_held(entry: &Entry) -> bool {
    entry.lease.as_ref().is_some_and(|(_, until)| *until > Instant::now())
}

impl TokenStore for Buggy {
    async fn load(&self, key: &str) -> Result<Option<StoredToken>, StoreError> {
        if self.has(Bug::Hangs) {
            pending::<()>().await;
        }
        let loaded = self.with(key, |entry| {
            let kept = entry.kept.as_ref().filter(|(_, until)| *until > Instant::now());
            kept.map(|(kept, _)| kept.clone())
        });
        Ok(loaded.map(|loaded| match self.bug {
            Bug::CutsValues => StoredToken::new(loaded.version(), &loaded.value()[..1_000]),
            Bug::ForgetsVersions => StoredToken::new(0, loaded.value()),
            Bug::SaysMoreIsLeft => loaded.with_ttl(LONG),
            _ => loaded,
        }))
    }

    async fn save(&self, key: &str, token: &StoredToken) -> Result<Saved, StoreError> {
        match self.bug {
            Bug::Lies => return Ok(Saved::Saved),
            Bug::Fails => return Err(StoreError::new("out of order")),
            _ => {}
        }
        let before = self.with(key, |entry| kept_version(entry));
        if self.has(Bug::ComparesFirst) {
            yield_now().await;
        }
        Ok(self.with(key, |entry| {
            let kept = match self.bug {
                Bug::IgnoresVersions => 0,
                Bug::ComparesFirst => before,
                _ => kept_version(entry),
            };
            if kept >= token.version() {
                return Saved::Superseded;
            }
            let ttl = token.ttl().unwrap();
            let ttl = match self.bug {
                Bug::KeepsValuesForEver => LONG,
                Bug::CountsMicroseconds => ttl / 1_000,
                _ => ttl,
            };
            entry.kept = Some((token.clone(), Instant::now() + ttl));
            Saved::Saved
        }))
    }

    async fn lease(
        &self,
        key: &str,
        owner: &str,
        ttl: Duration,
        above: u64,
    ) -> Result<Option<Lease>, StoreError> {
        let before = self.with(key, |entry| is_held(entry));
        if self.has(Bug::LooksFirst) {
            yield_now().await;
        }
        Ok(self.with(key, |entry| {
            let held = match self.bug {
                Bug::GrantsAlways => false,
                Bug::LooksFirst => before,
                _ => is_held(entry),
            };
            if held {
                return None;
            }
            let above = if self.has(Bug::IgnoresAbove) { unix_millis() } else { above };
            let least = if self.has(Bug::IgnoresValues) { 0 } else { kept_version(entry) };
            let least = entry.granted.max(above).max(least);
            entry.granted = if self.has(Bug::VersionsStandStill) { above + 1 } else { least + 1 };
            let lease = Lease::new(owner, entry.granted);
            let ttl = match self.bug {
                Bug::LeaseNeverEnds => LONG,
                Bug::LeaseEndsAtOnce => Duration::ZERO,
                _ => ttl,
            };
            entry.lease = Some((lease.clone(), Instant::now() + ttl));
            Some(lease)
        }))
    }

    async fn release(&self, key: &str, lease: &Lease) -> Result<(), StoreError> {
        self.with(key, |entry| {
            let ours = entry.lease.as_ref().is_some_and(|(held, _)| match self.bug {
                Bug::ReleasesByVersion => held == lease,
                _ => held.owner() == lease.owner(),
            });
            if (ours || self.has(Bug::ReleasesForAnyone)) && !self.has(Bug::NeverReleases) {
                entry.lease = None;
            }
        });
        Ok(())
    }
}

/// The faults of a store with this bug, in one text.
async fn faults(bug: Bug) -> String {
    let store = Buggy::new(bug);
    check_token_store(|| store.clone())
        .await
        .map_or_else(|faults| faults.to_string(), |()| "".into())
}

#[tokio::test(start_paused = true)]
async fn a_store_without_a_bug_passes() {
    assert_eq!(faults(Bug::None).await, "");
    let store = MemoryStore::default();
    check_token_store(|| store.clone()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_store_in_memory_passes_on_several_threads() {
    let store = MemoryStore::default();
    check_token_store(|| store.clone()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn each_bug_is_found_and_named() {
    for (bug, words) in [
        (Bug::Lies, "what `save` said it had saved is not there"),
        (Bug::IgnoresVersions, "saving version 20 was Saved where it should be Superseded"),
        (Bug::ComparesFirst, "compare and write in one step"),
        (Bug::KeepsValuesForEver, "a value is still there long after its 500ms"),
        (Bug::CountsMicroseconds, "a value is gone long before its 500ms are over"),
        (Bug::CutsValues, "not, byte for byte, the value that was saved last"),
        (Bug::ForgetsVersions, "version 0 is loaded where version"),
        (Bug::SaysMoreIsLeft, "600s is what is left of 60s"),
        (Bug::GrantsAlways, "a lease was granted that somebody has"),
        (Bug::LooksFirst, "check and grant in one step"),
        (Bug::LeaseNeverEnds, "if its holder dies, nobody takes over"),
        (Bug::LeaseEndsAtOnce, "a lease ended long before its time"),
        (Bug::VersionsStandStill, "is not above the one before"),
        (Bug::IgnoresAbove, "is not above what was asked for"),
        (Bug::IgnoresValues, "is not above the value that is kept"),
        (Bug::ReleasesForAnyone, "a lease was given back by who does not have it"),
        (Bug::ReleasesByVersion, "who had not heard the answer"),
        (Bug::NeverReleases, "a lease was given back, and is not granted again"),
        (Bug::MixesKeys, "tokens of different credentials mix"),
        (Bug::Fails, "`save` failed: the token store failed: out of order"),
        (Bug::Hangs, "`load` did not answer within 5s"),
    ] {
        let faults = faults(bug).await;
        assert!(faults.contains(words), "{bug:?}: {faults}");
    }
}

#[tokio::test(start_paused = true)]
async fn processes_that_do_not_have_the_same_store_share_nothing() {
    let faults = check_token_store(MemoryStore::default).await.unwrap_err();

    assert!(faults.iter().any(|fault| fault.contains("tokens would not be shared")), "{faults}");
}
