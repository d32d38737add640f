//! Two runtimes on one thread: the main one, always driven, and another that ends or is not driven.
//!
//! A paused clock belongs to its runtime, so the other clock is moved to the main one's reading
//! whenever something runs on the other runtime. The source then sees one time.

use std::time::Duration;

use futures_util::FutureExt;
use tokio::{
    runtime::{Builder, Runtime},
    task::yield_now,
    time::{Instant, advance},
};

pub(crate) struct Runtimes {
    pub(crate) main: Runtime,
    other: Option<Runtime>,
}

impl Runtimes {
    pub(crate) fn new() -> Self {
        Self { main: runtime(), other: None }
    }

    /// Moves the main clock without running anything: timers then fire late.
    pub(crate) fn stand_still(&self, duration: Duration) {
        let _context = self.main.enter();
        jump(duration);
    }

    /// Runs `work` in the context of the other runtime, which is not driven by that.
    pub(crate) fn on_other<R>(&mut self, work: impl FnOnce() -> R) -> R {
        self.synchronize();
        let _context = self.other().enter();
        work()
    }

    /// Runs what is ready on the other runtime, and no timer that lies ahead.
    pub(crate) fn drive_other(&mut self) {
        self.synchronize();
        self.other().block_on(settle());
    }

    /// Ends the other runtime and whatever runs on it.
    pub(crate) fn end_other(&mut self) {
        if self.other.is_some() {
            self.synchronize();
            self.other = None;
        }
    }

    pub(crate) fn has_other(&self) -> bool {
        self.other.is_some()
    }

    fn other(&mut self) -> &Runtime {
        self.other.get_or_insert_with(runtime)
    }

    fn synchronize(&mut self) {
        let now = {
            let _context = self.main.enter();
            Instant::now()
        };
        let _context = self.other().enter();
        jump(now.saturating_duration_since(Instant::now()));
    }
}

/// Lets everything happen that can happen at this instant.
pub(crate) async fn settle() {
    for _ in 0..16 {
        yield_now().await;
    }
}

/// The first poll of `advance` moves the clock of the current context.
fn jump(duration: Duration) {
    let _ = advance(duration).now_or_never();
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}
