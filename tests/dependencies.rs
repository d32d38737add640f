//! What the crate is built from: licences, banned crates, and doubles. Needs no network.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::Path,
    process::Command,
};

use serde_json::Value;

/// Licences under which a dependency may come, or be chosen to come.
const LICENCES: [&str; 9] = [
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-3-Clause",
    // Permissive; only of a hash below `redis`, which cannot be left out.
    "BSL-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    // Permissive; only below the Prometheus exporter, which tests and an example use.
    "Zlib",
    // The root certificates of `webpki-root-certs`: data, not code.
    "CDLA-Permissive-2.0",
];

/// Crates that must be nowhere in the tree, not even for tests or another platform.
const BANNED: [(&str, &str); 4] = [
    ("openssl", "TLS is rustls: no OpenSSL to be installed and patched"),
    ("openssl-sys", "TLS is rustls: no OpenSSL to be installed and patched"),
    ("native-tls", "TLS is rustls, the same on every platform"),
    ("async-std", "the runtime is Tokio"),
];

/// Crates of which users build more than one version, and why that is borne.
const DOUBLES: [(&str, &str); 1] =
    [("getrandom", "the older one is below the `redis` crate's client for clusters")];

/// What Cargo prints.
fn cargo(arguments: &[&str]) -> String {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(arguments)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Everything that Cargo resolved for this platform: crates of others may not be on this machine.
fn metadata() -> Value {
    let version = cargo(&["-vV"]);
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let metadata = ["metadata", "--offline", "--locked", "--all-features", "--format-version", "1"];
    let arguments = [&metadata[..], &["--filter-platform", host]].concat();
    serde_json::from_str(&cargo(&arguments)).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Whether one of the licences that `expression` (SPDX) gives the choice of is allowed.
fn is_allowed(expression: &str) -> bool {
    let expression = expression.trim();
    let (mut depth, mut and, mut or) = (0, None, None);
    for (at, sign) in expression.char_indices() {
        match sign {
            '(' => depth += 1,
            ')' => depth -= 1,
            ' ' | '/' if depth == 0 => {
                let rest = &expression[at..];
                if or.is_none() && (rest.starts_with(" OR ") || sign == '/') {
                    or = Some((at, if sign == '/' { 1 } else { 4 }));
                } else if and.is_none() && rest.starts_with(" AND ") {
                    and = Some((at, 5));
                }
            }
            _ => {}
        }
    }
    if let Some((at, length)) = or {
        return is_allowed(&expression[..at]) || is_allowed(&expression[at + length..]);
    }
    if let Some((at, length)) = and {
        return is_allowed(&expression[..at]) && is_allowed(&expression[at + length..]);
    }
    match expression.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => is_allowed(inner),
        None => LICENCES.contains(&expression),
    }
}

#[test]
fn reads_the_expressions_of_licences() {
    for (expression, allowed) in [
        ("MIT", true),
        ("MIT/Apache-2.0", true),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0", false),
        ("", false),
        ("MIT AND GPL-3.0", false),
        ("MIT AND (GPL-3.0 OR ISC)", true),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("(MIT OR Apache-2.0) AND GPL-3.0", false),
        ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true),
        ("GPL-3.0 OR MIT AND AGPL-3.0", false),
    ] {
        assert_eq!(is_allowed(expression), allowed, "{expression}");
    }
}

#[test]
fn every_dependency_has_a_licence_that_is_allowed() {
    let metadata = metadata();
    let packages = list(&metadata, "packages");

    assert!(packages.len() > 50, "the packages were not found");
    for package in packages {
        let licence = text(package, "license");
        assert!(is_allowed(licence), "{} is under {licence:?}", text(package, "name"));
    }
}

#[test]
fn every_dependency_is_from_the_public_registry() {
    let metadata = metadata();

    for package in list(&metadata, "packages") {
        let registry = text(package, "source").starts_with("registry+");
        let ours = text(package, "name") == env!("CARGO_PKG_NAME");
        assert!(registry || ours, "{} is from elsewhere", text(package, "name"));
    }
}

#[test]
fn no_banned_crate_is_in_the_tree_of_any_platform() {
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock");
    let lock = fs::read_to_string(lock).unwrap();
    assert!(lock.contains("\nname = \"tokio\"\n"), "the names were not found");

    for (name, reason) in BANNED {
        assert!(!lock.contains(&format!("\nname = \"{name}\"\n")), "{name} is banned: {reason}");
    }
}

#[test]
fn no_crate_is_built_in_two_versions_without_a_reason() {
    // What users build, with every feature: not what our tests do.
    let tree = ["tree", "--offline", "--locked", "--all-features", "--edges", "normal,build"];
    let tree = cargo(&[&tree[..], &["--prefix", "none", "--format", "{p}"]].concat());
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for line in tree.lines() {
        let mut words = line.split(' ');
        let (name, version) = (words.next().unwrap(), words.next().unwrap());
        versions.entry(name).or_default().insert(version);
    }

    assert!(versions.len() > 50, "the tree was not found");
    let doubles = versions.iter().filter(|(_, versions)| versions.len() > 1);
    let doubles: BTreeSet<_> = doubles.map(|(name, _)| *name).collect();
    for name in &doubles {
        let known = DOUBLES.iter().any(|(double, _)| double == name);
        assert!(known, "{name} is built as {:?}", versions[name]);
    }
}
