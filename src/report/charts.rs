//! Training curves and histograms of scores as SVG, and the colour scale of anomaly maps as CSS.

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
const GUESSING: RGBColor = RGBColor(0xb3, 0x37, 0x2b);

/// Draws a loss over optimiser steps: each logged value faint, their moving average strong, and the loss of guessing as
/// a line, if it is known. The loss axis is logarithmic if the losses are positive and span more than a decade.
/// `points` are `(step, loss)`, ascending by step; those that are not finite as f32 are left out. `name` is what the drawing
/// is called.
///
/// # Errors
/// Fails if there are fewer than two points, or if plotters fails.
pub(super) fn loss_curve(points: &[(f64, f64)], guessing: Option<f64>, name: &str) -> Result<String, String> {
    let is_finite = |value: f64| (value as f32).is_finite();
    let points: Vec<(f64, f64)> =
        points.iter().copied().filter(|(step, loss)| is_finite(*step) && is_finite(*loss)).collect();
    let (points, guessing) = (points.as_slice(), guessing.filter(|loss| is_finite(*loss)));
    let [(first, _), .., (last, _)] = points else { return Err("two logged steps are needed for a curve".into()) };
    let losses = points.iter().map(|(_, loss)| *loss).chain(guessing);
    let (lo, hi) = losses.fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), y| (lo.min(y), hi.max(y)));
    let steps = first.min(0.)..*last;
    let svg = if lo > 0. && hi / lo > 10. {
        let losses = (lo / 1.1..hi * 1.1).log_scale().with_key_points(ticks(lo / 1.1, hi * 1.1));
        draw(points, guessing, name, steps, losses, short)
    } else {
        // The axis begins at 0, because the distance from 0 matters, unless the loss never comes near it.
        let bottom = if lo > 0. && lo < 0.5 * hi { 0. } else { lo - 0.05 * (hi - lo).max(1e-6) };
        let top = hi + 0.05 * (hi - bottom).max(1e-6);
        draw(points, guessing, name, steps, bottom..top, |loss| apart(loss, top - bottom))
    };
    svg.map_err(|e| e.to_string())
}

fn draw<Y>(
    points: &[(f64, f64)],
    guessing: Option<f64>,
    name: &str,
    steps: std::ops::Range<f64>,
    losses: Y,
    label_of: impl Fn(f64) -> String,
) -> Result<String, Box<dyn std::error::Error>>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let (mut svg, steps_start) = (String::new(), steps.start);
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
            .y_label_formatter(&|loss| label_of(*loss))
            .draw()?;
        if let (Some(guessing), Some((last, _))) = (guessing, points.last()) {
            chart
                .draw_series(LineSeries::new([(steps_start, guessing), (*last, guessing)], GUESSING.stroke_width(1)))?;
        }
        chart.draw_series(LineSeries::new(points.iter().copied(), RAW.stroke_width(1)))?;
        chart.draw_series(LineSeries::new(smooth(points), SMOOTH.stroke_width(2)))?;
        root.present()?;
    }
    // Without a fixed size, the drawing fills its place on the page.
    let size = format!("width=\"{}\" height=\"{}\"", SIZE.0, SIZE.1);
    Ok(svg.replacen(&size, &format!("class=\"chart\" role=\"img\" aria-label=\"{}\"", escaped(name)), 1))
}

/// The number of bars of a histogram.
const BARS: usize = 30;

