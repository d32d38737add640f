//! [`World`]: everything that the checks know, reckoned from what callers, APIs and IMS see.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    future::{Future, poll_fn},
    hash::{DefaultHasher, Hash, Hasher},
    panic::{AssertUnwindSafe, resume_unwind},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use fastrand::Rng;
use futures_util::FutureExt;
use tokio::{
    runtime::{Handle, Id},
    task,
    time::Instant,
};

use tower_adobe_auth::TokenSource;

use crate::{
    adversity::Adversity,
    callers::{Client, Draws, Manner},
    credentials::Mood,
    ims::{InProgress, Weather},
    moment::{Moment, Wall},
    promises::{NOTICE, RECOVERY},
};

/// One run: its clocks, IMS, the APIs, and the checks.
pub(crate) struct Simulation {
    start: Instant,
    main: Handle,
    pub(crate) adversities: BTreeSet<Adversity>,
    /// Whether the source refreshes in the background. Its timers take most of a run's time.
    pub(crate) keeps_warm: bool,
    /// How often the credentials are checked for a change.
    pub(crate) poll_interval: Duration,
    /// For the callers that come in the middle of a refresh.
    handles: Mutex<Option<(TokenSource, Client)>>,
    world: Mutex<World>,
}

/// A token that IMS has issued and that was alive when it came.
pub(crate) struct Issued {
    pub(crate) sent: Moment,
    pub(crate) landed: Moment,
    pub(crate) life: Duration,
    pub(crate) invalidated: bool,
    /// Obtained only because an API refused the token before it.
    pub(crate) replaces_refused: bool,
    /// The version of the secret that it was requested with.
    pub(crate) secret: u64,
}

impl Issued {
    pub(crate) fn has_ended(&self, now: Moment) -> bool {
        now.is(self.life, self.sent)
    }

    /// Not sent shortly before its end either: 5 s, or a twentieth of a short life.
    pub(crate) fn is_retired(&self, now: Moment) -> bool {
        let ahead = Duration::from_secs(5).min(self.life / 20);
        now.is(self.life - ahead, self.sent)
    }
}

/// A failed attempt, as the callers that waited for it may count it.
pub(crate) struct Failed {
    pub(crate) at: Duration,
    /// Certainly an answer of the issuer: not a panic, a standstill or a lost runtime.
    pub(crate) is_certain: bool,
    /// A waiting caller may live to see another refresh: after a `Retry-After`, or a failure that
    /// is booked nowhere.
    pub(crate) may_restart: bool,
    /// Ends the refresh at once.
    pub(crate) is_final: bool,
    /// Worth another attempt of the same refresh.
    pub(crate) is_repeated: bool,
    /// IMS rejected the credentials.
    pub(crate) is_rejection: bool,
}

/// How long the source keeps away from IMS after a failure.
pub(crate) struct LeaveAlone {
    pub(crate) since: Moment,
    /// The shortest pause while nobody asks, and while callers ask in vain.
    pub(crate) at_least: Duration,
    pub(crate) at_least_while_asked: Duration,
    /// The longest pause that a caller may be told of. Zero: callers are not to notice.
    pub(crate) at_most: Duration,
}

impl LeaveAlone {
    /// How much of the longest pause is left, by the monotonic clock alone, because a wall clock that was
    /// set ahead may run backwards from there.
    pub(crate) fn left(&self, now: Moment) -> Duration {
        (self.since.at + self.at_most).saturating_sub(now.at)
    }
}

/// The number of failures since the last token: not every failure must be booked against IMS.
#[derive(Clone, Copy, Default)]
pub(crate) struct Failures {
    pub(crate) min: u64,
    pub(crate) max: u64,
}

/// When something happened, to count it in intervals.
#[derive(Default)]
pub(crate) struct Rate {
    times: VecDeque<Duration>,
}

impl Rate {
    pub(crate) fn record(&mut self, at: Duration) {
        self.times.push_back(at);
        if self.times.len() > 1_000 {
            self.times.pop_front();
        }
    }

