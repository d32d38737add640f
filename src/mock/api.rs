//! The guarded API beside IMS.

use http::header::AUTHORIZATION;
use http::{HeaderMap, Request, StatusCode, request};
use http_body::Body;
use http_body_util::BodyExt as _;
use serde_json::json;

use super::reply::{self, Cut, Reply};
use super::secrets;
use super::state::{Shared, now_in_millis};
use super::tokens::Tokens;

/// Answers one request to the API.
pub(super) async fn answer<B>(shared: &Shared, request: Request<B>) -> Result<Reply, Cut>
where
    B: Body + Unpin,
{
    let (head, mut body) = request.into_parts();
    // The body is read to its end, as an API does, and not kept.
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Cut)?;
        length += frame.data_ref().map_or(0, bytes::Buf::remaining);
    }
    if head.uri.path().starts_with("/storage/") {
        return Ok(storage(&head.headers));
    }

    let now = now_in_millis();
    let secrets = secrets::route(head.uri.path());
    let scopes = secrets.as_ref().map_or(&[][..], |_| &secrets::SCOPES);
    let mut state = shared.lock();
    let verdict = match state.api_script.next() {
        Some(status) => Verdict::Told(status),
        None => judge(&head.headers, &state.tokens, scopes, state.check_api_key, now),
    };
    let status = verdict.status();
    state.record_api(status, || in_words(&head, &verdict));
    match secrets {
        Some(route) if verdict == Verdict::Welcome => {
            return Ok(secrets::answer(&mut state.clients, &head.method, &route, now));
        }
        _ => drop(state),
    }

    if status.is_success() {
        return Ok(echo(status, &head, length));
    }
    let (code, message) = verdict.code_and_message();
    Ok(reply::json(status, &json!({ "error_code": code, "message": message })))
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Welcome,
    TokenMissing,
    TokenInvalid,
    ApiKeyMissing,
    ApiKeyWrong,
    ScopeMissing,
    // Not judged: the answer that was asked for.
    Told(StatusCode),
}

impl Verdict {
    fn status(&self) -> StatusCode {
        match self {
            Self::Welcome => StatusCode::OK,
            Self::TokenInvalid => StatusCode::UNAUTHORIZED,
            Self::TokenMissing | Self::ApiKeyMissing | Self::ApiKeyWrong | Self::ScopeMissing => {
                StatusCode::FORBIDDEN
            }
            Self::Told(status) => *status,
        }
    }

    fn code_and_message(&self) -> (String, &'static str) {
        let (code, message) = match self {
            Self::TokenInvalid | Self::Told(StatusCode::UNAUTHORIZED) => {
                ("401013", "Oauth token is not valid")
            }
            Self::TokenMissing => ("403010", "Oauth token is missing"),
            Self::ApiKeyMissing => ("403000", "Api Key is required"),
            Self::ApiKeyWrong => ("403003", "Api Key is invalid"),
            Self::ScopeMissing => ("403011", "Oauth token lacks a scope"),
            Self::Told(StatusCode::TOO_MANY_REQUESTS) => ("429001", "Too many requests"),
            Self::Told(StatusCode::SERVICE_UNAVAILABLE) => {
                ("503010", "Oauth token could not be validated")
            }
            Self::Welcome | Self::Told(_) => {
                let status = self.status();
                let message = status.canonical_reason().unwrap_or("As told");
                return (format!("{}000", status.as_u16()), message);
            }
        };
        (code.to_owned(), message)
    }
}

/// Judges a request by its headers; its token must have these scopes. Pure.
fn judge(
    headers: &HeaderMap,
    tokens: &Tokens,
    scopes: &[&str],
    check_api_key: bool,
    now: u64,
) -> Verdict {
    if !headers.contains_key(AUTHORIZATION) {
        return Verdict::TokenMissing;
    }
    let owned = bearer(headers).and_then(|token| Some((token, tokens.owner(token, now)?)));
    let Some((token, owner)) = owned else {
        return Verdict::TokenInvalid;
    };
    let welcome = || {
        if tokens.has_scopes(token, scopes) { Verdict::Welcome } else { Verdict::ScopeMissing }
    };
    match headers.get("x-api-key") {
        _ if !check_api_key => welcome(),
        None => Verdict::ApiKeyMissing,
        Some(key) if key == owner => welcome(),
        Some(_) => Verdict::ApiKeyWrong,
    }
}

