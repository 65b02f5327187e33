//! Optimisers, gradient clipping and moving averages whose whole state can be saved and restored, so that a training
//! continues bit for bit.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, HashSet},
    ffi::c_void,
};
use tch::{Kind, TchError, Tensor, no_grad};

/// Named tensors, as a checkpoint stores them.
pub type Named = BTreeMap<String, Tensor>;

/// A saved state that belongs to other parameters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("training state: {0}")]
pub struct StateError(String);

/// The rule by which gradients become steps, in PyTorch's arithmetic.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    /// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
    #[default]
    AdamW,
    /// Adam (Kingma and Ba 2015); the decay is part of the gradient.
    Adam,
    /// Gradient descent with Nesterov's momentum, which is the first of `betas`; the decay is part of the gradient.
    Sgd,
}

/// The settings of an optimiser; the defaults are those of PyTorch's AdamW, except that VLMDiff's denoiser is trained
/// with a learning rate of 1e-5.
#[derive(Debug, Clone, PartialEq)]
pub struct OptimizerConfig {
    /// The rule by which gradients become steps.
    pub rule: Rule,
    /// Learning rate.
    pub lr: f64,
    /// Decay of the averages of the gradient and of its square.
    pub betas: [f64; 2],
    /// The number that is added to the root of the average square.
    pub eps: f64,
    /// The share of a parameter that is taken away in each step, per unit of the learning rate.
    pub weight_decay: f64,
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self { rule: Rule::AdamW, lr: 1e-5, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01 }
    }
}

/// One parameter, its gradient for the next step, and its averages.
#[derive(Debug)]
struct Slot {
    name: String,
    /// The parameter in the optimiser's precision.
    parameter: Tensor,
    /// The parameter in the precision in which the network computes, if that is another.
    computes: Option<Tensor>,
    /// The sum of the gradients since [`Optimizer::zero_grad`]; None if no loss depends on the parameter.
    gradient: Option<Tensor>,
    /// The averages, from the first gradient on.
    moments: Option<Moments>,
}

impl Slot {
    /// Returns a gradient as the optimiser keeps it: in the precision and layout of the parameter, and in memory of its
    /// own. `seen` holds the addresses of the other gradients of one pass, because autograd may hand one tensor to two
    /// parameters.
    fn own(&self, gradient: Tensor, seen: &mut HashSet<*mut c_void>) -> Result<Tensor, TchError> {
        let parameter = &self.parameter;
        let fits = gradient.kind() == parameter.kind() && gradient.stride() == parameter.stride();
        if fits && seen.insert(gradient.data_ptr()) {
            return Ok(gradient);
        }
        let mut own = parameter.f_zeros_like()?;
        own.f_copy_(&gradient)?;
        Ok(own)
    }
}

#[derive(Debug)]
struct Moments {
    step: i64,
    exp_avg: Tensor,
    /// None under [`Rule::Sgd`].
    exp_avg_sq: Option<Tensor>,
}

/// The optimiser of parameters, in the order of their names. It keeps the gradients itself, so that several optimisers
/// may share a network, and so that no gradients take memory while the next loss is computed.
#[derive(Debug)]
pub struct Optimizer {
    /// The settings, which may be changed between steps.
    pub config: OptimizerConfig,
    slots: Vec<Slot>,
}

impl Optimizer {
    /// Optimises `parameters`, which require gradients.
    pub fn new(parameters: Named, config: OptimizerConfig) -> Self {
        let slot = |(name, parameter)| Slot { name, parameter, computes: None, gradient: None, moments: None };
        Self { config, slots: parameters.into_iter().map(slot).collect() }
    }

    /// Makes the network compute with `copies`, the same parameters by name in another precision. The copies require
    /// gradients and follow every step: bfloat16 computes, float32 accumulates (mixed precision, Micikevicius et al.
    /// 2018).
    pub fn computing_with(mut self, mut copies: Named) -> Self {
        self.slots.iter_mut().for_each(|slot| slot.computes = copies.remove(&slot.name));
        self.synchronize();
        self
    }

