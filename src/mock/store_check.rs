//! What a token store must do, as a check that says what is wrong.

use std::{
    error::Error,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::store::{Lease, Saved, StoredToken, TokenStore};

/// How long the leases and values of the check live that are to end.
const SHORT: Duration = Duration::from_millis(500);

/// How long those live that are not to end meanwhile.
const LONG: Duration = Duration::from_secs(60);

/// How much later than asked for something may end.
const TOLERANCE: Duration = Duration::from_secs(2);

/// No call takes so long.
const PATIENCE: Duration = Duration::from_secs(5);

/// How many come at once, where only one may win.
const RIVALS: u64 = 16;

/// Checks whether a [`TokenStore`] of your own does what a source relies on. Takes some seconds.
///
/// `make` makes a store as each process would: all of them lead to the same place. The check uses
/// keys of its own there, and disturbs nobody; the values and leases that it leaves there end within a
/// minute. How quick the store is, it does not say.
///
/// # Errors
///
/// If something is wrong; the error says what, and why that matters.
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
    let check = Check { one: Arc::new(make()), another: Arc::new(make()) };
    let mut faults = Vec::new();
    let mut note = |what: &'static str, result: Result<(), String>| {
        faults.extend(result.err().map(|fault| format!("{what}: {fault}")));
    };
    note("different keys", check.keys().await);
    note("values", check.values().await);
    note("versions of values", check.versions().await);
    note("values saved at once", check.values_at_once().await);
    note("the life of a value", check.life().await);
    note("the lease", check.lease().await);
    note("versions of leases", check.versions_of_leases().await);
    note("leases asked for at once", check.leases_at_once().await);
    note("the end of a lease", check.end_of_lease().await);
    note("giving a lease back", check.release().await);
    if faults.is_empty() { Ok(()) } else { Err(StoreFaults { faults }) }
}

/// What [`check_token_store`] found to be wrong.
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
        write!(f, "the token store is not right: {}", self.faults.join("; "))
    }
}

impl Error for StoreFaults {}

/// The store, as two processes have it.
struct Check<S> {
    one: Arc<S>,
    another: Arc<S>,
}

/// What a call answers, within reason.
async fn answer<T, E: Error>(
    what: &str,
    call: impl Future<Output = Result<T, E>>,
) -> Result<T, String> {
    match timeout(PATIENCE, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            let cause = error.source().map(ToString::to_string).unwrap_or_default();
            Err(format!("`{what}` failed: {error}: {cause}"))
        }
        Err(_) => Err(format!("`{what}` did not answer within {PATIENCE:?}")),
    }
}

fn ensure(holds: bool, fault: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(fault()) }
}

fn random_hex() -> String {
    format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}

/// A key that nobody else uses, of the length that keys have.
fn key() -> String {
    random_hex() + &random_hex()
}

fn value(version: u64, ttl: Duration) -> StoredToken {
    // As long as they are, with what JSON may hold.
    let text = format!("{{\"v{version}\":\"\\\"\u{e9}\n'`$1 {}\"}}", "x".repeat(4_000));
    StoredToken::new(version, text).with_ttl(ttl)
}

async fn load(store: &impl TokenStore, key: &str) -> Result<Option<StoredToken>, String> {
    answer("load", store.load(key)).await
}

async fn save(store: &impl TokenStore, key: &str, token: &StoredToken) -> Result<Saved, String> {
    answer("save", store.save(key, token)).await
}

async fn lease(
    store: &impl TokenStore,
    key: &str,
    ttl: Duration,
    above: u64,
) -> Result<Option<Lease>, String> {
    let owner = random_hex();
    let lease = answer("lease", store.lease(key, &owner, ttl, above)).await?;
    ensure(lease.as_ref().is_none_or(|lease| lease.owner() == owner), || {
        "the owner of a lease is not who asked for it".to_owned()
    })?;
    Ok(lease)
}

/// A lease that must be granted.
async fn granted(
    store: &impl TokenStore,
    key: &str,
    ttl: Duration,
    above: u64,
) -> Result<Lease, String> {
    let lease = lease(store, key, ttl, above).await?;
    lease.ok_or_else(|| "a lease was not granted although nobody has it".to_owned())
}

