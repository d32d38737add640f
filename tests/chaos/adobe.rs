//! [`Adobe`]: the IMS and the API of this test, which know the order of all tokens and what each
//! process sent.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, Sender, channel},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    TOKEN_LIFETIME,
    journal::Journal,
    wire::{self, Reply, Request},
    worker::unix_micros,
};

/// How much later than its expiry a token may arrive at the API of a busy machine.
const LATE: Duration = Duration::from_secs(5);

/// How long IMS holds back the answer to a request whose process is about to be killed or stopped.
const HELD: Duration = Duration::from_millis(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tenant {
    A,
    B,
}

impl Tenant {
    pub(crate) const ALL: [Self; 2] = [Self::A, Self::B];

    pub(crate) fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }

    pub(crate) fn client_id(self) -> String {
        format!("client-{self:?}")
    }
}

/// How IMS treats token requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Manner {
    Normal,
    Slow(Duration),
    /// 429 with this `Retry-After` in seconds.
    Throttle(u64),
    Unavailable,
    Hang,
    RefuseConnections,
    RejectSecrets,
}

struct Token {
    tenant: Tenant,
    /// Microseconds since 1970, by the process that requested the token.
    sent: u64,
    arrived: u64,
    is_revoked: bool,
}

impl Token {
    fn expires(&self) -> u64 {
        self.arrived + u64::try_from(TOKEN_LIFETIME.as_micros()).unwrap()
    }
}

/// The seat of a worker: the tenant that its credentials file names, whichever process sits there.
struct Seat {
    tenant: Tenant,
    /// The tenant before, until the first token of the new one is sent.
    previous: Option<Tenant>,
    last_sent: Option<(Instant, String)>,
    /// Until then nothing is concluded from the time that things take.
    disturbed_until: Option<Instant>,
}

struct State {
    manner: Manner,
    secrets: HashMap<Tenant, Vec<String>>,
    tokens: Vec<Token>,
    issued: HashMap<Tenant, u32>,
    /// Token requests that got no token, refused connections among them.
    failed: u32,
    unauthorized: u32,
    seats: Vec<Seat>,
    /// By process and place of observation: the latest token of each tenant, as its index.
    had: HashMap<(String, &'static str, Tenant), usize>,
    traps: Vec<(Tenant, Sender<usize>)>,
}

pub(crate) struct Adobe {
    journal: Arc<Journal>,
    state: Mutex<State>,
}

/// The number of the seat in the id of a process, `<seat>.<process>`.
fn seat_of(id: &str) -> usize {
    id.split('.').next().unwrap().parse().unwrap()
}

impl Adobe {
    pub(crate) fn new(journal: Arc<Journal>, seats: &[Tenant]) -> Arc<Self> {
        let seat =
            |&tenant| Seat { tenant, previous: None, last_sent: None, disturbed_until: None };
        let secrets = Tenant::ALL.map(|tenant| (tenant, vec![format!("secret-0-{tenant:?}")]));
        let state = State {
            manner: Manner::Normal,
            secrets: secrets.into(),
            tokens: Vec::new(),
            issued: HashMap::new(),
            failed: 0,
            unauthorized: 0,
            seats: seats.iter().map(seat).collect(),
            had: HashMap::new(),
            traps: Vec::new(),
        };
        Arc::new(Self { journal, state: Mutex::new(state) })
    }

    /// Starts IMS and the API. Returns their URLs.
    pub(crate) fn serve(self: &Arc<Self>) -> (String, String) {
        let (doorman, ims, api) = (self.clone(), self.clone(), self.clone());
        let accepts = move || {
            let mut state = doorman.state.lock().unwrap();
            let is_refused = state.manner == Manner::RefuseConnections;
            state.failed += u32::from(is_refused);
            !is_refused
        };
        (
            wire::serve(accepts, move |request| ims.issue(request)),
            wire::serve(|| true, move |request| api.judge(request)),
        )
    }

    pub(crate) fn set_manner(&self, manner: Manner) {
        self.state.lock().unwrap().manner = manner;
    }

    /// Accepts these secrets of a tenant, and no others.
    pub(crate) fn set_secrets(&self, tenant: Tenant, secrets: &[&str]) {
        let secrets = secrets.iter().map(|&secret| secret.to_owned()).collect();
        self.state.lock().unwrap().secrets.insert(tenant, secrets);
    }

