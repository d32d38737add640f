//! [`Reply`]: the parts of a response that the layer reads, for each type of response.

use http::{Extensions, HeaderMap, StatusCode, header::WWW_AUTHENTICATE};

#[cfg(feature = "reqwest")]
use super::origin::{RequestOrigin, Scheme};
use crate::source::OriginKey;

/// The URL of a `reqwest::Response` that was made from an `http::Response`, as tests do, and not
/// by a client. reqwest sets it because such a response has no URL.
#[cfg(feature = "reqwest")]
const NO_URL: &str = "http://no.url.provided.local/";

/// A response whose status the layer can read: `http::Response<B>` of any body, or
/// `reqwest::Response`. Sealed.
pub trait Reply: sealed::Sealed {}

pub(crate) mod sealed {
    use super::{Extensions, HeaderMap, OriginKey, StatusCode};

    pub trait Sealed {
        fn status(&self) -> StatusCode;
        fn headers(&self) -> &HeaderMap;
        fn extensions_mut(&mut self) -> &mut Extensions;

        /// Returns whether the response may be from `origin`, which the request was sent to. A client
        /// that follows redirects may return a response from another origin.
        fn is_from(&self, _origin: OriginKey) -> bool {
            true
        }
    }
}

impl<B> Reply for http::Response<B> {}

impl<B> sealed::Sealed for http::Response<B> {
    fn status(&self) -> StatusCode {
        Self::status(self)
    }

    fn headers(&self) -> &HeaderMap {
        Self::headers(self)
    }

    fn extensions_mut(&mut self) -> &mut Extensions {
        Self::extensions_mut(self)
    }
}

#[cfg(feature = "reqwest")]
impl Reply for reqwest::Response {}

#[cfg(feature = "reqwest")]
impl sealed::Sealed for reqwest::Response {
    fn status(&self) -> StatusCode {
        Self::status(self)
    }

    fn headers(&self) -> &HeaderMap {
        Self::headers(self)
    }

    fn extensions_mut(&mut self) -> &mut Extensions {
        Self::extensions_mut(self)
    }

    fn is_from(&self, origin: OriginKey) -> bool {
        let url = self.url();
        let answered =
            RequestOrigin { scheme: Scheme::of(url.scheme()), authority: url.authority() };
        url.as_str() == NO_URL || answered.is(origin)
    }
}

/// Returns whether `response` means that `origin`, which the request was sent to, refused its token.
///
/// The status decides, because the bodies of Adobe's APIs differ. Two kinds of 401 are no refusal:
/// one from another origin, which never got the token, and one whose challenge is
/// `insufficient_scope`, because the token is then valid but lacks a scope (RFC 6750 §3.1).
pub(crate) fn is_refusal<R: Reply>(response: &R, origin: OriginKey) -> bool {
    is_unauthorized(response) && response.is_from(origin) && !lacks_scope(response.headers())
}

#[inline]
pub(super) fn is_unauthorized<R: Reply>(response: &R) -> bool {
    response.status() == StatusCode::UNAUTHORIZED
}

fn lacks_scope(headers: &HeaderMap) -> bool {
    headers.get_all(WWW_AUTHENTICATE).iter().any(|challenge| {
        String::from_utf8_lossy(challenge.as_bytes()).contains("insufficient_scope")
    })
}
