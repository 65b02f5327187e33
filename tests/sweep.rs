//! Sweeps: the instances of tables, shared computation, and their form in SQL.

use std::fs;

use vlmdiff::{
    engine::{
        Variant, pipeline,
        pipeline::Pipeline,
        store::{Store, history},
    },
    stages::KINDS,
};

use crate::lab::{LIGHT, Lab, TOY, computed, toy_above};

fn parse(text: &str, sets: &[&str]) -> Result<Pipeline, String> {
    let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
    pipeline::parse("p.yaml", "p", text, KINDS, &[], &sets, &|_| None).map_err(|error| error.to_string())
}

fn swept(sweep: &str) -> String {
    format!("{LIGHT}sweep:{sweep}\n")
}

fn names(pipeline: &Pipeline) -> Vec<&str> {
    pipeline.tables.iter().map(|table| table.name.as_str()).collect()
}

#[test]
fn table_has_one_instance_per_value_that_it_depends_on() {
    let pipeline = parse(&swept(" { captions.default: [a, b] }"), &[]).unwrap();
    assert_eq!(
        names(&pipeline),
        ["images", "captions[default=a]", "captions[default=b]", "counts[default=a]", "counts[default=b]"]
    );
    assert_eq!(pipeline.tables[4].inputs[0].table, "captions[default=b]");
    assert_eq!(pipeline.tables[4].inputs[0].port, "captions");
    // The axes belong to two tables: `captions` depends on both, `images` on its own.
    let pipeline = parse(&swept(" { default: [a, b], size: [32, 16] }"), &[]).unwrap();
    assert_eq!(&names(&pipeline)[..3], ["images[size=32]", "images[size=16]", "captions[default=a,size=32]"]);
    assert_eq!(pipeline.tables.len(), 2 + 4 + 4);
    // Combinations are written out; equal instances exist once.
    let pipeline = parse(
        &swept("\n  - { size: 32, default: a }\n  - { size: 32, default: b }\n  - { size: 16, default: a }"),
        &[],
    )
    .unwrap();
    assert_eq!(
        &names(&pipeline)[..5],
        [
            "images[size=32]",
            "images[size=16]",
            "captions[size=32,default=a]",
            "captions[size=32,default=b]",
            "captions[size=16,default=a]"
        ]
    );
    assert_eq!(pipeline.tables.len(), 2 + 3 + 3);
}

#[test]
fn axes_with_the_same_last_name_are_named_by_their_paths() {
    let text = format!("{TOY}sweep: {{ train_steps: 1 }}\n");
    assert!(parse(&text, &[]).unwrap_err().contains("no table takes a parameter `train_steps`"));
    let text = format!("{TOY}sweep: {{ denoiser.training.steps: [4, 8], autoencoder.training.steps: [4, 8] }}\n");
    let pipeline = parse(&text, &[]).unwrap();
    let metrics: Vec<&str> = names(&pipeline).into_iter().filter(|name| name.starts_with("metrics")).collect();
    assert_eq!(metrics.len(), 4);
    assert_eq!(metrics[0], "metrics[denoiser.training.steps=4,autoencoder.training.steps=4]");
    let instances = |name: &str| pipeline.tables.iter().filter(|table| table.declared == name).count();
    assert_eq!(["text_encoder", "autoencoder", "latents", "denoiser"].map(instances), [1, 2, 2, 4]);
    // A nested parameter replaces only itself.
    let params = pipeline.tables.iter().find(|t| t.declared == "denoiser").unwrap().stage.params();
    assert_eq!(params["training"]["batch_size"], 4);
}

