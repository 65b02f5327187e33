//! The doing half of `ingest`: listed photographs in, rows of pixels and masks out.

use std::sync::Arc;

use arrow::{
    array::{Array, ArrayRef, AsArray, BooleanArray, StringArray, UInt32Array},
    datatypes::{Int32Type, UInt8Type, UInt32Type},
};
use image::metadata::Orientation;
use rayon::prelude::*;

use super::{
    Dataset, Ingest,
    failure::Failure,
    files::{File, ListedMask},
    listed::batch_of,
    roi::{Region, ScaledRegion},
    scaled::{Cut, Scaled, within},
    tiles,
};
use crate::{
    datasets::synthetic,
    engine::{
        Error, Result,
        source::Sources,
        stage::{Batch, Context, Open, Operator, Rows, SOURCE, Sink},
    },
    tables::{
        images::{CAPTION, CLASS, DEFECT, GOOD, HEIGHT, IMAGE_ID, LABEL, SPLIT, TEST, WIDTH},
        tensor::tensor_column,
        tiles as columns,
    },
    vision::{decode::NoteText, placement::Placement},
};

impl Open for Ingest {
    fn open(self, context: &Context) -> Result<Box<dyn Operator>> {
        Ok(Box::new(Reader { stage: self, sources: context.sources.clone() }))
    }
}

struct Reader {
    stage: Ingest,
    sources: Sources,
}

/// A decoded row.
struct Image {
    uri: Option<String>,
    file_digest: Option<String>,
    width: u32,
    height: u32,
    /// True for an anomalous image; `None` if it is not known.
    label: Option<bool>,
    caption: Option<String>,
    pixels: Vec<u8>,
    mask: Option<Vec<u8>>,
    mask_grey: Option<Vec<u8>>,
    /// 255 in the region that is judged; `None` if that is the whole photograph.
    roi: Option<Vec<u8>>,
    /// Notes on properties of the row that the user may not have intended.
    notes: Vec<NoteText>,
}

/// The files of a photograph.
struct Pictures {
    image: File,
    mask: Option<ListedMask>,
    region: Option<Region>,
}

/// The photograph of the last tile that was cut, whose next tiles may follow.
type LastPhotograph = Option<(String, Arc<Result<Scaled, Arc<Failure>>>)>;

impl Operator for Reader {
    fn run(&mut self, rows: &mut Rows, out: &mut Sink<'_>) -> Result<()> {
        let mut last = None;
        while let Some(batch) = rows.next(64)? {
            let images: Vec<Result<Image, Arc<Failure>>> = match (self.stage.dataset, self.stage.tile) {
                (Dataset::Synthetic, _) => {
                    let regions = Region::read(&batch, &self.sources)?.into_par_iter().enumerate();
                    regions.map(|(row, region)| self.generated(&batch, row, region).map_err(Arc::new)).collect()
                }
                (_, None) => {
                    let read = |(row, pictures)| self.photograph(&batch, row, pictures).map_err(Arc::new);
                    self.pictures(&batch)?.into_par_iter().enumerate().map(read).collect()
                }
                (_, Some(_)) => self.tiles(&batch, &mut last)?,
            };
            let mut good = Vec::with_capacity(images.len());
            for (row, image) in images.into_iter().enumerate() {
                match image {
                    Ok(image) => {
                        image.notes.iter().for_each(|note| out.note(note, &batch.ids[row]));
                        good.push((row as u32, image));
                    }
                    Err(failure) => out.fail_at(&batch.ids[row], failure.place(), failure)?,
                }
            }
            out.write_columns(self.columns(&batch, good)?)?;
        }
        Ok(())
    }
}

impl Reader {
    /// Reads the files of each row.
    fn pictures(&self, batch: &Batch) -> Result<Vec<Pictures>> {
        let files = self.stage.files(&self.sources).read(batch)?.into_iter();
        let regions = Region::read(batch, &self.sources)?;
        Ok(files.zip(regions).map(|((image, mask), region)| Pictures { image, mask, region }).collect())
    }

    fn photograph(&self, batch: &Batch, row: usize, pictures: Pictures) -> Result<Image, Failure> {
        let scaled = self.scaled(pictures)?;
        let cut = scaled.cut(scaled.whole).of_whole();
        let mut image = self.image(&scaled, cut, batch, row, label(batch, row, LABEL)?)?;
        image.notes.splice(..0, scaled.notes);
        Ok(image)
    }