    /// The newest secret of a tenant.
    pub(crate) fn secret(&self, tenant: Tenant) -> String {
        self.state.lock().unwrap().secrets[&tenant].last().unwrap().clone()
    }

    /// Revokes all tokens of a tenant.
    pub(crate) fn revoke(&self, tenant: Tenant) {
        let mut state = self.state.lock().unwrap();
        let tokens = state.tokens.iter_mut().filter(|token| token.tenant == tenant);
        tokens.for_each(|token| token.is_revoked = true);
    }

    /// Holds the next token request of the tenant for a moment, and tells the seat of its process.
    pub(crate) fn trap(&self, tenant: Tenant) -> Receiver<usize> {
        let (sender, receiver) = channel();
        self.state.lock().unwrap().traps.push((tenant, sender));
        receiver
    }

    pub(crate) fn tenant(&self, seat: usize) -> Tenant {
        self.state.lock().unwrap().seats[seat].tenant
    }

    /// Records that the credentials file of a seat is about to name this tenant. Returns `false` if the
    /// process there has not yet followed the last such change.
    pub(crate) fn expect_switch(&self, seat: usize, tenant: Tenant) -> bool {
        let mut state = self.state.lock().unwrap();
        let seat = &mut state.seats[seat];
        if seat.previous.is_some() {
            return false;
        }
        seat.previous = Some(std::mem::replace(&mut seat.tenant, tenant));
        true
    }

    /// Concludes nothing from the time that the process of a seat takes, until this moment.
    pub(crate) fn disturb(&self, seat: usize, until: Instant) {
        self.state.lock().unwrap().seats[seat].disturbed_until = Some(until);
    }

    pub(crate) fn is_disturbed(&self, seat: usize) -> bool {
        self.state.lock().unwrap().seats[seat].is_disturbed()
    }

    /// How many tokens were issued to the tenant.
    pub(crate) fn issued(&self, tenant: Tenant) -> u32 {
        self.state.lock().unwrap().issued.get(&tenant).copied().unwrap_or_default()
    }

    /// How many token requests got no token.
    pub(crate) fn failed(&self) -> u32 {
        self.state.lock().unwrap().failed
    }

    pub(crate) fn unauthorized(&self) -> u32 {
        self.state.lock().unwrap().unauthorized
    }

    /// The last token that each seat of the tenant sent within the last two seconds.
    pub(crate) fn last_sent(&self, tenant: Tenant) -> Vec<Option<String>> {
        let state = self.state.lock().unwrap();
        let seats = state.seats.iter().filter(|seat| seat.tenant == tenant);
        let sent = seats.map(|seat| {
            let (at, token) = seat.last_sent.as_ref()?;
            (at.elapsed() < Duration::from_secs(2)).then(|| token.clone())
        });
        sent.collect()
    }

    /// Checks the order of a token that a process has or sends.
    pub(crate) fn check_order(&self, id: &str, place: &'static str, token: &str) {
        self.state.lock().unwrap().check_order(&self.journal, id, place, token);
    }

    fn issue(&self, request: &Request) -> Reply {
        let arrived = unix_micros();
        let form: HashMap<_, _> = form_urlencoded::parse(request.body.as_bytes()).collect();
        let field = |name| form.get(name).map_or("", |value| &**value);
        let tenant = Tenant::ALL.into_iter().find(|it| it.client_id() == field("client_id"));
        let Some(tenant) = tenant else {
            self.journal.violation(format!("token request of an unknown client: {form:?}"));
            return Reply::Close;
        };
        let id = request.header("x-worker");
        let (manner, trap) = {
            let mut state = self.state.lock().unwrap();
            // Until a token is issued below.
            state.failed += 1;
            let at = state.traps.iter().position(|(trapped, _)| *trapped == tenant);
            (state.manner, at.map(|at| state.traps.swap_remove(at).1))
        };
        self.journal.note(format!("token request of {id} for {tenant:?}, IMS: {manner:?}"));
        if trap.is_some_and(|trap| trap.send(seat_of(id)).is_ok()) {
            thread::sleep(HELD);
        }
        match manner {
            Manner::Normal => {}
            Manner::Slow(delay) => thread::sleep(delay),
            Manner::Throttle(seconds) => {
                return Reply::Answer {
                    status: 429,
                    headers: vec![("retry-after", seconds.to_string())],
                    body: String::new(),
                };
            }
            Manner::Unavailable => return Reply::json(503, ""),
            Manner::Hang => return Reply::Hang,
            Manner::RefuseConnections => return Reply::Close,
            Manner::RejectSecrets => return rejection(),
        }
        let mut state = self.state.lock().unwrap();
        if !state.secrets[&tenant].iter().any(|secret| secret == field("client_secret")) {
            drop(state);
            self.journal.note(format!("{id} has an old secret of {tenant:?}"));
            return rejection();
        }
        let sent = request.header("x-sent-at").parse().unwrap();
        state.failed -= 1;
        *state.issued.entry(tenant).or_default() += 1;
        state.tokens.push(Token { tenant, sent, arrived, is_revoked: false });
        let token = format!("token-{tenant:?}-{}", state.tokens.len());
        drop(state);
        self.journal.note(format!("{token} issued to {id}"));
        let lifetime = TOKEN_LIFETIME.as_secs();
        Reply::json(
            200,
            format!(
                r#"{{"access_token":"{token}","token_type":"bearer","expires_in":{lifetime}}}"#
            ),
        )
    }

