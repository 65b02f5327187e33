//! A pin header on a circuit board.

use super::draw::Draw;
use super::geometry::{V2, floor, rounded_box, segment, smoothstep, v};
use super::scene::{Light, Pose, Rgb, Scene, Surface, blend, brightness, grain, rgb};

const HALF: V2 = v(0.34, 0.2);
/// Distance between pins; four columns of two.
const PITCH: f32 = 0.145;
const PIN: f32 = 0.034;

const BOARDS: [(&str, u32, u32, &str); 3] = [
    ("a black", 0x2b2c2f, 0x24704a, "green"),
    ("an ivory", 0xd8d0ba, 0x2d6b45, "green"),
    ("a black", 0x2f3033, 0x2b4f8a, "blue"),
];

struct Fault {
    column: i32,
    row: i32,
    /// The shift and the turn of a bent pin's tip; `None` if the pin is missing.
    bent: Option<(V2, V2)>,
}

pub(super) struct Connector {
    pose: Pose,
    housing_name: &'static str,
    board_name: &'static str,
    housing: Rgb,
    board: Rgb,
    toward: V2,
    fault: Option<Fault>,
}

impl Connector {
    pub(super) fn new(light: &Light, draw: &mut Draw) -> Self {
        let &(housing_name, housing, board, board_name) = draw.pick(&BOARDS);
        let pose = Pose::new(draw, 0.03, 7.0);
        let (housing, board) = (rgb(housing), rgb(board));
        Self { pose, housing_name, board_name, housing, board, toward: light.toward, fault: None }
    }

    /// Returns the signed distance to the outline of the housing with the polarising key on its lower side; negative
    /// inside.
    fn outline(q: V2) -> f32 {
        rounded_box(q, HALF, 0.025).min(rounded_box(q - v(0.0, HALF.y + 0.012), v(0.085, 0.03), 0.012))
    }

    fn board(&self, q: V2) -> Surface {
        let mut surface = Surface::matte(self.board);
        surface.tone(grain(q, 71));
        // Copper under the lacquer: one trace to each pin, ending in a plated via.
        let column = floor(q.x / PITCH + 2.0).clamp(0, 3) as f32 - 1.5;
        let x = column * PITCH;
        let bend = v(x, 0.29 * q.y.signum());
        let end = v(x * 1.22, 0.39 * q.y.signum());
        let trace =
            segment(q, v(x, 0.0), bend).0.min(segment(q, bend, end).0).min(segment(q, end, v(end.x, end.y * 2.0)).0);
        surface.albedo = blend(surface.albedo, self.board.map(|c| c * 1.5 + 0.012), smoothstep(0.014, 0.010, trace));
        let via = (q - end).length();
        let mut ring = Surface::matte(rgb(0xc9a85a));
        ring.metal = 0.6;
        surface.cover(&ring, smoothstep(0.029, 0.026, via));
        let mut drill = Surface::matte(rgb(0x101210));
        drill.open = 0.8;
        surface.cover(&drill, smoothstep(0.014, 0.011, via));
        surface.product = 0.0;
        surface
    }

