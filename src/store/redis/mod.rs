//! [`RedisStore`]: a store in Redis or Valkey.

mod connection;
mod scripts;
mod servers;

use std::{fmt, sync::Arc, time::Duration};

use redis::{ErrorKind, FromRedisValue, RedisError, RedisResult};

use self::{connection::Connection, servers::Servers};
use super::{Lease, Saved, StoredToken, TokenStore};
use crate::{
    clock::millis,
    error::{ConfigError, StoreError},
};

/// A [`TokenStore`] in Redis (6 or later) or Valkey: for a fleet.
///
/// [One server](Self::new), [a master that sentinels know](Self::sentinels), or
/// [a cluster](Self::cluster). Connects when it is first asked, and again whenever the connection is
/// of no use any more. An attempt may take ten seconds: a flight does not wait that long, but the next
/// one finds the connection. Clones share it (one for each runtime), and one store may serve the
/// sources of many credentials.
///
/// For each credential there are three keys, which lie in one slot of a cluster:
/// `{prefix}{hash}:token` with the token until it ends, `…:lease` with the owner of the lease until
/// that ends, and `…:version`, which counts. (While IMS throttles or is down there is another `…:token`,
/// with what it said.) What compares and writes is a script, so that it is one
/// step. Whoever may read these keys has the token, unless it is
/// [encrypted](crate::TokenSourceBuilder::encrypt_with).
///
/// A token that was saved is announced on the channel `{prefix}changed`, so that the others take it
/// within seconds ([when](crate::TokenSourceBuilder::store)).
///
/// # What the server has to allow
///
/// The commands `GET`, `SET`, `DEL`, `PTTL`, `TIME` and `EVAL` on these keys. Without `SUBSCRIBE` and
/// `PUBLISH` on the channel (in Redis 7, a user needs `&adobe-auth:changed`) the others hear of a new
/// token only when they look for one. An eviction costs one token request.
/// Beside that: `SELECT` if the URL names a database, `CLUSTER` in a cluster, and with sentinels
/// `ROLE` at the master and `SENTINEL` at them.
///
/// # TLS
///
/// `rediss://` is TLS by [rustls](https://docs.rs/rustls), with the certificates that the system
/// trusts, or those in the file that the environment variable `SSL_CERT_FILE` names. Rustls takes its
/// cryptography from the process: the feature `reqwest`, which is on by default, brings it along.
/// Without that feature, or where there is more than one, install one at the start of the program
/// (`rustls::crypto::aws_lc_rs::default_provider().install_default()`).
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
    /// A store at this URL: `redis://[user:password@]host[:port][/database]`, `rediss://…` for TLS,
    /// or `redis+unix:///path/to/socket`.
    ///
    /// # Errors
    ///
    /// If the URL cannot be used. Whether a server is there shows when it is asked.
    pub fn new(url: impl AsRef<str>) -> Result<Self, ConfigError> {
        Self::at(Servers::one(url.as_ref()))
    }

    /// A store at the master that these sentinels know. They are asked who that is for each new
    /// connection, and again when it is the master no more.
    ///
    /// `sentinels` are URLs as for [`new`](Self::new), with the user and the password of the sentinels
    /// if they want some. So is `master`, with the name of the master in place of a host.
    ///
    /// # Errors
    ///
    /// If a URL cannot be used, or there is none.
    ///
    /// # Example
    ///
    /// ```
    /// # fn main() -> Result<(), tower_adobe_auth::ConfigError> {
    /// let sentinels = ["redis://sentinel-1:26379", "redis://sentinel-2:26379"];
    /// let store = tower_adobe_auth::RedisStore::sentinels(sentinels, "redis://mymaster/0")?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn sentinels(
        sentinels: impl IntoIterator<Item = impl AsRef<str>>,
        master: impl AsRef<str>,
    ) -> Result<Self, ConfigError> {
        let sentinels: Vec<_> = sentinels.into_iter().collect();
        Self::at(Servers::sentinels(&sentinels, master.as_ref()))
    }

    /// A store in a cluster, of which these URLs (as for [`new`](Self::new)) name some nodes.
    ///
    /// # Errors
    ///
    /// If a URL cannot be used, there is none, or users and passwords differ.
    pub fn cluster(urls: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, ConfigError> {
        let urls: Vec<_> = urls.into_iter().collect();
        Self::at(Servers::cluster(&urls))
    }

    fn at(servers: RedisResult<Servers>) -> Result<Self, ConfigError> {
        let servers = servers.map_err(|error| {
            // A detail could quote the password.
            let reason = match error.detail() {
                None => error.to_string(),
                Some(_) => format!("{:?}", error.kind()),
            };
            ConfigError::new(format!(
                "the URL of a Redis server cannot be used: {reason}; it is to begin with redis://, \
                 rediss:// or redis+unix://, and signs like @ in a password are percent-encoded"
            ))
        })?;
        Ok(Self { connection: Arc::new(Connection::new(servers)), prefix: "adobe-auth:".into() })
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

    fn channel(&self) -> String {
        format!("{}changed", self.prefix)
    }

    /// Runs a script with these keys of `key`, and what `arguments` adds.
    async fn run<T: FromRedisValue>(
        &self,
        script: &str,
        key: &str,
        kinds: &[&str],
        arguments: impl FnOnce(&mut redis::Cmd) + Send,
    ) -> Result<T, StoreError> {
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(kinds.len());
        for kind in kinds {
            command.arg(self.key(key, kind));
        }
        arguments(&mut command);
        let answer = self.connection.ask(&command).await;
        answer.map_err(|error| {
            StoreError::new(format!("{}: {}", self.connection.servers(), without_secrets(&error)))
        })
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
                command.arg(token.version()).arg(token.value()).arg(time_to_live(ttl));
                command.arg(self.channel()).arg(key);
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
                command.arg(owner).arg(time_to_live(ttl)).arg(above);
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

    async fn changed(&self, key: &str) {
        self.connection.heard(&self.channel(), key.as_bytes()).await;
    }
}

/// Shows where the server is, without user and password.
impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("server", &self.connection.servers().to_string())
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// What went wrong, without an answer that could not be read, which may hold the token; and without
/// what a server repeats of a command that it does not know: of `HELLO` that is the password.
fn without_secrets(error: &RedisError) -> String {
    if matches!(error.kind(), ErrorKind::UnexpectedReturnType | ErrorKind::Parse) {
        return "the server's answer is not what was asked for".to_owned();
    }
    let text = error.to_string();
    text.split_once(", with args").map_or(text.as_str(), |(reason, _)| reason).to_owned()
}

/// At least one: zero is no time to live.
fn time_to_live(duration: Duration) -> u64 {
    millis(duration).clamp(1, 1 << 50)
}
