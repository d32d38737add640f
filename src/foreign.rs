//! Foreign code: what the user, a subscriber or a recorder supplies. Its panics end nothing of ours.

use std::{
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
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

/// Runs a future of foreign code, and catches a panic of it, also of its destructor.
///
/// The panic is caught here, because only here is its origin certain: `thread::panicking` is also true
/// while unrelated code unwinds.
pub(crate) fn caught<T>(
    future: impl Future<Output = T> + Send,
) -> impl Future<Output = Result<T, Panicked>> + Send {
    let mut foreign = Foreign(Some(Box::pin(future)));
    poll_fn(move |context| {
        // After a panic the future is not polled again.
        let Some(future) = &mut foreign.0 else { return Poll::Ready(Err(Panicked)) };
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(output)) => Poll::Ready(foreign.end().map(|()| output)),
            Err(_) => {
                let _ = foreign.end();
                Poll::Ready(Err(Panicked))
            }
        }
    })
}

/// A future of foreign code, whose destructor may panic as well.
struct Foreign<F>(Option<Pin<Box<F>>>);

impl<F> Foreign<F> {
    /// Drops the future. Fails if its destructor panics.
    fn end(&mut self) -> Result<(), Panicked> {
        let future = self.0.take();
        catch_unwind(AssertUnwindSafe(|| drop(future))).map_err(|_| Panicked)
    }
}

impl<F> Drop for Foreign<F> {
    fn drop(&mut self) {
        let _ = self.end();
    }
}
