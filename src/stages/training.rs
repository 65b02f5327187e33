//! The training loop that all trained stages share: data order, schedule, clipping, averaging, log rows, and a saved state
//! from which training goes on bit for bit.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Instant,
};

use arrow::{
    array::{ArrayRef, Float32Array, Int64Array, RecordBatch, StringArray},
    datatypes::{DataType, Field, Schema, SchemaRef},
};
use garde::Validate;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor, nn::VarStore, no_grad};

use super::tensors::{CONFIG, checkpoint, torch};
use crate::{
    diffusion::optim::{AdamW, AdamWConfig, Ema, Named},
    engine::{Digest, Error, Result, columns::volatile, task::Sink},
    models::checkpoint::{Checkpoint, to_safetensors},
};

/// How a network is trained: AdamW over shuffled epochs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct Training {
    /// Optimiser steps.
    #[garde(range(min = 1))]
    pub steps: u64,
    /// Rows per step.
    #[garde(range(min = 1, max = 65_536))]
    pub batch_size: usize,
    /// The highest learning rate.
    #[garde(range(min = 0.))]
    pub lr: f64,
    /// How the learning rate goes down after the warm-up.
    #[garde(skip)]
    pub lr_scheduler: LrScheduler,
    /// Steps over which the learning rate rises from 0.
    #[garde(skip)]
    pub warmup_steps: u64,
    /// AdamW's decoupled weight decay.
    #[garde(range(min = 0.))]
    pub weight_decay: f64,
    /// AdamW's decay rates of the first and second moment.
    #[garde(skip)]
    pub betas: [f64; 2],
    /// The largest gradient norm; 0 for no clipping.
    #[garde(range(min = 0.))]
    pub max_grad_norm: f64,
    /// The decay of the average of the weights, which is then what is kept; 0 for no average.
    #[garde(range(min = 0., max = 0.999_999))]
    pub ema_decay: f64,
    /// Steps per row of the table.
    #[garde(range(min = 1))]
    pub log_every: u64,
    /// Seed of the start weights, the order of the rows and all noise.
    #[garde(skip)]
    pub seed: u64,
}

/// The course of the learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LrScheduler {
    /// It stays.
    Constant,
    /// Half a cosine down to 0 at the last step.
    Cosine,
}

impl Default for Training {
    fn default() -> Self {
        Self {
            steps: 1000,
            batch_size: 12,
            lr: 1e-5,
            lr_scheduler: LrScheduler::Constant,
            warmup_steps: 0,
            weight_decay: 0.01,
            betas: [0.9, 0.999],
            max_grad_norm: 0.,
            ema_decay: 0.,
            log_every: 10,
            seed: 0,
        }
    }
}

/// A step's loss and, for the log, its parts.
pub(super) struct Loss {
    pub(super) total: Tensor,
    pub(super) parts: Vec<Tensor>,
}

/// One row of a training table.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct LogRow {
    step: i64,
    epoch: i64,
    loss: f32,
    parts: Vec<f32>,
    lr: f32,
    grad_norm: f32,
    rows_per_s: f32,
}

/// The schema of a training table. `parts` names the loss's parts; `config` is what a reader of the weights needs to know.
pub(super) fn schema(parts: &[&str], config: &impl Serialize) -> SchemaRef {
    let float = |name: &str| Field::new(name, DataType::Float32, false);
    let config = serde_json::to_string(config).unwrap_or_default();
    let mut fields =
        vec![Field::new("step", DataType::Int64, false), Field::new("epoch", DataType::Int64, false), float("loss")];
    fields.extend(parts.iter().map(|part| float(part)));
    fields.extend([
        float("lr"),
        float("grad_norm"),
        volatile(float("rows_per_s")),
        Field::new("weights", DataType::Utf8, true).with_metadata(HashMap::from([(CONFIG.to_owned(), config)])),
    ]);
    Arc::new(Schema::new(fields))
}

/// The configuration that [`schema`] put beside the weights of a table.
pub(super) fn config_of<C: serde::de::DeserializeOwned>(weights: &Field) -> Result<C, String> {
    let json = weights.metadata().get(CONFIG).ok_or("the table was not made by a training stage")?;
    serde_json::from_str(json).map_err(|e| format!("the network's configuration: {e}"))
}

impl Training {
    /// The learning rate of a step.
    fn lr_at(&self, step: u64) -> f64 {
        let warm = if step < self.warmup_steps { (step + 1) as f64 / self.warmup_steps as f64 } else { 1. };
        let span = self.steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let done = step.saturating_sub(self.warmup_steps) as f64 / span;
        warm * self.lr
            * match self.lr_scheduler {
                LrScheduler::Constant => 1.,
                LrScheduler::Cosine => f64::midpoint(1., (std::f64::consts::PI * done).cos()),
            }
    }

