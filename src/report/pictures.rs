//! Pictures of a page: small, as `data:` URIs.

use std::collections::{BTreeMap, HashMap};

use arrow::datatypes::{Float16Type, UInt8Type};
use base64::{Engine, engine::general_purpose::STANDARD};
use half::f16;
use image::{
    GrayImage, ImageEncoder, Rgb, RgbImage, RgbaImage,
    codecs::{jpeg::JpegEncoder, png::PngEncoder},
};
use rayon::prelude::*;

use super::data::{Source, TestImage, shape, tensor};
use crate::{
    engine::{Error, Result, store::Manifest},
    vision::{colormap, resize},
};

/// The longest side of a picture on the page.
const LARGEST: u32 = 256;
/// Indistinguishable at the size shown, a fifth of the bytes of PNG.
const JPEG_QUALITY: u8 = 90;
/// The mean and standard deviation of ImageNet's colours, by which reconstructions are stored normalised.
const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const STD: [f32; 3] = [0.229, 0.224, 0.225];
/// Above this share of a class's map values all have the brightest colour: else one extreme pixel would darken all others.
const BRIGHTEST: f64 = 0.998;
const OUTLINE: Rgb<u8> = Rgb([64, 255, 120]);

/// What is known of where an image is anomalous.
#[derive(Debug, PartialEq)]
pub(super) enum GroundTruth {
    /// Not known.
    Unknown,
    /// Nowhere.
    Empty,
    /// The contour of the anomalous places on a transparent ground, as URI.
    Outline(String),
}

/// The pictures of one test image, as URIs.
#[derive(Debug)]
pub(super) struct Pictures {
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// The image.
    pub input: String,
    /// Where it is anomalous.
    pub ground_truth: GroundTruth,
    /// Its reconstruction.
    pub reconstruction: Option<String>,
    /// Its anomaly map in colours.
    pub heat: Option<String>,
}

/// The map values of the darkest and of the brightest colour.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Scale {
    /// Nearly black.
    pub lo: f32,
    /// Pale yellow.
    pub hi: f32,
}

/// The tables that hold pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tables<'a> {
    /// From `ingest`.
    pub images: &'a Manifest,
    /// From `reconstruct`.
    pub reconstructions: Option<&'a Manifest>,
    /// From `anomaly_maps`.
    pub maps: Option<&'a Manifest>,
}

/// The pictures of the chosen images by id, and each class's scale. No other image's pixels are kept.
pub(super) fn pictures(
    source: &Source,
    tables: Tables<'_>,
    chosen: &[&TestImage],
) -> Result<(HashMap<String, Pictures>, BTreeMap<String, Scale>)> {
    let ids = || chosen.iter().map(|image| image.id.as_str());
    let maps = match tables.maps {
        Some(table) => {
            let [height, width] = shape(table, "map")?;
            halves(source, table, "map", [1, height, width], ids())?
        }
        None => HashMap::new(),
    };
    let mut by_class: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
    for image in chosen {
        by_class
            .entry(&image.class)
            .or_default()
            .extend(maps.get(&image.id).iter().flat_map(|map| map.values.iter().map(|v| v.to_f32())));
    }
    let scales: BTreeMap<String, Scale> =
        by_class.into_iter().filter_map(|(class, values)| Some((class.to_owned(), scale(values)?))).collect();
    let reconstructions = match tables.reconstructions {
        Some(table) => {
            let [_, height, width] = shape(table, "pixels")?;
            halves(source, table, "pixels", [3, height, width], ids())?
        }
        None => HashMap::new(),
    };
    let [height, width, _] = shape(tables.images, "pixels")?.map(|side: usize| side as u32);
    let mut raw: Vec<(String, RgbImage, Option<GrayImage>)> = Vec::new();
    source.for_rows(tables.images, &["pixels", "mask"], ids(), |id, columns, row| {
        let pixels =
            tensor::<UInt8Type>(&columns[0], row)?.and_then(|pixels| RgbImage::from_raw(width, height, pixels));
        let mask = tensor::<UInt8Type>(&columns[1], row)?.and_then(|mask| GrayImage::from_raw(width, height, mask));
        raw.push((id.to_owned(), pixels.ok_or_else(|| missized(id, "pixels"))?, mask));
        Ok(())
    })?;
    let class: HashMap<&str, &str> = chosen.iter().map(|image| (image.id.as_str(), image.class.as_str())).collect();
    let size = shown(width, height);
    let pictures = raw.into_par_iter().map(|(id, image, mask)| {
        let scale = class.get(id.as_str()).and_then(|class| scales.get(*class));
        let heat = |map: &Halves, scale: &Scale| {
            let values: Vec<f32> = map.values.iter().map(|value| value.to_f32()).collect();
            jpeg(&colormap::heatmap(&values, map.width, map.height, scale.lo, scale.hi), size)
        };
        let pictures = Pictures {
            size,
            input: jpeg(&image, size)?,
            ground_truth: mask.map_or(Ok(GroundTruth::Unknown), |mask| outline(&mask, size))?,
            reconstruction: reconstructions
                .get(&id)
                .map(|r| jpeg(&photograph(&r.values, r.width, r.height), size))
                .transpose()?,
            heat: maps.get(&id).zip(scale).map(|(map, scale)| heat(map, scale)).transpose()?,
        };
        Ok((id, pictures))
    });
    Ok((pictures.collect::<Result<_>>()?, scales))
}

