//! The callers: those who ask the source, and those whose requests go through the layer.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use fastrand::Rng;
use http::{Request, Response, StatusCode};
use tokio::time::timeout;
use tower::{ServiceExt, util::BoxCloneSyncService};
use tower_adobe_auth::{AcquireTimeout, BoxError, ErrorKind, TokenError, TokenSource};

use crate::{
    api,
    moment::{Moment, Turn},
    promises::*,
    world::{LeaveAlone, Simulation, World},
};

/// A client whose requests are authorized by the layer.
pub(crate) type Client = BoxCloneSyncService<Request<()>, Response<()>, BoxError>;

/// What was known when a caller asked.
pub(crate) struct Call {
    asked: Moment,
    limit: Duration,
    cached: Option<u64>,
    /// How long it may wait although a usable token is cached.
    grace: Duration,
    /// It wants a new token, whatever is cached.
    wants_new: bool,
    /// It was the first to ask for this refresh, which therefore has all its attempts ahead.
    is_first: bool,
    failed: usize,
    issued: usize,
    stood: Duration,
    standstills: u32,
    pub(crate) draws: Draws,
    /// The request has reached the API.
    pub(crate) is_sent: AtomicBool,
}

/// What chance decides for one caller. Drawn before it starts: callers that wait for the same token
/// wake in an order that Tokio draws, so that a draw of theirs would not be the seed's.
pub(crate) struct Draws {
    pub(crate) manner: Manner,
    uri: String,
    /// Refused by the API that refuses some requests once.
    pub(crate) is_unlucky: bool,
    is_late: bool,
    number: u64,
}

impl Draws {
    pub(crate) fn new(manner: Manner, may_refuse: bool, number: u64, rng: &mut Rng) -> Self {
        let uri = match manner {
            Manner::Refused => api::refusing_address(rng),
            _ => api::address(rng, may_refuse),
        };
        Self { manner, uri, is_unlucky: rng.u8(0..3) == 0, is_late: rng.u8(0..4) == 0, number }
    }

    /// No two refusals come at one instant, because the order of their arrival may decide which of
    /// them is believed. A late one may find its token replaced.
    pub(crate) fn refusal_delay(&self, now: Moment) -> Duration {
        const SLOTS: u64 = 256;
        let turn = Turn::Refusals.after(now.at, Duration::ZERO);
        let slot = (now.at + turn).as_millis() as u64 / Turn::ALL;
        let ahead = (self.number + SLOTS - slot % SLOTS) % SLOTS;
        let late = if self.is_late { 4 * SLOTS } else { 0 };
        turn + Duration::from_millis((ahead + late) * Turn::ALL)
    }
}

/// How a caller asks.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Manner {
    /// For a token, and does not give up before the source does.
    Token,
    /// For a token, and gives up.
    Impatient(Duration),
    /// By a request through the layer.
    Request(Duration),
    /// By a request to an API that refuses every token.
    Refused,
    /// For a new token.
    Refresh,
}

impl Manner {
    pub(crate) fn draw(rng: &mut Rng) -> Self {
        let longest = rng.choice([500, 40_000]).unwrap();
        let limit = Duration::from_millis(rng.u64(1..longest));
        match rng.u8(0..8) {
            0..2 => Self::Token,
            2 => Self::Impatient(limit),
            3 => Self::Request(limit),
            _ => Self::Request(ACQUIRE_TIMEOUT),
        }
    }
}

