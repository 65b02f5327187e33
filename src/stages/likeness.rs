//! Checks on a sample whether reconstructions follow their images.

use std::collections::BTreeMap;

use arrow::{
    array::{Array, AsArray, RecordBatch},
    datatypes::{DataType, Float16Type, UInt8Type},
};

use crate::{
    engine::{
        Result,
        stage::{Batch, ITSELF, Sample},
        store::Note,
    },
    models::preprocessing::Preprocessing,
    tables::{
        images::{CLASS, PIXELS},
        reconstructions,
        tensor::{find_shape, tensor_row},
    },
};

/// The maximum number of images in the sample.
const LOOKED_AT: usize = 48;
/// The minimum number of images of a class. Smaller classes are not judged.
const FEWEST: usize = 3;
/// The number of cells per side in which images are compared. Cells are used because a reconstruction is smoother
/// than its image.
const CELLS: usize = 16;
/// The difference between images of a class, in grey levels, below which they count as all alike. Their
/// reconstructions may then be alike too.
const ALIKE: f64 = 1.;
/// The share of the images' differences below which reconstructions count as all alike.
const SMALLEST_SHARE: f64 = 0.2;
/// The correlation between differences of reconstructions and of their images below which reconstructions do not
/// follow their images.
const SMALLEST_CORRELATION: f64 = 0.25;

/// Returns the notes on a table of the stage `reconstruct`.
pub(super) fn review(table: &Sample<'_>) -> Result<Vec<Note>> {
    let batch = table.rows(LOOKED_AT, &[("images", &[PIXELS, CLASS]), (ITSELF, &[reconstructions::PIXELS])])?;
    let mut classes: BTreeMap<String, Vec<Pair>> = BTreeMap::new();
    for (class, pair) in pairs(&batch)? {
        classes.entry(class).or_default().push(pair);
    }
    let found: Vec<(String, Following)> =
        classes.into_iter().filter_map(|(class, pairs)| Some((class, Following::of(&pairs)?))).collect();
    Ok(notes(&found))
}

fn notes(classes: &[(String, Following)]) -> Vec<Note> {
    let told = |what: &str, is: fn(&Following) -> bool, number: fn(&Following) -> String| {
        let named = classes.iter().filter(|(_, found)| is(found));
        let names: Vec<String> = named.map(|(class, found)| format!("{class} ({})", number(found))).collect();
        (!names.is_empty()).then(|| Note::about(what, names))
    };
    let same = told(
        "the reconstructions of a class are nearly one and the same picture, whatever the image",
        Following::is_one_picture,
        |found| format!("they differ by {:.1} grey levels, their images by {:.1}", found.reconstructions, found.images),
    );
    let apart = told(
        "reconstructions do not follow their images",
        |found| !found.is_one_picture() && found.correlation < SMALLEST_CORRELATION,
        |found| format!("what sets them apart correlates by {:.2}", found.correlation),
    );
    same.into_iter().chain(apart).collect()
}

/// An image and its reconstruction as cells, in grey levels, channel by channel.
struct Pair {
    image: Vec<f64>,
    reconstruction: Vec<f64>,
}

/// Returns the pairs of a batch with their classes. If the images have no class, all are of one class.
fn pairs(batch: &Batch) -> Result<Vec<(String, Pair)>> {
    let Some((images, shape)) = batch.port("images").and_then(|images| Some((images, pixels(images)?))) else {
        return Ok(Vec::new());
    };
    let [height, width, channels] = shape;
    let scale = Preprocessing::imagenet(1);
    let grey = |value: f32, c: usize| f64::from((value * scale.std[c % 3] + scale.mean[c % 3]).clamp(0., 1.) * 255.);
    let (given, made) = (batch.column("images", PIXELS)?, batch.column(ITSELF, reconstructions::PIXELS)?);
    let classes = images.column_by_name(CLASS).and_then(|column| column.as_string_opt::<i32>());
    let mut pairs = Vec::new();
    for row in 0..batch.len() {
        let image = tensor_row::<UInt8Type>(given, row)?.unwrap_or_default(); // [H, W, C]
        let reconstruction = tensor_row::<Float16Type>(made, row)?.unwrap_or_default(); // [C, H, W]
        if image.len() != height * width * channels || reconstruction.len() != image.len() {
            continue;
        }
        let plane = height * width;
        let image = cells(shape, |c, at| f64::from(image[at * channels + c]));
        let reconstruction = cells(shape, |c, at| grey(reconstruction[c * plane + at].to_f32(), c));
        let class = classes.filter(|classes| classes.is_valid(row)).map_or("all images", |classes| classes.value(row));
        pairs.push((class.to_owned(), Pair { image, reconstruction }));
    }
    Ok(pairs)
}

/// Returns the shape [H, W, C] of images.
fn pixels(images: &RecordBatch) -> Option<[usize; 3]> {
    find_shape(&images.schema(), PIXELS, &[DataType::UInt8])
}

