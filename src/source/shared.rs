//! What the handles, the flight and the keeper of one source have in common.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::{runtime::Handle, sync::watch, time::Instant};
use tracing::{debug, warn};

use super::{
    backoff::Backoff,
    fetch::ErasedFetchToken,
    fleet::Fleet,
    flight::{self, Joined, Outcome},
    keeper,
    schedule::Schedule,
    spread,
    state::{Current, Decision, State},
};
use crate::{
    clock::{Clock, Moment, Tick},
    error::{ErrorKind, TokenError},
    telemetry::{Recovery, Telemetry},
    token::{AccessToken, HostKey, Origin},
};

/// The least life of a token that is looked at once in a tick only: it is retired a quarter of a
/// second before its end, and ticks are much shorter.
const LEAST_TICKED: Duration = Duration::from_secs(5);

/// How a source behaves.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) schedule: Schedule,
    pub(super) backoff: Backoff,
    pub(super) clock: Clock,
    /// Whether the token is renewed also without traffic.
    pub(super) keep_warm: bool,
    pub(super) acquire_timeout: Duration,
    pub(super) attempt_timeout: Duration,
    pub(super) attempts: u32,
    pub(super) retry_for: Duration,
    pub(super) name: Arc<str>,
}

/// The state of a source, and the means to change it.
pub(super) struct Shared {
    pub(super) settings: Settings,
    pub(super) fetcher: Arc<dyn ErasedFetchToken>,
    pub(super) fleet: Fleet,
    /// What readers need of `state`, published after each change of it.
    current: ArcSwapOption<Current>,
    /// How often `current` was published.
    version: AtomicU64,
    state: Mutex<State<Joined>>,
    /// Says that something has changed; what it is, `state` tells.
    pub(super) changes: watch::Sender<()>,
    pub(super) closed: watch::Sender<bool>,
    /// How many tokens there have been.
    generations: AtomicU64,
    /// Whether a keeper is at work, or none is wanted.
    keeper: AtomicBool,
    /// How many callers wait for a flight.
    pub(super) waiters: AtomicUsize,
    pub(super) telemetry: Telemetry,
}

/// What one reader saw of `current`: good as long as nothing newer was published.
///
/// To compare a number costs less than to borrow what is shared. A reader that reads only once, as
/// a service that is cloned for each request, keeps nothing.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    before: bool,
    current: Option<Arc<Current>>,
}

/// A token, or what to wait for.
pub(super) enum Acquired {
    Token(AccessToken),
    Flight(Joined),
}

impl Shared {
    pub(super) fn new(
        settings: Settings,
        fetcher: Arc<dyn ErasedFetchToken>,
        fleet: Fleet,
    ) -> Self {
        Self {
            current: ArcSwapOption::empty(),
            version: AtomicU64::new(0),
            state: Mutex::new(State::new(settings.schedule)),
            changes: watch::Sender::new(()),
            closed: watch::Sender::new(false),
            generations: AtomicU64::new(0),
            keeper: AtomicBool::new(!settings.keep_warm),
            waiters: AtomicUsize::new(0),
            telemetry: Telemetry::new(&settings.name, fleet.is_shared()),
            settings,
            fetcher,
            fleet,
        }
    }

    pub(super) fn now(&self) -> Moment {
        self.settings.clock.now()
    }

    /// A token that may be sent now, if one is at hand. Starts its renewal when that is due.
    pub(super) fn ready(self: &Arc<Self>) -> Option<AccessToken> {
        self.pick(self.current.load().as_ref()?)
    }

    /// [`ready`](Self::ready) for a reader that comes again and again.
    #[inline]
    pub(super) fn ready_again(self: &Arc<Self>, seen: &mut Seen) -> Option<AccessToken> {
        let version = self.version.load(Ordering::Acquire);
        match &seen.current {
            Some(current) if current.version == version => self.pick(current),
            _ => self.look_again(seen),
        }
    }

    #[inline(never)]
    fn look_again(self: &Arc<Self>, seen: &mut Seen) -> Option<AccessToken> {
        let current = self.current.load();
        seen.current = if seen.before { Option::clone(&current) } else { None };
        seen.before = true;
        self.pick(current.as_ref()?)
    }

    /// A copy of the token that readers see, if it may be sent.
    ///
    /// This is the way of every request. It reads the two clocks once in a tick; in the same tick
    /// all other requests read the tick only.
    #[inline]
    fn pick(self: &Arc<Self>, current: &Current) -> Option<AccessToken> {
        let tick = self.settings.clock.tick();
        let checked = current.checked.load(Ordering::Relaxed);
        if tick.is_none_or(|tick| tick.number() != checked) {
            self.check(current, tick)?;
        }
        Some(spread::pick(&current.copies).clone())
    }

