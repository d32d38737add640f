//! Reads the response of IMS: a token and its life, or the reason why there is none.

use std::{borrow::Cow, time::SystemTime};

use http::{
    HeaderMap, StatusCode,
    header::{CONTENT_ENCODING, DATE},
};
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::{Value, error::Category, value::RawValue};
use zeroize::Zeroizing;

use super::{
    claims::Claims,
    failure,
    lifetime::{Arrival, lifetime},
    sanitize::sanitize,
};
use crate::{
    credentials::{self, Text},
    error::{ErrorKind, TokenError},
    ims::TokenResponse,
};

/// One response of IMS, as received.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// The body, or its beginning where it is longer than [`MAX_BODY`](super::transport::MAX_BODY).
    pub(crate) body: Zeroizing<Vec<u8>>,
    pub(crate) is_truncated: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        Some(String::from_utf8_lossy(self.headers.get(name)?.as_bytes()))
    }

    /// The encoding of the body, unless it is sent as it is.
    fn encoding(&self) -> Option<Cow<'_, str>> {
        let encoding = self.header(CONTENT_ENCODING.as_str())?;
        let is_identity = matches!(encoding.trim().to_ascii_lowercase().as_str(), "" | "identity");
        (!is_identity).then_some(encoding)
    }

    pub(crate) fn arrival(&self, wall: SystemTime) -> Arrival {
        let date = self.header(DATE.as_str());
        Arrival { date: date.and_then(|date| httpdate::parse_http_date(date.trim()).ok()), wall }
    }

    /// The body without the byte order mark that some proxies insert.
    pub(crate) fn text(&self) -> &[u8] {
        let body = self.body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&self.body);
        body.trim_ascii()
    }
}

#[derive(Deserialize)]
struct Success {
    #[serde(default, deserialize_with = "text")]
    access_token: Option<Text>,
    token_type: Option<Value>,
    expires_in: Option<Value>,
}

/// Reads a text into memory that is wiped.
pub(super) fn text<'de, D: Deserializer<'de>>(json: D) -> Result<Option<Text>, D::Error> {
    let Some(json) = Option::<&RawValue>::deserialize(json)? else { return Ok(None) };
    credentials::text(json).map(Some).ok_or_else(|| D::Error::custom("not a text"))
}

/// Reads a response that arrived at `wall`. The error contains none of `secrets`.
pub(crate) fn read(
    answer: &Answer,
    secrets: &[&str],
    wall: SystemTime,
) -> Result<TokenResponse, TokenError> {
    if answer.status != StatusCode::OK {
        return Err(failure::refusal(answer, secrets, wall));
    }
    token(answer, secrets, wall).map_err(|message| {
        let said = failure::said(answer, secrets, wall);
        TokenError::with_answer(ErrorKind::Malformed, message, said)
    })
}

fn token(
    answer: &Answer,
    secrets: &[&str],
    wall: SystemTime,
) -> Result<TokenResponse, Cow<'static, str>> {
    if let Some(encoding) = answer.encoding() {
        let encoding = sanitize(&encoding, secrets);
        return Err(format!("IMS responded with a body encoded as {encoding}").into());
    }
    let Success { access_token, token_type, expires_in } = parse(answer)?;

    let access_token = access_token.ok_or("IMS answered without an access_token")?;
    if access_token.is_empty() {
        return Err("IMS answered with an empty access_token".into());
    }
    if !access_token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("IMS answered with an access_token that cannot be a header value".into());
    }
    let is_bearer = match &token_type {
        None | Some(Value::Null) => true,
        Some(token_type) => {
            token_type.as_str().is_some_and(|name| name.trim().eq_ignore_ascii_case("bearer"))
        }
    };
    if !is_bearer {
        return Err("IMS answered with a token_type other than bearer".into());
    }

    let claims = Claims::of(&access_token);
    let life = lifetime(expires_in.as_ref(), claims, answer.arrival(wall))?;
    Ok(TokenResponse::new(access_token.as_str(), life))
}

