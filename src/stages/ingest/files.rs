//! The files of photographs and masks, as the listing has them.

use std::collections::{BTreeSet, HashMap};

use arrow::{
    array::{Array, AsArray},
    datatypes::UInt32Type,
};
use bytes::Bytes;

use super::{embedded::Embedded, failure::Failure, manifest::ManifestColumns};
use crate::{
    engine::{
        Digest, Error, Result, join,
        source::Sources,
        stage::{Batch, SOURCE},
    },
    vision::{
        VisionError,
        decode::{self, Mask},
        drawing::Drawing,
    },
};

/// The columns of a listing about the encoded pictures of a kind.
pub(super) struct PictureColumns {
    /// The path below the folder of the dataset.
    pub(super) path: &'static str,
    /// The row in the file, if that is a Parquet file.
    pub(super) row: &'static str,
    /// The digest of the encoded picture.
    pub(super) content: &'static str,
}

pub(super) const IMAGES: PictureColumns =
    PictureColumns { path: "image_path", row: "image_row", content: "image_content" };
pub(super) const MASKS: PictureColumns = PictureColumns { path: "mask_path", row: "mask_row", content: "mask_content" };

/// A listed picture and its content.
pub(super) struct File {
    /// The place, for messages.
    pub(super) place: String,
    /// The file, if it holds this picture alone.
    pub(super) uri: Option<String>,
    pub(super) content: Option<Digest>,
    read: Result<Bytes>,
}

impl File {
    /// Takes what was read of a file, and the digest that was listed.
    pub(super) fn new(place: String, content: Option<Digest>, read: Result<Bytes>) -> Self {
        Self { uri: Some(place.clone()), place, content, read }
    }

    /// Decodes the content if it is the one that was listed, because the row is stored under the digest of the listed
    /// content.
    pub(super) fn decode<T>(
        self,
        decode: fn(&[u8], bool) -> Result<T, VisionError>,
        turn_by_exif: bool,
    ) -> Result<(String, T), Failure> {
        let place = self.place;
        let bytes = match self.read {
            Ok(bytes) => bytes,
            Err(error) => return Err(Failure::Unreadable { place, error }),
        };
        if Some(Digest::of(&bytes)) != self.content {
            return Err(Failure::Changed { place });
        }
        match decode(&bytes, turn_by_exif) {
            Ok(decoded) => Ok((place, decoded)),
            Err(source) => Err(Failure::Decode { place, source }),
        }
    }
}

/// The column of a listing with the shapes of which masks are drawn, as JSON. Only data sets with such masks have it.
pub(super) const DRAWING: &str = "mask_drawing";

/// A listed mask.
pub(super) enum ListedMask {
    /// An encoded picture.
    File(File),
    /// Shapes, as JSON.
    Drawing(String),
}

impl ListedMask {
    /// Returns the mask with its place, for messages.
    pub(super) fn decode(self, turn_by_exif: bool) -> Result<(String, Mask), Failure> {
        match self {
            Self::File(file) => file.decode(decode::mask, turn_by_exif),
            Self::Drawing(json) => {
                let drawing: Drawing = serde_json::from_str(&json).map_err(|e| Error::Stage(e.to_string()))?;
                Ok(("drawn from its annotations".to_owned(), Mask::new(drawing.mask())))
            }
        }
    }
}

/// The place of a picture, and the digest of its content.
struct Listed {
    address: String,
    row: Option<u32>,
    content: Option<Digest>,
    is_mask: bool,
}

/// Reads pictures below a folder.
pub(super) struct PictureFiles<'a> {
    pub(super) folder: &'a str,
    pub(super) columns: &'a ManifestColumns,
    pub(super) sources: &'a Sources,
}

