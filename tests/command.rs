//! Users' programs as stages.

use std::{
    fs,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use vlmdiff::engine::store::Event;

use crate::lab::{Ended, Lab, computed, project};

/// A pipeline of images and a program that is called for each.
const PIPELINE: &str = r#"
name: own
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: 32 } }
  captions: { stage: caption, from: [images], with: { model: dataset, default: nothing } }
  answers:
    stage: command
    from: [images, captions]
    with:
      run: python3 program.py well
      columns: [class, images.caption, captions.caption]
      output: { n: int64 }
    on_error: skip
"#;

/// A program that answers in the way that its argument says.
const PROGRAM: &str = r#"
import os, signal, sys
import pyarrow as pa

how = sys.argv[1]
rows = pa.ipc.open_stream(sys.stdin.buffer)
print("reads " + " ".join(rows.schema.names), file=sys.stderr)
if how == "exit":
    print("no such model", file=sys.stderr)
    sys.exit(7)
if how == "text":
    print("hello")
n = {"misnamed": "m"}.get(how, "n")
types = {"mistyped": pa.float64(), "nullable": pa.int64()}
schema = pa.schema([("image_id", pa.string()), (n, types.get(how, pa.int64())), ("_error", pa.string())])
with pa.ipc.new_stream(sys.stdout.buffer, schema) as answers:
    for batch in rows:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "stops":
            break
        ids = batch["image_id"].to_pylist()[::-1]
        if how == "missing":
            ids = ids[1:]
        if how == "twice":
            ids[0] = ids[1]
        if how == "unknown":
            ids[0] = "other"
        dark = [(how == "dark" or "DARK" in os.environ) and "tile/test" in i for i in ids]
        values = [None if d or how == "nulls" else len(i) for d, i in zip(dark, ids)]
        errors = ["too dark" if d else None for d in dark]
        answers.write_batch(pa.RecordBatch.from_pydict({"image_id": ids, n: values, "_error": errors}, schema))
        sys.stdout.flush()
"#;

fn lab(pipeline: &str) -> Lab {
    let tools = project().join(".tools/python/pyarrow");
    assert!(tools.exists(), "programs in Python need pyarrow; run `python3 setup/fetch.py tools`");
    let lab = Lab::new(pipeline);
    lab.write("program.py", PROGRAM);
    lab
}

fn run(lab: &Lab, how: &str) -> Ended {
    lab.vlmdiff(&["run", "pipeline.yaml", "--quiet", "--set", &format!("answers.run=python3 program.py {how}")])
}

/// The environment is not part of the identity. A row that failed because of it is computed again only on request,
/// and then succeeds.
#[test]
fn failed_rows_of_a_program_are_retried_on_request() {
    let lab = lab(PIPELINE);
    let run = |dark: bool, arguments: &[&str]| {
        let mut command = lab.command(&[&["run", "pipeline.yaml", "--quiet"], arguments].concat());
        let command = if dark { command.env("DARK", "1") } else { &mut command };
        command.status().unwrap().code()
    };
    let counts = || {
        let count = |table| lab.sql(".vlmdiff", &format!("select count(*) from {table}")).remove(0);
        [count("answers"), count("errors")]
    };
    assert_eq!(run(true, &[]), Some(3));
    assert_eq!(counts(), ["11", "3"]);
    assert_eq!(run(false, &[]), Some(3));
    assert_eq!(counts(), ["11", "3"]);
    assert_eq!(run(false, &["--retry-errors"]), Some(0));
    assert_eq!(counts(), ["14", "0"]);
    assert_eq!(run(false, &[]), Some(0));
}

#[test]
fn example_program_extracts_features() {
    let pipeline = PIPELINE.split("  captions:").next().unwrap();
    let lab = lab(&format!(
        "{pipeline}  features: {{ stage: command, from: [images], with: {{ run: python3 histogram.py, \
         columns: [pixels], output: {{ histogram: \"float32[16]\" }} }} }}\n"
    ));
    let example = fs::read_to_string(project().join("pipelines/examples/histogram.py")).unwrap();
    lab.write("histogram.py", &example);
    assert_eq!(computed(&lab.run(&[])), [("images", 14), ("features", 14)]);
    let sums = "select abs(array_element(histogram, 8)) <= 1 from features";
    assert_eq!(lab.sql(".vlmdiff", sums), vec!["true"; 14]);
    // A change of one image recomputes one row; a change of the program recomputes all rows.
    fs::copy(lab.path("data/gear/train/good/000.png"), lab.path("data/gear/test/good/000.png")).unwrap();
    assert_eq!(computed(&lab.run(&[])), [("images", 1), ("features", 1)]);
    lab.write("histogram.py", &(example + "# better\n"));
    assert_eq!(computed(&lab.run(&["--task-rows", "3"])), [("features", 14)]);
    assert_eq!(computed(&lab.run(&[])), []);
    // The batch is larger than the buffer of a pipe.
    assert_eq!(computed(&lab.run(&["--set", "images.size=128"])), [("images", 14), ("features", 14)]);
}

