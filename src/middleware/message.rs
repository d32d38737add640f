//! What `http::Request` and `reqwest::Request` have in common, as far as the layer needs it.

use std::borrow::Cow;

use http::{Extensions, HeaderMap, Method, Uri, header::HOST, uri::Authority};

/// A request that the layer can authorize: `http::Request<B>` of any body, or `reqwest::Request`.
///
/// Sealed: it says only what the layer needs.
pub trait Message: sealed::Sealed {}

pub(crate) mod sealed {
    use super::{Cow, Extensions, HeaderMap, Target};

    pub trait Sealed {
        /// Where the request goes, or `None` if it does not say.
        fn target(&self) -> Option<Target<'_>>;
        fn headers_mut(&mut self) -> &mut HeaderMap;
        /// The request's own wishes, where it can carry any.
        fn extensions(&self) -> Option<&Extensions>;
        /// The URI to be shown: without userinfo and query.
        fn shown_uri(&self) -> Cow<'static, str>;
    }
}

/// Where a request goes.
#[derive(Debug)]
pub struct Target<'a> {
    pub(super) scheme: Scheme,
    pub(super) host: Cow<'a, str>,
    pub(super) port: Option<u16>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Http,
    Https,
    /// A URI that is not absolute has no scheme: the connection that it is sent on decides.
    Unsaid,
    Other,
}

impl Scheme {
    fn of(scheme: &str) -> Self {
        match scheme {
            "https" => Self::Https,
            "http" => Self::Http,
            _ => Self::Other,
        }
    }

    /// What is known without a scheme: port 80 is plain.
    const fn unsaid(port: Option<u16>) -> Self {
        match port {
            Some(80) => Self::Http,
            _ => Self::Unsaid,
        }
    }

    /// The port that is meant where none is written.
    const fn default_port(self) -> Option<u16> {
        match self {
            Self::Http => Some(80),
            Self::Https => Some(443),
            Self::Unsaid | Self::Other => None,
        }
    }
}

impl<B> Message for http::Request<B> {}

impl<B> sealed::Sealed for http::Request<B> {
    fn target(&self) -> Option<Target<'_>> {
        if self.method() == Method::CONNECT {
            // It is the proxy that would read the headers.
            return None;
        }
        let uri = self.uri();
        match uri.authority() {
            Some(authority) => {
                let (host, port) = host_and_port(authority)?;
                let scheme = uri.scheme_str().map_or_else(|| Scheme::unsaid(port), Scheme::of);
                let port = port.or(scheme.default_port());
                Some(Target { scheme, host: Cow::Borrowed(host), port })
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
fn host_header(headers: &HeaderMap) -> Option<Target<'static>> {
    let mut hosts = headers.get_all(HOST).iter();
    let (host, None) = (hosts.next()?, hosts.next()) else {
        return None;
    };
    let authority = Authority::try_from(host.as_bytes()).ok()?;
    if authority.as_str().contains('@') {
        return None;
    }
    let (host, port) = host_and_port(&authority)?;
    let scheme = Scheme::unsaid(port);
    Some(Target { scheme, host: Cow::Owned(host.to_owned()), port })
}

/// The host and the port that an authority names, if that is all it names: `http` takes
/// `[::1].evil.com` for `[::1]`, and port 99999 for none.
fn host_and_port(authority: &Authority) -> Option<(&str, Option<u16>)> {
    let host = authority.host();
    let text = authority.as_str();
    let text = text.rsplit_once('@').map_or(text, |(_userinfo, text)| text);
    match text.strip_prefix(host)? {
        "" | ":" => Some((host, None)),
        port => {
            let digits = port.strip_prefix(':')?;
            let is_number = digits.bytes().all(|digit| digit.is_ascii_digit());
            Some((host, Some(digits.parse().ok().filter(|_| is_number)?)))
        }
    }
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
    fn target(&self) -> Option<Target<'_>> {
        let url = self.url();
        let host = Cow::Borrowed(url.host_str()?);
        let scheme = Scheme::of(url.scheme());
        Some(Target { scheme, host, port: url.port().or(scheme.default_port()) })
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
