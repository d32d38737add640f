//! A fleet of twenty processes that share one token through Redis, while some of them are killed.
//!
//! It starts a Redis server of its own (`redis-server` has to be installed), an IMS with an API on
//! loopback, and twenty processes that call the API all the time. Tokens live for six seconds. Every
//! second it kills two processes and starts two others. In the end it tells how many token requests
//! there were, and how many requests were served.
//!
//! ```sh
//! cargo run --example fleet --features redis-store
//! ```

use std::{
    env, io,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use tower::{Layer, Service, ServiceExt};
use tower_adobe_auth::{
    AdobeAuthLayer, BoxError, Credentials, Environment, RedisStore, StoreKey, TokenSource,
    mock::MockIms,
};

const PROCESSES: usize = 20;
const TOKEN_LIFETIME: Duration = Duration::from_secs(6);
const RUN: Duration = Duration::from_secs(10);

/// What a process of the fleet is told by its environment.
const IMS: &str = "FLEET_IMS";
const API: &str = "FLEET_API";
const STORE: &str = "FLEET_STORE";

fn main() -> Result<(), BoxError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match env::var(STORE) {
        Ok(store) => runtime.block_on(work(&store)),
        Err(_) => lead(),
    }
}

/// One process of the fleet: as a service that calls Adobe.
async fn work(store: &str) -> Result<(), BoxError> {
    let credentials = Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET);
    let tokens = TokenSource::builder(credentials)
        .environment(Environment::custom(env::var(IMS)?)?)
        .store(RedisStore::new(store)?)
        // From a vault, in life.
        .encrypt_with(StoreKey::new("2026-11", [7; 32]))
        // A request to this IMS is quick.
        .lease_ttl(Duration::from_secs(3))
        .build()?;
    let mut client =
        AdobeAuthLayer::new(tokens).allow_host("127.0.0.1").layer(reqwest::Client::new());
    let url: reqwest::Url = env::var(API)?.parse()?;
    loop {
        let request = reqwest::Request::new(reqwest::Method::GET, url.clone());
        client.ready().await?.call(request).await?.error_for_status()?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn lead() -> Result<(), BoxError> {
    let folder = tempfile::tempdir()?;
    let Some(server) = start_redis(folder.path())? else {
        println!("redis-server is not installed: nothing to show");
        return Ok(());
    };
    let ims = MockIms::builder().token_lifetime(TOKEN_LIFETIME).start_blocking();

    let mut fleet = Vec::new();
    let mut started = 0;
    let mut failed = Vec::new();
    let start = Instant::now();
    while start.elapsed() < RUN {
        while fleet.len() < PROCESSES {
            fleet.push(start_worker(&ims, &server)?);
            started += 1;
        }
        std::thread::sleep(Duration::from_secs(1));
        // Whoever ended by itself could not serve a request.
        for worker in &mut fleet {
            failed.extend(worker.ended()?);
        }
        fleet.drain(..2);
    }
    fleet.clear();

    println!("{started} processes, {PROCESSES} at a time, in {} s", start.elapsed().as_secs());
    println!("{} token requests", ims.token_requests());
    println!("{} requests served", ims.api_requests() - ims.api_unauthorized());
    println!("{} requests refused, {} processes failed", ims.api_unauthorized(), failed.len());
    if ims.api_unauthorized() > 0 || !failed.is_empty() {
        return Err("each request should have been served".into());
    }
    Ok(())
}

fn start_worker(ims: &MockIms, server: &Redis) -> io::Result<Process> {
    let process = Command::new(env::current_exe()?)
        .env(IMS, ims.url())
        .env(API, ims.api_url())
        .env(STORE, format!("redis+unix://{}", server.socket.display()))
        .spawn()?;
    Ok(Process(process))
}

struct Redis {
    socket: PathBuf,
    _process: Process,
}

/// `None` if there is no `redis-server`.
fn start_redis(folder: &Path) -> io::Result<Option<Redis>> {
    let socket = folder.join("redis.sock");
    let process = Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--appendonly", "no", "--unixsocket"])
        .arg(&socket)
        .stdout(Stdio::null())
        .spawn();
    let process = match process {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        process => Process(process?),
    };
    let start = Instant::now();
    while !socket.exists() {
        if start.elapsed() > Duration::from_secs(10) {
            return Err(io::Error::other("redis-server did not start"));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(Some(Redis { socket, _process: process }))
}

/// A process that is killed (SIGKILL) when this is dropped.
struct Process(Child);

impl Process {
    fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.0.try_wait()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
