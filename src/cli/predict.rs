//! `vlmdiff predict`

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Result;
use clap::Args;
use serde_json::{Value, json};

use super::{
    EXIT_ANOMALOUS, EXIT_DONE, EXIT_SKIPPED, PipelineArgs,
    progress::Progress,
    run::{default_threads, device, stop_at_signals, worker_program},
    text::{print, say},
};
use crate::{
    datasets::folder::is_image,
    engine::{
        Error, Hasher, Stop,
        pipeline::{Input, OnError, Pipeline, Table},
        run,
        run::{Settings, Workers},
        source::Sources,
        stage::{Reads, row_of_piece},
        store::{Event, RowError, Store},
    },
    query::Session,
    tables::{
        Role,
        column::text,
        decisions::Decision,
        images::{CLASS, IMAGE_ID},
        tiles,
    },
};

/// Judge new photographs by a pipeline that has run.
///
/// The photographs go through the tables of the pipeline, from its photographs down to its decisions. What was fitted,
/// trained or calibrated is taken as the last run left it. A photograph that was judged before costs nothing.
#[derive(Args)]
#[command(after_help = "\
Examples:
  vlmdiff predict pipelines/inspect.yaml new.png
  vlmdiff predict pipelines/inspect.yaml today/ --class gear --json
  vlmdiff predict pipelines/inspect.yaml --watch incoming/

Exit codes:
  0 no photograph is anomalous, 3 a photograph could not be read, 4 a photograph is anomalous")]
pub(super) struct Predict {
    #[command(flatten)]
    pipeline: PipelineArgs,
    /// Photographs, and folders of them.
    #[arg(required_unless_present = "watch")]
    photographs: Vec<PathBuf>,
    /// The class of the photographs. Default: the class of the pipeline's photographs, if there is one alone.
    #[arg(long)]
    class: Option<String>,
    /// Judge photographs as they appear in this folder, until the command is interrupted.
    #[arg(long, value_name = "FOLDER")]
    watch: Option<PathBuf>,
    /// Print a JSON object for each photograph.
    #[arg(long)]
    json: bool,
    /// The device to compute on: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto", value_parser = device)]
    device: String,
}

/// The folder of links to photographs.
const LINKS: &str = "photographs";
/// The interval at which a watched folder is listed.
const WATCH_EVERY: Duration = Duration::from_millis(200);

/// The tables of a pipeline that new photographs go through.
struct Route {
    /// The table of photographs.
    images: String,
    /// The tables that read photographs, that of their tiles among them, with the names of the parameters that the
    /// pipeline gives.
    readers: Vec<(String, BTreeSet<String>)>,
    /// The table of decisions.
    decisions: String,
    /// All tables that are computed for new photographs, in the order of the file.
    computed: Vec<String>,
    /// The tables that are taken as they are.
    taken: Vec<String>,
}

impl Predict {
    pub(super) fn run(self) -> Result<u8> {
        let (mut pipeline, store) = self.pipeline.open()?;
        let route = Route::of(&pipeline)?;
        let name = format!("{}_predict", pipeline.name);
        let model = share(&store, &pipeline, &name, &route)?;
        let class = self.class(&store, &pipeline.name, &route)?;
        let stop = Stop::default();
        let settings = Settings { device: self.device.clone(), ..Settings::default() };
        let workers = Workers::new(&store, worker_program()?, vec![settings.clone()], default_threads(), &stop);
        stop_at_signals(&store, &stop, &Progress::new(&BTreeSet::new(), true))?;
        let folder = tempfile::tempdir()?;
        // A file that is still being copied is judged again when it has grown.
        let mut judged: BTreeSet<(PathBuf, u64)> = BTreeSet::new();
        let mut worst = EXIT_DONE;
        loop {
            let mut new = files(&self.photographs)?;
            new.extend(files(self.watch.as_slice())?);
            let size = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
            new.retain(|path| judged.insert((path.clone(), size(path))));
            if !new.is_empty() {
                let manifest = write_manifest(folder.path(), &new, &class)?;
                pipeline = self.reading(&manifest, &name, &route)?;
                let options = run::Options {
                    settings: settings.clone(),
                    task_rows: None,
                    save_every: Duration::MAX,
                    tables: route.computed.iter().cloned().collect(),
                    overrides: Default::default(),
                    stop: stop.clone(),
                    verify: false,
                    git_commit: None,
                    host: gethostname::gethostname().to_string_lossy().into_owned(),
                };
                run::run(&pipeline, &store, &Sources::default(), &options, &workers, &mut |event| {
                    if let Event::Note { table, message } = event {
                        say(format!("{table}: {message}"));
                    }
                })?;
                worst = worst.max(self.print(&store, &name, &route, &model)?);
            }
            if self.watch.is_none() {
                return Ok(worst);
            }
            if stop.is_requested() {
                return Err(Error::Interrupted.into());
            }
            std::thread::sleep(WATCH_EVERY);
        }
    }