impl PictureFiles<'_> {
    /// Reads the image and, if there is one, the mask of each row. All files are read concurrently, which hides the
    /// latency of servers.
    pub(super) fn read(&self, batch: &Batch) -> Result<Vec<(File, Option<ListedMask>)>> {
        let listed = |of: &PictureColumns| -> Result<Vec<Option<Listed>>> {
            (0..batch.len()).map(|row| self.listed(batch, row, of)).collect()
        };
        let (images, masks) = (listed(&IMAGES)?, listed(&MASKS)?);
        let is_masked: Vec<bool> = masks.iter().map(Option::is_some).collect();
        let mut files = self.contents(images.into_iter().chain(masks).flatten().collect())?.into_iter();
        let images: Vec<File> = files.by_ref().take(batch.len()).collect();
        let drawings = batch.rows(SOURCE)?.column_by_name(DRAWING).map(|column| column.as_string::<i32>());
        let drawing = |row: usize| drawings.filter(|all| all.is_valid(row)).map(|all| all.value(row).to_owned());
        let mask = |(row, (image, is_masked))| match is_masked {
            true => (image, files.next().map(ListedMask::File)),
            false => (image, drawing(row).map(ListedMask::Drawing)),
        };
        Ok(images.into_iter().zip(is_masked).enumerate().map(mask).collect())
    }

    /// Reads the image of each row.
    pub(super) fn images(&self, batch: &Batch) -> Result<Vec<File>> {
        let listed: Result<Vec<_>> = (0..batch.len()).map(|row| self.listed(batch, row, &IMAGES)).collect();
        self.contents(listed?.into_iter().flatten().collect())
    }

    fn listed(&self, batch: &Batch, row: usize, of: &PictureColumns) -> Result<Option<Listed>> {
        let paths = batch.column(SOURCE, of.path)?.as_string::<i32>();
        if paths.is_null(row) {
            return Ok(None);
        }
        let rows = batch.column(SOURCE, of.row)?.as_primitive::<UInt32Type>();
        Ok(Some(Listed {
            address: join(self.folder, paths.value(row))?,
            row: rows.is_valid(row).then(|| rows.value(row)),
            content: Digest::from_slice(batch.column(SOURCE, of.content)?.as_fixed_size_binary().value(row)),
            is_mask: of.path == MASKS.path,
        }))
    }

    fn contents(&self, listed: Vec<Listed>) -> Result<Vec<File>> {
        let alone: Vec<String> =
            listed.iter().filter(|picture| picture.row.is_none()).map(|picture| picture.address.clone()).collect();
        let mut alone = self.sources.read_all(&alone).into_iter();
        let mut wanted: HashMap<(&str, bool), BTreeSet<u32>> = HashMap::new();
        for picture in &listed {
            if let Some(row) = picture.row {
                wanted.entry((&picture.address, picture.is_mask)).or_default().insert(row);
            }
        }
        let embedded = wanted.into_iter().map(|((address, is_mask), rows)| {
            Ok(((address.to_owned(), is_mask), self.embedded(address, is_mask, &rows)?))
        });
        let embedded: HashMap<(String, bool), HashMap<u32, Bytes>> = embedded.collect::<Result<_>>()?;
        let file = |Listed { address, row, content, is_mask }| match row {
            // A row that is gone has another content than the listed one.
            Some(row) => {
                let rows = embedded.get(&(address.clone(), is_mask));
                let bytes = rows.and_then(|rows| rows.get(&row)).cloned().unwrap_or_default();
                File { place: format!("{address}: row {}", row + 1), uri: None, content, read: Ok(bytes) }
            }
            None => {
                let read = alone.next().unwrap_or_else(|| Err(Error::Stage(format!("{address} was not read"))));
                File::new(address, content, read)
            }
        };
        Ok(listed.into_iter().map(file).collect())
    }

    /// Reads images or masks in rows of a Parquet file.
    pub(super) fn embedded(&self, address: &str, is_mask: bool, rows: &BTreeSet<u32>) -> Result<HashMap<u32, Bytes>> {
        let file = Embedded::open(address, self.sources)?;
        let columns = self.columns.of_file(&file.columns()).map_err(Error::Input)?;
        match if is_mask { columns.mask } else { columns.path } {
            Some(column) => file.read(&column, rows),
            None => Ok(HashMap::new()),
        }
    }
}
