//! The protocol of a source (start, publish, read, complete), model-checked with `shuttle`.
//!
//! The files of the protocol (`acquire`, `background`, `inner`, `refresh`) are compiled a second time
//! here, unchanged, against the primitives in `sync`. Each operation on the cell of the snapshot, the
//! mutex, a channel or a counter is a step, and shuttle chooses which thread takes the next step. A
//! failing schedule is printed, and `shuttle::replay` repeats it. The three smallest models run in
//! every order of their steps; each other model runs in 500 random orders, and in 500 that put
//! single threads off for long.
//!
//! The clock stands still unless a model lets time pass, so that no timer hides a lost wake-up: a
//! caller who would sleep forever is reported as a deadlock.
//!
//! Three things are not modelled. `arc-swap` and Tokio's channels are the real ones, and one of their
//! operations is one step. Shuttle runs one thread at a time, so that every thread reads the last
//! value of an atomic, whatever its memory order. The caches of the hot path take no steps.
//!
//! Planted defects show that the models can fail: those of the primitives are tests at the end.

#![expect(clippy::duplicate_mod, reason = "the same files, against other primitives")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use shuttle::{
    Config, Runner,
    future::block_on,
    scheduler::{DfsScheduler, PctScheduler, RandomScheduler},
    thread,
};
use tokio::runtime::{Builder, Runtime};

use self::{
    access_token::{OriginKey, TokenOwner},
    acquire::acquire,
    inner::{Inner, Settings},
    state::Want,
    supply::{BoxFuture, Need, Stamp, Supplied, Supply},
    sync::{Fault, end_last_task, lose_tasks, plant},
};
// The files of the protocol import these from the module above them.
use super::{access_token, hot_path, policy, state, status, supply};
use crate::{
    clock::{Clock, Deadline},
    error::{ErrorKind, TokenError},
    ims::TokenResponse,
};

#[allow(dead_code, reason = "the models need only a part")]
#[path = "../acquire.rs"]
mod acquire;
#[allow(dead_code, reason = "the models need only a part")]
#[path = "../background.rs"]
mod background;
#[allow(dead_code, reason = "the models need only a part")]
#[path = "../inner.rs"]
mod inner;
#[path = "../refresh.rs"]
mod refresh;
mod sync;

/// How many random orders of a model are tried, and how many that put single threads off.
const SCHEDULES: usize = 500;

/// The first seed. `SHUTTLE_RANDOM_SEED` replaces it.
const SEED: u64 = 16;

/// The schedules that put single threads off force one switch less than this.
const DEPTH: usize = 3;

const DAY: Duration = Duration::from_secs(86_400);

/// How long an attempt takes at most.
const LONGEST: Duration = Duration::from_secs(10);

/// Runs a model in random orders.
fn check(model: fn()) {
    let random = RandomScheduler::new_from_seed(SEED, SCHEDULES);
    with_paused_clock(|| Runner::new(random, config()).run(model));
    let unfair = PctScheduler::new_from_seed(SEED, DEPTH, SCHEDULES);
    with_paused_clock(|| Runner::new(unfair, config()).run(model));
}

/// Runs a model in every order, and returns how many there are.
fn check_every_order(model: fn()) -> usize {
    with_paused_clock(|| Runner::new(DfsScheduler::new(None, false), config()).run(model))
}

fn config() -> Config {
    let mut config = Config::new();
    config.silence_warnings = true;
    config
}

thread_local! {
    /// Leaked: it would wake the tasks of a model that failed, which are gone by then.
    static RUNTIME: &'static Runtime = Box::leak(Box::new(
        Builder::new_current_thread().enable_time().start_paused(true).build().unwrap(),
    ));
}

/// Tokio's clock stands still, and its timers fire only in [`pass`].
fn with_paused_clock<R>(run: impl FnOnce() -> R) -> R {
    RUNTIME.with(|runtime| {
        let _entered = runtime.enter();
        run()
    })
}

/// Lets time pass, and fires the timers that are due by then.
fn pass(time: Duration) {
    RUNTIME.with(|runtime| runtime.block_on(tokio::time::advance(time)));
}

/// A supply that answers as a test says, and counts its requests.
struct Ims {
    answer: fn(u64) -> Answer,
    requests: Count,
    settlements: Count,
}

/// Counts pieces of work.
#[derive(Default)]
struct Count {
    begun: AtomicU64,
    in_progress: AtomicU64,
    most_in_progress: AtomicU64,
}

