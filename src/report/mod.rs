//! One HTML page about a run: metrics, training curves, pictures. It needs no network and no other file.

mod ablations;
mod captions;
mod charts;
mod curves;
mod data;
mod decisions;
pub mod drawing;
mod export;
mod figures;
mod grid;
mod metrics;
mod pictures;
mod plain;
mod published;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use indicatif::{HumanBytes, HumanCount, HumanDuration};
use minijinja::{Environment, Value, context, syntax::SyntaxConfig};

pub use data::Source;
pub use decisions::sections as verdicts;
pub use export::{CocoExport, Exported, coco, export, make_empty};
pub use figures::{FigureOptions, SharedScale, figures};
pub use plain::{Format, plain};
use published::Published;

use crate::{
    engine::{
        Error, Result, Variant,
        stage::SOURCE,
        store::{Manifest, Run},
    },
    tables::{
        Role,
        column::numbers,
        reconstructions::AUTOENCODED,
        training_log::{EPOCH, LOSS, STEP},
    },
};
use data::{TestImage, UNLABELLED};
use drawing::Scale;
use pictures::{GroundTruth, Pictures};

const TEMPLATE: &str = include_str!("report.html");
/// The style that pages about a pipeline share.
pub const LOOK: &str = include_str!("look.css");
/// The number of images that are shown before others are asked for.
const FIRST_CARDS: usize = 8;

/// The content of a page.
#[derive(Clone, Debug)]
pub struct Options {
    /// The maximum number of images per class and kind of defect.
    pub per_kind: usize,
    /// The maximum number of images in all.
    pub images: usize,
    /// The data set whose published results are shown; `None` for that of the table of images.
    pub dataset: Option<String>,
}

/// Returns the page about a pipeline's published tables, as HTML. The page names the roles that no published table has.
pub fn html(source: &Source, options: Options) -> Result<String> {
    let tables = metrics::tables(source)?;
    let published = Published::find(source, options.dataset.as_deref())?;
    let beside = published::beside(source, &tables, published.as_ref())?;
    let names: BTreeSet<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    let curves = source.of_role(Role::TrainingLog).map(|table| curve(source, table)).collect::<Result<Vec<_>>>()?;
    let page = context! {
        version => env!("CARGO_PKG_VERSION"),
        pipeline => &source.pipeline,
        published => source.tables.iter().map(|table| table.published_ms).max().map(time),
        run => source.last_run.as_ref().map(run),
        tables => source.tables.iter().map(|table| described(source, table)).collect::<Vec<_>>(),
        gradient => charts::gradient(),
        notes => source.tables.iter().flat_map(notes).collect::<Vec<_>>(),
        several_metrics => names.len() > 1,
        metrics => tables.iter().map(|table| table.value()).collect::<Vec<_>>(),
        beside => beside.iter().map(grid::Grid::value).collect::<Vec<_>>(),
        seeds => tables.iter().filter_map(plain::seeds).map(|grid| grid.value()).collect::<Vec<_>>(),
        curves,
        decisions => decisions::sections(source)?,
        captions => captions::sections(source)?,
        figures => figures::sections(source, options.per_kind)?,
        ..gallery(source, options)?
    };
    render(page).map_err(|e| Error::Stage(format!("the report's template: {e:#}")))
}

fn render(page: Value) -> Result<String, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.add_template("look.css", LOOK)?;
    environment.add_template("report.html", TEMPLATE)?;
    // If no table has a role, the page names the columns that such a table would have.
    let columns: BTreeMap<&str, &str> = Role::ALL.into_iter().map(|role| (role.name(), role.columns())).collect();
    environment.get_template("report.html")?.render(context! { columns, first => FIRST_CARDS, ..page })
}

/// Returns the notes on a table.
fn notes(table: &Manifest) -> Vec<Value> {
    let name = table.variant.name(&table.table);
    table.notes.iter().map(|note| context! { table => &name, text => note.to_string() }).collect()
}

/// Returns the last run, as it can be repeated elsewhere.
fn run(run: &Run) -> Value {
    let seconds = run.seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    context! {
        id => &run.run,
        tags => run.tags.join(", "),
        started => time(run.started_ms),
        seconds => seconds.map(|seconds| HumanDuration(seconds).to_string()),
        status => run.status(),
        version => &run.version,
        host => &run.host,
        device => &run.device,
        commit => &run.git_commit,
        digest => &run.pipeline_digest,
    }
}

