//! AdamW, gradient clipping and moving averages whose whole state can be saved and restored, so that a training continues
//! bit for bit.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use tch::{Kind, TchError, Tensor, no_grad};

/// Named tensors, as a checkpoint stores them.
pub type Named = BTreeMap<String, Tensor>;

/// A saved state that belongs to other parameters.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("training state: {0}")]
pub struct StateError(String);

/// The settings of AdamW (Loshchilov and Hutter 2019); the defaults are PyTorch's, except that VLMDiff's denoiser is trained
/// with a learning rate of 1e-5.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AdamWConfig {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the averages of the gradient and of its square.
    pub betas: [f64; 2],
    /// Added to the root of the average square.
    pub eps: f64,
    /// Share of a parameter taken away in each step, times the learning rate.
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self { lr: 1e-5, betas: [0.9, 0.999], eps: 1e-8, weight_decay: 0.01 }
    }
}

/// One parameter and its averages, which exist from its first gradient on.
#[derive(Debug)]
struct Slot {
    name: String,
    parameter: Tensor,
    moments: Option<Moments>,
}

#[derive(Debug)]
struct Moments {
    step: i64,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

/// The optimiser, over parameters in the order of their names.
#[derive(Debug)]
pub struct AdamW {
    /// May be changed between steps.
    pub config: AdamWConfig,
    slots: Vec<Slot>,
}

impl AdamW {
    /// Optimises `parameters`; all others of the network should not require gradients (see [`train_only`]).
    pub fn new(parameters: Named, config: AdamWConfig) -> Self {
        let slot = |(name, parameter)| Slot { name, parameter, moments: None };
        Self { config, slots: parameters.into_iter().map(slot).collect() }
    }

    /// The gradients that exist, zero or not.
    fn gradients(&self) -> impl Iterator<Item = Tensor> {
        self.slots.iter().map(|slot| slot.parameter.grad()).filter(Tensor::defined)
    }

    /// Forgets the gradients, so that the next `backward` starts anew.
    pub fn zero_grad(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.parameter.zero_grad());
    }

    /// Scales the gradients so that their common norm is at most `max_norm`; returns the norm before (as
    /// `torch.nn.utils.clip_grad_norm_`). With an infinite `max_norm` it measures only; without gradients it is 0.
    pub fn clip_grad_norm(&mut self, max_norm: f64) -> f64 {
        no_grad(|| {
            let norms: Vec<Tensor> = self.gradients().map(|gradient| gradient.norm().to_kind(Kind::Float)).collect();
            if norms.is_empty() {
                return 0.;
            }
            let total = Tensor::stack(&norms, 0).norm().double_value(&[]);
            let scale = max_norm / (total + 1e-6);
            if scale < 1. {
                self.gradients().for_each(|mut gradient| _ = gradient.g_mul_scalar_(scale));
            }
            total
        })
    }

    /// One step against the gradients. A parameter without a gradient is left as it is, not even decayed. Fails where memory
    /// does.
    pub fn step(&mut self) -> Result<(), TchError> {
        let AdamWConfig { lr, betas: [beta1, beta2], eps, weight_decay } = self.config;
        no_grad(|| {
            for Slot { parameter, moments, .. } in &mut self.slots {
                let gradient = parameter.grad();
                if !gradient.defined() {
                    continue;
                }
                if moments.is_none() {
                    let zeros = || parameter.f_zeros_like();
                    *moments = Some(Moments { step: 0, exp_avg: zeros()?, exp_avg_sq: zeros()? });
                }
                let Some(Moments { step, exp_avg, exp_avg_sq }) = moments else { continue };
                *step += 1;
                let correction = |beta: f64| 1. - beta.powf(*step as f64);
                let _ = exp_avg.f_lerp_(&gradient, 1. - beta1)?;
                let _ = exp_avg_sq.f_lerp_(&gradient.f_square()?, 1. - beta2)?;
                let mut denominator = exp_avg_sq.f_sqrt()?;
                let _ = denominator.g_div_scalar_(correction(beta2).sqrt()).g_add_scalar_(eps);
                let _ = parameter.g_mul_scalar_(1. - lr * weight_decay);
                let _ = parameter.f_addcdiv_(&exp_avg.f_mul_scalar(-lr / correction(beta1))?, &denominator)?;
            }
            Ok(())
        })
    }

    /// The averages, as `{name}.exp_avg`, `{name}.exp_avg_sq` and `{name}.step` (i64), of all parameters that have had a
    /// gradient. The tensors are the optimiser's own, not copies.
    pub fn state(&self) -> Named {
        let of = |slot: &Slot| -> Option<[(String, Tensor); 3]> {
            let Moments { step, exp_avg, exp_avg_sq } = slot.moments.as_ref()?;
            let name = |what: &str| format!("{}.{what}", slot.name);
            Some([
                (name("exp_avg"), exp_avg.shallow_clone()),
                (name("exp_avg_sq"), exp_avg_sq.shallow_clone()),
                (name("step"), Tensor::from(*step)),
            ])
        };
        self.slots.iter().filter_map(of).flatten().collect()
    }

