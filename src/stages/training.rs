//! The training loop that all trained stages share: length, data order, learning rate, log rows and stored weights,
//! and a saved state from which training continues bit for bit.

mod learned;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{ArrayRef, Float32Array, Int64Array, RecordBatch, StringArray},
    datatypes::SchemaRef,
};
use bytes::Bytes;
use garde::Validate;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Tensor, no_grad};

pub(super) use learned::Judge;

use super::tensors::checkpoint;
use crate::{
    diffusion::{
        Noise,
        optim::{Ema, Named, Optimizer, OptimizerConfig, Rule, StateError},
        train::{self, Trainer},
    },
    engine::{
        Digest, Error, Result,
        stage::{Sink, Unit},
    },
    models::checkpoint::{Checkpoint, to_safetensors},
};

/// Advice for the case that memory runs out.
pub(super) const MEMORY: &str = "lower `training.batch_size` and raise `training.accumulate` as much";
/// The number of epochs if no length is given.
const EPOCHS: u64 = 100;
/// The share of a training's time that saving may take is one over this.
const SAVING: u32 = 20;

/// The parameters of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct Training {
    /// The number of optimiser steps; absent: as many as `epochs` take.
    #[garde(inner(range(min = 1)), custom(instead_of(&self.epochs)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// The number of times that every row is used, in place of `steps`; absent: 100. Each epoch has an order of its
    /// own.
    #[garde(inner(range(min = 1)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u64>,
    /// The number of rows that are computed at once. The rest at the end of an epoch makes a smaller batch.
    #[garde(range(min = 1, max = 65_536))]
    pub batch_size: usize,
    /// The number of batches per step, whose gradients are averaged. The effect is that of a batch so many times as
    /// large, without its memory. The rest at the end of an epoch makes a step too, with proportionally less weight.
    /// The authors' denoiser: 4 of 12.
    #[garde(range(min = 1, max = 65_536))]
    pub accumulate: usize,
    /// The optimiser.
    #[garde(skip)]
    pub optimizer: Rule,
    /// The highest learning rate.
    #[garde(range(min = 0.))]
    pub lr: f64,
    /// The course of the learning rate after the warm-up.
    #[garde(skip)]
    pub lr_scheduler: LrScheduler,
    /// Steps over which the learning rate rises from 0.
    #[garde(skip)]
    pub warmup_steps: u64,
    /// The optimiser's weight decay.
    #[garde(range(min = 0.))]
    pub weight_decay: f64,
    /// The optimiser's decay rates of the first and second moment.
    #[garde(inner(range(min = 0., max = 0.999_999)))]
    pub betas: [f64; 2],
    /// The largest gradient norm; 0 for no clipping.
    #[garde(range(min = 0.))]
    pub max_grad_norm: f64,
    /// The decay of the average of the weights, which is then stored in their place; 0 for no average.
    #[garde(range(min = 0., max = 0.999_999))]
    pub ema_decay: f64,
    /// The number of steps per row of the table.
    #[garde(range(min = 1))]
    pub log_every: u64,
    /// The number of steps between weights that are stored during the training, each named in its row of the table; 0
    /// for only the last.
    #[garde(skip)]
    pub checkpoint_every: u64,
    /// Seed of the start weights, the order of the rows and all noise.
    #[garde(skip)]
    pub seed: u64,
}

/// Refuses `steps` together with `epochs`, because the length is given once.
fn instead_of(epochs: &Option<u64>) -> impl FnOnce(&Option<u64>, &()) -> garde::Result {
    let both = epochs.is_some();
    move |steps, ()| match steps {
        Some(_) if both => {
            Err(garde::Error::new("`steps` and `epochs` both say how long to train; leave one out or set it to null"))
        }
        _ => Ok(()),
    }
}

/// The course of the learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LrScheduler {
    /// It is constant.
    Constant,
    /// It falls as half a cosine to 0 at the last step.
    Cosine,
}