/// The answer to one token request.
enum Answer {
    Token,
    Failure,
    Panic,
    Never,
}

impl Ims {
    fn new(answer: fn(u64) -> Answer) -> Arc<Self> {
        Arc::new(Self { answer, requests: Count::default(), settlements: Count::default() })
    }

    fn requests(&self) -> u64 {
        self.requests.begun.load(Ordering::Relaxed)
    }

    fn is_idle(&self) -> bool {
        [&self.requests, &self.settlements]
            .iter()
            .all(|count| count.in_progress.load(Ordering::Relaxed) == 0)
    }

    fn most_requests_at_once(&self) -> u64 {
        self.requests.most_in_progress.load(Ordering::Relaxed)
    }
}

impl Count {
    /// Counts a piece of work, which is in progress until the guard is dropped.
    fn begin(&self) -> InProgress<'_> {
        let in_progress = self.in_progress.fetch_add(1, Ordering::Relaxed) + 1;
        self.most_in_progress.fetch_max(in_progress, Ordering::Relaxed);
        let number = self.begun.fetch_add(1, Ordering::Relaxed) + 1;
        InProgress { count: self, number }
    }
}

struct InProgress<'a> {
    count: &'a Count,
    number: u64,
}

impl Drop for InProgress<'_> {
    fn drop(&mut self) {
        self.count.in_progress.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Supply for Ims {
    fn obtain(&self, need: Need) -> BoxFuture<'_, Result<Option<Supplied>, TokenError>> {
        Box::pin(async move {
            let request = self.requests.begin();
            shuttle::future::yield_now().await;
            match (self.answer)(request.number) {
                Answer::Token => Ok(Some(supplied(need.stamp))),
                Answer::Failure => Err(TokenError::transient("IMS is down")),
                // Without the panic hook, which would print each one.
                Answer::Panic => std::panic::resume_unwind(Box::new("fetching")),
                Answer::Never => std::future::pending().await,
            }
        })
    }

    fn settle(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            let _settlement = self.settlements.begin();
            shuttle::future::yield_now().await;
        })
    }

    fn credentials_changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }

    fn longest(&self) -> Duration {
        LONGEST
    }
}

fn clock() -> Clock {
    Clock::with_wall(|| SystemTime::UNIX_EPOCH)
}

fn supplied(stamp: Stamp) -> Supplied {
    let response = TokenResponse::new("token", DAY);
    Supplied { response, sent: clock().now(), stamp, shared: false }
}

fn source(ims: &Arc<Ims>) -> Arc<Inner> {
    sync::begin();
    let schedule = policy::Schedule { refresh_at: 0.9, jitter: 0.0 };
    let settings = Settings {
        schedule,
        backoff: policy::Backoff::default(),
        clock: clock(),
        keep_warm: false,
        acquire_timeout: DAY,
        attempt_timeout: LONGEST,
        attempts: 1,
        retry_for: Duration::ZERO,
        name: "model".into(),
    };
    Arc::new(Inner::new(settings, Arc::clone(ims) as Arc<dyn Supply>))
}

/// A source that has the token of `stamp`.
fn source_with_token(ims: &Arc<Ims>, stamp: u64) -> (Arc<Inner>, access_token::AccessToken) {
    let inner = source(ims);
    let token = inner.token(supplied(Stamp(stamp))).unwrap();
    assert!(inner.take(token.clone()));
    (inner, token)
}

/// A caller in a thread of its own, who returns the stamp of the token it gets.
fn caller(inner: &Arc<Inner>) -> thread::JoinHandle<Result<Stamp, TokenError>> {
    let inner = Arc::clone(inner);
    thread::spawn(move || call(&inner))
}

fn call(inner: &Arc<Inner>) -> Result<Stamp, TokenError> {
    let token = block_on(acquire(inner, Want::default(), Deadline::after(DAY)));
    token.map(|token| token.stamp())
}

fn in_thread(
    inner: &Arc<Inner>,
    act: impl FnOnce(&Arc<Inner>) + Send + 'static,
) -> thread::JoinHandle<()> {
    let inner = Arc::clone(inner);
    thread::spawn(move || act(&inner))
}

