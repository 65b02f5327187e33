//! Values from the environment are neither stored nor shown, and a store is private to its user.

use std::{fs, os::unix::fs::PermissionsExt};

use walkdir::WalkDir;

use crate::lab::{Ended, Lab};

const PIPELINE: &str = r#"
name: private
tables:
  notes: { stage: read, with: { path: notes.csv, id: id } }
  answers:
    stage: command
    from: [notes]
    where: "id <> '${API_TOKEN}'"
    with:
      run: ["sh", "-c", "echo asked with $0 >&2; cp {notes} {output}; exit ${EXIT:-0}", "${API_TOKEN}"]
      output: { id: utf8, note: utf8? }
      makes: rows
"#;
const TOKEN: &str = "sk-live-5a1b";

fn lab() -> Lab {
    let lab = Lab::empty();
    lab.write("pipeline.yaml", &PIPELINE.replace("    where: \"id <> '${API_TOKEN}'\"\n", ""));
    lab.write("notes.csv", "id,note\na,one\nb,two\n");
    lab
}

fn run(lab: &Lab, token: &str, exit: &str, arguments: &[&str]) -> Ended {
    lab.ended(lab.command(arguments).env("API_TOKEN", token).env("EXIT", exit))
}

/// Returns the whole content of the lab's store as text.
fn kept(lab: &Lab) -> Vec<(String, String)> {
    let files = WalkDir::new(lab.path(".vlmdiff")).into_iter().map(Result::unwrap).filter(|e| e.file_type().is_file());
    let text = |path: &std::path::Path| String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
    files.map(|entry| (entry.path().display().to_string(), text(entry.path()))).collect()
}

#[test]
fn secrets_are_not_stored_or_shown() {
    let lab = lab();
    let failed = run(&lab, TOKEN, "3", &["run", "pipeline.yaml"]);
    assert_eq!(failed.code, Some(1), "{}", failed.stderr);
    assert!(failed.stderr.contains("asked with ${API_TOKEN}"), "{}", failed.stderr);
    let done = run(&lab, TOKEN, "0", &["run", "pipeline.yaml"]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    for said in [&failed, &done] {
        assert!(!said.stderr.contains(TOKEN), "{}", said.stderr);
    }
    let runs = lab.vlmdiff(&["sql", "select * from runs", "--format", "json"]);
    assert!(runs.stdout.contains("${API_TOKEN}") && !runs.stdout.contains(TOKEN), "{}", runs.stdout);
    let files = kept(&lab);
    assert!(files.iter().any(|(name, text)| name.contains("/published/") && text.contains("${API_TOKEN}(")));
    for (name, text) in &files {
        assert!(!text.contains(TOKEN), "{name} holds the secret");
    }
}

#[test]
fn changed_secret_changes_the_table_and_the_plan_names_its_variable() {
    let lab = lab();
    assert_eq!(run(&lab, TOKEN, "0", &["run", "pipeline.yaml"]).code, Some(0));
    let fresh = run(&lab, TOKEN, "0", &["plan", "pipeline.yaml"]);
    assert!(fresh.stdout.contains("answers  fresh"), "{}", fresh.stdout);
    let other = run(&lab, "sk-live-6c2d", "0", &["plan", "pipeline.yaml"]);
    assert!(other.stdout.contains("run: [") && other.stdout.contains("${API_TOKEN}("), "{}", other.stdout);
    assert!(!other.stdout.contains("sk-live"), "{}", other.stdout);
}

#[test]
fn predicate_may_contain_a_secret() {
    let lab = lab();
    lab.write("pipeline.yaml", PIPELINE.replace("makes: rows", "makes: row_per_row").as_str());
    let refused = run(&lab, TOKEN, "0", &["plan", "pipeline.yaml"]);
    assert!(!format!("{}{}", refused.stdout, refused.stderr).contains(TOKEN), "{}", refused.stderr);
}

#[test]
fn new_store_is_private_to_its_user() {
    let lab = lab();
    assert_eq!(run(&lab, TOKEN, "0", &["run", "pipeline.yaml"]).code, Some(0));
    let mode = fs::metadata(lab.path(".vlmdiff")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}