impl Default for Training {
    /// Returns the optimiser and learning rate of the authors' denoiser.
    fn default() -> Self {
        Self {
            steps: None,
            epochs: None,
            batch_size: 12,
            accumulate: 1,
            optimizer: Rule::AdamW,
            lr: 1e-5,
            lr_scheduler: LrScheduler::Constant,
            warmup_steps: 0,
            weight_decay: 0.01,
            betas: [0.9, 0.999],
            max_grad_norm: 0.,
            ema_decay: 0.,
            log_every: 10,
            checkpoint_every: 0,
            seed: 0,
        }
    }
}

/// A micro-batch.
pub(super) struct MicroBatch {
    /// Its number since the training began, which seeds its noise.
    pub(super) number: u64,
    /// The step to which it belongs, from 0.
    pub(super) step: u64,
    /// Its rows.
    pub(super) rows: Vec<i64>,
    /// True if the parts of its loss are needed for the log.
    pub(super) is_logged: bool,
}

impl MicroBatch {
    /// Returns the random numbers of this batch.
    pub(super) fn noise(&self, seed: u64) -> Noise {
        self.noise_of(seed, "")
    }

    /// Returns independent random numbers of this batch for another purpose.
    pub(super) fn noise_of(&self, seed: u64, purpose: &str) -> Noise {
        Noise::new(seed, [&self.number.to_le_bytes(), purpose.as_bytes()].concat())
    }
}

/// A batch's loss and, for the log, its parts. Parts that cannot be computed are `None`.
pub(super) struct LoggedLoss<'a> {
    pub(super) total: train::Loss<'a>,
    pub(super) parts: Vec<Option<Tensor>>,
}

/// A network in training, as the loop needs it.
pub(super) struct Subject<L, W> {
    /// The trainers. The loss of the first is that of the table.
    pub(super) trainers: Vec<Trainer>,
    /// All variables that training changes, by name.
    pub(super) variables: Named,
    /// The number of rows to train on.
    pub(super) rows: usize,
    /// Computes the loss of a trainer, given by its index, on a batch.
    pub(super) loss: L,
    /// Makes the file of the current weights.
    pub(super) weights: W,
    /// Judges whether the first trainer has learned anything.
    pub(super) judge: Judge,
}

/// One row of a training table.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct LogRow {
    step: u64,
    epoch: u64,
    loss: f32,
    parts: Vec<Option<f32>>,
    /// The loss of guessing on the same batches, if it is known. It is not a column of the table.
    #[serde(default)]
    guessing: Option<f64>,
    lr: f32,
    grad_norm: f32,
    rows_per_s: f32,
    weights: Option<Digest>,
}

impl Training {
    /// Makes a trainer of these parameters, which then require gradients.
    pub(super) fn trainer(&self, parameters: Named) -> Trainer {
        let ema = (self.ema_decay > 0.).then(|| Ema::new(&parameters, self.ema_decay));
        let Self { optimizer: rule, lr, betas, weight_decay, .. } = *self;
        let max_grad_norm = if self.max_grad_norm > 0. { self.max_grad_norm } else { f64::INFINITY };
        let config = OptimizerConfig { rule, lr, betas, eps: 1e-8, weight_decay };
        Trainer { optimizer: Optimizer::new(parameters, config), max_grad_norm, ema }
    }

    /// Returns the number of steps in an epoch of `rows` rows.
    fn per_epoch(&self, rows: usize) -> u64 {
        rows.div_ceil(self.batch_size).div_ceil(self.accumulate) as u64
    }

    /// Returns the number of steps of the training.
    fn length(&self, rows: usize) -> u64 {
        self.steps.unwrap_or(self.epochs.unwrap_or(EPOCHS) * self.per_epoch(rows))
    }

    /// Returns the learning rate of step `step` of `steps`.
    fn lr_at(&self, step: u64, steps: u64) -> f64 {
        let warm = if step < self.warmup_steps { (step + 1) as f64 / self.warmup_steps as f64 } else { 1. };
        let span = steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let done = step.saturating_sub(self.warmup_steps) as f64 / span;
        warm * self.lr
            * match self.lr_scheduler {
                LrScheduler::Constant => 1.,
                LrScheduler::Cosine => f64::midpoint(1., (std::f64::consts::PI * done).cos()),
            }
    }

