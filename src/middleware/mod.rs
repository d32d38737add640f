//! The middleware: [`AdobeAuthLayer`] wraps a service in [`AdobeAuth`], whose future is
//! [`ResponseFuture`].
//!
//! [`Authorizer`] decides once for each request, and the same way for every client:
//! 1. A request that names no [origin](origin::RequestOrigin), or one whose host is not on the
//!    [allow-list](AllowedHosts), passes through unchanged. So does one with [`NoAuthorization`].
//! 2. A request that would carry the token over plain `http` to another machine fails with
//!    [`InsecureUri`](crate::InsecureUri).
//! 3. A request whose source has a cached token gets its headers, and is sent immediately.
//! 4. Any other request waits for a token until its deadline, inside the response future.
//!
//! A 401 from the origin of the request is reported to the source of the token, and a layer that
//! [replays](ReplayUnauthorized) sends the request once more.

mod authorizer;
mod extensions;
mod future;
mod hosts;
mod layer;
mod message;
mod origin;
#[cfg(feature = "reqwest")]
mod redirect;
mod replay;
mod reply;
mod service;

pub use self::{
    extensions::{AcquireTimeout, MinLifetime, NoAuthorization},
    future::ResponseFuture,
    hosts::AllowedHosts,
    layer::AdobeAuthLayer,
    message::Message,
    replay::{NoReplay, Repeat, Replay, ReplayUnauthorized, Replayed},
    reply::Reply,
    service::AdobeAuth,
};

#[cfg(feature = "reqwest-middleware")]
pub(crate) use self::{
    authorizer::{Authorization, Authorizer},
    reply::is_refusal,
};
