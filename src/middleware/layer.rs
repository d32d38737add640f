//! [`AdobeAuthLayer`]: the rules of authorization, and the source of the tokens.

use std::{marker::PhantomData, sync::Arc};

use tower_layer::Layer;

use super::{
    authorizer::Authorizer,
    hosts::AllowedHosts,
    replay::{NoReplay, ReplayUnauthorized},
    service::AdobeAuth,
};
use crate::source::TokenSource;

/// Authorizes each request to an Adobe API with the token of a [`TokenSource`].
///
/// The layer wraps services of `http::Request<B>`, for any body, and of `reqwest::Request`. A request
/// to an allowed host gets these headers:
/// - `Authorization: Bearer …`, marked sensitive. It replaces the caller's value, so that a gateway
///   cannot pass the credentials of its own callers on to Adobe.
/// - `x-api-key` with the client id, unless the caller has set it, or the layer was built
///   [without it](Self::without_api_key).
/// - `x-gw-ims-org-id` with the organization of the credentials if they have one, unless the caller
///   has set it.
///
/// **A request to any other host** is sent unchanged. Adobe's jobs return pre-signed URLs of storage
/// hosts, which are fetched through the same client and must not get the token. The allow-list holds
/// `adobe.io` and its subdomains by default; [`allow_host`](Self::allow_host) and
/// [`allow_subdomains_of`](Self::allow_subdomains_of) add to it. A request over plain `http` to an
/// allowed host fails with [`InsecureUri`](crate::InsecureUri), except on loopback.
///
/// **Extensions of a request** override the layer: [`NoAuthorization`], another [`TokenSource`],
/// [`AcquireTimeout`], [`MinLifetime`]. (A `reqwest::Request` has no extensions.)
///
/// **With a cached valid token** the inner service is called immediately. Without one the response
/// future waits for a refresh, so that a timeout around the service covers the wait. The readiness
/// of the inner service is given up during the wait and asked for again when the token has come.
/// One deadline, counted from the call on, bounds all waits of a request for a token.
///
/// **When an API responds with 401** its token becomes suspect and one refresh replaces it, for all
/// requests that got the 401 and all that come meanwhile. A suspect token that cannot be replaced is
/// used until it expires. The request itself is sent once more only by a layer that
/// [replays](Self::replay_unauthorized). Adobe's APIs respond with 401 for missing permissions too, so
/// an origin (scheme, host and port) causes at most two refreshes a minute. All origins together cause
/// at most four in a row, then none during a pause that grows from one to ten minutes.
///
/// **The order of layers**, from the outside: total timeout, trace, retry, *this layer*, timeout of
/// one try, client. The layer belongs inside a layer that follows redirects. Each attempt is then
/// authorized anew, and the host of each hop is checked. reqwest follows redirects inside the client,
/// beneath this layer, so build the client with `AllowedHosts::redirect_policy`.
///
/// [`NoAuthorization`]: crate::NoAuthorization
/// [`AcquireTimeout`]: crate::AcquireTimeout
/// [`MinLifetime`]: crate::MinLifetime
///
/// # Example
///
/// ```
/// # #[cfg(feature = "reqwest")]
/// # fn example() -> Result<(), tower_adobe_auth::ConfigError> {
/// use tower_adobe_auth::{AdobeAuthLayer, Credentials, TokenSource};
///
/// let tokens = TokenSource::new(Credentials::from_env()?)?;
/// let client = tower::ServiceBuilder::new()
///     .layer(AdobeAuthLayer::new(tokens).allow_host("api.frame.io"))
///     .service(reqwest::Client::new());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct AdobeAuthLayer<R = NoReplay> {
    authorizer: Authorizer,
    replay: PhantomData<fn() -> R>,
}

impl AdobeAuthLayer {
    /// Authorizes requests to `adobe.io` and its subdomains with the token of `tokens`.
    pub fn new(tokens: TokenSource) -> Self {
        Self { authorizer: Authorizer::new(tokens), replay: PhantomData }
    }
}