    /// Sets the copies to the values of the parameters, after these were changed otherwise than by a step.
    pub fn synchronize(&mut self) {
        no_grad(|| {
            for Slot { parameter, computes, .. } in &mut self.slots {
                if let Some(copy) = computes {
                    copy.copy_(parameter);
                }
            }
        });
    }

    /// Returns the parameters by name; not the copies.
    pub fn parameters(&self) -> Named {
        self.slots.iter().map(|slot| (slot.name.clone(), slot.parameter.shallow_clone())).collect()
    }

    /// Drops the gradients.
    pub fn zero_grad(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.gradient = None);
    }

    /// Adds the gradients of `loss`, a scalar, to those for the next step. Fails if memory is short.
    pub fn backward(&mut self, loss: &Tensor) -> Result<(), TchError> {
        self.backward_by(|parameters| Tensor::f_run_backward(&[loss], parameters, false, false))
    }

    /// Adds the gradients that `find` returns for the parameters or, if there are copies, for these.
    pub fn backward_by(
        &mut self,
        find: impl FnOnce(&[Tensor]) -> Result<Vec<Tensor>, TchError>,
    ) -> Result<(), TchError> {
        let computing = |slot: &Slot| slot.computes.as_ref().unwrap_or(&slot.parameter).shallow_clone();
        let gradients = find(&self.slots.iter().map(computing).collect::<Vec<Tensor>>())?;
        no_grad(|| {
            let mut seen = HashSet::new();
            for (slot, gradient) in self.slots.iter_mut().zip(gradients).filter(|(_, gradient)| gradient.defined()) {
                match &mut slot.gradient {
                    Some(sum) => _ = sum.f_add_(&gradient)?,
                    None => slot.gradient = Some(slot.own(gradient, &mut seen)?),
                }
            }
            Ok(())
        })
    }

    /// Returns the gradients for the next step, or those of the last one until they are dropped, by parameter; None if
    /// no loss depends on it.
    pub fn gradients(&self) -> impl Iterator<Item = (&str, Option<&Tensor>)> {
        self.slots.iter().map(|slot| (slot.name.as_str(), slot.gradient.as_ref()))
    }

    /// Scales the gradients so that their common norm is at most `max_norm`, and returns the norm before (as
    /// `torch.nn.utils.clip_grad_norm_`). With an infinite `max_norm` it only measures; without gradients the norm is
    /// 0.
    pub fn clip_grad_norm(&mut self, max_norm: f64) -> f64 {
        no_grad(|| {
            let norm = |(_, gradient): (&str, Option<&Tensor>)| Some(gradient?.norm().to_kind(Kind::Float));
            let norms: Vec<Tensor> = self.gradients().filter_map(norm).collect();
            if norms.is_empty() {
                return 0.;
            }
            let total = Tensor::stack(&norms, 0).norm().double_value(&[]);
            let scale = max_norm / (total + 1e-6);
            if scale < 1. {
                self.slots
                    .iter_mut()
                    .filter_map(|slot| slot.gradient.as_mut())
                    .for_each(|g| _ = g.g_mul_scalar_(scale));
            }
            total
        })
    }

    /// Takes one step against the gradients. A parameter without a gradient is not changed, not even by the weight
    /// decay. Fails if memory is short.
    pub fn step(&mut self) -> Result<(), TchError> {
        let config = &self.config;
        no_grad(|| {
            for Slot { parameter, computes, gradient, moments, .. } in &mut self.slots {
                let Some(gradient) = gradient else { continue };
                let moments = match moments {
                    Some(moments) => moments,
                    None => moments.insert(Moments::new(parameter, config.rule)?),
                };
                moments.step(parameter, gradient, config)?;
                if let Some(copy) = computes {
                    copy.f_copy_(parameter)?;
                }
            }
            Ok(())
        })
    }

    /// Returns the averages, as `{name}.exp_avg`, `{name}.exp_avg_sq` and `{name}.step` (i64), of all parameters that
    /// have had a gradient. The tensors are the optimiser's own, not copies.
    pub fn state(&self) -> Named {
        let of = |slot: &Slot| -> Option<Vec<(String, Tensor)>> {
            let Moments { step, exp_avg, exp_avg_sq } = slot.moments.as_ref()?;
            let name = |what: &str| format!("{}.{what}", slot.name);
            let mut state = vec![(name("exp_avg"), exp_avg.shallow_clone()), (name("step"), Tensor::from(*step))];
            state.extend(exp_avg_sq.as_ref().map(|average| (name("exp_avg_sq"), average.shallow_clone())));
            Some(state)
        };
        self.slots.iter().filter_map(of).flatten().collect()
    }

    /// Restores a state that [`Optimizer::state`] returned; fails, and changes nothing, if it belongs to other
    /// parameters.
    pub fn load_state(&mut self, mut state: Named) -> Result<(), StateError> {
        let mut restored = Vec::new();
        for Slot { name, parameter, .. } in &self.slots {
            let wrong = || StateError(format!("what is saved for `{name}` is incomplete or of another shape"));
            let mut take = |what: &str| state.remove(&format!("{name}.{what}"));
            let [exp_avg, exp_avg_sq, step] = ["exp_avg", "exp_avg_sq", "step"].map(&mut take);
            let own = |saved: Tensor| {
                let fits = saved.size() == parameter.size();
                let own = |saved: Tensor| saved.to_device(parameter.device()).to_kind(parameter.kind()).copy();
                fits.then(|| own(saved)).ok_or_else(wrong)
            };
            restored.push(match (exp_avg, exp_avg_sq, step) {
                (None, None, None) => None,
                (Some(exp_avg), exp_avg_sq, Some(step))
                    if step.numel() == 1 && exp_avg_sq.is_none() == (self.config.rule == Rule::Sgd) =>
                {
                    let (step, exp_avg) = (step.int64_value(&[]), own(exp_avg)?);
                    Some(Moments { step, exp_avg, exp_avg_sq: exp_avg_sq.map(own).transpose()? })
                }
                _ => return Err(wrong()),
            });
        }
        if let Some(name) = state.keys().next() {
            return Err(StateError(format!("`{name}` belongs to no parameter that is trained")));
        }
        self.slots.iter_mut().zip(restored).for_each(|(slot, moments)| slot.moments = moments);
        Ok(())
    }
}

