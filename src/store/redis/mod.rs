//! [`RedisStore`]: a store in Redis or Valkey.

mod connection;
mod scripts;

use std::{fmt, sync::Arc, time::Duration};

use redis::{Client, Cmd, FromRedisValue};

use self::connection::Connection;
use super::{Lease, Saved, StoredToken, TokenStore};
use crate::error::{ConfigError, StoreError};

/// A [`TokenStore`] in Redis (5 or later) or Valkey: for a fleet.
///
/// Connects when it is first asked, and again whenever the connection is of no use any more, on
/// whatever runtime it is asked on. Clones share the connection, and one store may serve the sources
/// of many credentials.
///
/// For each credential there are three keys, which lie in one slot of a cluster:
/// `{prefix}{hash}:token` with the token until it ends, `…:lease` with the owner of the lease until
/// that ends, and `…:version`, which counts. What compares and writes is a script, so that it is one
/// step. Whoever may read these keys has the token, unless it is
/// [encrypted](crate::TokenSourceBuilder::encrypt_with).
///
/// The user of the server needs `GET`, `SET`, `DEL`, `PTTL`, `TIME` and `EVAL`. An eviction costs one
/// token request.
///
/// For `rediss://` (TLS) give the [`redis`](https://docs.rs/redis) crate in your own `Cargo.toml` one
/// of its TLS features; which one is your choice, and this crate adds none.
///
/// # Example
///
/// ```
/// use tower_adobe_auth::{ConfigError, Credentials, RedisStore, StoreKey, TokenSource};
///
/// # #[cfg(feature = "reqwest")]
/// # fn example(store_secret: &str) -> Result<TokenSource, ConfigError> {
/// TokenSource::builder(Credentials::from_env()?)
///     .store(RedisStore::new("redis://redis.internal:6379/0")?)
///     .encrypt_with(StoreKey::from_base64("2026-11", store_secret)?)
///     .build()
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStore {
    connection: Arc<Connection>,
    prefix: Arc<str>,
}

impl RedisStore {
    /// A store at this URL: `redis://[user:password@]host[:port][/database]`, or
    /// `redis+unix:///path/to/socket`.
    ///
    /// # Errors
    ///
    /// If the URL cannot be used. Whether a server is there shows when it is asked.
    pub fn new(url: impl AsRef<str>) -> Result<Self, ConfigError> {
        let client = Client::open(url.as_ref())
            // The words of the parser could quote the password.
            .map_err(|_| ConfigError::new("the URL of the Redis server cannot be used"))?;
        let connection = Arc::new(Connection::new(client));
        Ok(Self { connection, prefix: "adobe-auth:".into() })
    }

    /// Sets what the keys begin with. Default: `adobe-auth:`.
    #[must_use]
    pub fn with_prefix(mut self, prefix: impl Into<Arc<str>>) -> Self {
        self.prefix = prefix.into();
        self
    }

    fn key(&self, key: &str, kind: &str) -> String {
        format!("{}{{{key}}}:{kind}", self.prefix)
    }

    /// Runs a script with these keys of `key`, and what `arguments` adds.
    async fn run<T: FromRedisValue>(
        &self,
        script: &str,
        key: &str,
        kinds: &[&str],
        arguments: impl FnOnce(&mut Cmd) + Send,
    ) -> Result<T, StoreError> {
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(kinds.len());
        for kind in kinds {
            command.arg(self.key(key, kind));
        }
        arguments(&mut command);
        self.connection.ask(&command).await.map_err(StoreError::new)
    }
}

impl TokenStore for RedisStore {
    async fn load(&self, key: &str) -> Result<Option<StoredToken>, StoreError> {
        let kept: Option<(Vec<u8>, i64)> = self.run(scripts::LOAD, key, &["token"], |_| {}).await?;
        Ok(kept.map(|(kept, ttl)| {
            let kept = zeroize::Zeroizing::new(kept);
            let parsed = kept.iter().position(|byte| *byte == b' ').and_then(|end| {
                let version = std::str::from_utf8(&kept[..end]).ok()?.parse().ok()?;
                Some((version, &kept[end + 1..]))
            });
            // What is none of ours is given to who knows that it is not.
            let (version, value) = parsed.unwrap_or((0, &kept));
            let token = StoredToken::new(version, value);
            match u64::try_from(ttl) {
                Ok(ttl) => token.with_ttl(Duration::from_millis(ttl)),
                Err(_) => token,
            }
        }))
    }

    async fn save(&self, key: &str, token: &StoredToken) -> Result<Saved, StoreError> {
        let ttl = token.ttl().unwrap_or(Duration::from_secs(86_400));
        let saved: bool = self
            .run(scripts::SAVE, key, &["token"], |command| {
                command.arg(token.version()).arg(token.value()).arg(millis(ttl));
            })
            .await?;
        Ok(if saved { Saved::Saved } else { Saved::Superseded })
    }

    async fn lease(
        &self,
        key: &str,
        owner: &str,
        ttl: Duration,
        above: u64,
    ) -> Result<Option<Lease>, StoreError> {
        let version: Option<u64> = self
            .run(scripts::LEASE, key, &["lease", "version", "token"], |command| {
                command.arg(owner).arg(millis(ttl)).arg(above);
            })
            .await?;
        Ok(version.map(|version| Lease::new(owner, version)))
    }

    async fn release(&self, key: &str, lease: &Lease) -> Result<(), StoreError> {
        self.run(scripts::RELEASE, key, &["lease"], |command| {
            command.arg(lease.owner());
        })
        .await
    }
}

/// Shows where the server is, without user and password.
impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("server", &self.connection.server())
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// At least one: zero is no time to live.
fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).clamp(1, 1 << 50)
}
