//! The published tables, and the rows of them, from which a report is made.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, HashMap},
};

use arrow::{
    array::{Array, ArrayRef, AsArray, RecordBatch, StringArray},
    compute::{cast, concat_batches},
    datatypes::{DataType, Float32Type},
};

use crate::{
    engine::{
        Error, Result,
        stage::StageKind,
        store::{Manifest, Run, Store, history},
    },
    query::{self, Session},
    tables::{
        Role,
        anomaly_maps::SCORE,
        captions::CAPTION,
        column::{self, column, numbers, text},
        images::{self, CLASS, DEFECT, FILE_DIGEST, HEIGHT, IMAGE_ID, LABEL, SPLIT, TEST, URI, WIDTH},
        reconstructions, tiles,
    },
};

/// The number of ids in one `in (…)`. More ids mean fewer scans of a table and more rows in memory.
const CHUNK: usize = 256;

/// The published tables of a pipeline, in pipeline order.
pub struct Source {
    /// The pipeline's name.
    pub pipeline: String,
    /// The current manifest of each table, and of each instance of a swept table.
    pub tables: Vec<Manifest>,
    /// The roles of each table, by slot.
    roles: BTreeMap<String, Vec<Role>>,
    /// The last run of the pipeline that reached a table.
    pub(super) last_run: Option<Run>,
    /// The slots of the tables that it looked at.
    ran_last: BTreeSet<String>,
    kinds: &'static [StageKind],
    session: Session,
}

impl Source {
    /// Opens a pipeline's tables; by default those of the pipeline that ran last, which bare names of SQL mean too.
    /// `kinds` gives the order of the tables and describes their stages.
    ///
    /// # Errors
    /// [`Error::Input`] if the store has no such pipeline, or no published table.
    pub fn open(store: &Store, pipeline: Option<&str>, kinds: &'static [StageKind]) -> Result<Self> {
        let all = query::manifests(store)?;
        let nothing = || {
            Error::Input(format!(
                "the store {} has no published table; run a pipeline first, such as `vlmdiff run pipelines/quickstart.yaml`",
                store.url
            ))
        };
        if all.is_empty() {
            return Err(nothing());
        }
        let pipeline = match pipeline {
            Some(name) => name.to_owned(),
            None => query::latest(store, &all.iter().map(|(name, _)| name.as_str()).collect())?.ok_or_else(nothing)?,
        };
        let session = Session::open(store, Some(&pipeline))?;
        let mut tables: Vec<Manifest> =
            all.into_iter().filter(|(name, _)| *name == pipeline).map(|(_, manifest)| manifest).collect();
        let order =
            |table: &Manifest| kinds.iter().position(|kind| kind.name == table.made.stage).unwrap_or(kinds.len());
        tables.sort_by(|a, b| {
            let tables = (order(a), &a.table).cmp(&(order(b), &b.table));
            tables.then_with(|| a.variant.by_values(&b.variant))
        });
        let mut runs = history::runs(store)?.into_iter().filter(|run| run.pipeline == pipeline);
        let last_run = runs.rfind(|run| !run.versions().is_empty());
        let ran_last = last_run.iter().flat_map(|run| run.versions().into_keys()).collect();
        let role = |table: &Manifest| Ok((slot(table), Role::of(&*table.schema()?)));
        let roles = tables.iter().map(role).collect::<Result<_>>()?;
        Ok(Self { pipeline, tables, roles, last_run, ran_last, kinds, session })
    }

    /// Returns the description of a stage, in a sentence or two.
    pub(super) fn about(&self, stage: &str) -> String {
        self.kind(stage).map(StageKind::about).unwrap_or_default()
    }

    /// Returns the words in which a stage describes the image with which a map compares a reconstruction, and whether
    /// that is the autoencoded one; `None` if its parameters do not say.
    pub(super) fn compared(&self, maps: &Manifest) -> Option<(String, bool)> {
        let reference = maps.made.params.get("reference")?.as_str()?;
        let about = self.about_word(&maps.made.stage, "Reference", reference)?;
        Some((about, reference == reconstructions::AUTOENCODED))
    }

    /// Returns the description of a word that a parameter takes; `of` is the name of the word's type in the JSON
    /// Schema.
    pub(super) fn about_word(&self, stage: &str, of: &str, word: &str) -> Option<String> {
        let schema = (self.kind(stage)?.schema)();
        let words = schema.pointer(&format!("/$defs/{of}/oneOf"))?.as_array()?;
        let about = words.iter().find(|known| known["const"] == word)?.get("description")?;
        Some(about.as_str()?.replace('\n', " "))
    }

