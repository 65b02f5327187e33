//! The parameters of a training: its length, the order of its rows, its learning rate and its optimiser.

use garde::Validate;
use rand::{SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

use super::{
    optim::{Ema, Named, Optimizer, OptimizerConfig, Rule},
    step::Trainer,
};
use crate::diffusion::Noise;

/// Advice for the case that memory runs out.
pub const MEMORY: &str = "lower `training.batch_size` and raise `training.accumulate` as much";

/// The number of epochs if no length is given.
const EPOCHS: u64 = 100;

/// The parameters of a training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields, default)]
pub struct Training {
    /// The number of optimiser steps; absent: as many as `epochs` take.
    #[garde(inner(range(min = 1)), custom(instead_of(&self.epochs)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// The number of times that every row is used, in place of `steps`. Each epoch has an order of its own. Without
    /// either: 100, or the number of a method's protocol.
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
    /// It falls to a tenth after four fifths of the steps, as in the ADer benchmark.
    Step,
}

/// The share of the steps after which [`LrScheduler::Step`] lowers the learning rate, and the factor by which it does.
const STEP: (f64, f64) = (0.8, 0.1);

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

/// Defines [`TrainingChanges`] with a value for each parameter of [`Training`] that has one by default.
macro_rules! training_changes {
    ($($name:ident: $type:ty,)*) => {
        /// Parameters of a training that differ from those of a method: a value for each parameter of [`Training`],
        /// under its name.
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct TrainingChanges {
            #[serde(skip_serializing_if = "Option::is_none")]
            steps: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            epochs: Option<u64>,
            $(
                #[serde(skip_serializing_if = "Option::is_none")]
                $name: Option<$type>,
            )*
        }

        impl TrainingChanges {
            /// Returns the training of a method with these values in place of the method's own.
            pub fn applied_to(&self, own: &Training) -> Training {
                // The length is given once, in either unit.
                let (steps, epochs) = match (self.steps, self.epochs) {
                    (None, None) => (own.steps, own.epochs),
                    given => given,
                };
                Training { steps, epochs, $($name: self.$name.unwrap_or(own.$name),)* }
            }
        }
    };
}

training_changes! {
    batch_size: usize,
    accumulate: usize,
    optimizer: Rule,
    lr: f64,
    lr_scheduler: LrScheduler,
    warmup_steps: u64,
    weight_decay: f64,
    betas: [f64; 2],
    max_grad_norm: f64,
    ema_decay: f64,
    log_every: u64,
    checkpoint_every: u64,
    seed: u64,
}

impl JsonSchema for TrainingChanges {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "TrainingChanges".into()
    }

    /// Describes the parameters as [`Training`] does, without its defaults: those are the method's.
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = Training::json_schema(generator);
        let properties = schema.get_mut("properties").and_then(serde_json::Value::as_object_mut);
        for property in properties.into_iter().flat_map(|properties| properties.values_mut()) {
            property.as_object_mut().map(|property| property.shift_remove("default"));
        }
        schema.insert("description".into(), "Parameters of a training that differ from those of a method.".into());
        schema
    }
}

/// A micro-batch.
pub struct MicroBatch {
    /// Its number since the training began, which seeds its noise.
    pub number: u64,
    /// The step to which it belongs, from 0.
    pub step: u64,
    /// The epoch to which it belongs, from 0.
    pub epoch: u64,
    /// Its rows.
    pub rows: Vec<i64>,
    /// True if the parts of its loss are needed for the log.
    pub is_logged: bool,
}

impl MicroBatch {
    /// Returns the random numbers of this batch.
    pub fn noise(&self, seed: u64) -> Noise {
        self.noise_of(seed, "")
    }

    /// Returns independent random numbers of this batch for another purpose.
    pub fn noise_of(&self, seed: u64, purpose: &str) -> Noise {
        Noise::new(seed, [&self.number.to_le_bytes(), purpose.as_bytes()].concat())
    }

    /// Draws for each of its rows a number below `count`. The number depends on the seed, the epoch and the row alone, so
    /// that a training that was interrupted draws the same, and so does one with another `batch_size`.
    pub fn choices(&self, seed: u64, count: u32) -> Vec<usize> {
        let key = |row: &i64| [&b"choice"[..], &self.epoch.to_le_bytes(), &row.to_le_bytes()].concat();
        self.rows.iter().map(|row| Noise::new(seed, key(row)).below(count) as usize).collect()
    }
}

impl Training {
    /// Makes a trainer of these parameters, which then require gradients.
    pub fn trainer(&self, parameters: Named) -> Trainer {
        let ema = (self.ema_decay > 0.).then(|| Ema::new(&parameters, self.ema_decay));
        let Self { optimizer: rule, lr, betas, weight_decay, .. } = *self;
        let max_grad_norm = if self.max_grad_norm > 0. { self.max_grad_norm } else { f64::INFINITY };
        let config = OptimizerConfig { rule, lr, betas, eps: 1e-8, weight_decay };
        Trainer { optimizer: Optimizer::new(parameters, config), max_grad_norm, ema }
    }

    /// Returns the number of steps in an epoch of `rows` rows.
    pub(super) fn per_epoch(&self, rows: usize) -> u64 {
        rows.div_ceil(self.batch_size).div_ceil(self.accumulate) as u64
    }

    /// Returns the number of steps of the training on `rows` rows.
    pub fn length(&self, rows: usize) -> u64 {
        self.steps.unwrap_or_else(|| self.epochs.unwrap_or(EPOCHS).saturating_mul(self.per_epoch(rows)))
    }

