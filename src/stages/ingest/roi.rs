//! The region of photographs that is judged.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringArray},
    datatypes::{DataType, Field},
};
use image::{GrayImage, Luma, RgbImage, metadata::Orientation};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    failure::Failure,
    files::File,
    listed::{appended, text},
    masks,
};
use crate::{
    engine::{
        Digest, Error, Result,
        source::Sources,
        stage::{Batch, SOURCE},
        store::{digest_array, volatile},
    },
    tables::{
        column::column,
        images::{CLASS, IMAGE_ID},
    },
    vision::{
        decode,
        placement::Placement,
        resize::{self, Filter},
    },
};

/// The columns of a listing about the region of a photograph: the corners of a polygon as JSON, or the place and the
/// content of a picture; all null where the whole photograph is judged.
const POLYGON: &str = "roi_polygon";
const PLACE: &str = "roi_place";
const CONTENT: &str = "roi_content";

/// The places in the path of a picture at which the class and the id of a photograph, without its extension, are put.
const OF_CLASS: &str = "{class}";
const OF_IMAGE: &str = "{image}";

/// The region of photographs that is judged: the same for all, or one for each class. Photographs of a class that is not
/// named are judged as a whole.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(
    untagged,
    expecting = "a region is a polygon `[[x, y], …]`, the path of a picture, or one of these for each class"
)]
pub enum Roi {
    /// One for all classes.
    Same(Area),
    /// By class.
    Classes(BTreeMap<String, Area>),
}

/// A region of a photograph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "a region is a polygon `[[x, y], …]`, or the path of a picture")]
pub enum Area {
    /// The corners of a polygon, in pixels of the photograph: `[0, 0]` is the upper left corner of the first one.
    Polygon(Vec<[f64; 2]>),
    /// The path of a picture as large as the photograph, which is not 0 in the region. `{class}` and `{image}` stand for
    /// the class and for the id without its extension.
    Picture(String),
}

impl Roi {
    fn areas(&self) -> Vec<&Area> {
        match self {
            Self::Same(area) => vec![area],
            Self::Classes(areas) => areas.values().collect(),
        }
    }

    fn of(&self, class: &str) -> Option<&Area> {
        match self {
            Self::Same(area) => Some(area),
            Self::Classes(areas) => areas.get(class),
        }
    }

    /// Refuses a polygon without an area.
    pub(super) fn check(&self) -> Result<(), String> {
        let few = |area: &&Area| matches!(area, Area::Polygon(corners) if corners.len() < 3);
        match self.areas().into_iter().find(few) {
            Some(_) => Err("a polygon has at least 3 corners `[x, y]`".into()),
            None => Ok(()),
        }
    }

    /// Returns the classes that are named and of which there is no photograph, and those of the photographs.
    pub(super) fn absent<'a>(&'a self, photographs: &'a RecordBatch) -> Result<(Vec<&'a str>, BTreeSet<&'a str>)> {
        let present: BTreeSet<&str> = column(photographs, CLASS)?.as_string::<i32>().iter().flatten().collect();
        let named = match self {
            Self::Same(_) => Vec::new(),
            Self::Classes(areas) => areas.keys().map(String::as_str).collect(),
        };
        Ok((named.into_iter().filter(|class| !present.contains(class)).collect(), present))
    }

    /// Adds the columns of regions to a listing of photographs. The content of a picture is part of it, so that a
    /// photograph is read again if its region changes.
    pub(super) fn list(&self, photographs: &RecordBatch, sources: &Sources) -> Result<RecordBatch> {
        let classes = column(photographs, CLASS)?.as_string::<i32>();
        let ids = column(photographs, IMAGE_ID)?.as_string::<i32>();
        let (mut polygons, mut places) = (Vec::new(), Vec::new());
        for (class, id) in classes.iter().flatten().zip(ids.iter().flatten()) {
            let area = self.of(class);
            polygons.push(match area {
                Some(Area::Polygon(corners)) => Some(serde_json::json!(corners).to_string()),
                _ => None,
            });
            places.push(match area {
                Some(Area::Picture(path)) => Some(path.replace(OF_CLASS, class).replace(OF_IMAGE, stem(id))),
                _ => None,
            });
        }
        let mut digests = BTreeMap::new();
        for place in places.iter().flatten() {
            if !digests.contains_key(place) {
                digests.insert(place.clone(), sources.digest(place)?);
            }
        }
        let contents = places.iter().map(|place| digests.get(place.as_ref()?).copied());
        let contents = digest_array(contents.collect::<Vec<_>>().into_iter());
        let polygons: StringArray = polygons.into_iter().collect();
        let (place, places) = text(PLACE, places.iter().map(Option::as_deref));
        appended(
            photographs,
            [
                (Field::new(POLYGON, DataType::Utf8, true), Arc::new(polygons) as ArrayRef),
                (volatile(place), places),
                (Field::new(CONTENT, contents.data_type().clone(), true), contents),
            ],
        )
    }
}

