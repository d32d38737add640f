//! The connection to the server, made anew when it is of no use any more.
//!
//! A connection is driven by a task of the runtime that it was made on, and a source outlives
//! runtimes: on another one, another is made. All sources of a runtime share it, and wait for the same
//! attempt at it. Nor is it tried for long: a source has its own limit and its own pauses.

use std::{
    future::pending,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use redis::{Cmd, ErrorKind, FromRedisValue, PushInfo, PushKind, RedisError, ServerErrorKind};
use tokio::{
    runtime::{Handle, Id},
    sync::{broadcast, watch},
    time::{sleep, timeout},
};

use super::servers::{Link, Servers};

/// How long a server may take to be connected to, or to let us listen.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// The shortest and the longest pause before it tries again.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// An attempt that ended without a word. Rustls panics where it does not know whose cryptography to use.
const PANICKED: (ErrorKind, &str) = (
    ErrorKind::InvalidClientConfig,
    "connecting panicked; for TLS, rustls needs a crypto provider (see the docs of `RedisStore`)",
);

const NOT_ALLOWED: ErrorKind = ErrorKind::Server(ServerErrorKind::NoPerm);

pub(super) struct Connection {
    servers: Servers,
    opened: Mutex<Opened>,
}

#[derive(Default)]
struct Opened {
    /// One for each runtime.
    open: Vec<Open>,
    opening: Vec<(Id, Opening)>,
    /// How many there have been.
    count: u64,
}

/// Whether an attempt to connect came to something. The connection itself lies in [`Opened`] then, and
/// nowhere else: it ends when it is left.
type Opening = watch::Receiver<Option<Result<(), RedisError>>>;

#[derive(Clone)]
struct Open {
    link: Link,
    number: u64,
    runtime: Id,
    /// There as long as what drives the link is, which ends with the runtime.
    driver: Weak<()>,
    heard: Heard,
}

/// What is heard over one connection without asking.
#[derive(Clone)]
struct Heard {
    announcements: broadcast::Sender<Announcement>,
    subscribed: Arc<AtomicBool>,
}

#[derive(Clone)]
enum Announcement {
    /// The message that came.
    Changed(Arc<[u8]>),
    /// The connection has ended: what comes now is not heard.
    Lost,
}

impl Connection {
    pub(super) fn new(servers: Servers) -> Self {
        Self { servers, opened: Mutex::default() }
    }

    pub(super) fn servers(&self) -> &Servers {
        &self.servers
    }

    /// What the server answers. A connection that turns out to be broken is replaced once; that the
    /// server did then what it was asked twice does no harm.
    pub(super) async fn ask<T: FromRedisValue>(
        self: &Arc<Self>,
        command: &Cmd,
    ) -> Result<T, RedisError> {
        if let Some(mut open) = self.current() {
            match self.ask_on(&mut open, command).await {
                Err(error) if is_of_the_connection(&error) => {}
                answer => return answer,
            }
        }
        let mut open = self.open().await?;
        self.ask_on(&mut open, command).await
    }

    async fn ask_on<T: FromRedisValue>(
        &self,
        open: &mut Open,
        command: &Cmd,
    ) -> Result<T, RedisError> {
        // Whoever gives up while waiting (it was dropped) does not come back to this connection: it
        // may be dead without having said so.
        let doubt = Doubt { connection: self, number: open.number };
        let answer = open.link.query(command).await;
        match &answer {
            Err(error) if is_of_the_connection(error) => {}
            _ => std::mem::forget(doubt),
        }
        answer
    }

    /// Ends when `message` came over `channel`, or may have been missed.
    pub(super) async fn heard(self: &Arc<Self>, channel: &str, message: &[u8]) {
        let mut pause = FIRST_PAUSE;
        let mut announcements = loop {
            match self.listen(channel).await {
                // What was said before is not heard.
                Ok(_) if pause > FIRST_PAUSE => return,
                Ok(announcements) => break announcements,
                // It may not listen; nor may it a moment later.
                Err(error) if error.kind() == NOT_ALLOWED => pending().await,
                Err(_) => sleep(pause.mul_f64(0.5 + fastrand::f64())).await,
            }
            pause = pause.mul_f64(2.0).min(LONGEST_PAUSE);
        };
        while let Ok(Announcement::Changed(heard)) = announcements.recv().await {
            if *heard == *message {
                break;
            }
        }
    }

    /// Subscribes to `channel`, unless that is done.
    async fn listen(
        self: &Arc<Self>,
        channel: &str,
    ) -> Result<broadcast::Receiver<Announcement>, RedisError> {
        let mut open = self.open().await?;
        let announcements = open.heard.announcements.subscribe();
        if !open.heard.subscribed.load(Ordering::Acquire) {
            // Whoever waits no longer says nothing about the connection: a flight waits for a moment.
            let subscribed = in_time(open.link.subscribe(channel)).await;
            if subscribed.as_ref().is_err_and(is_of_the_connection) {
                self.leave(open.number);
            }
            subscribed?;
            open.heard.subscribed.store(true, Ordering::Release);
        }
        Ok(announcements)
    }

    /// The connection of this runtime, or the one that is being made. Whoever waits no longer does not
    /// end the attempt: it may be in time for the next.
    async fn open(self: &Arc<Self>) -> Result<Open, RedisError> {
        let mut opening = match self.open_or_opening() {
            Ok(open) => return Ok(open),
            Err(opening) => opening,
        };
        match opening.wait_for(Option::is_some).await.as_deref() {
            // Others may have left it already.
            Ok(Some(Ok(()))) => self
                .current()
                .ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionAborted).into()),
            Ok(Some(Err(error))) => Err(error.clone()),
            _ => Err(PANICKED.into()),
        }
    }

    fn open_or_opening(self: &Arc<Self>) -> Result<Open, Opening> {
        let here = Handle::current().id();
        let mut opened = self.lock();
        if let Some(open) = opened.open.iter().find(|open| open.runtime == here) {
            return Ok(open.clone());
        }
        opened.opening.retain(|(_, opening)| opening.has_changed().is_ok());
        if let Some((_, opening)) = opened.opening.iter().find(|(runtime, _)| *runtime == here) {
            return Err(opening.clone());
        }
        let (ended, opening) = watch::channel(None);
        opened.opening.push((here, opening.clone()));
        let connection = self.clone();
        tokio::spawn(async move { ended.send_replace(Some(in_time(connection.connect()).await)) });
        Err(opening)
    }

    async fn connect(&self) -> Result<(), RedisError> {
        let heard = Heard { announcements: broadcast::channel(64).0, subscribed: Arc::default() };
        let listener = (heard.clone(), Arc::new(()));
        let driver = Arc::downgrade(&listener.1);
        let link = self.servers.connect(move |push| {
            let (listener, _driven) = &listener;
            listener.hear(push);
            Ok(())
        });
        let (link, runtime) = (link.await?, Handle::current().id());
        let mut opened = self.lock();
        opened.count += 1;
        let open = Open { link, number: opened.count, runtime, driver, heard };
        let (kept, ended): (Vec<_>, Vec<_>) = opened
            .open
            .drain(..)
            .partition(|other| other.runtime != runtime && other.driver.strong_count() > 0);
        opened.open = kept;
        opened.open.push(open);
        drop(opened);
        drop(ended);
        Ok(())
    }

    /// The connection of the runtime that this is called on.
    fn current(&self) -> Option<Open> {
        let here = Handle::try_current().ok()?.id();
        self.lock().open.iter().find(|open| open.runtime == here).cloned()
    }

    /// Uses this connection no more. Who listened over it is told by the end of its sender.
    fn leave(&self, number: u64) {
        let mut opened = self.lock();
        let at = opened.open.iter().position(|open| open.number == number);
        let left = at.map(|at| opened.open.remove(at));
        drop(opened);
        drop(left);
    }

    fn lock(&self) -> MutexGuard<'_, Opened> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Heard {
    fn hear(&self, push: PushInfo) {
        let announcement = match push.kind {
            PushKind::Message => match push.data.into_iter().nth(1) {
                Some(redis::Value::BulkString(message)) => Announcement::Changed(message.into()),
                _ => return,
            },
            PushKind::Disconnection => {
                self.subscribed.store(false, Ordering::Release);
                Announcement::Lost
            }
            _ => return,
        };
        // Nobody may be listening.
        let _ = self.announcements.send(announcement);
    }
}

async fn in_time<T>(asked: impl Future<Output = Result<T, RedisError>>) -> Result<T, RedisError> {
    let answer = timeout(LONGEST_WAIT, asked).await;
    answer.unwrap_or_else(|_| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

/// Whether another connection may do better.
fn is_of_the_connection(error: &RedisError) -> bool {
    // It is not the master any more: the sentinels know who is.
    let demoted = matches!(error.kind(), ErrorKind::Server(ServerErrorKind::ReadOnly));
    demoted || error.is_io_error() || error.is_unrecoverable_error()
}

/// Leaves a connection, unless it answers.
struct Doubt<'a> {
    connection: &'a Connection,
    number: u64,
}

impl Drop for Doubt<'_> {
    fn drop(&mut self) {
        self.connection.leave(self.number);
    }
}
