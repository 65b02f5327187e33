//! What a report is made from: which published tables, which rows of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use arrow::{
    array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, RecordBatch, StringArray},
    compute::{cast, concat_batches},
    datatypes::{DataType, Float32Type, Float64Type, SchemaRef},
};

use crate::{
    engine::{
        Error, Result,
        stage::StageKind,
        store::{Manifest, Store, history, tensor_shape},
    },
    query::{self, Session},
};

const IMAGE_ID: &str = "image_id";

/// Ids in one `in (…)`: what is held at once, against how often a table is scanned.
const CHUNK: usize = 256;

/// The published tables of a pipeline, in pipeline order.
pub struct Source {
    /// The pipeline's name.
    pub pipeline: String,
    /// The current manifest of each table; of a swept one that of each instance.
    pub tables: Vec<Manifest>,
    /// The slots of the tables that the last run looked at.
    ran_last: BTreeSet<String>,
    kinds: &'static [StageKind],
    session: Session,
}

impl Source {
    /// Opens a pipeline's tables; by default those of the pipeline that published last. `kinds` gives the order of the tables
    /// and says what their stages do.
    ///
    /// # Errors
    /// [`Error::Input`] where the store has no such pipeline, or nothing at all.
    pub fn open(store: &Store, pipeline: Option<&str>, kinds: &'static [StageKind]) -> Result<Self> {
        let all = query::manifests(store)?;
        let Some((latest, _)) = all.iter().max_by_key(|(_, manifest)| manifest.published_ms) else {
            return Err(Error::Input(format!(
                "the store {} has no published table; run a pipeline first, such as `vlmdiff run pipelines/quickstart.yaml`",
                store.url
            )));
        };
        let pipeline = pipeline.unwrap_or(latest).to_owned();
        let session = Session::open(store, Some(&pipeline))?;
        let mut tables: Vec<Manifest> =
            all.into_iter().filter(|(name, _)| *name == pipeline).map(|(_, manifest)| manifest).collect();
        let order =
            |table: &Manifest| kinds.iter().position(|kind| kind.name == table.made.stage).unwrap_or(kinds.len());
        tables.sort_by(|a, b| {
            let tables = (order(a), &a.table).cmp(&(order(b), &b.table));
            tables.then_with(|| a.variant.by_values(&b.variant))
        });
        let runs = history::runs(store)?.into_iter().filter(|run| run.pipeline == pipeline);
        let ran_last = runs.map(|run| run.versions()).rfind(|tables| !tables.is_empty()).unwrap_or_default();
        Ok(Self { pipeline, tables, ran_last: ran_last.into_keys().collect(), kinds, session })
    }

    /// What a stage does, in a sentence or two.
    pub(super) fn about(&self, stage: &str) -> String {
        self.kind(stage).map(StageKind::about).unwrap_or_default()
    }

    /// What one of the words that a parameter takes means; `of` is the type of these words.
    pub(super) fn about_word(&self, stage: &str, of: &str, word: &str) -> Option<String> {
        let schema = (self.kind(stage)?.schema)();
        let words = schema.pointer(&format!("/$defs/{of}/oneOf"))?.as_array()?;
        let about = words.iter().find(|known| known["const"] == word)?.get("description")?;
        Some(about.as_str()?.replace('\n', " "))
    }

    fn kind(&self, stage: &str) -> Option<&StageKind> {
        self.kinds.iter().find(|kind| kind.name == stage)
    }

    /// The tables that a stage made.
    pub(super) fn of_stage<'a>(&'a self, stage: &'a str) -> impl Iterator<Item = &'a Manifest> {
        self.tables.iter().filter(move |table| table.made.stage == stage)
    }

    /// The stage's table that one of `below` was made from; else one of their swept values, of the last run, published last.
    pub(super) fn table<'a>(&'a self, stage: &'a str, below: &[Option<&Manifest>]) -> Option<&'a Manifest> {
        let below = || below.iter().flatten();
        self.of_stage(stage).max_by_key(|table| {
            let name = table.variant.name(&table.table);
            let is_input = below().any(|b| b.made.inputs.iter().any(|(input, _)| *input == name));
            let fits = below().any(|b| table.variant.is_part_of(&b.variant));
            let ran_last = self.ran_last.contains(&table.variant.slot(&table.table));
            (is_input, fits, ran_last, table.published_ms)
        })
    }

    /// The rows of a query in one batch.
    pub(super) fn query(&self, sql: &str) -> Result<RecordBatch> {
        let (schema, batches) = self.session.query(sql)?;
        Ok(concat_batches(&schema, &batches)?)
    }

    /// All rows of a table.
    pub(super) fn rows(&self, table: &Manifest) -> Result<RecordBatch> {
        self.query(&format!("select * from {}", self.name(table)))
    }

