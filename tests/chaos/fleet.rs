//! [`Fleet`]: the worker processes, and what becomes of their requests.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{
    ACQUIRE_TIMEOUT,
    adobe::{Adobe, Tenant},
    journal::Journal,
};

/// A request for which a usable token is cached takes less than this, on a machine however busy. It may
/// wait two seconds for the replacement of a suspect token, and after a 401 for its replay until its
/// deadline.
const MAX_WAIT: Duration = Duration::from_secs(10 + ACQUIRE_TIMEOUT.as_secs());

/// How long after it was continued the times of a process say nothing.
const AFTER_STOP: Duration = Duration::from_secs(5);

/// The URLs that a worker needs.
pub(crate) struct Urls {
    pub(crate) ims: String,
    pub(crate) api: String,
    /// By seat.
    pub(crate) stores: Vec<String>,
}

pub(crate) struct Fleet {
    urls: Urls,
    adobe: Arc<Adobe>,
    journal: Arc<Journal>,
    seats: Vec<Seat>,
}

struct Seat {
    file: PathBuf,
    process: Mutex<Option<(Child, ChildStdin)>>,
    processes: AtomicU64,
    results: Arc<Mutex<Results>>,
}

/// The results of the process in a seat.
#[derive(Default)]
struct Results {
    requests: u64,
    failures: u64,
    /// When the last request failed or was refused, or the store was ill.
    last_trouble: Option<Instant>,
}

impl Fleet {
    pub(crate) fn new(urls: Urls, adobe: Arc<Adobe>, journal: Arc<Journal>, folder: &Path) -> Self {
        let seat = |number| Seat {
            file: folder.join(format!("credentials-{number}.json")),
            process: Mutex::default(),
            processes: AtomicU64::new(0),
            results: Arc::default(),
        };
        Self { urls, adobe, journal, seats: (0..super::SEATS.len()).map(seat).collect() }
    }

    pub(crate) fn start(&self, number: usize) {
        let seat = &self.seats[number];
        let id = format!("{number}.{}", seat.processes.fetch_add(1, Ordering::Relaxed));
        let mut command = Command::new(env::current_exe().unwrap());
        command
            .args(["--exact", "worker", "--nocapture", "--test-threads", "1"])
            .env("CHAOS_WORKER", &id)
            .env("CHAOS_FILE", &seat.file)
            .env("CHAOS_IMS", &self.urls.ims)
            .env("CHAOS_API", &self.urls.api)
            .env("CHAOS_STORE", &self.urls.stores[number])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        if number % 3 == 0 {
            command.env("CHAOS_THREADS", "2");
        }
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let input = child.stdin.take().unwrap();
        *seat.process.lock().unwrap() = Some((child, input));
        let (adobe, journal, results) =
            (self.adobe.clone(), self.journal.clone(), seat.results.clone());
        thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                // A process that is killed leaves half a line.
                let line = line.strip_prefix("result ").and_then(|line| line.strip_suffix(" end"));
                if let Some(line) = line {
                    read(&id, number, line, &adobe, &journal, &results);
                }
            }
        });
    }

    /// Kills the process of a seat with SIGKILL.
    pub(crate) fn kill(&self, number: usize) {
        let process = self.seats[number].process.lock().unwrap().take();
        if let Some((mut child, _)) = process {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Stops the process of a seat for this long.
    pub(crate) fn freeze(&self, number: usize, time: Duration) {
        self.adobe.disturb(number, Instant::now() + time + Duration::from_secs(3_600));
        self.signal(number, "-STOP");
        thread::sleep(time);
        self.signal(number, "-CONT");
        self.adobe.disturb(number, Instant::now() + AFTER_STOP);
    }

    fn signal(&self, number: usize, signal: &str) {
        if let Some((child, _)) = &*self.seats[number].process.lock().unwrap() {
            let id = child.id().to_string();
            assert!(Command::new("kill").args([signal, &id]).status().unwrap().success());
        }
    }

    /// Writes the credentials file of a seat: as a whole, or in two halves with a pause between them.
    pub(crate) fn write_file(&self, number: usize, tenant: Tenant, pause: Option<Duration>) {
        let (id, secret) = (tenant.client_id(), self.adobe.secret(tenant));
        let text =
            format!(r#"{{"CLIENT_ID":"{id}","CLIENT_SECRETS":["{secret}"],"SCOPES":["openid"]}}"#);
        let file = &self.seats[number].file;
        match pause {
            Some(pause) => {
                fs::write(file, &text[..text.len() / 2]).unwrap();
                thread::sleep(pause);
                fs::write(file, text).unwrap();
            }
            None => {
                let new = file.with_extension("new");
                fs::write(&new, text).unwrap();
                fs::rename(new, file).unwrap();
            }
        }
    }

    /// Returns whether every process is well, and has been for this long.
    pub(crate) fn is_well_for(&self, time: Duration) -> bool {
        self.seats.iter().all(|seat| {
            let results = seat.results.lock().unwrap();
            results.last_trouble.is_none_or(|last| last.elapsed() > time)
        })
    }

    /// Requests, and how many of them failed.
    pub(crate) fn counts(&self) -> (u64, u64) {
        self.seats.iter().fold((0, 0), |(requests, failures), seat| {
            let results = seat.results.lock().unwrap();
            (requests + results.requests, failures + results.failures)
        })
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        (0..self.seats.len()).for_each(|number| self.kill(number));
    }
}

/// Reads a line of a worker: `outcome milliseconds before after usable store text`.
fn read(
    id: &str,
    number: usize,
    line: &str,
    adobe: &Adobe,
    journal: &Journal,
    results: &Mutex<Results>,
) {
    let fields: Vec<_> = line.splitn(7, ' ').collect();
    let [outcome, millis, before, after, usable, store, text] = fields[..] else {
        panic!("a line of a worker: {line}");
    };
    let is_usable = usable == "true";
    let is_good = outcome == "status-200";
    for token in [before, after] {
        adobe.check_order(id, "cached", token);
    }
    match outcome {
        "status-200" | "status-401" => {}
        "failed" if !is_usable => {}
        _ => journal.violation(format!("{id}: {line}")),
    }
    let took = Duration::from_millis(millis.parse().unwrap());
    if is_usable && took > MAX_WAIT && !adobe.is_disturbed(number) {
        journal.violation(format!("{id} waited {took:?} although a usable token was cached"));
    }
    if !is_good {
        journal.note(format!("{id}: {outcome} after {took:?}, {before} {after} {text}"));
    }
    let mut results = results.lock().unwrap();
    results.requests += 1;
    results.failures += u64::from(outcome == "failed");
    if !is_good || store != "well" {
        results.last_trouble = Some(Instant::now());
    }
}
