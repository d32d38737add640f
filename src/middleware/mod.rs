//! The middleware: [`AdobeAuthLayer`] wraps a service in [`AdobeAuth`], whose future is
//! [`ResponseFuture`].
//!
//! What happens to a request is decided once, in [`Authorizer`], for every kind of stack: is its
//! [host](AllowedHosts) one that gets a token, which source's token, and which headers.

mod authorizer;
mod future;
mod hosts;
mod layer;
mod message;
mod options;
mod place;
#[cfg(feature = "reqwest")]
mod redirect;
mod replay;
mod reply;
mod service;

pub use self::{
    future::ResponseFuture,
    hosts::AllowedHosts,
    layer::AdobeAuthLayer,
    message::Message,
    options::{AcquireTimeout, MinLifetime, NoAuthorization},
    replay::{NoReplay, Repeat, Replay, ReplayUnauthorized, Replayed},
    reply::Reply,
    service::AdobeAuth,
};

#[cfg(feature = "reqwest-middleware")]
pub(crate) use self::{
    authorizer::{Authorization, Authorizer},
    reply::{refused, refused_again},
};
