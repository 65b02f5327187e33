//! Checks licences, sources and duplicates of the dependencies against `deny.toml`.

use std::{collections::BTreeMap, fs, process::Command};

use serde_json::Value;

use crate::lab::project;

/// Returns the texts of a list in `deny.toml`.
fn listed(name: &str) -> Vec<String> {
    let text = fs::read_to_string(project().join("deny.toml")).unwrap();
    let start = text.find(&format!("\n{name} = [")).unwrap_or_else(|| panic!("deny.toml has no list `{name}`"));
    let list = text[start..].split(']').next().unwrap().lines().filter(|line| !line.trim().starts_with('#'));
    let quoted = |line: &str| line.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    list.flat_map(quoted).collect()
}

/// Returns true if allowed licences satisfy a licence expression: one side of `OR`, both sides of `AND`.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let expression = expression.replace('/', " OR ");
    let outer = |word: &str| {
        let (mut depth, mut parts, mut start) = (0, Vec::new(), 0);
        for (at, character) in expression.char_indices() {
            depth += i32::from(character == '(') - i32::from(character == ')');
            if depth == 0 && expression[at..].starts_with(word) {
                parts.push(expression[start..at].to_owned());
                start = at + word.len();
            }
        }
        parts.push(expression[start..].to_owned());
        parts
    };
    let (either, all) = (outer(" OR "), outer(" AND "));
    if all.len() > 1 {
        return all.iter().all(|part| is_allowed(part, allowed));
    }
    if either.len() > 1 {
        return either.iter().any(|part| is_allowed(part, allowed));
    }
    let one = expression.trim();
    match one.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')) {
        Some(inner) => is_allowed(inner, allowed),
        None => allowed.iter().any(|licence| licence == one.split(" WITH ").next().unwrap()),
    }
}

#[test]
fn licences_sources_and_duplicates_are_allowed_by_deny_toml() {
    let metadata = ["metadata", "--format-version", "1", "--locked", "--filter-platform", "x86_64-unknown-linux-gnu"];
    let output = Command::new(env!("CARGO")).args(metadata).current_dir(project()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "{} packages", packages.len());
    let (licences, duplicates) = (listed("allow"), listed("skip"));
    let mut versions: BTreeMap<&str, usize> = BTreeMap::new();
    for package in packages {
        let name = package["name"].as_str().unwrap();
        *versions.entry(name).or_default() += 1;
        let licence = package["license"].as_str().unwrap_or_else(|| panic!("{name} names no licence"));
        assert!(is_allowed(licence, &licences), "{name} is under {licence}, which deny.toml does not allow");
        let is_registry = package["source"].as_str().is_none_or(|source| source.starts_with("registry+"));
        assert!(is_registry, "{name} comes from {}", package["source"]);
    }
    let new: Vec<_> =
        versions.iter().filter(|(name, count)| **count > 1 && !duplicates.iter().any(|d| d == **name)).collect();
    assert!(new.is_empty(), "crates in several versions: {new:?}; update one side, or list them in deny.toml");
}

#[test]
fn licence_expressions_are_evaluated() {
    let allowed = ["MIT".to_owned(), "ISC".to_owned(), "Apache-2.0".to_owned()];
    for expression in
        ["MIT", "GPL-3.0 OR MIT", "MIT/GPL-3.0", "(MIT OR GPL-3.0) AND ISC", "Apache-2.0 WITH LLVM-exception"]
    {
        assert!(is_allowed(expression, &allowed), "{expression}");
    }
    for expression in ["GPL-3.0", "MIT AND GPL-3.0", "(GPL-3.0 OR AGPL-3.0) AND MIT"] {
        assert!(!is_allowed(expression, &allowed), "{expression}");
    }
}