/// A reader that checks each snapshot by itself and against the one before.
fn reader(inner: &Arc<Inner>) -> thread::JoinHandle<()> {
    in_thread(inner, |inner| {
        let mut before = (0, Stamp::default(), false);
        for _ in 0..6 {
            let snapshot = inner.snapshot();
            let state = &snapshot.state;
            let now = (state.flights, state.newest, state.closed);
            assert!(before.0 <= now.0 && before.1 <= now.1 && before.2 <= now.2, "went back");
            before = now;
            if let Some((token, _)) = state.token(inner.now()) {
                assert_eq!(token.stamp(), state.newest, "an older token is cached");
            }
        }
    })
}

#[test]
fn callers_share_one_refresh() {
    fn model() {
        let ims = Ims::new(|_| Answer::Token);
        let inner = source(&ims);
        let reader = reader(&inner);
        let callers = [(); 3].map(|()| caller(&inner));

        for caller in callers {
            assert!(caller.join().unwrap().is_ok());
        }
        reader.join().unwrap();
        assert_eq!(ims.requests(), 1, "more than one request");
    }

    check(model);
}

#[test]
fn a_failed_attempt_wakes_every_caller() {
    fn model() {
        let ims = Ims::new(|_| Answer::Failure);
        let inner = source(&ims);
        let callers = [(); 3].map(|()| caller(&inner));

        for caller in callers {
            assert_eq!(caller.join().unwrap().unwrap_err().kind(), ErrorKind::Fetch);
        }
        assert_eq!(ims.requests(), 1);
    }

    check(model);
}

#[test]
fn a_panic_of_the_fetcher_wakes_every_caller() {
    fn model() {
        let ims = Ims::new(|request| if request == 1 { Answer::Panic } else { Answer::Token });
        let inner = source(&ims);
        let callers = [(); 3].map(|()| caller(&inner));

        for caller in callers {
            match caller.join().unwrap() {
                Ok(stamp) => assert_eq!(stamp, Stamp(2), "the token of the second request"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Panicked),
            }
        }
        assert!(ims.requests() <= 2);
        assert_eq!(ims.most_requests_at_once(), 1);
    }

    check(model);
}

#[test]
fn a_runtime_that_ends_in_a_refresh_wakes_every_caller() {
    fn model() {
        let ims = Ims::new(|request| if request == 1 { Answer::Never } else { Answer::Token });
        let inner = source(&ims);
        let callers = [(); 2].map(|()| caller(&inner));
        let requested = Arc::clone(&ims);
        let end = thread::spawn(move || {
            while requested.requests() == 0 {
                thread::yield_now();
            }
            assert!(end_last_task());
        });

        for caller in callers {
            assert_eq!(caller.join().unwrap().unwrap(), Stamp(2));
        }
        end.join().unwrap();
        assert_eq!(ims.requests(), 2);
        assert_eq!(ims.most_requests_at_once(), 1);
    }

    check(model);
}

#[test]
fn callers_outlive_refreshes_that_are_lost() {
    fn model() {
        let ims = Ims::new(|_| Answer::Token);
        let inner = source(&ims);
        lose_tasks(2);
        let ended = Arc::new(AtomicBool::new(false));
        let time = thread::spawn({
            let ended = Arc::clone(&ended);
            move || {
                // A caller may wait for a tenth of a second before it starts another refresh.
                while !ended.load(Ordering::Relaxed) {
                    pass(Duration::from_millis(50));
                    thread::yield_now();
                }
            }
        });
        let callers = [(); 3].map(|()| caller(&inner));

        let results = callers.map(|caller| caller.join().unwrap());
        ended.store(true, Ordering::Relaxed);
        time.join().unwrap();
        // A caller fails if it sees its own runtime lose its refresh; the others get the token.
        let failed: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
        assert!(failed.len() <= 2);
        assert!(failed.iter().all(|error| error.kind() == ErrorKind::RuntimeLost));
        assert_eq!(ims.requests(), 1);
    }

    check(model);
}

#[test]
fn a_token_from_elsewhere_wakes_every_caller() {
    fn model() {
        let ims = Ims::new(|_| Answer::Never);
        let inner = source(&ims);
        let reader = reader(&inner);
        let callers = [(); 2].map(|()| caller(&inner));
        let takes = [7, 8].map(|stamp| {
            in_thread(&inner, move |inner| {
                inner.take(inner.token(supplied(Stamp(stamp))).unwrap());
            })
        });

        for caller in callers {
            assert!([Stamp(7), Stamp(8)].contains(&caller.join().unwrap().unwrap()));
        }
        takes.into_iter().for_each(|take| take.join().unwrap());
        reader.join().unwrap();
        assert_eq!(call(&inner).unwrap(), Stamp(8));
    }

    check(model);
}

