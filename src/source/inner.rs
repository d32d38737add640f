//! [`Inner`]: the state of a source behind its mutex, the snapshot that readers see, and its tasks.
//!
//! A writer changes a copy of the [`State`] under the mutex and publishes the copy as a whole.
//! Readers load the published snapshot and take no lock. Each change wakes the callers who wait for
//! one. Foreign code (tracing, metrics, user code, destructors of user errors) runs after the change
//! is published and the mutex is released, so that it can neither block nor poison the mutex.

use std::sync::{Arc, PoisonError, Weak, atomic::Ordering};
use std::time::Duration;

use arc_swap::Guard;
use tokio::time::Instant;

use super::access_token::{AccessToken, OriginKey, TokenOwner};
use super::policy::{Backoff, Refusals, Schedule};
use super::supply::{Have, Need, Reason, Supplied, Supply};
use super::sync::{ArcSwap, AtomicU64, AtomicUsize, Id, Mutex, MutexGuard, watch};
use super::{hot_path::FastLane, state::State, status::Status};
use crate::clock::{Clock, Moment};
use crate::telemetry::{Obtained, Telemetry};
use crate::{error::TokenError, foreign::quietly};

/// The settings of a source, from its builder.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) schedule: Schedule,
    pub(crate) backoff: Backoff,
    pub(crate) clock: Clock,
    /// `true` if the token is refreshed in the background also without traffic.
    pub(super) keep_warm: bool,
    pub(super) acquire_timeout: Duration,
    pub(crate) attempt_timeout: Duration,
    pub(super) attempts: u32,
    pub(super) retry_for: Duration,
    pub(crate) name: Arc<str>,
}

/// One source, shared by its handles, its tasks and (weakly) its tokens.
pub(super) struct Inner {
    pub(super) settings: Settings,
    pub(super) supply: Arc<dyn Supply>,
    pub(super) telemetry: Telemetry,
    published: ArcSwap<Snapshot>,
    /// Held during each change of the state. Guards the record of 401s, which only writers read.
    writer: Mutex<Refusals>,
    /// Notifies the callers who wait for a change of the state.
    changes: watch::Sender<()>,
    /// Each task of the source holds a receiver. The value is `true` once the source is closed.
    tasks: watch::Sender<bool>,
    /// How many tokens have been made.
    generations: AtomicU64,
    /// How many callers wait for a token.
    waiters: AtomicUsize,
    background: Mutex<Background>,
    /// By when the background task has to run again, in milliseconds since `created`.
    background_due: AtomicU64,
    created: Instant,
}

/// The view of readers: one state as a whole, and the part of it that the hot path needs.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) state: State,
    /// `None` without a token, and while callers wait for the replacement of a suspect one.
    pub(super) lane: Option<FastLane>,
}

/// How late the background task may be. A task that is later is taken to be stalled with its runtime,
/// and a caller starts another one.
const MAX_BACKGROUND_DELAY: Duration = Duration::from_secs(1);

/// The time by which the background task runs, if there is none.
const NO_BACKGROUND: u64 = 0;

/// The background task, and where it runs.
#[derive(Debug, Default)]
struct Background {
    /// The number of the last task. An earlier one ends when it sees that another has taken over.
    ticket: u64,
    /// The runtime of the task; `None` if it has ended.
    runtime: Option<Id>,
    /// A runtime that cannot run one.
    unsuitable: Option<Id>,
}

impl Inner {
    pub(super) fn new(settings: Settings, supply: Arc<dyn Supply>) -> Self {
        let state = State::new(settings.schedule, settings.backoff);
        Self {
            telemetry: Telemetry::new(&settings.name, supply.is_shared()),
            settings,
            supply,
            published: ArcSwap::from_pointee(Snapshot { state, lane: None }),
            writer: Mutex::default(),
            changes: watch::Sender::new(()),
            tasks: watch::Sender::new(false),
            generations: AtomicU64::new(0),
            waiters: AtomicUsize::new(0),
            background: Mutex::default(),
            background_due: AtomicU64::new(NO_BACKGROUND),
            created: Instant::now(),
        }
    }

    pub(super) fn now(&self) -> Moment {
        self.settings.clock.now()
    }

