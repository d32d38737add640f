//! [`RedisStore`]: a store in Redis or Valkey.

mod connection;
mod listeners;
mod scripts;
mod servers;

use std::{fmt, sync::Arc, time::Duration};

use redis::{ErrorKind, FromRedisValue, RedisError, RedisResult};
use zeroize::Zeroizing;

use self::{
    connection::Connection,
    servers::{Servers, quotes},
};
use super::token_store::{Acquired, CommitOutcome, LeaseRequest, StoredRecord, TokenStore};
use crate::{
    clock::millis,
    error::{ConfigError, StoreError},
};

/// A [`TokenStore`] in Redis (6 or later) or Valkey, for a fleet.
///
/// The store is [one server](Self::new), [a master that sentinels know](Self::sentinels), or
/// [a cluster](Self::cluster). It connects with its first call, and again when the connection has
/// ended. An attempt may take ten seconds; a refresh does not wait that long, but the next one finds
/// the connection. Clones share the connection (one for each runtime), and one store may serve the
/// sources of many credentials.
///
/// # Keys
///
/// For each credential there are three keys, in one slot of a cluster:
///
/// | key | holds | until |
/// | --- | --- | --- |
/// | `{prefix}{hash}:record` | the token, and the outcome of the last attempt | the token expires |
/// | `…:lease` | the owner of the lease | the lease ends |
/// | `…:fencing` | the highest fencing token | a year after the last lease |
///
/// A user of the server who can read the record has the token, unless it is
/// [encrypted](crate::TokenSourceBuilder::encrypt_with). An evicted key costs one token request.
///
/// The store ignores a lease that lasts more than a minute longer than its own would. The
/// [`lease_ttl`](crate::TokenSourceBuilder::lease_ttl) of the processes of one fleet should therefore
/// not differ by more than that.
///
/// # Notifications
///
/// Each commit that changes anything publishes one message on the channel `{prefix}changed`, so that
/// the other processes take a new token within half a minute, and a process without a token takes it
/// immediately. Messages arrive over the connection of the commands, and need RESP3.
///
/// A server or proxy that knows only RESP2, or that refuses `SUBSCRIBE`, is used without notifications.
/// A process then reads the store when its token is missing, due or refused. After a refusal the store
/// tries again, first after 20 seconds and finally each hour.
///
/// # Commands that the server must allow
///
/// - Needed: `EVAL`, and in scripts `GET`, `SET`, `DEL`, `PTTL` and `TIME`, on the keys above.
/// - `PTTL` outside of scripts, as a sign of life. An error in response is a sign, too.
/// - For notifications: `HELLO`, and `SUBSCRIBE` and `PUBLISH` on the channel (in Redis 7 a user needs
///   `&adobe-auth:changed`).
/// - `AUTH` and `SELECT` if the URL names a password or a database; `CLUSTER` and `READONLY` in a
///   cluster; with sentinels `ROLE` at the master and `SENTINEL` at them.
///
/// # TLS
///
/// `rediss://` is TLS by [rustls](https://docs.rs/rustls), with the certificates that the system
/// trusts, or those in the file that the environment variable `SSL_CERT_FILE` names. Rustls takes its
/// cryptography from the process: the feature `reqwest`, which is on by default, provides one.
/// Without that feature, or if there is more than one, install one at the start of the program
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

/// How long a record without a time to live is kept.
const DEFAULT_TTL: Duration = Duration::from_secs(24 * 60 * 60);

const DEFAULT_PREFIX: &str = "adobe-auth:";

impl RedisStore {
    /// A store at this URL: `redis://[user:password@]host[:port][/database]`, `rediss://…` for TLS,
    /// or `redis+unix:///path/to/socket`.
    ///
    /// # Errors
    ///
    /// If the URL cannot be used. The store does not connect yet.
    pub fn new(url: impl AsRef<str>) -> Result<Self, ConfigError> {
        Self::at(Servers::one(url.as_ref()))
    }

    /// A store at the master that these sentinels know. The sentinels are asked for its address for each
    /// new connection, and again when it is no longer the master.
    ///
    /// `sentinels` are URLs as for [`new`](Self::new), with the user and the password of the sentinels
    /// if they have any. So is `master`, with the name of the master in place of a host.
    ///
    /// # Errors
    ///
    /// If a URL cannot be used, or there are none.
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