/// A tensor whose last dimensions are height and width.
struct Halves {
    values: Vec<f16>,
    width: u32,
    height: u32,
}

fn halves<'a>(
    source: &Source,
    table: &Manifest,
    name: &str,
    [channels, height, width]: [usize; 3],
    ids: impl Iterator<Item = &'a str>,
) -> Result<HashMap<String, Halves>> {
    let mut found = HashMap::new();
    source.for_rows(table, &[name], ids, |id, columns, row| {
        let values =
            tensor::<Float16Type>(&columns[0], row)?.filter(|values| values.len() == channels * height * width);
        let values = values.ok_or_else(|| missized(id, name))?;
        found.insert(id.to_owned(), Halves { values, width: width as u32, height: height as u32 });
        Ok(())
    })?;
    Ok(found)
}

fn missized(id: &str, name: &str) -> Error {
    Error::Damaged(format!("{id}: `{name}` is absent or does not have the size that its table declares"))
}

/// The size on the page: as stored, or smaller in both directions.
fn shown(width: u32, height: u32) -> (u32, u32) {
    let longest = width.max(height).max(LARGEST);
    let side = |side: u32| (side * LARGEST / longest).max(1);
    if longest == LARGEST { (width, height) } else { (side(width), side(height)) }
}

/// From the lowest to nearly the highest of all finite values; `None` where there are none.
fn scale(mut values: Vec<f32>) -> Option<Scale> {
    values.retain(|value| value.is_finite());
    let last = values.len().checked_sub(1)?;
    let mut at = |share: f64| *values.select_nth_unstable_by((share * last as f64).round() as usize, f32::total_cmp).1;
    let (lo, hi) = (at(0.), at(BRIGHTEST));
    Some(Scale { lo, hi: if hi > lo { hi } else { lo + 1. } })
}

/// `[3, H, W]`, normalised, as a picture.
fn photograph(values: &[f16], width: u32, height: u32) -> RgbImage {
    let plane = (width * height) as usize;
    RgbImage::from_fn(width, height, |x, y| {
        let at = (y * width + x) as usize;
        Rgb(std::array::from_fn(|c| ((values[c * plane + at].to_f32() * STD[c] + MEAN[c]) * 255.).round() as u8))
    })
}

