//! The camera, which turns surfaces into pixels: supersampling, lens blur, sensor noise, and the exact mask of the
//! pixels that a defect changed.

use image::{GrayImage, Luma, Rgb as Pixel, RgbImage};

use super::defects::Mark;
use super::draw::Draw;
use super::geometry::{V2, v};
use super::noise;
use super::scene::{Light, Rgb, Scene};

/// The change of a channel of the noiseless picture (of 1) above which a pixel belongs to the mask: five times the
/// noise, so that a viewer can see it.
const NOTICEABLE: f32 = 0.055;

/// A scene, with or without its defect.
pub(super) struct View<'a> {
    pub(super) scene: &'a dyn Scene,
    /// The same scene with a broken part.
    pub(super) broken: Option<&'a dyn Scene>,
    /// The flaw on or in the surface.
    pub(super) mark: Option<&'a dyn Mark>,
    pub(super) light: &'a Light,
}

impl View<'_> {
    /// Returns the light from `p` without the defect and, if the defect matters there, with it.
    fn look(&self, p: V2) -> (Rgb, Option<Rgb>) {
        let surface = self.scene.surface(p);
        let good = self.light.shade(&surface, p);
        if let Some(broken) = self.broken {
            return (good, Some(self.light.shade(&broken.surface(p), p)));
        }
        let bad = self.mark.and_then(|mark| {
            let mut marked = surface;
            mark.apply(p, &mut marked).then(|| self.light.shade(&marked, p))
        });
        (good, bad)
    }

    fn changed(good: Rgb, bad: Rgb) -> bool {
        good.iter().zip(bad).any(|(&a, b)| (encode(a) - encode(b)).abs() > NOTICEABLE)
    }

    /// Returns the share of the picture that the defect changes, measured on a grid of 64 x 64 points at any picture
    /// size.
    pub(super) fn changed_share(&self) -> f32 {
        const GRID: u32 = 64;
        let hits = (0..GRID * GRID)
            .filter(|i| {
                let (good, bad) = self.look(v(centre(i % GRID, GRID), centre(i / GRID, GRID)));
                bad.is_some_and(|bad| Self::changed(good, bad))
            })
            .count();
        hits as f32 / (GRID * GRID) as f32
    }

    /// Renders the photograph and the mask of its defect, both `size` x `size`.
    pub(super) fn photograph(&self, size: u32, draw: &mut Draw) -> (RgbImage, GrayImage) {
        let lens = Lens::new(size, draw);
        let (sigma, seed) = (draw.range(0.008, 0.013), draw.bits());
        let fine = 2 * size;
        let mut good = Vec::with_capacity((fine * fine) as usize);
        let mut bad = Vec::new(); // stays empty until the defect begins
        for i in 0..fine * fine {
            let (flawless, flawed) = self.look(v(centre(i % fine, fine), centre(i / fine, fine)));
            if flawed.is_some() && bad.is_empty() {
                bad.clone_from(&good);
                bad.reserve_exact(good.capacity() - good.len());
            }
            good.push(flawless);
            if flawed.is_some() || !bad.is_empty() {
                bad.push(flawed.unwrap_or(flawless));
            }
        }
        let good = lens.focus(&good, size);
        if bad.is_empty() {
            return (expose(&good, size, sigma, seed), GrayImage::new(size, size));
        }
        let bad = lens.focus(&bad, size);
        (expose(&bad, size, sigma, seed), mask(&good, &bad, size))
    }
}

/// Returns the middle of pixel `i` of `n`, in -1/2..1/2.
fn centre(i: u32, n: u32) -> f32 {
    (i as f32 + 0.5) / n as f32 - 0.5
}

/// Encodes linear light as a picture stores it, both 0..=1.
fn encode(linear: f32) -> f32 {
    linear.clamp(0.0, 1.0).sqrt()
}

/// Blurs by the lens and halves the size, in one separable kernel over linear light.
struct Lens {
    taps: Vec<f32>,
}

impl Lens {
    fn new(size: u32, draw: &mut Draw) -> Self {
        // The kernel (1 - (d / radius)^2)^2 in samples: about a Gaussian of sigma 0.38 radius.
        let radius = (draw.range(1.9, 2.8) * size as f32 / 128.0).max(1.3);
        let reach = radius.ceil() as i32;
        let weights: Vec<f32> = (-reach..reach)
            .map(|k| (1.0 - ((k as f32 + 0.5) / radius) * ((k as f32 + 0.5) / radius)).max(0.0))
            .map(|w| w * w)
            .collect();
        let total: f32 = weights.iter().sum();
        Self { taps: weights.iter().map(|w| w / total).collect() }
    }

    /// Blurs and reduces `fine` [2 size, 2 size] to [size, size].
    fn focus(&self, fine: &[Rgb], size: u32) -> Vec<Rgb> {
        let (n, wide) = (size as usize, 2 * size as usize);
        let rows: Vec<Rgb> = (0..wide * n).map(|i| self.gather(i % n, wide, |x| fine[i / n * wide + x])).collect();
        (0..n * n).map(|i| self.gather(i / n, wide, |y| rows[y * n + i % n])).collect()
    }

    fn gather(&self, at: usize, wide: usize, sample: impl Fn(usize) -> Rgb) -> Rgb {
        let first = 2 * at as isize + 1 - self.taps.len() as isize / 2;
        let mut sum = [0.0; 3];
        for (k, &tap) in self.taps.iter().enumerate() {
            let from = sample((first + k as isize).clamp(0, wide as isize - 1) as usize);
            for c in 0..3 {
                sum[c] += tap * from[c];
            }
        }
        sum
    }
}

/// Encodes and adds the sensor's noise, of standard deviation `sigma` (of 1).
fn expose(light: &[Rgb], size: u32, sigma: f32, seed: u32) -> RgbImage {
    RgbImage::from_fn(size, size, |x, y| {
        let linear = light[(y * size + x) as usize];
        Pixel(std::array::from_fn(|c| {
            let noise = sigma * noise::normal(x as i32, y as i32, seed.wrapping_add(c as u32));
            ((encode(linear[c]) + noise) * 255.0 + 0.5).clamp(0.0, 255.0) as u8
        }))
    })
}

/// Returns 255 for pixels that the defect changed noticeably, and for pixels between two such ones on opposite sides.
fn mask(good: &[Rgb], bad: &[Rgb], size: u32) -> GrayImage {
    let n = size as usize;
    let changed: Vec<bool> = good.iter().zip(bad).map(|(&good, &bad)| View::changed(good, bad)).collect();
    GrayImage::from_fn(size, size, |x, y| {
        let (x, y) = (x as usize, y as usize);
        let at = |dx: isize, dy: isize| {
            let (x, y) = (x.wrapping_add_signed(dx), y.wrapping_add_signed(dy));
            x < n && y < n && changed[y * n + x]
        };
        let enclosed = [(1, 0), (0, 1), (1, 1), (1, -1)].iter().any(|&(dx, dy)| at(dx, dy) && at(-dx, -dy));
        Luma([if at(0, 0) || enclosed { 255 } else { 0 }])
    })
}
