//! [`check_token_store`]: tests whether a token store keeps its promises.

use std::{
    error::Error,
    fmt,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, SystemTime},
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::store::{Acquired, CommitOutcome, LeaseRequest, StoredRecord, TokenStore};

/// The time to live of leases and records that are to end during the check.
const SHORT: Duration = Duration::from_millis(500);

/// The time to live of all others.
const LONG: Duration = Duration::from_secs(60);

/// The longest delay with which a lease or a record may end.
const TOLERANCE: Duration = Duration::from_secs(2);

/// The time limit of a call.
const CALL_LIMIT: Duration = Duration::from_secs(5);

/// The number of concurrent calls of which only one may win.
const RIVALS: u64 = 16;

/// The time that a store gets to start listening.
const SUBSCRIBE_TIME: Duration = Duration::from_secs(1);

/// The time within which a notification has to arrive.
const NOTIFY_LIMIT: Duration = Duration::from_secs(3);

/// The number of notifications within [`SHORT`] that is a spin if nothing changes.
const SPIN: usize = 100;

/// Checks whether a [`TokenStore`] of your own keeps the promises that a source relies on, also in the
/// order in which a source uses it. Takes some seconds.
///
/// `make` makes the store as each process would; all stores that it returns must share their data. The
/// check uses random keys, so that it can run beside other users of the store. Its records and
/// leases end within a minute. The check does not measure how fast the store is.
///
/// A store that cannot notify passes, too. To check notifications, use
/// [`StoreCheck::expects_notifications`].
///
/// # Errors
///
/// If the store breaks a promise; the error names each fault and its consequence.
///
/// # Example
///
/// ```
/// use tower_adobe_auth::{MemoryStore, mock::check_token_store};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_adobe_auth::mock::StoreFaults> {
/// let store = MemoryStore::default();
/// check_token_store(|| store.clone()).await
/// # }
/// ```
pub async fn check_token_store<S: TokenStore>(make: impl Fn() -> S) -> Result<(), StoreFaults> {
    StoreCheck::new(make).run().await
}

/// [`check_token_store`] with options.
///
/// # Example
///
/// ```
/// use tower_adobe_auth::{MemoryStore, mock::StoreCheck};
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), tower_adobe_auth::mock::StoreFaults> {
/// let store = MemoryStore::default();
/// StoreCheck::new(|| store.clone()).expects_notifications().run().await
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct StoreCheck<F> {
    make: F,
    expects_notifications: bool,
}

impl<F> StoreCheck<F> {
    /// A check of the stores that `make` returns, one for each process.
    pub fn new(make: F) -> Self {
        Self { make, expects_notifications: false }
    }

    /// Also checks that [`TokenStore::changed`] resolves within three seconds after a record was
    /// committed or a lease released. Default: a store whose `changed` never resolves passes.
    pub fn expects_notifications(mut self) -> Self {
        self.expects_notifications = true;
        self
    }

    /// Runs the check.
    ///
    /// # Errors
    ///
    /// If the store breaks a promise; the error names each fault and its consequence.
    pub async fn run<S>(&self) -> Result<(), StoreFaults>
    where
        F: Fn() -> S,
        S: TokenStore,
    {
        let check = Check { one: Arc::new((self.make)()), another: Arc::new((self.make)()) };
        let mut faults = Vec::new();
        let mut note = |subject: &'static str, result: Result<(), String>| {
            faults.extend(result.err().map(|fault| format!("{subject}: {fault}")));
        };
        note("different keys", check.keys().await);
        note("records", check.records().await);
        note("fencing tokens of records", check.fencing_tokens_of_records().await);
        note("concurrent commits", check.concurrent_commits().await);
        note("the end of a record", check.end_of_record().await);
        note("the lease", check.lease().await);
        note("fencing tokens of leases", check.fencing_tokens_of_leases().await);
        note("concurrent lease requests", check.concurrent_leases().await);
        note("the end of a lease", check.end_of_lease().await);
        note("the release of a lease", check.release().await);
        note("reading", check.reading().await);
        note("records that the caller has not seen", check.unseen_records().await);
        note("acquire, commit, acquire", check.turn().await);
        note("commits after the end of a lease", check.late_commits().await);
        note("the highest fencing token", check.highest_fencing_token().await);
        note("notifications without a change", check.spinning().await);
        if self.expects_notifications {
            note("notifications", check.notifications().await);
        }
        if faults.is_empty() { Ok(()) } else { Err(StoreFaults { faults }) }
    }
}

