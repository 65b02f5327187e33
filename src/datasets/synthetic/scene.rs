//! The content of a picture: a surface at every point, under one light.

use super::draw::Draw;
use super::geometry::{V2, mix, smoothstep, v};
use super::noise;

/// Linear light, 0..=1 for a white surface facing the lamp.
pub(super) type Rgb = [f32; 3];

/// Converts a colour as people write it, `0xRRGGBB`, to linear light. Pictures are encoded with gamma 2 (a square root,
/// exact on every platform), which is close to sRGB's curve.
pub(super) fn rgb(hex: u32) -> Rgb {
    [16, 8, 0].map(|shift| {
        let level = ((hex >> shift) & 0xff) as f32 / 255.0;
        level * level
    })
}

pub(super) fn blend(a: Rgb, b: Rgb, t: f32) -> Rgb {
    [mix(a[0], b[0], t), mix(a[1], b[1], t), mix(a[2], b[2], t)]
}

pub(super) fn brightness(colour: Rgb) -> f32 {
    (colour[0] + colour[1] + colour[2]) / 3.0
}

/// The surface of the scene at one point.
#[derive(Clone, Copy, Debug)]
pub(super) struct Surface {
    /// Diffuse colour, or the colour of the reflection if `metal` is 1.
    pub(super) albedo: Rgb,
    /// Gradient of the height; 1 is a slope of 45 degrees.
    pub(super) slope: V2,
    /// Strength of the white highlight.
    pub(super) gloss: f32,
    /// 0 for a dielectric, 1 for a metal.
    pub(super) metal: f32,
    /// The share of the light that shadows and crevices leave, 1 in the open.
    pub(super) open: f32,
    /// The share of the point that belongs to the product, and not to the ground below it.
    pub(super) product: f32,
}

impl Surface {
    pub(super) fn matte(albedo: Rgb) -> Self {
        Self { albedo, slope: V2::default(), gloss: 0.0, metal: 0.0, open: 1.0, product: 1.0 }
    }

    pub(super) fn tone(&mut self, factor: f32) {
        self.albedo = self.albedo.map(|c| c * factor);
    }

    /// Paints `other` over the surface, by the share `cover` from 0 to 1.
    pub(super) fn cover(&mut self, other: &Self, cover: f32) {
        self.albedo = blend(self.albedo, other.albedo, cover);
        self.slope = self.slope * (1.0 - cover) + other.slope * cover;
        self.gloss = mix(self.gloss, other.gloss, cover);
        self.metal = mix(self.metal, other.metal, cover);
        self.open = mix(self.open, other.open, cover);
        self.product = mix(self.product, other.product, cover);
    }
}

/// One lamp, above the upper half of the picture, and the vignette of the lens.
pub(super) struct Light {
    direction: [f32; 3],
    half: [f32; 3],
    /// The unit direction in the picture that points towards the lamp.
    pub(super) toward: V2,
    tint: Rgb,
    falloff: f32,
    vignette: f32,
    /// The place of the lamp, in words that follow "lit from".
    pub(super) words: &'static str,
}

const AMBIENT: f32 = 0.42;

impl Light {
    pub(super) fn new(draw: &mut Draw) -> Self {
        const WORDS: [&str; 5] = ["the left", "the upper left", "above", "the upper right", "the right"];
        let turn = draw.unit();
        let toward = V2::polar((190.0 + 160.0 * turn).to_radians());
        let rise = draw.range(0.95, 1.35); // tangent of the elevation
        let length = (1.0 + rise * rise).sqrt();
        let direction = [toward.x / length, toward.y / length, rise / length];
        let norm = (2.0 + 2.0 * direction[2]).sqrt();
        let half = [direction[0] / norm, direction[1] / norm, (direction[2] + 1.0) / norm];
        let (intensity, warmth) = (draw.range(0.84, 1.06), draw.around(0.05));
        let tint = [intensity * (1.0 + warmth), intensity, intensity * (1.0 - warmth)];
        let words = WORDS[((turn * 5.0) as usize).min(4)];
        Self { direction, half, toward, tint, falloff: draw.range(0.12, 0.3), vignette: draw.range(0.25, 0.5), words }
    }

