//! The denoiser of VLMDiff: Stable Diffusion's U-Net and the control branch, which reads the image; the U-Net alone; or a small
//! U-Net of features.

use std::collections::HashMap;

use tch::{
    Tensor,
    nn::{self, VarStore},
    no_grad,
};

use super::{
    checkpoint::{Checkpoint, CheckpointError},
    control::{ControlNet, ControlNetConfig, copy_encoder},
    feature_unet::{FeatureUNet, FeatureUNetConfig},
    initialisation::skip_init,
    latent_diffusion::{self, CONTROL, UNET},
    nn::ConfigError,
    recompute::Pass,
    unet::UNet2DConditionModel,
};

/// The error of a denoiser that cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DenoiserError {
    /// The configuration describes no network.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The weights cannot be read or are those of another network.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
}

/// Published weights, under the names of the networks.
#[derive(Debug, Clone)]
pub struct Published {
    unet: Checkpoint,
    control: Option<Checkpoint>,
}

impl Published {
    /// Finds the U-Net and, if there is one, the control branch: in a file of latent-diffusion with all parts of a
    /// model (`model.diffusion_model.*`, `control_model.*`), in one that this program wrote (`unet.*`, `control.*`), or
    /// in a file with the U-Net alone, in any layout in which it is published.
    ///
    /// # Errors
    /// [`CheckpointError::Format`] lists the names that belong to no part of a model.
    pub fn new(file: Checkpoint, config: &ControlNetConfig) -> Result<Self, CheckpointError> {
        if file.has_part("unet") {
            // Names of neither part stay with the branch, so that loading it reports them as unexpected.
            let rest = |name: &str| match name.strip_prefix("control.") {
                Some(_) if !config.has_branch() => None,
                stripped => Some(stripped.unwrap_or(name).to_owned()),
            };
            let control = file.clone().rename(|name| if name.starts_with("unet.") { None } else { rest(name) })?;
            return Ok(Self {
                unet: file.select("unet"),
                control: Some(control).filter(|control| !control.is_empty()),
            });
        }
        let [has_unet, has_control] = [UNET, CONTROL].map(|part| file.has_part(part));
        if has_unet || has_control {
            latent_diffusion::check(&file, &[UNET])?;
        }
        let control = (has_control && config.has_branch()).then(|| config.canonical(file.clone())).transpose()?;
        Ok(Self { unet: config.unet.canonical(file)?, control })
    }

    /// Returns true if there is a control branch.
    pub fn has_control(&self) -> bool {
        self.control.is_some()
    }

    /// Leaves out a fusion without effect and sets `fusion` in `config`, see [`ControlNetConfig::fit_fusion`].
    ///
    /// # Errors
    /// The errors of [`Checkpoint::tensor`].
    pub fn fit_fusion(self, config: &mut ControlNetConfig) -> Result<Self, CheckpointError> {
        let control = self.control.map(|weights| config.fit_fusion(weights)).transpose()?;
        Ok(Self { control, ..self })
    }
}

/// A denoiser of latents.
#[derive(Debug)]
pub enum Denoiser {
    /// A denoiser of an autoencoder's latents: the U-Net and, where it has one, its control branch, under one root as `unet.*` and
    /// `control.*`.
    Images {
        /// The U-Net.
        unet: Box<UNet2DConditionModel>,
        /// The control branch, unless its form is none.
        control: Option<Box<ControlNet>>,
    },
    /// A denoiser of an extractor's features: the U-Net, as `unet.*`.
    Features(Box<FeatureUNet>),
}

impl Denoiser {
    /// Declares the parameters; fails if `config`, which is that of the branch and of the U-Net in it, describes no
    /// network.
    pub fn new(vs: nn::Path<'_>, config: &ControlNetConfig) -> Result<Self, ConfigError> {
        let unet = UNet2DConditionModel::new(&vs / "unet", &config.unet)?;
        let control = config.has_branch().then(|| ControlNet::new(&vs / "control", config)).transpose()?;
        Ok(Self::Images { unet: Box::new(unet), control: control.map(Box::new) })
    }

    /// Declares the parameters of a denoiser of features; fails if `config` describes no network.
    pub fn of_features(vs: nn::Path<'_>, config: &FeatureUNetConfig) -> Result<Self, ConfigError> {
        Ok(Self::Features(Box::new(FeatureUNet::new(&(&vs / "unet"), config)?)))
    }

