//! A token in a file: for the processes of one host.

#![cfg(all(feature = "file-store", feature = "reqwest", unix))]
#![allow(clippy::unwrap_used)]

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use futures_util::FutureExt;
use tokio::time::{sleep, timeout};
use tower_adobe_auth::{
    Credentials, Environment, FileStore, StoreKey, StoredToken, TokenSource, TokenStore,
    mock::{Answer, MockIms, check_token_store},
};

fn source(ims: &str, folder: &Path) -> TokenSource {
    TokenSource::builder(Credentials::new(MockIms::CLIENT_ID, MockIms::CLIENT_SECRET))
        .environment(Environment::custom(ims).unwrap())
        .store(FileStore::in_folder(folder))
        // Many processes share the processors of this machine.
        .store_timeout(Duration::from_secs(10))
        .build()
        .unwrap()
}

async fn secret(tokens: &TokenSource) -> String {
    tokens.token().await.unwrap().expose_secret().to_owned()
}

/// The one file whose name ends so.
fn file(folder: &Path, end: &str) -> PathBuf {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found = entries.filter(|path| path.to_str().unwrap().ends_with(end));
    let file = found.next().unwrap();
    assert!(found.next().is_none());
    file
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// What a process of its own does: this binary, started by [`start`].
#[test]
fn worker() {
    let Ok(ims) = env::var("WORKER_IMS") else { return };
    let folder = PathBuf::from(env::var_os("WORKER_FOLDER").unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let token = runtime.block_on(async { secret(&source(&ims, &folder)).await });
    println!("\ntoken {token}");
}

/// A process that gets itself a token and prints it.
fn start(ims: &str, folder: &Path) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "worker", "--nocapture", "--test-threads", "1"])
        .envs([("WORKER_IMS", ims.as_ref()), ("WORKER_FOLDER", folder.as_os_str())])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn token_of(child: Child) -> String {
    let mut child = child;
    // To the end: a pipe that breaks is an error for who writes.
    let text = io::read_to_string(child.stdout.take().unwrap()).unwrap();
    child.wait().unwrap();
    let token = text.lines().find_map(|line| line.strip_prefix("token ").map(str::to_owned));
    token.expect("the process printed a token")
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what} did not come about");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn does_what_a_store_has_to_do() {
    let folder = tempfile::tempdir().unwrap();
    check_token_store(|| FileStore::in_folder(folder.path())).await.unwrap();
}

#[test]
fn twenty_processes_that_start_at_once_ask_once() {
    let ims = MockIms::start_blocking();
    ims.set_delay(Duration::from_millis(300));
    let folder = tempfile::tempdir().unwrap();

    let fleet: Vec<_> = (0..20).map(|_| start(ims.url(), folder.path())).collect();
    let tokens: Vec<_> = fleet.into_iter().map(token_of).collect();

    assert!(tokens.iter().all(|token| *token == tokens[0]));
    assert_eq!(ims.token_requests(), 1);
}