impl Simulation {
    fn asks(self: &Arc<Self>, tokens: &TokenSource, limit: Duration, draws: Draws) -> Call {
        let wants_new = matches!(draws.manner, Manner::Refresh);
        let is_refreshing = tokens.status().is_refreshing();
        let now = self.now();
        let mut world = self.world();
        let cached = world.cached(now);
        let is_cold = self.keeps_warm
            && cached.is_none()
            && !world.is_closed
            && !wants_new
            && world.is_calm(now);
        world.check(!is_cold, || "the token was not kept warm".into());
        world.note(now, if wants_new { "refresh" } else { "call" }, 0);
        let backs_off = world
            .leave_alone
            .as_ref()
            .is_some_and(|pause| !now.is(pause.at_least_while_asked, pause.since));
        world.asked_since_failure = true;
        world.asked_in_vain |= cached.is_none();
        let grace = if world.is_suspect && !backs_off && !world.is_closed {
            SUSPECT_GRACE + TICK
        } else {
            Duration::ZERO
        };
        Call {
            asked: now,
            limit,
            cached,
            grace,
            wants_new,
            is_first: !is_refreshing && world.leave_alone.is_none(),
            failed: world.failed.len(),
            issued: world.issued.len(),
            stood: world.stood,
            standstills: world.standstills,
            draws,
            is_sent: AtomicBool::new(false),
        }
    }

    /// A caller, from its question to its answer.
    pub(crate) async fn call(self: Arc<Self>, tokens: TokenSource, client: Client, draws: Draws) {
        match draws.manner {
            Manner::Token => {
                let call = self.asks(&tokens, ACQUIRE_TIMEOUT, draws);
                let answer = tokens.token().await;
                drop(tokens);
                self.check_answer(&call, answer);
            }
            Manner::Impatient(limit) => {
                let call = self.asks(&tokens, ACQUIRE_TIMEOUT.min(limit), draws);
                let answer = timeout(limit, tokens.token()).await;
                drop(tokens);
                match answer {
                    Ok(answer) => self.check_answer(&call, answer),
                    Err(_) => {
                        let now = self.now();
                        let mut world = self.world();
                        world.check_wait(now, &call);
                        world.note(now, "cancelled", 0);
                    }
                }
            }
            Manner::Request(limit) => self.request(tokens, client, limit, draws).await,
            Manner::Refused => self.request(tokens, client, ACQUIRE_TIMEOUT, draws).await,
            Manner::Refresh => {
                let call = self.asks(&tokens, ACQUIRE_TIMEOUT, draws);
                self.world().refresh_called = Some(call.asked.at);
                self.world().refreshers += 1;
                let answer = tokens.refresh().await;
                drop(tokens);
                self.world().refreshers -= 1;
                self.check_answer(&call, answer);
            }
        }
    }

    async fn request(
        self: Arc<Self>,
        tokens: TokenSource,
        client: Client,
        limit: Duration,
        draws: Draws,
    ) {
        let call = Arc::new(self.asks(&tokens, limit, draws));
        drop(tokens);
        let request = Request::get(&call.draws.uri)
            .extension(AcquireTimeout(limit))
            .extension(Arc::clone(&call))
            .body(())
            .unwrap();
        let answer = client.oneshot(request).await;
        let now = self.now();
        let mut world = self.world();
        match answer {
            Ok(response) if response.status() == StatusCode::UNAUTHORIZED => {
                world.note(now, "answered with 401", 0);
            }
            Ok(_) => {}
            Err(error) => {
                let is_sent = call.is_sent.load(Ordering::Relaxed);
                world.check(!is_sent, || format!("failed after its refusal: {error}"));
                match error.downcast_ref::<TokenError>() {
                    Some(error) => world.check_error(now, &call, error),
                    None => world.check(false, || format!("{error}")),
                }
            }
        }
    }

    fn check_answer(&self, call: &Call, answer: Result<tower_adobe_auth::AccessToken, TokenError>) {
        let now = self.now();
        let mut world = self.world();
        match answer {
            Ok(token) => {
                let number = world.check_token(now, token.expose_secret());
                world.check_obtained(now, call, number);
            }
            Err(error) => world.check_error(now, call, &error),
        }
    }
}

