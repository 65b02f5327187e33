//! The thread that judges: it takes all photographs that wait, as one batch, through one run of the engine.

use std::{
    collections::{BTreeMap, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::mpsc,
    time::Instant,
};

use axum::http::StatusCode;

use super::{
    answer::{Answer, Links, Refusal, Word},
    archive::Kept,
    now::Batch,
    queue::Job,
    shared::Shared,
};
use crate::{
    engine::{
        Error, Result, now_ms,
        store::{Event, forget},
    },
    inspect::{Photograph, Verdict},
    telemetry::{Listeners, RunTraces},
};

/// The maximum number of photographs that are judged together.
const AT_ONCE: usize = 64;
/// The number of batches after which old runs are forgotten.
const FORGET_EVERY: usize = 16;
/// The number of runs whose rows the store keeps.
const RUNS_KEPT: usize = 8;

/// Judges the photographs of a queue until it is closed and empty.
pub(super) fn judge_all(shared: &Shared, jobs: &mpsc::Receiver<Job>) {
    let mut batches = 0;
    while let Ok(first) = jobs.recv() {
        let waiting = std::iter::once(first).chain(std::iter::from_fn(|| jobs.try_recv().ok()));
        let mut batch = Jobs::new();
        for job in waiting.take(AT_ONCE) {
            batch.entry(job.id.clone()).or_default().push(job);
        }
        judge(shared, batch);
        batches += 1;
        if batches % FORGET_EVERY == 0 {
            shared.forget_old_runs();
        }
    }
    shared.forget_old_runs();
}

impl Shared {
    /// Forgets the runs of old batches, so that plans stay fast and the store small. A failure is shown and tried again.
    fn forget_old_runs(&self) {
        if let Err(error) = forget(&self.store, self.inspector.name(), RUNS_KEPT) {
            self.now.note(format!("old runs cannot be forgotten: {error}"));
        }
    }
}

/// Photographs by id, each with all requests that wait for it.
type Jobs = BTreeMap<String, Vec<Job>>;

/// Judges a batch. If it fails as a whole, its photographs are judged one by one, so that one of them harms no other.
fn judge(shared: &Shared, mut batch: Jobs) {
    // A photograph may have been judged while it waited.
    for (id, jobs) in &mut batch {
        if let Some(kept) = shared.archive.get(id) {
            jobs.drain(..).for_each(|job| job.reply.send(Ok(kept.clone())));
        }
    }
    batch.retain(|_, jobs| !jobs.is_empty());
    if batch.is_empty() {
        return;
    }
    let began = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| verdicts(shared, &batch)));
    let outcome = outcome.unwrap_or_else(|_| Err(Error::Stage("the batch could not be judged".into())));
    match outcome {
        Ok(verdicts) => finish(shared, batch, verdicts, began),
        Err(_) if batch.len() > 1 => {
            for (id, jobs) in batch {
                judge(shared, Jobs::from([(id, jobs)]));
            }
        }
        Err(error) => {
            let failed = batch.len();
            shared.figures.errors.add(1);
            shared.figures.failed.add(failed as u64);
            shared.now.ended(Batch { failed, error: Some(error.to_string()), ..Batch::new(failed, began) });
            let status =
                if error.is_input() { StatusCode::UNPROCESSABLE_ENTITY } else { StatusCode::INTERNAL_SERVER_ERROR };
            for job in batch.into_values().flatten() {
                job.reply.send(Err(Refusal::new(status, error.to_string())));
            }
        }
    }
}

/// A photograph with its verdict, before it is kept: its entry in the archive, and its map.
type Judged = (Kept, Option<Vec<f32>>);

