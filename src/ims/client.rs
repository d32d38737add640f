//! One token request, one response: [`ImsClient`].

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::Body;
use http_body_util::Full;
use tokio::runtime::Handle;
use tower_service::Service;

use super::{
    changes::LastCredentials,
    environment::Environment,
    request::token_request,
    response,
    tower_transport::TowerTransport,
    transport::{Transport, default_transport},
};
use crate::{
    clock::{Clock, Deadline, WaitError},
    credentials::{ClientSecret, Credentials, ProvideCredentials, Provider},
    error::{BoxError, ConfigError, ErrorKind, TokenError},
    ims::TokenResponse,
};

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Requests access tokens from Adobe's IMS with the `client_credentials` grant.
///
/// Each [`request_token`](Self::request_token) sends one request and reads one response, without a
/// cache or a retry. Adobe throttles integrations that request too many tokens, so API requests
/// should take their token from a [`TokenSource`](crate::TokenSource), which uses an `ImsClient`.
///
/// Clients with the same [`connect_timeout`](ImsClientBuilder::connect_timeout) share one HTTP
/// client, so that a client per tenant is cheap. Cloning is cheap, too. `Debug` shows no secret.
///
/// # Example
///
/// ```no_run
/// use tower_adobe_auth::{Credentials, ImsClient};
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let ims = ImsClient::new(Credentials::new("client-id", "client-secret"))?;
/// let response = ims.request_token().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ImsClient {
    inner: Arc<Inner>,
    clock: Clock,
    last_credentials: LastCredentials,
}

struct Inner {
    provider: Provider,
    /// The fingerprint of the secret that IMS rejected when the other one worked. It is tried last.
    /// Not its position, because credentials may change.
    rejected: AtomicU64,
    hasher: RandomState,
    token_url: Uri,
    request_timeout: Duration,
    transport: Arc<dyn Transport>,
}

impl ImsClient {
    /// A client for Adobe's production IMS, with the defaults of [`ImsClientBuilder`].
    ///
    /// # Errors
    ///
    /// As for [`ImsClientBuilder::build`].
    pub fn new(credentials: Credentials) -> Result<Self, ConfigError> {
        Self::builder(credentials).build()
    }

    /// A client with settings of your own.
    pub fn builder(credentials: Credentials) -> ImsClientBuilder {
        ImsClientBuilder::new(Provider::Fixed(credentials))
    }

    /// A client that reads its credentials from `provider` for each token request.
    pub fn builder_from_provider(provider: impl ProvideCredentials) -> ImsClientBuilder {
        ImsClientBuilder::new(Provider::Changing(Arc::new(provider)))
    }

    /// Reads the wall clock from `clock`.
    #[must_use]
    pub(crate) fn with_clock(mut self, clock: Clock) -> Self {
        self.clock = clock;
        self
    }

    /// Sends one token request and reads the response.
    ///
    /// The token lives for the response's `expires_in`, or for less if its own claims say so. The
    /// response carries the client id and the organization of the credentials.
    ///
    /// If the credentials have two secrets and IMS rejects one with `invalid_client`, the other is
    /// tried immediately, and is tried first from then on.
    ///
    /// # Errors
    ///
    /// - [`Rejected`](ErrorKind::Rejected): IMS rejected the credentials or the request with a 4xx
    ///   status other than 408 and 429.
    /// - [`Throttled`](ErrorKind::Throttled), [`Unavailable`](ErrorKind::Unavailable): 429 and 5xx.
    /// - [`Connection`](ErrorKind::Connection): the connection to IMS failed.
    /// - [`Timeout`](ErrorKind::Timeout): IMS sent no complete response within the request timeout.
    /// - [`Malformed`](ErrorKind::Malformed): the response has no usable token, is a redirect, is
    ///   compressed, or is larger than 64 KiB.
    /// - [`Fetch`](ErrorKind::Fetch): the provider of the credentials failed.
    /// - [`NoRuntime`](ErrorKind::NoRuntime): the caller runs outside a Tokio runtime.
    /// - [`RuntimeLost`](ErrorKind::RuntimeLost): the Tokio runtime was built without its time driver.
    ///
    /// # Cancellation
    ///
    /// Dropping the future cancels the request.
    pub async fn request_token(&self) -> Result<TokenResponse, TokenError> {
        if Handle::try_current().is_err() {
            let message = "a token request needs a Tokio runtime";
            return Err(TokenError::new(ErrorKind::NoRuntime, message));
        }

        let credentials = self.credentials().await?;
        self.request_token_with(&credentials).await
    }