fn described(source: &Source, table: &Manifest) -> Value {
    let inputs: Vec<&str> =
        table.made.inputs.iter().map(|(name, _)| name.as_str()).filter(|name| *name != SOURCE).collect();
    context! {
        name => &table.table,
        instance => table.variant.name(&table.table),
        stage => &table.made.stage,
        from => inputs.join(", "),
        filter => &table.made.filter,
        parameters => table.made.parameters(),
        about => source.about(&table.made.stage),
        rows => HumanCount(table.rows).to_string(),
        failed => table.errors.len(),
        size => HumanBytes(table.parts.iter().map(|part| part.bytes).sum()).to_string(),
        published => time(table.published_ms),
    }
}

fn curve(source: &Source, table: &Manifest) -> Result<Value> {
    let batch = source.rows(table)?;
    let (steps, losses) = (numbers(&batch, STEP)?, numbers(&batch, LOSS)?);
    let mut points: Vec<(f64, f64)> =
        steps.into_iter().zip(losses).filter_map(|(step, loss)| Some((step?, loss?))).collect();
    points.sort_by(|a, b| a.0.total_cmp(&b.0));
    let name = table.variant.name(&table.table);
    let guessing = match table.made.stage.as_str() {
        "train_text_encoder" => guessing(&table.made.params, &numbers(&batch, STEP)?, &numbers(&batch, EPOCH)?),
        _ => None,
    };
    let (svg, note) = match (charts::loss_curve(&points, guessing, &format!("loss of {name}")), points.last()) {
        (Ok(svg), Some((step, loss))) => {
            let guessing = guessing.map(|loss| format!("; guessing (red line) has {}", charts::short(loss)));
            let last = format!("{} steps, last loss {}", HumanCount(*step as u64), charts::short(*loss));
            (Some(svg), last + &guessing.unwrap_or_default())
        }
        (Err(why), _) => (None, format!("no curve: {why}")),
        (_, None) => (None, "no step was logged".into()),
    };
    Ok(context! { table => name, about => source.about(&table.made.stage), svg, note })
}

/// Returns the loss of guessing of the contrastive training of a text encoder: over a batch of n pairs it is ln n, and all batches
/// but the last of an epoch are full. `None` if every logged step ends an epoch: then a step sees all rows, which may be fewer
/// than `batch_size`.
fn guessing(params: &serde_json::Value, steps: &[Option<f64>], epochs: &[Option<f64>]) -> Option<f64> {
    let batch = params.pointer("/training/batch_size")?.as_f64()?;
    (steps != epochs).then(|| batch.ln())
}

/// Returns the pictures, and the values by which the page can select them.
fn gallery(source: &Source, options: Options) -> Result<Value> {
    let maps = source.table(Role::AnomalyMaps, &[source.table(Role::Metrics, &[])]);
    let reconstructions = source.table(Role::Reconstructions, &[maps]);
    let below = [maps, reconstructions];
    let images = source.table(Role::Images, &below);
    let captions = source.table(Role::Captions, &below);
    let wanted = [(Role::Images, images), (Role::Reconstructions, reconstructions), (Role::AnomalyMaps, maps)];
    let missing = wanted.into_iter().filter(|(_, table)| table.is_none()).map(|(role, _)| role.name());
    let missing: Vec<&str> = missing.collect();
    let Some(images) = images else { return Ok(context! { missing }) };
    // This table depends on the most swept values.
    let of = maps.or(reconstructions).unwrap_or(images);
    let is_other = |table: &&Manifest| table.table == of.table && table.variant != of.variant;
    let others: Vec<&Manifest> = source.tables.iter().filter(is_other).collect();
    let all = source.test_images(images, captions, maps)?;
    let misses = data::misses(&all);
    let indices = data::choose(&all, &misses, options.per_kind, options.images);
    let chosen: Vec<&TestImage> = indices.iter().map(|i| &all[*i]).collect();
    let compared = maps.and_then(|maps| source.compared(maps)).filter(|_| reconstructions.is_some());
    let autoencoded = compared.as_ref().is_some_and(|(_, autoencoded)| *autoencoded)
        && reconstructions
            .map(|table| table.schema())
            .transpose()?
            .is_some_and(|s| s.field_with_name(AUTOENCODED).is_ok());
    let tables = pictures::Tables { images, reconstructions, autoencoded, maps };
    let (pictures, scales) = pictures::pictures(source, tables, &chosen)?;
    let has_truth = pictures.values().any(|pictures| pictures.ground_truth != GroundTruth::Unknown);
    let card = |(at, image): (&usize, &&TestImage)| {
        Some(card(image, misses[*at], pictures.get(&image.id)?, scales.get(&image.class)))
    };
    let cards = indices.iter().zip(&chosen).filter_map(card);
    Ok(context! {
        missing,
        of => of.variant.settings().join(", "),
        instances => others.len() + 1,
        another => others.first().map(|table| only(&table.variant)),
        total => all.len(),
        classes => chosen.iter().map(|image| image.class.clone()).collect::<BTreeSet<_>>(),
            defects => chosen.iter().filter(|i| i.anomalous != Some(false)).map(|image| image.defect.clone()).collect::<BTreeSet<_>>(),
            labels => chosen.iter().map(|image| label(image)).collect::<BTreeSet<_>>(),
        scored => chosen.iter().any(|image| image.score.is_some()),
        compared => compared.map(|(about, _)| about),
        autoencoded,
        has_truth,
        pictures => 1 + usize::from(has_truth) + usize::from(autoencoded) + below.iter().flatten().count(),
        histograms => histograms(&all),
        cards => cards.collect::<Vec<_>>(),
        ..curves::curves(source, images, maps, &all)?
    })
}

