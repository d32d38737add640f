//! [`Record`]: the facts that the processes of a fleet share. Pure.
//!
//! A record holds the last token, and the outcome of the last attempt if it failed. A process that reads
//! the record knows whether to take the token, to fail with the words of IMS, or to make an attempt of its
//! own; nothing is guessed from the age of a token or from a lease that was given back.

use std::time::{Duration, SystemTime};

use http::{HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::clock::{millis, unix_millis};
use crate::error::{ErrorKind, ImsFailure, TokenError};
use crate::ims::TokenResponse;
use crate::source::{CALLERS_CAP, Supplied};

/// By how much the clocks of two machines may differ where the store counts time down.
const MAX_CLOCK_SKEW: Duration = Duration::from_secs(5 * 60);

/// How long a record without a token is kept after its failure holds no longer, so that the count of
/// failures goes on.
const FAILURE_MEMORY: Duration = Duration::from_secs(5 * 60);

/// The longest text of IMS that is read; what a process stores is shorter.
const MAX_TEXT_LEN: usize = 1_000;

/// The knowledge of a fleet about its token. Times are milliseconds since 1970 by the clock
/// of the process that committed the record.
#[derive(Deserialize, Serialize)]
pub(super) struct Record {
    committed_at: u64,
    /// The time to live that the store was asked for, in milliseconds.
    kept_for: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) token: Option<SharedToken>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failure: Option<SharedFailure>,
}

/// A token as processes share it. Without `Debug`, because it holds the token.
#[derive(Clone, Deserialize, Serialize)]
pub(super) struct SharedToken {
    access_token: Zeroizing<String>,
    /// The fencing token of the lease under which the token was requested.
    pub(super) stamp: u64,
    sent_at: u64,
    expires_at: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    org_id: Option<String>,
    /// How many tokens in a row were refused by an API and replaced, this one included.
    #[serde(default)]
    pub(super) refusals: u32,
    /// The fingerprint of the secrets that the token was requested with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) secrets: Option<String>,
}

/// The outcome of an attempt that failed.
#[derive(Deserialize, Serialize)]
pub(super) struct SharedFailure {
    kind: FailureKind,
    /// The fencing token of the lease under which the attempt was made.
    pub(super) stamp: u64,
    at: u64,
    /// Until when the other processes leave IMS alone.
    until: u64,
    /// How many attempts of the fleet have failed in a row.
    pub(super) count: u32,
    /// The fingerprint of the secrets that IMS rejected. Processes with other secrets may try.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) secrets: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    answer: Option<Answer>,
}

/// The failures that concern every process: IMS caused them, or its network.
#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
enum FailureKind {
    Rejected,
    Throttled,
    Unavailable,
    Connection,
    Timeout,
    Malformed,
}

/// The words of IMS.
#[derive(Deserialize, Serialize)]
struct Answer {
    status: u16,
    /// `true` if IMS asked for the pause with `Retry-After`.
    asked: bool,
    error: Option<String>,
    error_description: Option<String>,
    debug_id: Option<String>,
}

impl Record {
    pub(super) fn of_token(token: SharedToken, now: SystemTime) -> Self {
        let committed_at = unix_millis(now);
        let kept_for = token.expires_at.saturating_sub(committed_at);
        Self { committed_at, kept_for, token: Some(token), failure: None }
    }

    /// A record of a failure, which keeps the last `token` for the processes that can still use it.
    pub(super) fn of_failure(
        mut failure: SharedFailure,
        holds: Duration,
        token: Option<SharedToken>,
        now: SystemTime,
    ) -> Self {
        let committed_at = unix_millis(now);
        failure.at = committed_at;
        failure.until = committed_at.saturating_add(millis(holds));
        let left = token.as_ref().map_or(0, |it| it.expires_at.saturating_sub(committed_at));
        let kept_for = left.max(millis(holds + FAILURE_MEMORY));
        Self { committed_at, kept_for, token, failure: Some(failure) }
    }

    /// Checks that a process can use the record, which has this fencing token and time to live.
    ///
    /// # Errors
    ///
    /// The reason why it cannot.
    pub(super) fn check(
        &self,
        fencing_token: u64,
        ttl: Option<Duration>,
        now: SystemTime,
    ) -> Result<(), &'static str> {
        // The clock of the process that committed the record is far ahead of ours, and the store does not
        // tell the age of the record either.
        let latest = unix_millis(now).saturating_add(millis(MAX_CLOCK_SKEW));
        if ttl.is_none() && self.committed_at > latest {
            return Err("the age of the record is unknown");
        }
        match &self.token {
            // A token never comes after its record. No token could ever follow a forged stamp at the end
            // of the range.
            Some(token) if token.stamp > fencing_token => Err("the stamp is out of range"),
            Some(token) if !token.is_sendable() => Err("the token is no header value"),
            _ => Ok(()),
        }
    }

    /// The time to live of the record.
    pub(super) fn ttl(&self) -> Duration {
        Duration::from_millis(self.kept_for)
    }

    /// The time now, by the clock of the process that committed the record.
    ///
    /// A store that counts the time to live down tells the age of the record, whatever the clocks of
    /// the two machines say. A record that was put back from a backup is as old as our own clock says,
    /// less the usual skew of clocks.
    pub(super) fn time(&self, now: SystemTime, ttl: Option<Duration>) -> u64 {
        let by_clock = unix_millis(now).saturating_sub(self.committed_at);
        let age = match ttl {
            None => by_clock,
            Some(ttl) => {
                let by_store = self.kept_for.saturating_sub(millis(ttl));
                by_store.max(by_clock.saturating_sub(millis(MAX_CLOCK_SKEW)))
            }
        };
        self.committed_at.saturating_add(age)
    }
}

