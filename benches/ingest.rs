//! The computation of ingestion alone: reads lines `image<TAB>mask`, with an empty mask if there is none, decodes and
//! resizes them on all cores, and prints the seconds that this took. `benches/ingest.py` calls it, beside `vlmdiff
//! run`.

use std::{error::Error, fs, time::Instant};

use rayon::prelude::*;
use vlmdiff::vision::{decode, resize};

const SIZE: u32 = 256;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Result<()> {
    let lines: Vec<String> = std::io::stdin().lines().collect::<std::result::Result<_, _>>()?;
    let started = Instant::now();
    let pixels = lines.par_iter().map(|line| work(line)).try_reduce(|| 0, |a, b| Ok(a + b))?;
    println!("{{\"seconds\": {}, \"pixels\": {pixels}}}", started.elapsed().as_secs_f64());
    Ok(())
}

/// Decodes and resizes a photograph and its masks; returns the number of values.
fn work(line: &str) -> Result<usize> {
    let (image, mask) = line.split_once('\t').ok_or("a line is image<TAB>mask")?;
    let image = decode::rgb(&fs::read(image)?)?;
    let mut numbers = resize::rgb(&image, SIZE, SIZE, resize::Filter::Bilinear).len();
    if !mask.is_empty() {
        let mask = decode::mask(&fs::read(mask)?, true)?;
        numbers += resize::mask(&mask.any, SIZE, SIZE).len();
        if let Some(grey) = mask.grey {
            numbers += resize::grey(&grey, SIZE, SIZE, resize::Filter::Bilinear).len();
        }
    }
    Ok(numbers)
}
