//! Laws that every stage of the registry obeys.

use std::{collections::BTreeMap, sync::Mutex, time::Duration};

use serde_json::Value;
use vlmdiff::{
    engine::{
        Error, Result, Stop,
        identity::fingerprint,
        pipeline,
        run::{Executor, InProcess, Options, Settings, Update, run},
        source::Sources,
        stage::{Place, Report, Stage, StageKind, Task, Unit},
        store::{Store, read_table},
    },
    query::TABLES_OF_SQL,
    stages::{KINDS, open_in_worker},
};

use crate::lab::{Lab, TOY, toy_tables};

#[test]
fn every_parameter_is_documented() {
    for kind in KINDS {
        assert!(!kind.about().is_empty(), "{} has no documentation", kind.name);
        let schema = (kind.schema)().to_value();
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            let described = property.get("description").is_some() || property.get("$ref").is_some();
            assert!(described, "{}.{name} has no documentation: {property}", kind.name);
        }
    }
}

#[test]
fn unknown_parameter_is_refused_by_every_stage() {
    for kind in KINDS {
        let error = (kind.parse)(&serde_json::json!({ "nonsense": 1 })).unwrap_err();
        assert!(
            error.message.contains("nonsense") || error.message.contains("missing field"),
            "{}: {}",
            kind.name,
            error.message
        );
    }
}

/// Any change of a parameter's value changes the stage's fingerprint; writing a default explicitly does not.
#[test]
fn parameters_are_part_of_the_identity() {
    let text = TOY.replace("root: data", "root: /");
    let toy = pipeline::parse("toy", "toy", &text, KINDS, &[], &[], &|_| None).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for table in &toy.tables {
        seen.insert(table.kind.name);
        let params = table.stage.params();
        let of =
            |stage: &dyn Stage| fingerprint(table.kind.name, stage.revision(), &stage.identity(), &[], &table.output);
        let again = (table.kind.parse)(&params).unwrap();
        assert_eq!(params, again.params(), "{}: parameters do not survive being written out", table.kind.name);
        let mut leaves = Vec::new();
        collect(&params, &mut Vec::new(), &mut leaves);
        for path in leaves {
            let mut changed = params.clone();
            mutate(&mut changed, &path);
            if let Ok(stage) = (table.kind.parse)(&changed) {
                // Places are not part of the identity; all other parameters are.
                let is_place = table.stage.locations().contains(&path.join(".").as_str());
                assert_eq!(of(&*table.stage) == of(&*stage), is_place, "{}: {path:?}", table.kind.name);
            }
        }
    }
    // published weights are not available here
    let all: std::collections::BTreeSet<&str> =
        KINDS.iter().map(|kind| kind.name).filter(|name| *name != "pretrained").collect();
    assert_eq!(seen, all, "the toy pipeline is to use every stage");
}

fn collect(value: &Value, path: &mut Vec<String>, out: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            path.push(key.clone());
            collect(value, path, out);
            path.pop();
        }),
        Value::Number(_) | Value::Bool(_) | Value::String(_) => out.push(path.clone()),
        _ => {}
    }
}

fn mutate(value: &mut Value, path: &[String]) {
    let leaf = path.iter().fold(value, |value, key| &mut value[key.as_str()]);
    *leaf = match &*leaf {
        Value::Number(n) if n.is_f64() => (n.as_f64().unwrap() * 0.5 + 0.25).into(),
        Value::Number(n) => (n.as_u64().unwrap_or_default() + 1).into(),
        Value::Bool(b) => (!b).into(),
        Value::String(text) => format!("{text} ").into(),
        other => other.clone(),
    };
}

#[test]
fn every_stage_accepts_the_example_of_its_documentation() {
    for kind in KINDS {
        let example = kind.example().unwrap_or_else(|| panic!("{} has no example", kind.name));
        let stage = (kind.parse)(&example).unwrap_or_else(|e| panic!("{}: {}: {}", kind.name, e.path, e.message));
        let is_opened = kind.opened_here(&*stage).is_some();
        let in_worker = kind.in_worker && stage.place() == Place::Worker;
        assert!(in_worker != is_opened, "{} is opened in one process", kind.name);
    }
}

