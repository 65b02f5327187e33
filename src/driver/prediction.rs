//! Verdicts on new photographs, by a pipeline that has run.

use std::{collections::HashMap, io, path::PathBuf};

use serde_json::json;

use super::{NamedPipeline, default_threads};
use crate::{
    engine::{
        Result, Stop,
        pipeline::Pipeline,
        run::{Settings, Workers},
        source::Sources,
        store::{Event, Store},
    },
    inspect::{Inspector, Named, Photograph, Pixels, Surroundings, Verdict, named},
};

/// Verdicts on photographs, and failures.
#[derive(Debug, Default)]
pub struct Predicted {
    /// The verdicts, by photograph.
    pub verdicts: Vec<Verdict>,
    /// The photographs that could not be fetched, read or judged, with the reasons.
    pub failed: Vec<(String, String)>,
}

impl Predicted {
    /// Returns a JSON object for each photograph; `model` is the digest of that by which they were judged.
    pub fn json(&self, model: &str) -> Result<Vec<String>> {
        let mut rows = Vec::new();
        for verdict in &self.verdicts {
            rows.push(serde_json::to_string(verdict).map_err(io::Error::from)?);
        }
        for (id, message) in &self.failed {
            rows.push(json!({ "image_id": id, "error": message, "model": model }).to_string());
        }
        Ok(rows)
    }
}

/// Prepares a pipeline of a store to judge new photographs. Their tables are published under `name`; `decisions` is the table
/// of decisions, where there are several, and `program` the path of `vlmdiff-worker`.
pub fn inspector(
    named: &NamedPipeline,
    (pipeline, store): (&Pipeline, &Store),
    name: String,
    decisions: Option<String>,
    device: &str,
    program: PathBuf,
    stop: &Stop,
) -> Result<Inspector> {
    let settings = Settings { device: device.to_owned(), ..Settings::default() };
    let workers = Workers::new(store, program, vec![settings.clone()], default_threads(), stop);
    let surroundings = Surroundings { name, decisions, workers, settings, stop: stop.clone() };
    Inspector::open(store, pipeline, |values| named.load_with(values), surroundings)
}

/// Judges the photographs that paths and URLs name: files, all pictures of folders, and those that manifests list. `class`
/// gives the class of a photograph from that in its manifest, which may be absent; `listen` is called with each event of the
/// run.
pub fn predict(
    inspector: &Inspector,
    names: &[PathBuf],
    class: &dyn Fn(Option<&str>) -> Result<String>,
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<Predicted> {
    let folder = tempfile::tempdir()?;
    let Named { photographs, failed } = named(names, class, folder.path(), &Sources::default())?;
    let mut predicted = judge(inspector, &photographs, listen)?;
    predicted.failed.splice(..0, failed);
    Ok(predicted)
}

/// Judges pictures in memory, as [`predict`] judges files. Their ids are `picture-0`, `picture-1` and so on, so that a picture that
/// was judged at the same place before costs nothing. Verdicts are in this order.
pub fn predict_pixels(
    inspector: &Inspector,
    pictures: &[Pixels<'_>],
    class: &str,
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<Predicted> {
    let folder = tempfile::tempdir()?;
    let photograph = |(number, pixels): (usize, &Pixels<'_>)| {
        let id = format!("picture-{number}");
        let file = folder.path().join(&id);
        pixels.write(&file)?;
        Ok(Photograph { id, class: class.to_owned(), file })
    };
    let photographs = pictures.iter().enumerate().map(photograph).collect::<Result<Vec<_>>>()?;
    let places: HashMap<&str, usize> = photographs.iter().map(|one| one.id.as_str()).zip(0..).collect();
    let mut predicted = judge(inspector, &photographs, listen)?;
    predicted.verdicts.sort_by_key(|verdict| places.get(verdict.image_id.as_str()).copied());
    Ok(predicted)
}

/// Judges photographs. `listen` is called with each event of the run.
pub fn judge(
    inspector: &Inspector,
    photographs: &[Photograph],
    listen: &mut (dyn FnMut(&Event) + Send),
) -> Result<Predicted> {
    let mut predicted = Predicted::default();
    if photographs.is_empty() {
        return Ok(predicted);
    }
    let judged = inspector.judge(photographs, listen)?;
    let (mut regions, mut nearest) = (judged.regions()?, judged.nearest()?);
    for decision in &judged.decisions {
        let regions = regions.as_mut().map(|found| found.remove(&decision.image_id).unwrap_or_default());
        let nearest = nearest.remove(&decision.image_id);
        predicted.verdicts.push(Verdict::new(decision, inspector.model(), regions, nearest));
    }
    predicted.failed = judged.failed;
    Ok(predicted)
}
