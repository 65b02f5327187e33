//! A plain weave of thick yarn.

use super::draw::Draw;
use super::geometry::{V2, cos, floor, sin, smoothstep, v};
use super::noise;
use super::scene::{Pose, Rgb, Scene, Surface, grain, rgb};

use std::f32::consts::PI;

/// Distance between threads.
const PITCH: f32 = 1.0 / 11.0;
/// Half a thread's width, in pitches.
const HALF: f32 = 0.47;

const DYES: [(&str, u32, u32); 3] = [
    ("natural beige linen", 0xc9b48f, 0xbfa67c),
    ("blue and white cotton", 0x47699c, 0xd5d8d6),
    ("sage green canvas", 0x8a9a74, 0x76875f),
];

enum Fault {
    /// Weft thread `row` is gone between two columns.
    Gone { row: i32, from: f32, to: f32 },
    /// Weft thread `row` runs above all warp threads between two columns.
    Floats { row: i32, from: f32, to: f32 },
}

pub(super) struct Fabric {
    pose: Pose,
    name: &'static str,
    warp: Rgb,
    weft: Rgb,
    fault: Option<Fault>,
}

impl Fabric {
    pub(super) fn new(draw: &mut Draw) -> Self {
        let &(name, warp, weft) = draw.pick(&DYES);
        Self { pose: Pose::new(draw, 0.03, 4.0), name, warp: rgb(warp), weft: rgb(weft), fault: None }
    }
}

/// Returns the height of a thread's surface and its two slopes, or `None` beside the thread. `along` its run and
/// `aside` from its axis are from -1/2 to 1/2 of a crossing; `up` is 1 if it passes above, -1 below; `half` is half its
/// width.
fn thread(along: f32, aside: f32, up: f32, half: f32) -> Option<(f32, f32, f32)> {
    let u = aside / half;
    let round = 1.0 - u * u;
    (round > 0.0).then(|| {
        let height = up * 0.5 * cos(PI * along) + 0.55 * round.sqrt();
        (height, -up * 0.75 * sin(PI * along), -0.95 * u)
    })
}

impl Scene for Fabric {
    fn surface(&self, p: V2) -> Surface {
        let q = self.pose.to_object(p);
        let c = q * (1.0 / PITCH);
        let (i, j) = (floor(c.x), floor(c.y));
        let (fx, fy) = (c.x - i as f32 - 0.5, c.y - j as f32 - 0.5);
        let up = if (i + j) & 1 == 0 { 1.0 } else { -1.0 };
        let mut weft = thread(fx, fy, -up, HALF);
        let (mut bare, mut float) = (0.0, 0.0);
        match self.fault {
            Some(Fault::Gone { row, from, to }) if row == j && c.x > from && c.x < to => {
                weft = None;
                bare = smoothstep(from, from + 0.3, c.x) * smoothstep(to, to - 0.3, c.x);
            }
            Some(Fault::Floats { row, from, to }) if row == j && c.x > from && c.x < to => {
                let lift = smoothstep(from, from + 0.5, c.x) * smoothstep(to, to - 0.5, c.x);
                // No warp holds the float down: it lies high, slack and wide.
                weft = thread(fx, fy, -up, HALF * 1.1).map(|(h, s, a)| (h + lift * (1.3 - h), s * (1.0 - lift), a));
                float = lift;
            }
            _ => {}
        }
        // Without its weft the warp hangs lower and thinner over the dark below.
        let warp = thread(fy, fx, up * (1.0 - bare), HALF - 0.1 * bare).map(|(h, s, a)| (h - 0.62 * bare, s, a));
        let (height, slope, colour, index, float) = match (warp, weft) {
            (Some((h, s, a)), w) if w.is_none_or(|w| h >= w.0) => (h, v(a, s), self.warp, i, 0.0),
            (_, Some((h, s, a))) => (h, v(s, a), self.weft, j + 100, float),
            _ => {
                let mut gap = Surface::matte(self.warp.map(|c| c * 0.1));
                gap.open = 0.6;
                return gap;
            }
        };
        let mut surface = Surface::matte(colour);
        surface.slope = self.pose.outward(slope);
        // Each thread has a shade of its own.
        surface.tone((1.0 + 0.02 * noise::cell(index, 0, 5)) * grain(q, 11));
        // A float is soiled on pale cloth, and catches the light on dark cloth.
        surface.tone(1.0 + float * if self.weft[1] > 0.4 { -0.4 } else { 0.5 });
        surface.open = 0.42 + 0.58 * smoothstep(-0.45, 0.85, height);
        surface
    }

    fn place(&self, draw: &mut Draw) -> V2 {
        v(draw.range(-0.36, 0.36), draw.range(-0.36, 0.36))
    }

    fn core(&self) -> Rgb {
        self.warp.map(|c| c * 0.5)
    }

    fn break_part(&mut self, draw: &mut Draw) {
        let row = draw.below(8) as i32 - 4;
        let length = draw.range(3.0, 5.5);
        let from = draw.range(-4.6, 4.6 - length);
        let to = from + length;
        self.fault =
            Some(if draw.chance(0.6) { Fault::Gone { row, from, to } } else { Fault::Floats { row, from, to } });
    }

    fn caption(&self, light: &str) -> String {
        format!(
            "A close-up photo of a coarse plain weave in {}, its threads {}. The fabric is flat and even, lit from {light}.",
            self.name,
            self.pose.words()
        )
    }
}