fn parse(answer: &Answer) -> Result<Success, Cow<'static, str>> {
    if answer.is_truncated {
        return Err("IMS answered with a body larger than 64 KiB".into());
    }
    match answer.text().first() {
        None => return Err("IMS answered with an empty body".into()),
        Some(b'<') => {
            return Err(
                "IMS answered with HTML or XML instead of JSON; check for a proxy in between"
                    .into(),
            );
        }
        Some(b'{') => {}
        Some(_) => return Err("IMS answered with something other than a JSON object".into()),
    }
    // Only the position of serde's error is kept, because its text quotes the body.
    serde_json::from_slice(answer.text()).map_err(|error| {
        let what = match error.classify() {
            Category::Eof => "JSON that ends too early",
            Category::Data => "a JSON field of the wrong type or twice the same",
            Category::Syntax | Category::Io => "malformed JSON",
        };
        let (line, column) = (error.line(), error.column());
        format!("IMS answered with {what} (line {line}, column {column})").into()
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use proptest::prelude::*;
    use secrecy::ExposeSecret;

    use super::*;

    fn answer(status: u16, body: impl Into<Vec<u8>>) -> Answer {
        Answer {
            status: StatusCode::from_u16(status).unwrap(),
            headers: HeaderMap::new(),
            body: Zeroizing::new(body.into()),
            is_truncated: false,
        }
    }

    fn read_ok(body: &str) -> TokenResponse {
        read(&answer(200, body), &["p8e-secret"], UNIX_EPOCH).expect(body)
    }

    fn read_err(body: &str) -> TokenError {
        let error = read(&answer(200, body), &["p8e-secret"], UNIX_EPOCH).expect_err(body);
        assert_eq!(error.kind(), ErrorKind::Malformed);
        assert_eq!(error.status(), Some(StatusCode::OK));
        error
    }

    #[test]
    fn reads_the_documented_answers() {
        for body in [
            r#"{"access_token":"tok","token_type":"bearer","expires_in":3600}"#,
            r#"{"access_token":"tok","token_type":"Bearer","expires_in":"3600"}"#,
            r#"{"access_token":"tok","expires_in":3600,"unknown":{"a":[1]}}"#,
            "\u{feff}\r\n{\"access_token\":\"t\\u006fk\",\"token_type\":null,\"expires_in\":3600}\n",
        ] {
            let response = read_ok(body);
            assert_eq!(response.access_token.expose_secret(), "tok");
            assert_eq!(response.expires_in, Duration::from_secs(3_600));
        }
    }

    #[test]
    fn each_unusable_answer_has_its_own_words() {
        for (body, words) in [
            ("", "an empty body"),
            (" \n", "an empty body"),
            ("<html>", "HTML"),
            ("token-1", "other than a JSON object"),
            (r#"["tok-secret","bearer",3600]"#, "other than a JSON object"),
            (r#"{"access_token":"tok-secret""#, "ends too early"),
            (r#"{"access_token":"tok-secret",}"#, "malformed JSON (line 1, column"),
            (r#"{"access_token":["tok-secret"],"expires_in":3600}"#, "wrong type"),
            (r#"{"expires_in":3600}"#, "without an access_token"),
            (r#"{"access_token":"","expires_in":3600}"#, "empty access_token"),
            (r#"{"access_token":"tok-secret\n","expires_in":3600}"#, "header value"),
            (r#"{"access_token":"tok-é","expires_in":3600}"#, "header value"),
            (r#"{"access_token":"tok-secret","expires_in":3600,"token_type":"mac"}"#, "bearer"),
            (r#"{"access_token":"tok-secret","expires_in":3600,"token_type":1}"#, "bearer"),
            (r#"{"access_token":"tok-secret"}"#, "without an expires_in"),
        ] {
            let error = read_err(body);
            assert!(error.to_string().contains(words), "{body}: {error}");
            assert!(!format!("{error} {error:?}").contains("tok-secret"), "{error:?}");
        }
    }

    #[test]
    fn an_oauth_error_under_status_200_is_kept() {
        let error = read_err(r#"{"error":"invalid_client","error_description":"bad p8e-secret"}"#);

        assert_eq!(error.oauth_error(), Some("invalid_client"));
        assert_eq!(error.oauth_error_description(), Some("bad [redacted]"));
    }

    proptest! {
        #[test]
        fn no_answer_panics(
            status in 100..1_000_u16, body in any::<Vec<u8>>(), text in ".*",
            header in "[ -~]{0,40}", wall in any::<u32>(), is_truncated in any::<bool>(),
        ) {
            let wall = UNIX_EPOCH + Duration::from_secs(wall.into());
            let json = format!(r#"{{"access_token":"{text}","expires_in":{header}}}"#);
            for body in [body, text.into_bytes(), json.into_bytes()] {
                let mut answer = answer(status, body);
                answer.is_truncated = is_truncated;
                for name in ["date", "retry-after", "x-debug-id"] {
                    answer.headers.insert(name, header.parse().unwrap());
                }
                let _ = read(&answer, &["p8e-secret"], wall);
            }
        }
    }
}
