//! Thresholds by the costs of wrong verdicts, where defects are known.

/// The costs of wrong verdicts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Costs {
    /// The cost of an alarm about a good photograph.
    pub false_alarm: f64,
    /// The cost of a defect without an alarm.
    pub miss: f64,
    /// The share of photographs with a defect.
    pub prevalence: f64,
}

/// A threshold and what it costs per photograph, on average.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Cost {
    /// The threshold: a score above it is an alarm.
    pub threshold: f32,
    /// The expected cost.
    pub cost: f64,
}

/// Returns the expected cost of each threshold that divides the scores in another way, ascending; the scores are in
/// ascending order. There are none unless there are scores of both kinds.
///
/// The cost is (1 - prevalence) false_alarm P(score > t | good) + prevalence miss P(score <= t | defect) (Drummond and
/// Holte 2006, "Cost curves", equation 1). A threshold lies in the middle between two scores, but for the lowest, which
/// is below all scores, and the highest, which is the highest score.
pub fn curve(good: &[f32], defects: &[f32], costs: Costs) -> Vec<Cost> {
    if good.is_empty() || defects.is_empty() {
        return Vec::new();
    }
    let mut scores = [good, defects].concat();
    scores.sort_by(f32::total_cmp);
    scores.dedup();
    let lowest = scores[0].next_down();
    let between = scores.iter().enumerate().map(|(i, score)| match scores.get(i + 1) {
        // Between neighbouring floats, and between infinities, there is no middle.
        Some(next) => Some(score + (next - score) / 2.).filter(|middle| middle < next).unwrap_or(*score),
        None => *score,
    });
    let up_to = |scores: &[f32], threshold: f32| {
        scores.partition_point(|score| *score <= threshold) as f64 / scores.len() as f64
    };
    let cost = |threshold| Cost {
        threshold,
        cost: (1. - costs.prevalence) * costs.false_alarm * (1. - up_to(good, threshold))
            + costs.prevalence * costs.miss * up_to(defects, threshold),
    };
    std::iter::once(lowest).chain(between).map(cost).collect()
}

/// Returns the cheapest point of a curve; among equals that with the lowest threshold, which misses fewest defects.
pub fn cheapest(curve: &[Cost]) -> Option<Cost> {
    curve.iter().copied().min_by(|a, b| a.cost.total_cmp(&b.cost))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_are_those_computed_by_hand() {
        let costs = Costs { false_alarm: 1., miss: 10., prevalence: 0.5 };
        let curve = curve(&[1., 2., 4., 4.], &[3., 5.], costs);
        let expected = [(0.99999994, 0.5), (1.5, 0.375), (2.5, 0.25), (3.5, 2.75), (4.5, 2.5), (5., 5.)];
        assert_eq!(curve, expected.map(|(threshold, cost)| Cost { threshold, cost }));
        assert_eq!(cheapest(&curve), Some(curve[2]));
    }

    #[test]
    fn dear_false_alarms_raise_the_threshold_and_rare_defects_too() {
        let (good, defects) = ([1., 2., 4., 4.], [3., 5.]);
        let best = |costs| cheapest(&curve(&good, &defects, costs)).unwrap().threshold;
        assert_eq!(best(Costs { false_alarm: 10., miss: 1., prevalence: 0.5 }), 4.5);
        assert_eq!(best(Costs { false_alarm: 1., miss: 10., prevalence: 0.01 }), 4.5);
        assert_eq!(best(Costs { false_alarm: 1., miss: 10., prevalence: 1. }), 1f32.next_down());
        assert_eq!(cheapest(&curve(&good, &[], Costs { false_alarm: 1., miss: 1., prevalence: 0.5 })), None);
    }

    #[test]
    fn neighbouring_and_infinite_scores_are_divided() {
        let next = 1f32.next_up();
        let costs = Costs { false_alarm: 1., miss: 1., prevalence: 0.5 };
        assert_eq!(cheapest(&curve(&[1.], &[next], costs)), Some(Cost { threshold: 1., cost: 0. }));
        assert_eq!(cheapest(&curve(&[1.], &[f32::INFINITY], costs)).unwrap(), Cost { threshold: 1., cost: 0. });
        assert_eq!(cheapest(&curve(&[f32::NEG_INFINITY], &[1.], costs)).unwrap().cost, 0.);
    }
}
