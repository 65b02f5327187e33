//! Regions as annotations: COCO, LabelMe and CSV.

use std::{
    collections::{BTreeMap, HashMap},
    path::{Path, PathBuf},
};

use arrow::{
    array::{Array, AsArray, RecordBatch},
    compute::cast,
    datatypes::{DataType, UInt32Type},
};
use serde_json::{Value, json};

use crate::{
    engine::{Error, Result, store::Manifest},
    report::data::Source,
    tables::{
        column::{column, numbers, text},
        regions::{AREA, HEIGHT, IMAGE_ID, MAX_SCORE, POLYGON, WIDTH, X, Y},
    },
};

/// An image whose regions are written.
pub(super) struct Annotated {
    pub(super) id: String,
    /// The address of its photograph.
    pub(super) uri: Option<String>,
    pub(super) verdict: Option<bool>,
    /// Width and height of the photograph.
    pub(super) size: (u32, u32),
}

/// The name of the category of every region.
const CATEGORY: &str = "anomaly";

/// The regions of images in three formats: files by their paths below the folder of the export.
pub(super) struct Annotations {
    pub(super) files: Vec<(PathBuf, Vec<u8>)>,
    /// The number of regions.
    pub(super) regions: usize,
}

/// Returns `regions.json` (COCO), `labelme/NAME.json` and `regions.csv`. `names` are the paths of the images' files.
pub(super) fn of(source: &Source, table: &Manifest, images: &[Annotated], names: &[PathBuf]) -> Result<Annotations> {
    let rows = source.rows(table)?;
    let regions = Regions::read(&rows)?;
    let mut files = vec![
        ("regions.json".into(), pretty(&coco(images, &regions))?),
        ("regions.csv".into(), csv(&rows, images, &regions)?.into_bytes()),
    ];
    for (image, name) in images.iter().zip(names) {
        let mut path = Path::new("labelme").join(name).into_os_string();
        path.push(".json");
        files.push((path.into(), pretty(&labelme(image, regions.of(&image.id)))?));
    }
    Ok(Annotations { files, regions: images.iter().map(|image| regions.of(&image.id).len()).sum() })
}

/// Returns `regions.json` alone, with the number of regions.
pub(super) fn as_coco(source: &Source, table: &Manifest, images: &[Annotated]) -> Result<(Vec<u8>, usize)> {
    let regions = Regions::read(&source.rows(table)?)?;
    let count = images.iter().map(|image| regions.of(&image.id).len()).sum();
    Ok((pretty(&coco(images, &regions))?, count))
}

fn pretty(value: &Value) -> Result<Vec<u8>> {
    Ok(serde_json::to_vec_pretty(value).map_err(std::io::Error::from)?)
}

/// A region as all formats need it.
struct Region {
    /// Its row in the table.
    row: usize,
    polygon: Vec<u32>,
    bounds: [f64; 4],
    area: f64,
    score: Option<f64>,
}

/// The regions by image.
struct Regions(HashMap<String, Vec<Region>>);

impl Regions {
    fn read(rows: &RecordBatch) -> Result<Self> {
        let images = text(rows, IMAGE_ID)?;
        let lists = column(rows, POLYGON)?;
        let lists = lists.as_list_opt::<i32>().ok_or_else(|| Error::Stage(format!("`{POLYGON}` is no list")))?;
        let values = |name: &str| {
            let missing = |row| Error::Input(format!("`{name}` of a region of {} is missing", images.value(row)));
            let all = numbers(rows, name)?;
            all.into_iter()
                .enumerate()
                .map(|(row, value)| value.ok_or_else(|| missing(row)))
                .collect::<Result<Vec<_>>>()
        };
        let (areas, bounds) = (values(AREA)?, [values(X)?, values(Y)?, values(WIDTH)?, values(HEIGHT)?]);
        let scores = rows.column_by_name(MAX_SCORE).map(|_| numbers(rows, MAX_SCORE)).transpose()?;
        let mut found: HashMap<String, Vec<Region>> = HashMap::new();
        for row in 0..rows.num_rows() {
            let polygon = cast(&lists.value(row), &DataType::UInt32)?;
            found.entry(images.value(row).to_owned()).or_default().push(Region {
                row,
                polygon: polygon.as_primitive::<UInt32Type>().values().to_vec(),
                bounds: [0, 1, 2, 3].map(|at: usize| bounds[at][row]),
                area: areas[row],
                score: scores.as_ref().and_then(|scores| scores[row]),
            });
        }
        Ok(Self(found))
    }