    pub(crate) fn within(&self, interval: Duration, now: Duration) -> usize {
        self.times.iter().rev().take_while(|at| now - **at < interval).count()
    }

    pub(crate) fn clear(&mut self) {
        self.times.clear();
    }
}

pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) wall: Wall,
    /// How many of the next readings of the wall clock panic, outside of callers.
    pub(crate) wall_panics: u8,
    /// What IMS does, and until when: bad weather passes by itself.
    pub(crate) weather: (Weather, Duration),
    /// The same for the provider of the credentials.
    pub(crate) provider: (Mood, Duration),
    pub(crate) foreign_panics_until: Duration,
    /// In seconds. A short life is only asked for while time goes in small steps.
    pub(crate) shortest_life: u64,
    pub(crate) in_progress: Vec<InProgress>,
    pub(crate) requests: u64,
    pub(crate) issued: Vec<Issued>,
    /// The one that was requested last: an older one that comes late is not taken.
    pub(crate) newest: Option<usize>,
    pub(crate) failures: Failures,
    pub(crate) panics: u32,
    /// A refresh was started on the other runtime since the last panic: it may be lost.
    pub(crate) may_be_lost: bool,
    /// A refresh with a reason may have started on the other runtime, which has not driven it yet.
    pub(crate) started_elsewhere: bool,
    /// Failed attempts in a row during which the process stood still.
    pub(crate) stood_failures: u32,
    pub(crate) failed: Vec<Failed>,
    pub(crate) leave_alone: Option<LeaveAlone>,
    /// Nothing but rejections since the last token, and nobody has asked since the last of them.
    pub(crate) only_rejected: bool,
    pub(crate) asked_since_failure: bool,
    pub(crate) asked_in_vain: bool,
    pub(crate) retries_of_rejections: Rate,
    /// Calls of `refresh` that wait, and when the last one came.
    pub(crate) refreshers: u32,
    pub(crate) refresh_called: Option<Duration>,
    /// The origins whose refusal of the newest token may have been believed.
    pub(crate) refused_by: BTreeSet<String>,
    /// The newest token may be suspect: refused since the last failed attempt.
    pub(crate) is_suspect: bool,
    pub(crate) refusals: BTreeMap<String, Moment>,
    pub(crate) replacements: Rate,
    pub(crate) replacements_of: BTreeMap<String, Rate>,
    /// Tokens up to this one are refused by the APIs that know revocations.
    pub(crate) revoked: u64,
    /// The version of the secret, and since when.
    pub(crate) secret: (u64, Duration),
    pub(crate) secret_given: u64,
    /// When `changed()` returned, until a request was made because of that or after that.
    pub(crate) changed: Option<Duration>,
    pub(crate) changes: Rate,
    /// The secret of the last token request.
    pub(crate) requested_with: Option<u64>,
    /// The tasks that wait for a change of the credentials.
    pub(crate) watchers: HashSet<Option<task::Id>>,
    /// How long the main runtime has stood still, and how often.
    pub(crate) stood: Duration,
    pub(crate) standstills: u32,
    pub(crate) clock_set: Duration,
    /// The last trouble that is neither weather nor a jump of a clock.
    pub(crate) trouble: Duration,
    pub(crate) is_closed: bool,
    /// The callers that have no answer yet, and all there have been.
    pub(crate) callers: u64,
    all_callers: u64,
    recent: VecDeque<Happened>,
    pub(crate) log: u64,
    pub(crate) tally: BTreeMap<&'static str, u64>,
    pub(crate) violation: Option<String>,
}

/// What happened, so many times in a row, to be printed if a check fails.
struct Happened {
    at: Duration,
    what: &'static str,
    number: u64,
    times: u32,
}

