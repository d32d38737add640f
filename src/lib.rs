//! A Tower layer that gives every request to an Adobe API a valid `Authorization` header, from one
//! shared token that refreshes itself.
//!
//! ```no_run
//! # #[cfg(feature = "reqwest")]
//! # async fn example() -> Result<(), tower_adobe_auth::BoxError> {
//! use tower::{Service, ServiceExt};
//! use tower_adobe_auth::{AccessToken, AdobeAuthLayer, Credentials, Environment, TokenSource};
//!
//! let credentials = Credentials::new("client-id", "client-secret")
//!     .with_scopes(["openid", "AdobeID", "firefly_api", "ff_apis"]);     // the default scopes
//! let tokens: TokenSource = TokenSource::builder(credentials)
//!     .environment(Environment::custom("http://127.0.0.1:4801")?)        // default: Environment::Production
//!     .build()?;
//! let token: AccessToken = tokens.token().await?;                        // only if you need it yourself
//! println!("valid until {:?}", token.expires_at());
//!
//! let mut client = tower::ServiceBuilder::new()
//!     .layer(AdobeAuthLayer::new(tokens.clone()).allow_host("127.0.0.1"))
//!     .service(reqwest::Client::new());
//!
//! let request = reqwest::Request::new(reqwest::Method::GET, "http://127.0.0.1:4802/".parse()?);
//! let response = client.ready().await?.call(request).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # The parts
//!
//! - [`Credentials`]: who we are. By hand, [from the environment](Credentials::from_env), or
//!   [from the Adobe Developer Console's files](Credentials::from_console_json); for secrets that
//!   change underneath, [`FileCredentials`] or a [`ProvideCredentials`] of your own.
//! - [`TokenSource`]: the shared token, kept fresh. It asks Adobe IMS, at most once at a time, or
//!   [a fetcher of your own](TokenSource::from_fetcher). [`Status`] tells how it is.
//! - [`TokenSources`]: a source for each of many tenants, made on first use.
//! - `TokenStore` (feature `store`): where processes share one token, so that a whole fleet asks IMS
//!   once.
//! - [`AdobeAuthLayer`]: puts the token into requests to [allowed hosts](AllowedHosts), and only
//!   there. It wraps `http::Request<B>` services and `reqwest::Client` alike.
//! - [`TokenError`]: why there is no token, whether trying again can help, and what to do.
//!
//! The [`guide`] tells more: concepts, recipes, what to do when something fails, and how to come
//! from a mutex or from another SDK. [`telemetry`] lists what the crate tells of itself.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! | --- | --- | --- |
//! | `reqwest` | yes | IMS reached by reqwest with rustls; the layer around `reqwest::Client` |
//! | `reqwest-middleware` | no | `AdobeAuthMiddleware` |
//! | `metrics` | no | counters and histograms for the [`metrics`](https://docs.rs/metrics) crate: see [`telemetry`] |
//! | `store` | no | one token for many processes, by `TokenSourceBuilder::store` and a `TokenStore` of your own |
//! | `file-store` | no | `FileStore`: for the processes of one host, and for command-line tools |
//! | `redis-store` | no | `RedisStore`: for a fleet, in Redis or Valkey |
//! | `mock` | no | `mock::MockIms`, an IMS on loopback to test services with |
//!
//! Without default features there is neither reqwest nor a TLS stack in the tree; IMS is then
//! reached by [any `tower` service](ImsClientBuilder::transport) over `http::Request`.
//!
//! # What it needs
//!
//! A Tokio runtime with its time driver (`enable_all`, or `#[tokio::main]`) wherever a token is
//! waited for. A source can be made outside of one, and outlives the one that it fetched on.

#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod clock;
mod credentials;
mod error;
#[cfg(feature = "store")]
mod fleet;
mod foreign;
#[doc = include_str!("../docs/guide.md")]
pub mod guide {}
mod ims;
mod middleware;
#[cfg(feature = "mock")]
pub mod mock;
#[cfg(feature = "reqwest-middleware")]
mod reqwest_chain;
mod source;
#[cfg(feature = "store")]
mod store;
pub mod telemetry;

#[cfg(feature = "reqwest-middleware")]
pub use self::reqwest_chain::AdobeAuthMiddleware;
#[cfg(feature = "file-store")]
pub use self::store::FileStore;
#[cfg(feature = "redis-store")]
pub use self::store::RedisStore;
#[cfg(feature = "store")]
pub use self::store::{
    Acquired, CommitOutcome, LeaseRequest, MemoryStore, PlainCalls, PlainStore, StoreKey,
    StoredRecord, TokenStore,
};
pub use self::{
    credentials::{ClientSecret, Credentials, FileCredentials, ProvideCredentials, Scopes},
    error::{BoxError, ConfigError, ErrorKind, InsecureUri, StoreError, TokenError},
    ims::{CustomEnvironment, Environment, ImsClient, ImsClientBuilder, TokenResponse},
    middleware::{
        AcquireTimeout, AdobeAuth, AdobeAuthLayer, AllowedHosts, Message, MinLifetime,
        NoAuthorization, NoReplay, Repeat, Replay, ReplayUnauthorized, Replayed, Reply,
        ResponseFuture,
    },
    source::{
        AccessToken, FetchToken, Status, StatusChanges, TokenSource, TokenSourceBuilder,
        TokenSources,
    },
};

/// The examples of the README, compiled.
#[cfg(all(doctest, feature = "reqwest"))]
#[doc = include_str!("../README.md")]
struct Readme;

/// The examples of the page on the order of layers, compiled.
#[cfg(all(doctest, feature = "reqwest-middleware"))]
#[doc = include_str!("../docs/order-of-layers.md")]
struct OrderOfLayers;
