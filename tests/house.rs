//! The house: which room may import from which, and how large a file may grow.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// Each room, and the rooms that it may import from.
const ARROWS: &[(&str, &[&str])] = &[
    ("error", &[]),
    ("clock", &[]),
    ("foreign", &[]),
    ("credentials", &["error"]),
    ("ims", &["clock", "credentials", "error"]),
    ("telemetry", &["error", "foreign"]),
    ("store", &["clock", "error", "foreign"]),
    ("source", &["clock", "credentials", "error", "foreign", "ims", "telemetry"]),
    ("fleet", &["clock", "credentials", "error", "foreign", "ims", "source", "store", "telemetry"]),
    ("middleware", &["clock", "error", "foreign", "source", "telemetry"]),
    ("reqwest_chain", &["error", "middleware", "telemetry"]),
    ("mock", &["store"]),
];

/// Files of one room that may import each other: a type and its builder.
const PAIRS: &[[&str; 2]] = &[["builder", "mock_ims"], ["builder", "token_source"]];

/// Rooms whose files still import each other in circles.
const ROOMS_WITH_CIRCLES: &[&str] = &["credentials", "ims", "mock"];

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

/// The names that follow `path` in a piece of code, alone or in braces: after `crate::` the rooms.
fn imports(code: &str, path: &str) -> Vec<String> {
    let mut found = Vec::new();
    for rest in code.split(path).skip(1) {
        match rest.strip_prefix('{') {
            None => found.push(rest),
            Some(list) => {
                let (mut depth, mut start) = (0, 0);
                for (at, sign) in list.char_indices() {
                    match sign {
                        '{' => depth += 1,
                        ',' | '}' if depth == 0 => {
                            // A module alone, whose name no path follows.
                            if start < at {
                                found.push(&list[start..]);
                            }
                            if sign == '}' {
                                break;
                            }
                            start = at + 1;
                        }
                        '}' => depth -= 1,
                        ':' if depth == 0 && start < at => {
                            found.push(&list[start..]);
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
    found.into_iter().map(name).filter(|name: &String| !name.is_empty()).collect()
}

/// For each file of a room, the other files of the room that it imports from. `mod.rs` stands above
/// all of them, and a folder counts as one file.
fn imports_inside(room: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut graph: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for path in files(room) {
        let inside = path.strip_prefix(room).unwrap().with_extension("");
        let file = inside.components().next().unwrap().as_os_str().to_str().unwrap().to_owned();
        if inside.components().count() == 1 && file != "mod" {
            let imported = imports(&code(&path), "use super::").into_iter();
            graph.entry(file).or_default().extend(imported);
        } else if file != "mod" {
            let name = room.file_name().unwrap().to_str().unwrap();
            let imported = imports(&code(&path), &format!("crate::{name}::")).into_iter();
            graph.entry(file).or_default().extend(imported);
        }
    }
    let known: BTreeSet<_> = graph.keys().cloned().collect();
    for (file, imported) in &mut graph {
        imported.retain(|name| {
            let pair = PAIRS.iter().any(|pair| pair.contains(&&**file) && pair.contains(&&**name));
            known.contains(name) && name != file && !pair
        });
    }
    graph
}

/// Removes files that import from no other until none is left; what stays is in a circle.
fn circles(mut graph: BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    while let Some(leaf) =
        graph.iter().find(|(_, all)| all.is_empty()).map(|(name, _)| name.clone())
    {
        graph.remove(&leaf);
        graph.values_mut().for_each(|imported| {
            imported.remove(&leaf);
        });
    }
    graph.into_keys().collect()
}

#[test]
fn files_of_a_room_import_each_other_one_way() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for entry in fs::read_dir(&source).unwrap() {
        let room = entry.unwrap().path();
        let name = room.file_name().unwrap().to_str().unwrap();
        if room.is_dir() && !ROOMS_WITH_CIRCLES.contains(&name) {
            let circles = circles(imports_inside(&room));
            assert!(circles.is_empty(), "{name}: {circles:?} import each other");
        }
    }
}

#[test]
fn circles_are_found() {
    let edge = |from: &str, to: &[&str]| {
        (from.to_owned(), to.iter().map(|&name| name.to_owned()).collect::<BTreeSet<_>>())
    };
    let graph = [edge("a", &["b"]), edge("b", &["c"]), edge("c", &["b"]), edge("d", &[])];

    assert_eq!(circles(graph.into()), ["a", "b", "c"]);
    assert_eq!(circles([edge("a", &["b"]), edge("b", &[])].into()), [""; 0]);
    let inner = imports_inside(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src/source"));
    assert!(inner["refresh"].contains("inner") && inner["acquire"].contains("refresh"));
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
        for import in imports(&code(&path), "crate::") {
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
    assert_eq!(imports("use crate::error::TokenError;", "crate::"), ["error"]);
    let nested = "use crate::{ clock::{Clock, Moment}, error::{ErrorKind, TokenError}, store::A };";
    assert_eq!(imports(nested, "crate::"), ["clock", "error", "store"]);
    let modules = "use super::{ acquire, state::{State, Want}, tenants };";
    assert_eq!(imports(modules, "use super::"), ["acquire", "state", "tenants"]);
    assert_eq!(imports("let x = crate::ims::ImsClient::builder(c);", "crate::"), ["ims"]);
}

/// A file of more lines of code than this may still be one subject; it is printed, so that somebody
/// looks.
const MANY_LINES: usize = 400;

#[test]
fn large_files_are_pointed_out() {
    let mut largest = 0;
    for path in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap().lines().filter(|line| {
            let line = line.trim();
            !line.is_empty() && !line.starts_with("//")
        });
        let lines = code.count();
        if lines > MANY_LINES {
            println!("{} has {lines} lines of code: is it still one subject?", path.display());
        }
        largest = largest.max(lines);
    }
    assert!(largest < 2 * MANY_LINES, "a file has {largest} lines of code");
}

#[test]
fn pure_files_read_no_clock_lock_nothing_spawn_nothing_and_log_nothing() {
    let pure = [
        "source/state.rs",
        "source/policy/schedule.rs",
        "source/policy/backoff.rs",
        "source/policy/refusals.rs",
        "middleware/hosts.rs",
        "middleware/origin.rs",
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