#[test]
fn when_the_process_that_asks_is_killed_another_takes_over_at_once() {
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
    // The lease is of fifteen.
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_process_hears_of_the_token_that_another_one_saved() {
    let folder = tempfile::tempdir().unwrap();
    let ims = MockIms::start().await;
    let [one, another] = [(); 2].map(|()| source(ims.url(), folder.path()));
    assert_eq!(secret(&one).await, secret(&another).await);

    let new = one.refresh().await.unwrap();

    let heard = async {
        while another.try_token().unwrap().expose_secret() != new.expose_secret() {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(Duration::from_secs(60), heard).await.unwrap();
    assert_eq!(ims.token_requests(), 2);
}

#[tokio::test]
async fn only_the_user_can_read_the_files_and_none_is_left_behind() {
    let ims = MockIms::start().await;
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("made").join("for-us");

    let token = secret(&source(ims.url(), &folder)).await;

    assert_eq!(mode(&folder), 0o700);
    let names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    for path in &names {
        assert_eq!(mode(path), 0o600, "{path:?}");
    }
    let text = fs::read_to_string(file(&folder, ".token")).unwrap();
    assert!(text.contains(&token));
}

#[tokio::test]
async fn a_shutdown_in_mid_flight_leaves_no_lock_behind() {
    let ims = MockIms::start().await;
    ims.respond_next([Answer::hang()]);
    let folder = tempfile::tempdir().unwrap();
    let leader = source(ims.url(), folder.path());
    timeout(Duration::from_millis(500), leader.token()).await.unwrap_err();

    leader.shutdown().await.unwrap();

    let names: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    let start = Instant::now();
    secret(&source(ims.url(), folder.path())).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_nobody_waited_for_is_not_held() {
    let folder = tempfile::tempdir().unwrap();
    let (store, key, long) = (FileStore::in_folder(folder.path()), "a", Duration::from_secs(60));
    // Its first poll has begun the work.
    assert!(store.lease(key, "one", long, 0).now_or_never().is_none());

    let start = Instant::now();
    let another = FileStore::in_folder(folder.path());
    while another.lease(key, "two", long, 0).await.unwrap().is_none() {
        assert!(start.elapsed() < Duration::from_secs(10), "it is held");
        sleep(Duration::from_millis(5)).await;
    }
    // The one before was granted, or came too late for that.
    assert!(store.lease(key, "three", long, 0).await.unwrap().is_none());
}

/// Saves one token after the other until it is killed: this binary, started by the test below.
#[test]
fn saver() {
    let Some(folder) = env::var_os("SAVER_FOLDER") else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = FileStore::in_folder(folder);
        let day = Duration::from_secs(86_400);
        for above in 0.. {
            let lease = store.lease("key", "owner", day, above).await.unwrap().unwrap();
            let token = StoredToken::new(lease.version(), "a-token").with_ttl(day);
            let _ = store.save("key", &token).await.unwrap();
            store.release("key", &lease).await.unwrap();
        }
    });
}

#[tokio::test]
async fn whatever_processes_that_are_killed_leave_behind_goes_with_the_next_token() {
    let folder = tempfile::tempdir().unwrap();
    for round in 0..40 {
        let mut saver = Command::new(env::current_exe().unwrap())
            .args(["--exact", "saver"])
            .env("SAVER_FOLDER", folder.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        until("the first save", || folder.path().join("key.token").exists());
        sleep(Duration::from_micros(10_000 + 371 * round)).await;
        // SIGKILL.
        saver.kill().unwrap();
        saver.wait().unwrap();
    }

    let (store, day) = (FileStore::in_folder(folder.path()), Duration::from_secs(86_400));
    let lease = store.lease("key", "last", day, 0).await.unwrap().unwrap();
    let token = StoredToken::new(lease.version(), "the-last-token").with_ttl(day);
    let _ = store.save("key", &token).await.unwrap();
    store.release("key", &lease).await.unwrap();

    let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["key.lease", "key.lock", "key.token"]);
    assert_eq!(store.load("key").await.unwrap().unwrap().value(), b"the-last-token");
}

#[tokio::test]
async fn a_lease_that_cannot_be_written_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    // As on a full disk: the new file is no good.
    fs::create_dir(folder.path().join("key.lease")).unwrap();
    let store = FileStore::in_folder(folder.path());

    for owner in ["one", "two", "three"] {
        store.lease("key", owner, Duration::from_secs(1), 0).await.unwrap_err();
    }

    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "the folder above, and the lock");
}

#[tokio::test]
async fn a_link_that_lies_in_the_folder_leads_no_token_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::NamedTempFile::new().unwrap();
    for name in ["key.token", "key.token.new"] {
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join(name)).unwrap();
    }
    let store = FileStore::in_folder(folder.path());

    let _ = store.save("key", &StoredToken::new(1, "a-token")).await.unwrap();

    assert_eq!(store.load("key").await.unwrap().unwrap().value(), b"a-token");
    assert_eq!(fs::read(elsewhere.path()).unwrap(), b"");
}

