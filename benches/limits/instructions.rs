//! The instructions of a call, counted by callgrind.
//!
//! The bench runs itself under valgrind twice, the second time with twice as many calls: the
//! difference is the cost of the calls. The cost of making the requests is subtracted.

use std::{
    env,
    hint::black_box,
    io,
    process::{self, Command},
};

use http::Uri;

use crate::{
    subjects::{FIREFLY, Stack, constant, drive, ours, quiet_runtime, request, tokens},
    table::{head, row},
};

const CALLS: u64 = 2_000;
/// More than this many times the instructions of the constant header fail the bench.
const LIMIT: f64 = 1.4;
/// The part by which two equal runs may differ, because the number of ticks in a run varies and
/// each costs one reading of the precise clocks.
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
        _ => panic!("unknown subject: {subject}"),
    }
    // Without destructors, whose instructions are not those of a call.
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

/// Returns whether the ratio is within its limit; also `true` where there is no valgrind.
pub(crate) fn run() -> bool {
    head("instructions of a call, this layer / constant header");
    let name = "under callgrind";
    match Command::new("valgrind").arg("--version").output() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            row(name, "skipped: no valgrind");
            return true;
        }
        found => found.unwrap(),
    };
    let requests = per_call("requests");
    let (ours, theirs) = (per_call("ours") - requests, per_call("constant") - requests);
    let ratio = ours / theirs;
    row(name, &format!("{ours:.1} / {theirs:.1} = {ratio:.3} ×"));
    ratio <= LIMIT
}
