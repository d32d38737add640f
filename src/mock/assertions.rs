//! Assertions on what a mock was asked, with messages that tell what came instead.

use std::fmt::Write as _;
use std::future::Future;
use std::panic::Location;
use std::time::Duration;

use super::mock_ims::MockIms;

/// How long is waited for what a test expects to come.
const BOUND: Duration = Duration::from_secs(10);

/// How many requests a message lists.
const LISTED: usize = 10;

/// What a test asserts in the end, and what it waits for on its way.
///
/// Each assertion panics with a message that tells what came instead. None shows a token or a
/// secret.
impl MockIms {
    /// Asserts that the token endpoint has received exactly so many requests, whatever became of
    /// them.
    ///
    /// ```
    /// # #[cfg(not(feature = "reqwest"))] fn main() {}
    /// # #[cfg(feature = "reqwest")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tower_adobe_auth::BoxError> {
    /// # use tower_adobe_auth::{Credentials, Environment, TokenSource, mock::MockIms};
    /// # let ims = MockIms::start().await;
    /// # let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
    /// #     .environment(Environment::custom(ims.url())?)
    /// #     .build()?;
    /// tokens.token().await?;
    /// tokens.token().await?;
    ///
    /// ims.assert_token_requests(1);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// If there were more or fewer. The message lists the latest, with their clients and times.
    #[track_caller]
    pub fn assert_token_requests(&self, expected: usize) {
        let (counts, requests) = {
            let state = self.shared.lock();
            let latest = state.requests.len().saturating_sub(LISTED);
            (state.counts, state.requests.range(latest..).cloned().collect::<Vec<_>>())
        };
        if counts.token_requests == expected {
            return;
        }
        let mut message = format!(
            "expected {}, but {} came ({} issued, {} refused)",
            counted(expected, "token request"),
            counts.token_requests,
            counted(counts.issued, "token"),
            counts.refused,
        );
        for request in &requests {
            let parameters = request.parameters();
            let client = parameters.iter().find(|(name, _)| name == "client_id");
            let client = client.map_or("no client", |(_, id)| id);
            let after = request.received_at().duration_since(requests[0].received_at());
            let (method, path) = (request.method(), request.path());
            let _ = write!(message, "\n  {method} {path} by {client}, after {after:.0?}");
        }
        panic!("{message}");
    }

    /// Asserts that no token request was answered with an error status, or by disconnecting: the
    /// credentials and scopes of the service are right, and it asked as IMS wants to be asked.
    ///
    /// ```
    /// # let ims = tower_adobe_auth::mock::MockIms::start_blocking();
    /// ims.assert_no_refused_requests();
    /// ```
    ///
    /// # Panics
    ///
    /// If one was.
    #[track_caller]
    pub fn assert_no_refused_requests(&self) {
        let counts = self.counts();
        assert!(
            counts.refused == 0,
            "{} of {} refused",
            counts.refused,
            counted(counts.token_requests, "token request"),
        );
    }

    /// Asserts that the API has answered exactly so many requests, those to `/storage/` aside.
    ///
    /// ```
    /// # let ims = tower_adobe_auth::mock::MockIms::start_blocking();
    /// ims.assert_api_requests(0);
    /// ```
    ///
    /// # Panics
    ///
    /// If there were more or fewer.
    #[track_caller]
    pub fn assert_api_requests(&self, expected: usize) {
        let came = self.api_requests();
        assert!(came == expected, "expected {}, but {came} came", counted(expected, "API request"));
    }

    /// Asserts that no request to the API was answered with 401 or 403: each had a living token and
    /// its client's `x-api-key`. A request that was refused and then repeated with a new token
    /// counts as refused.
    ///
    /// ```
    /// # let ims = tower_adobe_auth::mock::MockIms::start_blocking();
    /// ims.assert_no_unauthorized();
    /// ```
    ///
    /// # Panics
    ///
    /// If one was. The message lists the first ten, each with what was wrong with it.
    #[track_caller]
    pub fn assert_no_unauthorized(&self) {
        let (counts, refusals) = {
            let state = self.shared.lock();
            (state.counts, state.api_refusals.clone())
        };
        let refused = counts.api_unauthorized + counts.api_forbidden;
        assert!(
            refused == 0,
            "{refused} of {} refused:\n  {}",
            counted(counts.api_requests, "API request"),
            refusals.join("\n  "),
        );
    }

    /// Asserts that all answers were given that [`respond_next`](Self::respond_next) and
    /// [`api_respond_next`](Self::api_respond_next) have queued: what the test is about did happen.
    ///
    /// ```should_panic
    /// # use tower_adobe_auth::mock::{Answer, MockIms};
    /// # let ims = MockIms::start_blocking();
    /// ims.respond_next([Answer::unavailable()]);
    /// // Nobody has asked for a token yet.
    /// ims.assert_all_answers_given();
    /// ```
    ///
    /// # Panics
    ///
    /// If some are still waiting to be given.
    #[track_caller]
    pub fn assert_all_answers_given(&self) {
        let (ims, api) = {
            let state = self.shared.lock();
            (state.script.waiting(), state.api_script.queued.len())
        };
        assert!(
            ims == 0 && api == 0,
            "never given: {} of IMS, and {api} of the API",
            counted(ims, "queued answer"),
        );
    }

    /// Waits until the token endpoint has received so many requests since its start, for at most
    /// ten seconds. A request counts as soon as it has arrived, also while its answer is
    /// [held back](Self::hold).
    ///
    /// It is the mock that watches the time: a paused clock of the test's runtime does not end the
    /// wait.
    ///
    /// ```
    /// # #[cfg(not(feature = "reqwest"))] fn main() {}
    /// # #[cfg(feature = "reqwest")]
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), tower_adobe_auth::BoxError> {
    /// # use tower_adobe_auth::{Credentials, Environment, TokenSource, mock::MockIms};
    /// # let ims = MockIms::start().await;
    /// # let tokens = TokenSource::builder(Credentials::new("client-id", "client-secret"))
    /// #     .environment(Environment::custom(ims.url())?)
    /// #     .build()?;
    /// tokens.warm_up(); // asks for a token, and does not wait for it
    ///
    /// ims.wait_for_token_requests(1).await;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// If they have not come after ten seconds.
    #[track_caller]
    pub fn wait_for_token_requests(&self, expected: usize) -> impl Future<Output = ()> + Send {
        // A future that panics does so where it is polled, so it says itself who asked.
        let asked_at = Location::caller();
        let shared = self.shared.clone();
        let waiting = self.server.runtime.spawn(async move {
            tokio::time::timeout(BOUND, shared.token_requests_come(expected)).await.is_ok()
        });
        let shared = self.shared.clone();
        async move {
            // The servers end with the mock, and this wait with them.
            let came = waiting.await.expect("the mock is still there");
            assert!(
                came,
                "waited {BOUND:?} for {}, but {} came; asked at {asked_at}",
                counted(expected, "token request"),
                shared.lock().counts.token_requests,
            );
        }
    }
}

fn counted(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}
