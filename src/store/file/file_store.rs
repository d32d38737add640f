//! [`FileStore`]: a store in a folder of one host.

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    task::spawn_blocking,
    time::{Instant, sleep},
};

use super::{
    super::token_store::{Acquired, CommitOutcome, LeaseRequest, StoredRecord, TokenStore},
    default_folder::default_folder,
    entry::{Entry, Grant},
    file_error::FileError,
    reports::Reports,
};
use crate::{
    clock::MAX_LIFETIME,
    error::{ConfigError, StoreError},
};

/// How often a process that waits for a change examines the record.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// The pause before locked files are tried again; it doubles with each further attempt. A step takes
/// less than a millisecond.
const FIRST_PAUSE: Duration = Duration::from_millis(2);

/// The longest such pause: short against the budget of a call.
const MAX_PAUSE: Duration = Duration::from_millis(50);

/// The most threads that work on files at a time. A file system that hangs then takes no more of the
/// threads of Tokio's blocking pool, which the whole program needs.
const MAX_THREADS: usize = 8;

/// A [`TokenStore`] in a folder: for command-line tools, and for the processes of one host.
///
/// A program that is run a hundred times a day requests one token. If the process that is requesting a
/// token dies, another one takes over immediately; if it hangs, another one takes over when its lease
/// ends. A process that keeps running examines the record every five seconds.
///
/// # Protection
///
/// The token lies in the folder in clear, unless
/// [`encrypt_with`](crate::TokenSourceBuilder::encrypt_with) is used. On Unix:
///
/// - **Other users cannot read it.** Each file has mode 0600, and the folder is created with mode 0700.
/// - **Other users cannot plant one.** A folder that belongs to another user than this one or root, or
///   that its group or others may write, is refused with an error. A file in the folder that belongs to
///   another user, or that others may write, is ignored.
/// - **Links lead nowhere.** A symbolic link or a named pipe in place of a file is ignored and never
///   followed. Only the path of the folder itself may lead through links.
/// - **A run as root locks nobody out.** Root may use the folder of any user (`sudo` may keep `HOME`).
///   Files and folders that root creates there belong to the owner of the folder, so that this user can
///   read the token. A file that the user cannot open is ignored.
/// - **A clock that is set back prolongs no life.** On Linux a second clock, which cannot be set, counts
///   the age until the machine is started again. Elsewhere, and after that, a record or lease from the
///   future has ended.
///
/// A file that is ignored is reported once, at `warn`, and replaced. On other systems than Unix only
/// the rules for links and clocks apply: choose a folder there that no other user can write.
///
/// A process that acts as this user, or as root, can read, replace and remove everything. A backup of
/// the folder contains the token.
///
/// # File systems
///
/// Files are locked with `flock` (`LockFileEx` on Windows) and replaced by renaming. Both work on local
/// file systems. On a folder that several hosts share, the locks may exclude nobody, and clocks differ.
///
/// A volume that everybody may write, such as an `emptyDir` of Kubernetes, is refused: choose a folder
/// within the volume, which the store creates.
///
/// Blocking work runs on at most eight threads of Tokio's blocking pool. None of them waits for a lock,
/// so that a program ends immediately although another process keeps the files locked.
///
/// A program that ends after one request should have
/// [`replay_unauthorized`](crate::AdobeAuthLayer::replay_unauthorized): a token that an API refused is
/// replaced in the background, and stays in its file if the program ends before that.
///
/// # Example
///
/// ```no_run
/// use tower_adobe_auth::{Credentials, FileStore, TokenSource};
///
/// # #[cfg(feature = "reqwest")]
/// # fn example() -> Result<TokenSource, tower_adobe_auth::ConfigError> {
/// TokenSource::builder(Credentials::from_env()?).store(FileStore::new()?).build()
/// # }
/// ```
#[derive(Clone)]
pub struct FileStore {
    shared: Arc<Shared>,
}

struct Shared {
    folder: PathBuf,
    reports: Arc<Reports>,
    threads: Arc<Semaphore>,
    /// The leases of this process, by key and owner.
    held: Mutex<HashMap<(String, String), Held>>,
}

/// A lease of this process. Dropping it tells the other processes that the lease is free.
struct Held {
    _alive: File,
    ends_at: Instant,
}

