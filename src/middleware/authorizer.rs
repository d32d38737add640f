//! What happens to one request: pass it on, put a token in it, or refuse it.

use std::{
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};

use http::{
    Extensions, HeaderMap, HeaderName,
    header::{AUTHORIZATION, Entry},
};
use tracing::debug;

use super::{
    hosts::{AllowedHosts, is_loopback},
    message::{Message, Scheme},
    options::{AcquireTimeout, MinLifetime, NoAuthorization},
};
use crate::{
    error::{InsecureUri, TokenError},
    source::TokenSource,
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
}

/// What to do with a request.
pub(crate) enum Authorization {
    /// Pass it on untouched.
    NotOurs,
    /// Put this token in it, and listen to what this host says of it.
    Token(AccessToken, HostKey),
    /// Wait for a token first.
    Wait(Wait),
    /// It would have shown the token to the wire.
    Insecure(InsecureUri),
}

/// Which token a request wants.
struct Wish<'a> {
    tokens: &'a TokenSource,
    min_lifetime: Duration,
    limit: Option<Duration>,
}

impl Wish<'_> {
    fn wait(self, host: HostKey) -> Wait {
        let Self { tokens, min_lifetime, limit } = self;
        Wait { tokens: tokens.clone(), min_lifetime, limit, host }
    }
}

/// Which token to wait for, and for how long.
#[derive(Clone)]
pub(crate) struct Wait {
    tokens: TokenSource,
    min_lifetime: Duration,
    limit: Option<Duration>,
    pub(crate) host: HostKey,
}

fn opts_out(extensions: Option<&Extensions>) -> bool {
    extensions.is_some_and(|extensions| extensions.get::<NoAuthorization>().is_some())
}

fn key(host: &str) -> HostKey {
    let mut hasher = DefaultHasher::new();
    host.hash(&mut hasher);
    HostKey(hasher.finish())
}

impl Authorizer {
    pub(crate) fn new(tokens: TokenSource) -> Self {
        Self { tokens, hosts: AllowedHosts::default(), api_key: true }
    }

    /// What to do with `request`.
    pub(crate) fn authorize<Req: Message>(&self, request: &Req) -> Authorization {
        self.authorize_with(request, request.extensions())
    }

    /// What to do with `request`, whose wishes stand in `extensions`.
    pub(crate) fn authorize_with<Req: Message>(
        &self,
        request: &Req,
        extensions: Option<&Extensions>,
    ) -> Authorization {
        let Some(target) = request.target() else {
            debug!("no token for a request that does not say where it goes");
            return Authorization::NotOurs;
        };
        if target.scheme == Scheme::Other || !self.hosts.allow(&target.host, target.port) {
            debug!(host = &*target.host, "no token for a host that is not allowed");
            return Authorization::NotOurs;
        }

        if opts_out(extensions) {
            return Authorization::NotOurs;
        }
        if target.scheme == Scheme::Http && !is_loopback(&target.host) {
            return Authorization::Insecure(InsecureUri::new(request.shown_uri().into_owned()));
        }

        let host = key(&target.host);
        let wish = self.wish(extensions);
        match wish.tokens.try_token_for(wish.min_lifetime) {
            Some(token) => Authorization::Token(token, host),
            None => Authorization::Wait(wish.wait(host)),
        }
    }

    /// How to wait for another token for a request that goes to `host`.
    pub(crate) fn wait(&self, extensions: Option<&Extensions>, host: HostKey) -> Wait {
        self.wish(extensions).wait(host)
    }

    /// Which token this request wants.
    fn wish<'a>(&'a self, extensions: Option<&'a Extensions>) -> Wish<'a> {
        let mut wish = Wish { tokens: &self.tokens, min_lifetime: Duration::ZERO, limit: None };
        if let Some(extensions) = extensions.filter(|extensions| !extensions.is_empty()) {
            wish.tokens = extensions.get().unwrap_or(wish.tokens);
            wish.min_lifetime =
                extensions.get().map_or(Duration::ZERO, |MinLifetime(least)| *least);
            wish.limit = extensions.get().map(|AcquireTimeout(limit)| *limit);
        }
        wish
    }

    /// Puts the headers that go with `token` into `headers`: `Authorization` in place of what
    /// stands there, the others where they are absent.
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

    /// The token, if there is one now.
    pub(crate) fn at_hand(&self) -> Option<AccessToken> {
        self.tokens.acquire_now(self.min_lifetime)
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
