//! How often a caller takes the lock of its source.

use std::{
    pin::{Pin, pin},
    sync::{Arc, mpsc},
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use tokio::{
    runtime::{Builder, Handle},
    sync::Semaphore,
    task::yield_now,
};

use super::{access_token::AccessToken, acquire::acquire, inner::Inner, state::Want};
use crate::{
    clock::{Clock, Deadline},
    error::TokenError,
    ims::TokenResponse,
    source::{
        fetch::Custom,
        inner::Settings,
        policy::{Backoff, Schedule},
        supply::Direct,
    },
};

const LIMIT: Duration = Duration::from_secs(30);

type Caller<'a> = Pin<&'a mut (dyn Future<Output = Result<AccessToken, TokenError>> + Send)>;

/// A source whose one token request is answered when the gate has a permit.
fn source(gate: Arc<Semaphore>) -> Arc<Inner> {
    let fetcher = move || {
        let gate = Arc::clone(&gate);
        async move {
            gate.acquire().await.unwrap().forget();
            Ok(TokenResponse::new("a-token", LIMIT * 100))
        }
    };
    let settings = Settings {
        schedule: Schedule::default(),
        backoff: Backoff::default(),
        clock: Clock::default(),
        keep_warm: false,
        acquire_timeout: LIMIT,
        attempt_timeout: LIMIT,
        attempts: 1,
        retry_for: Duration::ZERO,
        name: "test".into(),
    };
    let supply =
        Direct { fetcher: Custom(fetcher), attempt_timeout: LIMIT, clock: Clock::default() };
    Arc::new(Inner::new(settings, Arc::new(supply)))
}

/// Polls each caller on a thread of its own while this one holds the lock of the state.
fn poll_while_locked(
    inner: &Inner,
    runtime: &Handle,
    callers: &mut [Caller<'_>],
) -> Vec<Poll<Result<AccessToken, TokenError>>> {
    let lock = inner.lock();
    thread::scope(|scope| {
        let (polled, results) = mpsc::channel();
        scope.spawn(move || {
            let _context = runtime.enter();
            let mut context = Context::from_waker(Waker::noop());
            let poll = callers.iter_mut().map(|it| it.as_mut().poll(&mut context)).collect();
            polled.send(poll)
        });
        let result = results.recv_timeout(Duration::from_secs(5));
        drop(lock);
        result.expect("a caller took the lock")
    })
}

#[test]
fn a_caller_takes_the_lock_only_to_start_the_refresh() {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let gate = Arc::new(Semaphore::new(0));
    let inner = source(Arc::clone(&gate));
    let caller = || acquire(&inner, Want::default(), Deadline::after(LIMIT));
    let (mut starter, mut joiner) = (pin!(caller()), pin!(caller()));
    {
        let _context = runtime.enter();
        let mut context = Context::from_waker(Waker::noop());
        assert!(starter.as_mut().poll(&mut context).is_pending());
        assert!(inner.snapshot().state.is_refreshing());
    }

    let joined = poll_while_locked(&inner, runtime.handle(), &mut [joiner.as_mut()]);
    gate.add_permits(1);
    runtime.block_on(async {
        while inner.snapshot().state.is_refreshing() {
            yield_now().await;
        }
    });
    let ended =
        poll_while_locked(&inner, runtime.handle(), &mut [starter.as_mut(), joiner.as_mut()]);

    assert!(joined[0].is_pending());
    assert!(ended.iter().all(|poll| matches!(poll, Poll::Ready(Ok(_)))));
}
