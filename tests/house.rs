//! The house: which room may import from which, and how large a file may grow.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Each room, and the rooms that it may import from.
const ARROWS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("clock", &[]),
    ("token", &["clock", "error", "telemetry"]),
    ("credentials", &["error"]),
    ("ims", &["clock", "credentials", "error", "token"]),
    ("telemetry", &["error"]),
    ("store", &["clock", "credentials", "error", "telemetry", "token"]),
    ("source", &["clock", "credentials", "error", "ims", "store", "telemetry", "token"]),
    ("middleware", &["error", "source", "telemetry", "token"]),
    ("reqwest_chain", &["error", "middleware", "telemetry"]),
    ("mock", &["store"]),
];

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// The lines of a file that are neither documentation nor unit tests, with imports on one line.
fn code(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]").next().unwrap();
    text.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join(" ")
}

/// The rooms that a piece of code names after `crate::`, alone or in braces.
fn imports(code: &str) -> Vec<String> {
    let mut rooms = Vec::new();
    for rest in code.split("crate::").skip(1) {
        match rest.strip_prefix('{') {
            None => rooms.push(rest),
            Some(list) => {
                let (mut depth, mut start) = (0, 0);
                for (at, sign) in list.char_indices() {
                    match sign {
                        '{' => depth += 1,
                        '}' if depth == 0 => break,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = at + 1,
                        ':' if depth == 0 && start < at => {
                            rooms.push(&list[start..]);
                            start = list.len();
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    let name = |text: &str| {
        text.trim().chars().take_while(|sign| sign.is_alphanumeric() || *sign == '_').collect()
    };
    rooms.into_iter().map(name).filter(|room: &String| !room.is_empty()).collect()
}

#[test]
fn imports_go_one_way() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut seen = 0;
    for path in files(&source) {
        let inside = path.strip_prefix(&source).unwrap().with_extension("");
        let room = inside.components().next().unwrap().as_os_str().to_str().unwrap().to_owned();
        if room == "lib" {
            continue;
        }
        let (_, allowed) = ARROWS.iter().find(|(name, _)| *name == room).unwrap_or_else(|| {
            panic!("{} is a new room: say in ARROWS what it may import from", path.display())
        });
        for import in imports(&code(&path)) {
            // An item re-exported at the root says nothing about its room.
            assert!(
                import == room || allowed.contains(&import.as_str()),
                "{} imports from `{import}`, which `{room}` must not",
                path.display(),
            );
            seen += 1;
        }
    }
    assert!(seen > 20, "the imports were not found");
}

#[test]
fn reads_imports_alone_and_in_braces() {
    assert_eq!(imports("use crate::error::TokenError;"), ["error"]);
    let nested = "use crate::{ clock::{Clock, Moment}, error::{ErrorKind, TokenError}, token::A };";
    assert_eq!(imports(nested), ["clock", "error", "token"]);
    assert_eq!(imports("let x = crate::ims::ImsClient::builder(c);"), ["ims"]);
}

#[test]
fn a_file_stays_under_about_400_lines() {
    for path in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 420, "{} has {lines} lines: is it still one subject?", path.display());
    }
}

#[test]
fn pure_files_read_no_clock_lock_nothing_spawn_nothing_and_log_nothing() {
    let pure = [
        "source/state.rs",
        "source/schedule.rs",
        "source/backoff.rs",
        "source/refusals.rs",
        "middleware/hosts.rs",
        "middleware/place.rs",
        "ims/request.rs",
        "ims/response.rs",
        "ims/claims.rs",
        "ims/lifetime.rs",
        "ims/failure.rs",
    ];
    for file in pure {
        let code = code(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(file));
        for word in ["::now()", "Mutex", "spawn", "tracing::", "warn!(", "debug!(", "info!("] {
            assert!(!code.contains(word), "{file} is pure, but says `{word}`");
        }
    }
}

/// The tests that a page names, as `file::test`, are there.
fn names_tests(page: &str, least: usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = fs::read_to_string(root.join(page)).unwrap();
    let named = text.split('`').skip(1).step_by(2).filter_map(|code| code.split_once("::"));
    let named: Vec<_> =
        named.filter(|(file, _)| root.join("tests").join(format!("{file}.rs")).exists()).collect();
    assert!(named.len() >= least, "{page} names {} tests", named.len());
    for (file, test) in named {
        let code = fs::read_to_string(root.join("tests").join(format!("{file}.rs"))).unwrap();
        let start = code
            .find(&format!("fn {test}()"))
            .unwrap_or_else(|| panic!("{page} names {file}::{test}, which is not there"));
        let before = code[..start].trim_end().trim_end_matches("async").trim_end();
        assert!(before.ends_with(']'), "{file}::{test} is no test");
    }
}

#[test]
fn the_readme_names_tests_that_are_there() {
    names_tests("README.md", 20);
}
