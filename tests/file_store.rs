//! A token in a file: for the processes of one host.

#![cfg(all(feature = "file-store", feature = "reqwest", unix))]
#![allow(clippy::unwrap_used)]

use std::{
    env,
    error::Error,
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use fs4::FileExt;
use futures_util::{FutureExt, future::join_all};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{sleep, timeout};
use tower_adobe_auth::{
    CommitOutcome, Credentials, Environment, FileStore, LeaseRequest, StoreError, StoreKey,
    StoredRecord, TokenSource, TokenStore,
    mock::{Answer, MockIms, check_token_store},
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const SECOND: Duration = Duration::from_secs(1);

/// Every file that the store has for the key `key` and the lease owner `owner`.
const FILES: [&str; 6] =
    ["key.lock", "key.record", "key.lease", "key.record.new", "key.lease.new", "key.owner.alive"];

fn source_within(ims: &str, folder: &Path, store_timeout: Duration) -> TokenSource {
    TokenSource::builder(Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET))
        .environment(Environment::custom(ims).unwrap())
        .store(FileStore::in_folder(folder))
        .store_timeout(store_timeout)
        .build()
        .unwrap()
}

fn source(ims: &str, folder: &Path) -> TokenSource {
    // Many processes share the processors of this machine.
    source_within(ims, folder, Duration::from_secs(10))
}

async fn secret(tokens: &TokenSource) -> String {
    tokens.token().await.unwrap().expose_secret().to_owned()
}

/// Requests the lease of `key`, whatever record is kept. Returns its fencing token.
async fn lease(store: &FileStore, owner: &str, ttl: Duration) -> Result<Option<u64>, StoreError> {
    let request = LeaseRequest::new(owner, ttl).with_seen(u64::MAX);
    Ok(store.acquire("key", Some(&request)).await?.fencing_token())
}

/// The value of the record of `key`.
async fn value(store: &FileStore) -> Option<Vec<u8>> {
    let acquired = store.acquire("key", None).await.unwrap();
    acquired.record().map(|record| record.value().to_vec())
}

/// Takes the lease of `key` for `owner`, and commits `value` under it.
async fn put(store: &FileStore, value: &str) {
    let fencing_token = lease(store, "owner", DAY).await.unwrap().unwrap();
    let record = StoredRecord::new(fencing_token, value).with_ttl(DAY);
    let outcome = store.commit("key", "owner", Some(&record)).await.unwrap();
    assert_eq!(outcome, CommitOutcome::Committed);
}

/// The error and its sources, as a log shows them.
fn chain(error: &dyn Error) -> String {
    let source = error.source().map(|source| format!(": {}", chain(source)));
    format!("{error}{}", source.unwrap_or_default())
}

/// The one file whose name ends so.
fn file(folder: &Path, end: &str) -> PathBuf {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found = entries.filter(|path| path.to_str().unwrap().ends_with(end));
    let file = found.next().unwrap();
    assert!(found.next().is_none());
    file
}

fn names(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Changes the first line of a file, which is JSON.
fn edit_head(path: &Path, edit: impl Fn(&mut Value)) {
    let text = fs::read_to_string(path).unwrap();
    let (head, rest) = text.split_once('\n').unwrap();
    let mut head = serde_json::from_str(head).unwrap();
    edit(&mut head);
    fs::write(path, format!("{head}\n{rest}")).unwrap();
}

/// The work of a process of its own: this binary, started by [`start`] or [`Home::run`].
#[test]
fn worker() {
    let Ok(ims) = env::var("WORKER_IMS") else { return };
    let folder = PathBuf::from(env::var_os("WORKER_FOLDER").unwrap());
    let store_timeout = env::var("WORKER_TIMEOUT_MS").map_or(10_000, |it| it.parse().unwrap());
    tracing_subscriber::fmt().with_max_level(tracing::Level::WARN).init();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tokens = {
        let _in_runtime = runtime.enter();
        source_within(&ims, &folder, Duration::from_millis(store_timeout))
    };
    let token = runtime.block_on(secret(&tokens));
    // The record is committed after the caller has its token.
    runtime.block_on(tokens.shutdown()).unwrap();
    println!("\ntoken {token}");
    if let Some(error) = tokens.status().store_error() {
        println!("error {}", chain(error));
    }
}

fn worker_command(program: &Path, ims: &str, folder: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .args(["--exact", "worker", "--nocapture", "--test-threads", "1"])
        .envs([("WORKER_IMS", ims.as_ref()), ("WORKER_FOLDER", folder.as_os_str())])
        .stdout(Stdio::piped());
    command
}

/// A process that obtains a token and prints it.
fn start(ims: &str, folder: &Path) -> Child {
    worker_command(&env::current_exe().unwrap(), ims, folder).spawn().unwrap()
}

fn output_of(mut child: Child) -> String {
    // To the end: a pipe that breaks is an error for the writer.
    let text = io::read_to_string(child.stdout.take().unwrap()).unwrap();
    assert!(child.wait().unwrap().success(), "{text}");
    text
}

fn token_in(output: &str) -> String {
    let token = output.lines().find_map(|line| line.strip_prefix("token ").map(str::to_owned));
    token.expect("the process printed a token")
}

fn token_of(child: Child) -> String {
    token_in(&output_of(child))
}

fn until(event: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "{event} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A user other than root, and one more.
const USER: u32 = 65_534;
const STRANGER: u32 = 65_533;

/// The home of [`USER`], in which the processes of several users run.
struct Home {
    ims: MockIms,
    home: TempDir,
    program: TempDir,
}

impl Home {
    /// `None`, with a note, unless root runs the tests and `setpriv` exists.
    fn new() -> Option<Self> {
        let home = tempfile::tempdir().unwrap();
        let has_setpriv = Command::new("setpriv").arg("--version").output().is_ok();
        // Only root may give the home away twice.
        let is_root = [STRANGER, USER]
            .iter()
            .all(|user| chown(home.path(), Some(*user), Some(*user)).is_ok());
        if !is_root || !has_setpriv {
            eprintln!("skipped: only root can start processes of other users, with setpriv");
            return None;
        }
        let program = tempfile::tempdir().unwrap();
        set_mode(program.path(), 0o755);
        fs::copy(env::current_exe().unwrap(), program.path().join("program")).unwrap();
        Some(Self { ims: MockIms::start_blocking(), home, program })
    }

    fn folder(&self) -> PathBuf {
        self.home.path().join("caches").join("tokens")
    }

    /// Creates the folder for its owner.
    fn create_folder(&self, owner: u32) {
        fs::create_dir_all(self.folder()).unwrap();
        for folder in [self.home.path().join("caches"), self.folder()] {
            chown(folder, Some(owner), Some(owner)).unwrap();
        }
    }

    /// The output of a process of this user.
    fn output(&self, user: u32) -> String {
        let program = self.program.path().join("program");
        let worker = worker_command(&program, self.ims.url(), &self.folder());
        let user = user.to_string();
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", &user, "--regid", &user, "--clear-groups", "--"])
            .arg(worker.get_program())
            .args(worker.get_args())
            .envs(worker.get_envs().filter_map(|(name, value)| Some((name, value?))))
            .stdout(Stdio::piped());
        output_of(command.spawn().unwrap())
    }

    fn token(&self, user: u32) -> String {
        token_in(&self.output(user))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_file_store_keeps_the_promises_of_a_store() {
    let folder = tempfile::tempdir().unwrap();
    check_token_store(|| FileStore::in_folder(folder.path())).await.unwrap();
}

#[test]
fn twenty_processes_that_start_together_request_one_token() {
    let ims = MockIms::start_blocking();
    ims.set_delay(Duration::from_millis(300));
    let folder = tempfile::tempdir().unwrap();

    let fleet: Vec<_> = (0..20).map(|_| start(ims.url(), folder.path())).collect();
    let tokens: Vec<_> = fleet.into_iter().map(token_of).collect();

    assert!(tokens.iter().all(|token| *token == tokens[0]));
    assert_eq!(ims.token_requests(), 1);
}

#[test]
fn another_process_takes_over_when_the_lease_holder_is_killed() {
    let ims = MockIms::start_blocking();
    ims.respond_next([Answer::hang()]);
    let folder = tempfile::tempdir().unwrap();
    let mut leader = start(ims.url(), folder.path());
    until("the token request of the leader", || ims.token_requests() == 1);
    let fleet: Vec<_> = (0..5).map(|_| start(ims.url(), folder.path())).collect();

    let start = Instant::now();
    // SIGKILL.
    leader.kill().unwrap();
    leader.wait().unwrap();
    let tokens: Vec<_> = fleet.into_iter().map(token_of).collect();

    assert!(tokens.iter().all(|token| *token == tokens[0]));
    assert_eq!(ims.token_requests(), 2);
    // The lease lasts fifteen seconds.
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_process_takes_the_token_that_another_one_committed() {
    let folder = tempfile::tempdir().unwrap();
    let ims = MockIms::start().await;
    let [one, another] = [(); 2].map(|()| source(ims.url(), folder.path()));
    assert_eq!(secret(&one).await, secret(&another).await);

    let new = one.refresh().await.unwrap();

    let taken = async {
        while another.try_token().unwrap().expose_secret() != new.expose_secret() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(60), taken).await.unwrap();
    assert_eq!(ims.token_requests(), 2);
}

#[tokio::test]
async fn only_the_user_can_read_the_files_and_none_is_left_over() {
    let ims = MockIms::start().await;
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("created").join("for-us");
    let tokens = source(ims.url(), &folder);

    let token = secret(&tokens).await;
    tokens.shutdown().await.unwrap();

    assert_eq!(mode(&folder), 0o700);
    let names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    for path in &names {
        assert_eq!(mode(path), 0o600, "{path:?}");
    }
    let text = fs::read_to_string(file(&folder, ".record")).unwrap();
    assert!(text.contains(&token));
}

#[tokio::test]
async fn a_shutdown_during_a_refresh_leaves_no_lock_behind() {
    let ims = MockIms::start().await;
    ims.respond_next([Answer::hang()]);
    let folder = tempfile::tempdir().unwrap();
    let leader = source(ims.url(), folder.path());
    timeout(Duration::from_millis(500), leader.token()).await.unwrap_err();

    leader.shutdown().await.unwrap();

    let names = names(folder.path());
    assert_eq!(names.len(), 2, "{names:?}");
    let start = Instant::now();
    secret(&source(ims.url(), folder.path())).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_nobody_waits_for_is_not_held() {
    let folder = tempfile::tempdir().unwrap();
    let (store, minute) = (FileStore::in_folder(folder.path()), Duration::from_secs(60));
    // Its first poll has begun the work.
    assert!(lease(&store, "one", minute).now_or_never().is_none());

    let start = Instant::now();
    let another = FileStore::in_folder(folder.path());
    while lease(&another, "two", minute).await.unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(10), "the lease is held");
        sleep(Duration::from_millis(5)).await;
    }
    // The call that was dropped was granted the lease, or came too late for that.
    assert!(lease(&store, "three", minute).await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_callers_of_one_key_get_one_lease() {
    let folder = tempfile::tempdir().unwrap();
    let stores: Vec<_> = (0..50).map(|_| FileStore::in_folder(folder.path())).collect();
    let owners: Vec<_> = (0..50).map(|number| format!("owner{number}")).collect();

    let all = stores.iter().zip(&owners).map(|(store, owner)| lease(store, owner, DAY));
    let granted = timeout(10 * SECOND, join_all(all)).await.unwrap();

    let granted = granted.into_iter().filter_map(Result::unwrap).count();
    assert_eq!(granted, 1);
}

#[test]
fn a_program_ends_at_once_although_the_files_are_locked() {
    let folder = tempfile::tempdir().unwrap();
    let lock = fs::File::create(folder.path().join("key.lock")).unwrap();
    set_mode(&folder.path().join("key.lock"), 0o600);
    // As a process does that was stopped in the middle of a step.
    FileExt::lock(&lock).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = FileStore::in_folder(folder.path());
    let record = StoredRecord::new(1, "a-token");

    runtime.block_on(async {
        let budget = Duration::from_millis(250);
        timeout(budget, lease(&store, "owner", SECOND)).await.unwrap_err();
        timeout(budget, store.commit("key", "owner", Some(&record))).await.unwrap_err();
    });
    let start = Instant::now();
    drop(runtime);

    assert!(start.elapsed() < Duration::from_millis(500), "{:?} late", start.elapsed());
}

#[tokio::test]
async fn locked_files_are_used_soon_after_they_are_unlocked() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::in_folder(folder.path());
    put(&store, "a-token").await;
    let lock = fs::File::open(folder.path().join("key.lock")).unwrap();
    FileExt::lock(&lock).unwrap();

    let unlock = async {
        sleep(Duration::from_millis(400)).await;
        FileExt::unlock(&lock).unwrap();
        Instant::now()
    };
    let acquire = async { (lease(&store, "owner", SECOND).await.unwrap(), Instant::now()) };
    let (unlocked_at, (granted, granted_at)) = tokio::join!(unlock, acquire);

    assert!(granted.is_some());
    assert!(granted_at >= unlocked_at);
    assert!(granted_at - unlocked_at < Duration::from_millis(500));
}

#[tokio::test]
async fn a_locked_key_can_be_read_and_holds_up_no_other_key() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::in_folder(folder.path());
    put(&store, "a-token").await;
    let lock = fs::File::open(folder.path().join("key.lock")).unwrap();
    FileExt::lock(&lock).unwrap();
    let waiting: Vec<_> = (0..20)
        .map(|number| {
            let store = store.clone();
            tokio::spawn(async move { lease(&store, &format!("owner{number}"), SECOND).await })
        })
        .collect();
    sleep(Duration::from_millis(100)).await;

    let request = LeaseRequest::new("owner", SECOND);
    let another = timeout(5 * SECOND, store.acquire("another", Some(&request))).await;
    let record = timeout(5 * SECOND, value(&store)).await;

    assert!(another.unwrap().unwrap().fencing_token().is_some());
    assert_eq!(record.unwrap().unwrap(), b"a-token");
    waiting.iter().for_each(|task| task.abort());
}

#[tokio::test]
async fn a_dropped_call_leaves_nothing_locked() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::in_folder(folder.path());
    put(&store, "a-token").await;
    let lock = fs::File::open(folder.path().join("key.lock")).unwrap();
    FileExt::lock(&lock).unwrap();
    timeout(Duration::from_millis(100), lease(&store, "dropped", DAY)).await.unwrap_err();

    FileExt::unlock(&lock).unwrap();
    let granted = timeout(SECOND, lease(&store, "owner", DAY)).await.unwrap();

    assert!(granted.unwrap().is_some());
}

#[tokio::test]
async fn a_commit_that_is_dropped_ends_the_lease_of_its_owner() {
    let folder = tempfile::tempdir().unwrap();
    let [holder, another] = [(); 2].map(|()| FileStore::in_folder(folder.path()));
    lease(&holder, "holder", DAY).await.unwrap().unwrap();
    let lock = fs::File::open(folder.path().join("key.lock")).unwrap();
    FileExt::lock(&lock).unwrap();
    let commit = holder.commit("key", "holder", None);
    timeout(Duration::from_millis(100), commit).await.unwrap_err();

    FileExt::unlock(&lock).unwrap();

    assert!(lease(&another, "another", DAY).await.unwrap().is_some());
}

#[test]
fn files_that_stay_locked_are_reported_once() {
    let ims = MockIms::start_blocking();
    let folder = tempfile::tempdir().unwrap();
    token_of(start(ims.url(), folder.path()));
    let path = file(folder.path(), ".lock");
    let lock = fs::File::open(&path).unwrap();
    FileExt::lock(&lock).unwrap();

    let mut command = worker_command(&env::current_exe().unwrap(), ims.url(), folder.path());
    let output = output_of(command.env("WORKER_TIMEOUT_MS", "500").spawn().unwrap());

    token_in(&output);
    let reports = output.lines().filter(|line| line.contains("store_file_locked"));
    let reports: Vec<_> = reports.collect();
    assert_eq!(reports.len(), 1, "{output}");
    assert!(reports[0].contains(path.to_str().unwrap()), "{output}");
}

/// Commits one record after the other until it is killed: this binary, started by the test below.
#[test]
fn saver() {
    let Some(folder) = env::var_os("SAVER_FOLDER") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = FileStore::in_folder(folder);
        loop {
            put(&store, "a-token").await;
        }
    });
}

#[tokio::test]
async fn the_next_commit_removes_the_files_of_killed_processes() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..40 {
        let mut saver = Command::new(env::current_exe().unwrap())
            .args(["--exact", "saver"])
            .env("SAVER_FOLDER", folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        until("the first commit", || folder.path().join("key.record").exists());
        sleep(Duration::from_micros(10_000 + 371 * round)).await;
        // SIGKILL.
        saver.kill().unwrap();
        saver.wait().unwrap();
    }

    let store = FileStore::in_folder(folder.path());
    let fencing_token = lease(&store, "last", DAY).await.unwrap().unwrap();
    let record = StoredRecord::new(fencing_token, "the-last-token").with_ttl(DAY);
    let _ = store.commit("key", "last", Some(&record)).await.unwrap();

    assert_eq!(names(folder.path()), ["key.lease", "key.lock", "key.record"]);
    assert_eq!(value(&store).await.unwrap(), b"the-last-token");
}

#[tokio::test]
async fn a_lease_that_cannot_be_written_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    // As on a full disk, the new file cannot take its place.
    fs::create_dir(folder.path().join("key.lease")).unwrap();
    let store = FileStore::in_folder(folder.path());

    for owner in ["one", "two", "three"] {
        lease(&store, owner, SECOND).await.unwrap_err();
    }

    assert_eq!(names(folder.path()), ["key.lease", "key.lock"]);
}

#[tokio::test]
async fn a_record_that_cannot_be_written_keeps_no_lease() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("key.record")).unwrap();
    let store = FileStore::in_folder(folder.path());
    lease(&store, "one", DAY).await.unwrap().unwrap();

    store.commit("key", "one", Some(&StoredRecord::new(1, "a-token"))).await.unwrap_err();

    assert!(lease(&store, "two", DAY).await.unwrap().is_some());
}