    fn judge(&self, request: &Request) -> Reply {
        let now = unix_micros();
        let (id, token) = (request.header("x-worker"), request.header("authorization"));
        let token = token.strip_prefix("Bearer ").unwrap_or_default();
        let mut state = self.state.lock().unwrap();
        let Some((at, tenant)) = state.find(token) else {
            self.journal.violation(format!("{id} sent {token:?}, which was never issued"));
            return Reply::json(403, "");
        };
        state.check_order(&self.journal, id, "sent", token);
        let seat = &mut state.seats[seat_of(id)];
        let is_disturbed = seat.is_disturbed();
        if seat.tenant == tenant {
            seat.previous = None;
        } else if seat.previous != Some(tenant) {
            self.journal.violation(format!("{id} of {:?} sent {token}", seat.tenant));
        }
        seat.last_sent = Some((Instant::now(), token.to_owned()));
        let key = request.header("x-api-key");
        if key != tenant.client_id() {
            self.journal.violation(format!("{id} sent {token} with the API key {key}"));
        }
        let issued = &state.tokens[at];
        let late = now.saturating_sub(issued.expires());
        if Duration::from_micros(late) > LATE && !is_disturbed {
            self.journal.violation(format!("{id} sent {token} {late} µs after its expiry"));
        }
        if issued.is_revoked || late > 0 {
            state.unauthorized += 1;
            return Reply::json(401, r#"{"error_code":"401013"}"#);
        }
        Reply::json(200, "{}")
    }
}

fn rejection() -> Reply {
    Reply::json(400, r#"{"error":"invalid_client","error_description":"invalid client_secret"}"#)
}

impl Seat {
    fn is_disturbed(&self) -> bool {
        self.disturbed_until.is_some_and(|until| Instant::now() < until)
    }
}

impl State {
    /// The index of a token, and its tenant.
    fn find(&self, token: &str) -> Option<(usize, Tenant)> {
        let (tenant, number) = token.strip_prefix("token-")?.split_once('-')?;
        let tenant = Tenant::ALL.into_iter().find(|it| format!("{it:?}") == tenant)?;
        let at = number.parse::<usize>().ok()?.checked_sub(1)?;
        (self.tokens.get(at)?.tenant == tenant).then_some((at, tenant))
    }

    /// A token was requested before another one if its request had arrived at IMS before the other one's
    /// was sent. Nothing is concluded about requests that overlap.
    fn check_order(&mut self, journal: &Journal, id: &str, place: &'static str, token: &str) {
        let Some((at, tenant)) = self.find(token) else { return };
        let latest = self.had.entry((id.to_owned(), place, tenant)).or_insert(at);
        let (before, now) = (&self.tokens[*latest], &self.tokens[at]);
        if now.arrived < before.sent {
            let by = Duration::from_micros(before.sent - now.arrived);
            journal.violation(format!(
                "{id} went back ({place}): from token {} to {token}, requested {by:?} before",
                *latest + 1
            ));
            // Reported once.
            *latest = at;
        } else if now.sent >= before.sent {
            *latest = at;
        }
    }
}
