//! Loads a file of weights into variables of its names, shapes and types, and prints the seconds and the peak of memory
//! that this took.
//!
//! `benches/loading.py` calls it, beside Python on the same files.

use std::{error::Error, fs, time::Instant};

use tch::{Device, nn::VarStore};
use vlmdiff::models::checkpoint::Checkpoint;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).filter(|path| !path.starts_with("--"));
    let path = path.ok_or("name a file of weights; benches/loading.py makes one")?;
    let before = status("VmRSS")?;
    let file = Checkpoint::open(&path)?;
    let mut vs = VarStore::new(Device::Cpu);
    // The variables are ones, because zeros take no memory before they are written to.
    for name in file.names() {
        let shape = file.shape(name).ok_or("no shape")?;
        let mut parts: Vec<&str> = name.split('.').collect();
        let last = parts.pop().unwrap_or_default();
        let _ = parts.into_iter().fold(vs.root(), |place, part| place / part).ones(last, shape);
    }
    let kind = file.names().next().and_then(|name| file.kind(name)).ok_or("no tensor")?;
    vs.set_kind(kind);
    let start = Instant::now();
    Checkpoint::open(&path)?.load_into(&vs)?;
    let seconds = start.elapsed().as_secs_f64();
    println!("{{\"seconds\": {seconds}, \"peak\": {}}}", status("VmHWM")? - before);
    Ok(())
}

/// Returns a figure of this process in bytes.
fn status(name: &str) -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such figure")?;
    Ok(line.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").parse::<u64>()? * 1024)
}
