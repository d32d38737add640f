//! [`FileStore`]: a store in a folder of one host.

mod disk;
mod place;

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{task::spawn_blocking, time::sleep};

use self::disk::Entry;
use super::{Lease, Saved, StoredToken, TokenStore};
use crate::error::{BoxError, ConfigError, StoreError};

/// How often it looks whether a file was replaced, while a process listens.
const PAUSE: Duration = Duration::from_secs(5);

/// A [`TokenStore`] in a folder: for command-line tools, and for the processes of one host.
///
/// Files are replaced in one step, so that nobody reads half of one. Only the user can read them
/// (mode 0600 in a folder of mode 0700, on Unix); a file that others, root aside, own or may write is
/// not read. A file that is corrupt or not one of ours is not there, and a `warn` event tells of it. With
/// [`encrypt_with`](crate::TokenSourceBuilder::encrypt_with) the token does not lie there in clear.
///
/// The lease is an advisory lock (`flock` on Unix, `LockFileEx` on Windows): if its holder dies,
/// another process takes over at once, and if the holder hangs, at the end of the lease. It works on
/// local file systems; a folder that several hosts share may not keep the locks apart. Blocking work
/// runs on Tokio's threads for it. A process that stays looks every five seconds whether another one has
/// replaced the token.
///
/// A program that ends at once should have
/// [`replay_unauthorized`](crate::AdobeAuthLayer::replay_unauthorized): a token that an API refused is
/// replaced beside the traffic, and stays in its file if the program ends before that.
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
    /// The locks that say that the holders of our leases live, by owner.
    held: Mutex<HashMap<String, File>>,
}

impl FileStore {
    /// A store in the user's folder for caches: `tower-adobe-auth` in `$XDG_CACHE_HOME` or
    /// `~/.cache`; on macOS in `~/Library/Caches`, on Windows in `%LOCALAPPDATA%`.
    ///
    /// In a test take [`in_folder`](Self::in_folder): each IMS and credential leaves files there.
    ///
    /// # Errors
    ///
    /// If the environment does not say where that is.
    pub fn new() -> Result<Self, ConfigError> {
        place::default().map(Self::in_folder)
    }

    /// A store in this folder, which is made when it is needed.
    pub fn in_folder(folder: impl Into<PathBuf>) -> Self {
        let (folder, held) = (folder.into(), Mutex::default());
        Self { shared: Arc::new(Shared { folder, held }) }
    }

    /// Where it keeps its files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.shared.folder
    }

    /// Does this with the files of `key`, where blocking is no harm.
    async fn with<R: Send + 'static>(
        &self,
        key: &str,
        act: impl FnOnce(&Shared, &Entry) -> Result<R, BoxError> + Send + 'static,
    ) -> Result<R, StoreError> {
        let shared = Arc::clone(&self.shared);
        let entry = Entry::new(&shared.folder, key).map_err(StoreError::new)?;
        let done = spawn_blocking(move || act(&shared, &entry)).await;
        done.map_err(StoreError::new)?.map_err(StoreError::new)
    }
}

impl Shared {
    fn hold(&self, owner: String, lock: File) {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(owner, lock);
    }

    fn let_go(&self, owner: &str) -> Option<File> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).remove(owner)
    }
}

impl TokenStore for FileStore {
    async fn load(&self, key: &str) -> Result<Option<StoredToken>, StoreError> {
        self.with(key, |_, entry| entry.load()).await
    }

    async fn save(&self, key: &str, token: &StoredToken) -> Result<Saved, StoreError> {
        let token = token.clone();
        self.with(key, move |_, entry| entry.save(&token)).await
    }

    async fn lease(
        &self,
        key: &str,
        owner: &str,
        ttl: Duration,
        above: u64,
    ) -> Result<Option<Lease>, StoreError> {
        let asks = owner.to_owned();
        let granted = self.with(key, move |_, entry| entry.lease(&asks, ttl, above)).await?;
        // Where nobody waits for it any more the lock is dropped, and others need not wait either.
        Ok(granted.map(|(version, lock)| {
            self.shared.hold(owner.to_owned(), lock);
            Lease::new(owner, version)
        }))
    }

    async fn release(&self, key: &str, lease: &Lease) -> Result<(), StoreError> {
        let owner = lease.owner().to_owned();
        let released = self.with(key, move |shared, entry| {
            // Also a lease that has ended is let go of.
            let lock = shared.let_go(&owner);
            let released = entry.release(&owner);
            drop(lock);
            released
        });
        released.await
    }

    async fn changed(&self, key: &str) {
        let stamp = || self.with(key, |_, entry| Ok(entry.stamp()));
        // Where it cannot be seen there is nothing to be heard of, until it can.
        let before = stamp().await.ok();
        loop {
            sleep(PAUSE).await;
            if stamp().await.ok() != before {
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
