//! What all processes have in common: IMS, the store, the network between, and the API.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use tokio::time::Instant;
use tower::Service;

use crate::{
    ims::{DAY, Requests},
    server::Server,
};

/// The wall clock's first reading, in days since 1970.
const FIRST_DAY: u32 = 20_000;

pub(crate) struct World {
    start: Instant,
    pub(crate) requests: Mutex<Requests>,
    pub(crate) server: Server,
    /// How many calls a second it does.
    pub(crate) capacity: u32,
    /// Whether the store says that something has changed.
    pub(crate) announces: bool,
    network: AtomicU8,
    /// The API refuses the tokens up to this number.
    revoked: AtomicU64,
}

/// Who reaches the store.
#[derive(Clone, Copy, PartialEq)]
#[repr(u8)]
pub(crate) enum Network {
    Whole,
    /// Nothing comes back to every second process.
    Half,
    /// The store refuses connections.
    Down,
}

/// What one process hears of the store.
pub(crate) enum Way {
    Open,
    Silent,
    Refused,
}

impl World {
    pub(crate) fn new(capacity: u32, announces: bool) -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            requests: Requests::new(),
            server: Server::new(capacity),
            capacity,
            announces,
            network: AtomicU8::new(Network::Whole as u8),
            revoked: AtomicU64::new(0),
        })
    }

    pub(crate) fn wall(&self) -> SystemTime {
        UNIX_EPOCH + DAY * FIRST_DAY + self.start.elapsed()
    }

    pub(crate) fn set(&self, network: Network) {
        self.network.store(network as u8, Ordering::Relaxed);
    }

    pub(crate) fn way(&self, process: usize) -> Way {
        let network = self.network.load(Ordering::Relaxed);
        if network == Network::Down as u8 {
            Way::Refused
        } else if network == Network::Half as u8 && process % 2 == 1 {
            Way::Silent
        } else {
            Way::Open
        }
    }

    /// From now on the API refuses all tokens that were issued so far. Returns the last one's number.
    pub(crate) fn revoke(&self) -> u64 {
        let last = self.requests.lock().unwrap().issued();
        self.revoked.store(last, Ordering::Relaxed);
        last
    }
}

/// An API that answers 401 to revoked tokens.
#[derive(Clone)]
pub(crate) struct Api(pub(crate) Arc<World>);

impl Service<Request<()>> for Api {
    type Response = Response<()>;
    type Error = Infallible;
    type Future = Ready<Result<Response<()>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<()>) -> Self::Future {
        let header = request.headers()[AUTHORIZATION].to_str().unwrap();
        let number: u64 = header.strip_prefix("Bearer ").unwrap().parse().unwrap();
        let mut response = Response::new(());
        if number <= self.0.revoked.load(Ordering::Relaxed) {
            *response.status_mut() = StatusCode::UNAUTHORIZED;
        }
        ready(Ok(response))
    }
}

/// Hours and minutes.
pub(crate) const fn time(hours: u64, minutes: u64) -> Duration {
    Duration::from_secs((hours * 60 + minutes) * 60)
}