impl Moments {
    fn new(parameter: &Tensor, rule: Rule) -> Result<Self, TchError> {
        let zeros = || parameter.f_zeros_like();
        Ok(Self { step: 0, exp_avg: zeros()?, exp_avg_sq: (rule != Rule::Sgd).then(zeros).transpose()? })
    }

    /// Takes one step of a parameter.
    fn step(
        &mut self,
        parameter: &mut Tensor,
        gradient: &mut Tensor,
        config: &OptimizerConfig,
    ) -> Result<(), TchError> {
        let OptimizerConfig { rule, lr, betas: [beta1, beta2], eps, weight_decay } = *config;
        self.step += 1;
        if rule == Rule::AdamW {
            let _ = parameter.g_mul_scalar_(1. - lr * weight_decay);
        } else if weight_decay != 0. {
            let _ = gradient.f_add_(&parameter.f_mul_scalar(weight_decay)?)?;
        }
        let Some(exp_avg_sq) = &mut self.exp_avg_sq else {
            let _ = self.exp_avg.g_mul_scalar_(beta1).f_add_(gradient)?;
            let _ = parameter.f_sub_(&((&self.exp_avg * beta1 + &*gradient) * lr))?;
            return Ok(());
        };
        let correction = |beta: f64| 1. - beta.powf(self.step as f64);
        let _ = self.exp_avg.f_lerp_(gradient, 1. - beta1)?;
        let _ = exp_avg_sq.f_lerp_(&gradient.f_square()?, 1. - beta2)?;
        let mut denominator = exp_avg_sq.f_sqrt()?;
        let _ = denominator.g_div_scalar_(correction(beta2).sqrt()).g_add_scalar_(eps);
        let _ = parameter.f_addcdiv_(&self.exp_avg.f_mul_scalar(-lr / correction(beta1))?, &denominator)?;
        Ok(())
    }
}

