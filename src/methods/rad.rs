//! RAD (Zhang et al., Is Training Necessary for Anomaly Detection?, 2026).

use half::f16;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, TchError, Tensor};

use super::{
    MethodParameters,
    bank::{Distance, unit},
    knn::BANK,
    patches::{Fitted, Fitter, PatchMethod, Scorer, Scores, mean_of_largest},
};
use crate::models::checkpoint::{Checkpoint, CheckpointError, Mapped};

/// The vectors by which images are compared.
const IMAGES: &str = "images";

/// Images that are alike are found first, and a patch is then compared with the patches around its own place in them. The
/// score of a patch is its cosine distance to the nearest, averaged over the layers, and the image's score is the mean
/// of the largest hundredth of its patches' scores.
///
/// Images are alike by the cosine of the mean vectors of their patches in the last layer. The authors take the class token
/// of the transformer in its place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Rad {
    /// The number of images whose patches an image is compared with: 150 on MVTec AD, and 900 on VisA and Real-IAD.
    pub images: u32,
    /// The largest distance between the places of two patches that are compared, in patches along each side: 1 on MVTec
    /// AD, 2 on VisA, 0 on Real-IAD. From the side of the grid on, all places are compared.
    pub radius: u32,
    /// The number of layers, of equal width, whose vectors lie side by side in the features. Each finds its own nearest
    /// patch. With 1 the vectors are compared as wholes.
    pub layers: u32,
}

impl Default for Rad {
    fn default() -> Self {
        Self { images: 150, radius: 1, layers: 1 }
    }
}

impl MethodParameters for Rad {
    fn check(&self) -> Result<(), (String, String)> {
        let at_least_one = |parameter: &str| Err((parameter.to_owned(), "at least 1 is compared".to_owned()));
        match self {
            Self { images: 0, .. } => at_least_one("images"),
            Self { layers: 0, .. } => at_least_one("layers"),
            _ => Ok(()),
        }
    }

    fn compares_places(&self) -> bool {
        true
    }

    fn memory(&self, patches: u64, channels: u64) -> Option<u64> {
        // The patches are collected image by image, and joined.
        Some(2 * size_of::<f16>() as u64 * patches * channels)
    }
}

impl PatchMethod for Rad {
    fn fitter(&self) -> Box<dyn Fitter> {
        Box::new(Album { layers: i64::from(self.layers), images: Vec::new(), patches: Vec::new() })
    }

    fn distance(&self) -> Distance {
        Distance::Cosine
    }

    fn scorer(&self, fitted: &Checkpoint, device: Device) -> Result<Box<dyn Scorer>, CheckpointError> {
        let images = unit(&fitted.tensor(IMAGES)?.to_device(device));
        Ok(Box::new(Retrieval {
            bank: fitted.mapped(BANK)?,
            images,
            count: i64::from(self.images),
            radius: i64::from(self.radius),
            layers: i64::from(self.layers),
            device,
        }))
    }
}

/// Keeps the patches of each image, and the mean of its last layer.
struct Album {
    layers: i64,
    /// f32 `[C / L]` each.
    images: Vec<Tensor>,
    /// f16 [P, C] each.
    patches: Vec<Tensor>,
}

