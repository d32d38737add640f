//! An Adobe IMS on loopback, to test services with that talk to Adobe.
//!
//! [`MockIms`] is a real HTTP server with the token endpoint of IMS and its manners: client secrets
//! that can be rotated, tokens in the shape and size of Adobe's that expire and can be revoked,
//! errors in Adobe's words. Beside it, on a port of its own, stands an API that is guarded by those
//! tokens. Nothing in the code under test is replaced: it runs as in production, with two other
//! URLs.
//!
//! # A first test
//!
//! ```
//! # #[cfg(not(feature = "reqwest"))]
//! # fn main() {}
//! # #[cfg(feature = "reqwest")]
//! use tower_adobe_auth::mock::MockIms;
//! # #[cfg(feature = "reqwest")]
//! use tower_adobe_auth::{Credentials, Environment, TokenSource};
//!
//! # #[cfg(feature = "reqwest")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let ims = MockIms::start().await;
//! let tokens = TokenSource::builder(Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET))
//!     .environment(Environment::custom(ims.url())?)
//!     .build()?;
//!
//! let (one, another) = tokio::join!(tokens.token(), tokens.token());
//!
//! assert_eq!(one?.expose_secret(), another?.expose_secret());
//! assert_eq!(ims.token_requests(), 1);
//! # Ok(())
//! # }
//! ```
//!
//! A service that takes the URLs of IMS and of the API from its configuration is tested the same
//! way: give it [`url`](MockIms::url) and [`api_url`](MockIms::api_url), allow the host `127.0.0.1`
//! in the layer, and look at [`api_unauthorized`](MockIms::api_unauthorized) in the end. A layer
//! that does not allow the host sends no token, and the API answers 403 with 403010.
//!
//! # Making things go wrong
//!
//! | to see what happens when | do |
//! | --- | --- |
//! | IMS fails for a while | [`respond_with`](MockIms::respond_with)([`Answer::unavailable()`]), later [`respond_normally`](MockIms::respond_normally) |
//! | IMS fails once, then throttles, then recovers | [`respond_next`](MockIms::respond_next)`([Answer::unavailable(), Answer::throttled(2)])` |
//! | IMS cannot be reached | [`go_down`](MockIms::go_down), later [`come_back`](MockIms::come_back) |
//! | IMS is slow, or never answers | [`set_delay`](MockIms::set_delay), [`Answer::hang()`] |
//! | something else answers in its place | [`Answer::raw`]`(200, "text/html", "<html>…")` |
//! | tokens expire under load | [`set_token_lifetime`](MockIms::set_token_lifetime) to a second or less |
//! | a token is revoked | [`revoke`](MockIms::revoke), [`revoke_all`](MockIms::revoke_all) |
//! | the client's secret is rotated | [`set_secrets`](MockIms::set_secrets), or the [Console's API](#what-the-console-answers) |
//! | the API refuses a good token, once or for ever | [`api_respond_next`](MockIms::api_respond_next)`([401])`, [`api_respond_with`](MockIms::api_respond_with)`(401)` |
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
//! # A token store of your own
//!
//! [`check_token_store`] tells whether a [`TokenStore`](crate::TokenStore) does what a source relies
//! on, and what is wrong with it.
//!
//! # Clocks
//!
//! The mock lives by the real clock, on a thread of its own. Under a paused clock (tokio's
//! `start_paused`) the runtime of the test takes a wait for its answer for idleness and moves on to
//! the next timer at once: a timeout then fires before the answer is there. With short
//! [lifetimes](MockIms::set_token_lifetime), tests on the real clock are quick as well.

mod answer;
mod api;
mod builder;
mod clients;
mod endpoints;
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
pub use self::mock_ims::MockIms;
pub use self::store_check::{StoreFaults, check_token_store};
pub use self::token_request::TokenRequest;
