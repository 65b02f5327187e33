//! The table of metrics. Tables of metrics, the functions of SQL and their help, and the report know metrics from it
//! alone.

use super::Ranking;

/// Things that are judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Judged {
    /// Images, by their scores.
    Images,
    /// Pixels, by their values in anomaly maps.
    Pixels,
}

/// A way to measure how well scores separate anomalous from normal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The area below the ROC curve.
    Auroc,
    /// The average precision.
    AveragePrecision,
    /// The largest F1 of all thresholds.
    F1Max,
    /// The area below the curve of the per-region overlap. Pixels alone have regions.
    Aupro,
    /// F1 at a threshold that is given. No ranking has one.
    F1,
}

/// A metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Metric {
    /// The column of a table of metrics.
    pub column: &'static str,
    /// The aggregate function of SQL.
    pub function: &'static str,
    /// The subject of the metric: images or pixels.
    pub judged: Judged,
    /// The quantity that is measured.
    pub kind: Kind,
}

/// Every metric, in the order of the columns: those of images first.
pub const METRICS: [Metric; 8] = [
    Metric::new("image_auroc", "auroc", Judged::Images, Kind::Auroc),
    Metric::new("image_ap", "average_precision", Judged::Images, Kind::AveragePrecision),
    Metric::new("image_f1_max", "f1_max", Judged::Images, Kind::F1Max),
    Metric::new("pixel_auroc", "pixel_auroc", Judged::Pixels, Kind::Auroc),
    Metric::new("pixel_ap", "pixel_ap", Judged::Pixels, Kind::AveragePrecision),
    Metric::new("pixel_f1_max", "pixel_f1_max", Judged::Pixels, Kind::F1Max),
    Metric::new("aupro", "aupro", Judged::Pixels, Kind::Aupro),
    Metric::new("pixel_f1", "pixel_f1", Judged::Pixels, Kind::F1),
];

impl Judged {
    /// Returns one of the things, and several, in words.
    pub fn words(self) -> [&'static str; 2] {
        match self {
            Self::Images => ["image", "images"],
            Self::Pixels => ["pixel", "pixels"],
        }
    }
}

impl Kind {
    /// Computes the metric by its definition; `None` if it is not defined, or not by a ranking alone.
    pub fn of(self, ranking: &Ranking) -> Option<f64> {
        match self {
            Self::Auroc => ranking.auroc(),
            Self::AveragePrecision => ranking.average_precision(),
            Self::F1Max => ranking.f1_max(),
            Self::Aupro | Self::F1 => None,
        }
    }

    /// Returns the name that people use.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auroc => "AUROC",
            Self::AveragePrecision => "AP",
            Self::F1Max => "F1 max",
            Self::Aupro => "AUPRO",
            Self::F1 => "F1",
        }
    }
}

impl Metric {
    const fn new(column: &'static str, function: &'static str, judged: Judged, kind: Kind) -> Self {
        Self { column, function, judged, kind }
    }

    /// Returns the metric of a column; `None` for one that is not known here.
    pub fn of_column(column: &str) -> Option<Self> {
        METRICS.into_iter().find(|metric| metric.column == column)
    }

    /// Returns the arguments of its function.
    pub fn arguments(self) -> &'static [&'static str] {
        match (self.judged, self.kind) {
            (Judged::Images, _) => &["score", "label"],
            (Judged::Pixels, Kind::Aupro) => &["map", "mask", "limit"],
            (Judged::Pixels, Kind::F1) => &["map", "mask", "threshold"],
            (Judged::Pixels, _) => &["map", "mask"],
        }
    }

    /// Returns true if its function takes, after these arguments, the pixels that are judged: `roi`.
    pub fn takes_roi(self) -> bool {
        self.judged == Judged::Pixels
    }

    /// Returns a call of its function: `auroc(score, label)`.
    pub fn call(self) -> String {
        format!("{}({})", self.function, self.arguments().join(", "))
    }

    /// Explains it in a sentence. `limits` are the false positive rates up to which AUPRO was integrated.
    pub fn about(self, limits: &[f64]) -> String {
        let [one, many] = self.judged.words();
        match self.kind {
            Kind::Auroc => {
                format!("the chance that an anomalous {one} scores higher than a normal one; 50 is guessing.")
            }
            Kind::AveragePrecision => format!(
                "average precision: how few normal {many} stand among the anomalous ones when all are sorted by score; \
                 guessing gives the share of anomalous {many}."
            ),
            Kind::F1Max => {
                format!("the best balance of precision and recall over {many} that any one threshold reaches.")
            }
            Kind::F1 => format!(
                "the balance of precision and recall over {many} at a threshold that is known before the test, such as one \
                 from good images."
            ),
            Kind::Aupro => {
                let limits: Vec<String> =
                    limits.iter().map(|limit| format!("{}", (limit * 1e4).round() / 100.)).collect();
                let most = if limits.is_empty() { "few".into() } else { format!("at most {} %", limits.join(" or ")) };
                format!(
                    "the share of each flaw that is found, averaged over flaws, large and small alike, and over the \
                     thresholds that mark {most} of the normal {many}."
                )
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_has_its_own_column_function_and_explanation() {
        for (i, metric) in METRICS.into_iter().enumerate() {
            let others = || METRICS[..i].iter();
            assert!(others().all(|other| other.column != metric.column && other.function != metric.function));
            assert!(others().all(|other| other.about(&[]) != metric.about(&[])));
            assert_eq!(Metric::of_column(metric.column), Some(metric));
        }
        let aupro = Metric::of_column("aupro").unwrap();
        assert_eq!(aupro.call(), "aupro(map, mask, limit)");
        assert_eq!(Metric::of_column("pixel_f1").unwrap().call(), "pixel_f1(map, mask, threshold)");
        assert!(aupro.about(&[0.05, 0.3]).contains("at most 5 or 30 %"));
        assert_eq!(Metric::of_column("sharpness"), None);
    }
}
