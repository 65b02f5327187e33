//! Pictures of a page: small, as `data:` URIs.

use std::collections::{BTreeMap, HashMap};

use arrow::datatypes::UInt8Type;
use base64::{Engine, engine::general_purpose::STANDARD};
use image::{
    GrayImage, ImageEncoder, Rgb, RgbImage, RgbaImage,
    codecs::{jpeg::JpegEncoder, png::PngEncoder},
};
use rayon::prelude::*;

use super::{
    data::{Source, TestImage},
    drawing::{OUTLINE, Scale},
};
use crate::{
    engine::{Error, Result, store::Manifest},
    tables::{
        anomaly_maps::{self, MAP},
        images::{self, MASK},
        reconstructions::{self, AUTOENCODED, PIXELS as RECONSTRUCTED},
        tensor::{float_row, tensor_row},
    },
    vision::{colormap, imagenet, resize},
};

/// The longest side of a picture on the page.
const LARGEST: u32 = 256;
/// The longest side of a small picture.
const THUMBNAIL: u32 = 96;
/// The quality of JPEGs. At the size shown they cannot be distinguished from PNGs, of whose bytes they have a fifth.
const JPEG_QUALITY: u8 = 90;
/// The share of a class's map values that lie below the brightest colour. With all of them, one extreme pixel would
/// darken all others.
const BRIGHTEST: f64 = 0.998;

/// The ground truth of an image: the places where it is anomalous.
#[derive(Debug, PartialEq)]
pub(super) enum GroundTruth {
    /// The places are not known.
    Unknown,
    /// There are none.
    Empty,
    /// Their contour on a transparent ground, as URI.
    Outline(String),
}

/// The pictures of one test image, as URIs.
#[derive(Debug)]
pub(super) struct Pictures {
    /// Width and height in pixels.
    pub size: (u32, u32),
    /// The image.
    pub input: String,
    /// Its ground truth.
    pub ground_truth: GroundTruth,
    /// The input after the autoencoder alone.
    pub autoencoded: Option<String>,
    /// Its reconstruction.
    pub reconstruction: Option<String>,
    /// Its anomaly map in colours.
    pub heat: Option<String>,
}

/// The tables that hold pixels.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tables<'a> {
    /// The images.
    pub images: &'a Manifest,
    /// Their reconstructions.
    pub reconstructions: Option<&'a Manifest>,
    /// True if the reconstructions have the images after the autoencoder alone, which are shown.
    pub autoencoded: bool,
    /// Their anomaly maps.
    pub maps: Option<&'a Manifest>,
}

/// Makes the pictures of the chosen images, by id, and the scale of each class. Pixels of other images are not kept in
/// memory.
pub(super) fn pictures(
    source: &Source,
    tables: Tables<'_>,
    chosen: &[&TestImage],
) -> Result<(HashMap<String, Pictures>, BTreeMap<String, Scale>)> {
    let ids = || chosen.iter().map(|image| image.id.as_str());
    let maps = tables.maps.map_or(Ok(HashMap::new()), |table| maps(source, table, ids()))?;
    let mut by_class: BTreeMap<&str, Vec<f32>> = BTreeMap::new();
    for image in chosen {
        by_class.entry(&image.class).or_default().extend(maps.get(&image.id).iter().flat_map(|map| &map.values));
    }
    let scales: BTreeMap<String, Scale> =
        by_class.into_iter().filter_map(|(class, values)| Some((class.to_owned(), scale(values)?))).collect();
    let columns: &[&str] = if tables.autoencoded { &[RECONSTRUCTED, AUTOENCODED] } else { &[RECONSTRUCTED] };
    let reconstructions =
        tables.reconstructions.map_or(Ok(HashMap::new()), |table| reconstructions(source, table, columns, ids()))?;
    let [height, width] =
        images::size(&*tables.images.schema()?).ok_or_else(|| sizeless(tables.images, images::PIXELS))?;
    let inputs = inputs(source, tables.images, ids())?;
    let class: HashMap<&str, &str> = chosen.iter().map(|image| (image.id.as_str(), image.class.as_str())).collect();
    let size = shown(width as u32, height as u32);
    let pictures = inputs.into_par_iter().map(|(id, Input { pixels, mask })| {
        let scale = class.get(id.as_str()).and_then(|class| scales.get(*class));
        let heat = |map: &Map, scale: &Scale| {
            jpeg(&colormap::heatmap(&map.values, map.width, map.height, scale.lowest, scale.highest), size)
        };
        let photo = |id: &String, at: usize| {
            let photo = reconstructions.get(id).and_then(|photos| photos.get(at)?.as_ref());
            photo.map(|photo| jpeg(photo, size)).transpose()
        };
        let pictures = Pictures {
            size,
            input: jpeg(&pixels, size)?,
            ground_truth: mask.map_or(Ok(GroundTruth::Unknown), |mask| outline(&mask, size))?,
            reconstruction: photo(&id, 0)?,
            autoencoded: photo(&id, 1)?,
            heat: maps.get(&id).zip(scale).map(|(map, scale)| heat(map, scale)).transpose()?,
        };
        Ok((id, pictures))
    });
    Ok((pictures.collect::<Result<_>>()?, scales))
}