    /// [`request_token`](Self::request_token) with credentials that were read already.
    pub(crate) async fn request_token_with(
        &self,
        credentials: &Credentials,
    ) -> Result<TokenResponse, TokenError> {
        let fingerprint = self.fingerprint_of(credentials);
        self.last_credentials.record(fingerprint);
        let response = self.request_with_each_secret(credentials).await;
        self.last_credentials.record_end(fingerprint);
        response
    }

    async fn request_with_each_secret(
        &self,
        credentials: &Credentials,
    ) -> Result<TokenResponse, TokenError> {
        let mut secrets: Vec<&ClientSecret> = credentials.secrets().collect();
        let rejected = self.inner.rejected.load(Ordering::Relaxed);
        secrets.sort_by_key(|secret| self.inner.key(secret) == rejected);

        let mut rejection = None;
        for secret in secrets {
            match self.request_with(credentials, secret).await {
                Err(error) if error.oauth_error() == Some("invalid_client") => {
                    rejection.get_or_insert((secret, error));
                }
                response => {
                    if let (Ok(_), Some((secret, _))) = (&response, &rejection) {
                        self.inner.rejected.store(self.inner.key(secret), Ordering::Relaxed);
                    }
                    return response;
                }
            }
        }
        Err(rejection.expect("credentials have a secret").1)
    }

    async fn request_with(
        &self,
        credentials: &Credentials,
        secret: &ClientSecret,
    ) -> Result<TokenResponse, TokenError> {
        let Inner { token_url, request_timeout, transport, .. } = &*self.inner;
        let request = token_request(credentials, secret, token_url.clone());
        let mut deadline = Deadline::after(*request_timeout);
        let answer = match deadline.wait_for(transport.send(request), || {}).await {
            Ok(answer) => answer?,
            Err(WaitError::DeadlinePassed) => {
                let message = format!("IMS did not respond within {request_timeout:?}");
                return Err(TokenError::new(ErrorKind::Timeout, message));
            }
            Err(WaitError::NoTimer) => {
                let message = "a token request needs a tokio runtime with a time driver";
                return Err(TokenError::new(ErrorKind::RuntimeLost, message));
            }
        };

        let secrets: Vec<&str> = credentials.secrets().map(ClientSecret::expose_secret).collect();
        let response = response::read(&answer, &secrets, self.clock.now().wall)?;
        let response = response.with_client_id(credentials.client_id());
        Ok(match credentials.org_id() {
            Some(org_id) => response.with_org_id(org_id),
            None => response,
        })
    }
}

impl ImsClient {
    pub(super) fn provider(&self) -> &Provider {
        &self.inner.provider
    }

    pub(super) fn last_credentials(&self) -> &LastCredentials {
        &self.last_credentials
    }

    pub(crate) fn request_timeout(&self) -> Duration {
        self.inner.request_timeout
    }

    /// Identifies the current credentials. `None` if the provider fails, or does not return them
    /// within the request timeout.
    pub(super) async fn fingerprint(&self) -> Option<u64> {
        let credentials = self.inner.provider.credentials();
        let mut deadline = Deadline::after(self.inner.request_timeout);
        let credentials = deadline.wait_for(credentials, || {}).await.ok()?.ok()?;
        Some(self.fingerprint_of(&credentials))
    }

    pub(super) fn fingerprint_of(&self, credentials: &Credentials) -> u64 {
        credentials.fingerprint(&self.inner.hasher)
    }

    #[cfg(feature = "store")]
    pub(super) fn token_url(&self) -> &Uri {
        &self.inner.token_url
    }
}

impl Inner {
    fn key(&self, secret: &ClientSecret) -> u64 {
        self.hasher.hash_one(secret.expose_secret())
    }
}

impl fmt::Debug for ImsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImsClient")
            .field("credentials", &self.inner.provider)
            .field("token_url", &self.inner.token_url)
            .field("request_timeout", &self.inner.request_timeout)
            .finish_non_exhaustive()
    }
}

