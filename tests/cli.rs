//! Messages, exit codes and output of the commands.

use std::fs;

use crate::lab::{Ended, LIGHT, Lab};

fn shown(ended: &Ended) -> String {
    format!("exit {}\n--- stdout\n{}--- stderr\n{}", ended.code.unwrap_or(-1), ended.stdout, ended.stderr)
}

/// Returns the filters for times, sizes and speeds, which differ from run to run.
fn settings() -> insta::Settings {
    let mut settings = insta::Settings::clone_current();
    settings.add_filter(r"\d+\.\d+ s\b", "[t] s");
    settings.add_filter(r"\d+\.\d rows/s", "[v] rows/s");
    settings.add_filter(r"\d+(\.\d+)? (KiB|MiB|B)\b", "[size]");
    settings.set_prepend_module_to_snapshot(false);
    settings
}

fn check(name: &str, lab: &Lab, arguments: &[&str]) {
    let ended = lab.vlmdiff(arguments);
    settings().bind(|| insta::assert_snapshot!(name, shown(&ended)));
}

#[test]
fn help_texts_are_those_of_the_snapshots() {
    let lab = Lab::new(LIGHT);
    check("help", &lab, &["--help"]);
    for command in ["run", "plan", "status", "sql", "runs", "diff", "gc", "models"] {
        check(&format!("help_{command}"), &lab, &[command, "--help"]);
    }
    check("no_command", &lab, &["rum"]);
}

#[test]
fn wrong_pipeline_is_an_error_with_a_place() {
    let lab = Lab::new(LIGHT);
    let wrong = |name: &str, from: &str, to: &str| {
        assert!(LIGHT.contains(from));
        lab.write("wrong.yaml", &LIGHT.replace(from, to));
        check(name, &lab, &["run", "wrong.yaml"]);
    };
    wrong("misspelt_parameter", "size: 32", "sise: 32");
    wrong("parameter_out_of_range", "size: 32", "size: 3");
    wrong("parameter_of_another_type", "size: 32", "size: large");
    wrong("missing_parameter", "with: { model: dataset, default: nothing }", "with: {}");
    wrong("missing_table", "from: [images], where", "from: [pictures], where");
    wrong("table_below", "from: [images], where", "from: [counts], where");
    wrong("unknown_stage", "stage: caption", "stage: captoin");
    wrong("unknown_key", "from: [captions]", "form: [captions]");
    wrong("wrong_predicate", "split = 'train'", "spilt = 'train'");
    wrong("wrong_query", "count(*) as n", "count(*) as n, nothing_such");
    let captions =
        "stage: caption, from: [images], where: \"split = 'train'\", with: { model: dataset, default: nothing }";
    wrong("table_that_does_not_fit", captions, "stage: encode_latents, from: [images, images]");
    wrong("broken_yaml", "name: light", "name: [light");
    wrong("table_of_sql", "  counts:", "  runs:");
    wrong("unset_variable", "root: data", "root: \"${VLMDIFF_NO_SUCH_VARIABLE}\"");
    check("no_pipeline", &lab, &["run", "nothing.yaml"]);
    check("set_unknown_table", &lab, &["run", "pipeline.yaml", "--set", "imgs.size=64"]);
    check("set_unknown_parameter", &lab, &["run", "pipeline.yaml", "--set", "images.colour=red"]);
}

#[test]
fn broken_data_is_named_and_other_rows_are_kept() {
    let lab = Lab::new(LIGHT);
    let image = lab.path("data/gear/train/good/001.png");
    let bytes = fs::read(&image).unwrap();
    fs::write(&image, &bytes[..bytes.len() / 2]).unwrap();
    let mask = lab.path("data/tile/ground_truth/scratch/000_mask.png");
    fs::copy(lab.path("data/tile/train/good/000.png"), &mask).unwrap();
    image_of_another_size(&mask);
    check("broken_data", &lab, &["run", "pipeline.yaml"]);
    check("broken_data_plan", &lab, &["plan", "pipeline.yaml"]);
    lab.write("skip.yaml", &LIGHT.replace("stage: ingest,", "stage: ingest, on_error: skip,"));
    check("broken_data_skipped", &lab, &["run", "skip.yaml"]);
    check("broken_data_errors", &lab, &["sql", "select id, \"table\" from errors order by id", "--format", "csv"]);
    fs::write(&image, &bytes).unwrap();
    fs::remove_dir_all(lab.path("data/tile/ground_truth")).unwrap();
    check("mended_data", &lab, &["run", "pipeline.yaml"]);
}

fn image_of_another_size(path: &std::path::Path) {
    image::GrayImage::new(20, 10).save(path).unwrap();
}