impl<F> fmt::Debug for StoreCheck<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreCheck")
            .field("expects_notifications", &self.expects_notifications)
            .finish_non_exhaustive()
    }
}

/// The faults that [`check_token_store`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreFaults {
    faults: Vec<String>,
}

impl StoreFaults {
    /// Each fault, in a sentence.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.faults.iter().map(String::as_str)
    }
}

impl fmt::Display for StoreFaults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the token store breaks its promises: {}", self.faults.join("; "))
    }
}

impl Error for StoreFaults {}

/// The store as two processes have it.
struct Check<S> {
    one: Arc<S>,
    another: Arc<S>,
}

/// A lease that was granted.
struct Granted {
    owner: String,
    fencing_token: u64,
    record: Option<StoredRecord>,
}

/// The response of a call, within the time limit.
async fn response<T>(
    name: &str,
    call: impl Future<Output = Result<T, impl Error>>,
) -> Result<T, String> {
    match timeout(CALL_LIMIT, caught(name, call)).await {
        Ok(Ok(Ok(response))) => Ok(response),
        Ok(Ok(Err(error))) => {
            let cause = error.source().map(ToString::to_string).unwrap_or_default();
            Err(format!("`{name}` failed: {error}: {cause}"))
        }
        Ok(Err(panicked)) => Err(panicked),
        Err(_) => Err(format!("`{name}` did not respond within {CALL_LIMIT:?}")),
    }
}

/// The output of a call of the store, unless the call panics.
async fn caught<T>(name: &str, call: impl Future<Output = T>) -> Result<T, String> {
    let mut call = pin!(call);
    poll_fn(|context| {
        catch_unwind(AssertUnwindSafe(|| call.as_mut().poll(context)))
            .map_or(Poll::Ready(None), |polled| polled.map(Some))
    })
    .await
    .ok_or_else(|| format!("`{name}` panicked"))
}

fn ensure(holds: bool, fault: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(fault()) }
}

/// A name that nobody else uses.
fn random_hex() -> String {
    format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}

/// A key that nobody else uses, as long as keys are.
fn random_key() -> String {
    random_hex() + &random_hex()
}

/// A record as long as records are, with characters that JSON may hold.
fn record(fencing_token: u64, ttl: Duration) -> StoredRecord {
    let text = format!("{{\"v{fencing_token}\":\"\\\"\u{e9}\n'`$1 {}\"}}", "x".repeat(4_000));
    StoredRecord::new(fencing_token, text).with_ttl(ttl)
}

async fn acquire(
    store: &impl TokenStore,
    key: &str,
    request: Option<&LeaseRequest>,
) -> Result<Acquired, String> {
    response("acquire", store.acquire(key, request)).await
}

async fn read(store: &impl TokenStore, key: &str) -> Result<Option<StoredRecord>, String> {
    let acquired = acquire(store, key, None).await?;
    ensure(acquired.fencing_token().is_none(), || {
        "`acquire` without a request granted a lease".to_owned()
    })?;
    Ok(acquired.record().cloned())
}

async fn commit(
    store: &impl TokenStore,
    key: &str,
    owner: &str,
    record: &StoredRecord,
) -> Result<CommitOutcome, String> {
    let outcome = response("commit", store.commit(key, owner, Some(record))).await?;
    ensure(outcome != CommitOutcome::Released, || {
        "`commit` with a record returned `Released`".to_owned()
    })?;
    Ok(outcome)
}

