//! IMS: it answers everybody, after a while, and counts.

use std::{
    mem,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tower_adobe_auth::{FetchToken, TokenError, TokenResponse};

use crate::{rate::Rate, world::World};

pub(crate) const DAY: Duration = Duration::from_secs(86_400);

/// The fetcher of one process.
pub(crate) struct Ims(pub(crate) Arc<World>);

/// What IMS was asked for.
pub(crate) struct Requests {
    asked: Rate,
    /// How many there were in all: the last token's number.
    issued: u64,
    /// The moments of the first and the last request since [`Requests::take_span`].
    span: Option<(Instant, Instant)>,
}

impl Requests {
    pub(crate) fn new() -> Mutex<Self> {
        Mutex::new(Self { asked: Rate::new(), issued: 0, span: None })
    }

    pub(crate) fn issued(&self) -> u64 {
        self.issued
    }

    /// What was asked for since the last time that this was called.
    pub(crate) fn take(&mut self) -> Rate {
        mem::replace(&mut self.asked, Rate::new())
    }

    pub(crate) fn take_span(&mut self) -> Option<(Instant, Instant)> {
        self.span.take()
    }

    /// The number of the token that answers.
    fn next(&mut self) -> u64 {
        let now = Instant::now();
        self.asked.count();
        self.issued += 1;
        self.span = Some((self.span.map_or(now, |(first, _)| first), now));
        self.issued
    }
}

impl FetchToken for Ims {
    async fn fetch_token(&self) -> Result<TokenResponse, TokenError> {
        let number = self.0.requests.lock().unwrap().next();
        sleep(Duration::from_millis(fastrand::u64(150..=250))).await;
        Ok(TokenResponse::new(number.to_string(), DAY))
    }
}
