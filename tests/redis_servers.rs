//! The Redis store with TLS, with sentinels and with a cluster, and how one process hears of the
//! token of another. All with real servers, which need Redis 7.

#![cfg(all(feature = "redis-store", feature = "reqwest", unix))]
#![allow(clippy::unwrap_used)]

use std::{
    env, fs, io,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use futures_util::{StreamExt, stream};
use tempfile::TempDir;
use tower_adobe_auth::{
    Credentials, Environment, LeaseRequest, RedisStore, StoredRecord, TokenResponse, TokenSource,
    TokenStore,
    mock::{MockIms, StoreCheck},
};

/// Redis, or what `REDIS_SERVER` names in its place.
fn program() -> std::ffi::OsString {
    env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into())
}

/// Servers of a test, killed at its end.
struct Servers {
    folder: TempDir,
    processes: Vec<(u16, Child)>,
}

impl Servers {
    /// `None` where there is no server to be had, unless `REQUIRE_REDIS` says that there is.
    fn new() -> Option<Self> {
        if Command::new(program()).arg("--version").output().is_err() {
            assert!(env::var_os("REQUIRE_REDIS").is_none(), "{:?} is not installed", program());
            eprintln!("skipped: {:?} is not installed", program());
            return None;
        }
        Some(Self { folder: tempfile::tempdir().unwrap(), processes: Vec::new() })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts one with the arguments for a port, and waits until something listens there. Returns
    /// the port. Where none starts, the server says why.
    fn start(&mut self, arguments: impl Fn(&Self, u16) -> Vec<String>) -> u16 {
        let mut said = String::new();
        for _ in 0..5 {
            let port = free_port();
            if self.start_at(port, &arguments(self, port)) {
                return port;
            }
            self.kill(port);
            said = fs::read_to_string(self.path(&port.to_string()).join("log")).unwrap();
        }
        panic!("no server starts: {said}");
    }

    /// Whether something listens at `port`: somebody may have been quicker.
    fn start_at(&mut self, port: u16, arguments: &[String]) -> bool {
        let folder = self.path(&port.to_string());
        fs::create_dir_all(&folder).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let process = Command::new(program())
            .args(arguments)
            .current_dir(folder)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.processes.push((port, process));
        let (_, process) = self.processes.last_mut().unwrap();
        let mut lives = true;
        until("a server that listens", || {
            lives = process.try_wait().unwrap().is_none();
            !lives || TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        lives
    }

    /// Starts one that listens to whom it may concern on this machine.
    fn start_plain(&mut self, words: &str) -> u16 {
        self.start(|_, port| {
            let mut arguments = plain(port);
            arguments.extend(words.split_whitespace().map(str::to_owned));
            arguments
        })
    }

    fn kill(&mut self, port: u16) {
        let at = self.processes.iter().position(|(other, _)| *other == port).unwrap();
        let (_, mut process) = self.processes.remove(at);
        process.kill().unwrap();
        process.wait().unwrap();
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        while let Some((port, _)) = self.processes.first() {
            self.kill(*port);
        }
    }
}

fn plain(port: u16) -> Vec<String> {
    let port = port.to_string();
    ["--port", &port, "--bind", "127.0.0.1", "--save", ""].map(str::to_owned).to_vec()
}

/// A port at which nobody listens just now, and that is given to no client.
fn free_port() -> u16 {
    let mut ports = std::iter::repeat_with(|| fastrand::u16(20_000..32_000));
    ports.find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap()
}

/// Longer than it takes to look again where a look failed.
const LONG: Duration = Duration::from_secs(240);

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LONG, "{what} did not come about");
        thread::sleep(Duration::from_millis(20));
    }
}

fn url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}")
}

/// What the server at `port` answers, from outside.
fn command<T: redis::FromRedisValue>(port: u16, words: &str) -> redis::RedisResult<T> {
    let mut connection = redis::Client::open(url(port))?.get_connection()?;
    let mut words = words.split(' ');
    let mut command = redis::cmd(words.next().unwrap());
    words.for_each(|word| {
        command.arg(word);
    });
    command.query(&mut connection)
}

fn source(ims: &str, store: RedisStore) -> TokenSource {
    // For servers that answer, on a machine that may be busy.
    source_with(ims, store, Duration::from_secs(10))
}

