//! What `http::Request` and `reqwest::Request` have in common, as far as the layer needs it.

use std::borrow::Cow;

use http::{Extensions, HeaderMap, Method, Uri, header::HOST};

use super::place::{Place, Scheme};

/// A request that the layer can authorize: `http::Request<B>` of any body, or `reqwest::Request`.
///
/// Sealed: it says only what the layer needs.
pub trait Message: sealed::Sealed {}

pub(crate) mod sealed {
    use super::{Cow, Extensions, HeaderMap, Place};

    pub trait Sealed {
        /// Where the request goes, or `None` if it does not say.
        fn place(&self) -> Option<Place<'_>>;
        fn headers_mut(&mut self) -> &mut HeaderMap;
        /// The request's own wishes, where it can carry any.
        fn extensions(&self) -> Option<&Extensions>;
        /// The URI to be shown: without userinfo and query.
        fn shown_uri(&self) -> Cow<'static, str>;
    }
}

impl<B> Message for http::Request<B> {}

impl<B> sealed::Sealed for http::Request<B> {
    #[inline]
    fn place(&self) -> Option<Place<'_>> {
        if self.method() == Method::CONNECT {
            // It is the proxy that would read the headers.
            return None;
        }
        let uri = self.uri();
        match uri.authority() {
            Some(authority) => {
                let scheme = uri.scheme_str().map_or(Scheme::Unsaid, Scheme::of);
                Some(Place { scheme, authority: authority.as_str() })
            }
            None => host_header(self.headers()),
        }
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        Self::headers_mut(self)
    }

    fn extensions(&self) -> Option<&Extensions> {
        Some(Self::extensions(self))
    }

    fn shown_uri(&self) -> Cow<'static, str> {
        Cow::Owned(shown(self.uri()))
    }
}

/// Where an origin-form request goes: one `Host` header, or nobody knows.
fn host_header(headers: &HeaderMap) -> Option<Place<'_>> {
    let mut hosts = headers.get_all(HOST).iter();
    let (host, None) = (hosts.next()?, hosts.next()) else {
        return None;
    };
    let authority = host.to_str().ok().filter(|authority| !authority.contains('@'))?;
    Some(Place { scheme: Scheme::Unsaid, authority })
}

fn shown(uri: &Uri) -> String {
    let scheme = uri.scheme_str().map_or_else(String::new, |scheme| format!("{scheme}://"));
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().map_or_else(String::new, |port| format!(":{port}"));
    format!("{scheme}{host}{port}{}", uri.path())
}

#[cfg(feature = "reqwest")]
impl Message for reqwest::Request {}

#[cfg(feature = "reqwest")]
impl sealed::Sealed for reqwest::Request {
    fn place(&self) -> Option<Place<'_>> {
        let url = self.url();
        Some(Place { scheme: Scheme::of(url.scheme()), authority: url.authority() })
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        Self::headers_mut(self)
    }

    fn extensions(&self) -> Option<&Extensions> {
        None
    }

    fn shown_uri(&self) -> Cow<'static, str> {
        let mut url = self.url().clone();
        // Neither can fail for a URL that has a host, and this one has.
        let _ = (url.set_username(""), url.set_password(None));
        url.set_query(None);
        url.set_fragment(None);
        Cow::Owned(url.into())
    }
}
