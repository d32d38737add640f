//! The handle that a test holds.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::answer::Answer;
use super::builder::MockImsBuilder;
use super::gate::Gate;
use super::reply::final_status;
use super::secrets;
use super::server::Server;
use super::state::{Counts, Shared, State, now_in_millis};
use super::token_request::TokenRequest;

/// An Adobe IMS on loopback, and an API guarded by its tokens.
///
/// Both run on a thread of their own until this is dropped, whatever becomes of the runtime that
/// started them. See the [module](super) for how a test is written with it.
///
/// What it was told to do holds from the next request on; requests that it is holding back keep
/// the answer they were given on arrival.
pub struct MockIms {
    url: String,
    api_url: String,
    pub(super) shared: Arc<Shared>,
    pub(super) server: Server,
}

/// Starting it, and where it is.
impl MockIms {
    /// The client that is accepted if no other is named.
    pub const CLIENT_ID: &'static str = "client-id";

    /// The secret of the client that is accepted if no other is named.
    pub const CLIENT_SECRET: &'static str = "client-secret";

    /// Starts with the defaults: one client, tokens that live for a day.
    ///
    /// # Panics
    ///
    /// If no port of the loopback interface can be bound, or no thread started.
    pub async fn start() -> Self {
        Self::start_blocking()
    }

    /// [`start`](Self::start) outside async code. It waits for nothing but two sockets to be bound,
    /// so it may be called anywhere.
    ///
    /// # Panics
    ///
    /// If no port of the loopback interface can be bound, or no thread started.
    #[must_use = "it stops when dropped"]
    pub fn start_blocking() -> Self {
        Self::builder().start_blocking()
    }

    /// Starts with other clients, scopes or lifetimes.
    pub fn builder() -> MockImsBuilder {
        MockImsBuilder::new()
    }

    pub(super) fn serve(state: State) -> Self {
        let shared = Arc::new(Shared::new(state));
        let server = Server::start(shared.clone()).expect("loopback can be bound");
        Self {
            url: format!("http://{}", server.ims),
            api_url: format!("http://{}", server.api),
            shared,
            server,
        }
    }

    /// Where IMS is, without a slash at the end: `http://127.0.0.1:4801`.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Where the guarded API is, without a slash at the end. Its port is not that of IMS.
    #[must_use]
    pub fn api_url(&self) -> &str {
        &self.api_url
    }

    /// Where the Console's API manages the secrets of a client, under
    /// [`api_url`](Self::api_url): see the [module](super#what-the-console-answers).
    ///
    /// # Panics
    ///
    /// If it does not know the client.
    #[must_use]
    pub fn secrets_url(&self, client_id: &str) -> String {
        let state = self.shared.lock();
        let credential = state.clients.credential(client_id).expect("a client that it knows");
        format!("{}{}", self.api_url, secrets::path(credential))
    }
}

/// What was asked of it.
impl MockIms {
    /// How many requests the token endpoint has received, whatever became of them.
    #[must_use]
    pub fn token_requests(&self) -> usize {
        self.counts().token_requests
    }

    /// How many tokens it has issued.
    #[must_use]
    pub fn tokens_issued(&self) -> usize {
        self.counts().issued
    }

    /// How many token requests it has answered with an error status, or by disconnecting.
    #[must_use]
    pub fn refused_requests(&self) -> usize {
        self.counts().refused
    }

    /// How many connections it has closed at once because it was [down](Self::go_down).
    #[must_use]
    pub fn refused_connections(&self) -> usize {
        self.counts().refused_connections
    }

    /// How many requests the API has answered, those to `/storage/` aside.
    #[must_use]
    pub fn api_requests(&self) -> usize {
        self.counts().api_requests
    }

    /// How many requests the API has answered with 401.
    #[must_use]
    pub fn api_unauthorized(&self) -> usize {
        self.counts().api_unauthorized
    }

    /// When each token request arrived, in order; of very many, the latest 100,000.
    #[must_use]
    pub fn token_request_times(&self) -> Vec<Instant> {
        self.shared.lock().times.iter().copied().collect()
    }

    /// The latest token request.
    #[must_use]
    pub fn last_token_request(&self) -> Option<TokenRequest> {
        self.shared.lock().requests.back().cloned()
    }

    /// All token requests, in order; of very many, the latest 1,000.
    #[must_use]
    pub fn recorded_token_requests(&self) -> Vec<TokenRequest> {
        self.shared.lock().requests.iter().cloned().collect()
    }

    /// How many requests the API has answered with 403: without a token, or without the fitting
    /// `x-api-key`.
    #[must_use]
    pub fn api_forbidden(&self) -> usize {
        self.counts().api_forbidden
    }

    pub(super) fn counts(&self) -> Counts {
        self.shared.lock().counts
    }
}

/// What IMS does.
impl MockIms {
    /// How long tokens live that are issued from now on.
    pub fn set_token_lifetime(&self, lifetime: Duration) {
        self.shared.lock().lifetime = lifetime;
    }

