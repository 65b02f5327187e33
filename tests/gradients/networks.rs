//! Small instances of every trained network, with random weights that depend on their names alone.

use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor, nn::VarStore, no_grad};
use vlmdiff::{
    diffusion::vae_gan::{Reduction, TermWeights},
    models::{
        clip::{ClipTextConfig, ClipTextModel},
        control::{ControlNet, ControlNetConfig},
        image_tower::ImageTower,
        lpips::Lpips,
        patchgan::{PatchGan, PatchGanConfig},
        recompute::{Pass, Recompute},
        unet::UNet2DConditionModel,
        vae::{AutoencoderKl, AutoencoderKlConfig},
    },
    stages::train_autoencoder::{AutoencoderObjective, Discriminator, Statistics},
};

use super::{Layout, loss, random};

/// A function from inputs and a loss of outputs to the value of the loss and, if leaves are given, its gradients.
type Step = dyn Fn(&[Tensor], &dyn Fn(&[Tensor]) -> Tensor, &[Tensor]) -> (Tensor, Vec<Tensor>);

/// A network, and one row of inputs.
pub(super) struct Network {
    pub(super) name: String,
    leaves: BTreeMap<String, Tensor>,
    inputs: Vec<Tensor>,
    step: Box<Step>,
}

impl Network {
    /// Makes a network. Gradients are computed for the parameters of `stores` and for the inputs other than ids of
    /// tokens and timesteps.
    fn new(name: String, stores: &[&VarStore], inputs: Vec<Tensor>, step: Box<Step>) -> Self {
        let parameters = stores.iter().enumerate().flat_map(|(i, store)| {
            let trained = store.variables().into_iter().filter(|(_, variable)| variable.requires_grad());
            trained.map(move |(name, variable)| (format!("{i}.{name}"), variable))
        });
        let mut leaves: BTreeMap<String, Tensor> = parameters.collect();
        let mut given = Vec::new();
        for (i, input) in inputs.into_iter().enumerate() {
            let is_number = input.kind() == Kind::Int64;
            let input = if is_number { input } else { input.set_requires_grad(true) };
            if !is_number {
                leaves.insert(format!("input {i}"), input.shallow_clone());
            }
            given.push(input);
        }
        Self { name, leaves, inputs: given, step }
    }

    /// Returns the parameters and inputs that have gradients, by name.
    pub(super) fn leaves(&self) -> &BTreeMap<String, Tensor> {
        &self.leaves
    }

    /// Returns the row, repeated `times` times.
    fn batch(&self, times: i64) -> Vec<Tensor> {
        let repeat = |input: &Tensor| input.repeat([&[times], vec![1; input.dim() - 1].as_slice()].concat());
        self.inputs.iter().map(repeat).collect()
    }

    pub(super) fn loss(&self, times: i64, layout: Layout) -> f64 {
        no_grad(|| (self.step)(&self.batch(times), &|outputs| loss(outputs, layout), &[]).0.double_value(&[]))
    }

    /// Returns the gradients of all leaves on which the loss depends.
    pub(super) fn gradients(&self, times: i64, layout: Layout) -> BTreeMap<String, Tensor> {
        let leaves: Vec<Tensor> = self.leaves.values().map(Tensor::shallow_clone).collect();
        let (_, gradients) = (self.step)(&self.batch(times), &|outputs| loss(outputs, layout), &leaves);
        self.leaves.keys().cloned().zip(gradients).filter(|(_, gradient)| gradient.defined()).collect()
    }
}

/// Makes a step of one plain backward pass.
fn plainly(outputs: impl Fn(&[Tensor]) -> Vec<Tensor> + 'static) -> Box<Step> {
    Box::new(move |inputs, loss, leaves| {
        let loss = loss(&outputs(inputs));
        let gradients = if leaves.is_empty() { vec![] } else { Tensor::run_backward(&[&loss], leaves, false, false) };
        (loss, gradients)
    })
}

/// Fills a network with random weights. Those of layers keep the size of maps, and those of normalisations lie about
/// one, so that every part contributes, also new layers that start at zero.
fn fill(vs: &mut VarStore, kind: Kind) {
    no_grad(|| {
        for (name, mut variable) in vs.variables() {
            if name.contains("running_mean") || name.contains("num_batches") {
                continue;
            }
            let shape = variable.size();
            let fan_in = shape.iter().skip(1).product::<i64>() as f64;
            let values = random(&name, &shape, Kind::Float);
            let values = match shape.len() {
                1 if name.ends_with("weight") || name.ends_with("running_var") => values.clamp(-3., 3.) * 0.2 + 1.,
                1 => values * 0.2,
                _ => values / fan_in.sqrt(),
            };
            variable.copy_(&values);
        }
    });
    if kind == Kind::Double {
        vs.double();
    }
}

