//! Gradient checkpointing (Chen et al. 2016): the maps inside of a network are not kept for the backward pass but
//! computed again there. It costs a third more time and saves most of the memory that a training step takes beside the
//! weights.
//!
//! ```ignore
//! let pass = Recompute::new();
//! let hint = control.hint_with(Some(&pass), &images);
//! let residuals = control.forward_with(Some(&pass), &x, &t, &context, &hint);
//! let prediction = unet.forward_with(Some(&pass), &x, &t, &context, Some(&residuals));
//! let gradients = pass.gradients(&loss_of(&prediction), &parameters)?; // instead of `run_backward`
//! ```

use std::cell::RefCell;
use tch::{TchError, Tensor};

/// The way in which a network is run: plainly (None), or with recomputation.
pub type Pass<'p, 'a> = Option<&'p Recompute<'a>>;

/// A forward pass in segments, each of which is run again for its gradients.
///
/// The output of a segment is detached from the graph. The backward pass takes the segments in reverse order: it runs
/// one again with gradients, passes it the gradient of its output, and so finds the gradients of its parameters and of
/// its inputs, which are the outputs of earlier segments.
#[derive(Default)]
pub struct Recompute<'a> {
    segments: RefCell<Vec<Segment<'a>>>,
}

struct Segment<'a> {
    inputs: Vec<Tensor>,
    output: Tensor,
    run: Box<dyn Fn(&[Tensor]) -> Tensor + 'a>,
}

impl std::fmt::Debug for Recompute<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recompute of {} segments", self.segments.borrow().len())
    }
}

impl<'a> Recompute<'a> {
    /// Starts one forward pass, of one network or of several that work together.
    pub fn new() -> Self {
        Self::default()
    }

    fn run(&self, inputs: &[&Tensor], run: impl Fn(&[Tensor]) -> Tensor + 'a) -> Tensor {
        let inputs: Vec<Tensor> = inputs.iter().map(|input| input.shallow_clone()).collect();
        let output = run(&inputs);
        // If the output needs no gradient, nothing in the segment or before it is trained; without gradients switched
        // on, outputs do not show that.
        if !output.requires_grad() {
            return output;
        }
        let output = output.detach().set_requires_grad(true);
        self.segments.borrow_mut().push(Segment { inputs, output: output.shallow_clone(), run: Box::new(run) });
        output
    }

    /// Returns the gradients of `loss`, a scalar, for `parameters`, as `Tensor::run_backward` would find them without
    /// segments: a gradient is undefined if the loss does not depend on the parameter. Fails if libtorch does, mostly
    /// for want of memory.
    pub fn gradients(self, loss: &Tensor, parameters: &[Tensor]) -> Result<Vec<Tensor>, TchError> {
        let segments = self.segments.into_inner();
        let outputs = segments.iter().map(|segment| &segment.output);
        let mut of: Vec<Tensor> = parameters.iter().chain(outputs).map(Tensor::shallow_clone).collect();
        let mut gradients = Tensor::f_run_backward(&[loss], &of, false, false)?;
        for Segment { inputs, run, .. } in segments.into_iter().rev() {
            // the segments that read this one's output have been run backwards already
            let (Some(_), Some(gradient)) = (of.pop(), gradients.pop()) else { break };
            if !gradient.defined() {
                continue;
            }
            let output = (run(&inputs) * gradient).f_sum(None)?;
            for (sum, more) in gradients.iter_mut().zip(Tensor::f_run_backward(&[output], &of, false, false)?) {
                match (sum.defined(), more.defined()) {
                    // not in place: autograd may hand one tensor to several
                    (true, true) => *sum = sum.f_add(&more)?,
                    (false, true) => *sum = more,
                    _ => {}
                }
            }
        }
        Ok(gradients)
    }
}