/// A commit of somebody who holds no lease.
async fn commit_alone(
    store: &impl TokenStore,
    key: &str,
    record: &StoredRecord,
) -> Result<CommitOutcome, String> {
    commit(store, key, &random_hex(), record).await
}

async fn release(store: &impl TokenStore, key: &str, owner: &str) -> Result<(), String> {
    let outcome = response("commit", store.commit(key, owner, None)).await?;
    ensure(outcome == CommitOutcome::Released, || {
        format!("`commit` without a record returned `{outcome:?}`")
    })
}

/// Requests a lease; `None` if it was refused.
async fn lease(
    store: &impl TokenStore,
    key: &str,
    ttl: Duration,
    above: u64,
    seen: u64,
) -> Result<Option<Granted>, String> {
    let owner = random_hex();
    let request = LeaseRequest::new(&owner, ttl).with_above(above).with_seen(seen);
    let acquired = acquire(store, key, Some(&request)).await?;
    let record = acquired.record().cloned();
    Ok(acquired.fencing_token().map(|fencing_token| Granted { owner, fencing_token, record }))
}

/// A lease that must be granted.
async fn granted(
    store: &impl TokenStore,
    key: &str,
    ttl: Duration,
    above: u64,
    seen: u64,
) -> Result<Granted, String> {
    let lease = lease(store, key, ttl, above, seen).await?;
    lease.ok_or_else(|| "a lease was refused although nobody holds it".to_owned())
}

async fn is_refused(store: &impl TokenStore, key: &str, seen: u64) -> Result<bool, String> {
    Ok(lease(store, key, LONG, 0, seen).await?.is_none())
}

fn is_same(record: Option<&StoredRecord>, expected: &StoredRecord) -> bool {
    record.is_some_and(|record| {
        record.value() == expected.value() && record.fencing_token() == expected.fencing_token()
    })
}

impl<S: TokenStore> Check<S> {
    /// Both processes read this record.
    async fn expect(&self, key: &str, expected: &StoredRecord) -> Result<(), String> {
        for store in [&self.one, &self.another] {
            let record = read(&**store, key).await?.ok_or(
                "a record that `commit` reported as committed is missing: processes would not share \
                 tokens",
            )?;
            ensure(record.value() == expected.value(), || {
                "the record is not, byte for byte, the one that was committed last".to_owned()
            })?;
            ensure(record.fencing_token() == expected.fencing_token(), || {
                let (is, expected) = (record.fencing_token(), expected.fencing_token());
                format!("a record of fencing token {expected} was read with fencing token {is}")
            })?;
        }
        Ok(())
    }

    async fn keys(&self) -> Result<(), String> {
        let (one, another) = (random_key(), random_key());
        granted(&*self.one, &one, LONG, 0, 0).await?;
        let _ = commit_alone(&*self.one, &one, &record(1, LONG)).await?;
        ensure(read(&*self.one, &another).await?.is_none(), || {
            "the record of one key is read under another: tokens of different credentials mix"
                .to_owned()
        })?;
        granted(&*self.one, &another, LONG, 0, 0)
            .await
            .map(drop)
            .map_err(|_| "the lease of one key blocks the lease of another".to_owned())
    }

    async fn records(&self) -> Result<(), String> {
        let key = random_key();
        ensure(read(&*self.one, &key).await?.is_none(), || {
            "a record was read although none was committed".to_owned()
        })?;
        let first = record(1_700_000_000_000, LONG);
        let outcome = commit_alone(&*self.one, &key, &first).await?;
        ensure(outcome == CommitOutcome::Committed, || {
            "the first record was not committed".to_owned()
        })?;
        self.expect(&key, &first).await
    }

