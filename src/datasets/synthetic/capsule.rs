//! A printed capsule of two colours.

use super::draw::Draw;
use super::geometry::{V2, segment, smoothstep, v};
use super::scene::{Light, Pose, Rgb, Scene, Surface, blend, grain, ground, rgb};

/// Half the length of the axis.
const HALF: f32 = 0.22;
const RADIUS: f32 = 0.135;
/// The difference between the radii of cap and body.
const STEP: f32 = 0.007;
/// The place on the axis where the cap ends.
const JOINT: f32 = 0.02;
/// Half the width of a printed stroke.
const STROKE: f32 = 0.0085;

const COATS: [(&str, u32, u32, u32); 3] = [
    ("red and cream", 0xb5302a, 0xe3d6b4, 0x3a3230),
    ("blue and white", 0x2f5f9e, 0xdfe2e0, 0x2a3a55),
    ("green and yellow", 0x3b7d4f, 0xe2bd4a, 0x2f3c26),
];

/// The strokes of "A7", in a frame from -1 to 1.
const PRINT: [(V2, V2); 5] = [
    (v(-0.95, 0.8), v(-0.55, -0.8)),
    (v(-0.55, -0.8), v(-0.15, 0.8)),
    (v(-0.8, 0.3), v(-0.3, 0.3)),
    (v(0.2, -0.8), v(0.95, -0.8)),
    (v(0.95, -0.8), v(0.45, 0.8)),
];

enum Fault {
    NoPrint,
    Misprint {
        by: V2,
        turn: V2,
    },
    /// The cap ends at this place of the axis instead.
    CapMoved(f32),
}

pub(super) struct Capsule {
    pose: Pose,
    name: &'static str,
    cap: Rgb,
    body: Rgb,
    ink: Rgb,
    toward: V2,
    fault: Option<Fault>,
}

impl Capsule {
    pub(super) fn new(light: &Light, draw: &mut Draw) -> Self {
        let &(name, cap, body, ink) = draw.pick(&COATS);
        let pose = Pose::new(draw, 0.03, 11.0);
        Self { pose, name, cap: rgb(cap), body: rgb(body), ink: rgb(ink), toward: light.toward, fault: None }
    }

    /// Returns the amount of ink on the shell, from 0 to 1.
    fn print(&self, q: V2) -> f32 {
        let mut local = q - v(-0.11, 0.0);
        match &self.fault {
            Some(Fault::NoPrint) => return 0.0,
            Some(Fault::Misprint { by, turn }) => local = (local - *by).unturned(*turn),
            _ => {}
        }
        const SCALE: f32 = 0.068;
        if local.x.abs() > SCALE + STROKE || local.y.abs() > SCALE + STROKE {
            return 0.0;
        }
        let strokes = PRINT.iter().map(|&(a, b)| segment(local, a * SCALE, b * SCALE).0);
        smoothstep(STROKE + 0.003, STROKE - 0.003, strokes.fold(1.0, f32::min))
    }
}

impl Scene for Capsule {
    fn surface(&self, p: V2) -> Surface {
        let q = self.pose.to_object(p);
        let joint = if let Some(Fault::CapMoved(to)) = self.fault { to } else { JOINT };
        let on_cap = smoothstep(joint - 0.003, joint + 0.003, q.x);
        let radius = RADIUS + STEP * on_cap;
        let axis = v(q.x.clamp(-HALF, HALF), 0.0);
        let from = q - axis;
        let d = from.length();
        let mut surface = ground(q, rgb(0xaab0b2));
        let toward = self.pose.inward(self.toward);
        if d > radius - 0.01 {
            let at = q + toward * 0.05;
            let cast = (at - v(at.x.clamp(-HALF, HALF), 0.0)).length();
            surface.open = 0.42 + 0.58 * smoothstep(0.085, 0.19, cast);
            // Little light reaches below the belly.
            surface.open *= 0.7 + 0.3 * smoothstep(radius - 0.005, radius + 0.03, d);
        }
        if d < radius + 0.004 {
            let colour = blend(blend(self.body, self.cap, on_cap), self.ink, 0.92 * self.print(q));
            let mut shell = Surface::matte(colour);
            shell.tone(grain(q, 61));
            shell.gloss = 0.55;
            let t = (d / radius).min(0.98);
            let mut slope = from.unit() * (-0.85 * t / (1.0 - t * t).sqrt());
            // The cap's edge catches the light or lies in shade, and shades the body beside it.
            let lip = 1.0 - smoothstep(0.0, 0.010, (q.x - joint - 0.004).abs());
            slope = slope + v(1.1 * lip, 0.0);
            shell.slope = self.pose.outward(slope);
            shell.open = 1.0 - 0.3 * smoothstep(joint - 0.03, joint, q.x) * (1.0 - on_cap);
            surface.cover(&shell, smoothstep(0.002, -0.002, d - radius));
        }
        surface
    }

    fn place(&self, draw: &mut Draw) -> V2 {
        self.pose.to_picture(v(draw.range(-0.25, 0.25), draw.range(-0.07, 0.07)))
    }

    fn core(&self) -> Rgb {
        rgb(0xd8d0bc)
    }

    fn break_part(&mut self, draw: &mut Draw) {
        self.fault = Some(match draw.below(3) {
            0 => Fault::NoPrint,
            1 => {
                let by = v(draw.range(-0.05, 0.09), draw.sign() * draw.range(0.0, 0.03));
                Fault::Misprint { by, turn: V2::polar(draw.sign() * draw.range(0.7, 2.2)) }
            }
            _ => Fault::CapMoved(JOINT + draw.range(0.07, 0.13)),
        });
    }

    fn caption(&self, light: &str) -> String {
        format!(
            "A photo of a glossy {} capsule printed with A7, {} on a grey tray, lit from {light} with a soft shadow.",
            self.name,
            self.pose.words()
        )
    }
}
