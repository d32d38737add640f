//! An Adobe IMS on loopback, to test services with that talk to Adobe.
//!
//! [`MockIms`] is a real HTTP server with the token endpoint of IMS and its manners: client secrets
//! that can be rotated, tokens in the shape and size of Adobe's that expire and can be revoked,
//! errors in Adobe's words. Beside it, on a port of its own, stands an API that is guarded by those
//! tokens. Nothing in the code under test is replaced: it runs as in production, with two other
//! URLs.
//!
//! Adobe's own JavaScript packages take it for IMS: this crate's tests run two of them against it.
//!
//! # A first test
//!
//! ```
//! # #[cfg(not(feature = "reqwest"))] fn main() {}
//! # #[cfg(feature = "reqwest")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower_adobe_auth::BoxError> {
//! use tower_adobe_auth::mock::MockIms;
//! use tower_adobe_auth::{Credentials, Environment, TokenSource};
//!
//! let ims = MockIms::start().await;
//! let tokens = TokenSource::builder(Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET))
//!     .environment(Environment::custom(ims.url())?)
//!     .build()?;
//!
//! let (one, another) = tokio::join!(tokens.token(), tokens.token());
//!
//! assert_eq!(one?.expose_secret(), another?.expose_secret());
//! ims.assert_token_requests(1);
//! # Ok(())
//! # }
//! ```
//!
//! # Testing a service
//!
//! A service that takes the URLs of IMS and of the API from its configuration is tested the same
//! way: give it [`url`](MockIms::url) and [`api_url`](MockIms::api_url), and allow the host
//! `127.0.0.1` in the layer. A layer that does not allow the host sends no token, and the API
//! answers 403 with 403010.
//!
//! ```
//! # #[cfg(not(feature = "reqwest"))] fn main() {}
//! # #[cfg(feature = "reqwest")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower_adobe_auth::BoxError> {
//! use tower::{Layer, ServiceExt};
//! use tower_adobe_auth::mock::MockIms;
//! use tower_adobe_auth::{AdobeAuthLayer, BoxError, Credentials, Environment, TokenSource};
//!
//! // The code under test.
//! async fn models(ims: &str, api: &str) -> Result<u16, BoxError> {
//!     let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
//!         .environment(Environment::custom(ims)?)
//!         .build()?;
//!     let http = reqwest::Client::new();
//!     let request = http.get(format!("{api}/v3/models")).build()?;
//!     let client = AdobeAuthLayer::new(tokens).allow_host("127.0.0.1").layer(http);
//!     Ok(client.oneshot(request).await?.status().as_u16())
//! }
//!
//! let ims = MockIms::start().await;
//!
//! assert_eq!(models(ims.url(), ims.api_url()).await?, 200);
//!
//! ims.assert_token_requests(1);
//! ims.assert_api_requests(1);
//! ims.assert_no_unauthorized();
//! # Ok(())
//! # }
//! ```
//!
//! # What to assert
//!
//! | that | assert |
//! | --- | --- |
//! | the service shares its token, and asks for no more than it needs | [`assert_token_requests`](MockIms::assert_token_requests) |
//! | its credentials and scopes are right | [`assert_no_refused_requests`](MockIms::assert_no_refused_requests) |
//! | each request had a living token and the right `x-api-key` | [`assert_no_unauthorized`](MockIms::assert_no_unauthorized) |
//! | a request was sent, once | [`assert_api_requests`](MockIms::assert_api_requests) |
//! | what was to go wrong did | [`assert_all_answers_given`](MockIms::assert_all_answers_given) |
//!
//! They say what came instead, such as `2 of 3 API requests refused:` and for each what was wrong
//! with it. For all else there are the counts ([`token_requests`](MockIms::token_requests) and its
//! neighbours) and the requests themselves: [`last_token_request`](MockIms::last_token_request),
//! [`recorded_token_requests`](MockIms::recorded_token_requests).
//!
//! # Making things go wrong
//!
//! | to see what happens when | do |
//! | --- | --- |
//! | IMS fails for a while | [`respond_with`](MockIms::respond_with)([`Answer::unavailable()`]), later [`respond_normally`](MockIms::respond_normally) |
//! | IMS fails once, then throttles, then recovers | [`respond_next`](MockIms::respond_next)`([Answer::unavailable(), Answer::throttled(2)])` |
//! | IMS cannot be reached | [`go_down`](MockIms::go_down), later [`come_back`](MockIms::come_back) |
//! | IMS is slow, or never answers | [`set_delay`](MockIms::set_delay), [`Answer::hang()`] |
//! | a token request is under way | [`hold`](MockIms::hold), later [`release`](Gate::release) |
//! | something else answers in its place | [`Answer::raw`]`(200, "text/html", "<html>…")` |
//! | tokens expire under load | [`set_token_lifetime`](MockIms::set_token_lifetime) to a second or less |
//! | a token is revoked | [`revoke`](MockIms::revoke), [`revoke_all`](MockIms::revoke_all) |
//! | the client's secret is rotated | [`set_secrets`](MockIms::set_secrets), or the [Console's API](#what-the-console-answers) |
//! | the API refuses a good token, once or for ever | [`api_respond_next`](MockIms::api_respond_next)`([401])`, [`api_respond_with`](MockIms::api_respond_with)`(401)` |
//!
//! Answers that are queued come first, one for each request, then the standing one, and without
//! either IMS judges the request. A source that is told to try again does so by itself:
//!
//! ```
//! # #[cfg(not(feature = "reqwest"))] fn main() {}
//! # #[cfg(feature = "reqwest")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower_adobe_auth::BoxError> {
//! # use std::time::Duration;
//! # use tower_adobe_auth::{Credentials, Environment, TokenSource};
//! use tower_adobe_auth::mock::{Answer, MockIms};
//!
//! # let ims = MockIms::start().await;
//! # let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
//! #     .environment(Environment::custom(ims.url())?)
//! #     .backoff_cap(Duration::from_millis(10))
//! #     .build()?;
//! ims.respond_next([Answer::unavailable(), Answer::disconnect()]);
//!
//! tokens.token().await?;
//!
//! ims.assert_token_requests(3);
//! ims.assert_all_answers_given();
//! # Ok(())
//! # }
//! ```
//!
//! # While a token request is under way
//!
//! No test has to sleep and hope. [`wait_for_token_requests`](MockIms::wait_for_token_requests)
//! ends when they have come, or fails after ten seconds, and [`hold`](MockIms::hold) keeps their
//! answers back until the test has seen what it wanted. Here a token is renewed, and nobody waits
//! for that:
//!
//! ```
//! # #[cfg(not(feature = "reqwest"))] fn main() {}
//! # #[cfg(feature = "reqwest")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower_adobe_auth::BoxError> {
//! # use std::time::Duration;
//! # use tower_adobe_auth::{Credentials, Environment, TokenSource, mock::MockIms};
//! # let ims = MockIms::start().await;
//! # let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
//! #     .environment(Environment::custom(ims.url())?)
//! #     .refresh_at(0.02)
//! #     .build()?;
//! ims.set_token_lifetime(Duration::from_secs(20));
//! let old = tokens.token().await?;
//!
//! let gate = ims.hold();
//! ims.wait_for_token_requests(2).await;
//! assert!(tokens.status().is_refreshing());
//! assert_eq!(tokens.token().await?.expose_secret(), old.expose_secret());
//!
//! gate.release();
//! # Ok(())
//! # }
//! ```
//!
//! # When a token is revoked
//!
//! The API refuses a [revoked](MockIms::revoke_all) token from the next request on. The layer
//! notices by the 401, and replaces the token; the request itself is sent again only by a layer
//! that was told to:
//!
//! ```
//! # #[cfg(not(feature = "reqwest"))] fn main() {}
//! # #[cfg(feature = "reqwest")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower_adobe_auth::BoxError> {
//! # use tower::{Layer, ServiceExt};
//! # use tower_adobe_auth::{AdobeAuthLayer, Credentials, Environment, TokenSource, mock::MockIms};
//! # let ims = MockIms::start().await;
//! # let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
//! #     .environment(Environment::custom(ims.url())?)
//! #     .build()?;
//! # let http = reqwest::Client::new();
//! # let request = || http.get(ims.api_url()).build();
//! # tokens.token().await?;
//! let layer = AdobeAuthLayer::new(tokens).allow_host("127.0.0.1").replay_unauthorized();
//! ims.revoke_all();
//!
//! let response = layer.layer(http.clone()).oneshot(request()?).await?;
//!
//! assert_eq!(response.status(), 200);
//! assert_eq!(ims.api_unauthorized(), 1);
//! ims.assert_api_requests(2);
//! ims.assert_token_requests(2);
//! # Ok(())
//! # }
//! ```
//!
//! A revocation that a new token does not mend is [`api_respond_with`](MockIms::api_respond_with)`(401)`.
//!
//! # After an outage
//!
//! A source that failed backs off, and tells callers its last failure until
//! [`retry_in`](crate::TokenError::retry_in) is over, also when IMS has come back. A test that
//! expects the next call to succeed shortens that with
//! [`backoff_cap`](crate::TokenSourceBuilder::backoff_cap), and sleeps so long. A source with a
//! valid token notices no outage: to see one, use a new source, or tokens of a short
//! [lifetime](MockIms::set_token_lifetime).
//!
//! # What IMS answers
//!
//! * `POST /ims/token/v3` (and `v2`, `v4`): a token for `grant_type=client_credentials`,
//!   `client_id`, `client_secret` and `scope`, as a form or, as IMS takes it too, in the query. Else
//!   400 with an `error` of RFC 6749 and an `x-debug-id`.
//! * `POST /token`: the same for the id and the secret alone, as PDF Services has it, with
//!   `expires_in` as a string.
//! * `POST /ims/validate_token/v1`: whether a token lives. `POST /ims/revoke`: ends it.
//!
//! Request bodies are read up to 64 KiB.
//!
//! # What the API answers
//!
//! * Any path: 200 with `{"ok": true, "method", "path", "org", "body_bytes"}` (`org` says whether
//!   `x-gw-ims-org-id` came) for a request with one living bearer token and its client's id as
//!   `x-api-key`. 401 with 401013 for a token that is not valid; 403 with 403010 for none at all,
//!   and with 403000 or 403003 for a missing or wrong `x-api-key`.
//! * `/storage/…`: as pre-signed URLs behave, 200 without an `Authorization` header and 400 with
//!   one. Ask for it by a name that the layer was not told to allow, such as `localhost`.
//!
//! # What the Console answers
//!
//! On the API's port, at [`secrets_url`](MockIms::secrets_url), stands the Console's API for the
//! secrets of a client: `/console/organizations/{org_id}/credentials/{credential_id}/secrets`. It
//! is guarded as the rest of the API, and wants a token with all of the scopes that Adobe documents
//! for it; without one of them the answer is 403 with 403011. Whose token it is, is not asked.
//!
//! * `GET`: the secrets with their `uuid`, `created_at` and `last_used_at`, never their text.
//!   Times are strings of milliseconds. `secret_usages` is `null` until a token is issued for a
//!   secret, which is noted at once; Adobe's may take longer.
//! * `POST`: 201 with a new secret and, this once, its text as `client_secret`. There are at most
//!   two at a time; what Adobe answers to a third is not documented, and the mock's 400 is its own.
//! * `DELETE …/{uuid}`: 204, or 404 if there is no such secret.
//!
//! A new secret is accepted at once, and a deleted one refused. Tokens that were issued for it live
//! on.
//!
//! A new secret is made by whoever has a token with those scopes:
//!
//! ```
//! # #[cfg(not(feature = "reqwest"))] fn main() {}
//! # #[cfg(feature = "reqwest")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower_adobe_auth::BoxError> {
//! # use tower_adobe_auth::{Credentials, Environment, TokenSource, mock::MockIms};
//! # let ims = MockIms::start().await;
//! let scopes = "AdobeID, openid, read_organizations, additional_info.projectedProductContext, \
//!     additional_info.roles, adobeio_api, read_client_secret, manage_client_secrets";
//! let credentials = Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET);
//! let tokens = TokenSource::builder(credentials.with_scopes(scopes))
//!     .environment(Environment::custom(ims.url())?)
//!     .build()?;
//!
//! let created = reqwest::Client::new()
//!     .post(ims.secrets_url(MockIms::CLIENT_ID))
//!     .bearer_auth(tokens.token().await?.expose_secret())
//!     .header("x-api-key", MockIms::CLIENT_ID)
//!     .send()
//!     .await?;
//!
//! assert_eq!(created.status(), 201);
//! let created: serde_json::Value = serde_json::from_slice(&created.bytes().await?)?;
//! assert_eq!(ims.secrets(MockIms::CLIENT_ID)[1], created["client_secret"]);
//! # Ok(())
//! # }
//! ```
//!
//! # A token store of your own
//!
//! [`check_token_store`] tells whether a [`TokenStore`](crate::TokenStore) does what a source relies
//! on, and what is wrong with it.
//!
//! # Time
//!
//! The mock lives by the real clock, on a thread of its own. To see tokens end, let them be short:
//! a [lifetime](MockIms::set_token_lifetime) of a second is kept to the millisecond, and the source
//! scales its margins with it.
//!
//! ```
//! # #[cfg(not(feature = "reqwest"))] fn main() {}
//! # #[cfg(feature = "reqwest")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), tower_adobe_auth::BoxError> {
//! # use std::time::{Duration, SystemTime};
//! # use tower_adobe_auth::{Credentials, Environment, TokenSource};
//! # use tower_adobe_auth::mock::MockIms;
//! let ims = MockIms::builder().token_lifetime(Duration::from_millis(500)).start().await;
//! # let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
//! #     .environment(Environment::custom(ims.url())?)
//! #     .build()?;
//! let first = tokens.token().await?;
//!
//! let left = first.expires_at().duration_since(SystemTime::now()).unwrap_or_default();
//! tokio::time::sleep(left).await;
//!
//! assert_ne!(tokens.token().await?.expose_secret(), first.expose_secret());
//! # Ok(())
//! # }
//! ```
//!
//! A paused clock (tokio's `start_paused`) does not reach the mock: the runtime of the test takes a
//! wait for its answer for idleness and moves on to the next timer at once, so that a timeout fires
//! before the answer is there. Only [`wait_for_token_requests`](MockIms::wait_for_token_requests)
//! takes its time from the mock. A source whose wall clock is to jump takes one of yours, by
//! [`wall_clock`](crate::TokenSourceBuilder::wall_clock); what the mock calls valid does not jump
//! with it.

mod answer;
mod api;
mod assertions;
mod builder;
mod clients;
mod endpoints;
mod gate;
mod grant;
mod mock_ims;
mod reply;
mod script;
mod secrets;
mod server;
mod state;
mod store_check;
mod token_request;
mod tokens;

pub use self::answer::Answer;
pub use self::builder::MockImsBuilder;
pub use self::gate::Gate;
pub use self::mock_ims::MockIms;
pub use self::store_check::{StoreCheck, StoreFaults, check_token_store};
pub use self::token_request::TokenRequest;