    /// The published snapshot. Do not hold it across an `.await`: it keeps a slot of `ArcSwap`
    /// occupied.
    #[inline]
    pub(super) fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.published.load()
    }

    /// Subscribes to changes of the state. Subscribe first, then read the snapshot: a concurrent
    /// change is either in the snapshot or wakes the subscriber.
    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Publishes the state as `change` left it, and wakes the callers who wait. If `change` returns
    /// `None`, nothing is published.
    fn change<R>(&self, change: impl FnOnce(&mut State, &mut Refusals) -> Option<R>) -> Option<R> {
        let (result, displaced) = {
            let mut refusals = self.lock();
            // The displaced snapshot also holds what the change replaces (tokens, errors of user
            // types). Their destructors run when it is dropped below, without the lock.
            let mut state = self.published.load().state.clone();
            let result = change(&mut state, &mut refusals)?;
            let lane = state.fast_lane();
            (result, self.published.swap(Arc::new(Snapshot { state, lane })))
        };
        // The wakers of the waiters are foreign code too.
        quietly(|| {
            self.changes.send_replace(());
        });
        quietly(|| drop(displaced));
        self.report_expiry();
        Some(result)
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Refusals> {
        // No foreign code runs under this lock. Even if the mutex were poisoned, the state would be
        // whole, because it is published in one step.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records the start of a refresh if `wanted` still holds and none is in progress. Returns its
    /// number.
    ///
    /// Checking and recording are one step under the mutex, so that of many concurrent callers
    /// exactly one starts the refresh (single-flight).
    pub(super) fn start(&self, now: Moment, wanted: impl FnOnce(&State) -> bool) -> Option<u64> {
        let longest = self.supply.longest();
        self.change(|state, _| if wanted(state) { state.start(now, longest) } else { None })
    }

    /// The token that the source has, for a supply that watches other processes.
    pub(super) fn have(&self) -> Have {
        let (now, snapshot) = (self.now(), self.snapshot());
        let is_usable = snapshot.state.token(now).is_some();
        Have { newest: snapshot.state.newest, is_usable }
    }

    /// Records that the refresh `number` starts an attempt, and returns the requirements of the attempt.
    /// `None` if this refresh was given up. `random`, in `[0, 1)`, is the jitter of the backoff if the
    /// attempt fails.
    pub(super) fn start_attempt(&self, number: u64, reason: Reason, random: f64) -> Option<Need> {
        let now = self.now();
        self.change(|state, _| state.start_attempt(number, now, reason, random))
    }

    /// Records that the attempt of the refresh `number` continues after a standstill. Returns `false` if
    /// this refresh was given up.
    pub(super) fn extend(&self, number: u64) -> bool {
        let now = self.now();
        self.change(|state, _| state.extend(number, now, Duration::ZERO).then_some(())).is_some()
    }

    /// Gives an overdue refresh more time, or gives it up. Returns whether it was given up.
    pub(super) fn review_overdue(&self) -> bool {
        let (now, random) = (self.now(), fastrand::f64());
        self.change(|state, _| Some(state.review_overdue(now, random))).unwrap_or_default()
    }

    /// Records a failed attempt. Returns the pause before the next one; `None` if the refresh was
    /// given up.
    pub(super) fn record_failure(
        &self,
        number: u64,
        error: &TokenError,
        random: f64,
    ) -> Option<Duration> {
        let (now, waiting) = (self.now(), self.waiters() > 0);
        self.change(|state, _| state.record_failure(number, now, error, waiting, random))
    }

    /// Ends the refresh `number`.
    pub(super) fn complete(&self, number: u64, result: Result<Option<AccessToken>, TokenError>) {
        let (now, random) = (self.now(), fastrand::f64());
        self.change(|state, refusals| {
            if state.is_suspect() && matches!(result, Ok(Some(_))) {
                refusals.record_replacement(now);
            }
            state.complete(number, now, result, random);
            Some(())
        });
    }

    /// Caches a token that another process obtained, if it is newer than all before. Returns whether
    /// it was cached.
    pub(super) fn take(&self, token: AccessToken) -> bool {
        let now = self.now();
        self.change(|state, _| state.take(now, token).then_some(())).is_some()
    }

    /// Makes a token from the result of the supply.
    pub(super) fn token(self: &Arc<Self>, supplied: Supplied) -> Result<AccessToken, TokenError> {
        let owner = Arc::downgrade(self) as Weak<dyn TokenOwner>;
        let generation = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        AccessToken::new(supplied, generation, owner)
    }

    /// Records a 401 of `origin` for `token`. Returns whether it made the token suspect.
    pub(super) fn suspect(&self, token: &AccessToken, origin: OriginKey) -> bool {
        let now = self.now();
        // Checked without the lock first: after a revocation, late 401s for the old token come in
        // numbers.
        self.snapshot().state.is_refusal_of_interest(now, token)
            && self
                .change(|state, refusals| {
                    let believed =
                        state.is_refusal_of_interest(now, token) && refusals.record(now, origin);
                    believed.then(|| state.suspect(now))
                })
                .is_some()
    }

    /// Drops `token` if it is the cached one.
    pub(super) fn invalidate(&self, token: &AccessToken) {
        let now = self.now();
        self.change(|state, _| state.invalidate(now, token).then_some(()));
    }

    /// Ends the backoff after a permanent failure, because the credentials have changed.
    pub(super) fn forget_rejection(&self) {
        self.change(|state, _| state.forget_rejection().then_some(()));
    }

    /// Closes the source: its tasks end, and no further refresh starts.
    pub(super) fn close(&self) {
        self.change(|state, _| {
            state.closed = true;
            Some(())
        });
        quietly(|| {
            self.tasks.send_replace(true);
        });
    }

    /// Registers a task of this source; `None` after [`close`](Self::close).
    pub(super) fn register_task(&self) -> Option<TaskGuard> {
        // Subscribe, then check: a concurrent `close` is either seen here, or counts this receiver, and
        // `tasks_ended` waits for it.
        let guard = TaskGuard(self.tasks.subscribe());
        let closed = *guard.0.borrow();
        (!closed).then_some(guard)
    }

    /// Waits until no task of this source is left.
    pub(super) async fn tasks_ended(&self) {
        self.tasks.closed().await;
    }

    /// Returns whether a background task is wanted, but none will run in time. Requests ask this once
    /// per tick, so it takes no lock.
    #[inline]
    pub(super) fn lacks_background(&self, now: Moment) -> bool {
        let due = self.background_due.load(Ordering::Relaxed);
        self.settings.keep_warm
            && (due == NO_BACKGROUND || self.millis_since_creation(now.monotonic) > due)
    }

    /// Registers a background task on this runtime. Returns `None` if the last one is only late on the
    /// same runtime, or if this runtime cannot run one.
    pub(super) fn register_background(
        self: &Arc<Self>,
        now: Moment,
        runtime: Id,
    ) -> Option<Registration> {
        let mut background = self.background();
        self.record_background(now.monotonic);
        if [background.runtime, background.unsuitable].contains(&Some(runtime)) {
            return None;
        }
        background.ticket += 1;
        background.runtime = Some(runtime);
        let source = Arc::downgrade(self);
        Some(Registration { source, ticket: background.ticket, suitable: true })
    }

    /// Records that the background task will run again at `wake`, so that it counts as late after that.
    pub(super) fn record_background(&self, wake: Instant) {
        let due = self.millis_since_creation(wake + MAX_BACKGROUND_DELAY);
        self.background_due.store(due, Ordering::Relaxed);
    }

    fn background(&self) -> MutexGuard<'_, Background> {
        self.background.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn millis_since_creation(&self, now: Instant) -> u64 {
        let millis = now.saturating_duration_since(self.created).as_millis();
        u64::try_from(millis).unwrap_or(u64::MAX)
    }

    pub(super) fn status(&self) -> Status {
        let now = self.now();
        Status::new(&self.snapshot().state, now, self.supply.store_error())
    }

    /// Counts a request that is sent with `token`.
    pub(super) fn count_sent(&self, token: &AccessToken, how: Obtained) {
        if Telemetry::COUNTS {
            self.telemetry.sent(how, token.expires().remaining(self.now()));
        }
    }

    /// Reports the remaining lifetime of the cached token to the metrics.
    ///
    /// Two threads may report two states in the wrong order, and the gauge would show the older one
    /// until the next change. So a thread that finds the state changed after its report reports once
    /// more.
    pub(super) fn report_expiry(&self) {
        if !Telemetry::COUNTS {
            return;
        }
        loop {
            let snapshot = self.published.load_full();
            let (state, now) = (&snapshot.state, self.now());
            let token = state.token(now).filter(|_| !state.closed);
            let remaining = token.map(|(token, _)| token.expires().remaining(now));
            self.telemetry.expiry(remaining.unwrap_or_default());
            if Arc::ptr_eq(&snapshot, &self.published.load()) {
                return;
            }
        }
    }

    /// Counts a caller that waits, until the guard is dropped.
    pub(super) fn count_waiter(&self) -> Waiter<'_> {
        self.waiters.fetch_add(1, Ordering::Relaxed);
        self.telemetry.waiter_added();
        Waiter(self)
    }

    pub(super) fn waiters(&self) -> usize {
        self.waiters.load(Ordering::Relaxed)
    }
}

