//! The history of runs: records, tags, differences, and the effect of a clean-up.

use std::fs;

use crate::lab::{LIGHT, Lab, computed};

/// Run ids differ from run to run.
const RUN_IDS: [(&str, &str); 1] = [(r"\d{13}-\d+", "[run]")];

/// Returns the light pipeline with a part whose change is cheap.
fn changed() -> String {
    LIGHT.replace("count(*) as n from captions", "count(*) * 1.5 as n from captions")
}

#[test]
fn runs_are_recorded_and_compared() {
    let lab = Lab::new(LIGHT);
    lab.run(&["--tag", "first"]);
    lab.write("pipeline.yaml", &changed());
    fs::remove_file(lab.path("data/gear/train/good/001.png")).unwrap();
    let captions = fs::read_to_string(lab.path("data/gear/captions.jsonl")).unwrap();
    let kept: Vec<&str> = captions.lines().filter(|line| !line.contains("train/good/001.png")).collect();
    lab.write("data/gear/captions.jsonl", &(kept.join("\n") + "\n"));
    lab.run(&[]);
    let runs = lab.vlmdiff(&["runs"]);
    assert_eq!(runs.stdout.lines().count(), 3, "{}", runs.stdout);
    assert!(runs.stdout.lines().nth(1).unwrap().ends_with("first"), "{}", runs.stdout);
    let shown = lab.vlmdiff(&["runs", "show"]).stdout;
    assert!(shown.contains("captions") && shown.contains("(1 removed: gear/train/good/001.png)"), "{shown}");
    let device = if std::path::Path::new("/dev/nvidiactl").exists() { "auto" } else { "cpu" };
    assert!(shown.contains(&format!("\ndevice    {device}\n")), "{shown}");
    assert_eq!(lab.sql(".vlmdiff", "select distinct device from runs"), [device]);
    let parameters = lab.vlmdiff(&["runs", "show", "first", "--parameters"]).stdout;
    assert!(parameters.contains("\n    query: \"select count(*) as n from captions\"\n"), "{parameters}");
    let diff = lab.vlmdiff(&["diff", "first"]);
    insta::with_settings!({ prepend_module_to_snapshot => false, filters => RUN_IDS }, {
        insta::assert_snapshot!("diff", diff.stdout)
    });
    let unknown = lab.vlmdiff(&["diff", "second"]);
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.stderr.contains("no run `second`; it has the tags first"), "{}", unknown.stderr);
}

/// Returns the light pipeline with a query that fails.
fn failing() -> String {
    LIGHT.replace("count(*) as n from captions", "cast(max(caption) as int) as n from captions")
}

#[test]
fn diff_names_the_runs_that_it_compares() {
    let lab = Lab::new(LIGHT);
    let ids = || lab.sql(".vlmdiff", "select run from runs order by run");
    let refused = |arguments: &[&str], expected: &str| {
        let ended = lab.vlmdiff(&[&["diff"], arguments].concat());
        assert_eq!(ended.code, Some(2), "{}", ended.stdout);
        assert!(ended.stderr.contains(expected), "{}", ended.stderr);
    };
    lab.run(&["--tag", "first"]);
    refused(&[], "there is only one done run of `light`");
    refused(&["first"], "is itself the last done run of `light`");
    lab.run(&[]);
    lab.write("failing.yaml", &failing());
    assert_eq!(lab.vlmdiff(&["run", "failing.yaml"]).code, Some(1));
    let [one, two, three] = &ids()[..] else { panic!("{:?}", ids()) };
    let compared = |arguments: &[&str]| {
        let ended = lab.vlmdiff(&[&["diff"], arguments].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stdout
    };
    let done = format!("first {one} (light, done) -> {two} (light, done)\nnothing differs\n");
    assert_eq!(compared(&[]), done);
    assert_eq!(compared(&["first"]), done);
    assert_eq!(compared(&["last~2", two]), done);
    let failed = compared(&["last"]);
    assert!(failed.starts_with(&format!("{two} (light, done) -> {three} (light, failed)\nimages")), "{failed}");
    assert!(failed.contains("\ncounts    not reached by the second run, which failed\n"), "{failed}");
    let start = |id: &str, other: &str| {
        let shared = id.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
        id[..=shared].to_owned()
    };
    let closest = |id: &str| ids().iter().filter(|other| *other != id).map(|other| start(id, other)).max().unwrap();
    assert_eq!(compared(&["first", &closest(three)]), compared(&["first", "last"]));
    refused(&["1", "last"], "the ids of 3 runs begin with `1`");
    refused(&["last~3", "last"], "no run `last~3`");
    refused(&["last~18446744073709551615", "last"], "no run `last~18446744073709551615`");
    lab.write("other.yaml", &LIGHT.replace("name: light", "name: other"));
    assert_eq!(lab.vlmdiff(&["run", "other.yaml"]).code, Some(0));
    refused(&["first", "last"], "diff compares runs of one pipeline");
    refused(&[], "there is only one done run of `other`");
}

/// A pipeline whose captions have a length, which is its metric.
const LENGTHS: &str = r#"
name: lengths
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: 32 } }
  captions: { stage: caption, from: [images], with: { model: template, text: one } }
  metrics:
    stage: sql
    from: [images, captions]
    with: { query: "select coalesce(class, 'mean') as class, 'own' as protocol, avg(length(captions.caption)) / 10 as length from images join captions using (image_id) group by rollup(class) order by class" }
