//! [`Connection`]: the connections of one store, which are replaced when they end.
//!
//! - **One link for each runtime.** The runtime that made a link drives it, and a source outlives
//!   runtimes. All sources of a runtime share its link, and wait for the same attempt to connect.
//! - **Commands come first.** Notifications arrive over the same link, but nothing that goes wrong with
//!   them takes the link away from the commands twice: after a refused `SUBSCRIBE` the next one is sent
//!   over a new link, which replaces the present one only if the server accepts it.
//! - **A caller that gives up proves nothing.** It may have been too impatient, or not interested any
//!   more. The link is then probed, and replaced if the server does not respond.

use std::{
    convert::Infallible,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{Cmd, ErrorKind, FromRedisValue, RedisError, ServerErrorKind, Value};
use tokio::{
    runtime::{Handle, Id},
    sync::{Mutex as AsyncMutex, oneshot, watch},
    time::{Instant, sleep_until, timeout},
};

use super::{
    listeners::{Listeners, Listening},
    servers::{Link, Servers},
};

/// The time limit of a connection attempt and of a subscription. It is longer than a source waits,
/// so that the next call finds the link.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// The time within which a server responds to a probe. Until then, calls go to a link that may be dead.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// How often a command is sent if the link ends before the response. The first link may have been dead
/// for long, and the second one may end because of a refused subscription.
const MAX_ATTEMPTS: u32 = 3;

/// The first and the longest pause before a listener connects again, without jitter. A server that is
/// well again is listened to within half a minute.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const MAX_PAUSE: Duration = Duration::from_secs(16);

/// The first and the longest pause after a server refused a subscription, without jitter. The first is
/// short, because a server that restarts just then seems to refuse.
const FIRST_REFUSED_PAUSE: Duration = Duration::from_secs(20);
const MAX_REFUSED_PAUSE: Duration = Duration::from_secs(60 * 60);

/// An attempt that ended without a result. Rustls panics if it does not know whose cryptography to use.
const PANICKED: (ErrorKind, &str) = (
    ErrorKind::InvalidClientConfig,
    "connecting panicked; for TLS, rustls needs a crypto provider (see the docs of `RedisStore`)",
);

pub(super) struct Connection {
    servers: Arc<Servers>,
    channel: String,
    links: Mutex<Links>,
    retry: Mutex<Retry>,
    last_response: Mutex<Option<std::time::Instant>>,
}

#[derive(Default)]
struct Links {
    /// At most one for each runtime.
    open: Vec<Open>,
    opening: Vec<Opening>,
    /// The number of links there have been.
    count: u64,
}

#[derive(Clone)]
struct Open {
    link: Link,
    number: u64,
    runtime: Id,
    /// Alive as long as the runtime that drives the link.
    driver: Weak<()>,
    /// Ends the task that owns `driver`.
    _end: Arc<oneshot::Sender<Infallible>>,
    listeners: Arc<Listeners>,
    /// Held while one of the listeners subscribes for all.
    subscribing: Arc<AsyncMutex<()>>,
    is_probed: Arc<AtomicBool>,
}

/// The result of an attempt to connect, once it has one.
type Attempt = watch::Receiver<Option<Result<(), RedisError>>>;

/// An attempt to connect. The link itself is only in [`Links`], so that it ends when it is left.
struct Opening {
    runtime: Id,
    purpose: Purpose,
    attempt: Attempt,
}

#[derive(Clone, Copy, PartialEq)]
enum Purpose {
    Commands,
    /// The link is of use only if the server accepts the subscription.
    Notifications,
}

/// The state of the subscription, of all listeners together.
#[derive(Default)]
struct Retry {
    /// Connection attempts that failed since the last subscription.
    failures: u32,
    /// Subscriptions that were refused, or ended the connection, since the last one that succeeded.
    refusals: u32,
    /// No listener tries before.
    until: Option<Instant>,
}

impl Retry {
    fn record_failure(&mut self) {
        self.failures = self.failures.saturating_add(1);
        self.pause(FIRST_PAUSE, MAX_PAUSE, self.failures);
    }

    fn record_refusal(&mut self) {
        self.refusals = self.refusals.saturating_add(1);
        self.pause(FIRST_REFUSED_PAUSE, MAX_REFUSED_PAUSE, self.refusals);
    }

    fn pause(&mut self, first: Duration, max: Duration, count: u32) {
        let factor = 1_u32.checked_shl(count - 1).unwrap_or(u32::MAX);
        let pause = first.saturating_mul(factor).min(max).mul_f64(0.75 + fastrand::f64() / 2.0);
        // Failed calls of others do not prolong a pause.
        self.until = self.pending().or_else(|| Some(Instant::now() + pause));
    }

    /// The end of the pause, if it is not over.
    fn pending(&self) -> Option<Instant> {
        self.until.filter(|until| *until > Instant::now())
    }
}

impl Connection {
    pub(super) fn new(servers: Arc<Servers>, channel: String) -> Self {
        Self {
            servers,
            channel,
            links: Mutex::default(),
            retry: Mutex::default(),
            last_response: Mutex::default(),
        }
    }

    /// When the server last responded to a command.
    pub(super) fn last_response(&self) -> Option<std::time::Instant> {
        *self.last_response.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn servers(&self) -> &Arc<Servers> {
        &self.servers
    }

    /// The response to a command. It is sent again if the link turns out to be broken, because no harm is
    /// done if the server runs a script twice. `key` is a key of the command.
    pub(super) async fn ask<T: FromRedisValue>(
        self: &Arc<Self>,
        command: &Cmd,
        key: &str,
    ) -> Result<T, RedisError> {
        let mut attempts = 1;
        loop {
            let open = self.open(Purpose::Commands).await?;
            match self.ask_over(open, command, key).await {
                // A response that cannot be parsed is a response.
                Err(error)
                    if is_of_the_link(&error)
                        && error.kind() != ErrorKind::Parse
                        && attempts < MAX_ATTEMPTS =>
                {
                    attempts += 1;
                }
                response => return response,
            }
        }
    }

    async fn ask_over<T: FromRedisValue>(
        self: &Arc<Self>,
        mut open: Open,
        command: &Cmd,
        key: &str,
    ) -> Result<T, RedisError> {
        let (connection, probed) = (self.clone(), open.clone());
        let runtime = Handle::current();
        let mut doubt = Doubt { connection, open: probed, key, runtime, is_answered: false };
        let response = open.link.query(command).await;
        doubt.is_answered = true;
        if response.as_ref().is_err_and(is_of_the_link) {
            self.leave(open.number);
        } else {
            let now = Some(std::time::Instant::now());
            *self.last_response.lock().unwrap_or_else(PoisonError::into_inner) = now;
        }
        response
    }

    /// Resolves when the server has notified of `key`, or a notification may have been missed.
    pub(super) async fn changed(self: &Arc<Self>, key: &str) {
        let mut is_late = false;
        loop {
            let pause = self.retry().pending();
            if let Some(until) = pause {
                is_late = true;
                sleep_until(until).await;
            }
            match self.listen(key).await {
                Ok(_) if is_late => return,
                Ok(listening) => return listening.notified().await,
                // The failed step has set the pause.
                Err(_) => is_late = true,
            }
        }
    }

    async fn listen(self: &Arc<Self>, key: &str) -> Result<Listening, RedisError> {
        let is_refused = self.retry().refusals > 0;
        let purpose = if is_refused { Purpose::Notifications } else { Purpose::Commands };
        let mut open = self.open(purpose).await?;
        let Some(listening) = open.listeners.listen(key) else {
            self.leave(open.number);
            self.retry().record_failure();
            return Err(aborted());
        };
        self.subscribe(&mut open).await?;
        Ok(listening)
    }

    /// Subscribes, unless another listener has done so.
    async fn subscribe(&self, open: &mut Open) -> Result<(), RedisError> {
        let subscribing = open.subscribing.clone();
        let _one_at_a_time = subscribing.lock().await;
        if open.listeners.is_subscribed() {
            return Ok(());
        }
        if self.retry().pending().is_some() {
            return Err(aborted());
        }
        let subscribed = in_time(open.link.subscribe(&self.channel)).await;
        match &subscribed {
            Ok(()) => {
                open.listeners.set_subscribed();
                *self.retry() = Retry::default();
            }
            Err(error) => {
                self.retry().record_refusal();
                // Without a response to `SUBSCRIBE`, each later response would go to the wrong command.
                if is_of_the_link(error) {
                    self.leave(open.number);
                }
            }
        }
        subscribed
    }

    /// The link of this runtime, or the result of the attempt to open one. A caller that gives up does
    /// not end the attempt, which may be in time for the next one.
    async fn open(self: &Arc<Self>, purpose: Purpose) -> Result<Open, RedisError> {
        let mut attempt = match self.open_or_opening(purpose) {
            Ok(open) => return Ok(open),
            Err(attempt) => attempt,
        };
        match attempt.wait_for(Option::is_some).await.as_deref() {
            // Others may have left it already.
            Ok(Some(Ok(()))) => self.current().ok_or_else(aborted),
            Ok(Some(Err(error))) => Err(error.clone()),
            _ => {
                self.retry().record_failure();
                Err(PANICKED.into())
            }
        }
    }

    fn open_or_opening(self: &Arc<Self>, purpose: Purpose) -> Result<Open, Attempt> {
        let here = Handle::current().id();
        let mut links = self.lock();
        if let Some(open) = links.open.iter().find(|open| open.runtime == here) {
            if purpose == Purpose::Commands || open.listeners.is_subscribed() {
                return Ok(open.clone());
            }
        }
        links.opening.retain(|opening| opening.attempt.has_changed().is_ok());
        let mut opening = links.opening.iter();
        if let Some(same) = opening.find(|it| it.runtime == here && it.purpose == purpose) {
            return Err(same.attempt.clone());
        }
        let (sender, attempt) = watch::channel(None);
        links.opening.push(Opening { runtime: here, purpose, attempt: attempt.clone() });
        let connection = self.clone();
        tokio::spawn(async move { sender.send_replace(Some(connection.connect(purpose).await)) });
        Err(attempt)
    }

    async fn connect(&self, purpose: Purpose) -> Result<(), RedisError> {
        let listeners = Arc::new(Listeners::new(self.servers.is_cluster()));
        let receiver = listeners.clone();
        let connected = self.servers.connect(move |push| receiver.receive(&push));
        let link = in_time(connected).await.inspect_err(|_| self.retry().record_failure())?;
        let driving = Arc::new(());
        let driver = Arc::downgrade(&driving);
        let (end, ended) = oneshot::channel();
        tokio::spawn(async move {
            let _driving = driving;
            let _: Result<Infallible, _> = ended.await;
        });
        let runtime = Handle::current().id();
        let mut open = Open {
            link,
            number: self.next_number(),
            runtime,
            driver,
            _end: Arc::new(end),
            listeners,
            subscribing: Arc::default(),
            is_probed: Arc::default(),
        };
        if purpose == Purpose::Notifications {
            self.subscribe(&mut open).await?;
        }
        let mut links = self.lock();
        let (kept, ended): (Vec<_>, Vec<_>) = links
            .open
            .drain(..)
            .partition(|other| other.runtime != runtime && other.driver.strong_count() > 0);
        links.open = kept;
        links.open.push(open);
        drop(links);
        ended.iter().for_each(|open| open.listeners.lose());
        Ok(())
    }

    fn next_number(&self) -> u64 {
        let mut links = self.lock();
        links.count += 1;
        links.count
    }

    /// The link of the runtime that this is called on.
    fn current(&self) -> Option<Open> {
        let here = Handle::try_current().ok()?.id();
        self.lock().open.iter().find(|open| open.runtime == here).cloned()
    }

    /// Does not use this link any more, and wakes those who listen over it.
    fn leave(&self, number: u64) {
        let mut links = self.lock();
        let at = links.open.iter().position(|open| open.number == number);
        let left = at.map(|at| links.open.remove(at));
        drop(links);
        if let Some(left) = left {
            left.listeners.lose();
        }
    }

    /// Leaves the link if the server does not respond.
    async fn probe(&self, mut open: Open, key: String) {
        let mut command = redis::cmd("PTTL");
        command.arg(key);
        let response = timeout(PROBE_LIMIT, open.link.query::<Value>(&command)).await;
        open.is_probed.store(false, Ordering::Release);
        // A server that refuses the command responds, too.
        let is_alive = match response {
            Ok(Ok(_)) => true,
            Ok(Err(error)) => !is_of_the_link(&error),
            Err(_) => false,
        };
        if !is_alive {
            self.leave(open.number);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn retry(&self) -> MutexGuard<'_, Retry> {
        self.retry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn in_time<T>(call: impl Future<Output = Result<T, RedisError>>) -> Result<T, RedisError> {
    let response = timeout(CONNECT_LIMIT, call).await;
    response.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

fn aborted() -> RedisError {
    io::Error::from(io::ErrorKind::ConnectionAborted).into()
}

/// Returns `true` if another link may do better.
fn is_of_the_link(error: &RedisError) -> bool {
    // The server is not the master any more, and the sentinels know which one is.
    let is_demoted = matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ReadOnly));
    is_demoted || error.is_io_error() || error.is_unrecoverable_error()
}

/// Probes the link if the call is dropped before its response arrives, once for all such calls.
struct Doubt<'a> {
    connection: Arc<Connection>,
    open: Open,
    key: &'a str,
    runtime: Handle,
    is_answered: bool,
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        if self.is_answered || self.open.is_probed.swap(true, Ordering::AcqRel) {
            return;
        }
        let (connection, open, key) =
            (self.connection.clone(), self.open.clone(), self.key.to_owned());
        self.runtime.spawn(async move { connection.probe(open, key).await });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::{Instant, sleep_until};

    use super::Retry;

    #[tokio::test(start_paused = true)]
    async fn pauses_grow_to_twenty_seconds_at_most() {
        let mut retry = Retry::default();
        let mut pauses = Vec::new();
        for _ in 0..50 {
            retry.record_failure();
            let until = retry.pending().unwrap();
            pauses.push(until - Instant::now());
            retry.record_failure();
            assert_eq!(retry.pending(), Some(until));
            sleep_until(until).await;
        }

        assert!(pauses[0] < Duration::from_secs(2), "{pauses:?}");
        assert!(pauses[10] > Duration::from_secs(10), "{pauses:?}");
        assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(20)), "{pauses:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn first_refusal_costs_less_than_half_a_minute() {
        let mut retry = Retry::default();
        retry.record_refusal();
        let first = retry.pending().unwrap() - Instant::now();
        sleep_until(retry.pending().unwrap()).await;
        (0..30).for_each(|_| retry.refusals += 1);
        retry.record_refusal();
        let late = retry.pending().unwrap() - Instant::now();

        assert!(first >= Duration::from_secs(15) && first <= Duration::from_secs(25), "{first:?}");
        assert!(late >= Duration::from_secs(2_700), "{late:?}");
    }
}