    async fn fencing_tokens_of_records(&self) -> Result<(), String> {
        let key = random_key();
        for (fencing_token, expected) in [
            (10, CommitOutcome::Committed),
            (20, CommitOutcome::Committed),
            (20, CommitOutcome::Superseded),
            (11, CommitOutcome::Superseded),
            (9, CommitOutcome::Superseded),
        ] {
            let record = match expected {
                CommitOutcome::Committed => record(fencing_token, LONG),
                _ => StoredRecord::new(fencing_token, "late").with_ttl(LONG),
            };
            let outcome = commit_alone(&*self.another, &key, &record).await?;
            ensure(outcome == expected, || {
                format!(
                    "the commit of fencing token {fencing_token} returned {outcome:?} in place of \
                     {expected:?}: a process that was held up would replace a newer token"
                )
            })?;
        }
        self.expect(&key, &record(20, LONG)).await
    }

    async fn concurrent_commits(&self) -> Result<(), String> {
        for _ in 0..8 {
            let key = random_key();
            let mut commits = JoinSet::new();
            let mut fencing_tokens: Vec<u64> = (1..=RIVALS).collect();
            fastrand::shuffle(&mut fencing_tokens);
            for fencing_token in fencing_tokens {
                let store = if fencing_token % 2 == 0 { &self.one } else { &self.another };
                let (store, key) = (Arc::clone(store), key.clone());
                commits.spawn(async move {
                    commit_alone(&*store, &key, &record(fencing_token, LONG)).await
                });
            }
            while let Some(outcome) = commits.join_next().await {
                let _ = outcome.map_err(|_| "`commit` panicked")??;
            }
            self.expect(&key, &record(RIVALS, LONG)).await.map_err(|fault| {
                format!("{fault}, after {RIVALS} concurrent commits: compare and write in one step")
            })?;
        }
        Ok(())
    }

    async fn end_of_record(&self) -> Result<(), String> {
        let key = random_key();
        let _ = commit_alone(&*self.one, &key, &record(1, LONG)).await?;
        if let Some(ttl) = read(&*self.another, &key).await?.and_then(|record| record.ttl()) {
            ensure(ttl <= LONG && ttl > LONG - TOLERANCE, || {
                format!(
                    "a record of {LONG:?} was read with {ttl:?} immediately: return the rest of the \
                     time to live, or none"
                )
            })?;
        }
        let start = Instant::now();
        let fencing_token = unix_millis() + 1_000 * 3_600;
        let _ = commit_alone(&*self.one, &key, &record(fencing_token, SHORT)).await?;
        while read(&*self.another, &key).await?.is_some() {
            ensure(start.elapsed() < SHORT + TOLERANCE, || {
                format!("a record of {SHORT:?} has not ended")
            })?;
            sleep(SHORT / 10).await;
        }
        ensure(start.elapsed() > SHORT / 2, || {
            format!("a record of {SHORT:?} ended long before its time")
        })?;
        let lease = lease(&*self.another, &key, LONG, 0, 0).await?.ok_or(
            "a lease was refused because of a record that has ended: nobody would request a token",
        )?;
        ensure(lease.record.is_none(), || "a lease brought a record that has ended".to_owned())?;
        ensure(lease.fencing_token > fencing_token, || {
            let is = lease.fencing_token;
            format!(
                "the fencing token of a lease, {is}, is not above the one of a record that has \
                 ended, {fencing_token}"
            )
        })
    }

    async fn lease(&self) -> Result<(), String> {
        let key = random_key();
        granted(&*self.one, &key, LONG, 0, 0).await?;
        for store in [&self.one, &self.another] {
            ensure(is_refused(&**store, &key, 0).await?, || {
                "a lease was granted that another owner holds: two would request a token".to_owned()
            })?;
        }
        Ok(())
    }

