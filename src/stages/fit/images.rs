//! The training of a method on images: one training after another where classes are separate, which the table's journal
//! keeps as one work.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arrow::{
    array::{ArrayRef, AsArray, RecordBatch, StringArray},
    datatypes::{SchemaRef, UInt8Type},
};
use bytes::Bytes;

use super::{FittedOn, Fitting, IMAGES};
use crate::{
    engine::{
        Error, Result,
        stage::{Rows, Sink, Unit},
    },
    methods::AnyTrainedMethod,
    published::{Weights, input},
    stages::{
        journal::{READ_ROWS, log_columns, training_rows},
        network_files::NetworkFiles,
        tensors::{normalise, save_weights, tensor},
    },
    tables::{
        column::missing,
        images::{CLASS, PIXELS},
        tensor::tensor_row,
    },
    training::{Journal, Judge, LogRow, MicroBatch, TrainingRows, TrainingRun},
};

/// The images of one class, or of all.
struct Group {
    class: Option<String>,
    /// Their positions among the rows that were read.
    positions: Vec<i64>,
    on: FittedOn,
    /// The number of steps of their training.
    steps: u64,
}

impl Fitting {
    /// Trains a method on the images of all rows, and writes the log of each class.
    pub(super) fn train(&self, method: &dyn AnyTrainedMethod, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let (pixels, mut groups) = self.read(rows)?;
        let training = method.training();
        for group in &mut groups {
            group.steps = training.length(group.positions.len());
        }
        let frozen = self.stage.method.frozen().map(|frozen| Weights(frozen.weights));
        let empty = tempfile::tempdir()?;
        let (files, weights) = match frozen {
            Some(weights) => (NetworkFiles::keep(weights, &self.sources, out)?, weights.local(&self.sources)?),
            None => (NetworkFiles::default(), empty.path().to_owned()),
        };
        let mut trainings = Trainings::open(groups, files.to_text(), out)?;
        while let Some(group) = trainings.next() {
            if let Some(class) = &group.class {
                trainings.say(format!("training on {} images of `{class}`", group.positions.len()));
            }
            tch::manual_seed(training.seed as i64);
            let learner = method.learner(&weights, self.device).map_err(input)?;
            let loss = |trainer, batch: &MicroBatch| {
                let positions: Vec<i64> = batch.rows.iter().map(|row| group.positions[*row as usize]).collect();
                let images = normalise(&pixels.at(&positions)?.f_to_device(self.device)?);
                Ok::<_, Error>(learner.loss(trainer, &images, batch)?)
            };
            let subject = TrainingRun {
                trainers: learner.trainers(),
                variables: learner.variables(),
                rows: group.positions.len(),
                loss,
                weights: || save_weights(learner.variables(), &self.config, &[]),
                judge: Judge::Start,
            };
            let log = training.run(subject, &mut trainings)?;
            trainings.finish(log)?;
        }
        trainings.write()
    }

    /// Reads the pixels u8 [N, H, W, 3], and the groups of images that are trained on.
    fn read(&self, rows: &mut Rows) -> Result<(TrainingRows, Vec<Group>)> {
        let mut pixels = training_rows()?;
        let mut groups: BTreeMap<Option<String>, (Vec<i64>, FittedOn)> = BTreeMap::new();
        let mut position = 0;
        while let Some(batch) = rows.next(READ_ROWS)? {
            let classes = batch.column(IMAGES, CLASS)?.as_string::<i32>();
            let images = batch.column(IMAGES, PIXELS)?;
            for (row, id) in batch.ids.iter().enumerate() {
                let class = self.stage.class(id, IMAGES, classes, row)?;
                let image = tensor_row::<UInt8Type>(images, row)?.ok_or_else(|| missing(id, IMAGES, PIXELS))?;
                let (positions, on) = groups.entry(class).or_insert_with(|| (Vec::new(), FittedOn::new()));
                positions.push(position);
                on.add(id, classes, row, image);
                position += 1;
            }
            pixels.push(&tensor(&batch, IMAGES, PIXELS)?)?;
        }
        let group = |(class, (positions, on))| Group { class, positions, on, steps: 0 };
        Ok((pixels, groups.into_iter().map(group).collect()))
    }
}

/// The journal of several trainings that follow one another: their steps are counted on, and the saved state is that of
/// the one at work behind the logs of those that are done.
struct Trainings<'a, 's> {
    out: &'a mut Sink<'s>,
    logs: Logs,
    /// The saved state of the group at work, until it is taken.
    state: Option<Bytes>,
    /// True if a training has reported where it begins.
    has_begun: bool,
}

/// The logs of the groups.
struct Logs {
    groups: Vec<Arc<Group>>,
    /// The files of the frozen network.
    network: String,
    /// The logs of the groups that are done.
    done: Vec<Vec<LogRow>>,
}

/// The length of the number that says how long the logs in a saved state are.
const LENGTH: usize = size_of::<u64>();

impl<'a, 's> Trainings<'a, 's> {
    /// Opens the journal, where an interrupted run has left it. A state that cannot be read, or whose weights are gone,
    /// is said, and the trainings start over.
    fn open(groups: Vec<Group>, network: String, out: &'a mut Sink<'s>) -> Result<Self> {
        let logs = Logs { groups: groups.into_iter().map(Arc::new).collect(), network, done: Vec::new() };
        let mut trainings = Self { out, logs, state: None, has_begun: false };
        let Some(saved) = trainings.out.saved()? else { return Ok(trainings) };
        match unpacked(&saved) {
            None => trainings.say("the saved state cannot be read; starts over".into()),
            Some((done, state)) => {
                let weights: Vec<&str> = done.iter().flatten().filter_map(|row| row.weights.as_deref()).collect();
                if trainings.take_over(&weights)? {
                    trainings.logs.done = done;
                    trainings.state = Some(state).filter(|state| !state.is_empty());
                } else {
                    trainings.say("weights that were kept on the way are gone; starts over".into());
                }
            }
        }
        Ok(trainings)
    }