    /// Calls `each` with the values of `columns` in the rows with these ids, one row at a time.
    pub(super) fn for_rows<'a>(
        &self,
        table: &Manifest,
        columns: &[&str],
        ids: impl Iterator<Item = &'a str>,
        mut each: impl FnMut(&str, &[ArrayRef], usize) -> Result<()>,
    ) -> Result<()> {
        let ids: Vec<String> = ids.map(|id| format!("'{}'", id.replace('\'', "''"))).collect();
        for chunk in ids.chunks(CHUNK) {
            let sql = format!(
                "select {IMAGE_ID}, {} from {} where {IMAGE_ID} in ({})",
                columns.join(", "),
                self.name(table),
                chunk.join(", ")
            );
            for batch in self.session.query(&sql)?.1 {
                let names = text(&batch, IMAGE_ID)?;
                for row in 0..batch.num_rows() {
                    each(names.value(row), &batch.columns()[1..], row)?;
                }
            }
        }
        Ok(())
    }

    /// The test images with their scores and captions, in order of their ids.
    pub(super) fn test_images(
        &self,
        images: &Manifest,
        captions: Option<&Manifest>,
        maps: Option<&Manifest>,
    ) -> Result<Vec<TestImage>> {
        let given = self.query(&format!(
            "select {IMAGE_ID}, class, defect, label, caption from {} where split = 'test' order by {IMAGE_ID}",
            self.name(images)
        ))?;
        let mut written = HashMap::new();
        if let Some(captions) = captions {
            let batch = self.query(&format!("select {IMAGE_ID}, caption from {}", self.name(captions)))?;
            let (ids, texts) = (text(&batch, IMAGE_ID)?, text(&batch, "caption")?);
            written.extend((0..batch.num_rows()).map(|row| (ids.value(row).to_owned(), texts.value(row).to_owned())));
        }
        let mut scores = HashMap::new();
        if let Some(maps) = maps {
            let batch = self.query(&format!("select {IMAGE_ID}, score from {}", self.name(maps)))?;
            let (ids, values) = (text(&batch, IMAGE_ID)?, cast(column(&batch, "score")?, &DataType::Float32)?);
            let values = values.as_primitive::<Float32Type>();
            scores.extend((0..batch.num_rows()).map(|row| (ids.value(row).to_owned(), values.value(row))));
        }
        let [ids, classes, defects, own] = [IMAGE_ID, "class", "defect", "caption"].map(|name| text(&given, name));
        let (ids, classes, defects, own) = (ids?, classes?, defects?, own?);
        let labels = column(&given, "label")?.as_boolean();
        Ok((0..given.num_rows())
            .map(|row| {
                let id = ids.value(row).to_owned();
                let caption = written.remove(&id).or_else(|| own.is_valid(row).then(|| own.value(row).to_owned()));
                TestImage {
                    class: classes.value(row).to_owned(),
                    defect: defects.value(row).to_owned(),
                    anomalous: labels.value(row),
                    caption: caption.filter(|caption| !caption.trim().is_empty()),
                    score: scores.get(&id).copied().filter(|score| !score.is_nan()),
                    id,
                }
            })
            .collect())
    }

    /// What SQL calls the table, of a swept one this very instance.
    fn name(&self, table: &Manifest) -> String {
        [&self.pipeline, &table.variant.slot(&table.table)]
            .map(|name| format!("\"{}\"", name.replace('"', "\"\"")))
            .join(".")
    }
}

/// A test image without its pixels.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TestImage {
    /// Its `image_id`.
    pub id: String,
    /// Its class.
    pub class: String,
    /// Its kind of defect; `good` for none.
    pub defect: String,
    /// Whether it is anomalous.
    pub anomalous: bool,
    /// Its caption.
    pub caption: Option<String>,
    /// Its anomaly score; higher is more anomalous.
    pub score: Option<f32>,
}

