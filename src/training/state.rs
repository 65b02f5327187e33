//! The state of a training, from which it continues bit for bit.

use std::collections::HashMap;

use bytes::Bytes;
use tch::{Tensor, no_grad};

use super::{
    error::TrainingError,
    journal::Journal,
    log::LogRow,
    optim::{Named, StateError},
    step::Trainer,
};
use crate::models::checkpoint::{Checkpoint, to_safetensors};

/// The state of a training.
pub(super) struct State {
    /// The number of steps that are done.
    pub(super) step: u64,
    pub(super) trainers: Vec<Trainer>,
    pub(super) variables: Named,
    /// The judged losses of the first steps.
    pub(super) first: Vec<f32>,
    pub(super) log: Vec<LogRow>,
}

impl State {
    /// Calls `weights` with the averages in place of the weights, if averages are kept, and otherwise with the
    /// weights as they are.
    pub(super) fn averaged<T, E>(&mut self, weights: impl Fn() -> Result<T, E>) -> Result<T, E> {
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

    /// Returns the state as a safetensors file.
    pub(super) fn bytes(&self) -> Result<Vec<u8>, TrainingError> {
        let named = |prefix: String, tensors: Named| {
            tensors.into_iter().map(move |(name, tensor)| (format!("{prefix}/{name}"), tensor.detach()))
        };
        let clone = |named: &Named| named.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone())).collect();
        let mut tensors: Vec<(String, Tensor)> = named("weights".into(), clone(&self.variables)).collect();
        for (i, Trainer { optimizer, ema, .. }) in self.trainers.iter().enumerate() {
            tensors.extend(named(format!("optimizer.{i}"), optimizer.state()));
            tensors.extend(ema.iter().flat_map(|ema| named(format!("ema.{i}"), clone(ema.averages()))));
        }
        let json = |e: serde_json::Error| damaged(&e.to_string());
        let log = serde_json::to_string(&self.log).map_err(json)?;
        let first = serde_json::to_string(&self.first).map_err(json)?;
        let metadata =
            HashMap::from([("step".into(), self.step.to_string()), ("first".into(), first), ("log".into(), log)]);
        Ok(to_safetensors(tensors, metadata)?)
    }

    /// Continues from a saved state. A state that cannot be used is said, and the training starts over.
    ///
    /// # Errors
    /// [`TrainingError::Damaged`] if the state is that of other variables.
    pub(super) fn restore<J: Journal>(&mut self, bytes: Bytes, journal: &mut J) -> Result<(), J::Error> {
        let saved = Checkpoint::from_safetensors(bytes).map_err(TrainingError::from)?;
        let part = |prefix: String| -> Result<Named, TrainingError> {
            let names = saved.names().filter_map(|name| name.strip_prefix(&prefix)?.strip_prefix('/'));
            let read = |name: &str| saved.tensor(&format!("{prefix}/{name}"));
            names.map(|name| Ok((name.to_owned(), read(name)?))).collect()
        };
        let field = |name: &str| saved.metadata().get(name).map(String::as_str).unwrap_or_default();
        // A log that cannot be read is treated like a state that does not match its digest: the training starts over.
        let Some(rows) = read_log(field("log")) else {
            journal.say("the saved state cannot be read; starts over".into());
            return Ok(());
        };
        let step = field("step").parse().map_err(|_| damaged("it has no step"))?;
        let kept: Vec<&str> = rows.iter().filter_map(|row| row.weights.as_deref()).collect();
        if !journal.take_over(&kept)? {
            journal.say("weights that were kept on the way are gone; starts over".into());
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
        (self.step, self.first, self.log) = (step, serde_json::from_str(field("first")).unwrap_or_default(), rows);
        journal.say(format!("goes on from step {step}"));
        Ok(())
    }
}

fn damaged(what: &str) -> TrainingError {
    TrainingError::Damaged(what.to_owned())
}

/// Reads the log from the text in a saved state; `None` if it is not one.
fn read_log(json: &str) -> Option<Vec<LogRow>> {
    serde_json::from_str(json).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_with_a_missing_loss_cannot_be_read() {
        assert!(read_log("[{\"step\": 2, \"loss\": null}]").is_none());
        assert_eq!(read_log("[]"), Some(Vec::new()));
    }
}
