//! A token request as it came over the wire, kept for assertions.

use std::fmt;
use std::time::Instant;

use http::{HeaderMap, Method, header::CONTENT_TYPE, request};

/// A request at the token endpoint, as it came.
///
/// `Debug` shows names and no values: the form holds the secret.
///
/// ```
/// # use tower_adobe_auth::mock::MockIms;
/// # let ims = MockIms::start_blocking();
/// // ... after the code under test has asked for a token:
/// if let Some(request) = ims.last_token_request() {
///     assert_eq!(request.form("grant_type"), Some("client_credentials"));
///     assert_eq!(request.query(), None);
/// }
/// ```
#[derive(Clone)]
pub struct TokenRequest {
    received_at: Instant,
    method: Method,
    path: String,
    query: Option<String>,
    headers: HeaderMap,
    form: Vec<(String, String)>,
}

impl TokenRequest {
    pub(super) fn new(head: request::Parts, body: &[u8], received_at: Instant) -> Self {
        let form = if is_form(&head.headers) { pairs(body) } else { Vec::new() };
        Self {
            received_at,
            method: head.method,
            path: head.uri.path().to_owned(),
            query: head.uri.query().map(str::to_owned),
            headers: head.headers,
            form,
        }
    }

    /// When its head had arrived, by the mock's clock, which no runtime pauses.
    #[must_use]
    pub fn received_at(&self) -> Instant {
        self.received_at
    }

    /// Its method.
    #[must_use]
    pub fn method(&self) -> &Method {
        &self.method
    }

    /// Its path, without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Its query, not decoded. IMS takes parameters there too, and servers log them: a good client
    /// has none.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    /// Its headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        &self.headers
    }

    /// The value of the header `name`, if it has one and it is text.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// The decoded value of the first form field `name`.
    #[must_use]
    pub fn form(&self, name: &str) -> Option<&str> {
        self.form.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// All decoded form fields, in their order; none if the body is no form.
    #[must_use]
    pub fn form_pairs(&self) -> &[(String, String)] {
        &self.form
    }

    /// What IMS reads: the query's parameters and the form's.
    pub(super) fn parameters(&self) -> Vec<(String, String)> {
        let mut parameters = self.query.as_deref().map_or_else(Vec::new, |q| pairs(q.as_bytes()));
        parameters.extend(self.form.iter().cloned());
        parameters
    }
}

/// Shows names and no values.
impl fmt::Debug for TokenRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields: Vec<_> = self.form.iter().map(|(name, _)| name).collect();
        let headers: Vec<_> = self.headers.keys().collect();
        f.debug_struct("TokenRequest")
            .field("method", &self.method)
            .field("path", &self.path)
            .field("headers", &headers)
            .field("form", &fields)
            .finish_non_exhaustive()
    }
}

pub(super) fn pairs(encoded: &[u8]) -> Vec<(String, String)> {
    form_urlencoded::parse(encoded).into_owned().collect()
}

fn is_form(headers: &HeaderMap) -> bool {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded"))
}
