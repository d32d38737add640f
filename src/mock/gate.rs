//! Gates that answers wait at.

use std::fmt;

use tokio::sync::watch;

/// Holds back the answers of the token endpoint; made by [`MockIms::hold`].
///
/// [`release`](Self::release) and dropping it do the same: a test that fails half-way leaves no
/// request hanging.
///
/// [`MockIms::hold`]: super::MockIms::hold
#[must_use = "it holds nothing once it is dropped"]
pub struct Gate {
    // Held, not used: that it is dropped is the signal to go on.
    _closed: watch::Sender<()>,
}

impl Gate {
    /// Lets the answers go that wait here, and those to come.
    pub fn release(self) {}
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}

/// The gates that were closed.
#[derive(Default)]
pub(super) struct Gates(Vec<watch::Receiver<()>>);

impl Gates {
    pub(super) fn close(&mut self) -> Gate {
        let (gate, passage) = watch::channel(());
        self.forget_open();
        self.0.push(passage);
        Gate { _closed: gate }
    }

    /// What a request that arrives now has to wait for.
    pub(super) fn passage(&mut self) -> Passage {
        self.forget_open();
        Passage(self.0.clone())
    }

    fn forget_open(&mut self) {
        self.0.retain(|gate| gate.has_changed().is_ok());
    }
}

/// The gates before one answer.
pub(super) struct Passage(Vec<watch::Receiver<()>>);

impl Passage {
    /// Ends when all of the gates are open.
    pub(super) async fn open(self) {
        for mut gate in self.0 {
            while gate.changed().await.is_ok() {}
        }
    }
}