#[test]
fn wrong_sweep_is_an_error_with_a_place() {
    let check = |sweep: &str, expected: &str| {
        let error = parse(&swept(sweep), &[]).unwrap_err();
        assert!(error.contains(expected), "{sweep}\n  {error}\n  {expected}");
    };
    // The sweep begins on line 7.
    check(" { sise: [1] }", "p.yaml:7:10: sweep: no table takes a parameter `sise`; did you mean `size`?");
    check(" { image.size: [32] }", "7:10: sweep: there is no table `image`; did you mean `images`?");
    check(" { images.sise: [32] }", "7:10: sweep: table `images` takes no parameter `sise`; did you mean `size`?");
    check(" { size: [] }", "7:16: sweep: `size` has a list of at least one value");
    check(" { size: 32 }", "7:16: sweep: `size` has a list");
    check(" { size: [32, 16, 32] }", "7:25: the combination [size=32] is there twice");
    check(" { size: [32], images.size: [16] }", "7:22: sweep: `size` and `images.size` set the same parameter");
    check(
        "\n  - { size: 32 }\n  - { size: 16, default: a }",
        "9:17: sweep: the first combination sets size and not `default`",
    );
    check("\n  - { size: 32, default: a }\n  - { size: 16 }", "9:5: sweep: this combination does not set `default`");
    check("\n  - { size: 32 }\n  - { size: 32 }", "9:13: the combination [size=32] is there twice");
    check(" [1]", "a combination is a mapping");
    check(" all", "sweep is a mapping");
    // Every instance is checked, and the error points at the wrong value.
    check(" { size: [32, 3] }", "7:21: table `images[size=3]`");
    check(" { counts.query: [select 1 as n, select nothing from captions] }", "7:40: table `counts[query=");
    let several = swept(" { query: [select 1 as n] }")
        .replace("sweep:", "  more: { stage: sql, from: [captions], with: { query: select 1 as n } }\nsweep:");
    assert!(
        parse(&several, &[])
            .unwrap_err()
            .contains("several tables take a parameter `query`; write counts.query or more.query")
    );
    // A parameter that would be a second column of its name has its whole path for a name.
    let column = parse(&swept(" { query: [select 1 as query] }"), &[]).unwrap();
    assert!(column.tables.iter().any(|table| table.name.contains("[counts.query=")), "a whole path");
    // A parameter set in both the file and the command line is an error.
    let error = parse(&swept(" { size: [32, 16] }"), &["images.size=64"]).unwrap_err();
    assert!(error.contains("--set images.size=64: the sweep sets this parameter (p.yaml:7:10)"), "{error}");
    assert!(parse(&swept(" { size: [32, 16] }"), &["images.root=other"]).is_ok());
}

#[test]
fn seeds_run_what_depends_on_a_seed_several_times() {
    let above = toy_above("latents");
    let pipeline = parse(&format!("{above}seeds: 2\n"), &[]).unwrap();
    let (text, autoencoder) = ("text_encoder.training.seed", "autoencoder.training.seed");
    let expected = [
        "images".to_owned(),
        "captions".to_owned(),
        format!("text_encoder[{text}=0]"),
        format!("text_encoder[{text}=1]"),
        format!("text_embeddings[{text}=0]"),
        format!("text_embeddings[{text}=1]"),
        format!("autoencoder[{autoencoder}=0]"),
        format!("autoencoder[{autoencoder}=1]"),
    ];
    assert_eq!(names(&pipeline), expected);
    // Tables of one combination have one seed, and seeds multiply a sweep.
    let denoised = toy_above("reconstructions");
    let pipeline = parse(&format!("{denoised}sweep: {{ size: [32, 64] }}\nseeds: 3\n"), &[]).unwrap();
    let denoisers: Vec<&str> = names(&pipeline).into_iter().filter(|name| name.starts_with("denoiser[")).collect();
    let last = "denoiser[size=64,text_encoder.training.seed=2,autoencoder.training.seed=2,denoiser.training.seed=2]";
    assert_eq!((denoisers.len(), denoisers[5]), (6, last));

    let wrong = |end: &str| parse(&format!("{above}{end}\n"), &[]).unwrap_err();
    let line = above.lines().count() + 1;
    assert_eq!(wrong("seeds: 1"), format!("p.yaml:{line}:8: seeds is a number of seeds from 2, such as `seeds: 5`"));
    let set = format!("sweep: {{ {text}: [4, 5], {autoencoder}: [4, 5] }}\nseeds: 2");
    assert!(wrong(&set).contains("seeds: no table takes a seed that the sweep does not set"), "{}", wrong(&set));
}

#[test]
fn error_of_an_input_that_does_not_fit_is_where_it_is_read() {
    let check = |tables: &str, line: usize, column: usize, expected: &str| {
        let error = parse(&format!("{TOY}{tables}\n"), &[]).unwrap_err();
        let line = TOY.lines().count() + line;
        assert!(error.starts_with(&format!("p.yaml:{line}:{column}: table `wrong`: {expected}")), "{line} {error}");
    };
    check(
        "  small: { stage: ingest, with: { dataset: folder, root: data, size: 16 } }\n  wrong: { stage: evaluate, from: [small, anomaly_maps] }",
        2,
        43,
        "`anomaly_maps` does not fit as `anomaly_maps` of stage `evaluate`: `mask` is 16x16 and anomaly maps 32x32",
    );
    check(
        "  wrong: { stage: encode_latents, from: [reconstructions, autoencoder] }",
        1,
        42,
        "`reconstructions` does not fit as `images` of stage `encode_latents`: column `pixels` is",
    );
}