    /// Whether the token may be sent; sees to its renewal.
    #[cold]
    fn check(self: &Arc<Self>, current: &Current, tick: Option<Tick>) -> Option<()> {
        let now = self.now();
        if current.retire.has_come(now) {
            return None;
        }
        // The keeper ends with its runtime. Whoever comes next, on another one, revives it.
        if !self.keeper.load(Ordering::Relaxed) {
            if let Ok(runtime) = Handle::try_current() {
                keeper::ensure(self, &runtime);
            }
        }
        if current.renew.is_some_and(|renew| renew.has_come(now)) {
            // Whether or not it can be started here, the token in hand is good.
            let _ = self.acquire(now, Duration::ZERO);
        } else if let Some(tick) = tick {
            if current.lifetime >= LEAST_TICKED && !Clock::is_paused() {
                current.checked.store(tick.number(), Ordering::Relaxed);
            }
        }
        Some(())
    }

    /// A token, or the flight that will bring it: started here unless one is under way.
    pub(super) fn acquire(
        self: &Arc<Self>,
        now: Moment,
        min_lifetime: Duration,
    ) -> Result<Acquired, TokenError> {
        self.act(now, |state| state.decide(now, min_lifetime))
    }

    /// The flight that is under way, or a new one unless the source is backing off.
    pub(super) fn refresh(self: &Arc<Self>, now: Moment) -> Result<Acquired, TokenError> {
        self.act(now, |state| state.decide_refresh(now))
    }

    fn act(
        self: &Arc<Self>,
        now: Moment,
        decide: impl FnOnce(&State<Joined>) -> Decision<Joined>,
    ) -> Result<Acquired, TokenError> {
        let runtime = Handle::try_current();

        // To decide for a flight and to note that it is under way is one step under the lock:
        // that is what makes it the only one.
        let (decision, flight, _replaced, _kept) = {
            let mut state = self.lock();
            // A runtime can be kept and not driven: a flight on it may never end. Where it is our
            // own it is driven, and a flight that is late will end itself.
            let elsewhere =
                |flight: &Joined| runtime.as_ref().is_ok_and(|here| here.id() != flight.runtime);
            let given_up = state.flight(now).is_some_and(|(flight, overdue)| {
                flight.is_lost() || (overdue && elsewhere(flight))
            });
            let kept = state.keepsakes();
            let replaced = given_up.then(|| {
                state.crash();
                self.publish(&state)
            });
            let decision = decide(&state);
            let flight = match (&decision, &runtime) {
                (Decision::Fly | Decision::UseAndFly(_), Ok(here)) => self.open().map(|open| {
                    let (landing, joined) = flight::channel(here.id());
                    let number = state.take_off(joined.clone(), self.overdue_at(now));
                    (here, number, landing, open, joined, self.publish(&state))
                }),
                _ => None,
            };
            (decision, flight, replaced, kept)
        };

        let joined = flight.map(|(here, number, landing, open, joined, _replaced)| {
            self.launch(here, flight::fly(Arc::clone(self), number, landing, open));
            joined
        });
        match (decision, joined) {
            (Decision::Use(token) | Decision::UseAndFly(token), _) => Ok(Acquired::Token(token)),
            (Decision::Join(flight), _) | (Decision::Fly, Some(flight)) => {
                Ok(Acquired::Flight(flight))
            }
            (Decision::Fly, None) if self.is_closed() => Err(flight::shut_down()),
            (Decision::Fly, None) => Err(TokenError::new(
                ErrorKind::NoRuntime,
                "no valid token is in hand, and none can be fetched outside of a tokio runtime",
            )),
            (Decision::Fail(error), _) => Err(error),
        }
    }

    fn launch(
        self: &Arc<Self>,
        runtime: &Handle,
        flight: impl Future<Output = ()> + Send + 'static,
    ) {
        runtime.spawn(flight);
        keeper::ensure(self, runtime);
        self.changes.send_replace(());
    }

    /// Renews the token in hand if that is due.
    pub(super) fn renew_if_due(self: &Arc<Self>) {
        let now = self.now();
        let due = self.read(State::next_wake).is_some_and(|wake| wake.has_come(now));
        if due {
            let _ = self.acquire(now, Duration::ZERO);
        }
    }

    /// Replaces the token in hand, because its fetcher says that it would fetch another now.
    pub(super) fn renew_changed(self: &Arc<Self>) {
        self.update(State::forget_refusal);
        self.fleet.credentials_have_changed();
        let _ = self.refresh(self.now());
    }

