//! What a process shares with the other processes of its fleet.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use tokio::time::{Instant, sleep, timeout};

use super::visit::Owed;
use crate::{
    clock::{Clock, Moment, unix_millis},
    error::{BoxError, StoreError},
    foreign::caught,
    ims::ImsClient,
    source::Schedule,
    store::{ErasedTokenStore, Keys, name},
    telemetry::StoreTelemetry,
};

/// What this process has in common with the others.
pub(super) struct Common {
    pub(super) store: Arc<dyn ErasedTokenStore>,
    pub(super) identity: Identity,
    pub(super) keys: Keys,
    pub(super) timeout: Duration,
    pub(super) lease_ttl: Duration,
    pub(super) schedule: Schedule,
    pub(super) clock: Clock,
    pub(super) attempt_timeout: Duration,
    /// The longest time for which IMS is left alone because another process says so.
    pub(super) retry_after_cap: Duration,
    pub(super) telemetry: StoreTelemetry,
    /// The highest fencing token of any token that this source has had from the store or saved.
    pub(super) known: AtomicU64,
    /// The fencing token of the last token that this process requested itself: with the credentials of
    /// that time.
    pub(super) own: AtomicU64,
    /// The last store operation that failed, and how.
    pub(super) failure: Mutex<Option<(&'static str, StoreError)>>,
    /// The lease of an attempt that could not release it.
    pub(super) owed: Mutex<Option<Owed>>,
}

/// What names the token in the store.
pub(super) enum Identity {
    Named(String),
    Credentials(ImsClient),
}

/// The highest version that follows a wall clock, however wrong the clock is.
pub(super) const MAX_VERSION: u64 = 1 << 48;

impl Common {
    /// How long the leases of others are waited for: until one has ended, and for half of another if its
    /// process was quicker then. With the defaults a caller who waits from the start has time left.
    pub(super) fn patience(&self) -> Duration {
        self.lease_ttl.saturating_mul(3) / 2
    }

    pub(super) async fn name(&self) -> Result<String, BoxError> {
        match &self.identity {
            Identity::Named(name) => Ok(name.clone()),
            Identity::Credentials(ims) => {
                Ok(name(ims.identity().await?.iter().map(String::as_str)))
            }
        }
    }

    pub(super) fn known(&self) -> u64 {
        self.known.load(Ordering::Acquire)
    }

    pub(super) fn knows(&self, version: u64) {
        self.is_news(version);
    }

    /// Notes this version. Returns whether it is the highest so far.
    pub(super) fn is_news(&self, version: u64) -> bool {
        self.known.fetch_max(version, Ordering::AcqRel) < version
    }

    /// What the next version has to be above: also if the store has lost everything, it is then
    /// above those that others know.
    pub(super) fn above(&self, now: SystemTime) -> u64 {
        self.known().max(unix_millis(now).min(MAX_VERSION))
    }

    pub(super) fn now(&self) -> Moment {
        self.clock.now()
    }

    /// Why the store could not be used the last time.
    pub(super) fn store_error(&self) -> Option<StoreError> {
        let noted = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        noted.as_ref().map(|(_, error)| error.clone())
    }

    pub(super) fn leave_owed(&self, owed: Owed) {
        *self.owed.lock().unwrap_or_else(PoisonError::into_inner) = Some(owed);
    }

    pub(super) fn take_owed(&self) -> Option<Owed> {
        self.owed.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether this is what the store failed at last.
    pub(super) fn failed_at(&self, operation: &str) -> bool {
        let noted = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        noted.as_ref().is_some_and(|(failed, _)| *failed == operation)
    }

    /// Notes how the store did. Returns whether that is news.
    pub(super) fn note(&self, failure: Option<(&'static str, StoreError)>) -> bool {
        let mut noted = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        let news = noted.is_some() != failure.is_some();
        let before = std::mem::replace(&mut *noted, failure);
        drop(noted);
        drop(before);
        news
    }
}

/// The longest time between two looks at a lease that another process has.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

/// The least time between two looks at the store.
const LEAST_PAUSE: Duration = Duration::from_millis(10);

/// When to look again while another process has the lease.
pub(super) struct Pauses {
    next: Duration,
    until: Instant,
}

impl Pauses {
    pub(super) fn new(patience: Duration) -> Self {
        Self { next: Duration::from_millis(40), until: Instant::now() + patience }
    }

    /// Grows, with jitter: processes that began to wait together do not look together.
    pub(super) fn next(&mut self) -> Duration {
        let pause = self.next.mul_f64(0.5 + fastrand::f64());
        self.next = self.next.mul_f64(1.5).min(LONGEST_PAUSE);
        pause.min(self.until.saturating_duration_since(Instant::now()))
    }

    pub(super) fn are_over(&self) -> bool {
        Instant::now() >= self.until
    }
}

/// A panic of the store is a failure of the store.
pub(super) async fn unwinding<T>(
    call: impl Future<Output = Result<T, StoreError>> + Send,
) -> Result<T, StoreError> {
    caught(call).await.unwrap_or_else(|_| Err(StoreError::new("the token store panicked")))
}

/// Ends when something may have changed under this key.
pub(super) async fn changed(store: &dyn ErasedTokenStore, name: &str) {
    let changed = async {
        store.changed(name).await;
        Ok(())
    };
    // A panic ends the wait early; the next call will tell.
    let _ = unwinding(changed).await;
}

/// Waits until something may have changed, or it is time to look again.
pub(super) async fn wait(common: &Common, name: &str, pause: Duration) {
    let start = Instant::now();
    let _ = timeout(pause, changed(&*common.store, name)).await;
    sleep(LEAST_PAUSE.saturating_sub(start.elapsed())).await;
}
