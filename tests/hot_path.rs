//! What makes a request with a valid token cheap is never used when it no longer holds: the published
//! token, the expiry check that is made once per tick of the clock, and the kept verdict about an
//! origin.

#![allow(clippy::unwrap_used)]

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use http::{HeaderValue, Request, Response, header::AUTHORIZATION};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_adobe_auth::{
    AdobeAuthLayer, BoxError, NoAuthorization, TokenError, TokenResponse, TokenSource,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const FIREFLY: &str = "https://firefly-api.adobe.io/v3/images/generate";

/// A response with the `Authorization` that the inner service got.
type Echo = Response<Option<HeaderValue>>;

fn service(
    tokens: &TokenSource,
) -> impl Service<Request<()>, Response = Echo, Error = BoxError> + use<> {
    let inner = service_fn(|request: Request<()>| async move {
        Ok::<_, Infallible>(Response::new(request.headers().get(AUTHORIZATION).cloned()))
    });
    AdobeAuthLayer::new(tokens.clone()).layer(inner)
}

/// Fetches `token-1`, `token-2` and so on.
fn count() -> impl Fn() -> std::future::Ready<Result<TokenResponse, TokenError>> {
    let fetched = AtomicUsize::new(0);
    move || {
        let number = fetched.fetch_add(1, Ordering::SeqCst) + 1;
        std::future::ready(Ok(TokenResponse::new(format!("token-{number}"), DAY)))
    }
}

/// Fetches one token with this lifetime, and fails from then on.
fn once(lifetime: Duration) -> TokenSource {
    let fetched = AtomicUsize::new(0);
    let fetch = move || {
        let first = fetched.fetch_add(1, Ordering::SeqCst) == 0;
        std::future::ready(if first {
            Ok(TokenResponse::new("token-1", lifetime))
        } else {
            Err(TokenError::transient("IMS is down"))
        })
    };
    TokenSource::builder_from_fetcher(fetch)
        .backoff_cap(Duration::from_millis(100))
        .build()
        .unwrap()
}

fn get(uri: &str) -> Request<()> {
    Request::get(uri).body(()).unwrap()
}

async fn send<S>(service: &mut S, request: Request<()>) -> Option<String>
where
    S: Service<Request<()>, Response = Echo, Error = BoxError>,
{
    let response = service.ready().await.unwrap().call(request).await.unwrap();
    response.into_body().map(|value| value.to_str().unwrap().to_owned())
}

fn bearer(number: usize) -> Option<String> {
    Some(format!("Bearer token-{number}"))
}

#[tokio::test]
async fn a_service_that_sent_the_old_token_sends_the_new_one() {
    let tokens = TokenSource::from_fetcher(count());
    let mut service = service(&tokens);
    for _ in 0..3 {
        assert_eq!(send(&mut service, get(FIREFLY)).await, bearer(1));
    }

    tokens.refresh().await.unwrap();

    for _ in 0..3 {
        assert_eq!(send(&mut service, get(FIREFLY)).await, bearer(2));
    }
}

#[tokio::test]
async fn no_service_sends_an_invalidated_token() {
    let tokens = TokenSource::from_fetcher(count());
    let mut services = [service(&tokens), service(&tokens), service(&tokens)];
    for service in &mut services {
        for _ in 0..3 {
            send(service, get(FIREFLY)).await;
        }
    }

    tokens.invalidate(&tokens.token().await.unwrap());

    for service in &mut services {
        assert_eq!(send(service, get(FIREFLY)).await, bearer(2));
    }
}

#[tokio::test]
async fn a_request_with_its_own_source_gets_the_token_of_that_one() {
    let (tokens, other) = (TokenSource::from_fetcher(count()), TokenSource::from_fetcher(count()));
    other.token().await.unwrap();
    other.refresh().await.unwrap();
    let mut service = service(&tokens);
    for _ in 0..3 {
        assert_eq!(send(&mut service, get(FIREFLY)).await, bearer(1));
    }
    let mut request = get(FIREFLY);
    request.extensions_mut().insert(other);

    assert_eq!(send(&mut service, request).await, bearer(2));
    assert_eq!(send(&mut service, get(FIREFLY)).await, bearer(1));
}

#[tokio::test]
async fn opting_out_changes_no_verdict_about_the_origin() {
    let tokens = TokenSource::from_fetcher(count());
    let mut service = service(&tokens);
    let mut request = get(FIREFLY);
    request.extensions_mut().insert(NoAuthorization);

    assert_eq!(send(&mut service, request.clone()).await, None);
    assert_eq!(send(&mut service, get(FIREFLY)).await, bearer(1));
    assert_eq!(send(&mut service, request).await, None);
}

#[tokio::test]
async fn each_request_is_judged_by_its_own_origin() {
    let tokens = TokenSource::from_fetcher(count());
    let mut service = service(&tokens);
    let ours = "https://firefly-api.adobe.io/";

    for other in [
        "https://firefly-api.adobe.io.evil.com/",
        "https://firefly-api.adobe.i/",
        "ftp://firefly-api.adobe.io/",
        "https://bucket.s3.amazonaws.com/",
    ] {
        assert_eq!(send(&mut service, get(ours)).await, bearer(1));
        assert_eq!(send(&mut service, get(other)).await, None, "{other}");
    }
    assert_eq!(send(&mut service, get(ours)).await, bearer(1));
    let insecure = get("http://firefly-api.adobe.io/");
    assert!(service.ready().await.unwrap().call(insecure).await.is_err());
}

#[tokio::test]
async fn a_token_is_replaced_when_the_wall_clock_reaches_its_end() {
    // The wall clock is set ahead, as after a suspend of the machine.
    let ahead = Arc::new(AtomicUsize::new(0));
    let clock = Arc::clone(&ahead);
    let tokens = TokenSource::builder_from_fetcher(count())
        .wall_clock(move || {
            let secs = u64::try_from(clock.load(Ordering::SeqCst)).unwrap();
            SystemTime::UNIX_EPOCH + DAY * 20_000 + Duration::from_secs(secs)
        })
        .build()
        .unwrap();
    let mut service = service(&tokens);
    for _ in 0..3 {
        assert_eq!(send(&mut service, get(FIREFLY)).await, bearer(1));
    }

    ahead.store(86_400, Ordering::SeqCst);

    assert_eq!(send(&mut service, get(FIREFLY)).await, bearer(2));
}

#[tokio::test]
async fn a_service_never_sends_an_older_token_than_its_thread_saw() {
    let tokens = TokenSource::builder_from_fetcher(count()).refresh_on_demand().build().unwrap();
    tokens.token().await.unwrap();
    let mut service = service(&tokens);
    let runtime = tokio::runtime::Handle::current();
    let reader = tokens.clone();
    let until = Instant::now() + Duration::from_secs(2);

    let reads = thread::spawn(move || {
        let mut reads = 0_u64;
        while Instant::now() < until {
            let Some(seen) = reader.try_token() else { continue };
            let sent = runtime.block_on(send(&mut service, get(FIREFLY))).unwrap();
            let sent: u64 = sent.trim_start_matches("Bearer token-").parse().unwrap();
            assert!(sent >= seen.generation(), "{sent} after {}", seen.generation());
            reads += 1;
        }
        reads
    });
    while !reads.is_finished() {
        tokens.refresh().await.unwrap();
    }

    assert!(reads.join().unwrap() > 1_000);
}

/// Tokio's clock is paused after requests were made on the running one, as tests do that talk to a
/// server first. Each request reads both clocks, because a wall clock is injected.
#[tokio::test]
async fn a_clock_that_is_paused_later_and_advanced_ends_the_token() {
    let tokens = TokenSource::builder_from_fetcher(count())
        .refresh_on_demand()
        .wall_clock(SystemTime::now)
        .build()
        .unwrap();
    let mut service = service(&tokens);
    for _ in 0..3 {
        assert_eq!(send(&mut service, get(FIREFLY)).await, bearer(1));
    }

    tokio::time::pause();
    tokio::time::advance(2 * DAY).await;

    assert_eq!(send(&mut service, get(FIREFLY)).await, bearer(2));
}

/// On the clocks of the system: no token is sent past its end when no other one comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn under_load_no_token_is_sent_past_its_end() {
    let tokens = once(Duration::from_secs(5));
    let ends = tokens.token().await.unwrap().expires_at();

    let threads: Vec<_> = (0..2)
        .map(|_| {
            let mut service = service(&tokens);
            let runtime = tokio::runtime::Handle::current();
            thread::spawn(move || {
                let mut sent = 0_u64;
                loop {
                    let response = runtime.block_on(async {
                        service.ready().await.unwrap().call(get(FIREFLY)).await
                    });
                    match response {
                        Ok(_) => sent += 1,
                        Err(error) => {
                            assert!(error.downcast_ref::<TokenError>().is_some(), "{error}");
                            return sent;
                        }
                    }
                    assert!(SystemTime::now() < ends, "sent past its end");
                }
            })
        })
        .collect();
    let join = || threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    let sent: u64 = tokio::task::block_in_place(join);

    assert!(sent > 1_000, "{sent}");
    assert!(SystemTime::now() > ends - Duration::from_secs(1), "it was withdrawn far too early");
}

