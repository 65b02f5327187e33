//! Order between the files of `src/`: the permitted imports of each folder, no import cycles between files, and a
//! driver without libtorch.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use crate::lab::project;

/// The folders of `src/` that each folder may import.
const ARROWS: &[(&str, &[&str])] = &[
    ("engine", &[]),
    ("vision", &[]),
    ("models", &["vision"]),
    ("features", &["models"]),
    ("diffusion", &[]),
    ("training", &["models", "diffusion"]),
    ("methods", &["models", "features", "training"]),
    ("datasets", &["vision"]),
    ("tables", &["engine", "vision"]),
    ("published", &["engine", "models"]),
    ("captioners", &["engine", "tables", "datasets", "vision", "models", "published"]),
    ("query", &["engine", "tables"]),
    ("exchange", &["engine", "tables", "query"]),
    ("telemetry", &["engine"]),
    ("report", &["engine", "tables", "query", "vision"]),
    (
        "stages",
        &[
            "engine",
            "tables",
            "published",
            "captioners",
            "query",
            "exchange",
            "datasets",
            "vision",
            "models",
            "features",
            "methods",
            "diffusion",
            "training",
        ],
    ),
    ("cluster", &["engine"]),
    ("inspect", &["engine", "tables", "datasets", "vision", "stages"]),
    ("serving", &["engine", "tables", "vision", "report", "inspect", "telemetry"]),
    ("flight", &["engine", "query", "serving", "telemetry"]),
    ("driver", &["engine", "query", "models", "stages", "inspect", "telemetry"]),
    (
        "cli",
        &[
            "engine",
            "tables",
            "query",
            "exchange",
            "telemetry",
            "datasets",
            "vision",
            "models",
            "stages",
            "report",
            "cluster",
            "inspect",
            "serving",
            "flight",
            "driver",
        ],
    ),
];

/// The folders of the engine; each may import those after it.
const ENGINE: [&str; 6] = ["run", "plan", "pipeline", "stage", "store", "source"];

/// Crates that only some folders may use.
const CRATES: &[(&str, &[&str])] = &[
    ("tch", &["models", "captioners", "features", "methods", "diffusion", "training", "stages"]),
    ("datafusion", &["engine", "query", "cluster"]),
    (
        "arrow",
        &[
            "engine",
            "tables",
            "captioners",
            "query",
            "exchange",
            "stages",
            "report",
            "inspect",
            "cluster",
            "flight",
            "telemetry",
        ],
    ),
    ("axum", &["serving"]),
    ("vlmdiff_metrics", &["query", "stages", "report", "cli"]),
    ("vlmdiff_nearest", &["methods"]),
    ("arrow_flight", &["flight"]),
    ("deltalake", &["exchange"]),
    ("opentelemetry", &["telemetry"]),
    ("anyhow", &["cli"]),
];

/// A module by its path from the root of the crate: `["engine", "plan", "work"]`.
type Module = Vec<String>;

/// Returns the files below a folder that end in `.rs`.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut found = Vec::new();
    for path in entries {
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}

/// Returns the code of a file without comments and unit tests, which may use more than the code they test.
fn code(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let without_comment = |line: &str| line.split("//").next().unwrap().to_owned();
    code.lines().map(without_comment).collect::<Vec<_>>().join("\n")
}

/// Collects the paths of a `use` tree: `a::{b, c::{self, d}}` names `a::b`, `a::c::self` and `a::c::d`.
fn paths(tree: &str, prefix: &[String], found: &mut Vec<Vec<String>>) {
    let tree = tree.trim();
    let head = tree.split('{').next().unwrap();
    let head = head.split(" as ").next().unwrap();
    let segments = head.split("::").map(str::trim).filter(|segment| !segment.is_empty());
    let path: Vec<String> = prefix.iter().cloned().chain(segments.map(str::to_owned)).collect();
    let Some(inner) = tree.find('{').zip(tree.rfind('}')).map(|(start, end)| &tree[start + 1..end]) else {
        found.push(path);
        return;
    };
    let (mut depth, mut start) = (0, 0);
    for (at, character) in inner.char_indices() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                paths(&inner[start..at], &path, found);
                start = at + 1;
            }
            _ => {}
        }
    }
    if !inner[start..].trim().is_empty() {
        paths(&inner[start..], &path, found);
    }
}

/// The imports of a file: the paths of its `use` items, with re-exports kept separately.
#[derive(Default)]
struct Imports {
    own: Vec<Vec<String>>,
    exported: Vec<Vec<String>>,
}

