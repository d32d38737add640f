//! The concurrency primitives of the protocol: start, publish, read, complete.
//!
//! The files of the protocol import them from here only, so that `model` can compile the same files
//! with primitives whose steps a scheduler orders.

pub(super) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU64, AtomicUsize},
};

pub(super) use arc_swap::ArcSwap;
pub(super) use tokio::{
    runtime::{Handle, Id},
    sync::watch,
};
