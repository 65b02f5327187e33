//! Three boards side by side, with a waving grain.

use super::draw::Draw;
use super::geometry::{V2, floor, rounded_box, sin, smoothstep, v};
use super::noise;
use super::scene::{Light, Pose, Rgb, Scene, Surface, blend, rgb};

use std::f32::consts::TAU;

const BOARD: f32 = 0.36;

const WOODS: [(&str, u32, u32); 3] = [
    ("honey-coloured oak", 0xc99a5f, 0xa06c37),
    ("dark walnut", 0x84573a, 0x5a3722),
    ("pale maple", 0xddc7a0, 0xc0a073),
];

struct Fault {
    centre: V2,
    half: V2,
    /// The grain of the wrong piece is turned and elsewhere in the pattern; a missing piece leaves a recess.
    missing: bool,
    /// The factor by which the wrong piece is darker or lighter.
    tone: f32,
}

pub(super) struct Wood {
    pose: Pose,
    name: &'static str,
    early: Rgb,
    late: Rgb,
    phase: V2,
    toward: V2,
    fault: Option<Fault>,
}

impl Wood {
    pub(super) fn new(light: &Light, draw: &mut Draw) -> Self {
        let &(name, early, late) = draw.pick(&WOODS);
        let pose = Pose::new(draw, 0.03, 4.0);
        let phase = v(draw.around(0.12), draw.around(0.02));
        Self { pose, name, early: rgb(early), late: rgb(late), phase, toward: light.toward, fault: None }
    }

    /// Returns the colour of board `board` at `q`.
    fn grain(&self, q: V2, board: i32) -> Rgb {
        // Each board is always cut from the same pattern; only the place of the cut differs.
        let at = q + self.phase + v(3.7 * board as f32, 0.9 * board as f32);
        let bent = at.y * 10.0 + 1.5 * noise::value(v(at.x * 1.6, at.y * 3.0), 31);
        let ring = 0.5 + 0.5 * sin(TAU * bent + 0.7 * sin(TAU * bent));
        let fibre = noise::cloud(v(at.x * 7.0, at.y * 60.0), 32);
        let tone = 1.0 + 0.09 * noise::cell(board, 0, 33) + 0.05 * fibre;
        blend(self.early, self.late, 0.75 * ring * ring + 0.12).map(|c| c * tone)
    }
}

impl Scene for Wood {
    fn surface(&self, p: V2) -> Surface {
        let q = self.pose.to_object(p);
        let y = q.y / BOARD + 0.5;
        let board = floor(y);
        let edge = (0.5 - (y - board as f32 - 0.5).abs()) * BOARD; // distance to the joint
        let side = if y - board as f32 > 0.5 { 1.0 } else { -1.0 };
        let mut surface = Surface::matte(self.grain(q, board));
        surface.gloss = 0.06;
        surface.open = 0.25 + 0.75 * smoothstep(0.002, 0.008, edge);
        surface.slope = self.pose.outward(v(0.0, -side * 0.5 * (1.0 - smoothstep(0.004, 0.018, edge))));
        if let Some(fault) = &self.fault {
            let local = q - fault.centre;
            let d = rounded_box(local, fault.half, 0.004);
            if d < 0.0 && fault.missing {
                // The wall on the lamp's side shades the floor of the recess.
                let wall = rounded_box(local + self.pose.inward(self.toward) * 0.022, fault.half, 0.004);
                surface = Surface::matte(self.late.map(|c| c * 0.38));
                surface.open = 0.35 + 0.65 * smoothstep(0.008, -0.012, wall);
            } else if d < 0.006 {
                surface.albedo = self.grain(v(q.y, q.x) + v(0.31, 0.17), board + 1).map(|c| c * fault.tone);
                surface.open = 0.25 + 0.75 * smoothstep(0.0, 0.005, (d - 0.001).abs() - 0.002);
            }
        }
        surface
    }

    fn place(&self, draw: &mut Draw) -> V2 {
        v(draw.range(-0.36, 0.36), draw.range(-0.36, 0.36))
    }

    fn core(&self) -> Rgb {
        self.early.map(|c| c * 0.8)
    }

    fn break_part(&mut self, draw: &mut Draw) {
        let half = v(draw.range(0.09, 0.14), draw.range(0.045, 0.07));
        let centre = v(draw.range(-0.3, 0.3), draw.range(-0.34, 0.34));
        let tone = if draw.chance(0.5) { draw.range(0.45, 0.6) } else { draw.range(1.4, 1.65) };
        self.fault = Some(Fault { centre, half, missing: draw.chance(0.5), tone });
    }

    fn caption(&self, light: &str) -> String {
        format!(
            "A photo of three smooth boards of {} with a wavy horizontal grain and thin dark joints, {}, lit from {light}.",
            self.name,
            self.pose.words()
        )
    }
}