    /// Returns the pin or empty socket of a cell, over the floor of the housing.
    fn pin(&self, q: V2, floor_of_housing: Surface) -> Surface {
        let column = floor(q.x / PITCH + 2.0).clamp(0, 3);
        let row = i32::from(q.y > 0.0);
        let from = q - v((column as f32 - 1.5) * PITCH, (row as f32 - 0.5) * PITCH);
        let mut surface = floor_of_housing;
        let mut local = from;
        let mut turn = v(1.0, 0.0);
        let mut lean = v(0.0, 0.0);
        if let Some(fault) = self.fault.as_ref().filter(|fault| (fault.column, fault.row) == (column, row)) {
            let socket = Surface::matte(rgb(0x060606));
            surface.cover(&socket, smoothstep(0.003, -0.003, rounded_box(from, v(PIN, PIN), 0.005)));
            let Some((to, by)) = fault.bent else { return surface };
            (lean, turn) = (to, by);
            local = (from - to).unturned(by);
        }
        let toward = self.pose.inward(self.toward);
        let cast = rounded_box((from - lean + toward * 0.03).unturned(turn), v(PIN, PIN), 0.01);
        surface.open *= 0.45 + 0.55 * smoothstep(-0.01, 0.03, cast);
        let d = rounded_box(local, v(PIN, PIN), 0.006);
        let mut gold = Surface::matte(rgb(0xe2bc62));
        gold.metal = 1.0;
        gold.gloss = 0.2;
        // Four bevels around a flat tip.
        let outward = if local.x.abs() > local.y.abs() { v(local.x.signum(), 0.0) } else { v(0.0, local.y.signum()) };
        let bevel = smoothstep(0.45, 0.6, local.x.abs().max(local.y.abs()) / PIN);
        gold.slope = self.pose.outward(outward.turned(turn) * (-0.75 * bevel));
        surface.cover(&gold, smoothstep(0.002, -0.002, d));
        surface
    }
}

impl Scene for Connector {
    fn surface(&self, p: V2) -> Surface {
        let q = self.pose.to_object(p);
        let d = Self::outline(q);
        let toward = self.pose.inward(self.toward);
        if d > 0.003 {
            let mut board = self.board(q);
            board.open *= 0.4 + 0.6 * smoothstep(-0.02, 0.035, Self::outline(q + toward * 0.045));
            return board;
        }
        let mut plastic = Surface::matte(self.housing);
        plastic.tone(grain(q, 72));
        plastic.gloss = 0.1;
        // A raised wall around a lower floor.
        let wall = rounded_box(q, v(HALF.x - 0.035, HALF.y - 0.035), 0.012);
        let outward =
            if (q.x.abs() - HALF.x) > (q.y.abs() - HALF.y) { v(q.x.signum(), 0.0) } else { v(0.0, q.y.signum()) };
        let outer = smoothstep(-0.014, -0.002, d);
        let inner = 1.0 - smoothstep(0.002, 0.010, (wall + 0.004).abs());
        plastic.slope = self.pose.outward(outward * (-0.9 * outer + 0.9 * inner));
        if wall < 0.0 {
            let shadow = rounded_box(q + toward * 0.04, v(HALF.x - 0.035, HALF.y - 0.035), 0.012);
            plastic.tone(0.82);
            plastic.open = 0.5 + 0.5 * smoothstep(0.02, -0.02, shadow);
            // Black housings have a white mark beside pin 1.
            let from = q - v(-0.277, -0.0725);
            let mark = from.x.abs() + 1.2 * from.y.abs() - 0.019;
            let paint = if brightness(self.housing) < 0.2 { smoothstep(0.003, -0.003, mark) } else { 0.0 };
            plastic.albedo = blend(plastic.albedo, rgb(0xe8e6dc), paint);
            return self.pin(q, plastic);
        }
        let mut surface = self.board(q);
        surface.open = 0.5;
        surface.cover(&plastic, smoothstep(0.002, -0.002, d));
        surface
    }

    fn place(&self, draw: &mut Draw) -> V2 {
        self.pose.to_picture(v(draw.range(-0.28, 0.28), draw.range(-0.15, 0.15)))
    }

    fn core(&self) -> Rgb {
        blend(self.housing, rgb(0x9a948a), 0.6)
    }

    fn break_part(&mut self, draw: &mut Draw) {
        let (column, row) = (draw.below(4) as i32, draw.below(2) as i32);
        let bent = draw.chance(0.5).then(|| {
            let to = V2::polar(draw.range(0.0, std::f32::consts::TAU)) * draw.range(0.03, 0.042);
            (to, V2::polar(draw.sign() * draw.range(0.3, 0.8)))
        });
        self.fault = Some(Fault { column, row, bent });
    }

    fn caption(&self, light: &str) -> String {
        format!(
            "A photo of {} pin header with eight gold pins on a {} circuit board, {}, lit from {light}.",
            self.housing_name,
            self.board_name,
            self.pose.words()
        )
    }
}
