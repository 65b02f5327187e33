//! The tables that a change reruns, read from the events of real runs.

use std::fs;

use arrow::datatypes::SchemaRef;
use vlmdiff::{
    engine::{
        pipeline,
        plan::{Overrides, Planner, plan},
        source::Sources,
        stage::{Misfit, Output, Parameters, Ports, Schemas, Stage},
        store::{Event, Inventory, Store},
    },
    stages::KINDS,
};

use crate::lab::{LIGHT, Lab, TOY, computed, toy_tables};

const NONE: [(&str, u64); 0] = [];

#[test]
fn second_run_computes_nothing() {
    let lab = Lab::new(TOY);
    let first = lab.run(&[]);
    assert_eq!(computed(&first).len(), toy_tables(), "{first:?}");
    let second = lab.run(&[]);
    assert_eq!(computed(&second), NONE);
    assert_eq!(second.iter().filter(|e| matches!(e, Event::TableFresh { .. })).count(), toy_tables());
    let rows = lab.sql(
        ".vlmdiff",
        "select class, n_images, n_anomalous, image_auroc is null from metrics where protocol = 'exact'",
    );
    assert_eq!(rows, ["gear,3,2,false", "tile,3,2,false", "mean,6,4,false"]);

    // One changed test image changes one row in each row-wise table below it, and the aggregates.
    let image = lab.path("data/gear/test/good/000.png");
    fs::copy(lab.path("data/gear/train/good/000.png"), &image).unwrap();
    let touched = lab.run(&[]);
    let expected = [
        ("images", 1),
        ("captions", 0),
        ("text_embeddings", 0),
        ("latents", 1),
        ("reconstructions", 1),
        ("anomaly_maps", 1),
    ];
    for (table, rows) in expected {
        let found = computed(&touched).into_iter().find(|(name, _)| *name == table).map_or(0, |(_, rows)| rows);
        assert_eq!(found, rows, "{table}: {:?}", computed(&touched));
    }
    assert!(computed(&touched).iter().any(|(table, rows)| *table == "metrics" && *rows > 0));
    // The training split is unchanged, so nothing is trained again.
    for table in ["text_encoder", "autoencoder", "denoiser"] {
        let found = computed(&touched).into_iter().find(|(name, _)| *name == table);
        assert!(found.is_none_or(|(_, rows)| rows == 0), "{table} was trained again");
    }

    // One changed parameter changes its table and the tables below it.
    let changed = lab.run(&["--set", "anomaly_maps.sigma=2"]);
    let tables: Vec<&str> = computed(&changed).iter().map(|(table, _)| *table).collect();
    assert_eq!(tables, ["anomaly_maps", "metrics", "thresholds", "decisions", "regions", "ranking"]);
    // After the parameter is set back, nothing is computed.
    let back = lab.run(&[]);
    assert!(computed(&back).iter().all(|(_, rows)| *rows == 0), "{:?}", computed(&back));
}

#[test]
fn added_and_removed_images_change_only_their_rows() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    assert_eq!(lab.sql(".vlmdiff", "select * from counts"), ["8"]);
    fs::copy(lab.path("data/gear/train/good/000.png"), lab.path("data/gear/train/good/extra.png")).unwrap();
    assert_eq!(computed(&lab.run(&[])), [("images", 1), ("captions", 1), ("counts", 1)]);
    assert_eq!(lab.sql(".vlmdiff", "select caption from captions where image_id like '%extra.png'"), ["nothing"]);
    fs::remove_file(lab.path("data/gear/train/good/extra.png")).unwrap();
    let removed = lab.run(&[]);
    assert!(computed(&removed).iter().all(|(_, rows)| *rows == 0), "{:?}", computed(&removed));
    assert_eq!(lab.sql(".vlmdiff", "select * from counts"), ["8"]);
}

#[test]
fn moved_dataset_is_the_same_dataset() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    fs::rename(lab.path("data"), lab.path("elsewhere")).unwrap();
    assert_eq!(computed(&lab.run(&["--set", "images.root=elsewhere"])), NONE);
}

