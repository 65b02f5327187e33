//! Axes along which vectors differ most, and bounds of distances along them.

use tch::{Kind, TchError, Tensor};

/// The most axes.
const MOST: i64 = 128;
/// The part of the variance that is enough: few bounds are then much shorter than their distance.
const ENOUGH: f64 = 0.95;
/// The part below which as many axes as there may be are too few: bounds would spare too few distances.
const TOO_LITTLE: f64 = 0.85;
/// The fewest vectors from which axes are computed.
const FEWEST: i64 = 256;
/// The vectors whose coordinates are computed at once.
const PART: i64 = 1 << 14;

/// Orthonormal axes of a space of C numbers, through a centre.
#[derive(Debug)]
pub(super) struct Axes {
    /// f32 [1, C].
    centre: Tensor,
    /// f32 [C, K].
    directions: Tensor,
}

impl Axes {
    /// Finds as few axes as explain [`ENOUGH`] of the variance of a sample f32 [N, C]: at most [`MOST`], and half of C. None if these
    /// explain no more than [`TOO_LITTLE`], or if the variance is 0 or not finite.
    pub(super) fn of(sample: &Tensor) -> Result<Option<Self>, TchError> {
        let (count, channels) = sample.size2()?;
        let most = MOST.min(channels / 2);
        if count < FEWEST.max(most) || most == 0 {
            return Ok(None);
        }
        let centre = sample.f_mean_dim([0].as_slice(), true, Kind::Float)?;
        let centred = sample - &centre;
        let total = f64::try_from(centred.f_square()?.f_sum(Kind::Double)?)?;
        if !(total > 0. && total.is_finite()) {
            return Ok(None);
        }
        // Two steps of a subspace iteration (after Halko et al. 2011, section 4.5), which begins at vectors of all parts of the sample.
        let mut basis = centred.f_slice(0, 0, None, count / most)?.f_narrow(0, 0, most)?.f_tr()?;
        for _ in 0..2 {
            basis = Tensor::f_linalg_qr(&centred.f_tr()?.f_mm(&centred.f_mm(&basis)?)?, "reduced")?.0;
        }
        let along = centred.f_mm(&basis)?;
        let (variances, turn) = along.f_tr()?.f_mm(&along)?.f_linalg_eigh("L")?; // ascending
        let variances: Vec<f64> = Vec::try_from(variances.f_to_kind(Kind::Double)?)?;
        let mut explained = 0.;
        let enough = variances.iter().rev().position(|variance| {
            explained += variance / total;
            explained >= ENOUGH
        });
        let kept = match enough {
            Some(last) => last as i64 + 1,
            None if explained > TOO_LITTLE => most,
            None => return Ok(None),
        };
        Ok(Some(Self { centre, directions: basis.f_mm(&turn.f_narrow(1, most - kept, kept)?)? }))
    }

    /// Returns the coordinates of vectors f32 [N, C]: along each axis, and the distance from the space of the axes, [N, K + 1]. No
    /// distance between vectors is shorter than that between their coordinates, but for what rounding does.
    pub(super) fn coordinates(&self, vectors: &Tensor) -> Result<Tensor, TchError> {
        let back = self.directions.f_tr()?;
        let part = |vectors: Tensor| {
            let mut centred = vectors.f_sub(&self.centre)?;
            let along = centred.f_mm(&self.directions)?;
            let rest = centred.f_sub_(&along.f_mm(&back)?)?.f_norm_scalaropt_dim(2., [1].as_slice(), true)?;
            Tensor::f_cat(&[along, rest], 1)
        };
        // In parts, so that what is between takes little memory.
        let parts = vectors.f_split(PART, 0)?.into_iter().map(part).collect::<Result<Vec<_>, TchError>>()?;
        Tensor::f_cat(&parts, 0)
    }
}
