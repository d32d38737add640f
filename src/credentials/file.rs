//! [`FileCredentials`]: a file that is rewritten while the service runs.

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{task::spawn_blocking, time::sleep};
use tracing::{info, warn};

use super::{ClientSecret, Credentials, ProvideCredentials, console};
use crate::error::{BoxError, ConfigError};

/// How often the file is looked at.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// The credentials of a file of the Adobe Developer Console, which may be rewritten at any time: by
/// Kubernetes, by Vault, by hand.
///
/// The file is read for each token request, and looked at every five seconds between; when it has
/// changed, a source that keeps its token warm gets a new one beside the traffic. A file that is
/// gone, half written or no credentials at all changes nothing: the last good credentials are kept,
/// and a `warn` event says so once.
///
/// # Example
///
/// ```no_run
/// use tower_adobe_auth::{FileCredentials, TokenSource};
///
/// # fn main() -> Result<(), tower_adobe_auth::ConfigError> {
/// let credentials = FileCredentials::open("/etc/adobe/credentials.json")?;
/// # #[cfg(feature = "reqwest")]
/// let tokens = TokenSource::builder_from_provider(credentials).build()?;
/// # Ok(())
/// # }
/// ```
pub struct FileCredentials {
    path: PathBuf,
    poll_interval: Duration,
    state: Mutex<State>,
}

struct State {
    /// The last good credentials.
    credentials: Credentials,
    /// What the file held when it was last looked at.
    seen: Seen,
    /// What the credentials were read from that were given out last.
    given: Seen,
}

/// Stands for what a file held: good credentials or not, and which.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Seen {
    good: bool,
    hash: u64,
}

impl Seen {
    fn new(good: bool, what: impl Hash) -> Self {
        let mut hasher = DefaultHasher::new();
        what.hash(&mut hasher);
        Self { good, hash: hasher.finish() }
    }
}

impl FileCredentials {
    /// Reads the file, in any of the shapes of
    /// [`Credentials::from_console_json`]. Blocks until it is read.
    ///
    /// # Errors
    ///
    /// As for [`Credentials::from_console_file`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, ConfigError> {
        let path = path.into();
        let (credentials, seen) = read(&path)?;
        let state = State { credentials, seen, given: seen };
        Ok(Self { path, poll_interval: POLL_INTERVAL, state: Mutex::new(state) })
    }

    /// Sets how often the file is looked at. Default: five seconds.
    #[must_use]
    pub fn with_poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval;
        self
    }

    /// Looks at the file, takes what is good in it, and says what is new.
    async fn look(&self) {
        let path = self.path.clone();
        let read = match spawn_blocking(move || read(&path)).await {
            Ok(read) => read,
            Err(error) => Err(ConfigError::with_source("the file could not be read", error)),
        };
        let seen = match &read {
            Ok((_, seen)) => *seen,
            Err(error) => Seen::new(false, error.to_string()),
        };

        let news = {
            let mut state = self.lock();
            let news = state.seen != seen;
            state.seen = seen;
            news
        };
        match read {
            Ok((credentials, _)) => {
                let replaced = std::mem::replace(&mut self.lock().credentials, credentials);
                drop(replaced);
                if news {
                    info!(path = %self.path.display(), "the credentials file has changed");
                }
            }
            Err(error) if news => warn!(
                path = %self.path.display(),
                error = &error as &dyn std::error::Error,
                "the credentials file is no good; the last good credentials are kept"
            ),
            Err(_) => {}
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProvideCredentials for FileCredentials {
    async fn credentials(&self) -> Result<Credentials, BoxError> {
        self.look().await;
        let mut state = self.lock();
        if state.seen.good {
            state.given = state.seen;
        }
        Ok(state.credentials.clone())
    }

    async fn changed(&self) {
        loop {
            sleep(self.poll_interval).await;
            self.look().await;
            let state = self.lock();
            if state.seen.good && state.seen != state.given {
                return;
            }
        }
    }
}

impl fmt::Debug for FileCredentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileCredentials")
            .field("path", &self.path)
            .field("credentials", &self.lock().credentials)
            .finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<(Credentials, Seen), ConfigError> {
    let bytes = console::bytes(path)?;
    let credentials = console::read(&bytes)?;
    credentials.check()?;
    // What else the file holds is not ours: a change of it is none of the credentials.
    let secrets: Vec<&str> = credentials.secrets().map(ClientSecret::expose_secret).collect();
    let seen = Seen::new(
        true,
        (credentials.client_id(), secrets, credentials.scopes().to_string(), credentials.org_id()),
    );
    Ok((credentials, seen))
}