    fn kind(&self, stage: &str) -> Option<&StageKind> {
        self.kinds.iter().find(|kind| kind.name == stage)
    }

    /// Returns the tables that have a role, whatever stages made them.
    pub(super) fn of_role(&self, role: Role) -> impl Iterator<Item = &Manifest> {
        self.tables.iter().filter(move |table| self.has_role(table, role))
    }

    /// Returns the tables with anomaly maps of whole photographs.
    pub(super) fn maps_of_photographs(&self) -> impl Iterator<Item = &Manifest> {
        self.of_role(Role::AnomalyMaps).filter(|table| !self.is_about_tiles(table))
    }

    fn has_role(&self, table: &Manifest, role: Role) -> bool {
        self.roles.get(&slot(table)).is_some_and(|roles| roles.contains(&role))
    }

    /// Returns the table of a role from which one of `below` was made, by the fewest steps. Among equals, a table about
    /// photographs is preferred to one about tiles of them, then a table whose swept values one of `below` shares, then
    /// one of the last run, then one that is not made from a table of the role, then the one that was published last.
    pub(super) fn table(&self, role: Role, below: &[Option<&Manifest>]) -> Option<&Manifest> {
        let below = || below.iter().flatten();
        self.of_role(role).max_by_key(|table| {
            let steps = below().filter_map(|below| self.steps(below, table)).min();
            let fits = below().any(|b| table.variant.is_part_of(&b.variant));
            let ran_last = self.ran_last.contains(&slot(table));
            let is_first = !self.inputs(table).any(|input| self.has_role(input, role));
            let is_whole = !self.is_about_tiles(table);
            (Reverse(steps.unwrap_or(usize::MAX)), is_whole, fits, ran_last, is_first, table.published_ms)
        })
    }

    /// Returns true if the rows of a table are tiles, or are made from images that are all tiles.
    fn is_about_tiles(&self, table: &Manifest) -> bool {
        let are_tiles = |table: &Manifest| table.schema().is_ok_and(|schema| tiles::are_in(&schema));
        let mut images = self.inputs(table).filter(|input| self.has_role(input, Role::Images)).peekable();
        are_tiles(table) || (images.peek().is_some() && images.all(are_tiles))
    }

    /// Returns the tables from which a table was made directly.
    pub(super) fn inputs<'a>(&'a self, table: &'a Manifest) -> impl Iterator<Item = &'a Manifest> {
        let is_input = |other: &&Manifest| {
            let name = other.variant.name(&other.table);
            table.made.inputs.iter().any(|(input, _)| *input == name)
        };
        self.tables.iter().filter(is_input)
    }