#[test]
fn program_reads_rows_and_its_lines_are_logged() {
    let lab = lab(PIPELINE);
    let events = lab.run(&[]);
    let says = |events: &[Event]| {
        let said = events.iter().filter_map(|event| match event {
            Event::Log { table, message } if table == "answers" => Some(message.clone()),
            _ => None,
        });
        said.collect::<Vec<_>>()
    };
    assert_eq!(says(&events), ["reads image_id class images.caption captions.caption"]);
    assert_eq!(lab.sql(".vlmdiff", "select bool_and(n = length(image_id)), count(*) from answers"), ["true,14"]);
    let dark = run(&lab, "dark");
    assert_eq!(dark.code, Some(3), "{}", dark.stderr);
    assert_eq!(lab.sql(".vlmdiff", "select count(*) from answers"), ["11"]);
    assert_eq!(lab.sql(".vlmdiff", "select distinct message, count(*) over () from errors"), ["too dark,3"]);
}

#[test]
fn error_of_a_program_names_what_it_did() {
    let lab = lab(PIPELINE);
    let errors = |how: &str| {
        let ended = run(&lab, how);
        assert_eq!(ended.code, Some(1), "{how}: {}", ended.stderr);
        format!("# {how}\n{}", ended.stderr)
    };
    let hows = ["exit", "text", "misnamed", "mistyped", "nulls", "missing", "twice", "unknown", "stops", "killed"];
    insta::assert_snapshot!(hows.map(errors).join("\n"));
}

#[test]
fn wrong_declarations_are_errors_before_anything_runs() {
    let lab = lab(PIPELINE);
    let plan = |set: &str| {
        let ended = lab.vlmdiff(&["plan", "pipeline.yaml", "--set", set]);
        assert_eq!(ended.code, Some(2), "{set}: {}", ended.stderr);
        ended.stderr
    };
    let sets = [
        "answers.run=python3 'program.py",
        "answers.run=[]",
        "answers.columns=[pixel]",
        "answers.output={ n: int }",
        "answers.output={ image_id: utf8 }",
        "answers.output={ _error: utf8 }",
        "answers.makes=table",
        "answers.run=cp x {output}",
        "answers.makes=row_per_table",
    ];
    insta::assert_snapshot!(sets.map(plan).join("\n"));
}