/// Runs a part of a network. A tensor with gradients that the part reads has to be a parameter or among `inputs`. If it
/// comes from outside of all segments, nothing else may use it.
pub(crate) fn segment<'a>(pass: Pass<'_, 'a>, inputs: &[&Tensor], run: impl Fn(&[Tensor]) -> Tensor + 'a) -> Tensor {
    match pass {
        Some(pass) => pass.run(inputs, run),
        None => run(&inputs.iter().map(|input| input.shallow_clone()).collect::<Vec<_>>()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        control::{ControlNet, ControlNetConfig},
        unet::UNet2DConditionModel,
    };
    use super::*;
    use std::collections::BTreeMap;
    use tch::{Device, Kind, nn::VarStore};

    fn config(form: &str, fusion: bool, only_mid_control: bool) -> ControlNetConfig {
        serde_json::from_value(serde_json::json!({
            "block_out_channels": [8, 8, 16], "layers_per_block": 1, "cross_attention_dim": 12, "norm_num_groups": 4,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "attention_head_dim": 2,
            "conditioning_embedding_out_channels": [4, 8, 8], "form": form, "fusion": fusion,
            "only_mid_control": only_mid_control,
        }))
        .unwrap()
    }

    /// Returns the gradients of all trained variables after one step, and the number of segments.
    fn gradients(
        networks: (&UNet2DConditionModel, &ControlNet),
        [x, context, image]: &[Tensor; 3],
        trained: &BTreeMap<String, Tensor>,
        recompute: bool,
    ) -> (BTreeMap<String, Tensor>, usize) {
        let t = Tensor::from_slice(&[1_i64, 901]);
        let pass = recompute.then(Recompute::new);
        let (unet, control) = networks;
        let hint = control.hint_with(pass.as_ref(), image);
        let residuals = control.forward_with(pass.as_ref(), x, &t, context, &hint);
        let prediction = unet.forward_with(pass.as_ref(), x, &t, context, Some(&residuals));
        let loss = (prediction - x).square().mean(Kind::Double);
        let segments = pass.as_ref().map_or(0, |pass| pass.segments.borrow().len());
        let parameters: Vec<Tensor> = trained.values().map(Tensor::shallow_clone).collect();
        let gradients = match pass {
            Some(pass) => pass.gradients(&loss, &parameters).unwrap(),
            None => Tensor::run_backward(&[loss], &parameters, false, false),
        };
        (trained.keys().cloned().zip(gradients).collect(), segments)
    }

    #[test]
    fn gradients_are_those_of_a_plain_backward_pass() {
        tch::set_num_threads(1);
        for (form, fusion, only_mid, decoder_alone) in [
            ("controlnet", false, false, false),
            ("semantic_guided", false, true, true),
            ("semantic_guided", true, false, true),
            ("semantic_guided", true, true, false),
        ] {
            let config = config(form, fusion, only_mid);
            // f64, so that sums in another order differ little
            let [mut unet_vs, mut control_vs] = [(); 2].map(|()| VarStore::new(Device::Cpu));
            let unet = UNet2DConditionModel::new(unet_vs.root(), &config.unet).unwrap();
            let control = ControlNet::new(control_vs.root(), &config).unwrap();
            unet_vs.double();
            control_vs.double();
            let mut trained: BTreeMap<_, _> = unet_vs.variables().into_iter().collect();
            trained.retain(|name, variable| {
                let trained = !decoder_alone || UNet2DConditionModel::is_decoder(name);
                let _ = variable.set_requires_grad(trained);
                trained
            });
            let branch =
                control_vs.variables().into_iter().map(|(name, variable)| (format!("control.{name}"), variable));
            trained.extend(branch);
            tch::no_grad(|| trained.values_mut().for_each(|variable| _ = variable.uniform_(-0.3, 0.3)));
            let inputs = [[2, 4, 8, 8].as_slice(), &[2, 5, 12], &[2, 3, 32, 32]];
            let inputs = inputs.map(|shape| Tensor::randn(shape, (Kind::Double, Device::Cpu)));
            let (plain, _) = gradients((&unet, &control), &inputs, &trained, false);
            let (again, segments) = gradients((&unet, &control), &inputs, &trained, true);
            assert!(segments > 20, "{segments}");
            let largest = |x: &Tensor| x.abs().max().double_value(&[]);
            let mut moved = 0;
            for (name, plain) in &plain {
                let again = &again[name];
                assert_eq!(plain.defined(), again.defined(), "{name}");
                if !plain.defined() {
                    continue;
                }
                moved += usize::from(largest(plain) > 0.);
                let difference = largest(&(plain - again));
                // Sums in another order differ by 2⁻⁵³ · √(n · L) with n · L = 1e5, and normalised maps of 2×2 cells
                // cancel all but 1/10⁴ of the terms.
                assert!(
                    difference <= 4e-10 * largest(plain),
                    "{name} differs by {difference:e} of {:e}",
                    largest(plain)
                );
            }
            assert!(moved > trained.len() / 2);
        }
    }
}