impl World {
    fn new(rng: Rng) -> Self {
        Self {
            rng,
            wall: Wall::new(),
            wall_panics: 0,
            weather: (Weather::Clear, Duration::ZERO),
            provider: (Mood::Well, Duration::ZERO),
            foreign_panics_until: Duration::ZERO,
            shortest_life: 0,
            in_progress: Vec::new(),
            requests: 0,
            issued: Vec::new(),
            newest: None,
            failures: Failures::default(),
            panics: 0,
            may_be_lost: false,
            started_elsewhere: false,
            stood_failures: 0,
            failed: Vec::new(),
            leave_alone: None,
            only_rejected: true,
            asked_since_failure: false,
            asked_in_vain: false,
            retries_of_rejections: Rate::default(),
            refreshers: 0,
            refresh_called: None,
            refused_by: BTreeSet::new(),
            is_suspect: false,
            refusals: BTreeMap::new(),
            replacements: Rate::default(),
            replacements_of: BTreeMap::new(),
            revoked: 0,
            secret: (1, Duration::ZERO),
            secret_given: 1,
            changed: None,
            changes: Rate::default(),
            requested_with: None,
            watchers: HashSet::new(),
            stood: Duration::ZERO,
            standstills: 0,
            clock_set: Duration::ZERO,
            trouble: Duration::ZERO,
            is_closed: false,
            callers: 0,
            all_callers: 0,
            recent: VecDeque::new(),
            log: 0,
            tally: BTreeMap::new(),
            violation: None,
        }
    }

    /// Notes what happened. The log does not depend on the order within one instant, because Tokio
    /// decides in which order waiting tasks are woken.
    pub(crate) fn note(&mut self, now: Moment, what: &'static str, number: u64) {
        let mut hasher = DefaultHasher::new();
        (now.at, now.wall, what, number).hash(&mut hasher);
        self.log = self.log.wrapping_add(hasher.finish());
        match self.recent.back_mut() {
            Some(Happened { at, what: same, number: again, times })
                if (*at, *same, *again) == (now.at, what, number) =>
            {
                *times += 1;
            }
            _ => self.recent.push_back(Happened { at: now.at, what, number, times: 1 }),
        }
        if self.recent.len() > 40 {
            self.recent.pop_front();
        }
        *self.tally.entry(what).or_default() += 1;
    }

    pub(crate) fn check(&mut self, holds: bool, violation: impl FnOnce() -> String) {
        if !holds && self.violation.is_none() {
            let text = violation();
            self.violation = Some(text);
        }
    }

    /// The violation, and what happened before it.
    pub(crate) fn take_violation(&mut self, now: Moment) -> Result<(), String> {
        let Some(violation) = self.violation.take() else { return Ok(()) };
        let recent = self.recent.iter().map(|Happened { at, what, number, times }| {
            format!("  {at:?}: {what} {number} ({times} times)")
        });
        let recent: Vec<_> = recent.collect();
        Err(format!("{violation}\nlately, at {:?}:\n{}", now.at, recent.join("\n")))
    }

    pub(crate) fn newest(&self) -> Option<&Issued> {
        self.issued.get(self.newest?)
    }

    /// The number of the cached token, if a request may carry it now.
    pub(crate) fn cached(&self, now: Moment) -> Option<u64> {
        let newest = self.newest()?;
        (!newest.invalidated && !newest.is_retired(now)).then(|| self.newest_number())
    }

    pub(crate) fn newest_number(&self) -> u64 {
        self.newest.map_or(0, |at| at as u64 + 1)
    }

    pub(crate) fn is_clear(&self, now: Moment, so_long: Duration) -> bool {
        now.at >= self.weather.1.max(self.provider.1) + so_long
    }

    /// The last trouble of any kind is so long ago that the source has surely recovered.
    pub(crate) fn has_recovered(&self, now: Moment) -> bool {
        self.is_clear(now, RECOVERY)
            && now.at >= self.trouble.max(self.foreign_panics_until) + RECOVERY
            && now.at >= self.clock_set + NOTICE
    }

    /// Nothing can have kept the source from having a token. After a failure it asks again by
    /// itself, also after a rejection.
    pub(crate) fn is_calm(&self, now: Moment) -> bool {
        let local = self.trouble.max(self.foreign_panics_until) + RECOVERY;
        let is_calm = match self.newest() {
            _ if self.failures.min > 0 => self.is_clear(now, RECOVERY),
            Some(newest) => {
                let last = self.weather.1.max(self.provider.1);
                !newest.invalidated && (self.is_clear(now, RECOVERY) || newest.sent.at > last)
            }
            None => false,
        };
        is_calm && now.at >= local && now.at >= self.clock_set + NOTICE
    }
}

