//! The names of the crate's spans, events and metrics.
//!
//! The names of spans, fields and metrics, and the values of `event`, are part of the public interface:
//! changing one is a breaking change. Messages may change.
//!
//! # Spans and events
//!
//! Spans and events go to [`tracing`], with targets that begin with `tower_adobe_auth`. None holds a
//! token or a secret. Durations are seconds, as floating-point numbers.
//!
//! The span **`token_refresh`** (`info`) is one refresh, from its start to its end. It is the root of
//! its trace, because a refresh serves every caller; it follows from the span of the caller that started
//! it. Its fields:
//!
//! | field | meaning |
//! | --- | --- |
//! | `source` | the [name](crate::TokenSourceBuilder::name) of the source |
//! | `flight` | the number of the refresh, starting at 1 for each source |
//! | `attempt` | the number of its attempts |
//! | `outcome` | `success`; `shared` (the token of another process, from the token store); or the kind of the error: [`ErrorKind::as_str`](crate::ErrorKind::as_str) |
//! | `duration` | how long the refresh took |
//! | `expires_in` | the lifetime of the token that it brought |
//! | `waiters` | how many callers waited for a token when it ended |
//! | `otel.kind`, `otel.status_code` | `client`; `ERROR` if it failed: read by `tracing-opentelemetry` |
//!
//! Events of a refresh are inside its span.
//!
//! | `event` | level | message | further fields |
//! | --- | --- | --- | --- |
//! | `token_obtained` | `info` | obtained an access token | `attempt`, `duration`, `expires_in`, `generation` |
//! | `token_shared` | `info` | took the access token of another process from the store | `version`, `expires_in`, `generation` |
//! | `attempt_failed` | `warn` | could not obtain an access token | `attempt`, `error`, `next_attempt_in` |
//! | `attempt_retried` | `debug` | retrying the token request | `attempt`, `pause` |
//! | `attempt_repeated` | `debug` | the process stood still during a token request; repeating the request | |
//! | `refresh_lost` | `warn` | a token refresh was lost with its runtime; the next caller starts another one | `error` |
//! | `refresh_stalled` | `warn` | a token refresh was given up, because its runtime stalled; another one can start | `source` |
//! | `credentials_changed` | `debug` | the credentials have changed; requesting a token with the new ones | `source` |
//! | `changed_panicked` | `warn` | waiting for a change of the credentials panicked; waiting again | `source` |
//! | `token_refused` | `warn` | an API refused the access token; requesting a new one | `source`, `generation` |
//! | `refusal_ignored` | `debug` | an API refused an access token; the token stays in use | `source`, `generation` |
//!
//! A source with a token store has further events. Those that happen during a refresh are inside its span;
//! a read that follows a notification has none:
//!
//! | `event` | level | message | further fields |
//! | --- | --- | --- | --- |
//! | `store_unavailable` | `warn` | token store unavailable; this process requests its own token | `operation`, `error` |
//! | `store_recovered` | `info` | the token store works again | |
//! | `record_ignored` | `warn` | ignored an unusable record in the token store | `reason` |
//! | `lease_held` | `debug` | another process requests an access token; waiting for its result | |
//! | `lease_not_released` | `warn` | no token came from the process that holds the lease; requesting one without it | |
//! | `due_token_used` | `warn` | could not obtain an access token; using the one in the store, which is due for refresh | `error` |
//! | `store_file_ignored` | `warn` | a file of the token store is ignored, and will be replaced | `path`, `reason` |
//! | `store_file_locked` | `warn` | another process keeps the files of the token store locked; if it was stopped, continue or end it | `path` |
//!
//! `store_unavailable` is reported once for each new reason. Its `operation` is `acquire`, `read` (an
//! acquire that asks for no lease), `commit` or `release` (a commit without a record). The last two
//! events come from `FileStore`, once for each file until the file is well again.
//!
//! The remaining events have no such field yet:
//!
//! | message | level | fields |
//! | --- | --- | --- |
//! | `passed a request through, because its host is not allowed` | `debug` | `host` |
//! | `passed a request through, because it names no host` | `debug` | |
//! | `ignored an allow-list entry that is not a host name; the allow-list is unchanged` | `warn` | `host` |
//! | `credentials file changed` | `info` | `path` |
//! | `credentials file is invalid; the last valid credentials stay in use` | `warn` | `path`, `error` |
//!
//! # Metrics
//!
//! With the feature `metrics` the metrics go to the recorder of the
//! [`metrics`](https://docs.rs/metrics) crate that is installed **when the source is built**, so install
//! the recorder first. All series of the source exist from then on, at 0, so that `increase()` misses no
//! first event. Each has the label `source`, the [name](crate::TokenSourceBuilder::name) of the source.
//! The constants of this module hold the names:
//!
//! | metric | type | labels beside `source`, and what it counts |
//! | --- | --- | --- |
//! | `adobe_auth_requests_total` | counter | requests by `token`, how the request got its token: `at_once` (a cached token, immediately); `stale` (immediately, but the token is due for refresh); `waited`; `replayed` (sent once more after a 401, in addition to its first time); `passed_through` (without a token: the host is not allowed, or the request opted out); `failed` (not sent: no token could be obtained, the caller gave up first, the inner service failed after the wait, or the URI is plain `http`) |
//! | `adobe_auth_token_remaining_seconds` | histogram | the remaining lifetime of each token that was sent |
//! | `adobe_auth_refreshes_total` | counter | refreshes by `outcome`, as in the span; `success` is a token that this process requested itself |
//! | `adobe_auth_refresh_duration_seconds` | histogram | the duration of each refresh |
//! | `adobe_auth_token_expiry_seconds` | gauge | the remaining lifetime of the cached token; 0 without a usable one, and after a shutdown. Updated at each change, and at least once a minute while the token is refreshed in the background |
//! | `adobe_auth_waiters` | gauge | callers that wait for a token now |
//! | `adobe_auth_unauthorized_total` | counter | 401s by `verdict`: `replaced` (the token became suspect, and a refresh starts), or `ignored` |
//! | `adobe_auth_recoveries_total` | counter | requests that were refused and could be replayed, by `outcome`: `recovered`, `refused_again`, `no_new_token`. A replay without a response is not counted |
//! | `adobe_auth_store_total` | counter | calls of the token store by `operation` and `outcome`, in the table below |
//!
//! The outcomes of the token store's operations. A call has one outcome:
//!
//! | `operation` | `outcome` | meaning |
//! | --- | --- | --- |
//! | `acquire` | `granted` | the lease was granted: this process requests a token, unless the record still answers its need |
//! | | `hit` | the record answers the need: its token was taken, or the cached one stays in use |
//! | | `failure` | the record holds a failure of IMS that still holds, and the attempt fails with it |
//! | | `held` | the lease was not granted: another process holds it, or this process had not read the record before, which is of no use to it |
//! | | `stale` | without a lease request: the token of the record is not newer than the cached one, or it is due for refresh |
//! | | `miss` | without a lease request: no record is kept |
//! | | `unreadable` | without a lease request: the record was ignored, and `record_ignored` has the reason |
//! | `commit` | `committed` | the record is kept |
//! | | `superseded` | the record was dropped, because one with the same or a higher fencing token is kept |
//! | | `released` | only the lease was ended |
//! | both | `failed` | the store returned an error or panicked |
//! | | `timeout` | the store did not respond within its budget |
//!
//! Sources of the same name share their series: counters add up, and the expiry is that of the source
//! that changed last. Requests that pass through, or fail because their URI is plain `http`, count for
//! the source of the layer.
//!
//! A request with a valid token costs two updates of the recorder more than without the feature. Its
//! remaining lifetime is that of the last expiry check, at most one tick of the kernel's clock (1 to 10
//! ms) ago. The repository has a Grafana dashboard for these names, `docs/grafana-dashboard.json`.
//!
//! ```
//! # #[cfg(feature = "metrics")] {
//! assert_eq!(tower_adobe_auth::telemetry::REQUESTS, "adobe_auth_requests_total");
//! # }
//! ```

