//! [`Server`]: a Redis of this test, which can be stopped, and restarted with another state.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

/// Redis, or the server that `REDIS_SERVER` names in its place.
fn program() -> OsString {
    env::var_os("REDIS_SERVER").unwrap_or_else(|| "redis-server".into())
}

pub(crate) struct Server {
    folder: PathBuf,
    process: Mutex<Option<Child>>,
}

impl Server {
    /// `None` where no server is installed, unless `REQUIRE_REDIS` says that there is one.
    pub(crate) fn start(folder: &Path) -> Option<Self> {
        if Command::new(program()).arg("--version").output().is_err() {
            assert!(env::var_os("REQUIRE_REDIS").is_none(), "{:?} is not installed", program());
            eprintln!("skipped: {:?} is not installed", program());
            return None;
        }
        let server = Self { folder: folder.to_owned(), process: Mutex::default() };
        server.run();
        Some(server)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("redis.sock")
    }

    /// Starts the server with the state in `dump.rdb`, if there is one.
    pub(crate) fn run(&self) {
        let process = Command::new(program())
            .args(["--port", "0", "--save", "", "--appendonly", "no"])
            .arg("--dir")
            .arg(&self.folder)
            .arg("--unixsocket")
            .arg(self.socket())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        *self.process.lock().unwrap() = Some(process);
        let start = Instant::now();
        while self.command(&["PING"]).is_err() {
            assert!(start.elapsed() < Duration::from_secs(60), "the server does not respond");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills the server.
    pub(crate) fn stop(&self) {
        let process = self.process.lock().unwrap().take();
        if let Some(mut process) = process {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    pub(crate) fn signal(&self, signal: &str) {
        let process = self.process.lock().unwrap();
        let process = process.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &process]).status().unwrap().success());
    }

    /// Writes the present state to disk, for [`run`](Self::run) after [`restore`](Self::restore).
    pub(crate) fn save(&self) {
        self.command(&["SAVE"]).unwrap();
        fs::copy(self.dump(), self.folder.join("saved.rdb")).unwrap();
    }

    /// Puts the saved state in place of the last one. The server must be stopped.
    pub(crate) fn restore(&self) {
        fs::copy(self.folder.join("saved.rdb"), self.dump()).unwrap();
    }

    /// Removes the state on disk. The server must be stopped.
    pub(crate) fn forget(&self) {
        let _ = fs::remove_file(self.dump());
    }

    fn dump(&self) -> PathBuf {
        self.folder.join("dump.rdb")
    }

    fn command(&self, words: &[&str]) -> redis::RedisResult<String> {
        let url = format!("redis+unix://{}", self.socket().display());
        let mut connection = redis::Client::open(url)?.get_connection()?;
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        command.query(&mut connection)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}
