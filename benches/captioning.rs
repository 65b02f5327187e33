//! Reads a picture of 448x448 and a question, and writes tokens, with the weights in a folder; prints the seconds, the
//! tokens per second and the peak of memory.
//!
//! `benches/captioning.py` makes the folder and calls it, beside transformers on the same files.

use std::{convert::Infallible, error::Error, fs, path::Path, time::Instant};

use serde_json::json;
use tch::{Device, Kind, Tensor};
use vlmdiff::models::{
    internvl::InternVl,
    language::{
        generate::{Generation, Heard, Prompt, Speed, generate},
        weights::{Arithmetic, Computing},
    },
};

/// The number of times that each measurement is made, after one that is not counted.
const ROUNDS: usize = 3;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let [folder, precision, rows, tokens, threads] = &arguments[..] else {
        return Err("benches/captioning.py calls this with FOLDER PRECISION ROWS TOKENS THREADS".into());
    };
    let (rows, tokens): (usize, usize) = (rows.parse()?, tokens.parse()?);
    tch::set_num_threads(threads.parse()?);
    let computing = if precision == "f32" { Computing::F32 } else { Computing::Bf16 };
    let start = Instant::now();
    let model = InternVl::open(folder, Arithmetic { computing, int8: precision == "int8" }, Device::Cpu)?;
    let ids: Vec<i64> = serde_json::from_str(&fs::read_to_string(Path::new(folder).join("ids.json"))?)?;
    let image = model.config().image_token.ok_or("the config names no image token")?;
    let _no_grad = tch::no_grad_guard();
    let picture = Tensor::randn([1, 3, 448, 448], (Kind::Float, Device::Cpu));
    let first = |rows: usize, tokens: usize| -> Result<(f64, Speed), Box<dyn Error>> {
        let start = Instant::now();
        let visual = model.visual_tokens(&picture);
        let embeddings = model.decoder().embed_with(&ids, image, &visual)?;
        let prompt = |row: usize| Ok(Prompt { key: row.to_string(), embeddings: embeddings.shallow_clone() });
        let options = Generation {
            max_new_tokens: tokens,
            stop: vec![],
            rows,
            places: (ids.len() + tokens) as i64,
            sampling: None,
            repetition_penalty: 1.,
            prefix: None,
        };
        let mut speed = Speed::default();
        generate::<Infallible>(model.decoder(), &options, (0..rows).map(prompt), |heard| {
            if let Heard::Step(so_far) = heard {
                speed = so_far;
            }
            Ok(())
        })
        .unwrap_or_else(|never| match never {});
        Ok((start.elapsed().as_secs_f64(), speed))
    };
    first(1, 1)?;
    let cold = start.elapsed().as_secs_f64();
    let read = (0..ROUNDS).map(|_| Ok(first(1, 1)?.0)).collect::<Result<Vec<f64>, Box<dyn Error>>>()?;
    first(rows, 4)?;
    let written = (0..ROUNDS).map(|_| {
        let speed = first(rows, tokens)?.1;
        Ok(speed.decoded_tokens as f64 / speed.decode.as_secs_f64())
    });
    let written = written.collect::<Result<Vec<f64>, Box<dyn Error>>>()?;
    println!(
        "{}",
        json!({ "cold": cold, "first": median(read), "per_second": median(written), "peak": peak()?, "stream": stream(threads.parse()?) })
    );
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Returns the largest memory of this process so far in bytes, pages of mapped files included.
fn peak() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? * 1024)
}

/// Returns the bytes per second that threads read from memory: the sum of 1 GiB, three times, the fastest.
fn stream(threads: usize) -> f64 {
    let numbers = vec![1_u64; 1 << 27];
    let part = numbers.len() / threads;
    let sum = |_| {
        let start = Instant::now();
        let total: u64 = std::thread::scope(|scope| {
            let add = |part: &[u64]| part.iter().fold(0_u64, |sum, number| sum.wrapping_add(*number));
            let sums: Vec<_> = numbers.chunks(part).map(|part| scope.spawn(move || add(part))).collect();
            sums.into_iter().map(|sum| sum.join().unwrap_or_default()).fold(0, u64::wrapping_add)
        });
        assert_eq!(total, numbers.len() as u64);
        start.elapsed().as_secs_f64()
    };
    8. * numbers.len() as f64 / (0..3).map(sum).fold(f64::INFINITY, f64::min)
}