impl Imports {
    fn of(code: &str) -> Self {
        let mut imports = Self::default();
        let (mut rest, mut body) = (code, String::new());
        while let Some(at) = rest.find("use ") {
            let before = rest[..at].rsplit('\n').next().unwrap().trim();
            let is_exported = before == "pub" || (before.starts_with("pub(") && before.ends_with(')'));
            body += &rest[..at];
            rest = &rest[at + 4..];
            if before.is_empty() || is_exported {
                let tree = rest.split(';').next().unwrap();
                rest = &rest[tree.len()..];
                let to = if before.is_empty() { &mut imports.own } else { &mut imports.exported };
                paths(tree, &[], to);
            }
        }
        let code = body + rest;
        // Paths in the code itself, such as `super::parts::encode(…)`, are imports too.
        for start in ["crate::", "super::"] {
            for (at, _) in code.match_indices(start) {
                let is_start = !code[..at].ends_with([':', '_']) && !code[..at].ends_with(char::is_alphanumeric);
                let is_visibility = code[..at].ends_with("in ");
                let is_path = |character: char| character.is_alphanumeric() || character == '_' || character == ':';
                let path = code[at..].split(|character| !is_path(character)).next().unwrap();
                let is_macro = code[at + path.len()..].starts_with('!');
                if is_start && !is_visibility && !is_macro {
                    imports
                        .own
                        .push(path.split("::").map(str::to_owned).filter(|segment| !segment.is_empty()).collect());
                }
            }
        }
        imports
    }
}

/// The files of a crate, with the files that each imports.
struct Graph(BTreeMap<Module, BTreeSet<Module>>);

impl Graph {
    fn of(root: &Path) -> Self {
        let mut files: BTreeMap<Module, Imports> = BTreeMap::new();
        for file in sources(root) {
            let relative = file.strip_prefix(root).unwrap().with_extension("");
            let mut module: Module = relative.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
            if module.last().is_some_and(|name| ["mod", "lib"].contains(&name.as_str())) {
                module.pop();
            }
            files.insert(module, Imports::of(&code(&file)));
        }
        let resolved = |module: &Module, path: &Vec<String>| target(&files, absolute(&files, module, path)?, 0);
        let edges = files.iter().map(|(module, imports)| {
            let own = imports.own.iter().filter_map(|path| resolved(module, path));
            (module.clone(), own.filter(|to| to != module).collect())
        });
        Self(edges.collect())
    }

    /// Returns the files that can be reached from one by imports.
    fn reached(&self, from: &Module) -> BTreeSet<&Module> {
        let mut reached = BTreeSet::new();
        let mut open: Vec<&Module> = self.0[from].iter().collect();
        while let Some(module) = open.pop() {
            if reached.insert(module) {
                open.extend(&self.0[module]);
            }
        }
        reached
    }

    /// Returns every file that imports itself through others, with one of its imports that leads back.
    fn circles(&self) -> Vec<String> {
        let leads_back = |from: &Module, to: &&Module| self.reached(to).contains(from);
        let in_circle = self.0.iter().filter_map(|(from, to)| {
            let back = to.iter().find(|to| leads_back(from, to))?;
            Some(format!("{} imports {}, which imports it", from.join("::"), back.join("::")))
        });
        in_circle.collect()
    }

    /// Returns the imports that lead upwards between folders of `parent`, each of which may import those after it.
    fn upwards(&self, parent: &str, folders: &[&str]) -> Vec<String> {
        let rank = |module: &Module| {
            let folder = module.get(1).filter(|_| module[0] == parent)?;
            folders.iter().position(|name| name == folder)
        };
        let mut upwards = Vec::new();
        for (from, to) in self.0.iter().flat_map(|(from, to)| to.iter().map(move |to| (from, to))) {
            // Files outside of the folders are below all of them.
            let is_below = from.first().is_some_and(|first| first == parent) && from.len() == 2 && rank(from).is_none();
            let is_up = match (rank(from), rank(to)) {
                (Some(from), Some(to)) => to < from,
                (None, Some(_)) => is_below,
                _ => false,
            };
            if is_up {
                upwards.push(format!("{} imports {}", from.join("::"), to.join("::")));
            }
        }
        upwards
    }
}

/// Returns a path from the root of the crate; `None` for one of another crate.
fn absolute(files: &BTreeMap<Module, Imports>, module: &Module, path: &[String]) -> Option<Vec<String>> {
    let mut base = module.clone();
    let mut path = path;
    match path.first()?.as_str() {
        "crate" => (base, path) = (Vec::new(), &path[1..]),
        "self" => path = &path[1..],
        "super" => {
            while path.first().is_some_and(|segment| segment == "super") {
                base.pop();
                path = &path[1..];
            }
        }
        child => {
            let child: Module = module.iter().cloned().chain([child.to_owned()]).collect();
            files.get(&child)?;
        }
    }
    base.extend(path.iter().cloned());
    Some(base)
}

