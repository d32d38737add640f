//! [`Servers`]: one server, a master that sentinels know, or a cluster; and [`Link`], a connection to it.

use std::{
    fmt,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, FromRedisValue,
    IntoConnectionInfo, ProtocolVersion, PushInfo, RedisError, RedisResult, ServerErrorKind,
    TlsMode,
    aio::MultiplexedConnection,
    cluster::{ClusterClient, ClusterConfig},
    cluster_async::ClusterConnection,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
    sentinel::{Sentinel, SentinelNodeConnectionInfo},
};

/// Between two tokens a connection is silent for a day. Keepalive finds out that the other end has
/// vanished, and keeps a firewall from forgetting the connection.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_PAUSE: Duration = Duration::from_secs(10);

pub(super) struct Servers {
    kind: Kind,
    /// The passwords of the URLs, which must appear in no error.
    passwords: Vec<String>,
}

enum Kind {
    One(ConnectionInfo),
    Sentinels(Sentinels),
    Cluster(Box<Cluster>),
}

/// A client decides on its protocol when it is made.
struct Cluster {
    resp3: ClusterClient,
    resp2: ClusterClient,
    first: String,
}

struct Sentinels {
    sentinels: Vec<ConnectionInfo>,
    master: String,
    node: SentinelNodeConnectionInfo,
    /// The sentinel that is asked first next time.
    next: AtomicUsize,
}

impl Servers {
    pub(super) fn one(url: &str) -> RedisResult<Self> {
        let info = info(url)?;
        // Checks the address as well.
        Client::open(info.clone())?;
        Ok(Self { passwords: passwords([&info]), kind: Kind::One(info) })
    }

    /// The host of `master` is the name by which the sentinels know it.
    pub(super) fn sentinels<U: AsRef<str>>(urls: &[U], master: &str) -> RedisResult<Self> {
        let master = info(master)?;
        let sentinels: RedisResult<Vec<_>> = urls.iter().map(|url| info(url.as_ref())).collect();
        let sentinels = sentinels?;
        let passwords = passwords(sentinels.iter().chain([&master]));
        // Both are only asked for the address of the master, for which RESP2 is enough.
        let sentinels: Vec<_> = sentinels.into_iter().map(with_resp2).collect();
        let master = with_resp2(master);
        let mut node = SentinelNodeConnectionInfo::default()
            .set_redis_connection_info(master.redis_settings().clone())
            .set_tcp_settings(tcp());
        let name = match master.addr() {
            ConnectionAddr::Tcp(name, _) => name,
            ConnectionAddr::TcpTls { host, .. } => {
                node = node.set_tls_mode(TlsMode::Secure);
                host
            }
            _ => return Err(no_servers()),
        };
        if sentinels.is_empty() {
            return Err(no_servers());
        }
        let next = AtomicUsize::new(fastrand::usize(..sentinels.len()));
        let sentinels = Sentinels { sentinels, master: name.clone(), node, next };
        Ok(Self { kind: Kind::Sentinels(sentinels), passwords })
    }

    pub(super) fn cluster<U: AsRef<str>>(urls: &[U]) -> RedisResult<Self> {
        let nodes: RedisResult<Vec<_>> = urls.iter().map(|url| info(url.as_ref())).collect();
        let nodes = nodes?;
        let first = nodes.first().ok_or_else(no_servers)?.addr().to_string();
        let passwords = passwords(&nodes);
        let client = |protocol| {
            let nodes = nodes.clone();
            ClusterClient::builder(nodes).use_protocol(protocol).tcp_settings(tcp()).build()
        };
        let resp3 = client(ProtocolVersion::RESP3)?;
        let resp2 = client(ProtocolVersion::RESP2)?;
        Ok(Self { kind: Kind::Cluster(Box::new(Cluster { resp3, resp2, first })), passwords })
    }

    /// Returns `true` if the text quotes a part of a password.
    pub(super) fn are_quoted_in(&self, text: &str) -> bool {
        self.passwords.iter().any(|password| quotes(text, password.as_bytes()))
    }

    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.kind, Kind::Cluster(_))
    }

    /// Connects with RESP3, or with RESP2 to a server or proxy that does not know it. `receive` takes what
    /// the server sends without a request. The caller limits the time.
    pub(super) async fn connect(
        &self,
        receive: impl Fn(PushInfo) + Send + Sync + 'static,
    ) -> RedisResult<Link> {
        let receive = move |push| {
            receive(push);
            Ok::<(), ()>(())
        };
        match &self.kind {
            Kind::One(info) => one(info, receive).await,
            Kind::Sentinels(sentinels) => one(&sentinels.master().await?, receive).await,
            Kind::Cluster(cluster) => {
                let config = ClusterConfig::new().set_push_sender(receive);
                if let Ok(link) = cluster.resp3.get_async_connection_with_config(config).await {
                    return Ok(Link { connection: Inner::Cluster(link), notifies: true });
                }
                // The error does not tell whether it is for want of RESP3.
                let link = cluster.resp2.get_async_connection().await?;
                Ok(Link { connection: Inner::Cluster(link), notifies: false })
            }
        }
    }
}