    /// Returns the tables from which a table was made, directly or not, the nearest first, each with the number of steps up to
    /// it.
    pub(super) fn ancestors<'a>(&'a self, table: &'a Manifest) -> Vec<(usize, &'a Manifest)> {
        let mut seen = BTreeSet::from([slot(table)]);
        let mut found = vec![(0, table)];
        let mut next = 0;
        while let Some((steps, below)) = found.get(next).copied() {
            let inputs = self.inputs(below).filter(|input| seen.insert(slot(input)));
            found.extend(inputs.map(|input| (steps + 1, input)));
            next += 1;
        }
        found.split_off(1)
    }

    /// Returns the number of steps from a table up to one from which it was made; `None` if it was not made from that.
    fn steps(&self, table: &Manifest, from: &Manifest) -> Option<usize> {
        let is_from = |(_, above): &(usize, &Manifest)| slot(above) == slot(from);
        self.ancestors(table).into_iter().find(is_from).map(|(steps, _)| steps)
    }

    /// Returns the rows of a query in one batch.
    pub(super) fn query(&self, sql: &str) -> Result<RecordBatch> {
        let (schema, batches) = self.session.query(sql)?;
        Ok(concat_batches(&schema, &batches)?)
    }

    /// Returns all rows of a table.
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
        let (id, name) = (id_of(table)?, self.name(table));
        for chunk in ids.chunks(CHUNK) {
            let sql = format!(
                "select {id} as {IMAGE_ID}, {} from {name} where {id} in ({})",
                columns.join(", "),
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

    /// Returns the test images with their scores and captions, in the order of their ids.
    pub(super) fn test_images(
        &self,
        images: &Manifest,
        captions: Option<&Manifest>,
        maps: Option<&Manifest>,
    ) -> Result<Vec<TestImage>> {
        let given = self.query(&self.select_test_images(images)?)?;
        let mut written = HashMap::new();
        if let Some(captions) = captions {
            let (ids, texts) = self.by_id(captions, CAPTION)?;
            let texts = cast(&texts, &DataType::Utf8)?;
            let texts =
                ids.into_iter().zip(texts.as_string::<i32>()).filter_map(|(id, text)| Some((id, text?.to_owned())));
            written.extend(texts);
        }
        let mut scores = HashMap::new();
        if let Some(maps) = maps {
            let (ids, values) = self.by_id(maps, SCORE)?;
            let values = cast(&values, &DataType::Float32)?;
            let values = values.as_primitive::<Float32Type>();
            scores.extend(ids.into_iter().zip(values).filter_map(|(id, score)| Some((id, score?))));
        }
        let [ids, classes, defects, own] = [IMAGE_ID, CLASS, DEFECT, CAPTION].map(|name| text(&given, name));
        let (ids, classes, defects, own) = (ids?, classes?, defects?, own?);
        let labels = column(&given, LABEL)?.as_boolean();
        Ok((0..given.num_rows())
            .map(|row| {
                let id = ids.value(row).to_owned();
                let caption = written.remove(&id).or_else(|| own.is_valid(row).then(|| own.value(row).to_owned()));
                TestImage {
                    class: classes.value(row).to_owned(),
                    defect: if defects.is_valid(row) { defects.value(row).to_owned() } else { UNLABELLED.to_owned() },
                    anomalous: labels.is_valid(row).then(|| labels.value(row)),
                    caption: caption.filter(|caption| !caption.trim().is_empty()),
                    score: scores.get(&id).copied().filter(|score| !score.is_nan()),
                    id,
                }
            })
            .collect())
    }

    /// Returns true for a table with captions of which one is not empty.
    pub(super) fn describes(&self, table: &Manifest) -> Result<bool> {
        if !self.has_role(table, Role::Captions) {
            return Ok(false);
        }
        let found = self.query(&format!("select {CAPTION} from {} where {CAPTION} <> '' limit 1", self.name(table)))?;
        Ok(found.num_rows() > 0)
    }

    /// Returns the query of the test images. A table of images may lack split, kind of defect and caption.
    fn select_test_images(&self, images: &Manifest) -> Result<String> {
        let (schema, id) = (images.schema()?, id_of(images)?);
        let has = |name| column::has(&schema, name, &DataType::Utf8);
        let defect = if has(DEFECT) {
            DEFECT.to_owned()
        } else {
            format!("case when {LABEL} then 'anomalous' when not {LABEL} then 'normal' end as {DEFECT}")
        };
        let caption = if has(CAPTION) { CAPTION.to_owned() } else { format!("cast(null as varchar) as {CAPTION}") };
        let tested = if has(SPLIT) { format!("where {SPLIT} = '{TEST}'") } else { String::new() };
        let name = self.name(images);
        Ok(format!(
            "select {id} as {IMAGE_ID}, {CLASS}, {defect}, {LABEL}, {caption} from {name} {tested} order by {id}"
        ))
    }

    /// Returns all images of a table with the places of their photographs, in the order of their ids. A table may lack
    /// the columns that say where a photograph lies and how large it is.
    pub(super) fn stored_images(&self, images: &Manifest) -> Result<Vec<Stored>> {
        let (schema, id) = (images.schema()?, id_of(images)?);
        let or_null = |name: &str, of: &str| match schema.field_with_name(name) {
            Ok(_) => name.to_owned(),
            Err(_) => format!("cast(null as {of}) as {name}"),
        };
        let texts = [URI, FILE_DIGEST].map(|name| or_null(name, "varchar")).join(", ");
        let sides = [WIDTH, HEIGHT].map(|name| or_null(name, "integer")).join(", ");
        let name = self.name(images);
        let rows =
            self.query(&format!("select {id} as {IMAGE_ID}, {CLASS}, {texts}, {sides} from {name} order by {id}"))?;
        let [ids, classes, uris, digests] = [IMAGE_ID, CLASS, URI, FILE_DIGEST].map(|name| text(&rows, name));
        let (ids, classes, uris, digests) = (ids?, classes?, uris?, digests?);
        let [widths, heights] = [WIDTH, HEIGHT].map(|name| numbers(&rows, name));
        let (widths, heights) = (widths?, heights?);
        let optional = |column: &StringArray, row: usize| column.is_valid(row).then(|| column.value(row).to_owned());
        let image = |row: usize| Stored {
            id: ids.value(row).to_owned(),
            class: classes.value(row).to_owned(),
            uri: optional(&uris, row),
            digest: optional(&digests, row),
            size: widths[row].zip(heights[row]).map(|(width, height)| (width as u32, height as u32)),
        };
        Ok((0..rows.num_rows()).map(image).collect())
    }

    /// Returns the ids of a table and the values of a column.
    pub(super) fn by_id(&self, table: &Manifest, name: &str) -> Result<(Vec<String>, ArrayRef)> {
        let batch = self.query(&format!("select {} as {IMAGE_ID}, {name} from {}", id_of(table)?, self.name(table)))?;
        let ids = text(&batch, IMAGE_ID)?.iter().map(|id| id.unwrap_or_default().to_owned()).collect();
        Ok((ids, column(&batch, name)?.clone()))
    }

    /// Returns the name of a table in SQL; for a swept table it names a single instance.
    fn name(&self, table: &Manifest) -> String {
        [&self.pipeline, &slot(table)].map(|name| quoted(name)).join(".")
    }
}

/// Quotes a name for SQL.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// Returns the name under which the store keeps a table.
fn slot(table: &Manifest) -> String {
    table.variant.slot(&table.table)
}

/// Returns the column with the ids of a table's images, quoted for SQL.
fn id_of(table: &Manifest) -> Result<String> {
    let schema = table.schema()?;
    let id = images::id_column(&schema).map(quoted);
    id.ok_or_else(|| Error::Stage(format!("table `{}` has no ids of images", table.table)))
}

/// The kind of defect of an image without one in its table.
pub(super) const UNLABELLED: &str = "unlabelled";

/// An image and the place of its photograph.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Stored {
    /// Its `image_id`.
    pub id: String,
    /// Its class.
    pub class: String,
    /// The address of its photograph; `None` for a generated image.
    pub uri: Option<String>,
    /// The digest of the photograph when it was read.
    pub digest: Option<String>,
    /// Width and height of the photograph.
    pub size: Option<(u32, u32)>,
}

