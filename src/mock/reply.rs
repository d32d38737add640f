//! What both servers answer with.

use std::fmt;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

/// An answer in full.
pub(super) type Reply = Response<Full<Bytes>>;

/// The connection is to be closed instead of an answer.
#[derive(Debug)]
pub(super) struct Cut;

impl fmt::Display for Cut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection was cut")
    }
}

impl std::error::Error for Cut {}

const DEBUG_ID: HeaderName = HeaderName::from_static("x-debug-id");

pub(super) fn empty(status: StatusCode) -> Reply {
    with_body(status, Bytes::new())
}

pub(super) fn with_body(status: StatusCode, body: Bytes) -> Reply {
    let mut reply = Response::new(Full::new(body));
    *reply.status_mut() = status;
    reply
}

pub(super) fn typed(status: StatusCode, content_type: &'static str, body: String) -> Reply {
    let mut reply = with_body(status, Bytes::from(body));
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply
}

pub(super) fn json(status: StatusCode, body: &Value) -> Reply {
    typed(status, "application/json;charset=UTF-8", body.to_string())
}

/// An error as RFC 6749 shapes it.
pub(super) fn oauth_error(status: StatusCode, error: &str, description: &str) -> Reply {
    with_debug_id(json(status, &json!({ "error": error, "error_description": description })))
}

/// Marks a failure with the id under which Adobe's support would find it.
pub(super) fn with_debug_id(mut reply: Reply) -> Reply {
    let id = format!("{:032x}", fastrand::u128(..));
    if let Ok(id) = HeaderValue::try_from(id) {
        reply.headers_mut().insert(DEBUG_ID, id);
    }
    reply
}

/// The status that a test has named.
///
/// # Panics
///
/// If it is not a final HTTP status (200 to 999).
pub(super) fn final_status(status: u16) -> StatusCode {
    assert!(status >= 200, "a final HTTP status, not {status}");
    StatusCode::from_u16(status).expect("an HTTP status")
}