    /// Takes up a state that [`AdamW::state`] gave; fails, and changes nothing, if it belongs to other parameters.
    pub fn load_state(&mut self, mut state: Named) -> Result<(), StateError> {
        let mut restored = Vec::new();
        for Slot { name, parameter, .. } in &self.slots {
            let mut take = |what: &str| state.remove(&format!("{name}.{what}"));
            restored.push(match (take("exp_avg"), take("exp_avg_sq"), take("step")) {
                (None, None, None) => None,
                (Some(exp_avg), Some(exp_avg_sq), Some(step))
                    if exp_avg.size() == parameter.size()
                        && exp_avg_sq.size() == parameter.size()
                        && step.numel() == 1 =>
                {
                    let own = |saved: Tensor| saved.to_device(parameter.device()).to_kind(parameter.kind()).copy();
                    Some(Moments { step: step.int64_value(&[]), exp_avg: own(exp_avg), exp_avg_sq: own(exp_avg_sq) })
                }
                _ => return Err(StateError(format!("what is saved for `{name}` is incomplete or of another shape"))),
            });
        }
        if let Some(name) = state.keys().next() {
            return Err(StateError(format!("`{name}` belongs to no parameter of this network")));
        }
        self.slots.iter_mut().zip(restored).for_each(|(slot, moments)| slot.moments = moments);
        Ok(())
    }
}

/// Lets gradients flow only to the parameters whose name passes `trained`, and returns those.
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
    /// Starts at the present values of `parameters`; `decay` within [0, 1) is the weight of the past.
    pub fn new(parameters: &Named, decay: f64) -> Self {
        let copy = |(name, parameter): (&String, &Tensor)| (name.clone(), parameter.detach().copy());
        Self { decay, averages: parameters.iter().map(copy).collect() }
    }

    /// average ← decay · average + (1 − decay) · parameter.
    pub fn update(&mut self, parameters: &Named) {
        no_grad(|| {
            for (name, average) in &mut self.averages {
                if let Some(parameter) = parameters.get(name) {
                    let _ = average.lerp_(parameter, 1. - self.decay);
                }
            }
        });
    }

    /// The averages by parameter name: the weights to sample with, and all the state there is.
    pub fn averages(&self) -> &Named {
        &self.averages
    }

    /// Takes up averages that [`Ema::averages`] gave; fails, and changes nothing, if they belong to other parameters.
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
    use crate::models::nn::golden::Case;
    use tch::{Device, nn::VarStore};

    /// A linear layer fitted to `y`, its gradients clipped to norm 1.
    #[derive(Debug)]
    struct Fit {
        parameters: Named,
        optimiser: AdamW,
        x: Tensor,
        y: Tensor,
    }

    impl Fit {
        fn new(w: &Tensor, x: &Tensor, y: &Tensor, config: AdamWConfig) -> Self {
            let w = w.copy().set_requires_grad(true);
            let parameters = Named::from([("w".to_owned(), w)]);
            let own = parameters.iter().map(|(name, w)| (name.clone(), w.shallow_clone())).collect();
            Self { optimiser: AdamW::new(own, config), parameters, x: x.copy(), y: y.copy() }
        }

        fn random() -> Self {
            let of = |key: &str, shape: &[i64]| crate::diffusion::Noise::new(1, key).normal(shape).unwrap();
            let config = AdamWConfig { lr: 0.1, ..Default::default() };
            Self::new(&of("w", &[2, 3]), &of("x", &[8, 3]), &of("y", &[8, 2]), config)
        }

        fn step(&mut self) -> (Tensor, f64) {
            let loss = (self.x.linear(&self.parameters["w"], None::<Tensor>) - &self.y).square().mean(Kind::Float);
            self.optimiser.zero_grad();
            loss.backward();
            let norm = self.optimiser.clip_grad_norm(1.);
            self.optimiser.step().unwrap();
            (loss, norm)
        }
    }

    #[test]
    fn equals_torch() {
        let Some(case) = Case::open("training") else { return };
        let config = AdamWConfig { lr: 0.01, weight_decay: 0.05, ..Default::default() };
        let mut fit = Fit::new(case.input("w"), case.input("x"), case.input("y"), config);
        let mut ema = Ema::new(&fit.parameters, 0.99);
        for i in 0..5 {
            let (loss, norm) = fit.step();
            ema.update(&fit.parameters);
            if [0, 4].contains(&i) {
                case.assert_close(&format!("adamw.loss.{i}"), &loss, 10.);
                case.assert_close(&format!("adamw.gradnorm.{i}"), &Tensor::from(norm), 10.);
                case.assert_close(&format!("adamw.w.{i}"), &fit.parameters["w"], 10.);
            }
        }
        case.assert_close("adamw.ema.4", &ema.averages()["w"], 10.);
    }

    #[test]
    fn continues_bit_for_bit() {
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
    fn what_is_not_trained_stays() {
        let vs = VarStore::new(Device::Cpu);
        let [a, b] = ["a", "b"].map(|name| vs.root().ones(name, &[2]));
        let c = vs.root().ones("c", &[2]);
        let mut optimiser =
            AdamW::new(train_only(&vs, |name| name != "a"), AdamWConfig { lr: 0.1, ..Default::default() });
        // without any gradient there is nothing to measure and nothing to do
        assert_eq!(optimiser.clip_grad_norm(1.), 0.);
        (&a * &b).sum(Kind::Float).backward();
        let norm = optimiser.clip_grad_norm(f64::INFINITY);
        assert!((norm - 2_f64.sqrt()).abs() < 1e-6);
        optimiser.step().unwrap();
        let one = Tensor::ones([2], (Kind::Float, Device::Cpu));
        assert!(!a.grad().defined() && a == one && c == one && b != one);
        assert_eq!(optimiser.state().keys().collect::<Vec<_>>(), ["b.exp_avg", "b.exp_avg_sq", "b.step"]);
    }
}
