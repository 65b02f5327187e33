//! The arrows between folders, held by reading `use` lines, and the driver's freedom from libtorch.

use std::{collections::BTreeSet, fs, path::Path};

use crate::lab::project;

/// Which folders of `src/` a folder may name.
const ARROWS: &[(&str, &[&str])] = &[
    ("engine", &[]),
    ("metrics", &[]),
    ("vision", &[]),
    ("models", &[]),
    ("diffusion", &[]),
    ("datasets", &["vision"]),
    ("query", &["engine", "metrics"]),
    ("report", &["engine", "query", "vision"]),
    ("stages", &["engine", "query", "datasets", "vision", "models", "diffusion", "metrics"]),
    ("cli", &["engine", "query", "datasets", "vision", "models", "stages", "report"]),
];

/// Crates that only some folders may name.
const CRATES: &[(&str, &[&str])] = &[
    ("tch", &["models", "diffusion", "stages"]),
    ("datafusion", &["engine", "query"]),
    ("arrow", &["engine", "query", "stages", "report"]),
    ("anyhow", &["cli"]),
];

fn sources(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn folders_name_only_what_lies_below_them() {
    let mut wrong = BTreeSet::new();
    for (folder, allowed) in ARROWS {
        let mut files = Vec::new();
        sources(&project().join("src").join(folder), &mut files);
        assert!(!files.is_empty(), "src/{folder} has no sources");
        for file in files {
            // Tests may use more than what they test.
            let text = fs::read_to_string(&file).unwrap();
            let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
            for other in
                ARROWS.iter().map(|(name, _)| *name).filter(|other| other != folder && !allowed.contains(other))
            {
                if code.contains(&format!("crate::{other}::")) || code.contains(&format!("\n    {other}::")) {
                    wrong.insert(format!("{} names {other}", file.display()));
                }
            }
            for (name, only) in CRATES {
                if !only.contains(folder)
                    && (code.contains(&format!("use {name}::")) || code.contains(&format!(" {name}::")))
                {
                    wrong.insert(format!("{} uses {name}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_driver_does_not_load_libtorch() {
    let names = |program: &str| {
        let bytes = fs::read(program).unwrap();
        bytes.windows(b"libtorch_cpu.so".len()).any(|window| window == b"libtorch_cpu.so")
    };
    assert!(!names(env!("CARGO_BIN_EXE_vlmdiff")), "the driver refers to libtorch");
    assert!(names(env!("CARGO_BIN_EXE_vlmdiff-worker")), "this test no longer sees libtorch where it is");
}