/// Returns an id without its extension.
fn stem(id: &str) -> &str {
    match id.rsplit_once('.') {
        Some((stem, extension)) if !extension.contains('/') => stem,
        _ => id,
    }
}

/// The region of one photograph, as it is listed.
pub(super) enum Region {
    /// The corners of a polygon in the photograph.
    Polygon(Vec<[f64; 2]>),
    /// A picture as large as the photograph.
    Picture(File),
}

impl Region {
    /// Reads the region of each row of a listing; `None` of a photograph that is judged as a whole.
    pub(super) fn read(batch: &Batch, sources: &Sources) -> Result<Vec<Option<Self>>> {
        let listed = batch.rows(SOURCE)?;
        if listed.column_by_name(POLYGON).is_none() {
            return Ok((0..batch.len()).map(|_| None).collect());
        }
        let text = |name| Ok::<_, Error>(column(listed, name)?.as_string::<i32>());
        let contents = column(listed, CONTENT)?.as_fixed_size_binary();
        let wanted: Vec<String> = text(PLACE)?.iter().flatten().map(str::to_owned).collect();
        let mut pictures = sources.read_all(&wanted).into_iter();
        let row = |((polygon, place), content): ((Option<&str>, Option<&str>), Option<&[u8]>)| {
            Ok(match (polygon, place) {
                (Some(corners), _) => {
                    Some(Self::Polygon(serde_json::from_str(corners).map_err(|e| Error::Damaged(e.to_string()))?))
                }
                (None, Some(place)) => {
                    let read = pictures.next().unwrap_or_else(|| Err(Error::Stage(format!("{place} was not read"))));
                    Some(Self::Picture(File::new(place.to_owned(), content.and_then(Digest::from_slice), read)))
                }
                (None, None) => None,
            })
        };
        text(POLYGON)?.iter().zip(text(PLACE)?).zip(contents).map(row).collect()
    }

    /// Brings the region to the size of the resized photograph.
    pub(super) fn scaled(
        self,
        place: &str,
        photograph: &RgbImage,
        (turn, turn_by_exif): (Orientation, bool),
        (width, height): (u32, u32),
    ) -> Result<ScaledRegion, Failure> {
        let picture = match self {
            Self::Polygon(corners) => return Ok(ScaledRegion::Polygon(corners)),
            Self::Picture(picture) => picture,
        };
        let (mask, picture) = picture.decode(decode::mask, turn_by_exif)?;
        let picture = masks::aligned(picture, photograph, turn).any;
        let (mask_size, image_size) = (picture.dimensions(), photograph.dimensions());
        if mask_size != image_size {
            return Err(Failure::MaskSize { mask, mask_size, image: place.to_owned(), image_size, turned: "" });
        }
        Ok(ScaledRegion::Picture(resize::majority(resize::grey(&picture, width, height, Filter::Bilinear))))
    }
}