    /// Returns the pipeline with these photographs in place of its own. Rows that fail are left out.
    fn reading(&self, manifest: &Path, name: &str, route: &Route) -> Result<Pipeline> {
        let manifest = manifest.display().to_string();
        let mut sets = self.pipeline.sets.clone();
        for (table, given) in &route.readers {
            let set = |parameter: &str, value: &str| format!("{table}.{parameter}={value}");
            sets.retain(|set| !set.starts_with(&format!("{table}.root")));
            sets.extend([set("dataset", "manifest"), set("root", &manifest), set("columns", "{ id: id }")]);
            // Parameters of other layouts than a manifest.
            let others =
                [("good", "[]"), ("bad", "[]"), ("unlabelled", "[]"), ("synthetic", "null"), ("hold_out", "0")];
            sets.extend(others.iter().filter(|(name, _)| given.contains(*name)).map(|(name, none)| set(name, none)));
        }
        let args = PipelineArgs {
            pipeline: self.pipeline.pipeline.clone(),
            sets,
            only: self.pipeline.only.clone(),
            store: None,
        };
        let mut pipeline = args.load()?;
        pipeline.name = name.to_owned();
        for table in pipeline.tables.iter_mut().filter(|table| route.computed.contains(&table.name)) {
            table.on_error = OnError::Skip;
        }
        Ok(pipeline)
    }

    /// Returns the class of new photographs.
    fn class(&self, store: &Store, pipeline: &str, route: &Route) -> Result<String> {
        if let Some(class) = &self.class {
            return Ok(class.clone());
        }
        let session = Session::open(store, Some(pipeline))?;
        let (_, rows) = session.query(&format!("select distinct {CLASS} from \"{}\" order by 1", route.images))?;
        let mut classes = Vec::new();
        for batch in &rows {
            classes.extend(text(batch, CLASS)?.iter().flatten().map(str::to_owned));
        }
        match &classes[..] {
            [class] => Ok(class.clone()),
            _ => Err(Error::Input(format!(
                "of which class are the photographs? Name one by --class: {}",
                classes.join(", ")
            ))
            .into()),
        }
    }

    /// Prints the decisions, and the photographs that failed. Returns the exit code.
    fn print(&self, store: &Store, name: &str, route: &Route, model: &str) -> Result<u8> {
        let session = Session::open(store, Some(name))?;
        let query = format!("select * from \"{}\" order by {IMAGE_ID}", route.decisions);
        let (_, batches) = session.query(&query)?;
        let mut worst = EXIT_DONE;
        for batch in &batches {
            for decision in Decision::all(batch)? {
                if decision.anomalous == Some(true) {
                    worst = EXIT_ANOMALOUS;
                }
                print(if self.json { as_json(&decision, model).to_string() } else { line(&decision) })?;
            }
        }
        for RowError { id, message, .. } in failed(store, name, route)? {
            worst = worst.max(EXIT_SKIPPED);
            // The message begins with the path of a link to the photograph, whose name is its id.
            let message =
                message.split_once(LINKS).and_then(|(_, rest)| rest.split_once(": ")).map_or(&*message, |(_, why)| why);
            if self.json {
                print(json!({ "image_id": id, "error": message, "model": model }).to_string())?;
            } else {
                say(format!("{id}: {message}"));
            }
        }
        Ok(worst)
    }
}

impl Route {
    /// Finds the way from the photographs of a pipeline to its decisions.
    fn of(pipeline: &Pipeline) -> Result<Self> {
        let named = |name: &str| pipeline.tables.iter().find(|table| table.name == name);
        let one = |what: &str, found: Vec<&Table>| match found[..] {
            [table] => Ok(table.name.clone()),
            [] => Err(Error::Input(format!("the pipeline has no table of {what}; pipelines/inspect.yaml has one"))),
            _ => {
                let names: Vec<&str> = found.iter().map(|table| &*table.name).collect();
                Err(Error::Input(format!(
                    "the pipeline has several tables of {what}: {}; --only chooses one of a sweep",
                    names.join(", ")
                )))
            }
        };
        let decides = |table: &&Table| Role::of(&table.output).contains(&Role::Decisions);
        let decisions = one("decisions", pipeline.tables.iter().filter(decides).collect())?;
        // Tables stand below those that they read. What is read as a whole, such as a bank, is taken as it is.
        let mut needed = BTreeSet::from([decisions.clone()]);
        for table in pipeline.tables.iter().rev() {
            if needed.contains(&table.name) {
                let by_row = table.inputs.iter().filter(|input| input.reads != Reads::Table);
                needed.extend(by_row.map(|input| input.table.clone()));
            }
        }
        let reads = |table: &&Table| needed.contains(&table.name) && table.kind.name == "ingest";
        let readers: Vec<&Table> = pipeline.tables.iter().filter(reads).collect();
        let whole = readers.iter().copied().filter(|table| !tiles::are_in(&table.output));
        let images = one("photographs above its decisions", whole.collect())?;
        let mut computed: Vec<String> = readers.iter().map(|table| table.name.clone()).collect();
        for table in pipeline.tables.iter().filter(|table| needed.contains(&table.name)) {
            let is_moved = |input: &Input| input.reads != Reads::Table && computed.contains(&input.table);
            if table.is_keyed() && table.inputs.iter().any(is_moved) {
                computed.push(table.name.clone());
            }
        }
        let mut taken: Vec<String> = Vec::new();
        for input in computed.iter().filter_map(|name| named(name)).flat_map(|table| &table.inputs) {
            if !computed.contains(&input.table) && !taken.contains(&input.table) {
                taken.push(input.table.clone());
            }
        }
        let given = |table: &Table| {
            let params = table.stage.params();
            params.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
        };
        let readers = readers.into_iter().map(|table| (table.name.clone(), given(table))).collect();
        Ok(Self { images, readers, decisions, computed, taken })
    }
}