#[test]
fn only_keeps_matching_combinations() {
    let text = swept(" { default: [a, b], size: [32, 16] }");
    let only = |choices: &[&str]| {
        let mut pipeline = parse(&text, &[]).unwrap();
        let choices: Vec<String> = choices.iter().map(|choice| (*choice).to_owned()).collect();
        pipeline.only(&choices).map(|()| pipeline).map_err(|error| error.to_string())
    };
    let one = only(&["default=b", "size=16"]).unwrap();
    assert_eq!(names(&one), ["images[size=16]", "captions[default=b,size=16]", "counts[default=b,size=16]"]);
    assert_eq!(only(&["size=16", "size=32", "default=a"]).unwrap().tables.len(), 2 + 2 + 2);
    assert_eq!(
        only(&["colour=red"]).unwrap_err(),
        "--only colour=red: there is no axis `colour`; axes are default, size"
    );
    assert_eq!(only(&["size=64"]).unwrap_err(), "--only size=64: axis `size` has no value `64`; it has 32, 16");
    assert!(only(&["size"]).unwrap_err().contains("write axis=value"));
    let unswept = parse(LIGHT, &[]).unwrap().only(&["size=1".into()]).unwrap_err().to_string();
    assert_eq!(unswept, "--only size=1: the pipeline has no `sweep:`");
    // Instances that were not chosen are still declared.
    let other = Variant(vec![("size".into(), 32.into())]);
    assert!(one.declares(&other.slot("images")));
    assert!(!one.declares(&Variant::default().slot("images")));
    assert!(!one.declares("pictures"));
}

#[test]
fn ablation_is_one_query() {
    let lab = Lab::new(&swept(" { default: [nothing, something], size: [32, 16] }"));
    fs::copy(lab.path("data/gear/train/good/000.png"), lab.path("data/gear/train/good/extra.png")).unwrap();
    let events = lab.run(&["--only", "size=32"]);
    let tables: Vec<&str> = computed(&events).iter().map(|(table, _)| *table).collect();
    assert_eq!(tables.len(), 1 + 2 + 2, "{tables:?}");
    let events = lab.run(&[]);
    assert_eq!(computed(&events)[..2], [("images[size=16]", 15), ("captions[default=nothing,size=16]", 0)]);
    assert!(computed(&lab.run(&[])).is_empty());

    let sql = |query: &str| lab.sql(".vlmdiff", query);
    assert_eq!(
        sql("select size, \"default\", n from counts order by 1, 2"),
        ["16,nothing,9", "16,something,9", "32,nothing,9", "32,something,9"]
    );
    assert_eq!(sql("select size, count(*) from images group by size order by size"), ["16,15", "32,15"]);
    assert_eq!(
        sql("select \"default\", caption from captions where image_id like '%extra.png' and size = 32 order by 1"),
        ["nothing,nothing", "something,something"]
    );
    assert_eq!(sql("select count(*) from captions where size is null"), ["0"]);
    assert_eq!(sql("select arrow_typeof(size), arrow_typeof(\"default\") from counts limit 1").len(), 1);
    // The instances have pixels of different shapes, so the union has no such column.
    let all = lab.vlmdiff(&["sql", "select * from images limit 1", "--format", "csv"]).stdout;
    let header = all.lines().next().unwrap();
    assert!(!header.contains("pixels") && header.ends_with(",size"), "{header}");
    let names = sql("select table_name from information_schema.tables where table_schema = 'light' order by 1");
    assert_eq!(
        names,
        [
            "captions",
            "counts",
            "errors",
            "field_results",
            "images",
            "paper_datasets",
            "paper_results",
            "runs",
            "stage_runs"
        ]
    );
}

