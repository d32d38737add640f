//! The shared token of one process. This module knows nothing of stores.
//!
//! A source answers one question: **is a usable token cached?** If so, every caller gets that token,
//! whatever has become of IMS, the network or the last refresh. A caller waits or fails only if no
//! usable token is cached; a *suspect* token (below) delays a caller by at most 2 s.
//!
//! In the terms of the field this is single-flight (one refresh at a time, shared by all callers, so
//! that an expired token causes no thundering herd) with stale-while-revalidate (a token that is due
//! for refresh is served while its refresh runs).
//!
//! # The states
//!
//! - A token is *valid* at first. It is *due* for refresh after 23/24 of its lifetime, and *expired* a
//!   little before its end.
//! - It is *suspect* if an API refused it with 401 and the refusal was believed, until a refresh
//!   completes.
//! - At most one *refresh* is in progress.
//! - After a failure the source is in *backoff*: it leaves the *issuer* (IMS, or the user's fetcher)
//!   alone for a while.
//!
//! ```text
//!   ┌───────┐  23/24 of the lifetime  ┌─────┐      lifetime ends      ┌─────────┐
//!   │ valid │────────────────────────▶│ due │────────────────────────▶│ expired │
//!   └───┬───┘                         └──┬──┘                         └─────────┘
//!       │ 401                            │ 401                             ▲
//!       │            ┌─────────┐         │                                 │
//!       └───────────▶│ suspect │◀────────┘                                 │
//!                    └────┬────┘                                           │
//!                         └─────────────────── lifetime ends ──────────────┘
//! ```
//!
//! Not drawn: a source starts without a token, and `invalidate` drops the cached one; callers then wait
//! as for an expired token. A refresh that completes leads from every state to *valid*. The token is
//! usable in the states *valid*, *due* and *suspect*.
//!
//! # The answer to a caller
//!
//! | cached token | refresh in progress | issuer in backoff | a caller gets |
//! | --- | --- | --- | --- |
//! | valid | any | any | the token |
//! | due | no | no | the token; a refresh starts in the background |
//! | due | yes | any | the token |
//! | due | no | yes | the token |
//! | suspect | yes | – | a wait for the new token, the first failed attempt or 2 s after the refusal; then the suspect token |
//! | suspect | no | no | a refresh, and the same wait |
//! | suspect for 2 s, or after a failed refresh | no | no | the suspect token; a refresh starts in the background |
//! | suspect | no | yes | the suspect token |
//! | none or expired | yes | – | a wait for a *change of the state*: any token will do |
//! | none or expired | no | no | a refresh, and the same wait |
//! | none or expired | no | yes | the failure, immediately, with the time to the next attempt; or a wait, if IMS sent `Retry-After` and the deadline of the caller and the number of attempts allow it |
//!
//! [`State::decide`](state::State::decide) is this table, and `state_tests.rs` tests each row. Five
//! conditions come on top of it:
//!
//! - A refresh that is overdue is reviewed before the table applies: extended once, then given up.
//! - After a failed refresh, the next one starts when the backoff ends, even if the token is not due
//!   yet.
//! - A caller that cannot wait (`try_token`) gets a suspect token immediately.
//! - No refresh starts outside of a Tokio runtime or after a shutdown. Without a usable token the
//!   caller fails with `NoRuntime` or `Shutdown`.
//! - A caller with requirements (a minimum lifetime, a newer token) finds only a token usable that
//!   meets them.
//!
//! A caller waits in a loop: decide, then wait for the next change of the state or for the deadline. At
//! the deadline the caller checks the cache once more. The caller waits for no particular refresh, so a
//! refresh that stalls or is lost with its runtime does not fail the callers who wait.
//!
//! # Failures
//!
//! | event | recorded against | callers without a token |
//! | --- | --- | --- |
//! | IMS responded with an error, could not be reached, or did not respond in time | the issuer: exponential backoff | fail until the backoff ends |
//! | the fetcher panicked | this process | those who waited fail; from the second panic in a row on, all fail during a pause |
//! | the runtime of the refresh ended, or nobody drove it | this process | wait for 100 ms at most, then start another refresh |
//! | the process stood still (stopped, suspended, frozen) | nothing: the attempt is repeated, and timeouts count running time | wait |
//! | a tracing subscriber or metrics recorder panicked | nothing | are not affected |
//!
//! # The files, from top to bottom
//!
//! ```text
//! tenants         a source per tenant
//! token_source ◀▶ builder      the public API
//! acquire         the loop of a caller: decide, act, wait
//! background      the background task: three independent jobs
//! refresh         one refresh, and the guard that ends it
//! inner           the state behind its mutex, the published snapshot, the tasks
//! status          the public view of the state
//! state           the state, and the decisions that follow from it; pure
//! hot_path        optimizations of the request path, which change no result
//! policy          when to refresh, how long to back off, which 401 to believe; pure
//! access_token    the token and its header values
//! supply          the seam: one attempt to obtain a token
//! fetch           the public trait of a token fetcher
//! sync            the concurrency primitives, which `model` replaces to check the protocol
//! ```
//!
//! A file imports only from files below it, except that a type and its builder know each other.

mod access_token;
mod acquire;
mod background;
mod builder;
mod fetch;
mod hot_path;
mod inner;
mod policy;
mod refresh;
mod state;
mod status;
mod supply;
mod sync;
mod tenants;
mod token_source;

pub use self::{
    access_token::AccessToken,
    builder::TokenSourceBuilder,
    fetch::FetchToken,
    status::Status,
    tenants::TokenSources,
    token_source::{StatusChanges, TokenSource},
};
pub(crate) use self::{access_token::OriginKey, state::Want};
#[cfg(feature = "store")]
pub(crate) use self::{
    builder::WrapSupply,
    inner::Settings,
    policy::Schedule,
    policy::backoff::CALLERS_CAP,
    policy::refusals::{BELIEVED_PER_ORIGIN, WINDOW as REFUSAL_WINDOW},
    supply::{BoxFuture, Need, Reason, Stamp, Supplied, Supply, Watching},
};

#[cfg(test)]
mod lock_tests;
#[cfg(test)]
mod model;
