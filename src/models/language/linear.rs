//! A linear map over a weight that is held as published, converted, or in int8.

use super::{
    super::checkpoint::{CheckpointError, Mapped},
    weights::{INT8_STEP, Quantised, Weights},
};
use tch::{Device, Tensor};

/// The most rows for which libtorch's product with an int8 matrix is quicker than widening the matrix first.
const FEW_ROWS: i64 = 8;

#[derive(Debug)]
enum Matrix {
    /// [outputs, inputs] in the computing type.
    Plain(Mapped),
    Int8(Quantised),
}

/// y = Wx + b.
#[derive(Debug)]
pub struct Linear {
    matrix: Matrix,
    bias: Option<Mapped>,
    outputs: i64,
}

impl Linear {
    /// Takes `NAME.weight` [outputs, inputs] and, if `bias`, `NAME.bias` \[outputs\].
    ///
    /// # Errors
    /// The errors of [`Weights::tensor`].
    pub fn load(
        weights: &Weights<'_>,
        name: &str,
        [inputs, outputs]: [i64; 2],
        bias: bool,
    ) -> Result<Self, CheckpointError> {
        let weight = format!("{name}.weight");
        let matrix = if weights.arithmetic().int8 {
            Matrix::Int8(weights.quantised(&weight, [outputs, inputs])?)
        } else {
            Matrix::Plain(weights.tensor(&weight, &[outputs, inputs])?)
        };
        let bias = if bias { Some(weights.tensor(&format!("{name}.bias"), &[outputs])?) } else { None };
        Ok(Self { matrix, bias, outputs })
    }

    /// Maps `x` [.., inputs] in the computing type to [.., outputs].
    pub fn forward(&self, x: &Tensor) -> Tensor {
        let bias = self.bias.as_ref().map(Mapped::tensor);
        match &self.matrix {
            Matrix::Plain(weight) => x.linear(weight.tensor(), bias),
            Matrix::Int8(quantised) => {
                let y = self.int8(x, quantised);
                match bias {
                    Some(bias) => y + bias,
                    None => y,
                }
            }
        }
    }

    /// Multiplies with an int8 matrix; on the CPU and for few rows without widening it.
    fn int8(&self, x: &Tensor, Quantised { values, scales }: &Quantised) -> Tensor {
        let size = x.size();
        let inputs = size.last().copied().unwrap_or(0);
        let rows = x.reshape([-1, inputs]); // [rows, inputs]
        let is_quick = rows.size()[0] <= FEW_ROWS && inputs % INT8_STEP == 0 && x.device() == Device::Cpu;
        let y = if is_quick {
            rows.contiguous().internal_weight_int8pack_mm(values, scales)
        } else {
            rows.matmul(&values.to_kind(x.kind()).tr()) * scales
        }; // [rows, outputs and filling]
        let y = y.narrow(1, 0, self.outputs);
        let mut shape = size;
        if let Some(last) = shape.last_mut() {
            *last = self.outputs;
        }
        y.reshape(shape)
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::{
        checkpoint::{Checkpoint, to_safetensors},
        nn::quietly,
    };
    use super::super::weights::{Arithmetic, Computing};
    use super::*;
    use tch::Kind;

    /// Compares the two ways to multiply with an int8 matrix, and both with the matrix as published. The values are
    /// wrong by at most half a step, 1/254 of the largest of their row, in either direction: over 128 of them the
    /// errors add up to less than 128 / 254 · max|w| · max|x|.
    #[test]
    fn int8_is_the_product_with_rounded_weights() {
        quietly(|| {
            tch::manual_seed(3);
            // 190 outputs are no whole steps of the quick product.
            let weight = Tensor::randn([190, 128], (Kind::Float, Device::Cpu));
            let tensors = [("a.weight".to_owned(), weight.shallow_clone())];
            let file = Checkpoint::from_safetensors(to_safetensors(tensors, Default::default()).unwrap()).unwrap();
            let load = |int8| {
                let arithmetic = Arithmetic { computing: Computing::F32, int8 };
                Linear::load(&Weights::new(&file, arithmetic, Device::Cpu), "a", [128, 190], false).unwrap()
            };
            let (plain, int8) = (load(false), load(true));
            let x = Tensor::randn([2, 20, 128], (Kind::Float, Device::Cpu));
            let far = |a: &Tensor, b: &Tensor| (a - b).abs().max().double_value(&[]);
            let many = int8.forward(&x);
            for row in 0..20 {
                // 128 products in another order: 2⁻²⁴ · 128 · 4 · 4
                let few = int8.forward(&x.narrow(1, row, 1));
                assert!(far(&few, &many.narrow(1, row, 1)) < 2e-4);
            }
            let bound = 128. / 254. * weight.abs().max().double_value(&[]) * x.abs().max().double_value(&[]);
            let error = far(&plain.forward(&x), &many);
            assert!(error > 0. && error < bound, "{error} of {bound}");
        });
    }
}