/// The wall clock of the system itself misbehaves while the monotonic clock goes on: a library that is
/// loaded before libc answers for it, in a process of its own.
#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
mod wall_clock {
    use std::{
        env, io,
        process::{Command, Stdio},
    };

    use super::*;

    /// Says in the process of its own what the wall clock does: it `stands`, or jumps by so many
    /// seconds.
    const BEHAVIOUR: &str = "TEST_WALL_CLOCK";

    /// The kernel is asked by a system call, so that this takes no detour by libc.
    const LIBRARY: &str = r#"
        #define _GNU_SOURCE
        #include <stdlib.h>
        #include <string.h>
        #include <sys/syscall.h>
        #include <time.h>
        #include <unistd.h>

        static struct timespec wall, start;
        static int stands;
        static long jump;

        static int kernel(clockid_t clock, struct timespec *time) {
            return (int)syscall(SYS_clock_gettime, clock, time);
        }

        __attribute__((constructor)) static void begin(void) {
            const char *behaviour = getenv("TEST_WALL_CLOCK");
            stands = behaviour && strcmp(behaviour, "stands") == 0;
            jump = behaviour ? atol(behaviour) : 0;
            kernel(CLOCK_REALTIME, &wall);
            kernel(CLOCK_MONOTONIC, &start);
        }

