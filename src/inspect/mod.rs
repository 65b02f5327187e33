//! Sends new photographs through the tables of a pipeline that has run. Models, banks and thresholds are taken
//! as the last run left them.

mod named;
mod pixels;
mod route;
mod rows;
mod scales;
mod verdict;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use arrow::datatypes::{DataType, UInt8Type};
use image::RgbImage;
use serde_json::json;

pub use named::{Named, named, pictures};
pub use pixels::Pixels;
pub use scales::Scales;
pub use verdict::{Judged, Maps, Verdict};

use self::{route::Route, rows::Rows};
use crate::{
    engine::{
        Error, Hasher, Result, Stop, identity, or_none,
        pipeline::{OnError, Pipeline, Table},
        plan::TableState,
        run,
        run::{Settings, Workers},
        source::Sources,
        store::{Current, Event, Store},
    },
    tables::{
        column::{column, has, text},
        features,
        images::{self, CLASS, PIXELS},
        tensor::tensor_row,
        thresholds::Threshold,
    },
};

/// The folder of links to photographs.
const LINKS: &str = "photographs";
/// The class of a photograph of which no class is asked.
const ALL_CLASSES: &str = "all";

/// A new photograph.
#[derive(Clone, Debug, PartialEq)]
pub struct Photograph {
    /// The id of its rows.
    pub id: String,
    /// Its class.
    pub class: String,
    /// The file.
    pub file: PathBuf,
}

/// A pipeline that has run and judges new photographs.
pub struct Inspector {
    store: Store,
    /// The pipeline of the predictions, which reads new photographs in place of its own.
    pipeline: Pipeline,
    route: Route,
    model: String,
    classes: Classes,
    /// The pipeline's own photographs, if they are there.
    photographs: Option<Rows>,
    thresholds: Vec<Threshold>,
    workers: Workers,
    options: run::Options,
    folder: tempfile::TempDir,
}

/// The classes of photographs.
#[derive(Debug)]
struct Classes {
    /// The classes of the pipeline's photographs.
    known: BTreeSet<String>,
    /// The classes of which each table that is taken as it is knows something; none for a table that does not ask.
    fitted: BTreeMap<String, BTreeSet<String>>,
    /// True if the class of a photograph can change its verdict.
    matter: bool,
}

/// The surroundings in which photographs are judged.
pub struct Surroundings {
    /// The name of the pipeline under which the tables of new photographs are published.
    pub name: String,
    /// The table of decisions, where the pipeline has several.
    pub decisions: Option<String>,
    /// The workers, which stay loaded between calls.
    pub workers: Workers,
    /// The settings of computations.
    pub settings: Settings,
    /// A request to stop.
    pub stop: Stop,
}

impl Inspector {
    /// Prepares a pipeline of a store to judge new photographs. `load` reads the pipeline again, with values in place of
    /// some of its parameters.
    ///
    /// # Errors
    /// [`Error::Input`] if the pipeline does not lead from photographs to decisions, or has not run.
    pub fn open(
        store: &Store,
        pipeline: &Pipeline,
        load: impl FnOnce(&[(String, String)]) -> Result<Pipeline>,
        surroundings: Surroundings,
    ) -> Result<Self> {
        let Surroundings { name, decisions, workers, settings, stop } = surroundings;
        let route = Route::of(pipeline, decisions.as_deref())?;
        let folder = tempfile::tempdir()?;
        let mut reading = load(&values(&route, &folder.path().join(LINKS).join(MANIFEST)))?;
        reading.name = name.clone();
        for table in reading.tables.iter_mut().filter(|table| route.computed.contains(&table.name)) {
            table.on_error = OnError::Skip;
        }
        let (mut model, mut fitted, mut thresholds) = (Vec::new(), BTreeMap::new(), Vec::new());
        for table in pipeline.tables.iter().filter(|table| route.taken.contains(&table.name)) {
            let manifest =
                store.share(&pipeline.name, &name, &table.slot())?.ok_or_else(|| not_computed(pipeline, table))?;
            let rows = Rows::of(store, &manifest)?;
            // Features are looked at to show the nearest ones, whatever the class.
            if !features::are_in(&rows.schema) {
                fitted.insert(table.name.clone(), classes(&rows)?);
            }
            if Threshold::is_table(&rows.schema) {
                thresholds.extend(Threshold::all(&rows.all()?)?);
            }
            if route.model.contains(&table.name) {
                model.push(TableState::new(0, manifest));
            }
        }
        let model = identity::model(model.iter().map(TableState::part_of_model).collect());
        let photographs = published(store, pipeline, &route.images)?;
        let known = photographs.as_ref().map_or(Ok(BTreeSet::new()), classes)?;
        let matter = route.reads_class || fitted.values().any(|classes| !classes.is_empty());
        let options = run::Options {
            device: settings.device.clone(),
            settings,
            save_every: Duration::MAX,
            tables: route.computed.iter().cloned().collect(),
            stop,
            host: gethostname::gethostname().to_string_lossy().into_owned(),
            judges_by: Some(pipeline.name.clone()),
            ..run::Options::default()
        };
        Ok(Self {
            store: store.clone(),
            pipeline: reading,
            route,
            model: model.to_string(),
            classes: Classes { known, fitted, matter },
            photographs,
            thresholds,
            workers,
            options,
            folder,
        })
    }

