//! Reverse distillation (Deng and Li 2022, Anomaly Detection via Reverse Distillation from One-Class Embedding).

use std::path::Path;

use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, TchError, Tensor, nn, no_grad};

use super::{
    FrozenNetwork, MethodParameters,
    trained::{Detection, TrainedMethod},
};
use crate::{
    features::distance::{Combine, MapOrder, anomaly_map},
    models::{
        checkpoint::CheckpointError,
        resnet::ResNet,
        reverse_distillation::{DistillationConfig, DistillationStudent},
    },
    training::{LoggedLoss, LrScheduler, MicroBatch, Training, TrainingChanges, optim::Rule},
};

/// A decoder learns to make the maps of a frozen ResNet, its teacher, again from their embedding. The map is one minus
/// the cosine between what the two say at each place, and the image's score is its maximum.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ReverseDistillation {
    /// The program whose settings are followed.
    pub protocol: DistillationProtocol,
    /// The weights of the teacher, a ResNet of bottleneck blocks of any width, named as for `anomaly_maps`. Absent:
    /// `wide-resnet50`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<String>,
    /// The width of the embedding's inner convolutions: 64, or 128 for twice as many channels. Absent: 128 by
    /// `authors`, 64 by the others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width_per_group: Option<u32>,
    /// The combination of the maps of the teacher's three levels. Absent: `averaged_twice` by `ader`, `sum` by the
    /// others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub levels: Option<CombinedLevels>,
    /// The parameters of the training that differ from those of the protocol. All of them: batches of 16, Adam with a
    /// learning rate of 0.005 and a first decay of 0.5. `ader`: 100 epochs, gradients clipped at 5, and a tenth of the
    /// learning rate after four fifths of the steps. `authors`: 200 epochs. `anomalib`: 200 epochs, for its number is
    /// that of its trainer, and a second decay of 0.99.
    pub training: TrainingChanges,
}

/// The program whose network, training and map are followed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DistillationProtocol {
    /// ADer, with which papers compare multi-class methods.
    #[default]
    Ader,
    /// The authors' program, which trains a model for each class.
    Authors,
    /// anomalib.
    Anomalib,
}

/// The combination of the maps of several levels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CombinedLevels {
    /// Their sum.
    Sum,
    /// Their mean, divided by their number once more: a ninth of the sum.
    AveragedTwice,
}

/// The levels of the teacher.
const LEVELS: usize = 3;
/// The pixels of a cell of the embedding. A decoder that doubles height and width returns to the sizes of the teacher's
/// maps only where they are multiples.
const CELL: usize = 32;
/// The smallest norm by which the cosine of the loss divides.
const EPS: f64 = 1e-8;

impl ReverseDistillation {
    fn width_per_group(&self) -> u32 {
        self.width_per_group.unwrap_or(match self.protocol {
            DistillationProtocol::Authors => 128,
            DistillationProtocol::Ader | DistillationProtocol::Anomalib => 64,
        })
    }

    fn levels(&self) -> CombinedLevels {
        self.levels.unwrap_or(match self.protocol {
            DistillationProtocol::Ader => CombinedLevels::AveragedTwice,
            DistillationProtocol::Authors | DistillationProtocol::Anomalib => CombinedLevels::Sum,
        })
    }

    /// Returns the map of an image [H, W] from the maps of teacher and student, [1, C, h, w] each: f64 on the CPU.
    pub fn map(&self, teacher: &[Tensor; 3], student: &[Tensor; 3], size: [i64; 2]) -> Tensor {
        let sum = anomaly_map(teacher, student, size, MapOrder::CompareThenUpsample, Combine::Sum).squeeze_dim(0);
        match self.levels() {
            CombinedLevels::Sum => sum,
            CombinedLevels::AveragedTwice => sum / (LEVELS * LEVELS) as f64,
        }
    }
}

/// Returns the loss: the sum over the levels of one minus the cosine between the whole maps of an image, averaged over
/// the batch.
pub fn distillation_loss(teacher: &[Tensor; 3], student: &[Tensor; 3]) -> Result<Tensor, TchError> {
    let mut losses = Vec::with_capacity(LEVELS);
    for (theirs, made) in teacher.iter().zip(student) {
        let cosine = Tensor::f_cosine_similarity(&theirs.f_flatten(1, -1)?, &made.f_flatten(1, -1)?, 1, EPS)?; // [B]
        let distance: Tensor = 1. - cosine;
        losses.push(distance.f_mean(Kind::Float)?);
    }
    Tensor::f_stack(&losses, 0)?.f_sum(Kind::Float)
}

/// Returns the maps of the teacher's first three levels, without gradients.
fn of_teacher(teacher: &ResNet, images: &Tensor) -> [Tensor; 3] {
    let maps = no_grad(|| teacher.forward_features(images, LEVELS));
    maps.try_into().expect("a map for each level that was asked for")
}

