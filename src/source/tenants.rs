//! [`TokenSources`]: one source for each tenant.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::{fmt, future::pending, hash::Hash, mem, time::Duration};

use tokio::runtime::{Handle, Id};
use tokio::time::Instant;

use super::{acquire, token_source::TokenSource};
use crate::clock::{MAX_LIFETIME, timer};
use crate::error::{ConfigError, TokenError};

/// A [`TokenSource`] for each key: one client for many Adobe organizations.
///
/// The first [`get`](Self::get) of a key makes its source. A request carries the source as an
/// extension, and is then sent with that source's token, `x-api-key` and `x-gw-ims-org-id`.
///
/// At most [`capacity`](Self::with_capacity) sources are held. A further one replaces the least
/// recently used one. A source without other handles is dropped when
/// [`idle_timeout`](Self::with_idle_timeout) has passed since its last use. Dropping a source ends its
/// background work; requests that still hold a handle keep using it.
///
/// A source that was dropped and is made again requests a new token from IMS. Choose a capacity above
/// the number of tenants that are active at the same time.
///
/// Clones share their sources.
///
/// # Example
///
/// ```
/// # #[cfg(feature = "reqwest")]
/// # mod example {
/// use tower::{Service, ServiceExt};
/// use tower_adobe_auth::{AdobeAuth, BoxError, ConfigError, Credentials, TokenSource, TokenSources};
///
/// fn sources() -> TokenSources<String> {
///     TokenSources::new(|tenant: &String| {
///         let prefix = format!("ADOBE_{}", tenant.to_uppercase());
///         TokenSource::new(Credentials::from_env_with_prefix(&prefix)?)
///     })
/// }
///
/// async fn models<S, B: Default>(
///     client: &mut AdobeAuth<S>,
///     sources: &TokenSources<String>,
///     tenant: &str,
/// ) -> Result<http::Response<B>, BoxError>
/// where
///     S: Service<http::Request<B>, Response = http::Response<B>> + Clone,
///     S::Error: Into<BoxError>,
/// {
///     let request = http::Request::get("https://firefly-api.adobe.io/v3/models")
///         .extension(sources.get(&tenant.to_owned())?)
///         .body(B::default())?;
///     client.ready().await?.call(request).await
/// }
/// # }
/// ```
pub struct TokenSources<K> {
    make: Arc<Make<K>>,
    capacity: usize,
    idle_timeout: Duration,
    held: Arc<Mutex<Held<K>>>,
}

type Make<K> = dyn Fn(&K) -> Result<TokenSource, ConfigError> + Send + Sync;

struct Held<K> {
    entries: HashMap<K, Entry>,
    /// The runtimes on which a task drops idle sources. Each runtime has its own task, because the task
    /// of a runtime that is kept but not driven stands still.
    sweepers: HashSet<Id>,
}

/// A source, and when it was last used.
struct Entry {
    source: TokenSource,
    used: Instant,
}

/// The shortest pause between two searches for idle sources, so that an idle timeout of zero does not
/// make the task spin.
const MIN_PAUSE: Duration = Duration::from_millis(10);

/// How much longer the task waits while no source is held, for the same reason.
const EMPTY_PAUSE: Duration = Duration::from_secs(1);

