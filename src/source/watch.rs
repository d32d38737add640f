//! Hears of tokens that other processes have saved, while the one in hand is not due yet.
//!
//! So a token that an API refused to one process is replaced in all of them, and a new one is known
//! everywhere before the old one ends.

use std::{
    future::pending,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::{sleep, timeout};

use super::{
    fleet::changed,
    shared::Shared,
    spread,
    visit::{Turn, Visit, tell},
};
use crate::token::AccessToken;

/// Processes that hear of a token together do not look at it together, but within this time.
const SPREAD: Duration = Duration::from_secs(30);

/// The least time between two looks: a store that always says so must not make it spin.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// After this time it listens anew: credentials that changed name another token.
const LONGEST_WAIT: Duration = Duration::from_secs(60 * 60);

/// The pause after it could not be told what to listen for.
const PAUSE: Duration = Duration::from_secs(60);

/// The pause after the store failed; it doubles with each further failure. A store that cannot keep up
/// with the looks of a fleet is not to be kept busy with more of them. And a look that fails ends a
/// connection that other sources listen over, who would look then, and fail, and so on for ever.
const FIRST_PAUSE: Duration = Duration::from_secs(120);

/// Takes the tokens that others saved. Does not end; it is dropped with the keeper.
pub(super) async fn watch(source: &Weak<Shared>) {
    let store =
        source.upgrade().and_then(|shared| shared.common().map(|common| Arc::clone(&common.store)));
    // The source is not kept alive while this waits; the store is no part of it.
    let Some(store) = store else { pending().await };
    loop {
        let Some(name) = name(source).await else {
            sleep(PAUSE).await;
            continue;
        };
        if timeout(LONGEST_WAIT, changed(&*store, &name)).await.is_ok() {
            sleep(LEAST_PAUSE + (SPREAD - LEAST_PAUSE).mul_f64(fastrand::f64())).await;
            let mut pause = FIRST_PAUSE;
            while !look(source).await {
                sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
                pause = (pause * 2).min(LONGEST_WAIT);
            }
        }
    }
}

async fn name(source: &Weak<Shared>) -> Option<String> {
    let shared = source.upgrade()?;
    Visit::new(&shared).name(&shared).await
}

/// Takes what the store has. Returns whether the store answered.
async fn look(source: &Weak<Shared>) -> bool {
    let Some(shared) = source.upgrade() else { return false };
    let mut visit = Visit::new(&shared);
    // Asked for again: the credentials may have changed since, and with them the token.
    let Some(name) = visit.name(&shared).await else { return false };
    if let Some((token, version)) = visit.look(&shared, &name, &mut Turn::default()).await {
        if shared.receive(&token, version) {
            tell(&shared, &token, version);
        }
    }
    !visit.alone
}

impl Shared {
    /// Takes a token that no flight brought. Not while one is under way, which will bring one; nor
    /// after one brought a newer one, which it notes before it lands.
    fn receive(&self, token: &AccessToken, version: u64) -> bool {
        let now = self.now();
        let copies = spread::copies(token);
        self.update(|state| {
            let is_news = || self.common().is_some_and(|common| common.is_news(version));
            let received = !state.is_flying() && is_news();
            if received {
                state.land(now, token.clone(), copies);
            }
            received
        })
    }
}