    async fn fencing_tokens_of_leases(&self) -> Result<(), String> {
        let key = random_key();
        let higher = |fencing_token: u64, min: u64, of: &str| {
            ensure(fencing_token > min, || {
                format!("the fencing token of a lease, {fencing_token}, is not above {of}, {min}")
            })
        };
        // An hour ahead, because a store that only reads its clock does not reach it.
        let above = unix_millis() + 1_000 * 3_600;
        let first = granted(&*self.one, &key, LONG, above, 0).await?;
        higher(first.fencing_token, above, "the requested one")?;
        release(&*self.one, &key, &first.owner).await?;
        let second = granted(&*self.another, &key, LONG, 0, 0).await?;
        higher(second.fencing_token, first.fencing_token, "the one before")?;
        release(&*self.another, &key, &second.owner).await?;
        let kept = second.fencing_token + 1_000;
        let _ = commit_alone(&*self.one, &key, &record(kept, LONG)).await?;
        let third = granted(&*self.one, &key, LONG, 0, kept).await?;
        higher(third.fencing_token, kept, "the one of the kept record")
    }

    async fn concurrent_leases(&self) -> Result<(), String> {
        for _ in 0..8 {
            let key = random_key();
            let mut leases = JoinSet::new();
            for rival in 0..RIVALS {
                let store = Arc::clone(if rival % 2 == 0 { &self.one } else { &self.another });
                let key = key.clone();
                leases.spawn(async move { is_refused(&*store, &key, 0).await });
            }
            let mut count = 0;
            while let Some(refused) = leases.join_next().await {
                count += usize::from(!refused.map_err(|_| "`acquire` panicked")??);
            }
            ensure(count == 1, || {
                format!(
                    "{count} of {RIVALS} concurrent requests got the lease: check and grant in one \
                     step"
                )
            })?;
        }
        Ok(())
    }

    async fn end_of_lease(&self) -> Result<(), String> {
        let key = random_key();
        let first = granted(&*self.one, &key, SHORT, 0, 0).await?;
        let start = Instant::now();
        let second = loop {
            if let Some(second) = lease(&*self.another, &key, LONG, 0, 0).await? {
                break second;
            }
            ensure(start.elapsed() < SHORT + TOLERANCE, || {
                format!("a lease of {SHORT:?} has not ended: if its holder dies, nobody takes over")
            })?;
            sleep(SHORT / 10).await;
        };
        ensure(start.elapsed() > SHORT / 2, || "a lease ended long before its time".to_owned())?;
        ensure(second.fencing_token > first.fencing_token, || {
            "the next holder got no higher fencing token: the last one could replace its record"
                .to_owned()
        })?;
        release(&*self.one, &key, &first.owner).await?;
        ensure(is_refused(&*self.one, &key, 0).await?, || {
            "the release of a lease that had ended also ended the lease of the next holder"
                .to_owned()
        })
    }

    async fn release(&self) -> Result<(), String> {
        let key = random_key();
        let held = granted(&*self.one, &key, LONG, 0, 0).await?;
        release(&*self.another, &key, &random_hex()).await?;
        ensure(is_refused(&*self.another, &key, 0).await?, || {
            "an owner that does not hold the lease released it".to_owned()
        })?;
        release(&*self.one, &key, &held.owner).await?;
        ensure(!is_refused(&*self.another, &key, 0).await?, || {
            "a lease is still held after its release: others wait for its end".to_owned()
        })?;

        // The name of the owner is all that an owner knows that never heard of its grant.
        let key = random_key();
        let held = granted(&*self.one, &key, LONG, 0, 0).await?;
        release(&*self.another, &key, &held.owner).await?;
        ensure(!is_refused(&*self.one, &key, 0).await?, || {
            "a lease is still held after its release by an owner that never heard of the grant"
                .to_owned()
        })
    }

    async fn reading(&self) -> Result<(), String> {
        let key = random_key();
        for store in [&self.one, &self.another] {
            let _ = read(&**store, &key).await?;
        }
        ensure(!is_refused(&*self.one, &key, 0).await?, || {
            "`acquire` without a request took the lease: nobody would request a token".to_owned()
        })
    }