    /// Declares the parameters and fills them with published weights. If these have no control branch, it starts as in
    /// the authors' `build_model.py`: as a copy of the U-Net's way down and middle, while its new layers keep their
    /// initial values. A fusion that `config` lacks is left out if it has no effect. With the form none, a control branch of the
    /// weights is left out.
    ///
    /// # Errors
    /// The errors of [`Checkpoint::fill`], and [`ConfigError`] if `config` describes no network.
    pub fn open(vs: &VarStore, config: &ControlNetConfig, published: Published) -> Result<Self, DenoiserError> {
        // Parameters are drawn at random only if the file lacks a control branch that is wanted.
        let new = || Self::new(vs.root(), config);
        let network = if published.has_control() || !config.has_branch() { skip_init(new)? } else { new()? };
        let [unet, control] = ["unet", "control"].map(|part| variables_below(vs, part));
        let published = if config.fusion { published } else { published.fit_fusion(&mut config.clone())? };
        published.unet.fill(&unet)?;
        match published.control {
            Some(weights) => weights.fill(&control)?,
            // The control branch starts as a copy of the U-Net's way down; of the form none it has no parameters to copy to.
            None => {
                copy_encoder(&unet, &control);
            }
        }
        Ok(network)
    }

    /// Returns true if there is a control branch, which takes the hint of an image.
    pub fn has_control(&self) -> bool {
        matches!(self, Self::Images { control: Some(_), .. })
    }

    /// Returns the hint that [`Denoiser::forward`] takes, the same at all timesteps: normalised images -> [B, C, h, w].
    /// Without a control branch there is none.
    pub fn hint(&self, images: &Tensor) -> Option<Tensor> {
        match self {
            Self::Images { control, .. } => control.as_ref().map(|control| control.hint(images)),
            Self::Features(_) => None,
        }
    }

    /// Maps noisy latents [B, 4, h, w], timesteps `[B]`, captions [B, 77, D] and the hint to the prediction [B, 4, h,
    /// w]. The control branch takes part if there is a hint.
    pub fn forward(&self, x: &Tensor, t: &Tensor, context: &Tensor, hint: Option<&Tensor>) -> Tensor {
        match self {
            Self::Images { unet, control } => {
                let residuals = control.as_ref().zip(hint).map(|(control, hint)| control.forward(x, t, context, hint));
                unet.forward(x, t, context, residuals.as_ref())
            }
            Self::Features(unet) => unet.forward(x, t, context),
        }
    }

    /// Does as [`Denoiser::forward`] for a step of the training, with images [B, 3, H, W] instead of their hint, and with one of
    /// the maps that are interleaved in features instead of all, see
    /// [`FeatureUNetSize::phase`](super::feature_unet::FeatureUNetSize::phase); with a `pass`, the maps inside are not kept.
    pub fn forward_with<'a>(
        &'a self,
        pass: Pass<'_, 'a>,
        x: &Tensor,
        t: &Tensor,
        context: &Tensor,
        images: Option<&Tensor>,
    ) -> Tensor {
        match self {
            Self::Images { unet, control } => {
                let residuals = control.as_ref().zip(images).map(|(control, images)| {
                    let hint = control.hint_with(pass, images);
                    control.forward_with(pass, x, t, context, &hint)
                });
                unet.forward_with(pass, x, t, context, residuals.as_ref())
            }
            Self::Features(unet) => unet.forward_phase(pass, x, t, context),
        }
    }
}

/// The mean and the standard deviation of each channel of latents, which a denoiser of features sees standardised.
#[derive(Debug)]
pub struct Standardisation {
    /// [C, 1, 1].
    mean: Tensor,
    /// [C, 1, 1].
    deviation: Tensor,
}

impl Standardisation {
    /// Declares the variables, which no training changes, as `latents_mean` and `latents_std`.
    pub fn new(vs: &nn::Path<'_>, channels: i64) -> Self {
        let shape = [channels, 1, 1];
        Self { mean: vs.zeros_no_train("latents_mean", &shape), deviation: vs.ones_no_train("latents_std", &shape) }
    }

    /// Declares the variables with these values, `[C]` each.
    pub fn with(vs: &nn::Path<'_>, mean: &Tensor, deviation: &Tensor) -> Self {
        let mut standardisation = Self::new(vs, mean.numel() as i64);
        no_grad(|| {
            standardisation.mean.copy_(&mean.view([-1, 1, 1]));
            standardisation.deviation.copy_(&deviation.view([-1, 1, 1]));
        });
        standardisation
    }

    /// Standardises latents [B, C, h, w]. A channel that does not vary is only centred.
    pub fn apply(&self, latents: &Tensor) -> Tensor {
        (latents - &self.mean) / self.deviation.where_scalarother(&self.deviation.gt(SMALLEST_DEVIATION), 1.)
    }
}

/// The standard deviation below which a channel counts as constant. Features in f32 are of the order of 1.
const SMALLEST_DEVIATION: f64 = 1e-6;

