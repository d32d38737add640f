//! A response without a token: its kind of failure, its error description, and advice.

use std::time::{Duration, SystemTime};

use http::{StatusCode, header::RETRY_AFTER};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use super::{
    lifetime::Arrival,
    response::{self, Answer},
    sanitize::sanitize,
};
use crate::{
    credentials::{self, Text},
    error::{ErrorKind, ImsFailure, TokenError},
};

/// Ten thousand years, in seconds: later than any HTTP date, and early enough for our clocks.
const LONGEST_RETRY_AFTER: u64 = 10_000 * 366 * 24 * 60 * 60;

/// The error body of RFC 6749 §5.2. A field of another type counts as missing.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Refusal {
    #[serde(deserialize_with = "text")]
    error: Option<Text>,
    #[serde(deserialize_with = "text")]
    error_description: Option<Text>,
    /// Part of no refusal. A response with a token and an error may repeat the token in the error;
    /// if the token cannot be read, nothing of the response is shown.
    #[serde(deserialize_with = "response::text")]
    access_token: Option<Text>,
}

/// Reads a text into memory that is wiped, because an error may repeat the secret.
fn text<'de, D: Deserializer<'de>>(json: D) -> Result<Option<Text>, D::Error> {
    Ok(Option::<&RawValue>::deserialize(json)?.and_then(credentials::text))
}

/// The error of a response whose status is not 200.
pub(crate) fn refusal(answer: &Answer, secrets: &[&str], wall: SystemTime) -> TokenError {
    let said = said(answer, secrets, wall);
    let (kind, message) = judge(answer.status, said.error.as_deref());
    TokenError::with_answer(kind, message, said)
}

/// The parts of the response that help, without `secrets` and without the response's own token.
pub(crate) fn said(answer: &Answer, secrets: &[&str], wall: SystemTime) -> ImsFailure {
    let body = Some(answer.text()).filter(|body| body.starts_with(b"{"));
    let body: Refusal = body.and_then(|body| serde_json::from_slice(body).ok()).unwrap_or_default();
    let mut secrets = secrets.to_vec();
    if let Some(token) = body.access_token.as_deref() {
        secrets.push(token);
        // The parts of a JWT, the signature among them.
        secrets.extend(token.split('.').filter(|part| part.len() < token.len()));
    }
    let line = |text: &str| Some(sanitize(text, &secrets)).filter(|line| !line.is_empty());
    ImsFailure {
        status: answer.status,
        error: body.error.as_deref().and_then(|error| line(error)),
        error_description: body.error_description.as_deref().and_then(|text| line(text)),
        debug_id: answer.header("x-debug-id").and_then(|id| line(&id)),
        retry_after: answer
            .header(RETRY_AFTER.as_str())
            .and_then(|value| retry_after(value.trim(), answer.arrival(wall))),
    }
}

fn judge(status: StatusCode, error: Option<&str>) -> (ErrorKind, &'static str) {
    match status.as_u16() {
        408 => (ErrorKind::Timeout, "IMS gave up waiting for the token request"),
        429 => (
            ErrorKind::Throttled,
            "IMS throttles this client; share one token source between its callers",
        ),
        300..=399 => (ErrorKind::Malformed, "IMS answered with a redirect, which is not followed"),
        400..=499 => (ErrorKind::Rejected, rejection(status, error)),
        500..=599 => (ErrorKind::Unavailable, "IMS is unavailable"),
        _ => (ErrorKind::Malformed, "IMS answered with an unexpected status"),
    }
}

fn rejection(status: StatusCode, error: Option<&str>) -> &'static str {
    match (error, status.as_u16()) {
        (Some("invalid_client"), _) => {
            "IMS rejected the client credentials; check the client id and secret in the Adobe \
             Developer Console"
        }
        (Some("unauthorized_client"), _) => {
            "IMS does not allow this client the client_credentials grant; check that it is an \
             OAuth Server-to-Server credential"
        }
        (Some("invalid_scope"), _) => {
            "IMS rejected the scopes; check them against the credential in the Adobe Developer \
             Console"
        }
        (Some("access_denied"), _) => {
            "IMS denied access; check the products and the organization of the credential in the \
             Adobe Developer Console"
        }
        (Some("unsupported_grant_type"), _) => {
            "IMS does not support the client_credentials grant at this URL; check the environment"
        }
        (Some("invalid_request"), _) => {
            "IMS found the token request invalid; check the client id, the scopes and the \
             organization id"
        }
        (None, 404 | 405) => "no token endpoint is at this URL; check the environment",
        (None, 407) => "a proxy on the way to IMS wants authentication",
        _ => "IMS rejected the token request; check the credentials and the environment",
    }
}