#[test]
fn changed_predicate_reuses_rows() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    lab.write("pipeline.yaml", &LIGHT.replace("split = 'train'", "split = 'train' or split = 'test'"));
    assert_eq!(computed(&lab.run(&[])), [("captions", 6), ("counts", 1)]);
}

#[test]
fn two_pipelines_share_equal_tables() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    lab.write("pipeline.yaml", &LIGHT.replace("name: light", "name: other"));
    let other = lab.run(&[]);
    assert_eq!(computed(&other), [("images", 0), ("captions", 0), ("counts", 0)]);
    assert_eq!(lab.sql(".vlmdiff", "select (select n from light.counts) + (select n from other.counts)"), ["16"]);
}

/// Returns the plan as it is printed.
fn planned(lab: &Lab, arguments: &[&str]) -> String {
    let ended = lab.vlmdiff(&[&["plan", "pipeline.yaml"], arguments].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    ended.stdout
}

#[test]
fn plan_shows_the_causes() {
    let lab = Lab::new(LIGHT);
    let mut plans = vec![("before the first run", planned(&lab, &[]))];
    lab.run(&[]);
    plans.push(("nothing changed", planned(&lab, &[])));
    plans.push(("a parameter", planned(&lab, &["--set", "captions.default=something"])));
    plans.push(("a parameter of the first table", planned(&lab, &["--set", "images.size=16"])));
    plans.push(("forced", planned(&lab, &["--force", "captions"])));
    plans.push(("a target", planned(&lab, &["--target", "captions"])));
    plans.push(("until", planned(&lab, &["--until", "images"])));
    let (image, extra) = (lab.path("data/gear/train/good/000.png"), lab.path("data/gear/train/good/extra.png"));
    fs::copy(&image, &extra).unwrap();
    plans.push(("an image more", planned(&lab, &[])));
    fs::copy(lab.path("data/tile/train/good/000.png"), &image).unwrap();
    plans.push(("and one changed", planned(&lab, &[])));
    fs::remove_file(&extra).unwrap();
    lab.run(&[]);
    fs::remove_file(lab.path("data/gear/test/good/000.png")).unwrap();
    let captions = fs::read_to_string(lab.path("data/gear/captions.jsonl")).unwrap();
    let kept: Vec<&str> = captions.lines().filter(|line| !line.contains("test/good/000.png")).collect();
    lab.write("data/gear/captions.jsonl", &(kept.join("\n") + "\n"));
    plans.push(("an image less", planned(&lab, &[])));
    lab.run(&[]);
    lab.write("pipeline.yaml", &LIGHT.replace("split = 'train'", "split = 'test'"));
    plans.push(("another predicate", planned(&lab, &[])));
    lab.write("pipeline.yaml", &LIGHT.replace("count(*) as n", "count(*) as m"));
    plans.push(("another query", planned(&lab, &[])));
    lab.write("pipeline.yaml", &LIGHT.replace("from: [captions], with", "from: [images, captions], with"));
    plans.push(("another input", planned(&lab, &[])));
    let text: Vec<String> = plans.iter().map(|(what, plan)| format!("{what}\n{plan}")).collect();
    insta::with_settings!({ prepend_module_to_snapshot => false }, { insta::assert_snapshot!("plan_says_why", text.join("\n")) });
}

/// The stage `caption` in a later revision.
#[derive(Debug)]
struct Revised(Box<dyn Stage>);

impl Parameters for Revised {
    fn params(&self) -> serde_json::Value {
        self.0.params()
    }
}

impl Stage for Revised {
    fn revision(&self) -> u32 {
        self.0.revision() + 1
    }

    fn ports(&self) -> Ports {
        self.0.ports()
    }

    fn makes(&self) -> Output {
        self.0.makes()
    }

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit> {
        self.0.output(inputs)
    }
}

#[test]
fn new_revision_of_a_stage_reruns_it() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    let store = Store::open(&lab.path(".vlmdiff").to_string_lossy()).unwrap();
    let mut kinds = KINDS.to_vec();
    kinds.iter_mut().find(|kind| kind.name == "caption").unwrap().parse = |params| {
        let kind = KINDS.iter().find(|kind| kind.name == "caption").unwrap();
        Ok(Box::new(Revised((kind.parse)(params)?)))
    };
    let root = lab.path("data").to_string_lossy().into_owned();
    let pipeline = pipeline::parse(
        "light",
        "light",
        &LIGHT.replace("root: data", &format!("root: {root}")),
        &kinds,
        &[],
        &[],
        &|_| None,
    )
    .unwrap();
    let inventory = Inventory::default();
    let planner = Planner {
        store: &store,
        sources: &Sources::default(),
        overrides: &Overrides::default(),
        inventory: &inventory,
    };
    let all = pipeline.tables.iter().map(|table| table.name.clone()).collect();
    let plans = plan(&planner, &pipeline, &all).unwrap();
    let json = serde_json::to_value(&plans).unwrap();
    assert_eq!(json[0]["state"], "fresh");
    assert_eq!(json[1]["stale"], 8);
    assert_eq!(
        json[1]["causes"][0],
        serde_json::json!({ "cause": "revision", "stage": "caption", "from": 1, "to": 2 })
    );
    assert_eq!(json[2]["state"], "stale");
}