impl<R> AdobeAuthLayer<R> {
    /// Replays a request after a 401: sends it once more, with another token. Default: the caller
    /// gets the 401.
    ///
    /// The layer keeps a copy of each request, so the body must be `Clone`. A `reqwest::Request`
    /// whose body is a stream cannot be copied, and is sent once.
    ///
    /// The caller gets the response to the replay whatever its status, with the extension
    /// [`Replayed`](crate::Replayed). If no other token comes by the deadline of the request, the
    /// caller gets the first 401. Only a 401 is replayed, because the API has then rejected the
    /// request and done nothing.
    ///
    /// The 401 is dropped as soon as another token has come, so that the replay can use the
    /// connection or the slot of a concurrency limit that the 401 occupied. If the inner service
    /// fails after that, the caller gets its error.
    pub fn replay_unauthorized(self) -> AdobeAuthLayer<ReplayUnauthorized> {
        AdobeAuthLayer { authorizer: self.authorizer, replay: PhantomData }
    }

    /// Adds exactly this host to the allow-list: on any port, or on one port if given as `host:port`.
    ///
    /// An allowed loopback host may be reached over plain `http`. Build its client without a proxy
    /// (`ClientBuilder::no_proxy` of reqwest), because a proxy could read the token.
    ///
    /// A value that is not a host name is ignored, and logged at `warn`.
    pub fn allow_host(self, host: impl AsRef<str>) -> Self {
        self.allow(host.as_ref(), |hosts, host| hosts.with_host(host))
    }

    /// Adds this domain and its subdomains to the allow-list, on any port.
    ///
    /// A value that is not a domain name is ignored, and logged at `warn`.
    pub fn allow_subdomains_of(self, domain: impl AsRef<str>) -> Self {
        self.allow(domain.as_ref(), |hosts, domain| hosts.with_subdomains_of(domain))
    }

    fn allow(mut self, text: &str, add: fn(AllowedHosts, &str) -> AllowedHosts) -> Self {
        let hosts = add(self.authorizer.hosts.clone(), text);
        if hosts == self.authorizer.hosts {
            let host = without_userinfo(text);
            tracing::warn!(
                host,
                "ignored an allow-list entry that is not a host name; the allow-list is unchanged"
            );
        }
        self.authorizer.hosts = hosts;
        self
    }

    /// Replaces the allow-list. Default: [`AllowedHosts::default`].
    pub fn with_allowed_hosts(mut self, hosts: AllowedHosts) -> Self {
        self.authorizer.hosts = hosts;
        self
    }

    /// The allow-list of hosts that get the token, for example to make a redirect policy from it.
    #[must_use]
    pub fn allowed_hosts(&self) -> &AllowedHosts {
        &self.authorizer.hosts
    }

    /// Does not insert `x-api-key`. Default: the client id is sent.
    pub fn without_api_key(mut self) -> Self {
        self.authorizer.api_key = false;
        self
    }

    #[cfg(feature = "reqwest-middleware")]
    pub(crate) fn into_authorizer(self) -> Authorizer {
        self.authorizer
    }
}

impl<S, R> Layer<S> for AdobeAuthLayer<R> {
    type Service = AdobeAuth<S, R>;

    fn layer(&self, inner: S) -> Self::Service {
        AdobeAuth::new(inner, Arc::new(self.authorizer.clone()))
    }
}

/// The host and port of a URL, or of a part of one, for a log line. Userinfo may contain a password
/// with any character in it, so everything up to the last `@` is left out.
fn without_userinfo(text: &str) -> &str {
    let text = text.rsplit_once('@').map_or(text, |(_userinfo, rest)| rest);
    let text = text.split_once("://").map_or(text, |(_scheme, rest)| rest);
    text.split(['/', '?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::without_userinfo;

    #[test]
    fn a_logged_host_has_no_userinfo() {
        for (text, logged) in [
            ("https://user:hunter2@api.frame.io/v2?x=1", "api.frame.io"),
            ("user:hunter2@api.frame.io:443", "api.frame.io:443"),
            ("https://user:hunter2@", ""),
            ("https://user:hun@ter2@api.frame.io", "api.frame.io"),
            ("https://user:hun/ter2@api.frame.io", "api.frame.io"),
            ("https://user:hun?ter#2@api.frame.io", "api.frame.io"),
            ("https://user:hun://ter2@api.frame.io", "api.frame.io"),
            ("not a host", "not a host"),
        ] {
            assert_eq!(without_userinfo(text), logged, "{text}");
        }
    }
}