/// A test image without its pixels.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TestImage {
    /// Its `image_id`.
    pub id: String,
    /// Its class.
    pub class: String,
    /// Its kind of defect; `good` for none, [`UNLABELLED`] if it is not known.
    pub defect: String,
    /// True if it is anomalous; `None` if that is not known.
    pub anomalous: Option<bool>,
    /// Its caption.
    pub caption: Option<String>,
    /// Its anomaly score; higher is more anomalous.
    pub score: Option<f32>,
}

/// Returns the share of an image's comparisons that its score loses: for a normal image the share of the anomalous
/// images of its class that score no higher, for an anomalous one the share of the normal images that score no lower.
/// Their mean is 1 minus the AUROC of the class, but for ties. `None` for an image without a score or a label, or a class of
/// one kind.
pub(super) fn misses(images: &[TestImage]) -> Vec<Option<f64>> {
    let mut scores: HashMap<(&str, bool), Vec<f32>> = HashMap::new();
    for image in images {
        if let Some(anomalous) = image.anomalous {
            scores.entry((&image.class, anomalous)).or_default().extend(image.score);
        }
    }
    scores.values_mut().for_each(|scores| scores.sort_by(f32::total_cmp));
    let miss = |image: &TestImage| {
        let (score, anomalous) = (image.score?, image.anomalous?);
        let others = scores.get(&(image.class.as_str(), !anomalous))?;
        let lost = match anomalous {
            false => others.partition_point(|other| *other <= score),
            true => others.len() - others.partition_point(|other| *other < score),
        };
        (!others.is_empty()).then(|| lost as f64 / others.len() as f64)
    };
    images.iter().map(miss).collect()
}

