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

/// Addresses with a password or a token.
const ADDRESSES: [&str; 6] = [
    "http://user:sk-live-5a1b@127.0.0.1:9/data",
    "http://sk-live-5a1b@127.0.0.1:9/data.zip",
    "http://user:sk-live-5a1b/x@127.0.0.1:9/data",
    "http://127.0.0.1:9/data?sig=sk-live-5a1b&v=2",
    "s3://user:sk-live-5a1b@bucket/data?X-Amz-Signature=sk-live-5a1b",
    "abfss://user:sk-live-5a1b@account.dfs.core.windows.net/data",
];

#[test]
fn credentials_in_addresses_are_not_stored_or_shown() {
    let lab = Lab::new(crate::lab::LIGHT);
    lab.write("read.yaml", "name: r\ntables:\n  notes: { stage: read, with: { path: notes.csv, id: id } }\n");
    let images = "select image_id as id, caption from images";
    for address in ADDRESSES {
        let [root, path, weights] =
            ["images.root", "notes.path", "captions.path"].map(|name| format!("{name}={address}"));
        let (root, path) = (["--set", &root], ["--set", &path]);
        let of_images = |words: &[&str]| lab.vlmdiff(&[words, &root].concat());
        let ended = [
            of_images(&["run", "pipeline.yaml"]),
            of_images(&["run", "pipeline.yaml", "--log-format", "json"]),
            of_images(&["plan", "pipeline.yaml"]),
            of_images(&["plan", "pipeline.yaml", "--json"]),
            of_images(&["data", "check", "pipeline.yaml"]),
            of_images(&["graph", "pipeline.yaml"]),
            lab.vlmdiff(&[&["run", "read.yaml"], &path[..]].concat()),
            lab.vlmdiff(&["run", "pipeline.yaml", "--set", "captions.model=file", "--set", &weights]),
            lab.vlmdiff(&["run", "pipeline.yaml", "--store", address]),
            lab.vlmdiff(&["status", "--store", address]),
            lab.vlmdiff(&["sql", images, "--store", address]),
            lab.vlmdiff(&["run", "pipeline.yaml", "--lineage", address]),
            lab.vlmdiff(&["export", "images", "--to", "delta", "-o", address]),
            lab.vlmdiff(&["predict", "pipeline.yaml", address]),
            lab.vlmdiff(&["runs"]),
        ];
        for (number, Ended { stdout, stderr, .. }) in ended.iter().enumerate() {
            assert!(!format!("{stdout}{stderr}").contains(TOKEN), "{address}, {number}: {stdout}{stderr}");
        }
        let refused = &ended[0];
        assert!(refused.code == Some(2) && refused.stderr.contains("***"), "{address}: {}", refused.stderr);
    }
    for (name, text) in kept(&lab) {
        assert!(!text.contains(TOKEN), "{name} holds the secret");
    }
}

#[test]
fn program_may_be_given_an_address_with_credentials() {
    let lab = lab();
    let literal = PIPELINE.replace("    where: \"id <> '${API_TOKEN}'\"\n", "").replace("${API_TOKEN}", ADDRESSES[3]);
    lab.write("pipeline.yaml", &literal.replace("exit ${EXIT:-0}", "test $0 = $EXPECTED"));
    let run = |expected: &str| lab.ended(lab.command(&["run", "pipeline.yaml"]).env("EXPECTED", expected));
    let failed = run("another");
    assert!(failed.code == Some(1) && failed.stderr.contains("data?sig=***&v=***"), "{}", failed.stderr);
    let done = run(ADDRESSES[3]);
    assert_eq!(done.code, Some(0), "{}", done.stderr);
    assert!(!format!("{}{}", failed.stderr, done.stderr).contains(TOKEN), "{}{}", failed.stderr, done.stderr);
    let files = kept(&lab);
    assert!(files.iter().any(|(name, text)| name.contains("/published/") && text.contains("?sig=***(")));
    for (name, text) in &files {
        assert!(!text.contains(TOKEN), "{name} holds the secret");
    }
    // Another token is another table.
    lab.write("pipeline.yaml", &literal.replace(TOKEN, "sk-live-6c2d"));
    let plan = lab.vlmdiff(&["plan", "pipeline.yaml"]);
    assert!(plan.stdout.contains("?sig=***(") && !plan.stdout.contains("sk-live"), "{}", plan.stdout);
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