impl World {
    /// Never a dead token. Returns its number.
    pub(crate) fn check_token(&mut self, now: Moment, token: &str) -> u64 {
        let number = token.strip_prefix("token-").and_then(|number| number.parse().ok());
        let number: usize = number.unwrap_or_default();
        let Some(issued) = self.issued.get(number.wrapping_sub(1)) else {
            self.check(false, || format!("{token} was never issued"));
            return 0;
        };
        let (ended, retired, invalidated) =
            (issued.has_ended(now), issued.is_retired(now), issued.invalidated);
        let (life, age) = (issued.life, now.at - issued.sent.at);
        self.check(!ended, || {
            format!("token {number} of {life:?} has ended, at the age of {age:?}")
        });
        self.check(!retired, || {
            format!("token {number} of {life:?} is retired, at the age of {age:?}")
        });
        self.check(!invalidated, || format!("token {number} was invalidated"));
        number as u64
    }

    /// The running time that the caller has waited.
    fn waited(&self, now: Moment, call: &Call) -> Duration {
        (now.at - call.asked.at).saturating_sub(self.stood - call.stood)
    }

    /// A caller waits at most to its deadline; while a usable token is cached it does not wait,
    /// but for the replacement of a suspect one.
    fn check_wait(&mut self, now: Moment, call: &Call) {
        let waited = self.waited(now, call);
        let limit = call.limit;
        let extended = EXTENSION * (self.standstills - call.standstills);
        self.check(waited <= limit + extended + TICK, || format!("waited {waited:?} of {limit:?}"));
        if call.wants_new {
            return;
        }
        // It may have expired, or have been invalidated, during the wait.
        let is_usable = |token: &u64| {
            let issued = self.issued.get((*token as usize).wrapping_sub(1));
            issued.is_some_and(|issued| !issued.invalidated && !issued.is_retired(now))
        };
        if let Some(token) = call.cached.filter(is_usable) {
            let grace = call.grace;
            self.check(waited <= grace + extended, || {
                format!("waited {waited:?} of {grace:?} with token {token} cached")
            });
            let first = self.failed.get(call.failed..).unwrap_or_default();
            let first = first.iter().find(|failed| failed.is_certain).map(|failed| failed.at);
            self.check(first.is_none_or(|first| first >= now.at), || {
                format!("waited with token {token} cached, on after a failed attempt at {first:?}")
            });
        }
    }

    /// A caller has a token.
    pub(crate) fn check_obtained(&mut self, now: Moment, call: &Call, number: u64) {
        self.check_wait(now, call);
        let waited = now.at - call.asked.at;
        self.note(now, if waited.is_zero() { "immediately" } else { "waited" }, number);
        let Some(issued) = self.issued.get((number as usize).wrapping_sub(1)) else { return };
        let landed = issued.landed.at;
        let was_late = landed > call.asked.at && landed + TICK < now.at;
        let may_be_late = self.is_suspect || self.standstills > call.standstills;
        self.check(!was_late || may_be_late || call.wants_new, || {
            format!("had token {number} of {landed:?} only after {waited:?}")
        });
    }

