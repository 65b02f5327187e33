//! Checks of the gradients of every trained network without a reference implementation.
//!
//! Three properties of a network are checked, at one row and at several, on rectangular images and odd maps, with a
//! loss that hands gradients back in different memory layouts:
//! - Gradients are slopes: in f64, a small step along a direction changes the loss by the product of gradient and step.
//! - The gradients of a batch `[a]` are those of `[a, a]` under a mean loss, although layers take other paths for one
//!   row
//!   than for several.
//! - The gradients in f32 are those in f64 of the same weights, but for rounding.

mod networks;

use std::collections::BTreeMap;
use tch::{Kind, Tensor, no_grad};
use vlmdiff::diffusion::Noise;

use networks::{Network, autoencoder, clip, denoiser, image_tower, lpips, objective, patchgan};

/// The share of its largest value by which a gradient in f32 may differ from that in f64.
///
/// A layer of these networks sums n ≤ 10³ products, and up to L = 60 layers and their backward passes lie between a
/// loss and a parameter. Roundings of 2⁻²⁴ that are independent of each other add up to 2⁻²⁴ · √(n · L) = 1.5e-5 of a
/// sum's terms. Sums over maps before a normalisation, which takes the mean away, cancel by up to a factor of ten: 1.5e-4.
/// The largest of the 10⁵ values that are compared lies four and a half such deviations away.
const ROUNDING: f64 = 4.5 * 1.5e-4;
/// The share by which two ways to compute one gradient in f64 may differ, where a rounding is 2⁻⁵³: 1.5e-4 · 2⁻²⁹, and
/// a reserve of ten.
const SAME: f64 = 3e-12;
/// The step by which slopes are measured. The loss is about 1: its rounding, 2⁻⁵³ · √(n · L) = 3e-14, leaves 3e-8 of a
/// slope. The third derivative, up to 10⁴ if maps are small and normalised, leaves 10⁴ · STEP² / 6 = 2e-9.
const STEP: f64 = 1e-6;
/// The difference that a slope and the slope by the gradient may have: as a share of the gradient's length, and
/// absolute.
const SLOPE: [f64; 2] = [1e-5, 2e-7];

/// The memory layout in which the loss hands back the gradient of a map.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Layout {
    /// Row by row, channel by channel.
    Plain,
    /// The channels of a pixel side by side, as in the maps of these networks.
    ChannelsLast,
    /// Column by column.
    Transposed,
}

const LAYOUTS: [Layout; 3] = [Layout::Plain, Layout::ChannelsLast, Layout::Transposed];

impl Layout {
    /// Returns the same values in this layout; a tensor that is no map keeps its own.
    fn of(self, x: &Tensor) -> Tensor {
        match self {
            Self::ChannelsLast if x.dim() == 4 => x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]),
            Self::Transposed if x.dim() == 4 => x.transpose(2, 3).contiguous().transpose(2, 3),
            _ => x.contiguous(),
        }
    }
}

/// Returns standard normal values that are the same on every machine, in any order of tests.
fn random(key: &str, shape: &[i64], kind: Kind) -> Tensor {
    Noise::new(1, key).normal(shape).unwrap().to_kind(kind)
}

/// Returns the mean over the batch of the outputs, each value weighted by a random number that is the same in each row.
fn loss(outputs: &[Tensor], layout: Layout) -> Tensor {
    let weighed = |(i, output): (usize, &Tensor)| {
        let rows = output.size()[0];
        let row = [&[1], &output.size()[1..]].concat();
        let weights = random(&format!("weights of output {i}"), &row, output.kind());
        let weights = weights.repeat([&[rows], vec![1; row.len() - 1].as_slice()].concat());
        // divided by the root of the number of values, the loss is about 1 for maps of any size
        let values = (output.numel() as f64 / rows as f64).sqrt() * rows as f64;
        (output * layout.of(&weights)).sum(output.kind()) / values
    };
    outputs.iter().enumerate().map(weighed).sum()
}

type Gradients = BTreeMap<String, Tensor>;

fn largest(x: &Tensor) -> f64 {
    x.abs().max().double_value(&[])
}

fn length(x: &Tensor) -> f64 {
    x.norm().double_value(&[])
}

/// Compares gradients within a share of the largest value of each. A gradient that is zero but for rounding is compared
/// with the largest of all.
fn compare(what: &str, got: &Gradients, want: &Gradients, tolerance: f64) {
    assert!(got.keys().eq(want.keys()), "{what}: other parameters have gradients");
    let floor = 1e-3 * want.values().map(largest).fold(0., f64::max);
    let wrong = |(name, want): (&String, &Tensor)| {
        let got = got[name].to_kind(Kind::Double);
        let share = largest(&(got - want.to_kind(Kind::Double))) / largest(want).max(floor);
        (!(share <= tolerance)).then(|| format!("{what}: {name} differs by {share:.1e}, {tolerance:.1e} allowed"))
    };
    let wrong: Vec<String> = want.iter().filter_map(wrong).collect();
    assert!(wrong.is_empty(), "{} of {} gradients\n{}", wrong.len(), want.len(), wrong.join("\n"));
}