    /// Returns the linear light that reaches the camera from `surface` at `p`.
    pub(super) fn shade(&self, surface: &Surface, p: V2) -> Rgb {
        let (s, l, h) = (surface.slope, self.direction, self.half);
        let nz = 1.0 / (1.0 + s.dot(s)).sqrt();
        let (nx, ny) = (-s.x * nz, -s.y * nz);
        let facing = ((nx * l[0] + ny * l[1] + nz * l[2]) / l[2]).max(0.0);
        let diffuse = AMBIENT + (1.0 - AMBIENT) * facing;
        // A metal mirrors the lamp, wide as a window, and a room that is brighter above.
        let mirrored = 2.0 * nz * (nx * l[0] + ny * l[1]) + (2.0 * nz * nz - 1.0) * l[2];
        let room = 0.35 + 0.5 * smoothstep(-0.5, 1.0, mirrored) + 0.7 * smoothstep(0.78, 1.0, mirrored);
        let body = mix(diffuse, room, surface.metal) * surface.open;
        let glint = {
            let mut x = (nx * h[0] + ny * h[1] + nz * h[2]).max(0.0);
            for _ in 0..5 {
                x *= x; // the 32nd power
            }
            x * surface.gloss * surface.open
        };
        let lens = (1.0 + self.falloff * self.toward.dot(p)) * (1.0 - self.vignette * p.dot(p));
        std::array::from_fn(|c| (surface.albedo[c] * body + glint) * self.tint[c] * lens)
    }
}

/// The place of an object in the picture, whose sides go from -1/2 to 1/2.
pub(super) struct Pose {
    centre: V2,
    turn: V2,
    scale: f32,
    /// The angle in degrees, clockwise.
    pub(super) degrees: f32,
}

impl Pose {
    /// Draws a pose: shifted by up to `shift` (of the picture's side), turned by up to `degrees`, scaled by up to 4 %.
    pub(super) fn new(draw: &mut Draw, shift: f32, degrees: f32) -> Self {
        let centre = v(draw.around(shift), draw.around(shift));
        let degrees = draw.range(-degrees, degrees);
        Self { centre, turn: V2::polar(degrees.to_radians()), scale: 1.0 + draw.range(-0.04, 0.04), degrees }
    }

    pub(super) fn to_object(&self, p: V2) -> V2 {
        (p - self.centre).unturned(self.turn) * (1.0 / self.scale)
    }

    pub(super) fn to_picture(&self, q: V2) -> V2 {
        q.turned(self.turn) * self.scale + self.centre
    }

    /// Converts a direction or slope from the picture to the object; [`outward`](Self::outward) does the inverse.
    pub(super) fn inward(&self, direction: V2) -> V2 {
        direction.unturned(self.turn)
    }

    pub(super) fn outward(&self, direction: V2) -> V2 {
        direction.turned(self.turn)
    }

    /// Describes the turn in words.
    pub(super) fn words(&self) -> &'static str {
        match self.degrees {
            d if d < -2.5 => "turned slightly to the left",
            d if d > 2.5 => "turned slightly to the right",
            _ => "lying straight",
        }
    }
}

/// A product in front of the camera.
pub(super) trait Scene {
    /// Returns the surface at a point of the picture (-1/2..1/2). A call takes in the order of 100 ns.
    fn surface(&self, p: V2) -> Surface;
    /// Returns a random point of the picture on the product.
    fn place(&self, draw: &mut Draw) -> V2;
    /// Returns the colour of the material that a cut lays bare.
    fn core(&self) -> Rgb;
    /// Takes away or misplaces one part.
    fn break_part(&mut self, draw: &mut Draw);
    /// Describes the flawless product in words; `light` is the place of the lamp in words.
    fn caption(&self, light: &str) -> String;
}

/// Returns the fine, low-contrast grain of a real material, as a factor of its tone.
pub(super) fn grain(p: V2, seed: u32) -> f32 {
    1.0 + 0.03 * noise::value(p * 45.0, seed)
}

/// Returns a matte ground for objects to lie on.
pub(super) fn ground(p: V2, colour: Rgb) -> Surface {
    let mut surface = Surface::matte(colour);
    surface.tone(grain(p, 17) * (1.0 + 0.04 * noise::value(p * 5.0, 18)));
    surface.product = 0.0;
    surface
}