#[tokio::test]
async fn with_a_key_the_file_does_not_hold_the_token() {
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

    let token = secret(&encrypted()).await;

    assert!(!fs::read_to_string(file(folder.path(), ".token")).unwrap().contains(&token));
    assert_eq!(secret(&encrypted()).await, token);
    assert_eq!(ims.token_requests(), 1);
}

#[tokio::test]
async fn a_corrupt_cut_or_foreign_file_is_a_miss() {
    let ims = MockIms::start().await;
    let folder = tempfile::tempdir().unwrap();
    secret(&source(ims.url(), folder.path())).await;
    let token = file(folder.path(), ".token");
    let good = fs::read(&token).unwrap();
    let mut requests = 1;

    for bad in [
        Vec::new(),
        b"\n".to_vec(),
        b"\x00\xff\xfe\n".to_vec(),
        b"18446744073709551615 18446744073709551615\n{}".to_vec(),
        b"4503599627370495 18446744073709551615\n{}".to_vec(),
        good[..good.len() / 2].to_vec(),
        vec![b'a'; 1 << 20],
    ] {
        for kind in ["token", "lease"] {
            fs::write(token.with_extension(kind), &bad).unwrap();
        }
        secret(&source(ims.url(), folder.path())).await;
        requests += 1;
        assert_eq!(ims.token_requests(), requests, "{}", String::from_utf8_lossy(&bad));
        // Mended.
        secret(&source(ims.url(), folder.path())).await;
        assert_eq!(ims.token_requests(), requests);
    }
}

#[tokio::test]
async fn a_file_that_others_may_write_is_not_read() {
    let ims = MockIms::start().await;
    let folder = tempfile::tempdir().unwrap();
    let token = secret(&source(ims.url(), folder.path())).await;
    let path = file(folder.path(), ".token");

    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();

    assert_ne!(secret(&source(ims.url(), folder.path())).await, token);
    assert_eq!(mode(&path), 0o600);
}

#[tokio::test]
async fn a_file_of_another_user_is_not_read() {
    let ims = MockIms::start().await;
    let folder = tempfile::tempdir().unwrap();
    let token = secret(&source(ims.url(), folder.path())).await;
    let path = file(folder.path(), ".token");

    if std::os::unix::fs::chown(&path, Some(65_534), None).is_err() {
        eprintln!("skipped: only root gives files away");
        return;
    }

    assert_ne!(secret(&source(ims.url(), folder.path())).await, token);
}

#[tokio::test]
async fn a_named_pipe_in_place_of_a_file_holds_nobody_up() {
    let ims = MockIms::start().await;
    let folder = tempfile::tempdir().unwrap();
    let token = secret(&source(ims.url(), folder.path())).await;
    let path = file(folder.path(), ".token");
    fs::remove_file(&path).unwrap();
    assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());

    let tokens = source(ims.url(), folder.path());

    assert_ne!(secret(&tokens).await, token);
    assert!(tokens.status().store_error().is_none());
    assert!(fs::metadata(&path).unwrap().is_file());
}

#[tokio::test]
async fn a_folder_that_cannot_be_used_costs_no_token() {
    let ims = MockIms::start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let tokens = source(ims.url(), &file.path().join("inside-a-file"));

    secret(&tokens).await;

    assert!(tokens.status().store_error().is_some());
}

#[tokio::test]
async fn a_name_cannot_lead_out_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let store = FileStore::in_folder(folder.path().join("inside"));

    store.load("../outside").await.unwrap_err();
    store.lease("key", "../owner", Duration::from_secs(1), 0).await.unwrap_err();
}

/// Prints where the store is by default, when it is started by the test below.
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
fn the_default_folder_is_that_of_the_platform() {
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
