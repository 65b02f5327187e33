//! A glazed floor of octagons with small square dots between them.

use super::draw::Draw;
use super::geometry::{V2, floor, smoothstep, v};
use super::noise;
use super::scene::{Light, Pose, Rgb, Scene, Surface, grain, rgb};

use std::f32::consts::TAU;

/// Distance between octagons.
const PITCH: f32 = 0.27;
/// Half the diagonal of a dot's cell, in pitches.
const DOT: f32 = 0.31;
/// Half the grout's width, in pitches.
const GROUT: f32 = 0.028;

const GLAZES: [(&str, u32, u32); 3] = [
    ("white octagons with black dots", 0xe2e0d8, 0x2c2d31),
    ("cream octagons with terracotta dots", 0xdccfae, 0xa4522f),
    ("pale blue octagons with navy dots", 0xa9c2cc, 0x27406b),
];

struct Fault {
    column: i32,
    row: i32,
    state: Misfit,
}

enum Misfit {
    Gone,
    /// The dot lies `by` from its place, turned by the angle of `turn`.
    Moved {
        by: V2,
        turn: V2,
    },
    /// The dot has the colour of another floor.
    Other(Rgb),
}

pub(super) struct Tile {
    pose: Pose,
    name: &'static str,
    octagon: Rgb,
    dot: Rgb,
    toward: V2,
    fault: Option<Fault>,
}

impl Tile {
    pub(super) fn new(light: &Light, draw: &mut Draw) -> Self {
        let &(name, octagon, dot) = draw.pick(&GLAZES);
        let pose = Pose::new(draw, 0.03, 4.0);
        Self { pose, name, octagon: rgb(octagon), dot: rgb(dot), toward: light.toward, fault: None }
    }

    fn grout(&self, q: V2) -> Surface {
        let mut grout = Surface::matte(rgb(0x8f8a80));
        grout.tone(1.0 + 0.08 * noise::cloud(q * 35.0, 41));
        grout.open = 0.8;
        grout
    }

    /// Returns glazed ware over `under`; the point lies `inside` its edge (in pitches), which falls off towards
    /// `outward`.
    fn glaze(&self, under: Surface, colour: Rgb, inside: f32, outward: V2, tone: f32) -> Surface {
        let mut glaze = Surface::matte(colour);
        glaze.tone(tone);
        glaze.gloss = 0.09;
        glaze.slope = self.pose.outward(outward * (-1.1 * (1.0 - smoothstep(0.0, 0.07, inside))));
        let mut surface = under;
        surface.cover(&glaze, smoothstep(-0.012, 0.012, inside));
        surface
    }
}

impl Scene for Tile {
    fn surface(&self, p: V2) -> Surface {
        let q = self.pose.to_object(p);
        let c = q * (1.0 / PITCH);
        let (i, j) = (floor(c.x), floor(c.y));
        let f = v(c.x - i as f32 - 0.5, c.y - j as f32 - 0.5); // from the octagon's centre
        let (a, b) = (f.x.abs(), f.y.abs());
        let (sx, sy) = (f.x.signum(), f.y.signum());
        const DIAGONAL: f32 = std::f32::consts::FRAC_1_SQRT_2;
        let straight = 0.5 - GROUT - a.max(b);
        let slanted = (1.0 - DOT - a - b) * DIAGONAL - GROUT;
        let mut surface = self.grout(q);
        if straight.min(slanted) > -0.02 {
            let outward = match (slanted < straight, a > b) {
                (true, _) => v(sx, sy) * DIAGONAL,
                (_, true) => v(sx, 0.0),
                _ => v(0.0, sy),
            };
            let tone = (1.0 + 0.035 * noise::cell(i, j, 42)) * grain(q, 43);
            return self.glaze(surface, self.octagon, straight.min(slanted), outward, tone);
        }
        let (column, row) = (floor(c.x + 0.5) - 1, floor(c.y + 0.5) - 1);
        let corner = f - v(sx, sy) * 0.5;
        let mut local = corner;
        let mut turn = v(1.0, 0.0);
        let mut colour = self.dot;
        let here = |fault: &&Fault| (fault.column, fault.row) == (column, row) && corner.x.abs() + corner.y.abs() < DOT;
        match self.fault.as_ref().filter(here).map(|fault| &fault.state) {
            None => {}
            Some(Misfit::Gone) => {
                // The bed of mortar, in the shadow of its rim.
                let shadow = corner + self.pose.inward(self.toward) * 0.09;
                surface.tone(0.45 * (1.0 + 0.25 * noise::cloud(q * 60.0, 44)));
                surface.open = 0.4 + 0.6 * smoothstep(DOT, DOT - 0.1, shadow.x.abs() + shadow.y.abs());
                return surface;
            }
            Some(&Misfit::Moved { by, turn: angle }) => {
                turn = angle;
                local = (corner - by).unturned(angle);
            }
            Some(&Misfit::Other(dot)) => colour = dot,
        }
        let inside = (DOT - local.x.abs() - local.y.abs()) * DIAGONAL - GROUT;
        let outward = v(local.x.signum(), local.y.signum()).turned(turn) * DIAGONAL;
        self.glaze(surface, colour, inside, outward, grain(q, 45))
    }

    fn place(&self, draw: &mut Draw) -> V2 {
        v(draw.range(-0.36, 0.36), draw.range(-0.36, 0.36))
    }

    fn core(&self) -> Rgb {
        rgb(0xa88f78)
    }

    fn break_part(&mut self, draw: &mut Draw) {
        let (column, row) = (draw.below(3) as i32 - 2, draw.below(3) as i32 - 2);
        let state = match draw.below(4) {
            0 | 1 => Misfit::Gone,
            2 => Misfit::Moved {
                by: V2::polar(draw.range(0.0, TAU)) * draw.range(0.04, 0.1),
                turn: V2::polar(draw.sign() * draw.range(0.35, 0.78)),
            },
            _ => {
                let others: Vec<Rgb> = GLAZES.iter().map(|glaze| rgb(glaze.2)).filter(|&dot| dot != self.dot).collect();
                Misfit::Other(*draw.pick(&others))
            }
        };
        self.fault = Some(Fault { column, row, state });
    }

    fn caption(&self, light: &str) -> String {
        format!(
            "A photo from above of a glazed tile floor, {} and clean grey grout, {}, lit from {light}.",
            self.name,
            self.pose.words()
        )
    }
}
