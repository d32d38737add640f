//! The task that renews the token also when nobody calls.

use std::{
    future::pending,
    sync::{Arc, Weak, atomic::Ordering},
    time::Duration,
};

use tokio::{runtime::Handle, sync::watch, time::sleep};

use super::{closing::Open, fleet, shared::Shared};
use crate::telemetry::Telemetry;

/// The longest sleep. The timer stands still while the machine sleeps, the wall clock does not:
/// this often the keeper looks at it.
const LONGEST_NAP: Duration = Duration::from_secs(60);

/// The least time between two times that the fetcher is heard.
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// Starts the keeper of this source on `runtime`, unless one is at work or none is wanted.
pub(super) fn ensure(shared: &Arc<Shared>, runtime: &Handle) {
    let Some(open) = shared.open() else { return };
    if !shared.keeper().swap(true, Ordering::AcqRel) {
        let presence = Presence { source: Arc::downgrade(shared), _open: open };
        runtime.spawn(keep(presence, shared.subscribe()));
    }
}

/// Ends when the source is closed or gone.
async fn keep(presence: Presence, changes: watch::Receiver<()>) {
    tokio::select! {
        () = keep_warm(&presence, changes) => {}
        () = fleet::watch(&presence.source) => {}
    }
}

/// Sees to it that flights start when they are due.
async fn keep_warm(presence: &Presence, mut changes: watch::Receiver<()>) {
    loop {
        changes.mark_unchanged();
        // The source is not kept alive while its keeper sleeps.
        let (wake, fetcher) = match presence.source.upgrade() {
            Some(shared) if !shared.is_closed() => {
                (shared.until_wake(), Arc::clone(&shared.fetcher))
            }
            _ => return,
        };
        let nap = async {
            // Without anything to do it still shows how long the token in hand lives on.
            match wake.or(Telemetry::COUNTS.then_some(LONGEST_NAP)) {
                Some(wake) => sleep(wake.min(LONGEST_NAP)).await,
                None => pending().await,
            }
        };
        let fetcher_changed = async {
            // Not at once: a fetcher that always says so must not make it spin.
            sleep(LEAST_PAUSE).await;
            fetcher.changed().await;
        };
        tokio::select! {
            changed = changes.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            () = nap => {
                if let Some(shared) = presence.source.upgrade() {
                    shared.show_expiry();
                    shared.renew_if_due();
                }
            }
            () = fetcher_changed => {
                if let Some(shared) = presence.source.upgrade() {
                    shared.renew_changed();
                }
            }
        }
    }
}

/// Says that a keeper is at work, until it is dropped: also with its runtime.
struct Presence {
    source: Weak<Shared>,
    /// Seen by who waits for the end of the source's tasks.
    _open: Open,
}

impl Drop for Presence {
    fn drop(&mut self) {
        if let Some(shared) = self.source.upgrade() {
            shared.keeper().store(false, Ordering::Release);
        }
    }
}
