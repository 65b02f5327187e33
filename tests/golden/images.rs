//! Resampling compared with Pillow, torchvision and the processors of published checkpoints.

use super::{
    Case,
    tolerance::{F32, share},
};
use image::{GrayImage, RgbImage};
use tch::{Kind, Tensor};
use vlmdiff::vision::{
    decode,
    resize::{self, Filter},
};

/// Converts u8 [H, W, 3] to an image.
pub(super) fn rgb(x: &Tensor) -> RgbImage {
    let (height, width, _) = x.size3().unwrap();
    RgbImage::from_raw(width as u32, height as u32, Vec::try_from(x.flatten(0, -1)).unwrap()).unwrap()
}

/// Converts u8 [H, W] to an image.
fn grey(x: &Tensor) -> GrayImage {
    let (height, width) = x.size2().unwrap();
    GrayImage::from_raw(width as u32, height as u32, Vec::try_from(x.flatten(0, -1)).unwrap()).unwrap()
}

/// Converts an image to u8 [H, W, 3].
pub(super) fn of_rgb(image: &RgbImage) -> Tensor {
    Tensor::from_slice(image.as_raw()).view([i64::from(image.height()), i64::from(image.width()), 3])
}

/// Converts an image to u8 [H, W].
fn of_grey(image: &GrayImage) -> Tensor {
    Tensor::from_slice(image.as_raw()).view([i64::from(image.height()), i64::from(image.width())])
}

/// Converts an image to f32 [3, H, W] with values 0 to 255.
fn channels(image: &RgbImage) -> Tensor {
    of_rgb(image).to_kind(Kind::Float).permute([2, 0, 1]).contiguous()
}

const CLIP: ([f64; 3], [f64; 3]) =
    ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_58, 0.275_777_11]);
pub(super) const IMAGENET: ([f64; 3], [f64; 3]) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);

/// Converts an image to f32 [3, H, W], normalised.
pub(super) fn pixel_values(image: &RgbImage, (mean, std): ([f64; 3], [f64; 3])) -> Tensor {
    let of = |values: [f64; 3]| Tensor::from_slice(&values).view([3, 1, 1]);
    ((channels(image).to_kind(Kind::Double) / 255. - of(mean)) / of(std)).to_kind(Kind::Float)
}

/// The tolerance of normalised pixels: pixels over 255, less a mean, over a deviation of at least 0.224. The three
/// roundings of numbers up to 1 are divided by it, and the largest values are above 2, so that 3 · 2⁻²⁴ / 0.224 is at
/// most four roundings of 2⁻²⁴ · 2 of the largest.
pub(super) const NORMALISED: f64 = 8. * F32;

/// The tolerance of a resampled pixel, a sum of up to 32 others along each axis, with weights that are rounded like it.
const RESAMPLED: f64 = 64. * F32;

const FILTERS: [(&str, Filter); 5] = [
    ("bilinear", Filter::Bilinear),
    ("bicubic", Filter::Bicubic),
    ("lanczos", Filter::Lanczos),
    ("box", Filter::Box),
    ("nearest", Filter::Nearest),
];

