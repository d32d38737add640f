//! Time in which the process does not run counts against no timeout and no backoff: a stopped process
//! (SIGSTOP, as a paused machine or a frozen function stops one), and a runtime that is only driven
//! now and then. With real processes and real sockets.

#![cfg(all(unix, feature = "reqwest"))]
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    env, fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use tokio::{runtime::Runtime, time::timeout};
use tower::Layer;
use tower_adobe_auth::{
    AdobeAuthLayer, Credentials, Environment, ImsClientBuilder, TokenSource, TokenSourceBuilder,
    mock::{Answer, MockIms},
};

use self::support::{
    FIREFLY, api_refusing_first, current_thread, failed, get, get_many, millis, multi_thread, secs,
    start_refresh, watched,
};

/// The environment variables that tell a child process of this file what to do.
const URL: &str = "TOWER_ADOBE_AUTH_STANDSTILL_URL";
const THREADS: &str = "TOWER_ADOBE_AUTH_STANDSTILL_THREADS";

/// Longer than each timeout of [`short`].
const STOP: Duration = secs(6);

/// More than any child process needs.
const AGES: Duration = secs(60);

/// A source whose timeouts are all far shorter than the process is stopped for.
fn short(url: &str) -> TokenSourceBuilder<ImsClientBuilder> {
    TokenSource::builder(Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET))
        .environment(Environment::custom(url).unwrap())
        .request_timeout(secs(2))
        .attempt_timeout(secs(2))
        .acquire_timeout(secs(4))
}

/// The source and the runtime that a child process uses.
struct Role {
    tokens: TokenSource,
    runtime: Runtime,
}

impl Role {
    /// `None` in the test itself, which then starts the child processes.
    fn of_child() -> Option<Self> {
        let url = env::var(URL).ok()?;
        let tokens = short(&url).build().unwrap();
        let runtime = match env::var(THREADS).unwrap().parse().unwrap() {
            0 => current_thread(),
            threads => multi_thread(threads),
        };
        Some(Self { tokens, runtime })
    }

    /// Asks for a token with 50 callers concurrently. None of them may fail.
    fn ask(&self) {
        self.ask_while_ims_fails(0);
    }

    /// The same, while IMS itself fails this often.
    fn ask_while_ims_fails(&self, failures: u32) {
        let calls = join_all((0..50).map(|_| self.tokens.token()));
        let (calls, counted) = self.runtime.block_on(watched(&self.tokens, calls));
        let failed: Vec<_> = calls.into_iter().filter_map(Result::err).collect();
        assert!(failed.is_empty(), "{} of 50 failed: {:?}", failed.len(), failed[0]);
        assert!(counted <= failures, "{counted} failures of IMS were counted");
    }
}

/// A child process that runs one test of this file in its role as a child.
struct Process {
    child: Child,
    ended: bool,
}

