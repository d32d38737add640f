//! The primitives of the protocol, each operation of which is one step that the scheduler orders.
//!
//! The cell and the channels are the real ones of `arc-swap` and Tokio. All threads of a model are
//! coroutines of one system thread, so that what happens between two steps is atomic.

use std::{
    cell::{Cell, RefCell},
    fmt,
    future::poll_fn,
    pin::pin,
    sync::{Arc, LockResult, atomic::Ordering},
};

use arc_swap::Guard;
use shuttle::{future::AbortHandle, sync::atomic::AtomicBool};

pub(super) use shuttle::sync::{
    MutexGuard,
    atomic::{AtomicU64, AtomicUsize},
};

/// A defect of a primitive that a test plants to see that the model notices it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A caller subscribes to changes after it has decided, and not before.
    LateSubscription,
    /// The mutex of the writers excludes nobody.
    NoExclusion,
    /// A change wakes nobody.
    NoNotification,
}

thread_local! {
    static FAULT: Cell<Option<Fault>> = const { Cell::new(None) };
    static TASKS_TO_LOSE: Cell<u32> = const { Cell::new(0) };
    static LAST_TASK: RefCell<Option<AbortHandle>> = const { RefCell::new(None) };
}

/// Plants a fault in the primitives of this thread, until the guard is dropped.
pub(super) fn plant(fault: Fault) -> Planted {
    FAULT.set(Some(fault));
    Planted
}

#[must_use]
pub(super) struct Planted;

impl Drop for Planted {
    fn drop(&mut self) {
        FAULT.set(None);
    }
}

fn has(fault: Fault) -> bool {
    FAULT.get() == Some(fault)
}

/// Begins with a new runtime.
pub(super) fn begin() {
    TASKS_TO_LOSE.set(0);
    LAST_TASK.take();
}

/// The next `count` tasks that are spawned are dropped unpolled, as by a runtime that has ended.
pub(super) fn lose_tasks(count: u32) {
    TASKS_TO_LOSE.set(count);
}

/// Drops the last task that was spawned, as a runtime does that ends. Returns whether there was one.
pub(super) fn end_last_task() -> bool {
    LAST_TASK.take().inspect(AbortHandle::abort).is_some()
}

/// A place at which the scheduler may let another thread go on.
struct Step(AtomicBool);

impl Step {
    const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    fn take(&self) {
        self.0.load(Ordering::SeqCst);
    }
}

pub(super) struct ArcSwap<T> {
    step: Step,
    cell: arc_swap::ArcSwap<T>,
}

impl<T> ArcSwap<T> {
    pub(super) fn from_pointee(value: T) -> Self {
        Self { step: Step::new(), cell: arc_swap::ArcSwap::from_pointee(value) }
    }

    pub(super) fn load(&self) -> Guard<Arc<T>> {
        self.step.take();
        self.cell.load()
    }

    pub(super) fn load_full(&self) -> Arc<T> {
        self.step.take();
        self.cell.load_full()
    }

    pub(super) fn swap(&self, value: Arc<T>) -> Arc<T> {
        self.step.take();
        self.cell.swap(value)
    }
}

#[derive(Default)]
pub(super) struct Mutex<T>(shuttle::sync::Mutex<T>);

impl<T: Default> Mutex<T> {
    pub(super) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        match has(Fault::NoExclusion) {
            true => Box::leak(Box::new(shuttle::sync::Mutex::new(T::default()))).lock(),
            false => self.0.lock(),
        }
    }
}

pub(super) mod watch {
    use tokio::sync::watch::{self, Ref, error::RecvError};

    use super::*;

    pub(in crate::source::model) struct Sender<T> {
        step: Step,
        sender: watch::Sender<T>,
    }

    impl<T> Sender<T> {
        pub(in crate::source::model) fn new(value: T) -> Self {
            Self { step: Step::new(), sender: watch::Sender::new(value) }
        }

        pub(in crate::source::model) fn subscribe(&self) -> Receiver<T> {
            self.step.take();
            Receiver::new(self.sender.subscribe())
        }

        pub(in crate::source::model) fn send_replace(&self, value: T) {
            self.step.take();
            if !has(Fault::NoNotification) {
                self.sender.send_replace(value);
            }
        }

        pub(in crate::source::model) async fn closed(&self) {
            let mut closed = pin!(self.sender.closed());
            poll_fn(|context| {
                self.step.take();
                closed.as_mut().poll(context)
            })
            .await;
        }
    }

    pub(in crate::source::model) struct Receiver<T> {
        step: Step,
        receiver: watch::Receiver<T>,
    }

    impl<T> Receiver<T> {
        fn new(receiver: watch::Receiver<T>) -> Self {
            Self { step: Step::new(), receiver }
        }

        pub(in crate::source::model) fn mark_unchanged(&mut self) {
            self.step.take();
            self.receiver.mark_unchanged();
        }

        pub(in crate::source::model) fn borrow(&self) -> Ref<'_, T> {
            self.step.take();
            self.receiver.borrow()
        }

        pub(in crate::source::model) async fn changed(&mut self) -> Result<(), RecvError> {
            if has(Fault::LateSubscription) {
                self.mark_unchanged();
            }
            let mut changed = pin!(self.receiver.changed());
            poll_fn(|context| {
                self.step.take();
                changed.as_mut().poll(context)
            })
            .await
        }

        pub(in crate::source::model) async fn wait_for(
            &mut self,
            wanted: impl FnMut(&T) -> bool,
        ) -> Result<(), RecvError> {
            let mut wait = pin!(self.receiver.wait_for(wanted));
            poll_fn(|context| {
                self.step.take();
                wait.as_mut().poll(context).map_ok(drop)
            })
            .await
        }
    }

    impl<T> Clone for Receiver<T> {
        fn clone(&self) -> Self {
            self.step.take();
            Self::new(self.receiver.clone())
        }
    }

    impl<T> Drop for Receiver<T> {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                self.step.take();
            }
        }
    }

    impl<T> fmt::Debug for Receiver<T> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Receiver").finish_non_exhaustive()
        }
    }
}

/// A runtime whose tasks are threads of the model.
pub(super) struct Handle;

/// Identifies a runtime, of which a model has one.
pub(super) type Id = u8;

impl Handle {
    pub(super) fn id(&self) -> Id {
        0
    }

    pub(super) fn try_current() -> Result<Self, tokio::runtime::TryCurrentError> {
        tokio::runtime::Handle::try_current().map(|_| Self)
    }

    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) -> Task {
        match TASKS_TO_LOSE.get().checked_sub(1) {
            Some(left) => {
                TASKS_TO_LOSE.set(left);
                drop(task);
                Task { lost: true }
            }
            None => {
                let task = shuttle::future::spawn(task);
                LAST_TASK.set(Some(task.abort_handle()));
                Task { lost: false }
            }
        }
    }
}

/// A task that was spawned.
pub(super) struct Task {
    lost: bool,
}

impl Task {
    pub(super) fn is_finished(&self) -> bool {
        self.lost
    }
}
