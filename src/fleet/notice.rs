//! What IMS told one process that throttles or is down, kept where the others find it: they do not
//! ask an IMS, one after the other, that wants to be left alone.

use std::time::{Duration, SystemTime};

use http::StatusCode;
use serde::{Deserialize, Serialize};

use super::{
    common::Common,
    look::CLOCKS_DIFFER,
    visit::{Owed, Visit},
};
use crate::{
    clock::{millis, unix_millis},
    error::{ErrorKind, ImsFailure, StoreError, TokenError},
    store::{name, open, seal},
};

/// The longest text that is believed: IMS's words are cut to less before they are kept.
const LONGEST: usize = 1_000;

/// A failure that is one for all processes.
#[derive(Deserialize, Serialize)]
struct Notice {
    /// By the clock of who was told: milliseconds since 1970.
    at: u64,
    until: u64,
    status: u16,
    /// Whether IMS said for how long.
    asked: bool,
    error: Option<String>,
    error_description: Option<String>,
    debug_id: Option<String>,
}

/// Where the notice lies that belongs to the token of this name.
fn key(token: &str) -> String {
    name(["notice", token])
}

impl Notice {
    /// `None` if others may fare better: with another secret, or over another network.
    fn new(error: &TokenError, now: SystemTime, delay: Duration) -> Option<Self> {
        if !matches!(error.kind(), ErrorKind::Throttled | ErrorKind::Unavailable) {
            return None;
        }
        let at = unix_millis(now);
        Some(Self {
            at,
            until: at.saturating_add(millis(delay)),
            status: error.status()?.as_u16(),
            asked: error.retry_after().is_some(),
            error: error.oauth_error().map(str::to_owned),
            error_description: error.oauth_error_description().map(str::to_owned),
            debug_id: error.debug_id().map(str::to_owned),
        })
    }

    /// The failure for this process, if the notice still holds. `ttl` is what the store counts down,
    /// and `most` is how long IMS is left alone at most.
    fn read(self, now: SystemTime, ttl: Option<Duration>, most: Duration) -> Option<TokenError> {
        let now = unix_millis(now);
        // A store that counts knows better than two clocks.
        let ahead = ttl.map_or(0, |_| millis(CLOCKS_DIFFER));
        let left = self.until.saturating_add(ahead).saturating_sub(now);
        let left = left.min(self.until.saturating_sub(self.at));
        let left = Duration::from_millis(left).min(ttl.unwrap_or(most)).min(most);
        let status = StatusCode::from_u16(self.status).ok().filter(|_| !left.is_zero())?;
        let (kind, message) = match status.as_u16() {
            429 => (ErrorKind::Throttled, "IMS throttles this client: it told another process so"),
            500..=599 => {
                (ErrorKind::Unavailable, "IMS is unavailable: another process has just asked it")
            }
            _ => return None,
        };
        let line = |text: Option<String>| {
            text.filter(|text| text.len() <= LONGEST && !text.chars().any(char::is_control))
        };
        let answer = ImsFailure {
            status,
            error: line(self.error),
            error_description: line(self.error_description),
            debug_id: line(self.debug_id),
            retry_after: self.asked.then_some(left),
        };
        Some(TokenError::with_answer(kind, message, answer))
    }
}

impl Visit<'_> {
    /// What IMS told another process, if it still holds.
    pub(super) async fn notice(&mut self, name: &str) -> Option<TokenError> {
        let common = self.common;
        let name = key(name);
        let stored = self.call("load", || common.store.load(&name)).await??;
        // One that cannot be read is none: it is soon over.
        let notice: Notice = open(&name, &stored, &common.keys).ok()?;
        notice.read(common.now().wall, stored.ttl(), common.retry_after_cap)
    }

    /// Tells the others what IMS told us. We leave it alone for `delay`, and the others for less: one of
    /// them is to have the next try. Its way to IMS may be better, if it was not IMS that spoke.
    pub(super) async fn tell_others(
        &mut self,
        (name, lease): &Owed,
        error: &TokenError,
        delay: Duration,
    ) {
        let common: &Common = self.common;
        let asked = error.retry_after().unwrap_or_default();
        let holds = asked.clamp(delay / 2, delay);
        let Some(notice) = Notice::new(error, common.now().wall, holds) else { return };
        let name = key(name);
        let saved = async || {
            let stored = seal(&name, lease.version(), notice, &common.keys);
            common.store.save(&name, &stored.map_err(StoreError::new)?.with_ttl(holds)).await
        };
        let _ = self.call("save", saved).await;
    }
}