pub(crate) mod events;
#[cfg(feature = "metrics")]
mod recorder;
#[cfg(not(feature = "metrics"))]
mod silent;
mod span;

#[cfg(all(feature = "store", feature = "metrics"))]
pub(crate) use self::recorder::StoreTelemetry;
#[cfg(feature = "metrics")]
pub(crate) use self::recorder::Telemetry;
#[cfg(feature = "metrics")]
pub use self::recorder::{
    EXPIRY, RECOVERIES, REFRESH_DURATION, REFRESHES, REMAINING, REQUESTS, STORE, UNAUTHORIZED,
    WAITERS,
};
#[cfg(all(feature = "store", not(feature = "metrics")))]
pub(crate) use self::silent::StoreTelemetry;
#[cfg(not(feature = "metrics"))]
pub(crate) use self::silent::Telemetry;
pub(crate) use self::span::RefreshSpan;

/// How a request got its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obtained {
    AtOnce,
    Stale,
    Waited,
    Replayed,
}

impl Obtained {
    /// How a request got its cached token immediately.
    pub(crate) const fn cached(is_due: bool) -> Self {
        if is_due { Self::Stale } else { Self::AtOnce }
    }
}

/// The outcome of a request that was refused and could be sent once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recovery {
    Recovered,
    RefusedAgain,
    NoNewToken,
}