/// Runs the engine on a batch. Returns the outcome of each photograph.
fn verdicts(shared: &Shared, batch: &Jobs) -> Result<HashMap<String, Result<Judged, Refusal>>> {
    let photographs: Vec<Photograph> = batch
        .values()
        .filter_map(|jobs| jobs.first())
        .map(|job| Photograph { id: job.id.clone(), class: job.class.clone(), file: job.file.path().to_owned() })
        .collect();
    shared.now.began(photographs.len());
    let mut listeners = Listeners::default();
    RunTraces::begin().into_iter().for_each(|traces| listeners.add(traces));
    let judged = shared.inspector.judge(&photographs, &mut |event| {
        listeners.tell(event);
        match event {
            Event::TableStarted { table, stale, .. } if *stale > 0 => shared.now.at(table, *stale),
            Event::Note { table, message } => shared.now.note(format!("{table}: {message}")),
            Event::Log { table, message } => shared.now.note(format!("{table}: {message}")),
            _ => {}
        }
    })?;
    let (sizes, taken) = (judged.sizes()?, judged.taken()?);
    let mut maps = judged.maps()?;
    let mut nearest = judged.nearest()?;
    let mut regions = match &maps {
        Some(maps) => judged.find_regions(maps, &sizes)?,
        None => HashMap::new(),
    };
    let mut outcomes = HashMap::new();
    for decision in &judged.decisions {
        let id = &decision.image_id;
        let Some(job) = batch.get(id).and_then(|jobs| jobs.first()) else { continue };
        let map = maps.as_mut().and_then(|maps| maps.of.remove(id));
        let map_size = maps.as_ref().filter(|_| map.is_some()).map(|maps| maps.size);
        let verdict = Verdict::new(decision, shared.inspector.model(), regions.remove(id), nearest.remove(id));
        let answer = answer(shared, job, verdict, decision.pixel_threshold, sizes.get(id).copied(), map_size.is_some());
        let media_type = job.media_type.to_owned();
        let inspector = shared.inspector_digest.clone();
        let kept = Kept { answer, inspector, media_type, map_size, taken };
        outcomes.insert(id.clone(), Ok((kept, map)));
    }
    for (id, why) in judged.failed {
        outcomes.insert(id, Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, why)));
    }
    Ok(outcomes)
}

fn answer(
    shared: &Shared,
    job: &Job,
    judged: Verdict,
    pixel_threshold: Option<f64>,
    size: Option<(u32, u32)>,
    has_map: bool,
) -> Answer {
    let links = Links::of(&job.id, has_map, pixel_threshold.is_some(), judged.nearest.is_some());
    let scale = shared.scales.get(&Some(job.class.clone())).or_else(|| shared.scales.get(&None));
    let (width, height) = size.unwrap_or_default();
    Answer {
        verdict: Word::of(judged.anomalous),
        judged,
        pixel_threshold,
        map_scale: scale.filter(|_| has_map).map(|(lowest, highest)| [*lowest, *highest]),
        digest: job.digest.to_string(),
        name: job.name.clone(),
        width,
        height,
        judged_ms: now_ms(),
        links,
    }
}

/// Keeps the photographs of a batch and answers their requests.
fn finish(shared: &Shared, batch: Jobs, mut outcomes: HashMap<String, Result<Judged, Refusal>>, began: Instant) {
    let mut told = Batch::new(batch.len(), began);
    for (id, jobs) in batch {
        let mut replies = Vec::new();
        let mut file = None;
        for job in jobs {
            // All jobs of an id have the same bytes.
            file.get_or_insert(job.file);
            replies.push(job.reply);
        }
        let outcome = match (outcomes.remove(&id), file) {
            (Some(Ok((kept, map))), Some(file)) => {
                let word = kept.answer.verdict;
                told.anomalous += usize::from(word == Word::Anomalous);
                shared.figures.judged(word);
                shared.archive.keep(kept, file, map.as_deref()).map_err(|error| {
                    let why = format!("the photograph cannot be kept: {error}");
                    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, why)
                })
            }
            (Some(Err(refusal)), _) => Err(refusal),
            _ => Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the photograph was not judged")),
        };
        if outcome.is_err() {
            told.failed += 1;
            shared.figures.failed.add(1);
        }
        replies.into_iter().for_each(|reply| reply.send(outcome.clone()));
    }
    shared.now.ended(told);
}
