//! [`Authorizer`]: the decision for one request, and all calls of a token source by the middleware.

use std::{fmt, pin::Pin, time::Duration};

use http::{
    Extensions, HeaderMap, HeaderName,
    header::{AUTHORIZATION, Entry},
};
use tracing::debug;

use super::{
    extensions::{AcquireTimeout, MinLifetime, NoAuthorization},
    hosts::AllowedHosts,
    message::Message,
    origin::{KnownOrigins, Verdict, host_of},
};
use crate::{
    clock::Deadline,
    error::{InsecureUri, TokenError},
    foreign::quietly,
    source::{AccessToken, OriginKey, TokenSource, Want},
    telemetry::{Obtained, Recovery},
};

static API_KEY: HeaderName = HeaderName::from_static("x-api-key");
static ORG_ID: HeaderName = HeaderName::from_static("x-gw-ims-org-id");

/// The rules of one layer, and the source of its tokens.
#[derive(Clone)]
pub(crate) struct Authorizer {
    tokens: TokenSource,
    pub(super) hosts: AllowedHosts,
    pub(super) api_key: bool,
    /// Verdicts of `hosts`, which do not change once the layer is applied.
    known: KnownOrigins,
}

/// The next step for a request.
pub(crate) enum Authorization {
    /// Pass it through unchanged.
    PassThrough,
    /// Insert the headers of this token, and send it.
    Send(Sent),
    /// Wait for a token first.
    Wait(OriginKey),
    /// Reject the request, because the token would be readable on the network.
    Insecure(Box<InsecureUri>),
}

/// The token that a request was sent with, and the origin that it was sent to.
pub(crate) struct Sent {
    pub(crate) token: AccessToken,
    pub(crate) origin: OriginKey,
}

/// The requirements of one request for its token, from its extensions.
struct TokenRequirements<'a> {
    /// A source other than the layer's.
    source: Option<&'a TokenSource>,
    want: Want,
    limit: Option<Duration>,
}

/// A token that a request may have to wait for, with the one deadline of the request.
#[derive(Clone)]
pub(crate) struct PendingToken {
    tokens: TokenSource,
    want: Want,
    deadline: Deadline,
    origin: OriginKey,
}

/// The wait for a token.
pub(super) type TokenFuture = Pin<Box<dyn Future<Output = Result<AccessToken, TokenError>> + Send>>;

impl Authorizer {
    pub(crate) fn new(tokens: TokenSource) -> Self {
        let (hosts, known) = (AllowedHosts::default(), KnownOrigins::default());
        Self { tokens, hosts, api_key: true, known }
    }

    /// The next step for `request`, whose extensions are `extensions`.
    // Inlined into `AdobeAuth::call`, where the returned enum is then never built in memory.
    #[inline(always)]
    pub(crate) fn authorize<Req: Message>(
        &self,
        request: &Req,
        extensions: Option<&Extensions>,
    ) -> Authorization {
        let Some(origin) = request.origin() else {
            log_no_host();
            return self.pass_through();
        };
        let verdict = self.known.judge(&self.hosts, origin);
        if matches!(verdict, Verdict::NotAllowed) {
            log_not_allowed(origin.authority);
            return self.pass_through();
        }
        let extensions = extensions.filter(|extensions| !extensions.is_empty());
        if has_opted_out(extensions) {
            return self.pass_through();
        }
        let Verdict::Allowed(key) = verdict else {
            self.tokens.telemetry().failed();
            let error = InsecureUri::new(request.shown_uri().into_owned());
            return Authorization::Insecure(Box::new(error));
        };

        let token = match extensions {
            None => self.tokens.cached(),
            Some(extensions) => self.cached_for(extensions),
        };
        match token {
            Some(token) => Authorization::Send(Sent { token, origin: key }),
            None => Authorization::Wait(key),
        }
    }

    /// The cached token for a request with extensions.
    // Out of line, because most requests have none.
    #[inline(never)]
    fn cached_for(&self, extensions: &Extensions) -> Option<AccessToken> {
        let TokenRequirements { source, want, .. } = TokenRequirements::of(Some(extensions));
        let tokens = source.unwrap_or(&self.tokens);
        if want.min_lifetime.is_zero() { tokens.cached() } else { tokens.cached_for(want) }
    }

    #[inline]
    fn pass_through(&self) -> Authorization {
        self.tokens.telemetry().passed_through();
        Authorization::PassThrough
    }

    /// The token that a request to `origin` waits for. The deadline counts from now on.
    pub(crate) fn pending_token(
        &self,
        extensions: Option<&Extensions>,
        origin: OriginKey,
    ) -> PendingToken {
        let TokenRequirements { source, want, limit } = TokenRequirements::of(extensions);
        let tokens = source.unwrap_or(&self.tokens).clone();
        let deadline = tokens.deadline(limit);
        PendingToken { tokens, want, deadline, origin }
    }