    async fn unseen_records(&self) -> Result<(), String> {
        let key = random_key();
        let kept = record(100, LONG);
        let _ = commit_alone(&*self.one, &key, &kept).await?;
        for seen in [0, 99] {
            let request = LeaseRequest::new(random_hex(), LONG).with_seen(seen);
            let acquired = acquire(&*self.another, &key, Some(&request)).await?;
            ensure(acquired.fencing_token().is_none(), || {
                "a lease was granted to a caller that has not seen the kept record: it would request \
                 a token although there is one"
                    .to_owned()
            })?;
            ensure(is_same(acquired.record(), &kept), || {
                "a refused lease request does not return the kept record".to_owned()
            })?;
        }
        let held = lease(&*self.another, &key, LONG, 0, 100).await?.ok_or(
            "a lease was refused to a caller that has seen the kept record: the refused requests \
             before took the lease, or `seen` is ignored",
        )?;
        release(&*self.another, &key, &held.owner).await?;
        // A caller may know a higher one: the store has lost its data.
        ensure(!is_refused(&*self.one, &key, 1_000).await?, || {
            "a lease was refused to a caller that has seen a record above the kept one".to_owned()
        })
    }

    /// The order in which the processes of a fleet use a store.
    async fn turn(&self) -> Result<(), String> {
        let key = random_key();
        let first = granted(&*self.one, &key, LONG, 0, 0).await?;
        let committed = record(first.fencing_token, LONG);
        let outcome = commit(&*self.one, &key, &first.owner, &committed).await?;
        ensure(outcome == CommitOutcome::Committed, || {
            "the holder of the lease could not commit its record".to_owned()
        })?;
        self.expect(&key, &committed).await?;

        // It was read, and is due later on.
        let second = lease(&*self.another, &key, LONG, 0, first.fencing_token).await?;
        let second = second.ok_or(
            "the lease is still held after its owner committed a record: others wait for its end",
        )?;
        ensure(is_same(second.record.as_ref(), &committed), || {
            "a granted lease does not return the kept record".to_owned()
        })?;
        self.expect(&key, &committed)
            .await
            .map_err(|fault| format!("{fault}, while the lease is held"))?;
        release(&*self.another, &key, &second.owner).await?;
        self.expect(&key, &committed)
            .await
            .map_err(|fault| format!("{fault}, after the lease was released without a record"))?;

        let third = granted(&*self.one, &key, LONG, 0, first.fencing_token).await?;
        ensure(third.fencing_token > second.fencing_token, || {
            "a lease got no higher fencing token than one that was released".to_owned()
        })?;
        let late = StoredRecord::new(first.fencing_token, "late").with_ttl(LONG);
        let outcome = commit(&*self.one, &key, &third.owner, &late).await?;
        ensure(outcome == CommitOutcome::Superseded, || {
            "a record replaced one with the same fencing token".to_owned()
        })?;
        ensure(!is_refused(&*self.another, &key, first.fencing_token).await?, || {
            "the lease is still held after its owner committed a superseded record".to_owned()
        })
    }

    async fn late_commits(&self) -> Result<(), String> {
        let key = random_key();
        let first = granted(&*self.one, &key, SHORT, 0, 0).await?;
        sleep(SHORT + SHORT / 5).await;
        let start = Instant::now();
        let second = loop {
            if let Some(second) = lease(&*self.another, &key, LONG, 0, 0).await? {
                break second;
            }
            ensure(start.elapsed() < TOLERANCE, || "a lease has not ended".to_owned())?;
            sleep(SHORT / 10).await;
        };
        // The first holder was held up. Nobody has a newer record yet.
        let late = record(first.fencing_token, LONG);
        let outcome = commit(&*self.one, &key, &first.owner, &late).await?;
        ensure(outcome == CommitOutcome::Committed, || {
            "a record was dropped although no newer one is kept".to_owned()
        })?;
        ensure(is_refused(&*self.one, &key, first.fencing_token).await?, || {
            "the commit of a former holder ended the lease of the present one".to_owned()
        })?;
        let _ = commit_alone(&*self.one, &key, &record(first.fencing_token - 1, LONG)).await?;
        ensure(is_refused(&*self.one, &key, first.fencing_token).await?, || {
            "a superseded commit of somebody else ended the lease".to_owned()
        })?;
        let newest = record(second.fencing_token, LONG);
        let outcome = commit(&*self.another, &key, &second.owner, &newest).await?;
        ensure(outcome == CommitOutcome::Committed, || {
            "the present holder could not replace the record of a former one".to_owned()
        })?;
        let outcome = commit(&*self.one, &key, &first.owner, &late).await?;
        ensure(outcome == CommitOutcome::Superseded, || {
            "a former holder replaced the record of a later one".to_owned()
        })?;
        self.expect(&key, &newest).await
    }

