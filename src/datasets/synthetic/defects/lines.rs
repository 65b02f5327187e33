//! Flaws that follow a line: scratches, cracks and fibres.

use std::f32::consts::TAU;

use super::super::draw::Draw;
use super::super::geometry::{V2, mix, segment, smoothstep, v};
use super::super::scene::{Light, Rgb, Surface, blend, brightness, rgb};
use super::mark::{Base, Mark, darkness};

/// A polyline whose width changes from point to point.
struct Line {
    points: Vec<(V2, f32)>,
    low: V2,
    high: V2,
}

/// The position of a point relative to a line.
struct Beside {
    /// Distance in half widths, signed by side.
    offset: f32,
    /// Unit direction away from the line on the positive side.
    across: V2,
}

impl Line {
    pub(super) fn new(points: Vec<(V2, f32)>) -> Self {
        let (mut low, mut high) = (v(9.0, 9.0), v(-9.0, -9.0));
        for &(p, width) in &points {
            let margin = 3.0 * width + 0.01;
            low = v(low.x.min(p.x - margin), low.y.min(p.y - margin));
            high = v(high.x.max(p.x + margin), high.y.max(p.y + margin));
        }
        Self { points, low, high }
    }

    /// Makes a smooth curve about `centre` with the half width `width` in its middle; with `pointed`, its ends are
    /// pointed.
    fn curve(centre: V2, heading: V2, length: f32, bend: f32, width: f32, pointed: bool) -> Self {
        const STEPS: usize = 14;
        let points = (0..=STEPS).map(|i| {
            let t = i as f32 / STEPS as f32 * 2.0 - 1.0;
            let p = centre + heading * (t * length / 2.0) + heading.across() * (bend * length * (t * t - 0.33));
            (p, if pointed { width * (1.0 - t * t * t * t).max(0.12) } else { width })
        });
        Self::new(points.collect())
    }

    fn beside(&self, p: V2) -> Option<Beside> {
        if p.x < self.low.x || p.y < self.low.y || p.x > self.high.x || p.y > self.high.y {
            return None;
        }
        let mut best: Option<Beside> = None;
        for pair in self.points.windows(2) {
            let ((a, wa), (b, wb)) = (pair[0], pair[1]);
            let (distance, t) = segment(p, a, b);
            let offset = distance / mix(wa, wb, t).max(1e-4);
            if best.as_ref().is_none_or(|best| offset < best.offset.abs()) {
                let across = (b - a).across().unit();
                let side = if (p - a).dot(across) < 0.0 { -1.0 } else { 1.0 };
                best = Some(Beside { offset: offset * side, across });
            }
        }
        best
    }
}

/// A groove with raised rims, one bright and one dark, and bare material in it.
pub(super) struct Scratch {
    lines: Vec<Line>,
    bare: Rgb,
}

impl Scratch {
    pub(super) fn new(centre: V2, base: Rgb, draw: &mut Draw) -> Self {
        let heading = V2::polar(draw.range(0.0, TAU));
        let (length, width) = (draw.range(0.25, 0.5), draw.range(0.007, 0.011));
        let mut lines = vec![Line::curve(centre, heading, length, draw.around(0.12), width, true)];
        if draw.chance(0.4) {
            let beside =
                centre + heading.across() * (draw.sign() * draw.range(0.025, 0.05)) + heading * draw.around(0.1);
            lines.push(Line::curve(beside, heading, length * draw.range(0.4, 0.7), 0.0, width * 0.8, true));
        }
        let bare = if brightness(base) < 0.35 { blend(base, [1.0; 3], 0.55) } else { base.map(|c| c * 0.16) };
        Self { lines, bare }
    }
}

impl Mark for Scratch {
    fn apply(&self, p: V2, surface: &mut Surface) -> bool {
        let mut touched = false;
        for beside in self.lines.iter().filter_map(|line| line.beside(p)) {
            let t = beside.offset.abs();
            if t >= 2.2 || surface.product <= 0.0 {
                continue;
            }
            let cut = (1.0 - smoothstep(0.75, 1.15, t)) * surface.product;
            surface.albedo = blend(surface.albedo, self.bare, 0.8 * cut);
            surface.gloss *= 1.0 - cut;
            surface.metal *= 1.0 - 0.6 * cut;
            // Down into the groove within the width, up over a rim beyond it.
            let steep = if t < 1.0 { 1.3 * t } else { -0.9 * (2.2 - t) / 1.2 };
            surface.slope = surface.slope + beside.across * (steep * beside.offset.signum() * surface.product);
            touched = true;
        }
        touched
    }
}

/// A jagged, branching, dark gap with chipped edges.
pub(super) struct Crack {
    lines: Vec<Line>,
    /// The paleness of the break, from 0 to 1: dark materials whiten under stress.
    pale: f32,
}