    /// Returns the group that is trained on next; `None` if all are done.
    fn next(&self) -> Option<Arc<Group>> {
        self.logs.groups.get(self.logs.done.len()).cloned()
    }

    /// Ends the training of a group. If another follows, that is saved.
    fn finish(&mut self, log: Vec<LogRow>) -> Result<()> {
        self.logs.done.push(log);
        if self.next().is_some() { self.save(Vec::new()) } else { Ok(()) }
    }

    /// Writes the rows of the table, once all groups are done.
    fn write(self) -> Result<()> {
        let rows = self.logs.rows(&[], self.out.schema())?;
        self.out.write(&rows)
    }
}

impl Logs {
    /// Returns the number of steps of the first groups.
    fn steps(&self, groups: usize) -> u64 {
        self.groups[..groups].iter().map(|group| group.steps).sum()
    }

    /// Returns the rows of the table: the logs of the groups that are done, and that of the one at work.
    fn rows(&self, current: &[LogRow], schema: &SchemaRef) -> Result<RecordBatch> {
        let (mut log, mut of) = (Vec::new(), Vec::new());
        let logs = self.done.iter().map(Vec::as_slice).chain([current]);
        for (index, (group, rows)) in self.groups.iter().zip(logs).enumerate() {
            let before = self.steps(index);
            log.extend(rows.iter().map(|row| LogRow { step: before + row.step, ..row.clone() }));
            of.extend(rows.iter().map(|_| &**group));
        }
        let [classes, images, fitted_on] = FittedOn::columns(&of.iter().map(|group| &group.on).collect::<Vec<_>>());
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter(of.iter().map(|group| group.class.as_deref()))),
            classes,
            images,
            fitted_on,
            Arc::new(StringArray::from_iter_values(of.iter().map(|_| &self.network))),
        ];
        columns.extend(log_columns(&log));
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }
}

/// Puts the logs of the groups that are done before a state.
fn packed(done: &[Vec<LogRow>], state: &[u8]) -> Result<Vec<u8>> {
    let logs = serde_json::to_vec(done).map_err(std::io::Error::from)?;
    Ok([&(logs.len() as u64).to_le_bytes(), &*logs, state].concat())
}

/// Returns what [`packed`] joined; `None` for other bytes.
fn unpacked(saved: &Bytes) -> Option<(Vec<Vec<LogRow>>, Bytes)> {
    let length = u64::from_le_bytes(saved.get(..LENGTH)?.try_into().ok()?);
    let end = LENGTH.checked_add(usize::try_from(length).ok()?)?;
    let done = serde_json::from_slice(saved.get(LENGTH..end)?).ok()?;
    Some((done, saved.slice(end..)))
}

impl Journal for Trainings<'_, '_> {
    type Error = Error;

    fn saved(&mut self) -> Result<Option<Bytes>> {
        Ok(self.state.take())
    }

    fn save(&mut self, state: Vec<u8>) -> Result<()> {
        self.out.save(packed(&self.logs.done, &state)?)
    }

    fn save_every(&self) -> Duration {
        self.out.save_every()
    }

    fn is_interrupted(&self) -> bool {
        self.out.is_interrupted()
    }

    fn keep(&mut self, weights: Vec<u8>) -> Result<String> {
        Journal::keep(self.out, weights)
    }

    fn take_over(&mut self, names: &[&str]) -> Result<bool> {
        Journal::take_over(self.out, names)
    }

    fn progress(&mut self, step: u64, _: u64) {
        // The begin of a later training is the end of the one before it, which was reported.
        if step > 0 || !self.has_begun {
            let Logs { groups, done, .. } = &self.logs;
            let (before, all) = (self.logs.steps(done.len()), self.logs.steps(groups.len()));
            self.out.progress(before + step, all, Unit::Steps);
        }
        self.has_begun = true;
    }

    fn show(&mut self, log: &[LogRow]) -> Result<()> {
        if let Some(last) = log.last() {
            self.out.figure(format!("loss {:.4}", last.loss));
        }
        let schema = self.out.schema().clone();
        self.out.preview(|| self.logs.rows(log, &schema))
    }

    fn say(&mut self, message: String) {
        self.out.log(message);
    }

    fn warn(&mut self, note: &str) {
        let class = self.next().and_then(|group| group.class.clone());
        match class {
            Some(class) => self.out.warn(&format!("class `{class}`: {note}")),
            None => self.out.warn(note),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_state_is_unpacked_and_other_bytes_are_refused() {
        let row = LogRow {
            step: 3,
            epoch: 1,
            loss: 0.5,
            parts: Vec::new(),
            guessing: None,
            lr: 0.1,
            grad_norm: 2.,
            rows_per_s: 9.,
            weights: Some("name".into()),
        };
        for (done, state) in [(vec![vec![row.clone()], vec![]], &b"state"[..]), (vec![], b"")] {
            let saved = Bytes::from(packed(&done, state).unwrap());
            assert_eq!(unpacked(&saved), Some((done, Bytes::from_static(state))));
        }
        for other in [&b""[..], b"1234567", &[255; 16], &[9, 0, 0, 0, 0, 0, 0, 0, b'[']] {
            assert_eq!(unpacked(&Bytes::copy_from_slice(other)), None);
        }
    }
}