"#;

#[test]
fn sweep_is_compared_with_its_baseline_in_numbers() {
    let lab = Lab::new(LENGTHS);
    lab.run(&["--tag", "baseline"]);
    lab.write("pipeline.yaml", &format!("{LENGTHS}sweep: {{ text: [one, three] }}\n"));
    let swept = lab.vlmdiff(&["run", "pipeline.yaml"]);
    let said = "captions  swept by text now; its rows are kept for when that changes back";
    let said = said.split_once("  ").map(|(name, text)| (name.to_owned(), text.to_owned())).unwrap();
    let is_said = |line: &str| line.starts_with(&said.0) && line.ends_with(&said.1);
    assert!(swept.stderr.lines().any(is_said) && !swept.stderr.contains("declares"), "{}", swept.stderr);
    let compared = |arguments: &[&str]| {
        let ended = lab.vlmdiff(&[&["diff"], arguments].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stdout.lines().skip(1).map(|line| line.trim_end().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(
        compared(&[]),
        [
            "images                            same rows",
            "captions -> captions[text=one]    same rows",
            "captions -> captions[text=three]  14 changed, such as gear/test/good/000.png",
            "    text: \"one\" -> \"three\"",
            "metrics -> metrics[text=one]      same rows",
            "metrics -> metrics[text=three]    other content",
            "    class  protocol          length",
            "    gear   own       0.5000 +0.2000",
            "    mean   own       0.5000 +0.2000",
            "    tile   own       0.5000 +0.2000",
        ]
    );
    // A sweep beside another one: the instances that both have, and the nearest for the one that is new.
    lab.write("pipeline.yaml", &format!("{LENGTHS}sweep: {{ text: [one, three, a] }}\n"));
    lab.run(&[]);
    let other = compared(&["last~1", "last"]);
    assert_eq!(other.last().unwrap(), "metrics[text=a]       only in the second run, 3 rows", "{other:?}");
    // The mean of a single class is not shown beside it.
    fs::remove_dir_all(lab.path("data/tile")).unwrap();
    lab.write("pipeline.yaml", LENGTHS);
    lab.run(&[]);
    lab.run(&["--set", "captions.text=three"]);
    let single = compared(&["last~1", "last"]);
    assert_eq!(single.last().unwrap(), "    class=gear, protocol=own: length 0.3000 -> 0.5000 +0.2000", "{single:?}");
    assert_eq!(single.iter().filter(|line| line.contains("length")).count(), 1, "{single:?}");
    // A pipeline without a done run is passed over.
    lab.write("failing.yaml", &failing().replace("name: light", "name: failing"));
    assert_eq!(lab.vlmdiff(&["run", "failing.yaml"]).code, Some(1));
    assert_eq!(compared(&[]).last().map(|line| line.contains("length")), Some(true));
}

#[test]
fn killed_or_failed_run_is_in_the_history() {
    let lab = Lab::new(LIGHT);
    lab.write("pipeline.yaml", &failing());
    let ended = lab.vlmdiff(&["run", "pipeline.yaml"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let runs = lab.vlmdiff(&["runs"]).stdout;
    assert!(runs.contains("failed"), "{runs}");
    let shown = lab.vlmdiff(&["runs", "show", "--store", ".vlmdiff"]).stdout;
    assert!(shown.lines().nth(1).unwrap().ends_with("  failed"), "{shown}");
    assert!(shown.contains("table `counts`"), "{shown}");
}

#[test]
fn clean_up_keeps_everything_that_is_reachable() {
    let lab = Lab::new(LIGHT);
    lab.run(&["--tag", "small"]);
    lab.run(&["--set", "images.size=16"]);
    lab.run(&["--set", "images.size=24"]);
    let size = || {
        let parts = fs::read_dir(lab.path(".vlmdiff/parts")).unwrap();
        parts.map(|part| part.unwrap().metadata().unwrap().len()).sum::<u64>()
    };
    let all = size();
    let dry = lab.vlmdiff(&["gc", "--keep", "1", "--dry-run"]);
    assert!(dry.stdout.starts_with("would delete"), "{}", dry.stdout);
    assert_eq!(size(), all);
    let cleaned = lab.vlmdiff(&["gc", "--keep", "1"]);
    assert!(cleaned.stdout.starts_with("deleted"), "{}", cleaned.stdout);
    assert!(size() < all);
    // The current tables and the tagged run are complete, the run between them is not.
    assert_eq!(computed(&lab.run(&["--set", "images.size=24", "--verify"])), []);
    assert_eq!(computed(&lab.run(&[])).iter().map(|(_, rows)| rows).sum::<u64>(), 0, "the tagged run's rows are known");
    let between = lab.run(&["--set", "images.size=16"]);
    assert_eq!(computed(&between)[0], ("images", 14));
    assert_eq!(lab.vlmdiff(&["gc", "--keep", "100"]).stdout, "nothing to delete\n");
}

#[test]
fn rows_of_a_run_that_failed_are_kept() {
    let lab = Lab::new(LIGHT);
    let image = lab.path("data/gear/train/good/001.png");
    let whole = fs::read(&image).unwrap();
    fs::write(&image, b"broken").unwrap();
    assert_eq!(lab.vlmdiff(&["run", "pipeline.yaml"]).code, Some(2));
    let cleaned = lab.vlmdiff(&["gc"]).stdout;
    let run = lab.sql(".vlmdiff", "select run from runs").remove(0);
    let kept = format!("nothing to delete\nkept 1 object that nothing reaches: the run {run} is not done");
    assert!(cleaned.starts_with(&kept) && cleaned.contains("`vlmdiff gc --keep N`"), "{cleaned}");
    // The error names its cause once.
    assert_eq!(lab.sql(".vlmdiff", "select chain is null from errors where message like '%not an image%'"), ["true"]);
    // Further lines of an error are printed below its first.
    let shown = lab.vlmdiff(&["runs", "show"]).stdout;
    assert!(shown.contains("\n            gear/train/good/001.png: "), "{shown}");
    fs::write(&image, whole).unwrap();
    assert_eq!(computed(&lab.run(&[]))[0], ("images", 1));
}

#[test]
fn last_run_is_the_latest_even_if_the_clock_was_set_back() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    // The clock was a day ahead during this run.
    let runs = lab.path(".vlmdiff/runs");
    let log = fs::read_dir(&runs).unwrap().next().unwrap().unwrap().path();
    let name = log.file_name().unwrap().to_string_lossy();
    let (time, process) = name.split_once('-').unwrap();
    let ahead = format!("{}-{process}", time.parse::<u64>().unwrap() + 86_400_000);
    fs::rename(&log, runs.join(&ahead)).unwrap();
    lab.write(
        "other.yaml",
        &LIGHT
            .replace("name: light", "name: other")
            .replace("  captions", "  texts")
            .replace("[captions]", "[texts]")
            .replace("from captions", "from texts"),
    );
    assert_eq!(lab.vlmdiff(&["run", "other.yaml", "--quiet"]).code, Some(0));
    assert_eq!(lab.sql(".vlmdiff", "select count(*) from texts"), ["8"]);
    let shown = lab.vlmdiff(&["runs", "show", "last"]).stdout;
    assert!(shown.contains("pipeline  other"), "{shown}");
    let ids = lab.sql(".vlmdiff", "select run from runs");
    assert!(ids[1] > ids[0] && ids[1].split('-').next().map(str::len) == Some(13), "{ids:?}");
}

#[test]
fn moving_a_tag_names_its_previous_run() {
    let lab = Lab::new(LIGHT);
    lab.run(&["--tag", "best"]);
    let first = lab.sql(".vlmdiff", "select run from runs").remove(0);
    let again = lab.vlmdiff(&["run", "pipeline.yaml", "--tag", "best"]);
    assert_eq!(again.code, Some(0));
    assert!(again.stderr.contains(&format!("best names this run now; before it was {first}")), "{}", again.stderr);
}

#[test]
fn error_of_a_store_that_cannot_be_locked_names_it() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    let stage = lab.vlmdiff(&["sql", "select pipeline_digest from runs", "--format", "csv"]).stdout;
    let lock = format!(".vlmdiff/locks/{}", stage.lines().nth(1).unwrap());
    // A folder in place of the lock cannot be opened, like a file of a read-only store.
    fs::create_dir_all(lab.path(&lock)).unwrap();
    let ended = lab.vlmdiff(&["gc", "--dry-run"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stdout);
    assert!(ended.stderr.contains(&format!("cannot lock [lab]/{lock}: ")), "{}", ended.stderr);
}
