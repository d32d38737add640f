//! Notices credentials that differ from those of the last token request.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{Instant, sleep},
};

use super::ImsClient;

/// The pause after a notification without a change. It doubles with each further one, so that a
/// provider that notifies all the time is asked rarely.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// The longest such pause. A provider that was silent for as long starts with the first one again.
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// The credentials of the last token request, or those whose change was reported since.
///
/// Each clone of a client has its own, because each source needs its own notification.
#[derive(Default)]
pub(super) struct LastCredentials {
    fingerprint: Mutex<Option<u64>>,
    /// Notified when a token request ends that was made with other credentials.
    is_outdated: Notify,
}

impl LastCredentials {
    /// Records the credentials of a token request that starts or of a change that is reported.
    /// Returns whether they replace others.
    pub(super) fn record(&self, fingerprint: u64) -> bool {
        let mut last = self.fingerprint.lock().unwrap_or_else(PoisonError::into_inner);
        last.replace(fingerprint).is_some_and(|last| last != fingerprint)
    }

    /// Records the credentials of a shared token, unless others were recorded before: a change since then
    /// is still to be reported.
    #[cfg(feature = "store")]
    pub(super) fn record_first(&self, fingerprint: u64) {
        let mut first = self.fingerprint.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(fingerprint);
    }

    /// Records the credentials of a token request that has ended.
    ///
    /// A change that was reported during the request may have been taken for part of it. It is then
    /// reported again.
    pub(super) fn record_end(&self, fingerprint: u64) {
        if self.record(fingerprint) {
            self.is_outdated.notify_one();
        }
    }
}

impl Clone for LastCredentials {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl ImsClient {
    /// Ends when the credentials differ from those of the last token request.
    ///
    /// Reading the credentials for another purpose, such as the key of a token in a store, changes
    /// nothing.
    pub(crate) async fn credentials_changed(&self) {
        let mut pause = Duration::ZERO;
        loop {
            let start = Instant::now();
            // Subscribe, then compare: a change during the comparison ends `changed`. It subscribes
            // when it is polled for the first time.
            let mut changed = pin!(self.provider().changed());
            let ended = poll_fn(|cx| Poll::Ready(changed.as_mut().poll(cx).is_ready())).await;
            match self.fingerprint().await {
                Some(fingerprint) if self.last_credentials().record(fingerprint) => return,
                Some(_) => {
                    sleep(pause).await;
                    tokio::select! {
                        () = changed, if !ended => {}
                        () = self.last_credentials().is_outdated.notified(), if !ended => {}
                        else => {}
                    }
                }
                // The provider may have changed credentials that it cannot return yet.
                None => sleep(pause.max(FIRST_PAUSE)).await,
            }
            let is_quiet = start.elapsed() >= LONGEST_PAUSE + pause;
            pause =
                if is_quiet { FIRST_PAUSE } else { (2 * pause).clamp(FIRST_PAUSE, LONGEST_PAUSE) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Full;
    use tokio::{sync::Semaphore, time::timeout};

    use super::*;
    use crate::{
        credentials::{Credentials, ProvideCredentials},
        error::BoxError,
    };

    /// Credentials with a number as their secret, which never notify.
    struct Numbered(Arc<AtomicUsize>);

    impl ProvideCredentials for Numbered {
        async fn credentials(&self) -> Result<Credentials, BoxError> {
            Ok(Credentials::new("id", self.0.load(Ordering::SeqCst).to_string()))
        }
    }

    /// A client, the number of its secret, and the permits that its token requests wait for.
    fn client() -> (ImsClient, Arc<AtomicUsize>, Arc<Semaphore>) {
        let (number, permits) = (Arc::new(AtomicUsize::new(1)), Arc::new(Semaphore::new(0)));
        let gate = Arc::clone(&permits);
        let ims = tower::service_fn(move |_: Request<Full<Bytes>>| {
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await?.forget();
                let body = r#"{"access_token":"token","expires_in":3600}"#;
                Ok::<_, BoxError>(Response::new(Full::<Bytes>::from(body)))
            }
        });
        let builder = ImsClient::builder_from_provider(Numbered(Arc::clone(&number)));
        (builder.transport(ims).build().unwrap(), number, permits)
    }

    async fn is_reported(client: &ImsClient) -> bool {
        timeout(Duration::from_secs(60 * 60), client.credentials_changed()).await.is_ok()
    }

    #[cfg(feature = "store")]
    #[tokio::test(start_paused = true)]
    async fn change_is_reported_after_the_identity_was_read() {
        let (client, number, permits) = client();
        permits.add_permits(1);
        client.request_token().await.unwrap();

        number.store(2, Ordering::SeqCst);
        client.credentials().await.unwrap();

        assert!(is_reported(&client).await);
        assert!(!is_reported(&client).await, "reported twice");
    }

    #[tokio::test(start_paused = true)]
    async fn change_reported_during_a_request_is_reported_after_it() {
        let (client, number, permits) = client();
        let request = client.request_token();
        let during = async {
            number.store(2, Ordering::SeqCst);
            assert!(is_reported(&client).await);
            permits.add_permits(1);
            assert!(is_reported(&client).await, "lost with the request");
        };

        let (response, ()) = tokio::join!(request, during);

        response.unwrap();
        assert!(!is_reported(&client).await, "reported twice");
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_of_the_last_request_are_no_change() {
        let (client, number, permits) = client();
        permits.add_permits(2);
        client.request_token().await.unwrap();
        number.store(2, Ordering::SeqCst);
        client.request_token().await.unwrap();

        assert!(!is_reported(&client).await);
    }

    #[tokio::test(start_paused = true)]
    async fn each_clone_reports_a_change() {
        let (client, number, _) = client();
        let other = client.clone();
        assert!(!is_reported(&client).await && !is_reported(&other).await, "nothing has changed");

        number.store(2, Ordering::SeqCst);

        assert!(is_reported(&client).await);
        assert!(is_reported(&other).await);
    }
}
