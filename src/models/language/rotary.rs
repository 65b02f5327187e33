//! Rotary positions (Su et al. 2021) in halves, with dynamic NTK scaling.

use super::config::Rope;
use tch::{Device, Kind, Tensor};

/// Sines and cosines of the positions of a batch, [rows or 1, N, 1, head_dim].
#[derive(Debug)]
pub(super) struct Angles {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// Returns the frequencies of a text of `length` tokens, [head_dim / 2] f32 on the CPU: base^(-2i / head_dim). The
    /// base of a text longer than `max_positions` grows, with f = `dynamic`, by
    /// (f · length / max_positions - (f - 1))^(d / (d - 2)).
    pub fn frequencies(&self, head_dim: i64, length: i64) -> Tensor {
        let base = match self.dynamic {
            Some(factor) if length > self.max_positions => {
                let stretch = factor * length as f64 / self.max_positions as f64 - (factor - 1.);
                self.theta * stretch.powf(head_dim as f64 / (head_dim - 2) as f64)
            }
            _ => self.theta,
        };
        let exponents = Tensor::arange_start_step(0, head_dim, 2, (Kind::Float, Device::Cpu)) / head_dim as f64;
        Tensor::pow_scalar(base, &exponents).reciprocal()
    }

    /// Returns the angles of `count` tokens per row, the first of which have the positions `starts`. `lengths` are the
    /// tokens of each row with the new ones, which decide its scaling.
    pub(super) fn angles(
        &self,
        head_dim: i64,
        starts: &[i64],
        count: i64,
        lengths: &[i64],
        like: (Kind, Device),
    ) -> Angles {
        let is_long = |length: &i64| self.dynamic.is_some() && *length > self.max_positions;
        let one_scale = !lengths.iter().any(is_long) || lengths.windows(2).all(|pair| pair[0] == pair[1]);
        let scaled = if one_scale { &lengths[..1] } else { lengths };
        let frequencies: Vec<Tensor> = scaled.iter().map(|&length| self.frequencies(head_dim, length)).collect();
        let frequencies = Tensor::stack(&frequencies, 0).unsqueeze(1); // [rows or 1, 1, d/2]
        let same_start = starts.windows(2).all(|pair| pair[0] == pair[1]);
        let starts = if same_start { &starts[..1] } else { starts };
        let starts = Tensor::from_slice(starts).unsqueeze(1); // [rows or 1, 1]
        let positions = (starts + Tensor::arange(count, (Kind::Int64, Device::Cpu))).to_kind(Kind::Float); // [.., N]
        let half = (positions.unsqueeze(-1) * frequencies).to_device(like.1); // [rows or 1, N, d/2]
        let angles = Tensor::cat(&[&half, &half], -1).unsqueeze(2); // [rows or 1, N, 1, d]
        Angles { cos: angles.cos().to_kind(like.0), sin: angles.sin().to_kind(like.0) }
    }
}

impl Angles {
    /// Rotates `x` [rows, N, heads, head_dim].
    pub(super) fn rotate(&self, x: &Tensor) -> Tensor {
        let halves = x.chunk(2, -1);
        let turned = Tensor::cat(&[&halves[1].neg(), &halves[0]], -1);
        x * &self.cos + turned * &self.sin
    }
}