#[test]
fn program_makes_a_table() {
    let lab = lab(&(PIPELINE.split("  answers:").next().unwrap().to_owned()
        + r#"
  kept: { stage: command, from: [captions], with: { run: "sh -c 'echo copies; cp {captions} {output}'", output: { image_id: utf8, caption: utf8 }, columns: [image_id, caption], makes: rows } }
  lengths: { stage: sql, from: [kept], with: { query: "select image_id, length(caption) as n from kept", makes: row_per_row } }
  numbers: { stage: command, with: { run: [python3, -c, "import sys, pyarrow as pa, pyarrow.parquet as pq; pq.write_table(pa.table({'n': [1, 2]}), sys.argv[1])", "{output}"], output: { n: int64 }, makes: table } }
"#));
    let events = lab.run(&[]);
    let expected = [("images", 14), ("captions", 14), ("kept", 14), ("lengths", 14), ("numbers", 2)];
    assert_eq!(computed(&events), expected);
    assert!(events.iter().any(|e| matches!(e, Event::Log { message, .. } if message == "copies")), "{events:?}");
    assert_eq!(lab.sql(".vlmdiff", "select sum(n) from numbers"), ["3"]);
    let same = "select count(*) from kept k join captions c on k.image_id = c.image_id and k.caption = c.caption";
    assert_eq!(lab.sql(".vlmdiff", same), ["14"]);
    let run = |run: &str| {
        let ended = lab.vlmdiff(&["run", "pipeline.yaml", "--quiet", "--set", &format!("kept.run={run}")]);
        assert_eq!(ended.code, Some(if run.starts_with("no-") { 2 } else { 1 }), "{run}: {}", ended.stderr);
        let folder = std::env::temp_dir().to_string_lossy().into_owned();
        let hidden = ended
            .stderr
            .split(' ')
            .map(|word| if word.contains(&folder) { word.rsplit_once('/').map_or("", |(_, file)| file) } else { word });
        hidden.collect::<Vec<_>>().join(" ")
    };
    let runs = [
        "no-such-program {captions} {output}",
        "sh -c 'echo {captions} {output} >&2; exit 3'",
        "true {captions} {output}",
    ];
    let mut said = runs.map(run).join("\n");
    let ended =
        lab.vlmdiff(&["run", "pipeline.yaml", "--quiet", "--set", "kept.output={ image_id: utf8, caption: int64 }"]);
    said += &format!("\n{}", ended.stderr.split("the program").next().unwrap());
    said += ended.stderr.split("does not").nth(1).unwrap();
    insta::assert_snapshot!(said);
}

/// Makes a lab with two rows and a program.
fn with_program(stage: &str) -> Lab {
    let lab = Lab::empty();
    lab.write("notes.csv", "id,n\na,1\nb,2\n");
    lab.write(
        "pipeline.yaml",
        &format!(
            "name: own\ntables:\n  notes: {{ stage: read, with: {{ path: notes.csv, id: id }} }}\n  own: {stage}\n"
        ),
    );
    lab
}

fn signal(name: &str, process: u32) {
    assert!(Command::new("kill").args([name, &process.to_string()]).status().unwrap().success());
}

const READS_ALL_FIRST: &str =
    "{ stage: command, from: [notes], with: { run: [sh, -c, 'cat > /dev/null'], output: { m: int64 } } }";

#[test]
fn program_that_waits_for_the_end_of_its_input_is_reported() {
    let lab = with_program(READS_ALL_FIRST);
    let mut run = lab.command(&["run", "pipeline.yaml"]).stderr(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(run.stderr.take().unwrap()).lines().map(Result::unwrap);
    let said = lines.map(|line| line.to_owned()).find(|line| line.contains("has not answered")).unwrap();
    assert!(said.contains("a batch of 2 rows for 10 s") && said.contains("flush"), "{said}");
    signal("-TERM", run.id());
    assert_eq!(run.wait().unwrap().code(), Some(130));
}

#[test]
fn program_is_asked_to_end_when_the_run_is() {
    let whole = "{ stage: command, from: [notes], with: { run: [sh, -c, 'echo begun; exec sleep 60 # {notes} {output}'], output: { id: utf8 }, makes: table } }";
    let by_row = READS_ALL_FIRST.replace("cat > /dev/null", "echo begun >&2; cat > /dev/null");
    for stage in [whole, &by_row] {
        for name in ["-TERM", "-HUP"] {
            let lab = with_program(stage);
            let mut run = lab.command(&["run", "pipeline.yaml"]).stderr(Stdio::piped()).spawn().unwrap();
            let mut lines = BufReader::new(run.stderr.take().unwrap()).lines().map(Result::unwrap);
            assert!(lines.any(|line| line.contains("begun")));
            let asked = Instant::now();
            signal(name, run.id());
            let said: Vec<String> = lines.collect();
            assert_eq!(run.wait().unwrap().code(), Some(130), "{said:?}");
            assert!(asked.elapsed() < Duration::from_secs(20), "{:?}", asked.elapsed());
            assert!(said.iter().any(|line| line.starts_with("stopping")), "{said:?}");
        }
    }
}

#[test]
fn run_under_nohup_outlives_its_terminal() {
    let lab = with_program(
        "{ stage: command, from: [notes], with: { run: [sh, -c, 'echo begun; sleep 2; cp {notes} {output}'], output: { id: utf8, n: 'int64?' }, makes: table } }",
    );
    let mut command = Command::new("nohup");
    command.arg(env!("CARGO_BIN_EXE_vlmdiff")).args(["run", "pipeline.yaml"]).current_dir(lab.path(""));
    let mut run = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(run.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.contains("begun")));
    signal("-HUP", run.id());
    let said: Vec<String> = lines.collect();
    assert_eq!(run.wait().unwrap().code(), Some(0), "{said:?}");
}

#[test]
fn program_that_leaves_a_child_counts_as_ended() {
    let lab = with_program(
        "{ stage: command, from: [notes], with: { run: [sh, -c, 'cp {notes} {output}; sleep 30 & echo done'], output: { id: utf8, n: 'int64?' }, makes: table } }",
    );
    let began = Instant::now();
    let events = lab.run(&[]);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert!(events.iter().any(|e| matches!(e, Event::Log { message, .. } if message == "done")), "{events:?}");
    assert_eq!(computed(&events), [("notes", 2), ("own", 2)]);
}