    /// Returns the learning rate of step `step` of `steps`.
    pub(super) fn lr_at(&self, step: u64, steps: u64) -> f64 {
        let warm = if step < self.warmup_steps { (step + 1) as f64 / self.warmup_steps as f64 } else { 1. };
        let span = steps.saturating_sub(self.warmup_steps).max(1) as f64;
        let done = step.saturating_sub(self.warmup_steps) as f64 / span;
        warm * self.lr
            * match self.lr_scheduler {
                LrScheduler::Constant => 1.,
                LrScheduler::Cosine => f64::midpoint(1., (std::f64::consts::PI * done).cos()),
                LrScheduler::Step => {
                    if done < STEP.0 {
                        1.
                    } else {
                        STEP.1
                    }
                }
            }
    }

    /// Returns the batches of a step. Each epoch is a permutation that seed and epoch determine, so the order needs
    /// no state.
    pub(super) fn batches(
        &self,
        step: u64,
        rows: usize,
        order: &mut Option<(u64, Vec<i64>)>,
        is_logged: bool,
    ) -> Vec<MicroBatch> {
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
        let batch = |(rows, number): (&[i64], u64)| MicroBatch { number, step, epoch, rows: rows.to_vec(), is_logged };
        chunks.zip(first..).map(batch).collect()
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
    fn length_of_countless_epochs_does_not_overflow() {
        assert_eq!(Training { epochs: Some(u64::MAX), ..Default::default() }.length(1_000_000), u64::MAX);
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

    /// Returns what is drawn of five for each of 200 rows in each of 100 epochs.
    fn choices(batch_size: usize, seed: u64) -> Vec<Vec<usize>> {
        let training = Training { batch_size, accumulate: 3, epochs: Some(100), ..Training::default() };
        let (mut order, mut drawn) = (None, vec![vec![usize::MAX; 200]; 100]);
        for step in 0..training.length(200) {
            for batch in training.batches(step, 200, &mut order, false) {
                for (row, choice) in batch.rows.iter().zip(batch.choices(seed, 5)) {
                    drawn[batch.epoch as usize][*row as usize] = choice;
                }
            }
        }
        drawn
    }

    #[test]
    fn choices_are_even_and_independent_of_each_other_and_of_the_batch_size() {
        let drawn = choices(7, 1);
        assert_eq!(drawn, choices(64, 1));
        // Each number is expected in a fifth of the draws, and a fifth of the pairs of draws are expected to be equal. Five
        // standard deviations are allowed, each 57 for 20,000 draws.
        let is_a_fifth = |count: usize, of: usize| {
            let deviation = (of as f64 * 0.2 * 0.8).sqrt();
            (count as f64 - of as f64 / 5.).abs() < 5. * deviation
        };
        for number in 0..5 {
            let count = drawn.iter().flatten().filter(|choice| **choice == number).count();
            assert!(is_a_fifth(count, 20_000), "{number}: {count}");
        }
        let equal = |a: &[usize], b: &[usize]| a.iter().zip(b).filter(|(a, b)| a == b).count();
        let of_epochs: usize = drawn.windows(2).map(|pair| equal(&pair[0], &pair[1])).sum();
        let of_rows: usize = drawn.iter().map(|epoch| equal(&epoch[1..], epoch)).sum();
        let of_seeds: usize = drawn.iter().zip(choices(7, 2)).map(|(a, b)| equal(a, &b)).sum();
        assert!(is_a_fifth(of_epochs, 99 * 200) && is_a_fifth(of_rows, 100 * 199), "{of_epochs} {of_rows}");
        assert!(is_a_fifth(of_seeds, 20_000), "{of_seeds}");
        // Every row meets all five of its own.
        assert!((0..200).all(|row| (0..5).all(|number| drawn.iter().any(|epoch| epoch[row] == number))));
    }

    #[test]
    fn learning_rate_warms_up_and_falls() {
        let training = Training { warmup_steps: 10, lr: 1., lr_scheduler: LrScheduler::Cosine, ..Training::default() };
        assert!((training.lr_at(0, 100) - 0.1).abs() < 1e-9);
        assert!((training.lr_at(10, 100) - 1.).abs() < 1e-9);
        assert!((training.lr_at(55, 100) - 0.5).abs() < 1e-9);
        assert!(training.lr_at(99, 100) < 0.001);
        let training = Training { lr: 1., lr_scheduler: LrScheduler::Step, ..Training::default() };
        assert_eq!([0, 79, 80, 99].map(|step| training.lr_at(step, 100)), [1., 1., 0.1, 0.1]);
    }

    #[test]
    fn changes_take_the_place_of_a_methods_own_values() {
        let own = Training { epochs: Some(100), lr: 0.5, batch_size: 16, ..Training::default() };
        let applied = |json| serde_json::from_value::<TrainingChanges>(json).unwrap().applied_to(&own);
        assert_eq!(applied(serde_json::json!({})), own);
        let changed = applied(serde_json::json!({ "steps": 7, "lr": 0.25 }));
        assert_eq!(changed, Training { steps: Some(7), epochs: None, lr: 0.25, ..own.clone() });
        // Both lengths are refused where the parameters are checked.
        assert!(applied(serde_json::json!({ "steps": 7, "epochs": 2 })).validate().is_err());
        let unknown = serde_json::from_value::<TrainingChanges>(serde_json::json!({ "learning_rate": 1 }));
        assert!(unknown.unwrap_err().to_string().contains("unknown field `learning_rate`"));
    }

    #[test]
    fn changes_are_described_as_the_parameters_without_their_defaults() {
        let properties = |schema: Schema| schema.get("properties").and_then(|all| all.as_object()).cloned().unwrap();
        let changes = properties(schemars::schema_for!(TrainingChanges));
        for (name, property) in properties(schemars::schema_for!(Training)) {
            assert_eq!(changes[&name]["description"], property["description"], "{name}");
            assert!(property.get("description").is_some() && changes[&name].get("default").is_none(), "{name}");
        }
    }
}
