//! The replay: a request that an API refused with 401 is sent once more, with another token.
//!
//! Replaying is a type parameter of the layer, so that only a layer that replays requires bodies that
//! are `Clone`.

use super::message::Message;

/// Sends each request once. The default.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReplay;

/// Sends a request once more after a 401, if the request can be cloned.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReplayUnauthorized;

/// The choice of [`AdobeAuthLayer::replay_unauthorized`](crate::AdobeAuthLayer::replay_unauthorized):
/// [`NoReplay`] or [`ReplayUnauthorized`]. Sealed.
pub trait Replay<Req>: sealed::Replay<Req> {}

impl<Req, R: sealed::Replay<Req>> Replay<Req> for R {}

/// A request that can be sent twice: `http::Request<B>` with `B: Clone`, and `reqwest::Request`
/// unless its body is a stream. Sealed.
pub trait Repeat: Message + sealed::Repeat {}

impl<Req: Message + sealed::Repeat> Repeat for Req {}

pub(crate) mod sealed {
    pub trait Replay<Req> {
        /// A copy of the request for the replay; `None` if it is sent only once.
        fn spare(request: &Req) -> Option<Req>;
    }

    pub trait Repeat: Sized {
        fn repeat(&self) -> Option<Self>;
    }
}

impl<Req> sealed::Replay<Req> for NoReplay {
    fn spare(_: &Req) -> Option<Req> {
        None
    }
}

impl<Req: sealed::Repeat> sealed::Replay<Req> for ReplayUnauthorized {
    fn spare(request: &Req) -> Option<Req> {
        request.repeat()
    }
}

impl<B: Clone> sealed::Repeat for http::Request<B> {
    fn repeat(&self) -> Option<Self> {
        Some(self.clone())
    }
}

#[cfg(feature = "reqwest")]
impl sealed::Repeat for reqwest::Request {
    fn repeat(&self) -> Option<Self> {
        self.try_clone()
    }
}

/// A response extension: the request was replayed, and this is the response to the replay.
///
/// A retry layer around this one should not repeat a 401 that carries this extension.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed;