impl MethodParameters for ReverseDistillation {
    fn check(&self) -> Result<(), (String, String)> {
        let width = self.width_per_group();
        if width == 0 || !width.is_multiple_of(32) {
            let why = format!("{width} is no multiple of 32; ADer and anomalib have 64, and the authors 128");
            return Err(("width_per_group".into(), why));
        }
        self.training().validate().map_err(|report| {
            let (path, error) =
                report.iter().next().map(|(path, error)| (path.to_string(), error.to_string())).unwrap_or_default();
            (format!("training.{path}"), error)
        })
    }

    fn check_size(&self, [height, width]: [usize; 2]) -> Result<(), String> {
        // One cell has no variance over a batch of one image.
        if height.is_multiple_of(CELL) && width.is_multiple_of(CELL) && height.min(width) > CELL {
            return Ok(());
        }
        Err(format!("`rd` takes images whose sides are multiples of {CELL} from {} on, not {height}x{width}", 2 * CELL))
    }

    fn frozen(&self) -> Option<FrozenNetwork<'_>> {
        let weights = self.weights.as_deref().unwrap_or("wide-resnet50");
        Some(FrozenNetwork { weights, layouts: &["resnet", "resnet-hf"] })
    }

    fn without_places(&self) -> Self {
        Self { weights: None, ..self.clone() }
    }
}

impl TrainedMethod for ReverseDistillation {
    type Frozen = ResNet;
    type Trained = DistillationStudent;

    fn training(&self) -> Training {
        let authors = Training {
            epochs: Some(200),
            batch_size: 16,
            optimizer: Rule::Adam,
            lr: 0.005,
            weight_decay: 0.,
            betas: [0.5, 0.999],
            ..Training::default()
        };
        let own = match self.protocol {
            DistillationProtocol::Ader => {
                Training { epochs: Some(100), max_grad_norm: 5., lr_scheduler: LrScheduler::Step, ..authors }
            }
            DistillationProtocol::Authors => authors,
            DistillationProtocol::Anomalib => Training { betas: [0.5, 0.99], ..authors },
        };
        self.training.applied_to(&own)
    }

    fn open(&self, weights: &Path, device: Device) -> Result<ResNet, CheckpointError> {
        ResNet::open(weights, device)
    }

    fn build(&self, teacher: &ResNet, vs: &nn::Path<'_>) -> DistillationStudent {
        let config = DistillationConfig::of(teacher.config(), i64::from(self.width_per_group()));
        DistillationStudent::new(vs, &config)
    }

    fn loss<'a>(
        &'a self,
        teacher: &'a ResNet,
        student: &'a DistillationStudent,
        _: usize,
        images: &Tensor,
        _: &MicroBatch,
    ) -> Result<LoggedLoss<'a>, TchError> {
        let maps = of_teacher(teacher, images);
        let made = student.decode(&student.embed(&maps, true), true);
        Ok(LoggedLoss { total: distillation_loss(&maps, &made)?.into(), parts: Vec::new() })
    }

    fn detect(&self, teacher: &ResNet, student: &DistillationStudent, image: &Tensor) -> Result<Detection, TchError> {
        let (_, _, height, width) = image.size4()?;
        let maps = of_teacher(teacher, image);
        let made = student.decode(&student.embed(&maps, false), false);
        Ok(Detection { map: self.map(&maps, &made, [height, width]), image: None, worst: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn method(json: serde_json::Value) -> ReverseDistillation {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn protocol_sets_the_values_that_are_absent() {
        let of = |protocol: &str| {
            let method = method(serde_json::json!({ "protocol": protocol }));
            let Training { epochs, max_grad_norm, betas, lr_scheduler, .. } = method.training();
            (method.width_per_group(), method.levels(), epochs, max_grad_norm, betas, lr_scheduler)
        };
        let constant = LrScheduler::Constant;
        assert_eq!(of("ader"), (64, CombinedLevels::AveragedTwice, Some(100), 5., [0.5, 0.999], LrScheduler::Step));
        assert_eq!(of("authors"), (128, CombinedLevels::Sum, Some(200), 0., [0.5, 0.999], constant));
        assert_eq!(of("anomalib"), (64, CombinedLevels::Sum, Some(200), 0., [0.5, 0.99], constant));
        let own = method(serde_json::json!({
            "protocol": "authors", "width_per_group": 64, "levels": "averaged_twice", "training": { "epochs": 300 },
        }));
        assert_eq!(
            (own.width_per_group(), own.levels(), own.training().epochs),
            (64, CombinedLevels::AveragedTwice, Some(300))
        );
    }

    #[test]
    fn values_that_do_not_fit_are_refused_by_name() {
        let refused = |json| method(json).check().unwrap_err();
        assert_eq!(refused(serde_json::json!({ "width_per_group": 48 })).0, "width_per_group");
        assert_eq!(refused(serde_json::json!({ "training": { "lr": -1 } })).0, "training.lr");
        assert_eq!(refused(serde_json::json!({ "training": { "steps": 1, "epochs": 2 } })).0, "training.steps");
        let size = |size| ReverseDistillation::default().check_size(size).is_ok();
        assert_eq!([[256, 256], [64, 96], [32, 64], [100, 128]].map(size), [true, true, false, false]);
    }
}
