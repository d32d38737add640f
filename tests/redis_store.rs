//! A token in Redis: a fleet of real processes, and a real server with all that befalls it.

#![cfg(all(feature = "redis-store", feature = "reqwest", unix))]
#![allow(clippy::unwrap_used)]

use std::{
    env, io,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant, SystemTime},
};

use tempfile::TempDir;
use tower_adobe_auth::{
    Acquired, Credentials, Environment, LeaseRequest, RedisStore, StoreError, StoreKey,
    StoredRecord, TokenSource, TokenStore,
    mock::{Answer, MockIms, StoreCheck},
};

/// Redis, or what `REDIS_SERVER` names in its place.
fn program() -> std::ffi::OsString {
    env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into())
}

/// A server of its own on a socket in a folder.
struct Server {
    folder: TempDir,
    process: Option<Child>,
}

impl Server {
    /// `None` where there is no server to be had, unless `REQUIRE_REDIS` says that there is.
    fn start() -> Option<Self> {
        let installed = Command::new(program()).arg("--version").output().is_ok();
        if !installed {
            assert!(env::var_os("REQUIRE_REDIS").is_none(), "{:?} is not installed", program());
            eprintln!("skipped: {:?} is not installed", program());
            return None;
        }
        let mut server = Self { folder: tempfile::tempdir().unwrap(), process: None };
        server.run();
        Some(server)
    }

    fn run(&mut self) {
        let process = Command::new(program())
            .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
            .arg(self.socket())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        self.process = Some(process);
        until("a server that answers", || {
            let client = redis::Client::open(self.url()).unwrap();
            client.get_connection().is_ok()
        });
    }

    fn stop(&mut self) {
        let mut process = self.process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    fn signal(&self, signal: &str) {
        let process = self.process.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &process]).status().unwrap().success());
    }

    fn socket(&self) -> std::path::PathBuf {
        self.folder.path().join("redis.sock")
    }

    fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    fn store(&self) -> RedisStore {
        RedisStore::new(self.url()).unwrap()
    }

    /// What the server answers to a command, from outside.
    fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut connection = redis::Client::open(self.url()).unwrap().get_connection().unwrap();
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(word);
        }
        command.query(&mut connection).unwrap()
    }

    /// The key of this kind.
    fn key(&self, kind: &str) -> String {
        let keys: Vec<String> = self.command(&["KEYS", &format!("*:{kind}")]);
        assert_eq!(keys.len(), 1, "{keys:?}");
        keys[0].clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.stop();
        }
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what} did not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// For a server that answers, on a machine that may be busy.
const PATIENT: Duration = Duration::from_secs(10);

fn builder(
    ims: &MockIms,
    store: RedisStore,
) -> tower_adobe_auth::TokenSourceBuilder<tower_adobe_auth::ImsClientBuilder> {
    TokenSource::builder(Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET))
        .environment(Environment::custom(ims.url()).unwrap())
        .store(store)
        .store_timeout(PATIENT)
}

fn source(ims: &MockIms, server: &Server) -> TokenSource {
    builder(ims, server.store()).build().unwrap()
}

/// With the limit that sources have by default.
fn hurried(ims: &MockIms, server: &Server) -> TokenSource {
    builder(ims, server.store()).store_timeout(Duration::from_millis(250)).build().unwrap()
}

async fn read(store: &RedisStore) -> Result<Option<StoredRecord>, StoreError> {
    Ok(store.acquire("key", None).await?.record().cloned())
}

async fn acquire(store: &RedisStore, owner: &str) -> Acquired {
    store.acquire("key", Some(&LeaseRequest::new(owner, LEASE))).await.unwrap()
}

async fn secret(tokens: &TokenSource) -> String {
    tokens.token().await.unwrap().expose_secret().to_owned()
}

/// What a process of its own does: this binary, started by [`start`].
#[test]
fn worker() {
    let Ok(ims) = env::var("WORKER_IMS") else { return };
    let tokens = TokenSource::builder(Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET))
        .environment(Environment::custom(ims).unwrap())
        .store(RedisStore::new(env::var("WORKER_STORE").unwrap()).unwrap())
        .lease_ttl(Duration::from_millis(env::var("WORKER_LEASE").unwrap().parse().unwrap()))
        .store_timeout(PATIENT)
        .build()
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    println!("\ntoken {}", runtime.block_on(secret(&tokens)));
}