#[tokio::test]
async fn a_link_in_place_of_any_file_leads_nowhere() {
    for name in FILES {
        for target_exists in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let elsewhere = tempfile::tempdir().unwrap();
            let target = elsewhere.path().join("target");
            if target_exists {
                fs::write(&target, "untouched").unwrap();
            }
            symlink(&target, folder.path().join(name)).unwrap();
            let store = FileStore::in_folder(folder.path());

            timeout(5 * SECOND, put(&store, "a-token")).await.unwrap();

            assert_eq!(value(&store).await.unwrap(), b"a-token", "{name}");
            let found = fs::read_to_string(&target).ok();
            assert_eq!(found.as_deref(), target_exists.then_some("untouched"), "{name}");
            let names = names(folder.path());
            let links = names.iter().filter(|name| folder.path().join(name).is_symlink());
            assert_eq!(links.count(), 0, "{name}: {names:?}");
        }
    }
}

#[tokio::test]
async fn a_link_to_a_locked_file_does_not_keep_a_lease_alive() {
    let folder = tempfile::tempdir().unwrap();
    let held = tempfile::NamedTempFile::new().unwrap();
    FileExt::lock(held.as_file()).unwrap();
    let dead = FileStore::in_folder(folder.path());
    lease(&dead, "dead", DAY).await.unwrap().unwrap();
    drop(dead);
    let alive = folder.path().join("key.dead.alive");
    fs::remove_file(&alive).unwrap();
    symlink(held.path(), &alive).unwrap();

    let granted = lease(&FileStore::in_folder(folder.path()), "owner", DAY).await.unwrap();

    assert!(granted.is_some());
    assert!(!alive.is_symlink());
}

