//! [`TokenSources`]: one source for each tenant.

use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};

use super::token_source::{TokenSource, inside_a_runtime};
use crate::error::{ConfigError, TokenError};

/// A [`TokenSource`] for each key: one client for many Adobe organizations.
///
/// A source is made when its key is first asked for. A request names it by an extension, and then
/// has its token, its `x-api-key` and its `x-gw-ims-org-id`.
///
/// At most [`capacity`](Self::with_capacity) sources are held: a further one takes the place of the
/// one that was not asked for longest. One that nobody has asked for in
/// [`idle_timeout`](Self::with_idle_timeout), and whose handles elsewhere are gone, is dropped, which
/// ends its background work. Requests that still hold a dropped source go on with it; who asks for
/// its key again gets a new source, and costs IMS a new token: choose the capacity above the number
/// of tenants that are active at a time.
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
    /// Whether a task drops what is idle.
    swept: bool,
}

struct Entry {
    source: TokenSource,
    used: Instant,
}

/// The least time between two looks for what is idle.
const LEAST_PAUSE: Duration = Duration::from_millis(10);

impl<K: Clone + Eq + Hash + Send + 'static> TokenSources<K> {
    /// Sources that `make` makes. It is called outside of any lock, so it may be called twice at
    /// once for one key: one of the two sources is kept, and the other one dropped unused.
    pub fn new(
        make: impl Fn(&K) -> Result<TokenSource, ConfigError> + Send + Sync + 'static,
    ) -> Self {
        let held = Held { entries: HashMap::new(), swept: false };
        Self {
            make: Arc::new(make),
            capacity: 1_000,
            idle_timeout: Duration::from_secs(60 * 60),
            held: Arc::new(Mutex::new(held)),
        }
    }

    /// Sets how many sources are held at most. Default: 1,000; at least 1. Not for clones that
    /// were made before.
    #[must_use]
    pub fn with_capacity(mut self, capacity: usize) -> Self {
        self.capacity = capacity.max(1);
        self
    }

    /// Sets after how long without being asked for a source is dropped. Default: one hour. Not for
    /// clones that were made before.
    #[must_use]
    pub fn with_idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// The source of `key`, made now if there is none, or if it was
    /// [shut down](TokenSource::shutdown). Does not wait, and fetches nothing.
    ///
    /// # Errors
    ///
    /// What `make` says. It is asked again the next time.
    pub fn get(&self, key: &K) -> Result<TokenSource, ConfigError> {
        if let Some((source, swept)) = self.find(key) {
            if !swept {
                self.ensure_swept();
            }
            return Ok(source);
        }
        let made = (self.make)(key)?;
        let (source, _dropped) = self.insert(key, made);
        self.ensure_swept();
        Ok(source)
    }

    /// The source, and whether somebody drops what is idle.
    fn find(&self, key: &K) -> Option<(TokenSource, bool)> {
        let mut held = lock(&self.held);
        let swept = held.swept;
        let entry = held.entries.get_mut(key).filter(|entry| !entry.source.is_closed())?;
        entry.used = Instant::now();
        Some((entry.source.clone(), swept))
    }

    /// The source to use, and one to be dropped after the lock is given back.
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

    /// Forgets the source of `key` and returns it: to be [shut down](TokenSource::shutdown), say,
    /// when a tenant has left.
    pub fn remove(&self, key: &K) -> Option<TokenSource> {
        lock(&self.held).entries.remove(key).map(|entry| entry.source)
    }

    /// How many sources are held.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.held).entries.len()
    }

    /// Whether no source is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shuts down all sources that are held, as [`TokenSource::shutdown`] does, and forgets them.
    ///
    /// Cancel safe: the shutdown goes on.
    ///
    /// # Errors
    ///
    /// If the work of one has not ended within its time. The others were waited for all the same.
    pub async fn shutdown(&self) -> Result<(), TokenError> {
        let entries = mem::take(&mut lock(&self.held).entries);
        // All are told before the first is waited for.
        entries.values().for_each(|entry| entry.source.close());
        let since = Instant::now();
        inside_a_runtime()?;
        let mut result = Ok(());
        for entry in entries.into_values() {
            let ended = entry.source.ended(since).await;
            result = result.and(ended);
        }
        result
    }

    /// Drops what is idle also when nobody asks for a source any more: one that is held is kept
    /// warm, which costs IMS a token a day.
    fn ensure_swept(&self) {
        let Ok(runtime) = Handle::try_current() else { return };
        if !mem::replace(&mut lock(&self.held).swept, true) {
            let held = Arc::downgrade(&self.held);
            let sweeper = Sweeper { held, idle_timeout: self.idle_timeout, at_work: true };
            runtime.spawn(sweeper.sweep());
        }
    }
}

/// Drops what is idle. Says when it stops, also when it is dropped with its runtime.
struct Sweeper<K> {
    held: Weak<Mutex<Held<K>>>,
    idle_timeout: Duration,
    at_work: bool,
}

impl<K: Eq + Hash> Sweeper<K> {
    async fn sweep(mut self) {
        while let Some(pause) = self.drop_idle() {
            sleep(pause.max(LEAST_PAUSE)).await;
        }
    }

    /// How long until the next source may be idle; `None` if none is held.
    fn drop_idle(&mut self) -> Option<Duration> {
        let held = self.held.upgrade()?;
        let now = Instant::now();
        let mut dropped = Vec::new();
        let mut held = lock(&held);
        held.entries.retain(|_, entry| {
            // Held elsewhere too: it is in use.
            if entry.source.is_shared() {
                entry.used = now;
            }
            let keep = now.saturating_duration_since(entry.used) < self.idle_timeout;
            if !keep {
                dropped.push(entry.source.clone());
            }
            keep
        });
        let first = held.entries.values().map(|entry| entry.used).min();
        if first.is_none() {
            // In one step with the look: who makes a source after it starts another one.
            held.swept = false;
            self.at_work = false;
        }
        drop(held);
        drop(dropped);
        let elapsed = |first| now.saturating_duration_since(first);
        first.map(|first| self.idle_timeout.saturating_sub(elapsed(first)))
    }
}

impl<K> Drop for Sweeper<K> {
    fn drop(&mut self) {
        if let Some(held) = self.held.upgrade().filter(|_| self.at_work) {
            lock(&held).swept = false;
        }
    }
}

fn lock<K>(held: &Mutex<Held<K>>) -> MutexGuard<'_, Held<K>> {
    // A panic under it can only come from a key's `Hash`, `Eq` or `Clone`; the map survives that.
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
        // Not the keys: they may be anything.
        f.debug_struct("TokenSources")
            .field("held", &lock(&self.held).entries.len())
            .field("capacity", &self.capacity)
            .field("idle_timeout", &self.idle_timeout)
            .finish_non_exhaustive()
    }
}
