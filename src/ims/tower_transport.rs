//! [`TowerTransport`]: reaches IMS through any Tower service over HTTP messages.

use std::future::poll_fn;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use tower_service::Service;

use super::transport::{AnswerFuture, Transport, broken, read_answer};
use crate::error::BoxError;

/// A [`Transport`] over a service, which is cloned for each request.
pub(crate) struct TowerTransport<S> {
    service: S,
}

impl<S> TowerTransport<S> {
    pub(crate) fn new(service: S) -> Self {
        Self { service }
    }
}

impl<S, B> Transport for TowerTransport<S>
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body + Send,
    B::Data: Send,
    B::Error: Into<BoxError>,
{
    fn send(&self, request: Request<Bytes>) -> AnswerFuture<'_> {
        // The clone that is polled ready is the one that is called.
        let mut service = self.service.clone();
        Box::pin(async move {
            poll_fn(|cx| service.poll_ready(cx)).await.map_err(|error| broken(error.into()))?;
            let response = service.call(request.map(Full::new)).await;
            read_answer(response.map_err(|error| broken(error.into()))?).await
        })
    }
}
