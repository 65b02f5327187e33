//! Flaws that fill a patch: holes, stains, drops and crumbs.

use std::f32::consts::{PI, TAU};

use super::super::draw::Draw;
use super::super::geometry::{V2, mix, smoothstep, v};
use super::super::noise;
use super::super::scene::{Light, Rgb, Surface, blend};
use super::mark::{Base, Mark, darkness};

/// A patch with a wavy outline.
struct Patch {
    centre: V2,
    radius: f32,
    /// The largest distance between outline and circle, as a share of the radius.
    wave: f32,
    /// The unit vector along its longer axis; `stretch` is the factor by which that is longer.
    along: V2,
    stretch: f32,
    seed: u32,
}

impl Patch {
    pub(super) fn new(centre: V2, radius: f32, wave: f32, draw: &mut Draw) -> Self {
        let along = V2::polar(draw.range(0.0, PI));
        Self { centre, radius, wave, along, stretch: draw.range(1.0, 1.4), seed: draw.bits() }
    }

    /// Returns the depth of a point, 0 in the middle and 1 on the outline, and the direction from the middle. `None`
    /// beyond `reach`.
    fn depth(&self, p: V2, reach: f32) -> Option<(f32, V2)> {
        let from = p - self.centre;
        let bound = self.radius * self.stretch * reach * (1.0 + self.wave);
        if from.x.abs() > bound || from.y.abs() > bound {
            return None;
        }
        let local = from.unturned(self.along);
        let local = v(local.x / self.stretch, local.y * self.stretch);
        let (r, direction) = (local.length(), local.unit());
        let outline = 1.0 + self.wave * noise::cloud(direction * 1.3 + v(7.3, 1.9), self.seed);
        let t = r / (self.radius * outline);
        (t < reach).then(|| (t, from.unit()))
    }
}

/// A dark opening with a rim; its wall away from the lamp is lit.
pub(super) struct Hole {
    patch: Patch,
    floor: Rgb,
    wall: Rgb,
    toward: V2,
}

impl Hole {
    pub(super) fn new(centre: V2, base: Rgb, wall: Rgb, light: &Light, draw: &mut Draw) -> Self {
        let radius = draw.range(0.04, 0.068);
        let floor = wall.map(|c| c * mix(0.05, 0.4, darkness(base)));
        Self { patch: Patch::new(centre, radius, 0.35, draw), floor, wall, toward: light.toward }
    }
}

impl Mark for Hole {
    fn apply(&self, p: V2, surface: &mut Surface) -> bool {
        let Some((t, outward)) = self.patch.depth(p, 1.45) else { return false };
        let on = surface.product;
        if on <= 0.0 {
            return false;
        }
        let away = -outward.dot(self.toward);
        let lit = smoothstep(0.45, 0.95, t) * smoothstep(-0.1, 0.8, away);
        let inside = (1.0 - smoothstep(0.94, 1.06, t)) * on;
        let mut depth = Surface::matte(blend(self.floor, self.wall, 0.75 * lit));
        depth.product = on;
        surface.cover(&depth, inside);
        if t > 0.94 {
            let rim = (1.0 - smoothstep(1.05, 1.45, t)) * on;
            surface.slope = surface.slope - outward * (0.75 * rim);
            surface.albedo = blend(surface.albedo, self.wall, 0.6 * rim);
        }
        true
    }
}

/// A dried or wet spill that tints what is below it, darker along its edge.
pub(super) struct Stain {
    patches: Vec<Patch>,
    tint: Rgb,
    opacity: f32,
}

impl Stain {
    pub(super) fn new(centre: V2, base: &Base, draw: &mut Draw) -> Self {
        const TINTS: [u32; 7] = [0x3b2412, 0x1c1a1a, 0x16325c, 0x7a2e12, 0x5a1f2c, 0xe9e4d4, 0x3f4a1e];
        let tint = base.contrast(draw, &TINTS);
        let radius = draw.range(0.06, 0.1);
        let mut patches = vec![Patch::new(centre, radius, 0.5, draw)];
        for _ in 0..draw.below(3) {
            let drop = centre + V2::polar(draw.range(0.0, TAU)) * (radius * draw.range(1.6, 2.1));
            patches.push(Patch::new(drop, radius * draw.range(0.14, 0.26), 0.2, draw));
        }
        Self { patches, tint, opacity: draw.range(0.6, 0.88) }
    }
}

impl Mark for Stain {
    fn apply(&self, p: V2, surface: &mut Surface) -> bool {
        let mut touched = false;
        for patch in &self.patches {
            let Some((t, _)) = patch.depth(p, 1.15) else { continue };
            if surface.product <= 0.0 {
                continue;
            }
            let spread = 1.0 - smoothstep(0.84, 1.13, t);
            let edge = smoothstep(0.6, 0.9, t) * 0.15;
            let uneven = 0.12 * noise::cloud(p * 22.0, patch.seed);
            let cover = (self.opacity + edge + uneven).clamp(0.0, 0.95) * spread * surface.product;
            surface.albedo = blend(surface.albedo, self.tint, cover);
            surface.metal *= 1.0 - 0.8 * cover;
            surface.gloss *= 1.0 - 0.6 * cover;
            touched = true;
        }
        touched
    }
}

/// Bodies of another material lying on the surface: a drop, or crumbs.
pub(super) struct Litter {
    bodies: Vec<Patch>,
    colour: Rgb,
    gloss: f32,
    toward: V2,
    height: f32,
}

impl Litter {
    pub(super) fn blob(centre: V2, base: &Base, light: &Light, draw: &mut Draw) -> Self {
        let colour = base.contrast(draw, &[0xe8d9a0, 0xd94f2b, 0x3a7ec2, 0xf4f4f0, 0x2b2b2e, 0x3f9a5a]);
        let bodies = vec![Patch::new(centre, draw.range(0.042, 0.07), 0.3, draw)];
        Self { bodies, colour, gloss: 0.8, toward: light.toward, height: 0.016 }
    }

    pub(super) fn crumbs(centre: V2, base: &Base, light: &Light, draw: &mut Draw) -> Self {
        let colour = base.contrast(draw, &[0x8a5a2b, 0xd9c7a0, 0x3a3a3c, 0xb8b4ac, 0x6d2f1c]);
        let bodies = (0..4 + draw.below(4)).map(|i| {
            let aside = V2::polar(draw.range(0.0, TAU)) * draw.range(0.02, 0.085);
            let radius = if i == 0 { draw.range(0.026, 0.036) } else { draw.range(0.016, 0.028) };
            Patch::new(if i == 0 { centre } else { centre + aside }, radius, 0.55, draw)
        });
        Self { bodies: bodies.collect(), colour, gloss: 0.12, toward: light.toward, height: 0.012 }
    }
}

impl Mark for Litter {
    fn apply(&self, p: V2, surface: &mut Surface) -> bool {
        let mut touched = false;
        for body in &self.bodies {
            if let Some((t, _)) = body.depth(p + self.toward * self.height, 1.3) {
                surface.open *= 1.0 - 0.55 * (1.0 - smoothstep(0.7, 1.3, t));
                touched = true;
            }
        }
        for body in &self.bodies {
            let Some((t, outward)) = body.depth(p, 1.08) else { continue };
            let mut dome = Surface::matte(self.colour);
            dome.tone(1.0 + 0.12 * noise::cloud(p * 60.0, body.seed));
            dome.slope = outward * (-1.5 * t * t);
            dome.gloss = self.gloss;
            surface.cover(&dome, 1.0 - smoothstep(0.92, 1.08, t));
            touched = true;
        }
        touched
    }
}
