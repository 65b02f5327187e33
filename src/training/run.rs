//! The training loop: batches, steps, log rows and stored weights, and a saved state from which a training continues
//! bit for bit.

use std::time::{Duration, Instant};

use tch::Tensor;

use super::{
    config::{MicroBatch, Training},
    error::TrainingError,
    journal::Journal,
    learned::{self, Judge},
    log::LogRow,
    optim::Named,
    state::State,
    step::{Loss, Trainer, step},
};

/// The share of a training's time that saving may take is one over this.
const SAVING: u32 = 20;

/// A batch's loss and, for the log, its parts. Parts that cannot be computed are `None`.
pub struct LoggedLoss<'a> {
    /// The loss, and how its gradients are found.
    pub total: Loss<'a>,
    /// The parts, scalars.
    pub parts: Vec<Option<Tensor>>,
}

/// A network in training, as the loop needs it.
pub struct TrainingRun<L, W> {
    /// The trainers. The loss of the first is that of the table.
    pub trainers: Vec<Trainer>,
    /// All variables that training changes, by name.
    pub variables: Named,
    /// The number of rows to train on.
    pub rows: usize,
    /// Computes the loss of a trainer, given by its index, on a batch.
    pub loss: L,
    /// Makes the file of the current weights.
    pub weights: W,
    /// Judges whether the first trainer has learned anything.
    pub judge: Judge,
}

impl Training {
    /// Trains, and returns the log, whose last row names the trained (or averaged) weights. A training whose state the
    /// journal has saved continues from there.
    ///
    /// # Errors
    /// Those of the loss, of the weights' file and of the journal, and [`TrainingError`]: there are no rows, the
    /// training diverged, or a stop was requested.
    pub fn run<'a, L, W, J>(&self, subject: TrainingRun<L, W>, journal: &mut J) -> Result<Vec<LogRow>, J::Error>
    where
        L: FnMut(usize, &MicroBatch) -> Result<LoggedLoss<'a>, J::Error>,
        W: Fn() -> Result<Vec<u8>, J::Error>,
        J: Journal,
    {
        let TrainingRun { trainers, variables, rows, mut loss, weights, judge } = subject;
        if rows == 0 {
            return Err(TrainingError::NoRows.into());
        }
        let steps = self.length(rows);
        let mut state = State { step: 0, trainers, variables, first: Vec::new(), log: Vec::new() };
        if let Some(saved) = journal.saved()? {
            state.restore(saved, journal)?;
        }
        let mut order = None;
        let mut saves = Saves::new(journal.save_every());
        // The steps before this one are no part of the speed of this run.
        journal.progress(state.step, steps);
        let (mut logged, mut seen) = (Instant::now(), 0);
        while state.step < steps {
            let lr = self.lr_at(state.step, steps);
            state.trainers.iter_mut().for_each(|trainer| trainer.optimizer.config.lr = lr);
            let number = state.step + 1;
            let is_last = number == steps;
            let is_kept = self.checkpoint_every > 0 && number.is_multiple_of(self.checkpoint_every) && !is_last;
            let is_logged = is_last || is_kept || number.is_multiple_of(self.log_every);
            let is_first = number <= learned::first_steps(steps);
            let is_read = is_logged || is_first;
            let batches = self.batches(state.step, rows, &mut order, is_logged);
            state.step = number;
            // The loss and its parts, summed per trainer. They are read only for the log, because reading waits for
            // the GPU.
            let mut sums: Vec<Vec<Option<f64>>> = vec![Vec::new(); state.trainers.len()];
            let norms = step(&mut state.trainers, batches.len(), self.accumulate, |which, at| {
                let LoggedLoss { total, parts } = loss(which, &batches[at])?;
                if is_read {
                    let sums = &mut sums[which];
                    sums.resize(parts.len() + 1, Some(0.));
                    let parts = parts.iter().map(|part| part.as_ref().map(|part| part.double_value(&[])));
                    let values = std::iter::once(Some(total.value.double_value(&[]))).chain(parts);
                    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum = sum.zip(value).map(|(a, b)| a + b));
                }
                Ok::<_, J::Error>(total)
            })?;
            seen += batches.iter().map(|batch| batch.rows.len()).sum::<usize>();
            journal.progress(number, steps);
            let mean = |sum: &Option<f64>| sum.map(|sum| (sum / batches.len() as f64) as f32);
            let means: Vec<Vec<Option<f32>>> = sums.iter().map(|sums| sums.iter().map(mean).collect()).collect();
            if is_first {
                state.first.extend(means[0].get(judge.column()).copied().flatten());
            }
            if is_logged {
                let norms: Vec<f32> = norms.into_iter().map(|norm| norm as f32).collect();
                check(number, &means, &norms)?;
                let kept = if is_kept { Some(journal.keep(state.averaged(&weights)?)?) } else { None };
                state.log.push(LogRow {
                    step: number,
                    epoch: number / self.per_epoch(rows),
                    loss: means[0].first().copied().flatten().unwrap_or_default(),
                    guessing: judge.guessing(&batches),
                    parts: means.iter().flat_map(|means| &means[1..]).copied().collect(),
                    lr: lr as f32,
                    grad_norm: norms[0],
                    rows_per_s: seen as f32 / logged.elapsed().as_secs_f32().max(1e-6),
                    weights: kept,
                });
                (logged, seen) = (Instant::now(), 0);
                journal.show(&state.log)?;
            }
            let is_interrupted = journal.is_interrupted();
            if !is_last && (is_interrupted || saves.is_due()) {
                saves.time(|| journal.save(state.bytes()?))?;
                if is_interrupted {
                    journal.say(format!("stopped at step {number}"));
                    return Err(TrainingError::Interrupted.into());
                }
            }
        }
        let kept = journal.keep(state.averaged(&weights)?)?;
        if let Some(last) = state.log.last_mut() {
            last.weights = Some(kept);
        }
        if let Some(note) = judge.note(&state.first, &state.log) {
            journal.warn(&note);
        }
        Ok(state.log)
    }
}