    /// Leaves regions out, for which [`Judged::find_regions`] then looks.
    pub fn without_regions(mut self) -> Self {
        self.options.tables.retain(|table| Some(table) != self.route.regions.as_ref());
        self
    }

    /// Returns the name of the pipeline under which the tables of new photographs are published.
    pub fn name(&self) -> &str {
        &self.pipeline.name
    }

    /// Returns the digest of the model, as its decisions state it.
    pub fn model(&self) -> &str {
        &self.model
    }

    /// Returns a digest of all that verdicts follow from: of the model, and of the parameters of the tables.
    pub fn digest(&self) -> String {
        let pipeline = self.pipeline.digest.to_string();
        Hasher::new("inspector").field(self.model.as_bytes()).field(pipeline.as_bytes()).finish().to_string()
    }

    /// Returns the thresholds by which photographs are judged.
    pub fn thresholds(&self) -> &[Threshold] {
        &self.thresholds
    }

    /// Returns the classes of the pipeline's photographs.
    pub fn classes(&self) -> &BTreeSet<String> {
        &self.classes.known
    }

    /// Returns the stored pixels of one of the pipeline's own photographs; `None` if it is not there any more.
    pub fn photograph(&self, id: &str) -> Result<Option<RgbImage>> {
        let Some(rows) = &self.photographs else { return Ok(None) };
        let name = verdict::id_of(&rows.schema, &self.route.images)?;
        let ids = rows.columns(&[&name])?;
        let Some(row) = text(&ids, &name)?.iter().position(|other| other == Some(id)) else { return Ok(None) };
        let (found, size) = (rows.some(&[PIXELS], &[row])?, images::size(&rows.schema));
        let pixels = tensor_row::<UInt8Type>(column(&found, PIXELS)?, 0)?;
        Ok(size
            .zip(pixels)
            .and_then(|([height, width], pixels)| RgbImage::from_raw(width as u32, height as u32, pixels.to_vec())))
    }

    /// Returns the class of a photograph: the one that is given, else that of the pipeline's photographs if there is one
    /// alone, else `all` if the class changes no verdict.
    ///
    /// # Errors
    /// [`Error::Input`] if the class is needed; `how` says how it is given.
    pub fn class(&self, given: Option<&str>, how: &str) -> Result<String> {
        let Classes { known, matter, .. } = &self.classes;
        match (given, known.first()) {
            (Some(given), _) => Ok(given.to_owned()),
            (None, Some(only)) if known.len() == 1 => Ok(only.clone()),
            (None, _) if !matter => Ok(ALL_CLASSES.to_owned()),
            (None, _) => {
                let known: Vec<&str> = known.iter().map(String::as_str).collect();
                Err(Error::Input(format!(
                    "of which class are the photographs? Name one by {how}: {}",
                    known.join(", ")
                )))
            }
        }
    }

    /// Refuses a class of which a table that is taken as it is knows nothing.
    pub fn check_class(&self, class: &str) -> Result<()> {
        let lacks = |classes: &&BTreeSet<String>| !classes.is_empty() && !classes.contains(class);
        match self.classes.fitted.values().find(lacks) {
            Some(classes) => {
                let known: Vec<&str> = classes.iter().map(String::as_str).collect();
                Err(Error::Input(format!("nothing was fitted for the class `{class}`; there are {}", or_none(&known))))
            }
            None => Ok(()),
        }
    }