#[test]
fn instance_that_is_no_longer_declared_is_hidden() {
    let lab = Lab::new(&swept(" { default: [nothing, something] }"));
    lab.run(&[]);
    let values = || lab.sql(".vlmdiff", "select \"default\" from counts order by 1");
    assert_eq!(values(), ["nothing", "something"]);
    // Instances that were not chosen stay visible.
    lab.run(&["--only", "default=nothing"]);
    assert_eq!(values(), ["nothing", "something"]);
    lab.write("pipeline.yaml", &swept(" { default: [something, more] }"));
    let more = lab.run(&[]);
    // The query counts rows and reads no caption, so its result is already computed.
    let computed_now: Vec<_> = computed(&more).into_iter().filter(|(_, rows)| *rows > 0).collect();
    assert_eq!(computed_now, [("captions[default=more]", 8)]);
    assert_eq!(values(), ["more", "something"]);
    // Without the sweep there is one table and no such column. With the sweep again, nothing is computed.
    lab.write("pipeline.yaml", LIGHT);
    lab.run(&[]);
    assert_eq!(lab.sql(".vlmdiff", "select * from counts"), ["8"]);
    lab.write("pipeline.yaml", &swept(" { default: [nothing, something] }"));
    assert!(computed(&lab.run(&[])).iter().all(|(_, rows)| *rows == 0));
    assert_eq!(values(), ["nothing", "something"]);
}

#[test]
fn table_can_be_read_as_a_run_left_it() {
    let lab = Lab::new(LIGHT);
    let extra = lab.path("data/gear/train/good/extra.png");
    fs::copy(lab.path("data/gear/train/good/000.png"), &extra).unwrap();
    lab.run(&[]);
    let store = Store::open(&lab.path(".vlmdiff").to_string_lossy()).unwrap();
    let first = history::find(&store, "last").unwrap();
    history::tag(&store, "first", &first.run).unwrap();
    fs::remove_file(extra).unwrap();
    lab.run(&[]);
    let sql = |query: &str| lab.sql(".vlmdiff", query);
    assert_eq!(sql("select now.n, was.n, last.n from counts now, counts@first was, light.counts@last last"), ["8,9,8"]);
    assert_eq!(sql(&format!("select n from \"counts@{}\"", first.run)), ["9"]);
    assert_eq!(
        sql("select was.image_id from images@first was left anti join images now on was.image_id = now.image_id"),
        ["gear/train/good/extra.png"]
    );
    // Only some rows of the first run's part remain.
    assert_eq!(
        sql("select count(*) from images where split = 'train' and image_id > 'gear/train/good/000.png'"),
        ["7"]
    );
    let wrong = |query: &str, expected: &str| {
        let ended = lab.vlmdiff(&["sql", query]);
        assert_eq!(ended.code, Some(2));
        assert!(ended.stderr.contains(expected), "{}", ended.stderr);
    };
    wrong("select * from counts@never", "error: the store has no run `never`; it has the tags first and 2 runs");
    wrong("select * from metrics@first", "run `first` has no table `metrics`; it has captions, counts, images");
}

#[test]
fn bare_names_refer_to_the_pipeline_that_ran_last() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    lab.write("other.yaml", &LIGHT.replace("name: light", "name: other").replace("count(*) as n", "-1 as n"));
    assert_eq!(lab.vlmdiff(&["run", "other.yaml", "--quiet"]).code, Some(0));
    assert_eq!(lab.sql(".vlmdiff", "select distinct n from counts"), ["-1"]);
    lab.run(&[]);
    assert_eq!(lab.sql(".vlmdiff", "select n from counts"), ["8"]);
}

#[test]
fn session_may_make_its_own_tables() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    let run = |statements: &str, allowed: bool| {
        use std::io::Write;
        let arguments = ["sql", "--format", "csv", "--allow-write"];
        let mut command = lab.command(&arguments[..if allowed { 4 } else { 3 }]);
        command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(statements.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
    };
    let made = "create table best as select n + 1 as m from counts; select m from best;";
    assert_eq!(run(made, true), ("m\n9\n".into(), String::new()));
    assert!(run(made, false).1.contains("--allow-write"));
    for statement in
        ["drop table counts", "create or replace table counts as select 1", "insert into counts values (1)"]
    {
        let (stdout, stderr) = run(statement, true);
        assert!(stdout.is_empty() && stderr.starts_with("error: "), "{statement}: {stdout}{stderr}");
    }
    assert_eq!(run("copy counts to 'counts.parquet'; select 1 as done", true).1, "");
    assert!(lab.path("counts.parquet").exists());
    assert_eq!(lab.sql(".vlmdiff", "select n from counts"), ["8"]);
}