/// Returns the scores of each class as a picture and in words.
fn histograms(images: &[TestImage]) -> Vec<Value> {
    let scores = |class: &str, anomalous: bool| {
        let of_kind = images.iter().filter(|image| image.class == class && image.anomalous == Some(anomalous));
        of_kind.filter_map(|image| image.score.map(f64::from)).collect::<Vec<_>>()
    };
    let histogram = |class: &String| {
        let (normal, anomalous) = (scores(class, false), scores(class, true));
        let svg = charts::histogram(&normal, &anomalous, &format!("scores of {class}"))?;
        let most = normal.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let found = anomalous.iter().filter(|score| **score > most).count();
        let note = if normal.is_empty() || anomalous.is_empty() {
            format!("{} normal, {} anomalous", normal.len(), anomalous.len())
        } else {
            format!(
                "{found} of {} anomalous images score above every normal one, of which the highest has {}",
                anomalous.len(),
                charts::short(most)
            )
        };
        Some(context! { class, svg, note })
    };
    images.iter().map(|image| image.class.clone()).collect::<BTreeSet<_>>().iter().filter_map(histogram).collect()
}

/// Returns the options by which a run chooses a combination.
fn only(variant: &Variant) -> String {
    variant.settings().iter().map(|setting| format!("--only '{setting}'")).collect::<Vec<_>>().join(" ")
}

/// Returns the label of an image in words.
fn label(image: &TestImage) -> &'static str {
    match image.anomalous {
        Some(true) => "anomalous",
        Some(false) => "normal",
        None => UNLABELLED,
    }
}

/// Returns the card of an image. `miss` is the share of its comparisons that its score loses.
fn card(image: &TestImage, miss: Option<f64>, pictures: &Pictures, scale: Option<&Scale>) -> Value {
    let (ground_truth, outline) = match &pictures.ground_truth {
        GroundTruth::Unknown => ("no ground truth", None),
        GroundTruth::Empty if image.anomalous == Some(true) => ("ground truth: empty", None),
        GroundTruth::Empty => ("ground truth: none", None),
        GroundTruth::Outline(uri) => ("ground truth", Some(uri)),
    };
    context! {
        id => &image.id,
        class => &image.class,
        defect => &image.defect,
        label => label(image),
        caption => image.caption.as_deref(),
        score => image.score.map(f64::from),
        digits => image.score.map(|score| format!("{score:.3}")),
        width => pictures.size.0,
        height => pictures.size.1,
        input => &pictures.input,
        reconstruction => pictures.reconstruction.as_deref(),
        autoencoded => pictures.autoencoded.as_deref(),
        miss => miss.filter(|miss| *miss > 0.),
        missed => miss.filter(|miss| *miss > 0.).map(|miss| missed(image, miss)),
        heat => pictures.heat.as_deref(),
        scale => scale.map(|s| vec![charts::short(f64::from(s.lowest)), charts::short(f64::from(s.highest))]),
        ground_truth,
        outline,
    }
}

/// Returns the share of comparisons that an image's score loses, in words; rounded up, so that it is never nothing.
fn missed(image: &TestImage, miss: f64) -> String {
    let share = format!("{:.0}", (miss * 100.).ceil());
    match image.anomalous {
        Some(true) => format!("no higher than {share} % of the normal images"),
        _ => format!("no lower than {share} % of the anomalous images"),
    }
}

/// Formats milliseconds since 1970 as date and time in UTC.
pub fn time(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(arrow::temporal_conversions::timestamp_ms_to_datetime);
    time.map_or_else(String::new, |time| time.format("%Y-%m-%d %H:%M UTC").to_string())
}

#[cfg(test)]
mod tests;