    /// A caller has failed.
    ///
    /// Only a failure may fail callers: the one of this instant if they waited, else the last one
    /// while the source may back off.
    fn check_error(&mut self, now: Moment, call: &Call, error: &TokenError) {
        self.check_wait(now, call);
        let waited = self.waited(now, call);
        let timed_out = error.kind() == ErrorKind::AcquireTimeout;
        let number = self.failures.max;
        self.note(now, if timed_out { "acquire timeout" } else { "error" }, number);

        let cached = self.cached(now).filter(|_| {
            // A token that lands at the instant of the deadline may come too late.
            call.cached.is_some() || self.newest().is_some_and(|newest| newest.landed.at < now.at)
        });
        self.check(cached.is_none() || call.wants_new, || {
            format!("failed with token {cached:?} cached: {error}")
        });
        if error.kind() == ErrorKind::Shutdown {
            let is_closed = self.is_closed;
            return self.check(is_closed, || format!("nobody has shut down: {error}"));
        }
        let has_lost = matches!(error.kind(), ErrorKind::RuntimeLost | ErrorKind::NoRuntime);
        self.check(!has_lost, || format!("the caller's own runtime is well: {error}"));

        let standstills = self.standstills - call.standstills;
        let limit = call.limit;
        // A shorter standstill may pass between two timers.
        let unnoticed = (MAX_SLICE + MIN_STANDSTILL) * standstills;
        let earliest = limit.saturating_sub(TICK + unnoticed);
        self.check(!timed_out || waited >= earliest, || {
            format!("timed out after {waited:?} of {limit:?}: {error}")
        });
        // A failure may come at the very instant of the deadline.
        let is_now = self.leave_alone.as_ref().is_some_and(|pause| pause.since.at == now.at);
        self.check(timed_out || waited < limit || is_now || standstills > 0, || {
            format!("not timed out after {waited:?} of {limit:?}: {error}")
        });
        // In clear weather IMS takes up to 1.5 s. A refresh that is found overdue gets a grace before.
        let is_overdue = self.may_be_lost
            || self.in_progress.iter().any(|request| request.may_be_superseded(now));
        let grace = if is_overdue { OVERDUE_GRACE } else { Duration::ZERO };
        let is_hasty = timed_out && limit < Duration::from_secs(2) + grace;
        let has_recovered = self.has_recovered(now);
        self.check(!has_recovered || is_hasty, || format!("long after all trouble: {error}"));

        let landed = self.newest().is_some_and(|newest| newest.landed.at == now.at);
        // Who has a token and only wants a new one keeps to the longer pause.
        let is_in_need = !call.wants_new || cached.is_none();
        let longest = |pause: &LeaveAlone| match is_in_need {
            true => pause.at_most,
            false => pause.at_most.max(BACKOFF_CAP + TICK),
        };
        let is_told = match &self.leave_alone {
            Some(pause) if pause.at_most.is_zero() => false,
            Some(pause) if pause.since.at == now.at => true,
            Some(pause) => waited.is_zero() && !now.is(longest(pause), pause.since),
            None => landed,
        };
        let since = self.leave_alone.as_ref().map(|pause| now.at - pause.since.at);
        self.check(is_told || timed_out, || {
            format!("failed for no reason, after {waited:?} and {since:?} after failure {number}: {error}")
        });
        if let (Some(retry_in), Some(pause)) = (error.retry_in(), &self.leave_alone) {
            let at_most = longest(pause);
            self.check(retry_in <= at_most, || {
                format!("backs off for {retry_in:?} of {at_most:?}")
            });
        }
        self.check_attempts(now, call, timed_out, error);
    }

    /// A caller sees no more failures than one refresh has attempts, and not fewer either as long
    /// as there is time.
    fn check_attempts(&mut self, now: Moment, call: &Call, timed_out: bool, error: &TokenError) {
        let first = match self.issued.len() == call.issued {
            true => call.failed,
            false => self.failed.len() - (self.failures.max as usize).min(self.failed.len()),
        };
        let seen = self.failed.get(first.max(call.failed)..).unwrap_or_default();
        let restarts = seen.iter().filter(|failed| failed.may_restart).count() as u64;
        // The answer to a request that was given up ends no refresh.
        let finals = seen.iter().filter(|failed| failed.is_final && failed.is_certain).count();
        let repeated = seen.iter().filter(|failed| failed.is_repeated).count() as u64;
        let number = seen.len() as u64;
        self.check(number <= ATTEMPTS * (1 + restarts) + restarts, || {
            format!("waited for {number} failures")
        });
        self.check(finals <= 1, || format!("waited for {finals} rejections"));

        let pause = self.leave_alone.as_ref().map_or(Duration::ZERO, |pause| pause.at_most);
        let had_time = now.at - call.asked.at + pause < ACQUIRE_TIMEOUT.min(call.limit);
        let is_early = call.is_first
            && !timed_out
            && self.standstills == call.standstills
            && number > 0
            && repeated == number
            && number < ATTEMPTS;
        self.check(!(is_early && had_time), || {
            format!("failed after {number} attempts of {ATTEMPTS}: {error}")
        });
    }
}