fn outline(mask: &GrayImage, (width, height): (u32, u32)) -> Result<GroundTruth> {
    let mask = resize::mask(mask, width, height);
    if mask.iter().all(|value| *value == 0) {
        return Ok(GroundTruth::Empty);
    }
    let drawn = colormap::outline(&RgbImage::new(width, height), &mask, OUTLINE);
    let clear = RgbaImage::from_fn(width, height, |x, y| match *drawn.get_pixel(x, y) {
        OUTLINE => image::Rgba([OUTLINE.0[0], OUTLINE.0[1], OUTLINE.0[2], 255]),
        _ => image::Rgba([0; 4]),
    });
    let mut bytes = Vec::new();
    PngEncoder::new(&mut bytes)
        .write_image(&clear, width, height, image::ExtendedColorType::Rgba8)
        .map_err(encoding)?;
    Ok(GroundTruth::Outline(uri("image/png", &bytes)))
}

fn jpeg(image: &RgbImage, (width, height): (u32, u32)) -> Result<String> {
    let image = resize::rgb(image, width, height, resize::Filter::Bilinear);
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, JPEG_QUALITY).encode_image(&image).map_err(encoding)?;
    Ok(uri("image/jpeg", &bytes))
}

fn uri(kind: &str, bytes: &[u8]) -> String {
    format!("data:{kind};base64,{}", STANDARD.encode(bytes))
}

fn encoding(error: image::ImageError) -> Error {
    Error::Stage(format!("a picture of the report: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::Luma;

    #[test]
    fn a_reconstruction_is_denormalised_and_clamped() {
        let grey = |c: usize| f16::from_f32((128. / 255. - MEAN[c]) / STD[c]);
        // Two pixels: grey, and beyond both ends of the range.
        let values = [grey(0), f16::from_f32(9.), grey(1), f16::from_f32(-9.), grey(2), f16::NAN];
        let image = photograph(&values, 2, 1);
        assert_eq!(image.get_pixel(0, 0).0, [128; 3]);
        assert_eq!(image.get_pixel(1, 0).0, [255, 0, 0]);
    }

    #[test]
    fn one_extreme_value_does_not_set_the_scale() {
        let mut values: Vec<f32> = (0..10_000).map(|i| i as f32 / 10_000.).collect();
        values.extend([500., f32::NAN, f32::INFINITY]);
        let Scale { lo, hi } = scale(values).unwrap();
        assert!(lo == 0. && (0.99..1.).contains(&hi), "{lo} {hi}");
        assert_eq!(scale(vec![2.; 5]), Some(Scale { lo: 2., hi: 3. }));
        assert_eq!(scale(vec![f32::NAN]), None);
    }

    #[test]
    fn pictures_are_at_most_256_wide_and_keep_their_shape() {
        assert_eq!(
            [shown(128, 64), shown(256, 256), shown(1024, 512), shown(100, 2000)],
            [(128, 64), (256, 256), (256, 128), (12, 256)]
        );
        let bytes = STANDARD
            .decode(&jpeg(&RgbImage::new(300, 300), (256, 256)).unwrap()["data:image/jpeg;base64,".len()..])
            .unwrap();
        assert_eq!(image::load_from_memory(&bytes).unwrap().to_rgb8().dimensions(), (256, 256));
    }

    #[test]
    fn an_outline_is_clear_inside_and_outside() {
        let mask = GrayImage::from_fn(8, 8, |x, y| Luma([255 * u8::from(x < 4 && y < 4)]));
        let GroundTruth::Outline(uri) = outline(&mask, (8, 8)).unwrap() else { panic!("no outline") };
        let png = STANDARD.decode(&uri["data:image/png;base64,".len()..]).unwrap();
        let png = image::load_from_memory(&png).unwrap().to_rgba8();
        assert_eq!([(0, 0), (1, 1), (3, 2), (6, 6)].map(|(x, y)| png.get_pixel(x, y).0[3]), [255, 0, 255, 0]);
        assert_eq!(outline(&GrayImage::new(8, 8), (8, 8)).unwrap(), GroundTruth::Empty);
    }
}
