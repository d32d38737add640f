//! IMS: one answer to each token request, by the weather; and the checks that IMS can make.

use std::{
    collections::BTreeSet,
    mem,
    panic::resume_unwind,
    sync::Arc,
    thread,
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use fastrand::Rng;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use tokio::{runtime::Handle, time::sleep};
use tower_adobe_auth::BoxError;

use crate::{
    adversity::Adversity,
    moment::{Moment, Turn},
    promises::*,
    world::{Failed, Failures, Issued, LeaveAlone, Simulation, World},
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Weather {
    Clear,
    Slow,
    Hanging,
    Down,
    Throttling,
    Rejecting,
    Nonsense,
    Panicking,
    Anything,
}

pub(crate) const BAD: [Weather; 8] = {
    use Weather::*;
    [Slow, Hanging, Down, Throttling, Rejecting, Nonsense, Panicking, Anything]
};

/// How IMS answers one request.
enum Answer {
    Token { life: u64 },
    Status { status: u16, body: &'static str, retry_after: Option<RetryAfter> },
    Nonsense(&'static str),
    Broken,
    Panic,
    Never,
}

/// In seconds.
#[derive(Clone, Copy)]
enum RetryAfter {
    Number(u64),
    Date(u64),
}

impl RetryAfter {
    /// The header's value, and how long that is from now.
    fn write(self, now: Moment) -> (String, Duration) {
        match self {
            Self::Number(secs) => (secs.to_string(), Duration::from_secs(secs)),
            Self::Date(secs) => {
                let until = Duration::from_secs((now.wall + Duration::from_secs(secs)).as_secs());
                let date = httpdate::fmt_http_date(UNIX_EPOCH + until);
                (date, until.saturating_sub(now.wall))
            }
        }
    }
}

/// A request that IMS has not answered yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InProgress {
    number: u64,
    began: Duration,
    is_on_main: bool,
}

impl InProgress {
    /// It may have been superseded, because its runtime was not driven.
    pub(crate) fn may_be_superseded(&self, now: Moment) -> bool {
        !self.is_on_main && now.at >= self.began + MIN_OVERDUE
    }
}

/// Why a request may be sent although the last one did not fail.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    AfterFailure,
    Missing,
    Due,
    Requested,
    Changed,
    /// Refused by these origins.
    Refused(BTreeSet<String>),
    None,
}

impl World {
    fn answer(&mut self, now: Moment) -> (Duration, Answer) {
        let weather = match self.weather {
            (_, until) if now.at >= until => Weather::Clear,
            (Weather::Anything, _) => self.rng.choice(BAD).unwrap(),
            (weather, _) => weather,
        };
        let lives = [2, 3, 6, 30, 300, 900, 3_600, 7_200, DAY / 2, DAY - 1];
        let life = self.rng.choice(lives).unwrap().max(self.shortest_life).min(DAY);
        let token = Answer::Token { life };
        // In clear weather IMS is quick enough for the token that is to be replaced.
        let shortest = self.newest().map_or(life, |newest| newest.life.as_secs().min(life));
        let soon = Duration::from_millis(self.rng.u64(0..300));
        let rng = &mut self.rng;
        match weather {
            Weather::Clear | Weather::Anything => {
                (Duration::from_millis(rng.u64(5..1_500).min(shortest * 250)), token)
            }
            Weather::Slow => (Duration::from_millis(rng.u64(1_000..14_000)), token),
            Weather::Hanging => (soon, if rng.u8(0..10) == 0 { token } else { Answer::Never }),
            Weather::Down if rng.bool() => (soon, Answer::Broken),
            Weather::Down => {
                let status = rng.choice([500, 502, 503, 504]).unwrap();
                (soon, Answer::Status { status, body: "<html>sorry</html>", retry_after: None })
            }
            Weather::Throttling if rng.u8(0..5) == 0 => (soon, token),
            Weather::Throttling => {
                let status = rng.choice([429, 429, 503]).unwrap();
                let secs = rng.choice([0, 1, 2, 8, 25, 40, 299, 400, 100_000]).unwrap();
                let kinds = [None, Some(RetryAfter::Number(secs)), Some(RetryAfter::Date(secs))];
                let retry_after = rng.choice(kinds).unwrap();
                (soon, Answer::Status { status, body: "", retry_after })
            }
            Weather::Rejecting => {
                let status = rng.choice([400, 401, 403]).unwrap();
                let body = r#"{"error":"invalid_client"}"#;
                (soon, Answer::Status { status, body, retry_after: None })
            }
            Weather::Nonsense => (soon, Answer::Nonsense(nonsense(rng))),
            Weather::Panicking => (if rng.bool() { soon } else { Duration::ZERO }, Answer::Panic),
        }
    }

    /// Why IMS gets a request now.
    pub(crate) fn reason(&self, now: Moment) -> Reason {
        if self.leave_alone.is_some() {
            return Reason::AfterFailure;
        }
        let Some(newest) = self.newest() else { return Reason::Missing };
        if newest.invalidated {
            Reason::Missing
        } else if now.is(newest.life.mul_f64(0.37), newest.sent) {
            Reason::Due
        } else if self.refreshers > 0 || self.refresh_called == Some(now.at) {
            Reason::Requested
        } else if self.changed.is_some() || self.requested_with != Some(self.secret.0) {
            // The source may have noticed by itself that the credentials are others.
            Reason::Changed
        } else if !self.refused_by.is_empty() {
            Reason::Refused(self.refused_by.clone())
        } else if self.started_elsewhere {
            // The clock may have been set meanwhile, so that the reason holds no longer.
            Reason::Requested
        } else {
            Reason::None
        }
    }

    /// One request at a time, the backoff, and no refresh without a reason.
    fn check_request(&mut self, now: Moment) -> Reason {
        let is_closed = self.is_closed;
        self.check(!is_closed, || "a token request after the shutdown".into());
        let overlapping: Vec<_> = self.in_progress.clone();
        let is_alone = overlapping.iter().all(|request| request.may_be_superseded(now));
        self.check(is_alone, || format!("two token requests at a time: {overlapping:?}"));

        let reason = self.reason(now);
        match &reason {
            Reason::AfterFailure => self.check_pause(now),
            Reason::None => {
                let life = self.newest().map(|newest| newest.life);
                self.check(false, || format!("a token of {life:?} was refreshed before its time"));
            }
            Reason::Changed => {
                self.changes.record(now.at);
                let often = self.changes.within(Duration::from_secs(3_600), now.at);
                self.check(often <= MAX_CHANGES_PER_HOUR, || {
                    format!("{often} tokens an hour because the credentials changed")
                });
            }
            Reason::Refused(origins) => self.check_replacements(now, origins),
            Reason::Missing | Reason::Due | Reason::Requested => {}
        }
        reason
    }

    fn check_pause(&mut self, now: Moment) {
        let Some(pause) = &self.leave_alone else { return };
        let rejected = self.only_rejected && self.failures.min > 0;
        // The token may have been invalidated, or have expired, while a forced refresh waited.
        let asked_in_vain = self.asked_in_vain || self.callers > 0 && self.cached(now).is_none();
        let at_least = if asked_in_vain { pause.at_least_while_asked } else { pause.at_least };
        let has_passed = now.is(at_least, pause.since);
        let gap = now.at - pause.since.at;
        // New credentials may be accepted where the old ones were rejected.
        let is_changed = self.changed.is_some();
        // In any case they are tried as soon as callers may ask.
        let is_excused =
            is_changed && (rejected || now.is(pause.at_least_while_asked, pause.since));
        if !has_passed && is_excused {
            self.changed = None;
        }
        let failures = self.failures.max;
        self.check(has_passed || is_excused, || {
            format!("asked {gap:?} after failure {failures}, and not after {at_least:?}")
        });
        if rejected && !self.asked_since_failure && self.changed.is_none() {
            self.retries_of_rejections.record(now.at);
            let often = self.retries_of_rejections.within(Duration::from_secs(3_600), now.at);
            self.check(often <= MAX_RETRIES_OF_REJECTIONS_PER_HOUR, || {
                format!("{often} retries of a rejection in an hour without callers")
            });
        }
    }

    /// The budgets of believed refusals, as sums over intervals of any begin.
    fn check_replacements(&mut self, now: Moment, origins: &BTreeSet<String>) {
        self.replacements.record(now.at);
        let most = |per_window: usize, windows: u32| per_window * (windows as usize + 1);
        for windows in [1, 10] {
            let often = self.replacements.within(REFUSAL_WINDOW * windows, now.at);
            self.check(often <= most(MAX_REFUSALS, windows), || {
                format!("{often} tokens in {windows} minutes because of 401s")
            });
        }
        // Of several origins nobody outside knows which one was believed.
        let (Some(origin), 1) = (origins.first(), origins.len()) else { return };
        let of_origin = self.replacements_of.entry(origin.clone()).or_default();
        of_origin.record(now.at);
        for windows in [1, 10] {
            let of_origin = &self.replacements_of[origin];
            let often = of_origin.within(REFUSAL_WINDOW * windows, now.at);
            self.check(often <= most(MAX_REFUSALS_PER_ORIGIN, windows), || {
                format!("{often} tokens in {windows} minutes because of 401s of {origin}")
            });
        }
    }

    /// Books a failure as the source may book it.
    fn fail(&mut self, now: Moment, failure: Failure, blame: Blame) {
        let Failure { what, asked, is_final, is_repeated, .. } = failure;
        self.failures.max += 1;
        match blame {
            Blame::Issuer => {
                self.failures.min += 1;
                self.stood_failures = 0;
                self.panics = 0;
            }
            // A refresh that was lost meanwhile ends a row of panics.
            Blame::Panic if mem::take(&mut self.may_be_lost) => self.panics = 1,
            Blame::Panic => self.panics += 1,
            // An answer of IMS, if it is booked, ends a row of panics.
            Blame::Unclear => (self.panics, self.trouble) = (0, now.at),
            Blame::Nobody => self.trouble = now.at,
        }
        let is_certain = blame == Blame::Issuer;
        if is_certain {
            // A suspect token serves again after the first failed attempt to replace it.
            self.is_suspect = false;
        }
        self.only_rejected &= what == "rejection" && is_certain;
        self.asked_since_failure = false;
        // Whoever has no answer yet may wait, also for the replay of a request.
        self.asked_in_vain = self.callers > 0 && self.cached(now).is_none();
        self.failed.push(Failed {
            at: now.at,
            is_certain,
            may_restart: !is_certain || !asked.is_zero() || what == "retry after",
            is_final,
            is_repeated: is_certain && is_repeated,
            is_rejection: what == "rejection",
        });
        let number = self.failures.max;
        self.note(now, what, number);

        let most = |failures: u64| {
            let doublings = failures.saturating_sub(1).min(20) as u32;
            BACKOFF_CAP.min(BACKOFF_BASE * 2_u32.pow(doublings))
        };
        // The least that can have been booked bounds the pause from below, the most from above.
        let (fewest, most) = (most(self.failures.min.max(1)), most(number));
        let asked = asked.min(RETRY_AFTER_CAP);
        // A wrong secret does not become right within seconds.
        let cap = if what == "rejection" { BACKOFF_CAP } else { BACKOFF_CAP_WHILE_ASKED };
        // A panic, or what need not be booked, does not end a pause that IMS is due.
        let before = self.leave_alone.as_ref().map_or(Duration::ZERO, |pause| pause.left(now));
        let (at_least, at_least_while_asked, at_most) = match blame {
            Blame::Issuer => (
                asked.max(fewest / 4),
                asked.max(fewest.min(BACKOFF_CAP_WHILE_ASKED) / 4),
                most.min(cap).max(asked + BACKOFF_BASE) + TICK,
            ),
            Blame::Panic => {
                let doublings = self.panics.saturating_sub(2).min(20);
                let pause = PANIC_PAUSE_CAP.min(PANIC_PAUSE_BASE * 2_u32.pow(doublings)) / 4;
                let pause = if self.panics > 1 { pause } else { Duration::ZERO };
                (pause, pause, before.max(PANIC_PAUSE_CAP + TICK))
            }
            Blame::Unclear => {
                let longest = most.min(cap).max(asked + BACKOFF_BASE) + TICK;
                (Duration::ZERO, Duration::ZERO, longest.max(before))
            }
            Blame::Nobody => (Duration::ZERO, Duration::ZERO, Duration::ZERO),
        };
        // What is nobody's fault ends no pause that IMS is due.
        let holds = |pause: &LeaveAlone| !now.is(pause.at_most, pause.since);
        if blame == Blame::Nobody && self.leave_alone.as_ref().is_some_and(holds) {
            return;
        }
        self.leave_alone = Some(LeaveAlone { since: now, at_least, at_least_while_asked, at_most });
    }
}

fn nonsense(rng: &mut Rng) -> &'static str {
    let bodies = [
        "",
        "<html>please log in</html>",
        "[]",
        r#"{"access_token":"token-0","expires_in":"soon"}"#,
        r#"{"access_token":"token-0","expires_in":-1}"#,
        r#"{"access_token":"token-0","expires_in":0}"#,
        r#"{"access_token":"token-0","expires_in":1e300}"#,
        r#"{"access_token":"token-0"}"#,
        r#"{"access_token":"","expires_in":3600}"#,
        r#"{"access_token":"token-0","expires_in":36"#,
        r#"{"expires_in":3600}"#,
    ];
    rng.choice(bodies).unwrap()
}

impl Simulation {
    /// What IMS does with one request. A caller comes in the middle of it, and one at its end.
    pub(crate) async fn ims(
        self: Arc<Self>,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Full<Bytes>>, BoxError> {
        let mut request = {
            let form = request.into_body().collect().await?.to_bytes();
            let form = form_urlencoded::parse(&form).into_owned();
            let mut secrets = form.filter(|(name, _)| name == "client_secret");
            let secret = secrets.next().map(|(_, secret)| secret).unwrap_or_default();
            let secret = secret.strip_prefix("secret-").and_then(|number| number.parse().ok());
            self.request_begins(secret)
        };
        let (delay, answer) = self.world().answer(request.sent);
        let middle = Turn::MiddleOfRequest.after(request.sent.at, delay / 2);
        let end = Turn::EndOfRequest.after(request.sent.at, delay);
        if middle < end {
            sleep(middle).await;
            self.probe();
        }
        sleep(end.saturating_sub(self.now().at - request.sent.at)).await;
        self.probe();

        let is_failure = !matches!(answer, Answer::Token { .. } | Answer::Never);
        if is_failure && self.has(Adversity::PanickingClock) && self.world().rng.u8(0..8) == 0 {
            // Twice, so that it also panics where the first panic is cleaned up after.
            self.world().wall_panics = 2;
        }
        let response = Response::builder();
        match answer {
            Answer::Token { life } => {
                let body = request.issue(life);
                Ok(response.body(Full::from(body))?)
            }
            Answer::Never => std::future::pending().await,
            Answer::Panic => {
                request.fails("panic");
                // Without the noise of a panic's message.
                resume_unwind(Box::new("a panic in the transport"));
            }
            Answer::Broken => {
                request.failure =
                    Failure { is_cut_off: true, ..Failure::repeated("broken connection") };
                Err("connection reset by peer".into())
            }
            Answer::Status { status, body, retry_after } => {
                let mut response = response.status(status);
                if status < 429 {
                    request.failure = Failure { is_final: true, ..Failure::of("rejection") };
                } else {
                    request.failure = Failure::repeated("status 429 or 5xx");
                }
                if let Some(retry_after) = retry_after {
                    let (header, asked) = retry_after.write(self.now());
                    response = response.header("retry-after", header);
                    request.failure = Failure { asked, ..Failure::of("retry after") };
                }
                Ok(response.body(Full::from(body))?)
            }
            Answer::Nonsense(body) => {
                request.failure = Failure { is_final: true, ..Failure::of("nonsense") };
                Ok(response.body(Full::from(body))?)
            }
        }
    }

    /// Without a secret if the provider returns none.
    pub(crate) fn request_begins(self: &Arc<Self>, secret: Option<u64>) -> TokenRequest {
        let is_on_main = self.is_main(Handle::current().id());
        let now = self.now();
        let mut world = self.world();
        world.requests += 1;
        let number = world.requests;
        world.note(now, if is_on_main { "request" } else { "request on the other runtime" }, 0);
        let reason = world.check_request(now);
        world.started_elsewhere &= is_on_main;
        world.requested_with = secret.or(world.requested_with);
        // A refresh that was in progress when the change was noticed may have read the old
        // credentials: one more follows, so a change may cost two.
        let forgotten = Duration::from_secs(600);
        world.changed.take_if(|changed| {
            reason == Reason::Changed || now.at.saturating_sub(*changed) > forgotten
        });
        world.in_progress.push(InProgress { number, began: now.at, is_on_main });
        let (stood, standstills) = (world.stood, world.standstills);
        drop(world);
        TokenRequest {
            simulation: Arc::clone(self),
            number,
            sent: now,
            secret,
            replaces_refused: matches!(reason, Reason::Refused(_)),
            is_on_main,
            stood,
            standstills,
            limit: REQUEST_TIMEOUT,
            failure: Failure::repeated("timeout"),
            has_failed: true,
        }
    }
}

#[derive(Clone, Copy)]
pub(crate) struct Failure {
    what: &'static str,
    asked: Duration,
    /// Ends the refresh at once.
    is_final: bool,
    /// Followed by another attempt while callers wait.
    is_repeated: bool,
    /// No answer of IMS: time, or the connection, has ended first.
    is_cut_off: bool,
}

impl Failure {
    fn of(what: &'static str) -> Self {
        Self { what, asked: Duration::ZERO, is_final: false, is_repeated: false, is_cut_off: false }
    }

    fn repeated(what: &'static str) -> Self {
        Self { is_repeated: true, ..Self::of(what) }
    }
}

/// Whom a failed attempt is booked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Blame {
    Issuer,
    Panic,
    /// The process or the runtime stood still meanwhile: nothing need be booked.
    Unclear,
    /// The attempt was lost. Callers do not notice.
    Nobody,
}

/// A token request that IMS has not answered yet, until it is dropped.
pub(crate) struct TokenRequest {
    simulation: Arc<Simulation>,
    number: u64,
    sent: Moment,
    secret: Option<u64>,
    replaces_refused: bool,
    is_on_main: bool,
    stood: Duration,
    standstills: u32,
    limit: Duration,
    failure: Failure,
    has_failed: bool,
}

impl TokenRequest {
    /// It fails of a panic or of the provider, not of IMS.
    pub(crate) fn fails(mut self, what: &'static str) {
        self.failure = Failure { is_repeated: what == "provider fails", ..Failure::of(what) };
    }

    /// The provider has the whole attempt, not only the request to IMS.
    pub(crate) fn hangs_longer(mut self) -> Self {
        self.limit = ATTEMPT_TIMEOUT;
        self.failure = Failure::repeated("provider hangs");
        self
    }

    /// Issues the next token, in one of the forms that its life can be written in.
    fn issue(&mut self, life: u64) -> String {
        let now = self.simulation.now();
        let mut world = self.simulation.world();
        let issued = Issued {
            sent: self.sent,
            landed: now,
            life: Duration::from_secs(life),
            invalidated: false,
            // Not if the refused token was invalidated, or may have served again, meanwhile.
            replaces_refused: self.replaces_refused
                && world.is_suspect
                && world.failures.max == 0
                && world.in_progress.iter().all(|request| request.is_on_main)
                && world.newest().is_some_and(|newest| !newest.invalidated),
            secret: self.secret.unwrap_or_default(),
        };
        // A token that has ended before it came replaces nothing.
        if issued.is_retired(now) {
            self.failure = Failure { is_cut_off: true, ..Failure::repeated("dead on arrival") };
            return format!(r#"{{"access_token":"token-0","expires_in":{life}}}"#);
        }
        self.has_failed = false;
        let is_newer = world.newest().is_none_or(|newest| self.sent.at >= newest.sent.at);
        world.issued.push(issued);
        let number = world.issued.len() as u64;
        world.note(now, if is_newer { "token" } else { "token of an older request" }, number);
        if is_newer {
            world.newest = Some(number as usize - 1);
            world.failures = Failures::default();
            world.panics = 0;
            world.stood_failures = 0;
            world.leave_alone = None;
            world.only_rejected = true;
            world.is_suspect = false;
            world.refused_by.clear();
        }
        let expires_in = match world.rng.u8(0..4) {
            0 => format!("\"{life}\""),
            1 => format!("{life}.0"),
            // More than a month of seconds can only be milliseconds.
            2 if life * 1_000 > 31 * DAY => format!("{life}000"),
            _ => life.to_string(),
        };
        format!(
            r#"{{"access_token":"token-{number}","token_type":"bearer","expires_in":{expires_in}}}"#
        )
    }

    fn is_unanswered(&self) -> bool {
        ["timeout", "provider hangs"].contains(&self.failure.what)
    }

    fn blame(&mut self, now: Moment, world: &mut World) -> Blame {
        let ran = (now.at - self.sent.at).saturating_sub(world.stood - self.stood);
        let is_cut_short = self.is_unanswered() && ran + TICK < self.limit;
        if self.failure.what.ends_with("panic") || self.failure.what.ends_with("panics") {
            return Blame::Panic;
        }
        if !self.is_on_main {
            if self.is_unanswered() {
                self.failure.what = "lost on the other runtime";
                return Blame::Nobody;
            }
            return Blame::Unclear;
        }
        if is_cut_short && thread::panicking() {
            self.failure.what = "cut short by a panic";
            return Blame::Nobody;
        }
        if world.standstills > self.standstills {
            world.stood_failures += 1;
            // It is repeated once, before callers notice. What IMS answered may count.
            let is_repeated = self.is_unanswered() || self.failure.is_cut_off;
            let is_first = world.stood_failures == 1;
            // A shorter one may pass between two timers.
            let times = world.standstills - self.standstills;
            let is_noticed = world.stood - self.stood > (MAX_SLICE + MIN_STANDSTILL) * times;
            let is_excused = is_repeated && is_first && is_noticed;
            return if is_excused { Blame::Nobody } else { Blame::Unclear };
        }
        if is_cut_short && now.at < world.foreign_panics_until {
            self.failure.what = "cut short by a panic";
            return Blame::Nobody;
        }
        let what = self.failure.what;
        world.check(!is_cut_short, || format!("{what} after {ran:?}"));
        // A token that came meanwhile ends the refresh, and the failure is forgotten.
        if world.newest().is_some_and(|newest| newest.landed.at >= self.sent.at) {
            return Blame::Unclear;
        }
        // The failure may then be taken for a panic.
        if world.wall_panics > 0 { Blame::Unclear } else { Blame::Issuer }
    }
}

impl Drop for TokenRequest {
    fn drop(&mut self) {
        let simulation = Arc::clone(&self.simulation);
        let now = simulation.now();
        let mut world = simulation.world();
        world.in_progress.retain(|request| request.number != self.number);
        // Others may have come meanwhile: the source compares with those of the request that ended.
        world.requested_with = self.secret.or(world.requested_with);
        if !self.has_failed || world.is_closed {
            return;
        }
        let blame = self.blame(now, &mut world);
        // Nothing need be booked for a refresh on the other runtime: it may have been given up.
        let is_unsure = blame == Blame::Panic && !self.is_on_main;
        world.may_be_lost |= is_unsure;
        world.fail(now, self.failure, blame);
        if is_unsure {
            world.panics = 0;
        }
    }
}