/// Returns the means of a picture's cells; `value` returns a channel at a pixel.
fn cells([height, width, channels]: [usize; 3], value: impl Fn(usize, usize) -> f64) -> Vec<f64> {
    let (rows, columns) = (CELLS.min(height), CELLS.min(width));
    let mut sums = vec![0.; rows * columns * channels];
    let mut counts = vec![0.; rows * columns * channels];
    for at in 0..height * width {
        let (row, column) = (at / width * rows / height, at % width * columns / width);
        for c in 0..channels {
            let cell = (row * columns + column) * channels + c;
            sums[cell] += value(c, at);
            counts[cell] += 1.;
        }
    }
    sums.iter().zip(counts).map(|(sum, count)| sum / count).collect()
}

/// The relation between the reconstructions and the images of a class, after subtracting their means over the class.
#[derive(Clone, Copy, Debug)]
struct Following {
    /// The mean difference between an image and the mean image, in grey levels.
    images: f64,
    /// The mean difference between a reconstruction and the mean reconstruction, in grey levels.
    reconstructions: f64,
    /// The correlation of these differences, 1 for a faithful copy.
    correlation: f64,
}

impl Following {
    /// Measures the pairs of a class; `None` for too few images, and for images that are all alike.
    fn of(pairs: &[Pair]) -> Option<Self> {
        if pairs.len() < FEWEST {
            return None;
        }
        let cells = pairs[0].image.len();
        let mean = |of: fn(&Pair) -> &Vec<f64>, cell: usize| {
            pairs.iter().map(|pair| of(pair)[cell]).sum::<f64>() / pairs.len() as f64
        };
        let [mut images, mut reconstructions, mut xx, mut yy, mut xy] = [0.; 5];
        for cell in 0..cells {
            let (image, reconstruction) = (mean(|pair| &pair.image, cell), mean(|pair| &pair.reconstruction, cell));
            for pair in pairs {
                let (x, y) = (pair.image[cell] - image, pair.reconstruction[cell] - reconstruction);
                images += x.abs();
                reconstructions += y.abs();
                (xx, yy, xy) = (xx + x * x, yy + y * y, xy + x * y);
            }
        }
        let count = (cells * pairs.len()) as f64;
        let found = Self {
            images: images / count,
            reconstructions: reconstructions / count,
            correlation: xy / (xx * yy).sqrt().max(f64::MIN_POSITIVE),
        };
        (found.images >= ALIKE).then_some(found)
    }

    fn is_one_picture(&self) -> bool {
        self.reconstructions < SMALLEST_SHARE * self.images
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Measures images of 4x4 whose left half is brighter the higher their number; `made` makes a reconstruction's
    /// pixel from number and pixel.
    fn found(made: impl Fn(f64, usize) -> f64) -> Option<Following> {
        let picture = |value: &dyn Fn(usize) -> f64| cells([4, 4, 1], |_, at| value(at));
        let pair = |i: usize| {
            let i = i as f64;
            let image = picture(&|at| if at % 4 < 2 { 100. + 20. * i } else { 50. });
            Pair { image, reconstruction: picture(&|at| made(i, at)) }
        };
        Following::of(&(0..6).map(pair).collect::<Vec<_>>())
    }

    fn told(found: Following) -> String {
        notes(&[("nut".to_owned(), found)]).iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn note_on_one_reconstruction_for_all_images() {
        let grey = found(|i, _| 90. + i / 4.).unwrap();
        let expected = "the reconstructions of a class are nearly one and the same picture, whatever the image: 1: nut (they \
                        differ by 0.4 grey levels, their images by 15.0)";
        assert_eq!(told(grey), expected);
    }

    #[test]
    fn note_on_reconstructions_that_do_not_follow_their_images() {
        // spots at places that do not depend on the image
        let blots = found(|i, at| if (at * 7 + i as usize * 5) % 11 < 4 { 250. } else { 5. }).unwrap();
        assert!(
            told(blots).starts_with("reconstructions do not follow their images: 1: nut (what sets them apart"),
            "{blots:?}"
        );
    }

    #[test]
    fn dim_copy_follows_its_image_and_equal_images_are_not_judged() {
        let copy = found(|i, at| if at % 4 < 2 { 90. + 10. * i } else { 60. }).unwrap();
        assert!(copy.correlation > 0.99 && told(copy).is_empty(), "{copy:?}");
        let pair = || Pair { image: vec![7.; 16], reconstruction: vec![3.; 16] };
        assert!(Following::of(&[pair(), pair(), pair()]).is_none());
        assert!(Following::of(&[pair(), pair()]).is_none());
    }

    #[test]
    fn cells_are_means_of_a_picture_of_any_size() {
        assert_eq!(cells([2, 2, 1], |_, at| at as f64), [0., 1., 2., 3.]);
        let large = cells([20, 33, 3], |c, _| c as f64);
        assert_eq!(large.len(), 16 * 16 * 3);
        assert!(large.chunks(3).all(|cell| cell == [0., 1., 2.]));
    }
}