/// A row's result depends on the row and on seeds, not on neighbouring rows. Other images come before it, and no row
/// is lost.
#[test]
fn rows_do_not_depend_on_the_other_rows() {
    let lab = Lab::new(TOY);
    lab.run(&["--until", "anomaly_maps"]);
    let read = "select image_id, sum(p) from (select image_id, unnest(latent) as p from reconstructions) \
                where image_id like 'gear%' group by 1 order by 1";
    let whole = lab.sql(".vlmdiff", read);
    lab.write("pipeline.yaml", &TOY.replace("split = 'test'", "split = 'test' and class = 'gear'"));
    // Reconstructions that are already computed would be reused, so they are forced.
    lab.run(&["--until", "anomaly_maps", "--force", "reconstructions"]);
    let few = lab.sql(".vlmdiff", read);
    assert_eq!((whole.len(), few.len()), (3, 3));
    for (a, b) in whole.iter().zip(&few) {
        let (id, a) = a.rsplit_once(',').unwrap();
        let (other, b) = b.rsplit_once(',').unwrap();
        let (a, b): (f64, f64) = (a.trim().parse().unwrap(), b.trim().parse().unwrap());
        assert!(id == other && (a - b).abs() < 2e-3 * a.abs().max(1.), "{id}: {a} {b}");
    }
}

/// The same inputs make the same tables in every stage, whatever the task boundaries.
#[test]
fn tables_do_not_depend_on_the_sizes_of_tasks() {
    let lab = Lab::new(TOY);
    lab.run(&[]);
    lab.run(&["--store", "cut", "--task-rows", "3"]);
    let (whole, cut) = (lab.contents(".vlmdiff"), lab.contents("cut"));
    assert_eq!(whole.len(), toy_tables());
    // Results of networks for single images and for batches differ in the last digits, so their tables are compared
    // by value.
    for ((table, a), (_, b)) in whole.iter().zip(&cut).filter(|((table, _), _)| {
        ["images", "captions", "text_encoder", "autoencoder", "notes", "copied"].contains(&table.as_str())
    }) {
        assert_eq!(a, b, "{table}");
    }
    let scores = |store| {
        lab.sql(store, "select score from anomaly_maps order by image_id")
            .iter()
            .map(|s| s.parse::<f64>().unwrap())
            .collect::<Vec<_>>()
    };
    for (a, b) in scores(".vlmdiff").iter().zip(&scores("cut")) {
        assert!((a - b).abs() < 2e-3 * a.abs().max(0.1), "{a} {b}");
    }
}

/// An executor whose tasks find a stop requested as soon as they begin.
struct Interrupting {
    store: Store,
    /// By stage and parameters.
    work: Mutex<BTreeMap<(String, String), Work>>,
}

/// The work of a stage over all its tasks.
#[derive(Default)]
struct Work {
    interruptions: usize,
    /// The steps of a training, as they were reported.
    steps: Vec<u64>,
    /// The rows that were committed.
    rows: u64,
}

impl Executor for Interrupting {
    fn slots(&self) -> usize {
        1
    }

    fn run(
        &self,
        tasks: &mut dyn Iterator<Item = Result<Task>>,
        on: &mut dyn FnMut(Update) -> Result<()>,
    ) -> Result<()> {
        for task in tasks {
            let task = task?;
            let (stage, params) = (task.job.stage.clone(), task.job.params.to_string());
            let kind = KINDS.iter().find(|kind| kind.name == stage).unwrap();
            let open = kind.open_here.or_else(|| open_in_worker(&stage)).unwrap();
            let stop = Stop::default();
            stop.request();
            let settings = Settings { batch_size: Some(4), ..Settings::default() };
            let executor = InProcess::new(self.store.clone(), stop, settings, open);
            let mut work = self.work.lock().unwrap();
            let Work { interruptions, steps, rows } = work.entry((stage.clone(), params)).or_default();
            let before = (steps.len(), *rows);
            // The first report of a training is that of the step from which it goes on.
            let mut goes_on_from = None;
            let ended = executor.run(&mut std::iter::once(Ok(task)), &mut |update| {
                match &update {
                    Update::Report { report: Report::Progress { done, unit: Unit::Steps, .. }, .. } => {
                        match goes_on_from {
                            None => goes_on_from = Some(*done),
                            Some(_) => steps.push(*done),
                        }
                    }
                    Update::Report { report: Report::Committed { rows: new, .. }, .. } => *rows += new,
                    _ => {}
                }
                on(update)
            });
            assert!(goes_on_from.is_none_or(|step| step == before.0 as u64), "{stage}: {goes_on_from:?}, {steps:?}");
            assert!(steps.iter().copied().eq(1..=steps.len() as u64), "{stage} did steps again: {steps:?}");
            if matches!(ended, Err(Error::Interrupted)) {
                assert_ne!(before, (steps.len(), *rows), "{stage} was interrupted before it did anything");
                *interruptions += 1;
            }
            ended?;
        }
        Ok(())
    }
}

