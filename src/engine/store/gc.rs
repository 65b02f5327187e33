//! Deletes what no published table, no tag and none of the last runs reaches.
//!
//! A clean-up may run beside other runs. Results that a run works on are locked and kept, and as long as there are any,
//! objects of the last ten minutes are kept too. A remote store has no locks, so objects of the last day are kept
//! there. What was written while a run went on that is not done is kept as long as that run is among the last ones.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::Serialize;

use super::{
    history::{self, Run},
    jobs::JobFolder,
    manifest::{Entry, Manifest, RowError},
    objects::{Object, Store},
    published::{parse_version, version_name},
};
use crate::engine::{Digest, Error, Result, clock::now_ms};

/// Milliseconds for which objects are kept while a run works on the store, because they may not be recorded yet.
const MARGIN: u64 = 600_000;

/// Milliseconds for which objects are kept in a store without locks, where working runs are not known.
const REMOTE_MARGIN: u64 = 86_400_000;

/// The objects that a clean-up deletes, or would delete in a dry run.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Garbage {
    /// Old versions of published tables.
    pub versions: Heap,
    /// Records of what stages have computed.
    pub records: Heap,
    /// Parts of tables.
    pub parts: Heap,
    /// Weights and other bytes that tables named.
    pub blobs: Heap,
    /// Saved states of training that was given up.
    pub states: Heap,
    /// Files of a local store that a killed process was writing.
    pub half_written: Heap,
    /// Objects of jobs whose drivers were killed.
    pub jobs: Heap,
    /// Stages whose results were kept because a run works on them.
    pub in_use: usize,
    /// Objects that nothing reaches, kept because of the time at which they were written: by a run that is not done, or
    /// just before the clean-up.
    pub young: u64,
    /// The id of the oldest run that is not done for which such objects are kept.
    pub unfinished: Option<String>,
}

/// Objects of one kind.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Heap {
    /// The number of objects.
    pub count: u64,
    /// Their size in bytes.
    pub bytes: u64,
}

/// Cleans up a store. The current tables stay, and those of the last `keep` runs of each pipeline and of tagged runs.
pub fn collect(store: &Store, keep: usize, dry_run: bool) -> Result<Garbage> {
    let began = now_ms();
    let runs = history::runs(store)?;
    if let Some(run) = runs.iter().find(|run| run.damaged && !run.tags.is_empty()) {
        let (tags, log) = (run.tags.join(", "), history::log_name(&run.run));
        return Err(Error::Damaged(format!(
            "{log} does not match its digest, so what the tag {tags} keeps is not known; `vlmdiff runs untag` gives it up"
        )));
    }
    let kept = kept_runs(&runs, keep);
    let in_use: HashSet<Digest> = store.locked()?.into_iter().collect();
    let margin = match (store.has_locks(), in_use.is_empty()) {
        (false, _) => REMOTE_MARGIN,
        (true, false) => MARGIN,
        (true, true) => 0,
    };
    let recent = Window { from: began.saturating_sub(margin), until: u64::MAX, run: None };
    let windows = kept.iter().rev().filter_map(|run| Window::of(run)).chain([recent]).collect();
    let garbage = Garbage { in_use: in_use.len(), ..Garbage::default() };
    let (reached, seen) = Default::default();
    let mut collector = Collector { store, dry_run, windows, in_use, reached, seen, garbage };
    let wanted = kept.iter().flat_map(|run| run.manifests()).collect();
    collector.versions(&wanted, &store.objects_in("published")?)?;
    collector.unfinished()?;
    collector.records()?;
    collector.states()?;
    collector.contents()?;
    collector.half_written(began)?;
    collector.jobs(began)?;
    Ok(collector.garbage)
}

/// Returns the last `keep` runs of each pipeline, and those with a tag.
fn kept_runs(runs: &[Run], keep: usize) -> Vec<&Run> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut kept = Vec::new();
    for run in runs.iter().rev() {
        let seen = seen.entry(&run.pipeline).or_default();
        *seen += 1;
        if *seen <= keep || !run.tags.is_empty() {
            kept.push(run);
        }
    }
    kept
}