    /// Returns the batches of a step. Each epoch is a permutation that seed and epoch determine, so the order needs
    /// no state.
    fn batches(&self, step: u64, rows: usize, order: &mut Option<(u64, Vec<i64>)>, is_logged: bool) -> Vec<MicroBatch> {
        let (epoch, within) = (step / self.per_epoch(rows), step % self.per_epoch(rows));
        if order.as_ref().is_none_or(|(of, _)| *of != epoch) {
            let mut permutation: Vec<i64> = (0..rows as i64).collect();
            let seed = self.seed ^ epoch.wrapping_mul(0x9E37_79B9_7F4A_7C15);
            permutation.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
            *order = Some((epoch, permutation));
        }
        let order = order.as_ref().map_or(&[][..], |(_, order)| order);
        let chunks = order.chunks(self.batch_size).skip(within as usize * self.accumulate).take(self.accumulate);
        let first = step * self.accumulate as u64;
        chunks.zip(first..).map(|(rows, number)| MicroBatch { number, step, rows: rows.to_vec(), is_logged }).collect()
    }

    /// Trains, and writes the table, whose last row names the trained (or averaged) weights.
    pub(super) fn run<'a, L, W>(&self, subject: Subject<L, W>, out: &mut Sink<'_>) -> Result<()>
    where
        L: FnMut(usize, &MicroBatch) -> Result<LoggedLoss<'a>>,
        W: Fn() -> Result<Vec<u8>>,
    {
        let Subject { trainers, variables, rows, mut loss, weights, judge } = subject;
        if rows == 0 {
            return Err(Error::Input("there are no rows to train on; look at `where:` and at the tables above".into()));
        }
        let (steps, schema) = (self.length(rows), out.schema().clone());
        let mut state = State { step: 0, trainers, variables, first: Vec::new(), log: Log::default() };
        if let Some(saved) = out.saved()? {
            state.restore(saved, out)?;
        }
        let mut order = None;
        let mut saves = Saves::new(out.save_every());
        let (mut logged, mut seen) = (Instant::now(), 0);
        while state.step < steps {
            let lr = self.lr_at(state.step, steps);
            state.trainers.iter_mut().for_each(|trainer| trainer.optimizer.config.lr = lr);
            let step = state.step + 1;
            let is_last = step == steps;
            let is_kept = self.checkpoint_every > 0 && step.is_multiple_of(self.checkpoint_every) && !is_last;
            let is_logged = is_last || is_kept || step.is_multiple_of(self.log_every);
            let is_first = step <= learned::first_steps(steps);
            let is_read = is_logged || is_first;
            let batches = self.batches(state.step, rows, &mut order, is_logged);
            state.step = step;
            // The loss and its parts, summed per trainer. They are read only for the log, because reading waits for
            // the GPU.
            let mut sums: Vec<Vec<Option<f64>>> = vec![Vec::new(); state.trainers.len()];
            let norms = train::step(&mut state.trainers, batches.len(), self.accumulate, |which, at| {
                let LoggedLoss { total, parts } = loss(which, &batches[at])?;
                if is_read {
                    let sums = &mut sums[which];
                    sums.resize(parts.len() + 1, Some(0.));
                    let parts = parts.iter().map(|part| part.as_ref().map(|part| part.double_value(&[])));
                    let values = std::iter::once(Some(total.value.double_value(&[]))).chain(parts);
                    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum = sum.zip(value).map(|(a, b)| a + b));
                }
                Ok::<_, Error>(total)
            })?;
            seen += batches.iter().map(|batch| batch.rows.len()).sum::<usize>();
            out.progress(step, steps, Unit::Steps);
            let mean = |sum: &Option<f64>| sum.map(|sum| (sum / batches.len() as f64) as f32);
            let means: Vec<Vec<Option<f32>>> = sums.iter().map(|sums| sums.iter().map(mean).collect()).collect();
            if is_first {
                state.first.extend(means[0].get(judge.column()).copied().flatten());
            }
            if is_logged {
                let norms: Vec<f32> = norms.into_iter().map(|norm| norm as f32).collect();
                check(step, &means, &norms)?;
                let kept = if is_kept { Some(out.blob(state.averaged(&weights)?)?) } else { None };
                state.log.0.push(LogRow {
                    step,
                    epoch: step / self.per_epoch(rows),
                    loss: means[0].first().copied().flatten().unwrap_or_default(),
                    guessing: judge.guessing(&batches),
                    parts: means.iter().flat_map(|means| &means[1..]).copied().collect(),
                    lr: lr as f32,
                    grad_norm: norms[0],
                    rows_per_s: seen as f32 / logged.elapsed().as_secs_f32().max(1e-6),
                    weights: kept,
                });
                (logged, seen) = (Instant::now(), 0);
                out.show(|| state.log.batch(&schema))?;
            }
            let is_interrupted = out.is_interrupted();
            if !is_last && (is_interrupted || saves.is_due()) {
                saves.time(|| out.save(state.bytes()?))?;
                if is_interrupted {
                    out.log(format!("stopped at step {step}"));
                    return Err(Error::Interrupted);
                }
            }
        }
        let blob = out.blob(state.averaged(&weights)?)?;
        if let Some(last) = state.log.0.last_mut() {
            last.weights = Some(blob);
        }
        if let Some(remark) = judge.remark(&state.first, &state.log.0) {
            out.warn(&remark);
        }
        out.write(&state.log.batch(&schema)?)
    }
}

