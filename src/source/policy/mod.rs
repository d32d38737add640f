//! The rules of a source as pure functions: when a token is refreshed, how long to back off, and
//! which 401 to believe.

mod backoff;
mod refusals;
mod schedule;

pub(crate) use self::{
    backoff::{Backoff, Pauses},
    refusals::{BELIEVED_PER_ORIGIN, Refusals, WINDOW as REFUSAL_WINDOW},
    schedule::{Schedule, Thresholds},
};
