//! What both servers and the test's handle share.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use tokio::sync::watch;

use super::clients::Clients;
use super::gate::Gates;
use super::script::Script;
use super::token_request::TokenRequest;
use super::tokens::Tokens;

/// How many token requests are kept whole.
pub(super) const KEPT_REQUESTS: usize = 1_000;

/// How many token requests are kept by their time.
pub(super) const KEPT_TIMES: usize = 100_000;

/// How many refusals of the API are kept: the first, which tell most.
const KEPT_REFUSALS: usize = 10;

/// The state of IMS and of the API, behind one lock that is never held across an `.await`.
pub(super) struct Shared {
    state: Mutex<State>,
    // Touched after each token request was recorded.
    arrivals: watch::Sender<()>,
}

pub(super) struct State {
    pub(super) clients: Clients,
    pub(super) scopes: Option<Vec<String>>,
    pub(super) lifetime: Duration,
    pub(super) check_api_key: bool,
    pub(super) tokens: Tokens,
    pub(super) script: Script,
    pub(super) gates: Gates,
    pub(super) api_script: ApiScript,
    // Each in words, for the messages of assertions.
    pub(super) api_refusals: Vec<String>,
    pub(super) counts: Counts,
    pub(super) requests: VecDeque<TokenRequest>,
    pub(super) times: VecDeque<Instant>,
}

/// The statuses the API was told to answer with.
#[derive(Default)]
pub(super) struct ApiScript {
    pub(super) queued: VecDeque<StatusCode>,
    pub(super) standing: Option<StatusCode>,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) token_requests: usize,
    pub(super) issued: usize,
    pub(super) refused: usize,
    pub(super) refused_connections: usize,
    pub(super) api_requests: usize,
    pub(super) api_unauthorized: usize,
    pub(super) api_forbidden: usize,
}

impl Shared {
    pub(super) fn new(state: State) -> Self {
        Self { state: Mutex::new(state), arrivals: watch::Sender::new(()) }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        // Each change is a single step, so what a panic leaves behind is sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells those who wait that a token request was recorded.
    pub(super) fn announce_arrival(&self) {
        self.arrivals.send_replace(());
    }

    /// Ends when this many token requests have come.
    pub(super) async fn token_requests_come(&self, expected: usize) {
        // Before the first look at the count, so that none goes unnoticed after it.
        let mut arrivals = self.arrivals.subscribe();
        while self.lock().counts.token_requests < expected {
            // The sender is in `self`, so it cannot be gone.
            let _ = arrivals.changed().await;
        }
    }
}

impl State {
    /// Counts a token request and keeps it, in the place of the oldest if need be.
    pub(super) fn record(&mut self, request: TokenRequest) {
        self.counts.token_requests += 1;
        if self.times.len() == KEPT_TIMES {
            self.times.pop_front();
        }
        self.times.push_back(request.received_at());
        if self.requests.len() == KEPT_REQUESTS {
            self.requests.pop_front();
        }
        self.requests.push_back(request);
    }

    /// Counts an answer of the API. `refusal` says in words what it was, and is asked for only if
    /// it is kept.
    pub(super) fn record_api(&mut self, status: StatusCode, refusal: impl FnOnce() -> String) {
        self.counts.api_requests += 1;
        match status {
            StatusCode::UNAUTHORIZED => self.counts.api_unauthorized += 1,
            StatusCode::FORBIDDEN => self.counts.api_forbidden += 1,
            _ => return,
        }
        if self.api_refusals.len() < KEPT_REFUSALS {
            self.api_refusals.push(refusal());
        }
    }
}

impl ApiScript {
    pub(super) fn next(&mut self) -> Option<StatusCode> {
        self.queued.pop_front().or(self.standing)
    }
}

/// Milliseconds since 1970, the unit of a token's claims.
pub(super) fn now_in_millis() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
