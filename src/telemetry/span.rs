//! The span of a refresh, guarded against subscribers that panic.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tracing::{Span, Value, field::Empty, info_span};

use crate::foreign::quietly;

/// The span `token_refresh`.
#[derive(Clone, Debug)]
pub(crate) struct RefreshSpan(Option<Arc<Guarded>>);

/// A span that is closed quietly. Shared, because cloning a span calls the subscriber.
#[derive(Debug)]
struct Guarded(Option<Span>);

impl RefreshSpan {
    /// A span that records nothing.
    pub(crate) const fn none() -> Self {
        Self(None)
    }

    /// A new span, which is the root of a trace, because the refresh serves every caller and not only
    /// the one that started it.
    pub(crate) fn new(source: &str, flight: u64) -> Self {
        let mut made = None;
        quietly(|| {
            let span = info_span!(
                parent: None,
                "token_refresh",
                otel.kind = "client",
                source,
                flight,
                attempt = Empty,
                outcome = Empty,
                duration = Empty,
                expires_in = Empty,
                waiters = Empty,
                otel.status_code = Empty,
            );
            span.follows_from(Span::current());
            made = Some(span);
        });
        Self(Some(Arc::new(Guarded(made))))
    }

    pub(crate) fn record(&self, field: &'static str, value: impl Value) {
        if let Some(span) = self.span() {
            quietly(|| {
                span.record(field, value);
            });
        }
    }

    /// Polls `future` inside the span.
    pub(crate) fn instrument<F: Future>(self, future: F) -> Instrumented<F> {
        Instrumented { span: self, future }
    }

    /// Runs foreign code inside the span, such as the report of an event.
    pub(crate) fn in_scope(&self, foreign: impl FnOnce()) {
        self.enter();
        quietly(foreign);
        self.exit();
    }

    fn span(&self) -> Option<&Span> {
        self.0.as_ref()?.0.as_ref()
    }

    fn enter(&self) {
        self.dispatch(|id, dispatch| dispatch.enter(id));
    }

    fn exit(&self) {
        self.dispatch(|id, dispatch| dispatch.exit(id));
    }

    fn dispatch(&self, call: impl FnOnce(&tracing::Id, &tracing::Dispatch)) {
        if let Some(span) = self.span() {
            quietly(|| {
                span.with_subscriber(|(id, dispatch)| call(id, dispatch));
            });
        }
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let span = self.0.take();
        quietly(|| drop(span));
    }
}

pin_project! {
    /// A future that is polled inside the span of its refresh.
    pub(crate) struct Instrumented<F> {
        span: RefreshSpan,
        #[pin]
        future: F,
    }
}

impl<F: Future> Future for Instrumented<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        this.span.enter();
        let _exit = Exit(this.span);
        this.future.poll(context)
    }
}

/// Leaves the span when it is dropped, also when the future panics.
struct Exit<'a>(&'a RefreshSpan);

impl Drop for Exit<'_> {
    fn drop(&mut self) {
        self.0.exit();
    }
}
