//! Plane geometry and the few functions that pictures need, made of basic arithmetic alone: IEEE 754 fixes `+ - * /
//! sqrt` to the last bit, while the `sin`, `exp` and `pow` of two platforms differ.

use std::f32::consts::{FRAC_PI_2, PI, TAU};
use std::ops::{Add, Mul, Neg, Sub};

/// A point or direction of the plane; x to the right, y down.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct V2 {
    pub(super) x: f32,
    pub(super) y: f32,
}

pub(super) const fn v(x: f32, y: f32) -> V2 {
    V2 { x, y }
}

impl V2 {
    /// Returns the unit vector at `angle` radians, clockwise on screen from the x axis.
    pub(super) fn polar(angle: f32) -> Self {
        v(sin(angle + FRAC_PI_2), sin(angle))
    }

    pub(super) fn dot(self, o: Self) -> f32 {
        self.x * o.x + self.y * o.y
    }

    pub(super) fn length(self) -> f32 {
        self.dot(self).sqrt()
    }

    pub(super) fn unit(self) -> Self {
        self * (1.0 / self.length().max(1e-9))
    }

    /// Returns the vector after a quarter turn clockwise on screen.
    pub(super) fn across(self) -> Self {
        v(-self.y, self.x)
    }

    /// Returns the vector turned by the angle of the unit vector `by` (a complex product).
    pub(super) fn turned(self, by: Self) -> Self {
        v(self.x * by.x - self.y * by.y, self.x * by.y + self.y * by.x)
    }

    /// Returns the vector turned back by the angle of the unit vector `by`.
    pub(super) fn unturned(self, by: Self) -> Self {
        self.turned(v(by.x, -by.y))
    }

    /// Returns the angle in radians that `polar` takes, by a minimax polynomial on an octant, to about 1e-5.
    pub(super) fn angle(self) -> f32 {
        let (a, b) = (self.x.abs(), self.y.abs());
        let t = a.min(b) / a.max(b).max(1e-9);
        let s = t * t;
        let octant = t
            * (0.999_977_26
                + s * (-0.332_623_47
                    + s * (0.193_543_46 + s * (-0.116_432_87 + s * (0.052_653_32 + s * -0.011_721_2)))));
        let quadrant = if b > a { FRAC_PI_2 - octant } else { octant };
        let half = if self.x < 0.0 { PI - quadrant } else { quadrant };
        if self.y < 0.0 { -half } else { half }
    }
}

impl Add for V2 {
    type Output = Self;
    fn add(self, o: Self) -> Self {
        v(self.x + o.x, self.y + o.y)
    }
}

impl Sub for V2 {
    type Output = Self;
    fn sub(self, o: Self) -> Self {
        v(self.x - o.x, self.y - o.y)
    }
}

impl Mul<f32> for V2 {
    type Output = Self;
    fn mul(self, k: f32) -> Self {
        v(self.x * k, self.y * k)
    }
}

impl Neg for V2 {
    type Output = Self;
    fn neg(self) -> Self {
        v(-self.x, -self.y)
    }
}

/// Computes the sine by its Taylor polynomial on a quarter turn, to about 4e-6.
pub(super) fn sin(angle: f32) -> f32 {
    let turns = angle / TAU;
    let t = turns - floor(turns + 0.5) as f32; // [-1/2, 1/2]
    let t = if t > 0.25 {
        0.5 - t
    } else if t < -0.25 {
        -0.5 - t
    } else {
        t
    };
    let x = t * TAU;
    let s = x * x;
    x * (1.0 + s * (-1.0 / 6.0 + s * (1.0 / 120.0 + s * (-1.0 / 5040.0 + s * (1.0 / 362_880.0)))))
}

pub(super) fn cos(angle: f32) -> f32 {
    sin(angle + FRAC_PI_2)
}

/// Returns the largest integer not above `x`; `f32::floor` is a library call on the oldest x86-64.
pub(super) fn floor(x: f32) -> i32 {
    let i = x as i32;
    i - i32::from(x < i as f32)
}

/// Returns 0 for `x` up to `low`, 1 from `high`, and a smooth step between; it falls if `low > high`.
pub(super) fn smoothstep(low: f32, high: f32, x: f32) -> f32 {
    let t = ((x - low) / (high - low)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

pub(super) fn mix(a: f32, b: f32, t: f32) -> f32 {
    a + (b - a) * t
}

/// Returns the distance to the segment from `a` to `b`, and the position of the nearest point along it (0..=1).
pub(super) fn segment(p: V2, a: V2, b: V2) -> (f32, f32) {
    let (ap, ab) = (p - a, b - a);
    let t = (ap.dot(ab) / ab.dot(ab).max(1e-12)).clamp(0.0, 1.0);
    ((ap - ab * t).length(), t)
}

/// Returns the signed distance to a box of half extents `half` with corners rounded by `round`; negative inside.
pub(super) fn rounded_box(p: V2, half: V2, round: f32) -> f32 {
    let q = v(p.x.abs() - half.x + round, p.y.abs() - half.y + round);
    v(q.x.max(0.0), q.y.max(0.0)).length() + q.x.max(q.y).min(0.0) - round
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_close_to_those_of_the_platform() {
        for i in -200..200 {
            let a = i as f32 * 0.07;
            assert!((sin(a) - a.sin()).abs() < 1e-5, "sin {a}");
            assert!((cos(a) - a.cos()).abs() < 1e-5, "cos {a}");
            let p = v(a.cos(), a.sin());
            assert!((p.angle() - p.y.atan2(p.x)).abs() < 1e-4, "angle {a}");
            assert_eq!(floor(a), a.floor() as i32);
        }
    }

    #[test]
    fn distances_are_right_and_turns_can_be_undone() {
        assert_eq!(segment(v(0.5, 2.0), v(0.0, 0.0), v(1.0, 0.0)), (2.0, 0.5));
        assert_eq!(rounded_box(v(3.0, 0.0), v(1.0, 1.0), 0.2), 2.0);
        assert!(rounded_box(v(0.0, 0.0), v(1.0, 1.0), 0.2) < 0.0);
        let turn = V2::polar(1.1);
        let p = v(0.3, -0.4);
        assert!((p.turned(turn).unturned(turn) - p).length() < 1e-6);
    }
}