#[tokio::test]
async fn a_record_behind_a_link_is_not_read() {
    let (folder, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    put(&FileStore::in_folder(elsewhere.path()), "planted").await;
    let (planted, link) = (elsewhere.path().join("key.record"), folder.path().join("key.record"));
    symlink(planted, link).unwrap();

    assert_eq!(value(&FileStore::in_folder(folder.path())).await, None);
}

#[tokio::test]
async fn the_path_of_the_folder_may_lead_through_a_link() {
    let parent = tempfile::tempdir().unwrap();
    fs::create_dir(parent.path().join("folder")).unwrap();
    symlink("folder", parent.path().join("link")).unwrap();

    put(&FileStore::in_folder(parent.path().join("link")), "a-token").await;

    let store = FileStore::in_folder(parent.path().join("folder"));
    assert_eq!(value(&store).await.unwrap(), b"a-token");
}

#[tokio::test]
async fn with_a_key_the_file_does_not_contain_the_token() {
    let ims = MockIms::start().await;
    let folder = tempfile::tempdir().unwrap();
    let encrypted = || {
        TokenSource::builder(Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET))
            .environment(Environment::custom(ims.url()).unwrap())
            .store(FileStore::in_folder(folder.path()))
            .encrypt_with(StoreKey::new("key", [7; 32]))
            .build()
            .unwrap()
    };
    let first = encrypted();

    let token = secret(&first).await;
    first.shutdown().await.unwrap();

    assert!(!fs::read_to_string(file(folder.path(), ".record")).unwrap().contains(&token));
    assert_eq!(secret(&encrypted()).await, token);
    assert_eq!(ims.token_requests(), 1);
}