/// Which images to show, by index, the highest score first: of each class and kind of defect the `per_kind` with the highest
/// scores, of normal images also the `per_kind` with the lowest, and at most `limit` in all, spread over classes and kinds.
pub(super) fn choose(images: &[TestImage], per_kind: usize, limit: usize) -> Vec<usize> {
    let descending = |a: &usize, b: &usize| {
        let score = |i: &usize| images[*i].score.unwrap_or(f32::NEG_INFINITY);
        score(b).total_cmp(&score(a)).then_with(|| images[*a].id.cmp(&images[*b].id))
    };
    let mut kinds: BTreeMap<(&str, bool, &str), Vec<usize>> = BTreeMap::new();
    for (i, image) in images.iter().enumerate() {
        kinds.entry((&image.class, !image.anomalous, &image.defect)).or_default().push(i);
    }
    // The first of every kind, then the second of every kind, and so on: what a limit cuts off is what matters least.
    let mut ranked: Vec<(usize, usize)> = Vec::new();
    for ((_, normal, _), mut members) in kinds {
        members.sort_by(descending);
        ranked.extend(members.iter().copied().take(per_kind).enumerate());
        if normal {
            members.retain(|i| images[*i].score.is_some());
            ranked.extend(members.iter().rev().copied().take(per_kind).enumerate());
        }
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut seen = vec![false; images.len()];
    let mut chosen: Vec<usize> =
        ranked.into_iter().map(|(_, i)| i).filter(|i| !std::mem::replace(&mut seen[*i], true)).take(limit).collect();
    chosen.sort_by(descending);
    chosen
}

/// A column of a batch.
pub(super) fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a ArrayRef> {
    batch.column_by_name(name).ok_or_else(|| Error::Stage(format!("a table lacks the column `{name}`")))
}

/// A column as text, whatever kind of text SQL made of it.
pub(super) fn text(batch: &RecordBatch, name: &str) -> Result<StringArray> {
    Ok(cast(column(batch, name)?, &DataType::Utf8)?.as_string::<i32>().clone())
}

/// A column as numbers; null stays null.
pub(super) fn numbers(batch: &RecordBatch, name: &str) -> Result<Vec<Option<f64>>> {
    Ok(cast(column(batch, name)?, &DataType::Float64)?.as_primitive::<Float64Type>().iter().collect())
}

/// The dimensions of a tensor column.
pub(super) fn shape<const N: usize>(table: &Manifest, name: &str) -> Result<[usize; N]> {
    let schema = table.schema()?;
    let shape = tensor_shape(schema.field_with_name(name)?).and_then(|shape| shape.try_into().ok());
    shape.ok_or_else(|| {
        Error::Stage(format!("table `{}`: the column `{name}` holds no tensors of {N} dimensions", table.table))
    })
}

/// The values of one row of a tensor column; `None` where it is null.
pub(super) fn tensor<T: ArrowPrimitiveType>(column: &ArrayRef, row: usize) -> Result<Option<Vec<T::Native>>> {
    let lists = column.as_fixed_size_list_opt().filter(|lists| lists.value_type() == T::DATA_TYPE);
    let lists = lists.ok_or_else(|| {
        Error::Stage(format!("a tensor of {} was expected where {} stands", T::DATA_TYPE, column.data_type()))
    })?;
    Ok(lists.is_valid(row).then(|| lists.value(row).as_primitive::<T>().values().to_vec()))
}

/// The names of the columns with floating-point numbers of 64 bits, which in a table of metrics are the metrics.
pub(super) fn measures(schema: &SchemaRef) -> Vec<String> {
    schema
        .fields()
        .iter()
        .filter(|field| *field.data_type() == DataType::Float64)
        .map(|field| field.name().clone())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(class: &str, defect: &str, number: usize, score: Option<f32>) -> TestImage {
        let id = format!("{class}/{defect}/{number:03}");
        TestImage { id, class: class.into(), defect: defect.into(), anomalous: defect != "good", caption: None, score }
    }

    fn ids(images: &[TestImage], chosen: &[usize]) -> Vec<String> {
        chosen.iter().map(|i| images[*i].id.clone()).collect()
    }

    #[test]
    fn defects_by_highest_score_and_normal_images_from_both_ends() {
        let scored = |defect, scores: &[f32]| {
            scores.iter().enumerate().map(|(i, s)| image("a", defect, i, Some(*s))).collect::<Vec<_>>()
        };
        let images = [scored("good", &[0.1, 0.5, 0.2, 0.3, 0.4]), scored("hole", &[0.9, 0.8, 1.0])].concat();
        assert_eq!(
            ids(&images, &choose(&images, 2, 99)),
            ["a/hole/002", "a/hole/000", "a/good/001", "a/good/004", "a/good/002", "a/good/000"]
        );
    }

    #[test]
    fn an_image_is_shown_once_and_a_limit_is_shared() {
        let images: Vec<TestImage> = ["a", "b", "c"]
            .into_iter()
            .flat_map(|class| {
                ["good", "hole"]
                    .into_iter()
                    .flat_map(move |defect| (0..3).map(move |i| image(class, defect, i, Some(i as f32))))
            })
            .collect();
        assert_eq!(choose(&images, 9, 99).len(), images.len());
        let few = choose(&images, 9, 9);
        // Of each class its best defect, its highest and its lowest normal image.
        assert_eq!(few.len(), 9);
        for class in ["a", "b", "c"] {
            let of_class: Vec<&str> =
                few.iter().map(|i| &images[*i]).filter(|i| i.class == class).map(|i| &i.id[2..]).collect();
            assert_eq!(of_class.len(), 3, "{of_class:?}");
            assert!(["good/000", "good/002", "hole/002"].iter().all(|id| of_class.contains(id)), "{of_class:?}");
        }
        assert!(choose(&images, 0, 9).is_empty() && choose(&[], 4, 9).is_empty());
    }

    #[test]
    fn without_scores_the_first_of_each_kind() {
        let images: Vec<TestImage> = (0..5).map(|i| image("a", "good", i, None)).collect();
        assert_eq!(choose(&images, 2, 9), [0, 1]);
    }
}