/// A stage that answers [`Error::Interrupted`] has saved what it did. Runs that are interrupted after every step of a
/// training and every batch of rows come to an end, and no step and no row is done twice.
#[test]
fn interrupted_stage_has_saved_what_it_did() {
    tch::set_num_threads(1);
    let lab = Lab::new("");
    let text = TOY.replace("root: data", &format!("root: '{}'", lab.path("data").display()));
    // All stages run in this process.
    let kinds: Vec<StageKind> = KINDS.iter().map(|kind| StageKind { open_here: None, ..*kind }).collect();
    let toy = pipeline::parse("toy", "toy", &text, &kinds, &[], &[], &|_| None).unwrap();
    let store = Store::open(&lab.path("store").to_string_lossy()).unwrap();
    let executor = Interrupting { store: store.clone(), work: Mutex::default() };
    let tables = toy.tables.iter().map(|table| table.name.clone()).collect();
    let options = Options { task_rows: Some(100), save_every: Duration::MAX, tables, ..Options::default() };
    let once = || run(&toy, &store, &Sources::default(), &options, &executor, &mut |_| {});
    let runs = (1..1000).find(|_| match once() {
        Ok(_) => true,
        Err(Error::Interrupted) => false,
        Err(error) => panic!("{error}"),
    });
    let work = executor.work.into_inner().unwrap();
    assert_eq!(runs, Some(1 + work.values().map(|work| work.interruptions).sum::<usize>()));
    let trainings: Vec<&str> = KINDS.iter().map(|kind| kind.name).filter(|name| name.starts_with("train_")).collect();
    for table in &toy.tables {
        let of = (table.kind.name.to_owned(), table.stage.params().to_string());
        let Work { interruptions, steps, rows } = &work[&of];
        if trainings.contains(&table.kind.name) {
            assert_eq!((*interruptions, &steps[..]), (3, &[1, 2, 3, 4][..]), "{}", table.name);
        }
        let (_, manifest) = store.published("toy", &table.name).unwrap().whole().unwrap().unwrap();
        assert_eq!(*rows, manifest.rows, "{}: rows were computed again", table.name);
    }
    let by_row = ["encode_text", "encode_latents", "reconstruct", "score_latents", "anomaly_maps", "extract", "detect"];
    let mut of_rows = work.iter().filter(|((stage, _), _)| by_row.contains(&stage.as_str()));
    assert!(of_rows.all(|(_, work)| work.interruptions > 0), "rows are no longer interrupted");
}