#[test]
fn weights_are_identified_by_content() {
    let lab = Lab::new(TOY);
    let fetched = vlmdiff::models::catalogue::locate("efficientnet-lite0").unwrap_or_else(|e| panic!("{e}"));
    let weights = lab.path("weights.pth");
    fs::copy(fetched, &weights).unwrap();
    let with = ["--set", "anomaly_maps.weights=weights.pth"];
    lab.run(&with);
    // The same weights at another place are the same weights.
    fs::rename(&weights, lab.path("moved.pth")).unwrap();
    assert_eq!(computed(&lab.run(&["--set", "anomaly_maps.weights=moved.pth"])), NONE);
    // Different content under the same name is another checkpoint.
    let bytes = fs::read(lab.path("moved.pth")).unwrap();
    fs::write(&weights, [&bytes[..], b"more"].concat()).unwrap();
    let plan = planned(&lab, &with);
    assert!(plan.contains("6 of 6 rows to compute: weights.pth has changed"), "{plan}");
}

#[test]
fn failed_rows_are_retried_on_request() {
    let lab = Lab::new(&LIGHT.replace("stage: ingest,", "stage: ingest, on_error: skip,"));
    let image = lab.path("data/gear/train/good/001.png");
    fs::write(&image, b"no picture").unwrap();
    let run = |arguments: &[&str]| lab.vlmdiff(&[&["run", "pipeline.yaml"], arguments].concat());
    assert_eq!(run(&[]).code, Some(3));
    let errors = lab.sql(".vlmdiff", "select count(*), max(id) from errors");
    assert_eq!(errors, ["1,gear/train/good/001.png"]);
    let again = run(&[]);
    assert!(again.code == Some(3) && again.stderr.contains("images    fresh"), "{}", again.stderr);
    let retried = run(&["--retry-errors"]);
    assert!(retried.code == Some(3) && retried.stderr.contains("1 row failed before"), "{}", retried.stderr);
}

#[test]
fn forced_table_is_computed_again_and_equal_rows_leave_later_tables_fresh() {
    let lab = Lab::new(LIGHT);
    lab.run(&[]);
    assert_eq!(computed(&lab.run(&["--force", "captions"])), [("captions", 8)]);
    assert_eq!(computed(&lab.run(&["--target", "captions", "--force", "images"])), [("images", 14)]);
    let unknown = lab.vlmdiff(&["run", "pipeline.yaml", "--target", "caption"]);
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.stderr.contains("no table `caption`; did you mean `captions`?"), "{}", unknown.stderr);
}