/// Makes the U-Net with its control branch. Beside the prediction, the branch's own maps are outputs, so that these
/// have gradients from the loss itself. `size` is that of the latents.
pub(super) fn denoiser(
    kind: Kind,
    (form, fusion, only_mid_control): (&str, bool, bool),
    [h, w]: [i64; 2],
    recompute: bool,
) -> Network {
    let config: ControlNetConfig = serde_json::from_value(serde_json::json!({
        "block_out_channels": [8, 8, 16], "layers_per_block": 1, "cross_attention_dim": 12, "norm_num_groups": 8,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"], "attention_head_dim": 2,
        "conditioning_embedding_out_channels": [4, 8, 8],
        "form": form, "fusion": fusion, "only_mid_control": only_mid_control,
    }))
    .unwrap();
    let [mut unet_vs, mut control_vs] = [(); 2].map(|()| VarStore::new(Device::Cpu));
    let unet = UNet2DConditionModel::new(unet_vs.root(), &config.unet).unwrap();
    let control = ControlNet::new(control_vs.root(), &config).unwrap();
    [&mut unet_vs, &mut control_vs].into_iter().for_each(|vs| fill(vs, kind));
    let inputs = [("x", vec![1, 4, h, w]), ("context", vec![1, 5, 12]), ("image", vec![1, 3, 4 * h, 4 * w])];
    let mut inputs: Vec<Tensor> = inputs.iter().map(|(name, shape)| random(name, shape, kind)).collect();
    inputs.push(Tensor::from_slice(&[300_i64]));
    let stores = [&unet_vs, &control_vs];
    let name = format!("denoiser {form}, fusion {fusion}, only_mid_control {only_mid_control}, {h}x{w}");
    if !recompute {
        return Network::new(name, &stores, inputs, plainly(move |inputs| outputs((&unet, &control), None, inputs)));
    }
    let step: Box<Step> = Box::new(move |inputs, loss, leaves| {
        let pass = Recompute::new();
        let loss = loss(&outputs((&unet, &control), Some(&pass), inputs));
        let gradients = pass.gradients(&loss, leaves).unwrap();
        (loss, gradients)
    });
    Network::new(name, &stores, inputs, step)
}

fn outputs<'a>(
    (unet, control): (&'a UNet2DConditionModel, &'a ControlNet),
    pass: Pass<'_, 'a>,
    inputs: &[Tensor],
) -> Vec<Tensor> {
    let [x, context, image, t] = inputs else { unreachable!("four inputs") };
    let hint = control.hint_with(pass, image);
    let residuals = control.forward_with(pass, x, t, context, &hint);
    let prediction = unet.forward_with(pass, x, t, context, Some(&residuals));
    let mut outputs = residuals.skips;
    outputs.extend([residuals.mid, prediction]);
    outputs
}

fn small_autoencoder(kind: Kind) -> (VarStore, AutoencoderKl) {
    let config = r#"{"block_out_channels": [8, 8, 16], "layers_per_block": 1, "norm_num_groups": 8}"#;
    let config: AutoencoderKlConfig = serde_json::from_str(config).unwrap();
    let mut vs = VarStore::new(Device::Cpu);
    let network = AutoencoderKl::new(vs.root(), &config).unwrap();
    fill(&mut vs, kind);
    (vs, network)
}

/// Returns an image of this size and the noise of its latent, whose sides are a quarter.
fn image_and_noise(kind: Kind, [h, w]: [i64; 2]) -> Vec<Tensor> {
    vec![random("image", &[1, 3, h, w], kind), random("noise", &[1, 4, h / 4, w / 4], kind)]
}

/// Makes the autoencoder; outputs are moments, divergence and reconstruction of an image.
pub(super) fn autoencoder(kind: Kind, size: [i64; 2]) -> Network {
    let (vs, network) = small_autoencoder(kind);
    let outputs = move |inputs: &[Tensor]| {
        let posterior = network.encode(&inputs[0]);
        let y = network.decode(&posterior.sample(&inputs[1]));
        vec![posterior.kl(), posterior.mean, posterior.logvar, y]
    };
    Network::new(format!("autoencoder {size:?}"), &[&vs], image_and_noise(kind, size), plainly(outputs))
}

