//! The cost of the engine per row: `ingest` of photographs beside a bare loop that does the same work and writes the
//! same Parquet.
//!
//! `cargo bench --profile dev --bench row_cost` times the build that people run; with `-- --quick` it takes few
//! photographs, which shows that it works. The loop has no store, no digests and no resume.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use arrow::{
    array::{ArrayRef, BooleanArray, RecordBatch, StringArray, UInt32Array},
    datatypes::{SchemaRef, UInt8Type},
};
use rayon::prelude::*;
use vlmdiff::{
    datasets::synthetic::{self, Class, Item, Split},
    engine::{
        Stop, pipeline,
        pipeline::Pipeline,
        run,
        run::Workers,
        source::Sources,
        store::{Store, encode_part},
    },
    stages::KINDS,
    tables::tensor::tensor_column,
    vision::{decode, resize},
};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// The number of different photographs; their side in pixels as a camera gives them, and as the table keeps them.
const DISTINCT: u32 = 50;
const CAMERA: u32 = 512;
const KEPT: u32 = 128;
/// The number of rows in a part.
const PART: usize = 256;

fn main() -> Result<()> {
    let quick = std::env::args().any(|argument| argument == "--quick");
    let (count, rounds) = if quick { (200, 1) } else { (2000, 5) };
    let folder = tempfile::tempdir()?;
    let root = folder.path().join("photographs");
    let photographs = photograph(&root.join("gear/train/good"), count)?;
    let text =
        format!("tables: {{ images: {{ stage: ingest, with: {{ dataset: folder, root: {root:?}, size: {KEPT} }} }} }}");
    let pipeline = pipeline::parse("row_cost", "row_cost", &text, KINDS, &[], &[], &|_| None)?;
    let (mut bare, mut engine) = (Vec::new(), Vec::new());
    // The first round warms the page cache and is not counted.
    for round in 0..=rounds {
        let place = |name: &str| folder.path().join(format!("{name}-{round}"));
        bare.push(timed(|| bare_loop(&photographs, &pipeline.tables[0].output, &place("bare")))?);
        engine.push(timed(|| with_engine(&pipeline, &place("store")))?);
        fs::remove_dir_all(place("bare"))?;
        fs::remove_dir_all(place("store"))?;
    }
    let (bare, engine) = (Spread::of(bare.split_off(1)), Spread::of(engine.split_off(1)));
    let per_row = |spread: &Spread| spread.median.as_secs_f64() * 1e3 / count as f64;
    println!("| {count} photographs, {CAMERA}x{CAMERA} to {KEPT}x{KEPT}; median of {rounds} | time | a row |");
    println!("|---|---|---|");
    println!("| bare loop | {bare} | {:.3} ms |", per_row(&bare));
    println!("| engine | {engine} | {:.3} ms |", per_row(&engine));
    println!("\nThe engine costs {:+.1} % (bar: at most +10 %).", 100. * (per_row(&engine) / per_row(&bare) - 1.));
    Ok(())
}

/// Writes the photographs and returns their paths. A few pictures under many names: each is read and decoded again.
fn photograph(folder: &Path, count: usize) -> Result<Vec<PathBuf>> {
    fs::create_dir_all(folder)?;
    let path = |n: usize| folder.join(format!("{n:04}.png"));
    (0..DISTINCT).into_par_iter().try_for_each(|index| {
        let item = Item { class: Class::Gear, split: Split::Train, index, defect: None };
        synthetic::render(&item, 0, CAMERA).image.save(path(index as usize))
    })?;
    for n in DISTINCT as usize..count {
        fs::copy(path(n % DISTINCT as usize), path(n))?;
    }
    Ok((0..count).map(path).collect())
}

/// Makes the table with a plain loop, as one would write it to have the table once.
fn bare_loop(photographs: &[PathBuf], schema: &SchemaRef, folder: &Path) -> Result<()> {
    fs::create_dir(folder)?;
    let image = |path: &PathBuf| -> Result<_> {
        let image = decode::rgb(&fs::read(path)?)?;
        Ok((image.dimensions(), resize::rgb(&image, KEPT, KEPT, resize::Filter::Bilinear).into_raw()))
    };
    for (number, paths) in photographs.chunks(PART).enumerate() {
        let images = paths.par_iter().map(image).collect::<Result<Vec<_>>>()?;
        let rows = paths.len();
        let text = |of: &dyn Fn(&PathBuf) -> String| Arc::new(StringArray::from_iter_values(paths.iter().map(of)));
        let all = |value: &str| text(&|_| value.to_owned()) as ArrayRef;
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let pixels = (KEPT * KEPT) as usize;
        let columns: Vec<ArrayRef> = vec![
            text(&|path| format!("gear/train/good/{}", name(path))),
            all("gear"),
            all("train"),
            Arc::new(BooleanArray::from(vec![false; rows])),
            all("good"),
            text(&|path| path.to_string_lossy().into_owned()),
            Arc::new(UInt32Array::from_iter_values(images.iter().map(|((width, _), _)| *width))),
            Arc::new(UInt32Array::from_iter_values(images.iter().map(|((_, height), _)| *height))),
            Arc::new(StringArray::new_null(rows)),
            tensor_column::<UInt8Type>(images.into_iter().flat_map(|(_, pixels)| pixels).collect(), pixels * 3, None)?,
            tensor_column::<UInt8Type>(vec![0; rows * pixels], pixels, Some(vec![true; rows]))?,
            tensor_column::<UInt8Type>(vec![0; rows * pixels], pixels, Some(vec![false; rows]))?,
        ];
        let batch = RecordBatch::try_new(schema.clone(), columns)?;
        fs::write(folder.join(format!("{number}.parquet")), encode_part(&batch)?)?;
    }
    Ok(())
}

/// Makes the same table with the engine: with digests of files and rows, records of computed rows, and a published
/// version.
fn with_engine(pipeline: &Pipeline, store: &Path) -> Result<()> {
    let store = Store::open(&store.to_string_lossy())?;
    let tables = pipeline.tables.iter().map(|table| table.name.clone()).collect();
    let options = run::Options { task_rows: Some(PART), tables, ..run::Options::default() };
    // No stage here needs the worker, and digests that an earlier round remembers are not used.
    let workers = Workers::new(&store, "vlmdiff-worker".into(), vec![run::Settings::default()], 1, &Stop::default());
    run::run(pipeline, &store, &Sources::new(true), &options, &workers, &mut |_| {})?;
    Ok(())
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed())
}

struct Spread {
    lowest: Duration,
    median: Duration,
    highest: Duration,
}

impl Spread {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        Self { lowest: times[0], median: times[times.len() / 2], highest: times[times.len() - 1] }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [lowest, median, highest] = [self.lowest, self.median, self.highest].map(|time| time.as_secs_f64());
        write!(f, "{median:.3} s ({lowest:.3} to {highest:.3})")
    }
}
