//! [`FileCredentials`]: a file that is rewritten while the service runs.

use std::{
    fmt,
    future::Future,
    hash::RandomState,
    mem,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{task::spawn_blocking, time::sleep};
use tracing::{info, warn};

use super::{Credentials, ProvideCredentials, console};
use crate::error::{BoxError, ConfigError};

/// The default time between two reads of the file.
const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// The shortest time between two reads, so that an interval of zero does not occupy a thread.
const MIN_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The credentials of a file of the Adobe Developer Console, which may be rewritten at any time: by
/// Kubernetes, by Vault, by hand.
///
/// The file is read for each token request, and every five seconds in between. If the client id, the
/// secrets, the scopes or the organization then differ from those of the last token request, a source
/// that keeps its token warm requests a new token in the background. The order of secrets and scopes
/// and all other members of the file are no difference.
///
/// If the file is missing, half written or invalid, the last valid credentials stay in use, and a
/// `warn` event reports it once.
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
    hasher: RandomState,
    state: Mutex<State>,
}

struct State {
    /// The last valid credentials, and their fingerprint.
    credentials: Credentials,
    fingerprint: u64,
    /// Why the file was invalid at the last read.
    failure: Option<String>,
}

impl FileCredentials {
    /// Reads the file, in any of the shapes of [`Credentials::from_console_json`]. Blocks until it
    /// is read.
    ///
    /// # Errors
    ///
    /// As for [`Credentials::from_console_file`].
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, ConfigError> {
        let path = path.into();
        let hasher = RandomState::new();
        let credentials = read(&path)?;
        let fingerprint = credentials.fingerprint(&hasher);
        let state = Mutex::new(State { credentials, fingerprint, failure: None });
        Ok(Self { path, poll_interval: POLL_INTERVAL, hasher, state })
    }

    /// Sets the time between two reads of the file. Default: five seconds. Minimum: 10 milliseconds.
    #[must_use]
    pub fn with_poll_interval(mut self, interval: Duration) -> Self {
        self.poll_interval = interval.max(MIN_POLL_INTERVAL);
        self
    }

    /// Reads the file, keeps its credentials if they are valid, and reports a difference.
    async fn read_again(&self) {
        let path = self.path.clone();
        let read = match spawn_blocking(move || read(&path)).await {
            Ok(read) => read,
            Err(error) => Err(ConfigError::with_source("the read was aborted", error)),
        };
        match read {
            Ok(credentials) => self.keep(credentials),
            Err(error) => self.report(&error),
        }
    }

    fn keep(&self, credentials: Credentials) {
        let fingerprint = credentials.fingerprint(&self.hasher);
        let (is_news, _displaced) = {
            let mut state = self.lock();
            let has_recovered = state.failure.take().is_some();
            let has_changed = mem::replace(&mut state.fingerprint, fingerprint) != fingerprint;
            (has_recovered || has_changed, mem::replace(&mut state.credentials, credentials))
        };
        if is_news {
            info!(path = %self.path.display(), "credentials file changed");
        }
    }

    fn report(&self, error: &ConfigError) {
        let failure = Some(error.to_string());
        let is_news = {
            let mut state = self.lock();
            let is_news = state.failure != failure;
            state.failure = failure;
            is_news
        };
        if is_news {
            warn!(
                path = %self.path.display(),
                error = error as &dyn std::error::Error,
                "credentials file is invalid; the last valid credentials stay in use"
            );
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ProvideCredentials for FileCredentials {
    async fn credentials(&self) -> Result<Credentials, BoxError> {
        self.read_again().await;
        Ok(self.lock().credentials.clone())
    }

    fn changed(&self) -> impl Future<Output = ()> + Send {
        // Compared with the time of the call, so that several sources can share one file.
        let since = self.lock().fingerprint;
        async move {
            while self.lock().fingerprint == since {
                sleep(self.poll_interval).await;
                self.read_again().await;
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

fn read(path: &Path) -> Result<Credentials, ConfigError> {
    let credentials = console::read(&console::bytes(path)?)?;
    credentials.check()?;
    Ok(credentials)
}