    /// Reads the tiles of a batch. A photograph is decoded once for its tiles that follow each other.
    fn tiles(&self, batch: &Batch, last: &mut LastPhotograph) -> Result<Vec<Result<Image, Arc<Failure>>>> {
        let photographs = batch.column(SOURCE, columns::PHOTOGRAPH)?.as_string::<i32>();
        let groups = tiles::by_photograph(batch, photographs);
        let known = last.take().filter(|(id, _)| id == photographs.value(0)).map(|(_, scaled)| scaled);
        let new: Vec<u32> = groups.iter().skip(known.iter().len()).map(|(first, _)| *first as u32).collect();
        let pictures = self.pictures(&batch_of(batch.rows(SOURCE)?, &new)?)?;
        let scaled = pictures.into_par_iter().map(|pictures| Arc::new(self.scaled(pictures).map_err(Arc::new)));
        let scaled: Vec<_> = known.into_iter().chain(scaled.collect::<Vec<_>>()).collect();
        *last = scaled.last().map(|scaled| (photographs.value(batch.len() - 1).to_owned(), scaled.clone()));
        let of_row = groups.iter().zip(&scaled).flat_map(|((first, end), scaled)| vec![scaled; end - first]);
        let of_row: Vec<_> = of_row.enumerate().collect();
        let cut = |(row, scaled): (usize, &Arc<Result<Scaled, Arc<Failure>>>)| match &**scaled {
            Ok(scaled) => self.tile(scaled, batch, row).map_err(Arc::new),
            Err(failure) => Err(failure.clone()),
        };
        Ok(of_row.into_par_iter().map(cut).collect())
    }

    fn tile(&self, scaled: &Scaled, batch: &Batch, row: usize) -> Result<Image, Failure> {
        let place = |name| Ok::<_, Error>(batch.column(SOURCE, name)?.as_primitive::<Int32Type>().value(row));
        let side = |name| {
            let sides = batch.column(SOURCE, name)?.as_primitive::<UInt32Type>();
            Ok::<_, Error>(sides.is_valid(row).then(|| sides.value(row)))
        };
        let photograph = scaled.whole.photograph();
        // The tiles of a photograph were listed by its size.
        if (side(WIDTH)?, side(HEIGHT)?) != (Some(photograph.0), Some(photograph.1)) {
            return Err(Failure::Changed { place: scaled.place.clone() });
        }
        let (x, y) = (place(columns::X)?, place(columns::Y)?);
        let placement = Placement::tile(photograph, scaled.whole.scaled(), (x, y), self.stage.pixels());
        let of_photograph = label(batch, row, tiles::PHOTOGRAPH_LABEL)?;
        let mut image = self.image(scaled, scaled.cut(placement), batch, row, of_photograph)?;
        let label = match (of_photograph, &image.mask) {
            (Some(true), mask) => mask.as_ref().map(|mask| mask.iter().any(|pixel| *pixel > 0)),
            (other, _) => other,
        };
        // Notes on a photograph are those of its first tile.
        if x <= 0 && y <= 0 {
            image.notes.splice(..0, scaled.notes.iter().copied());
        }
        Ok(Image { label, ..image })
    }

    fn scaled(&self, Pictures { image, mask, region }: Pictures) -> Result<Scaled, Failure> {
        Scaled::read(image, mask, region, self.stage.exif_orientation, |size| self.stage.whole(size))
    }

    /// Makes a row of pixels that were cut out of a photograph, of which `label` says whether it is anomalous.
    fn image(
        &self,
        scaled: &Scaled,
        Cut { pixels, mask, mask_grey, roi, note }: Cut,
        batch: &Batch,
        row: usize,
        label: Option<bool>,
    ) -> Result<Image, Failure> {
        let (width, height) = scaled.whole.photograph();
        let caption = batch.column(SOURCE, CAPTION)?.as_string::<i32>();
        Ok(Image {
            uri: scaled.uri.clone(),
            file_digest: scaled.file_digest.clone(),
            width,
            height,
            label,
            caption: caption.is_valid(row).then(|| caption.value(row).to_owned()),
            pixels,
            // Without a mask, a normal photograph is known to have no anomalous pixel.
            mask: mask.or_else(|| (label == Some(false)).then(|| vec![0; self.stage.size.area()])),
            mask_grey,
            roi,
            notes: note.into_iter().collect(),
        })
    }