/// Held by each task of a source: `shutdown` waits until it is dropped.
#[derive(Debug)]
pub(super) struct TaskGuard(watch::Receiver<bool>);

impl TaskGuard {
    /// Resolves when the source is closed.
    pub(super) async fn closed(&self) {
        let _ = self.0.clone().wait_for(|closed| *closed).await;
    }
}

/// The registration of a background task. Dropping it unregisters the task; the end of the runtime
/// drops it as well.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) source: Weak<Inner>,
    ticket: u64,
    /// `false` if the runtime cannot run the task, because it has no time driver. It then gets no other.
    pub(super) suitable: bool,
}

impl Registration {
    /// The source, unless it was dropped or another task has taken over.
    pub(super) fn source(&self) -> Option<Arc<Inner>> {
        self.source.upgrade().filter(|inner| inner.background().ticket == self.ticket)
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let Some(inner) = self.source.upgrade() else { return };
        let mut background = inner.background();
        if background.ticket == self.ticket {
            let runtime = background.runtime.take();
            background.unsuitable = runtime.filter(|_| !self.suitable).or(background.unsuitable);
            inner.background_due.store(NO_BACKGROUND, Ordering::Relaxed);
        }
    }
}

/// Counts one caller that waits for a token, until it is dropped.
pub(super) struct Waiter<'a>(&'a Inner);

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.0.waiters.fetch_sub(1, Ordering::Relaxed);
        self.0.telemetry.waiter_removed();
    }
}