/// Forgets old runs of a pipeline that publishes small tables again and again, as a server does: deletes the logs of all
/// runs but the last `keep` and the tagged ones, the versions that they alone left, and the rows that these versions alone
/// have. Objects that other pipelines reach stay, and so do those that other runs have not published yet.
pub fn forget(store: &Store, pipeline: &str, keep: usize) -> Result<()> {
    let runs: Vec<Run> = history::runs(store)?.into_iter().filter(|run| run.pipeline == pipeline).collect();
    let kept: BTreeSet<String> = kept_runs(&runs, keep).iter().map(|run| run.run.clone()).collect();
    let (kept, old): (Vec<&Run>, Vec<&Run>) = runs.iter().partition(|run| kept.contains(&run.run));
    if old.is_empty() {
        return Ok(());
    }
    let versions = |runs: &[&Run]| runs.iter().flat_map(|run| run.versions()).collect::<BTreeSet<_>>();
    let mut gone = &versions(&old) - &versions(&kept);
    for (slot, versions) in store.versions(pipeline)? {
        gone.retain(|(of, version)| *of != slot || versions.last() != Some(version));
    }
    let mut left = Reached::default();
    for (slot, version) in &gone {
        if let Some(manifest) = store.version(pipeline, slot, *version)? {
            left.add(&manifest);
        }
    }
    // Whoever makes a table of these rows holds the lock until it is published, and is then seen below.
    let mut locks = Vec::new();
    for stage in &left.stages {
        locks.extend(store.try_lock(*stage)?.map(|lock| (*stage, lock)));
    }
    let mut still = Reached::default();
    for other in store.pipelines()? {
        for (slot, mut versions) in store.versions(&other)? {
            versions.retain(|version| other != pipeline || !gone.contains(&(slot.clone(), *version)));
            for (_, manifest) in store.manifests(&other, &slot, &versions) {
                still.add(&manifest?);
            }
        }
    }
    for (pipeline, slot) in store.unfinished_tables()? {
        store.unfinished(&pipeline, &slot)?.iter().for_each(|manifest| still.add(manifest));
    }
    old.iter().try_for_each(|run| store.delete(&history::log_name(&run.run)))?;
    gone.iter().try_for_each(|(slot, version)| store.delete_version(pipeline, slot, *version))?;
    for (stage, _lock) in &locks {
        let names: Vec<String> =
            store.objects_in(&format!("computed/{stage}"))?.into_iter().map(|object| object.name).collect();
        for (name, read) in names.iter().zip(store.get_each(&names)) {
            let Some(entry) = read?.and_then(|bytes| Entry::from_bytes(&bytes)) else { continue };
            let part_is_gone =
                entry.part.is_none_or(|part| left.objects.contains(&part) && !still.objects.contains(&part));
            let is_gone = |error: &RowError| left.failed.contains(&error.key) && !still.failed.contains(&error.key);
            let has_rows = entry.part.is_some() || !entry.errors.is_empty();
            if has_rows && part_is_gone && entry.errors.iter().all(is_gone) {
                store.delete(name)?;
                entry.part.map_or(Ok(()), |part| store.delete_part(part))?;
            }
        }
    }
    Ok(())
}

/// The objects, stages and failures of some versions.
#[derive(Default)]
struct Reached {
    objects: HashSet<Digest>,
    stages: HashSet<Digest>,
    /// The keys of failed rows.
    failed: HashSet<Digest>,
}

impl Reached {
    fn add(&mut self, manifest: &Manifest) {
        self.objects.extend(manifest.objects());
        self.stages.insert(manifest.made.fingerprint);
        self.failed.extend(manifest.errors.iter().map(|error| error.key));
    }
}

/// A time in which objects were written that are kept although nothing reaches them, in milliseconds since 1970.
struct Window<'a> {
    from: u64,
    until: u64,
    /// The run that wrote them and is not done.
    run: Option<&'a str>,
}

