//! Whether a request that an API refused with 401 is sent once more, with a new token.
//!
//! It is asked for by type, so that nobody's body has to be `Clone` who does not ask for it.

use super::message::Message;

/// Never sends a request twice: the default.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoReplay;

/// Sends a request that was answered with 401 once more, if it can be repeated.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReplayUnauthorized;

/// What [`AdobeAuthLayer::replay_unauthorized`](crate::AdobeAuthLayer::replay_unauthorized)
/// decides. Sealed: [`NoReplay`] or [`ReplayUnauthorized`].
pub trait Replay<Req>: sealed::Replay<Req> {}

impl<Req, R: sealed::Replay<Req>> Replay<Req> for R {}

/// A request that can be repeated, if its body can: `http::Request<B>` with `B: Clone`, and
/// `reqwest::Request`. Sealed.
pub trait Repeat: Message + sealed::Repeat {}

impl<Req: Message + sealed::Repeat> Repeat for Req {}

pub(crate) mod sealed {
    pub trait Replay<Req> {
        /// The request, to be sent once more if need be.
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

/// A response extension: the request was sent twice, and this is the answer to the second. A retry
/// around the layer need not repeat a 401 that carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replayed;