/// `Retry-After`, in seconds or as an HTTP date, which counts by the server's own time.
fn retry_after(value: &str, arrival: Arrival) -> Option<Duration> {
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        // Digits too many for a number are a very long time.
        let seconds = value.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds.min(LONGEST_RETRY_AFTER)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(arrival.best()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn in_year_2000(value: &str) -> Option<Duration> {
        let wall = UNIX_EPOCH;
        let date = httpdate::parse_http_date("Sat, 01 Jan 2000 00:00:00 GMT").unwrap();
        retry_after(value, Arrival { date: Some(date), wall })
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        assert_eq!(in_year_2000("0"), Some(Duration::ZERO));
        assert_eq!(in_year_2000("120"), Some(Duration::from_secs(120)));
        let date = "Sat, 01 Jan 2000 00:02:00 GMT";
        assert_eq!(in_year_2000(date), Some(Duration::from_secs(120)));
        let past = "Fri, 31 Dec 1999 00:00:00 GMT";
        assert_eq!(in_year_2000(past), Some(Duration::ZERO));
        for odd in ["", "-1", "1.5", "soon", "+5"] {
            assert_eq!(in_year_2000(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_retry_after_of_a_thousand_years_does_not_overflow() {
        assert_eq!(in_year_2000("31556952000"), Some(Duration::from_secs(31_556_952_000)));
        assert!(
            in_year_2000("Wed, 01 Jan 3000 00:00:00 GMT")
                > Some(Duration::from_secs(31_000_000_000))
        );
        for digits in [20, 100] {
            let bound = Duration::from_secs(LONGEST_RETRY_AFTER);
            assert_eq!(in_year_2000(&"9".repeat(digits)), Some(bound));
        }
    }

    #[test]
    fn a_date_counts_by_our_clock_where_the_server_tells_no_time() {
        let wall = httpdate::parse_http_date("Sat, 01 Jan 2000 00:00:30 GMT").unwrap();

        let wait = retry_after("Sat, 01 Jan 2000 00:02:00 GMT", Arrival { date: None, wall });

        assert_eq!(wait, Some(Duration::from_secs(90)));
    }

    #[test]
    fn the_status_decides_the_kind_and_the_code_the_advice() {
        let kinds = [
            (100, ErrorKind::Malformed),
            (204, ErrorKind::Malformed),
            (302, ErrorKind::Malformed),
            (307, ErrorKind::Malformed),
            (400, ErrorKind::Rejected),
            (401, ErrorKind::Rejected),
            (404, ErrorKind::Rejected),
            (408, ErrorKind::Timeout),
            (429, ErrorKind::Throttled),
            (500, ErrorKind::Unavailable),
            (503, ErrorKind::Unavailable),
            (999, ErrorKind::Malformed),
        ];
        for (status, kind) in kinds {
            let status = StatusCode::from_u16(status).unwrap();
            assert_eq!(judge(status, None).0, kind, "{status}");
            assert_eq!(judge(status, Some("invalid_client")).0, kind, "{status}");
        }

        for (error, words) in [
            ("invalid_client", "client id and secret"),
            ("unauthorized_client", "OAuth Server-to-Server"),
            ("invalid_scope", "scopes"),
            ("access_denied", "products"),
            ("unsupported_grant_type", "environment"),
            ("invalid_request", "organization id"),
            ("something_new", "rejected"),
        ] {
            let (_, message) = judge(StatusCode::BAD_REQUEST, Some(error));
            assert!(message.contains(words), "{error}: {message}");
        }
    }
}
