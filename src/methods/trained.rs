//! The contract of methods that are trained on images.
//!
//! An author writes [`TrainedMethod`]: how the networks are built, their loss on a batch, and the map of an image. Order
//! and number of the batches, interruption, the log and the weights are those of every training
//! ([`training`](crate::training)). [`Learner`] and [`Detector`] are the same method as the stages see it, without its
//! types.

use std::{collections::BTreeMap, path::Path};

use tch::{
    Device, TchError, Tensor,
    nn::{self, VarStore},
    no_grad,
};

use crate::{
    models::{
        checkpoint::{Checkpoint, CheckpointError},
        initialisation::skip_init,
    },
    training::{
        LoggedLoss, MicroBatch, Trainer, Training,
        optim::{Named, train_only},
    },
};

/// A method that trains networks on normal images: its doing half.
///
/// Images are [B, 3, H, W], normalised by ImageNet's mean and deviation.
pub trait TrainedMethod: Clone + Send + 'static {
    /// The network that is not trained; `()` for a method without one.
    type Frozen: Send;
    /// The networks that are trained.
    type Trained: Send;

    /// Returns the parameters of the training.
    fn training(&self) -> Training;

    /// Opens the weights of [`frozen`](super::MethodParameters::frozen), a file or a folder. A method without a frozen
    /// network is given an empty folder.
    fn open(&self, weights: &Path, device: Device) -> Result<Self::Frozen, CheckpointError>;

    /// Declares the variables of the trained networks, all of which are kept, with their initial values. These are drawn
    /// from libtorch's generator, which was seeded.
    fn build(&self, frozen: &Self::Frozen, vs: &nn::Path<'_>) -> Self::Trained;

    /// Returns the trainers, whose optimisers take turns. By default there is one, of everything but the statistics of
    /// batch normalisations.
    fn trainers(&self, vs: &VarStore) -> Vec<Trainer> {
        vec![self.training().trainer(train_only(vs, |name| !name.contains(".running_")))]
    }

    /// Returns the loss of a trainer, by its index, on a batch. Random numbers come from the batch's
    /// [noise](MicroBatch::noise) alone.
    fn loss<'a>(
        &'a self,
        frozen: &'a Self::Frozen,
        trained: &'a Self::Trained,
        trainer: usize,
        images: &Tensor,
        batch: &MicroBatch,
    ) -> Result<LoggedLoss<'a>, TchError>;

    /// Detects in an image [1, 3, H, W]. Gradients are not recorded.
    fn detect(&self, frozen: &Self::Frozen, trained: &Self::Trained, image: &Tensor) -> Result<Detection, TchError>;
}

/// The map of an image before it is smoothed.
#[derive(Debug)]
pub struct Detection {
    /// A score per pixel, of any float type [H, W]; a higher one is more anomalous.
    pub map: Tensor,
    /// The method's own score of the image; `None` for the largest value of the smoothed map.
    pub image: Option<f64>,
    /// The most anomalous patch; `None` of a method that compares no patches.
    pub worst: Option<WorstPatch>,
}

/// The most anomalous patch of an image.
#[derive(Debug)]
pub struct WorstPatch {
    /// Its features, f32 [1, C].
    pub features: Tensor,
    /// Its centre, x and y, as shares of the image's width and height.
    pub centre: [f32; 2],
}

/// A [`TrainedMethod`] without its types.
pub trait AnyTrainedMethod {
    /// Returns the parameters of the training.
    fn training(&self) -> Training;

    /// Builds the networks with their initial values.
    fn learner(&self, weights: &Path, device: Device) -> Result<Box<dyn Learner>, CheckpointError>;

    /// Opens what was trained for each class, or for all (`None`).
    fn detector(
        &self,
        weights: &Path,
        trained: &BTreeMap<Option<String>, Checkpoint>,
        device: Device,
    ) -> Result<Box<dyn Detector>, CheckpointError>;
}

/// A method in training.
pub trait Learner {
    /// Returns the trainers. The loss of the first is that of the log.
    fn trainers(&self) -> Vec<Trainer>;

    /// Returns everything that is kept, by name.
    fn variables(&self) -> Named;

    /// Returns the loss of a trainer, by its index, on a batch of images [B, 3, H, W].
    fn loss(&self, trainer: usize, images: &Tensor, batch: &MicroBatch) -> Result<LoggedLoss<'_>, TchError>;
}

/// A method that was fitted.
pub trait Detector: Send {
    /// Detects in an image [1, 3, H, W] of a class, by what was fitted on that class, or on all for `None`. Returns
    /// `None` if nothing was. The image's score and its worst patch come from the pixels that are judged, `roi`, of which
    /// there is at least one; the map is of all. The result depends on no other image.
    fn detect(&self, class: Option<&str>, image: &Tensor, roi: Option<&[bool]>) -> Result<Option<Detection>, TchError>;
}

impl<M: TrainedMethod> AnyTrainedMethod for M {
    fn training(&self) -> Training {
        TrainedMethod::training(self)
    }

    fn learner(&self, weights: &Path, device: Device) -> Result<Box<dyn Learner>, CheckpointError> {
        let frozen = self.open(weights, device)?;
        let vs = VarStore::new(device);
        let trained = self.build(&frozen, &vs.root());
        Ok(Box::new(Learning { method: self.clone(), frozen, vs, trained }))
    }

    fn detector(
        &self,
        weights: &Path,
        trained: &BTreeMap<Option<String>, Checkpoint>,
        device: Device,
    ) -> Result<Box<dyn Detector>, CheckpointError> {
        let frozen = self.open(weights, device)?;
        let mut networks = BTreeMap::new();
        for (class, weights) in trained {
            let vs = VarStore::new(device);
            let network = skip_init(|| self.build(&frozen, &vs.root()));
            weights.load_into(&vs)?;
            networks.insert(class.clone(), network);
        }
        Ok(Box::new(Detecting { method: self.clone(), frozen, networks }))
    }
}

struct Learning<M: TrainedMethod> {
    method: M,
    frozen: M::Frozen,
    vs: VarStore,
    trained: M::Trained,
}

impl<M: TrainedMethod> Learner for Learning<M> {
    fn trainers(&self) -> Vec<Trainer> {
        self.method.trainers(&self.vs)
    }

    fn variables(&self) -> Named {
        self.vs.variables().into_iter().collect()
    }

    fn loss(&self, trainer: usize, images: &Tensor, batch: &MicroBatch) -> Result<LoggedLoss<'_>, TchError> {
        self.method.loss(&self.frozen, &self.trained, trainer, images, batch)
    }
}

struct Detecting<M: TrainedMethod> {
    method: M,
    frozen: M::Frozen,
    networks: BTreeMap<Option<String>, M::Trained>,
}

impl<M: TrainedMethod> Detector for Detecting<M> {
    fn detect(&self, class: Option<&str>, image: &Tensor, roi: Option<&[bool]>) -> Result<Option<Detection>, TchError> {
        let Some(network) = self.networks.get(&class.map(str::to_owned)) else { return Ok(None) };
        let found = no_grad(|| self.method.detect(&self.frozen, network, image))?;
        // The method's own score is of the whole image.
        Ok(Some(Detection { image: found.image.filter(|_| roi.is_none()), ..found }))
    }
}
