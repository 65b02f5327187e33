//! A spur gear with five holes on a workbench.

use super::draw::Draw;
use super::geometry::{V2, cos, floor, rounded_box, smoothstep, v};
use super::noise;
use super::scene::{Light, Pose, Rgb, Scene, Surface, grain, ground, rgb};

use std::f32::consts::TAU;

const TEETH: i32 = 14;
const HOLES: i32 = 5;
const PITCH_RADIUS: f32 = 0.34;
const TOOTH: f32 = 0.042;

const METALS: [(&str, u32, u32, &str); 3] = [
    ("bright steel", 0xb9bec4, 0x4a5560, "a slate grey mat"),
    ("brass", 0xd9b25c, 0x39424a, "a dark grey mat"),
    ("reddish bronze", 0xc07a52, 0x8d959a, "a light grey mat"),
];

enum Fault {
    Tooth { at: i32, wide: i32, stump: f32 },
    Hole(i32),
}

pub(super) struct Gear {
    pose: Pose,
    name: &'static str,
    metal: Rgb,
    mat: Rgb,
    bench: &'static str,
    toward: V2,
    /// The directions of the holes.
    spokes: [V2; HOLES as usize],
    fault: Option<Fault>,
}

/// A gear's outline and openings near one point.
struct Shape {
    /// The signed distance to the nearest edge of the metal, negative inside; `outward` is the direction in which it
    /// grows.
    edge: f32,
    outward: V2,
    radius: f32,
}

impl Gear {
    pub(super) fn new(light: &Light, draw: &mut Draw) -> Self {
        let &(name, metal, mat, bench) = draw.pick(&METALS);
        let pose = Pose::new(draw, 0.03, 10.0);
        let spokes = std::array::from_fn(|i| V2::polar(i as f32 * TAU / HOLES as f32));
        Self { pose, name, metal: rgb(metal), mat: rgb(mat), bench, toward: light.toward, spokes, fault: None }
    }

    fn shape(&self, q: V2) -> Shape {
        let radius = q.length();
        let radial = q.unit();
        let angle = if radius > 0.15 { q.angle() } else { 0.0 };
        let mut edge = -1.0;
        let mut outward = radial;
        if radius > 0.27 {
            let turns = angle / TAU * TEETH as f32;
            let mut tooth = (1.5 * cos(turns * TAU) + 0.15).clamp(-1.0, 1.0);
            if let Some(Fault::Tooth { at, wide, stump }) = self.fault {
                let index = floor(turns + 0.5).rem_euclid(TEETH);
                if (index - at).rem_euclid(TEETH) < wide {
                    tooth = tooth.min(-0.95 + stump * noise::value(q * 45.0, 51));
                }
            }
            // The flank is steep in angle: dividing by the gradient's length turns the step in radius into a distance.
            let flank = if tooth.abs() < 1.0 { 1.6 } else { 1.0 };
            edge = (radius - PITCH_RADIUS - TOOTH * tooth) / flank;
            if flank > 1.0 {
                let lean = turns - floor(turns + 0.5) as f32;
                outward = (radial + radial.across() * (1.3 * lean.signum())).unit();
            }
        }
        // Five round holes in the web.
        let sector = TAU / HOLES as f32;
        let hole = floor(angle / sector + 0.5);
        let gone = matches!(self.fault, Some(Fault::Hole(gone)) if gone == hole.rem_euclid(HOLES));
        if (0.15..0.25).contains(&radius) && !gone {
            let from = q - self.spokes[hole.rem_euclid(HOLES) as usize] * 0.2;
            let d = 0.042 - from.length();
            if d > edge {
                (edge, outward) = (d, -from.unit());
            }
        }
        // The bore and its keyway.
        let bore = 0.068 - radius;
        let key = -rounded_box(q + v(0.0, 0.068), v(0.02, 0.022), 0.003);
        let d = bore.max(key);
        if d > edge {
            (edge, outward) = (d, if bore > key { -radial } else { v(0.0, 1.0) });
        }
        Shape { edge, outward, radius }
    }
}

impl Scene for Gear {
    fn surface(&self, p: V2) -> Surface {
        let q = self.pose.to_object(p);
        let shape = self.shape(q);
        let toward = self.pose.inward(self.toward);
        let mut surface = Surface::matte(self.mat);
        if shape.edge > -0.004 {
            surface = ground(q, self.mat);
            let shadow = self.shape(q + toward * 0.028).edge;
            surface.open = 0.38 + 0.62 * smoothstep(-0.022, 0.03, shadow);
        }
        if shape.edge > 0.004 {
            return surface;
        }
        let mut metal = Surface::matte(self.metal);
        metal.metal = 1.0;
        // Turned on a lathe: the grooves mirror the lamp in two opposite sectors.
        let radial = q.unit();
        let facing = radial.dot(toward);
        let sheen = 0.72 + 0.42 * facing * facing * facing * facing;
        let rings = 1.0 + 0.03 * noise::value(v(shape.radius * 90.0, 0.5), 52);
        metal.tone(sheen * rings * grain(q, 53));
        let mut slope = v(0.0, 0.0);
        // The web between hub and rim lies lower.
        let web = smoothstep(0.118, 0.132, shape.radius) * smoothstep(0.282, 0.268, shape.radius);
        let wall = |at: f32| (1.0 - ((shape.radius - at) / 0.011).abs()).max(0.0);
        slope = slope + radial * (1.5 * (wall(0.275) - wall(0.125)));
        metal.tone(1.0 - 0.3 * web);
        metal.open =
            1.0 - 0.28 * web * smoothstep(0.03, 0.0, 0.075 - (shape.radius - 0.2).abs()) * (0.5 + 0.5 * facing);
        // Chamfered edges.
        slope = slope - shape.outward * (0.95 * smoothstep(-0.014, -0.002, shape.edge));
        metal.slope = self.pose.outward(slope);
        surface.cover(&metal, smoothstep(0.002, -0.002, shape.edge));
        surface
    }

    fn place(&self, draw: &mut Draw) -> V2 {
        self.pose.to_picture(V2::polar(draw.range(0.0, TAU)) * draw.range(0.09, 0.31))
    }

    fn core(&self) -> Rgb {
        self.metal.map(|c| c * 0.5)
    }

    fn break_part(&mut self, draw: &mut Draw) {
        self.fault = Some(if draw.chance(0.65) {
            Fault::Tooth {
                at: draw.below(TEETH as usize) as i32,
                wide: 1 + draw.below(2) as i32,
                stump: draw.range(0.1, 0.5),
            }
        } else {
            Fault::Hole(draw.below(HOLES as usize) as i32)
        });
    }

    fn caption(&self, light: &str) -> String {
        format!(
            "A photo of a {} gear with fourteen teeth, five round holes and a keyed bore, {} on {}, lit from {light}.",
            self.name,
            self.pose.words(),
            self.bench
        )
    }
}
