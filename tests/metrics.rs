//! The same metrics by the stage, by SQL over published tables, and by SQL as a stage.

use crate::lab::{Lab, project};

pub(crate) const PIPELINE: &str = r#"
name: measured
tables:
  images: { stage: ingest, with: { dataset: folder, root: data, size: 64 } }
  anomaly_maps:
    stage: command
    from: [images]
    where: split = 'test'
    with:
      run: python3 maps.py
      columns: [pixels]
      output: { map: "float16[64,64]", score: float32 }
  metrics: { stage: evaluate, from: [images, anomaly_maps], with: { protocol: [exact, reference, ader] } }
  measured:
    stage: sql
    from: [images, anomaly_maps]
    with:
      query: "select class, auroc(score, label) as image_auroc, average_precision(score, label) as image_ap,
        f1_max(score, label) as image_f1_max, pixel_auroc(map, mask) as pixel_auroc, pixel_ap(map, mask) as pixel_ap,
        pixel_f1_max(map, mask) as pixel_f1_max, aupro(map, mask, 0.3) as aupro
        from images join anomaly_maps using (image_id) group by class order by class"
"#;

/// A program that makes maps of the saturation of images.
pub(crate) const MAPS: &str = r#"
import sys
import pyarrow as pa

rows = pa.ipc.open_stream(sys.stdin.buffer)
schema = pa.schema([("image_id", pa.string()), ("map", pa.list_(pa.float16(), 64 * 64)), ("score", pa.float32())])
with pa.ipc.new_stream(sys.stdout.buffer, schema) as answers:
    for batch in rows:
        maps, scores = [], []
        for p in batch["pixels"].storage.to_pylist():
            values = [max(p[i:i + 3]) - min(p[i:i + 3]) for i in range(0, len(p), 3)]
            scores.append(max(values) / 255)
            maps.append(pa.array([v / 255 for v in values], pa.float32()).cast(pa.float16()).to_pylist())
        answers.write_batch(pa.RecordBatch.from_pydict({"image_id": batch["image_id"], "map": maps, "score": scores}, schema))
        sys.stdout.flush()
"#;

pub(crate) fn lab(pipeline: &str) -> Lab {
    let tools = project().join(".tools/python/pyarrow");
    assert!(tools.exists(), "programs in Python need pyarrow; run `python3 setup/fetch.py tools`");
    let lab = Lab::new(pipeline);
    lab.write("maps.py", MAPS);
    lab.run(&[]);
    lab
}

#[test]
fn sql_and_the_stage_compute_the_same_metrics() {
    let lab = lab(PIPELINE);
    let columns = "class, image_auroc, image_ap, image_f1_max, pixel_auroc, pixel_ap, pixel_f1_max, aupro";
    let by_stage = lab.sql(
        ".vlmdiff",
        &format!("select {columns} from metrics where protocol = 'exact' and class <> 'mean' order by class"),
    );
    assert_eq!(by_stage.len(), 2);
    assert!(by_stage.iter().all(|row| !row.contains(",,") && !row.ends_with(',')), "{by_stage:?}");
    assert_eq!(lab.sql(".vlmdiff", &format!("select {columns} from measured")), by_stage);
    let query = PIPELINE.split("query: \"").nth(1).unwrap().split('"').next().unwrap();
    assert_eq!(lab.sql(".vlmdiff", query), by_stage);

    // The metric is computed without groups, over some rows, and over none.
    let auroc = "select auroc(score, label) from images join anomaly_maps using (image_id)";
    assert_eq!(lab.sql(".vlmdiff", auroc).len(), 1);
    let filtered = format!("{auroc} where class = 'gear'");
    let of_class = "select image_auroc from metrics where class = 'gear' and protocol = 'exact'";
    assert_eq!(lab.sql(".vlmdiff", &filtered), lab.sql(".vlmdiff", of_class));
    assert_eq!(lab.sql(".vlmdiff", &format!("{auroc} where class = 'none'")), ["\"\""]);
    // A score may be any number, and a label may be an integer.
    let whole =
        "select auroc(cast(score * 1000 as int), cast(label as int)) from images join anomaly_maps using (image_id)";
    assert_eq!(lab.sql(".vlmdiff", whole).len(), 1);
}

/// The protocols differ in their own rules and agree where they share them.
#[test]
fn protocols_have_separate_rows_with_their_own_metrics() {
    let lab = lab(PIPELINE);
    let rows = lab.sql(".vlmdiff", "select protocol, class, n_images, n_anomalous from metrics");
    let expected = ["exact", "reference", "ader"]
        .map(|name| [format!("{name},gear,3,2"), format!("{name},tile,3,2"), format!("{name},mean,6,4")]);
    assert_eq!(rows, expected.concat());
    let same = "select count(distinct pixel_ap) from metrics where protocol in ('exact', 'ader') and class = 'gear'";
    assert_eq!(lab.sql(".vlmdiff", same), ["1"]);
    let different = "select count(distinct aupro) from metrics where class = 'gear'";
    assert_eq!(lab.sql(".vlmdiff", different), ["3"]);
    // The grey mask is null exactly if the mask is.
    let known = "select count(*) from images where (mask_grey is null) <> (mask is null)";
    assert_eq!(lab.sql(".vlmdiff", known), ["0"]);

    let one = lab.vlmdiff(&["run", "pipeline.yaml", "--quiet", "--set", "metrics.protocol=reference"]);
    assert_eq!(one.code, Some(0), "{}", one.stderr);
    assert_eq!(lab.sql(".vlmdiff", "select distinct protocol from metrics"), ["reference"]);
    let wrong = lab.vlmdiff(&["run", "pipeline.yaml", "--quiet", "--set", "metrics.protocol=paper"]);
    assert!(
        wrong.stderr.contains("a protocol is `exact`, `reference`, `ader`, `mvtec`, `mvtec_ad_2`, `anomalib_1`, `anomalib_2` or `adeval`, or a list of them"),
        "{}",
        wrong.stderr
    );
}