/// The settings of an [`ImsClient`].
#[must_use = "a builder does nothing until `build` is called"]
pub struct ImsClientBuilder {
    provider: Provider,
    environment: Environment,
    request_timeout: Duration,
    connect_timeout: Duration,
    transport: Option<Arc<dyn Transport>>,
}

impl ImsClientBuilder {
    fn new(provider: Provider) -> Self {
        Self {
            provider,
            environment: Environment::default(),
            request_timeout: REQUEST_TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
            transport: None,
        }
    }

    /// Sets the IMS that issues the tokens. Default: [`Environment::Production`].
    pub fn environment(mut self, environment: Environment) -> Self {
        self.environment = environment;
        self
    }

    /// Sets the timeout of a token request, from connecting to the last byte of the body. Default:
    /// 10 s.
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.request_timeout = timeout;
        self
    }

    /// Sets the timeout of connecting, DNS and TLS included. Default: 5 s.
    ///
    /// It applies only to the default HTTP client. All `ImsClient`s with the same value share one.
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Sets the HTTP client for IMS: any Tower service, such as hyper-util's. Default: a reqwest
    /// client without redirects, retries, decompression and idle connections, with TLS by rustls.
    ///
    /// The service is cloned for each request, and the clone is polled ready before it is called.
    /// It should neither follow redirects nor log bodies: the body holds the client secret.
    ///
    /// The body of a token request is a `Full<Bytes>`. A client with another body type, such as
    /// hyper-util's `Client<C, Empty<Bytes>>`, cannot send it: build a second client for IMS.
    ///
    /// # Example
    ///
    /// ```
    /// use hyper_util::{client::legacy::Client, rt::TokioExecutor};
    /// use tower_adobe_auth::{Credentials, ImsClient};
    ///
    /// // With a TLS connector in place of `build_http`.
    /// let http = Client::builder(TokioExecutor::new()).build_http();
    /// let ims = ImsClient::builder(Credentials::new("client-id", "client-secret"))
    ///     .transport(http)
    ///     .build()?;
    /// # Ok::<(), tower_adobe_auth::ConfigError>(())
    /// ```
    pub fn transport<S, B>(mut self, service: S) -> Self
    where
        S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone + Send + Sync + 'static,
        S::Error: Into<BoxError>,
        S::Future: Send,
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<BoxError>,
    {
        self.transport = Some(Arc::new(TowerTransport::new(service)));
        self
    }

    /// Builds the client.
    ///
    /// # Errors
    ///
    /// If the credentials cannot be sent, a timeout is zero, or there is no HTTP client: the default
    /// one cannot be built, or the feature `reqwest` is disabled and no
    /// [`transport`](Self::transport) was set.
    pub fn build(self) -> Result<ImsClient, ConfigError> {
        if let Provider::Fixed(credentials) = &self.provider {
            credentials.check()?;
        }
        if self.request_timeout.is_zero() {
            return Err(ConfigError::new("the request timeout is zero"));
        }
        if self.connect_timeout.is_zero() {
            return Err(ConfigError::new("the connect timeout is zero"));
        }
        let token_url = self.environment.token_url();
        let transport = match self.transport {
            Some(transport) => transport,
            None => default_transport(&token_url, self.connect_timeout)?,
        };
        let inner = Inner {
            provider: self.provider,
            rejected: AtomicU64::new(0),
            hasher: RandomState::new(),
            token_url,
            request_timeout: self.request_timeout,
            transport,
        };
        Ok(ImsClient {
            inner: Arc::new(inner),
            clock: Clock::default(),
            last_credentials: LastCredentials::default(),
        })
    }
}

#[cfg(feature = "reqwest")]
impl ImsClientBuilder {
    /// Sets the reqwest client for IMS. Default: as for [`transport`](Self::transport).
    ///
    /// Build it with `redirect::Policy::none()`. A client that follows redirects may send the client
    /// secret to another host; a response from another URL is an error.
    pub fn reqwest_client(mut self, client: reqwest::Client) -> Self {
        self.transport = Some(Arc::new(super::reqwest_transport::ReqwestTransport::new(client)));
        self
    }
}

impl fmt::Debug for ImsClientBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ImsClientBuilder")
            .field("credentials", &self.provider)
            .field("environment", &self.environment)
            .field("request_timeout", &self.request_timeout)
            .field("connect_timeout", &self.connect_timeout)
            .finish_non_exhaustive()
    }
}