fn source_with(ims: &str, store: RedisStore, limit: Duration) -> TokenSource {
    TokenSource::builder(Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET))
        .environment(Environment::custom(ims).unwrap())
        .store(store)
        .store_timeout(limit)
        .build()
        .unwrap()
}

async fn secret(tokens: &TokenSource) -> String {
    tokens.token().await.unwrap().expose_secret().to_owned()
}

/// `tokens` has what `other` has, without asking for it.
async fn hears_of_it(tokens: &TokenSource, other: &TokenSource) {
    let start = Instant::now();
    let new = secret(other).await;
    while tokens.try_token().unwrap().expose_secret() != new {
        assert!(start.elapsed() < LONG, "it was not heard of");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_token_is_announced_to_the_others() {
    let Some(mut servers) = Servers::new() else { return };
    let port = servers.start_plain("");
    let ims = MockIms::start().await;
    let store = || RedisStore::new(url(port)).unwrap();
    let [one, another] = [source(ims.url(), store()), source(ims.url(), store())];
    assert_eq!(secret(&one).await, secret(&another).await);

    one.refresh().await.unwrap();
    hears_of_it(&another, &one).await;

    // And again: it goes on listening.
    another.refresh().await.unwrap();
    hears_of_it(&one, &another).await;
    assert_eq!(ims.token_requests(), 3);
    let clients: String = command(port, "CLIENT LIST TYPE pubsub").unwrap();
    assert_eq!(clients.lines().count(), 2, "one connection each: {clients}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_listen_again_after_a_restart_of_the_server() {
    let Some(mut servers) = Servers::new() else { return };
    let port = servers.start_plain("");
    let ims = MockIms::start().await;
    let store = || RedisStore::new(url(port)).unwrap();
    let [one, another] = [source(ims.url(), store()), source(ims.url(), store())];
    assert_eq!(secret(&one).await, secret(&another).await);

    servers.kill(port);
    assert!(servers.start_at(port, &plain(port)));
    until("two that listen", || {
        let channel = command::<Vec<(String, u64)>>(port, "PUBSUB NUMSUB adobe-auth:changed");
        channel.unwrap().iter().any(|(_, count)| *count == 2)
    });

    one.refresh().await.unwrap();
    hears_of_it(&another, &one).await;
    assert_eq!(ims.token_requests(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_not_listen_still_shares() {
    let Some(mut servers) = Servers::new() else { return };
    let port = servers.start_plain("");
    let rules = "on >secret resetchannels ~adobe-auth:* +get +set +del +pttl +time +eval +hello";
    let _: () = command(port, &format!("ACL SETUSER limited {rules}")).unwrap();
    let ims = MockIms::start().await;
    let limited = format!("redis://limited:secret@127.0.0.1:{port}");
    let store = || RedisStore::new(&limited).unwrap();
    let [one, another] = [source(ims.url(), store()), source(ims.url(), store())];

    assert_eq!(secret(&one).await, secret(&another).await);
    one.refresh().await.unwrap();
    another.refresh().await.unwrap();

    assert_eq!(secret(&one).await, secret(&another).await);
    assert_eq!(ims.token_requests(), 2);
    assert!(one.status().store_error().is_none() && another.status().store_error().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_quotes_a_command_does_not_reveal_the_password() {
    let Some(mut servers) = Servers::new() else { return };
    let port = servers.start_plain(
        "--requirepass p8e-secret --rename-command HELLO no-hello --rename-command AUTH no-auth",
    );
    let server = format!("redis://:p8e-secret@127.0.0.1:{port}");
    let stores = [
        RedisStore::new(&server).unwrap(),
        RedisStore::sentinels([&server], "redis://:p8e-secret@mymaster").unwrap(),
        RedisStore::cluster([&server]).unwrap(),
    ];

    for store in stores {
        let error = store.acquire("key", None).await.unwrap_err();

        let text = format!("{error:?} {}", std::error::Error::source(&error).unwrap());
        // Valkey asks for the password before it looks at the command.
        assert!(text.contains("AUTH") || text.contains("authentication"), "{text}");
        assert!(!text.contains("p8e"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_may_not_listen_keeps_its_connection() {
    let Some(mut servers) = Servers::new() else { return };
    let port = servers.start_plain("");
    let rules = "on >secret resetchannels ~adobe-auth:* +get +set +del +pttl +time +eval";
    let _: () = command(port, &format!("ACL SETUSER limited {rules}")).unwrap();
    let store = RedisStore::new(format!("redis://limited:secret@127.0.0.1:{port}")).unwrap();
    assert!(store.acquire("key", None).await.unwrap().record().is_none());
    let id = || {
        let clients: String = command(port, "CLIENT LIST").unwrap();
        let mut ours = clients.lines().filter(|line| line.contains("user=limited"));
        let id = ours.next().and_then(|line| line.split(' ').next()).map(str::to_owned);
        (id, ours.count())
    };
    let before = id();

    let heard = tokio::time::timeout(Duration::from_secs(5), store.changed("key")).await;

    assert!(heard.is_err());
    assert_eq!(id(), before);
    let commands: String = command(port, "INFO commandstats").unwrap();
    let asked = commands.lines().find(|line| line.starts_with("cmdstat_subscribe:")).unwrap();
    assert!(asked.contains("rejected_calls=1,"), "{asked}");
}

#[test]
fn each_runtime_has_a_connection_of_its_own() {
    let Some(mut servers) = Servers::new() else { return };
    let port = servers.start_plain("");
    let store = RedisStore::new(url(port)).unwrap();
    let runtimes: Vec<_> = (0..40)
        .map(|_| {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let store = store.clone();
            runtime.spawn(async move { store.changed("key").await });
            runtime
        })
        .collect();
    let listening = || {
        let clients: String = command(port, "CLIENT LIST TYPE pubsub").unwrap();
        clients.lines().count()
    };

    until("a connection for each", || listening() == 40);
    drop(runtimes);

    until("no connection", || listening() == 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_one_store() {
    let Some(mut servers) = Servers::new() else { return };
    let ports: Vec<_> = (0..3)
        .map(|_| {
            let bus = free_port();
            servers.start_plain(&format!("--cluster-enabled yes --cluster-port {bus}"))
        })
        .collect();
    for (node, slots) in ["0 5460", "5461 10922", "10923 16383"].iter().enumerate() {
        let _: () = command(ports[node], &format!("CLUSTER ADDSLOTSRANGE {slots}")).unwrap();
        let info: String = command(ports[node], "CLUSTER NODES").unwrap();
        let bus = info.split('@').nth(1).unwrap().split([' ', ',']).next().unwrap();
        let meet = format!("CLUSTER MEET 127.0.0.1 {} {bus}", ports[node]);
        let _: () = command(ports[0], &meet).unwrap();
    }
    until("a cluster", || {
        ports.iter().all(|port| {
            let info: String = command(*port, "CLUSTER INFO").unwrap();
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
        })
    });

    StoreCheck::new(|| RedisStore::cluster([url(ports[0])]).unwrap())
        .expects_notifications()
        .run()
        .await
        .unwrap();

    // Each process knows another node.
    let ims = MockIms::start().await;
    let process = |node: usize| source(ims.url(), RedisStore::cluster([url(ports[node])]).unwrap());
    let fleet: Vec<_> = (0..3).map(process).collect();
    for tokens in &fleet {
        assert_eq!(secret(tokens).await, secret(&fleet[0]).await);
        assert_eq!(tokens.status().store_error().map(|error| error.to_string()), None);
    }
    fleet[2].refresh().await.unwrap();
    for tokens in &fleet {
        hears_of_it(tokens, &fleet[2]).await;
    }
    assert_eq!(ims.token_requests(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn store_follows_the_master_that_sentinels_name() {
    let Some(mut servers) = Servers::new() else { return };
    let master = servers.start_plain("--requirepass secret --masterauth secret");
    let replica = servers.start_plain(&format!(
        "--requirepass secret --masterauth secret --replicaof 127.0.0.1 {master}"
    ));
    let sentinel = servers.start(|servers, port| {
        let file = servers.path("sentinel.conf");
        let text = format!(
            "port {port}\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 {master} 1\n\
             sentinel auth-pass mymaster secret\nsentinel down-after-milliseconds mymaster 1000\n\
             sentinel failover-timeout mymaster 5000\n"
        );
        fs::write(&file, text).unwrap();
        [&file.display().to_string(), "--sentinel"].map(str::to_owned).to_vec()
    });
    until("a sentinel that knows of the replica", || {
        let known: redis::RedisResult<Vec<Vec<String>>> =
            command(sentinel, "SENTINEL REPLICAS mymaster");
        known.is_ok_and(|known| {
            let text = known.concat().join(" ");
            text.contains(&replica.to_string()) && text.contains("master-link-status ok")
        })
    });
    // Another sentinel listens and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = url(silent.local_addr().unwrap().port());
    let sentinels = [silent, url(sentinel)];
    let store = || RedisStore::sentinels(&sentinels, "redis://:secret@mymaster/0").unwrap();
    let ims = MockIms::start().await;
    let process = || source_with(ims.url(), store(), Duration::from_secs(1));
    let [one, another] = [process(), process()];
    shares(&one, &another).await;

    servers.kill(master);
    secret(&one).await;
    until("another master", || {
        let known: Vec<String> =
            command(sentinel, "SENTINEL GET-MASTER-ADDR-BY-NAME mymaster").unwrap();
        known[1] == replica.to_string()
    });
    shares(&one, &another).await;
}

/// Two sources have one token, at the latest after a few refreshes.
async fn shares(one: &TokenSource, another: &TokenSource) {
    let start = Instant::now();
    let new = async |tokens: &TokenSource| {
        tokens.refresh().await.map(|token| token.expose_secret().to_owned()).ok()
    };
    // In turn: a source that always comes second would take a new token each time, which the first one
    // takes over when it is replaced already.
    let (mut one, mut another) = (one, another);
    loop {
        let (first, second) = (new(one).await, new(another).await);
        std::mem::swap(&mut one, &mut another);
        let errors = [one.status().store_error(), another.status().store_error()]
            .map(|error| error.map(|error| error.to_string()));
        if first.is_some() && first == second && errors == [None, None] {
            return;
        }
        assert!(start.elapsed() < Duration::from_secs(60), "they do not share: {errors:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What a process of its own does: this binary, started by [`worker_with`].
#[tokio::test(flavor = "multi_thread")]
async fn worker() {
    let Ok(ims) = env::var("WORKER_IMS") else { return };
    let store = RedisStore::new(env::var("WORKER_STORE").unwrap()).unwrap();
    let tokens = source(&ims, store);
    println!("\ntoken {}", secret(&tokens).await);
    println!("failed {}", tokens.status().store_error().is_some());
}

/// The token of a process, and whether its store failed.
fn worker_with(ims: &MockIms, store: &str, certificates: &std::path::Path) -> (String, bool) {
    let mut process = Command::new(env::current_exe().unwrap())
        .args(["--exact", "worker", "--nocapture", "--test-threads", "1"])
        .env("WORKER_IMS", ims.url())
        .env("WORKER_STORE", store)
        .env("SSL_CERT_FILE", certificates)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let text = io::read_to_string(process.stdout.take().unwrap()).unwrap();
    assert!(process.wait().unwrap().success(), "{text}");
    let line = |start| text.lines().find_map(|line| line.strip_prefix(start)).unwrap().to_owned();
    (line("token "), line("failed ") == "true")
}

#[test]
fn tls_is_used_for_rediss_urls_and_checks_certificates() {
    let Some(mut servers) = Servers::new() else { return };
    let certificate = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let [public, private] = ["cert.pem", "key.pem"].map(|name| servers.path(name));
    fs::write(&public, certificate.cert.pem()).unwrap();
    fs::write(&private, certificate.signing_key.serialize_pem()).unwrap();
    let other = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let stranger = servers.path("stranger.pem");
    fs::write(&stranger, other.cert.pem()).unwrap();
    let port = servers.start(|_, port| {
        let words = format!(
            "--port 0 --tls-port {port} --tls-auth-clients no --tls-cert-file {0} \
             --tls-key-file {1} --tls-ca-cert-file {0}",
            public.display(),
            private.display()
        );
        words.split(' ').map(str::to_owned).collect()
    });
    let ims = MockIms::start_blocking();
    let store = format!("rediss://localhost:{port}");

    let first = worker_with(&ims, &store, &public);
    let second = worker_with(&ims, &store, &public);
    let mistrusts = worker_with(&ims, &store, &stranger);

    assert_eq!(first, second);
    assert!(!first.1);
    assert!(mistrusts.1 && mistrusts.0 != first.0);
    assert_eq!(ims.token_requests(), 2);
}

/// A proxy in front of a server, for the time of a test.
struct Proxy {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Proxy {
    /// Delays each request, and ends a connection at a command that contains `forbidden`.
    fn start(server: u16, delay: Duration, forbidden: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
                let client = client.unwrap();
                let Ok(server) = TcpStream::connect(("127.0.0.1", server)) else { continue };
                client.set_nodelay(true).unwrap();
                server.set_nodelay(true).unwrap();
                let (from, to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                thread::spawn(move || pass(from, to, Duration::ZERO, b""));
                thread::spawn(move || pass(client, server, delay, forbidden));
            }
        });
        Self { port, connections }
    }

    fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

/// Passes on all that is read, each piece after the delay.
fn pass(mut from: TcpStream, mut to: TcpStream, delay: Duration, forbidden: &[u8]) {
    let (sender, pieces) = mpsc::channel::<(Instant, Vec<u8>)>();
    let end = [from.try_clone().unwrap(), to.try_clone().unwrap()];
    let writer = thread::spawn(move || {
        for (read_at, piece) in pieces {
            thread::sleep((read_at + delay).saturating_duration_since(Instant::now()));
            if to.write_all(&piece).is_err() {
                return;
            }
        }
    });
    let mut buffer = vec![0; 1 << 16];
    loop {
        let read = from.read(&mut buffer).unwrap_or(0);
        let piece = buffer[..read].to_vec();
        let ends =
            !forbidden.is_empty() && piece.windows(forbidden.len()).any(|it| it == forbidden);
        if read == 0 || ends || sender.send((Instant::now(), piece)).is_err() {
            break;
        }
    }
    drop(sender);
    writer.join().unwrap();
    for stream in end {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn store_errors(fleet: &[TokenSource]) -> Vec<String> {
    let error = |tokens: &TokenSource| tokens.status().store_error().map(|it| format!("{it:?}"));
    fleet.iter().filter_map(error).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn resp2_server_is_used_without_notifications() {
    let Some(mut servers) = Servers::new() else { return };
    let port = servers.start_plain("--requirepass p8e-secret --rename-command HELLO no-hello");
    let server = format!("redis://:p8e-secret@127.0.0.1:{port}/3");
    let ims = MockIms::start().await;
    let fleet: Vec<_> =
        (0..3).map(|_| source(ims.url(), RedisStore::new(&server).unwrap())).collect();

    for tokens in &fleet {
        assert_eq!(secret(tokens).await, secret(&fleet[0]).await);
    }
    fleet[1].refresh().await.unwrap();
    fleet[2].refresh().await.unwrap();

    assert_eq!(secret(&fleet[1]).await, secret(&fleet[2]).await);
    assert_eq!(store_errors(&fleet), Vec::<String>::new());
    assert_eq!(ims.token_requests(), 2);
    let store = RedisStore::new(&server).unwrap();
    let changed = tokio::time::timeout(Duration::from_secs(2), store.changed("key"));
    assert!(changed.await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_that_closes_at_hello_is_used_with_resp2() {
    let Some(mut servers) = Servers::new() else { return };
    let proxy = Proxy::start(servers.start_plain(""), Duration::ZERO, b"HELLO");
    let ims = MockIms::start().await;
    let store = || RedisStore::new(url(proxy.port)).unwrap();
    let fleet = [source(ims.url(), store()), source(ims.url(), store())];

    assert_eq!(secret(&fleet[0]).await, secret(&fleet[1]).await);

    assert_eq!(store_errors(&fleet), Vec::<String>::new());
    assert_eq!(ims.token_requests(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn proxy_that_closes_at_subscribe_costs_one_connection() {
    let Some(mut servers) = Servers::new() else { return };
    let proxy = Proxy::start(servers.start_plain(""), Duration::ZERO, b"SUBSCRIBE");
    let ims = MockIms::start().await;
    let store = RedisStore::new(url(proxy.port)).unwrap();
    let fleet: Vec<_> = (0..50).map(|_| source(ims.url(), store.clone())).collect();

    for _ in 0..5 {
        for tokens in &fleet {
            assert_eq!(secret(tokens).await, secret(&fleet[0]).await);
        }
        fleet[0].refresh().await.unwrap();
        for tokens in &fleet[1..] {
            tokens.refresh().await.unwrap();
        }
        assert_eq!(store_errors(&fleet), Vec::<String>::new());
        tokio::time::sleep(Duration::from_secs(2)).await;
    }

    assert!(proxy.connections() <= 2, "{} connections", proxy.connections());
}

#[tokio::test(flavor = "multi_thread")]
async fn store_a_hundred_milliseconds_away_is_shared() {
    let Some(mut servers) = Servers::new() else { return };
    let port = servers.start_plain("");
    for delay in [60, 100] {
        let _: () = command(port, "FLUSHALL").unwrap();
        let proxy = Proxy::start(port, Duration::from_millis(delay), b"");
        let ims = MockIms::start().await;

        for _ in 0..20 {
            let store = RedisStore::new(url(proxy.port)).unwrap();
            let tokens = source_with(ims.url(), store, Duration::from_millis(250));
            secret(&tokens).await;
            tokens.shutdown().await.unwrap();
        }

        assert!(ims.token_requests() <= 2, "{delay} ms: {} requests", ims.token_requests());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_thousand_tenants_share_with_the_defaults() {
    const TENANTS: usize = 2_000;
    let Some(mut servers) = Servers::new() else { return };
    let port = servers.start_plain("");
    let requests = Arc::new(AtomicUsize::new(0));
    let process = || -> Vec<_> {
        let store = RedisStore::new(url(port)).unwrap();
        let tenant = |tenant: usize| {
            let requests = requests.clone();
            let fetch = move || {
                let number = requests.fetch_add(1, Ordering::SeqCst);
                async move {
                    Ok(TokenResponse::new(format!("token-{number}"), Duration::from_secs(86_400)))
                }
            };
            let builder = TokenSource::builder_from_fetcher(fetch).store(store.clone());
            builder.store_name(format!("tenant-{tenant}")).build().unwrap()
        };
        (0..TENANTS).map(tenant).collect()
    };
    // As traffic arrives: a hundred tenants at a time.
    let all = async |fleet: &[TokenSource]| -> Vec<String> {
        stream::iter(fleet).map(secret).buffered(100).collect().await
    };
    let start = Instant::now();

    let one = process();
    let first = all(&one).await;
    assert_eq!(store_errors(&one), Vec::<String>::new());
    until("all records", || command::<usize>(port, "DBSIZE").unwrap() == 2 * TENANTS);
    let another = process();
    let second = all(&another).await;

    assert!(first == second, "{} token requests", requests.load(Ordering::SeqCst));
    assert_eq!(requests.load(Ordering::SeqCst), TENANTS);
    assert_eq!(store_errors(&one), Vec::<String>::new());
    assert_eq!(store_errors(&another), Vec::<String>::new());
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn foreign_lease_of_a_year_is_ignored() {
    let Some(mut servers) = Servers::new() else { return };
    let port = servers.start_plain("");
    let ims = MockIms::start().await;
    let store = || RedisStore::new(url(port)).unwrap();
    secret(&source(ims.url(), store())).await;
    until("a record", || command::<usize>(port, "DBSIZE").unwrap() == 2);
    let keys: Vec<String> = command(port, "KEYS *:record").unwrap();
    let lease = keys[0].replace(":record", ":lease");
    let _: () = command(port, &format!("DEL {}", keys[0])).unwrap();
    let _: () = command(port, &format!("SET {lease} stranger PX 31536000000")).unwrap();
    let start = Instant::now();

    let fleet = [source(ims.url(), store()), source(ims.url(), store())];

    assert_eq!(secret(&fleet[0]).await, secret(&fleet[1]).await);
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(ims.token_requests(), 2);
    until("a record again", || {
        command::<usize>(port, &format!("EXISTS {}", keys[0])).unwrap() == 1
    });
}

#[tokio::test]
async fn lease_within_a_minute_of_the_requested_one_is_kept() {
    let Some(mut servers) = Servers::new() else { return };
    let port = servers.start_plain("");
    let store = RedisStore::new(url(port)).unwrap();
    for (ttl, is_granted) in [(70_000, false), (80_000, true)] {
        let lease = format!("SET adobe-auth:{{key}}:lease other PX {ttl}");
        let _: () = command(port, &lease).unwrap();
        let request = LeaseRequest::new("owner", Duration::from_secs(15));

        let acquired = store.acquire("key", Some(&request)).await.unwrap();

        assert_eq!(acquired.fencing_token().is_some(), is_granted, "{ttl}");
    }
}

/// A process of its own that listens, and prints its memory when it is notified.
#[tokio::test(flavor = "multi_thread")]
async fn listener() {
    let Ok(store) = env::var("LISTENER_STORE") else { return };
    RedisStore::new(store).unwrap().changed(&"a".repeat(64)).await;
    let status = fs::read_to_string("/proc/self/status").unwrap();
    println!("\n{}", status.lines().find(|line| line.starts_with("VmRSS:")).unwrap());
}

#[cfg(target_os = "linux")]
#[test]
fn long_messages_do_not_fill_the_memory_of_a_listener() {
    let Some(mut servers) = Servers::new() else { return };
    let port = servers.start_plain("--client-output-buffer-limit pubsub 0 0 0");
    let listener = Command::new(env::current_exe().unwrap())
        .args(["--exact", "listener", "--nocapture", "--test-threads", "1"])
        .env("LISTENER_STORE", url(port))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    until("a listener", || {
        let clients: String = command(port, "CLIENT LIST TYPE pubsub").unwrap();
        clients.lines().count() == 1
    });

    let long = "x".repeat(4 << 20);
    for _ in 0..64 {
        let _: usize = command(port, &format!("PUBLISH adobe-auth:changed {long}")).unwrap();
    }
    let _: usize =
        command(port, &format!("PUBLISH adobe-auth:changed {}", "a".repeat(64))).unwrap();

    let output = listener.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    let kilobytes: usize = line.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kilobytes < 100_000, "{kilobytes} kB after messages of 256 MB in all");
}

/// How many scripts the server has run.
fn scripts(port: u16) -> usize {
    let stats: String = command(port, "INFO commandstats").unwrap();
    let calls = stats.lines().find_map(|line| line.strip_prefix("cmdstat_eval:calls="));
    calls.and_then(|calls| calls.split(',').next()).map_or(0, |calls| calls.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_in_the_middle_of_a_call_wakes_no_other_tenant() {
    let Some(mut servers) = Servers::new() else { return };
    let port = servers.start_plain("");
    let proxy = Proxy::start(port, Duration::from_millis(100), b"");
    let store = RedisStore::new(url(proxy.port)).unwrap();
    let fleet: Vec<_> = (0..100)
        .map(|tenant| {
            let fetch = || async { Ok(TokenResponse::new("token", Duration::from_secs(86_400))) };
            let builder = TokenSource::builder_from_fetcher(fetch).store(store.clone());
            let builder = builder.store_name(format!("tenant-{tenant}"));
            builder.store_timeout(Duration::from_secs(10)).build().unwrap()
        })
        .collect();
    futures_util::future::join_all(fleet.iter().map(secret)).await;
    until("all records", || command::<usize>(port, "DBSIZE").unwrap() == 200);
    let channel = "PUBSUB NUMSUB adobe-auth:changed";
    until("a listener", || command::<Vec<(String, u64)>>(port, channel).unwrap()[0].1 == 1);
    // Longer than a source takes to read after a notification.
    tokio::time::sleep(Duration::from_secs(32)).await;
    let (before, connections) = (scripts(port), proxy.connections());

    let tokens = fleet[0].clone();
    let refresh = tokio::spawn(async move { tokens.refresh().await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    let _ = fleet[0].shutdown().await;
    let _ = refresh.await.unwrap();
    tokio::time::sleep(Duration::from_secs(33)).await;

    // Those of the tenant itself: it acquires and commits, or releases.
    let run = scripts(port) - before;
    assert!(run <= 3, "{run} scripts");
    assert_eq!(proxy.connections(), connections);
}

#[tokio::test(flavor = "multi_thread")]
async fn dropped_call_does_not_wake_listeners() {
    let Some(mut servers) = Servers::new() else { return };
    let proxy = Proxy::start(servers.start_plain(""), Duration::from_millis(100), b"");
    let store = RedisStore::new(url(proxy.port)).unwrap();
    let _ = store.acquire("key", None).await.unwrap();
    let listener = tokio::spawn({
        let store = store.clone();
        async move { store.changed("key").await }
    });
    tokio::time::sleep(Duration::from_millis(500)).await;

    for _ in 0..10 {
        let call = tokio::time::timeout(Duration::from_millis(20), store.acquire("key", None));
        assert!(call.await.is_err());
    }
    tokio::time::sleep(Duration::from_secs(5)).await;

    assert!(!listener.is_finished());
    assert_eq!(proxy.connections(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn released_lease_is_announced() {
    let Some(mut servers) = Servers::new() else { return };
    let port = servers.start_plain("");
    let store = || RedisStore::new(url(port)).unwrap();
    let (one, key) = (store(), "a".repeat(64));
    let request = LeaseRequest::new("owner", Duration::from_secs(15));
    let _ = one.acquire(&key, Some(&request)).await.unwrap();
    let listener = tokio::spawn({
        let (store, key) = (store(), key.clone());
        async move { store.changed(&key).await }
    });
    let channel = "PUBSUB NUMSUB adobe-auth:changed";
    until("a listener", || command::<Vec<(String, u64)>>(port, channel).unwrap()[0].1 == 1);

    // Nothing has changed for the others.
    let _ = one.commit(&key, "stranger", None).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!listener.is_finished());
    let _ = one.commit(&key, "owner", None).await.unwrap();

    tokio::time::timeout(Duration::from_secs(5), listener).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn restart_with_old_state_brings_no_older_token_back() {
    let Some(mut servers) = Servers::new() else { return };
    let port = servers.start_plain("");
    let ims = MockIms::start().await;
    let store = || RedisStore::new(url(port)).unwrap();
    let fleet = [source(ims.url(), store()), source(ims.url(), store())];
    let old = secret(&fleet[0]).await;
    assert_eq!(secret(&fleet[1]).await, old);
    until("a record", || command::<usize>(port, "DBSIZE").unwrap() == 2);
    let _: () = command(port, "SAVE").unwrap();
    for tokens in &fleet {
        tokens.refresh().await.unwrap();
        assert_ne!(secret(tokens).await, old);
    }

    servers.kill(port);
    assert!(servers.start_at(port, &plain(port)));
    assert_eq!(command::<usize>(port, "DBSIZE").unwrap(), 2);

    let start = Instant::now();
    // Longer than a source takes to listen again, and to read.
    while start.elapsed() < Duration::from_secs(55) {
        for tokens in &fleet {
            assert_ne!(tokens.try_token().unwrap().expose_secret(), old);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    for tokens in &fleet {
        tokens.refresh().await.unwrap();
        assert_ne!(secret(tokens).await, old);
    }
}

/// A server that refuses each command and quotes it in its own words.
fn quoting() -> RedisStore {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            thread::spawn(move || {
                let mut buffer = vec![0; 1 << 16];
                loop {
                    let read = client.read(&mut buffer).unwrap_or(0);
                    let text = String::from_utf8_lossy(&buffer[..read]).replace("\r\n", " ");
                    let responses: String = text
                        .split('*')
                        .skip(1)
                        .map(|command| match command.contains("EVAL") || command.contains("AUTH") {
                            true => format!("-ERR cannot run {command}\r\n"),
                            false => "+OK\r\n".to_owned(),
                        })
                        .collect();
                    if read == 0 || client.write_all(responses.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    RedisStore::new(format!("redis://:p8e-secret@{address}")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_quotes_in_its_own_words_reveals_no_secret() {
    let record = StoredRecord::new(1, r#"{"token":"eyJhbGciOi"}"#);

    let error = quoting().commit("key", "owner", Some(&record)).await.unwrap_err();

    let text = format!("{error:?} {}", std::error::Error::source(&error).unwrap());
    assert!(!text.contains("p8e") && !text.contains("eyJ"), "{text}");
    assert!(text.contains("127.0.0.1"), "{text}");
}