impl FileStore {
    /// A store in the user's folder for caches: `tower-adobe-auth` in `$XDG_CACHE_HOME` or
    /// `~/.cache`; on macOS in `~/Library/Caches`, on Windows in `%LOCALAPPDATA%`.
    ///
    /// In tests use [`in_folder`](Self::in_folder), because each IMS and credential leaves files.
    ///
    /// # Errors
    ///
    /// If the environment does not say where that folder is.
    pub fn new() -> Result<Self, ConfigError> {
        default_folder().map(Self::in_folder)
    }

    /// A store in this folder, which is created when it is needed.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        let shared = Shared {
            folder: folder.into(),
            reports: Arc::default(),
            threads: Arc::new(Semaphore::new(MAX_THREADS)),
            held: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The folder of the files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    fn entry(&self, key: &str) -> Result<Arc<Entry>, StoreError> {
        let Shared { folder, reports, .. } = &*self.shared;
        Entry::new(folder, key, reports).map(Arc::new).map_err(StoreError::new)
    }

    /// Runs a step where blocking does no harm, and again until the files are not locked. The caller has
    /// a budget, and drops the future at its end.
    async fn run<R: Send + 'static>(
        &self,
        entry: &Arc<Entry>,
        step: impl Fn(&Entry) -> Result<Option<R>, FileError> + Send + Sync + 'static,
    ) -> Result<R, StoreError> {
        let step = Arc::new(step);
        let mut pause = FIRST_PAUSE;
        loop {
            if let Some(output) = self.run_once(entry, &step).await.map_err(StoreError::new)? {
                return Ok(output);
            }
            if pause >= MAX_PAUSE {
                entry.report_locked();
            }
            sleep(pause).await;
            pause = (pause * 2).min(MAX_PAUSE);
        }
    }

    async fn run_once<R: Send + 'static>(
        &self,
        entry: &Arc<Entry>,
        step: &Arc<impl Fn(&Entry) -> Result<Option<R>, FileError> + Send + Sync + 'static>,
    ) -> Result<Option<R>, FileError> {
        let failed = |error| {
            let remedy = "see the source of this error";
            FileError::failed("work on the files of", &self.shared.folder, remedy, error)
        };
        let permit = Arc::clone(&self.shared.threads).acquire_owned().await;
        let permit = permit.map_err(|error| failed(io::Error::other(error)))?;
        let (entry, step) = (Arc::clone(entry), Arc::clone(step));
        let task = spawn_blocking(move || {
            let _permit = permit;
            step(&entry)
        });
        task.await.map_err(|error| failed(error.into()))?
    }
}

impl Shared {
    fn hold(&self, key: &str, request: &LeaseRequest, alive: File) {
        let now = Instant::now();
        let ends_at = now + request.ttl().min(MAX_LIFETIME);
        let name = (key.to_owned(), request.owner().to_owned());
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        // Leases that nobody ended. Others have taken them over by now.
        held.retain(|_, held| held.ends_at > now);
        held.insert(name, Held { _alive: alive, ends_at });
    }

    fn take(&self, key: &str, owner: &str) -> Option<Held> {
        let name = (key.to_owned(), owner.to_owned());
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(&name)
    }
}

impl TokenStore for FileStore {
    async fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> Result<Acquired, StoreError> {
        let entry = self.entry(key)?;
        let Some(request) = request else {
            return self.run(&entry, |entry| entry.read().map(Some)).await;
        };
        let asked = request.clone();
        // If this future is dropped, so is the lock of the holder, and the lease is free.
        let Grant { acquired, alive } =
            self.run(&entry, move |entry| entry.acquire(&asked)).await?;
        if let Some(alive) = alive {
            self.shared.hold(key, request, alive);
        }
        Ok(acquired)
    }

    async fn commit(
        &self,
        key: &str,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> Result<CommitOutcome, StoreError> {
        // Released at the end, also at an early one: the caller does not use the lease any more.
        let _held = self.shared.take(key, owner);
        let (entry, owner, record) = (self.entry(key)?, owner.to_owned(), record.cloned());
        self.run(&entry, move |entry| entry.commit(&owner, record.as_ref())).await
    }

    async fn changed(&self, key: &str) {
        let Ok(entry) = self.entry(key) else { return std::future::pending().await };
        let modified = || self.run(&entry, |entry| entry.modified().map(Some));
        // A record that cannot be examined counts as unchanged until it can.
        let before = modified().await.ok();
        loop {
            sleep(POLL_INTERVAL).await;
            if modified().await.ok() != before {
                return;
            }
        }
    }
}

impl fmt::Debug for FileStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileStore").field("folder", &self.shared.folder).finish_non_exhaustive()
    }
}
