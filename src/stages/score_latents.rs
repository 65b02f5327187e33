//! Latents -> anomaly maps, by the denoiser alone.

use arrow::datatypes::SchemaRef;
use garde::Validate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, nn, no_grad};

use super::{
    finish::Window,
    guided::{self, Guided},
    tensors::{device, first_embedding, network, tensor},
    train_denoiser::{DenoiserConfig, FeatureDenoiserConfig, Scale, was_trained_at},
};
use crate::{
    diffusion::{
        schedule::{Schedule, ScheduleConfig},
        score::Rule,
    },
    engine::{
        Error, Result,
        stage::{Batch, Context, Misfit, Open, Operator, Output, Port, Ports, Rows, Schemas, Sink, Stage},
    },
    features::embedding::Upsample,
    models::denoiser::Denoiser,
    tables::{
        anomaly_maps,
        embeddings::{self, TEXT, UNCONDITIONAL},
        images,
        latents::{self, MEAN},
        weights::{config_of, weights_column},
    },
};

/// Scores latents by the denoiser that was trained on those of normal images. Nothing is decoded.
///
/// The latents are features, or those of an autoencoder: their means, by a denoiser that is told the image
/// where it has a control branch. A few evaluations of the network take the place of the many steps of `reconstruct`, except by the rule `ddim`, which
/// takes them too. Captions are read as there: with guidance the first row of the input `unconditional` is the caption to lead away
/// from, and without `text_embeddings` it is the caption of all images.
///
/// The scores of the cells are brought to the size of the image, bilinearly and with half a cell between a border and the first
/// centre, and blurred by a Gaussian. Outside of an image's `roi` the map has its lowest value. The image's score is the
/// largest mean over a window of the map.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema, Validate)]
#[serde(deny_unknown_fields)]
#[schemars(extend("examples" = [{ "rule": "noise" }]))]
pub struct ScoreLatents {
    /// The rule by which a cell is scored.
    #[garde(dive)]
    #[serde(default)]
    pub rule: Rule,
    /// The timesteps at which the network is asked, ascending, none below the `min_timestep` of its training. Absent: those of the
    /// rule. Those of the rule `ddim` follow from its `sampler`.
    #[garde(inner(length(min = 1)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timesteps: Option<Vec<u32>>,
    /// Standard deviation of the Gaussian blur, in pixels of the map; 0 for none.
    #[garde(range(min = 0., max = 64.))]
    #[serde(default = "default_sigma")]
    pub sigma: f64,
    /// The rule by which a map gives the image's score.
    #[garde(dive)]
    #[serde(default)]
    pub score: Window,
    /// Seed of the noise that the rules `reconstruction` and `ddim` add.
    #[garde(skip)]
    #[serde(default)]
    pub seed: u64,
}

fn default_sigma() -> f64 {
    5.
}

impl ScoreLatents {
    /// Returns the timesteps, ascending.
    fn timesteps(&self) -> Vec<u32> {
        self.timesteps.clone().unwrap_or_else(|| self.rule.default_timesteps())
    }
}

impl Stage for ScoreLatents {
    fn revision(&self) -> u32 {
        2
    }

    fn ports(&self) -> Ports {
        Ports::Named(vec![
            Port::rows("images", [images::pixels_column(), images::roi_column()]),
            Port::rows("latents", [latents::mean_column(), latents::logvar_column().optional()]),
            Port::rows(TEXT, [embeddings::embedding_column()]).optional(),
            Port::table("denoiser", [weights_column()]),
            Port::table(UNCONDITIONAL, [embeddings::embedding_column()]).optional(),
        ])
    }

    fn makes(&self) -> Output {
        Output::RowPerRow
    }

    fn output(&self, inputs: &Schemas) -> Result<SchemaRef, Misfit> {
        let [height, width] = images::judged_size(inputs)?;
        let captions = guided::captions(inputs, self.rule.guidance_scale(), "rule")?;
        let (schedule, min_timestep) = schedule(inputs, captions)?;
        if matches!(self.rule, Rule::Ddim(_)) && self.timesteps.is_some() {
            let message = "the rule `ddim` has those of its `sampler`; leave them out";
            return Err(Misfit::parameter("timesteps", message));
        }
        let timesteps = self.timesteps();
        if !timesteps.is_sorted_by(|a, b| a < b) {
            return Err(Misfit::parameter("timesteps", format!("{timesteps:?} do not ascend")));
        }
        let count = schedule.num_train_timesteps;
        if let Some(t) = timesteps.iter().find(|t| **t >= count) {
            let message = format!("the denoiser has no timestep {t}; its last is {}", count - 1);
            return Err(Misfit::parameter("timesteps", message));
        }
        let (parameter, remedy) = match self.rule {
            Rule::Inversion => ("rule", "another rule begins at its first timestep".to_owned()),
            Rule::Noise | Rule::Reconstruction => {
                ("timesteps", format!("write `timesteps: [{min_timestep}]` or higher ones"))
            }
            Rule::Ddim(_) => ("rule", guided::FEW_STEPS.to_owned()),
        };
        let schedule = schedule.build().map_err(|e| Misfit::input("denoiser", e))?;
        let lowest = self.rule.lowest_timestep(&schedule, &timesteps).map_err(|e| Misfit::parameter("rule", e))?;
        was_trained_at(min_timestep, lowest, &remedy).map_err(|why| Misfit::parameter(parameter, why))?;
        self.score.check([height, width], "score")?;
        Ok(anomaly_maps::schema([height, width]))
    }
}