impl Crack {
    pub(super) fn new(centre: V2, base: Rgb, draw: &mut Draw) -> Self {
        let heading = V2::polar(draw.range(0.0, TAU));
        let (length, width) = (draw.range(0.3, 0.46), draw.range(0.0065, 0.0095));
        let trunk = Self::walk(centre - heading * (length / 2.0), heading, length, width, draw);
        let mut lines = Vec::new();
        for _ in 0..2 + draw.below(2) {
            let (from, thick) = trunk[trunk.len() / 4 + draw.below(trunk.len() / 2)];
            let aside = heading.turned(V2::polar(draw.sign() * draw.range(0.5, 1.1)));
            let branch = draw.range(0.25, 0.5) * length;
            lines.push(Line::new(Self::walk(from, aside, branch, thick * 0.75, draw)));
        }
        lines.push(Line::new(trunk));
        Self { lines, pale: 0.75 * darkness(base) }
    }

    /// Makes a path from `start` that ends in a point, with a change of direction every 0.03.
    fn walk(start: V2, heading: V2, length: f32, width: f32, draw: &mut Draw) -> Vec<(V2, f32)> {
        let steps = (length / 0.03) as usize + 1;
        let mut at = start;
        (0..=steps)
            .map(|i| {
                let here = (at, width * (1.0 - i as f32 / steps as f32).max(0.15) * draw.range(0.75, 1.25));
                at = at + heading.turned(V2::polar(draw.around(1.1))) * (length / steps as f32);
                here
            })
            .collect()
    }
}

impl Mark for Crack {
    fn apply(&self, p: V2, surface: &mut Surface) -> bool {
        let nearest = self
            .lines
            .iter()
            .filter_map(|line| line.beside(p))
            .min_by(|a, b| a.offset.abs().total_cmp(&b.offset.abs()));
        let Some(beside) = nearest.filter(|beside| beside.offset.abs() < 2.0 && surface.product > 0.0) else {
            return false;
        };
        let t = beside.offset.abs();
        let gap = (1.0 - smoothstep(0.8, 1.2, t)) * surface.product;
        surface.open *= 1.0 - 0.9 * gap * (1.0 - self.pale);
        surface.gloss *= 1.0 - gap;
        surface.albedo = blend(surface.albedo, surface.albedo.map(|c| c * 0.35), gap);
        let lip = if t > 1.0 { -0.7 * (2.0 - t) } else { 0.0 };
        let stressed = self.pale * smoothstep(1.7, 0.9, t) * surface.product;
        surface.albedo = blend(surface.albedo, rgb(0x9c9a94), stressed);
        surface.slope = surface.slope + beside.across * (lip * beside.offset.signum() * surface.product);
        true
    }
}

/// A hair or thread lying on the surface.
pub(super) struct Fibre {
    lines: Vec<Line>,
    colour: Rgb,
    shadow: V2,
}

impl Fibre {
    pub(super) fn new(centre: V2, base: &Base, light: &Light, draw: &mut Draw) -> Self {
        let colour = base.contrast(draw, &[0xc23b2e, 0x2a5fb0, 0xf2efe6, 0x202020, 0x2f8f5b, 0xe0b030]);
        let heading = V2::polar(draw.range(0.0, TAU));
        let (length, width) = (draw.range(0.28, 0.42), draw.range(0.0065, 0.009));
        let bend = draw.sign() * draw.range(0.1, 0.4);
        let mut lines = vec![Line::curve(centre, heading, length, bend, width, false)];
        if draw.chance(0.35) {
            let other = heading.turned(V2::polar(draw.range(0.5, 2.5)));
            lines.push(Line::curve(centre + other * 0.04, other, length * 0.7, -bend, width, false));
        }
        Self { lines, colour, shadow: light.toward * 0.013 }
    }

    fn nearest(&self, p: V2) -> Option<Beside> {
        let beside = self.lines.iter().filter_map(|line| line.beside(p));
        beside.min_by(|a, b| a.offset.abs().total_cmp(&b.offset.abs()))
    }
}

impl Mark for Fibre {
    fn apply(&self, p: V2, surface: &mut Surface) -> bool {
        let shade = self.nearest(p + self.shadow).map_or(0.0, |b| 1.0 - smoothstep(0.5, 1.9, b.offset.abs()));
        let own = self.nearest(p).filter(|beside| beside.offset.abs() < 1.15);
        surface.open *= 1.0 - 0.5 * shade;
        if let Some(beside) = &own {
            let mut thread = Surface::matte(self.colour);
            thread.slope = beside.across * (-0.9 * beside.offset.clamp(-1.0, 1.0));
            surface.cover(&thread, 1.0 - smoothstep(0.85, 1.15, beside.offset.abs()));
        }
        own.is_some() || shade > 0.0
    }
}