/// Obtains a token by a source of its own, and waits until the record is committed.
async fn token_after_commit(ims: &MockIms, folder: &Path) -> String {
    let tokens = source(ims.url(), folder);
    let token = secret(&tokens).await;
    assert!(tokens.status().store_error().is_none());
    tokens.shutdown().await.unwrap();
    token
}

#[tokio::test]
async fn a_damaged_cut_or_foreign_file_is_replaced() {
    let ims = MockIms::start().await;
    let folder = tempfile::tempdir().unwrap();
    token_after_commit(&ims, folder.path()).await;
    let record = file(folder.path(), ".record");
    let good = fs::read(&record).unwrap();
    let head = |number: &str| {
        let life = r#"{"starts_at":0,"ends_at":18446744073709551615}"#;
        format!("{{\"format\":2,\"fencing_token\":{number},\"life\":{life},\"len\":2}}\n{{}}")
    };
    let mut requests = 1;

    for bad in [
        Vec::new(),
        b"\n".to_vec(),
        b"\x00\xff\xfe\n".to_vec(),
        b"18446744073709551615 18446744073709551615\n{}".to_vec(),
        head("18446744073709551615").into_bytes(),
        head("4503599627370495").into_bytes(),
        good[..good.len() / 2].to_vec(),
        good[..good.len() - 1].to_vec(),
        vec![b'a'; 1 << 20],
    ] {
        for kind in ["record", "lease"] {
            fs::write(record.with_extension(kind), &bad).unwrap();
        }
        token_after_commit(&ims, folder.path()).await;
        requests += 1;
        assert_eq!(ims.token_requests(), requests, "{}", String::from_utf8_lossy(&bad));
        // The files have been replaced.
        token_after_commit(&ims, folder.path()).await;
        assert_eq!(ims.token_requests(), requests);
    }
}