    /// A store may refuse such a number or fail, but must not panic.
    async fn highest_fencing_token(&self) -> Result<(), String> {
        let key = random_key();
        let no_panic = |fault: String| match fault.ends_with("panicked") {
            true => Err(format!("{fault} at the fencing token {}", u64::MAX)),
            false => Ok(()),
        };
        for store in [&self.one, &self.another] {
            let request = LeaseRequest::new(random_hex(), LONG).with_above(u64::MAX);
            acquire(&**store, &key, Some(&request)).await.map(drop).or_else(no_panic)?;
            let highest = record(u64::MAX, LONG);
            commit_alone(&**store, &key, &highest).await.map(drop).or_else(no_panic)?;
            let request = LeaseRequest::new(random_hex(), LONG).with_seen(u64::MAX);
            acquire(&**store, &key, Some(&request)).await.map(drop).or_else(no_panic)?;
            commit_alone(&**store, &key, &highest).await.map(drop).or_else(no_panic)?;
        }
        Ok(())
    }

    async fn spinning(&self) -> Result<(), String> {
        let key = random_key();
        let spin = async {
            for _ in 0..SPIN {
                caught("changed", self.one.changed(&key)).await?;
            }
            Err(format!(
                "`changed` resolved {SPIN} times within {SHORT:?} although nothing changed: each \
                 source would keep the store busy"
            ))
        };
        // Without a spin, the time runs out.
        timeout(SHORT, spin).await.unwrap_or(Ok(()))
    }

    async fn notifications(&self) -> Result<(), String> {
        let key = random_key();
        let request = LeaseRequest::new(random_hex(), LONG);
        let committed = record(unix_millis(), LONG);
        let commits = async || {
            let committed = commit_alone(&*self.one, &key, &committed).await?;
            ensure(committed == CommitOutcome::Committed, || "no record was committed".to_owned())
        };
        self.notifies(&key, commits).await.map_err(|fault| {
            format!("{fault} a record was committed: others take it only when they poll")
        })?;
        let request = request.with_seen(committed.fencing_token());
        let _ = acquire(&*self.one, &key, Some(&request)).await?;
        let releases = async || release(&*self.one, &key, request.owner()).await;
        self.notifies(&key, releases).await.map_err(|fault| {
            format!("{fault} a lease was released: others take over only when they poll")
        })
    }

    /// The other process is notified of this change.
    async fn notifies(
        &self,
        key: &str,
        change: impl AsyncFnOnce() -> Result<(), String>,
    ) -> Result<(), String> {
        let store = Arc::clone(&self.another);
        let subscribed = Instant::now() + SUBSCRIBE_TIME;
        let key = key.to_owned();
        let mut notified = JoinSet::new();
        notified.spawn(async move {
            // It may resolve without a reason, as when it has connected.
            while Instant::now() < subscribed {
                caught("changed", store.changed(&key)).await?;
                sleep(SHORT / 10).await;
            }
            Ok::<_, String>(())
        });
        sleep(SUBSCRIBE_TIME).await;
        change().await?;
        match timeout(NOTIFY_LIMIT, notified.join_next()).await {
            Ok(Some(Ok(Ok(())))) => Ok(()),
            Ok(_) => Err("`changed` panicked before or after".to_owned()),
            Err(_) => Err(format!("`changed` did not resolve within {NOTIFY_LIMIT:?} after")),
        }
    }
}

fn unix_millis() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or_default()
}
