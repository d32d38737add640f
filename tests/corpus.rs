//! The fuzz targets over their seed corpus, as ordinary tests.

#![allow(clippy::unwrap_used)]

#[path = "../fuzz/src/targets.rs"]
#[allow(unreachable_pub, reason = "they are public where they are fuzzed")]
mod targets;

use std::{fs, path::Path};

/// Runs each file of the target's corpus, and each of its beginnings.
fn run(target: &str, function: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let input = fs::read(&path).unwrap();
        println!("{}", path.display());
        function(&input);
        for cut in (0..input.len()).step_by(1 + input.len() / 16) {
            function(&input[..cut]);
        }
        files += 1;
    }
    assert!(files >= 10, "{target} has {files} files");
}

#[test]
fn token_response() {
    run("token_response", targets::token_response);
}

#[test]
fn console_json() {
    run("console_json", targets::console_json);
}

#[test]
fn retry_after() {
    run("retry_after", targets::retry_after);
}

#[test]
fn allowed_hosts() {
    run("allowed_hosts", targets::allowed_hosts);
}

#[test]
fn expiry() {
    run("expiry", targets::expiry);
}
