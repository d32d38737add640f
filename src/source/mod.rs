//! The shared token: one source, kept fresh by one flight at a time.
//!
//! What a source knows is a plain [`State`](state::State) behind a mutex that is held for a few
//! lines at a time. What to do next is decided there, by pure functions of that state and the
//! time. A [`flight`] is one refresh: a task of its own, which no caller's life decides over. The
//! [`keeper`] starts flights when nobody calls.

#[cfg(not(feature = "store"))]
mod alone;
mod backoff;
mod builder;
mod closing;
mod counts;
mod fetch;
#[cfg(feature = "store")]
mod fleet;
mod flight;
mod keeper;
#[cfg(feature = "store")]
mod look;
#[cfg(feature = "store")]
mod notice;
mod refusals;
mod schedule;
mod shared;
#[cfg(feature = "store")]
mod sharing;
mod spread;
mod state;
mod status;
mod token_source;
mod token_sources;
#[cfg(feature = "store")]
mod visit;
#[cfg(feature = "store")]
mod watch;

#[cfg(not(feature = "store"))]
use self::alone as fleet;
pub(crate) use self::shared::Seen;
pub use self::{
    builder::TokenSourceBuilder,
    fetch::FetchToken,
    status::{Status, StatusChanges},
    token_source::TokenSource,
    token_sources::TokenSources,
};