/// Returns the schedule of the denoiser, which is checked against images, latents and captions, and the lowest timestep of its
/// training. `captions` is the port that these come from. Latents without variance are features.
fn schedule(inputs: &Schemas, captions: &str) -> Result<(ScheduleConfig, u32), Misfit> {
    if latents::has_variance(inputs) {
        let config: DenoiserConfig = config_of(inputs, "denoiser")?;
        config.fits_latents(inputs, captions)?;
        Ok((config.schedule, config.min_timestep))
    } else {
        let config: FeatureDenoiserConfig = config_of(inputs, "denoiser")?;
        config.fits(inputs, captions)?;
        Ok((config.schedule, config.min_timestep))
    }
}

/// Opens the denoiser of the latents of a run, with the scaling of these and its schedule.
fn open(context: &Context, device: Device) -> Result<(Denoiser, Scale, ScheduleConfig)> {
    if latents::has_variance(&context.schemas) {
        let build = |vs: nn::Path<'_>, config: &DenoiserConfig| Denoiser::new(vs, &config.control);
        let (denoiser, config, _) = network(context, "denoiser", device, build)?;
        Ok((denoiser, Scale::Factor(config.scaling_factor), config.schedule))
    } else {
        let ((denoiser, standardisation), config, _) =
            network(context, "denoiser", device, FeatureDenoiserConfig::build)?;
        Ok((denoiser, Scale::Channels(standardisation), config.schedule))
    }
}

impl Open for ScoreLatents {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        let device = device(context)?;
        let (denoiser, scale, schedule) = open(context, device)?;
        let [height, width, _] = images::pixels(&context.schemas).map_err(|misfit| Error::Stage(misfit.message))?;
        Ok(Box::new(Scorer {
            schedule: schedule.build()?,
            unconditional: first_embedding(context, UNCONDITIONAL)?.map(|embedding| embedding.to_device(device)),
            batch_size: context.batch_size.unwrap_or(16),
            size: [height as i64, width as i64],
            stage: self,
            denoiser,
            scale,
            device,
        }))
    }
}

struct Scorer {
    stage: ScoreLatents,
    denoiser: Denoiser,
    scale: Scale,
    schedule: Schedule,
    device: Device,
    /// The embedding of the caption that guidance leads away from, or of all images if they have none of their own, [1, 77, D].
    unconditional: Option<Tensor>,
    /// Height and width of the images.
    size: [i64; 2],
    batch_size: usize,
}

impl Operator for Scorer {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let ScoreLatents { sigma, score, .. } = self.stage;
        while let Some(batch) = rows.next(self.batch_size)? {
            let scores = no_grad(|| self.scores(&batch))?; // [B, h, w]
            let maps = Upsample::Bilinear.to_size(&scores.unsqueeze(1), self.size).squeeze_dim(1); // [B, H, W]
            let maps = maps.to_device(Device::Cpu).to_kind(Kind::Double);
            out.write_rows(&batch, score.columns(&maps, sigma, &images::rois(&batch)?)?)?;
        }
        Ok(())
    }
}

impl Scorer {
    /// Scores the cells of a batch: [B, h, w].
    fn scores(&self, batch: &Batch) -> Result<Tensor> {
        let x = self.scale.apply(&tensor(batch, "latents", MEAN)?.to_device(self.device)); // [B, C, h, w]
        let ScoreLatents { rule, seed, .. } = &self.stage;
        let unconditional = self.unconditional.as_ref();
        let guided = Guided::new(&self.denoiser, batch, unconditional, rule.guidance_scale(), self.device)?;
        let noise = |what: &str| guided::noise(*seed, what, batch, &x.size()[1..], self.device);
        let timesteps: Vec<i64> = self.stage.timesteps().into_iter().map(i64::from).collect();
        rule.scores(&self.schedule, &timesteps, &x, |x, t| guided.predict(x, t), noise)
    }
}