/// Refuses values that are not finite, of any trainer, because they mean that training diverged and no saved state
/// can hold them. Checked are the loss of each trainer with its parts, and the norm of its gradients.
fn check(step: u64, losses: &[Vec<Option<f32>>], norms: &[f32]) -> Result<()> {
    let parts = losses.iter().flat_map(|loss| loss.iter().enumerate());
    let named = |(i, value): (usize, &Option<f32>)| (if i == 0 { "the loss" } else { "a part of the loss" }, *value);
    let parts = parts.map(named).filter_map(|(what, value)| Some((what, value?)));
    let numbers = parts.chain(norms.iter().map(|norm| ("the norm of the gradients", *norm)));
    match numbers.into_iter().find(|(_, number)| !number.is_finite()) {
        Some((what, number)) => Err(Error::Stage(format!(
            "{what} is {number} at step {step}: training diverged; lower `lr` or set `max_grad_norm`"
        ))),
        None => Ok(()),
    }
}

/// Decides when to save: at the requested interval, but in no more than a small share of the time.
struct Saves {
    every: Duration,
    last: Instant,
    took: Duration,
}

impl Saves {
    fn new(every: Duration) -> Self {
        Self { every, last: Instant::now(), took: Duration::ZERO }
    }

    fn is_due(&self) -> bool {
        self.last.elapsed() >= self.every.max(self.took * SAVING)
    }

    fn time(&mut self, save: impl FnOnce() -> Result<()>) -> Result<()> {
        let began = Instant::now();
        save()?;
        (self.last, self.took) = (Instant::now(), began.elapsed());
        Ok(())
    }
}

/// The state of a training.
struct State {
    /// The number of steps that are done.
    step: u64,
    trainers: Vec<Trainer>,
    variables: Named,
    /// The judged losses of the first steps.
    first: Vec<f32>,
    log: Log,
}

impl State {
    /// Calls `weights` with the averages in place of the weights, if averages are kept, and otherwise with the
    /// weights as they are.
    fn averaged<T>(&mut self, weights: impl Fn() -> Result<T>) -> Result<T> {
        self.swap();
        let made = weights();
        self.swap();
        made
    }

    /// Exchanges weights and averages.
    fn swap(&mut self) {
        for Trainer { optimizer, ema, .. } in &mut self.trainers {
            if let Some(ema) = ema {
                ema.swap(&optimizer.parameters());
                optimizer.synchronize();
            }
        }
    }

