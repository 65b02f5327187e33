//! Times networks beside their Python implementations: with the same libtorch, threads, weights and inputs, in turns.
//!
//! `cargo bench --profile dev --bench networks -- unet vae-decode`; without names, all. Each side is a process of its
//! own that runs once per request. The first round is not counted.

use std::{
    error::Error,
    fs,
    io::{BufRead, BufReader, Write},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Instant,
};

use clap::Parser;
use serde::{Deserialize, de::DeserializeOwned};
use tch::{
    Device, Kind, TchError, Tensor,
    nn::{self, VarStore},
};
use vlmdiff::{
    diffusion::{guidance::Guidance, sampler::DdimConfig, schedule::ScheduleConfig},
    models::{
        checkpoint::{Checkpoint, CheckpointError},
        clip::{ClipTextConfig, ClipTextModel},
        control::ControlNetConfig,
        denoiser::Denoiser,
        initialisation::skip_init,
        nn::ConfigError,
        resnet::ResNet,
        unet::{UNet2DConditionConfig, UNet2DConditionModel},
        vae::{AutoencoderKl, AutoencoderKlConfig},
        vit::VisionTransformer,
    },
    stages::train_denoiser::{DenoisingObjective, Trainable},
    training::{
        Trainer,
        optim::{Optimizer, OptimizerConfig, train_only},
        step,
    },
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;
/// Runs a network once.
type Work = Box<dyn FnMut() -> Tensor>;
/// Seconds of a run: by the clock, and of the processor.
type Times = [f64; 2];

/// The name, the description, and the function that opens our network from the files that the Python side wrote. A new
/// network is a line here and a function in networks.py.
const CASES: &[(&str, &str, fn(&Case) -> Result<Work>)] = &[
    ("clip-text", "CLIP ViT-L/14 text, 16 captions", clip_text),
    ("vae-encode", "AutoencoderKL encode, 256x256", vae_encode),
    ("vae-decode", "AutoencoderKL decode, 256x256", vae_decode),
    ("dino-vits8", "DINO ViT-S/8, 256x256", dino),
    ("dino-vits8-batch4", "DINO ViT-S/8, 4 of 256x256", dino),
    ("resnet50", "ResNet-50 to layer3, 4 of 256x256", resnet50),
    ("unet", "SD 1.5 U-Net, 32x32 latent", unet),
    ("unet-batch4", "SD 1.5 U-Net, 4 latents of 32x32", unet),
    ("reconstruction", "Reconstruction of 32 images of 128x128, 32 channels", reconstruction),
    ("training-step", "Training step of the denoiser, 32 channels, 2 images of 128x128", training_step),
    ("training-step-mid", "Training step of the denoiser, 128 channels, 2 images of 256x256", training_step),
];

/// The largest difference of outputs, relative to the largest output.
const TOLERANCE: f64 = 1e-4;

#[derive(Parser)]
struct Arguments {
    /// The networks, by name; none for all.
    names: Vec<String>,
    /// Rounds that are counted.
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Threads of either side.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Runs one side of a network, opened from a folder, as networks.py runs the other.
    #[arg(long, hide = true)]
    serve: Option<PathBuf>,
    /// The option that `cargo bench` passes to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

/// A folder with the weights, the inputs and the outputs of a network.
struct Case(PathBuf);

impl Case {
    fn config<T: DeserializeOwned>(&self) -> Result<T> {
        Ok(serde_json::from_slice(&fs::read(self.0.join("config.json"))?)?)
    }

    fn input(&self, name: &str) -> Result<Tensor> {
        Ok(Checkpoint::open(self.0.join("inputs.safetensors"))?.tensor(name)?)
    }

    fn filled<N>(
        &self,
        canonical: impl FnOnce(Checkpoint) -> std::result::Result<Checkpoint, CheckpointError>,
        build: impl FnOnce(nn::Path<'_>) -> std::result::Result<N, ConfigError>,
    ) -> Result<N> {
        let vs = VarStore::new(Device::Cpu);
        let network = skip_init(|| build(vs.root()))?;
        canonical(Checkpoint::open(self.0.join("weights.safetensors"))?)?.load_into(&vs)?;
        Ok(network)
    }
}

fn without_gradients(work: impl Fn() -> Tensor + 'static) -> Work {
    Box::new(move || tch::no_grad(&work))
}

fn clip_text(case: &Case) -> Result<Work> {
    let config: ClipTextConfig = case.config()?;
    let model = case.filled(|file| Ok(config.canonical(file)), |vs| ClipTextModel::new(vs, &config))?;
    let ids = case.input("input_ids")?;
    Ok(without_gradients(move || model.forward(&ids).last_hidden_state))
}

fn autoencoder(case: &Case) -> Result<AutoencoderKl> {
    let config: AutoencoderKlConfig = case.config()?;
    case.filled(|file| config.canonical(file), |vs| AutoencoderKl::new(vs, &config))
}

fn vae_encode(case: &Case) -> Result<Work> {
    let (vae, image) = (autoencoder(case)?, case.input("image")?);
    Ok(without_gradients(move || vae.encode(&image).mean))
}

fn vae_decode(case: &Case) -> Result<Work> {
    let (vae, z) = (autoencoder(case)?, case.input("z")?);
    Ok(without_gradients(move || vae.decode(&z)))
}

fn dino(case: &Case) -> Result<Work> {
    let model = VisionTransformer::open(case.0.join("weights.safetensors"), Device::Cpu)?;
    let x = case.input("x")?;
    Ok(without_gradients(move || model.forward(&x)))
}

fn resnet50(case: &Case) -> Result<Work> {
    let model = ResNet::open(case.0.join("weights.safetensors"), Device::Cpu)?;
    let x = case.input("x")?;
    Ok(without_gradients(move || model.forward_features(&x, 3).remove(2)))
}

fn unet(case: &Case) -> Result<Work> {
    let config: UNet2DConditionConfig = case.config()?;
    let model = case.filled(|file| config.canonical(file), |vs| UNet2DConditionModel::new(vs, &config))?;
    let [x, t, context] = [case.input("x")?, case.input("t")?, case.input("context")?];
    Ok(without_gradients(move || model.forward(&x, &t, &context, None)))
}

/// The configuration of a denoiser as networks.py writes it.
#[derive(Deserialize)]
struct Shape {
    unet: UNet2DConditionConfig,
    conditioning_embedding_out_channels: Vec<i64>,
}

impl Shape {
    fn config(self) -> ControlNetConfig {
        let Self { unet, conditioning_embedding_out_channels } = self;
        ControlNetConfig { unet, conditioning_embedding_out_channels, ..Default::default() }
    }
}

/// Reconstructs a folder of images as the stages do: in batches, decoded once, guided only if a caption differs from
/// the empty one.
fn reconstruction(case: &Case) -> Result<Work> {
    #[derive(Deserialize)]
    struct Shapes {
        vae: AutoencoderKlConfig,
        #[serde(flatten)]
        denoiser: Shape,
    }
    let Shapes { vae: vae_config, denoiser } = case.config()?;
    let config = denoiser.config();
    let vs = VarStore::new(Device::Cpu);
    let denoiser = skip_init(|| Denoiser::new(vs.root(), &config))?;
    let vae = skip_init(|| AutoencoderKl::new(vs.root() / "vae", &vae_config))?;
    Checkpoint::open(case.0.join("weights.safetensors"))?.load_into(&vs)?;
    let [images, posterior, noise] = [case.input("images")?, case.input("posterior")?, case.input("noise")?];
    let unconditional = case.input("context")?;
    let sampler = DdimConfig::default().build(&ScheduleConfig::default().build()?)?;
    let scale = vae_config.scaling_factor;
    let reconstructed = move |rows: (&Tensor, &Tensor, &Tensor)| {
        let (images, posterior, noise) = rows;
        let z = vae.encode(images).sample(posterior) * scale;
        let context = unconditional.f_expand([images.size()[0], -1, -1], true)?;
        let guidance = Guidance::new(&context, &unconditional, 9.)?;
        let hint = denoiser.hint(images).map(|hint| guidance.extend(&hint)).transpose()?;
        let model = |x: &Tensor, t: i64| {
            guidance.predict(x, |x, contexts| {
                let t = Tensor::f_full([x.size()[0]], t, (Kind::Int64, Device::Cpu))?;
                Ok(denoiser.forward(x, &t, contexts, hint.as_ref()))
            })
        };
        let latent = sampler.sample(sampler.start(&z, noise), model, |_| unreachable!("eta is 0"))? / scale;
        Ok::<_, TchError>(vae.decode(&latent))
    };
    Ok(without_gradients(move || {
        let [images, posterior, noise] = [&images, &posterior, &noise].map(|rows| rows.split(16, 0));
        let batches = images.iter().zip(&posterior).zip(&noise);
        let pictures: Vec<_> = batches.map(|((a, b), c)| reconstructed((a, b, c)).expect("reconstructions")).collect();
        Tensor::cat(&pictures, 0)
    }))
}

/// Takes a step as the stage does: gradients of the control branch and of the way up, and AdamW.
fn training_step(case: &Case) -> Result<Work> {
    #[derive(Deserialize)]
    struct Training {
        lr: f64,
        #[serde(flatten)]
        denoiser: Shape,
    }
    let Training { lr, denoiser } = case.config()?;
    let config = denoiser.config();
    let vs = VarStore::new(Device::Cpu);
    let objective = DenoisingObjective {
        denoiser: skip_init(|| Denoiser::new(vs.root(), &config))?,
        schedule: ScheduleConfig::default().build()?,
        min_snr_gamma: None,
        kind: Kind::Float,
        gradient_checkpointing: false,
    };
    Checkpoint::open(case.0.join("weights.safetensors"))?.load_into(&vs)?;
    let parameters = train_only(&vs, |name| Trainable::ControlAndDecoder.trains(name));
    let optimizer = Optimizer::new(parameters, OptimizerConfig { lr, ..Default::default() });
    let mut trainer = [Trainer { optimizer, max_grad_norm: f64::INFINITY, ema: None }];
    let [z, noise, t] = [case.input("z")?, case.input("noise")?, case.input("t")?];
    let [context, images] = [case.input("context")?, case.input("images")?];
    Ok(Box::new(move || {
        let mut value = Tensor::new();
        let loss = |_, _| {
            let loss = objective.loss(&z, &noise, &t, &context, Some(&images));
            value = loss.value.detach();
            Ok::<_, TchError>(loss)
        };
        step(&mut trainer, 1, 1, loss).expect("a training step");
        value
    }))
}

/// The process of one side, which waits for requests.
struct Side {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Side {
    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (input, output) = (child.stdin.take().ok_or("no input")?, child.stdout.take().ok_or("no output")?);
        let mut side = Self { child, input, output: BufReader::new(output) };
        side.line()?;
        Ok(side)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        match self.output.read_line(&mut line)? {
            0 => Err("a side ended before it was done".into()),
            _ => Ok(line.trim().to_owned()),
        }
    }

    /// Requests one run; returns its seconds by the clock and of the processor.
    fn run(&mut self) -> Result<Times> {
        self.input.write_all(b"\n")?;
        let line = self.line()?;
        let (wall, cpu) = line.split_once(' ').ok_or("a side answered with something else than two numbers")?;
        Ok([wall.parse()?, cpu.parse()?])
    }

    /// Ends the process; returns its peak of memory in MiB.
    fn end(mut self) -> Result<f64> {
        drop(self.input);
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        self.child.wait()?;
        Ok(line.trim().parse()?)
    }
}

/// Serves our side with the protocol of networks.py.
fn serve(name: &str, folder: &Path, threads: usize) -> Result<()> {
    tch::set_num_threads(threads as i32);
    let (_, _, open) = find(name)?;
    let mut work = open(&Case(folder.to_owned()))?;
    let output = work().detach();
    let expected = Checkpoint::open(folder.join("expected.safetensors"))?.tensor("output")?;
    let largest = |x: &Tensor| x.to_kind(Kind::Double).abs().max().double_value(&[]);
    let difference = largest(&(output - &expected)) / largest(&expected);
    if !(difference <= TOLERANCE) {
        return Err(format!("{name}: outputs differ by {difference:.1e} of the largest").into());
    }
    println!("ready");
    for _ in std::io::stdin().lines() {
        let (started, cpu) = (Instant::now(), processor_time()?);
        let output = work();
        let (wall, cpu) = (started.elapsed().as_secs_f64(), processor_time()? - cpu);
        drop(output);
        println!("{wall} {cpu}");
    }
    let status = fs::read_to_string("/proc/self/status")?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
    println!("{}", peak.unwrap_or(0) / 1024);
    Ok(())
}

/// Returns the seconds that the processor worked for this process, in ticks of 10 ms.
fn processor_time() -> Result<f64> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit_once(')').ok_or("/proc/self/stat has no name")?.1.split_whitespace();
    let ticks = fields.skip(11).take(2).map(str::parse::<f64>).sum::<std::result::Result<f64, _>>()?;
    Ok(ticks / 100.)
}

fn find(name: &str) -> Result<&'static (&'static str, &'static str, fn(&Case) -> Result<Work>)> {
    let names = || CASES.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(", ");
    CASES
        .iter()
        .find(|(known, ..)| *known == name)
        .ok_or_else(|| format!("no network {name}; there are {}", names()).into())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn compare(name: &str, about: &str, arguments: &Arguments) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("benches");
    let environments = std::env::var_os("PYROOT").map_or_else(|| root.join(".venvs"), PathBuf::from);
    let threads = arguments.threads.to_string();
    let mut python = Command::new(environments.join("networks/bin/python"));
    python.arg(root.join("networks.py")).arg(name).arg(folder.path()).arg(&threads);
    let mut theirs = Side::start(&mut python)?;
    let mut own = Command::new(std::env::current_exe()?);
    own.arg(name).arg("--serve").arg(folder.path()).args(["--threads", &threads]);
    let mut ours = Side::start(&mut own)?;
    let mut rounds = Vec::new();
    for round in 0..=arguments.rounds {
        rounds.push(if round % 2 == 0 {
            (ours.run()?, theirs.run()?)
        } else {
            let theirs = theirs.run()?;
            (ours.run()?, theirs)
        });
    }
    rounds.remove(0);
    // ours, theirs, the ratio: first of the clock, then of the processor
    let of = |f: &dyn Fn(&(Times, Times)) -> f64| median(rounds.iter().map(f).collect());
    let [wall, cpu] = [0, 1].map(|i| (of(&|r| r.0[i]), of(&|r| r.1[i]), of(&|r| r.0[i] / r.1[i])));
    let (ours, theirs) = (ours.end()?, theirs.end()?);
    print!("| {about} | {:.3} s | {:.3} s | **{:.2}** | {:.2} |", wall.0, wall.1, wall.2, cpu.2);
    println!(" {ours:.0} MiB | {theirs:.0} MiB |");
    Ok(())
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let Some(folder) = &arguments.serve {
        return serve(&arguments.names[0], folder, arguments.threads);
    }
    let chosen = match arguments.names.as_slice() {
        [] => CASES.iter().collect(),
        names => names.iter().map(|name| find(name)).collect::<Result<Vec<_>>>()?,
    };
    // peers.py says what is missing, and what installs it.
    let peers = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peers.py");
    let asked = Command::new("python3").args([peers, "networks"]).status();
    if !asked.map_err(|error| format!("python3 does not start: {error}"))?.success() {
        println!("Not measured: the libraries that write the weights and inputs of both sides are not installed.");
        return Ok(());
    }
    println!(
        "| network, {} threads | vlmdiff | Python | ratio | of processor time | vlmdiff, memory | Python, memory |",
        arguments.threads
    );
    println!("| --- | --- | --- | --- | --- | --- | --- |");
    chosen.into_iter().try_for_each(|(name, about, _)| compare(name, about, &arguments))
}
