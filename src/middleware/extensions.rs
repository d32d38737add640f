//! The extensions of a request that override settings of the layer.

use std::time::Duration;

/// A request extension: the longest time to wait for a token, counted from the call on.
///
/// One deadline covers all waits of the request: for its token, for another token if the first one
/// expired before the inner service was ready, and for the token of a replay. A request that has a
/// valid token when the inner service becomes ready is sent, even after the deadline.
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

/// A request extension: the shortest remaining lifetime of the token to send, for long uploads and
/// jobs.
///
/// If the cached token expires earlier, the request waits for a new one. The longest possible value
/// is the time from a token's issue to its refresh: at least 22 hours for a token of 24 hours. A
/// request that requires more fails with [`ErrorKind::Lifetime`](crate::ErrorKind::Lifetime), because
/// each such request would need a new token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MinLifetime(pub Duration);

/// A request extension: pass this request through unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoAuthorization;
