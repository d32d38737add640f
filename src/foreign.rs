//! Foreign code: what the user, a subscriber or a recorder supplies. Its panics end nothing of ours.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    task::Poll,
};

/// Runs foreign code (a tracing subscriber, a metrics recorder, a destructor of a user type) and
/// ignores its panic, so that the panic does not end a refresh or a request. The panic hook has
/// reported it.
pub(crate) fn quietly(foreign: impl FnOnce()) {
    let _ = catch_unwind(AssertUnwindSafe(foreign));
}

/// The error of [`caught`]: the foreign code panicked.
#[derive(Debug)]
pub(crate) struct Panicked;

/// Polls foreign code, and catches a panic of it.
///
/// The panic is caught where the code is polled, because only here is its origin certain:
/// `thread::panicking` is also true while unrelated code unwinds.
pub(crate) async fn caught<T>(future: impl Future<Output = T> + Send) -> Result<T, Panicked> {
    let mut future = Box::pin(future);
    poll_fn(move |context| {
        // After a panic the future is not polled again.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Ready(output)) => Poll::Ready(Ok(output)),
            Ok(Poll::Pending) => Poll::Pending,
            Err(_) => Poll::Ready(Err(Panicked)),
        }
    })
    .await
}
