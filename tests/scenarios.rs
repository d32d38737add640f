//! The rules as data: each file in `tests/scenarios` says in one sentence what holds, and shows it
//! step by step. Every call goes through the layer; time is virtual.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::Debug,
    fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, UNIX_EPOCH},
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Request, Response, header::AUTHORIZATION};
use http_body_util::Full;
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::Value;
use tokio::{
    runtime::Builder,
    task::yield_now,
    time::{Instant, sleep, timeout},
};
use tower::{Layer, ServiceExt, service_fn};
use tower_adobe_auth::{
    AccessToken, AdobeAuthLayer, BoxError, Credentials, MinLifetime, TokenError, TokenSource,
};

const AT_LEAST: usize = 37;

/// A time such as `23h 59m 55s`.
#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
struct Time(Duration);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        let text = String::deserialize(json)?;
        let part = |part: &str| {
            let unit = part.trim_start_matches(|sign: char| sign.is_ascii_digit());
            let number: u64 = part[..part.len() - unit.len()].parse().ok()?;
            let units =
                [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];
            let (_, millis) = units.into_iter().find(|(name, _)| *name == unit)?;
            Some(Duration::from_millis(number * millis))
        };
        let sum: Option<Duration> = text.split(' ').map(part).sum();
        sum.map(Self).ok_or_else(|| D::Error::custom(format!("not a time: `{text}`")))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Scenario {
    #[serde(rename = "rule")]
    _rule: String,
    #[serde(default)]
    given: Given,
    steps: Vec<Value>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Given {
    /// How long tokens live. Default: 24h.
    tokens_live: Option<Time>,
    /// How long IMS takes to answer. Default: no time.
    ims_takes: Option<Time>,
    acquire_timeout: Option<Time>,
    /// Default: the source keeps its token warm without calls.
    #[serde(default)]
    refresh_on_demand: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "snake_case")]
enum Step {
    /// Time passes on both clocks.
    Advance(Time),
    /// Time passes on the wall clock alone.
    SleepMachine(Time),
    SetClockAhead(Time),
    SetClockBack(Time),
    TokensLive(Time),
    ImsTakes(Time),
    /// How IMS answers from now on: see [`Ims::answer`].
    Ims(String),
    /// How IMS answers the next requests, one each.
    ImsNext(Vec<String>),
    Call(Call),
    Refresh {
        expect: Expect,
    },
    /// Invalidates the token of this number.
    Invalidate(u64),
    /// How many requests IMS has had so far.
    ExpectRequests(usize),
    ExpectRequestsAtMost(usize),
    ExpectStatus {
        ready: bool,
        failing: bool,
    },
}

/// Callers who send a request through the layer, at the same time.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Call {
    callers: Option<usize>,
    min_lifetime: Option<Time>,
    cancelled_after: Option<Time>,
    expect: Expect,
}

/// What becomes of a call: a token, an error, or neither if it is cancelled.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    token: Option<u64>,
    error: Option<String>,
    waited: Option<Time>,
    waited_at_least: Option<Time>,
    waited_at_most: Option<Time>,
}

impl Expect {
    fn check(&self, token: Option<u64>, error: Option<&str>, waited: Duration) {
        let waited = Time(waited);
        same("the token", &token, &self.token);
        same("the error", &error, &self.error.as_deref());
        same("the wait", &waited, &self.waited.unwrap_or(waited));
        let (least, most) = (self.waited_at_least, self.waited_at_most);
        assert!(waited >= least.unwrap_or(waited), "waited only {waited:?}");
        assert!(waited <= most.unwrap_or(waited), "waited {waited:?}");
    }
}

fn same<T: PartialEq + Debug>(what: &str, is: &T, expected: &T) {
    assert!(is == expected, "{what} is {is:?}, not {expected:?}");
}

/// IMS, which answers `token-1`, `token-2`, …
struct Ims {
    mood: String,
    next: VecDeque<String>,
    takes: Duration,
    life: Duration,
    requests: usize,
    tokens: u64,
}

