//! What people see: messages, exit codes, output.

use std::fs;

use crate::lab::{Ended, LIGHT, Lab};

fn shown(ended: &Ended) -> String {
    format!("exit {}\n--- stdout\n{}--- stderr\n{}", ended.code.unwrap_or(-1), ended.stdout, ended.stderr)
}

/// Times, sizes and speeds differ from run to run.
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
fn help_reads_well() {
    let lab = Lab::new(LIGHT);
    check("help", &lab, &["--help"]);
    check("help_run", &lab, &["run", "--help"]);
    check("no_command", &lab, &["rum"]);
}

#[test]
fn a_wrong_pipeline_is_an_error_with_a_place() {
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
    wrong("unset_variable", "root: data", "root: \"${VLMDIFF_NO_SUCH_VARIABLE}\"");
    check("no_pipeline", &lab, &["run", "nothing.yaml"]);
    check("set_unknown_table", &lab, &["run", "pipeline.yaml", "--set", "imgs.size=64"]);
    check("set_unknown_parameter", &lab, &["run", "pipeline.yaml", "--set", "images.colour=red"]);
}

#[test]
fn broken_data_is_named_and_the_rest_is_kept() {
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
fn a_dataset_that_is_none_says_what_would_be_one() {
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
    check("sql_wrong", &lab, &["sql", "select nothing from images"]);
    check("sql_read_only", &lab, &["sql", "create table x as select 1"]);
    check(
        "sql_paper",
        &lab,
        &[
            "sql",
            "select method, value from paper_results where \"table\" = 2 and metric = 'PRO' order by value desc limit 3",
        ],
    );
    let ended = lab.vlmdiff(&["sql", "select * from images", "--format", "parquet", "-o", "images.parquet"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(&fs::read(lab.path("images.parquet")).unwrap()[..4], b"PAR1");
}
