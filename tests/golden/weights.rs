//! Weights that are stored as 8-bit integers times a power of two, or are not stored because a formula gives them.

use super::Case;
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use tch::{Kind, Tensor};
use vlmdiff::models::checkpoint::{Checkpoint, to_safetensors};

#[derive(Deserialize)]
struct Scale {
    set_seed: u64,
    /// Exponents by name; a tensor without one does not follow the formula.
    exponent: BTreeMap<String, i32>,
    shape: BTreeMap<String, Vec<i64>>,
}

const GOLDEN_RATIO: u64 = 0x9E37_79B9_7F4A_7C15;

/// Computes the FNV-1a hash.
fn hash(key: &str) -> u64 {
    key.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Returns the integers of a tensor before those of normalisations are moved: sums of four uniform 16-bit numbers,
/// within -127..=127 (SplitMix64).
pub(crate) fn integers(key: &str, set_seed: u64, count: usize) -> impl Iterator<Item = i8> {
    let base = hash(key) ^ set_seed.wrapping_mul(GOLDEN_RATIO);
    (1..=count as u64).map(move |i| {
        let mut z = base.wrapping_add(i.wrapping_mul(GOLDEN_RATIO));
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        let sum: i64 = (0..4).map(|part| (z >> (16 * part) & 0xffff) as i64).sum();
        ((sum - 131_070) * 127 / 131_070) as i8
    })
}

/// Returns the tensors of `NAME_i8.safetensors` at their values, or those of the formula.
pub(super) fn read(case: &Case, name: &str) -> Checkpoint {
    let scale: Scale = case.json(&format!("{name}_scale.json"));
    let stored = case.path(&format!("{name}_i8.safetensors"));
    let stored: HashMap<String, Tensor> =
        if stored.exists() { Tensor::read_safetensors(stored).unwrap().into_iter().collect() } else { HashMap::new() };
    let tensors = scale.shape.iter().filter_map(|(key, shape)| {
        let Some(exponent) = scale.exponent.get(key) else {
            return stored.get(key).map(|stored| (key.clone(), stored.shallow_clone()));
        };
        let integers = match stored.get(key) {
            Some(stored) => stored.shallow_clone(),
            None => formula(key, scale.set_seed, *exponent, shape),
        };
        let values: Tensor = integers.to_kind(Kind::Float) * 2f64.powi(*exponent);
        Some((key.clone(), values.reshape(shape)))
    });
    Checkpoint::from_safetensors(to_safetensors(tensors, HashMap::new()).unwrap()).unwrap()
}

/// Returns the tensors of `NAME.safetensors` at their values, with the exponents in `NAME_scale.json`.
pub(super) fn stored(case: &Case, name: &str) -> Checkpoint {
    #[derive(Deserialize)]
    struct Exponents {
        exponent: BTreeMap<String, i32>,
    }
    let Exponents { exponent } = case.json(&format!("{name}_scale.json"));
    let file = case.tensors(&format!("{name}.safetensors"));
    let value = |key: &str| match exponent.get(key) {
        Some(exponent) => file.get(key).to_kind(Kind::Float) * 2f64.powi(*exponent),
        None => file.get(key),
    };
    let tensors: Vec<(String, Tensor)> = file.names().map(|key| (key.to_owned(), value(key))).collect();
    Checkpoint::from_safetensors(to_safetensors(tensors, HashMap::new()).unwrap()).unwrap()
}

/// Returns the integers of a tensor. Weights of normalisations and variances lie about one, and those of LPIPS are not
/// negative.
fn formula(key: &str, set_seed: u64, exponent: i32, shape: &[i64]) -> Tensor {
    let count = shape.iter().product::<i64>() as usize;
    // only tensors that lie about one have this exponent and one dimension
    let about_one = exponent == -6 && shape.len() == 1 && (key.ends_with("weight") || key.ends_with("running_var"));
    let of = |q: i8| match key {
        _ if about_one => 64 + (q >> 2),
        _ if key.contains("perceptual_loss.lin") => q.abs(),
        _ => q,
    };
    Tensor::from_slice(&integers(key, set_seed, count).map(of).collect::<Vec<i8>>())
}

/// Compares the formula with published values of it, and with every stored weight.
pub(super) fn compare(case: &Case) {
    #[derive(Deserialize)]
    struct Vector {
        key: String,
        set_seed: u64,
        first16: Vec<i8>,
        sum_of_1000: i64,
    }
    for Vector { key, set_seed, first16, sum_of_1000 } in case.json::<Vec<Vector>>("weight_generator_vectors.json") {
        case.equal(&key, &integers(&key, set_seed, 16).collect(), &first16);
        case.equal(&key, &integers(&key, set_seed, 1000).map(i64::from).sum(), &sum_of_1000);
    }
    for name in ["weights", "ae_loss_weights", "dino_weights"] {
        let scale: Scale = case.json(&format!("{name}_scale.json"));
        let file = format!("{name}_i8.safetensors");
        if !case.path(&file).exists() {
            continue; // the other cases take the formula in its place
        }
        let stored = case.tensors(&file);
        for key in stored.names() {
            let found = stored.get(key);
            if let Some(exponent) = scale.exponent.get(key) {
                let want = formula(key, scale.set_seed, *exponent, &scale.shape[key]);
                case.equal(key, &found.flatten(0, -1), &want);
            }
        }
    }
}