    /// Inserts the headers of `token`. `Authorization` replaces the caller's value; the other
    /// headers are inserted only where they are absent.
    // Out of line, because inlining it into `AdobeAuth::call` copies each value once more.
    #[inline(never)]
    pub(crate) fn insert_headers(&self, headers: &mut HeaderMap, token: &AccessToken) {
        let values = token.headers();
        headers.insert(AUTHORIZATION, values.authorization.clone());
        if let Some(api_key) = values.api_key.as_ref().filter(|_| self.api_key) {
            if let Entry::Vacant(entry) = headers.entry(&API_KEY) {
                entry.insert(api_key.clone());
            }
        }
        if let Some(org_id) = &values.org_id {
            if let Entry::Vacant(entry) = headers.entry(&ORG_ID) {
                entry.insert(org_id.clone());
            }
        }
    }
}

impl<'a> TokenRequirements<'a> {
    #[inline]
    fn of(extensions: Option<&'a Extensions>) -> Self {
        let Some(extensions) = extensions.filter(|extensions| !extensions.is_empty()) else {
            return Self { source: None, want: Want::default(), limit: None };
        };
        let min_lifetime = extensions.get().map_or(Duration::ZERO, |MinLifetime(least)| *least);
        Self {
            source: extensions.get(),
            want: Want::lasting(min_lifetime),
            limit: extensions.get().map(|AcquireTimeout(limit)| *limit),
        }
    }
}

impl Sent {
    /// Reports to the token's source that the origin refused the token.
    pub(crate) fn report_unauthorized(&self) {
        self.token.report_refusal(self.origin);
    }
}

impl PendingToken {
    /// Waits for the token.
    ///
    /// # Errors
    ///
    /// If no token could be obtained by the deadline of the request.
    pub(crate) fn acquire(&self) -> TokenFuture {
        let Self { tokens, want, deadline, .. } = self.clone();
        Box::pin(async move { tokens.acquire(want, deadline).await })
    }

    /// Waits for another token than `refused`.
    ///
    /// # Errors
    ///
    /// If none comes by the deadline of the request, or if none is requested.
    pub(crate) fn acquire_another(&self, refused: &AccessToken) -> TokenFuture {
        let Self { tokens, want, deadline, .. } = self.clone();
        let want = want.after_refusal_of(refused);
        Box::pin(async move { tokens.acquire(want, deadline).await })
    }

    /// The token, if a usable one is cached now. Does not wait.
    pub(super) fn usable(&self) -> Option<AccessToken> {
        self.tokens.try_acquire(self.want)
    }

    /// Counts the request as sent with `token`, and returns the token and the origin.
    pub(crate) fn send_with(&self, token: AccessToken, how: Obtained) -> Sent {
        self.tokens.count_sent(&token, how);
        Sent { token, origin: self.origin }
    }

    /// Counts the request as failed unless it is disarmed.
    pub(crate) fn failure_counter(&self) -> FailureCounter {
        FailureCounter(Some(self.tokens.clone()))
    }

    /// Counts a refused request that was not replayed, because no other token came.
    pub(crate) fn count_no_new_token(&self) {
        self.tokens.telemetry().recovery(Recovery::NoNewToken);
    }

    /// Counts the outcome of a replay.
    pub(crate) fn count_replayed(&self, refused_again: bool) {
        let outcome = if refused_again { Recovery::RefusedAgain } else { Recovery::Recovered };
        self.tokens.telemetry().recovery(outcome);
    }
}

/// Counts a request as failed when it is dropped, because a caller may end its wait by dropping the
/// future.
pub(crate) struct FailureCounter(Option<TokenSource>);

impl FailureCounter {
    /// Drops the counter without counting, because the request is being sent.
    pub(crate) fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for FailureCounter {
    fn drop(&mut self) {
        if let Some(tokens) = &self.0 {
            tokens.telemetry().failed();
        }
    }
}

#[inline]
fn has_opted_out(extensions: Option<&Extensions>) -> bool {
    extensions.is_some_and(|extensions| extensions.get::<NoAuthorization>().is_some())
}

// Both out of line, because the code of an event is large and `authorize` is inlined.
#[inline(never)]
fn log_not_allowed(authority: &str) {
    // A subscriber that panics must not fail the request.
    quietly(|| {
        let host = host_of(authority);
        debug!(host, "passed a request through, because its host is not allowed");
    });
}

#[inline(never)]
fn log_no_host() {
    quietly(|| debug!("passed a request through, because it names no host"));
}

impl fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorizer")
            .field("tokens", &self.tokens)
            .field("hosts", &self.hosts)
            .field("api_key", &self.api_key)
            .finish()
    }
}