    /// The rows of a step: each epoch is a permutation that seed and epoch fix, so the order needs no state.
    fn batch(&self, step: u64, rows: usize, order: &mut (u64, Vec<i64>)) -> Vec<i64> {
        let first = step * self.batch_size as u64;
        (first..first + self.batch_size as u64)
            .map(|position| {
                let epoch = position / rows as u64;
                if order.1.is_empty() || order.0 != epoch {
                    let mut permutation: Vec<i64> = (0..rows as i64).collect();
                    permutation
                        .shuffle(&mut ChaCha8Rng::seed_from_u64(self.seed ^ epoch.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
                    *order = (epoch, permutation);
                }
                order.1[(position % rows as u64) as usize]
            })
            .collect()
    }

    /// Trains `parameters` of `vs` on `rows` rows. `loss` is given the step and the rows of its batch. On return `vs` holds
    /// the trained (or averaged) weights; the log rows are returned by [`Log::batch`].
    pub(super) fn run(
        &self,
        vs: &VarStore,
        parameters: Named,
        rows: usize,
        out: &mut Sink<'_>,
        mut loss: impl FnMut(u64, &[i64]) -> Result<Loss>,
    ) -> Result<Log> {
        if rows == 0 {
            return Err(Error::Input("there are no rows to train on; look at `where:` and at the tables above".into()));
        }
        let clone = |named: &Named| {
            named.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect::<Named>()
        };
        let mut ema = (self.ema_decay > 0.).then(|| Ema::new(&parameters, self.ema_decay));
        let config = AdamWConfig { lr: self.lr, betas: self.betas, eps: 1e-8, weight_decay: self.weight_decay };
        let mut optimizer = AdamW::new(clone(&parameters), config);
        let mut log = Log::default();
        let mut step = 0;
        if let Some(state) = out.saved()? {
            step = self.restore(&state, vs, &mut optimizer, ema.as_mut(), &mut log)?;
            out.log(format!("goes on from step {step}"));
        }
        let mut order = (0, Vec::new());
        let (mut saved, mut logged) = (Instant::now(), Instant::now());
        let mut since = 0;
        while step < self.steps {
            let batch = self.batch(step, rows, &mut order);
            optimizer.config.lr = self.lr_at(step);
            optimizer.zero_grad();
            let Loss { total, parts } = loss(step, &batch)?;
            total.f_backward().map_err(torch)?;
            let grad_norm =
                optimizer.clip_grad_norm(if self.max_grad_norm > 0. { self.max_grad_norm } else { f64::INFINITY });
            optimizer.step().map_err(torch)?;
            if let Some(ema) = &mut ema {
                ema.update(&parameters);
            }
            step += 1;
            since += 1;
            out.progress(step, self.steps, "steps");
            if step % self.log_every == 0 || step == self.steps {
                let value = |tensor: &Tensor| tensor.double_value(&[]) as f32;
                let loss = value(&total);
                if !loss.is_finite() {
                    return Err(Error::Stage(format!(
                        "the loss is {loss} at step {step}: training diverged; lower `lr` or set `max_grad_norm`"
                    )));
                }
                log.0.push(LogRow {
                    step: step as i64,
                    epoch: (step * self.batch_size as u64 / rows as u64) as i64,
                    loss,
                    parts: parts.iter().map(value).collect(),
                    lr: optimizer.config.lr as f32,
                    grad_norm: grad_norm as f32,
                    rows_per_s: (since * self.batch_size) as f32 / logged.elapsed().as_secs_f32().max(1e-6),
                });
                (logged, since) = (Instant::now(), 0);
            }
            if saved.elapsed() >= out.save_every() && step < self.steps {
                out.save(&self.state(step, vs, &optimizer, ema.as_ref(), &log)?)?;
                saved = Instant::now();
            }
        }
        if let Some(ema) = &ema {
            no_grad(|| {
                parameters.iter().for_each(|(name, tensor)| tensor.shallow_clone().copy_(&ema.averages()[name]))
            });
        }
        Ok(log)
    }

    fn state(&self, step: u64, vs: &VarStore, optimizer: &AdamW, ema: Option<&Ema>, log: &Log) -> Result<Vec<u8>> {
        let named = |prefix: &'static str, tensors: Named| {
            tensors.into_iter().map(move |(name, tensor)| (format!("{prefix}/{name}"), tensor))
        };
        let weights: Named = vs.variables().into_iter().collect();
        let averages = ema
            .map(|ema| ema.averages().iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect::<Named>())
            .unwrap_or_default();
        let all = named("weights", weights).chain(named("optimizer", optimizer.state())).chain(named("ema", averages));
        let tensors: Vec<(String, Tensor)> =
            all.map(|(name, tensor)| (name, tensor.detach().to_device(Device::Cpu))).collect();
        let log = serde_json::to_string(&log.0).map_err(std::io::Error::from)?;
        to_safetensors(tensors, HashMap::from([("step".into(), step.to_string()), ("log".into(), log)])).map_err(torch)
    }

    fn restore(
        &self,
        state: &[u8],
        vs: &VarStore,
        optimizer: &mut AdamW,
        ema: Option<&mut Ema>,
        log: &mut Log,
    ) -> Result<u64> {
        let saved = Checkpoint::from_safetensors(state.to_vec()).map_err(checkpoint)?;
        let part = |prefix: &str| -> Result<Named> {
            let names = saved.names().filter_map(|name| name.strip_prefix(prefix)?.strip_prefix('/'));
            names
                .map(|name| {
                    Ok((
                        name.to_owned(),
                        saved.tensor(&format!("{prefix}/{name}")).map_err(checkpoint)?.to_device(vs.device()),
                    ))
                })
                .collect()
        };
        let weights: BTreeMap<String, Tensor> = part("weights")?;
        no_grad(|| {
            vs.variables().into_iter().for_each(|(name, mut tensor)| {
                if let Some(value) = weights.get(&name) {
                    tensor.copy_(value)
                }
            })
        });
        let wrong = |e: crate::diffusion::optim::StateError| Error::Stage(e.to_string());
        optimizer.load_state(part("optimizer")?).map_err(wrong)?;
        if let Some(ema) = ema {
            ema.load(&part("ema")?).map_err(wrong)?;
        }
        let field = |name: &str| saved.metadata().get(name).map(String::as_str).unwrap_or_default();
        log.0 =
            serde_json::from_str(field("log")).map_err(|e| Error::Damaged(format!("a saved training state: {e}")))?;
        field("step").parse().map_err(|_| Error::Damaged("a saved training state has no step".into()))
    }
}

/// The rows of a training table.
#[derive(Default)]
pub(super) struct Log(Vec<LogRow>);

impl Log {
    /// The table; the last row names the weights.
    pub(super) fn batch(&self, schema: &SchemaRef, weights: Digest) -> Result<RecordBatch> {
        let float =
            |f: &dyn Fn(&LogRow) -> f32| Arc::new(Float32Array::from_iter_values(self.0.iter().map(f))) as ArrayRef;
        let int = |f: &dyn Fn(&LogRow) -> i64| Arc::new(Int64Array::from_iter_values(self.0.iter().map(f))) as ArrayRef;
        let parts = self.0.first().map_or(0, |row| row.parts.len());
        let mut columns = vec![int(&|r| r.step), int(&|r| r.epoch), float(&|r| r.loss)];
        columns.extend((0..parts).map(|i| float(&|r| r.parts[i])));
        columns.extend([float(&|r| r.lr), float(&|r| r.grad_norm), float(&|r| r.rows_per_s)]);
        let last = self.0.len().saturating_sub(1);
        columns.push(Arc::new(StringArray::from_iter(
            (0..self.0.len()).map(|i| (i == last).then(|| weights.to_string())),
        )));
        Ok(RecordBatch::try_new(schema.clone(), columns)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_shows_every_row_once() {
        let training = Training { batch_size: 4, ..Training::default() };
        let mut order = (0, Vec::new());
        let mut epoch: Vec<i64> = (0..5).flat_map(|step| training.batch(step, 10, &mut order)).take(10).collect();
        let again = training.batch(1, 10, &mut (0, Vec::new()));
        assert_eq!(epoch[4..8], again[..]);
        epoch.sort_unstable();
        assert_eq!(epoch, (0..10).collect::<Vec<_>>());
    }

    #[test]
    fn the_learning_rate_warms_up_and_goes_down() {
        let training =
            Training { steps: 100, warmup_steps: 10, lr: 1., lr_scheduler: LrScheduler::Cosine, ..Training::default() };
        assert!((training.lr_at(0) - 0.1).abs() < 1e-9);
        assert!((training.lr_at(10) - 1.).abs() < 1e-9);
        assert!((training.lr_at(55) - 0.5).abs() < 1e-9);
        assert!(training.lr_at(99) < 0.001);
    }
}