/// Chooses the images to show. Returns their indices: first the misses, the largest first, then the other images by
/// descending score. For each class and kind of defect there are `per_kind` images, alternately from both ends of the
/// scores, and at most `limit` in all, spread over classes and kinds.
pub(super) fn choose(images: &[TestImage], misses: &[Option<f64>], per_kind: usize, limit: usize) -> Vec<usize> {
    let descending = |a: &usize, b: &usize| {
        let score = |i: &usize| images[*i].score.unwrap_or(f32::NEG_INFINITY);
        score(b).total_cmp(&score(a)).then_with(|| images[*a].id.cmp(&images[*b].id))
    };
    let mut kinds: BTreeMap<(&str, Option<bool>, &str), Vec<usize>> = BTreeMap::new();
    for (i, image) in images.iter().enumerate() {
        kinds.entry((&image.class, image.anomalous.map(|anomalous| !anomalous), &image.defect)).or_default().push(i);
    }
    // The worst image of every kind comes first, then the best of every kind, and so on, so that a limit cuts off the
    // least important ones.
    let mut ranked: Vec<(usize, usize)> = Vec::new();
    for ((_, is_normal, _), mut members) in kinds {
        members.sort_by(descending);
        // Without scores there are no ends, and the first images are taken.
        if is_normal == Some(false) && members.iter().any(|i| images[*i].score.is_some()) {
            members.reverse();
        }
        let (mut members, mut ends) = (std::collections::VecDeque::from(members), Vec::new());
        let is_scored = members.iter().any(|i| images[*i].score.is_some());
        while let Some(first) = members.pop_front() {
            ends.push(first);
            ends.extend(if is_scored { members.pop_back() } else { None });
        }
        ranked.extend(ends.into_iter().take(per_kind).enumerate());
    }
    ranked.sort_by_key(|(rank, _)| *rank);
    let mut chosen: Vec<usize> = ranked.into_iter().map(|(_, i)| i).take(limit).collect();
    let miss = |i: &usize| misses[*i].unwrap_or_default();
    chosen.sort_by(|a, b| miss(b).total_cmp(&miss(a)).then_with(|| descending(a, b)));
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(class: &str, defect: &str, number: usize, score: Option<f32>) -> TestImage {
        let id = format!("{class}/{defect}/{number:03}");
        TestImage {
            id,
            class: class.into(),
            defect: defect.into(),
            anomalous: Some(defect != "good"),
            caption: None,
            score,
        }
    }

    fn ids(images: &[TestImage], chosen: &[usize]) -> Vec<String> {
        chosen.iter().map(|i| images[*i].id.clone()).collect()
    }

    fn chosen(images: &[TestImage], per_kind: usize, limit: usize) -> Vec<usize> {
        choose(images, &misses(images), per_kind, limit)
    }

    fn scored(defect: &str, scores: &[f32]) -> Vec<TestImage> {
        scores.iter().enumerate().map(|(i, s)| image("a", defect, i, Some(*s))).collect()
    }

    #[test]
    fn misses_come_first_and_both_ends_are_shown() {
        let images = [scored("good", &[0.1, 0.5, 0.2, 0.85, 0.4]), scored("hole", &[0.9, 0.45, 1.0, 0.8])].concat();
        // The good image 3 scores above two of four defects; the defect 1 scores below two of five good images.
        let lost: Vec<f64> = misses(&images).into_iter().map(Option::unwrap).collect();
        assert_eq!(lost, [0., 0.25, 0., 0.5, 0., 0., 0.4, 0., 0.2]);
        assert_eq!(ids(&images, &chosen(&images, 2, 99)), ["a/good/003", "a/hole/001", "a/hole/002", "a/good/000"]);
        let third = ids(&images, &chosen(&images, 3, 99));
        assert_eq!(third[..4], ["a/good/003", "a/hole/001", "a/good/001", "a/hole/003"]);
        assert_eq!(misses(&images[..5]), [None; 5]);
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
        assert_eq!(chosen(&images, 9, 99).len(), images.len());
        let few = chosen(&images, 9, 6);
        // Each class has its worst defect and its worst normal image.
        for class in ["a", "b", "c"] {
            let mut of_class: Vec<&str> =
                few.iter().map(|i| &images[*i]).filter(|i| i.class == class).map(|i| &i.id[2..]).collect();
            of_class.sort_unstable();
            assert_eq!(of_class, ["good/002", "hole/000"]);
        }
        assert!(chosen(&images, 0, 9).is_empty() && chosen(&[], 4, 9).is_empty());
    }

    #[test]
    fn without_scores_the_first_of_each_kind() {
        let images: Vec<TestImage> = (0..5).map(|i| image("a", "good", i, None)).collect();
        assert_eq!(chosen(&images, 2, 9), [0, 1]);
        let images: Vec<TestImage> = (0..5).map(|i| image("a", "hole", i, None)).collect();
        assert_eq!(chosen(&images, 2, 9), [0, 1]);
    }
}
