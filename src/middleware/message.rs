//! [`Message`]: the parts of a request that the layer reads and changes, for each type of request.

use std::borrow::Cow;

use http::{Extensions, HeaderMap, Method, Uri, header::HOST};

use super::origin::{RequestOrigin, Scheme};

/// A request that the layer can authorize: `http::Request<B>` of any body, or `reqwest::Request`.
///
/// Sealed, because its methods are those that the layer needs, and may change.
pub trait Message: sealed::Sealed {}

pub(crate) mod sealed {
    use super::{Cow, Extensions, HeaderMap, RequestOrigin};

    pub trait Sealed {
        /// The origin that the request goes to, or `None` if the request does not name one.
        fn origin(&self) -> Option<RequestOrigin<'_>>;
        fn headers_mut(&mut self) -> &mut HeaderMap;
        /// The request's extensions, or `None` if its type has none.
        fn extensions(&self) -> Option<&Extensions>;
        /// The URI without userinfo and query, for errors.
        fn shown_uri(&self) -> Cow<'static, str>;
    }
}

impl<B> Message for http::Request<B> {}

impl<B> sealed::Sealed for http::Request<B> {
    #[inline]
    fn origin(&self) -> Option<RequestOrigin<'_>> {
        if self.method() == Method::CONNECT {
            // A proxy reads the headers of a CONNECT request, so the request gets no token.
            return None;
        }
        let uri = self.uri();
        match uri.authority() {
            Some(authority) => {
                let scheme = uri.scheme_str().map_or(Scheme::Unknown, Scheme::of);
                Some(RequestOrigin { scheme, authority: authority.as_str() })
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

/// The origin of a request whose URI has no authority: its `Host` header, if there is exactly one.
fn host_header(headers: &HeaderMap) -> Option<RequestOrigin<'_>> {
    let mut hosts = headers.get_all(HOST).iter();
    let (host, None) = (hosts.next()?, hosts.next()) else {
        return None;
    };
    let authority = host.to_str().ok().filter(|authority| !authority.contains('@'))?;
    Some(RequestOrigin { scheme: Scheme::Unknown, authority })
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
    fn origin(&self) -> Option<RequestOrigin<'_>> {
        let url = self.url();
        Some(RequestOrigin { scheme: Scheme::of(url.scheme()), authority: url.authority() })
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        Self::headers_mut(self)
    }

    fn extensions(&self) -> Option<&Extensions> {
        None
    }

    fn shown_uri(&self) -> Cow<'static, str> {
        let mut url = self.url().clone();
        // Neither call fails, because an allowed URL has a host.
        let _ = (url.set_username(""), url.set_password(None));
        url.set_query(None);
        url.set_fragment(None);
        Cow::Owned(url.into())
    }
}