/// Draws the scores of normal images, upwards from a line, and those of anomalous images, downwards, over one axis.
/// Counts are drawn on one scale. Returns `None` without finite scores.
pub(super) fn histogram(normal: &[f64], anomalous: &[f64], name: &str) -> Option<String> {
    let finite = || normal.iter().chain(anomalous).copied().filter(|score| score.is_finite());
    let (lo, hi) = finite().fold((f64::INFINITY, f64::NEG_INFINITY), |(lo, hi), score| (lo.min(score), hi.max(score)));
    if lo > hi {
        return None;
    }
    let width = (hi - lo).max(f64::MIN_POSITIVE) / BARS as f64;
    let bars = |scores: &[f64]| {
        let mut counts = [0usize; BARS];
        scores.iter().filter(|score| score.is_finite()).for_each(|score| {
            counts[(((score - lo) / width) as usize).min(BARS - 1)] += 1;
        });
        counts
    };
    let (up, down) = (bars(normal), bars(anomalous));
    let most = up.iter().chain(&down).max().copied().unwrap_or_default().max(1) as f64;
    let (left, middle, height, bar) = (10., 80., 66., 15.);
    let end = left + bar * BARS as f64;
    let mut svg = format!(
        "<svg class=\"chart\" role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {} 180\" xmlns=\"http://www.w3.org/2000/svg\">",
        escaped(name),
        end + left
    );
    for (counts, kind) in [(up, "normal"), (down, "anomalous")] {
        for (i, count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let tall = (*count as f64 / most * height).max(2.);
            let (x, y) = (left + bar * i as f64, if kind == "normal" { middle - tall } else { middle });
            svg += &format!(
                "<rect class=\"{kind}\" x=\"{x:.0}\" y=\"{y:.1}\" width=\"{:.0}\" height=\"{tall:.1}\"/>",
                bar - 1.
            );
        }
    }
    svg += &format!("<line x1=\"{left}\" y1=\"{middle}\" x2=\"{end}\" y2=\"{middle}\" stroke=\"#E4E4E2\"/>");
    for (x, anchor, score) in [(left, "start", lo), (end, "end", hi)] {
        svg += &format!("<text x=\"{x}\" y=\"170\" text-anchor=\"{anchor}\">{}</text>", short(score));
    }
    svg += &format!("<text x=\"{}\" y=\"170\" text-anchor=\"middle\">score</text></svg>", (left + end) / 2.);
    Some(svg)
}

/// A curve of rates.
pub(super) struct Line {
    /// The class of the style sheet.
    pub kind: &'static str,
    /// Points with ascending false positive rates.
    pub points: Vec<(f64, f64)>,
}

/// Draws curves over the false positive rate, both axes from 0 to 1, without lines that have no points. Returns `None` if
/// none has.
pub(super) fn rates(lines: &[Line], name: &str) -> Option<String> {
    if lines.iter().all(|line| line.points.is_empty()) {
        return None;
    }
    let (left, top, side) = (34., 8., 200.);
    let place = |(x, y): (f64, f64)| format!("{:.1},{:.1}", left + x * side, top + (1. - y) * side);
    let mut svg = format!(
        "<svg class=\"chart\" role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {} {}\" xmlns=\"http://www.w3.org/2000/svg\">",
        escaped(name),
        left + side + 12.,
        top + side + 40.
    );
    for (x, y) in [((0., 0.), (1., 1.)), ((0., 0.), (1., 0.)), ((0., 0.), (0., 1.))] {
        svg += &format!("<polyline points=\"{} {}\" fill=\"none\" stroke=\"#E4E4E2\"/>", place(x), place(y));
    }
    for line in lines.iter().filter(|line| !line.points.is_empty()) {
        let points: Vec<String> = thinned(&line.points).into_iter().map(place).collect();
        svg += &format!("<polyline class=\"{}\" points=\"{}\" fill=\"none\"/>", line.kind, points.join(" "));
    }
    for tick in [0., 0.5, 1.] {
        let (x, y) = (left + tick * side, top + (1. - tick) * side);
        svg += &format!("<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{tick}</text>", top + side + 16.);
        svg += &format!("<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{tick}</text>", left - 6., y + 4.);
    }
    let middle = left + side / 2.;
    svg += &format!(
        "<text x=\"{middle}\" y=\"{}\" text-anchor=\"middle\">false positive rate</text></svg>",
        top + side + 34.
    );
    Some(svg)
}

/// Leaves out points that lie within half a pixel of the drawing from the one before; both ends stay.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let mut kept: Vec<(f64, f64)> = Vec::new();
    for (i, point) in points.iter().enumerate() {
        let is_near = |last: &(f64, f64)| (point.0 - last.0).abs().max((point.1 - last.1).abs()) < 0.0025;
        if i + 1 == points.len() || !kept.last().is_some_and(is_near) {
            kept.push(*point);
        }
    }
    kept
}

/// Escapes a text for an attribute of SVG.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;")
}