impl Process {
    /// `threads`: worker threads of its runtime; 0 for a current-thread runtime.
    fn start(test: &str, ims: &MockIms, threads: usize) -> Self {
        let child = Command::new(env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(URL, ims.url())
            .env(THREADS, threads.to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Self { child, ended: false }
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }

    /// Stops the process, and waits until it has stopped. A process that has ended fails later.
    fn stop(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.signal("-STOP");
        }
        let start = Instant::now();
        while !self.is_stopped() && self.child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < AGES, "the process should have stopped");
            thread::sleep(millis(5));
        }
    }

    fn go_on(&mut self) {
        if self.child.try_wait().unwrap().is_none() {
            self.signal("-CONT");
        }
    }

    /// Stops the process for longer than all of its timeouts, with `meanwhile` in the middle.
    fn stop_for(&mut self, time: Duration, meanwhile: impl FnOnce()) {
        self.stop();
        thread::sleep(time / 2);
        meanwhile();
        thread::sleep(time / 2);
        self.go_on();
    }

    fn is_stopped(&self) -> bool {
        let pid = self.child.id().to_string();
        let state = match fs::read_to_string(format!("/proc/{pid}/stat")) {
            // The name of the program, in parentheses, stands before the state.
            Ok(stat) => stat.rsplit_once(')').unwrap().1.to_owned(),
            // There is no `/proc` except on Linux.
            Err(_) => {
                let output = Command::new("ps").args(["-o", "stat=", "-p", &pid]).output();
                String::from_utf8(output.unwrap().stdout).unwrap()
            }
        };
        state.trim().starts_with('T')
    }

    /// Waits until the process has ended, and fails with its message if its test failed.
    #[track_caller]
    fn passes(mut self) {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(start.elapsed() < AGES, "the child process should have ended");
            thread::sleep(millis(10));
        };
        self.ended = true;
        let stderr = BufReader::new(self.child.stderr.take().unwrap());
        let lines: Vec<_> = stderr.lines().map_while(Result::ok).collect();
        assert!(status.success(), "{status}: {lines:#?}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs `scenario` for a child process with each kind of runtime, concurrently.
fn with_each_runtime(scenario: impl Fn(usize) + Sync) {
    thread::scope(|scope| {
        for threads in [0, 2] {
            let scenario = &scenario;
            scope.spawn(move || scenario(threads));
        }
    });
}

/// Waits until IMS has received this many token requests.
fn received(ims: &MockIms, requests: usize) {
    current_thread().block_on(ims.wait_for_token_requests(requests));
}

// A process that is stopped while its first token request is in progress.

#[test]
fn a_response_that_came_during_a_stop_is_used() {
    if let Some(role) = Role::of_child() {
        return role.ask();
    }
    with_each_runtime(|threads| {
        let ims = MockIms::start_blocking();
        let hold = ims.hold();
        let mut process =
            Process::start("a_response_that_came_during_a_stop_is_used", &ims, threads);
        received(&ims, 1);

        process.stop_for(STOP, || hold.release());

        process.passes();
        ims.assert_token_requests(1);
    });
}

#[test]
fn a_response_that_comes_after_a_stop_is_used() {
    if let Some(role) = Role::of_child() {
        return role.ask();
    }
    with_each_runtime(|threads| {
        let ims = MockIms::start_blocking();
        let hold = ims.hold();
        let mut process =
            Process::start("a_response_that_comes_after_a_stop_is_used", &ims, threads);
        received(&ims, 1);

        process.stop_for(STOP, || ());
        thread::sleep(millis(100));
        hold.release();

        process.passes();
        // The attempt had most of its two seconds left; where it ended all the same, there is another.
        assert!(ims.token_requests() <= 2, "{}", ims.token_requests());
    });
}

#[test]
fn a_connection_that_broke_during_a_stop_is_opened_again() {
    if let Some(role) = Role::of_child() {
        return role.ask();
    }
    with_each_runtime(|threads| {
        let ims = MockIms::start_blocking();
        ims.respond_next([Answer::hang()]);
        let mut process =
            Process::start("a_connection_that_broke_during_a_stop_is_opened_again", &ims, threads);
        received(&ims, 1);

        process.stop_for(STOP, || {
            // All connections are closed; new ones are accepted.
            ims.go_down();
            ims.come_back();
        });

        process.passes();
        ims.assert_token_requests(2);
    });
}

#[test]
fn an_ims_that_failed_during_a_stop_is_asked_again() {
    if let Some(role) = Role::of_child() {
        return role.ask_while_ims_fails(1);
    }
    with_each_runtime(|threads| {
        let ims = MockIms::start_blocking();
        ims.respond_next([if threads == 0 { Answer::unavailable() } else { Answer::disconnect() }]);
        let hold = ims.hold();
        let mut process =
            Process::start("an_ims_that_failed_during_a_stop_is_asked_again", &ims, threads);
        received(&ims, 1);

        process.stop_for(STOP, || hold.release());

        process.passes();
        ims.assert_token_requests(2);
    });
}

#[test]
fn two_stops_during_a_request_fail_no_caller() {
    if let Some(role) = Role::of_child() {
        return role.ask();
    }
    with_each_runtime(|threads| {
        let ims = MockIms::start_blocking();
        let hold = ims.hold();
        let mut process =
            Process::start("two_stops_during_a_request_fail_no_caller", &ims, threads);
        received(&ims, 1);

        process.stop_for(STOP, || ());
        thread::sleep(millis(50));
        process.stop_for(STOP, || hold.release());

        process.passes();
        // A refresh that stands still again and again may be superseded.
        assert!(ims.token_requests() <= 2, "{} token requests", ims.token_requests());
    });
}

// A process that is stopped at another time.

#[test]
fn a_stop_during_the_pause_before_a_retry_fails_no_caller() {
    if let Some(role) = Role::of_child() {
        return role.ask_while_ims_fails(1);
    }
    with_each_runtime(|threads| {
        let ims = MockIms::start_blocking();
        ims.respond_next([Answer::unavailable()]);
        let mut process =
            Process::start("a_stop_during_the_pause_before_a_retry_fails_no_caller", &ims, threads);
        received(&ims, 1);

        // The first pause lasts at least an eighth of a second.
        thread::sleep(millis(20));
        process.stop_for(STOP, || ());

        process.passes();
        ims.assert_token_requests(2);
    });
}

#[test]
fn a_stop_while_the_token_is_suspect_fails_no_request() {
    if let Some(role) = Role::of_child() {
        return role.runtime.block_on(async {
            role.tokens.token().await.unwrap();
            let client = AdobeAuthLayer::new(role.tokens.clone()).layer(api_refusing_first(1));
            assert_eq!(get(&client, FIREFLY).await.ok(), 401);
            // IMS holds the second request back, and the process is stopped.
            let outcomes = get_many(&client, FIREFLY, 50).await;
            assert_eq!(failed(&outcomes), 0);
        });
    }
    with_each_runtime(|threads| {
        let ims = MockIms::start_blocking();
        ims.respond_next([Answer::normal(), Answer::hang()]);
        let mut process =
            Process::start("a_stop_while_the_token_is_suspect_fails_no_request", &ims, threads);
        received(&ims, 2);

        process.stop_for(STOP, || ());

        process.passes();
    });
}

#[test]
fn a_stop_during_a_refresh_fails_no_caller() {
    if let Some(role) = Role::of_child() {
        let Role { tokens, runtime } = role;
        return runtime.block_on(async {
            tokens.token().await.unwrap();
            let (refreshed, failures) = watched(&tokens, tokens.refresh()).await;
            let calls = join_all((0..50).map(|_| tokens.token())).await;
            assert!(refreshed.is_ok(), "{refreshed:?}");
            assert!(calls.iter().all(Result::is_ok));
            assert_eq!(failures, 0, "failures of IMS were counted");
        });
    }
    with_each_runtime(|threads| {
        let ims = MockIms::start_blocking();
        ims.respond_next([Answer::normal(), Answer::normal().after(millis(500))]);
        let mut process = Process::start("a_stop_during_a_refresh_fails_no_caller", &ims, threads);
        received(&ims, 2);

        process.stop_for(STOP, || ());

        process.passes();
        ims.assert_token_requests(2);
    });
}

// A current-thread runtime that only runs during `block_on`.

/// A source of tokens of two seconds.
fn short_lived() -> (MockIms, TokenSource) {
    let ims = MockIms::start_blocking();
    ims.set_token_lifetime(secs(2));
    let tokens = short(ims.url()).build().unwrap();
    (ims, tokens)
}

#[test]
fn pauses_longer_than_a_tokens_life_fail_no_call() {
    let (ims, tokens) = short_lived();
    let runtime = current_thread();

    for call in 1..=5 {
        let (token, failures) = runtime.block_on(watched(&tokens, tokens.token()));

        assert!(token.is_ok(), "call {call}: {token:?}");
        assert_eq!(failures, 0, "failures of IMS, at call {call}");
        thread::sleep(secs(3));
    }

    // One for each call, and one for each refresh during which the runtime stood still.
    assert!(ims.token_requests() <= 2 * 5, "{} token requests", ims.token_requests());
}

#[test]
fn pauses_in_the_middle_of_refreshes_fail_no_call() {
    let (ims, tokens) = short_lived();
    ims.set_delay(millis(50));
    let runtime = current_thread();

    // The token is due after a second at the latest, so every other call starts a refresh, and
    // the runtime stands still while the response is on its way.
    for call in 1..=10 {
        let (token, failures) = runtime.block_on(watched(&tokens, tokens.token()));

        assert!(token.is_ok(), "call {call}: {token:?}");
        assert_eq!(failures, 0, "failures of IMS, at call {call}");
        thread::sleep(millis(1_200));
    }

    assert!(ims.token_requests() <= 2 * 10, "{} token requests", ims.token_requests());
}

#[test]
fn a_response_that_came_between_two_calls_is_used() {
    let ims = MockIms::start_blocking();
    let tokens = short(ims.url()).build().unwrap();
    let runtime = current_thread();
    let hold = ims.hold();
    // The caller gives up, and nobody drives the runtime for longer than all timeouts.
    runtime.block_on(async {
        assert!(timeout(millis(200), tokens.token()).await.is_err());
    });
    received(&ims, 1);
    hold.release();
    thread::sleep(secs(5));

    let (token, failures) = runtime.block_on(watched(&tokens, tokens.token()));

    assert!(token.is_ok(), "{token:?}");
    assert_eq!(failures, 0, "failures of IMS were counted");
    ims.assert_token_requests(1);
}

#[test]
fn callers_polled_once_and_left_alone_fail_nobody() {
    let ims = MockIms::start_blocking();
    let tokens = short(ims.url()).build().unwrap();
    let runtime = current_thread();

    for _ in 0..3 {
        runtime.block_on(async { start_refresh_once(&tokens) });
        thread::sleep(secs(2));
    }
    let (token, failures) = runtime.block_on(watched(&tokens, tokens.token()));

    assert!(token.is_ok(), "{token:?}");
    assert_eq!(failures, 0, "failures of IMS were counted");
}

/// Polls a caller once, unless a token has come.
fn start_refresh_once(tokens: &TokenSource) {
    if !tokens.status().is_ready() {
        start_refresh(tokens);
    }
}