impl Fitter for Album {
    fn add(&mut self, patches: &Tensor) -> Result<(), TchError> {
        let (_, channels) = patches.size2()?;
        if channels % self.layers != 0 {
            let layers = self.layers;
            let message = format!("the {channels} numbers of a patch do not divide into `layers` of `rad`, {layers}");
            return Err(TchError::Torch(message));
        }
        let patches = patches.f_to_device(Device::Cpu)?;
        self.images.push(mean_of_last_layer(&patches.f_to_kind(Kind::Float)?, self.layers)?);
        self.patches.push(patches.f_to_kind(Kind::Half)?);
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<Fitted, TchError> {
        if self.patches.is_empty() {
            return Ok(Fitted::default());
        }
        let bank = Tensor::f_stack(&self.patches, 0)?; // [N, P, C]
        let (images, places, _) = bank.size3()?;
        let tensors = [(BANK, bank), (IMAGES, Tensor::f_stack(&self.images, 0)?)];
        let tensors = tensors.map(|(name, tensor)| (name.to_owned(), tensor));
        Ok(Fitted { tensors: tensors.into(), vectors: images * places })
    }
}

/// Returns the mean of the patches f32 [P, C] in the last of so many layers, `[C / L]`.
fn mean_of_last_layer(patches: &Tensor, layers: i64) -> Result<Tensor, TchError> {
    patches.f_mean_dim([0].as_slice(), false, Kind::Float)?.f_view([layers, -1])?.f_get(layers - 1)
}

struct Retrieval {
    /// The patches of the normal images, f16 [N, P, C].
    bank: Mapped,
    /// The vectors by which they are found, f32 [N, C / L], of length 1.
    images: Tensor,
    count: i64,
    radius: i64,
    layers: i64,
    device: Device,
}

impl Scorer for Retrieval {
    fn score(&self, patches: &Tensor, grid: [i64; 2], judged: Option<&Tensor>) -> Result<Scores, TchError> {
        let ([height, width], kept) = (grid, self.bank.size()[1]);
        if kept != height * width {
            let message = format!("an image of the fit has {kept} patches, and this one {height}x{width}");
            return Err(TchError::Torch(message));
        }
        let patches = patches.f_to_device(self.device)?.f_to_kind(Kind::Float)?;
        let mine = self.by_place(&patches, grid)?; // [h, w, L, C / L]
        let nearest = Tensor::f_full([height, width, self.layers], -1., (Kind::Float, self.device))?; // cosines
        for image in self.alike(&patches)? {
            let theirs = self.by_place(&self.bank.rows(image, 1, Kind::Float, self.device)?, grid)?;
            for rows in shifts(height, self.radius) {
                for columns in shifts(width, self.radius) {
                    let (mine, theirs) =
                        (part(&mine, rows.mine, columns.mine)?, part(&theirs, rows.theirs, columns.theirs)?);
                    let cosines = (mine * theirs).f_sum_dim_intlist([3].as_slice(), false, Kind::Float)?; // [h', w', L]
                    let mut before = part(&nearest, rows.mine, columns.mine)?;
                    let larger = before.f_maximum(&cosines)?;
                    before.f_copy_(&larger)?;
                }
            }
        }
        let distances: Tensor = 1. - nearest;
        let scores = distances.f_mean_dim([2].as_slice(), false, Kind::Float)?.f_view(-1)?; // [P]
        let image = mean_of_largest(&scores, judged, 0.01)?;
        Ok(Scores { patches: scores, image })
    }
}

impl Retrieval {
    /// Returns the vectors of an image's patches by place and layer, [h, w, L, C / L], each of length 1.
    fn by_place(&self, patches: &Tensor, [height, width]: [i64; 2]) -> Result<Tensor, TchError> {
        Ok(unit(&patches.f_view([height, width, self.layers, -1])?))
    }

