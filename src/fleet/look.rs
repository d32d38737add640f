//! What a look at the store brings: the token of another process, if it is of use here.

use std::{sync::atomic::Ordering, time::Duration};

use super::common::Common;
use crate::{
    clock::{MAX_LIFETIME, Moment},
    ims::TokenResponse,
    source::{BELIEVED_PER_ORIGIN, Need, REFUSAL_WINDOW, Reason, Stamp, Supplied},
    store::{Payload, StoredToken, is_sane, open},
};

/// By how much the clocks of two machines may differ, where the store counts a life down.
pub(super) const CLOCKS_DIFFER: Duration = Duration::from_secs(5 * 60);

/// A token of the same credential is not replaced for a new secret while it is so young: processes see
/// the secret one after the other, and one token is proof enough that it is good.
const YOUNG: Duration = Duration::from_secs(2 * 60);

/// What a look at the store brings.
pub(super) enum Look {
    /// Newer than ours.
    Newer(Supplied),
    /// Newer than ours, but due for renewal.
    Due(Supplied),
    /// Ours, and it stays in use.
    Keep,
    /// Ours, or one before it: it came after so many that were refused lately.
    Known(u32),
    Nothing,
}

/// The token of a stored value, by this source's schedule and clocks.
pub(super) fn adopt(
    common: &Common,
    name: &str,
    stored: &StoredToken,
    need: Need,
) -> Result<Look, &'static str> {
    let payload = open::<Payload>(name, stored, &common.keys)?;
    let lifetime = payload.lifetime();
    if lifetime > MAX_LIFETIME {
        return Err("its lifetime is out of range");
    }
    let now = common.now();
    if !is_sane(stored.version(), common.above(now.wall)) {
        return Err("its version is out of range");
    }
    let left = match stored.ttl() {
        Some(ttl) => payload.remaining(now.wall, CLOCKS_DIFFER).min(ttl),
        None => payload.remaining(now.wall, Duration::ZERO),
    };
    let known = common.known().max(need.newer_than.0);
    if stored.version() <= known {
        let age = lifetime - left;
        let refusals = if age < REFUSAL_WINDOW { payload.refusals } else { 0 };
        // What each process may do for a host of its own would be too much for all of them.
        let enough = need.reason == Reason::Refused && refusals >= BELIEVED_PER_ORIGIN;
        // One that another process requested may have been requested with the new secret.
        let own = stored.version() == common.own.load(Ordering::Acquire);
        let latest = stored.version() == known && !own;
        let serves = need.reason == Reason::CredentialsChanged && latest && age < YOUNG;
        return Ok(if enough || serves { Look::Keep } else { Look::Known(refusals) });
    }
    // Where the clock cannot say when that was, it lives from now on.
    let (sent, lifetime) = now.minus(lifetime - left).map_or((now, left), |sent| (sent, lifetime));
    if left.is_zero() {
        return Ok(Look::Nothing);
    }
    let mut response = TokenResponse::new(payload.access_token.as_str(), lifetime);
    response.client_id = payload.client_id;
    response.org_id = payload.org_id;
    let stamp = Stamp(stored.version());
    let supplied = Supplied { response, sent, stamp, shared: true };
    let thresholds = common.schedule.thresholds(sent, lifetime);
    Ok(if thresholds.expired.has_come(now) {
        Look::Nothing
    } else if thresholds.due.has_come(now) {
        Look::Due(supplied)
    } else {
        Look::Newer(supplied)
    })
}

pub(super) fn has_expired(common: &Common, supplied: &Supplied, now: Moment) -> bool {
    let lifetime = supplied.response.expires_in();
    common.schedule.thresholds(supplied.sent, lifetime).expired.has_come(now)
}
