//! Hashed lattice noise: smooth random fields that need no memory and look the same at every picture size.

use super::geometry::{V2, floor};

/// Returns 32 well mixed bits of a lattice point (the finaliser of MurmurHash3).
pub(super) fn hash(x: i32, y: i32, seed: u32) -> u32 {
    let mut h =
        (x as u32).wrapping_mul(0x8da6_b343) ^ (y as u32).wrapping_mul(0xd816_3841) ^ seed.wrapping_mul(0xcb1a_b31f);
    h = (h ^ (h >> 16)).wrapping_mul(0x85eb_ca6b);
    h = (h ^ (h >> 13)).wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

/// Returns a lattice point's value in [-1, 1).
pub(super) fn cell(x: i32, y: i32, seed: u32) -> f32 {
    (hash(x, y, seed) >> 8) as f32 / (1 << 23) as f32 - 1.0
}

/// Returns value noise in [-1, 1] with features of about one unit.
pub(super) fn value(p: V2, seed: u32) -> f32 {
    let (ix, iy) = (floor(p.x), floor(p.y));
    let (fx, fy) = (p.x - ix as f32, p.y - iy as f32);
    let (wx, wy) = (fx * fx * (3.0 - 2.0 * fx), fy * fy * (3.0 - 2.0 * fy));
    let top = cell(ix, iy, seed) * (1.0 - wx) + cell(ix + 1, iy, seed) * wx;
    let bottom = cell(ix, iy + 1, seed) * (1.0 - wx) + cell(ix + 1, iy + 1, seed) * wx;
    top * (1.0 - wy) + bottom * wy
}

/// Returns two octaves of value noise, in [-1, 1].
pub(super) fn cloud(p: V2, seed: u32) -> f32 {
    value(p, seed) * 0.67 + value(p * 2.03, seed ^ 0x5bd1) * 0.33
}

/// Returns a number that is about normal with mean 0 and standard deviation 1: the scaled sum of the four bytes of a
/// hash.
pub(super) fn normal(x: i32, y: i32, seed: u32) -> f32 {
    let sum: u32 = hash(x, y, seed).to_le_bytes().iter().map(|&byte| u32::from(byte)).sum();
    (sum as f32 - 510.0) / 147.8
}

#[cfg(test)]
mod tests {
    use super::super::geometry::v;
    use super::*;

    #[test]
    fn noise_is_bounded_continuous_and_passes_its_lattice() {
        for i in 0..500 {
            let p = v(i as f32 * 0.37 - 90.0, i as f32 * 0.11 - 20.0);
            assert!(cloud(p, 3).abs() <= 1.0);
            assert!((value(p, 3) - value(p + v(1e-3, 0.0), 3)).abs() < 0.01);
        }
        assert_eq!(value(v(-3.0, 5.0), 9), cell(-3, 5, 9));
    }

    #[test]
    fn normal_has_unit_moments() {
        let draws: Vec<f32> = (0..20_000).map(|i| normal(i % 100, i / 100, 1)).collect();
        let mean = draws.iter().sum::<f32>() / draws.len() as f32;
        let var = draws.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / draws.len() as f32;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.05, "{mean} {var}");
    }
}