impl Simulation {
    /// Inside the main runtime.
    pub(crate) fn new(adversities: BTreeSet<Adversity>, rng: &mut Rng) -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            main: Handle::current(),
            adversities,
            keeps_warm: rng.u8(0..6) == 0,
            poll_interval: Duration::from_secs(rng.choice([5, 60, 600, 3_600]).unwrap()),
            handles: Mutex::new(None),
            world: Mutex::new(World::new(rng.fork())),
        })
    }

    pub(crate) fn has(&self, adversity: Adversity) -> bool {
        self.adversities.contains(&adversity)
    }

    pub(crate) fn now(&self) -> Moment {
        self.world().now(self.start.elapsed())
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// The wall clock as the source reads it.
    pub(crate) fn read_wall(&self) -> SystemTime {
        let at = self.start.elapsed();
        let mut world = self.world();
        if world.wall_panics > 0 && !IN_CALLER.get() {
            world.wall_panics -= 1;
            let now = world.now(at);
            world.note(now, "clock panics", 0);
            drop(world);
            resume_unwind(Box::new("a panic in the wall clock"));
        }
        UNIX_EPOCH + world.wall.read(at)
    }

    pub(crate) fn is_main(&self, runtime: Id) -> bool {
        self.main.id() == runtime
    }

    pub(crate) fn foreign_code_panics(&self) -> bool {
        let now = self.start.elapsed();
        now < self.world().foreign_panics_until
    }

    /// Notes a trouble from which the source recovers within [`RECOVERY`].
    pub(crate) fn note_trouble(&self, what: &'static str) {
        let now = self.now();
        let mut world = self.world();
        world.trouble = now.at;
        world.note(now, what, 0);
    }

    pub(crate) fn set_handles(&self, handles: Option<(TokenSource, Client)>) {
        let _replaced = std::mem::replace(&mut *self.handles.lock().unwrap(), handles);
    }

    /// A caller comes at this instant.
    pub(crate) fn probe(self: &Arc<Self>) {
        let handles = self.handles.lock().unwrap().clone();
        let Some((tokens, client)) = handles else { return };
        let manner = Manner::draw(&mut self.world().rng);
        self.spawn(&tokens, &client, manner);
    }

    /// Runs a caller on the main runtime. A caller that panics is a violation: no caller of this
    /// simulation panics by itself.
    pub(crate) fn spawn(self: &Arc<Self>, tokens: &TokenSource, client: &Client, manner: Manner) {
        let draws = {
            let mut world = self.world();
            world.callers += 1;
            world.all_callers += 1;
            let (number, may_refuse) = (world.all_callers, self.has(Adversity::Refusals));
            Draws::new(manner, may_refuse, number, &mut world.rng)
        };
        let simulation = Arc::clone(self);
        let caller = Arc::clone(self).call(tokens.clone(), client.clone(), draws);
        self.main.spawn(async move {
            let outcome = AssertUnwindSafe(as_caller(caller)).catch_unwind().await;
            IN_CALLER.set(false);
            let mut world = simulation.world();
            world.callers -= 1;
            world.check(outcome.is_ok(), || {
                let panic = outcome.unwrap_err();
                let text = panic.downcast_ref::<&str>().copied().map(str::to_owned);
                let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
                format!("a caller panicked: {text:?}")
            });
        });
    }
}

impl World {
    fn now(&self, at: Duration) -> Moment {
        Moment { at, wall: self.wall.read(at) }
    }
}

thread_local! {
    static IN_CALLER: Cell<bool> = const { Cell::new(false) };
}

/// Marks what is polled as code of a caller.
async fn as_caller(caller: impl Future<Output = ()>) {
    let mut caller = pin!(caller);
    poll_fn(|cx| {
        IN_CALLER.set(true);
        let polled = caller.as_mut().poll(cx);
        IN_CALLER.set(false);
        polled
    })
    .await;
}
