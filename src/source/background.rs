//! The background task of a source: three independent jobs.
//!
//! 1. Refresh the token when it is due or a failure may be retried, and review an overdue refresh.
//! 2. Refresh the token when the credentials have changed.
//! 3. Cache the tokens that other processes announce.
//!
//! The future of each job lives until it completes, so that no job restarts or starves another.
//! The user's code in a job may panic, complete immediately again and again, or take an hour. The task
//! ends with its runtime; the next caller on another runtime starts the task anew.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::inner::{Inner, Registration, TaskGuard};
use super::supply::{Have, Reason, Stamp, Supplied, Supply, Watching};
use super::sync::{Handle, watch};
use super::{refresh, state::State};
use crate::clock::{Moment, timer};
use crate::{foreign::caught, telemetry::events};

/// The longest sleep. Timers stop while the machine is suspended, but the wall clock does not, so the
/// task reads the wall clock at least this often.
const MAX_SLEEP: Duration = Duration::from_secs(60);

/// The shortest sleep, so that a wake-up time in the past does not make the task spin.
const MIN_SLEEP: Duration = Duration::from_millis(10);

/// The shortest time between two refreshes in the background, so that tokens of almost no lifetime do
/// not make an idle source spin.
const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// The first pause after a change of the credentials.
const MIN_CHANGE_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause after a change of the credentials. The pause doubles with each change that follows
/// soon after the last, so that a provider that always reports a change causes few token requests.
const MAX_CHANGE_PAUSE: Duration = Duration::from_secs(5 * 60);

/// The pause after the watch of other processes has panicked.
const ANNOUNCEMENT_PAUSE: Duration = Duration::from_secs(1);

/// Starts the background task on the current runtime, if one is wanted and none runs.
#[inline]
pub(super) fn ensure(inner: &Arc<Inner>, now: Moment) {
    if inner.lacks_background(now) {
        start(inner, now);
    }
}

#[cold]
fn start(inner: &Arc<Inner>, now: Moment) {
    let (Ok(runtime), Some(task)) = (Handle::try_current(), inner.register_task()) else { return };
    if let Some(registration) = inner.register_background(now, runtime.id()) {
        runtime.spawn(run(registration, task, Arc::clone(&inner.supply)));
    }
}

/// Runs the three jobs until the source is closed or dropped.
///
/// The task holds the supply, but the source only weakly, so that it keeps no source alive that nobody
/// uses.
async fn run(mut registration: Registration, task: TaskGuard, supply: Arc<dyn Supply>) {
    // Without a time driver no job can sleep on this runtime. Another one may run the task.
    registration.suitable = timer(Instant::now()).await.is_ok();
    if !registration.suitable {
        return;
    }
    tokio::select! {
        () = task.closed() => {}
        () = refresh_when_due(&registration) => {}
        () = watch_credentials(&registration.source, &*supply) => {}
        () = watch_announcements(&registration.source, &*supply) => {}
    }
}

/// Job 1: refreshes the token when it is due. Ends when the source is dropped or another background
/// task has taken over.
async fn refresh_when_due(registration: &Registration) {
    let Some(mut changes) = registration.source().map(|inner| inner.subscribe()) else { return };
    // Refreshes are at least `MIN_INTERVAL` apart. Reviews of an overdue refresh are not held back.
    let mut not_before: Option<Moment> = None;
    loop {
        changes.mark_unchanged();
        let Some(inner) = registration.source() else { return };
        let now = inner.now();
        inner.report_expiry();
        let held_back = not_before.filter(|at| !at.has_come(now));
        if act(&inner, now, held_back.is_none()) {
            not_before = Some(now.plus(MIN_INTERVAL));
        }
        let wake = inner.snapshot().state.wake_in(now).unwrap_or(MAX_SLEEP);
        let held_back = held_back.map_or(Duration::ZERO, |at| at.sleep_from(now));
        let pause = wake.max(held_back).clamp(MIN_SLEEP, MAX_SLEEP);
        let wake = now.monotonic + pause;
        inner.record_background(wake);
        drop(inner);

        tokio::select! {
            // A change of the state may bring the next refresh forward, or postpone it.
            changed = changes.changed() => if changed.is_err() { return },
            timer = timer(wake) => if timer.is_err() { return },
        }
    }
}

/// Reviews an overdue refresh, or starts one that is due. Returns whether one was started.
fn act(inner: &Arc<Inner>, now: Moment, may_start: bool) -> bool {
    let due = |state: &State| state.background_reason(now);
    let reason = due(&inner.snapshot().state).filter(|_| may_start);
    if inner.snapshot().state.is_overdue(now) {
        review_overdue(inner);
    }
    reason.is_some_and(|it| refresh::start(inner, it, |state| due(state).is_some()).is_ok())
}

/// Reviews an overdue refresh: gives it more time once, then gives it up.
pub(super) fn review_overdue(inner: &Arc<Inner>) {
    if inner.review_overdue() {
        events::refresh_stalled(&inner.settings.name);
    }
}

/// Job 2: refreshes the token when the credentials have changed. Ends when the source is dropped.
async fn watch_credentials(source: &Weak<Inner>, supply: &dyn Supply) {
    let mut pause = MIN_CHANGE_PAUSE;
    loop {
        sleep(pause).await;
        let waiting_since = Instant::now();
        let changed = caught(async { supply.credentials_changed().await }).await;
        // Only a long quiet time makes the next change news again: changes every few seconds would
        // otherwise cost a token each.
        let quiet = waiting_since.elapsed() >= MAX_CHANGE_PAUSE;
        pause = if quiet { MIN_CHANGE_PAUSE } else { (pause * 2).min(MAX_CHANGE_PAUSE) };
        let Some(inner) = source.upgrade() else { return };
        if changed.is_err() {
            events::changed_panicked(&inner.settings.name);
            continue;
        }
        events::credentials_changed(&inner.settings.name);
        inner.forget_rejection();
        let changes = inner.subscribe();
        drop(inner);
        refresh_ended(source, changes).await;
        let Some(inner) = source.upgrade() else { return };
        let now = inner.now();
        let wanted = |state: &State| !state.is_backing_off(now);
        let _ = refresh::start(&inner, Reason::CredentialsChanged, wanted);
    }
}

/// Waits for the end of the refresh in progress, which may have read the old credentials.
async fn refresh_ended(source: &Weak<Inner>, mut changes: watch::Receiver<()>) {
    let refreshing =
        || source.upgrade().is_some_and(|inner| inner.snapshot().state.is_refreshing());
    while refreshing() && changes.changed().await.is_ok() {}
}

/// Job 3: caches the tokens that other processes announce. Ends when the source is dropped.
async fn watch_announcements(source: &Weak<Inner>, supply: &dyn Supply) {
    // The supply never ends its watch, except by a panic.
    while caught(supply.watch(source)).await.is_err() && source.strong_count() > 0 {
        sleep(ANNOUNCEMENT_PAUSE).await;
    }
}

impl Watching for Weak<Inner> {
    fn have(&self) -> Have {
        let none = Have { newest: Stamp::default(), is_usable: false };
        self.upgrade().map_or(none, |inner| inner.have())
    }

    fn take(&self, supplied: Supplied) {
        let Some(inner) = self.upgrade() else { return };
        if let Ok(token) = inner.token(supplied) {
            if inner.take(token.clone()) {
                refresh::report_shared(&inner, &token);
            }
        }
    }
}