    /// Judges photographs, whose ids differ. A photograph that was judged before under the same id costs nothing.
    /// `listen` is called with each event of the run.
    pub fn judge(&self, photographs: &[Photograph], listen: &mut (dyn FnMut(&Event) + Send)) -> Result<Judged<'_>> {
        write_manifest(&self.folder.path().join(LINKS), photographs)?;
        let mut versions = BTreeMap::new();
        let mut heard = |event: &Event| {
            if let Event::TablePublished { table, slot, version, .. } | Event::TableFresh { table, slot, version, .. } =
                event
            {
                versions.insert(table.clone(), (slot.clone(), *version));
            }
            listen(event);
        };
        run::run(&self.pipeline, &self.store, &Sources::default(), &self.options, &self.workers, &mut heard)?;
        // Another process may have published the same tables meanwhile, so the versions of this run are read.
        let mut tables = HashMap::new();
        for (table, (slot, version)) in versions {
            let manifest = self.store.version(&self.pipeline.name, &slot, version)?;
            let gone = || Error::Stage(format!("version {version} of `{table}` is gone; judge the photographs again"));
            tables.insert(table.clone(), manifest.ok_or_else(gone)?);
        }
        Judged::new(self, photographs, tables)
    }
}

/// Returns the parameters that make the tables of photographs, and of their tiles, read a manifest, with their values.
fn values(route: &Route, manifest: &Path) -> Vec<(String, String)> {
    let manifest = manifest.display().to_string();
    let mut values = Vec::new();
    for (table, given) in &route.readers {
        let set = |parameter: &str, value: &str| (format!("{table}.{parameter}"), value.to_owned());
        values.extend([set("dataset", "manifest"), set("root", &manifest), set("columns", "{ id: id }")]);
        // Parameters of other layouts than a manifest.
        let others = [
            ("good", "[]"),
            ("bad", "[]"),
            ("unlabelled", "[]"),
            ("synthetic", "null"),
            ("real_iad", "null"),
            ("coco_ad", "null"),
            ("mvtec_ad_2", "null"),
            ("hold_out", "0"),
        ];
        values.extend(others.iter().filter(|(name, _)| given.contains(*name)).map(|(name, none)| set(name, none)));
    }
    values
}

fn not_computed(pipeline: &Pipeline, table: &Table) -> Error {
    Error::Input(format!(
        "table `{}` of `{}` is not computed yet; `vlmdiff run` of the pipeline computes it",
        table.name, pipeline.name
    ))
}

/// Returns the rows of a published table of a pipeline; `None` if it was never published.
fn published(store: &Store, pipeline: &Pipeline, name: &str) -> Result<Option<Rows>> {
    let slot = pipeline.tables.iter().find(|table| table.name == name).map(Table::slot).unwrap_or_default();
    match store.published(&pipeline.name, &slot)? {
        Current::Absent => Ok(None),
        current => current.whole()?.map(|(_, manifest)| Rows::of(store, &manifest)).transpose(),
    }
}

/// Returns the classes in a table; none if it has no such column, or no class in it.
fn classes(rows: &Rows) -> Result<BTreeSet<String>> {
    if !has(&rows.schema, CLASS, &DataType::Utf8) {
        return Ok(BTreeSet::new());
    }
    Ok(text(&rows.columns(&[CLASS])?, CLASS)?.iter().flatten().map(str::to_owned).collect())
}

/// The file that lists photographs, beside the links to them.
const MANIFEST: &str = "manifest.jsonl";

/// Writes a manifest of photographs into a folder, which is made anew, and links to them beside it.
fn write_manifest(links: &Path, photographs: &[Photograph]) -> Result<()> {
    if links.exists() {
        fs::remove_dir_all(links)?;
    }
    fs::create_dir(links)?;
    let mut rows = String::new();
    for (number, Photograph { id, class, file }) in photographs.iter().enumerate() {
        let link = format!("{number:06}");
        symlink(std::path::absolute(file)?, links.join(&link))?;
        rows += &format!("{}\n", json!({ "id": id, "path": link, "class": class, "split": "test" }));
    }
    Ok(fs::write(links.join(MANIFEST), rows)?)
}