    /// A store in a cluster. The URLs (as for [`new`](Self::new)) name some of its nodes.
    ///
    /// # Errors
    ///
    /// If a URL cannot be used, there are none, or users and passwords differ.
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
                "the URL of a Redis server cannot be used: {reason}; it has to begin with redis://, \
                 rediss:// or redis+unix://, and characters like @ in a password are percent-encoded"
            ))
        })?;
        Ok(Self::with(Arc::new(servers), DEFAULT_PREFIX.into()))
    }

    fn with(servers: Arc<Servers>, prefix: Arc<str>) -> Self {
        let connection = Connection::new(servers, format!("{prefix}changed"));
        Self { connection: Arc::new(connection), prefix }
    }

    /// Sets the beginning of all keys and of the channel. Default: `adobe-auth:`.
    ///
    /// A store with another prefix has its own connection.
    #[must_use]
    pub fn with_prefix(self, prefix: impl Into<Arc<str>>) -> Self {
        Self::with(self.connection.servers().clone(), prefix.into())
    }

    fn key(&self, key: &str, kind: &str) -> String {
        format!("{}{{{key}}}:{kind}", self.prefix)
    }

    /// Runs a script on the keys of `key`, with the arguments that `arguments` adds.
    async fn run<T: FromRedisValue>(
        &self,
        script: &str,
        key: &str,
        record: Option<&StoredRecord>,
        arguments: impl FnOnce(&mut redis::Cmd) + Send,
    ) -> Result<T, StoreError> {
        let mut command = redis::cmd("EVAL");
        command.arg(script).arg(3);
        let lease = self.key(key, "lease");
        command.arg(self.key(key, "record")).arg(&lease).arg(self.key(key, "fencing"));
        arguments(&mut command);
        self.connection.ask(&command, &lease).await.map_err(|error| {
            let servers = self.connection.servers();
            let reason = without_secrets(&error, |text| {
                servers.are_quoted_in(text)
                    || record.is_some_and(|record| quotes(text, record.value()))
            });
            StoreError::new(format!("{servers}: {reason}"))
        })
    }
}

impl TokenStore for RedisStore {
    async fn acquire(
        &self,
        key: &str,
        request: Option<&LeaseRequest>,
    ) -> Result<Acquired, StoreError> {
        let none = LeaseRequest::new("", Duration::ZERO);
        let request = request.unwrap_or(&none);
        let (record, fencing_token): (Option<(Vec<u8>, i64)>, Option<u64>) = self
            .run(scripts::ACQUIRE, key, None, |command| {
                command.arg(request.owner()).arg(time_to_live(request.ttl()));
                command.arg(request.above()).arg(request.seen());
            })
            .await?;
        let acquired = Acquired::new(record.map(|(text, ttl)| parse(text, ttl)));
        Ok(match fencing_token {
            Some(fencing_token) => acquired.with_lease(fencing_token),
            None => acquired,
        })
    }

    async fn commit(
        &self,
        key: &str,
        owner: &str,
        record: Option<&StoredRecord>,
    ) -> Result<CommitOutcome, StoreError> {
        let channel = format!("{}changed", self.prefix);
        let outcome: String = self
            .run(scripts::COMMIT, key, record, |command| {
                command.arg(owner).arg(channel).arg(key);
                if let Some(record) = record {
                    let ttl = time_to_live(record.ttl().unwrap_or(DEFAULT_TTL));
                    command.arg(record.fencing_token()).arg(record.value()).arg(ttl);
                }
            })
            .await?;
        match outcome.as_str() {
            "committed" => Ok(CommitOutcome::Committed),
            "superseded" => Ok(CommitOutcome::Superseded),
            "released" => Ok(CommitOutcome::Released),
            _ => Err(StoreError::new(format!("{}: {UNEXPECTED}", self.connection.servers()))),
        }
    }

    async fn changed(&self, key: &str) {
        self.connection.changed(key).await;
    }

    fn last_response(&self) -> Option<std::time::Instant> {
        self.connection.last_response()
    }
}

/// Parses a record. A value that this crate did not write passes through, with fencing token 0; the
/// caller rejects it and logs why.
fn parse(text: Vec<u8>, ttl: i64) -> StoredRecord {
    let text = Zeroizing::new(text);
    let parsed = text.iter().position(|byte| *byte == b' ').and_then(|end| {
        let fencing_token = std::str::from_utf8(&text[..end]).ok()?.parse().ok()?;
        Some((fencing_token, &text[end + 1..]))
    });
    let (fencing_token, value) = parsed.unwrap_or((0, &text));
    let record = StoredRecord::new(fencing_token, value);
    match u64::try_from(ttl) {
        Ok(ttl) => record.with_ttl(Duration::from_millis(ttl)),
        Err(_) => record,
    }
}

/// Shows the address of the server, without user and password.
impl fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisStore")
            .field("server", &self.connection.servers().to_string())
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

const UNEXPECTED: &str = "the server's answer has an unexpected form";

/// The reason of an error, without the secrets that it may quote.
///
/// A response of an unexpected form may hold the token. A server that does not know a command may
/// quote its arguments, and `HELLO` and `AUTH` have the password. Redis quotes them after
/// `, with args`. Other servers have their own words, so that a text which still quotes a secret is
/// reduced to its kind.
fn without_secrets(error: &RedisError, quotes_secret: impl Fn(&str) -> bool) -> String {
    if matches!(error.kind(), ErrorKind::UnexpectedReturnType | ErrorKind::Parse) {
        return UNEXPECTED.to_owned();
    }
    let text = error.to_string();
    let reason = text.split_once(", with args").map_or(text.as_str(), |(reason, _)| reason);
    if quotes_secret(reason) {
        return format!("{} (the server's words quote a secret)", error.category());
    }
    reason.to_owned()
}

/// In milliseconds, at least one, because zero is an error.
fn time_to_live(duration: Duration) -> u64 {
    millis(duration).clamp(1, 1 << 50)
}