#[tokio::test]
async fn files_of_another_format_are_ignored() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::in_folder(folder.path());
    put(&store, "a-token").await;
    let day_after = "4102444800000";
    fs::write(folder.path().join("old.token"), format!("1 {day_after}\nan-old-token")).unwrap();
    for kind in ["record", "lease"] {
        let path = folder.path().join(format!("key.{kind}"));
        edit_head(&path, |head| head["format"] = 1.into());
    }

    assert_eq!(value(&store).await, None);
    assert!(store.acquire("old", None).await.unwrap().record().is_none());
    put(&store, "a-new-token").await;
    assert_eq!(value(&store).await.unwrap(), b"a-new-token");
}

#[test]
fn a_file_that_is_ignored_is_reported_once() {
    let ims = MockIms::start_blocking();
    let folder = tempfile::tempdir().unwrap();
    token_of(start(ims.url(), folder.path()));
    let path = file(folder.path(), ".record");
    fs::write(&path, "damaged").unwrap();

    let output = output_of(start(ims.url(), folder.path()));

    let reports = output.lines().filter(|line| line.contains("store_file_ignored"));
    let reports: Vec<_> = reports.collect();
    assert_eq!(reports.len(), 1, "{output}");
    assert!(reports[0].contains(path.to_str().unwrap()) && reports[0].contains("WARN"), "{output}");
    assert!(!output_of(start(ims.url(), folder.path())).contains("store_file_ignored"));
}

