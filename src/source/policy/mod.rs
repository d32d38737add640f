//! The rules of a source as pure functions: when a token is refreshed, how long to back off, and
//! which 401 to believe.

pub(crate) mod backoff;
pub(crate) mod refusals;
pub(crate) mod schedule;