    fn bytes(&self) -> Result<Vec<u8>> {
        let named = |prefix: String, tensors: Named| {
            tensors.into_iter().map(move |(name, tensor)| (format!("{prefix}/{name}"), tensor.detach()))
        };
        let clone = |named: &Named| named.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        let mut tensors: Vec<(String, Tensor)> = named("weights".into(), clone(&self.variables)).collect();
        for (i, Trainer { optimizer, ema, .. }) in self.trainers.iter().enumerate() {
            tensors.extend(named(format!("optimizer.{i}"), optimizer.state()));
            tensors.extend(ema.iter().flat_map(|ema| named(format!("ema.{i}"), clone(ema.averages()))));
        }
        let log = serde_json::to_string(&self.log.0).map_err(std::io::Error::from)?;
        let first = serde_json::to_string(&self.first).map_err(std::io::Error::from)?;
        let metadata =
            HashMap::from([("step".into(), self.step.to_string()), ("first".into(), first), ("log".into(), log)]);
        Ok(to_safetensors(tensors, metadata)?)
    }

    fn restore(&mut self, bytes: Bytes, out: &mut Sink<'_>) -> Result<()> {
        let saved = Checkpoint::from_safetensors(bytes).map_err(checkpoint)?;
        let part = |prefix: String| -> Result<Named> {
            let names = saved.names().filter_map(|name| name.strip_prefix(&prefix)?.strip_prefix('/'));
            let read = |name: &str| saved.tensor(&format!("{prefix}/{name}")).map_err(checkpoint);
            names.map(|name| Ok((name.to_owned(), read(name)?))).collect()
        };
        let damaged = |what: &str| Error::Damaged(format!("a saved training state: {what}"));
        let field = |name: &str| saved.metadata().get(name).map(String::as_str).unwrap_or_default();
        // A log that cannot be read is treated like a state that does not match its digest: the training starts over.
        let Some(Log(rows)) = Log::read(field("log")) else {
            out.log("the saved state cannot be read; starts over");
            return Ok(());
        };
        let step = field("step").parse().map_err(|_| damaged("it has no step"))?;
        let kept: Vec<Digest> = rows.iter().filter_map(|row| row.weights).collect();
        if !out.keep(&kept)? {
            out.log("weights that were kept on the way are gone; starts over");
            return Ok(());
        }
        let weights = part("weights".into())?;
        for (name, variable) in &self.variables {
            let value = weights.get(name).ok_or_else(|| damaged(&format!("{name} is missing")))?;
            no_grad(|| variable.shallow_clone().f_copy_(value))?;
        }
        let wrong = |e: StateError| damaged(&e.to_string());
        for (i, Trainer { optimizer, ema, .. }) in self.trainers.iter_mut().enumerate() {
            optimizer.load_state(part(format!("optimizer.{i}"))?).map_err(wrong)?;
            optimizer.synchronize();
            if let Some(ema) = ema {
                ema.load(&part(format!("ema.{i}"))?).map_err(wrong)?;
            }
        }
        (self.step, self.first, self.log) = (step, serde_json::from_str(field("first")).unwrap_or_default(), Log(rows));
        out.log(format!("goes on from step {step}"));
        Ok(())
    }
}

/// The rows of a training table.
#[derive(Default)]
struct Log(Vec<LogRow>);

impl Log {
    /// Reads the rows from the text in a saved state.
    fn read(json: &str) -> Option<Self> {
        serde_json::from_str(json).ok().map(Self)
    }