#[tokio::test]
async fn a_file_that_others_may_write_is_not_read() {
    let ims = MockIms::start().await;
    let folder = tempfile::tempdir().unwrap();
    let token = token_after_commit(&ims, folder.path()).await;
    let path = file(folder.path(), ".record");

    set_mode(&path, 0o666);

    assert_ne!(token_after_commit(&ims, folder.path()).await, token);
    assert_eq!(mode(&path), 0o600);
}

#[tokio::test]
async fn a_file_of_another_user_is_not_read() {
    let ims = MockIms::start().await;
    let folder = tempfile::tempdir().unwrap();
    let token = token_after_commit(&ims, folder.path()).await;
    let path = file(folder.path(), ".record");

    if chown(&path, Some(STRANGER), None).is_err() {
        eprintln!("skipped: only root gives files away");
        return;
    }

    assert_ne!(token_after_commit(&ims, folder.path()).await, token);
}

fn make_pipe(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[tokio::test]
async fn a_named_pipe_in_place_of_the_record_is_replaced() {
    let ims = MockIms::start().await;
    let folder = tempfile::tempdir().unwrap();
    let token = token_after_commit(&ims, folder.path()).await;
    let path = file(folder.path(), ".record");
    fs::remove_file(&path).unwrap();
    make_pipe(&path);

    assert_ne!(token_after_commit(&ims, folder.path()).await, token);

    assert!(fs::metadata(&path).unwrap().is_file());
}

#[tokio::test]
async fn a_named_pipe_in_place_of_any_file_holds_up_no_call() {
    for name in FILES {
        let folder = tempfile::tempdir().unwrap();
        make_pipe(&folder.path().join(name));
        let store = FileStore::in_folder(folder.path());

        timeout(5 * SECOND, put(&store, "a-token")).await.unwrap();

        assert_eq!(value(&store).await.unwrap(), b"a-token", "{name}");
        assert_eq!(names(folder.path()), ["key.lease", "key.lock", "key.record"], "{name}");
        for name in names(folder.path()) {
            assert!(fs::metadata(folder.path().join(&name)).unwrap().is_file(), "{name}");
        }
    }
}

#[test]
fn the_user_shares_the_token_that_a_run_as_root_requested() {
    let Some(home) = Home::new() else { return };
    home.create_folder(USER);

    let token = home.token(0);

    assert_eq!(
        [home.token(USER), home.token(USER), home.token(0)],
        [(); 3].map(|()| token.clone())
    );
    assert_eq!(home.ims.token_requests(), 1);
}

#[test]
fn a_folder_that_root_creates_in_a_home_belongs_to_the_user() {
    let Some(home) = Home::new() else { return };

    let token = home.token(0);

    assert_eq!([home.token(USER), home.token(USER)], [token.clone(), token]);
    for folder in [home.home.path().join("caches"), home.folder()] {
        assert_eq!(fs::metadata(&folder).unwrap().uid(), USER);
        assert_eq!(mode(&folder), 0o700);
    }
}

#[test]
fn files_that_only_root_can_open_are_replaced() {
    let Some(home) = Home::new() else { return };
    home.create_folder(USER);
    let token = home.token(USER);
    for name in names(&home.folder()) {
        chown(home.folder().join(name), Some(0), Some(0)).unwrap();
    }

    let output = home.output(USER);

    assert_ne!(token_in(&output), token);
    assert_eq!(home.token(USER), token_in(&output));
    assert_eq!(output.matches("store_file_ignored").count(), 3, "{output}");
    for name in names(&home.folder()) {
        assert_eq!(fs::metadata(home.folder().join(name)).unwrap().uid(), USER);
    }
}

#[test]
fn a_folder_of_another_user_is_refused() {
    let Some(home) = Home::new() else { return };
    home.create_folder(STRANGER);
    set_mode(home.home.path(), 0o755);
    set_mode(&home.folder(), 0o755);

    let output = home.output(USER);

    let error = output.lines().find(|line| line.starts_with("error ")).unwrap();
    assert!(error.contains(home.folder().to_str().unwrap()), "{error}");
    assert!(error.contains("belongs to another user (uid 65533)"), "{error}");
    assert!(error.contains("choose a folder of this user"), "{error}");
    assert!(names(&home.folder()).is_empty());
}

#[tokio::test]
async fn a_folder_that_others_may_write_is_refused() {
    for mode in [0o770, 0o707, 0o1777] {
        let folder = tempfile::tempdir().unwrap();
        set_mode(folder.path(), mode);
        let store = FileStore::in_folder(folder.path());

        let errors = [
            lease(&store, "owner", SECOND).await.unwrap_err(),
            store.acquire("key", None).await.unwrap_err(),
            store.commit("key", "owner", None).await.unwrap_err(),
        ];

        for error in errors.map(|error| chain(&error)) {
            assert!(error.contains(folder.path().to_str().unwrap()), "{error}");
            assert!(
                error.contains("other users may write") && error.contains("chmod go-w"),
                "{error}"
            );
        }
        assert!(names(folder.path()).is_empty());
    }
}

#[tokio::test]
async fn a_folder_within_one_that_others_may_write_is_used() {
    let parent = tempfile::tempdir().unwrap();
    set_mode(parent.path(), 0o1777);
    let store = FileStore::in_folder(parent.path().join("inside"));

    put(&store, "a-token").await;

    assert_eq!(value(&store).await.unwrap(), b"a-token");
    assert_eq!(mode(store.folder()), 0o700);
}

#[tokio::test]
async fn a_folder_that_becomes_writable_for_others_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::in_folder(folder.path());
    put(&store, "a-token").await;

    set_mode(folder.path(), 0o777);

    store.acquire("key", None).await.unwrap_err();
}

