//! COCO's files of annotations, of which only what the splits need is kept.

use std::{
    collections::{BTreeMap, HashMap},
    io::Read,
};

use serde::{
    Deserialize, Serialize,
    de::{DeserializeOwned, IgnoredAny},
};

use super::{SPLITS, run_lengths};
use crate::vision::{decode::MAX_PIXELS, drawing::Shape};

/// The number of categories of COCO.
const CATEGORIES: usize = 80;

/// An image with annotations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Annotated {
    /// The number of the image.
    pub(super) number: u64,
    pub(super) file_name: String,
    /// Width and height.
    pub(super) size: (u32, u32),
    /// The splits in which it is anomalous, one bit for each.
    pub(super) anomalous: u8,
    /// The regions of its annotations, each with the split in which its category is anomalous.
    pub(super) shapes: Vec<(u8, Shape)>,
}

impl Annotated {
    pub(super) fn is_anomalous(&self, split: u8) -> bool {
        (self.anomalous >> split) & 1 == 1
    }

    /// Returns the regions that are anomalous in a split.
    pub(super) fn shapes(&self, split: u8) -> Vec<Shape> {
        self.shapes.iter().filter(|(of, _)| *of == split).map(|(_, shape)| shape.clone()).collect()
    }
}

/// The captions of each image, joined by spaces in the order of the file, by its number.
pub type Captions = BTreeMap<u64, Box<str>>;

#[derive(Deserialize)]
struct Instances<S> {
    images: Vec<Image>,
    annotations: Vec<Annotation<S>>,
    categories: Vec<Category>,
}

#[derive(Deserialize)]
struct Image {
    id: u64,
    file_name: String,
    width: u32,
    height: u32,
}

#[derive(Deserialize)]
struct Category {
    id: u32,
}

#[derive(Deserialize)]
struct Annotation<S> {
    id: u64,
    image_id: u64,
    category_id: u32,
    segmentation: S,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a segmentation is a list of polygons, or run lengths with their size")]
enum Segmentation {
    /// Polygons as x, y, x, y, …
    Polygons(Vec<Vec<f64>>),
    RunLengths {
        counts: Counts,
        /// Height and width.
        size: (u32, u32),
    },
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "run lengths are a list of numbers, or a text")]
enum Counts {
    Numbers(Vec<u32>),
    Text(String),
}

/// Reads `instances_train2017.json`, without the regions of annotations.
pub fn read_train(file: impl Read) -> Result<Vec<Annotated>, String> {
    read(file, |_: IgnoredAny, _| Ok(Vec::new()))
}

/// Reads `instances_val2017.json`.
pub fn read_test(file: impl Read) -> Result<Vec<Annotated>, String> {
    read(file, Segmentation::shapes)
}

/// Reads the annotated images of a file.
fn read<S: DeserializeOwned>(
    file: impl Read,
    shapes: impl Fn(S, (u32, u32)) -> Result<Vec<Shape>, String>,
) -> Result<Vec<Annotated>, String> {
    let Instances { images, annotations, categories }: Instances<S> =
        serde_json::from_reader(file).map_err(|error| format!("{error}; expected COCO's annotations of instances"))?;
    if categories.len() != CATEGORIES {
        return Err(format!("it has {} categories and not the {CATEGORIES} of COCO", categories.len()));
    }
    let cannot_be = |image: &&Image| !(1..=MAX_PIXELS).contains(&(u64::from(image.width) * u64::from(image.height)));
    if let Some(Image { id, width, height, .. }) = images.iter().find(cannot_be) {
        return Err(format!("image {id} has {width}x{height} pixels, and images of 1 to {MAX_PIXELS} are read"));
    }
    let split = |category: usize| (category / (CATEGORIES / usize::from(SPLITS))) as u8;
    let splits: HashMap<u32, u8> = categories.iter().enumerate().map(|(at, of)| (of.id, split(at))).collect();
    let places: HashMap<u64, usize> = images.iter().enumerate().map(|(at, image)| (image.id, at)).collect();
    let start = |Image { id, file_name, width, height }: Image| Annotated {
        number: id,
        file_name,
        size: (width, height),
        anomalous: 0,
        shapes: Vec::new(),
    };
    let mut annotated: Vec<Annotated> = images.into_iter().map(start).collect();
    for Annotation { id, image_id, category_id, segmentation } in annotations {
        let wrong = |what: String| format!("annotation {id}: {what}");
        let place = places.get(&image_id).ok_or_else(|| wrong(format!("there is no image {image_id}")))?;
        let split = splits.get(&category_id).ok_or_else(|| wrong(format!("there is no category {category_id}")))?;
        let image = &mut annotated[*place];
        image.anomalous |= 1_u8 << *split;
        let shapes = shapes(segmentation, image.size).map_err(wrong)?;
        image.shapes.extend(shapes.into_iter().map(|shape| (*split, shape)));
    }
    annotated.retain(|image| image.anomalous != 0);
    Ok(annotated)
}