/// Values alone do not identify inputs: columns that swap names and tables that swap places make different inputs.
#[test]
fn names_of_columns_and_inputs_are_part_of_the_identity() {
    let lab = Lab::new(LIGHT);
    let pipeline = |pairs: &str, from: &str| {
        let pairs = format!(
            "  pairs: {{ stage: sql, from: [images], with: {{ makes: rows, query: \"select image_id, {pairs} from images\" }} }}\n"
        );
        let others = "  ones: { stage: sql, from: [images], with: { makes: rows, query: 'select image_id, 1 as a, 1 as b from images' } }
  by_row: { stage: sql, from: [pairs], with: { makes: row_per_row, query: 'select image_id, a - b as d from pairs' } }
  chosen: { stage: sql, from: [pairs], with: { makes: rows, query: 'select image_id, a from pairs' } }
  filtered: { stage: sql, from: [pairs], where: a < b, with: { makes: row_per_row, query: 'select image_id from pairs' } }
";
        let swapped = format!(
            "  mixed: {{ stage: sql, from: {from}, with: {{ makes: row_per_row, query: 'select x.image_id, x.a - y.a as d from x join y on x.image_id = y.image_id' }} }}\n"
        );
        lab.write("pipeline.yaml", &[LIGHT, &pairs, others, &swapped].concat());
        lab.run(&[]);
        ["max(d) from by_row", "max(a) from chosen", "count(*) from filtered", "max(d) from mixed"]
            .map(|query| lab.sql(".vlmdiff", &format!("select {query}")).remove(0))
    };
    assert_eq!(pipeline("width as a, width + 1 as b", "{ x: pairs, y: ones }"), ["-1", "48", "14", "47"]);
    assert_eq!(pipeline("width as b, width + 1 as a", "{ x: pairs, y: ones }"), ["1", "49", "0", "48"]);
    assert_eq!(pipeline("width as b, width + 1 as a", "{ y: pairs, x: ones }"), ["1", "49", "0", "-48"]);
}

/// Rows that are added to two inputs, to one of them, or to one after the other, are joined as if all had been there
/// from the start.
#[test]
fn rows_that_come_to_inputs_are_joined_as_from_the_start() {
    const PAIRS: &str = "tables:
  left: { stage: read, with: { path: left.csv, id: id } }
  right: { stage: read, with: { path: right.csv, id: id } }
  big: { stage: sql, from: [left], where: n > 1, with: { makes: row_per_row, query: 'select id, 10 * n as n from left' } }
  pairs: { stage: sql, from: { a: big, b: right }, where: n < 90, with: { makes: row_per_row, query: 'select a.id, a.n + b.n as n from a join b on a.id = b.id' } }
  low: { stage: sql, from: [pairs], where: n < 40, with: { makes: row_per_row, query: 'select id, n from pairs' } }
  sums: { stage: sql, from: [low], with: { query: 'select sum(n) as n, count(*) as c from low' } }
";
    let rows = |ids: &[std::ops::Range<u32>]| {
        let rows = ids.iter().cloned().flatten().map(|i| format!("id{i:02},{i}\n"));
        "id,n\n".to_owned() + &rows.collect::<String>()
    };
    let lab = Lab::empty();
    lab.write("pipeline.yaml", PAIRS);
    // Ids are added to both inputs, to one, to the other, and between existing ones; ids are removed; then all at once.
    let steps = [
        (vec![0..4], vec![0..3], 1),
        (vec![0..5], vec![0..5], 2),
        (vec![0..8], vec![0..5], 0),
        (vec![0..8], vec![0..9, 20..30], 3),
        (vec![0..9, 20..22], vec![0..9, 20..30], 1),
        (vec![0..1, 3..9], vec![0..9], 0),
        (vec![0..12], vec![0..12, 20..30], 0),
    ];
    for (step, (left, right, new)) in steps.into_iter().enumerate() {
        lab.write("left.csv", &rows(&left));
        lab.write("right.csv", &rows(&right));
        let planned = lab.vlmdiff(&["plan", "pipeline.yaml"]).stdout;
        let events = lab.run(&[]);
        let pairs = computed(&events).into_iter().find(|(table, _)| *table == "pairs").map_or(0, |(_, rows)| rows);
        assert_eq!(pairs, new, "step {step}: {:?}\n{planned}", computed(&events));
        let fresh = format!("fresh{step}");
        lab.run(&["--store", &fresh]);
        assert_eq!(lab.contents(".vlmdiff"), lab.contents(&fresh), "step {step}");
        assert_eq!(computed(&lab.run(&[])), NONE);
    }
}