/// As if the files had been written before the clock was set back, and the machine started again.
fn set_clock_back(head: &mut Value, by: Duration) {
    let by = u64::try_from(by.as_millis()).unwrap();
    let life =
        if head["life"].is_object() { &mut head["life"] } else { &mut head["holder"]["life"] };
    life["uptime"] = Value::Null;
    for time in ["starts_at", "ends_at"] {
        life[time] = (life[time].as_u64().unwrap() + by).into();
    }
}

#[tokio::test]
async fn a_clock_that_is_set_back_prolongs_no_record() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::in_folder(folder.path());
    put(&store, "a-token").await;

    edit_head(&folder.path().join("key.record"), |head| set_clock_back(head, 365 * DAY));

    assert_eq!(value(&store).await, None);
    put(&store, "a-new-token").await;
    assert_eq!(value(&store).await.unwrap(), b"a-new-token");
}

#[tokio::test]
async fn a_clock_that_is_set_back_prolongs_no_lease() {
    let folder = tempfile::tempdir().unwrap();
    let [hung, another] = [(); 2].map(|()| FileStore::in_folder(folder.path()));
    lease(&hung, "hung", 60 * SECOND).await.unwrap().unwrap();
    assert!(lease(&another, "another", SECOND).await.unwrap().is_none());

    edit_head(&folder.path().join("key.lease"), |head| set_clock_back(head, DAY));

    assert!(lease(&another, "another", SECOND).await.unwrap().is_some());
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn the_age_counts_although_the_wall_clock_was_set_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::in_folder(folder.path());
    put(&store, "a-token").await;
    let path = folder.path().join("key.record");
    let head = fs::read_to_string(&path).unwrap();
    let age_by_uptime = |ago: u64, ttl: u64| {
        fs::write(&path, &head).unwrap();
        edit_head(&path, |head| {
            let life = &mut head["life"];
            life["ends_at"] = (life["starts_at"].as_u64().unwrap() + ttl).into();
            let uptime = life["uptime"]["millis"].as_u64().unwrap();
            life["uptime"]["millis"] = uptime.saturating_sub(ago).into();
        });
    };

    // Ten seconds old by the clock that nobody can set, new by the wall clock.
    age_by_uptime(10_000, 60_000);
    let acquired = store.acquire("key", None).await.unwrap();
    let left = acquired.record().unwrap().ttl().unwrap();
    assert!(left <= 50 * SECOND && left > 30 * SECOND, "{left:?}");

    age_by_uptime(10_000, 9_000);
    assert_eq!(value(&store).await, None);
}