impl Segmentation {
    /// Returns the regions in an image of this size. Coordinates are truncated to whole pixels, as the published rule has
    /// it.
    fn shapes(self, (width, height): (u32, u32)) -> Result<Vec<Shape>, String> {
        match self {
            Self::Polygons(polygons) => polygons.iter().map(|polygon| corners(polygon)).collect(),
            Self::RunLengths { size, .. } if size != (height, width) => {
                Err(format!("its run lengths are of {}x{} pixels and its image {width}x{height}", size.1, size.0))
            }
            Self::RunLengths { counts, .. } => {
                let runs = match counts {
                    Counts::Numbers(runs) => runs,
                    Counts::Text(text) => run_lengths::decode(&text)?,
                };
                let sum: u64 = runs.iter().map(|run| u64::from(*run)).sum();
                let pixels = u64::from(width) * u64::from(height);
                match sum == pixels {
                    true => Ok(vec![Shape::Runs(runs)]),
                    false => Err(format!("its run lengths cover {sum} pixels and its image {pixels}")),
                }
            }
        }
    }
}

fn corners(polygon: &[f64]) -> Result<Shape, String> {
    match polygon.as_chunks::<2>() {
        (corners, []) => Ok(Shape::Polygon(corners.iter().map(|[x, y]| (*x as i32, *y as i32)).collect())),
        _ => Err(format!("a polygon has {} numbers, which are no pairs of x and y", polygon.len())),
    }
}

#[derive(Deserialize)]
struct CaptionFile {
    annotations: Vec<Caption>,
}

#[derive(Deserialize)]
struct Caption {
    image_id: u64,
    caption: String,
}