impl Ims {
    async fn answer(ims: Arc<Mutex<Self>>) -> Result<Response<Full<Bytes>>, BoxError> {
        let (mood, takes) = {
            let mut ims = ims.lock().unwrap();
            ims.requests += 1;
            (ims.next.pop_front().unwrap_or_else(|| ims.mood.clone()), ims.takes)
        };
        if !takes.is_zero() {
            sleep(takes).await;
        }

        let response = Response::builder();
        let (response, body) = match mood.split_once(' ').unwrap_or((&mood, "")) {
            ("up", "") => {
                let mut ims = ims.lock().unwrap();
                ims.tokens += 1;
                let (token, life) = (ims.tokens, ims.life.as_secs());
                let body = format!(r#"{{"access_token":"token-{token}","expires_in":{life}}}"#);
                (response, body)
            }
            ("down", "") => (response.status(503), String::new()),
            ("unreachable", "") => return Err("connection refused".into()),
            ("refuses", "") => (response.status(400), r#"{"error":"invalid_client"}"#.into()),
            ("nonsense", "") => (response, "<html>please log in</html>".into()),
            ("throttles", secs) => {
                (response.status(429).header("retry-after", secs), String::new())
            }
            ("hangs", "") => std::future::pending().await,
            // Without the noise of a panic's message.
            ("panics", "") => resume_unwind(Box::new("the transport panics")),
            _ => panic!("no such answer of IMS: `{mood}`"),
        };
        Ok(response.body(Full::from(body))?)
    }
}

struct World {
    ims: Arc<Mutex<Ims>>,
    /// How many milliseconds the wall clock is ahead.
    skew: Arc<AtomicI64>,
    tokens: TokenSource,
    seen: BTreeMap<u64, AccessToken>,
}

impl World {
    fn new(given: &Given) -> Self {
        let or = |time: Option<Time>, default| time.map_or(default, |Time(time)| time);
        let ims = Arc::new(Mutex::new(Ims {
            mood: "up".into(),
            next: VecDeque::new(),
            takes: or(given.ims_takes, Duration::ZERO),
            life: or(given.tokens_live, Duration::from_secs(86_400)),
            requests: 0,
            tokens: 0,
        }));
        let skew = Arc::new(AtomicI64::new(20_000 * 86_400_000));
        let start = Instant::now();
        let server = Arc::clone(&ims);
        let transport = service_fn(move |_: Request<Full<Bytes>>| Ims::answer(Arc::clone(&server)));
        let wall = Arc::clone(&skew);
        let mut builder = TokenSource::builder(Credentials::new("client-id", "client-secret"))
            .map_ims(|ims| ims.transport(transport))
            .acquire_timeout(or(given.acquire_timeout, Duration::from_secs(30)))
            .wall_clock(move || {
                let skew = wall.load(Ordering::Relaxed).unsigned_abs();
                UNIX_EPOCH + Duration::from_millis(skew) + start.elapsed()
            });
        if given.refresh_on_demand {
            builder = builder.refresh_on_demand();
        }
        Self { ims, skew, tokens: builder.build().unwrap(), seen: BTreeMap::new() }
    }

    async fn step(&mut self, step: Step) {
        match step {
            Step::Advance(Time(time)) => sleep(time).await,
            Step::SleepMachine(Time(time)) | Step::SetClockAhead(Time(time)) => {
                self.skew.fetch_add(time.as_millis() as i64, Ordering::Relaxed);
            }
            Step::SetClockBack(Time(time)) => {
                self.skew.fetch_sub(time.as_millis() as i64, Ordering::Relaxed);
            }
            Step::TokensLive(Time(life)) => self.ims.lock().unwrap().life = life,
            Step::ImsTakes(Time(time)) => self.ims.lock().unwrap().takes = time,
            Step::Ims(mood) => self.ims.lock().unwrap().mood = mood,
            Step::ImsNext(moods) => self.ims.lock().unwrap().next.extend(moods),
            Step::Call(call) => self.call(&call).await,
            Step::Refresh { expect } => {
                let start = Instant::now();
                let answer = self.tokens.refresh().await;
                let error = answer.as_ref().err().map(|error| format!("{:?}", error.kind()));
                let token = answer.ok().map(|token| number(token.expose_secret()));
                expect.check(token, error.as_deref(), start.elapsed());
            }
            Step::Invalidate(number) => self.tokens.invalidate(&self.seen[&number]),
            Step::ExpectRequests(expected) => {
                same("the number of requests", &self.ims.lock().unwrap().requests, &expected);
            }
            Step::ExpectRequestsAtMost(most) => {
                let requests = self.ims.lock().unwrap().requests;
                assert!(requests <= most, "there were {requests} requests");
            }
            Step::ExpectStatus { ready, failing } => {
                let status = self.tokens.status();
                same("ready", &status.is_ready(), &ready);
                same("failing", &status.failing_since().is_some(), &failing);
            }
        }
        // What was started in this instant goes as far as it can.
        for _ in 0..16 {
            yield_now().await;
        }
        if let Some(token) = self.tokens.status().is_ready().then(|| self.tokens.try_token()) {
            let token = token.unwrap();
            self.seen.insert(number(token.expose_secret()), token);
        }
    }

    async fn call(&self, call: &Call) {
        let api = service_fn(|request: Request<()>| async move {
            let value = request.headers()[AUTHORIZATION].to_str()?.replace("Bearer ", "");
            Ok::<_, BoxError>(Response::new(number(&value)))
        });
        let client = AdobeAuthLayer::new(self.tokens.clone()).layer(api);
        let start = Instant::now();
        let send = async || {
            let mut request = Request::get("https://firefly-api.adobe.io/").body(()).unwrap();
            if let Some(Time(least)) = call.min_lifetime {
                request.extensions_mut().insert(MinLifetime(least));
            }
            let patience = call.cancelled_after.map_or(Duration::MAX, |Time(time)| time);
            let answer = timeout(patience, client.clone().oneshot(request)).await.ok().transpose();
            let kind = |error: &BoxError| {
                format!("{:?}", error.downcast_ref::<TokenError>().unwrap().kind())
            };
            let error = answer.as_ref().err().map(kind);
            let token = answer.ok().flatten().map(Response::into_body);
            call.expect.check(token, error.as_deref(), start.elapsed());
        };
        join_all((0..call.callers.unwrap_or(1)).map(|_| send())).await;
    }
}

fn number(token: &str) -> u64 {
    token.strip_prefix("token-").unwrap().parse().unwrap()
}

/// Runs the scenario; a step that does not hold panics, after it was named in `at`.
async fn run(text: &str, at: &Mutex<String>) {
    // The source draws its jitter here.
    fastrand::seed(1);
    let scenario: Scenario = serde_json::from_str(text).unwrap();
    let mut world = World::new(&scenario.given);
    for (index, step) in scenario.steps.into_iter().enumerate() {
        *at.lock().unwrap() = format!("step {}, {step}", index + 1);
        let step = serde_json::from_value(step).unwrap();
        world.step(step).await;
    }
}

#[test]
fn every_rule_holds_step_by_step() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<_> =
        fs::read_dir(folder).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();

    let mut broken = Vec::new();
    for file in &files {
        let at = Mutex::new("before the first step".to_owned());
        let text = fs::read_to_string(file).unwrap();
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build();
        let run = AssertUnwindSafe(|| runtime.unwrap().block_on(run(&text, &at)));
        if catch_unwind(run).is_err() {
            broken.push(format!("{}: {}", file.display(), at.lock().unwrap()));
        }
    }

    assert!(broken.is_empty(), "these do not hold (why stands above):\n{}", broken.join("\n"));
    assert!(files.len() >= AT_LEAST, "there are only {} scenarios", files.len());
}
