//! Stalled refreshes, which neither succeed nor fail: on runtimes that nobody drives, and behind
//! blocked worker threads. Waiters, readers and the background task each notice that such a refresh
//! is overdue, and another one supersedes it. In real time, because Tokio pauses its clock per
//! runtime, and two runtimes take part.

#![allow(clippy::unwrap_used)]

mod support;

use std::{
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::{FutureExt, future::join_all};
use tokio::{runtime::Runtime, sync::Semaphore, time::sleep};
use tower_adobe_auth::{ImsClientBuilder, TokenResponse, TokenSource, TokenSourceBuilder};

use self::support::{
    DAY, Ims, current_thread, millis, multi_thread, secs, start_refresh, watched, within,
};

/// More than any test needs: a token that has not come by then never comes.
const AGES: Duration = Duration::from_secs(20);

/// A source whose tokens are due for refresh in the middle of their life, and whose attempts take at
/// most 200 ms.
fn builder(ims: &Ims) -> TokenSourceBuilder<ImsClientBuilder> {
    ims.builder().attempt_timeout(millis(200)).refresh_at(0.5)
}

/// A source without a background task, whose tokens live for eight seconds.
fn short_lived() -> (TokenSource, Ims) {
    let ims = Ims::new(secs(8)).taking(millis(50));
    let tokens = builder(&ims).refresh_on_demand().build().unwrap();
    (tokens, ims)
}

/// A runtime that is kept and not driven any more, with the source's first refresh in progress.
fn stalled(tokens: &TokenSource) -> Runtime {
    let runtime = current_thread();
    runtime.block_on(async {
        start_refresh(tokens);
        // The refresh sends its request, and waits for the response.
        sleep(millis(10)).await;
    });
    assert!(tokens.status().is_refreshing());
    runtime
}

/// Waits until `condition` holds, or panics at `deadline`.
#[track_caller]
fn until(deadline: Instant, condition: impl Fn() -> bool) {
    while !condition() {
        assert!(Instant::now() < deadline, "it should have happened by now");
        thread::sleep(millis(10));
    }
}

// A refresh that stalls while the cached token is valid.

#[test]
fn a_caller_supersedes_a_stalled_refresh_in_time() {
    let (tokens, _ims) = short_lived();
    let (service, job) = (multi_thread(1), current_thread());
    let start = Instant::now();
    service.block_on(tokens.token()).unwrap();
    thread::sleep(millis(4_100));
    // The token is due: its refresh starts on this runtime, which is kept but no longer driven.
    job.block_on(tokens.token()).unwrap();

    // It is overdue from 4.5 s on; the token expires at 7.6 s.
    until(start + secs(6), || {
        assert_eq!(tokens.status().consecutive_failures(), 0);
        service.block_on(tokens.token()).unwrap().generation() > 1
    });
}

#[test]
fn try_token_supersedes_a_stalled_refresh_in_time() {
    let (tokens, _ims) = short_lived();
    let (service, job) = (multi_thread(1), current_thread());
    let start = Instant::now();
    service.block_on(tokens.token()).unwrap();
    thread::sleep(millis(4_100));
    job.block_on(async { tokens.try_token().unwrap() });

    let _inside = service.enter();
    until(start + secs(6), || tokens.try_token().unwrap().generation() > 1);
}

#[test]
fn the_background_task_supersedes_a_stalled_refresh_alone() {
    let ims = Ims::new(secs(8)).taking(millis(50));
    let tokens = builder(&ims).build().unwrap();
    let (service, job) = (multi_thread(1), current_thread());
    let start = Instant::now();
    // The background task runs on the runtime of the service.
    let first = service.block_on(tokens.token()).unwrap();
    // The job asks for a new token, and its runtime is driven no more.
    job.block_on(async { assert!(tokens.refresh().now_or_never().is_none()) });
    assert!(tokens.status().is_refreshing());

    // Nobody asks for a token; the first one expires at 7.6 s.
    let is_refreshed = || tokens.status().valid_until() > Some(first.expires_at());
    until(start + secs(7), is_refreshed);

    drop(job);
}

#[test]
fn a_stalled_refresh_leaves_the_cached_token_to_callers() {
    let ims = Ims::new(DAY).taking(millis(50));
    let tokens = builder(&ims).build().unwrap();
    let job = current_thread();
    job.block_on(tokens.token()).unwrap();
    job.block_on(async { assert!(tokens.refresh().now_or_never().is_none()) });

    let start = Instant::now();
    let service = multi_thread(1);
    while start.elapsed() < secs(2) {
        let mut call = Box::pin(tokens.token());
        let token = service.block_on(async { call.as_mut().now_or_never() });
        assert!(token.expect("it should not wait").is_ok());
        thread::sleep(millis(20));
    }
}

// A first refresh that stands still while callers wait.

#[test]
fn a_waiter_of_a_superseded_refresh_gets_the_cached_token() {
    let ims = Ims::new(DAY).taking(millis(50));
    let tokens = ims.builder().attempt_timeout(millis(500)).acquire_timeout(secs(6));
    let tokens = tokens.build().unwrap();
    let stalled = stalled(&tokens);
    let first = thread::spawn({
        let tokens = tokens.clone();
        move || current_thread().block_on(tokens.token()).map(drop)
    });
    thread::sleep(millis(1_500));

    // The refresh is overdue by now, so that this caller supersedes it, if the first has not.
    current_thread().block_on(tokens.token()).unwrap();

    first.join().unwrap().unwrap();
    drop(stalled);
}

#[test]
fn a_waiter_alone_supersedes_a_stalled_refresh() {
    for waiting in [current_thread(), multi_thread(1)] {
        let ims = Ims::new(DAY).taking(millis(50));
        let tokens = ims.builder().attempt_timeout(millis(300)).acquire_timeout(AGES);
        let tokens = tokens.build().unwrap();
        let stalled = stalled(&tokens);

        let start = Instant::now();
        let (token, failures) = waiting.block_on(watched(&tokens, tokens.token()));
        let waited = start.elapsed();

        assert!(token.is_ok(), "{token:?}");
        assert!(waited < secs(10), "{waited:?}, although it was overdue after a second");
        assert_eq!(failures, 0, "failures of IMS were counted");
        drop(stalled);
    }
}

#[test]
fn a_hundred_waiters_supersede_a_stalled_refresh_once() {
    let ims = Ims::new(DAY).taking(millis(50));
    let tokens = ims.builder().attempt_timeout(millis(300)).acquire_timeout(AGES).build().unwrap();
    let stalled = stalled(&tokens);

    let callers = multi_thread(2).block_on(join_all((0..100).map(|_| tokens.token())));

    assert!(callers.iter().all(Result::is_ok), "{:?}", callers.iter().find(|c| c.is_err()));
    assert_eq!(ims.asked(), 2);
    drop(stalled);
}

#[test]
fn a_refresh_stalled_on_a_multi_thread_runtime_is_superseded() {
    // Its only worker thread never gets to run a task again.
    let blocked = multi_thread(1);
    let release = Blocker::default();
    let ims = Ims::new(DAY).taking(millis(50));
    let tokens = ims.builder().attempt_timeout(millis(300)).acquire_timeout(AGES).build().unwrap();
    blocked.block_on(async { start_refresh(&tokens) });
    blocked.spawn({
        let release = release.clone();
        async move { release.wait() }
    });

    let token = within(AGES, {
        let tokens = tokens.clone();
        move || current_thread().block_on(tokens.token()).map(drop)
    });

    assert!(token.is_ok(), "{token:?}");
    release.open();
}

/// Blocks threads until it is opened, or for half a minute, so that a test that fails ends as well.
#[derive(Clone, Default)]
struct Blocker(Arc<(Mutex<bool>, Condvar)>);

impl Blocker {
    fn wait(&self) {
        let (open, opened) = &*self.0;
        let limit = secs(30);
        drop(opened.wait_timeout_while(open.lock().unwrap(), limit, |open| !*open).unwrap());
    }

    fn open(&self) {
        *self.0.0.lock().unwrap() = true;
        self.0.1.notify_all();
    }
}

/// A source whose first fetch blocks the thread that polls it until the blocker is opened.
fn blocks_once() -> (TokenSource, Blocker, Arc<AtomicUsize>) {
    let blocker = Blocker::default();
    let asked = Arc::new(AtomicUsize::new(0));
    let fetch = {
        let (blocker, asked) = (blocker.clone(), Arc::clone(&asked));
        move || {
            let number = asked.fetch_add(1, Ordering::SeqCst) + 1;
            let blocker = blocker.clone();
            async move {
                if number == 1 {
                    blocker.wait();
                }
                Ok(TokenResponse::new(format!("token-{number}"), DAY))
            }
        }
    };
    let tokens = TokenSource::builder_from_fetcher(fetch)
        .attempt_timeout(millis(300))
        .acquire_timeout(secs(10))
        .build()
        .unwrap();
    (tokens, blocker, asked)
}

#[test]
fn a_fetcher_that_blocks_its_worker_wedges_no_other_runtime() {
    let (tokens, blocker, asked) = blocks_once();
    let service = multi_thread(2);
    service.block_on(async { start_refresh(&tokens) });
    until(Instant::now() + AGES, || asked.load(Ordering::SeqCst) == 1);

    let token = within(AGES, {
        let tokens = tokens.clone();
        move || current_thread().block_on(tokens.token())
    });

    assert_eq!(token.unwrap().expose_secret(), "token-2");
    blocker.open();
}

#[test]
fn a_fetcher_that_blocks_one_worker_wedges_no_other_worker() {
    let (tokens, blocker, asked) = blocks_once();
    let service = multi_thread(2);
    service.block_on(async { start_refresh(&tokens) });
    until(Instant::now() + AGES, || asked.load(Ordering::SeqCst) == 1);

    // The other worker, and this thread, can still run tasks of the runtime.
    let (call, called) = std::sync::mpsc::channel();
    service.spawn({
        let tokens = tokens.clone();
        async move { call.send(tokens.token().await) }
    });
    let token = called.recv_timeout(AGES);
    blocker.open();

    assert_eq!(token.expect("it should be over").unwrap().expose_secret(), "token-2");
}

#[test]
fn a_blocked_fetch_that_ends_late_replaces_no_newer_token() {
    let (tokens, blocker, asked) = blocks_once();
    let service = multi_thread(2);
    service.block_on(async { start_refresh(&tokens) });
    until(Instant::now() + AGES, || asked.load(Ordering::SeqCst) == 1);
    let waiting = current_thread();
    let token = waiting.block_on(tokens.token());
    blocker.open();
    assert_eq!(token.unwrap().expose_secret(), "token-2");

    // The blocked fetch returns `token-1`, which was requested earlier.
    thread::sleep(millis(200));

    assert_eq!(waiting.block_on(tokens.token()).unwrap().expose_secret(), "token-2");
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

// Runtimes that go on.

#[test]
fn a_stalled_refresh_that_goes_on_serves_the_waiters() {
    let asked = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new(Semaphore::new(0));
    let fetch = {
        let (asked, gate) = (Arc::clone(&asked), Arc::clone(&gate));
        move || {
            let number = asked.fetch_add(1, Ordering::SeqCst) + 1;
            let gate = Arc::clone(&gate);
            async move {
                // IMS responds to the first request only.
                let permits = if number == 1 { 1 } else { Semaphore::MAX_PERMITS as u32 };
                gate.acquire_many(permits).await.unwrap().forget();
                Ok(TokenResponse::new(format!("token-{number}"), DAY))
            }
        }
    };
    let tokens = TokenSource::builder_from_fetcher(fetch)
        .attempt_timeout(secs(1))
        .acquire_timeout(AGES)
        .build()
        .unwrap();
    let stalled = stalled(&tokens);
    let waiting = thread::spawn({
        let tokens = tokens.clone();
        move || current_thread().block_on(tokens.token())
    });
    until(Instant::now() + AGES, || asked.load(Ordering::SeqCst) >= 2);

    // The first refresh goes on while the second, which supersedes it, is in progress.
    gate.add_permits(1);
    stalled.block_on(async { sleep(millis(100)).await });

    let start = Instant::now();
    let token = waiting.join().unwrap().unwrap();
    assert_eq!(token.expose_secret(), "token-1");
    assert!(start.elapsed() < secs(10), "{:?}", start.elapsed());
}

#[test]
fn a_stalled_refresh_that_goes_on_replaces_no_newer_token() {
    let ims = Ims::new(DAY).taking(millis(50));
    let tokens = ims.builder().attempt_timeout(millis(300)).acquire_timeout(AGES).build().unwrap();
    let stalled = stalled(&tokens);
    let service = current_thread();
    let second = service.block_on(tokens.token()).unwrap();

    stalled.block_on(async { sleep(millis(200)).await });

    assert_eq!(second.expose_secret(), "token-2");
    assert_eq!(service.block_on(tokens.token()).unwrap().expose_secret(), "token-2");
    assert_eq!(ims.asked(), 2);
}

#[test]
fn stalled_refreshes_in_a_row_fail_no_caller() {
    let ims = Ims::new(DAY).taking(millis(50));
    let tokens = ims.builder().attempt_timeout(millis(100)).acquire_timeout(AGES).build().unwrap();
    let mut stalled_runtimes = vec![stalled(&tokens)];
    for _ in 0..3 {
        // This caller supersedes the refresh before, and its own runtime stalls as well.
        let runtime = current_thread();
        runtime.block_on(async {
            let mut call = Box::pin(tokens.token());
            let start = Instant::now();
            let asked = ims.asked();
            while ims.asked() == asked && start.elapsed() < AGES {
                assert!(call.as_mut().now_or_never().is_none(), "no token can have come");
                sleep(millis(5)).await;
            }
        });
        stalled_runtimes.push(runtime);
    }

    let (token, failures) = current_thread().block_on(watched(&tokens, tokens.token()));

    assert!(token.is_ok(), "{token:?}");
    assert_eq!(ims.asked(), 5);
    assert_eq!(failures, 0, "failures of IMS were counted");
}