    /// How long until a flight is due although nobody calls.
    pub(super) fn until_wake(&self) -> Option<Duration> {
        let now = self.now();
        self.read(State::next_wake).map(|wake| wake.remaining(now))
    }

    /// When an attempt that starts now should long have ended: it ends itself in half of that.
    fn overdue_at(&self, now: Moment) -> Instant {
        let limit = self.settings.attempt_timeout.saturating_mul(2);
        now.plus(limit.saturating_add(self.fleet.longest_wait())).monotonic
    }

    /// Notes a failed attempt of this flight and returns how long IMS is to be left alone now;
    /// `None` if the flight was given up.
    pub(super) fn fail(&self, number: u64, error: &TokenError) -> Option<Duration> {
        let now = self.now();
        let backoff = self.settings.backoff;
        let random = fastrand::f64();
        let first_is_free = matches!(error.kind(), ErrorKind::Panicked | ErrorKind::RuntimeLost);
        self.update(|state| {
            if !state.is_under_way(number) {
                return None;
            }
            let delay = state.fail(now, error.clone(), |count| {
                // No word from IMS: the next caller may try at once, but not for ever.
                if first_is_free && count == 1 {
                    Duration::ZERO
                } else {
                    backoff.delay(count, error.retry_after(), random)
                }
            });
            state.prolong(self.overdue_at(now.plus(delay)));
            Some(delay)
        })
    }

    /// Ends the flight, unless it was given up.
    pub(super) fn land(&self, number: u64, outcome: &Outcome) {
        let now = self.now();
        let copies = outcome.as_ref().map(spread::copies).unwrap_or_default();
        self.update(|state| match outcome {
            _ if !state.is_under_way(number) => {}
            Ok(token) => state.land(now, token.clone(), Arc::clone(&copies)),
            Err(_) => state.crash(),
        });
    }

    /// Takes note that an API at `host` refused `token`, and has it replaced if that is believed.
    fn refused(self: &Arc<Self>, token: &AccessToken, host: HostKey) {
        let now = self.now();
        let suspect = {
            let mut state = self.lock();
            let suspect = state.refuse(now, token, host);
            suspect.then(|| self.publish(&state))
        };
        self.telemetry.unauthorized(suspect.is_some());
        match suspect {
            Some(_replaced) => {
                let generation = token.generation();
                warn!(generation, "an API refused the access token; it is being replaced");
                // Where no flight can start, the next caller starts it.
                let _ = self.acquire(now, Duration::ZERO);
            }
            None => debug!("an API refused an access token; this says nothing about the token"),
        }
    }

    pub(super) fn drop_token(&self, token: &AccessToken) {
        self.update(|state| state.drop_token(token));
    }

    pub(super) fn subscribe(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// Whether a keeper is at work; set by itself.
    pub(super) fn keeper(&self) -> &AtomicBool {
        &self.keeper
    }

    pub(super) fn next_generation(&self) -> u64 {
        self.generations.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn read<R>(&self, look: impl FnOnce(&State<Joined>) -> R) -> R {
        look(&self.lock())
    }

    /// Changes the state, and tells those who wait for changes.
    pub(super) fn update<R>(&self, change: impl FnOnce(&mut State<Joined>) -> R) -> R {
        let (result, _replaced, _kept) = {
            let mut state = self.lock();
            let kept = state.keepsakes();
            let result = change(&mut state);
            (result, self.publish(&state), kept)
        };
        self.changes.send_replace(());
        self.show_expiry();
        result
    }

    /// Shows the readers what they need of a changed state. What it replaces is to be dropped
    /// after the lock is given back.
    fn publish(&self, state: &State<Joined>) -> Option<Arc<Current>> {
        let version = self.version.load(Ordering::Relaxed) + 1;
        // Before it: whoever has seen what is new must not be sent back to what it remembers.
        self.version.store(version, Ordering::Release);
        self.current.swap(state.current(version).map(Arc::new))
    }

    fn lock(&self) -> MutexGuard<'_, State<Joined>> {
        // Nothing under this lock runs or drops foreign code; were it poisoned all the same, the
        // state would still be whole: each change of it is a few plain assignments.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Origin for Shared {
    fn refused(self: Arc<Self>, token: &AccessToken, host: HostKey) {
        Self::refused(&self, token, host);
    }

    fn recovered(&self, outcome: Recovery) {
        self.telemetry.recovery(outcome);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("settings", &self.settings).finish_non_exhaustive()
    }
}
