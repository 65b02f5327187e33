//! Gradient checkpointing (Chen et al. 2016): the maps inside of a network are not kept for the backward pass but computed
//! again there. It costs a third more time and saves most of the memory that a training step takes beside the weights.
//!
//! ```ignore
//! let pass = Recompute::new();
//! let hint = control.hint_with(Some(&pass), &images);
//! let residuals = control.forward_with(Some(&pass), &x, &t, &context, &hint);
//! let prediction = unet.forward_with(Some(&pass), &x, &t, &context, Some(&residuals));
//! pass.backward(&loss_of(&prediction)); // instead of `loss.backward()`
//! ```

use std::cell::RefCell;
use tch::Tensor;

/// How a network is run: plainly, or with recomputation.
pub type Pass<'p, 'a> = Option<&'p Recompute<'a>>;

/// A forward pass in segments, each of which is run again for its gradients.
///
/// What leaves a segment is cut off from the graph. The backward pass takes the segments in reverse order: it runs one with
/// gradients, hands it the gradient of what left it, and so finds the gradients of its parameters and of what entered it, which
/// is what left earlier segments.
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
    /// For one forward pass, of one network or of several that work together.
    pub fn new() -> Self {
        Self::default()
    }

    fn run(&self, inputs: &[&Tensor], run: impl Fn(&[Tensor]) -> Tensor + 'a) -> Tensor {
        let inputs: Vec<Tensor> = inputs.iter().map(|input| input.shallow_clone()).collect();
        let output = run(&inputs);
        // nothing in the segment or before it is trained: that is known only with gradients switched on
        if !output.requires_grad() {
            return output;
        }
        let output = output.detach().set_requires_grad(true);
        self.segments.borrow_mut().push(Segment { inputs, output: output.shallow_clone(), run: Box::new(run) });
        output
    }

    /// Adds the gradients of `loss` to those of all parameters of the pass, as `loss.backward()` does without segments.
    pub fn backward(self, loss: &Tensor) {
        loss.backward();
        for Segment { inputs, output, run } in self.segments.into_inner().into_iter().rev() {
            let gradient = output.grad();
            if gradient.defined() {
                (run(&inputs) * gradient).sum(None).backward();
            }
        }
    }
}

/// Runs a part of a network. All that it computes from and that has gradients has to be among `inputs` or a parameter, and
/// may come from outside of all segments only if nothing else uses it.
pub(crate) fn segment<'a>(pass: Pass<'_, 'a>, inputs: &[&Tensor], run: impl Fn(&[Tensor]) -> Tensor + 'a) -> Tensor {
    match pass {
        Some(pass) => pass.run(inputs, run),
        None => run(&inputs.iter().map(|input| input.shallow_clone()).collect::<Vec<_>>()),
    }
}
