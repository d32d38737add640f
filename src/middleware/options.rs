//! What a single request can ask for, by an extension.

use std::time::Duration;

/// A request extension: wait for a token at most this long.
///
/// Default: the source's [`acquire_timeout`](crate::TokenSourceBuilder::acquire_timeout).
///
/// ```
/// # use std::time::Duration;
/// use tower_adobe_auth::AcquireTimeout;
///
/// let request = http::Request::get("https://firefly-api.adobe.io/")
///     .extension(AcquireTimeout(Duration::from_secs(2)))
///     .body(());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AcquireTimeout(pub Duration);

/// A request extension: use a token that lives for at least this long, for long uploads and jobs.
///
/// A token that ends earlier is replaced first, and the request waits for that. What can be asked
/// for is the time up to a token's renewal, 22 of 24 hours surely: beyond that each request would
/// cost a token, and it fails with [`ErrorKind::Lifetime`](crate::ErrorKind::Lifetime) instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinLifetime(pub Duration);

/// A request extension: pass this request on untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoAuthorization;
