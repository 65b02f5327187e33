//! Figures: images with their ground truth and the anomaly maps of several tables side by side.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use image::{Rgb, RgbImage, imageops};
use minijinja::{Value, context};
use rayon::prelude::*;

use super::{
    charts,
    data::{Source, TestImage},
    drawing::{self, Scale},
    export::{make_empty, quoted, write_file},
    pictures::{self, Input, Map},
};
use crate::{
    engine::{Digest, Error, Result, or_none, store::Manifest},
    tables::{Role, anomaly_maps::SCORE, images},
    vision::{colormap, resize},
};

/// The distance between the pictures of a figure, in pixels.
const GAP: u32 = 4;
const WHITE: Rgb<u8> = Rgb([255; 3]);
/// The colour of a ground truth that is not known.
const GREY: Rgb<u8> = Rgb([128; 3]);
/// The numbers of rows of a class and of tables on a page.
const ROWS_ON_PAGE: usize = 3;
const TABLES_ON_PAGE: usize = 12;

/// The tables of a figure whose maps share a colour scale, over all images of the figure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SharedScale {
    /// The instances of a swept table share one. Other tables have another, as their maps are of another kind.
    #[default]
    Table,
    /// All tables share one.
    Figure,
    /// Each table, and each instance of a swept one, has its own.
    Column,
}

/// The content of figures.
#[derive(Clone, Debug)]
pub struct FigureOptions {
    /// The names of the tables of maps, in the order of their columns; all tables if there are none.
    pub tables: Vec<String>,
    /// The maximum number of images of each class.
    pub rows: usize,
    /// The seed by which images are chosen.
    pub seed: u64,
    /// The tables that share a scale.
    pub scale: SharedScale,
    /// True if all classes are in one figure.
    pub together: bool,
    /// True if maps are drawn over their images.
    pub overlay: bool,
}

/// Writes figures into an empty or new folder: a picture for each class, or for all. `columns.csv` says what the columns
/// show and on which scale, and `rows.csv` which images the rows show. Returns the names of the pictures.
///
/// # Errors
/// [`Error::Input`] if there are no such tables, no test image has a map in each of them, or the folder has other files.
pub fn figures(source: &Source, folder: &Path, options: &FigureOptions) -> Result<Vec<String>> {
    let columns = columns(source, &options.tables)?;
    let images = source.table(Role::Images, &[columns.first().copied()]);
    let images = images.ok_or_else(|| nothing(source, Role::Images))?;
    let tested = tested(source, images, &columns)?;
    if tested.is_empty() {
        let names: Vec<String> = columns.iter().map(|table| table.variant.name(&table.table)).collect();
        return Err(Error::Input(format!("no test image has a map in each of these tables: {}", names.join(", "))));
    }
    let by_class = choose(&tested, options.rows, options.seed);
    let figures: BTreeMap<String, Vec<&TestImage>> = match options.together {
        true => [("all.png".to_owned(), by_class.into_values().flatten().collect())].into(),
        false => named(by_class)?,
    };
    make_empty(folder)?;
    let mut column_lines = "figure,column,shows,lowest,highest\n".to_owned();
    let mut row_lines = "figure,row,image_id,class,defect\n".to_owned();
    for (name, rows) in &figures {
        let figure = Figure::read(source, images, &columns, rows, options.scale)?;
        let picture = drawing::png(&figure.drawn(options.overlay)?);
        write_file(&folder.join(name), &picture.map_err(|e| Error::Stage(format!("{name}: {e}")))?)?;
        let file = quoted(name);
        for (number, (shows, scale)) in (1..).zip(figure.columns()) {
            let scale = scale.map_or(",".to_owned(), |scale| format!("{},{}", scale.lowest, scale.highest));
            column_lines += &format!("{file},{number},{},{scale}\n", quoted(&shows));
        }
        for (number, image) in (1..).zip(rows) {
            let [id, class, defect] = [&image.id, &image.class, &image.defect].map(|text| quoted(text));
            row_lines += &format!("{file},{number},{id},{class},{defect}\n");
        }
    }
    write_file(&folder.join("columns.csv"), column_lines.as_bytes())?;
    write_file(&folder.join("rows.csv"), row_lines.as_bytes())?;
    Ok(figures.into_keys().collect())
}