impl SharedToken {
    pub(super) fn new(supplied: &Supplied, refusals: u32, secrets: Option<String>) -> Self {
        let Supplied { response, sent, stamp, .. } = supplied;
        let sent_at = unix_millis(sent.wall);
        Self {
            access_token: Zeroizing::new(response.expose_secret().to_owned()),
            stamp: stamp.0,
            sent_at,
            expires_at: sent_at.saturating_add(millis(response.expires_in())),
            client_id: response.client_id.clone(),
            org_id: response.org_id.clone(),
            refusals,
            secrets,
        }
    }

    /// Returns whether the token and its ids can be sent as header values.
    pub(super) fn is_sendable(&self) -> bool {
        let is_visible = |text: &str| text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        let ids = [&self.client_id, &self.org_id].into_iter().flatten();
        !self.access_token.is_empty()
            && is_visible(&self.access_token)
            && ids.into_iter().all(|id| HeaderValue::from_str(id).is_ok())
    }

    /// How long the token lives in total.
    pub(super) fn lifetime(&self) -> Duration {
        Duration::from_millis(self.expires_at.saturating_sub(self.sent_at))
    }

    /// How long the token still lives at `time`.
    pub(super) fn remaining(&self, time: u64) -> Duration {
        Duration::from_millis(self.expires_at.saturating_sub(time)).min(self.lifetime())
    }

    /// The token as a response with this lifetime.
    pub(super) fn response(self, lifetime: Duration) -> TokenResponse {
        let mut response = TokenResponse::new(self.access_token.as_str(), lifetime);
        response.client_id = self.client_id;
        response.org_id = self.org_id;
        response
    }
}

impl SharedFailure {
    /// The failure as the other processes learn of it. `None` if its cause may be this process: the
    /// credentials provider or the user's fetcher failed, or panicked.
    ///
    /// `stamp` is the fencing token of the lease, `secrets` is the fingerprint of the secrets of this process, and `count` the number of failures
    /// in a row.
    pub(super) fn new(
        error: &TokenError,
        stamp: u64,
        count: u32,
        secrets: Option<String>,
    ) -> Option<Self> {
        let kind = match error.kind() {
            ErrorKind::Rejected => FailureKind::Rejected,
            ErrorKind::Throttled => FailureKind::Throttled,
            ErrorKind::Unavailable => FailureKind::Unavailable,
            ErrorKind::Connection => FailureKind::Connection,
            // A 408 is an answer to one request, and may be the fault of its sender.
            ErrorKind::Timeout if error.status().is_none() => FailureKind::Timeout,
            ErrorKind::Malformed => FailureKind::Malformed,
            _ => return None,
        };
        let answer = error.status().map(|status| Answer {
            status: status.as_u16(),
            asked: error.retry_after().is_some(),
            error: error.oauth_error().map(str::to_owned),
            error_description: error.oauth_error_description().map(str::to_owned),
            debug_id: error.debug_id().map(str::to_owned),
        });
        let secrets = secrets.filter(|_| !error.is_transient());
        Some(Self { kind, stamp, at: 0, until: 0, count, secrets, answer })
    }

    /// How long the failure still holds at `time`. A process without a token (`is_urgent`) leaves IMS
    /// alone for at most [`CALLERS_CAP`], as without a store, unless IMS asked for more or rejected the secret.
    pub(super) fn remaining(&self, time: u64, is_urgent: bool) -> Duration {
        let asked = self.answer.as_ref().is_some_and(|answer| answer.asked);
        let until = match is_urgent && !asked && self.secrets.is_none() {
            true => self.until.min(self.at.saturating_add(millis(CALLERS_CAP))),
            false => self.until,
        };
        Duration::from_millis(until.saturating_sub(time))
    }

    /// The failure as an error of this process, which holds for `left`.
    pub(super) fn error(self, left: Duration) -> TokenError {
        let (kind, message) = match self.kind {
            FailureKind::Rejected => (
                ErrorKind::Rejected,
                "IMS rejected the token request of a process of the fleet with the same secret",
            ),
            FailureKind::Throttled => (
                ErrorKind::Throttled,
                "IMS throttles this client, as it told a process of the fleet",
            ),
            FailureKind::Unavailable => {
                (ErrorKind::Unavailable, "IMS is unavailable, as a process of the fleet has found")
            }
            FailureKind::Connection => {
                (ErrorKind::Connection, "IMS could not be reached by a process of the fleet")
            }
            FailureKind::Timeout => {
                (ErrorKind::Timeout, "IMS did not respond in time to a process of the fleet")
            }
            FailureKind::Malformed => {
                (ErrorKind::Malformed, "IMS sent no usable token to a process of the fleet")
            }
        };
        let status = self.answer.as_ref().and_then(|it| StatusCode::from_u16(it.status).ok());
        match (self.answer, status) {
            (Some(answer), Some(status)) => {
                let answer = ImsFailure {
                    status,
                    error: line(answer.error),
                    error_description: line(answer.error_description),
                    debug_id: line(answer.debug_id),
                    retry_after: answer.asked.then_some(left),
                };
                TokenError::with_answer(kind, message, answer)
            }
            _ => TokenError::new(kind, message),
        }
    }
}

/// A text of IMS that can be shown: whoever may write to the store could have put anything there.
fn line(text: Option<String>) -> Option<String> {
    text.filter(|text| text.len() <= MAX_TEXT_LEN && !text.chars().any(char::is_control))
}