impl<S: TokenStore> Check<S> {
    async fn expect(&self, key: &str, expected: &StoredToken) -> Result<(), String> {
        for store in [&self.one, &self.another] {
            let loaded = load(&**store, key)
                .await?
                .ok_or("what `save` said it had saved is not there: tokens would not be shared")?;
            ensure(loaded.value() == expected.value(), || {
                "what is loaded is not, byte for byte, the value that was saved last".to_owned()
            })?;
            ensure(loaded.version() == expected.version(), || {
                let (loaded, expected) = (loaded.version(), expected.version());
                format!("version {loaded} is loaded where version {expected} was saved")
            })?;
        }
        Ok(())
    }

    async fn values(&self) -> Result<(), String> {
        let key = key();
        ensure(load(&*self.one, &key).await?.is_none(), || {
            "there is a value where none was saved".to_owned()
        })?;
        let token = value(1_700_000_000_000, LONG);
        let saved = save(&*self.one, &key, &token).await?;
        ensure(saved == Saved::Saved, || "the first value was not saved".to_owned())?;
        self.expect(&key, &token).await
    }

    async fn versions(&self) -> Result<(), String> {
        let key = key();
        let newest = value(20, LONG);
        for (version, expected) in [
            (10, Saved::Saved),
            (20, Saved::Saved),
            (20, Saved::Superseded),
            (11, Saved::Superseded),
            (9, Saved::Superseded),
        ] {
            let mut token = value(version, LONG);
            if expected == Saved::Superseded {
                token = StoredToken::new(version, "late").with_ttl(LONG);
            }
            let saved = save(&*self.another, &key, &token).await?;
            ensure(saved == expected, || {
                format!(
                    "saving version {version} was {saved:?} where it should be {expected:?}: a \
                     process that was held up would replace a newer token"
                )
            })?;
        }
        self.expect(&key, &newest).await
    }

    async fn values_at_once(&self) -> Result<(), String> {
        for _ in 0..8 {
            let key = key();
            let mut saves = JoinSet::new();
            let mut versions: Vec<u64> = (1..=RIVALS).collect();
            fastrand::shuffle(&mut versions);
            for version in versions {
                let store = if version % 2 == 0 { &self.one } else { &self.another };
                let (store, key) = (Arc::clone(store), key.clone());
                saves.spawn(async move { save(&*store, &key, &value(version, LONG)).await });
            }
            while let Some(saved) = saves.join_next().await {
                let _ = saved.map_err(|_| "`save` panicked")??;
            }
            self.expect(&key, &value(RIVALS, LONG)).await.map_err(|fault| {
                format!("{fault}, after {RIVALS} values at once: compare and write in one step")
            })?;
        }
        Ok(())
    }

    async fn life(&self) -> Result<(), String> {
        let key = key();
        let _ = save(&*self.one, &key, &value(1, LONG)).await?;
        if let Some(ttl) = load(&*self.another, &key).await?.and_then(|loaded| loaded.ttl()) {
            ensure(ttl <= LONG && ttl > LONG - TOLERANCE, || {
                format!(
                    "{ttl:?} is what is left of {LONG:?} at once: it is what is left, or unknown"
                )
            })?;
        }
        let start = Instant::now();
        let _ = save(&*self.one, &key, &value(2, SHORT)).await?;
        while load(&*self.another, &key).await?.is_some() {
            ensure(start.elapsed() < SHORT + TOLERANCE, || {
                format!("a value is still there long after its {SHORT:?}")
            })?;
            sleep(SHORT / 10).await;
        }
        ensure(start.elapsed() > SHORT / 2, || {
            format!("a value is gone long before its {SHORT:?} are over")
        })
    }

    async fn lease(&self) -> Result<(), String> {
        let key = key();
        granted(&*self.one, &key, LONG, 0).await?;
        for store in [&self.one, &self.another] {
            ensure(lease(&**store, &key, LONG, 0).await?.is_none(), || {
                "a lease was granted that somebody has: two would ask for a token".to_owned()
            })?;
        }
        Ok(())
    }