impl<K: Clone + Eq + Hash + Send + 'static> TokenSources<K> {
    /// Makes each source with `make`. No lock is held during the call, so two threads may make a source
    /// for one key concurrently: one of the two is kept, and the other is dropped unused.
    pub fn new(
        make: impl Fn(&K) -> Result<TokenSource, ConfigError> + Send + Sync + 'static,
    ) -> Self {
        let held = Held { entries: HashMap::new(), sweepers: HashSet::new() };
        Self {
            make: Arc::new(make),
            capacity: 1_000,
            idle_timeout: Duration::from_secs(60 * 60),
            held: Arc::new(Mutex::new(held)),
        }
    }

    /// Sets how many sources are held at most. Default: 1,000; at least 1. Clones that were made before
    /// keep their value.
    #[must_use]
    pub fn with_capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity.max(1);
        self
    }

    /// Sets how long after its last use a source is dropped. Default: one hour. Clones that were made
    /// before keep their value.
    #[must_use]
    pub fn with_idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout.min(MAX_LIFETIME);
        self
    }

    /// Returns the source of `key`. Makes one if none is held, or if the one that is held was
    /// [shut down](TokenSource::shutdown). Neither waits nor requests a token.
    ///
    /// # Errors
    ///
    /// The error of `make`, which the next call tries again.
    pub fn get(&self, key: &K) -> Result<TokenSource, ConfigError> {
        if let Some(source) = self.find(key) {
            self.ensure_sweeper();
            return Ok(source);
        }
        let made = (self.make)(key)?;
        let (source, _dropped) = self.insert(key, made);
        self.ensure_sweeper();
        Ok(source)
    }

    fn find(&self, key: &K) -> Option<TokenSource> {
        let mut held = lock(&self.held);
        let entry = held.entries.get_mut(key).filter(|entry| !entry.source.is_closed())?;
        entry.used = Instant::now();
        Some(entry.source.clone())
    }

    /// Returns the source to use, and the source that it displaces. The caller drops the displaced
    /// source after the lock is released, because its destructor may run the user's code.
    fn insert(&self, key: &K, made: TokenSource) -> (TokenSource, Option<TokenSource>) {
        let mut held = lock(&self.held);
        let before = held.entries.get(key);
        if let Some(entry) = before.filter(|entry| !entry.source.is_closed()) {
            return (entry.source.clone(), Some(made));
        }
        let full = before.is_none() && held.entries.len() >= self.capacity;
        let oldest = held.entries.iter().filter(|_| full).min_by_key(|(_, entry)| entry.used);
        let oldest = oldest.map(|(key, _)| key.clone());
        let dropped = oldest.and_then(|key| held.entries.remove(&key));
        let entry = Entry { source: made.clone(), used: Instant::now() };
        let dropped = held.entries.insert(key.clone(), entry).or(dropped);
        (made, dropped.map(|entry| entry.source))
    }

    /// Removes the source of `key` and returns it, for example to [shut it down](TokenSource::shutdown)
    /// when a tenant has left.
    pub fn remove(&self, key: &K) -> Option<TokenSource> {
        lock(&self.held).entries.remove(key).map(|entry| entry.source)
    }

    /// Returns how many sources are held.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.held).entries.len()
    }

    /// Returns whether no source is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shuts down all sources that are held, as [`TokenSource::shutdown`] does, and removes them.
    ///
    /// # Errors
    ///
    /// If the background work of a source has not ended within its
    /// [`acquire_timeout`](crate::TokenSourceBuilder::acquire_timeout). The call waits for the others
    /// all the same, and returns the first error. Outside of a Tokio runtime the work ends too, but the
    /// call cannot wait for its end and returns [`ErrorKind::NoRuntime`](crate::ErrorKind::NoRuntime).
    ///
    /// # Cancellation
    ///
    /// Dropping the future does not cancel the shutdown.
    pub async fn shutdown(&self) -> Result<(), TokenError> {
        let entries = mem::take(&mut lock(&self.held).entries);
        // Close all sources before waiting for the first, so that they end concurrently.
        entries.values().for_each(|entry| entry.source.close());
        let since = Instant::now();
        acquire::inside_a_runtime()?;
        let mut result = Ok(());
        for entry in entries.into_values() {
            let ended = entry.source.ended(since).await;
            result = result.and(ended);
        }
        result
    }

    /// Starts a task on the current runtime that drops idle sources, unless one runs there. Without
    /// this task an idle source would keep its token fresh for ever, with one token request a day.
    fn ensure_sweeper(&self) {
        let Ok(runtime) = Handle::try_current() else { return };
        if lock(&self.held).sweepers.insert(runtime.id()) {
            let held = Arc::downgrade(&self.held);
            let idle_timeout = self.idle_timeout;
            runtime.spawn(Sweeper { held, idle_timeout, runtime: runtime.id() }.sweep());
        }
    }
}

/// Drops idle sources, until the `TokenSources` are dropped. Unregisters itself when it ends, which also
/// happens with its runtime.
struct Sweeper<K> {
    held: Weak<Mutex<Held<K>>>,
    idle_timeout: Duration,
    /// The runtime that this task is registered for.
    runtime: Id,
}

impl<K: Eq + Hash> Sweeper<K> {
    async fn sweep(self) {
        while let Some(due) = self.drop_idle() {
            if timer(due.max(Instant::now() + MIN_PAUSE)).await.is_err() {
                // This runtime has no time driver. The task stays registered, so that no further
                // sweeper starts on it.
                pending::<()>().await;
            }
        }
    }

    /// Drops the idle sources. Returns when the next source may be idle; `None` if no source can be
    /// held any more, and the task ends.
    fn drop_idle(&self) -> Option<Instant> {
        let held = self.held.upgrade()?;
        let now = Instant::now();
        let mut dropped = Vec::new();
        let mut held = lock(&held);
        held.entries.retain(|_, entry| {
            // A source with other handles is in use.
            if entry.source.has_other_handles() {
                entry.used = now;
            }
            let keep = now.saturating_duration_since(entry.used) < self.idle_timeout;
            if !keep {
                dropped.push(entry.source.clone());
            }
            keep
        });
        let oldest = held.entries.values().map(|entry| entry.used).min();
        drop(held);
        drop(dropped);
        let earliest = oldest.unwrap_or(now + EMPTY_PAUSE);
        Some(earliest + self.idle_timeout)
    }
}

impl<K> Drop for Sweeper<K> {
    fn drop(&mut self) {
        if let Some(held) = self.held.upgrade() {
            lock(&held).sweepers.remove(&self.runtime);
        }
    }
}

fn lock<K>(held: &Mutex<Held<K>>) -> MutexGuard<'_, Held<K>> {
    // Only `Hash`, `Eq` or `Clone` of a key can panic under this lock, and the map stays valid then.
    held.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<K> Clone for TokenSources<K> {
    fn clone(&self) -> Self {
        Self {
            make: Arc::clone(&self.make),
            capacity: self.capacity,
            idle_timeout: self.idle_timeout,
            held: Arc::clone(&self.held),
        }
    }
}

impl<K> fmt::Debug for TokenSources<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The keys are left out, because they may hold secrets.
        f.debug_struct("TokenSources")
            .field("held", &lock(&self.held).entries.len())
            .field("capacity", &self.capacity)
            .field("idle_timeout", &self.idle_timeout)
            .finish_non_exhaustive()
    }
}
