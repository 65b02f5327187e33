//! The step of every training: gradients are summed over micro-batches and clipped, the parameters follow them, and
//! their average is updated.

use super::optim::{Ema, Optimizer};
use tch::{TchError, Tensor};

/// An optimiser with its gradient clipping and its average of the parameters.
#[derive(Debug)]
pub struct Trainer {
    /// The optimiser, which holds the trained parameters.
    pub optimizer: Optimizer,
    /// The largest norm of the gradients; infinite for no clipping.
    pub max_grad_norm: f64,
    /// The average of the trained parameters, if one is kept.
    pub ema: Option<Ema>,
}

impl Trainer {
    /// Clips the gradients, takes a step and updates the average; returns the norm of the gradients before clipping.
    fn follow(&mut self) -> Result<f64, TchError> {
        let norm = self.optimizer.clip_grad_norm(self.max_grad_norm);
        self.optimizer.step()?;
        if let Some(ema) = &mut self.ema {
            ema.update(&self.optimizer.parameters());
        }
        Ok(norm)
    }
}

/// A loss, and the way in which its gradients are found.
pub struct Loss<'a> {
    /// The value, a scalar.
    pub value: Tensor,
    /// A function that replaces the backward pass; it takes the value, or a share of it, and the parameters.
    pub gradients: Option<Gradients<'a>>,
}

/// Finds the gradients of a loss for parameters.
pub type Gradients<'a> = Box<dyn FnOnce(&Tensor, &[Tensor]) -> Result<Vec<Tensor>, TchError> + 'a>;

impl From<Tensor> for Loss<'_> {
    fn from(value: Tensor) -> Self {
        Self { value, gradients: None }
    }
}

/// Takes one step of every trainer on `batches` micro-batches. `loss` returns the loss of a trainer, by its index, on a
/// micro-batch. Gradients are divided by `accumulate`, the number of micro-batches of a full step, also if fewer are
/// left (Lightning 1.5). Trainers take turns on each micro-batch; on the last one, each trainer takes its step before
/// the loss of the next is computed. Returns the norm of each trainer's gradients before clipping.
pub fn step<'a, E, L>(
    trainers: &mut [Trainer],
    batches: usize,
    accumulate: usize,
    mut loss: impl FnMut(usize, usize) -> Result<L, E>,
) -> Result<Vec<f64>, E>
where
    E: From<TchError>,
    L: Into<Loss<'a>>,
{
    trainers.iter_mut().for_each(|trainer| trainer.optimizer.zero_grad());
    let mut norms = vec![0.; trainers.len()];
    for batch in 0..batches {
        for (which, trainer) in trainers.iter_mut().enumerate() {
            let Loss { value, gradients } = loss(which, batch)?.into();
            let share = if accumulate > 1 { value.f_div_scalar(accumulate as f64)? } else { value };
            trainer.optimizer.backward_by(|parameters| match gradients {
                Some(find) => find(&share, parameters),
                None => Tensor::f_run_backward(&[&share], parameters, false, false),
            })?;
            if batch + 1 == batches {
                norms[which] = trainer.follow()?;
            }
        }
    }
    Ok(norms)
}

#[cfg(test)]
mod tests {
    use super::super::optim::{Named, OptimizerConfig, Rule};
    use super::*;
    use tch::Kind;

    /// Makes a trainer of one number that starts at `value`, by plain gradient descent with a learning rate of 1.
    fn trainer(value: f32) -> (Tensor, Trainer) {
        let x = Tensor::from_slice(&[value]).set_requires_grad(true);
        let config = OptimizerConfig { rule: Rule::Sgd, lr: 1., betas: [0., 0.], weight_decay: 0., eps: 0. };
        let optimizer = Optimizer::new(Named::from([("x".to_owned(), x.shallow_clone())]), config);
        (x, Trainer { optimizer, max_grad_norm: f64::INFINITY, ema: None })
    }

    #[test]
    fn a_step_follows_the_mean_of_its_micro_batches_and_a_partial_one_is_shorter() {
        let (x, mut one) = trainer(1.);
        let gradients = [1., 2., 6.];
        let loss = |_, batch: usize| Ok::<_, TchError>((&x * gradients[batch]).sum(Kind::Float));
        let norms = step(std::slice::from_mut(&mut one), 3, 3, loss).unwrap();
        assert_eq!((x.double_value(&[0]), norms[0]), (-2., 3.));
        // two of four: still divided by four
        step(std::slice::from_mut(&mut one), 2, 4, loss).unwrap();
        assert_eq!(x.double_value(&[0]), -2.75);
    }

    #[test]
    fn trainers_take_turns_and_the_later_sees_the_step_of_the_earlier() {
        let ((a, first), (b, second)) = (trainer(1.), trainer(10.));
        let mut seen = Vec::new();
        let loss = |which: usize, batch: usize| {
            seen.push((which, batch, a.double_value(&[0])));
            // the loss depends on both numbers, and each trainer changes its own only
            Ok::<_, TchError>((&a * &b).sum(Kind::Float))
        };
        let mut trainers = [first, second];
        step(&mut trainers, 2, 2, loss).unwrap();
        assert_eq!(seen, [(0, 0, 1.), (1, 0, 1.), (0, 1, 1.), (1, 1, -9.)]);
        assert_eq!((a.double_value(&[0]), b.double_value(&[0])), (-9., 14.));
    }

    /// A step of one in a thousand is lost in bfloat16, but not in the float32 parameter.
    #[test]
    fn a_copy_of_lower_precision_computes_gradients_and_follows_the_steps() {
        let (x, plain) = trainer(1.);
        let copy = x.detach().to_kind(Kind::BFloat16).set_requires_grad(true);
        let copies = Named::from([("x".to_owned(), copy.shallow_clone())]);
        let mut mixed = Trainer { optimizer: plain.optimizer.computing_with(copies), ..plain };
        for _ in 0..8 {
            let loss = |_, _| Ok::<_, TchError>((&copy * 0.001).sum(Kind::Float));
            step(std::slice::from_mut(&mut mixed), 1, 1, loss).unwrap();
        }
        // The gradient of 0.001 is a bfloat16, within 2⁻⁹ of it, and is followed eight times.
        assert!((x.double_value(&[0]) - 0.992).abs() < 8. * 0.001 / 512., "{x}");
        assert_eq!(copy, x.detach().to_kind(Kind::BFloat16));
    }
}