/// Returns the figures of a page, one for each class, with their columns. There are none if there is a single table of
/// maps, which stands beside its images anyway.
pub(super) fn sections(source: &Source, per_kind: usize) -> Result<Value> {
    let all: Vec<&Manifest> = source.maps_of_photographs().collect();
    let columns = &all[..all.len().min(TABLES_ON_PAGE)];
    let Some(images) = source.table(Role::Images, &[columns.first().copied()]).filter(|_| columns.len() > 1) else {
        return Ok(Value::UNDEFINED);
    };
    let tested = tested(source, images, columns)?;
    let mut figures = Vec::new();
    for (class, rows) in choose(&tested, ROWS_ON_PAGE.min(per_kind), FigureOptions::default().seed) {
        let figure = Figure::read(source, images, columns, &rows, SharedScale::default())?;
        let mut lines = Vec::new();
        for (image, cells) in rows.iter().zip(figure.cells(false)?) {
            let cells = cells.iter().map(|cell| pictures::jpeg(cell, figure.size)).collect::<Result<Vec<_>>>()?;
            lines.push(context! { id => &image.id, defect => &image.defect, cells });
        }
        let head = |(shows, scale): (String, Option<Scale>)| {
            let ends = scale.map(|scale| [scale.lowest, scale.highest].map(|end| charts::short(f64::from(end))));
            context! { shows, scale => ends.map(Vec::from) }
        };
        let heads: Vec<Value> = figure.columns().into_iter().map(head).collect();
        figures.push(context! { class, heads, rows => lines });
    }
    if figures.is_empty() {
        return Ok(Value::UNDEFINED);
    }
    Ok(context! { of => figures, left_out => all.len() - columns.len() })
}

impl Default for FigureOptions {
    fn default() -> Self {
        Self { tables: Vec::new(), rows: 6, seed: 0, scale: SharedScale::default(), together: false, overlay: false }
    }
}

fn nothing(source: &Source, role: Role) -> Error {
    let pipeline = &source.pipeline;
    let columns = role.columns();
    Error::Input(format!("there is nothing to draw: no published table of the pipeline `{pipeline}` has {columns}"))
}

/// Returns the tables of maps with these names, in their order, with all instances of swept ones; without names all.
fn columns<'a>(source: &'a Source, names: &[String]) -> Result<Vec<&'a Manifest>> {
    let all: Vec<&Manifest> = source.maps_of_photographs().collect();
    if all.is_empty() {
        return Err(nothing(source, Role::AnomalyMaps));
    }
    if names.is_empty() {
        return Ok(all);
    }
    let mut columns = Vec::new();
    for name in names {
        let before = columns.len();
        columns.extend(all.iter().filter(|table| table.table == *name));
        if columns.len() == before {
            let known: BTreeSet<&str> = all.iter().map(|table| table.table.as_str()).collect();
            let known: Vec<&str> = known.into_iter().collect();
            return Err(Error::Input(format!(
                "`{name}` is no table of anomaly maps of photographs; there are {}",
                or_none(&known)
            )));
        }
    }
    Ok(columns)
}

/// Returns the test images that have a map in each table.
fn tested(source: &Source, images: &Manifest, columns: &[&Manifest]) -> Result<Vec<TestImage>> {
    let mut tested = source.test_images(images, None, None)?;
    for table in columns {
        let ids: BTreeSet<String> = source.by_id(table, SCORE)?.0.into_iter().collect();
        tested.retain(|image| ids.contains(&image.id));
    }
    Ok(tested)
}

/// Chooses at most `rows` images of each class: the anomalous ones, or any if none is, and one of each kind of defect
/// before a second of any. The order within a kind, and that of the kinds, is drawn by the seed and depends on no score, so
/// that a figure shows no selection of successes. The chosen images are in the order of their kinds.
fn choose(images: &[TestImage], rows: usize, seed: u64) -> BTreeMap<&str, Vec<&TestImage>> {
    let drawn = |name: &str| Digest::of(format!("{seed} {name}").as_bytes());
    let mut classes: BTreeMap<&str, Vec<&TestImage>> = BTreeMap::new();
    for image in images {
        classes.entry(&image.class).or_default().push(image);
    }
    for members in classes.values_mut() {
        if members.iter().any(|image| image.anomalous == Some(true)) {
            members.retain(|image| image.anomalous == Some(true));
        }
        members.sort_by_cached_key(|image| drawn(&image.id));
        let mut before: HashMap<&str, usize> = HashMap::new();
        let mut ranked = Vec::new();
        for image in members.drain(..) {
            let of_kind = before.entry(&image.defect).or_default();
            ranked.push(((*of_kind, drawn(&image.defect)), image));
            *of_kind += 1;
        }
        ranked.sort_by_key(|(rank, _)| *rank);
        members.extend(ranked.into_iter().take(rows).map(|(_, image)| image));
        members.sort_by_key(|image| (&image.defect, &image.id));
    }
    classes.retain(|_, members| !members.is_empty());
    classes
}