#[test]
fn an_overdue_refresh_is_superseded_once() {
    fn model() {
        let ims = Ims::new(|_| Answer::Token);
        let inner = source(&ims);
        // Of a runtime that nobody drives: it is late, asked for more time, and late again.
        let stalled = inner.start(inner.now(), |_| true).unwrap();
        pass(LONGEST * 2);
        assert!(!inner.review_overdue());
        pass(LONGEST);
        let reader = reader(&inner);
        let callers = [(); 2].map(|()| caller(&inner));
        let late = in_thread(&inner, move |inner| {
            let token = inner.token(supplied(Stamp(1))).unwrap();
            inner.complete(stalled, Ok(Some(token)));
        });

        late.join().unwrap();
        reader.join().unwrap();
        pass(Duration::from_secs(1));
        for caller in callers {
            let stamp = caller.join().unwrap().unwrap();
            assert!([Stamp(1), Stamp(2)].contains(&stamp), "{stamp:?}");
        }
        assert!(ims.requests() <= 1);
        assert!(inner.snapshot().state.flights <= 2);
    }

    check(model);
}

#[test]
fn a_superseded_refresh_ends_no_other() {
    fn model() {
        let ims = Ims::new(|_| Answer::Token);
        let inner = source(&ims);
        let stalled = inner.start(inner.now(), |_| true).unwrap();
        pass(LONGEST * 2);
        assert!(!inner.review_overdue());
        pass(LONGEST);
        assert!(inner.review_overdue());
        pass(Duration::from_secs(1));
        let late = in_thread(&inner, move |inner| {
            assert!(!inner.extend(stalled));
            inner.complete(stalled, Err(TokenError::lost()));
        });
        let callers = [(); 2].map(|()| caller(&inner));

        for caller in callers {
            assert_eq!(caller.join().unwrap().unwrap(), Stamp(1));
        }
        late.join().unwrap();
        assert_eq!(ims.requests(), 1);
    }

    check(model);
}

#[test]
fn a_late_completion_brings_no_older_token() {
    fn model() {
        let ims = Ims::new(|_| Answer::Token);
        let (inner, _) = source_with_token(&ims, 1);
        let stalled = inner.start(inner.now(), |_| true).unwrap();
        let reader = reader(&inner);
        let late = in_thread(&inner, move |inner| {
            let token = inner.token(supplied(Stamp(2))).unwrap();
            inner.complete(stalled, Ok(Some(token)));
        });
        let newer = in_thread(&inner, |inner| {
            assert!(inner.take(inner.token(supplied(Stamp(3))).unwrap()));
            assert_eq!(call(inner).unwrap(), Stamp(3));
        });

        late.join().unwrap();
        newer.join().unwrap();
        reader.join().unwrap();
        assert_eq!(call(&inner).unwrap(), Stamp(3));
        assert!(!inner.snapshot().state.is_refreshing());
    }

    check(model);
}

#[test]
fn an_invalidated_token_never_comes_back() {
    fn model() {
        let ims = Ims::new(|_| Answer::Token);
        let (inner, token) = source_with_token(&ims, 5);
        let again = in_thread(&inner, |inner| {
            // Another process announces the same token, and an older one.
            for stamp in [5, 4] {
                assert!(!inner.take(inner.token(supplied(Stamp(stamp))).unwrap()));
            }
        });
        let other = caller(&inner);
        let invalidating = in_thread(&inner, move |inner| {
            inner.invalidate(&token);
            assert_eq!(call(inner).unwrap(), Stamp(6));
        });

        again.join().unwrap();
        invalidating.join().unwrap();
        assert!(other.join().unwrap().unwrap() >= Stamp(5));
        assert_eq!(ims.requests(), 1);
    }

    check(model);
}

#[test]
fn an_invalidation_spares_a_newer_token() {
    fn model() {
        let ims = Ims::new(|_| Answer::Never);
        let (inner, token) = source_with_token(&ims, 1);
        let take = in_thread(&inner, |inner| {
            assert!(inner.take(inner.token(supplied(Stamp(2))).unwrap()));
        });
        let invalidate = in_thread(&inner, move |inner| inner.invalidate(&token));

        take.join().unwrap();
        invalidate.join().unwrap();
        assert_eq!(call(&inner).unwrap(), Stamp(2));
    }

    check(model);
}