/// Returns small pictures of images, by id, as URIs.
pub(super) fn thumbnails<'a>(
    source: &Source,
    table: &Manifest,
    ids: impl Iterator<Item = &'a str>,
) -> Result<HashMap<String, String>> {
    let [height, width] = images::size(&*table.schema()?).ok_or_else(|| sizeless(table, images::PIXELS))?;
    let (width, height) = (width as u32, height as u32);
    let side = |side: u32| reduced(side, THUMBNAIL, width.max(height));
    let mut found = HashMap::new();
    source.for_rows(table, &[images::PIXELS], ids, |id, columns, row| {
        if let Some(pixels) = tensor_row::<UInt8Type>(&columns[0], row)? {
            let image = RgbImage::from_raw(width, height, pixels.to_vec());
            let image = image.ok_or_else(|| missized(id, images::PIXELS))?;
            found.insert(id.to_owned(), jpeg(&image, (side(width), side(height)))?);
        }
        Ok(())
    })?;
    Ok(found)
}

/// An image as its table has it.
pub(super) struct Input {
    pub pixels: RgbImage,
    /// Its ground truth, as far as it is known.
    pub mask: Option<GrayImage>,
}

/// Reads images, by id, with their masks if the table has any.
pub(super) fn inputs<'a>(
    source: &Source,
    table: &Manifest,
    ids: impl Iterator<Item = &'a str>,
) -> Result<HashMap<String, Input>> {
    let schema = table.schema()?;
    let [height, width] = images::size(&schema).ok_or_else(|| sizeless(table, images::PIXELS))?;
    let (width, height) = (width as u32, height as u32);
    let columns = [images::PIXELS, MASK];
    let columns = if schema.field_with_name(MASK).is_ok() { &columns[..] } else { &columns[..1] };
    let mut found = HashMap::new();
    source.for_rows(table, columns, ids, |id, columns, row| {
        let mask = columns.get(1).map(|masks| tensor_row::<UInt8Type>(masks, row)).transpose()?.flatten();
        let mask = mask.and_then(|mask| GrayImage::from_raw(width, height, mask.to_vec()));
        if let Some(pixels) = tensor_row::<UInt8Type>(&columns[0], row)? {
            let pixels = RgbImage::from_raw(width, height, pixels.to_vec());
            let pixels = pixels.ok_or_else(|| missized(id, images::PIXELS))?;
            found.insert(id.to_owned(), Input { pixels, mask });
        }
        Ok(())
    })?;
    Ok(found)
}

/// An anomaly map, row by row.
pub(super) struct Map {
    pub values: Vec<f32>,
    pub width: u32,
    pub height: u32,
}

/// Reads the maps of images, by id; an image may have none.
pub(super) fn maps<'a>(
    source: &Source,
    table: &Manifest,
    ids: impl Iterator<Item = &'a str>,
) -> Result<HashMap<String, Map>> {
    let [height, width] = anomaly_maps::size(&*table.schema()?).ok_or_else(|| sizeless(table, MAP))?;
    let mut found = HashMap::new();
    source.for_rows(table, &[MAP], ids, |id, columns, row| {
        let values = float_row(&columns[0], row)?.filter(|values| values.len() == height * width);
        found.extend(values.map(|values| (id.to_owned(), Map { values, width: width as u32, height: height as u32 })));
        Ok(())
    })?;
    Ok(found)
}