    fn of(&self, image: &str) -> &[Region] {
        self.0.get(image).map(Vec::as_slice).unwrap_or_default()
    }
}

/// Returns the regions in the format of COCO's object detection.
fn coco(images: &[Annotated], regions: &Regions) -> Value {
    let listed = images.iter().enumerate().map(
        |(at, image)| json!({ "id": at + 1, "file_name": image.id, "width": image.size.0, "height": image.size.1 }),
    );
    let all =
        images.iter().enumerate().flat_map(|(at, image)| regions.of(&image.id).iter().map(move |region| (at, region)));
    let annotations = all.enumerate().map(|(number, (at, region))| {
        json!({
            "id": number + 1,
            "image_id": at + 1,
            "category_id": 1,
            "segmentation": [region.polygon],
            "bbox": region.bounds,
            "area": region.area,
            "iscrowd": 0,
            "score": region.score,
        })
    });
    json!({
        "images": listed.collect::<Vec<_>>(),
        "annotations": annotations.collect::<Vec<_>>(),
        "categories": [{ "id": 1, "name": CATEGORY }],
    })
}

/// Returns the regions of an image as a file of LabelMe.
fn labelme(image: &Annotated, regions: &[Region]) -> Value {
    let shapes = regions.iter().map(|region| {
        json!({
            "label": CATEGORY,
            "points": region.polygon.chunks_exact(2).collect::<Vec<_>>(),
            "group_id": null,
            "description": region.score.map(|score| format!("score {score:.4}")).unwrap_or_default(),
            "shape_type": "polygon",
            "flags": {},
        })
    });
    let flags: BTreeMap<&str, bool> = image.verdict.map(|verdict| ("anomalous", verdict)).into_iter().collect();
    json!({
        "version": "5.5.0",
        "flags": flags,
        "shapes": shapes.collect::<Vec<_>>(),
        "imagePath": image.uri.as_ref().unwrap_or(&image.id),
        "imageData": null,
        "imageHeight": image.size.1,
        "imageWidth": image.size.0,
    })
}

/// Returns the rows of the table as CSV, with polygons as numbers between blanks.
fn csv(rows: &RecordBatch, images: &[Annotated], regions: &Regions) -> Result<String> {
    let schema = rows.schema();
    let plain: Vec<&str> =
        schema.fields().iter().map(|field| field.name().as_str()).filter(|name| *name != POLYGON).collect();
    let columns = plain.iter().map(|name| text(rows, name)).collect::<Result<Vec<_>>>()?;
    let mut lines = format!("{},{POLYGON}\n", plain.iter().map(|name| quoted(name)).collect::<Vec<_>>().join(","));
    for region in images.iter().flat_map(|image| regions.of(&image.id)) {
        let values = columns.iter().map(|column| column.is_valid(region.row).then(|| quoted(column.value(region.row))));
        let values: Vec<String> = values.map(Option::unwrap_or_default).collect();
        let polygon: Vec<String> = region.polygon.iter().map(ToString::to_string).collect();
        lines += &format!("{},{}\n", values.join(","), polygon.join(" "));
    }
    Ok(lines)
}

/// Quotes a text for CSV where that is needed.
pub(in crate::report) fn quoted(text: &str) -> String {
    let is_plain = !text.contains(['"', ',', '\n', '\r']);
    if is_plain { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_csv_are_quoted_where_they_must_be() {
        assert_eq!(["a b", "a,b", "say \"a\""].map(quoted), ["a b", "\"a,b\"", "\"say \"\"a\"\"\""]);
    }
}
