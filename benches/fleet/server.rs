//! The store's server: what it keeps, and the time that it needs.
//!
//! It takes one call after the other, as Redis does: who comes while it is busy waits in a queue. A
//! caller who has stopped waiting has sent his call all the same, and it is done.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep_until},
};
use tower_adobe_auth::{Lease, Saved, StoredToken};

use crate::rate::Rate;

pub(crate) struct Server {
    busy: Mutex<Busy>,
    /// A value was saved.
    changes: Arc<Notify>,
}

struct Busy {
    entries: HashMap<String, Entry>,
    /// What one call takes.
    each: Duration,
    /// When all that came so far is done.
    free_at: Instant,
    calls: Rate,
    longest_queue: Duration,
}

#[derive(Default)]
pub(crate) struct Entry {
    kept: Option<(StoredToken, Instant)>,
    granted: u64,
    lease: Option<(Lease, Instant)>,
}

/// What the server had to do.
pub(crate) struct Load {
    pub(crate) calls: Rate,
    pub(crate) longest_queue: Duration,
}

impl Server {
    pub(crate) fn new(calls_a_second: u32) -> Self {
        let busy = Busy {
            entries: HashMap::new(),
            each: Duration::from_secs(1) / calls_a_second,
            free_at: Instant::now(),
            calls: Rate::new(),
            longest_queue: Duration::ZERO,
        };
        Self { busy: Mutex::new(busy), changes: Arc::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Busy> {
        self.busy.lock().unwrap()
    }

    /// Does this when its turn comes. Returns the answer, and when it is to be had.
    ///
    /// Calls come in the order of time, so each sees what those before it have done, although they
    /// are done at once here: only the clock that they see is ahead.
    pub(crate) fn call<R>(
        &self,
        key: &str,
        act: impl FnOnce(&mut Entry, Instant) -> R,
    ) -> (R, Instant) {
        let mut busy = self.lock();
        let now = Instant::now();
        busy.calls.count();
        busy.free_at = busy.free_at.max(now) + busy.each;
        let at = busy.free_at;
        busy.longest_queue = busy.longest_queue.max(at - now);
        if !busy.entries.contains_key(key) {
            busy.entries.insert(key.to_owned(), Entry::default());
        }
        (act(busy.entries.get_mut(key).unwrap(), at), at)
    }

    /// Tells who waits for changes, at that moment.
    pub(crate) fn announce(&self, at: Instant) {
        let changes = Arc::clone(&self.changes);
        tokio::spawn(async move {
            sleep_until(at).await;
            changes.notify_waiters();
        });
    }

    pub(crate) async fn changed(&self) {
        self.changes.notified().await;
    }

    /// What there was to do since the last time that this was asked.
    pub(crate) fn take_load(&self) -> Load {
        let mut busy = self.lock();
        let calls = std::mem::replace(&mut busy.calls, Rate::new());
        Load { calls, longest_queue: std::mem::take(&mut busy.longest_queue) }
    }
}

impl Entry {
    pub(crate) fn load(&self, now: Instant) -> Option<StoredToken> {
        let (token, until) = self.kept.as_ref().filter(|(_, until)| *until > now)?;
        Some(token.clone().with_ttl(*until - now))
    }

    pub(crate) fn save(&mut self, now: Instant, token: &StoredToken) -> Saved {
        if self.kept.as_ref().is_some_and(|(kept, _)| kept.version() >= token.version()) {
            return Saved::Superseded;
        }
        let until = now + token.ttl().unwrap_or(Duration::from_secs(86_400));
        self.kept = Some((token.clone(), until));
        Saved::Saved
    }

    pub(crate) fn lease(
        &mut self,
        now: Instant,
        owner: &str,
        ttl: Duration,
        above: u64,
    ) -> Option<Lease> {
        if self.lease.as_ref().is_some_and(|(_, until)| *until > now) {
            return None;
        }
        let kept = self.kept.as_ref().map_or(0, |(kept, _)| kept.version());
        self.granted = self.granted.max(kept).max(above) + 1;
        let lease = Lease::new(owner, self.granted);
        self.lease = Some((lease.clone(), now + ttl));
        Some(lease)
    }

    pub(crate) fn release(&mut self, lease: &Lease) {
        self.lease.take_if(|(held, _)| held.owner() == lease.owner());
    }
}