/// Refuses values that are not finite, of any trainer, because they mean that training diverged and no saved state
/// can hold them. Checked are the loss of each trainer with its parts, and the norm of its gradients.
fn check(step: u64, losses: &[Vec<Option<f32>>], norms: &[f32]) -> Result<(), TrainingError> {
    let parts = losses.iter().flat_map(|loss| loss.iter().enumerate());
    let named = |(i, value): (usize, &Option<f32>)| (if i == 0 { "the loss" } else { "a part of the loss" }, *value);
    let parts = parts.map(named).filter_map(|(what, value)| Some((what, value?)));
    let numbers = parts.chain(norms.iter().map(|norm| ("the norm of the gradients", *norm)));
    match numbers.into_iter().find(|(_, number)| !number.is_finite()) {
        Some((what, value)) => Err(TrainingError::Diverged { what, value, step }),
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

    fn time<E>(&mut self, save: impl FnOnce() -> Result<(), E>) -> Result<(), E> {
        let began = Instant::now();
        save()?;
        (self.last, self.took) = (Instant::now(), began.elapsed());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use bytes::Bytes;
    use tch::{Device, Kind, nn::VarStore};

    use super::*;
    use crate::training::optim::train_only;

    /// A journal in memory, which asks a training to stop after so many steps.
    #[derive(Default)]
    struct Memory {
        stop_after: Option<u64>,
        step: u64,
        state: Option<Bytes>,
        kept: HashMap<String, Vec<u8>>,
        said: Vec<String>,
    }

    impl Journal for Memory {
        type Error = TrainingError;

        fn saved(&mut self) -> Result<Option<Bytes>, TrainingError> {
            Ok(self.state.clone())
        }

        fn save(&mut self, state: Vec<u8>) -> Result<(), TrainingError> {
            self.state = Some(state.into());
            Ok(())
        }

        fn save_every(&self) -> Duration {
            Duration::MAX
        }

        fn is_interrupted(&self) -> bool {
            self.stop_after.is_some_and(|step| self.step >= step)
        }

        fn keep(&mut self, weights: Vec<u8>) -> Result<String, TrainingError> {
            let name = format!("weights {}", self.kept.len());
            self.kept.insert(name.clone(), weights);
            Ok(name)
        }

        fn take_over(&mut self, names: &[&str]) -> Result<bool, TrainingError> {
            Ok(names.iter().all(|name| self.kept.contains_key(*name)))
        }

        fn progress(&mut self, step: u64, _: u64) {
            self.step = step;
        }

        fn show(&mut self, _: &[LogRow]) -> Result<(), TrainingError> {
            Ok(())
        }

        fn say(&mut self, message: String) {
            self.said.push(message);
        }

        fn warn(&mut self, _: &str) {}
    }

    /// Trains two numbers to be the mean of seven rows, with momentum and averages, and returns the stored weights and
    /// the log without its speeds.
    fn trained(journal: &mut Memory) -> Result<(Vec<u8>, Vec<LogRow>), TrainingError> {
        let training = Training {
            epochs: Some(4),
            batch_size: 2,
            lr: 0.1,
            ema_decay: 0.9,
            log_every: 1,
            checkpoint_every: 3,
            ..Training::default()
        };
        let data = Tensor::arange(14, (Kind::Float, Device::Cpu)).view([7, 2]);
        let vs = VarStore::new(Device::Cpu);
        let x = vs.root().zeros("x", &[2]);
        let trainers = vec![training.trainer(train_only(&vs, |_| true))];
        let variables = vs.variables().into_iter().collect();
        let loss = |_, batch: &MicroBatch| {
            let rows = data.index_select(0, &Tensor::from_slice(&batch.rows));
            let noise = batch.noise(training.seed).normal(&rows.size()).map_err(TrainingError::from)?;
            Ok(LoggedLoss { total: (rows + noise - &x).square().mean(Kind::Float).into(), parts: Vec::new() })
        };
        let weights = || Ok(x.to_string(80).map_err(TrainingError::from)?.into_bytes());
        let subject = TrainingRun { trainers, variables, rows: 7, loss, weights, judge: Judge::Nothing };
        let mut log = training.run(subject, journal)?;
        log.iter_mut().for_each(|row| row.rows_per_s = 0.);
        let last = log.last().and_then(|row| row.weights.clone()).unwrap();
        Ok((journal.kept[&last].clone(), log))
    }

    #[test]
    fn training_that_was_interrupted_at_any_step_continues_bit_for_bit() {
        let whole = trained(&mut Memory::default()).unwrap();
        assert_eq!(whole.1.len(), 16);
        for step in [1, 3, 7, 15] {
            let mut journal = Memory { stop_after: Some(step), ..Memory::default() };
            assert!(matches!(trained(&mut journal), Err(TrainingError::Interrupted)));
            assert_eq!(journal.said, [format!("stopped at step {step}")]);
            journal.stop_after = None;
            assert!(trained(&mut journal).unwrap() == whole, "interrupted at step {step}");
            assert_eq!(journal.said[1], format!("goes on from step {step}"));
        }
    }

    #[test]
    fn training_starts_over_if_weights_that_its_state_names_are_gone() {
        let mut journal = Memory { stop_after: Some(7), ..Memory::default() };
        assert!(trained(&mut journal).is_err());
        (journal.stop_after, journal.kept) = (None, HashMap::new());
        assert!(trained(&mut journal).unwrap() == trained(&mut Memory::default()).unwrap());
        assert_eq!(journal.said[1], "weights that were kept on the way are gone; starts over");
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
    }

    #[test]
    fn saving_takes_a_small_part_of_the_time() {
        let mut saves = Saves::new(Duration::ZERO);
        assert!(saves.is_due());
        saves.took = Duration::from_secs(1);
        assert!(!saves.is_due());
    }
}
