//! Query results are written completely and in the requested form.

use std::{fs, io::Write, process::Stdio};

use crate::lab::{Ended, Lab};

const PIPELINE: &str = r#"
name: notes
tables:
  notes: { stage: read, with: { path: notes.csv, id: id } }
  none: { stage: sql, from: [notes], with: { query: "select id, \"Score\" from notes where id = 'c'", makes: rows } }
  my-notes: { stage: sql, from: [notes], with: { query: "select id from notes", makes: rows } }
  Capital: { stage: sql, from: [notes], with: { query: "select id from notes", makes: rows } }
  files: { stage: read, with: { path: files.csv, id: id } }
"#;

fn lab() -> Lab {
    let lab = Lab::empty();
    lab.write("pipeline.yaml", PIPELINE);
    lab.write("notes.csv", "id,Score,note\na,1,x\nb,2,\n");
    lab.write("files.csv", "id,file,file_digest\na,x.png,q1\n");
    lab.run(&[]);
    lab
}

/// Sends statements by standard input.
fn asked(lab: &Lab, text: &str, arguments: &[&str]) -> Ended {
    let mut command = lab.command(&[&["sql"], arguments].concat());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ended { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

#[test]
fn results_of_several_statements_are_written_in_order() {
    let lab = lab();
    let text = "select 'a;b' as v; -- one; two\nselect id as \"i;d\" from notes order by 1;";
    let expected = "v\na;b\ni;d\na\nb\n";
    assert_eq!(asked(&lab, text, &["--format", "csv"]).stdout, expected);
    assert_eq!(lab.vlmdiff(&["sql", text, "--format", "csv"]).stdout, expected);
    assert_eq!(asked(&lab, text, &["-o", "results.csv"]).code, Some(0));
    assert_eq!(fs::read_to_string(lab.path("results.csv")).unwrap(), expected);
    // An error has its place in the whole text, and the existing file stays unchanged.
    let ended = asked(&lab, "select 1;\nselect 2; selct 3", &["-o", "results.csv"]);
    assert_eq!(
        (ended.code, ended.stderr.as_str()),
        (Some(2), "error: line 2, column 11: expected an SQL statement, found `selct`\n")
    );
    assert_eq!(fs::read_to_string(lab.path("results.csv")).unwrap(), expected);
    let ended = asked(&lab, text, &["-o", "results.parquet"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("a Parquet file holds one result"), "{}", ended.stderr);
    let left: Vec<_> = fs::read_dir(lab.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with("results.parquet")), "{left:?}");
    let empty = lab.vlmdiff(&["sql", ""]);
    assert_eq!(empty.code, Some(2), "{}", empty.stdout);
}

#[test]
fn file_has_the_format_of_its_extension() {
    let lab = lab();
    let query = "select id, note from notes order by id";
    for (name, begin) in [
        ("a.csv", "id,note\n"),
        ("A.CSV", "id,note\n"),
        ("a.json", "{\"id\":\"a\",\"note\":\"x\"}\n{\"id\":\"b\",\"note\":null}\n"),
        ("a.jsonl", "{\"id\""),
        ("a.parquet", "PAR1"),
        ("a.txt", "+----+"),
        ("a", "+----+"),
    ] {
        assert_eq!(lab.vlmdiff(&["sql", query, "-o", name]).code, Some(0), "{name}");
        let written = fs::read(lab.path(name)).unwrap();
        assert!(written.starts_with(begin.as_bytes()), "{name}: {}", String::from_utf8_lossy(&written));
    }
    assert_eq!(lab.vlmdiff(&["sql", query, "-o", "b.xlsx", "--format", "csv"]).code, Some(0));
    let ended = lab.vlmdiff(&["sql", query, "-o", "c.xlsx"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("name one with --format"), "{}", ended.stderr);
    assert!(!lab.path("c.xlsx").exists());
    assert_eq!(lab.vlmdiff(&["sql", query, "-o", "/dev/null"]).code, Some(0));
    // If standard output is a file, it is written to and not replaced.
    let file = fs::File::create(lab.path("kept.csv")).unwrap();
    let mut command = lab.command(&["sql", query, "-o", "/dev/stdout", "--format", "csv"]);
    assert!(command.stdout(file).status().unwrap().success());
    assert_eq!(fs::read_to_string(lab.path("kept.csv")).unwrap(), "id,note\na,x\nb,\n");
}

#[test]
fn json_has_every_column_once() {
    let lab = lab();
    let twice = "select a.id, b.id from notes a join notes b on a.id <> b.id";
    let ended = lab.vlmdiff(&["sql", twice, "--format", "json"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
    assert!(ended.stderr.contains("two columns are called `id`"), "{}", ended.stderr);
    let csv = lab.vlmdiff(&["sql", &format!("{twice} order by 1"), "--format", "csv"]);
    assert_eq!(csv.stdout, "id,id\na,b\nb,a\n");
}

#[test]
fn table_without_rows_can_be_sorted() {
    let lab = lab();
    let query = "select * from none order by id";
    assert_eq!(lab.vlmdiff(&["sql", query, "--format", "csv"]).stdout, "id,Score\n");
    assert_eq!(lab.sql(".vlmdiff", "select row_number() over (order by id) from none"), [""; 0]);
    assert_eq!(lab.sql(".vlmdiff", "select count(*) from none"), ["0"]);
    assert_eq!(lab.sql(".vlmdiff", "select n.id from notes n left join none on n.id = none.id order by 1"), ["a", "b"]);
}

#[test]
fn column_with_the_name_of_a_digest_is_visible() {
    let lab = lab();
    let all = lab.vlmdiff(&["sql", "select * from files", "--format", "csv"]);
    assert_eq!(all.stdout, "id,file,file_digest\na,x.png,q1\n");
}

#[test]
fn names_that_need_quotes_are_shown_in_quotes() {
    let lab = lab();
    for (query, hint) in [
        (
            "select Score from notes",
            "there is no column `score`; write \"Score\": names without double quotes are read in small letters",
        ),
        ("select n.Score from notes n, none", "write n.\"Score\""),
        ("select * from Capital", "there is no table `capital`; write \"Capital\""),
        ("select * from my-notes", "a name with a `-` stands in double quotes: \"my-notes\""),
    ] {
        let ended = lab.vlmdiff(&["sql", query]);
        assert_eq!(ended.code, Some(2), "{query}");
        assert!(ended.stderr.contains(hint), "{query}: {}", ended.stderr);
    }
    assert_eq!(lab.sql(".vlmdiff", "select count(\"Score\") from notes, \"my-notes\", \"Capital\""), ["8"]);
    // Queries and predicates of a pipeline give the same message.
    let set = |set: &str| lab.vlmdiff(&["plan", "pipeline.yaml", "--set", set]).stderr;
    assert!(set("none.query=select id, Score from notes").contains("write \"Score\""));
    lab.write(
        "where.yaml",
        &PIPELINE
            .replace("stage: sql, from: [notes], with", "stage: caption, where: \"Score > 1\", from: [notes], with"),
    );
    let wheres = "name: w\ntables:\n  notes: { stage: read, with: { path: notes.csv, id: id } }\n  n: { stage: sql, from: [notes], where: \"Score > 1\", with: { query: select id from notes, makes: row_per_row } }\n";
    lab.write("where.yaml", wheres);
    let ended = lab.vlmdiff(&["plan", "where.yaml"]);
    assert!(ended.stderr.contains("where: there is no column `score`; write \"Score\""), "{}", ended.stderr);
}

#[test]
fn control_characters_in_data_do_not_reach_the_terminal() {
    let lab = lab();
    lab.write("notes.csv", "id,Score,note\n\u{1b}[2Ja,1,\"one\u{1b}]0;title\u{7}two\"\nb,2,\u{9b}1m\n");
    let is_quiet = |text: &str| text.chars().all(|c| c == '\n' || !c.is_control());
    let run = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert!(is_quiet(&run.stderr) && run.code == Some(0), "{:?}", run.stderr);
    for query in [
        "select * from notes",
        "select make_array(id, note) from notes",
        "select id as \"\u{1b}[2J\" from notes",
        "select * from \"\u{1b}[2J\"",
        "explain select '\u{1b}[2J'",
    ] {
        let ended = lab.vlmdiff(&["sql", query]);
        assert!(is_quiet(&ended.stdout) && is_quiet(&ended.stderr), "{query}: {:?} {:?}", ended.stdout, ended.stderr);
        assert!((ended.stdout + &ended.stderr).contains("\\x1b"), "{query}");
    }
    // Added rows are named in the causes that a plan shows.
    lab.write("notes.csv", "id,Score,note\n\u{1b}[2Jnew,1,x\n");
    let plan = lab.vlmdiff(&["plan", "pipeline.yaml"]);
    assert!(is_quiet(&plan.stdout) && plan.stdout.contains("\\x1b[2Jnew"), "{:?}", plan.stdout);
}

#[test]
fn long_predicate_is_planned_or_refused() {
    let lab = lab();
    let terms = |n: usize| (0..n).map(|i| format!("id = 'x{i}'")).collect::<Vec<_>>().join(" or ");
    let run = |n: usize| {
        let pipeline = format!(
            "name: long\ntables:\n  notes: {{ stage: read, with: {{ path: notes.csv, id: id }} }}\n  n: {{ stage: sql, from: [notes], where: \"{}\", with: {{ query: select id from notes, makes: row_per_row }} }}\n",
            terms(n)
        );
        lab.write("long.yaml", &pipeline);
        lab.vlmdiff(&["run", "long.yaml", "--quiet"])
    };
    let ended = run(500);
    assert_eq!(ended.code, Some(0), "{:.300}", ended.stderr);
    let ended = run(501);
    assert_eq!(ended.code, Some(2), "{:.300}", ended.stderr);
    assert!(ended.stderr.contains("`x in (1, 2, 3)` takes any number of values"), "{:.300}", ended.stderr);
    let ended = asked(&lab, &format!("select count(*) from notes.notes where {}", terms(501)), &["--format", "csv"]);
    assert_eq!(ended.code, Some(2), "{:.300}", ended.stderr);
}
