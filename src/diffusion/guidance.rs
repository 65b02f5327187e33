//! Classifier-free guidance (Ho and Salimans 2022).

use tch::{Kind, TchError, Tensor};

/// The contexts of a batch, followed by the unconditional context of each row that guidance changes. If the context of
/// a row is the unconditional one, guidance has no effect on it, and one prediction is enough.
#[derive(Debug)]
pub struct Guidance {
    /// The contexts of the B rows, then the K unconditional ones, [B + K, …].
    contexts: Tensor,
    /// The indices of the K rows that are predicted twice, i64.
    rows: Tensor,
    scale: f64,
}

impl Guidance {
    /// Makes no guidance: one prediction a row.
    pub fn none(context: &Tensor) -> Self {
        let rows = Tensor::zeros([0], (Kind::Int64, context.device()));
        Self { contexts: context.shallow_clone(), rows, scale: 1. }
    }

    /// Makes guidance of `context` [B, …] away from `unconditional` [1 or B, …].
    pub fn new(context: &Tensor, unconditional: &Tensor, scale: f64) -> Result<Self, TchError> {
        if scale == 1. {
            return Ok(Self::none(context));
        }
        let rows =
            context.f_ne_tensor(unconditional)?.f_flatten(1, -1)?.f_any_dim(1, false)?.f_nonzero()?.f_flatten(0, -1)?;
        if rows.numel() == 0 {
            return Ok(Self::none(context));
        }
        let unconditional = unconditional.f_expand(context.size(), false)?.f_index_select(0, &rows)?;
        Ok(Self { contexts: Tensor::f_cat(&[context, &unconditional], 0)?, rows, scale })
    }

    /// Appends to the rows of `x` [B, …] those of the rows that are predicted twice: [B + K, …].
    pub fn extend(&self, x: &Tensor) -> Result<Tensor, TchError> {
        if self.rows.numel() == 0 {
            return Ok(x.shallow_clone());
        }
        Tensor::f_cat(&[x, &x.f_index_select(0, &self.rows)?], 0)
    }

    /// Returns the guided prediction for `x` [B, …]: unconditional + scale · (conditional − unconditional). `model` is
    /// called once, with x and contexts of B + K rows; other inputs of a row are brought to that order by
    /// [`extend`](Self::extend).
    pub fn predict(
        &self,
        x: &Tensor,
        model: impl FnOnce(&Tensor, &Tensor) -> Result<Tensor, TchError>,
    ) -> Result<Tensor, TchError> {
        let output = model(&self.extend(x)?, &self.contexts)?;
        let (all, twice) = (x.size()[0], self.rows.size()[0]);
        if twice == 0 {
            return Ok(output);
        }
        let (conditional, unconditional) = (output.f_narrow(0, 0, all)?, output.f_narrow(0, all, twice)?);
        // conditional + (scale − 1) · (conditional − unconditional), where they differ
        let push = (conditional.f_index_select(0, &self.rows)? - unconditional) * (self.scale - 1.);
        conditional.f_index_add(0, &self.rows, &push)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_predicted_twice_only_if_its_context_differs() {
        let x = Tensor::from_slice(&[1_f32, 2., 3.]).view([3, 1]);
        let contexts = Tensor::from_slice(&[5_f32, 1., 7.]).view([3, 1]);
        let unconditional = Tensor::from_slice(&[1_f32]).view([1, 1]);
        let guidance = Guidance::new(&contexts, &unconditional, 9.).unwrap();
        assert_eq!(Vec::<f32>::try_from(guidance.extend(&x).unwrap().flatten(0, -1)).unwrap(), [1., 2., 3., 1., 3.]);
        let mut rows = 0;
        let mut model = |x: &Tensor, context: &Tensor| {
            rows += x.size()[0];
            Ok(x * context)
        };
        let guided = guidance.predict(&x, &mut model).unwrap();
        // u + 9 (c − u): for 1·1 and 1·5; no change; for 3·1 and 3·7
        assert_eq!(Vec::<f32>::try_from(guided.flatten(0, -1)).unwrap(), [37., 2., 165.]);
        let equal = Guidance::new(&unconditional.repeat([3, 1]), &unconditional, 9.).unwrap();
        assert_eq!(equal.predict(&x, &mut model).unwrap(), x);
        let one = Guidance::new(&contexts, &unconditional, 1.).unwrap();
        assert_eq!(one.predict(&x, &mut model).unwrap(), &x * &contexts);
        assert_eq!(rows, 5 + 3 + 3);
    }
}