/// The region of a photograph, at the size of the resized photograph.
pub(super) enum ScaledRegion {
    /// The corners of a polygon in the photograph at its own size.
    Polygon(Vec<[f64; 2]>),
    /// 255 where more than half of a pixel lies in the region.
    Picture(GrayImage),
}

impl ScaledRegion {
    /// Cuts stored pixels out: 255 where the middle of a pixel lies in the region, and 0 elsewhere and in a border.
    pub(super) fn cut(&self, placement: Placement) -> GrayImage {
        let corners = match self {
            Self::Picture(picture) => return placement.cut_grey(picture),
            Self::Polygon(corners) => corners,
        };
        let ((width, height), [x, y]) = (placement.photograph(), placement.axes());
        GrayImage::from_fn(x.picture, y.picture, |x, y| {
            let (x, y) = placement.to_photograph((f64::from(x) + 0.5, f64::from(y) + 0.5));
            let is_in_photograph = (0. ..f64::from(width)).contains(&x) && (0. ..f64::from(height)).contains(&y);
            Luma([if is_in_photograph && is_in_polygon(corners, [x, y]) { 255 } else { 0 }])
        })
    }
}

/// Returns true if a point lies in a polygon: a ray to the right of it crosses an odd number of its sides.
fn is_in_polygon(corners: &[[f64; 2]], [x, y]: [f64; 2]) -> bool {
    let previous = corners.iter().cycle().skip(corners.len().saturating_sub(1));
    let crosses = |(a, b): (&[f64; 2], &[f64; 2])| {
        (a[1] > y) != (b[1] > y) && x < (b[0] - a[0]) * (y - a[1]) / (b[1] - a[1]) + a[0]
    };
    corners.iter().zip(previous).filter(|sides| crosses(*sides)).count() % 2 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn polygon_has_the_pixels_whose_middles_lie_in_it() {
        // An L of two arms, 2 wide; the photograph of 8x8 is stored in 4x4 pixels.
        let corners = vec![[0., 0.], [4., 0.], [4., 4.], [8., 4.], [8., 8.], [0., 8.]];
        let cut = |placement| ScaledRegion::Polygon(corners.clone()).cut(placement).into_raw();
        let halved = cut(Placement::stretched((8, 8), (4, 4)));
        let expected = [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]];
        assert_eq!(halved, expected.concat().iter().map(|is_in| 255 * is_in).collect::<Vec<u8>>());
        // Beside the photograph there is no region, however far the polygon reaches.
        let wide = ScaledRegion::Polygon(vec![[-9., -9.], [99., -9.], [99., 99.], [-9., 99.]]);
        let padded = wide.cut(Placement::padded((4, 2), (4, 4))).into_raw();
        assert_eq!(padded, [vec![0; 4], vec![255; 8], vec![0; 4]].concat());
    }

    #[test]
    fn picture_is_named_by_class_and_id() {
        assert_eq!(stem("gear/test/dent/000.png"), "gear/test/dent/000");
        assert_eq!(stem("v1.2/000"), "v1.2/000");
    }

    #[test]
    fn forms_of_a_region_are_read() {
        let read = |text: &str| serde_json::from_str::<Roi>(text);
        let polygon = Area::Polygon(vec![[0., 0.], [1., 0.], [0., 1.5]]);
        assert_eq!(read("[[0, 0], [1, 0], [0, 1.5]]").unwrap(), Roi::Same(polygon.clone()));
        assert_eq!(read("\"a/{class}.png\"").unwrap(), Roi::Same(Area::Picture("a/{class}.png".into())));
        let classes = BTreeMap::from([("gear".into(), polygon), ("tile".into(), Area::Picture("tile.png".into()))]);
        let both = "{ \"gear\": [[0, 0], [1, 0], [0, 1.5]], \"tile\": \"tile.png\" }";
        assert_eq!(read(both).unwrap(), Roi::Classes(classes));
        assert!(read("[[0, 0], [1, 0]]").unwrap().check().unwrap_err().contains("at least 3 corners"));
        assert!(read("7").unwrap_err().to_string().contains("a region is a polygon"));
    }
}