/// Lets gradients flow only to the parameters for whose names `trained` is true, and returns these.
pub fn train_only(vs: &tch::nn::VarStore, trained: impl Fn(&str) -> bool) -> Named {
    let mut variables: Named = vs.variables().into_iter().collect();
    variables.retain(|name, parameter| {
        let trained = trained(name);
        let _ = parameter.set_requires_grad(trained);
        trained
    });
    variables
}

/// An exponential moving average of parameters.
#[derive(Debug)]
pub struct Ema {
    decay: f64,
    averages: Named,
}

impl Ema {
    /// Starts at the present values of `parameters`; `decay` within [0, 1) is the weight of the old average.
    pub fn new(parameters: &Named, decay: f64) -> Self {
        let copy = |(name, parameter): (&String, &Tensor)| (name.clone(), parameter.detach().copy());
        Self { decay, averages: parameters.iter().map(copy).collect() }
    }

    /// Updates each average: average ← decay · average + (1 − decay) · parameter.
    pub fn update(&mut self, parameters: &Named) {
        no_grad(|| {
            for (name, average) in &mut self.averages {
                if let Some(parameter) = parameters.get(name) {
                    let _ = average.lerp_(parameter, 1. - self.decay);
                }
            }
        });
    }

    /// Exchanges the averages and the values of `parameters`: once to use or save the averaged network, and again to
    /// continue.
    pub fn swap(&mut self, parameters: &Named) {
        no_grad(|| {
            for (name, average) in &mut self.averages {
                if let Some(parameter) = parameters.get(name) {
                    let value = parameter.copy();
                    parameter.shallow_clone().copy_(average);
                    average.copy_(&value);
                }
            }
        });
    }

    /// Returns the averages by parameter name: the weights to sample with, and the whole state.
    pub fn averages(&self) -> &Named {
        &self.averages
    }

    /// Restores averages that [`Ema::averages`] returned; fails, and changes nothing, if they belong to other
    /// parameters.
    pub fn load(&mut self, averages: &Named) -> Result<(), StateError> {
        let same = |(name, own): (&String, &Tensor)| averages.get(name).is_some_and(|saved| saved.size() == own.size());
        if averages.len() != self.averages.len() || !self.averages.iter().all(same) {
            return Err(StateError("the saved averages belong to other parameters".into()));
        }
        no_grad(|| self.averages.iter_mut().for_each(|(name, own)| own.copy_(&averages[name])));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, nn::VarStore};

    /// A linear layer fitted to `y`, its gradients clipped to norm 1.
    #[derive(Debug)]
    struct Fit {
        parameters: Named,
        optimiser: Optimizer,
        x: Tensor,
        y: Tensor,
    }

    impl Fit {
        fn new(w: &Tensor, x: &Tensor, y: &Tensor, config: OptimizerConfig) -> Self {
            let w = w.copy().set_requires_grad(true);
            let parameters = Named::from([("w".to_owned(), w)]);
            let own = parameters.iter().map(|(name, w)| (name.clone(), w.shallow_clone())).collect();
            Self { optimiser: Optimizer::new(own, config), parameters, x: x.copy(), y: y.copy() }
        }