/// Gives the figure of each class the name of its file, in which `_` stands for what separates folders.
fn named<'a>(by_class: BTreeMap<&str, Vec<&'a TestImage>>) -> Result<BTreeMap<String, Vec<&'a TestImage>>> {
    let mut figures = BTreeMap::new();
    for (class, rows) in by_class {
        let name = format!("{}.png", class.replace(['/', '\\'], "_"));
        if figures.insert(name.clone(), rows).is_some() {
            return Err(Error::Input(format!(
                "the figure of the class `{class}` would have the name of another one, {name}; draw all classes together"
            )));
        }
    }
    Ok(figures)
}

/// A figure: a row for each image, and columns with the image, its ground truth and its maps.
struct Figure<'a> {
    rows: &'a [&'a TestImage],
    tables: &'a [&'a Manifest],
    /// The scale of each table; `None` if its maps have no finite value.
    scales: Vec<Option<Scale>>,
    inputs: HashMap<String, Input>,
    /// The maps of each table.
    maps: Vec<HashMap<String, Map>>,
    /// True if any ground truth is known.
    has_truth: bool,
    /// Width and height of a picture.
    size: (u32, u32),
}

impl<'a> Figure<'a> {
    fn read(
        source: &Source,
        images: &Manifest,
        tables: &'a [&'a Manifest],
        rows: &'a [&'a TestImage],
        shared: SharedScale,
    ) -> Result<Self> {
        let ids = || rows.iter().map(|image| image.id.as_str());
        let inputs = pictures::inputs(source, images, ids())?;
        let maps = tables.iter().map(|table| pictures::maps(source, table, ids())).collect::<Result<Vec<_>>>()?;
        let group = |at: usize| match shared {
            SharedScale::Table => tables.iter().position(|table| table.table == tables[at].table).unwrap_or(at),
            SharedScale::Figure => 0,
            SharedScale::Column => at,
        };
        let mut values: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        for (at, maps) in maps.iter().enumerate() {
            values.entry(group(at)).or_default().extend(maps.values().flat_map(|map| &map.values));
        }
        let by_group: BTreeMap<usize, Option<Scale>> =
            values.into_iter().map(|(group, values)| (group, pictures::scale(values))).collect();
        let scales = (0..tables.len()).map(|at| by_group.get(&group(at)).copied().flatten()).collect();
        let has_truth = inputs.values().any(|input| input.mask.is_some());
        let [height, width] = images::size(&*images.schema()?).unwrap_or_default();
        let size = pictures::shown(width as u32, height as u32);
        Ok(Self { rows, tables, scales, inputs, maps, has_truth, size })
    }

    /// Returns what each column shows, and the scale of a column of maps.
    fn columns(&self) -> Vec<(String, Option<Scale>)> {
        let mut columns = vec![("input".to_owned(), None)];
        columns.extend(self.has_truth.then(|| ("ground truth".to_owned(), None)));
        let tables = self.tables.iter().zip(&self.scales);
        columns.extend(tables.map(|(table, scale)| (table.variant.name(&table.table), *scale)));
        columns
    }

    /// Draws the pictures of each row. In place of a map that is not there, the picture is white.
    fn cells(&self, overlay: bool) -> Result<Vec<Vec<RgbImage>>> {
        let (width, height) = self.size;
        let cells = |image: &&TestImage| -> Result<Vec<RgbImage>> {
            let input = self.inputs.get(&image.id).ok_or_else(|| Error::Damaged(format!("{}: no pixels", image.id)))?;
            let photograph = resize::rgb(&input.pixels, width, height, resize::Filter::Bilinear);
            let maps = self.maps.iter().zip(&self.scales).map(|(maps, scale)| {
                let Some((map, scale)) = maps.get(&image.id).zip(*scale) else {
                    return RgbImage::from_pixel(width, height, WHITE);
                };
                let from = (map.width, map.height);
                let map = resize::float(&map.values, from, self.size, resize::Filter::Bilinear);
                match overlay {
                    true => drawing::overlay(&photograph, &map, scale),
                    false => colormap::heatmap(&map, width, height, scale.lowest, scale.highest),
                }
            });
            let maps: Vec<RgbImage> = maps.collect();
            let truth = self.has_truth.then(|| self.truth(image, input));
            Ok([photograph].into_iter().chain(truth).chain(maps).collect())
        };
        self.rows.par_iter().map(cells).collect()
    }

    /// Draws a ground truth: white where the image is anomalous, and black elsewhere.
    fn truth(&self, image: &TestImage, input: &Input) -> RgbImage {
        let (width, height) = self.size;
        match &input.mask {
            Some(mask) => {
                let mask = resize::mask(mask, width, height);
                RgbImage::from_fn(width, height, |x, y| Rgb([mask.get_pixel(x, y).0[0]; 3]))
            }
            None if image.anomalous == Some(false) => RgbImage::new(width, height),
            None => RgbImage::from_pixel(width, height, GREY),
        }
    }

    /// Draws the figure.
    fn drawn(&self, overlay: bool) -> Result<RgbImage> {
        let cells = self.cells(overlay)?;
        let (width, height) = self.size;
        let side = |count: usize, side: u32| (count as u32 * (side + GAP)).saturating_sub(GAP);
        let columns = self.columns().len();
        let mut figure = RgbImage::from_pixel(side(columns, width), side(cells.len(), height), WHITE);
        for (row, cells) in (0..).zip(&cells) {
            for (column, cell) in (0..).zip(cells) {
                imageops::replace(&mut figure, cell, column * i64::from(width + GAP), row * i64::from(height + GAP));
            }
        }
        Ok(figure)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(class: &str, defect: &str, number: usize) -> TestImage {
        TestImage {
            id: format!("{class}/{defect}/{number}"),
            class: class.into(),
            defect: defect.into(),
            anomalous: Some(defect != images::GOOD),
            caption: None,
            score: None,
        }
    }

    fn of_class(class: &str, kinds: &[(&str, usize)]) -> Vec<TestImage> {
        let of_kind =
            |(defect, count): &(&str, usize)| (0..*count).map(|i| image(class, defect, i)).collect::<Vec<_>>();
        kinds.iter().flat_map(of_kind).collect()
    }

    #[test]
    fn rows_are_anomalous_and_spread_over_kinds_of_defects() {
        let all = of_class("a", &[("good", 9), ("crack", 9), ("hole", 1), ("stain", 9)]);
        let count = |rows: usize, seed: u64, of: &str| {
            choose(&all, rows, seed)["a"].iter().filter(|image| image.defect == of).count()
        };
        for seed in 0..20 {
            assert_eq!(["good", "crack", "hole", "stain"].map(|of| count(5, seed, of)), [0, 2, 1, 2], "seed {seed}");
            assert_eq!(["good", "crack", "hole", "stain"].map(|of| count(99, seed, of)), [0, 9, 1, 9]);
        }
        // Fewer rows than kinds: other seeds show other kinds.
        let kinds: BTreeSet<&str> = (0..20).map(|seed| choose(&all, 1, seed)["a"][0].defect.as_str()).collect();
        assert_eq!(kinds, ["crack", "hole", "stain"].into());
        assert!(choose(&all, 0, 0).is_empty());
    }

    #[test]
    fn rows_depend_on_the_seed_and_not_on_the_order_of_images() {
        let all = [of_class("a", &[("crack", 40)]), of_class("b", &[("good", 40)])].concat();
        let mut reversed = all.clone();
        reversed.reverse();
        let ids = |images: &[TestImage], seed| {
            let chosen = choose(images, 3, seed);
            chosen.into_values().flatten().map(|image| image.id.clone()).collect::<Vec<_>>()
        };
        assert_eq!(ids(&all, 1).len(), 6, "a class without anomalous images shows normal ones");
        assert_eq!(ids(&all, 1), ids(&reversed, 1));
        assert_ne!(ids(&all, 1), ids(&all, 2));
    }

    #[test]
    fn names_of_files_stay_in_their_folder_and_differ() {
        let [a, b] = ["a/b", "a_b"].map(|class| of_class(class, &[("hole", 1)]));
        assert_eq!(named(choose(&a, 1, 0)).unwrap().into_keys().collect::<Vec<_>>(), ["a_b.png"]);
        let both = [a, b].concat();
        let told = named(choose(&both, 1, 0)).unwrap_err().to_string();
        assert!(
            told.starts_with("the figure of the class `a_b` would have the name of another one, a_b.png"),
            "{told}"
        );
    }
}