    /// Holds back every answer of the token endpoint for `delay`. A token lives from the arrival of
    /// its request, not from the end of the delay.
    pub fn set_delay(&self, delay: Duration) {
        self.shared.lock().script.set_delay(delay);
    }

    /// Holds back every answer of the token endpoint until the gate is released or dropped, so that
    /// a test can look at its service while a token request is under way.
    ///
    /// A request that arrives meanwhile is counted, judged and, if it deserves one, given its token
    /// at once; only the answer waits. Its token lives from its arrival. Where there are several
    /// gates, an answer waits for all that stood when its request arrived.
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
    /// let gate = ims.hold();
    /// let caller = tokio::spawn({
    ///     let tokens = tokens.clone();
    ///     async move { tokens.token().await }
    /// });
    /// ims.wait_for_token_requests(1).await;
    ///
    /// assert!(tokens.status().is_refreshing());
    /// assert!(!caller.is_finished());
    ///
    /// gate.release();
    /// caller.await??;
    /// # Ok(())
    /// # }
    /// ```
    pub fn hold(&self) -> Gate {
        self.shared.lock().gates.close()
    }

    /// Gives this answer to every token request, until [`respond_normally`](Self::respond_normally).
    pub fn respond_with(&self, answer: Answer) {
        self.shared.lock().script.stand(answer);
    }

    /// Gives these answers to the next token requests, one each, before any other. They queue up
    /// behind those that are still waiting to be given.
    pub fn respond_next(&self, answers: impl IntoIterator<Item = Answer>) {
        // Collected first: the iterator is foreign code, and may itself ask this mock something.
        let answers: Vec<_> = answers.into_iter().collect();
        self.shared.lock().script.queue(answers);
    }

    /// Forgets all answers it was told to give. The [delay](Self::set_delay) stays.
    pub fn respond_normally(&self) {
        self.shared.lock().script.clear();
    }

    /// Revokes a token: the API refuses it from the next request on. (Adobe's takes up to a minute
    /// to notice.) A token that is not its own is ignored.
    pub fn revoke(&self, token: &str) {
        self.shared.lock().tokens.revoke(token);
    }

    /// Revokes all tokens issued so far.
    pub fn revoke_all(&self) {
        self.shared.lock().tokens.revoke_all();
    }

    /// Accepts these secrets of a client, and no others, as after a rotation. Tokens that were
    /// issued for another secret live on. A client that it does not know becomes known.
    ///
    /// # Panics
    ///
    /// If there are more than two: IMS keeps two.
    pub fn set_secrets<I>(&self, client_id: impl Into<String>, secrets: I)
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        let (client_id, secrets) =
            (client_id.into(), secrets.into_iter().map(Into::into).collect());
        self.shared.lock().clients.set(client_id, secrets, now_in_millis());
    }

    /// The secrets of a client that are accepted now, the oldest first; none of a client that it
    /// does not know.
    #[must_use]
    pub fn secrets(&self, client_id: &str) -> Vec<String> {
        let state = self.shared.lock();
        let secrets = state.clients.secrets(client_id).unwrap_or_default();
        secrets.iter().map(|secret| secret.value.clone()).collect()
    }

    /// Cuts IMS off: its open connections are closed, with the requests on them, and new ones are
    /// closed as soon as they are accepted. The API stays up, and the port stays taken.
    pub fn go_down(&self) {
        self.server.go_down();
    }

    /// Ends what [`go_down`](Self::go_down) began.
    ///
    /// A source whose requests failed meanwhile still backs off for a while, and answers from its
    /// last failure: see the [module](super#after-an-outage).
    pub fn come_back(&self) {
        self.server.come_back();
    }
}

/// What the API does.
impl MockIms {
    /// Lets the API answer every request with this status, until
    /// [`api_respond_normally`](Self::api_respond_normally). A 401 has Adobe's body for a token
    /// that is not valid.
    ///
    /// # Panics
    ///
    /// If `status` is not a final HTTP status (200 to 999).
    pub fn api_respond_with(&self, status: u16) {
        let status = final_status(status);
        self.shared.lock().api_script.standing = Some(status);
    }

    /// Lets the API answer the next requests with these statuses, one each, before any other: a
    /// single 401 for a living token, for example, is a fault that Adobe's gateway has had.
    ///
    /// # Panics
    ///
    /// If one of them is not a final HTTP status (200 to 999).
    pub fn api_respond_next(&self, statuses: impl IntoIterator<Item = u16>) {
        let statuses: Vec<_> = statuses.into_iter().map(final_status).collect();
        self.shared.lock().api_script.queued.extend(statuses);
    }

    /// Lets the API judge each request by its headers again.
    pub fn api_respond_normally(&self) {
        let mut state = self.shared.lock();
        state.api_script.standing = None;
        state.api_script.queued.clear();
    }
}

/// Shows where it is and what it has counted, no token and no secret.
impl fmt::Debug for MockIms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MockIms")
            .field("url", &self.url)
            .field("api_url", &self.api_url)
            .field("counts", &self.counts())
            .finish_non_exhaustive()
    }
}
