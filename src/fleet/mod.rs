//! One token for many processes: one of them requests it, and the others take it from a token store.
//!
//! The [`Fleet`](supply::Fleet) stands between a source and the supply of its tokens. If the store
//! fails, the process requests its own tokens.

mod common;
mod look;
mod notice;
mod sharing;
mod supply;
mod visit;
mod watch;