    fn generated(&self, batch: &Batch, row: usize, region: Option<Region>) -> Result<Image, Failure> {
        let spec = self.stage.synthetic.clone().unwrap_or_default();
        let text = |name| batch.column(SOURCE, name).map(|column| column.as_string::<i32>().value(row));
        let index = batch.column(SOURCE, "index")?.as_primitive::<UInt32Type>().value(row);
        let item = synthetic::Item {
            class: text(CLASS)?.parse()?,
            split: if text(SPLIT)? == TEST { synthetic::Split::Test } else { synthetic::Split::Train },
            defect: synthetic::Defect::ALL
                .into_iter()
                .find(|defect| text(DEFECT).is_ok_and(|name| name == defect.name())),
            index,
        };
        let [size, _] = self.stage.size.sides();
        let sample = synthetic::render(&item, spec.seed, size);
        let as_generated = (Orientation::NoTransforms, false);
        let region = region.map(|region| region.scaled(&item.image_id(), &sample.image, as_generated, (size, size)));
        let whole = Placement::stretched((size, size), (size, size));
        let region = region.transpose()?.map(|region: ScaledRegion| region.cut(whole));
        let Cut { pixels, mask, mask_grey, roi, note } =
            within(region, sample.image, Some([sample.mask.clone(), sample.mask])).of_whole();
        Ok(Image {
            uri: None,
            file_digest: None,
            width: size,
            height: size,
            label: Some(item.defect.is_some()),
            caption: Some(sample.caption),
            pixels,
            mask,
            mask_grey,
            roi,
            notes: note.into_iter().collect(),
        })
    }

    fn columns(&self, batch: &Batch, good: Vec<(u32, Image)>) -> Result<Vec<ArrayRef>> {
        let rows: UInt32Array = good.iter().map(|(row, _)| *row).collect();
        let listed = |name: &str| Ok::<_, Error>(arrow::compute::take(batch.column(SOURCE, name)?, &rows, None)?);
        let area = self.stage.size.area();
        let masks = |of: fn(&Image) -> Option<&Vec<u8>>| {
            let none = vec![0; area];
            let rows: Vec<&[u8]> = good.iter().map(|(_, image)| of(image).unwrap_or(&none).as_slice()).collect();
            let valid = good.iter().map(|(_, image)| of(image).is_some()).collect();
            tensor_column::<UInt8Type>(rows.concat(), area, Some(valid))
        };
        let pixels: Vec<&[u8]> = good.iter().map(|(_, image)| image.pixels.as_slice()).collect();
        let defects = if self.stage.tile.is_some() { tiles::PHOTOGRAPH_DEFECT } else { DEFECT };
        let defects = listed(defects)?.as_string::<i32>().clone();
        let defect = |row: usize, label| match label {
            Some(true) => defects.is_valid(row).then(|| defects.value(row)),
            Some(false) => Some(GOOD),
            None => None,
        };
        let defects = good.iter().enumerate().map(|(row, (_, image))| defect(row, image.label));
        let mut columns = vec![
            listed(IMAGE_ID)?,
            listed(CLASS)?,
            listed(SPLIT)?,
            Arc::new(BooleanArray::from_iter(good.iter().map(|(_, image)| image.label))),
            Arc::new(StringArray::from_iter(defects)),
            Arc::new(StringArray::from_iter(good.iter().map(|(_, image)| image.uri.as_deref()))),
            Arc::new(StringArray::from_iter(good.iter().map(|(_, image)| image.file_digest.as_deref()))),
            Arc::new(UInt32Array::from_iter_values(good.iter().map(|(_, image)| image.width))),
            Arc::new(UInt32Array::from_iter_values(good.iter().map(|(_, image)| image.height))),
            Arc::new(StringArray::from_iter(good.iter().map(|(_, image)| image.caption.as_deref()))),
            tensor_column::<UInt8Type>(pixels.concat(), area * 3, None)?,
            masks(|image| image.mask.as_ref())?,
            masks(|image| image.mask_grey.as_ref().or(image.mask.as_ref()))?,
        ];
        if self.stage.roi.is_some() {
            columns.push(masks(|image| image.roi.as_ref())?);
        }
        if self.stage.tile.is_some() {
            for field in columns::fields() {
                columns.push(listed(field.name())?);
            }
        }
        Ok(columns)
    }
}

/// Returns the label in a column of a listing; `None` if it is not known.
fn label(batch: &Batch, row: usize, column: &str) -> Result<Option<bool>> {
    let labels = batch.column(SOURCE, column)?.as_boolean();
    Ok(labels.is_valid(row).then(|| labels.value(row)))
}