pub(super) fn pillow(case: &Case) {
    let inputs = case.tensors("inputs.safetensors");
    let expected = case.tensors("expected.safetensors");
    let exact = |name: &str, got: &Tensor| case.exact(name, got);
    for name in inputs.names().filter(|name| name.starts_with("img")) {
        let image = rgb(&inputs.get(name));
        let Some(size) = expected.find(&format!("{name}.bilinear")).map(|x| x.size()) else {
            case.absent(name);
            continue;
        };
        let (width, height) = (size[1] as u32, size[0] as u32);
        for (filter_name, filter) in FILTERS {
            exact(&format!("{name}.{filter_name}"), &of_rgb(&resize::rgb(&image, width, height, filter)));
        }
        let mut luma = GrayImage::new(image.width(), image.height());
        luma.iter_mut().zip(image.pixels()).for_each(|(out, pixel)| *out = decode::grey(pixel.0));
        exact(&format!("{name}.L"), &of_grey(&luma));
        exact(&format!("{name}.L.bicubic"), &of_grey(&resize::grey(&luma, width, height, Filter::Bicubic)));
        let floats = |values: &[u8], scale: f32| -> Vec<f32> { values.iter().map(|v| f32::from(*v) / scale).collect() };
        let resized = |values: &[f32], filter| {
            let out = resize::float(values, image.dimensions(), (width, height), filter);
            Tensor::from_slice(&out).view([i64::from(height), i64::from(width)])
        };
        let smooth = |name: &str, got: &Tensor| case.expect(name, got, |want| share(want, RESAMPLED));
        smooth(&format!("{name}.F.bilinear"), &resized(&floats(luma.as_raw(), 255.), Filter::Bilinear));
        // torch's antialiasing is that of Pillow without rounding
        for (filter_name, filter) in &FILTERS[..2] {
            let torch = format!("{name}.torch_{filter_name}_aa");
            if expected.find(&torch).is_some() {
                let planes: Vec<Vec<f32>> =
                    (0..3).map(|c| floats(&image.iter().skip(c).step_by(3).copied().collect::<Vec<_>>(), 1.)).collect();
                let planes: Vec<Tensor> = planes.iter().map(|plane| resized(plane, *filter)).collect();
                smooth(&torch, &Tensor::stack(&planes, 0));
            }
        }
        let torch = format!("{name}.torch_bilinear");
        if expected.find(&torch).is_some() {
            let x = channels(&image).unsqueeze(0);
            let x = x.upsample_bilinear2d([i64::from(height), i64::from(width)], false, None, None);
            smooth(&torch, &x.squeeze_dim(0));
        }
    }
    let photo = rgb(&inputs.get("photo"));
    let middle = |edge| resize::center_crop(&resize::shortest_edge(&photo, edge, Filter::Bicubic), 224, 224);
    for (name, image, normal) in [
        ("clip", middle(224), CLIP),
        ("dino", resize::rgb(&photo, 224, 224, Filter::Bilinear), IMAGENET),
        ("dinov2", middle(256), IMAGENET),
        ("blip2", resize::rgb(&photo, 224, 224, Filter::Bicubic), CLIP),
    ] {
        let values = pixel_values(&image, normal);
        let some = values.slice(1, None, None, 9).slice(2, None, None, 9);
        case.expect(&format!("{name}.pixel_values[:, ::9, ::9]"), &some, |want| share(want, NORMALISED));
        let all = format!("{name}.mean_std");
        if expected.find(&all).is_some() {
            let plane = [1, 2].as_slice();
            let got = [values.mean_dim(plane, false, None), values.std_dim(plane, true, false)];
            case.close(&all, &Tensor::stack(&got, 0), 1.);
        }
    }
}

/// Compares the authors' images, and their masks with those by ADer's rule.
pub(super) fn transforms(case: &Case) {
    let file = case.tensors("transforms.safetensors");
    let exact = |name: &str, got: &Tensor| case.within(name, got, |_| Tensor::from(0_f64));
    for name in file.names().filter_map(|name| name.strip_suffix(".rgb")) {
        let image = rgb(&file.get(&format!("{name}.rgb")));
        let (_, height, width) = file.get(&format!("{name}.jpg")).size3().unwrap();
        let (width, height) = (width as u32, height as u32);
        let resized = resize::rgb(&image, width, height, Filter::Bilinear);
        exact(&format!("{name}.resized_u8"), &of_rgb(&resized));
        case.near(&format!("{name}.jpg"), &pixel_values(&resized, IMAGENET), NORMALISED);
        for mask in ["mask255", "mask1"] {
            let (raw, out) = (format!("{name}.{mask}"), format!("{name}.{mask}_out"));
            let Some(raw) = file.find(&raw) else { continue };
            let grey = resize::grey(&grey(&raw), width, height, Filter::Bilinear);
            exact(&out, &(of_grey(&grey).unsqueeze(0).to_kind(Kind::Float) / 255.));
        }
        // ADer binarises first, so that both masks are the same, and then takes the values above one half
        let any = |mask: &str| grey(&(file.get(&format!("{name}.{mask}")).gt(0).to_kind(Kind::Uint8) * 255));
        let majority = resize::mask(&any("mask255"), width, height);
        let half = file.get(&format!("{name}.mask255_out")).squeeze_dim(0).gt(0.5).to_kind(Kind::Uint8) * 255;
        case.equal(&format!("{name} exact mask"), &of_grey(&majority).equal(&half), &true);
        case.equal(&format!("{name} exact masks agree"), &resize::mask(&any("mask1"), width, height), &majority);
    }
}
