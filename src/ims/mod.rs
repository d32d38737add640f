//! Adobe's Identity Management System (IMS): one token request, one response.
//!
//! [`ImsClient`] sends the request of the `client_credentials` grant to an [`Environment`] and
//! reads the response. Retries and the cache are up to the token source. Building a request and
//! judging a response is pure (`request`, `response`, `failure`, `lifetime`, `claims`, `sanitize`);
//! the network is behind `transport`.

mod changes;
mod claims;
mod client;
mod environment;
mod failure;
mod identity;
mod lifetime;
mod request;
#[cfg(feature = "reqwest")]
mod reqwest_transport;
mod response;
mod sanitize;
mod token_response;
mod tower_transport;
mod transport;

pub use client::{ImsClient, ImsClientBuilder};
pub use environment::{CustomEnvironment, Environment};
pub use token_response::TokenResponse;