/// The bearer token of a request with exactly one `Authorization`.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    match (values.next(), values.next()) {
        (Some(value), None) => value.to_str().ok()?.strip_prefix("Bearer "),
        _ => None,
    }
}

/// A refusal, for those who read why their test fails.
fn in_words(head: &request::Parts, verdict: &Verdict) -> String {
    let (code, message) = verdict.code_and_message();
    let hint = match verdict {
        Verdict::Told(_) => ", as it was told to answer",
        Verdict::TokenMissing => "; does the layer allow the host of this URL?",
        _ => "",
    };
    let (method, path, status) = (&head.method, head.uri.path(), verdict.status().as_u16());
    format!("{method} {path}: {status}, {code} {message}{hint}")
}

fn echo(status: StatusCode, head: &request::Parts, length: usize) -> Reply {
    let body = json!({
        "ok": true,
        "method": head.method.as_str(),
        "path": head.uri.path(),
        "org": head.headers.contains_key("x-gw-ims-org-id"),
        "body_bytes": length,
    });
    reply::json(status, &body)
}

/// Pre-signed storage: its URL is its authorization, and it takes no other.
fn storage(headers: &HeaderMap) -> Reply {
    if headers.contains_key(AUTHORIZATION) {
        let body = "<Error><Code>InvalidArgument</Code>\
                    <Message>Only one auth mechanism allowed</Message></Error>";
        return reply::typed(StatusCode::BAD_REQUEST, "application/xml", body.to_owned());
    }
    reply::typed(StatusCode::OK, "application/octet-stream", "stored".to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::mock::grant::Grant;

    fn issued() -> (Tokens, String) {
        let mut tokens = Tokens::new();
        let grant = Grant { client_id: "id".into(), scope: "openid".into() };
        let token = tokens.issue(&grant, Duration::from_millis(10), 0);
        (tokens, format!("Bearer {token}"))
    }

    fn headers(authorization: &str, api_key: Option<&str>) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, authorization.parse().unwrap());
        if let Some(key) = api_key {
            headers.insert("x-api-key", key.parse().unwrap());
        }
        headers
    }

    #[test]
    fn the_token_is_judged_before_the_api_key() {
        let (tokens, bearer) = issued();
        let judge = |headers: &HeaderMap, now| judge(headers, &tokens, &[], true, now);

        assert_eq!(judge(&HeaderMap::new(), 0), Verdict::TokenMissing);
        assert_eq!(judge(&headers("Basic eA==", None), 0), Verdict::TokenInvalid);
        assert_eq!(judge(&headers(&bearer, None), 10), Verdict::TokenInvalid);
        assert_eq!(judge(&headers(&bearer, None), 9), Verdict::ApiKeyMissing);
        assert_eq!(judge(&headers(&bearer, Some("other")), 9), Verdict::ApiKeyWrong);
        assert_eq!(judge(&headers(&bearer, Some("id")), 9), Verdict::Welcome);
    }

    #[test]
    fn a_token_without_a_scope_that_is_needed_is_refused() {
        let (tokens, bearer) = issued();
        let headers = headers(&bearer, Some("id"));
        let judge = |scopes: &[&str]| judge(&headers, &tokens, scopes, true, 0);

        assert_eq!(judge(&["openid"]), Verdict::Welcome);
        assert_eq!(judge(&["openid", "adobeio_api"]), Verdict::ScopeMissing);
    }

    #[test]
    fn two_authorizations_are_none() {
        let (tokens, bearer) = issued();
        let mut headers = headers(&bearer, Some("id"));
        headers.append(AUTHORIZATION, bearer.parse().unwrap());

        assert_eq!(judge(&headers, &tokens, &[], true, 0), Verdict::TokenInvalid);
    }
}
