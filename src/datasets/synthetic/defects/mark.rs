//! The common parts of all flaws: the change of a surface, and the choice of colours.

use super::super::{
    draw::Draw,
    geometry::{V2, smoothstep, v},
    scene::{Rgb, Scene, Surface, brightness, rgb},
};

/// A flaw in place. `apply` changes the surface at `p` and returns true if it did.
pub(in crate::datasets::synthetic) trait Mark {
    fn apply(&self, p: V2, surface: &mut Surface) -> bool;
}

/// The colours of the product where a flaw will be, from dark to bright; never empty.
pub(super) struct Base(Vec<Rgb>);

impl Base {
    pub(super) fn around(centre: V2, scene: &dyn Scene) -> Self {
        let offset = |i: usize| (i as f32 - 1.0) * 0.05;
        let around = (0..9).map(|i| scene.surface(centre + v(offset(i % 3), offset(i / 3))));
        let mut colours: Vec<Rgb> =
            around.filter(|surface| surface.product > 0.5).map(|surface| surface.albedo).collect();
        if colours.is_empty() {
            colours.push(scene.surface(centre).albedo);
        }
        colours.sort_by(|&a, &b| brightness(a).total_cmp(&brightness(b)));
        Self(colours)
    }

    /// Returns the median, which a pin or a joint among the colours does not shift.
    pub(super) fn typical(&self) -> Rgb {
        self.0[self.0.len() / 2]
    }

    /// Picks a colour of `palette` that stands out here.
    pub(super) fn contrast(&self, draw: &mut Draw, palette: &[u32]) -> Rgb {
        let distance = |hex: u32| {
            let colour = rgb(hex);
            let from = |own: &Rgb| (0..3).map(|c| (colour[c].sqrt() - own[c].min(1.0).sqrt()).abs()).sum::<f32>();
            let mut apart: Vec<f32> = self.0.iter().map(from).collect();
            apart.sort_by(f32::total_cmp);
            // The distance is large on average, and also from the second of two colours; a few points of the same
            // colour do not matter.
            (apart.iter().sum::<f32>() / apart.len() as f32).min(1.6 * apart[apart.len() / 4])
        };
        let far: Vec<u32> = palette.iter().copied().filter(|&hex| distance(hex) > 0.9).collect();
        match far.is_empty() {
            false => rgb(*draw.pick(&far)),
            true => rgb(palette.iter().copied().max_by(|&a, &b| distance(a).total_cmp(&distance(b))).unwrap_or(0)),
        }
    }
}

/// Returns 1 for a material so dark that shadow does not show on it, 0 for bright ones, and values between for others.
pub(super) fn darkness(base: Rgb) -> f32 {
    smoothstep(0.14, 0.03, brightness(base))
}