/// A process that gets itself a token and prints it.
fn start(ims: &MockIms, server: &Server, lease: Duration) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "worker", "--nocapture", "--test-threads", "1"])
        .env("WORKER_IMS", ims.url())
        .env("WORKER_STORE", server.url())
        .env("WORKER_LEASE", lease.as_millis().to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn token_of(mut child: Child) -> String {
    // To the end: a pipe that breaks is an error for who writes.
    let text = io::read_to_string(child.stdout.take().unwrap()).unwrap();
    child.wait().unwrap();
    let token = text.lines().find_map(|line| line.strip_prefix("token ").map(str::to_owned));
    token.expect("the process printed a token")
}

const LEASE: Duration = Duration::from_secs(15);

#[tokio::test(flavor = "multi_thread")]
async fn store_keeps_its_promises_and_notifies() {
    let Some(server) = Server::start() else { return };

    StoreCheck::new(|| server.store()).expects_notifications().run().await.unwrap();
}

#[test]
fn fifty_processes_that_start_at_once_ask_once() {
    let Some(server) = Server::start() else { return };
    let ims = MockIms::start_blocking();
    ims.set_delay(Duration::from_millis(500));

    let fleet: Vec<_> = (0..50).map(|_| start(&ims, &server, LEASE)).collect();
    let tokens: Vec<_> = fleet.into_iter().map(token_of).collect();

    assert!(tokens.iter().all(|token| *token == tokens[0]));
    assert_eq!(ims.token_requests(), 1);
}

#[test]
fn when_the_leader_is_killed_another_takes_over_within_a_lease() {
    let Some(server) = Server::start() else { return };
    let ims = MockIms::start_blocking();
    ims.respond_next([Answer::hang()]);
    let lease = Duration::from_secs(3);
    let mut leader = start(&ims, &server, lease);
    until("the token request of the leader", || ims.token_requests() == 1);
    let fleet: Vec<_> = (0..10).map(|_| start(&ims, &server, lease)).collect();

    // SIGKILL.
    leader.kill().unwrap();
    leader.wait().unwrap();
    let killed = Instant::now();
    let tokens: Vec<_> = fleet.into_iter().map(token_of).collect();

    assert!(tokens.iter().all(|token| *token == tokens[0]));
    assert_eq!(ims.token_requests(), 2);
    assert!(killed.elapsed() < lease + Duration::from_secs(3), "{:?}", killed.elapsed());
}

/// Asks for the token all the time, as traffic does, and finds one at hand each time.
async fn serves(tokens: &TokenSource, time: Duration) {
    let start = Instant::now();
    while start.elapsed() < time {
        assert!(tokens.try_token().is_some(), "no token after {:?}", start.elapsed());
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Two processes whose tokens are renewed every second or two.
async fn two(ims: &MockIms, server: &Server) -> [TokenSource; 2] {
    ims.set_token_lifetime(Duration::from_secs(4));
    let two = [hurried(ims, server), hurried(ims, server)];
    for tokens in &two {
        secret(tokens).await;
    }
    assert_eq!(ims.token_requests(), 1);
    two
}

/// Both have served all the time, and share again.
async fn shares_again(ims: &MockIms, [one, another]: &[TokenSource; 2]) {
    ims.set_token_lifetime(Duration::from_secs(600));
    let start = Instant::now();
    while secret(one).await != secret(another).await
        || one.status().store_error().is_some()
        || another.status().store_error().is_some()
    {
        assert!(start.elapsed() < Duration::from_secs(30), "they do not share again");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn serve_both([one, another]: &[TokenSource; 2], time: Duration) {
    tokio::join!(serves(one, time), serves(another, time));
}

const A_WHILE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn server_that_restarts_empty_costs_no_request() {
    let Some(mut server) = Server::start() else { return };
    let ims = MockIms::start().await;
    let fleet = two(&ims, &server).await;

    server.stop();
    serve_both(&fleet, A_WHILE).await;
    assert!(fleet[0].status().store_error().is_some());
    server.run();
    serve_both(&fleet, A_WHILE).await;

    shares_again(&ims, &fleet).await;
}

#[tokio::test]
async fn a_server_that_is_paused_costs_no_request() {
    let Some(server) = Server::start() else { return };
    let ims = MockIms::start().await;
    let fleet = two(&ims, &server).await;

    server.signal("-STOP");
    serve_both(&fleet, A_WHILE).await;
    assert!(fleet[0].status().store_error().is_some());
    server.signal("-CONT");
    serve_both(&fleet, A_WHILE).await;

    shares_again(&ims, &fleet).await;
}

#[tokio::test]
async fn a_server_at_its_memory_limit_costs_no_request() {
    let Some(server) = Server::start() else { return };
    let ims = MockIms::start().await;
    let fleet = two(&ims, &server).await;

    let _: () = server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    serve_both(&fleet, A_WHILE).await;
    assert!(fleet[0].status().store_error().is_some());
    let _: () = server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    serve_both(&fleet, A_WHILE).await;

    shares_again(&ims, &fleet).await;
}

#[tokio::test]
async fn server_that_was_emptied_is_filled_again() {
    let Some(server) = Server::start() else { return };
    let ims = MockIms::start().await;
    let fleet = [source(&ims, &server), source(&ims, &server)];
    let before = secret(&fleet[0]).await;
    assert_eq!(secret(&fleet[1]).await, before);

    let _: () = server.command(&["FLUSHALL"]);
    fleet[0].refresh().await.unwrap();

    let after = fleet[1].refresh().await.unwrap();
    assert_eq!(after.expose_secret(), secret(&fleet[0]).await);
    assert_eq!(ims.token_requests(), 2);
}

#[tokio::test]
async fn server_that_is_down_delays_the_first_token_by_250_ms() {
    let Some(server) = Server::start() else { return };
    let ims = MockIms::start().await;
    server.signal("-STOP");
    let start = Instant::now();

    secret(&hurried(&ims, &server)).await;

    assert!(start.elapsed() < Duration::from_millis(750), "{:?}", start.elapsed());
    server.signal("-CONT");
}

#[tokio::test]
async fn clocks_two_minutes_apart_do_not_matter() {
    let Some(server) = Server::start() else { return };
    let ims = MockIms::start().await;
    ims.set_token_lifetime(Duration::from_secs(600));
    let clock = |early: u64, late: u64| {
        let now =
            move || SystemTime::now() + Duration::from_secs(early) - Duration::from_secs(late);
        builder(&ims, server.store()).wall_clock(now).build().unwrap()
    };
    let fleet = [clock(120, 0), clock(0, 120), clock(0, 0)];

    let first = secret(&fleet[0]).await;
    for tokens in &fleet {
        assert_eq!(secret(tokens).await, first);
    }
    // Whoever's clock it is, what one fetches is newer to the others.
    for leader in 0..3 {
        let renewed = fleet[leader].refresh().await.unwrap();
        for (_, tokens) in fleet.iter().enumerate().filter(|(other, _)| *other != leader) {
            let taken = tokens.refresh().await.unwrap();
            assert_eq!(taken.expose_secret(), renewed.expose_secret(), "from {leader}");
        }
    }
    assert_eq!(ims.token_requests(), 4);
}

#[tokio::test]
async fn nonsense_in_a_key_is_replaced() {
    let Some(server) = Server::start() else { return };
    let ims = MockIms::start().await;
    let encrypted = || {
        let key = StoreKey::new("key", [7; 32]);
        builder(&ims, server.store()).encrypt_with(key).build().unwrap()
    };
    secret(&encrypted()).await;
    let (record, fencing, lease) = (server.key("record"), server.key("fencing"), "lease");
    let lease = record.replace(":record", &format!(":{lease}"));
    let good: String = server.command(&["GET", &record]);
    let mut requests = 1;

    let nonsense = [
        String::new(),
        " ".to_owned(),
        "nonsense".to_owned(),
        "18446744073709551615 {}".to_owned(),
        "4503599627370495 {}".to_owned(),
        "-1 {}".to_owned(),
        good[..good.len() / 2].to_owned(),
        good.replace("key", "kez"),
        good.replacen(' ', "0 ", 1),
        "x".repeat(1 << 20),
    ];
    for value in &nonsense {
        for key in [&record, &fencing, &lease] {
            let _: () = server.command(&["SET", key, value]);
        }
        let mended = secret(&encrypted()).await;
        requests += 1;
        assert_eq!(ims.token_requests(), requests, "{value:.80}");
        assert_eq!(secret(&encrypted()).await, mended);
        assert_eq!(ims.token_requests(), requests, "{value:.80}");
    }
    for key in [&record, &fencing, &lease] {
        let _: () = server.command(&["DEL", key]);
        let _: () = server.command(&["RPUSH", key, "a", "list"]);
    }
    let mended = secret(&encrypted()).await;
    assert_eq!(secret(&encrypted()).await, mended);
    assert_eq!(ims.token_requests(), requests + 1);
}

#[tokio::test]
async fn record_of_the_far_future_is_replaced() {
    let Some(server) = Server::start() else { return };
    let ims = MockIms::start().await;
    secret(&source(&ims, &server)).await;
    let record = server.key("record");
    let value: String = server.command(&["GET", &record]);
    let token = value.split(' ').next().unwrap();
    let far = (1_u64 << 52).to_string();
    let in_value = |token| format!(r#""fencing_token":{token}"#);
    assert!(value.contains(&in_value(token)), "{value:.200}");
    let far = value.replacen(token, &far, 1).replace(&in_value(token), &in_value(&far));
    let _: () = server.command(&["SET", &record, &far, "PX", "80000000"]);

    let [one, another] = [source(&ims, &server), source(&ims, &server)];

    assert_eq!(secret(&one).await, secret(&another).await);
    assert_eq!(ims.token_requests(), 2);
}

#[tokio::test]
async fn value_longer_than_a_record_stays_at_the_server() {
    let Some(server) = Server::start() else { return };
    let long = format!("1 {}", "x".repeat(1 << 20));
    let _: () = server.command(&["SET", "adobe-auth:{key}:record", &long]);

    let loaded = read(&server.store()).await.unwrap().unwrap();

    assert!(loaded.value().is_empty());
}

/// A server, or what is taken for one, that gives this answer to each script.
fn answers(answer: &'static [u8]) -> RedisStore {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let store = RedisStore::new(format!("redis://{}", listener.local_addr().unwrap())).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut buffer = [0; 4096];
        loop {
            let read = io::Read::read(&mut stream, &mut buffer).unwrap_or(0);
            let asked = String::from_utf8_lossy(&buffer[..read]);
            let hellos = asked.matches("HELLO").map(|_| &b"%1\r\n+proto\r\n:3\r\n"[..]);
            let settings = asked.matches("SETINFO").map(|_| &b"+OK\r\n"[..]);
            let scripts = asked.matches("EVAL").map(|_| answer);
            let all: Vec<_> = hellos.chain(settings).chain(scripts).collect();
            if read == 0 || io::Write::write_all(&mut stream, &all.concat()).is_err() {
                return;
            }
        }
    });
    store
}

#[tokio::test]
async fn response_of_another_form_does_not_reveal_the_token() {
    for answer in [
        &b"*3\r\n$16\r\n7 {\"a\":\"secret\"}\r\n:5\r\n:5\r\n"[..],
        b"*1\r\n$16\r\n7 {\"a\":\"secret\"}\r\n",
        b"$16\r\n7 {\"a\":\"secret\"}\r\n",
        b"*2\r\n*1\r\n$16\r\n7 {\"a\":\"secret\"}\r\n:5\r\n",
        b"*2\r\n:5\r\n$16\r\n7 {\"a\":\"secret\"}\r\n",
        b"*2\r\n$16\r\n7 {\"a\":\"secret\"}\r\n:5\r\n",
        b"*1\r\n*2\r\n$16\r\n7 {\"a\":\"secret\"}\r\n:5\r\n",
        b"*2\r\n*2\r\n:5\r\n$16\r\n7 {\"a\":\"secret\"}\r\n_\r\n",
        b"*2\r\n*2\r\n$16\r\n7 {\"a\":\"secret\"}\r\n:5\r\n$6\r\nsecret\r\n",
    ] {
        let error = read(&answers(answer)).await.unwrap_err();

        let text = format!("{error:?} {}", std::error::Error::source(&error).unwrap());
        assert!(text.contains("answer") && !text.contains("secret"), "{text}");
    }
}

#[tokio::test]
async fn keys_expire_with_the_values_that_they_hold() {
    let Some(server) = Server::start() else { return };
    let ims = MockIms::start().await;
    ims.set_token_lifetime(Duration::from_secs(600));

    let token = secret(&source(&ims, &server)).await;

    let ttl: i64 = server.command(&["PTTL", &server.key("record")]);
    assert!((590_000..=600_000).contains(&ttl), "{ttl}");
    let value: String = server.command(&["GET", &server.key("record")]);
    assert!(value.contains(&token));
    let keys: Vec<String> = server.command(&["KEYS", "*"]);
    assert_eq!(keys.len(), 2, "the lease was given back: {keys:?}");
    assert!(keys.iter().all(|key| key.starts_with("adobe-auth:{")), "{keys:?}");
}

#[tokio::test]
async fn server_does_not_see_an_encrypted_token() {
    let Some(server) = Server::start() else { return };
    let ims = MockIms::start().await;
    let key = StoreKey::new("key", [7; 32]);

    let tokens = builder(&ims, server.store()).encrypt_with(key).build().unwrap();
    let token = secret(&tokens).await;

    let value: String = server.command(&["GET", &server.key("record")]);
    assert!(!value.contains(&token) && !value.contains("eyJ"), "{value}");
}

#[tokio::test]
async fn owner_that_asks_again_is_granted_its_lease_again() {
    let Some(server) = Server::start() else { return };
    let store = server.store().with_prefix("other:");
    let lease = async |owner: &str| acquire(&store, owner).await.fencing_token();

    let first = lease("a").await.unwrap();
    let again = lease("a").await.unwrap();

    assert!(again > first);
    assert_eq!(lease("b").await, None);
    assert!(server.key("lease").starts_with("other:{key}"));
}

#[test]
fn a_store_outlives_the_runtime_that_it_connected_on() {
    let Some(server) = Server::start() else { return };
    let store = server.store();
    for _ in 0..3 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let loaded = runtime.block_on(async { read(&store).await.unwrap() });
        assert!(loaded.is_none());
    }
    let clients: String = server.command(&["CLIENT", "LIST"]);
    assert!(clients.lines().count() <= 2, "connections are left behind: {clients}");
}

/// How many connections the server has had from others than this.
fn connections(server: &Server) -> usize {
    let stats: String = server.command(&["INFO", "stats"]);
    let all = stats.lines().find_map(|line| line.strip_prefix("total_connections_received:"));
    all.unwrap().trim().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_calls_share_a_connection() {
    let Some(server) = Server::start() else { return };
    let store = server.store();
    let many = async || {
        let loads = (0..100).map(|_| {
            let store = store.clone();
            tokio::spawn(async move { read(&store).await.unwrap() })
        });
        futures_util::future::join_all(loads).await;
    };
    let before = connections(&server);

    many().await;
    // One is that of `connections`.
    assert_eq!(connections(&server) - before, 2);

    // Also when it was lost to all of them.
    let _: usize = server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    many().await;
    assert_eq!(connections(&server) - before, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_server_is_connected_to_once_for_all_calls() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let store = RedisStore::new(format!("redis://{}", listener.local_addr().unwrap())).unwrap();

    let loads = (0..100).map(|_| {
        let store = store.clone();
        tokio::spawn(async move {
            let load = tokio::time::timeout(Duration::from_millis(100), read(&store));
            assert!(load.await.is_err());
        })
    });
    futures_util::future::join_all(loads).await;

    listener.set_nonblocking(true).unwrap();
    // Kept, because a server that closes the connection at `HELLO` is tried with RESP2.
    let _first = listener.accept().unwrap();
    assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
}

#[tokio::test(flavor = "multi_thread")]
async fn listener_over_a_dead_connection_is_woken() {
    let Some(server) = Server::start() else { return };
    let store = server.store();
    assert!(read(&store).await.unwrap().is_none());
    let listener = tokio::spawn({
        let store = store.clone();
        async move { store.changed("key").await }
    });
    let listening = || {
        let clients: String = server.command(&["CLIENT", "LIST", "TYPE", "pubsub"]);
        clients.lines().count()
    };
    until("one that listens", || listening() == 1);
    // An answer that comes after that to the subscription: it has been heard.
    assert!(read(&store).await.unwrap().is_none());

    server.signal("-STOP");
    let load = tokio::time::timeout(Duration::from_millis(250), read(&store));
    assert!(load.await.is_err());

    tokio::time::timeout(PATIENT, listener).await.unwrap().unwrap();
    server.signal("-CONT");
    until("the end of the connection", || listening() == 0);
}

#[test]
fn runtime_that_is_not_driven_does_not_block_the_store() {
    let Some(server) = Server::start() else { return };
    let store = server.store();
    let mut kept = Vec::new();
    for _ in 0..3 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let loaded = runtime.block_on(async {
            tokio::time::timeout(Duration::from_secs(5), read(&store)).await.unwrap().unwrap()
        });
        assert!(loaded.is_none());
        kept.push(runtime);
    }
}

#[test]
fn error_of_an_unusable_url_does_not_show_its_password() {
    for url in
        ["", "http://user:p8e-secret@host", "redis://user:p8e-secret@host/database", "rediss://h:x"]
    {
        let error = RedisStore::new(url).unwrap_err();
        assert!(error.to_string().starts_with("the URL of a Redis server cannot be used: "));
        assert!(!format!("{error} {error:?}").contains("p8e"), "{error:?}");
    }
    let store = RedisStore::new("redis://user:p8e-secret@host:6379/1").unwrap();
    assert!(!format!("{store:?}").contains("p8e") && format!("{store:?}").contains("host:6379"));
    assert!(!Path::new("redis.sock").exists());
}
