//! What `http::Response` and `reqwest::Response` have in common, as far as the layer needs it.

use http::{Extensions, HeaderMap, StatusCode, header::WWW_AUTHENTICATE};

#[cfg(feature = "reqwest")]
use super::place::{Place, Scheme};
use crate::{
    telemetry::Recovery,
    token::{AccessToken, HostKey},
};

/// A response whose status the layer can read: `http::Response<B>` of any body, or
/// `reqwest::Response`. Sealed.
pub trait Reply: sealed::Sealed {}

pub(crate) mod sealed {
    use super::{Extensions, HeaderMap, HostKey, StatusCode};

    pub trait Sealed {
        fn status(&self) -> StatusCode;
        fn headers(&self) -> &HeaderMap;
        fn extensions_mut(&mut self) -> &mut Extensions;

        /// Whether `host`, which the request was sent to, may have answered: a redirect that was
        /// followed inside of the layer can lead to another one.
        fn is_from(&self, _host: HostKey) -> bool {
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

    fn is_from(&self, host: HostKey) -> bool {
        let url = self.url();
        Place { scheme: Scheme::of(url.scheme()), authority: url.authority() }.is_at(host)
    }
}

/// Whether the API at `host` says that the token is bad. Tells the token's source.
///
/// The status decides: the bodies come in several shapes. Only a challenge that names the scope
/// says that the token is good, but not enough (RFC 6750 §3.1).
pub(crate) fn refused<R: Reply>(response: &R, token: &AccessToken, host: HostKey) -> bool {
    let refused =
        is_unauthorized(response) && response.is_from(host) && !lacks_scope(response.headers());
    if refused {
        token.refused_by(host);
    }
    refused
}

/// [`refused`] for the second try: counts what came of it.
pub(crate) fn refused_again<R: Reply>(response: &R, token: &AccessToken, host: HostKey) {
    token.recovered(match refused(response, token, host) {
        true => Recovery::RefusedAgain,
        false => Recovery::Recovered,
    });
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