/// Formats a number on an axis of this length with as many digits as tell neighbouring labels apart.
fn apart(value: f64, length: f64) -> String {
    let digits = (1. - length.log10().floor()).clamp(0., 9.) as usize;
    let text = format!("{value:.digits$}");
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
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

/// Returns the mean over a centred window of a fifteenth of all points. It has no points near both ends, where a
/// shorter window would follow single values.
fn smooth(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let half = points.len() / 30;
    let mean = |i: usize| {
        let window = &points[i - half..=i + half];
        window.iter().map(|(_, loss)| loss).sum::<f64>() / window.len() as f64
    };
    (half..points.len() - half).map(|i| (points[i].0, mean(i))).collect()
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
    fn smoothing_keeps_steps_and_straight_lines_and_ends_before_single_values() {
        let line: Vec<(f64, f64)> = (0..90).map(|i| (f64::from(i), 3. - 0.01 * f64::from(i))).collect();
        let smoothed = smooth(&line);
        assert_eq!(smoothed.len(), 84);
        assert!(line[3..].iter().zip(&smoothed).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 1e-12));
        let spike: Vec<(f64, f64)> = (0..90).map(|i| (f64::from(i), if i == 45 { 7. } else { 0. })).collect();
        assert!((smooth(&spike)[42].1 - 1.).abs() < 1e-12);
        assert_eq!(smooth(&line[..5]), line[..5]);
    }

    #[test]
    fn losses_that_are_not_finite_are_left_out() {
        let points = [(0., 1.), (1., f64::INFINITY), (2., f64::NAN), (3., 1e300), (4., 0.001)];
        let whole = [points[0], points[4]];
        let curve = |points: &[(f64, f64)], guessing| loss_curve(points, guessing, "loss").unwrap();
        assert_eq!(curve(&points, Some(f64::INFINITY)), curve(&whole, None));
        assert!(loss_curve(&points[..4], None, "loss").is_err());
    }

    #[test]
    fn labels_of_a_short_axis_differ() {
        assert_eq!([3.4652, 3.4654, 3.4656].map(|loss| apart(loss, 0.001)), ["3.4652", "3.4654", "3.4656"]);
        assert_eq!([0., 0.5, 1.5].map(|loss| apart(loss, 2.)), ["0", "0.5", "1.5"]);
        assert_eq!(apart(150., 400.), "150");
    }

    #[test]
    fn histogram_has_normal_images_above_and_anomalous_ones_below() {
        let svg = histogram(&[0., 0.1, 0.1, f64::NAN], &[0.9, 3.], "scores of \"a\"").unwrap();
        assert_eq!(svg.matches("class=\"normal\"").count(), 2);
        assert_eq!(svg.matches("class=\"anomalous\"").count(), 2);
        assert!(
            svg.contains("scores of &quot;a&quot;") && svg.contains(">3</text>") && svg.contains(">0</text>"),
            "{svg}"
        );
        assert!(histogram(&[2.], &[], "").unwrap().contains("class=\"normal\""));
        assert_eq!(histogram(&[], &[f64::NAN], ""), None);
    }

    #[test]
    fn curves_are_drawn_from_corner_to_corner_with_few_points() {
        let diagonal = |count: usize| (0..=count).map(|i| (i as f64 / count as f64, i as f64 / count as f64)).collect();
        let line = |points| Line { kind: "images", points };
        let svg = rates(&[line(diagonal(100_000)), line(Vec::new())], "curves of \"a\"").unwrap();
        assert_eq!(svg.matches("class=\"images\"").count(), 1);
        assert!(
            svg.contains("points=\"34.0,208.0 ") && svg.contains(" 234.0,8.0\" fill") && svg.len() < 10_000,
            "{svg}"
        );
        assert!(svg.contains("curves of &quot;a&quot;"));
        assert_eq!(rates(&[line(Vec::new())], ""), None);
        assert_eq!(thinned(&[(0., 0.), (0., 0.001), (0., 1.), (1., 1.)]), [(0., 0.), (0., 1.), (1., 1.)]);
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.03, 0.6).into_iter().map(short).collect::<Vec<_>>(), ["0.05", "0.1", "0.2", "0.5"]);
        assert_eq!(ticks(0.5, 2000.).into_iter().map(short).collect::<Vec<_>>(), ["1", "10", "100", "1000"]);
    }

    #[test]
    fn the_axis_is_logarithmic_beyond_a_decade() {
        let curve = |end: f64| loss_curve(&[(10., 1.), (20., 0.8), (30., end)], None, "loss").unwrap();
        assert!(curve(0.005).contains("\n0.01\n"), "{}", curve(0.005));
        assert!(curve(0.4).contains("\n0\n") && !curve(0.4).contains("\n0.01\n"), "{}", curve(0.4));
        let drawn = |points: &[(f64, f64)], guessing| loss_curve(points, guessing, "loss");
        assert!(drawn(&[(10., 1.)], None).unwrap_err().contains("two logged steps"));
        assert!(drawn(&[(10., 1.), (20., 1.)], None).is_ok());
        assert!(drawn(&[(10., -1.), (20., -30.)], None).is_ok());
        let lines = |guessing| drawn(&[(10., 1.), (20., 0.9)], guessing).unwrap().matches("#B3372B").count();
        assert_eq!((lines(None), lines(Some(1.1))), (0, 1));
    }
}
