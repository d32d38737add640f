//! Adobe's Identity Management System (IMS): one token request, one answer.
//!
//! [`ImsClient`] sends the request of the `client_credentials` grant to an [`Environment`] and
//! reads the answer. It neither repeats a request nor keeps a token: that is the token source's
//! part. What is sent and how an answer is judged is pure (`request`, `response`, `failure`,
//! `lifetime`, `claims`, `sanitize`); what touches the network stands behind `transport`.

mod claims;
mod client;
mod environment;
mod failure;
#[cfg(feature = "store")]
mod identity;
mod lifetime;
mod request;
#[cfg(feature = "reqwest")]
mod reqwest_transport;
mod response;
mod sanitize;
mod tower_transport;
mod transport;

pub use client::{ImsClient, ImsClientBuilder};
pub use environment::{CustomEnvironment, Environment};