/// Makes the tables that are taken as they are visible to the pipeline of predictions. Returns a digest of their
/// contents: that of the model by which photographs are judged.
fn share(store: &Store, pipeline: &Pipeline, name: &str, route: &Route) -> Result<String> {
    let mut model = Hasher::new("model");
    for table in pipeline.tables.iter().filter(|table| route.taken.contains(&table.name)) {
        let manifest = store.share(&pipeline.name, name, &table.slot())?.ok_or_else(|| {
            Error::Input(format!(
                "table `{}` of `{}` is not computed yet; `vlmdiff run` of the pipeline computes it",
                table.name, pipeline.name
            ))
        })?;
        model.field(table.name.as_bytes());
        model.field(manifest.content.as_bytes());
    }
    Ok(model.finish().to_string())
}

/// Returns the photographs among paths: files as they are, and all pictures of folders.
fn files(paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let cannot = |path: &Path, e: std::io::Error| Error::Input(format!("cannot read {}: {e}", path.display()));
    let mut found = Vec::new();
    for path in paths {
        if !fs::metadata(path).map_err(|e| cannot(path, e))?.is_dir() {
            found.push(path.clone());
            continue;
        }
        for entry in walkdir::WalkDir::new(path).follow_links(true).sort_by_file_name() {
            let entry = entry.map_err(|e| cannot(path, e.into()))?;
            if entry.file_type().is_file() && is_image(&entry.path().to_string_lossy()) {
                found.push(entry.into_path());
            }
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// Writes a manifest of photographs into a folder, and links to them beside it. Their ids are their paths as given.
fn write_manifest(folder: &Path, photographs: &[PathBuf], class: &str) -> Result<PathBuf> {
    let links = folder.join(LINKS);
    if links.exists() {
        fs::remove_dir_all(&links)?;
    }
    fs::create_dir(&links)?;
    let mut rows = String::new();
    for (number, photograph) in photographs.iter().enumerate() {
        let ending = photograph.extension().map_or(String::new(), |ending| format!(".{}", ending.to_string_lossy()));
        let link = format!("{number:06}{ending}");
        symlink(std::path::absolute(photograph)?, links.join(&link))?;
        let row = json!({ "id": photograph.to_string_lossy(), "path": link, "class": class, "split": "test" });
        rows += &format!("{row}\n");
    }
    let manifest = links.join("manifest.jsonl");
    fs::write(&manifest, rows)?;
    Ok(manifest)
}

/// Returns the first failure of each photograph that failed on the way. Where tiles of it fail, it fails too.
fn failed(store: &Store, name: &str, route: &Route) -> Result<Vec<RowError>> {
    let mut failed: BTreeMap<String, RowError> = BTreeMap::new();
    for table in &route.computed {
        if let Some((_, manifest)) = store.published(name, table)?.whole()? {
            for error in manifest.errors {
                failed.entry(error.id.clone()).or_insert(error);
            }
        }
    }
    let whole: BTreeSet<String> = failed.keys().cloned().collect();
    failed.retain(|id, _| row_of_piece(id).is_none_or(|photograph| !whole.contains(photograph)));
    Ok(failed.into_values().collect())
}

/// Returns a decision as a JSON object.
fn as_json(decision: &Decision, model: &str) -> Value {
    json!({
        "image_id": decision.image_id,
        "class": decision.class,
        "anomalous": decision.anomalous,
        "score": decision.score,
        "p_value": decision.p_value,
        "rate": decision.rate,
        "threshold": decision.threshold,
        "model": model,
    })
}

/// Returns a decision in words.
fn line(decision: &Decision) -> String {
    let verdict = match decision.anomalous {
        Some(true) => "anomalous",
        Some(false) => "good",
        None => "no threshold",
    };
    let number = |name: &str, value: Option<f64>| value.map_or(String::new(), |value| format!("  {name} {value:.4}"));
    let numbers = [("score", decision.score), ("threshold", decision.threshold), ("p", decision.p_value)];
    let numbers: String = numbers.into_iter().map(|(name, value)| number(name, value)).collect();
    format!("{verdict:<12}  {}{numbers}", decision.image_id)
}