        fn random() -> Self {
            let of = |key: &str, shape: &[i64]| crate::diffusion::Noise::new(1, key).normal(shape).unwrap();
            let config = OptimizerConfig { lr: 0.1, ..Default::default() };
            Self::new(&of("w", &[2, 3]), &of("x", &[8, 3]), &of("y", &[8, 2]), config)
        }

        fn step(&mut self) -> (Tensor, f64) {
            let loss = (self.x.linear(&self.parameters["w"], None::<Tensor>) - &self.y).square().mean(Kind::Float);
            self.optimiser.zero_grad();
            self.optimiser.backward(&loss).unwrap();
            let norm = self.optimiser.clip_grad_norm(1.);
            self.optimiser.step().unwrap();
            (loss, norm)
        }
    }

    #[test]
    fn a_restored_training_continues_bit_for_bit() {
        let mut whole = Fit::random();
        let mut ema = Ema::new(&whole.parameters, 0.9);
        for _ in 0..3 {
            let _ = whole.step();
            ema.update(&whole.parameters);
        }
        let copy = |named: &Named| named.iter().map(|(name, tensor)| (name.clone(), tensor.detach().copy())).collect();
        let (weights, state, averages): (Named, Named, Named) =
            (copy(&whole.parameters), copy(&whole.optimiser.state()), copy(ema.averages()));
        let mut resumed = Fit::random();
        no_grad(|| resumed.parameters.get_mut("w").unwrap().copy_(&weights["w"]));
        resumed.optimiser.load_state(state).unwrap();
        let mut resumed_ema = Ema::new(&resumed.parameters, 0.9);
        resumed_ema.load(&averages).unwrap();
        for _ in 0..3 {
            let _ = whole.step();
            ema.update(&whole.parameters);
            let _ = resumed.step();
            resumed_ema.update(&resumed.parameters);
        }
        assert_eq!(whole.parameters["w"], resumed.parameters["w"]);
        assert_eq!(ema.averages()["w"], resumed_ema.averages()["w"]);
    }

    #[test]
    fn a_foreign_state_is_refused() {
        let mut fit = Fit::random();
        let _ = fit.step();
        let foreign = |name: &str| Named::from([(name.to_owned(), Tensor::from(1_i64))]);
        assert!(
            fit.optimiser.load_state(foreign("v.step")).unwrap_err().to_string().contains("`v.step` belongs to no")
        );
        assert!(fit.optimiser.load_state(foreign("w.step")).unwrap_err().to_string().contains("`w` is incomplete"));
        assert_eq!(fit.optimiser.state()["w.step"].int64_value(&[]), 1);
        let mut ema = Ema::new(&fit.parameters, 0.9);
        assert!(ema.load(&Named::new()).is_err());
    }

    #[test]
    fn parameters_that_are_not_trained_stay() {
        let vs = VarStore::new(Device::Cpu);
        let [a, b] = ["a", "b"].map(|name| vs.root().ones(name, &[2]));
        let c = vs.root().ones("c", &[2]);
        let mut optimiser =
            Optimizer::new(train_only(&vs, |name| name != "a"), OptimizerConfig { lr: 0.1, ..Default::default() });
        // without gradients the norm is 0
        assert_eq!(optimiser.clip_grad_norm(1.), 0.);
        optimiser.backward(&(&a * &b).sum(Kind::Float)).unwrap();
        let norm = optimiser.clip_grad_norm(f64::INFINITY);
        // The norm is f32: √2 within a few roundings of 2⁻²⁴.
        assert!((norm - 2_f64.sqrt()).abs() < 4e-7);
        optimiser.step().unwrap();
        let one = Tensor::ones([2], (Kind::Float, Device::Cpu));
        assert!(!a.grad().defined() && a == one && c == one && b != one);
        assert_eq!(optimiser.state().keys().collect::<Vec<_>>(), ["b.exp_avg", "b.exp_avg_sq", "b.step"]);
        assert!(optimiser.gradients().all(|(name, gradient)| gradient.is_some() == (name == "b")));
    }
}