    fn batch(&self, schema: &SchemaRef) -> Result<RecordBatch> {
        let float =
            |f: &dyn Fn(&LogRow) -> f32| Arc::new(Float32Array::from_iter_values(self.0.iter().map(f))) as ArrayRef;
        let part = |i: usize| Arc::new(Float32Array::from_iter(self.0.iter().map(|r| r.parts[i]))) as ArrayRef;
        let int = |f: &dyn Fn(&LogRow) -> u64| {
            Arc::new(Int64Array::from_iter_values(self.0.iter().map(|r| f(r) as i64))) as ArrayRef
        };
        let parts = self.0.first().map_or(0, |row| row.parts.len());
        let mut columns = vec![int(&|r| r.step), int(&|r| r.epoch), float(&|r| r.loss)];
        columns.extend((0..parts).map(part));
        columns.extend([float(&|r| r.lr), float(&|r| r.grad_norm), float(&|r| r.rows_per_s)]);
        columns.push(Arc::new(StringArray::from_iter(self.0.iter().map(|row| row.weights.map(|w| w.to_string())))));
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(batches: &[MicroBatch]) -> Vec<usize> {
        batches.iter().map(|batch| batch.rows.len()).collect()
    }

    #[test]
    fn steps_and_epochs_exclude_each_other() {
        let training = |steps, epochs| Training { steps, epochs, ..Training::default() };
        assert_eq!(
            [(None, None), (Some(3), None), (None, Some(2))].map(|(s, e)| training(s, e).length(24)),
            [200, 3, 4]
        );
        assert!(training(Some(3), None).validate().is_ok());
        let told = training(Some(3), Some(2)).validate().unwrap_err().to_string();
        assert!(told.contains("steps: `steps` and `epochs` both say how long to train"), "{told}");
    }

    #[test]
    fn epoch_has_every_row_once_and_ends_with_the_rest() {
        let training = Training { batch_size: 3, accumulate: 2, epochs: Some(2), ..Training::default() };
        assert_eq!((training.per_epoch(13), training.length(13)), (3, 6));
        let mut order = None;
        let steps: Vec<Vec<MicroBatch>> = (0..6).map(|step| training.batches(step, 13, &mut order, false)).collect();
        // an epoch has five batches, a step two
        let sizes: Vec<Vec<usize>> = steps.iter().map(|step| rows(step)).collect();
        assert_eq!(sizes[..3], [vec![3, 3], vec![3, 3], vec![1]]);
        assert_eq!(sizes[..3], sizes[3..]);
        for epoch in steps.chunks(3) {
            let mut seen: Vec<i64> = epoch.iter().flatten().flat_map(|batch| batch.rows.clone()).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..13).collect::<Vec<_>>());
        }
        // no noise is used twice, and the batches of any step are found without those before it
        let numbers: Vec<u64> = steps.iter().flatten().map(|batch| batch.number).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{numbers:?}");
        assert_eq!(training.batches(4, 13, &mut None, false)[1].rows, steps[4][1].rows);
        assert_ne!(steps[0][0].rows, steps[3][0].rows);
    }

    #[test]
    fn learning_rate_warms_up_and_falls() {
        let training = Training { warmup_steps: 10, lr: 1., lr_scheduler: LrScheduler::Cosine, ..Training::default() };
        assert!((training.lr_at(0, 100) - 0.1).abs() < 1e-9);
        assert!((training.lr_at(10, 100) - 1.).abs() < 1e-9);
        assert!((training.lr_at(55, 100) - 0.5).abs() < 1e-9);
        assert!(training.lr_at(99, 100) < 0.001);
    }

    #[test]
    fn non_finite_numbers_are_refused_and_not_logged() {
        let values = |losses: [&[f32]; 2]| losses.map(|loss| loss.iter().copied().map(Some).collect::<Vec<_>>());
        let error = |losses, norms| check(7, &values(losses), norms).unwrap_err().to_string();
        assert!(check(7, &[vec![Some(1.), None], vec![Some(3.)]], &[4., 5.]).is_ok());
        let advice = "at step 7: training diverged; lower `lr` or set `max_grad_norm`";
        assert_eq!(error([&[1.], &[f32::NAN]], &[1., 1.]), format!("the loss is NaN {advice}"));
        assert_eq!(error([&[1., f32::INFINITY], &[1.]], &[1., 1.]), format!("a part of the loss is inf {advice}"));
        assert_eq!(error([&[1.], &[1.]], &[1., f32::INFINITY]), format!("the norm of the gradients is inf {advice}"));
        // earlier programs saved such rows
        assert!(Log::read("[{\"step\": 2, \"loss\": null}]").is_none());
    }

    #[test]
    fn saving_takes_a_small_part_of_the_time() {
        let mut saves = Saves::new(Duration::ZERO);
        assert!(saves.is_due());
        saves.took = Duration::from_secs(1);
        assert!(!saves.is_due());
    }
}