#[test]
fn error_of_a_missing_dataset_says_what_would_be_one() {
    let lab = Lab::new(LIGHT);
    check("no_dataset", &lab, &["run", "pipeline.yaml", "--set", "images.root=nowhere"]);
    fs::create_dir(lab.path("empty")).unwrap();
    check("empty_dataset", &lab, &["run", "pipeline.yaml", "--set", "images.root=empty"]);
}

#[test]
fn tables_are_shown_in_every_format() {
    let lab = Lab::new(LIGHT);
    check("sql_without_store", &lab, &["sql", "select 1"]);
    check("run", &lab, &["run", "pipeline.yaml"]);
    check("plan_fresh", &lab, &["plan", "pipeline.yaml"]);
    check("plan_stale", &lab, &["plan", "pipeline.yaml", "--set", "images.size=16", "--set", "captions.default=x"]);
    check("plan_json", &lab, &["plan", "pipeline.yaml", "--json"]);
    check("graph_mermaid", &lab, &["graph", "pipeline.yaml"]);
    check("graph_dot", &lab, &["graph", "pipeline.yaml", "--format", "dot"]);
    check("sql_table", &lab, &["sql", "select image_id, label, pixels from images order by image_id limit 2"]);
    check(
        "sql_csv",
        &lab,
        &["sql", "select image_id, caption from captions order by image_id limit 2", "--format", "csv"],
    );
    check("sql_json", &lab, &["sql", "select * from counts", "--format", "json"]);
    check(
        "sql_paper",
        &lab,
        &[
            "sql",
            "select method, value from paper_results where \"table\" = '2' and metric = 'PRO' order by value desc limit 3",
        ],
    );
    let ended = lab.vlmdiff(&["sql", "select * from images", "--format", "parquet", "-o", "images.parquet"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(&fs::read(lab.path("images.parquet")).unwrap()[..4], b"PAR1");
    // Values that the paper does not give are null.
    let unknown = "select count(*) - count(value), avg(value) > 0 from paper_results where \"table\" in ('5', '9')";
    assert_eq!(lab.sql(".vlmdiff", unknown), ["6,true"]);
}

/// The averages are those of Tables 14 to 16. They are computed from rounded numbers: printed averages err by up to 0.05, the
/// mean of four numbers by as much, and that of 30 by three standard deviations, 3 · 0.05 / sqrt(3 · 30) = 0.016.
#[test]
fn published_numbers_are_complete_and_agree_with_their_averages() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    assert_eq!(lab.sql(".vlmdiff", "select count(*) from paper_results"), ["712"]);
    for (tables, average, tolerance) in [("'15', '16'", "avg30classes", 0.066), ("'14'", "avg4splits", 0.1)] {
        let of = format!("from paper_results where \"table\" in ({tables})");
        let query = format!(
            "select count(*), sum(cast(abs(mean - value) < {tolerance} as int)) from \
             (select method, metric, avg(value) as mean {of} and split_or_class <> '{average}' group by method, metric) as computed \
             join (select method, metric, value {of} and split_or_class = '{average}') as printed \
             using (method, metric)"
        );
        assert_eq!(lab.sql(".vlmdiff", &query), ["9,9"], "{average}");
    }
    let field = "select count(*), count(source), count(verified), count(distinct dataset) from field_results";
    assert_eq!(lab.sql(".vlmdiff", field), ["21,21,21,4"]);
}

#[test]
fn error_of_a_wrong_statement_lists_what_exists() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    let statements = [
        "selct 1",
        "select 'open",
        "select * from",
        "select * from capptions",
        "select * from lihgt.images",
        "select imageid from images",
        "select i.imageid from images i",
        "select images.caption from captions c",
        "select nothing from images i, counts c",
        "select avg(widht) from images i join captions c using (image_id)",
        "select cast('a' as int)",
        "create table x as select 1",
        "select auroc(label, label) from images",
        "select auroc(width) from images",
        "select aupro(pixels, mask, 0.3) from images",
        "select avg(class) from images",
    ];
    let told = statements.map(|statement| {
        let ended = lab.vlmdiff(&["sql", statement]);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{statement}");
        format!("{statement}\n  {}", ended.stderr)
    });
    settings().bind(|| insta::assert_snapshot!("sql_wrong", told.concat()));
}

#[test]
fn table_of_another_pipeline_is_named() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    let other = LIGHT.replace("name: light", "name: the-other").replace("  counts:", "  numbers:");
    lab.write("other.yaml", &other);
    assert_eq!(lab.vlmdiff(&["run", "other.yaml", "--quiet"]).code, Some(0));
    let told = |query: &str| lab.vlmdiff(&["sql", query]).stderr;
    let counts = "error: the pipeline `the-other` has no table `counts`; there is light.counts\n";
    assert_eq!(told("select * from counts"), counts);
    let numbers = "error: the pipeline `light` has no table `numbers`; there is \"the-other\".numbers\n";
    assert_eq!(told("select * from light.numbers"), numbers);
}

