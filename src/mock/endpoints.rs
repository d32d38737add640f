//! The endpoints of IMS.

use std::future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL};
use http::{HeaderValue, Method, Request, StatusCode, request};
use http_body::Body;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use serde_json::{Value, json};

use super::answer::{Answer, Kind};
use super::grant::{Endpoint, Refusal, judge, required};
use super::reply::{self, Cut, Reply};
use super::state::{Shared, State, now_in_millis};
use super::token_request::TokenRequest;

/// The longest request body that IMS reads.
const MAX_BODY: usize = 64 * 1024;

/// Answers one request to IMS.
pub(super) async fn answer<B>(shared: &Shared, request: Request<B>) -> Result<Reply, Cut>
where
    B: Body<Data: Send>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let received_at = Instant::now();
    let (head, body) = request.into_parts();
    let endpoint = match head.uri.path() {
        "/ims/token/v2" | "/ims/token/v3" | "/ims/token/v4" => Some(Endpoint::Ims),
        "/token" => Some(Endpoint::PdfServices),
        "/ims/validate_token/v1" | "/ims/revoke" => None,
        _ => return Ok(reply::empty(StatusCode::NOT_FOUND)),
    };
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Refusal::TooLarge),
        Err(_) => return Err(Cut),
    };
    match endpoint {
        Some(endpoint) => token(shared, endpoint, head, body, received_at).await,
        None => Ok(body
            .and_then(|body| check_or_revoke(shared, head, &body, received_at))
            .unwrap_or_else(|refusal| refused(&refusal))),
    }
}

/// The token endpoint. The request is judged, counted, and its token made on arrival; then the
/// answer is held back: by the gates that were closed then, and for as long as it was told to be.
async fn token(
    shared: &Shared,
    endpoint: Endpoint,
    head: request::Parts,
    body: Result<Bytes, Refusal>,
    received_at: Instant,
) -> Result<Reply, Cut> {
    let request = TokenRequest::new(head, body.as_deref().unwrap_or_default(), received_at);
    let (outcome, delay, held) = {
        let mut state = shared.lock();
        let answer = state.script.next();
        let delay = answer.delay;
        let judged = body.map(|_| ()).and_then(|()| post_only(&request));
        let outcome = carry_out(&mut state, answer, |state| {
            judged.and_then(|()| issue(state, endpoint, &request))
        });
        state.record(request);
        (outcome, delay, state.gates.passage())
    };
    shared.announce_arrival();
    held.open().await;
    if delay > Duration::ZERO {
        tokio::time::sleep(delay).await;
    }
    match outcome {
        Outcome::Reply(reply) => Ok(reply),
        Outcome::Hang => future::pending().await,
        Outcome::Disconnect => Err(Cut),
    }
}

enum Outcome {
    Reply(Reply),
    Hang,
    Disconnect,
}

/// Does as the script says, and counts what comes of it.
fn carry_out(
    state: &mut State,
    answer: Answer,
    issue: impl FnOnce(&mut State) -> Result<Value, Refusal>,
) -> Outcome {
    let mut reply = match answer.kind {
        Kind::Normal => {
            issue(state).map_or_else(|refusal| refused(&refusal), |body| granted(&body))
        }
        Kind::Error { status, error, description } => {
            reply::oauth_error(status, &error, &description)
        }
        Kind::Raw { status, body, debug_id: false } => reply::with_body(status, body),
        Kind::Raw { status, body, debug_id: true } => {
            reply::with_debug_id(reply::with_body(status, body))
        }
        Kind::Hang => return Outcome::Hang,
        Kind::Disconnect => {
            state.counts.refused += 1;
            return Outcome::Disconnect;
        }
    };
    if reply.status().is_client_error() || reply.status().is_server_error() {
        state.counts.refused += 1;
    }
    for (name, value) in answer.headers {
        reply.headers_mut().insert(name, value);
    }
    Outcome::Reply(reply)
}

/// Issues a token if the request deserves one, and makes the answer's body.
fn issue(state: &mut State, endpoint: Endpoint, request: &TokenRequest) -> Result<Value, Refusal> {
    let scopes = state.scopes.as_deref();
    let (parameters, now) = (request.parameters(), now_in_millis());
    let grant = judge(endpoint, &parameters, &state.clients, scopes)?;
    state.clients.used(&grant.client_id, required(&parameters, "client_secret")?, now);
    let token = state.tokens.issue(&grant, state.lifetime, now);
    state.counts.issued += 1;
    let seconds = whole_seconds(state.lifetime);
    Ok(match endpoint {
        Endpoint::Ims => {
            json!({ "access_token": &*token, "token_type": "bearer", "expires_in": seconds })
        }
        Endpoint::PdfServices => json!({
            "access_token": &*token, "token_type": "Bearer", "expires_in": seconds.to_string(),
        }),
    })
}

/// `validate_token` and `revoke`.
fn check_or_revoke(
    shared: &Shared,
    head: request::Parts,
    body: &[u8],
    received_at: Instant,
) -> Result<Reply, Refusal> {
    let request = TokenRequest::new(head, body, received_at);
    post_only(&request)?;
    let parameters = request.parameters();
    let token = required(&parameters, "token")?;
    if request.path() == "/ims/revoke" {
        shared.lock().tokens.revoke(token);
        return Ok(reply::empty(StatusCode::OK));
    }
    let client_id = required(&parameters, "client_id")?;
    let valid = required(&parameters, "type")? == "access_token"
        && shared.lock().tokens.owner(token, now_in_millis()) == Some(client_id);
    Ok(reply::json(StatusCode::OK, &json!({ "valid": valid })))
}

fn post_only(request: &TokenRequest) -> Result<(), Refusal> {
    if request.method() == Method::POST { Ok(()) } else { Err(Refusal::NotPost) }
}

fn granted(body: &Value) -> Reply {
    let mut reply = reply::json(StatusCode::OK, body);
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

fn refused(refusal: &Refusal) -> Reply {
    let mut reply = reply::oauth_error(refusal.status(), refusal.error(), &refusal.description());
    if *refusal == Refusal::NotPost {
        reply.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    }
    reply
}

/// Whole seconds, rounded up: the answer never says less than the claims.
fn whole_seconds(lifetime: Duration) -> u64 {
    lifetime.as_secs().saturating_add(u64::from(lifetime.subsec_nanos() > 0))
}
