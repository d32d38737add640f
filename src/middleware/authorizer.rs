//! What happens to one request: pass it on, put a token in it, or refuse it.

use std::{fmt, time::Duration};

use http::{
    Extensions, HeaderMap, HeaderName,
    header::{AUTHORIZATION, Entry},
};
use tracing::debug;

use super::{
    hosts::AllowedHosts,
    message::Message,
    options::{AcquireTimeout, MinLifetime, NoAuthorization},
    place::{KnownPlaces, Place, Verdict},
};
use crate::{
    error::{InsecureUri, TokenError},
    source::{Seen, TokenSource},
    telemetry::{Obtained, Recovery},
    token::{AccessToken, HostKey},
};

static API_KEY: HeaderName = HeaderName::from_static("x-api-key");
static ORG_ID: HeaderName = HeaderName::from_static("x-gw-ims-org-id");

/// The rules of one layer, and the source of its tokens.
#[derive(Clone)]
pub(crate) struct Authorizer {
    pub(super) tokens: TokenSource,
    pub(super) hosts: AllowedHosts,
    pub(super) api_key: bool,
    /// What `hosts` say; they do not change once a request has been judged.
    known: KnownPlaces,
}

/// What to do with a request.
pub(crate) enum Authorization {
    /// Pass it on untouched.
    NotOurs,
    /// Put this token in it, and listen to what this host says of it.
    Token(AccessToken, HostKey),
    /// Wait for a token first.
    Wait(Box<Wait>),
    /// It would have shown the token to the wire.
    Insecure(Box<InsecureUri>),
}

/// Which token a request wants.
struct Wish<'a> {
    /// A source of its own.
    another: Option<&'a TokenSource>,
    min_lifetime: Duration,
    limit: Option<Duration>,
}

/// Which token to wait for, and for how long.
#[derive(Clone)]
pub(crate) struct Wait {
    tokens: TokenSource,
    min_lifetime: Duration,
    limit: Option<Duration>,
    pub(crate) host: HostKey,
}

#[inline]
fn opts_out(extensions: Option<&Extensions>) -> bool {
    extensions.is_some_and(|extensions| extensions.get::<NoAuthorization>().is_some())
}

// Out of the way of the requests that are ours: events take much code.
#[inline(never)]
fn tell_not_ours(place: Option<Place<'_>>) {
    match place {
        Some(place) => debug!(host = place.host(), "no token for a host that is not allowed"),
        None => debug!("no token for a request that does not say where it goes"),
    }
}

impl Authorizer {
    pub(crate) fn new(tokens: TokenSource) -> Self {
        let (hosts, known) = (AllowedHosts::default(), KnownPlaces::default());
        Self { tokens, hosts, api_key: true, known }
    }

    /// [`authorize`](Self::authorize) for who remembers nothing from one request to the next.
    #[cfg(feature = "reqwest-middleware")]
    pub(crate) fn authorize_once<Req: Message>(
        &self,
        request: &Req,
        extensions: Option<&Extensions>,
    ) -> Authorization {
        self.authorize(request, extensions, &mut Seen::default())
    }

    /// What to do with `request`, whose wishes stand in `extensions`.
    // Into the caller's `call`: what is decided here is not put together only to be taken apart.
    #[inline(always)]
    pub(crate) fn authorize<Req: Message>(
        &self,
        request: &Req,
        extensions: Option<&Extensions>,
        seen: &mut Seen,
    ) -> Authorization {
        let Some(place) = request.place() else {
            tell_not_ours(None);
            return self.pass();
        };
        let host = match self.known.judge(&self.hosts, place) {
            Verdict::NotAllowed => {
                tell_not_ours(Some(place));
                return self.pass();
            }
            _ if opts_out(extensions) => return self.pass(),
            Verdict::Insecure => {
                self.tokens.telemetry().failed();
                let error = InsecureUri::new(request.shown_uri().into_owned());
                return Authorization::Insecure(Box::new(error));
            }
            Verdict::Allowed(host) => host,
        };

        let wish = self.wish(extensions);
        let token = match wish.another {
            None if wish.min_lifetime.is_zero() => self.tokens.try_token_again(seen),
            another => another.unwrap_or(&self.tokens).try_token_for(wish.min_lifetime),
        };
        match token {
            Some(token) => {
                wish.another.unwrap_or(&self.tokens).count_sent(&token, Obtained::AtOnce);
                Authorization::Token(token, host)
            }
            None => Authorization::Wait(Box::new(self.wait(extensions, host))),
        }
    }

    #[inline]
    fn pass(&self) -> Authorization {
        self.tokens.telemetry().passed_through();
        Authorization::NotOurs
    }

    /// How to wait for another token for a request that goes to `host`.
    pub(crate) fn wait(&self, extensions: Option<&Extensions>, host: HostKey) -> Wait {
        let Wish { another, min_lifetime, limit } = self.wish(extensions);
        Wait { tokens: another.unwrap_or(&self.tokens).clone(), min_lifetime, limit, host }
    }

    /// Which token this request wants.
    #[inline]
    fn wish<'a>(&self, extensions: Option<&'a Extensions>) -> Wish<'a> {
        let Some(extensions) = extensions.filter(|extensions| !extensions.is_empty()) else {
            return Wish { another: None, min_lifetime: Duration::ZERO, limit: None };
        };
        let min_lifetime = extensions.get().map_or(Duration::ZERO, |MinLifetime(least)| *least);
        let limit = extensions.get().map(|AcquireTimeout(limit)| *limit);
        Wish { another: extensions.get(), min_lifetime, limit }
    }

    /// Puts the headers that go with `token` into `headers`: `Authorization` in place of what
    /// stands there, the others where they are absent.
    // Not into the caller's `call`: there each value is copied once more on its way into the map.
    #[inline(never)]
    pub(crate) fn sign(&self, headers: &mut HeaderMap, token: &AccessToken) {
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

impl Wait {
    /// Waits until there is a token.
    pub(crate) async fn token(self) -> Result<AccessToken, TokenError> {
        let limit = self.limit.unwrap_or_else(|| self.tokens.acquire_timeout());
        self.tokens.acquire(self.min_lifetime, limit).await
    }

    /// Counts a request that is sent with `token`, which was waited for.
    pub(crate) fn count_sent(&self, token: &AccessToken, how: Obtained) {
        self.tokens.count_sent(token, how);
    }

    /// A request that has not been sent yet, for want of a token.
    pub(crate) fn unsent(&self) -> Unsent {
        Unsent(Some(self.tokens.clone()))
    }

    /// Counts a refused request for which there was no other token.
    pub(crate) fn count_no_new_token(&self) {
        self.tokens.telemetry().recovery(Recovery::NoNewToken);
    }

    /// The token, if there is one now.
    pub(crate) fn at_hand(&self) -> Option<AccessToken> {
        self.tokens.acquire_now(self.min_lifetime)
    }
}

/// Counts a request as failed, unless it says that it was sent: its wait can also be dropped.
pub(crate) struct Unsent(Option<TokenSource>);

impl Unsent {
    pub(crate) fn sent(mut self) {
        self.0 = None;
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        if let Some(tokens) = &self.0 {
            tokens.telemetry().failed();
        }
    }
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