        int clock_gettime(clockid_t clock, struct timespec *time) {
            struct timespec now;
            int failed = kernel(clock, time);
            if (failed || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE))
                return failed;
            if (stands)
                *time = wall;
            else if (kernel(CLOCK_MONOTONIC, &now) == 0 && now.tv_sec >= start.tv_sec + 3)
                time->tv_sec += jump;
            return 0;
        }
    "#;

    const LIFETIME: Duration = Duration::from_secs(6);

    /// The longest tick with which a source reckons. A clock that was set by the kernel is noticed
    /// immediately; one that a library sets, with the next tick.
    const TICK: Duration = Duration::from_millis(250);

    /// Runs `test` of this binary again with this behaviour of the wall clock.
    fn run_again(test: &str, behaviour: &str) {
        let folder = tempfile::tempdir().unwrap();
        let (source, library) = (folder.path().join("clock.c"), folder.path().join("clock.so"));
        std::fs::write(&source, LIBRARY).unwrap();
        let compiled =
            Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
        match compiled {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                println!("skipped, because there is no `cc` to build a wall clock with");
                return;
            }
            status => assert!(status.unwrap().success(), "cc failed"),
        }

        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", &format!("wall_clock::{test}"), "--nocapture"])
            .env(BEHAVIOUR, behaviour)
            .env("LD_PRELOAD", &library)
            .stdin(Stdio::null())
            .output()
            .unwrap();

        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{text}\n{errors}");
        assert!(text.contains("1 passed"), "{text}\n{errors}");
    }

    /// Sends requests until there is no usable token any more, and returns for how long.
    ///
    /// No request is sent with a token past its end by either clock.
    fn send_until_the_end() -> Duration {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let tokens = once(LIFETIME);
        let start = Instant::now();
        let end = runtime.block_on(tokens.token()).unwrap().expires_at();
        let mut service = service(&tokens);
        let mut last_before_end = start;
        let mut sent = 0;
        loop {
            if SystemTime::now() < end {
                last_before_end = Instant::now();
            }
            let late = last_before_end.elapsed();
            let response =
                runtime.block_on(async { service.ready().await?.call(get(FIREFLY)).await });
            if let Err(error) = response {
                assert!(error.downcast_ref::<TokenError>().is_some(), "{error}");
                // Few on a machine that is busy with other work.
                assert!(sent > 100, "{sent}");
                return start.elapsed();
            }
            assert!(late < TICK, "sent past its end by the wall clock");
            assert!(start.elapsed() < LIFETIME, "sent past its end by the monotonic clock");
            sent += 1;
            thread::sleep(Duration::from_micros(100));
        }
    }

    #[test]
    fn a_wall_clock_that_stands_still_does_not_prolong_a_token() {
        if env::var_os(BEHAVIOUR).is_none() {
            return run_again("a_wall_clock_that_stands_still_does_not_prolong_a_token", "stands");
        }
        let before = SystemTime::now();

        let sent_for = send_until_the_end();

        assert_eq!(SystemTime::now(), before, "the wall clock does not stand still");
        assert!(sent_for > LIFETIME - Duration::from_secs(1), "withdrawn after {sent_for:?}");
    }

    #[test]
    fn a_wall_clock_that_jumps_back_does_not_prolong_a_token() {
        if env::var_os(BEHAVIOUR).is_none() {
            return run_again("a_wall_clock_that_jumps_back_does_not_prolong_a_token", "-3600");
        }
        let before = SystemTime::now();

        let sent_for = send_until_the_end();

        assert!(SystemTime::now() < before, "the wall clock has not jumped");
        assert!(sent_for > LIFETIME - Duration::from_secs(1), "withdrawn after {sent_for:?}");
    }

    #[test]
    fn a_wall_clock_that_jumps_ahead_ends_the_token() {
        if env::var_os(BEHAVIOUR).is_none() {
            return run_again("a_wall_clock_that_jumps_ahead_ends_the_token", "3600");
        }
        let before = SystemTime::now();

        let sent_for = send_until_the_end();

        assert!(SystemTime::now() > before + Duration::from_secs(3_000), "it has not jumped");
        assert!(sent_for < Duration::from_secs(4), "sent for {sent_for:?}");
    }
}