/// The pipeline with the protocols of other programs, whose maps include those of images that are held out of training.
fn of_programs() -> String {
    let protocols = "[exact, mvtec, mvtec_ad_2, anomalib_1, anomalib_2, adeval], bootstrap: { resamples: 200 }";
    let [ingest, maps] = ["root: data, size: 64", "where: split = 'test'"];
    assert!(PIPELINE.contains(ingest) && PIPELINE.contains(maps));
    PIPELINE
        .replace(ingest, "root: data, size: 64, hold_out: 0.5")
        .replace(maps, "where: split <> 'train'")
        .replace("[exact, reference, ader]", protocols)
}

#[test]
fn protocols_of_programs_have_the_metrics_that_these_compute() {
    let lab = lab(&of_programs());
    let ask = |query: &str| lab.sql(".vlmdiff", query);
    // The images of the calibration give a threshold and count in nothing else.
    let counts = "select distinct n_images, n_anomalous from metrics where class = 'gear'";
    assert_eq!(ask(counts), ["3,2"]);
    let thresholds = "select distinct protocol from metrics where pixel_f1 is not null";
    assert_eq!(ask(thresholds), ["mvtec_ad_2"]);
    // AUPRO up to 0.3 is one number by three programs.
    let areas = |protocols: &str| {
        ask(&format!("select count(distinct aupro) from metrics where class = 'gear' and protocol in ({protocols})"))
    };
    assert_eq!(areas("'exact', 'mvtec', 'anomalib_2'"), ["1"]);
    assert_eq!(areas("'exact', 'mvtec_ad_2', 'anomalib_1'"), ["3"]);
    let null = "count(image_ap) + count(image_f1_max) + count(pixel_auroc) + count(pixel_ap) + count(pixel_f1_max)";
    assert_eq!(ask(&format!("select {null} from metrics where protocol = 'mvtec'")), ["0"]);
    assert_eq!(ask("select count(image_f1_max) + count(pixel_f1_max) from metrics where protocol = 'adeval'"), ["0"]);
}

#[test]
fn intervals_are_shares_and_the_same_in_every_run() {
    let lab = lab(&of_programs());
    for metric in ["image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro"] {
        let outside = format!(
            "select count(*) from metrics where {metric} is not null \
             and not coalesce(0 <= {metric}_low and {metric}_low <= {metric}_high and {metric}_high <= 1, false)"
        );
        assert_eq!(lab.sql(".vlmdiff", &outside), ["0"], "{metric}");
    }
    let wide = "select count(*) > 0 from metrics where protocol = 'exact' and pixel_auroc_low < pixel_auroc_high";
    assert_eq!(lab.sql(".vlmdiff", wide), ["true"]);
    let all = "select * from metrics order by protocol, class";
    let first = lab.sql(".vlmdiff", all);
    lab.run(&["--store", "again", "--threads", "1"]);
    assert_eq!(lab.sql("again", all), first);
    let seed = lab.vlmdiff(&["run", "pipeline.yaml", "--quiet", "--set", "metrics.bootstrap.seed=1"]);
    assert_eq!(seed.code, Some(0), "{}", seed.stderr);
    assert_ne!(lab.sql(".vlmdiff", all), first);
}

#[test]
fn error_of_metrics_names_the_argument_that_does_not_fit() {
    let lab = lab(PIPELINE);
    for (select, message) in [
        ("auroc(class, label)", "error: auroc(score, label): `score` is utf8, not a number\n"),
        ("auroc(score)", "error: auroc(score, label): it was given 1 argument\n"),
        ("pixel_auroc(score, mask)", "pixel_auroc(map, mask): `map` is float32, not a list of floats"),
        ("aupro(map, mask, 2)", "aupro(map, mask, limit): `limit` is 2, not a number above 0 and up to 1"),
        ("pixel_f1(map, mask, score)", "error: pixel_f1(map, mask, threshold): `threshold` is a column, not a number"),
        ("aupro(map, mask, score)", "error: aupro(map, mask, limit): `limit` is a column, not a number"),
        ("aupro(map, map, 0.3)", "aupro(map, mask, limit): `mask` is a list of float16, not a list of whole"),
        ("auroc(score / 0 - score / 0, label)", "auroc(score, label): the score is NaN"),
        ("pixel_ap(map, pixels)", "pixel_ap(map, mask): anomaly map has 4096 pixels, its mask 12288"),
    ] {
        let query = format!("select {select} from images join anomaly_maps using (image_id)");
        let ended = lab.vlmdiff(&["sql", &query]);
        assert_eq!(ended.code, Some(2), "{select}: {}", ended.stdout);
        assert!(ended.stderr.contains(message), "{select}: {}", ended.stderr);
    }
    // the class would be mistaken for the row of means
    std::fs::rename(lab.path("data/gear"), lab.path("data/mean")).unwrap();
    let ended = lab.vlmdiff(&["run", "pipeline.yaml", "--quiet"]);
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    assert!(ended.stderr.contains("a class `mean` would be taken for the mean over classes"), "{}", ended.stderr);
}