impl Sentinels {
    /// The master, as one of the sentinels knows it now.
    async fn master(&self) -> RedisResult<ConnectionInfo> {
        // Another sentinel first each time, because one that never responds must not block the others.
        let mut sentinels = self.sentinels.clone();
        let first = self.next.fetch_add(1, Ordering::Relaxed) % sentinels.len();
        sentinels.rotate_left(first);
        let mut sentinel = Sentinel::build(sentinels)?;
        let master = sentinel.async_master_for(&self.master, Some(&self.node)).await?;
        Ok(with_resp3(master.get_connection_info().clone()))
    }
}

/// Shows the address only, without user and password.
impl fmt::Display for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::One(info) => info.addr().fmt(f),
            Kind::Sentinels(sentinels) => write!(f, "the master {}", sentinels.master),
            Kind::Cluster(cluster) => write!(f, "the cluster of {}", cluster.first),
        }
    }
}

/// An open connection. Clones share it; it ends with the last one.
#[derive(Clone)]
pub(super) struct Link {
    connection: Inner,
    /// `true` with RESP3, which carries notifications beside responses.
    notifies: bool,
}

#[derive(Clone)]
enum Inner {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Link {
    pub(super) async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        match &mut self.connection {
            Inner::One(connection) => command.query_async(connection).await,
            Inner::Cluster(connection) => command.query_async(connection).await,
        }
    }

    pub(super) async fn subscribe(&mut self, channel: &str) -> RedisResult<()> {
        if !self.notifies {
            return Err((ErrorKind::RESP3NotSupported, "no notifications without RESP3").into());
        }
        match &mut self.connection {
            Inner::One(connection) => connection.subscribe(channel).await,
            Inner::Cluster(connection) => connection.subscribe(channel).await,
        }
    }
}

async fn one(
    info: &ConnectionInfo,
    receive: impl Fn(PushInfo) -> Result<(), ()> + Send + Sync + 'static,
) -> RedisResult<Link> {
    let config =
        || AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
    let resp3 = Client::open(info.clone())?;
    let config3 = config().set_push_sender(receive);
    let (connection, notifies) =
        match resp3.get_multiplexed_async_connection_with_config(&config3).await {
            Err(error) if may_speak_resp2(&error) => {
                let resp2 = Client::open(with_resp2(info.clone()))?;
                (resp2.get_multiplexed_async_connection_with_config(&config()).await?, false)
            }
            connected => (connected?, true),
        };
    Ok(Link { connection: Inner::One(connection), notifies })
}

/// Returns `true` if `HELLO` failed as at servers and proxies that know only RESP2. Some proxies end the
/// connection at a command that they do not know.
fn may_speak_resp2(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::RESP3NotSupported
        | ErrorKind::Parse
        | ErrorKind::UnexpectedReturnType
        | ErrorKind::Server(ServerErrorKind::ResponseError | ServerErrorKind::NoPerm) => true,
        ErrorKind::Io => error.is_connection_dropped() && !error.is_connection_refusal(),
        _ => error.code() == Some("NOPROTO"),
    }
}

fn info(url: &str) -> RedisResult<ConnectionInfo> {
    Ok(with_resp3(url.into_connection_info()?).set_tcp_settings(tcp()))
}

fn with_resp3(info: ConnectionInfo) -> ConnectionInfo {
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    info.set_redis_settings(settings)
}

/// Without `CLIENT SETINFO`, which such a server or proxy need not know either.
fn with_resp2(info: ConnectionInfo) -> ConnectionInfo {
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
    info.set_redis_settings(settings.set_skip_set_lib_name())
}

fn passwords<'a>(infos: impl IntoIterator<Item = &'a ConnectionInfo>) -> Vec<String> {
    let passwords = infos.into_iter().filter_map(|info| info.redis_settings().password());
    passwords.map(str::to_owned).collect()
}

/// Returns `true` if the text contains eight successive bytes of the secret, or all of a shorter one.
pub(super) fn quotes(text: &str, secret: &[u8]) -> bool {
    let length = secret.len().clamp(1, 8);
    secret.windows(length).any(|part| text.as_bytes().windows(length).any(|other| other == part))
}

fn tcp() -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_PAUSE);
    TcpSettings::default().set_nodelay(true).set_keepalive(keepalive)
}

fn no_servers() -> RedisError {
    (ErrorKind::InvalidClientConfig, "no servers").into()
}
