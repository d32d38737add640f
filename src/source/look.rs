//! What a look at the store brings: the token of another process, if it is of use here.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use super::{fleet::Common, refusals, shared::Shared, state::State};
use crate::{
    clock::{FAR, Moment},
    store::{Payload, StoredToken, is_sane, open},
    token::{AccessToken, Origin, TokenResponse},
};

/// By how much the clocks of two machines may differ, where the store counts a life down.
pub(super) const CLOCKS_DIFFER: Duration = Duration::from_secs(5 * 60);

/// A token of the same credential is not replaced for a new secret while it is so young: processes see
/// the secret one after the other, and one token is proof enough that it is good.
const YOUNG: Duration = Duration::from_secs(2 * 60);

/// What a look at the store brings.
pub(super) enum Look {
    /// Newer than ours, with its version.
    Newer(AccessToken, u64),
    /// Newer than ours, but due for renewal.
    Due(AccessToken),
    /// Ours, or one before it: it came after so many that were refused lately.
    Known(u32),
    Nothing,
}

/// The token of a stored value, by this source's schedule and clocks. Whether it is looked for because
/// credentials have `changed`.
pub(super) fn adopt(
    shared: &Arc<Shared>,
    common: &Common,
    name: &str,
    stored: &StoredToken,
    changed: bool,
) -> Result<Look, &'static str> {
    let payload = open::<Payload>(name, stored, &common.keys)?;
    let lifetime = payload.lifetime();
    if lifetime > FAR {
        return Err("its life is out of range");
    }
    let now = shared.now();
    if !is_sane(stored.version(), common.above(now.wall)) {
        return Err("its version is out of range");
    }
    let left = match stored.ttl() {
        Some(ttl) => payload.remaining(now.wall, CLOCKS_DIFFER).min(ttl),
        None => payload.remaining(now.wall, Duration::ZERO),
    };
    if stored.version() <= common.known() {
        let age = lifetime - left;
        let refusals = if age < refusals::WINDOW { payload.refusals } else { 0 };
        // What each process may do for a host of its own would be too much for all of them.
        let suspect = shared.read(State::is_suspect);
        let enough = suspect && refusals >= refusals::BELIEVED;
        let latest = stored.version() == common.known();
        let serves = changed && !suspect && latest && age < YOUNG;
        if !enough && !serves {
            return Ok(Look::Known(refusals));
        }
    }
    // Where the clock cannot say when that was, it lives from now on.
    let (sent, lifetime) = now.minus(lifetime - left).map_or((now, left), |sent| (sent, lifetime));
    if left.is_zero() {
        return Ok(Look::Nothing);
    }
    let mut response = TokenResponse::new(payload.access_token.as_str(), lifetime);
    response.client_id = payload.client_id;
    response.org_id = payload.org_id;
    let origin: Weak<dyn Origin> = Arc::downgrade(shared) as _;
    let token = AccessToken::new(response, sent, shared.next_generation(), origin)
        .map_err(|_| "it is no access token")?;
    let thresholds = shared.settings.schedule.thresholds(sent, lifetime);
    Ok(match () {
        () if thresholds.retire.has_come(now) => Look::Nothing,
        () if thresholds.renew.has_come(now) => Look::Due(token),
        () => Look::Newer(token, stored.version()),
    })
}

pub(super) fn is_retired(shared: &Shared, token: &AccessToken, now: Moment) -> bool {
    shared.settings.schedule.thresholds(token.sent(), token.lifetime()).retire.has_come(now)
}
