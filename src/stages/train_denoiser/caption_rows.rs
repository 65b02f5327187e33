//! The captions of a training's images, as embeddings that lie in a file.

use std::collections::{HashMap, hash_map::Entry};

use arrow::datatypes::{Float32Type, ToByteSlice};
use tch::Tensor;

use crate::{
    engine::{Digest, Result, stage::Batch},
    tables::{
        column::missing,
        embeddings::{EMBEDDING, TEXT},
        tensor::tensor_row,
    },
    training::{MicroBatch, TrainingRows},
};

/// The place of the captions of a training's images.
pub(super) enum Captions {
    /// One caption for all images, whose embedding is [1, T, D].
    Shared(Tensor),
    /// Each image's own, `[N, T, D]` at the port [`TEXT`].
    Own([usize; 3]),
}

/// The captions of all images, of which each image has equally many. Equal ones are kept once, and only those of a batch
/// are in memory.
pub(super) struct CaptionRows {
    /// The distinct embeddings, [U, T, D].
    distinct: TrainingRows,
    /// The positions of the distinct embeddings by their digests.
    known: HashMap<Digest, i64>,
    /// The position in `distinct` of each caption, image by image.
    positions: Vec<i64>,
    /// The number of captions of an image.
    per_image: usize,
}

impl CaptionRows {
    /// Makes the captions of so many images; if each has its own, they are still to be pushed. `distinct` is empty.
    pub(super) fn new(captions: &Captions, images: usize, mut distinct: TrainingRows) -> Result<Self> {
        let (per_image, positions) = match captions {
            Captions::Shared(embedding) => {
                distinct.push(embedding)?;
                (1, vec![0; images])
            }
            Captions::Own([count, ..]) => (*count, Vec::with_capacity(count * images)),
        };
        Ok(Self { distinct, known: HashMap::new(), positions, per_image })
    }

    /// Appends the captions of the images of a batch. An image without embeddings is an error.
    pub(super) fn push(&mut self, batch: &Batch, [_, tokens, width]: [usize; 3]) -> Result<()> {
        let embeddings = batch.column(TEXT, EMBEDDING)?;
        for (row, id) in batch.ids.iter().enumerate() {
            let values = tensor_row::<Float32Type>(embeddings, row)?.ok_or_else(|| missing(id, TEXT, EMBEDDING))?;
            for embedding in values.chunks_exact(tokens * width) {
                let next = self.known.len() as i64;
                let position = match self.known.entry(Digest::of(embedding.to_byte_slice())) {
                    Entry::Occupied(known) => *known.get(),
                    Entry::Vacant(new) => {
                        let embedding = Tensor::f_from_slice(embedding)?;
                        self.distinct.push(&embedding.f_view([1, tokens as i64, width as i64])?)?;
                        *new.insert(next)
                    }
                };
                self.positions.push(position);
            }
        }
        Ok(())
    }

    /// Returns a caption of each image of a batch, [B, T, D]. Of several captions of an image, one is drawn in each epoch.
    pub(super) fn drawn(&self, batch: &MicroBatch, seed: u64) -> Result<Tensor> {
        let choices = batch.choices(seed, self.per_image as u32);
        let position = |(row, choice): (&i64, usize)| self.positions[*row as usize * self.per_image + choice];
        let positions: Vec<i64> = batch.rows.iter().zip(choices).map(position).collect();
        Ok(self.distinct.at(&positions)?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::RecordBatch;
    use tch::{Device, Kind};

    use super::*;
    use crate::tables::{embeddings, tensor::tensor_column};

    /// The captions of three images: three of 2 tokens of 1 number each, of which two of the last image are equal.
    const EMBEDDINGS: [[f32; 6]; 3] = [[0., 1., 2., 3., 4., 5.], [0., 1., 6., 7., 8., 9.], [2., 3., 4., 5., 2., 3.]];

    fn rows() -> TrainingRows {
        TrainingRows::new(&std::env::temp_dir()).unwrap()
    }

    fn batch(valid: [bool; 3]) -> Batch {
        let ids = ["a", "b", "c"].map(str::to_owned);
        let embeddings = tensor_column::<Float32Type>(EMBEDDINGS.concat(), 6, Some(valid.into())).unwrap();
        let field = embeddings::schema(Some(3), [2, 1]).field(1).clone().with_nullable(true);
        let schema = Arc::new(arrow::datatypes::Schema::new(vec![field]));
        let rows = RecordBatch::try_new(schema, vec![embeddings]).unwrap();
        Batch::new(ids.into(), vec![(TEXT.into(), rows)])
    }

    fn of_epoch(epoch: u64) -> MicroBatch {
        MicroBatch { number: epoch, step: epoch, epoch, rows: vec![2, 0, 1], is_logged: false }
    }

    #[test]
    fn each_image_has_one_of_its_own_captions_and_in_time_all_of_them() {
        let shape = [3, 2, 1];
        let mut captions = CaptionRows::new(&Captions::Own(shape), 3, rows()).unwrap();
        captions.push(&batch([true; 3]), shape).unwrap();
        assert_eq!(captions.distinct.len(), 5, "equal captions are kept once");
        let mut seen = [[0; 3]; 3];
        for epoch in 0..90 {
            let drawn = captions.drawn(&of_epoch(epoch), 4).unwrap();
            assert_eq!(drawn.size(), [3, 2, 1]);
            let values = Vec::<f32>::try_from(drawn.view([-1])).unwrap();
            for (image, values) in [2, 0, 1].into_iter().zip(values.chunks(2)) {
                let own = EMBEDDINGS[image].chunks(2).position(|own| own == values);
                seen[image][own.unwrap_or_else(|| panic!("{values:?} is no caption of image {image}"))] += 1;
            }
            assert_eq!(drawn, captions.drawn(&of_epoch(epoch), 4).unwrap());
        }
        // 30 of 90 are expected, with a standard deviation of 4.5.
        assert!(seen[..2].iter().flatten().all(|count| (8..53).contains(count)), "{seen:?}");
        assert!((38..83).contains(&seen[2][0]) && seen[2][2] == 0, "{seen:?}");
    }

    #[test]
    fn image_without_embeddings_is_an_error() {
        let shape = [3, 2, 1];
        let mut captions = CaptionRows::new(&Captions::Own(shape), 3, rows()).unwrap();
        let error = captions.push(&batch([true, false, true]), shape).unwrap_err().to_string();
        assert!(error.starts_with("b: `text_embeddings` has no `embedding`"), "{error}");
    }

    #[test]
    fn shared_caption_is_that_of_every_image() {
        let embedding = Tensor::from_slice(&[1_f32, 2.]).view([1, 2, 1]);
        let captions = CaptionRows::new(&Captions::Shared(embedding.shallow_clone()), 3, rows()).unwrap();
        let drawn = captions.drawn(&of_epoch(7), 4).unwrap();
        assert_eq!((drawn.size(), drawn.kind()), (vec![3, 2, 1], Kind::Float));
        assert_eq!(drawn, embedding.expand([3, -1, -1], true).to_device(Device::Cpu));
    }
}