#[test]
fn refusals_of_one_token_start_one_refresh() {
    fn model() {
        let ims = Ims::new(|_| Answer::Token);
        let (inner, token) = source_with_token(&ims, 1);
        let reader = reader(&inner);
        let refused = [1, 2].map(|origin| {
            let token = token.clone();
            in_thread(&inner, move |inner| {
                Arc::clone(inner).record_refusal(&token, OriginKey(origin));
                assert_eq!(call(inner).unwrap(), Stamp(2));
            })
        });

        refused.into_iter().for_each(|refused| refused.join().unwrap());
        reader.join().unwrap();
        assert_eq!(ims.requests(), 1);
    }

    check(model);
}

#[test]
fn closing_waits_for_every_task_and_admits_no_other() {
    fn model(answer: fn(u64) -> Answer) {
        let ims = Ims::new(answer);
        let inner = source(&ims);
        let reader = reader(&inner);
        let callers = [(); 2].map(|()| caller(&inner));
        let closing = in_thread(&inner, {
            let ims = Arc::clone(&ims);
            move |inner| {
                inner.close();
                assert_eq!(inner.start(inner.now(), |_| true), None);
                block_on(inner.tasks_ended());
                assert!(ims.is_idle());
                let requests = ims.requests();
                assert!(inner.register_task().is_none());
                let _ = call(inner);
                assert_eq!(ims.requests(), requests);
            }
        });

        closing.join().unwrap();
        for caller in callers {
            match caller.join().unwrap() {
                Ok(stamp) => assert_eq!(stamp, Stamp(1)),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Shutdown),
            }
        }
        reader.join().unwrap();
        assert!(ims.is_idle());
        assert!(ims.requests() <= 1);
    }

    check(|| model(|_| Answer::Token));
    check(|| model(|_| Answer::Never));
}

#[test]
fn a_waiter_wakes_in_every_order_of_steps() {
    fn model() {
        let ims = Ims::new(|_| Answer::Never);
        let inner = source(&ims);
        let number = inner.start(inner.now(), |_| true).unwrap();
        let completion = in_thread(&inner, move |inner| {
            let token = inner.token(supplied(Stamp(1))).unwrap();
            inner.complete(number, Ok(Some(token)));
        });

        assert_eq!(call(&inner).unwrap(), Stamp(1));
        completion.join().unwrap();
    }

    assert!(check_every_order(model) > 100);
}

#[test]
fn one_of_two_starts_wins_in_every_order_of_steps() {
    fn model() {
        let inner = source(&Ims::new(|_| Answer::Never));
        let start = || {
            let inner = Arc::clone(&inner);
            thread::spawn(move || inner.start(inner.now(), |_| true))
        };
        let starts = [start(), start()];

        let started: Vec<_> =
            starts.into_iter().filter_map(|start| start.join().unwrap()).collect();
        assert_eq!(started, [1]);
    }

    assert!(check_every_order(model) > 100);
}

#[test]
fn closing_misses_no_task_in_any_order_of_steps() {
    fn model() {
        let inner = source(&Ims::new(|_| Answer::Never));
        let ended = Arc::new(AtomicBool::new(false));
        let task = in_thread(&inner, {
            let ended = Arc::clone(&ended);
            move |inner| {
                let guard = inner.register_task();
                assert!(guard.is_none() || !ended.load(Ordering::Relaxed), "missed a task");
            }
        });

        inner.close();
        block_on(inner.tasks_ended());
        ended.store(true, Ordering::Relaxed);
        task.join().unwrap();
    }

    assert!(check_every_order(model) > 100);
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_subscription_that_comes_late_is_found() {
    let _planted = plant(Fault::LateSubscription);
    a_waiter_wakes_in_every_order_of_steps();
}

#[test]
#[should_panic(expected = "deadlock")]
fn a_change_that_wakes_nobody_is_found() {
    let _planted = plant(Fault::NoNotification);
    callers_share_one_refresh();
}

#[test]
#[should_panic(expected = "more than one request")]
fn a_mutex_that_excludes_nobody_is_found() {
    let _planted = plant(Fault::NoExclusion);
    callers_share_one_refresh();
}
