//! The APIs: several origins in several spellings, some of which refuse tokens.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use fastrand::Rng;
use http::{Request, Response, StatusCode, header::AUTHORIZATION};
use tokio::time::sleep;
use tower_adobe_auth::BoxError;

use crate::{
    callers::Call,
    moment::Moment,
    promises::REFUSAL_WINDOW,
    world::{Simulation, World},
};

/// Accepts every token.
const ACCEPTS: &str = "accepts.adobe.io";
/// Refuses every token, because the integration has no permission for it.
const REFUSES: &str = "refuses.adobe.io";
/// Refuses the first try of some requests.
const REFUSES_ONCE: &str = "refuses-once.adobe.io";
/// Know which tokens IMS has revoked.
const KNOW_REVOKED: [&str; 2] = ["knows-revoked.adobe.io", "knows-too.adobe.io"];
/// Origins that somebody else names: all of them refuse every token.
const TENANTS: u32 = 200;

/// The address of some API, in some spelling.
pub(crate) fn address(rng: &mut Rng, may_refuse: bool) -> String {
    let host = match rng.u8(0..if may_refuse { 16 } else { 6 }) {
        0..6 => ACCEPTS.to_owned(),
        6..9 => KNOW_REVOKED[0].to_owned(),
        9..11 => KNOW_REVOKED[1].to_owned(),
        11..13 => REFUSES_ONCE.to_owned(),
        13..15 => REFUSES.to_owned(),
        _ => format!("tenant-{}.adobe.io", rng.u32(0..TENANTS)),
    };
    spell(host, rng)
}

/// The address of an API that refuses every token.
pub(crate) fn refusing_address(rng: &mut Rng) -> String {
    let host = match rng.u8(0..4) {
        0 => format!("tenant-{}.adobe.io", rng.u32(0..TENANTS)),
        _ => REFUSES.to_owned(),
    };
    spell(host, rng)
}

fn spell(host: String, rng: &mut Rng) -> String {
    let host: String = if rng.u8(0..4) == 0 {
        let letters = host.chars();
        letters
            .map(|letter| if rng.bool() { letter.to_ascii_uppercase() } else { letter })
            .collect()
    } else {
        host
    };
    let dot = if rng.u8(0..4) == 0 { "." } else { "" };
    let port = if rng.u8(0..4) == 0 { ":443" } else { "" };
    format!("https://{host}{dot}{port}/")
}

/// The origin of a request: what its spellings have in common.
fn origin(request: &Request<()>) -> String {
    let host = request.uri().host().unwrap().to_ascii_lowercase();
    host.trim_end_matches('.').to_owned()
}

impl Simulation {
    pub(crate) async fn api(
        self: Arc<Self>,
        request: Request<()>,
    ) -> Result<Response<()>, BoxError> {
        let origin = origin(&request);
        let call = request.extensions().get::<Arc<Call>>().unwrap();
        let header = request.headers().get(AUTHORIZATION).unwrap().to_str()?;
        let token = header.strip_prefix("Bearer ").unwrap().to_owned();
        let (refuses, is_first_try, delay) = {
            let now = self.now();
            let mut world = self.world();
            let number = world.check_token(now, &token);
            let is_first_try = !call.is_sent.swap(true, Ordering::Relaxed);
            if is_first_try {
                world.check_obtained(now, call, number);
            } else {
                world.note(now, "replayed", number);
            }
            let refuses = match origin.as_str() {
                ACCEPTS => false,
                REFUSES_ONCE => is_first_try && call.draws.is_unlucky,
                origin if KNOW_REVOKED.contains(&origin) => number <= world.revoked,
                _ => true,
            };
            (refuses.then_some(number), is_first_try, call.draws.refusal_delay(now))
        };
        let Some(number) = refuses else { return Ok(Response::new(())) };

        sleep(delay).await;
        let now = self.now();
        let mut world = self.world();
        world.refuse(now, origin, number);
        if is_first_try {
            // The layer may ask for another token, and replay the request with it.
            world.asks_without_waiting(now);
        }
        drop(world);
        Ok(Response::builder().status(StatusCode::UNAUTHORIZED).body(())?)
    }
}

impl World {
    /// An API answers 401. The source hears of it at this instant.
    fn refuse(&mut self, now: Moment, origin: String, number: u64) {
        self.note(now, "refused", number);
        let previous = self.refusals.insert(origin.clone(), now);
        let Some(newest) = self.newest() else { return };
        if number != self.newest_number() || newest.invalidated {
            return;
        }
        // A token that has just replaced a refused one, and is refused by an origin that was
        // content until now: this is evidence against the origin. (A second for the edges.)
        let is_fresh = newest.replaces_refused
            && !now.is(REFUSAL_WINDOW - Duration::from_secs(1), newest.landed);
        let was_content = previous.is_none_or(|previous| {
            now.at > previous.at + REFUSAL_WINDOW && now.wall > previous.wall + REFUSAL_WINDOW
        });
        if is_fresh && was_content {
            self.note(now, "evidence against the origin", number);
            return;
        }
        self.is_suspect = true;
        self.refused_by.insert(origin);
    }
}