/// Reads columns of the reconstructions of images, by id; an image may lack any.
fn reconstructions<'a>(
    source: &Source,
    table: &Manifest,
    columns: &[&str],
    ids: impl Iterator<Item = &'a str>,
) -> Result<HashMap<String, Vec<Option<RgbImage>>>> {
    let [height, width] = reconstructions::size(&*table.schema()?).ok_or_else(|| sizeless(table, RECONSTRUCTED))?;
    let mut found = HashMap::new();
    source.for_rows(table, columns, ids, |id, columns, row| {
        let photo = |column| {
            let values = float_row(column, row)?.filter(|values| values.len() == 3 * height * width);
            Ok(values.map(|values| photograph(&values, width as u32, height as u32)))
        };
        found.insert(id.to_owned(), columns.iter().map(photo).collect::<Result<_>>()?);
        Ok(())
    })?;
    Ok(found)
}

fn sizeless(table: &Manifest, name: &str) -> Error {
    Error::Stage(format!("table `{}`: the column `{name}` holds no pictures", table.table))
}

fn missized(id: &str, name: &str) -> Error {
    Error::Damaged(format!("{id}: `{name}` does not have the size that its table declares"))
}

/// Returns a side of a picture whose longest side becomes `most` pixels long.
fn reduced(side: u32, most: u32, longest: u32) -> u32 {
    (u64::from(side) * u64::from(most) / u64::from(longest.max(1))).clamp(1, u64::from(most)) as u32
}

/// Returns the size of a picture on the page: as stored, or reduced so that the longest side is [`LARGEST`].
pub(super) fn shown(width: u32, height: u32) -> (u32, u32) {
    let longest = width.max(height).max(LARGEST);
    let side = |side: u32| reduced(side, LARGEST, longest);
    if longest == LARGEST { (width, height) } else { (side(width), side(height)) }
}

/// Returns the scale from the lowest to nearly the highest of all finite values; `None` if there are none.
pub(super) fn scale(mut values: Vec<f32>) -> Option<Scale> {
    values.retain(|value| value.is_finite());
    let last = values.len().checked_sub(1)?;
    let mut at = |share: f64| *values.select_nth_unstable_by((share * last as f64).round() as usize, f32::total_cmp).1;
    let (lowest, brightest) = (at(0.), at(BRIGHTEST));
    Some(Scale { lowest, highest: if brightest > lowest { brightest } else { lowest + 1. } })
}

/// Converts values `[3, H, W]`, normalised by ImageNet's colours, to a picture.
fn photograph(values: &[f32], width: u32, height: u32) -> RgbImage {
    let plane = (width * height) as usize;
    let level = |value: f32, c: usize| ((value * imagenet::STD[c] + imagenet::MEAN[c]) * 255.).round() as u8;
    RgbImage::from_fn(width, height, |x, y| {
        let at = (y * width + x) as usize;
        Rgb(std::array::from_fn(|c| level(values[c * plane + at], c)))
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

pub(super) fn jpeg(image: &RgbImage, (width, height): (u32, u32)) -> Result<String> {
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
        let grey = |c: usize| (128. / 255. - imagenet::MEAN[c]) / imagenet::STD[c];
        // Two pixels: grey, and beyond both ends of the range.
        let values = [grey(0), 9., grey(1), -9., grey(2), f32::NAN];
        let image = photograph(&values, 2, 1);
        assert_eq!(image.get_pixel(0, 0).0, [128; 3]);
        assert_eq!(image.get_pixel(1, 0).0, [255, 0, 0]);
    }

    #[test]
    fn one_extreme_value_does_not_set_the_scale() {
        let mut values: Vec<f32> = (0..10_000).map(|i| i as f32 / 10_000.).collect();
        values.extend([500., f32::NAN, f32::INFINITY]);
        let Scale { lowest, highest } = scale(values).unwrap();
        assert!(lowest == 0. && (0.99..1.).contains(&highest), "{lowest} {highest}");
        assert_eq!(scale(vec![2.; 5]), Some(Scale { lowest: 2., highest: 3. }));
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
