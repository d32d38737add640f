//! Hears of tokens that other processes have saved, while the one in hand is not due yet.
//!
//! So a token that an API refused to one process is replaced in all of them, and a new one is known
//! everywhere before the old one ends.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use super::{
    common::{Common, changed},
    visit::{Turn, Visit},
};
use crate::source::{Need, Reason, Stamp, Supplied};

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

/// Waits for a token that others saved and that is newer than ours.
pub(super) async fn announced(common: &Common) -> Supplied {
    loop {
        let Some(name) = name(common).await else {
            sleep(PAUSE).await;
            continue;
        };
        if timeout(LONGEST_WAIT, changed(&*common.store, &name)).await.is_ok() {
            sleep(LEAST_PAUSE + (SPREAD - LEAST_PAUSE).mul_f64(fastrand::f64())).await;
            let mut pause = FIRST_PAUSE;
            loop {
                match look(common).await {
                    Looked::Newer(supplied) => return supplied,
                    Looked::NotNewer => break,
                    Looked::Failed => {
                        sleep(pause.mul_f64(0.5 + fastrand::f64())).await;
                        pause = (pause * 2).min(LONGEST_WAIT);
                    }
                }
            }
        }
    }
}

/// What a look at the store brings.
enum Looked {
    Newer(Supplied),
    NotNewer,
    Failed,
}

/// Nobody needs a token: it is only looked for a newer one.
fn visit(common: &Common) -> Visit<'_> {
    let need = Need {
        newer_than: Stamp::default(),
        stamp: Stamp::default(),
        reason: Reason::Due,
        backoff_if_it_fails: Duration::ZERO,
    };
    Visit::new(common, need)
}

async fn name(common: &Common) -> Option<String> {
    visit(common).name().await
}

async fn look(common: &Common) -> Looked {
    let mut visit = visit(common);
    // Asked for again: the credentials may have changed since, and with them the token.
    let Some(name) = visit.name().await else { return Looked::Failed };
    match visit.look(&name, &mut Turn::default()).await {
        Some(supplied) if common.is_news(supplied.stamp.0) => Looked::Newer(supplied),
        _ if visit.alone => Looked::Failed,
        _ => Looked::NotNewer,
    }
}
