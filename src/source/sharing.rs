//! The settings of a source that shares its token with other processes.

use std::{sync::Arc, time::Duration};

use super::{builder::TokenSourceBuilder, fleet::StoreHandle};
use crate::store::{StoreKey, TokenStore};

/// One token for many processes.
impl<F> TokenSourceBuilder<F> {
    /// Shares the token with all processes that have the same store and the same credential: one of
    /// them asks IMS, and the others take its token from the store. Default: each source has its
    /// own token.
    ///
    /// The store is asked when a token is due, never for a request with a valid token. If it is
    /// slow, down or full the source goes on alone, and tries again at the next flight; see
    /// [`Status::store_error`](crate::Status::store_error) and [`telemetry`](crate::telemetry).
    ///
    /// A token that one process has fetched is taken by the others within half a minute where the store
    /// [announces](crate::TokenStore::changed) it, at a random moment, so that they do not look all
    /// at once (where the store fails then, after one to three minutes, and ever more rarely after that).
    /// So a token that an API refused to one process with 401 is dropped by all. Where it is
    /// not announced (or with [`refresh_on_demand`](Self::refresh_on_demand)), they look when their
    /// own token is due or refused.
    ///
    /// An IMS that throttles (429) or is down (5xx) is asked hardly more often than by one process: what
    /// it said lies in the store for a time, and the others fail with its words. The next to ask is one of
    /// them, since it may have been a proxy that spoke. Of an API that refuses one token after the other,
    /// all processes together believe two refusals a minute.
    ///
    /// Where a provider says that the secret has changed, the token is replaced; but not one that is
    /// younger than two minutes, so that it costs one token and not one for each process.
    ///
    /// The credential is the IMS, the client id, the organization and the scopes.
    pub fn store(mut self, store: impl TokenStore) -> Self {
        self.sharing.store = Some(StoreHandle(Arc::new(store)));
        self
    }

    /// Names the token in the store, in place of the credential: for tokens from a fetcher of your
    /// own, which need it. Sources of one name share one token.
    pub fn store_name(mut self, name: impl Into<String>) -> Self {
        self.sharing.name = Some(name.into());
        self
    }

    /// Encrypts the token in the store, and reads no other. Default: it lies there as it is.
    pub fn encrypt_with(mut self, key: StoreKey) -> Self {
        self.sharing.keys.write = Some(key);
        self
    }

    /// Reads tokens in the store that were encrypted with this key, too: while keys are
    /// [rotated](StoreKey#rotation).
    pub fn also_read_with(mut self, key: StoreKey) -> Self {
        self.sharing.keys.read.push(key);
        self
    }

    /// Sets how long the store may hold up one flight in all, when it is slow or down. Default: a
    /// quarter of a second. (While another process asks for a token its lease is waited for besides;
    /// after each look at it the store has this time anew.)
    pub fn store_timeout(mut self, limit: Duration) -> Self {
        self.sharing.timeout = limit;
        self
    }

    /// Sets how long one process may take to ask for a token, before another one takes over. Default:
    /// 15 seconds. If the process dies meanwhile, the others wait that long.
    ///
    /// It should be more than the [`request_timeout`](TokenSourceBuilder::request_timeout) (or what your
    /// own fetcher takes at most): a process that takes longer is no longer waited for, and another
    /// asks too. And it should be at most half of the [`acquire_timeout`](Self::acquire_timeout): processes
    /// that hang cost the callers of the others up to one and a half times as long; after that each asks
    /// for itself.
    pub fn lease_ttl(mut self, ttl: Duration) -> Self {
        self.sharing.lease_ttl = ttl;
        self
    }
}
