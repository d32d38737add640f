//! How many instructions a call takes, counted by callgrind.
//!
//! The bench runs itself under valgrind twice, with so many calls and with twice as many: the
//! difference is what the calls took. What it took to make the requests is subtracted.

use std::{
    env,
    hint::black_box,
    io,
    process::{self, Command},
};

use http::Uri;

use crate::{
    subjects::{FIREFLY, Stack, constant, drive, ours, quiet_runtime, request, tokens},
    table::{head, note, row},
};

const CALLS: u64 = 2_000;
const LIMIT: f64 = 1.5;
/// The part by which two runs of the same may differ: the clocks are read once a tick, and a tick
/// comes when it comes.
const REPEATS: f64 = 0.001;

/// The hidden mode: makes `calls` calls of `subject`, and nothing else.
pub(crate) fn count(subject: &str, calls: &str) {
    let uri: Uri = FIREFLY.parse().unwrap();
    let calls = calls.parse().unwrap();
    match subject {
        "requests" => (0..calls).for_each(|_| drop(black_box(request(&uri)))),
        "constant" => call(constant(), &uri, calls),
        "ours" => {
            let runtime = quiet_runtime();
            call(ours(&tokens(&runtime)), &uri, calls);
        }
        _ => panic!("nothing to count is called {subject}"),
    }
    // What is left to be taken down is not what is counted.
    process::exit(0);
}

fn call(mut service: impl Stack, uri: &Uri, calls: u64) {
    for _ in 0..calls {
        assert!(black_box(drive(service.call(black_box(request(uri))))).is_ok());
    }
}

/// The instructions of one run of this bench in its hidden mode.
fn collected(subject: &str, calls: u64) -> f64 {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(env::current_exe().unwrap())
        .args(["count", subject, &calls.to_string()])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "callgrind failed: {text}");
    let line = text.lines().find_map(|line| line.split_once("Collected :")).unwrap();
    line.1.trim().parse().unwrap()
}

/// The instructions of one call.
fn per_call(subject: &str) -> f64 {
    let twice = |calls| {
        let (first, second) = (collected(subject, calls), collected(subject, calls));
        let apart = (first - second).abs() / first;
        assert!(apart <= REPEATS, "{subject} does not repeat: {first}, {second}");
        first.min(second)
    };
    (twice(2 * CALLS) - twice(CALLS)) / CALLS as f64
}

/// Whether the row holds; it does where there is no valgrind to say otherwise.
pub(crate) fn run() -> bool {
    head("instructions per call, ours / theirs");
    let name = "constant header, under callgrind";
    match Command::new("valgrind").arg("--version").output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            note(name, "skipped: no valgrind");
            return true;
        }
        found => found.unwrap(),
    };
    let requests = per_call("requests");
    let (ours, theirs) = (per_call("ours") - requests, per_call("constant") - requests);
    let ratio = ours / theirs;
    row(
        name,
        &format!("{ours:.1} / {theirs:.1} = {ratio:.2} ×"),
        &format!("at most {LIMIT} ×"),
        ratio <= LIMIT,
    );
    ratio <= LIMIT
}