fn small_patchgan(kind: Kind) -> (VarStore, PatchGan) {
    let mut vs = VarStore::new(Device::Cpu);
    let config = PatchGanConfig { ndf: 4, n_layers: 2, ..Default::default() };
    let network = PatchGan::new(vs.root(), &config).unwrap();
    fill(&mut vs, kind);
    (vs, network)
}

/// Makes the discriminator, with the statistics of the batch or with its own.
pub(super) fn patchgan(kind: Kind, [h, w]: [i64; 2], train: bool) -> Network {
    let (vs, network) = small_patchgan(kind);
    let inputs = vec![random("image", &[1, 3, h, w], kind)];
    let outputs = move |inputs: &[Tensor]| vec![network.forward(&inputs[0], train)];
    Network::new(format!("discriminator {h}x{w}, train {train}"), &[&vs], inputs, plainly(outputs))
}

fn small_lpips(kind: Kind) -> Lpips {
    let [mut vgg, mut lin] = [(); 2].map(|()| VarStore::new(Device::Cpu));
    let network = Lpips::new(&vgg.root(), &lin.root(), [4, 4, 8, 8, 8]);
    fill(&mut vgg, kind);
    if kind == Kind::Double {
        lin.double();
    }
    [&mut vgg, &mut lin].into_iter().for_each(|vs| vs.freeze());
    network
}

/// Makes the perceptual distance of two images, with frozen weights.
pub(super) fn lpips(kind: Kind, [h, w]: [i64; 2]) -> Network {
    let network = small_lpips(kind);
    let inputs = ["image", "reconstruction"].map(|name| random(name, &[1, 3, h, w], kind));
    let outputs = move |inputs: &[Tensor]| vec![network.forward(&inputs[0], &inputs[1])];
    Network::new(format!("perceptual distance {h}x{w}"), &[], inputs.into(), plainly(outputs))
}

/// Makes the text transformer with its projection.
pub(super) fn clip(kind: Kind, activation: &str) -> Network {
    let config: ClipTextConfig = serde_json::from_value(serde_json::json!({
        "vocab_size": 20, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "max_position_embeddings": 7, "hidden_act": activation, "eos_token_id": 3, "projection_dim": 8,
    }))
    .unwrap();
    let mut vs = VarStore::new(Device::Cpu);
    let network = ClipTextModel::with_projection(vs.root(), &config).unwrap();
    fill(&mut vs, kind);
    let ids = Tensor::from_slice(&[2_i64, 11, 7, 5, 3, 3, 3]).view([1, 7]);
    let outputs = move |inputs: &[Tensor]| {
        let output = network.forward(&inputs[0]);
        vec![network.embed(&output.pooled).unwrap(), output.last_hidden_state]
    };
    Network::new(format!("text transformer, {activation}"), &[&vs], vec![ids], plainly(outputs))
}

/// Makes the image encoder with which text encoders are trained.
pub(super) fn image_tower(kind: Kind, [h, w]: [i64; 2]) -> Network {
    let mut vs = VarStore::new(Device::Cpu);
    let network = ImageTower::new(vs.root(), &[8, 16], 8);
    fill(&mut vs, kind);
    let inputs = vec![random("image", &[1, 3, h, w], kind)];
    let outputs = move |inputs: &[Tensor]| vec![network.forward(&inputs[0])];
    Network::new(format!("image tower {h}x{w}"), &[&vs], inputs, plainly(outputs))
}

/// Makes the autoencoder under all terms of its loss, with an active discriminator.
pub(super) fn objective(kind: Kind, size: [i64; 2]) -> Network {
    let (vs, network) = small_autoencoder(kind);
    let (judge_vs, discriminator) = small_patchgan(kind);
    let objective = AutoencoderObjective {
        network,
        perceptual: Some(small_lpips(kind)),
        discriminator: Some(discriminator),
        weights: TermWeights { reduction: Reduction::Mean, mse: 0.5, perceptual: 1., kl: 1e-2 },
        adversary: Discriminator { batch_norm: Statistics::Train, ..Default::default() },
    };
    let outputs = move |inputs: &[Tensor]| {
        let terms = objective.autoencoder_loss(&inputs[0], &inputs[1], Some(1.)).unwrap();
        vec![terms.total.view([1])]
    };
    let inputs = image_and_noise(kind, size);
    Network::new(format!("autoencoder's whole loss {size:?}"), &[&vs, &judge_vs], inputs, plainly(outputs))
}