#[test]
fn drawn_table_has_a_line_per_row() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    let long = "select 'one' || chr(10) || repeat('ä', 100) as text, null as nothing";
    let drawn = lab.vlmdiff(&["sql", long]).stdout;
    let row: Vec<&str> = drawn.lines().nth(3).unwrap().split('|').map(str::trim).collect();
    assert_eq!(row[1], format!("one {}…", "ä".repeat(55)), "{drawn}");
    assert_eq!(lab.sql(".vlmdiff", long).join("\n"), format!("\"one\n{}\",", "ä".repeat(100)));
    let plan = lab.vlmdiff(&["sql", "explain select class, split, label, defect, width, height from images"]).stdout;
    assert!(plan.contains("projection=[class, split, label, defect, width, height]"), "{plan}");
}

#[test]
fn columns_are_as_wide_as_the_names_of_a_sweep() {
    let lab = Lab::new(&format!("{LIGHT}sweep: {{ size: [100, 32, 16], default: [something, nothing] }}\n"));
    let lines = |arguments: &[&str]| -> Vec<String> {
        let ended = lab.vlmdiff(arguments);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        (ended.stdout + &ended.stderr).lines().map(str::to_owned).collect()
    };
    let longest = "captions[size=100,default=something]".len();
    let is_column = |line: &&String| line.is_char_boundary(longest + 2) && &line[longest..longest + 2] == "  ";
    assert_eq!(lines(&["plan", "pipeline.yaml"]).iter().filter(is_column).count(), 3 + 6 + 6);
    // Each table has a line when it begins and when it is published. For some sizes a note says that a region of a
    // mask is lost.
    let begun_or_published = |line: &&String| is_column(line) && !line.contains("by resizing");
    assert_eq!(lines(&["run", "pipeline.yaml"]).iter().filter(begun_or_published).count(), 2 * (3 + 6 + 6));
    assert_eq!(lines(&["runs", "show"]).iter().filter(is_column).count(), 3 + 6 + 6);
    let status: Vec<String> = lines(&["status"]).into_iter().filter(|line| line.starts_with("  ")).collect();
    let names: Vec<&str> = status.iter().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(
        names[..3],
        [
            "captions[size=16,default=nothing]",
            "captions[size=16,default=something]",
            "captions[size=32,default=nothing]"
        ]
    );
    assert_eq!(names[12..], ["images[size=16]", "images[size=32]", "images[size=100]"]);
    let stages = status.iter().map(|line| line.find(" in ").unwrap());
    assert_eq!(stages.collect::<std::collections::BTreeSet<_>>().len(), 1, "{status:?}");
}

#[test]
fn closed_pipe_ends_a_command_quietly() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    lab.run(&["--tag", "again"]);
    let query = "select images.* from images, captions";
    for arguments in [
        &["runs"][..],
        &["runs", "show"],
        &["plan", "pipeline.yaml"],
        &["run", "pipeline.yaml", "--dry-run", "--json"],
        &["status"],
        &["diff"],
        &["gc", "--dry-run"],
        &["graph", "pipeline.yaml"],
        &["sql", query],
        &["sql", query, "--format", "csv"],
        &["sql", query, "--format", "json"],
        &["sql", query, "--format", "parquet"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = lab.command(arguments).stdout(writer).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert_eq!(String::from_utf8(output.stderr).unwrap(), "", "{arguments:?}");
    }
    // A run whose messages nobody reads continues.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = lab.command(&["run", "pipeline.yaml", "--set", "images.size=16"]).stderr(writer).status().unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(lab.sql(".vlmdiff", "select computed from runs order by run")[2], "14");
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    let lab = Lab::empty();
    let help = lab.vlmdiff(&["--help"]).stdout;
    let listed = help.split("Commands:\n").nth(1).unwrap().split("\n\n").next().unwrap();
    // The description of a command may go on in further lines, which are indented more.
    let lines = listed.lines().filter(|line| !line.starts_with("   "));
    let commands: Vec<&str> = lines.filter_map(|line| line.split_whitespace().next()).collect();
    assert!(commands.len() > 15 && commands.contains(&"run"), "{help}");
    for shell in ["bash", "zsh", "fish"] {
        let script = lab.vlmdiff(&["completions", shell]);
        assert_eq!((script.code, script.stderr.as_str()), (Some(0), ""), "{shell}");
        assert!(commands.iter().all(|command| script.stdout.contains(command)), "{shell}");
        assert!(script.stdout.contains("task-rows"), "{shell}");
    }
    assert_eq!(lab.vlmdiff(&["man", "man1"]).code, Some(0));
    for command in commands.into_iter().filter(|command| *command != "help") {
        let page = fs::read_to_string(lab.path(&format!("man1/vlmdiff-{command}.1"))).unwrap();
        assert!(page.contains(".SH SYNOPSIS"), "{command}: {page}");
    }
    assert!(fs::read_to_string(lab.path("man1/vlmdiff.1")).unwrap().contains("vlmdiff\\-run(1)"));
}

