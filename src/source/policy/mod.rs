//! The rules of a source as pure functions: when a token is refreshed, how long to back off, and
//! which 401 to believe.

pub(in crate::source) mod backoff;
pub(crate) mod refusals;
mod schedule;

pub(crate) use self::{
    backoff::{Backoff, Pauses},
    refusals::Refusals,
    schedule::{Schedule, Thresholds},
};
