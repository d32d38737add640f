//! What the crate tells of itself: the names of its spans, events and metrics.
//!
//! They are part of the public face: a change of one is a breaking change.
//!
//! # Spans and events
//!
//! All go to [`tracing`], with targets that begin with `tower_adobe_auth`. None holds a token or a
//! secret. Durations are seconds, as floating-point numbers.
//!
//! The span **`token_refresh`** (`info`) is one flight, from its start to its end. It is the root of
//! its trace: a flight belongs to the source and not to the caller who came first, whose span it
//! follows from. Its fields:
//!
//! | field | what |
//! | --- | --- |
//! | `source` | the [name](crate::TokenSourceBuilder::name) of the source |
//! | `flight` | the number of the flight, counting up from 1 for each source |
//! | `attempt` | how many attempts it took |
//! | `outcome` | `success`; `shared` (the token of another process, from the token store); or the kind of the error: [`ErrorKind::as_str`](crate::ErrorKind::as_str) |
//! | `duration` | how long the flight took |
//! | `expires_in` | how long the token lives that it brought |
//! | `waiters` | how many callers waited for it when it ended |
//! | `otel.kind`, `otel.status_code` | `client`; `ERROR` if it failed: read by `tracing-opentelemetry` |
//!
//! | event | level | fields beside the span's |
//! | --- | --- | --- |
//! | `fetched an access token` | `info` | `attempt`, `duration`, `expires_in`, `generation` |
//! | `could not fetch an access token` | `warn` | `attempt`, `error`, `next_try_in` |
//! | `trying again` | `debug` | `attempt`, `delay` |
//! | `a token request ended without an answer` | `warn` | `error` |
//! | `an API refused the access token; it is being replaced` | `warn` | `generation` |
//! | `an API refused an access token; this says nothing about the token` | `debug` | |
//! | `no token for a host that is not allowed` | `debug` | `host` |
//! | `no token for a request that does not say where it goes` | `debug` | |
//! | `not a host name: this allows nothing` | `warn` | `host` |
//! | `took the access token of another process from the store` | `info` | `version`, `expires_in`, `generation` |
//! | `could not fetch an access token; using the one in the store` | `warn` | `error` |
//! | `another process asks for an access token; waiting for it` | `debug` | |
//! | `the token store failed; going on without it` | `warn` | `operation`, `error` |
//! | `the token store works again` | `info` | |
//! | `the value in the token store is no good; it is ignored` | `warn` | `reason` |
//! | `a file of the token store is no good; it is ignored` | `warn` | `path`, `reason` |
//! | `no token came from the process that has the lease; going on alone` | `warn` | |
//! | `it is not known who asks; going on without the token store` | `debug` | |
//! | `credentials file changed` | `info` | `path` |
//! | `credentials file is invalid; the last valid credentials stay in use` | `warn` | `path`, `error` |
//!
//! # Metrics
//!
//! With the feature `metrics` they go to the recorder of the
//! [`metrics`](https://docs.rs/metrics) crate that is installed **when the source is built**:
//! install it first. All series of the source are there from then on, at 0. Each has the label
//! `source`, the [name](crate::TokenSourceBuilder::name) of the source. The names are the constants of
//! this module:
//!
//! | metric | type | labels beside `source`, and what it counts |
//! | --- | --- | --- |
//! | `adobe_auth_requests_total` | counter | `token`, how the request got its token: `at_once`; `stale` (at once, one that is due for renewal); `waited`; `replayed` (sent once more after a 401, counted beside its first time); `passed_through` (none: not an allowed host, or opted out); `failed` (not sent: no token could be had, the caller gave up first, the service failed after the wait, or it would have gone in clear) |
//! | `adobe_auth_token_remaining_seconds` | histogram | the remaining life of the tokens that were sent |
//! | `adobe_auth_refreshes_total` | counter | flights by `outcome`, as in the span: `success` is a token that this process has asked for itself |
//! | `adobe_auth_refresh_duration_seconds` | histogram | how long flights took |
//! | `adobe_auth_token_expiry_seconds` | gauge | the remaining life of the token in hand, 0 if there is none or the source was shut down; brought up to date at each change, and at least once a minute while the token is kept warm |
//! | `adobe_auth_waiters` | gauge | callers that wait for a flight now |
//! | `adobe_auth_unauthorized_total` | counter | `verdict`: 401s that had the token replaced (`replaced`), or that said nothing about it (`ignored`) |
//! | `adobe_auth_recoveries_total` | counter | `outcome` of requests that were refused and could be replayed: `recovered`, `refused_again`, `no_new_token`; not counted if the second try has no answer |
//! | `adobe_auth_store_total` | counter | what was asked of the token store, each `operation` with its `outcome`: `load` (`hit`; `stale`, not newer than what is in hand or due for renewal; `miss`; `unreadable`), `lease` (`granted`, `held` by another), `save` (`saved`, `superseded`), `release` (`released`); and of each `failed` or `timeout` |
//!
//! Sources of the same name share their series: counters add up, and the expiry is that of the source
//! that changed last. What passes through, or would have gone in clear, is counted for the source of the
//! layer.
//!
//! A request with a valid token then costs two readings of the clock more, about 100 ns as measured, and
//! two updates of the recorder's. A Grafana dashboard of these names stands in the repository, in
//! `docs/grafana-dashboard.json`.
//!
//! ```
//! # #[cfg(feature = "metrics")] {
//! assert_eq!(tower_adobe_auth::telemetry::REQUESTS, "adobe_auth_requests_total");
//! # }
//! ```

#[cfg(feature = "metrics")]
mod recorder;
#[cfg(not(feature = "metrics"))]
mod silent;

#[cfg(feature = "metrics")]
pub(crate) use self::recorder::Telemetry;
#[cfg(feature = "metrics")]
pub use self::recorder::{
    EXPIRY, RECOVERIES, REFRESH_DURATION, REFRESHES, REMAINING, REQUESTS, STORE, UNAUTHORIZED,
    WAITERS,
};
#[cfg(not(feature = "metrics"))]
pub(crate) use self::silent::Telemetry;

/// How a request got its token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Obtained {
    AtOnce,
    Stale,
    Waited,
    Replayed,
}

/// What became of a request that was refused and could be sent once more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recovery {
    Recovered,
    RefusedAgain,
    NoNewToken,
}