/// Returns the file that defines what a path names: the longest part of the path that is a file, through re-exports.
fn target(files: &BTreeMap<Module, Imports>, path: Vec<String>, depth: usize) -> Option<Module> {
    let end = (0..=path.len()).rev().find(|end| files.contains_key(&path[..*end]))?;
    let module = path[..end].to_vec();
    let Some(name) = path.get(end).filter(|_| depth < 8) else { return Some(module) };
    let exported = files[&module].exported.iter().find(|exported| exported.last() == Some(name));
    let onwards = exported.and_then(|exported| absolute(files, &module, exported));
    match onwards {
        Some(onwards) => target(files, onwards.into_iter().chain(path[end + 1..].iter().cloned()).collect(), depth + 1),
        None => Some(module),
    }
}

#[test]
fn folders_import_only_folders_below_them() {
    let mut wrong = BTreeSet::new();
    let graph = Graph::of(&project().join("src"));
    for (folder, allowed) in ARROWS {
        let files = graph.0.iter().filter(|(from, _)| from.first().is_some_and(|first| first == folder));
        for (from, to) in files.flat_map(|(from, to)| to.iter().map(move |to| (from, to))) {
            let other = to.first().filter(|other| ARROWS.iter().any(|(name, _)| name == other));
            if other.is_some_and(|other| other != folder && !allowed.contains(&other.as_str())) {
                wrong.insert(format!("{} imports {}", from.join("::"), to.join("::")));
            }
        }
        let files = sources(&project().join("src").join(folder));
        assert!(!files.is_empty(), "src/{folder} has no sources");
        for file in files {
            let code = code(&file);
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
fn files_do_not_import_each_other_in_cycles() {
    let graph = Graph::of(&project().join("src"));
    assert!(graph.0.values().map(BTreeSet::len).sum::<usize>() > 500, "imports are no longer seen");
    let circles = graph.circles();
    assert!(circles.is_empty(), "{circles:#?}");
}

#[test]
fn folders_of_the_engine_import_downwards() {
    let upwards = Graph::of(&project().join("src")).upwards("engine", &ENGINE);
    assert!(upwards.is_empty(), "{upwards:#?}");
}

/// Makes the graph of an invented crate with these files.
fn made_up(files: &[(&str, &str)]) -> Graph {
    let folder = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }
    Graph::of(folder.path())
}

#[test]
fn cycle_is_found_through_reexports_and_paths_in_code() {
    let mut files = vec![
        ("a/mod.rs", "mod one;\nmod two;\npub use two::Two;\n"),
        ("a/one.rs", "use super::{Two, other::Thing as Else};\n"),
        ("a/two.rs", "fn f() { crate::b::g() }\n"),
        ("b.rs", "// use crate::a::one;\npub fn g() {}\n#[cfg(test)]\nmod tests { use crate::a::one; }\n"),
    ];
    assert_eq!(made_up(&files).circles(), [""; 0]);
    files[3].1 = "use crate::{\n    a::{one::{self, One}},\n};\n";
    let circles = made_up(&files).circles();
    assert_eq!(circles.len(), 3, "{circles:#?}");
    assert_eq!(circles[0], "a::one imports a::two, which imports it");
}

#[test]
fn upward_import_is_found() {
    let mut files = vec![
        ("engine/mod.rs", "pub mod run;\npub mod store;\nmod digest;\n"),
        ("engine/run/mod.rs", "mod driver;\npub use driver::run;\n"),
        ("engine/run/driver.rs", "use crate::engine::store::Store;\npub fn run() {}\n"),
        ("engine/store/mod.rs", "mod objects;\npub use objects::Store;\n"),
        ("engine/store/objects.rs", "use crate::engine::digest::Digest;\npub struct Store;\n"),
        ("engine/digest.rs", "pub struct Digest;\n"),
    ];
    assert_eq!(made_up(&files).upwards("engine", &ENGINE), [""; 0]);
    files[4].1 = "use crate::engine::run::run;\n";
    files[5].1 = "use super::store::Store;\n";
    let upwards = made_up(&files).upwards("engine", &ENGINE);
    assert_eq!(
        upwards,
        ["engine::digest imports engine::store::objects", "engine::store::objects imports engine::run::driver"]
    );
}

#[test]
fn driver_does_not_load_libtorch() {
    let names = |program: &str| {
        let bytes = fs::read(program).unwrap();
        bytes.windows(b"libtorch_cpu.so".len()).any(|window| window == b"libtorch_cpu.so")
    };
    assert!(!names(env!("CARGO_BIN_EXE_vlmdiff")), "the driver refers to libtorch");
    assert!(names(env!("CARGO_BIN_EXE_vlmdiff-worker")), "this test no longer sees libtorch where it is");
}