/// Checks that the gradients of one row are those of the same row twice, in every layout; in f64.
fn one_row_counts_as_much_as_the_same_twice(network: &Network) {
    let plain = network.gradients(1, Layout::Plain);
    for layout in LAYOUTS {
        let [one, two] = [1, 2].map(|times| network.gradients(times, layout));
        compare(&format!("{} {layout:?}, one row beside two", network.name), &one, &two, SAME);
        compare(&format!("{} {layout:?} beside plain", network.name), &one, &plain, SAME);
    }
}

/// Checks, for one parameter after another, that a step along a random direction plus the gradient changes the loss as
/// the gradient predicts; in f64.
fn gradients_are_slopes(network: &Network, times: i64, layout: Layout) {
    let gradients = network.gradients(times, layout);
    let mut told = 0;
    for (name, gradient) in &gradients {
        let length = length(gradient);
        let random = random(&format!("direction of {name}"), &gradient.size(), gradient.kind());
        let direction = &random / self::length(&random) + gradient / length.max(f64::MIN_POSITIVE);
        let mut leaf = network.leaves()[name].shallow_clone();
        let start = leaf.detach().copy();
        let mut loss_at = |step: f64| {
            no_grad(|| leaf.copy_(&(&start + &direction * step)));
            network.loss(times, layout)
        };
        let slope = (loss_at(STEP) - loss_at(-STEP)) / (2. * STEP);
        no_grad(|| leaf.copy_(&start));
        let want = (gradient * &direction).sum(Kind::Double).double_value(&[]);
        let allowed = SLOPE[0] * length + SLOPE[1];
        assert!(
            (slope - want).abs() <= allowed,
            "{} {layout:?}: {name} has the slope {slope:e}, and by its gradient {want:e}",
            network.name
        );
        told += usize::from(length > 1e3 * SLOPE[1]);
    }
    assert!(2 * told > gradients.len(), "{}: most gradients are too small to tell", network.name);
}

/// Checks that the gradients in f32 are those in f64, but for rounding.
fn rounding_is_all_that_f32_adds(build: impl Fn(Kind) -> Network, times: i64) {
    let [single, double] = [Kind::Float, Kind::Double].map(build);
    for layout in [Layout::Plain, Layout::ChannelsLast] {
        let [got, want] = [&single, &double].map(|network| network.gradients(times, layout));
        compare(&format!("{} {layout:?} in f32", single.name), &got, &want, ROUNDING);
    }
}

/// Checks all three properties.
fn check(build: impl Fn(Kind) -> Network) {
    tch::set_num_threads(1);
    let network = build(Kind::Double);
    one_row_counts_as_much_as_the_same_twice(&network);
    gradients_are_slopes(&network, 1, Layout::ChannelsLast);
    for times in [1, 3] {
        rounding_is_all_that_f32_adds(&build, times);
    }
}

#[test]
fn gradients_of_every_control_form_are_right() {
    for (form, fusion, only_mid_control) in
        [("semantic_guided", true, false), ("semantic_guided", true, true), ("controlnet", false, false)]
    {
        for size in [[12, 8], [5, 7]] {
            check(|kind| denoiser(kind, (form, fusion, only_mid_control), size, false));
        }
    }
}

/// Recomputed maps have the gradients of kept maps.
#[test]
fn gradient_checkpointing_keeps_the_gradients_of_one_row() {
    tch::set_num_threads(1);
    for size in [[12, 8], [5, 7]] {
        let [kept, recomputed] = [false, true].map(|recompute| {
            let network = denoiser(Kind::Double, ("semantic_guided", true, false), size, recompute);
            LAYOUTS.map(|layout| network.gradients(1, layout))
        });
        for (layout, (kept, recomputed)) in LAYOUTS.into_iter().zip(kept.iter().zip(&recomputed)) {
            compare(&format!("{layout:?} recomputed"), recomputed, kept, SAME);
        }
    }
}

#[test]
fn gradients_of_the_autoencoder_are_right() {
    for size in [[24, 16], [12, 20]] {
        check(|kind| autoencoder(kind, size));
    }
}

#[test]
fn gradients_of_the_discriminator_are_right() {
    for train in [true, false] {
        for size in [[24, 32], [29, 27]] {
            check(|kind| patchgan(kind, size, train));
        }
    }
}

#[test]
fn gradients_of_the_perceptual_distance_are_right() {
    for size in [[16, 24], [19, 17]] {
        check(|kind| lpips(kind, size));
    }
}

#[test]
fn gradients_of_both_text_transformers_are_right() {
    for activation in ["quick_gelu", "gelu"] {
        check(|kind| clip(kind, activation));
    }
}

#[test]
fn gradients_of_the_image_tower_are_right() {
    for size in [[24, 16], [17, 9]] {
        check(|kind| image_tower(kind, size));
    }
}

/// The weight that balances the adversarial loss has no gradient, so the gradient of the whole loss is not its slope.
#[test]
fn gradients_of_the_autoencoder_under_its_whole_loss_are_right() {
    tch::set_num_threads(1);
    for size in [[32, 24], [28, 36]] {
        one_row_counts_as_much_as_the_same_twice(&objective(Kind::Double, size));
        rounding_is_all_that_f32_adds(|kind| objective(kind, size), 1);
    }
}
