//! One server, a master that sentinels know, or a cluster; and a link to it.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, FromRedisValue,
    IntoConnectionInfo, ProtocolVersion, PushInfo, RedisError, RedisResult, TlsMode,
    aio::MultiplexedConnection,
    cluster::{ClusterClient, ClusterConfig},
    cluster_async::ClusterConnection,
    io::tcp::{TcpSettings, socket2::TcpKeepalive},
    sentinel::{Sentinel, SentinelNodeConnectionInfo},
};

/// Between tokens a connection is silent for a day. The other end may go without a word meanwhile,
/// and what is in between may forget the connection.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_PAUSE: Duration = Duration::from_secs(10);

pub(super) enum Servers {
    One(Client),
    Sentinels(Sentinels),
    Cluster { client: ClusterClient, first: String },
}

pub(super) struct Sentinels {
    sentinels: Vec<ConnectionInfo>,
    master: String,
    node: SentinelNodeConnectionInfo,
    /// Which one is asked first next time.
    next: AtomicUsize,
}

/// An open connection; clones share it.
#[derive(Clone)]
pub(super) enum Link {
    One(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl Servers {
    pub(super) fn one(url: &str) -> RedisResult<Self> {
        Client::open(info(url)?).map(Self::One)
    }

    /// The host of `master` is the name by which the sentinels know it.
    pub(super) fn sentinels<U: AsRef<str>>(urls: &[U], master: &str) -> RedisResult<Self> {
        let master = info(master)?;
        let sentinels: RedisResult<Vec<_>> = urls.iter().map(|url| info(url.as_ref())).collect();
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
        let (master, sentinels) = (name.clone(), sentinels?);
        if sentinels.is_empty() {
            return Err(no_servers());
        }
        let next = AtomicUsize::new(fastrand::usize(..sentinels.len()));
        Ok(Self::Sentinels(Sentinels { sentinels, master, node, next }))
    }

    pub(super) fn cluster<U: AsRef<str>>(urls: &[U]) -> RedisResult<Self> {
        let nodes: RedisResult<Vec<_>> = urls.iter().map(|url| info(url.as_ref())).collect();
        let nodes = nodes?;
        let first = nodes.first().ok_or_else(no_servers)?.addr().to_string();
        let client = ClusterClient::builder(nodes)
            .use_protocol(ProtocolVersion::RESP3)
            .tcp_settings(tcp())
            .build()?;
        Ok(Self::Cluster { client, first })
    }

    /// Connects. `announcements` hears what the server says unasked. There is no limit of time: who asks
    /// has one.
    pub(super) async fn connect(
        &self,
        announcements: impl Fn(PushInfo) -> Result<(), ()> + Send + Sync + 'static,
    ) -> RedisResult<Link> {
        match self {
            Self::One(client) => one(client, announcements).await,
            Self::Sentinels(sentinels) => one(&sentinels.master().await?, announcements).await,
            Self::Cluster { client, .. } => {
                let config = ClusterConfig::new().set_push_sender(announcements);
                client.get_async_connection_with_config(config).await.map(Link::Cluster)
            }
        }
    }
}

impl Sentinels {
    /// The master, as one of the sentinels knows it now.
    async fn master(&self) -> RedisResult<Client> {
        // Each time another one is asked first: one that says nothing must not be in the way for ever.
        let mut sentinels = self.sentinels.clone();
        let first = self.next.fetch_add(1, Ordering::Relaxed) % sentinels.len();
        sentinels.rotate_left(first);
        Sentinel::build(sentinels)?.async_master_for(&self.master, Some(&self.node)).await
    }
}

/// Shows no user and no password.
impl std::fmt::Display for Servers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::One(client) => client.get_connection_info().addr().fmt(f),
            Self::Sentinels(sentinels) => write!(f, "the master {}", sentinels.master),
            Self::Cluster { first, .. } => write!(f, "the cluster of {first}"),
        }
    }
}

async fn one(
    client: &Client,
    announcements: impl Fn(PushInfo) -> Result<(), ()> + Send + Sync + 'static,
) -> RedisResult<Link> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
        .set_push_sender(announcements);
    client.get_multiplexed_async_connection_with_config(&config).await.map(Link::One)
}

impl Link {
    pub(super) async fn query<T: FromRedisValue>(&mut self, command: &Cmd) -> RedisResult<T> {
        match self {
            Self::One(connection) => command.query_async(connection).await,
            Self::Cluster(connection) => command.query_async(connection).await,
        }
    }

    pub(super) async fn subscribe(&mut self, channel: &str) -> RedisResult<()> {
        match self {
            Self::One(connection) => connection.subscribe(channel).await,
            Self::Cluster(connection) => connection.subscribe(channel).await,
        }
    }
}

/// What a URL says, with the protocol that has announcements.
fn info(url: &str) -> RedisResult<ConnectionInfo> {
    let info = url.into_connection_info()?;
    let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP3);
    Ok(info.set_redis_settings(settings).set_tcp_settings(tcp()))
}

fn tcp() -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE).with_interval(KEEPALIVE_PAUSE);
    TcpSettings::default().set_nodelay(true).set_keepalive(keepalive)
}

fn no_servers() -> RedisError {
    (redis::ErrorKind::InvalidClientConfig, "no servers").into()
}
