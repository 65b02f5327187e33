//! Training curves as SVG, and the colour scale of anomaly maps as CSS.

use plotters::{
    coord::{
        combinators::BindKeyPoints,
        ranged1d::{AsRangedCoord, ValueFormatter},
    },
    prelude::*,
};

use crate::vision::colormap;

const SIZE: (u32, u32) = (480, 260);
// The page's style sheet finds the parts of a chart by these colours and gives them its own, light or dark.
const RAW: RGBColor = RGBColor(0xa1, 0xb7, 0xd6);
const SMOOTH: RGBColor = RGBColor(0x2f, 0x5f, 0xa8);
const GRID: RGBColor = RGBColor(0xe4, 0xe4, 0xe2);
const TEXT: RGBColor = RGBColor(0x66, 0x66, 0x64);

/// Draws a loss over optimiser steps: each logged value faint, their moving average strong. The loss axis is
/// logarithmic if the losses are positive and span more than a decade. `points` are `(step, loss)`, ascending by step.
///
/// # Errors
/// Fails if there are fewer than two points, or if plotters fails.
pub(super) fn loss_curve(points: &[(f64, f64)]) -> Result<String, String> {
    let [(first, _), .., (last, _)] = points else { return Err("two logged steps are needed for a curve".into()) };
    let (lo, hi) = points.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), (_, y)| (lo.min(*y), hi.max(*y)));
    let steps = first.min(0.)..*last;
    let svg = if lo > 0. && hi / lo > 10. {
        draw(points, steps, (lo / 1.1..hi * 1.1).log_scale().with_key_points(ticks(lo / 1.1, hi * 1.1)))
    } else {
        // The axis begins at 0, because the distance from 0 matters, unless the loss never comes near it.
        let bottom = if lo > 0. && lo < 0.5 * hi { 0. } else { lo - 0.05 * (hi - lo).max(1e-6) };
        draw(points, steps, bottom..hi + 0.05 * (hi - bottom).max(1e-6))
    };
    svg.map_err(|e| e.to_string())
}

fn draw<Y>(points: &[(f64, f64)], steps: std::ops::Range<f64>, losses: Y) -> Result<String, Box<dyn std::error::Error>>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(6)
            .margin_right(16)
            .x_label_area_size(46)
            .y_label_area_size(58)
            .build_cartesian_2d(steps, losses)?;
        let label = ("sans-serif", 16).into_font().color(&TEXT);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID)
            .axis_style(GRID)
            .label_style(label)
            .x_labels(6)
            .y_labels(6)
            .x_desc("step")
            .x_label_formatter(&|step| format!("{step:.0}"))
            .y_label_formatter(&|loss| short(*loss))
            .draw()?;
        chart.draw_series(LineSeries::new(points.iter().copied(), RAW.stroke_width(1)))?;
        chart.draw_series(LineSeries::new(smooth(points), SMOOTH.stroke_width(2)))?;
        root.present()?;
    }
    // Without a fixed size, the drawing fills its place on the page.
    let size = format!("width=\"{}\" height=\"{}\"", SIZE.0, SIZE.1);
    Ok(svg.replacen(&size, "class=\"chart\" role=\"img\"", 1))
}

/// Returns 1, 2 and 5 in every decade from `lo` to `hi`; over more than three decades, the powers of ten alone.
fn ticks(lo: f64, hi: f64) -> Vec<f64> {
    let digits: &[f64] = if hi / lo > 1e3 { &[1.] } else { &[1., 2., 5.] };
    let decades = lo.log10().floor() as i32..=hi.log10().ceil() as i32;
    decades
        .flat_map(|decade| digits.iter().map(move |digit| digit * 10f64.powi(decade)))
        .filter(|tick| (lo..=hi).contains(tick))
        .collect()
}

/// Formats a number with three significant digits, without trailing zeros.
pub(super) fn short(value: f64) -> String {
    if value == 0. || !value.is_finite() {
        return value.to_string();
    }
    let magnitude = value.abs().log10().floor() as i32;
    if !(-4..6).contains(&magnitude) {
        return format!("{value:.1e}");
    }
    let text = format!("{value:.*}", (2 - magnitude).max(0) as usize);
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

/// Formats a share as percent with one decimal; a dash stands for none.
pub(super) fn percent(value: Option<f64>) -> String {
    value.map_or_else(|| "–".into(), |value| format!("{:.1}", value * 100.))
}

/// Returns the mean over a window of a fifteenth of all points, centred, and shortened near both ends.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let half = points.len() / 30;
    let mean = |i: usize| {
        let reach = half.min(i).min(points.len() - 1 - i);
        let window = &points[i - reach..=i + reach];
        window.iter().map(|(_, loss)| loss).sum::<f64>() / window.len() as f64
    };
    (0..points.len()).map(|i| (points[i].0, mean(i))).collect()
}

/// Returns the colours of anomaly maps from low to high, as CSS colour stops.
pub(super) fn gradient() -> String {
    let stops = (0..=8).map(|i| {
        let [r, g, b] = colormap::inferno(i as f32, 0., 8.).0;
        format!("#{r:02x}{g:02x}{b:02x}")
    });
    stops.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let texts = [0., 1., 0.5, 0.01234, 12.34, 1234.6, 200_000., 0.000_012, -0.25].map(short);
        assert_eq!(texts, ["0", "1", "0.5", "0.0123", "12.3", "1235", "200000", "1.2e-5", "-0.25"]);
    }

    #[test]
    fn smoothing_keeps_steps_ends_and_straight_lines() {
        let line: Vec<(f64, f64)> = (0..90).map(|i| (f64::from(i), 3. - 0.01 * f64::from(i))).collect();
        let smoothed = smooth(&line);
        assert!(line.iter().zip(&smoothed).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-12));
        let spike: Vec<(f64, f64)> = (0..90).map(|i| (f64::from(i), if i == 45 { 7. } else { 0. })).collect();
        assert!((smooth(&spike)[45].1 - 1.).abs() < 1e-12);
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.03, 0.6).into_iter().map(short).collect::<Vec<_>>(), ["0.05", "0.1", "0.2", "0.5"]);
        assert_eq!(ticks(0.5, 2000.).into_iter().map(short).collect::<Vec<_>>(), ["1", "10", "100", "1000"]);
    }

    #[test]
    fn the_axis_is_logarithmic_beyond_a_decade() {
        let curve = |end: f64| loss_curve(&[(10., 1.), (20., 0.8), (30., end)]).unwrap();
        assert!(curve(0.005).contains("\n0.01\n"), "{}", curve(0.005));
        assert!(curve(0.4).contains("\n0\n") && !curve(0.4).contains("\n0.01\n"), "{}", curve(0.4));
        assert!(loss_curve(&[(10., 1.)]).unwrap_err().contains("two logged steps"));
        assert!(loss_curve(&[(10., 1.), (20., 1.)]).is_ok());
        assert!(loss_curve(&[(10., -1.), (20., -30.)]).is_ok());
    }
}