    async fn versions_of_leases(&self) -> Result<(), String> {
        let key = key();
        let counts = |version: u64, least: u64, what: &str| {
            ensure(version > least, || {
                format!("the version of a lease, {version}, is not above {what}, {least}")
            })
        };
        // An hour from now: a store that only looks at its clock does not reach it.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let above = 1_000 * (now.as_secs() + 3_600);
        let first = granted(&*self.one, &key, LONG, above).await?;
        counts(first.version(), above, "what was asked for")?;
        answer("release", self.one.release(&key, &first)).await?;
        let second = granted(&*self.another, &key, LONG, 0).await?;
        counts(second.version(), first.version(), "the one before")?;
        answer("release", self.another.release(&key, &second)).await?;
        let saved = second.version() + 1_000;
        let _ = save(&*self.one, &key, &value(saved, LONG)).await?;
        let third = granted(&*self.one, &key, LONG, 0).await?;
        counts(third.version(), saved, "the value that is kept")
    }

    async fn leases_at_once(&self) -> Result<(), String> {
        for _ in 0..8 {
            let key = key();
            let mut leases = JoinSet::new();
            for rival in 0..RIVALS {
                let store = Arc::clone(if rival % 2 == 0 { &self.one } else { &self.another });
                let key = key.clone();
                leases.spawn(async move { lease(&*store, &key, LONG, 0).await });
            }
            let mut count = 0;
            while let Some(lease) = leases.join_next().await {
                count += usize::from(lease.map_err(|_| "`lease` panicked")??.is_some());
            }
            ensure(count == 1, || {
                format!(
                    "of {RIVALS} who asked at once {count} got the lease: check and grant in one step"
                )
            })?;
        }
        Ok(())
    }

    async fn end_of_lease(&self) -> Result<(), String> {
        let key = key();
        let first = granted(&*self.one, &key, SHORT, 0).await?;
        let start = Instant::now();
        let second = loop {
            if let Some(second) = lease(&*self.another, &key, LONG, 0).await? {
                break second;
            }
            ensure(start.elapsed() < SHORT + TOLERANCE, || {
                format!("a lease of {SHORT:?} has not ended: if its holder dies, nobody takes over")
            })?;
            sleep(SHORT / 10).await;
        };
        ensure(start.elapsed() > SHORT / 2, || "a lease ended long before its time".to_owned())?;
        ensure(second.version() > first.version(), || {
            "who takes over gets no higher version: the one before could replace its token"
                .to_owned()
        })?;
        answer("release", self.one.release(&key, &first)).await?;
        ensure(lease(&*self.one, &key, LONG, 0).await?.is_none(), || {
            "who gave back a lease that had ended took away the one of another".to_owned()
        })
    }

    async fn release(&self) -> Result<(), String> {
        let key = key();
        let held = granted(&*self.one, &key, LONG, 0).await?;
        let strange = Lease::new(random_hex(), held.version());
        answer("release", self.another.release(&key, &strange)).await?;
        ensure(lease(&*self.another, &key, LONG, 0).await?.is_none(), || {
            "a lease was given back by who does not have it".to_owned()
        })?;
        answer("release", self.one.release(&key, &held)).await?;
        ensure(lease(&*self.another, &key, LONG, 0).await?.is_some(), || {
            "a lease was given back, and is not granted again: others wait for its end".to_owned()
        })?;
        let another = self::key();
        let held = granted(&*self.one, &another, LONG, 0).await?;
        let unheard = Lease::new(held.owner(), 0);
        answer("release", self.one.release(&another, &unheard)).await?;
        ensure(lease(&*self.another, &another, LONG, 0).await?.is_some(), || {
            "a lease of version 0 was not given back by its owner, who had not heard the answer"
                .to_owned()
        })
    }

    async fn keys(&self) -> Result<(), String> {
        let (one, another) = (key(), key());
        let _ = save(&*self.one, &one, &value(1, LONG)).await?;
        granted(&*self.one, &one, LONG, 0).await?;
        ensure(load(&*self.one, &another).await?.is_none(), || {
            "the value of one key is that of another: tokens of different credentials mix"
                .to_owned()
        })?;
        granted(&*self.one, &another, LONG, 0)
            .await
            .map(drop)
            .map_err(|_| "the lease of one key is that of another".to_owned())
    }
}