#[test]
fn wrong_arguments_are_refused_before_anything_runs() {
    let lab = Lab::new(LIGHT);
    for (arguments, expected) in [
        (&["--tag", "last"][..], "`last` is no tag; tags are letters"),
        (&["--json"], "--dry-run"),
        (&["--until", "images", "--until", "counts"], "cannot be used multiple times"),
    ] {
        let ended = lab.vlmdiff(&[&["run", "pipeline.yaml"], arguments].concat());
        assert_eq!(ended.code, Some(2));
        assert!(ended.stderr.contains(expected), "{}", ended.stderr);
    }
    assert!(!lab.path(".vlmdiff").exists());
}

#[test]
fn yaml_that_means_something_else_than_it_seems_is_explained() {
    let lab = Lab::new(LIGHT);
    for (from, to, expected) in [
        ("name: light", "name: n", "wrong.yaml:2:7: name is text; without quotes `y`, `n`, `yes`"),
        ("name: light", "name: 7", "wrong.yaml:2:7: name is text; without quotes this is a number"),
        ("tables:", "---\ntables:", "wrong.yaml:4:1: a second document begins here"),
        ("size: 32", "size: .nan", "`.nan` is no number that a pipeline takes"),
        (
            "with: { model: dataset, default: nothing }",
            "with: [dataset]",
            "`captions`: with is a mapping of parameters",
        ),
        ("split = 'train'", "split = train", "text stands in single quotes: 'train' (columns of `images`)"),
        ("split = 'train'", "count(*) > 1", "`count()` is about many rows"),
        ("as n from captions", "as n from captions; select 1", "a `;` ends the first of several statements"),
    ] {
        assert!(LIGHT.contains(from), "{from}");
        lab.write("wrong.yaml", &LIGHT.replace(from, to));
        let ended = lab.vlmdiff(&["plan", "wrong.yaml"]);
        assert_eq!(ended.code, Some(2), "{to}");
        assert!(ended.stderr.contains(expected), "{to}: {}", ended.stderr);
    }
    lab.write("wrong.yaml", "name: light\ntables:\n  - images: { stage: ingest }\n");
    let ended = lab.vlmdiff(&["plan", "wrong.yaml"]);
    assert!(ended.stderr.contains("tables is a mapping: each table stands below its name"), "{}", ended.stderr);
    let ended = lab.vlmdiff(&["plan", "pipeline.yaml", "--set", "images.hold_out=[1]"]);
    assert_eq!(ended.stderr, "error: --set: table `images`: `hold_out`: expected a number, found a list\n");
}

#[test]
fn output_that_cannot_be_written_is_named() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    for arguments in [
        &["report", "-o", "data"][..],
        &["report", "--format", "md", "-o", "data"],
        &["sql", "select 1 as a", "-o", "nowhere/a.csv"],
        &["schema", "-o", "pipeline.yaml"],
        &["man", "pipeline.yaml"],
        &["synth", "pipeline.yaml"],
    ] {
        let ended = lab.vlmdiff(arguments);
        let (_, output) = (ended.stdout, arguments.iter().rfind(|argument| !argument.starts_with('-')).unwrap());
        assert_eq!(ended.code, Some(2), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("cannot write") && ended.stderr.contains(output), "{}", ended.stderr);
    }
    for arguments in
        [&["status"][..], &["sql", "select 1"], &["sql", "select 1", "--format", "csv"], &["completions", "fish"]]
    {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = lab.command(arguments).stdout(full).output().unwrap();
        let told = String::from_utf8(output.stderr).unwrap();
        assert_ne!(output.status.code(), Some(0), "{arguments:?}");
        assert!(told.starts_with("error: cannot write to standard output: No space left"), "{arguments:?}: {told}");
    }
    let listen = lab.vlmdiff(&["flight", "--listen", "8815"]);
    assert!(listen.stderr.contains("it is no IP address with a port; 127.0.0.1:8080"), "{}", listen.stderr);
}

#[test]
fn generated_pictures_never_replace_files() {
    let lab = Lab::empty();
    fs::create_dir_all(lab.path("photographs/gear/train/good")).unwrap();
    lab.write("photographs/gear/train/good/000.png", "a photograph");
    let ended = lab.vlmdiff(&["synth", "photographs", "--classes", "gear", "--size", "16", "--train", "1"]);
    assert_eq!(ended.code, Some(2));
    assert_eq!(ended.stderr, "error: photographs is not empty; name a new folder, or empty this one\n");
    assert_eq!(fs::read_to_string(lab.path("photographs/gear/train/good/000.png")).unwrap(), "a photograph");
}
