//! How a source ends: all its tasks are told, and waited for if somebody wants to know.

use tokio::sync::watch;

use super::shared::Shared;

/// Held by each task of a source: see [`Shared::open`].
pub(super) type Open = watch::Receiver<bool>;

impl Shared {
    /// Ends all background work of this source, now and for good.
    pub(super) fn close(&self) {
        self.closed.send_replace(true);
        self.changes.send_replace(());
        self.show_expiry();
    }

    pub(super) fn is_closed(&self) -> bool {
        *self.closed.borrow()
    }

    /// What a task of this source needs to begin, and holds until it ends: it turns true at
    /// [`close`](Self::close). `None` after that.
    pub(super) fn open(&self) -> Option<Open> {
        // First a receiver, then the look: who closes and then counts receivers misses none.
        Some(self.closed.subscribe()).filter(|open| !*open.borrow())
    }

    /// Waits until no task of this source is left.
    pub(super) async fn tasks_ended(&self) {
        self.closed.closed().await;
    }
}
