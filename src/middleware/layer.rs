//! [`AdobeAuthLayer`]: the rules, and the source of the tokens.

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
/// It wraps services of `http::Request<B>`, whatever the body, and of `reqwest::Request`. A request
/// to an allowed host gets
/// - `Authorization: Bearer …`, in place of what its caller set: a gateway must not pass its own
///   callers' credentials on to Adobe. The value is marked sensitive.
/// - `x-api-key` with the client id, unless it is set already, or [turned off](Self::without_api_key).
/// - `x-gw-ims-org-id` with the organization of the credentials if they have one, unless it is set
///   already.
///
/// A request to any other host passes untouched: the pre-signed storage URLs of Adobe's jobs go
/// through the same client, and must not see the token. Allowed are `adobe.io` and its subdomains
/// over `https`, and what [`allow_host`](Self::allow_host) and
/// [`allow_subdomains_of`](Self::allow_subdomains_of) add. Plain `http` to an allowed host is an
/// [`InsecureUri`](crate::InsecureUri) error, except on loopback.
///
/// A request can differ from the layer by its extensions: [`NoAuthorization`], another
/// [`TokenSource`], [`AcquireTimeout`], [`MinLifetime`]. (A `reqwest::Request` carries none.)
///
/// When an API answers 401, its token is suspect: one flight replaces it, for all who got the 401 and
/// all who come meanwhile. If that fails, the token serves on until its end. The request itself is
/// not repeated, unless [asked for](Self::replay_unauthorized). A host that refuses new tokens too
/// (Adobe answers 401 for missing permissions as well) is believed twice a minute at most.
///
/// With a valid token in hand the inner service is called at once. Without one the response future
/// waits for it, so that a timeout around the service covers the wait; meanwhile the inner
/// service's readiness is given back, and asked for again when the token has come.
///
/// The order of layers, from the outside: total timeout, trace, retry, *this one*, timeout of one
/// try, client; and inside anything that follows redirects. Each attempt is then authorized anew,
/// and each hop meets the host rule. reqwest follows redirects inside the client, beneath this
/// layer: build it with `AllowedHosts::redirect_policy`.
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
    /// Sends a request that was answered with 401 once more, with a new token. Default: the caller
    /// gets the 401.
    ///
    /// The request is kept for that, so its body has to be `Clone`; a `reqwest::Request` whose body
    /// is a stream cannot be repeated, and is sent once. The answer to the second try is the
    /// caller's whatever it is, and carries the [`Replayed`](crate::Replayed) extension. If no
    /// other token can be had, the caller gets the 401. Nothing but a 401 is ever replayed: the API
    /// has refused the request, and done nothing.
    pub fn replay_unauthorized(self) -> AdobeAuthLayer<ReplayUnauthorized> {
        AdobeAuthLayer { authorizer: self.authorizer, replay: PhantomData }
    }

    /// Adds exactly this host to the allowed ones, on any port; or on one port, given as
    /// `host:port`. A loopback host may then be plain `http`; build the client without a proxy
    /// then (`ClientBuilder::no_proxy` of reqwest), or the proxy reads the token.
    ///
    /// Something that is no host adds nothing, and is told in a `warn` event.
    pub fn allow_host(self, host: impl AsRef<str>) -> Self {
        self.allow(host.as_ref(), |hosts, host| hosts.with_host(host))
    }

    /// Adds this domain and its subdomains to the allowed hosts, on any port.
    ///
    /// Something that is no domain name adds nothing, and is told in a `warn` event.
    pub fn allow_subdomains_of(self, domain: impl AsRef<str>) -> Self {
        self.allow(domain.as_ref(), |hosts, domain| hosts.with_subdomains_of(domain))
    }

    fn allow(mut self, text: &str, add: fn(AllowedHosts, &str) -> AllowedHosts) -> Self {
        let hosts = add(self.authorizer.hosts.clone(), text);
        if hosts == self.authorizer.hosts {
            tracing::warn!(host = text, "not a host name: this allows nothing");
        }
        self.authorizer.hosts = hosts;
        self
    }

    /// Replaces the allowed hosts. Default: [`AllowedHosts::default`].
    pub fn with_allowed_hosts(mut self, hosts: AllowedHosts) -> Self {
        self.authorizer.hosts = hosts;
        self
    }

    /// The hosts that get the token: for a redirect policy, say.
    #[must_use]
    pub fn allowed_hosts(&self) -> &AllowedHosts {
        &self.authorizer.hosts
    }

    /// Sends no `x-api-key` of ours. Default: the client id is sent.
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