impl<'a> Window<'a> {
    /// Returns the time of a run that is not done: its results are not published yet, and the next run continues from them.
    /// A run that was killed has no known end, and the clocks of a run and of its store differ.
    fn of(run: &'a Run) -> Option<Self> {
        let end = |seconds: f64| run.started_ms.saturating_add((1000. * seconds) as u64).saturating_add(MARGIN);
        let until = run.seconds.map_or(u64::MAX, end);
        (run.status() != "done").then_some(Self { from: run.started_ms, until, run: Some(&run.run) })
    }

    fn has(&self, object: &Object) -> bool {
        (self.from..=self.until).contains(&object.modified_ms)
    }
}

struct Collector<'a> {
    store: &'a Store,
    dry_run: bool,
    /// The times in which objects were written that are kept, those of old runs first.
    windows: Vec<Window<'a>>,
    in_use: HashSet<Digest>,
    /// Parts and blobs to keep, the stages of tables to keep, and the failed rows that these leave out.
    reached: Reached,
    /// Names of the versions that were listed.
    seen: HashSet<String>,
    garbage: Garbage,
}

impl Collector<'_> {
    fn delete(&mut self, object: &Object, heap: fn(&mut Garbage) -> &mut Heap) -> Result<()> {
        let heap = heap(&mut self.garbage);
        heap.count += 1;
        heap.bytes += object.bytes;
        if self.dry_run { Ok(()) } else { self.store.delete(&object.name) }
    }

    /// Returns true for an object that is kept because of its time, although nothing reaches it, and counts it.
    fn is_young(&mut self, object: &Object) -> bool {
        let Some(window) = self.windows.iter().find(|window| window.has(object)) else { return false };
        self.garbage.young += 1;
        let oldest = self.garbage.unfinished.take();
        self.garbage.unfinished = oldest.into_iter().chain(window.run.map(str::to_owned)).min();
        true
    }

    /// Keeps what current and wanted versions reach, and deletes the others. `objects` is what is published; a version
    /// that is published after that listing is current, and the newest of the listing then stays as well.
    fn versions(&mut self, wanted: &BTreeSet<String>, objects: &[Object]) -> Result<()> {
        let mut slots: BTreeMap<(&str, &str), BTreeMap<u64, u64>> = BTreeMap::new();
        for object in objects {
            let Some((pipeline, slot, version)) = parse_version(&object.name) else { continue };
            self.seen.insert(object.name.clone());
            *slots.entry((pipeline, slot)).or_default().entry(version).or_default() += object.bytes;
        }
        for ((pipeline, slot), versions) in slots {
            // A damaged current version ends the clean-up: the objects that it reaches are not known, and must stay.
            let current = self.store.published(pipeline, slot)?.whole()?;
            let is_wanted = |version: u64| wanted.contains(&version_name(pipeline, slot, version));
            if let Some((version, manifest)) = &current
                && (!manifest.retired || is_wanted(*version))
            {
                self.reached.add(manifest);
            }
            let newest = versions.keys().next_back().copied();
            let current = current.map(|(version, _)| version);
            for (version, bytes) in versions.into_iter().filter(|(version, _)| Some(*version) != current) {
                let is_kept = is_wanted(version) || Some(version) == newest;
                let manifest = if is_kept { self.store.version(pipeline, slot, version) } else { Ok(None) };
                match manifest {
                    Ok(Some(manifest)) => self.reached.add(&manifest),
                    Ok(None) | Err(Error::Damaged(_)) => {
                        self.garbage.versions.count += 1;
                        self.garbage.versions.bytes += bytes;
                        if !self.dry_run {
                            self.store.delete_version(pipeline, slot, version)?;
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Keeps the objects of tables that are being made, and forgets such tables if their run is over.
    fn unfinished(&mut self) -> Result<()> {
        for (pipeline, slot) in self.store.unfinished_tables()? {
            match self.store.unfinished(&pipeline, &slot)? {
                Some(manifest) => self.reached.objects.extend(manifest.objects()),
                None if self.dry_run => {}
                None => self.store.forget_unfinished(&pipeline, &slot)?,
            }
        }
        Ok(())
    }

    /// Keeps the objects of versions that were published since this clean-up began.
    fn catch_up(&mut self) -> Result<()> {
        for object in self.store.objects_in("published")? {
            if self.seen.insert(object.name.clone())
                && let Some((pipeline, slot, version)) = parse_version(&object.name)
                && let Some(manifest) = self.store.version(pipeline, slot, version)?
            {
                self.reached.add(&manifest);
            }
        }
        Ok(())
    }

    fn records(&mut self) -> Result<()> {
        let mut by_stage: BTreeMap<String, Vec<Object>> = BTreeMap::new();
        for object in self.store.objects_in("computed")? {
            let stage = object.name.split('/').nth(1).unwrap_or_default().to_owned();
            by_stage.entry(stage).or_default().push(object);
        }
        for (stage, objects) in by_stage {
            let Ok(stage) = stage.parse::<Digest>() else { continue };
            // A run that makes a table of these records holds the lock until the table is published. While the clean-up
            // holds it, such a table is either published and seen here, or not begun, and then its rows will be
            // computed again.
            let lock = self.store.try_lock(stage)?;
            let names: Vec<String> = objects.iter().map(|object| object.name.clone()).collect();
            let mut is_caught_up = false;
            for (object, read) in objects.iter().zip(self.store.get_each(&names)) {
                let entry = match read {
                    Ok(Some(bytes)) => Entry::from_bytes(&bytes),
                    Ok(None) => continue,
                    Err(Error::Lost { .. }) => None,
                    Err(error) => return Err(error),
                };
                let Some(entry) = entry else {
                    // A damaged record is of no use: its rows count as not computed.
                    self.delete(object, |garbage| &mut garbage.records)?;
                    continue;
                };
                let mut is_kept = lock.is_none() || self.reaches(stage, &entry);
                if !is_kept && !std::mem::replace(&mut is_caught_up, true) {
                    self.catch_up()?;
                    is_kept = self.reaches(stage, &entry);
                }
                if is_kept || self.is_young(object) {
                    self.reached.objects.extend(entry.objects());
                } else {
                    self.delete(object, |garbage| &mut garbage.records)?;
                }
            }
        }
        Ok(())
    }

    fn reaches(&self, stage: Digest, entry: &Entry) -> bool {
        let Reached { objects, stages, failed } = &self.reached;
        let has_part = entry.part.is_some_and(|part| objects.contains(&part));
        // If a published table leaves failed rows out, the next plan needs these records, which say that they failed.
        has_part
            || (entry.part.is_none() && stages.contains(&stage))
            || entry.errors.iter().any(|error| failed.contains(&error.key))
    }

    fn states(&mut self) -> Result<()> {
        for object in self.store.objects_in("state")? {
            let stage = object.digest();
            if stage.is_none_or(|stage| !self.in_use.contains(&stage)) && !self.is_young(&object) {
                self.delete(&object, |garbage| &mut garbage.states)?;
            }
        }
        Ok(())
    }

    /// Removes files that a killed process was writing, which have temporary names. No run continues from them, and one
    /// that is older than [`MARGIN`] has no writer any more.
    fn half_written(&mut self, began: u64) -> Result<()> {
        for object in self.store.half_written()? {
            if object.modified_ms < began.saturating_sub(MARGIN) {
                self.garbage.half_written.count += 1;
                self.garbage.half_written.bytes += object.bytes;
                if !self.dry_run {
                    self.store.remove_half_written(&object)?;
                }
            }
        }
        Ok(())
    }

    /// Removes what is left of jobs. A driver removes its own, and writes to it as long as it runs. A driver on another
    /// machine may run unseen, so a job is kept for a day after the last write.
    fn jobs(&mut self, began: u64) -> Result<()> {
        for (job, (count, bytes, youngest)) in self.store.jobs()? {
            if youngest < began.saturating_sub(REMOTE_MARGIN) {
                self.garbage.jobs.count += count;
                self.garbage.jobs.bytes += bytes;
                if !self.dry_run {
                    JobFolder::new(self.store, &job).remove()?;
                }
            }
        }
        Ok(())
    }

    fn contents(&mut self) -> Result<()> {
        type HeapOf = fn(&mut Garbage) -> &mut Heap;
        let kinds: [(&str, HeapOf); 2] =
            [("parts", |garbage| &mut garbage.parts), ("blobs", |garbage| &mut garbage.blobs)];
        for (folder, heap) in kinds {
            for object in self.store.objects_in(folder)? {
                let is_reached = object.digest().is_none_or(|digest| self.reached.objects.contains(&digest));
                // A run may have written the object again since it was listed.
                if !is_reached
                    && !self.is_young(&object)
                    && self.store.modified_ms(&object.name)? == Some(object.modified_ms)
                {
                    self.delete(&object, heap)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::run::toys::{CHAIN, World, edited};

    #[test]
    fn only_rows_of_old_runs_of_the_pipeline_are_forgotten() {
        let text =
            |name: &str, rows: &str| format!("name: {name}\n{}", edited(CHAIN, "a: 1, b: 2, c: 3", rows).trim_start());
        let world = World::new();
        let (other, first) = (text("other", "a: 1"), text("served", "a: 1, b: 2"));
        let (second, last) = (text("served", "b: 2, d: 4"), text("served", "e: 5"));
        for text in [&other, &first, &second, &last] {
            world.run(text).unwrap();
        }
        forget(&world.store, "served", 1).unwrap();
        let runs = history::runs(&world.store).unwrap();
        assert_eq!(runs.iter().map(|run| run.pipeline.as_str()).collect::<Vec<_>>(), ["other", "served"]);
        assert!(world.store.versions("served").unwrap().values().all(|versions| versions.len() == 1));
        // The row that another pipeline has, those of the last run, and those that were forgotten.
        let fresh = |text: &String| world.plan(text).iter().all(|table| table.contains(": fresh"));
        assert!(fresh(&other) && fresh(&last), "{:?} {:?}", world.plan(&other), world.plan(&last));
        assert_eq!(world.run(&first).unwrap()[..2], ["numbers 1", "more 1"]);
        assert_eq!(world.run(&second).unwrap()[..2], ["numbers 1", "more 1"]);
        assert_eq!(world.plan(&last)[..2].iter().filter(|table| table.contains("0 of 1")).count(), 2);
    }

    #[test]
    fn run_that_failed_keeps_what_was_written_until_it_ended() {
        let run = |seconds, error: Option<&str>| {
            let mut run = Run::default();
            (run.run, run.started_ms) = ("r".into(), 5_000);
            (run.seconds, run.error) = (seconds, error.map(str::to_owned));
            run
        };
        let keeps = |run: &Run, modified_ms| {
            Window::of(run).is_some_and(|window| window.has(&Object { name: "o".into(), bytes: 1, modified_ms }))
        };
        let (failed, killed) = (run(Some(2.), Some("full disk")), run(None, None));
        assert!(Window::of(&run(Some(2.), None)).is_none());
        assert!([5_000, 7_000, 7_000 + MARGIN].iter().all(|time| keeps(&failed, *time)));
        assert!([4_999, 7_001 + MARGIN].iter().all(|time| !keeps(&failed, *time)));
        assert!(keeps(&killed, u64::MAX) && !keeps(&killed, 4_999));
    }

    #[test]
    fn tagged_version_is_kept_if_a_newer_one_is_published_during_the_clean_up() {
        let world = World::after(CHAIN);
        let objects = world.store.objects_in("published").unwrap();
        let versions: Vec<_> = objects.iter().filter_map(|object| parse_version(&object.name)).collect();
        let wanted = versions.iter().map(|(pipeline, slot, version)| version_name(pipeline, slot, *version)).collect();
        world.run(&edited(CHAIN, "plus: 10", "plus: 11")).unwrap();
        let (reached, seen, garbage) = Default::default();
        let in_use = HashSet::new();
        let store = &world.store;
        let mut collector = Collector { store, dry_run: false, windows: Vec::new(), in_use, reached, seen, garbage };
        collector.versions(&wanted, &objects).unwrap();
        assert_eq!(collector.garbage.versions.count, 0);
        for (pipeline, slot, version) in versions {
            let manifest = store.version(pipeline, slot, version).unwrap().unwrap();
            assert!(manifest.objects().all(|digest| collector.reached.objects.contains(&digest)), "{slot} {version}");
        }
    }
}