/// A plan reads the listing for rows that are still to be computed, so the listing must have the values that the
/// stage writes.
#[test]
fn listed_columns_have_the_values_that_are_written() {
    let lab = Lab::new("");
    let root = lab.path("data").to_string_lossy().into_owned();
    let text = format!(
        "name: listings\ntables:
  images: {{ stage: ingest, with: {{ dataset: folder, root: '{root}', size: 16 }} }}
  tiles: {{ stage: ingest, with: {{ dataset: folder, root: '{root}', size: [16, 32], tile: {{ overlap: 8 }} }} }}
  products: {{ stage: ingest, with: {{ dataset: synthetic, size: 32, synthetic: {{ classes: [tile], train: 2, test_good: 1, test_per_defect: 1 }} }} }}
  notes: {{ stage: read, with: {{ path: '{}/tests/notes.csv', id: image_id }} }}\n",
        crate::lab::project().display()
    );
    lab.write("pipeline.yaml", &text);
    lab.run(&[]);
    let store = Store::open(&lab.path(".vlmdiff").to_string_lossy()).unwrap();
    let pipeline = pipeline::parse("listings", "listings", &text, KINDS, &[], &[], &|_| None).unwrap();
    for table in &pipeline.tables {
        let listed = table.stage.list(&Sources::default()).unwrap().unwrap().rows;
        let (_, manifest) = store.published("listings", &table.name).unwrap().whole().unwrap().unwrap();
        let is_written = |field: &&std::sync::Arc<arrow::datatypes::Field>| {
            table.output.field_with_name(field.name()).is_ok_and(|out| out.data_type() == field.data_type())
        };
        let shared: Vec<String> =
            listed.schema().fields().iter().filter(is_written).map(|field| field.name().clone()).collect();
        assert!(shared.len() > 1, "{}: {shared:?}", table.name);
        let schema = std::sync::Arc::new(
            manifest
                .schema()
                .unwrap()
                .project(
                    &shared.iter().map(|name| manifest.schema().unwrap().index_of(name).unwrap()).collect::<Vec<_>>(),
                )
                .unwrap(),
        );
        let written = read_table(&store, &manifest.parts, &shared, &schema).unwrap();
        let rows = |batch: &arrow::array::RecordBatch| {
            let columns = shared.iter().map(|name| batch.column_by_name(name).unwrap().clone());
            let options = arrow::util::display::FormatOptions::default().with_null("null");
            let columns: Vec<_> = columns.collect();
            let shown: Vec<_> = columns
                .iter()
                .map(|column| arrow::util::display::ArrayFormatter::try_new(column.as_ref(), &options).unwrap())
                .collect();
            let row = |row| shown.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>();
            (0..batch.num_rows()).map(row).collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(rows(&listed), rows(&written), "{}", table.name);
    }
}

#[test]
fn generated_schemas_are_current() {
    let lab = Lab::empty();
    let ended = lab.vlmdiff(&["schema", "--output", "schemas"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    for entry in std::fs::read_dir(lab.path("schemas")).unwrap() {
        let entry = entry.unwrap();
        let kept = crate::lab::project().join("schemas").join(entry.file_name());
        let [written, kept] = [entry.path(), kept].map(|path| std::fs::read_to_string(path).unwrap_or_default());
        assert!(written == kept, "schemas/{} is stale; run `vlmdiff schema`", entry.file_name().display());
    }
}

/// The shipped pipelines load without changes.
#[test]
fn shipped_pipelines_load() {
    for entry in std::fs::read_dir(crate::lab::project().join("pipelines")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            continue;
        }
        let loaded = pipeline::load(&path, KINDS, &TABLES_OF_SQL, &[]).unwrap();
        assert!(loaded.tables.iter().any(|table| table.kind.name == "evaluate"), "{}", path.display());
    }
}

/// Returns the tables of a shipped pipeline with their parameters and inputs, up to a table.
fn shipped(name: &str, sweep: &str, last: &str) -> Vec<(String, Value, Vec<String>)> {
    let path = crate::lab::project().join("pipelines").join(name);
    let text = std::fs::read_to_string(path).unwrap() + sweep;
    let loaded = pipeline::parse(name, name, &text, KINDS, &[], &[], &|_| None).unwrap();
    let end = loaded.tables.iter().rposition(|table| table.declared == last).unwrap();
    let table = |table: &pipeline::Table| {
        let inputs = table.inputs.iter().map(|input| input.table.clone()).collect();
        (table.name.clone(), table.stage.params(), inputs)
    };
    loaded.tables[..=end].iter().map(table).collect()
}

/// The ablation of captions reuses the networks that the quickstart has trained.
#[test]
fn captions_pipeline_shares_the_networks_of_the_quickstart() {
    assert_eq!(shipped("captions.yaml", "", "denoiser"), shipped("quickstart.yaml", "", "denoiser"));
    let metrics = shipped("captions.yaml", "", "metrics");
    let variants = metrics.iter().filter(|(name, ..)| name.starts_with("metrics[query=select * from "));
    assert_eq!(variants.count(), 4);
}

/// The pipeline is the one in docs/pipelines.md.
#[test]
fn sweep_over_seeds_trains_the_networks_once_per_seed() {
    let reference = std::fs::read_to_string(crate::lab::project().join("docs/pipelines.md")).unwrap();
    let start = reference.find("sweep: [{ text_encoder.training.seed").unwrap();
    let sweep = reference[start..].split("```").next().unwrap();
    let tables = shipped("quickstart.yaml", &format!("\n{sweep}"), "metrics");
    let instances = |table: &str| tables.iter().filter(|(name, ..)| name.split('[').next() == Some(table)).count();
    assert_eq!(["images", "captions", "latents", "denoiser", "metrics"].map(instances), [1, 1, 1, 3, 3]);
}