/// Returns the variables of the network below `prefix`, by the network's own names.
fn variables_below(vs: &VarStore, prefix: &str) -> HashMap<String, Tensor> {
    let below = |name: &str| name.strip_prefix(prefix)?.strip_prefix('.').map(str::to_owned);
    vs.variables().into_iter().filter_map(|(name, variable)| Some((below(&name)?, variable))).collect()
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::super::{checkpoint::to_safetensors, control::ControlForm};
    use super::*;

    fn small() -> ControlNetConfig {
        let config = r#"{"block_out_channels": [8, 16], "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "layers_per_block": 1, "cross_attention_dim": 12, "attention_head_dim": 2, "norm_num_groups": 4,
            "conditioning_embedding_out_channels": [4, 8], "form": "semantic_guided"}"#;
        serde_json::from_str(config).unwrap()
    }

    fn file(tensors: HashMap<String, Tensor>) -> Checkpoint {
        Checkpoint::from_safetensors(to_safetensors(tensors, HashMap::new()).unwrap()).unwrap()
    }

    fn open(weights: HashMap<String, Tensor>) -> Result<HashMap<String, Tensor>, DenoiserError> {
        let vs = VarStore::new(Device::Cpu);
        Denoiser::open(&vs, &small(), Published::new(file(weights), &small())?)?;
        Ok(vs.variables())
    }

    #[test]
    fn every_layout_of_a_denoiser_is_read() {
        let vs = VarStore::new(Device::Cpu);
        Denoiser::new(vs.root(), &small()).unwrap();
        assert_eq!(open(vs.variables()).unwrap(), vs.variables(), "as this program writes it");
        let renamed = |name: &str| match name.split_once('.') {
            Some(("unet", rest)) => format!("model.diffusion_model.{rest}"),
            Some((_, rest)) => format!("control_model.{rest}"),
            None => unreachable!("{name}"),
        };
        let theirs = || vs.variables().into_iter().map(|(name, tensor)| (renamed(&name), tensor));
        assert_eq!(open(theirs().collect()).unwrap(), vs.variables(), "with all parts of a model");
        let published = || variables_below(&vs, "unet");
        let unet = published();
        let started = open(published()).unwrap();
        for (name, tensor) in &unet {
            assert_eq!(&started[&format!("unet.{name}")], tensor, "{name}");
            assert!(started.get(&format!("control.{name}")).is_none_or(|copy| copy == tensor), "{name}");
        }

        let alone = |weights| {
            let (vs, config) = (VarStore::new(Device::Cpu), ControlNetConfig { form: ControlForm::None, ..small() });
            let network = Denoiser::open(&vs, &config, Published::new(file(weights), &config)?)?;
            Ok::<_, DenoiserError>((network, vs.variables()))
        };
        let (network, variables) = alone(published()).unwrap();
        let below = |(name, tensor): (&String, &Tensor)| (format!("unet.{name}"), tensor.shallow_clone());
        assert_eq!(variables, unet.iter().map(below).collect(), "the U-Net alone");
        assert_eq!(alone(theirs().collect()).unwrap().1, variables, "the U-Net of a file with a branch");
        assert_eq!(alone(vs.variables()).unwrap().1, variables, "the U-Net of a file that this program wrote");
        // A branch that has just started adds nothing, and a U-Net alone has none to add.
        let start = VarStore::new(Device::Cpu);
        let with_branch =
            Denoiser::open(&start, &small(), Published::new(file(published()), &small()).unwrap()).unwrap();
        no_grad(|| {
            let random = |shape: &[i64]| Tensor::randn(shape, (Kind::Float, Device::Cpu));
            let (x, t, context) = (random(&[2, 4, 8, 8]), Tensor::from_slice(&[1_i64, 901]), random(&[2, 5, 12]));
            let images = random(&[2, 3, 16, 16]);
            assert!(network.hint(&images).is_none());
            let predicted = |denoiser: &Denoiser| denoiser.forward_with(None, &x, &t, &context, Some(&images));
            assert_eq!(predicted(&network), predicted(&with_branch));
        });

        let error = |weights| open(weights).unwrap_err().to_string();
        let odd = || ("odd.weight".to_owned(), Tensor::from(0_f32));
        let without = alone(vs.variables().into_iter().chain([odd()]).collect()).unwrap_err().to_string();
        assert!(without.contains("1 unexpected: odd.weight"), "{without}");
        assert!(error(theirs().chain([odd()]).collect()).contains("1 unexpected: odd.weight"));
        assert!(error(vs.variables().into_iter().chain([odd()]).collect()).contains("odd.weight"));
        let control = theirs().filter(|(name, _)| name.starts_with("control_model."));
        assert!(error(control.collect()).contains("it has no tensors below model.diffusion_model"));
    }
}