    /// Returns the positions of the normal images that are most alike an image of such patches.
    fn alike(&self, patches: &Tensor) -> Result<Vec<i64>, TchError> {
        let image = unit(&mean_of_last_layer(patches, self.layers)?);
        let cosines = self.images.f_mv(&image)?; // [N]
        Vec::try_from(cosines.f_topk(self.count.min(cosines.size()[0]), 0, true, true)?.1)
    }
}

/// The start and the length of a range of places along one side of the grid.
type Range = (i64, i64);

/// The places that lie on the grid together with those at some distance from them.
struct Shift {
    mine: Range,
    theirs: Range,
}

/// Returns the shifts by at most `radius` places along a side.
fn shifts(side: i64, radius: i64) -> impl Iterator<Item = Shift> {
    let radius = radius.min(side - 1);
    (-radius..=radius).map(move |distance| {
        let length = side - distance.abs();
        Shift { mine: ((-distance).max(0), length), theirs: (distance.max(0), length) }
    })
}

/// Returns the part of a grid [h, w, …] at these rows and columns.
fn part(grid: &Tensor, rows: Range, columns: Range) -> Result<Tensor, TchError> {
    grid.f_narrow(0, rows.0, rows.1)?.f_narrow(1, columns.0, columns.1)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::models::checkpoint::to_safetensors;

    /// Returns a scorer that was fitted on the patches of these images.
    fn fitted<const N: usize>(method: &Rad, images: [&[[f32; N]]; 2]) -> Box<dyn Scorer> {
        let mut fitter = method.fitter();
        for image in images {
            fitter.add(&Tensor::from_slice2(image)).unwrap();
        }
        let fitted = fitter.finish().unwrap();
        assert_eq!(fitted.vectors, 2 * images[0].len() as i64);
        let file = to_safetensors(fitted.tensors, HashMap::new()).unwrap();
        method.scorer(&Checkpoint::from_safetensors(file).unwrap(), Device::Cpu).unwrap()
    }

    fn scores<const N: usize>(scorer: &dyn Scorer, image: &[[f32; N]], grid: [i64; 2]) -> Vec<f32> {
        Vec::try_from(scorer.score(&Tensor::from_slice2(image), grid, None).unwrap().patches).unwrap()
    }

    /// Unit vectors along two axes, one of them longer: lengths do not count.
    const A: [f32; 2] = [2., 0.];
    const B: [f32; 2] = [0., 1.];

    #[test]
    fn patches_are_compared_around_their_own_place() {
        // A grid of 2x3 in which only one patch is B, at the right end of the first row.
        let normal = [A, A, B, A, A, A];
        let of = |radius: u32| {
            let scorer = fitted(&Rad { radius, ..Rad::default() }, [&normal, &normal]);
            scores(&*scorer, &[B, B, A, B, B, B], [2, 3])
        };
        assert_eq!(of(0), [1., 1., 1., 1., 1., 1.]);
        // The place of the B, those beside it and below it, and the A beside its own place.
        assert_eq!(of(1), [1., 0., 0., 1., 0., 0.]);
        assert_eq!(of(2), [0.; 6]);
        assert_eq!(of(9), [0.; 6]);
    }

    #[test]
    fn images_that_are_less_alike_are_not_compared() {
        let (mostly_a, mostly_b) = ([A, A, A, B], [B, B, B, A]);
        let of = |images: u32| {
            let scorer = fitted(&Rad { images, radius: 0, layers: 1 }, [&mostly_a, &mostly_b]);
            scores(&*scorer, &[B, A, A, A], [2, 2])
        };
        // The first image is the more alike one, and differs at the first and the last place.
        assert_eq!(of(1), [1., 0., 0., 1.]);
        assert_eq!(of(2), [0.; 4]);
    }

    #[test]
    fn each_layer_finds_its_own_nearest_patch() {
        // Two layers of two numbers: the first layer of the image is that of one neighbour, the second that of the other.
        let images = [[1_f32, 0., 1., 0.], [0., 1., 0., 1.]];
        let of = |layers: u32| {
            let scorer = fitted(&Rad { layers, radius: 0, images: 2 }, [&images[..1], &images[1..]]);
            scores(&*scorer, &[[1., 0., 0., 1.]], [1, 1])
        };
        assert_eq!(of(2), [0.]);
        // A product of 1 divided by two lengths of √2, each rounded by 2⁻²⁴.
        assert!((of(1)[0] - 0.5).abs() < 1e-6);
    }

    #[test]
    fn features_of_another_shape_are_refused() {
        let patches = Tensor::from_slice2(&[A, B]);
        let refused = Rad { layers: 3, ..Rad::default() }.fitter().add(&patches).unwrap_err().to_string();
        assert!(refused.contains("the 2 numbers of a patch do not divide into `layers` of `rad`, 3"), "{refused}");
        let scorer = fitted(&Rad::default(), [&[A, B], &[A, B]]);
        let refused = scorer.score(&Tensor::from_slice2(&[A, B, A]), [1, 3], None).unwrap_err().to_string();
        assert!(refused.contains("an image of the fit has 2 patches, and this one 1x3"), "{refused}");
        let check = |method: Rad| method.check().unwrap_err().0;
        assert_eq!(check(Rad { images: 0, ..Rad::default() }), "images");
        assert_eq!(check(Rad { layers: 0, ..Rad::default() }), "layers");
    }
}