/// Reads `captions_train2017.json` or `captions_val2017.json`.
pub fn read_captions(file: impl Read) -> Result<Captions, String> {
    let CaptionFile { annotations } =
        serde_json::from_reader(file).map_err(|error| format!("{error}; expected COCO's captions"))?;
    let mut joined: BTreeMap<u64, String> = BTreeMap::new();
    for Caption { image_id, caption } in annotations {
        let caption = caption.trim();
        let all = joined.entry(image_id).or_default();
        all.push_str(if all.is_empty() { "" } else { " " });
        all.push_str(caption);
    }
    Ok(joined.into_iter().map(|(number, captions)| (number, captions.into())).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes a file with the image 7 of 4x2 pixels, the image 8 without annotations, and these annotations.
    fn file(annotations: &str) -> String {
        // COCO leaves numbers of categories out.
        let categories: Vec<String> = (1..=80).map(|at| format!(r#"{{"id": {}, "name": "x"}}"#, at * 2)).collect();
        let images = [7, 8]
            .map(|id| format!(r#"{{"id": {id}, "file_name": "{id}.jpg", "width": 4, "height": 2, "flickr_url": ""}}"#));
        format!(
            r#"{{"info": {{}}, "images": [{}], "annotations": [{annotations}], "categories": [{}]}}"#,
            images.join(","),
            categories.join(",")
        )
    }

    fn annotation(category: u32, segmentation: &str) -> String {
        format!(
            r#"{{"segmentation": {segmentation}, "area": 1.5, "iscrowd": 0, "image_id": 7, "category_id": {category}, "id": 90}}"#
        )
    }

    #[test]
    fn twenty_categories_in_the_order_of_the_file_are_a_split() {
        let polygon = "[[0, 0, 1, 0, 1, 1]]";
        for (categories, anomalous) in [(vec![2, 40], 0b0001), (vec![42], 0b0010), (vec![2, 160], 0b1001)] {
            let annotations: Vec<String> = categories.iter().map(|of| annotation(*of, polygon)).collect();
            let read = read_train(file(&annotations.join(",")).as_bytes()).unwrap();
            let [image] = &read[..] else { panic!("{read:?}") };
            assert_eq!((image.number, image.anomalous, image.shapes.len()), (7, anomalous, 0));
        }
    }

    #[test]
    fn regions_are_polygons_and_both_forms_of_run_lengths() {
        let segmentations = [
            (2, "[[0.9, 1.99, 3.5, -0.5], [1, 1]]"),
            (42, r#"{"counts": [2, 3, 1, 2], "size": [2, 4]}"#),
            (2, r#"{"size": [2, 4], "counts": "231O"}"#),
        ];
        let annotations = segmentations.map(|(category, segmentation)| annotation(category, segmentation)).join(",");
        let read = read_test(file(&annotations).as_bytes()).unwrap();
        let runs = Shape::Runs(vec![2, 3, 1, 2]);
        // Coordinates are truncated toward 0.
        let polygons = [Shape::Polygon(vec![(0, 1), (3, 0)]), Shape::Polygon(vec![(1, 1)])];
        assert_eq!(read[0].shapes(0), [polygons.to_vec(), vec![runs.clone()]].concat());
        assert_eq!(read[0].shapes(1), [runs]);
        assert_eq!((read[0].is_anomalous(1), read[0].is_anomalous(2), read[0].shapes(2)), (true, false, vec![]));
    }

    #[test]
    fn wrong_annotations_are_named() {
        let told =
            |category, segmentation: &str| read_test(file(&annotation(category, segmentation)).as_bytes()).unwrap_err();
        assert_eq!(told(3, "[]"), "annotation 90: there is no category 3");
        assert_eq!(told(2, "[[1, 2, 3]]"), "annotation 90: a polygon has 3 numbers, which are no pairs of x and y");
        assert_eq!(
            told(2, r#"{"counts": [8], "size": [4, 2]}"#),
            "annotation 90: its run lengths are of 2x4 pixels and its image 4x2"
        );
        assert_eq!(
            told(2, r#"{"counts": "23", "size": [2, 4]}"#),
            "annotation 90: its run lengths cover 5 pixels and its image 8"
        );
        assert!(
            told(2, "7").starts_with("a segmentation is a list of polygons, or run lengths with their size at line")
        );
        for size in [r#""width": 0, "height": 2"#, r#""width": 4294967295, "height": 4294967295"#] {
            let file = file(&annotation(2, "[[-1, 0, 5, 1, 1, 1]]")).replacen(r#""width": 4, "height": 2"#, size, 1);
            let error = read_test(file.as_bytes()).unwrap_err();
            assert!(error.starts_with("image 7 has") && error.ends_with("are read"), "{error}");
        }
        let few = r#"{"images": [], "annotations": [], "categories": [{"id": 1}]}"#;
        assert_eq!(read_train(few.as_bytes()).unwrap_err(), "it has 1 categories and not the 80 of COCO");
    }

    #[test]
    fn captions_of_an_image_are_joined() {
        let file = r#"{"annotations": [
            {"image_id": 9, "id": 1, "caption": "A dog. "},
            {"image_id": 3, "id": 2, "caption": "A cat."},
            {"image_id": 9, "id": 3, "caption": "Two dogs."}
        ]}"#;
        let captions = read_captions(file.as_bytes()).unwrap();
        assert_eq!(captions, BTreeMap::from([(3, "A cat.".into()), (9, "A dog. Two dogs.".into())]));
    }
}