#[tokio::test]
async fn every_error_names_the_path_and_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("a-file"), "").unwrap();
    for name in ["locked.lock", "leased.lease", "kept.record"] {
        fs::create_dir_all(path.join("used").join(name)).unwrap();
    }
    let (inside, used) = (FileStore::in_folder(path.join("a-file")), path.join("used"));
    let store = FileStore::in_folder(&used);
    let request = LeaseRequest::new("owner", SECOND);
    let record = StoredRecord::new(1, "a-token");

    for (named, remedy, error) in [
        (
            path.join("a-file"),
            "choose a folder",
            inside.acquire("key", Some(&request)).await.unwrap_err(),
        ),
        (path.join("a-file"), "choose a folder", inside.acquire("key", None).await.unwrap_err()),
        (
            used.join("locked.lock"),
            "remove the file",
            store.acquire("locked", Some(&request)).await.unwrap_err(),
        ),
        (
            used.join("leased.lease"),
            "remove the file",
            store.acquire("leased", Some(&request)).await.unwrap_err(),
        ),
        (
            used.join("kept.record"),
            "remove the file",
            store.commit("kept", "owner", Some(&record)).await.unwrap_err(),
        ),
        (
            used.join("../outside"),
            "letters and digits",
            store.acquire("../outside", None).await.unwrap_err(),
        ),
        (
            used.join("../owner"),
            "letters and digits",
            store.commit("key", "../owner", None).await.unwrap_err(),
        ),
    ] {
        let error = chain(&error);
        assert!(error.contains(named.to_str().unwrap()), "{named:?}: {error}");
        assert!(error.contains(remedy), "{error}");
    }
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_fails_no_request() {
    let ims = MockIms::start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let tokens = source(ims.url(), &file.path().join("inside-a-file"));

    secret(&tokens).await;

    assert!(tokens.status().store_error().is_some());
}

#[tokio::test]
async fn a_name_cannot_lead_out_of_the_folder() {
    let parent = tempfile::tempdir().unwrap();
    let store = FileStore::in_folder(parent.path().join("inside"));
    let request = LeaseRequest::new("../owner", SECOND);

    store.acquire("../outside", None).await.unwrap_err();
    store.acquire("key", Some(&request)).await.unwrap_err();
    store.commit("key", "../owner", None).await.unwrap_err();

    assert!(names(parent.path()).iter().all(|name| name == "inside"));
}

#[tokio::test]
async fn reading_creates_no_folder() {
    let parent = tempfile::tempdir().unwrap();

    let found = value(&FileStore::in_folder(parent.path().join("folder"))).await;

    assert_eq!((found, names(parent.path()).len()), (None, 0));
}

/// Prints the default folder, when it is started by the test below.
#[test]
fn prints_the_default_folder() {
    if env::var_os("PRINT_FOLDER").is_some() {
        match FileStore::new() {
            Ok(store) => println!("\nfolder {}", store.folder().display()),
            Err(error) => println!("\nfolder {error}"),
        }
    }
}

#[cfg(not(target_os = "macos"))]
#[test]
fn the_default_folder_follows_the_platform() {
    let folder = |variables: &[(&str, &str)]| {
        let output = Command::new(env::current_exe().unwrap())
            .args(["--exact", "prints_the_default_folder", "--nocapture"])
            .env_remove("XDG_CACHE_HOME")
            .env_remove("HOME")
            .env("PRINT_FOLDER", "1")
            .envs(variables.iter().copied())
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().find_map(|line| line.strip_prefix("folder ").map(str::to_owned)).unwrap()
    };

    assert_eq!(folder(&[("HOME", "/home/a")]), "/home/a/.cache/tower-adobe-auth");
    let both = [("HOME", "/home/a"), ("XDG_CACHE_HOME", "/caches")];
    assert_eq!(folder(&both), "/caches/tower-adobe-auth");
    let relative = [("HOME", "/home/a"), ("XDG_CACHE_HOME", "caches")];
    assert_eq!(folder(&relative), "/home/a/.cache/tower-adobe-auth");
    assert!(folder(&[]).contains("does not say"));
}
