//! The cost of pixel AUROC and AUPRO: for anomaly maps in a file, beside a peer (`benches/metrics.py` makes the file),
//! or for growing numbers of maps of its own, with the memory that they take.
//!
//! `cargo bench --profile dev --bench metrics` times the build that people run.

use std::{
    error::Error,
    fs,
    time::{Duration, Instant},
};

use half::f16;
use safetensors::SafeTensors;
use vlmdiff_metrics::{Given, Kind, PixelMetrics, Protocol};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

const SIDE: usize = 256;
const COUNTS: [usize; 3] = [100, 1_000, 10_000];

fn main() -> Result<()> {
    // cargo adds an option of its own
    match std::env::args().skip(1).find(|argument| argument != "--bench") {
        Some(file) => beside_a_peer(&file),
        None => ever_more(),
    }
}

/// Prints one line of JSON about `maps` f16 [N, H, W] and `masks` u8 [N, H, W].
fn beside_a_peer(file: &str) -> Result<()> {
    let bytes = fs::read(file)?;
    let tensors = SafeTensors::deserialize(&bytes)?;
    let (maps, masks) = (tensors.tensor("maps")?, tensors.tensor("masks")?);
    let [_, height, width] = maps.shape() else { return Err("maps are [N, H, W]".into()) };
    let maps: Vec<f16> = maps.data().as_chunks::<2>().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect();
    let started = Instant::now();
    let mut state = PixelMetrics::new();
    for (map, mask) in maps.chunks(height * width).zip(masks.data().chunks(height * width)) {
        let mask: Vec<bool> = mask.iter().map(|pixel| *pixel > 0).collect();
        state.update(map, &mask, *width)?;
    }
    let [auroc, pro] =
        [Kind::Auroc, Kind::Aupro].map(|kind| Protocol::Reference.of_pixels(kind, &state, &Given::limit(0.3)));
    let seconds = started.elapsed().as_secs_f64();
    let exact = state.aupro(0.3);
    println!("{}", serde_json::json!({ "seconds": seconds, "auroc": auroc, "pro": pro, "aupro": exact }));
    Ok(())
}

/// Measures maps one after another, as they come from a table, every second with three regions.
fn ever_more() -> Result<()> {
    println!("| maps of {SIDE}x{SIDE} | time | each | peak of the process | pixel AUROC | AUPRO |");
    println!("|---|---|---|---|---|---|");
    for count in COUNTS {
        let mut state = PixelMetrics::new();
        let mut spent = Duration::ZERO;
        for index in 0..count {
            let (map, mask) = image(index);
            let started = Instant::now();
            state.update(&map, &mask, SIDE)?;
            spent += started.elapsed();
        }
        let started = Instant::now();
        let (auroc, aupro) = (state.auroc().unwrap_or_default(), state.aupro(0.3).unwrap_or_default());
        spent += started.elapsed();
        println!(
            "| {count} | {:.3} s | {:.2} ms | {:.1} MiB | {auroc:.4} | {aupro:.4} |",
            spent.as_secs_f64(),
            spent.as_secs_f64() * 1e3 / count as f64,
            peak()?
        );
    }
    Ok(())
}

/// Makes a map of noise that is higher in some rectangles.
fn image(index: usize) -> (Vec<f16>, Vec<bool>) {
    let regions = [(20, 30, 40), (120, 60, 24), (180, 200, 30)]
        .map(|(x, y, side)| ((x + index) % 200, (y + 3 * index) % 200, side));
    let inside = |x: usize, y: usize| {
        regions.iter().any(|(a, b, side)| (*a..a + side).contains(&x) && (*b..b + side).contains(&y))
    };
    let mut noise = index as u32 | 1;
    (0..SIDE * SIDE)
        .map(|i| {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let anomalous = index % 2 == 1 && inside(i % SIDE, i / SIDE);
            let score = (noise >> 16) as f32 / 65_536. + if anomalous { 0.3 } else { 0. };
            (f16::from_f32(score), anomalous)
        })
        .unzip()
}

/// Returns the peak of the process's memory in MiB; 0 if the system does not report it.
fn peak() -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().next()).unwrap_or("0");
    Ok(kib.parse::<f64>()? / 1024.)
}
