//! How a `MockIms` is set up.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use super::clients::Clients;
use super::gate::Gates;
use super::mock_ims::MockIms;
use super::script::Script;
use super::state::{ApiScript, Counts, State, now_in_millis};
use super::tokens::Tokens;

/// Sets up a [`MockIms`].
///
/// ```
/// use std::time::Duration;
/// use tower_adobe_auth::mock::MockIms;
///
/// let ims = MockIms::builder()
///     .client("one-client", "its-secret")
///     .client("another-client", "its-old-secret")
///     .client("another-client", "its-new-secret")
///     .token_lifetime(Duration::from_secs(2))
///     .start_blocking();
/// assert_eq!(ims.token_requests(), 0);
/// ```
#[must_use = "nothing is served before it is started"]
pub struct MockImsBuilder {
    clients: Clients,
    scopes: Option<Vec<String>>,
    lifetime: Duration,
    check_api_key: bool,
}

impl MockImsBuilder {
    pub(super) fn new() -> Self {
        Self {
            clients: Clients::default(),
            scopes: None,
            // As IMS: a day less a second.
            lifetime: Duration::from_secs(86_399),
            check_api_key: true,
        }
    }

    /// Accepts a client. Default: [`MockIms::CLIENT_ID`] with [`MockIms::CLIENT_SECRET`], if no
    /// other is named. The same id again gives that client a second secret.
    ///
    /// # Panics
    ///
    /// At a third secret: IMS keeps two.
    pub fn client(mut self, id: impl Into<String>, secret: impl Into<String>) -> Self {
        self.clients.add(id.into(), secret.into(), now_in_millis());
        self
    }

    /// How long tokens live, to the millisecond. Default: 86,399 seconds, as IMS.
    ///
    /// The claims of a token are exact; the answer's `expires_in` is in whole seconds, rounded up.
    pub fn token_lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// Refuses every scope but these with `invalid_scope`. Default: any scope is granted.
    pub fn only_scopes<I>(mut self, scopes: I) -> Self
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.scopes = Some(scopes.into_iter().map(Into::into).collect());
        self
    }

    /// Lets the API answer requests without `x-api-key`, or with another. Default: they get a 403.
    pub fn without_api_key_check(mut self) -> Self {
        self.check_api_key = false;
        self
    }

    /// Starts IMS and the API.
    ///
    /// # Panics
    ///
    /// If no port of the loopback interface can be bound, or no thread started.
    pub async fn start(self) -> MockIms {
        self.start_blocking()
    }

    /// [`start`](Self::start) outside async code. It waits for nothing but two sockets to be bound,
    /// so it may be called anywhere.
    ///
    /// # Panics
    ///
    /// If no port of the loopback interface can be bound, or no thread started.
    #[must_use = "it stops when dropped"]
    pub fn start_blocking(mut self) -> MockIms {
        if self.clients.is_empty() {
            let (id, secret) = (MockIms::CLIENT_ID.to_owned(), MockIms::CLIENT_SECRET.to_owned());
            self.clients.add(id, secret, now_in_millis());
        }
        MockIms::serve(State {
            clients: self.clients,
            scopes: self.scopes,
            lifetime: self.lifetime,
            check_api_key: self.check_api_key,
            tokens: Tokens::new(),
            script: Script::default(),
            gates: Gates::default(),
            api_script: ApiScript::default(),
            api_refusals: Vec::new(),
            counts: Counts::default(),
            requests: VecDeque::new(),
            times: VecDeque::new(),
        })
    }
}

/// Shows no client: they have secrets.
impl fmt::Debug for MockImsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MockImsBuilder")
            .field("lifetime", &self.lifetime)
            .field("scopes", &self.scopes)
            .field("check_api_key", &self.check_api_key)
            .finish_non_exhaustive()
    }
}
